//! A node whose address changes. All of 127.0.0.0/8 is on loopback, so it takes no root.

use super::life::list;
use super::*;

/// An address that `pair`'s worker does not have yet.
const OTHER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test]
async fn a_connection_goes_on_from_another_address_without_a_new_handshake() {
    let pair = Pair::new();
    let link = pair.link();
    status(&link).await.expect("an answer");
    let before = pair.worker.local_addr();
    let list = list();
    let listed = link.call(&list, Bytes::new(), patience()).await;
    let mut listed = listed.expect("sent");
    pair.node.entered.notified().await;

    pair.worker.move_for_test(OTHER.into()).await;
    let now = pair.worker.local_addr();
    assert_eq!(now.ip(), OTHER);
    assert_ne!(now, before);
    // What was asked before is answered, and so is what is asked now.
    pair.node.gate.notify_one();
    listed.next().await.expect("an answer");
    status(&link).await.expect("an answer");
    assert_eq!(pair.worker.connections(), 1);
    assert_eq!(pair.coordinator.connections(), 1);
    let seen = || async { pair.coordinator.remotes_for_test() == [now] };
    eventually(seen).await;
}

#[tokio::test]
async fn only_connections_that_others_have_dialled_to_an_address_end_with_it() {
    let pair = Pair::new();
    let link = pair.link();
    status(&link).await.expect("an answer");
    assert_eq!(pair.coordinator.0.live.close_at(|_| false), 0);
    assert_eq!(pair.worker.0.live.close_at(|_| true), 0, "it has dialled");
    let here = pair.coordinator.local_addr().ip();
    assert_eq!(pair.coordinator.0.live.close_at(|ip| ip == here), 1);
    let closed = || async { pair.worker.connections() == 0 };
    eventually(closed).await;
    status(&link).await.expect("it is dialled again");
}
