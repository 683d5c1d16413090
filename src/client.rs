//! A member that speaks QUIC for itself: what a command does on a machine without a daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::answer::{Answer, Query};
use crate::api::{Api, Reply};
use crate::config::{Address, ClientConfig, IdentityPaths, LocalConfig, StoreChoice, WorkerConfig};
use crate::daemon::{self, RunError};
use crate::proto::wire::{GetLog, List, Listing, Log, Publish, PublishedRev};
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
            store: StoreChoice::None,
            store_budget: MEMORY,
            deadline: config.deadline,
        };
        Ok(Self(Worker::open(&config, loaded)?))
    }
}

/// Loopback if every coordinator is there, which is all that throw-away certificates may use.
fn local_addr(coordinators: &[Address]) -> SocketAddr {
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
    use super::*;

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
