//! Goal: a node that is examined is seen as others see it. Method: a node of the test's own on
//! loopback, which dials back as real ones do.

use std::net::SocketAddr;

use bytes::Bytes;

use super::*;
use crate::config::{IdentityPaths, LogConfig, LogFormat};
use crate::net::{DialBack, EndpointOptions, Limits, Peer, Port, Reply, Service, SessionKey};
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::{HeadBytes, Met, ProofBytes, Request, Response};
use crate::trust::issue;

/// A worker that does nothing but meet others.
struct Seed(DialBack);

impl Service for Seed {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, peer: Peer, request: Request, _: Bytes, reply: &mut Reply) {
        let Request::Meet(meet) = request else {
            let refusal = Refusal::new(Code::NotFound, "nothing here");
            let _ = reply.refuse(&refusal).await;
            return;
        };
        let reached = match meet.addr.filter(|_| meet.dial_back) {
            Some(addr) => self.0.reaches(peer.uri.id(), addr).await,
            None => None,
        };
        let met = Met {
            seen: peer.addr,
            reached,
            nodes: Vec::new(),
        };
        let _ = reply.send(&Response::Met(met)).await;
    }
}

struct Site {
    dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        issue::throwaway(dir.path()).expect("certificates");
        Self {
            dir,
            runtime: Runtime::start().expect("a thread"),
        }
    }

    fn identity(&self, name: &str) -> IdentityPaths {
        let dir = self.dir.path().join(name);
        IdentityPaths {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            ca: dir.join("ca.pem"),
            trust: dir.join("trust.yaml"),
            head_key: None,
            allow_group_readable_key: false,
        }
    }

    /// Starts a seed and returns where it listens.
    fn seed(&self) -> SocketAddr {
        let identity = daemon::load_identity(&self.identity("dev/worker/w2")).expect("good");
        let addr = "127.0.0.1:0".parse().expect("an address");
        let port = Port::bind(addr, identity.uri().cluster()).expect("a port");
        let options = EndpointOptions {
            reset_key: [7; 32],
            agent: "seed".into(),
            max_spec_len: 1,
            limits: Limits::default(),
            congestion: crate::net::Congestion::default(),
        };
        let endpoint = Endpoint::start(self.runtime.handle(), port, identity, options);
        let endpoint = endpoint.expect("started");
        endpoint.serve(Arc::new(Seed(DialBack::new(&endpoint))));
        endpoint.local_addr()
    }

    fn config(&self, name: &str, listen: &str, peer: SocketAddr) -> DoctorConfig {
        DoctorConfig {
            kind: Kind::Worker,
            identity: Some(self.identity(name)),
            identity_searched: Vec::new(),
            listen: Some(listen.parse().expect("an address")),
            advertise: None,
            join: Vec::new(),
            store: None,
            socket: None,
            coordinators: Vec::new(),
            peers: vec![peer.to_string().parse().expect("an address")],
            log: LogConfig {
                filter: "error".into(),
                format: LogFormat::Human,
            },
        }
    }
}

async fn examine(config: DoctorConfig) -> Vec<Finding> {
    let mut examination = Examination::start(config).await.expect("a thread");
    let mut all = Vec::new();
    while let Some(findings) = examination.next().await {
        all.extend(findings);
    }
    examination.finish().await;
    all
}

/// About the peer, where a check is about one.
fn of(all: &[Finding], check: Check) -> &Finding {
    let mut found = all.iter().rev();
    let found = found.find(|finding| finding.check == check);
    found.unwrap_or_else(|| panic!("no {check:?}: {all:?}"))
}

#[tokio::test]
async fn a_node_that_others_can_dial_is_told_so() {
    let site = Site::new();
    let config = site.config("dev/worker/w1", "127.0.0.1:0", site.seed());
    let all = examine(config).await;
    let found = of(&all, Check::DialBack);
    assert_eq!(found.verdict, Verdict::Ok, "{all:?}");
    let reaches = "it reaches this node at 127.0.0.1:";
    assert!(found.finding.starts_with(reaches), "{all:?}");
    assert!(!found.finding.contains("NAT"), "{all:?}");
}

#[tokio::test]
async fn a_node_whose_port_another_process_has_is_not_reached() {
    let site = Site::new();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken_addr = taken.local_addr().expect("bound").to_string();
    let config = site.config("dev/worker/w1", &taken_addr, site.seed());
    let all = examine(config).await;
    assert_eq!(of(&all, Check::Port).verdict, Verdict::Failed, "{all:?}");
    assert_eq!(of(&all, Check::Reach).verdict, Verdict::Ok, "{all:?}");
    let found = of(&all, Check::DialBack);
    assert_eq!(found.verdict, Verdict::Warning, "{all:?}");
    assert!(found.finding.contains(&taken_addr), "{all:?}");
}

#[tokio::test]
async fn findings_come_in_one_order_whoever_was_first() {
    let site = Site::new();
    let mut config = site.config("dev/worker/w1", "127.0.0.1:0", site.seed());
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().map(|addr| (addr.to_string(), silent));
    let (silent, _socket) = silent.expect("bound");
    config.peers.insert(0, silent.parse().expect("an address"));
    let peers: Vec<_> = config.peers.iter().map(ToString::to_string).collect();
    let all = examine(config).await;
    let reached = all.iter().filter(|found| found.check == Check::Reach);
    let about: Vec<_> = reached.filter_map(|found| found.about.clone()).collect();
    assert_eq!(about, peers);
}

#[tokio::test]
async fn a_check_that_does_not_end_is_given_up() {
    tokio::time::pause();
    let mut checks = Checks::default();
    checks.spawn(Check::Store, None, std::future::pending());
    let running = checks.running.pop_front().expect("one");
    let found = running.task.await.expect("no panic");
    assert_eq!(found[0].verdict, Verdict::Failed);
    assert!(found[0].finding.contains("30 s"), "{found:?}");
}
