//! Answers that take longer than an asker's patience, over paths that live and one that does not.
//! Time passes only when everybody waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::slow_path::carry;
use super::*;
use crate::proto::limit::{ANSWER_TIMEOUT, MAX_LATE};
use crate::proto::wire::List;

/// Answers lists when its gate opens, and is reached over a path that can be cut.
struct Late {
    node: Arc<Node>,
    link: Link,
    path: JoinHandle<()>,
    _certs: Certs,
}

impl Late {
    async fn new() -> Self {
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
        let worker = bind("dev/worker/w1");
        let front = UdpSocket::bind(addr).await.expect("a port");
        let to = front.local_addr().expect("bound").to_string();
        let path = tokio::spawn(carry(front, coordinator.local_addr()));
        Self {
            node,
            link: Link::new(&worker, to, Wanted::Coordinator),
            path,
            _certs: certs,
        }
    }

    /// Asks for what is late, over a connection that is there and otherwise idle.
    async fn ask(&self) -> Exchange {
        status(&self.link).await.expect("up");
        let list = Request::List(List {
            at: None,
            prefix: String::new(),
            after: None,
            deleted: false,
            limit: 1,
        });
        let patience = Patience {
            late: MAX_LATE,
            ..Patience::coordinator()
        };
        let call = self.link.call(&list, Bytes::new(), patience);
        let exchange = call.await.expect("sent");
        self.node.entered.notified().await;
        exchange
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_late_while_its_path_lives() {
    let late = Late::new().await;
    let mut exchange = late.ask().await;
    let began = tokio::time::Instant::now();
    // Longer than any idle timeout, on a connection over which nothing else goes.
    let alive = || {
        if began.elapsed() > 50 * ANSWER_TIMEOUT {
            late.node.gate.notify_one();
        }
    };
    let answer = exchange.next_noting(alive).await;
    assert!(matches!(answer, Ok(Response::Status(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_given_up_when_its_path_is_cut() {
    let late = Late::new().await;
    let mut exchange = late.ask().await;
    let lives = AtomicUsize::new(0);
    let alive = || {
        if lives.fetch_add(1, Ordering::Relaxed) == 10 {
            late.path.abort();
        }
    };
    let error = exchange.next_noting(alive).await.expect_err("silence");
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
    // What was on its way when it was cut may be one more.
    assert!(lives.load(Ordering::Relaxed) <= 12);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_given_up_though_its_path_lives() {
    let late = Late::new().await;
    let mut exchange = late.ask().await;
    let error = exchange.next().await.expect_err("too late");
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
    status(&late.link).await.expect("the connection lives");
}
