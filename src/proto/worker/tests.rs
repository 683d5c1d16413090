//! The machine with a disk that is a map, and a network that the test plays by hand.

use super::*;
use crate::catalog::Content;
use crate::proto::code::Code;
use crate::proto::limit::{
    ANSWER_TIMEOUT, HEDGE_DEFAULT, HELD_PATIENCE, MAX_GUESTS_PER_BODY, MAX_HOLD, MAX_QUESTIONS,
    POINTED_HEDGE, POINTED_PATIENCE,
};

const CATALOG: CatalogId = CatalogId::from_bytes([1; 16]);

struct Desk {
    machine: Worker,
    now: Time,
    disk: BTreeMap<SpecHash, Local>,
    /// Outputs other than disk reads and answers, in order.
    sent: Vec<Output>,
    /// The fetch that was looked at last,
    asked: CallId,
    /// and how it asks.
    how: (Option<String>, bool),
    done: BTreeMap<Ticket, Result<Answer, GetError>>,
}

fn desk(coordinators: usize, peers: usize) -> Desk {
    desk_of(coordinators, peers, Peering::Alone)
}

/// One whose coordinators may name others instead of giving bytes.
fn following(coordinators: usize, peers: usize) -> Desk {
    desk_of(coordinators, peers, Peering::Gives)
}

fn desk_of(coordinators: usize, peers: usize, peering: Peering) -> Desk {
    let addrs = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}{n}")).collect();
    let config = Config {
        coordinators: addrs("c", coordinators),
        peers: addrs("p", peers),
        peering,
        ..Config::default()
    };
    let verifier = Arc::new(Vec::<crate::catalog::PinnedKey>::new());
    Desk {
        machine: Worker::new(&config, verifier, Restored::default()),
        now: Time::from_micros(1_000_000),
        disk: BTreeMap::new(),
        sent: Vec::new(),
        asked: CallId(u64::MAX),
        how: (None, false),
        done: BTreeMap::new(),
    }
}

fn spec(body: &str) -> Spec {
    Spec::new(Bytes::copy_from_slice(body.as_bytes()))
}

fn version(rev: u64, body: &str) -> Version {
    let spec = spec(body);
    Version {
        rev: Revision::new(rev),
        content: Content::Present {
            hash: spec.hash(),
            len: spec.len(),
        },
    }
}

fn opening(rev: u64) -> Event {
    opening_of(1, rev)
}

fn opening_of(epoch: u64, rev: u64) -> Event {
    Event::Opening(Resolved {
        catalog: CATALOG,
        epoch: Epoch::new(epoch),
        rev: Revision::new(rev),
    })
}

fn failed(reason: &str) -> Event {
    Event::Failed {
        reason: reason.into(),
        unreachable: true,
    }
}

fn coordinator(index: usize) -> Hop {
    Hop::Coordinator(format!("c{index}"))
}

fn peer(index: usize) -> Hop {
    Hop::Peer(format!("p{index}"))
}

fn peer_source(index: usize) -> Source {
    Source::Peer(NodeId::of_addr(&format!("p{index}")))
}

impl Desk {
    fn input(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut found = Vec::new();
            for output in self.machine.handle(input, self.now) {
                match output {
                    Output::Load(hash) => {
                        let local = self.disk.get(&hash).cloned().unwrap_or(Local::Missing);
                        if local == Local::Damaged {
                            self.disk.remove(&hash);
                        }
                        found.push((hash, local));
                    }
                    Output::Save(spec) => {
                        self.disk.insert(spec.hash(), Local::Found(spec));
                    }
                    Output::Done { ticket, result } => {
                        assert!(self.done.insert(ticket, result).is_none(), "answered twice");
                    }
                    other => self.sent.push(other),
                }
            }
            if !found.is_empty() {
                inputs.push(Input::Loaded { found });
            }
        }
    }

    fn read(&mut self, ticket: Ticket, target: &str, freshness: Freshness) {
        let query = Query {
            freshness,
            ..Query::strict(target.parse().expect("a target"))
        };
        self.input(Input::Get {
            reads: vec![(ticket, query)],
        });
    }

    fn strict_within(&mut self, ticket: Ticket, name: &str, deadline: Duration) {
        let query = Query {
            deadline,
            ..Query::strict(name.parse().expect("a target"))
        };
        self.input(Input::Get {
            reads: vec![(ticket, query)],
        });
    }

    /// Nothing but packets comes for a call until its timer has run.
    fn is_late(&mut self, call: CallId) {
        self.event(call, Event::Alive);
        self.advance(ANSWER_TIMEOUT);
    }

    fn strict(&mut self, ticket: Ticket, name: &str) {
        self.read(ticket, name, Freshness::Strict);
    }

    fn at(&mut self, ticket: Ticket, name: &str, rev: u64) {
        self.read(ticket, name, Freshness::At(Revision::new(rev)));
    }

    fn event(&mut self, call: CallId, event: Event) {
        self.input(Input::Event { call, event });
    }

    /// The next resolve that was sent: its call, address and request.
    fn resolve(&mut self) -> (CallId, usize, Resolve) {
        let found = self
            .sent
            .iter()
            .position(|out| matches!(out, Output::Resolve { .. }));
        match found.map(|index| self.sent.remove(index)) {
            Some(Output::Resolve {
                call,
                coordinator,
                request,
                ..
            }) => (call, coordinator, request),
            _ => panic!("no resolve among {:?}", self.sent),
        }
    }

    fn fetch(&mut self) -> (CallId, Source) {
        let found = self
            .sent
            .iter()
            .position(|out| matches!(out, Output::Fetch { .. }));
        match found.map(|index| self.sent.remove(index)) {
            Some(Output::Fetch {
                call,
                source,
                addr,
                force,
                ..
            }) => {
                self.asked = call;
                self.how = (addr, force);
                (call, source)
            }
            _ => panic!("no fetch among {:?}", self.sent),
        }
    }

    /// The same, with where the source listens and whether it shall answer at once.
    fn fetch_with(&mut self) -> (Source, Option<String>, bool) {
        let (_, source) = self.fetch();
        let (addr, force) = self.how.clone();
        (source, addr, force)
    }

    fn asks_nobody(&self) -> bool {
        let asks = |out: &Output| matches!(out, Output::Resolve { .. } | Output::Fetch { .. });
        !self.sent.iter().any(asks)
    }

    /// Plays a coordinator that answers one name with its body.
    fn publish_and_read(&mut self, ticket: Ticket, name: &str, rev: u64, body: &str) {
        self.strict(ticket, name);
        let (call, ..) = self.resolve();
        self.event(call, opening(rev));
        self.outcome(call, Some(version(rev, body)), true);
        self.event(call, Event::Body(spec(body).into_bytes()));
        self.event(call, Event::End);
        assert_eq!(self.answer(ticket).spec, Some(spec(body)));
    }

    fn outcome(&mut self, call: CallId, version: Option<Version>, body: bool) {
        let ask = Vec::new();
        self.event(call, Event::Outcome { version, body, ask });
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        self.input(Input::Wake);
    }

    fn answer(&mut self, ticket: Ticket) -> Answer {
        self.done.remove(&ticket).expect("done").expect("an answer")
    }

    fn error(&mut self, ticket: Ticket) -> GetError {
        self.done
            .remove(&ticket)
            .expect("done")
            .expect_err("an error")
    }
}

#[test]
fn a_miss_is_answered_by_the_coordinator_and_kept() {
    let mut desk = desk(1, 0);
    desk.strict(1, "etl/child");
    let (call, _, request) = desk.resolve();
    assert_eq!(request.names[0].if_hash, None);
    desk.event(call, opening(7));
    desk.outcome(call, Some(version(3, "v1")), true);
    assert!(desk.done.is_empty(), "no answer before the bytes");
    desk.event(call, Event::Body(spec("v1").into_bytes()));
    let answer = desk.answer(1);
    assert_eq!(answer.spec, Some(spec("v1")));
    assert_eq!(answer.proof.source, coordinator(0));
    assert_eq!(answer.proof.mode, Mode::Asked);
    assert_eq!(answer.proof.record_rev, Some(Revision::new(3)));
    assert_eq!(
        answer.proof.snapshot.expect("a snapshot").rev,
        Revision::new(7)
    );
    assert!(desk.disk.contains_key(&spec("v1").hash()));
}

#[test]
fn the_second_read_asks_with_its_hash_and_takes_its_own_disk() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 1, "v1");
    desk.strict(2, "a");
    let (call, _, request) = desk.resolve();
    assert_eq!(request.names[0].if_hash, Some(spec("v1").hash()));
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "v1")), false);
    let answer = desk.answer(2);
    assert_eq!(
        (answer.spec, answer.proof.source),
        (Some(spec("v1")), Hop::Disk)
    );
}

#[test]
fn a_new_version_is_never_hidden_by_the_old_one_on_disk() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 1, "v1");
    desk.publish_and_read(2, "a", 2, "v2");
    desk.strict(3, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, failed("connection lost"));
    let error = desk.error(3);
    let GetError::NoFreshnessProof { last, hops, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(last.expect("known").seen_rev, Revision::new(2));
    assert_eq!(hops.len(), 1);
    assert_eq!(hops[0].to_string(), "coordinator c0: connection lost");
}

#[test]
fn a_deadline_before_the_proof_says_what_is_known_without_it() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 1, "v1");
    desk.strict_within(2, "a", ANSWER_TIMEOUT / 2);
    let (call, ..) = desk.resolve();
    desk.is_late(call);
    let GetError::Deadline { last, hops, .. } = desk.error(2) else {
        panic!("it waits for an answer beyond its time");
    };
    let last = last.expect("known");
    assert_eq!(last.seen_rev, Revision::new(1));
    assert_eq!(last.hash, Some(SpecHash::of(b"v1")));
    assert_eq!(hops[0].reason, "no answer yet");
    // The truth is known, and its bytes are late: what was known before is of no use.
    desk.strict_within(3, "a", ANSWER_TIMEOUT / 2);
    let (call, ..) = desk.resolve();
    desk.event(call, opening(2));
    desk.outcome(call, Some(version(2, "v2")), false);
    desk.is_late(call);
    let error = desk.error(3);
    assert!(
        matches!(error, GetError::Deadline { last: None, .. }),
        "{error}"
    );
}

#[test]
fn a_strict_read_never_joins_a_request_that_was_sent_before_it() {
    let mut desk = desk(1, 0);
    desk.strict(1, "a");
    let (first, ..) = desk.resolve();
    desk.strict(2, "a");
    desk.strict(3, "a");
    assert!(desk.asks_nobody(), "one in flight, one queued");
    // A publish is acknowledged here; the first answer may still be the old one.
    desk.event(first, opening(1));
    desk.outcome(first, Some(version(1, "old")), true);
    let (second, ..) = desk.resolve();
    desk.event(first, Event::Body(spec("old").into_bytes()));
    assert_eq!(desk.answer(1).spec, Some(spec("old")));
    assert!(desk.done.is_empty(), "the others wait for their own answer");
    desk.event(second, opening(2));
    desk.outcome(second, Some(version(2, "new")), true);
    desk.event(second, Event::Body(spec("new").into_bytes()));
    assert_eq!(desk.answer(2).spec, Some(spec("new")));
    assert_eq!(desk.answer(3).spec, Some(spec("new")));
}

#[test]
fn an_absent_or_deleted_name_is_an_answer_with_proof() {
    let mut desk = desk(1, 0);
    for (ticket, version) in [
        (1, None),
        (
            2,
            Some(Version {
                rev: Revision::new(4),
                content: Content::Deleted,
            }),
        ),
    ] {
        desk.strict(ticket, "gone");
        let (call, ..) = desk.resolve();
        desk.event(call, opening(5));
        desk.outcome(call, version, false);
        let answer = desk.answer(ticket);
        assert_eq!(answer.spec, None);
        assert_eq!(answer.proof.source, coordinator(0));
        assert_eq!(answer.proof.record_rev, version.map(|version| version.rev));
    }
}

#[test]
fn the_next_address_is_asked_and_the_one_that_works_stays_first() {
    let mut desk = desk(3, 0);
    desk.strict(1, "a");
    let (call, first, _) = desk.resolve();
    desk.event(
        call,
        Event::Refused(Refusal::new(Code::NoCatalog, "no catalog here")),
    );
    let (call, second, _) = desk.resolve();
    desk.event(call, failed("unreachable"));
    let (call, third, _) = desk.resolve();
    let mut all = [first, second, third];
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2]);
    desk.event(call, opening(1));
    desk.outcome(call, None, false);
    let answer = desk.answer(1);
    assert_eq!(answer.failed.len(), 2);
    assert_eq!(answer.failed[0].reason, "no catalog here");
    desk.strict(2, "a");
    assert_eq!(desk.resolve().1, third);
}

#[test]
fn a_restarted_coordinator_is_asked_once_more_over_a_new_connection() {
    let mut desk = desk(1, 0);
    let lost = || Event::Lost {
        reason: "the peer has restarted".into(),
    };
    desk.strict(1, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, lost());
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, None, false);
    assert_eq!(desk.answer(1).failed.len(), 1);

    desk.strict(2, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, lost());
    let (call, ..) = desk.resolve();
    desk.event(call, lost());
    assert_eq!(desk.error(2).hops().len(), 2, "once more, and not for ever");
}

#[test]
fn a_restarted_peer_is_asked_once_more_for_bytes() {
    let mut desk = desk(0, 1);
    let lost = || Event::Lost {
        reason: "the peer has restarted".into(),
    };
    let target = spec("v").hash().to_string();
    for ticket in 1..=2 {
        desk.read(ticket, &target, Freshness::Strict);
        let (call, _) = desk.fetch();
        desk.event(call, lost());
        let (call, _) = desk.fetch();
        let event = match ticket {
            1 => lost(),
            _ => Event::Body(spec("v").into_bytes()),
        };
        desk.event(call, event);
    }
    assert!(matches!(desk.error(1), GetError::NoBytes { .. }));
    assert_eq!(desk.answer(2).spec, Some(spec("v")));
}

#[test]
fn a_silent_coordinator_is_given_up_after_a_while() {
    let mut desk = desk(2, 0);
    desk.strict(1, "a");
    let (_, first, _) = desk.resolve();
    desk.advance(ANSWER_TIMEOUT);
    let (call, second, _) = desk.resolve();
    assert_ne!(first, second);
    desk.event(call, opening(1));
    desk.outcome(call, None, false);
    assert!(
        desk.answer(1).failed[0]
            .reason
            .starts_with("no answer within")
    );
}

#[test]
fn a_late_answer_is_waited_for_while_packets_come_and_nothing_is_asked_anew() {
    let mut desk = desk(1, 0);
    desk.strict_within(1, "a", ANSWER_TIMEOUT * 20);
    let (call, ..) = desk.resolve();
    for _ in 0..15 {
        desk.is_late(call);
        assert!(desk.asks_nobody() && desk.done.is_empty());
    }
    desk.event(call, opening(1));
    // Of no more use, and no harm.
    desk.event(call, Event::Alive);
    desk.advance(ANSWER_TIMEOUT * 2);
    desk.outcome(call, None, false);
    assert!(desk.answer(1).failed.is_empty());
    let seen = &desk.machine.sources(desk.now)[0];
    assert_eq!((seen.answers, seen.failures), (1, 0));
}

#[test]
fn a_late_answer_is_given_up_once_its_path_is_silent() {
    let mut desk = desk(1, 0);
    desk.strict_within(1, "a", ANSWER_TIMEOUT * 20);
    let (call, ..) = desk.resolve();
    desk.is_late(call);
    desk.is_late(call);
    assert!(desk.done.is_empty());
    desk.advance(ANSWER_TIMEOUT);
    assert!(matches!(desk.error(1), GetError::NoFreshnessProof { .. }));
}

#[test]
fn another_address_is_tried_for_a_late_answer_and_the_first_one_again_if_it_is_dead() {
    let mut desk = desk(2, 0);
    desk.strict_within(1, "a", ANSWER_TIMEOUT * 20);
    let (call, first, _) = desk.resolve();
    desk.is_late(call);
    let (_, second, _) = desk.resolve();
    assert_ne!(first, second);
    desk.advance(ANSWER_TIMEOUT);
    let (call, third, _) = desk.resolve();
    assert_eq!(third, first, "its path lives");
    for _ in 0..5 {
        desk.is_late(call);
        assert!(desk.asks_nobody() && desk.done.is_empty(), "all were tried");
    }
    desk.event(call, opening(1));
    desk.outcome(call, None, false);
    let failed = desk.answer(1).failed;
    assert_eq!(failed.len(), 2, "{failed:?}");
}

#[test]
fn an_address_that_was_just_unreachable_is_no_reason_to_give_up_a_late_answer() {
    let mut desk = desk(2, 0);
    desk.strict_within(1, "a", ANSWER_TIMEOUT * 20);
    let (call, ..) = desk.resolve();
    desk.event(call, failed("cannot be reached"));
    let (call, ..) = desk.resolve();
    desk.strict_within(2, "b", ANSWER_TIMEOUT * 20);
    let (other, ..) = desk.resolve();
    desk.event(call, Event::Alive);
    desk.is_late(other);
    assert!(desk.asks_nobody() && desk.done.is_empty());
}

#[test]
fn a_stream_without_an_answer_holds_up_nobody_beyond_those_who_wait_on_it() {
    let mut desk = desk(1, 0);
    desk.strict_within(1, "a", ANSWER_TIMEOUT * 2);
    let (stuck, ..) = desk.resolve();
    desk.strict_within(2, "a", ANSWER_TIMEOUT * 20);
    desk.is_late(stuck);
    assert!(desk.asks_nobody() && desk.done.is_empty());
    desk.is_late(stuck);
    assert!(matches!(desk.error(1), GetError::Deadline { .. }));
    let cancelled = |out: &Output| matches!(out, Output::Cancel(call) if *call == stuck);
    assert!(desk.sent.iter().any(cancelled));
    let (call, ..) = desk.resolve();
    desk.event(stuck, opening(1));
    desk.outcome(stuck, None, false);
    assert!(desk.done.is_empty(), "an answer from before it began");
    desk.event(call, opening(2));
    desk.outcome(call, None, false);
    assert_eq!(desk.answer(2).spec, None);
}

#[test]
fn questions_beyond_the_limit_wait_and_go_out_together() {
    let mut desk = desk(1, 0);
    let mut calls = Vec::new();
    let reads = MAX_QUESTIONS as Ticket + 20;
    for ticket in 0..reads {
        desk.strict_within(ticket, &format!("n{ticket}"), ANSWER_TIMEOUT * 2);
        if calls.len() < MAX_QUESTIONS {
            calls.push(desk.resolve().0);
        }
    }
    assert!(desk.asks_nobody(), "there is no room");
    desk.input(Input::Forget { ticket: reads - 1 });
    desk.event(calls[0], opening(1));
    desk.outcome(calls[0], None, false);
    desk.event(calls[0], Event::End);
    let (_, _, request) = desk.resolve();
    assert_eq!(request.names.len(), 19, "one has gone away");
    assert!(desk.asks_nobody());
}

#[test]
fn when_the_body_breaks_off_a_peer_gives_the_bytes() {
    let mut desk = desk(1, 2);
    desk.strict(1, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "v1")), true);
    desk.event(call, failed("broke off after 3 of 9 bytes"));
    let (call, source) = desk.fetch();
    assert!(source.is_peer());
    desk.event(call, Event::Body(spec("v1").into_bytes()));
    let answer = desk.answer(1);
    let asked = (0..2).find(|&index| peer_source(index) == source);
    assert_eq!(answer.proof.source, peer(asked.expect("one of them")));
    assert_eq!(answer.proof.mode, Mode::Asked, "the truth had come");
    assert_eq!(answer.failed[0].hop, coordinator(0));
}

#[test]
fn the_coordinator_is_asked_once_more_when_no_peer_has_the_bytes() {
    let mut desk = desk(1, 1);
    desk.strict(1, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "v1")), true);
    desk.event(call, failed("broke off"));
    let (call, source) = desk.fetch();
    assert_eq!(source, peer_source(0));
    desk.event(
        call,
        Event::Refused(Refusal::new(Code::NotFound, "no such blob")),
    );
    let (call, source) = desk.fetch();
    assert_eq!(source, Source::Coordinator(0));
    desk.event(call, failed("unreachable"));
    let error = desk.error(1);
    assert!(matches!(error, GetError::NoBytes { .. }));
    assert_eq!(error.hops().len(), 3, "{error:?}");
}

#[test]
fn wrong_bytes_are_never_an_answer_and_their_sender_is_not_asked_again() {
    let mut desk = desk(0, 2);
    let target = spec("right").hash().to_string();
    desk.read(1, &target, Freshness::Strict);
    let (call, liar) = desk.fetch();
    desk.event(call, Event::Body(Bytes::from_static(b"wrong")));
    let reported = desk
        .sent
        .iter()
        .any(|out| matches!(out, Output::Misbehaved { .. }));
    assert!(reported && desk.done.is_empty());
    let (call, honest) = desk.fetch();
    assert_ne!(liar, honest);
    desk.event(call, Event::Body(spec("right").into_bytes()));
    let answer = desk.answer(1);
    assert_eq!(
        (answer.spec, answer.proof.mode),
        (Some(spec("right")), Mode::Pinned)
    );
    assert!(answer.failed[0].reason.contains("wrong bytes"));

    desk.disk.clear();
    desk.read(2, &target, Freshness::Strict);
    assert_eq!(desk.fetch().1, honest);
}

#[test]
fn a_wrong_body_from_the_coordinator_is_replaced_by_a_peers() {
    let mut desk = desk(1, 1);
    desk.strict(1, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "right")), true);
    desk.event(call, Event::Body(Bytes::from_static(b"wrong")));
    let (call, source) = desk.fetch();
    assert_eq!(source, peer_source(0));
    desk.event(call, Event::Body(spec("right").into_bytes()));
    assert_eq!(desk.answer(1).spec, Some(spec("right")));
}

#[test]
fn a_slow_source_is_hedged_and_the_first_right_bytes_win() {
    let mut desk = desk(0, 3);
    let target = spec("v").hash().to_string();
    desk.read(1, &target, Freshness::Strict);
    let (slow, _) = desk.fetch();
    desk.advance(HEDGE_DEFAULT);
    let (quick, _) = desk.fetch();
    desk.event(quick, Event::Body(spec("v").into_bytes()));
    assert_eq!(desk.answer(1).spec, Some(spec("v")));
    let cancelled = |out: &Output| matches!(out, Output::Cancel(call) if *call == slow);
    assert!(desk.sent.iter().any(cancelled));
    // What the slow one sends now is nobody's answer.
    desk.event(slow, Event::Body(Bytes::from_static(b"late and wrong")));
    assert!(desk.done.is_empty());
}

#[test]
fn a_source_that_was_overtaken_is_named_and_asked_later() {
    let mut desk = desk(1, 1);
    let target = spec("v").hash().to_string();
    desk.read(1, &target, Freshness::Strict);
    assert_eq!(desk.fetch().1, Source::Coordinator(0));
    desk.advance(HEDGE_DEFAULT);
    let (quick, _) = desk.fetch();
    desk.event(quick, Event::Body(spec("v").into_bytes()));
    let failed = desk.answer(1).failed;
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (&failed[0].hop, &*failed[0].reason),
        (&coordinator(0), "no bytes yet")
    );

    desk.disk.clear();
    desk.read(2, &target, Freshness::Strict);
    let (first, source) = desk.fetch();
    assert_eq!(source, peer_source(0));
    desk.advance(HEDGE_DEFAULT);
    assert_eq!(desk.fetch().1, Source::Coordinator(0));
    desk.event(first, Event::Body(spec("v").into_bytes()));
    assert_eq!(desk.answer(2).failed, [], "who was asked later is not late");
}

/// Two workers that nobody has named before.
fn strangers() -> [Neighbour; 2] {
    ["s0:1", "s1:1"].map(|addr| Neighbour {
        id: NodeId::of_addr(&addr.to_uppercase()),
        addr: addr.into(),
    })
}

/// A read of `a`, which is `v`, whose coordinator names those two.
fn pointed(desk: &mut Desk) -> [Source; 2] {
    pointed_after(desk, Duration::ZERO)
}

/// The same of a coordinator that takes so long.
fn pointed_after(desk: &mut Desk, took: Duration) -> [Source; 2] {
    desk.strict(1, "a");
    let (call, _, request) = desk.resolve();
    assert_eq!(request.peering, Peering::Gives);
    desk.advance(took);
    desk.event(call, opening(1));
    let outcome = Event::Outcome {
        version: Some(version(1, "v")),
        body: false,
        ask: strangers().to_vec(),
    };
    desk.event(call, outcome);
    desk.event(call, Event::End);
    strangers().map(|stranger| Source::Peer(stranger.id))
}

fn not_here() -> Event {
    Event::Refused(Refusal::new(Code::NotFound, "no such blob"))
}

#[test]
fn who_is_pointed_at_others_asks_them_and_then_the_coordinator() {
    let mut desk = following(1, 2);
    let [first, second] = pointed(&mut desk);
    let asked = desk.fetch_with();
    assert_eq!(asked, (first, Some("s0:1".into()), false));
    desk.event(desk.asked, not_here());
    let asked = desk.fetch_with();
    assert_eq!(asked, (second, Some("s1:1".into()), false));
    desk.event(desk.asked, failed("unreachable"));
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, true));
    desk.event(desk.asked, Event::Body(spec("v").into_bytes()));
    let answer = desk.answer(1);
    assert_eq!(answer.proof.mode, Mode::Asked, "the truth had come");
    assert_eq!(answer.proof.source, coordinator(0));
    assert_eq!(answer.failed[0].hop, Hop::Peer("s0:1".into()));
}

#[test]
fn who_says_that_it_waits_itself_has_longer() {
    let mut desk = following(1, 0);
    let [first, second] = pointed(&mut desk);
    let start = desk.now;
    assert_eq!(desk.fetch().1, first);
    let waits = desk.asked;
    desk.event(waits, Event::Held);
    desk.advance(POINTED_HEDGE);
    assert!(desk.asks_nobody(), "it is there");
    desk.advance(POINTED_PATIENCE - desk.now.since(start));
    assert_eq!(desk.fetch().1, second);
    // To say so again and again changes nothing.
    for _ in 0..3 {
        desk.advance(POINTED_PATIENCE / 4);
        desk.event(waits, Event::Held);
        assert!(desk.asks_nobody());
    }
    desk.advance(HELD_PATIENCE - desk.now.since(start));
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, true));
}

#[test]
fn those_whom_a_slow_coordinator_named_have_longer() {
    let mut desk = following(1, 0);
    let took = POINTED_PATIENCE * 3 / 4;
    let [first, second] = pointed_after(&mut desk, took);
    let start = desk.now;
    assert_eq!(desk.fetch().1, first);
    desk.advance(POINTED_HEDGE);
    assert!(desk.asks_nobody(), "it waits for the same as all others");
    desk.advance(took - desk.now.since(start));
    assert_eq!(desk.fetch().1, second);
    desk.advance(POINTED_PATIENCE - desk.now.since(start));
    assert!(desk.asks_nobody(), "it would take as long once more");
    desk.advance(took * 2 - desk.now.since(start));
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, true));
}

#[test]
fn a_coordinator_that_named_others_is_asked_once_they_had_their_time() {
    let mut desk = following(1, 0);
    let [first, second] = pointed(&mut desk);
    let start = desk.now;
    assert_eq!(desk.fetch().1, first);
    desk.advance(POINTED_HEDGE);
    assert_eq!(desk.fetch().1, second);
    let late = desk.asked;
    desk.advance(POINTED_PATIENCE / 4);
    assert!(desk.asks_nobody());
    desk.advance(POINTED_PATIENCE - desk.now.since(start));
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, true));
    desk.event(late, Event::Body(spec("v").into_bytes()));
    assert_eq!(desk.answer(1).proof.source, Hop::Peer("s1:1".into()));

    // To have waited for the bytes itself is no failure, and no measure of how far it is.
    let sources = desk.machine.sources(desk.now);
    let peers = sources
        .iter()
        .filter(|source| matches!(source.hop, Hop::Peer(_)));
    for peer in peers {
        assert_eq!((peer.failures, peer.median_us), (0, None), "{peer:?}");
    }
}

#[test]
fn a_fetch_by_hash_is_pointed_once_and_then_gets_the_bytes() {
    let mut desk = following(1, 1);
    let target = spec("v").hash().to_string();
    desk.read(1, &target, Freshness::Strict);
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, false));
    desk.event(desk.asked, Event::Pointed(strangers().to_vec()));
    for stranger in strangers() {
        assert_eq!(desk.fetch().1, Source::Peer(stranger.id));
        desk.event(desk.asked, not_here());
    }
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, true));
    desk.event(desk.asked, Event::Pointed(strangers().to_vec()));
    assert_eq!(desk.fetch().1, peer_source(0));
    desk.event(desk.asked, not_here());
    let error = desk.error(1);
    let reasons: Vec<_> = error.hops().iter().map(|hop| &*hop.reason).collect();
    assert_eq!(reasons[2], "the answer is out of order", "{reasons:?}");

    // Names of nobody are no answer either.
    desk.read(2, &target, Freshness::Strict);
    assert_eq!(desk.fetch_with().0, Source::Coordinator(0));
    desk.event(desk.asked, Event::Pointed(Vec::new()));
    assert_eq!(desk.fetch_with(), (Source::Coordinator(0), None, true));
}

#[test]
fn a_peer_that_points_elsewhere_is_passed_over() {
    let mut desk = following(0, 1);
    let target = spec("v").hash().to_string();
    desk.read(1, &target, Freshness::Strict);
    desk.fetch();
    desk.event(desk.asked, Event::Pointed(strangers().to_vec()));
    assert!(matches!(desk.error(1), GetError::NoBytes { .. }));
}

/// What the workers got that asked this one, in order.
fn given(desk: &mut Desk) -> Vec<(Ticket, Result<Spec, Code>)> {
    let mut given = Vec::new();
    desk.sent.retain(|out| match out {
        Output::Give { ticket, result } => {
            given.push((*ticket, result.clone().map_err(|refusal| refusal.code)));
            false
        }
        _ => true,
    });
    given
}

#[test]
fn who_asks_for_what_is_on_its_way_gets_it_when_it_has_come() {
    let mut desk = desk(1, 1);
    let (wanted, other) = (spec("v"), spec("other"));
    let hold = |ticket, hash| Input::Hold { ticket, hash };
    desk.input(hold(1, wanted.hash()));
    assert_eq!(
        given(&mut desk),
        [(1, Err(Code::NotFound))],
        "nothing is asked"
    );

    desk.read(9, &wanted.hash().to_string(), Freshness::Strict);
    let (call, _) = desk.fetch();
    for ticket in 1..=3 {
        desk.input(hold(ticket, wanted.hash()));
    }
    desk.input(hold(4, other.hash()));
    assert_eq!(given(&mut desk), [(4, Err(Code::NotFound))]);
    desk.input(Input::LetGo { ticket: 2 });
    desk.event(call, Event::Body(Bytes::from_static(b"wrong")));
    let (call, _) = desk.fetch();
    assert_eq!(given(&mut desk), [], "of what is not verified nobody hears");
    desk.event(call, Event::Body(wanted.clone().into_bytes()));
    assert_eq!(given(&mut desk), [(1, Ok(wanted.clone())), (3, Ok(wanted))]);
    assert_eq!(desk.machine.next_wake(), None);
}

#[test]
fn while_a_name_is_asked_for_its_bytes_may_be_on_their_way() {
    let mut desk = following(1, 0);
    let hash = spec("v").hash();
    desk.strict(1, "a");
    desk.input(Input::Hold { ticket: 5, hash });
    desk.input(Input::Hold {
        ticket: 6,
        hash: spec("other").hash(),
    });
    assert_eq!(given(&mut desk), []);
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "v")), true);
    assert_eq!(
        given(&mut desk),
        [(6, Err(Code::NotFound))],
        "it is another"
    );
    desk.event(call, Event::Body(spec("v").into_bytes()));
    assert_eq!(given(&mut desk), [(5, Ok(spec("v")))]);
}

#[test]
fn questions_are_held_for_a_moment_only_and_not_too_many() {
    let mut desk = desk(1, 0);
    let hash = spec("v").hash();
    desk.read(1, &hash.to_string(), Freshness::Strict);
    let call = desk.fetch().0;
    let most = MAX_GUESTS_PER_BODY as Ticket;
    for ticket in 0..=most {
        desk.input(Input::Hold { ticket, hash });
    }
    assert_eq!(given(&mut desk), [(most, Err(Code::Busy))]);
    desk.advance(MAX_HOLD);
    let late = given(&mut desk);
    assert_eq!(late.len(), MAX_GUESTS_PER_BODY);
    assert!(late.iter().all(|(_, result)| *result == Err(Code::Busy)));
    desk.input(Input::Hold { ticket: 7, hash });
    desk.event(call, failed("gone"));
    assert_eq!(given(&mut desk), [(7, Err(Code::NotFound))]);
}

#[test]
fn readers_of_one_hash_share_one_fetch() {
    let mut desk = desk(0, 1);
    let target = spec("v").hash().to_string();
    for ticket in 1..=3 {
        desk.read(ticket, &target, Freshness::Strict);
    }
    let (call, _) = desk.fetch();
    assert!(desk.asks_nobody());
    desk.event(call, Event::Body(spec("v").into_bytes()));
    for ticket in 1..=3 {
        assert_eq!(desk.answer(ticket).spec, Some(spec("v")));
    }
}

/// Reader 1 has asked both sources in vain when reader 2 joined in between.
fn joined_late(desk: &mut Desk) {
    let target = spec("v").hash().to_string();
    desk.read(1, &target, Freshness::Strict);
    let (call, source) = desk.fetch();
    assert_eq!(source, Source::Coordinator(0));
    desk.event(call, failed("it is down"));
    let (call, source) = desk.fetch();
    assert_eq!(source, peer_source(0));
    desk.read(2, &target, Freshness::Strict);
    assert!(desk.asks_nobody(), "one fetch per hash");
    desk.event(call, not_here());
    let error = desk.error(1);
    assert_eq!(error.hops().len(), 2, "who was first is not held up");
}

#[test]
fn who_joins_a_fetch_whose_sources_have_failed_already_has_them_asked_again() {
    let mut desk = desk(1, 1);
    joined_late(&mut desk);
    let (call, source) = desk.fetch();
    assert_eq!(
        source,
        peer_source(0),
        "the coordinator failed a moment ago"
    );
    desk.event(call, not_here());
    let (call, source) = desk.fetch();
    assert_eq!(source, Source::Coordinator(0));
    desk.event(call, Event::Body(spec("v").into_bytes()));
    let answer = desk.answer(2);
    assert_eq!(answer.spec, Some(spec("v")));
    assert_eq!(
        answer.failed.len(),
        1,
        "what failed before it joined is not its own"
    );
}

#[test]
fn who_joins_a_fetch_late_has_its_sources_asked_once_more_and_no_more() {
    let mut desk = desk(1, 1);
    joined_late(&mut desk);
    let (call, _) = desk.fetch();
    desk.event(call, not_here());
    let (call, _) = desk.fetch();
    desk.event(call, failed("it is down"));
    assert!(matches!(desk.error(2), GetError::NoBytes { .. }));
    assert!(desk.asks_nobody());
}

#[test]
fn names_that_are_read_together_go_out_as_one_request() {
    let mut desk = desk(1, 0);
    let reads = ["a", "b", "c"]
        .iter()
        .zip(1..)
        .map(|(name, ticket)| (ticket, Query::strict(name.parse().expect("a name"))))
        .collect();
    desk.input(Input::Get { reads });
    let (call, _, request) = desk.resolve();
    assert_eq!(request.names.len(), 3);
    assert!(desk.asks_nobody());
    desk.event(call, opening(3));
    desk.outcome(call, Some(version(1, "a")), true);
    desk.event(call, Event::Body(spec("a").into_bytes()));
    desk.outcome(call, None, false);
    // The rest is asked anew when the answer ends early.
    desk.event(call, Event::End);
    assert_eq!(desk.answer(1).spec, Some(spec("a")));
    assert_eq!(desk.answer(2).spec, None);
    assert!(matches!(desk.error(3), GetError::NoFreshnessProof { .. }));
}

#[test]
fn names_that_are_held_go_out_as_one_request_with_those_that_are_not() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 1, "a");
    desk.publish_and_read(2, "b", 2, "b");
    let reads = ["a", "cold", "b"]
        .iter()
        .zip(3..)
        .map(|(name, ticket)| (ticket, Query::strict(name.parse().expect("a name"))))
        .collect();
    desk.input(Input::Get { reads });
    let (call, _, request) = desk.resolve();
    let asked: Vec<_> = request.names.iter().map(|name| name.if_hash).collect();
    assert_eq!(request.names.len(), 3);
    assert_eq!(
        asked.iter().flatten().count(),
        2,
        "what is here is not sent"
    );
    assert!(desk.asks_nobody());
    desk.event(call, opening(7));
    for name in &request.names {
        let held = match name.name.as_str() {
            "a" => Some(version(1, "a")),
            "b" => Some(version(2, "b")),
            _ => None,
        };
        desk.outcome(call, held, false);
    }
    desk.event(call, Event::End);
    for ticket in 3..6 {
        let snapshot = desk.answer(ticket).proof.snapshot.expect("a snapshot");
        assert_eq!(snapshot.rev, Revision::new(7));
    }
}

#[test]
fn a_change_from_after_the_revision_that_is_shown_is_refused() {
    for at in [None, Some(3)] {
        let mut desk = desk(1, 0);
        match at {
            None => desk.strict(1, "a"),
            Some(at) => desk.at(1, "a", at),
        }
        let (call, ..) = desk.resolve();
        desk.event(call, opening(3));
        desk.outcome(call, Some(version(4, "later")), true);
        let reported = |out: &Output| matches!(out, Output::Misbehaved { .. });
        assert!(desk.sent.iter().any(reported));
        let reason = match desk.error(1) {
            GetError::NoFreshnessProof { hops, .. } | GetError::NotHeld { hops, .. } => {
                hops[0].reason.clone()
            }
            other => panic!("{other}"),
        };
        assert!(reason.contains("showed revision"), "{reason}");
        assert!(desk.disk.is_empty(), "nothing of it is kept");
    }
}

#[test]
fn a_revision_that_was_seen_is_answered_without_asking() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 3, "v3");
    desk.publish_and_read(2, "a", 6, "v6");
    // v3 was seen at revision 3 only; at 4 it may have been something else.
    desk.at(3, "a", 3);
    let answer = desk.answer(3);
    assert_eq!(
        (answer.spec, answer.proof.mode),
        (Some(spec("v3")), Mode::At)
    );
    assert_eq!(
        answer.proof.snapshot.expect("a snapshot").rev,
        Revision::new(3)
    );
    assert!(desk.asks_nobody());
    desk.at(4, "a", 4);
    let (call, _, request) = desk.resolve();
    assert_eq!(request.at, Some(Revision::new(4)));
    desk.event(call, opening(4));
    desk.outcome(call, Some(version(3, "v3")), false);
    assert_eq!(desk.answer(4).spec, Some(spec("v3")));
    desk.at(5, "a", 4);
    assert!(desk.asks_nobody(), "now it is known");
}

fn token(epoch: u64, rev: u64) -> RunToken {
    RunToken {
        catalog: CATALOG,
        epoch: Epoch::new(epoch),
        rev: Revision::new(rev),
    }
}

#[test]
fn a_token_of_this_history_reads_its_revision_like_a_number() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 3, "v3");
    desk.read(2, "a", Freshness::Run(token(1, 3)));
    assert_eq!(desk.answer(2).proof.mode, Mode::At);
    assert!(desk.asks_nobody());
    desk.read(3, "a", Freshness::Run(token(1, 4)));
    let (call, _, request) = desk.resolve();
    assert_eq!(request.at, Some(Revision::new(4)));
    desk.event(call, opening(4));
    desk.outcome(call, Some(version(3, "v3")), false);
    assert_eq!(desk.answer(3).spec, Some(spec("v3")));
}

#[test]
fn a_token_of_another_catalog_or_of_an_epoch_that_is_over_is_refused_at_once() {
    let mut desk = desk(1, 0);
    desk.strict(1, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, opening_of(2, 3));
    desk.outcome(call, Some(version(3, "v3")), true);
    desk.event(call, Event::Body(spec("v3").into_bytes()));
    desk.event(call, Event::End);
    // Each names a number that is held here, of another history.
    let foreign = RunToken {
        catalog: CatalogId::from_bytes([9; 16]),
        ..token(2, 3)
    };
    desk.read(2, "a", Freshness::Run(foreign));
    assert!(matches!(desk.error(2), GetError::OtherCatalog { .. }));
    desk.read(3, "a", Freshness::Run(token(1, 3)));
    let error = desk.error(3);
    assert_eq!(error.code(), "compacted");
    assert!(error.to_string().contains("of epoch 1"), "{error}");
    assert!(desk.asks_nobody());
    desk.read(4, "a", Freshness::AtLeast(foreign));
    assert!(matches!(desk.error(4), GetError::OtherCatalog { .. }));
    assert!(desk.asks_nobody());
}

#[test]
fn a_token_of_an_epoch_to_come_is_asked_for_and_compared_with_the_answer() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 3, "v3");
    for (ticket, epoch) in [(2, 1), (3, 2)] {
        desk.read(ticket, "a", Freshness::Run(token(2, 3)));
        let (call, _, request) = desk.resolve();
        assert_eq!(request.at, Some(Revision::new(3)), "what is held is not it");
        desk.event(call, opening_of(epoch, 3));
        desk.outcome(call, Some(version(3, "new")), true);
        desk.event(call, Event::Body(spec("new").into_bytes()));
        desk.event(call, Event::End);
    }
    assert_eq!(desk.error(2).code(), "future-revision");
    assert_eq!(desk.answer(3).spec, Some(spec("new")));
}

#[test]
fn readers_of_one_number_share_a_request_and_each_token_is_compared() {
    let mut desk = desk(1, 0);
    desk.at(1, "a", 3);
    desk.read(2, "a", Freshness::Run(token(1, 3)));
    desk.read(3, "a", Freshness::Run(token(2, 3)));
    let (call, ..) = desk.resolve();
    assert!(desk.asks_nobody());
    desk.event(call, opening_of(2, 3));
    desk.outcome(call, Some(version(3, "v3")), true);
    desk.event(call, Event::Body(spec("v3").into_bytes()));
    assert_eq!(desk.answer(1).spec, Some(spec("v3")));
    assert_eq!(desk.error(2).code(), "compacted");
    assert_eq!(desk.answer(3).spec, Some(spec("v3")));
}

#[test]
fn a_compacted_revision_is_an_error_and_never_the_latest() {
    let mut desk = desk(2, 0);
    desk.at(1, "a", 2);
    let (call, ..) = desk.resolve();
    let refusal = Refusal::new(Code::Compacted, "compacted").at(Revision::new(9));
    desk.event(call, Event::Refused(refusal));
    let (at, oldest) = (Revision::new(2), Revision::new(9));
    assert_eq!(desk.error(1), GetError::Compacted { at, oldest });
    assert!(desk.asks_nobody(), "another address would say the same");
}

#[test]
fn another_catalog_is_refused() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 1, "v1");
    desk.strict(2, "a");
    let (call, ..) = desk.resolve();
    let got = CatalogId::from_bytes([2; 16]);
    desk.event(
        call,
        Event::Opening(Resolved {
            catalog: got,
            epoch: Epoch::new(9),
            rev: Revision::new(9),
        }),
    );
    assert!(matches!(desk.error(2), GetError::WrongCatalog { .. }));
    assert_eq!(desk.machine.mark().expect("a mark").catalog, CATALOG);
}

#[test]
fn a_coordinator_that_went_back_is_not_believed_until_a_new_epoch() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 5, "v5");
    for ticket in [2, 3] {
        desk.strict(ticket, "a");
        let (call, ..) = desk.resolve();
        // The second time it has caught up: the same number is not the same history.
        desk.event(call, opening(if ticket == 2 { 4 } else { 6 }));
        assert!(matches!(desk.error(ticket), GetError::Quarantined { .. }));
    }
    desk.strict(4, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, opening_of(2, 4));
    desk.outcome(call, Some(version(4, "v4")), true);
    desk.event(call, Event::Body(spec("v4").into_bytes()));
    assert_eq!(desk.answer(4).spec, Some(spec("v4")));
    assert!(
        desk.sent
            .iter()
            .any(|out| matches!(out, Output::ForgetHeld))
    );
    desk.at(5, "a", 5);
    assert!(
        !desk.asks_nobody(),
        "revision 5 of the lost epoch is forgotten"
    );
}

#[test]
fn an_answer_to_a_question_from_before_is_no_rollback() {
    let mut desk = desk(1, 0);
    desk.strict(1, "a");
    let (early, ..) = desk.resolve();
    desk.publish_and_read(2, "b", 5, "v5");
    desk.event(early, opening(4));
    desk.outcome(early, None, false);
    assert_eq!(desk.answer(1).spec, None);
}

#[test]
fn the_deadline_names_what_was_still_awaited() {
    let mut desk = desk(1, 1);
    desk.strict(1, "a");
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "v1")), true);
    desk.advance(HEDGE_DEFAULT);
    desk.advance(Duration::from_secs(10));
    let error = desk.error(1);
    assert!(matches!(error, GetError::Deadline { .. }), "{error:?}");
    let hops: Vec<_> = error.hops().iter().map(ToString::to_string).collect();
    assert_eq!(
        hops,
        ["coordinator c0: no bytes yet", "peer p0: no bytes yet"]
    );
    assert_eq!(desk.machine.reads(), 0);
}

#[test]
fn damaged_bytes_on_disk_are_named_and_fetched_again() {
    let mut desk = desk(1, 0);
    desk.publish_and_read(1, "a", 1, "v1");
    desk.disk.insert(spec("v1").hash(), Local::Damaged);
    desk.strict(2, "a");
    let (call, _, request) = desk.resolve();
    assert_eq!(request.names[0].if_hash, None, "it asks for the body");
    desk.event(call, opening(1));
    desk.outcome(call, Some(version(1, "v1")), true);
    desk.event(call, Event::Body(spec("v1").into_bytes()));
    let answer = desk.answer(2);
    assert_eq!(answer.failed[0].hop, Hop::Disk);
    assert_eq!(
        desk.disk.get(&spec("v1").hash()),
        Some(&Local::Found(spec("v1")))
    );
}

#[test]
fn a_broken_disk_is_reported_as_itself() {
    let mut desk = desk(1, 1);
    desk.publish_and_read(1, "a", 1, "v1");
    desk.disk
        .insert(spec("v1").hash(), Local::Failed("EIO".into()));
    desk.strict(2, "a");
    let reason = "EIO".to_owned();
    assert_eq!(
        desk.error(2),
        GetError::Disk {
            reason: reason.clone()
        }
    );
    desk.read(3, &spec("v1").hash().to_string(), Freshness::Strict);
    assert_eq!(desk.error(3), GetError::Disk { reason });
    assert!(desk.asks_nobody());
}

#[test]
fn without_a_coordinator_only_what_can_be_proven_is_served() {
    let mut desk = desk(0, 0);
    desk.disk.insert(spec("v").hash(), Local::Found(spec("v")));
    desk.read(1, &spec("v").hash().to_string(), Freshness::Strict);
    assert_eq!(desk.answer(1).proof.source, Hop::Disk);
    desk.strict(2, "a");
    assert!(matches!(desk.error(2), GetError::NoFreshnessProof { .. }));
}

#[test]
fn a_reader_that_leaves_gets_no_answer_and_leaves_nothing_behind() {
    let mut desk = desk(1, 0);
    desk.strict(1, "a");
    desk.input(Input::Forget { ticket: 1 });
    let (call, ..) = desk.resolve();
    desk.event(call, opening(1));
    desk.outcome(call, None, false);
    desk.event(call, Event::End);
    assert!(desk.done.is_empty());
    assert_eq!(desk.machine.reads(), 0);
    assert_eq!(desk.machine.next_wake(), None);
}

mod any_order {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Each revision has a body of its own, so that an old one shows.
    fn body_of(rev: u64) -> Spec {
        spec(&format!("of revision {rev}"))
    }

    fn outcome(rev: Option<u64>, body: bool) -> Event {
        let version = rev.map(|rev| Version {
            rev: Revision::new(rev),
            content: Content::Present {
                hash: body_of(rev).hash(),
                len: body_of(rev).len(),
            },
        });
        let ask = Vec::new();
        Event::Outcome { version, body, ask }
    }

    /// What a hostile or confused driver could hand in for any call at any time.
    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1_u64..4, 0_u64..6).prop_map(|(epoch, rev)| opening_of(epoch, rev)),
            (proptest::option::of(1_u64..6), any::<bool>())
                .prop_map(|(rev, body)| outcome(rev, body)),
            (1_u64..6).prop_map(|rev| Event::Body(body_of(rev).into_bytes())),
            Just(Event::Body(Bytes::from_static(b"wrong"))),
            Just(Event::Refused(Refusal::new(Code::NotFound, "no"))),
            Just(failed("gone")),
            Just(Event::End),
            Just(Event::Lost {
                reason: "restarted".into()
            }),
        ]
    }

    /// One of them, or all that a coordinator at a revision would say.
    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop_oneof![
            event().prop_map(|event| vec![event]),
            (1_u64..6).prop_map(|rev| {
                let body = Event::Body(body_of(rev).into_bytes());
                vec![opening(rev), outcome(Some(rev), true), body, Event::End]
            }),
        ]
    }

    #[derive(Debug, Clone, Copy)]
    enum Asked {
        Now,
        At,
        Hash(u64),
    }

    /// What happened in which step.
    #[derive(Default)]
    struct Story {
        asked: BTreeMap<Ticket, (usize, Asked)>,
        /// Questions to a coordinator.
        sent: BTreeMap<CallId, usize>,
        /// What came about names: step, call, revision of the record.
        heard: Vec<(usize, CallId, Option<Revision>)>,
        ended: BTreeMap<Ticket, usize>,
    }

    impl Story {
        fn note(&mut self, step: usize, desk: &Desk) {
            for out in &desk.sent {
                if let Output::Resolve { call, .. } = out {
                    self.sent.entry(*call).or_insert(step);
                }
            }
            for ticket in desk.done.keys() {
                self.ended.entry(*ticket).or_insert(step);
            }
        }

        /// A call that was made, counted from the newest.
        fn call(&self, back: usize) -> CallId {
            let made = self.sent.keys().rev().nth(back).copied();
            made.unwrap_or(CallId(back as u64))
        }

        /// Whether the record was told in answer to a question that was sent in `since` or later.
        fn told(&self, rev: Option<Revision>, since: usize, until: usize) -> bool {
            self.heard.iter().any(|(step, call, told)| {
                let sent = self.sent.get(call);
                *told == rev && *step <= until && sent.is_some_and(|sent| *sent >= since)
            })
        }

        fn check(&self, ticket: Ticket, answer: &Answer) -> Result<(), TestCaseError> {
            let (since, asked) = self.asked[&ticket];
            let rev = answer.proof.record_rev;
            let right = match asked {
                Asked::Hash(rev) => Some(body_of(rev)),
                Asked::Now | Asked::At => rev.map(|rev| body_of(rev.get())),
            };
            prop_assert_eq!(answer.spec.as_ref(), right.as_ref());
            // What was true at a revision stays true, so any answer will do for it.
            let since = match asked {
                Asked::Now => since,
                Asked::At => 0,
                Asked::Hash(_) => return Ok(()),
            };
            let told = self.told(rev, since, self.ended[&ticket]);
            prop_assert!(told, "{ticket} shows {rev:?}, which is stale or made up");
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn every_read_ends_once_by_its_deadline_with_fresh_and_right_bytes_or_an_error(
            steps in proptest::collection::vec((0_usize..4, events(), 0_u64..400), 0..60),
        ) {
            let mut desk = desk(2, 2);
            let mut story = Story::default();
            for (step, (choice, events, millis)) in steps.into_iter().enumerate() {
                let ticket = step as Ticket;
                let rev = millis % 5 + 1;
                let asked = match step % 4 {
                    0 | 1 => Some(Asked::Now),
                    2 => Some(Asked::At),
                    _ if choice == 0 => Some(Asked::Hash(rev)),
                    _ => None,
                };
                match asked {
                    Some(Asked::Now) => desk.strict(ticket, "a"),
                    Some(Asked::At) => desk.at(ticket, "a", rev),
                    Some(Asked::Hash(rev)) => {
                        let hash = body_of(rev).hash().to_string();
                        desk.read(ticket, &hash, Freshness::Strict);
                    }
                    None => desk.disk.clear(),
                }
                if let Some(asked) = asked {
                    story.asked.insert(ticket, (step, asked));
                }
                story.note(step, &desk);
                let call = story.call(choice);
                for event in events {
                    if let Event::Outcome { version, .. } = &event {
                        let rev = version.as_ref().map(|version| version.rev);
                        story.heard.push((step, call, rev));
                    }
                    desk.event(call, event);
                }
                desk.advance(Duration::from_millis(millis));
                story.note(step, &desk);
            }
            desk.advance(Duration::from_secs(10));
            story.note(usize::MAX, &desk);
            prop_assert_eq!(desk.machine.reads(), 0);
            // Twice is asserted where it would happen.
            let ended: BTreeSet<_> = desk.done.keys().collect();
            prop_assert_eq!(ended, story.asked.keys().collect::<BTreeSet<_>>());
            for (ticket, result) in &desk.done {
                if let Ok(answer) = result {
                    story.check(*ticket, answer)?;
                }
            }
        }
    }
}

mod epoch;
