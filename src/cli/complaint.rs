//! How an error reads: one sentence, what was tried, its causes, and a hint.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::time::Duration;

use larder::answer::{Failure, LastKnown};
use larder::config::ConfigError;

use super::exit::Exit;
use super::table::clean;
use super::timestamp::seconds;

/// An error of the command line itself, with its exit and what to do about it.
#[derive(Debug)]
pub(crate) struct Complaint {
    exit: Exit,
    message: String,
    details: Vec<String>,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Complaint {
    /// An error of one sentence.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            details: Vec::new(),
            hint: None,
            source: None,
        }
    }

    /// What a person can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Lines between the sentence and the hint.
    pub(crate) fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// The error behind it.
    pub(crate) fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Complaint {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

/// Writes an error to stderr.
pub(crate) fn print(error: &anyhow::Error, json: bool) {
    match json {
        true => eprintln!("{}", as_json(error)),
        false => eprint!("{}", as_text(error)),
    }
}

/// For people. Texts of other nodes lose their control characters.
pub(crate) fn as_text(error: &anyhow::Error) -> String {
    let mut out = format!("error: {}\n", clean(&error.to_string()));
    for detail in details(error) {
        let _ = writeln!(out, "  {}", clean(&detail));
    }
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // A transparent error says the same as its source.
        if cause != last {
            let _ = writeln!(out, "  because: {}", clean(&cause));
        }
        last = cause;
    }
    if let Some(hint) = hint(error) {
        let _ = writeln!(out, "hint: {}", clean(&hint));
    }
    out
}

/// For scripts: `{"error": Failure}` on one line.
fn as_json(error: &anyhow::Error) -> String {
    let failure = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>());
    let mut failure = failure
        .cloned()
        .unwrap_or_else(|| Failure::new(Exit::of(error).word(), ""));
    failure.message = format!("{error:#}");
    if failure.hops.is_empty() {
        for detail in details(error) {
            failure.message.push_str("; ");
            failure.message.push_str(&detail);
        }
    }
    failure.hint = hint(error);
    serde_json::json!({ "error": failure }).to_string()
}

fn details(error: &anyhow::Error) -> Vec<String> {
    let of = |cause: &(dyn Error + 'static)| {
        if let Some(complaint) = cause.downcast_ref::<Complaint>() {
            return complaint.details.clone();
        }
        let Some(failure) = cause.downcast_ref::<Failure>() else {
            return Vec::new();
        };
        let known = failure.last.map(|last| known(&last));
        let hops = failure.hops.iter().map(|hop| format!("tried {hop}"));
        known.into_iter().chain(hops).collect()
    };
    error.chain().flat_map(of).collect()
}

/// What a node knows of a name without a proof that it is still so.
fn known(last: &LastKnown) -> String {
    let content = match last.hash {
        Some(hash) => hash.short(),
        None => "deleted".into(),
    };
    let age = match last.age_ms {
        Some(ms) => format!("current {} ago at most", seconds(Duration::from_millis(ms))),
        None => "nobody knows how old".into(),
    };
    let (changed, seen) = (last.record_rev, last.seen_rev);
    format!("known here: {content}, changed in revision {changed}, seen at revision {seen}, {age}")
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(complaint) = cause.downcast_ref::<Complaint>() {
            return complaint.hint.clone();
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.hint.clone();
        }
        cause.downcast_ref::<ConfigError>()?.hint()
    })
}

#[cfg(test)]
mod tests {
    use larder::answer::{Hop, HopFailure};
    use larder::catalog::Revision;
    use larder::spec::SpecHash;

    use super::*;

    fn unreachable() -> Failure {
        let mut failure = Failure::new("no-freshness-proof", "no proof that `a` is current")
            .hint("check the path");
        failure.hops = vec![HopFailure {
            hop: Hop::Coordinator("c1:7457".into()),
            reason: "no answer in 3 s".into(),
        }];
        failure
    }

    #[test]
    fn an_error_is_a_sentence_its_hops_its_causes_and_a_hint() {
        let error = anyhow::Error::new(unreachable()).context("cannot read `a`");
        assert_eq!(
            as_text(&error),
            "error: cannot read `a`\n  \
             tried coordinator c1:7457: no answer in 3 s\n  \
             because: no proof that `a` is current\n\
             hint: check the path\n"
        );
    }

    #[test]
    fn what_is_known_without_proof_is_told_with_its_age() {
        let mut failure = unreachable();
        let hash = SpecHash::of(b"x");
        let mut last = LastKnown {
            record_rev: Revision::new(3),
            seen_rev: Revision::new(5),
            hash: Some(hash),
            age_ms: Some(4_200),
        };
        failure.last = Some(last);
        let text = as_text(&failure.clone().into());
        let hash = hash.short();
        let line = format!(
            "\n  known here: {hash}, changed in revision 3, seen at revision 5, current 4.2 s ago at most\n  tried"
        );
        assert!(text.contains(&line), "{text}");
        (last.hash, last.age_ms) = (None, None);
        failure.last = Some(last);
        let line = "known here: deleted, changed in revision 3, seen at revision 5, nobody knows how old\n";
        assert!(as_text(&failure.into()).contains(line));
    }

    #[test]
    fn a_cause_that_says_the_same_is_left_out() {
        let inner = Complaint::new(Exit::General, "it broke");
        let error = Complaint::new(Exit::General, "it broke").because(inner);
        assert_eq!(as_text(&error.into()), "error: it broke\n");
    }

    #[test]
    fn json_keeps_the_failure_and_stays_on_one_line() {
        let error = anyhow::Error::new(unreachable()).context("cannot\nread");
        let text = as_json(&error);
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["error"]["code"], "no-freshness-proof");
        assert_eq!(value["error"]["hops"][0]["hop"], "coordinator");
        assert_eq!(value["error"]["hint"], "check the path");

        let complaint = Complaint::new(Exit::BadInput, "one file is bad")
            .details(vec!["a.yaml:1:2: oops".into()]);
        let value: serde_json::Value =
            serde_json::from_str(&as_json(&complaint.into())).expect("JSON");
        assert_eq!(value["error"]["code"], "bad-input");
        assert_eq!(
            value["error"]["message"],
            "one file is bad; a.yaml:1:2: oops"
        );
    }

    #[test]
    fn the_words_of_another_node_cannot_move_the_cursor() {
        let error = Failure::new("internal", "\u{1b}[2Jgone\rerror: none");
        assert_eq!(
            as_text(&error.into()),
            "error: \\u{1b}[2Jgone\\rerror: none\n"
        );
    }
}
