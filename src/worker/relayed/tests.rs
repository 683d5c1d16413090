//! Whole workers on loopback, one of which does not reach the coordinator.

use std::net::UdpSocket;

use crate::Coordinator;
use crate::answer::{Answer, Freshness, GetError, Hop};
use crate::api::site::Site;
use crate::config::WorkerConfig;
use crate::worker::{ReadError, Worker};

/// A worker `w1` that knows an address where nobody answers, and `w2` as its peer.
struct Scene {
    coordinator: Coordinator,
    carrier: Worker,
    cut_off: Worker,
    _silent: UdpSocket,
    _site: Site,
}

impl Scene {
    fn new(change: impl Fn(&mut WorkerConfig)) -> Self {
        let site = Site::new();
        let coordinator = site.coordinator(site.store("c"));
        let addr = coordinator.local_addr();
        let mut config = site.config("dev/worker/w2", &[addr]);
        change(&mut config);
        let carrier = Worker::start(&config).expect("a worker");
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let nowhere = silent.local_addr().expect("bound");
        let mut config = site.config("dev/worker/w1", &[nowhere]);
        let peer = carrier.local_addr().to_string();
        config.peers = vec![peer.parse().expect("an address")];
        let cut_off = Worker::start(&config).expect("a worker");
        Self {
            coordinator,
            carrier,
            cut_off,
            _silent: silent,
            _site: site,
        }
    }

    /// So that the carrier has been answered itself.
    async fn carrier_works(&self) {
        let read = self.carrier.get("n", Freshness::Verified).await;
        read.expect("the carrier reaches the coordinator");
    }

    async fn read(&self) -> Result<Answer, ReadError> {
        self.cut_off.get("n", Freshness::Verified).await
    }
}

#[tokio::test]
async fn a_worker_that_reaches_nobody_reads_over_its_peer_and_says_so() {
    let scene = Scene::new(|_| {});
    scene.carrier_works().await;
    let answer = scene.read().await.expect("over the peer");
    let addr = scene.coordinator.local_addr().to_string();
    let via = "w2".to_owned();
    assert_eq!(answer.proof.source, Hop::Relayed { addr, via });
    let status = scene.cut_off.api().status().await.expect("a status");
    assert_eq!(status["path"], "via w2", "{status}");
    let status = scene.carrier.api().status().await.expect("a status");
    assert_eq!(
        (&status["path"], &status["carried"]),
        (&"direct".into(), &1.into())
    );

    // It keeps its lease over it, too.
    while scene.cut_off.api().status().await.expect("a status")["lease"]["left_ms"] == 0 {
        tokio::task::yield_now().await;
    }
    let answer = scene.cut_off.get("n", Freshness::Strict).await;
    assert_eq!(answer.expect("under a lease").proof.source, Hop::Disk);
    scene.cut_off.stop().await;
    scene.carrier.stop().await;
}

#[tokio::test]
async fn who_is_told_not_to_carries_nothing_and_the_error_names_it() {
    let scene = Scene::new(|config| config.relay = false);
    scene.carrier_works().await;
    match scene.read().await {
        Err(ReadError::Get(GetError::NoFreshnessProof { hops, .. })) => {
            let named = |hop: &&crate::answer::HopFailure| hop.reason.contains("relay: off");
            let hop = hops.iter().find(named).expect("named");
            assert!(matches!(hop.hop, Hop::Peer(_)), "{hops:?}");
        }
        other => panic!("{other:?}"),
    }
}
