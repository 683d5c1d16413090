//! Bytes from whoever has them, and nothing from whoever lies.
//!
//! The nodes under test are real processes; those that misbehave are bare quinn within the test,
//! with certificates of the same cluster, so that nothing but the bytes gives them away.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use larder::catalog::{CatalogId, Epoch, Head, HeadHash, HeadKey, Revision, SignedHead, StateRoot};
use larder::identity::NodeId;
use larder::proto::wire::{BlobOf, Outcome, Request, Resolved, Response, WireVersion};
use larder::proto::worker::weight;
use larder::spec::{Spec, SpecHash};
use serde_json::Value;

use crate::hostile::{DeadlyPath, Hostile, Say, Shown, Then};
use crate::site::{Daemon, Ended, Site};

/// A definition of several packets.
pub(crate) fn body() -> String {
    format!("steps:\n  - run: echo daily\n# {}\n", "x".repeat(5_000))
}

fn hash() -> SpecHash {
    Spec::new(body().into()).hash()
}

/// As long as the right bytes.
fn wrong() -> Vec<u8> {
    body().to_uppercase().into_bytes()
}

pub(crate) fn get(site: &Site, node: &Daemon, what: &str, more: &[&str]) -> Ended {
    let get = ["get", what, "--socket", node.socket()];
    site.run(&[&get, more].concat())
}

/// A coordinator with the definition `daily`, and a worker that has read it.
pub(crate) fn published(site: &Site) -> (Daemon, Daemon) {
    let coordinator = site.coordinator("c");
    let file = site.write("daily.yaml", body());
    let publish = ["publish", &file, "--socket", coordinator.socket()];
    site.run(&publish).ok();
    let worker = site.worker("honest", &coordinator, &[]);
    assert_eq!(get(site, &worker, "daily", &[]).ok(), body());
    (coordinator, worker)
}

/// Why the node at `addr` did not help, out of a list of hops.
fn reason<'a>(hops: &'a Value, addr: &str) -> Option<&'a str> {
    let hops = hops.as_array()?;
    let hop = hops.iter().find(|hop| hop["addr"] == addr)?;
    hop["reason"].as_str()
}

#[test]
fn without_a_coordinator_peers_give_bytes_and_nobody_gives_names() {
    let site = Site::new();
    let (coordinator, honest) = published(&site);
    // It is bound and never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("bound").to_string();
    let more = ["--peer", honest.addr(), "--coordinator", &silent];
    let worker = site.worker("w", &coordinator, &more);
    let addr = coordinator.addr().to_owned();
    coordinator.stop();

    let hash = hash().to_string();
    let answer = get(&site, &worker, &hash, &["--json"]).json();
    assert_eq!(answer["body"], body());
    assert_eq!(answer["proof"]["mode"], "pinned");
    assert_eq!(answer["proof"]["source"]["hop"], "peer");
    assert_eq!(answer["proof"]["source"]["addr"], honest.addr());
    let again = get(&site, &worker, &hash, &["--json"]).json();
    assert_eq!(again["proof"]["source"]["hop"], "disk");

    let (first, second) = (
        format!("tried coordinator {addr}: "),
        format!("tried coordinator {silent}: "),
    );
    // Whatever a lease still allows.
    let name = get(&site, &worker, "daily", &["--verified"]);
    name.fails(4, &["no proof that any copy of `daily`", &first, &second]);
    let name = get(&site, &honest, "daily", &["--verified"]);
    name.fails(4, &["no proof", &first, &format!("larder get {hash}")]);
    let unknown = SpecHash::of(b"nobody has this").to_string();
    let peer = format!("tried peer {}: does not have it", honest.addr());
    get(&site, &worker, &unknown, &[]).fails(4, &["nobody gave", &peer, &first, &second]);
}

/// An honest worker with the bytes, and a coordinator that breaks off whatever it is asked.
struct Swarm {
    site: Site,
    honest: Daemon,
    breaker: Hostile,
}

impl Swarm {
    fn new() -> Self {
        let site = Site::new();
        let (coordinator, honest) = published(&site);
        coordinator.stop();
        let certs = site.identity("coordinator", "breaker");
        let breaker = Hostile::start(&certs, None, |_| say(Vec::new(), Then::Close));
        Self {
            site,
            honest,
            breaker,
        }
    }

    /// A peer that is asked for the definition before the honest one.
    fn before_honest(&self, start: impl Fn() -> Hostile) -> Hostile {
        let place = |addr: &str| weight(hash(), NodeId::of_addr(addr));
        loop {
            let hostile = start();
            if place(hostile.addr()) < place(self.honest.addr()) {
                return hostile;
            }
        }
    }

    /// A worker with these peers. It asks them for bytes alone: who does not carry its packets to a
    /// coordinator that is cut off would be asked for bytes after the others.
    fn worker(&self, name: &str, peers: &[&str]) -> Daemon {
        let more = peers.iter().flat_map(|peer| ["--peer", peer]);
        let more: Vec<_> = more.chain(["--relay", "off"]).collect();
        self.site.worker_of(name, self.breaker.addr(), &more)
    }

    /// The hostile peer is caught and named; what it said is neither given to anyone nor kept.
    fn check(&self, what: &str, hostile: &Hostile, says: &str) {
        let (site, hash) = (&self.site, hash().to_string());
        let victim = self.worker(what, &[hostile.addr(), self.honest.addr()]);
        let answer = get(site, &victim, &hash, &["--json"]).json();
        assert_eq!(answer["body"], body(), "{what}");
        assert_eq!(answer["proof"]["source"]["addr"], self.honest.addr());
        let named = reason(&answer["failed"], hostile.addr());
        let named = named.unwrap_or_else(|| panic!("{what}: not named in {answer}"));
        // Who says nothing is overtaken before it is given up.
        assert!(
            named.contains(says) || named == "no bytes yet",
            "{what}: {named}"
        );

        let alone = self.worker(&format!("{what}-alone"), &[hostile.addr()]);
        let hop = format!("tried peer {}: ", hostile.addr());
        get(site, &alone, &hash, &[]).fails(4, &["nobody gave", &hop, says]);
        get(site, &alone, &hash, &[]).fails(4, &["nobody gave"]);
        let status = site.run(&["status", "--json", "--socket", alone.socket()]);
        let status = status.json();
        assert_eq!(status["store"]["live_bytes"], 0, "{what}: {status}");
    }
}

fn say(bytes: Vec<u8>, then: Then) -> Say {
    Say { bytes, then }
}

fn frame(response: &Response) -> Vec<u8> {
    response.to_frame().expect("small")
}

/// A blob that announces `len` bytes and comes with these.
fn blob(len: usize, bytes: &[u8]) -> Vec<u8> {
    let len = u64::try_from(len).expect("small");
    blob_at(0, len, bytes)
}

/// The same as the answer to the question at `index`.
fn blob_at(index: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    [&frame(&Response::BlobOf(BlobOf { index, len })), bytes].concat()
}

/// A frame whose header is one byte longer than its value.
fn trailing(mut frame: Vec<u8>) -> Vec<u8> {
    let (len, _) = frame.split_first_chunk_mut().expect("a frame");
    *len = (u32::from_be_bytes(*len) + 1).to_be_bytes();
    frame.push(0);
    frame
}

#[test]
fn a_peer_that_lies_is_named_and_the_next_one_gives_the_right_bytes() {
    let swarm = Swarm::new();
    let (right, len) = (body().into_bytes(), body().len());
    let half = &right[..len / 2];
    let cases = [
        (
            "wrong",
            blob(len, &wrong()),
            Then::Finish,
            "sent wrong bytes",
        ),
        ("short", blob(len, half), Then::Finish, "cut short"),
        (
            "reset",
            blob(len, half),
            Then::Close,
            "closed the connection",
        ),
        (
            "other-length",
            blob(len / 2, half),
            Then::Finish,
            "sent wrong bytes",
        ),
        ("endless", blob(len, &[]), Then::Forever, "sent wrong bytes"),
        (
            "too-much",
            blob(usize::MAX, &[]),
            Then::Forever,
            "sent wrong bytes",
        ),
        (
            "long-frame",
            vec![0xff; 5],
            Then::Hold,
            "a frame of 4294967295 bytes",
        ),
        ("tag", vec![0, 0, 0, 1, 200], Then::Hold, "unknown tag 200"),
        (
            "trailing",
            trailing(blob(len, &[])),
            Then::Finish,
            "left over",
        ),
        (
            "other-place",
            blob_at(7, len as u64, &right),
            Then::Finish,
            "another question",
        ),
        (
            "other-answer",
            frame(&Response::Stored(())),
            Then::Finish,
            "another question",
        ),
    ];
    let certs = swarm.site.identity("worker", "liar");
    for (what, bytes, then, says) in cases {
        let hostile = swarm.before_honest(|| {
            let bytes = bytes.clone();
            Hostile::start(&certs, None, move |_| say(bytes.clone(), then))
        });
        swarm.check(what, &hostile, says);
    }
}

#[test]
fn a_peer_that_says_nothing_or_something_else_is_passed_over() {
    let swarm = Swarm::new();
    let certs = swarm.site.identity("worker", "liar");
    let silent = || Hostile::start(&certs, None, |_| say(Vec::new(), Then::Hold));
    swarm.check("silent", &swarm.before_honest(silent), "no answer within");
    let other = swarm.before_honest(|| Hostile::of_another_version(&certs));
    swarm.check("version", &other, "does not speak this version");
    let deaf = swarm.before_honest(Hostile::without_tls);
    swarm.check("deaf", &deaf, "cannot be reached");
}

#[test]
fn a_liar_is_not_asked_again_soon() {
    let swarm = Swarm::new();
    let certs = swarm.site.identity("worker", "liar");
    let bytes = blob(wrong().len(), &wrong());
    let hostile = swarm.before_honest(|| {
        let bytes = bytes.clone();
        Hostile::start(&certs, None, move |_| say(bytes.clone(), Then::Finish))
    });
    let victim = swarm.worker("v", &[hostile.addr(), swarm.honest.addr()]);
    let site = &swarm.site;
    get(site, &victim, &hash().to_string(), &[]).ok();
    victim.says(&["WARN", hostile.addr(), "sent wrong bytes"]);
    let unknown = SpecHash::of(b"nobody has this").to_string();
    let end = get(site, &victim, &unknown, &["--json"]);
    end.fails(4, &[swarm.honest.addr(), "does not have it"]);
    assert!(!end.err.contains(hostile.addr()), "{end:?}");
    let status = site.run(&["status", "--json", "--socket", victim.socket()]);
    let status = status.json();
    let sources = status["sources"].as_array().expect("a list");
    let liar = sources
        .iter()
        .find(|source| source["addr"] == hostile.addr());
    assert!(
        liar.expect("listed")["banned_ms"].as_u64() > Some(0),
        "{status}"
    );
}

/// What a coordinator says of `daily`: an opening, a record of `len` bytes, and these.
fn record(len: usize, bytes: &[u8]) -> Vec<u8> {
    let version = WireVersion {
        rev: Revision::new(1),
        hash: Some(hash()),
        len: u64::try_from(len).expect("small"),
    };
    let outcome = Outcome {
        version: Some(version),
        body: true,
        ask: Vec::new(),
    };
    [&opening(), &frame(&Response::Outcome(outcome)), bytes].concat()
}

fn opening() -> Vec<u8> {
    frame(&Response::Resolved(Resolved {
        catalog: CatalogId::from_bytes([7; 16]),
        epoch: Epoch::new(1),
        rev: Revision::new(1),
    }))
}

/// That catalog, proven with the key of the coordinators in `certs`.
fn proven(certs: &str) -> Shown {
    let key = head_key(certs);
    Shown {
        head: sign(&key),
        key: Some(key),
    }
}

fn head_key(certs: &str) -> HeadKey {
    let key = fs::read_to_string(Path::new(certs).join("head.key")).expect("there");
    key.parse().expect("a key")
}

fn sign(key: &HeadKey) -> SignedHead {
    let head = Head {
        catalog: CatalogId::from_bytes([7; 16]),
        epoch: Epoch::new(1),
        rev: Revision::new(1),
        root: StateRoot::from_bytes([0; 32]),
        prev: HeadHash::from_bytes([0; 32]),
    };
    head.sign(key)
}

#[test]
fn bytes_that_a_coordinator_sends_are_held_against_its_record() {
    let swarm = Swarm::new();
    let site = &swarm.site;
    let (right, len) = (body().into_bytes(), body().len());
    let half = right[..len / 2].to_vec();
    let cases = [
        ("wrong", len, wrong(), Then::Finish, "sent wrong bytes"),
        ("short", len, half.clone(), Then::Finish, "cut short"),
        ("stalls", len, half.clone(), Then::Hold, "too slowly"),
        (
            "lies-about-length",
            len / 2,
            half,
            Then::Finish,
            "sent wrong bytes",
        ),
    ];
    let certs = site.identity("coordinator", "liar");
    let reader = site.identity("reader", "r");
    for (what, len, bytes, then, says) in cases {
        let hostile = Hostile::start(&certs, Some(proven(&certs)), move |request| match request {
            Request::Resolve(_) => say(record(len, &bytes), then),
            _ => say(blob(len, &bytes), then),
        });
        let addr = hostile.addr();
        let hop = format!("tried coordinator {addr}: ");
        let once = ["get", "daily", "--coordinator", addr, "--certs", &reader];
        site.run(&once).fails(4, &[&hop, says]);

        let victim = site.worker_of(what, addr, &["--peer", swarm.honest.addr()]);
        let end = get(site, &victim, "daily", &["--json"]);
        if what == "lies-about-length" {
            // The right bytes are not those of the record.
            end.fails(4, &["nobody gave", addr]);
            continue;
        }
        let answer = end.json();
        assert_eq!(answer["body"], body(), "{what}");
        assert_eq!(answer["proof"]["mode"], "asked", "{what}");
        assert_eq!(answer["proof"]["source"]["addr"], swarm.honest.addr());
        let named = reason(&answer["failed"], addr).unwrap_or("not named");
        assert!(
            named.contains(says) || named == "no bytes yet",
            "{what}: {named}"
        );
    }
}

#[test]
fn a_coordinator_that_makes_no_sense_proves_nothing() {
    let swarm = Swarm::new();
    let site = &swarm.site;
    let cases = [
        ("tag", vec![0, 0, 0, 1, 200], Then::Hold, "unknown tag 200"),
        ("trailing", trailing(opening()), Then::Finish, "left over"),
        (
            "twice",
            opening().repeat(2),
            Then::Finish,
            "another question",
        ),
        ("only-opened", opening(), Then::Finish, "cut short"),
        ("blob", blob(1, b"x"), Then::Finish, "another question"),
        ("gone", Vec::new(), Then::Close, "closed the connection"),
    ];
    let certs = site.identity("coordinator", "liar");
    for (what, bytes, then, says) in cases {
        let shown = Some(proven(&certs));
        let hostile = Hostile::start(&certs, shown, move |_| say(bytes.clone(), then));
        let hop = format!("tried coordinator {}: ", hostile.addr());
        let victim = site.worker_of(what, hostile.addr(), &["--peer", swarm.honest.addr()]);
        get(site, &victim, "daily", &[]).fails(4, &["no proof", &hop, says]);
    }
}

#[test]
fn a_coordinator_that_lives_and_answers_nothing_is_waited_for_until_the_deadline() {
    let swarm = Swarm::new();
    let certs = swarm.site.identity("coordinator", "mute");
    let shown = Some(proven(&certs));
    let mute = Hostile::start(&certs, shown, |_| say(Vec::new(), Then::Hold));
    let hop = format!("tried coordinator {}: no answer yet", mute.addr());
    let args = ["--deadline", "4s", "--peer", swarm.honest.addr()];
    let victim = swarm.site.worker_of("v", mute.addr(), &args);
    let end = get(&swarm.site, &victim, "daily", &[]);
    end.fails(4, &["the deadline passed", &hop]);
}

#[test]
fn a_coordinator_is_believed_only_if_it_proves_to_hold_a_pinned_key() {
    let site = Site::new();
    let certs = site.identity("coordinator", "c");
    let reader = site.identity("reader", "r");
    let (good, stranger) = (head_key(&certs), HeadKey::from_bytes([9; 32]));
    let shows = |signer: &HeadKey, prover: Option<&HeadKey>| {
        let (head, key) = (sign(signer), prover.cloned());
        Some(Shown { head, key })
    };
    for (what, shown, why) in [
        ("good", shows(&good, Some(&good)), None),
        (
            "stranger",
            shows(&stranger, Some(&stranger)),
            Some("no head key pinned"),
        ),
        ("repeats", shows(&good, None), Some("does not prove")),
        (
            "poses",
            shows(&good, Some(&stranger)),
            Some("no head key pinned"),
        ),
        ("none", None, Some("has proven none")),
    ] {
        let answer = record(body().len(), body().as_bytes());
        let node = Hostile::start(&certs, shown, move |_| say(answer.clone(), Then::Finish));
        let worker = site.worker_of(what, node.addr(), &[]);
        let end = get(&site, &worker, "daily", &[]);
        match why {
            None => assert_eq!(end.ok(), body()),
            Some(why) => end.fails(7, &["no proof", node.addr(), why]),
        }
        let once = ["ls", "--coordinator", node.addr(), "--certs", &reader];
        match why {
            None => site.run(&once).fails(1, &["another question"]),
            Some(why) => site.run(&once).fails(7, &[node.addr(), why]),
        }
    }
}

#[test]
fn a_coordinator_that_is_killed_in_mid_answer_and_restarted_answers_the_same_read() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let large = format!("# {}\n", "x".repeat(900_000));
    let file = site.write("large.yaml", &large);
    site.run(&["publish", &file, "--socket", coordinator.socket()])
        .ok();
    let path = DeadlyPath::start(coordinator.addr());
    let worker = site.worker_of("w", path.addr(), &["--deadline", "30s"]);
    get(&site, &worker, "nothing", &[]).fails(3, &["no definition"]);

    path.kill_after(200_000, coordinator.pid());
    let read = ["get", "large", "--json", "--socket", worker.socket()];
    let end = thread::scope(|scope| {
        let read = scope.spawn(|| site.run(&read));
        path.wait();
        let addr = coordinator.addr().to_owned();
        drop(coordinator);
        let certs = site.identity("coordinator", "c");
        let args = ["coordinator", "--certs", &certs, "--listen", &addr];
        let again = site.start(&args, "c").expect("it starts");
        let end = read.join().expect("no panic");
        again.stop();
        end
    });
    let answer = end.json();
    assert_eq!(answer["body"], large);
    assert_eq!(answer["proof"]["source"]["addr"], path.addr());
    assert!(
        reason(&answer["failed"], path.addr()).is_some(),
        "no hop in {}",
        answer["failed"]
    );
}

#[test]
fn reads_go_on_while_garbage_comes_to_the_same_port() {
    let site = Site::new();
    let (coordinator, worker) = published(&site);
    let reader = site.identity("reader", "r");
    let targets = [coordinator.addr(), worker.addr()];
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for target in targets {
            let over = &over;
            scope.spawn(move || throw_garbage(target.parse().expect("an address"), over));
        }
        let _end = SetOnDrop(&over);
        for _ in 0..10 {
            assert_eq!(get(&site, &worker, "daily", &[]).ok(), body());
            let addr = coordinator.addr();
            let once = ["get", "daily", "--coordinator", addr, "--certs", &reader];
            assert_eq!(site.run(&once).ok(), body());
        }
    });
    worker.stop();
    coordinator.stop();
}

/// Else a test that fails would wait for threads that go on.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Random bytes, every second packet of which begins like the first one of a connection.
fn throw_garbage(target: SocketAddr, over: &AtomicBool) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut packet = [0_u8; 1_200];
    while !over.load(Ordering::Relaxed) {
        rand::fill(&mut packet[..]);
        if packet[100] & 1 == 0 {
            // A long header of version 1 with connection ids of 8 bytes.
            packet[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            packet[14] = 8;
        }
        let len = 1 + usize::from(u16::from_le_bytes([packet[101], packet[102]])) % packet.len();
        let _ = socket.send_to(&packet[..len], target);
        thread::yield_now();
    }
}

/// What `node` says of itself, once that satisfies `enough`.
fn status_when(site: &Site, node: &Daemon, enough: impl Fn(&Value) -> bool) -> Value {
    loop {
        let status = site.run(&["status", "--json", "--socket", node.socket()]);
        let status = status.json();
        if enough(&status) {
            return status;
        }
        thread::yield_now();
    }
}

#[test]
fn a_worker_that_starts_without_a_coordinator_gets_the_catalog_of_a_neighbour() {
    let site = Site::new();
    let (coordinator, honest) = published(&site);
    let held = |status: &Value| status["lease"]["revision"] == 1;
    let status = status_when(&site, &honest, held);
    let catalog = status["catalog"].as_str().expect("a catalog").to_owned();
    let gone = coordinator.addr().to_owned();
    coordinator.stop();

    let worker = site.worker_of("late", &gone, &["--peer", honest.addr()]);
    let status = status_when(&site, &worker, held);
    let from = format!("peer {}", honest.addr());
    assert_eq!(status["catalog_from"], from);
    let text = site.run(&["status", "--socket", worker.socket()]).ok();
    assert!(text.contains(&from), "{text}");
    worker.says(&["brought forward", honest.addr()]);

    let token = format!("lr1:{catalog}:1:1");
    for freshness in [["--at", "1"], ["--at-least", &token]] {
        let answer = get(
            &site,
            &worker,
            "daily",
            &[&freshness[..], &["--json"]].concat(),
        );
        assert_eq!(answer.json()["body"], body(), "{freshness:?}");
    }
    let later = format!("lr1:{catalog}:1:2");
    get(&site, &worker, "daily", &["--at-least", &later]).fails(4, &["no proof"]);
    let hash = hash().to_string();
    assert_eq!(get(&site, &worker, &hash, &[]).ok(), body());
    for freshness in [&[][..], &["--verified"], &["--max-staleness", "1h"]] {
        get(&site, &worker, "daily", freshness).fails(4, &["no proof", &gone]);
    }
}
