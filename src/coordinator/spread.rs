//! Bodies that workers give each other, over QUIC.

use super::*;
use crate::answer::{Freshness, Hop};
use crate::api::site::Site;
use crate::identity::{NodeId, NodeUri, THROWAWAY_CLUSTER};
use crate::proto::limit::FIRST_ASKERS;
use crate::proto::wire::{Publish, PublishName};
use crate::spec::{Spec, Syntax};
use crate::worker::Worker;

fn uri(worker: &str) -> NodeUri {
    let uri = NodeUri::new(THROWAWAY_CLUSTER, Role::Worker, worker);
    uri.expect("a URI")
}

async fn publish(coordinator: &Coordinator, name: &str, spec: &Spec) {
    let api = coordinator.api();
    let put = api.put_body(spec.clone(), Syntax::Yaml).await;
    put.expect("staged");
    let change = PublishName {
        name: name.parse().expect("a name"),
        hash: Some(spec.hash()),
        len: spec.len(),
        expect: None,
    };
    let publish = Publish {
        key: None,
        note: String::new(),
        changes: vec![change],
    };
    api.publish(publish).await.expect("published");
}

/// As if as many as `count` had asked, of whom nobody knows where they listen.
fn asked(coordinator: &Coordinator, spec: &Spec, count: usize) {
    let mut askers = coordinator.node.askers.lock().expect("no panic");
    for n in 0..count {
        let asker = NodeId::of_addr(&n.to_string());
        askers.ask(spec.hash(), asker, |_| false, clock::now());
    }
}

#[tokio::test]
async fn a_later_asker_gets_the_bytes_of_an_earlier_one_or_of_the_coordinator_after_all() {
    let site = Site::new();
    let coordinator = site.coordinator(site.store("c"));
    let (first, second) = (Spec::new("a: 1\n".into()), Spec::new("a: 2\n".into()));
    publish(&coordinator, "first", &first).await;
    let addrs = [coordinator.local_addr()];
    let worker = |who| Worker::start(&site.config(who, &addrs)).expect("a worker");
    let (one, two) = (worker("dev/worker/w1"), worker("dev/worker/w2"));
    let whereabouts = &coordinator.node.whereabouts;
    whereabouts.note(&uri("w1"), one.local_addr(), Some(true));

    asked(&coordinator, &first, FIRST_ASKERS - 1);
    let answer = one.get("first", Freshness::Verified).await.expect("read");
    assert!(
        matches!(answer.proof.source, Hop::Coordinator(_)),
        "{answer:?}"
    );
    let answer = two.get("first", Freshness::Verified).await.expect("read");
    let peer = Hop::Peer(one.local_addr().to_string());
    assert_eq!(
        (answer.spec, answer.proof.source),
        (Some(first), peer.clone())
    );

    // Who is named may be gone.
    publish(&coordinator, "second", &second).await;
    asked(&coordinator, &second, FIRST_ASKERS);
    {
        let mut askers = coordinator.node.askers.lock().expect("no panic");
        askers.ask(second.hash(), uri("w1").id(), |_| true, clock::now());
    }
    let addr = one.local_addr();
    one.stop().await;
    // As if it had died without a word.
    whereabouts.note(&uri("w1"), addr, Some(true));
    let answer = two.get("second", Freshness::Verified).await.expect("read");
    assert_eq!(answer.spec, Some(second));
    assert!(matches!(answer.proof.source, Hop::Coordinator(_)));
    assert_eq!(answer.failed[0].hop, peer);
    two.stop().await;
    coordinator.stop().await;
}
