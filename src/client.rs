//! A member that speaks QUIC for itself: what a command does on a machine without a daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::answer::{Answer, Freshness, Query, RunToken};
use crate::api::{Api, Reply};
use crate::config::{Address, ClientConfig, IdentityPaths, LocalConfig, StoreChoice, WorkerConfig};
use crate::daemon::{self, RunError};
use crate::proto::wire::{GetLog, List, Listing, Log, Pinned, Pins, Publish, PublishedRev};
use crate::proto::worker::Prefetch;
use crate::spec::{Spec, SpecHash, Syntax};
use crate::worker::Worker;

/// Bodies that a client keeps in memory while it lives.
const MEMORY: u64 = 64 << 20;

/// Reads and publishes over QUIC, with the rights that its certificate gives. It keeps nothing
/// and serves nobody.
#[derive(Debug, Clone)]
pub struct Client(Worker);

impl Client {
    /// Opens a client; the first request dials.
    ///
    /// # Errors
    /// [`RunError`] for a bad identity, or when the system gives no port.
    pub fn open(
        config: &ClientConfig,
        coordinators: &[Address],
        identity: &IdentityPaths,
    ) -> Result<Self, RunError> {
        let loaded = daemon::load_identity(identity)?;
        let config = WorkerConfig {
            identity: identity.clone(),
            local: LocalConfig {
                socket: std::path::PathBuf::new(),
                socket_group: None,
                http: None,
            },
            log: config.log.clone(),
            listen: local_addr(coordinators),
            coordinators: coordinators.to_vec(),
            peers: Vec::new(),
            membership: None,
            store: StoreChoice::None,
            store_budget: MEMORY,
            deadline: config.deadline,
            // It is over before a lease would pay.
            lease: false,
            prefetch: Prefetch::None,
            upload_limit: None,
            relay: false,
            freshness: Freshness::Strict,
        };
        Ok(Self(Worker::open(&config, loaded)?))
    }
}

/// Loopback if every coordinator is there, which is all that throw-away certificates may use.
pub(crate) fn local_addr(coordinators: &[Address]) -> SocketAddr {
    let ip = |address: &Address| match address.host() {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse().ok(),
    };
    let ips: Vec<Option<IpAddr>> = coordinators.iter().map(ip).collect();
    let all = |test: fn(&IpAddr) -> bool| ips.iter().all(|ip| ip.as_ref().is_some_and(test));
    let v6 = ips.iter().any(|ip| ip.is_none_or(|ip| ip.is_ipv6()));
    let ip: IpAddr = match (all(IpAddr::is_loopback), v6) {
        (true, true) => Ipv6Addr::LOCALHOST.into(),
        (true, false) => Ipv4Addr::LOCALHOST.into(),
        // One socket for both families, where the machine has both.
        (false, true) if has_ipv6() => Ipv6Addr::UNSPECIFIED.into(),
        (false, _) => Ipv4Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

impl Api for Client {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        self.0.api().get(query)
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        self.0.api().list(list)
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        self.0.api().log(get)
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        self.0.remote_status()
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        self.0.api().run_token()
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        self.0.api().pin(token, keep)
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        self.0.api().unpin(id)
    }

    fn pins(&self) -> Reply<'_, Pins> {
        self.0.api().pins()
    }

    fn missing(&self, hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        self.0.api().missing(hashes)
    }

    fn put_body(&self, spec: Spec, syntax: Syntax) -> Reply<'_, ()> {
        self.0.api().put_body(spec, syntax)
    }

    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        self.0.api().publish(publish)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::conformance;
    use crate::config::{CoordinatorConfig, LogConfig, LogFormat};
    use crate::coordinator::Coordinator;
    use crate::identity::Role;
    use crate::trust::issue::{self, NODE_VALIDITY, Order};

    fn identity(dir: &Path, role: Role) -> IdentityPaths {
        let order = Order {
            role,
            name: "n".into(),
            valid_for: NODE_VALIDITY,
            out: None,
            force: false,
        };
        let dir = issue::issue(dir, &order).expect("issued").dir;
        IdentityPaths {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            ca: dir.join("ca.pem"),
            trust: dir.join("trust.yaml"),
            head_key: Some(dir.join("head.key")).filter(|_| role == Role::Coordinator),
            allow_group_readable_key: false,
        }
    }

    fn coordinator(dir: &Path) -> Coordinator {
        issue::init(dir, "test").expect("a CA");
        Coordinator::start(&CoordinatorConfig {
            identity: identity(dir, Role::Coordinator),
            local: LocalConfig {
                socket: dir.join("c.sock"),
                socket_group: None,
                http: None,
            },
            log: log(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            store: StoreChoice::Directory(dir.join("c")),
            max_spec_len: 1 << 20,
            lease: Duration::from_secs(6),
            new_epoch: false,
        })
        .expect("a coordinator")
    }

    fn log() -> LogConfig {
        LogConfig {
            filter: "info".into(),
            format: LogFormat::Human,
        }
    }

    #[tokio::test]
    async fn a_coordinator_keeps_the_contract_in_its_own_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let coordinator = coordinator(dir.path());
        conformance::check(coordinator.api()).await;
        coordinator.stop().await;
    }

    #[tokio::test]
    async fn a_publishers_client_keeps_the_contract_over_quic() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let coordinator = coordinator(dir);
        let address = coordinator.local_addr().to_string();
        let config = ClientConfig {
            socket: None,
            worker_sockets: Vec::new(),
            coordinator_sockets: Vec::new(),
            coordinators: Vec::new(),
            coordinators_asked_for: true,
            identity: None,
            identity_searched: Vec::new(),
            deadline: Duration::from_secs(10),
            max_spec_len: 1 << 20,
            log: log(),
        };
        let addresses = [address.parse().expect("an address")];
        let identity = identity(dir, Role::Publisher);
        let client = Client::open(&config, &addresses, &identity).expect("a client");
        conformance::check(&client).await;
        coordinator.stop().await;
    }

    #[test]
    fn a_client_of_loopback_coordinators_binds_loopback() {
        let bind = |texts: &[&str]| {
            let addresses: Vec<Address> = texts
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect();
            local_addr(&addresses).ip().to_string()
        };
        assert_eq!(bind(&["127.0.0.1:1", "localhost:2"]), "127.0.0.1");
        assert_eq!(bind(&["[::1]:1"]), "::1");
        assert_eq!(bind(&["127.0.0.1:1", "10.0.0.1:2"]), "0.0.0.0");
        assert!(matches!(&*bind(&["c.example:1"]), "::" | "0.0.0.0"));
    }
}
