//! Bodies that workers give each other, over QUIC.

use bytes::Bytes;
use tokio::runtime::Handle;

use super::*;
use crate::answer::{Freshness, Hop};
use crate::api::site::Site;
use crate::identity::{NodeId, NodeUri, THROWAWAY_CLUSTER};
use crate::net::{Exchange, Link, Patience, Wanted};
use crate::proto::limit::{FIRST_ASKERS, MAX_SHARED_BODY};
use crate::proto::wire::{
    GetBlobs, Peering, Publish, PublishName, Request, Resolve, ResolveName, Response,
};
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

/// Opens the answer to one request.
async fn ask(link: &Link, request: &Request) -> Exchange {
    let call = link.call(request, Bytes::new(), Patience::coordinator());
    call.await.expect("a connection")
}

#[tokio::test]
async fn each_of_several_hashes_gets_its_bytes_or_who_has_them_or_a_refusal() {
    let site = Site::new();
    let coordinator = site.coordinator(site.store("c"));
    let (few, many) = (Spec::new("a: 1\n".into()), Spec::new("a: 2\n".into()));
    publish(&coordinator, "few", &few).await;
    publish(&coordinator, "many", &many).await;
    let holder = "127.0.0.1:9".parse().expect("an address");
    let whereabouts = &coordinator.node.whereabouts;
    whereabouts.note(&uri("w1"), holder, Some(true));
    {
        let mut askers = coordinator.node.askers.lock().expect("no panic");
        askers.ask(many.hash(), uri("w1").id(), |_| true, clock::now());
    }
    asked(&coordinator, &many, FIRST_ASKERS);

    let asker = endpoint(&site, "dev/worker/w2");
    let addr = coordinator.local_addr().to_string();
    let link = Link::new(&asker, addr, Wanted::Coordinator);
    let hashes = vec![many.hash(), SpecHash::of(b"nowhere"), few.hash()];
    for force in [false, true] {
        let request = Request::GetBlobs(GetBlobs {
            hashes: hashes.clone(),
            force,
        });
        let mut answer = ask(&link, &request).await;
        let (mut bodies, mut holders, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..hashes.len() {
            match answer.next().await.expect("an answer") {
                Response::BlobOf(blob) => {
                    let body = answer.body(MAX_SPEC_LEN).await.expect("a body");
                    bodies.push((blob.index, body));
                }
                Response::HoldersOf(of) => holders.push((of.index, of.ask[0].addr)),
                Response::NoBlobOf(none) => {
                    refused.push((none.index, Refusal::from(none.refusal).code));
                }
                other => panic!("{other:?}"),
            }
        }
        let mut expected = vec![(2, few.clone().into_bytes())];
        if force {
            expected.insert(0, (0, many.clone().into_bytes()));
        }
        assert_eq!(bodies, expected, "force: {force}");
        let pointed = if force { vec![] } else { vec![(0, holder)] };
        assert_eq!(holders, pointed, "force: {force}");
        assert_eq!(refused, [(1, Code::NotFound)], "force: {force}");
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn a_long_body_comes_with_the_answer_about_its_name_alone_and_is_read_either_way() {
    let site = Site::new();
    let coordinator = site.coordinator(site.store("c"));
    let text = |len: u64| {
        let len = usize::try_from(len).expect("a short length");
        Spec::new(format!("#{}", "x".repeat(len - 1)).into())
    };
    let (short, long) = (text(MAX_SHARED_BODY), text(MAX_SHARED_BODY + 1));
    publish(&coordinator, "short", &short).await;
    publish(&coordinator, "long", &long).await;
    let asker = endpoint(&site, "dev/worker/w1");
    let addr = coordinator.local_addr().to_string();
    let link = Link::new(&asker, addr, Wanted::Coordinator);
    for (names, expected) in [
        (&["long"][..], &[true][..]),
        (&["long", "short"], &[false, true]),
    ] {
        let names = names.iter().map(|name| ResolveName {
            name: name.parse().expect("a name"),
            if_hash: None,
            body: true,
        });
        let request = Request::Resolve(Resolve {
            at: None,
            names: names.collect(),
            peering: Peering::Alone,
        });
        let mut answer = ask(&link, &request).await;
        let opening = answer.next().await.expect("an answer");
        assert!(matches!(opening, Response::Resolved(_)), "{opening:?}");
        for body in expected {
            match answer.next().await.expect("an outcome") {
                Response::Outcome(outcome) => assert_eq!(outcome.body, *body, "{outcome:?}"),
                other => panic!("{other:?}"),
            }
            if *body {
                answer.body(MAX_SPEC_LEN).await.expect("a body");
            }
        }
    }

    let config = site.config("dev/worker/w2", &[coordinator.local_addr()]);
    let worker = Worker::start(&config).expect("a worker");
    let (one, other) = tokio::join!(
        worker.get("long", Freshness::Verified),
        worker.get("short", Freshness::Verified),
    );
    assert_eq!(one.expect("read").spec, Some(long));
    assert_eq!(other.expect("read").spec, Some(short));
    worker.stop().await;
    coordinator.stop().await;
}
