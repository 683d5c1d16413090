//! Bodies that workers give each other, over QUIC.

use bytes::Bytes;
use tokio::runtime::Handle;

use super::*;
use crate::answer::{Freshness, Hop};
use crate::api::site::Site;
use crate::identity::{NodeId, NodeUri, THROWAWAY_CLUSTER};
use crate::net::{Link, Patience, Wanted};
use crate::proto::limit::FIRST_ASKERS;
use crate::proto::wire::{Peering, Publish, PublishName, Request, Resolve, Response};
use crate::spec::{MAX_SPEC_LEN, Spec, Syntax};
use crate::trust::{IdentityOptions, IdentityPaths};
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

/// An endpoint with this certificate, as in `dev/worker/w1`.
fn endpoint(site: &Site, who: &str) -> Endpoint {
    let paths = IdentityPaths::in_dir(&site.path(who));
    let identity = Identity::load(paths, IdentityOptions::default()).expect("an identity");
    let options = EndpointOptions {
        reset_key: [7; 32],
        agent: "test".into(),
        max_spec_len: MAX_SPEC_LEN,
        limits: Limits::default(),
        congestion: Congestion::default(),
    };
    let any = "127.0.0.1:0".parse().expect("an address");
    let port = Port::bind(any, identity.uri().cluster()).expect("a port");
    Endpoint::start(&Handle::current(), port, identity, options).expect("started")
}

#[tokio::test]
async fn a_worker_that_asks_and_gives_is_known_to_listen_where_it_asks_from() {
    let site = Site::new();
    let coordinator = site.coordinator(site.store("c"));
    for (who, peering, is_known) in [
        ("dev/worker/w1", Peering::Takes, false),
        ("dev/publisher/p1", Peering::Gives, false),
        ("dev/worker/w1", Peering::Gives, true),
    ] {
        let asker = endpoint(&site, who);
        let node = asker.identity().uri().id();
        let addr = coordinator.local_addr().to_string();
        let link = Link::new(&asker, addr, Wanted::Coordinator);
        let request = Request::Resolve(Resolve {
            at: None,
            names: Vec::new(),
            peering,
        });
        let call = link.call(&request, Bytes::new(), Patience::coordinator());
        let mut answer = call.await.expect("a connection");
        let response = answer.next().await.expect("an answer");
        assert!(matches!(response, Response::Resolved(_)), "{response:?}");
        let known = coordinator.node.whereabouts.of(node);
        let expected = is_known.then(|| asker.local_addr());
        assert_eq!(known, expected, "{who} {peering:?}");
    }
    coordinator.stop().await;
}
