//! A worker that reaches the coordinator over another one.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::net::UdpSocket;

use super::*;
use crate::proto::code::Code;
use crate::proto::wire;

/// Sorts packets as a worker does.
#[derive(Debug)]
struct Sorter {
    relay: Arc<Relay>,
    channels: Mutex<BTreeMap<usize, Channel>>,
}

impl Sorter {
    fn at(endpoint: &Endpoint, limits: RelayLimits) -> Arc<Self> {
        let sorter = Arc::new(Self {
            relay: Arc::new(Relay::new(limits)),
            channels: Mutex::default(),
        });
        endpoint.carry(sorter.clone());
        sorter
    }

    fn channel(&self, id: usize) -> Channel {
        self.channels.lock().expect("whole")[&id].clone()
    }
}

impl Carrier for Sorter {
    fn up(&self, channel: &Channel) {
        let mut channels = self.channels.lock().expect("whole");
        channels.insert(channel.id(), channel.clone());
    }

    fn packet(&self, channel: &Channel, packet: Bytes) {
        assert!(Relay::is_relayed(&packet));
        self.relay.packet(channel, packet);
    }

    fn down(&self, channel: &Channel) {
        self.channels.lock().expect("whole").remove(&channel.id());
    }
}

/// Carries packets to one address.
struct Carrying {
    sorter: Arc<Sorter>,
    to: SocketAddr,
}

impl Service for Carrying {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, peer: Peer, request: Request, _: Bytes, reply: &mut Reply) {
        assert!(matches!(request, Request::Relay(_)));
        let channel = self.sorter.channel(peer.channel);
        let from = [127, 0, 0, 1].into();
        let carried = self.sorter.relay.carry(&channel, from, self.to, reply);
        let _ = carried.await;
    }
}

/// A worker that asks, and one that carries packets to `to`.
struct Two {
    certs: Certs,
    asker: Endpoint,
    asks: Arc<Sorter>,
    carries: Arc<Sorter>,
    /// From the one to the other.
    peer: Link,
    carrier: Endpoint,
    runtime: Runtime,
}

impl Two {
    fn to(to: SocketAddr, limits: RelayLimits) -> Self {
        let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
        Self::with(certs, runtime, to, limits)
    }

    fn with(certs: Certs, runtime: Runtime, to: SocketAddr, limits: RelayLimits) -> Self {
        let asker = bind(&runtime, certs.load("dev/worker/w1"), options());
        let carrier = bind(&runtime, certs.load("dev/worker/w2"), options());
        let asks = Sorter::at(&asker, RelayLimits::default());
        let carries = Sorter::at(&carrier, limits);
        let sorter = carries.clone();
        carrier.serve(Arc::new(Carrying { sorter, to }));
        Self {
            peer: link(&asker, &carrier, Wanted::Peer),
            certs,
            asker,
            asks,
            carries,
            carrier,
            runtime,
        }
    }

    async fn open(&self) -> Result<RelayPath, LinkError> {
        RelayPath::open(&self.asks.relay, &self.asker, &self.peer).await
    }

    async fn nothing_is_carried(&self) {
        eventually(|| async { self.carries.relay.carried() == 0 }).await;
    }
}

#[tokio::test]
async fn a_worker_asks_the_coordinator_over_another_one_with_tls_from_end_to_end() {
    let pair = Pair::new();
    let to = pair.coordinator.local_addr();
    let Pair {
        certs,
        runtime,
        coordinator,
        node,
        ..
    } = pair;
    let two = Two::with(certs, runtime, to, RelayLimits::default());
    let path = two.open().await.expect("carried");
    assert_eq!((path.via().name(), path.to()), ("w2", to));
    let link = Link::new(path.endpoint(), "the coordinator", Wanted::Coordinator);
    let asker = status(&link).await.expect("an answer");
    assert_eq!(asker, two.asker.identity().uri().to_string());
    let peer = link.peer().expect("up");
    assert_eq!(&peer, coordinator.identity().uri());

    // Much of it, and several answers at once.
    let (one, other) = (get_blob(1), get_blob(2));
    let one = link.call(&one, Bytes::new(), patience()).await;
    let other = link.call(&other, Bytes::new(), patience()).await;
    for blob in [one, other] {
        let mut blob = blob.expect("asked");
        assert!(matches!(blob.next().await, Ok(Response::Blob(_))));
        assert_eq!(blob.body(1 << 20).await.expect("a body").len(), BLOB_LEN);
    }
    drop(node);

    drop((link, path));
    two.nothing_is_carried().await;
    eventually(|| async { coordinator.connections() == 0 }).await;
    assert_eq!(two.asker.connections(), 1, "the worker that carried");
    two.runtime.stop();
}

#[tokio::test]
async fn packets_of_other_flows_and_from_others_go_nowhere() {
    let coordinator = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let to = coordinator.local_addr().expect("bound");
    let two = Two::to(to, RelayLimits::default());
    let path = two.open().await.expect("carried");
    let relaying = two.carries.relay.carried();
    assert_eq!(relaying, 1);
    let mut exchange = two
        .peer
        .call(&Request::Relay(wire::Relay {}), Bytes::new(), patience())
        .await
        .expect("asked");
    let Ok(Response::Relaying(second)) = exchange.next().await else {
        panic!("not carried");
    };
    let channel = exchange.channel().clone();
    let packet = |flow: u32, text: &str| {
        let mut packet = vec![3];
        packet.extend(flow.to_be_bytes());
        packet.extend(text.bytes());
        Bytes::from(packet)
    };
    for (flow, text) in [
        (second.flow + 1, "of no flow"),
        (second.flow, "of the second"),
    ] {
        channel.send(packet(flow, text)).expect("sent");
    }
    let mut bytes = [0; 100];
    let (len, from) = coordinator.recv_from(&mut bytes).await.expect("a packet");
    assert_eq!(&bytes[..len], b"of the second");

    // Whoever else sends to that socket is not heard: the first packet back is the coordinator's.
    let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let _ = stranger.send_to(b"from a stranger", from).await;
    coordinator.send_to(b"back", from).await.expect("sent");
    let (queue, mut heard) = tokio::sync::mpsc::channel(9);
    let key = (channel.id(), second.flow);
    two.asks.relay.asked_for_test(key, queue);
    coordinator.send_to(b"again", from).await.expect("sent");
    let first = heard.recv().await.expect("a packet");
    assert!([&b"back"[..], b"again"].contains(&&first[..]), "{first:?}");
    drop((path, exchange));
    two.nothing_is_carried().await;
    assert_eq!(two.carrier.connections(), 1);
}

#[tokio::test]
async fn so_many_paths_are_carried_and_no_more() {
    let to = ([127, 0, 0, 1], 9).into();
    let limits = RelayLimits {
        flows: 2,
        flows_per_node: 1,
        ..RelayLimits::default()
    };
    let two = Two::to(to, limits);
    let path = two.open().await.expect("carried");
    let busy = |result: Result<RelayPath, LinkError>| match result {
        Err(LinkError::Refused(refusal)) => assert_eq!(refusal.code, Code::Busy),
        other => panic!("{other:?}"),
    };
    busy(two.open().await);
    drop(path);
    two.nothing_is_carried().await;
    let again = two.open().await.expect("room again");
    let reader = bind(&two.runtime, two.certs.load("dev/reader/r1"), options());
    let sorter = Sorter::at(&reader, RelayLimits::default());
    let peer = link(&reader, &two.carrier, Wanted::Peer);
    match RelayPath::open(&sorter.relay, &reader, &peer).await {
        Err(LinkError::Refused(refusal)) => assert_eq!(refusal.code, Code::NotAllowed),
        other => panic!("a reader is not carried: {other:?}"),
    }
    drop(again);
}

#[tokio::test]
async fn a_path_that_is_not_used_ends_and_its_asker_hears_of_it() {
    let to = ([127, 0, 0, 1], 9).into();
    let limits = RelayLimits {
        idle: Duration::from_millis(50),
        ..RelayLimits::default()
    };
    let two = Two::to(to, limits);
    let mut path = two.open().await.expect("carried");
    let why = path.ended().await;
    assert_eq!(why.kind(), "short", "{why:?}");
    assert_eq!(two.carries.relay.carried(), 0);
}

#[tokio::test]
async fn a_path_to_nobody_fails_as_any_dial_does() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let to = silent.local_addr().expect("bound");
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let mut quick = options();
    quick.limits.dial = Duration::from_secs(1);
    let two = Two::with(certs, runtime, to, RelayLimits::default());
    let hasty = bind(&two.runtime, two.certs.load("dev/worker/w1"), quick);
    let sorter = Sorter::at(&hasty, RelayLimits::default());
    let peer = link(&hasty, &two.carrier, Wanted::Peer);
    let path = RelayPath::open(&sorter.relay, &hasty, &peer).await;
    let path = path.expect("carried");
    let link = Link::new(path.endpoint(), "the coordinator", Wanted::Coordinator);
    let error = status(&link).await.expect_err("silence");
    assert_eq!(error.kind(), "dial-timeout", "{error:?}");
}
