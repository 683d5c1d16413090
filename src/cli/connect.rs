//! Which node a command asks, and over which way.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use larder::answer::Failure;
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::client::Client;
use larder::config::{Address, ClientConfig, IdentityPaths};

use super::complaint::Complaint;
use super::daemon;
use super::exit::Exit;

/// What a command is going to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Read: a worker has bytes on disk, so it is preferred.
    Read,
    /// Publish: only a coordinator takes that.
    Write,
}

/// Connects to the first way that works: the socket that was named; coordinators named on the
/// command line; the usual sockets; the configured coordinators.
///
/// # Errors
/// A [`Complaint`] that lists what was looked for, or the [`Failure`] of the way chosen.
pub(crate) async fn connect(
    config: &ClientConfig,
    purpose: Purpose,
) -> anyhow::Result<Box<dyn Api>> {
    match choose(config, purpose)? {
        Way::Socket(path) => Ok(over_socket(path).await?),
        Way::Quic {
            coordinators,
            identity,
        } => over_quic(config, coordinators, identity),
    }
}

async fn over_socket(path: &Path) -> Result<Box<dyn Api>, Failure> {
    Ok(Box::new(HttpClient::connect(path).await?))
}

fn over_quic(
    config: &ClientConfig,
    coordinators: &[Address],
    identity: &IdentityPaths,
) -> anyhow::Result<Box<dyn Api>> {
    let client = Client::open(config, coordinators, identity).map_err(daemon::complain)?;
    Ok(Box::new(client))
}

#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    Socket(&'a Path),
    Quic {
        coordinators: &'a [Address],
        identity: &'a IdentityPaths,
    },
}

fn choose(config: &ClientConfig, purpose: Purpose) -> Result<Way<'_>, Complaint> {
    if let Some(path) = &config.socket {
        return Ok(Way::Socket(path));
    }
    let mut looked = Vec::new();
    if config.coordinators_asked_for {
        return quic(config, &mut looked).ok_or_else(|| nobody(looked));
    }
    let workers: &[_] = match purpose {
        Purpose::Read => &config.worker_sockets,
        Purpose::Write => &[],
    };
    for path in workers.iter().chain(&config.coordinator_sockets) {
        match accepts(path) {
            Ok(()) => return Ok(Way::Socket(path)),
            Err(error) => looked.push(format!("{}: {}", path.display(), plain(&error))),
        }
    }
    quic(config, &mut looked).ok_or_else(|| nobody(looked))
}

fn quic<'a>(config: &'a ClientConfig, looked: &mut Vec<String>) -> Option<Way<'a>> {
    if config.coordinators.is_empty() {
        looked.push("QUIC: no coordinator is configured".into());
    }
    let identity = config.identity.as_ref();
    if identity.is_none() {
        let searched = config.identity_searched.iter();
        let searched: Vec<_> = searched.map(|path| path.display().to_string()).collect();
        looked.push(format!("QUIC: no identity in {}", searched.join(", ")));
    }
    let identity = identity.filter(|_| !config.coordinators.is_empty())?;
    Some(Way::Quic {
        coordinators: &config.coordinators,
        identity,
    })
}

fn nobody(looked: Vec<String>) -> Complaint {
    Complaint::new(Exit::Unavailable, "found no node to ask")
        .details(looked)
        .hint(
            "start `larder worker` or `larder coordinator` here, name a socket with `--socket`, \
             or give `--coordinator HOST:7457 --certs DIR`",
        )
}

/// Whether somebody listens: a socket file outlives a process that was killed.
fn accepts(path: &Path) -> io::Result<()> {
    UnixStream::connect(path).map(drop)
}

fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such socket".into(),
        io::ErrorKind::ConnectionRefused => "nobody listens".into(),
        io::ErrorKind::PermissionDenied => "not allowed for this user".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use larder::config::{ClientConfig, Field, Options, Sources, Surroundings};

    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn socket(&self, role: &str) -> PathBuf {
            self.0.path().join(format!("{role}.sock"))
        }

        fn config(&self, flags: Options) -> ClientConfig {
            let surroundings = Surroundings {
                variables: [].into(),
                root: true,
                etc: self.0.path().into(),
                run: self.0.path().into(),
                var: self.0.path().into(),
            };
            let sources = Sources {
                flags,
                file: None,
                surroundings,
            };
            ClientConfig::load(&sources).expect("good").config
        }
    }

    #[test]
    fn a_reader_prefers_the_worker_and_a_publisher_the_coordinator() {
        let machine = Machine::new();
        let config = machine.config(Options::default());
        let (worker, coordinator) = (machine.socket("worker"), machine.socket("coordinator"));
        let _worker = UnixListener::bind(&worker).expect("free");
        let read = || choose(&config, Purpose::Read).expect("a way");
        assert_eq!(read(), Way::Socket(&worker));
        assert!(choose(&config, Purpose::Write).is_err());

        let _coordinator = UnixListener::bind(&coordinator).expect("free");
        let write = choose(&config, Purpose::Write).expect("a way");
        assert_eq!(write, Way::Socket(&coordinator));
        assert_eq!(read(), Way::Socket(&worker));
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_passed_over() {
        let machine = Machine::new();
        let config = machine.config(Options::default());
        drop(UnixListener::bind(machine.socket("worker")).expect("free"));
        let coordinator = machine.socket("coordinator");
        let _coordinator = UnixListener::bind(&coordinator).expect("free");
        let way = choose(&config, Purpose::Read).expect("a way");
        assert_eq!(way, Way::Socket(&coordinator));
    }

    #[test]
    fn coordinators_on_the_command_line_go_before_a_local_socket() {
        let machine = Machine::new();
        let _worker = UnixListener::bind(machine.socket("worker")).expect("free");
        let mut flags = Options::default();
        flags
            .set(Field::Certs, Some("/node"))
            .set_list(Field::Coordinators, &["c1:7457".into()]);
        let config = machine.config(flags);
        let way = choose(&config, Purpose::Read).expect("a way");
        assert!(matches!(way, Way::Quic { .. }));
    }

    #[test]
    fn when_there_is_nobody_the_error_says_what_was_looked_for() {
        let machine = Machine::new();
        drop(UnixListener::bind(machine.socket("worker")).expect("free"));
        let config = machine.config(Options::default());
        let error = choose(&config, Purpose::Read).expect_err("nobody");
        assert_eq!(error.exit(), Exit::Unavailable);
        let error = format!("{error:?}");
        for looked in [
            "worker.sock: nobody listens",
            "coordinator.sock: no such socket",
            "no coordinator is configured",
            "certs/publisher",
        ] {
            assert!(error.contains(looked), "{looked} is not in {error}");
        }
    }
}
