//! Many bodies over a path that carries less than their senders would like. The path is a queue
//! between two UDP sockets, and time passes only when everybody waits.

use std::collections::VecDeque;
use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::*;
use crate::proto::wire::PutBlob;

/// Bytes a second: 5 Mbit/s.
const RATE: u64 = 625_000;
/// What the path holds back before it drops packets, as home routers do.
const QUEUE: usize = 256 << 10;
/// A packet's own limit.
const PACKET: usize = 2 << 10;

/// Carries packets from whoever sends first to `to` and back, those to `to` at [`RATE`].
async fn carry(front: UdpSocket, to: SocketAddr) {
    let back = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    back.connect(to).await.expect("an address");
    let (mut from, mut there, mut here) = (None, [0; PACKET], [0; PACKET]);
    let (mut queue, mut queued) = (VecDeque::<Vec<u8>>::new(), 0);
    let mut free_at = Instant::now();
    loop {
        tokio::select! {
            Ok((len, addr)) = front.recv_from(&mut there) => {
                from = Some(addr);
                if queued + len <= QUEUE {
                    if queue.is_empty() {
                        free_at = free_at.max(Instant::now()) + takes(len);
                    }
                    queue.push_back(there[..len].to_vec());
                    queued += len;
                }
            }
            Ok(len) = back.recv(&mut here) => {
                if let Some(addr) = from {
                    let _ = front.send_to(&here[..len], addr).await;
                }
            }
            () = sleep_until(free_at), if !queue.is_empty() => {
                let packet = queue.pop_front().expect("not empty");
                queued -= packet.len();
                let _ = back.send(&packet).await;
                free_at += queue.front().map_or(Duration::ZERO, |next| takes(next.len()));
            }
        }
    }
}

/// A coordinator, and a link to it over such a path. All of it is driven by the test's own runtime.
pub(super) struct SlowPath {
    pub(super) node: Arc<Node>,
    pub(super) link: Link,
    pub(super) path: JoinHandle<()>,
    _certs: Certs,
}

impl SlowPath {
    /// The link is dialled by `who`, as in `dev/worker/w1`.
    pub(super) async fn from(who: &str) -> Self {
        let certs = Certs::new();
        let handle = tokio::runtime::Handle::current();
        let addr: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let bind = |name: &str| {
            let identity = certs.load(name);
            let port = Port::bind(addr, identity.uri().cluster()).expect("a port");
            Endpoint::start(&handle, port, identity, options()).expect("started")
        };
        let coordinator = bind("dev/coordinator/c1");
        let node = Arc::new(Node::default());
        coordinator.serve(node.clone());
        let dialler = bind(who);
        let front = UdpSocket::bind(addr).await.expect("a port");
        let to = front.local_addr().expect("bound").to_string();
        let path = tokio::spawn(carry(front, coordinator.local_addr()));
        Self {
            node,
            link: Link::new(&dialler, to, Wanted::Coordinator),
            path,
            _certs: certs,
        }
    }
}

fn takes(len: usize) -> Duration {
    Duration::from_micros(len as u64 * 1_000_000 / RATE)
}

#[tokio::test(start_paused = true)]
async fn bodies_that_share_a_slow_path_all_arrive() {
    let slow = SlowPath::from("dev/publisher/p1").await;
    let mut puts = tokio::task::JoinSet::new();
    // Together well over what the path carries within anybody's patience, and each at less than
    // the floor; but not the connection.
    for byte in 0..16 {
        let link = slow.link.clone();
        puts.spawn(async move {
            let body = Bytes::from(vec![byte; 512 << 10]);
            let put = Request::PutBlob(PutBlob {
                hash: SpecHash::of(&body),
                len: body.len() as u64,
            });
            let patience = Patience::coordinator();
            link.call(&put, body, patience).await?.next().await
        });
    }
    let began = Instant::now();
    while let Some(put) = puts.join_next().await {
        let answer = put.expect("no panic");
        assert!(matches!(answer, Ok(Response::Stored(()))), "{answer:?}");
    }
    assert!(
        began.elapsed() > 10 * Patience::coordinator().first_byte / 4,
        "a slow path"
    );
}
