//! When a worker goes over another one, and when it comes back. The coordinator and the peers are
//! played here, each answer ten milliseconds after its question.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::answer::{Answer, Freshness, GetError, Hop, Query, Target};
use crate::catalog::{
    Catalog, CatalogId, Epoch, Head, HeadHash, HeadSigner, HeadVerifier, Revision, SignedHead,
};
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::MAX_RELAYS_PER_ROUND;
use crate::proto::wire::{CatalogDiff, Delta, Grant, Marks, Renew, Resolved};
use crate::proto::worker::{Config, Input, Look, Restored, Ticket};
use crate::spec::SpecName;

const CATALOG: CatalogId = CatalogId::from_bytes([1; 16]);
const EPOCH: Epoch = Epoch::new(1);
const LEASE: Duration = Duration::from_secs(6);
const ROUND_TRIP: Duration = Duration::from_millis(10);

/// Every signature is good.
struct Anyone;

impl HeadSigner for Anyone {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

impl HeadVerifier for Anyone {
    fn verify(&self, _: &[u8], _: &[u8; 64]) -> bool {
        true
    }
}

fn name() -> SpecName {
    "n".parse().expect("a name")
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a peer does when it is asked to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Carries,
    Refuses,
    Silent,
}

struct Desk {
    machine: Worker,
    now: Time,
    /// Whether packets pass to and from each direct address.
    direct: Vec<bool>,
    peers: Vec<Peer>,
    /// Whether the coordinator answers over whoever carries.
    reaches: bool,
    coming: BTreeMap<(Time, u64), (CallId, Event)>,
    serial: u64,
    watched: Option<usize>,
    /// The call of the relay that is up.
    relay: Option<CallId>,
    /// Who was asked to carry, and when.
    asked: Vec<(Time, usize)>,
    cancelled: Vec<CallId>,
    renewals: Vec<(CallId, Renew)>,
    done: BTreeMap<Ticket, Result<Answer, GetError>>,
}

impl Desk {
    fn new(directs: usize, peers: &[Peer]) -> Self {
        Self::with(directs, peers, |_| {})
    }

    fn with(directs: usize, peers: &[Peer], change: impl FnOnce(&mut Config)) -> Self {
        let addrs = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}{n}")).collect();
        let mut config = Config {
            coordinators: addrs("c", directs),
            peers: addrs("p", peers.len()),
            lease: true,
            relay: true,
            ..Config::default()
        };
        change(&mut config);
        let mut desk = Self {
            machine: Worker::new(&config, Arc::new(Anyone), Restored::default()),
            now: Time::from_micros(1_000_000),
            direct: vec![true; directs],
            peers: peers.to_vec(),
            reaches: true,
            coming: BTreeMap::new(),
            serial: 0,
            watched: None,
            relay: None,
            asked: Vec::new(),
            cancelled: Vec::new(),
            renewals: Vec::new(),
            done: BTreeMap::new(),
        };
        desk.input(Input::Wake);
        desk
    }

    /// With a lease, a moment after a renewal.
    fn leased(directs: usize, peers: &[Peer]) -> Self {
        let mut desk = Self::new(directs, peers);
        desk.goes_on(ms(100), |_| {});
        assert!(desk.serves(), "it has a lease");
        desk
    }

    fn input(&mut self, input: Input) {
        for output in self.machine.handle(input, self.now) {
            self.carry_out(output);
        }
    }

    fn answers(&self, coordinator: usize) -> bool {
        match self.direct.get(coordinator) {
            Some(direct) => *direct,
            None => self.relay.is_some() && self.reaches,
        }
    }

    fn later(&mut self, call: CallId, event: Event) {
        self.serial += 1;
        let at = self.now + ROUND_TRIP;
        self.coming.insert((at, self.serial), (call, event));
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Watch {
                call, coordinator, ..
            } if self.answers(coordinator) => {
                self.watched = Some(coordinator);
                self.later(call, Event::Watching);
            }
            Output::Renew {
                call,
                coordinator,
                request,
            } => {
                self.renewals.push((call, request.clone()));
                if self.answers(coordinator) {
                    let watching = self.watched.is_some_and(|watched| self.answers(watched));
                    self.later(call, Event::Granted(grant(&request, watching)));
                }
            }
            Output::GetCatalog { call, .. } => {
                let head = (&head()).into();
                let (buckets, records) = (Vec::new(), Vec::new());
                let diff = CatalogDiff {
                    head,
                    buckets,
                    records,
                };
                self.later(call, Event::Catalog(diff));
            }
            Output::Resolve {
                call, coordinator, ..
            } if self.answers(coordinator) => {
                let opening = Resolved {
                    catalog: CATALOG,
                    epoch: EPOCH,
                    rev: Revision::ZERO,
                };
                self.later(call, Event::Opening(opening));
                let (version, body, ask) = (None, false, Vec::new());
                self.later(call, Event::Outcome { version, body, ask });
            }
            Output::OpenRelay { call, peer } => self.asked_to_carry(call, peer),
            Output::Cancel(call) => {
                self.cancelled.push(call);
                self.coming.retain(|_, (of, _)| *of != call);
                self.relay.take_if(|relay| *relay == call);
            }
            Output::Done { ticket, result } => {
                self.done.insert(ticket, result);
            }
            _ => {}
        }
    }

    fn asked_to_carry(&mut self, call: CallId, peer: NodeId) {
        let addr = |index: &usize| NodeId::of_addr(&format!("p{index}"));
        let index = (0..self.peers.len()).find(|index| addr(index) == peer);
        let index = index.expect("a peer");
        self.asked.push((self.now, index));
        match self.peers[index] {
            Peer::Carries => {
                self.relay = Some(call);
                let (addr, via) = ("c:1".into(), format!("edge-{index}"));
                self.later(call, Event::RelayUp { addr, via });
            }
            Peer::Refuses => {
                let refusal = Refusal::new(Code::NoCatalog, "no path of its own");
                self.later(call, Event::Refused(refusal));
            }
            Peer::Silent => {}
        }
    }

    /// Lets time pass, and looks every ten milliseconds and after each step.
    fn goes_on(&mut self, time: Duration, mut look: impl FnMut(&Self)) {
        let end = self.now + time;
        while self.now < end {
            let tick = (self.now + ms(10)).min(end);
            let coming = self.coming.first_key_value().map(|((at, _), _)| *at);
            let wake = self.machine.next_wake();
            let next = [coming, wake].into_iter().flatten().min();
            let next = next.map_or(tick, |next| next.max(self.now).min(tick));
            self.now = next;
            match self.coming.first_entry() {
                Some(first) if first.key().0 <= self.now => {
                    let (call, event) = first.remove();
                    self.input(Input::Event { call, event });
                }
                _ => self.input(Input::Wake),
            }
            look(self);
        }
    }

    fn serves(&self) -> bool {
        let sight = self.machine.sight();
        matches!(sight.strict(&name(), self.now), Look::Serve(..))
    }

    fn read(&mut self, ticket: Ticket, freshness: Freshness) {
        let query = Query {
            freshness,
            ..Query::strict(Target::Name(name()))
        };
        let reads = vec![(ticket, query)];
        self.input(Input::Get { reads });
    }

    fn source(&self, ticket: Ticket) -> Hop {
        match self.done.get(&ticket) {
            Some(Ok(answer)) => answer.proof.source.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Whoever carries stops to.
    fn drop_relay(&mut self) {
        let call = self.relay.take().expect("a relay");
        let reason = "the worker is gone".into();
        self.input(Input::Event {
            call,
            event: Event::Lost { reason },
        });
    }
}

fn grant(renew: &Renew, watching: bool) -> Grant {
    let lease = if watching { LEASE } else { Duration::ZERO };
    Grant {
        sid: renew.sid,
        nonce: renew.nonce,
        catalog: CATALOG,
        epoch: EPOCH,
        rev: Revision::ZERO,
        lease_us: lease.as_micros() as u64,
        watching,
        marks: Marks::default(),
        delta: Delta {
            catalog: CATALOG,
            epoch: EPOCH,
            rev: Revision::ZERO,
            steps: Vec::new(),
        },
    }
}

fn head() -> SignedHead {
    let head = Head {
        catalog: CATALOG,
        epoch: EPOCH,
        rev: Revision::ZERO,
        root: Catalog::empty().root(),
        prev: HeadHash::NONE,
    };
    head.sign(&Anyone)
}

fn relayed(via: &str) -> Hop {
    Hop::Relayed {
        addr: "c:1".into(),
        via: via.into(),
    }
}

#[test]
fn readers_under_a_lease_see_no_gap_when_the_direct_path_goes_and_comes_back() {
    // Wherever between two renewals it is cut.
    for cut_after in [0, 300, 900, 1_500, 1_950, 2_005] {
        let mut desk = Desk::leased(1, &[Peer::Carries]);
        desk.goes_on(ms(cut_after), |_| {});
        desk.direct[0] = false;
        let serves = |desk: &Desk| assert!(desk.serves(), "cut after {cut_after} ms");
        desk.goes_on(ms(40_000), serves);
        assert_eq!(desk.machine.via(), Some("edge-0"));
        assert_eq!(desk.watched, Some(1));
        assert_eq!(desk.asked.len(), 1, "it is asked once");

        desk.direct[0] = true;
        desk.goes_on(ms(5_000), serves);
        assert_eq!(desk.machine.via(), None);
        assert_eq!(desk.watched, Some(0));
        assert_eq!(desk.relay, None, "nobody carries for nothing");
        desk.goes_on(ms(20_000), serves);
        assert_eq!(desk.asked.len(), 1);
    }
}

#[test]
fn a_worker_that_stops_carrying_is_replaced_by_the_next_without_a_gap() {
    let mut desk = Desk::leased(2, &[Peer::Carries, Peer::Carries]);
    desk.direct = vec![false, false];
    let serves = |desk: &Desk| assert!(desk.serves());
    desk.goes_on(ms(10_000), serves);
    let first = desk.machine.via().map(str::to_owned);
    desk.drop_relay();
    desk.goes_on(ms(10_000), serves);
    let second = desk.machine.via().map(str::to_owned);
    assert!(second.is_some() && first != second, "{first:?} {second:?}");

    // It carries, and nothing comes back over it any more.
    desk.reaches = false;
    desk.goes_on(ms(4_000), |_| {});
    desk.reaches = true;
    desk.goes_on(ms(8_000), |_| {});
    assert!(desk.serves());
    assert!(desk.asked.len() > 2, "another one was asked");
}

#[test]
fn a_few_are_asked_in_turn_and_then_there_is_a_pause() {
    let mut desk = Desk::leased(1, &[Peer::Refuses; 9]);
    desk.direct[0] = false;
    desk.goes_on(ms(20_000), |_| {});
    assert!(desk.machine.via().is_none());
    let rounds: Vec<_> = desk.asked.chunks(MAX_RELAYS_PER_ROUND).collect();
    assert!(rounds.len() > 2, "they are asked again: {:?}", desk.asked);
    for pair in rounds.windows(2) {
        let (before, after) = (pair[0].last().expect("some").0, pair[1][0].0);
        assert!(after.since(before) >= RELAY_PAUSE, "{:?}", desk.asked);
    }
    assert!(desk.machine.direct(desk.now).is_none());

    // Whoever is silent is passed over, too.
    let mut desk = Desk::leased(1, &[Peer::Silent, Peer::Refuses, Peer::Carries]);
    desk.direct[0] = false;
    desk.goes_on(ms(20_000), |desk| assert!(desk.serves()));
    assert_eq!(desk.machine.via(), Some("edge-2"));
}

#[test]
fn a_worker_carries_for_others_only_while_it_is_answered_directly_itself() {
    let mut desk = Desk::new(1, &[Peer::Silent, Peer::Carries]);
    assert_eq!(desk.machine.direct(desk.now), None, "nothing was answered");
    desk.goes_on(ms(100), |_| {});
    assert_eq!(desk.machine.direct(desk.now), Some(0));
    desk.direct[0] = false;
    desk.goes_on(ms(2_600), |_| {});
    let asking = desk.machine.relay.peer().is_some() && desk.machine.via().is_none();
    assert!(asking, "the first one says nothing");
    assert_eq!(desk.machine.direct(desk.now), None, "in doubt");
    desk.goes_on(ms(3_000), |_| {});
    assert_eq!(desk.machine.via(), Some("edge-1"));
    assert_eq!(desk.machine.direct(desk.now), None, "it is carried itself");
    desk.direct[0] = true;
    desk.goes_on(ms(3_000), |_| {});
    assert_eq!(desk.machine.direct(desk.now), Some(0));
}

#[test]
fn reads_that_ask_go_over_another_worker_and_say_so() {
    let mut desk = Desk::leased(1, &[Peer::Carries]);
    desk.direct[0] = false;
    // Sent directly, and stuck there until the renewal that is due finds out.
    desk.goes_on(ms(1_500), |_| {});
    desk.read(1, Freshness::Verified);
    let began = desk.now;
    desk.goes_on(ms(1_500), |_| {});
    assert_eq!(desk.source(1), relayed("edge-0"));
    assert!(desk.now.since(began) < crate::proto::limit::ANSWER_TIMEOUT);
    desk.read(2, Freshness::Verified);
    desk.goes_on(ms(30), |_| {});
    assert_eq!(desk.source(2), relayed("edge-0"));
    desk.direct[0] = true;
    desk.goes_on(ms(4_000), |_| {});
    desk.read(3, Freshness::Verified);
    desk.goes_on(ms(30), |_| {});
    assert_eq!(desk.source(3), Hop::Coordinator("c0".into()));
}

#[test]
fn without_a_lease_reads_alone_find_the_way_and_leave_it_after_its_term() {
    let peers = [Peer::Refuses, Peer::Carries];
    let mut desk = Desk::with(2, &peers, |config| config.lease = false);
    desk.direct = vec![false, false];
    desk.read(1, Freshness::Strict);
    desk.goes_on(ms(8_000), |_| {});
    assert_eq!(desk.source(1), relayed("edge-1"));
    let Some(Ok(answer)) = desk.done.get(&1) else {
        panic!("no answer");
    };
    let failed: Vec<_> = answer.failed.iter().map(ToString::to_string).collect();
    assert!(
        failed.iter().any(|hop| hop.contains("peer p0")),
        "{failed:?}"
    );
    desk.read(2, Freshness::Strict);
    desk.goes_on(ms(30), |_| {});
    assert_eq!(desk.source(2), relayed("edge-1"), "it is asked first");
    desk.direct = vec![true, true];
    desk.goes_on(RELAY_TERM, |_| {});
    assert_eq!(desk.relay, None);
    desk.read(3, Freshness::Strict);
    desk.goes_on(ms(30), |_| {});
    assert!(matches!(desk.source(3), Hop::Coordinator(_)));
}

#[test]
fn without_anyone_who_carries_a_read_fails_and_names_all_who_were_asked() {
    let mut desk = Desk::with(1, &[Peer::Refuses; 2], |config| config.lease = false);
    desk.direct[0] = false;
    desk.read(1, Freshness::Strict);
    desk.goes_on(ms(4_000), |_| {});
    match desk.done.get(&1) {
        Some(Err(GetError::NoFreshnessProof { hops, .. })) => {
            let hops: Vec<_> = hops.iter().map(ToString::to_string).collect();
            for hop in ["coordinator c0", "peer p0", "peer p1"] {
                assert!(hops.iter().any(|said| said.starts_with(hop)), "{hops:?}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_off_is_never_asked_for() {
    let mut desk = Desk::with(1, &[Peer::Carries], |config| config.relay = false);
    desk.goes_on(ms(100), |_| {});
    desk.direct[0] = false;
    desk.read(1, Freshness::Verified);
    desk.goes_on(ms(20_000), |_| {});
    assert!(desk.asked.is_empty() && desk.done[&1].is_err());
    assert!(!desk.serves(), "the lease is over");
}

#[test]
fn an_answer_that_was_long_on_its_way_does_not_bring_the_session_back() {
    let mut desk = Desk::leased(1, &[Peer::Carries]);
    desk.direct[0] = false;
    let before = desk.renewals.len();
    desk.goes_on(ms(10_000), |_| {});
    let (call, renew) = desk.renewals[before].clone();
    let event = Event::Granted(grant(&renew, true));
    desk.input(Input::Event { call, event });
    assert_eq!(desk.machine.via(), Some("edge-0"));
    assert!(desk.serves());
}
