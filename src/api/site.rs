//! Real nodes on loopback, for tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::Coordinator;
use crate::client::Client;
use crate::config::{
    Address, ClientConfig, CoordinatorConfig, IdentityPaths, LocalConfig, LogConfig, LogFormat,
    StoreChoice, WorkerConfig,
};
use crate::daemon;
use crate::spec::MAX_SPEC_LEN;
use crate::trust::issue;
use crate::worker::Worker;

/// A directory with the throw-away identities and room for stores.
pub(crate) struct Site(TempDir);

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        issue::throwaway(dir.path()).expect("throwaway");
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A store of this name.
    pub(crate) fn store(&self, name: &str) -> StoreChoice {
        StoreChoice::Directory(self.path(name))
    }

    pub(crate) fn coordinator(&self, store: StoreChoice) -> Coordinator {
        Coordinator::start(&self.coordinator_config(store)).expect("a coordinator")
    }

    pub(crate) fn coordinator_config(&self, store: StoreChoice) -> CoordinatorConfig {
        CoordinatorConfig {
            identity: identity(&self.path("dev/coordinator/c1")),
            local: local(),
            log: log(),
            listen: any_port(),
            store,
            max_spec_len: MAX_SPEC_LEN,
            lease: Duration::from_secs(6),
            new_epoch: false,
        }
    }

    /// A worker's, or that of whoever speaks for itself; `who` as in `dev/worker/w1`.
    pub(crate) fn config(&self, who: &str, coordinators: &[SocketAddr]) -> WorkerConfig {
        WorkerConfig {
            identity: identity(&self.path(who)),
            local: local(),
            log: log(),
            listen: any_port(),
            coordinators: addresses(coordinators),
            peers: vec![],
            membership: None,
            store: StoreChoice::None,
            store_budget: 64 << 20,
            deadline: Duration::from_secs(10),
            lease: who.contains("worker"),
            prefetch: crate::proto::worker::Prefetch::None,
            upload_limit: None,
            relay: true,
            freshness: crate::answer::Freshness::Strict,
        }
    }

    /// A worker that may publish and serves nobody.
    pub(crate) fn publisher(&self, coordinators: &[SocketAddr]) -> Worker {
        let config = self.config("dev/publisher/p1", coordinators);
        let identity = daemon::load_identity(&config.identity).expect("an identity");
        Worker::open(&config, identity).expect("a publisher")
    }

    pub(crate) fn client(&self, coordinator: SocketAddr) -> Client {
        let config = ClientConfig {
            socket: None,
            worker_sockets: vec![],
            coordinator_sockets: vec![],
            coordinators: vec![],
            coordinators_asked_for: false,
            identity: None,
            identity_searched: vec![],
            deadline: Duration::from_secs(10),
            max_spec_len: MAX_SPEC_LEN,
            log: log(),
        };
        let identity = identity(&self.path("dev/publisher/p1"));
        Client::open(&config, &addresses(&[coordinator]), &identity).expect("a client")
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn addresses(addrs: &[SocketAddr]) -> Vec<Address> {
    let addrs = addrs.iter().map(ToString::to_string);
    addrs
        .map(|addr| addr.parse().expect("an address"))
        .collect()
}

fn identity(dir: &Path) -> IdentityPaths {
    IdentityPaths {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        ca: dir.join("ca.pem"),
        trust: dir.join("trust.yaml"),
        head_key: None,
        allow_group_readable_key: false,
    }
}

fn local() -> LocalConfig {
    LocalConfig {
        socket: PathBuf::new(),
        socket_group: None,
        http: None,
    }
}

fn log() -> LogConfig {
    LogConfig {
        filter: "info".into(),
        format: LogFormat::Human,
    }
}
