use std::io;
use std::process::ExitCode;

use larder::answer::Failure;
use larder::config::ConfigError;

use super::complaint::Complaint;

/// How a command ended. The numbers are part of the interface and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok,
    /// Something that has no code of its own.
    General,
    /// Wrong flags, options or configuration.
    Usage,
    /// No such name, hash or revision.
    NotFound,
    /// Nobody could prove it, nobody could be reached, or time ran out.
    Unavailable,
    /// A node said no, and nothing changed.
    Refused,
    /// A file that cannot be published.
    BadInput,
    /// Certificates or trust.
    Trust,
    /// The store is held by another process, damaged, full, or of a newer format.
    Store,
    /// A port or socket is in use.
    Address,
    /// `larder doctor` found what does not work.
    Unsound,
}

impl Exit {
    /// All of them, in order of number.
    pub(crate) const ALL: [Self; 11] = [
        Self::Ok,
        Self::General,
        Self::Usage,
        Self::NotFound,
        Self::Unavailable,
        Self::Refused,
        Self::BadInput,
        Self::Trust,
        Self::Store,
        Self::Address,
        Self::Unsound,
    ];

    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::General => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unavailable => 4,
            Self::Refused => 5,
            Self::BadInput => 6,
            Self::Trust => 7,
            Self::Store => 8,
            Self::Address => 9,
            Self::Unsound => 10,
        }
    }

    /// For the table in `larder --help`.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::General => "failed for a reason without a code of its own",
            Self::Usage => "wrong flags or configuration",
            Self::NotFound => "no such name, hash or revision",
            Self::Unavailable => "no proof, nobody reachable, or the deadline passed",
            Self::Refused => "refused: --expect-rev lost, not allowed, key used before",
            Self::BadInput => "bad input file: syntax, UTF-8, size, empty, name",
            Self::Trust => "certificates or trust",
            Self::Store => "store held by another process, damaged, full, or too new",
            Self::Address => "port or socket in use",
            Self::Unsound => "`larder doctor` found what does not work",
        }
    }

    /// The `code` of an error that is no [`Failure`] of a node.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::General => "failed",
            Self::Usage => "usage",
            Self::NotFound => "absent",
            Self::Unavailable => "unreachable",
            Self::Refused => "refused",
            Self::BadInput => "bad-input",
            Self::Trust => "trust",
            Self::Store => "store",
            Self::Address => "address-in-use",
            Self::Unsound => "unsound",
        }
    }

    /// The exit of an error: the first in its chain that has one.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let known = |cause: &(dyn std::error::Error + 'static)| {
            if let Some(complaint) = cause.downcast_ref::<Complaint>() {
                return Some(complaint.exit());
            }
            if let Some(failure) = cause.downcast_ref::<Failure>() {
                return Some(match failure.untrusted {
                    true => Self::Trust,
                    false => Self::of_code(&failure.code),
                });
            }
            let config = cause.downcast_ref::<ConfigError>()?;
            Some(match config.is_about_identity() {
                true => Self::Trust,
                false => Self::Usage,
            })
        };
        error.chain().find_map(known).unwrap_or(Self::General)
    }

    fn of_code(code: &str) -> Self {
        match code {
            "absent" | "not-found" | "compacted" | "future-revision" => Self::NotFound,
            "no-freshness-proof" | "not-held" | "no-bytes" | "deadline" | "unreachable" | "dns"
            | "dial-timeout" | "timed-out" | "too-slow" | "lost" | "closed" | "not-ready"
            | "wrong-catalog" | "quarantined" | "busy" | "draining" | "no-catalog" => {
                Self::Unavailable
            }
            "expect-failed" | "not-allowed" | "key-reused" | "missing-body" => Self::Refused,
            "too-large" | "invalid" | "syntax" => Self::BadInput,
            "trust" | "peer-untrusted" | "self-untrusted" | "tls" | "wrong-node" => Self::Trust,
            "disk-full" | "disk-failed" | "damaged" => Self::Store,
            _ => Self::General,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.number().into()
    }
}

/// Whether the reader of our output went away, as `larder ls | head` does: no error.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    // Only our own output fails with a bare I/O error; a broken link to a node is a `Failure`.
    error.downcast_ref().is_some_and(broken)
}

/// The table at the end of `larder --help`.
pub(crate) fn help() -> String {
    let line = |exit: &Exit| format!("\n  {:<2} {}", exit.number(), exit.meaning());
    let codes: String = Exit::ALL.iter().map(line).collect();
    format!(
        "EXAMPLES
  larder demo                              see it work, in one process
  larder publish definitions/              publish a directory
  larder get etl/daily > daily.yaml        read what is current, or fail
  larder config check worker               show every option and its origin

EXIT CODES{codes}"
    )
}

#[cfg(test)]
mod tests {
    use larder::proto::code::Code;

    use super::*;

    #[test]
    fn numbers_count_up_from_zero() {
        for (index, exit) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.number()), index);
        }
    }

    #[test]
    fn only_defects_lack_an_exit_of_their_own() {
        let general: Vec<_> = Code::ALL
            .iter()
            .filter(|code| Exit::of_code(code.as_str()) == Exit::General)
            .collect();
        assert_eq!(general, [&Code::BadFrame, &Code::Internal]);
    }

    #[test]
    fn the_exit_is_found_below_context() {
        let failure = Failure::new("expect-failed", "somebody was first");
        let error = anyhow::Error::new(failure).context("nothing was published");
        assert_eq!(Exit::of(&error), Exit::Refused);
        let mut failure = Failure::new("no-freshness-proof", "no proof");
        assert_eq!(Exit::of(&failure.clone().into()), Exit::Unavailable);
        failure.untrusted = true;
        assert_eq!(Exit::of(&failure.into()), Exit::Trust);
        let error = anyhow::anyhow!("out of luck");
        assert_eq!(Exit::of(&error), Exit::General);
        let error = anyhow::Error::new(Complaint::new(Exit::Address, "in use")).context("no");
        assert_eq!(Exit::of(&error), Exit::Address);
    }

    #[test]
    fn a_broken_pipe_is_quiet_only_on_our_own_output() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&pipe().into()));
        let failure = Complaint::new(Exit::Unavailable, "the link broke").because(pipe());
        assert!(!is_broken_pipe(&failure.into()));
    }
}
