//! What is passed on to which address, over real QUIC on loopback.

use std::net::SocketAddr;

use super::*;
use crate::api::site::Site;
use crate::config::StoreChoice;
use crate::proto::wire::{Publish, PublishName, PutBlob};
use crate::spec::SpecHash;
use crate::worker::Worker;

/// Deletes what never was: nothing changes, but only a coordinator with a catalog says so.
fn unkeyed() -> Request {
    Request::Publish(Publish {
        key: None,
        note: String::new(),
        changes: vec![PublishName {
            name: "never".parse().expect("a name"),
            hash: None,
            len: 0,
            expect: None,
        }],
    })
}

async fn forward(member: &Worker, request: &Request) -> Result<Response, Failure> {
    let node = &member.0;
    to_coordinator(&node.engine, &node.preferred, request, Bytes::new()).await
}

fn ask_first(member: &Worker, addr: SocketAddr) {
    *member.0.preferred.lock() = Some(addr.to_string());
}

fn first(member: &Worker) -> String {
    let links = member.0.engine.coordinator_links();
    member.0.preferred.first(links)[0].link().addr().to_owned()
}

#[tokio::test]
async fn what_says_that_nothing_happened_lets_even_an_unkeyed_publish_go_on() {
    let site = Site::new();
    let empty = site.coordinator(StoreChoice::None);
    let coordinator = site.coordinator(site.store("c"));
    let real = coordinator.local_addr();
    // Of another role: its handshake is refused.
    let other = Worker::start(&site.config("dev/worker/w1", &[])).expect("a worker");
    for wrong in [empty.local_addr(), other.local_addr()] {
        let member = site.publisher(&[wrong, real]);
        ask_first(&member, wrong);
        let answer = forward(&member, &unkeyed()).await;
        assert!(matches!(answer, Ok(Response::Published(_))), "{answer:?}");
        assert_eq!(first(&member), real.to_string(), "it answered");
        let only = site.publisher(&[wrong]);
        let failure = forward(&only, &unkeyed()).await.expect_err("nobody");
        assert_eq!(failure.message, "no coordinator answered");
    }
}

#[tokio::test]
async fn the_address_that_answered_is_asked_first_until_it_fails() {
    let site = Site::new();
    let one = site.coordinator(site.store("c"));
    let two = site.coordinator(StoreChoice::None);
    let addr = one.local_addr();
    let member = site.publisher(&[addr, two.local_addr()]);
    ask_first(&member, two.local_addr());
    forward(&member, &unkeyed()).await.expect("the second try");
    assert_eq!(first(&member), addr.to_string());
    // A refusal is an answer.
    let refused = Request::Publish(Publish {
        key: None,
        note: String::new(),
        changes: vec![],
    });
    let failure = forward(&member, &refused).await.expect_err("names nothing");
    assert_eq!(failure.code, "invalid");
    assert_eq!(first(&member), addr.to_string());
    one.stop().await;
    forward(&member, &unkeyed()).await.expect_err("it is gone");
    assert_eq!(*member.0.preferred.lock(), None);
}

#[test]
fn who_writes_waits_for_the_disk_and_who_publishes_for_leases_too() {
    let list = Request::GetStatus;
    let put = Request::PutBlob(PutBlob {
        hash: SpecHash::of(b"a"),
        len: 1,
    });
    assert_eq!(
        patience_for(&list).first_byte,
        Patience::coordinator().first_byte
    );
    assert_eq!(patience_for(&put).first_byte, WRITE_PATIENCE);
    let longest = crate::proto::limit::MAX_LEASE;
    assert!(patience_for(&unkeyed()).first_byte >= longest + WRITE_PATIENCE);
}
