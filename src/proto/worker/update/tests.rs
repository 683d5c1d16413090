//! What a worker makes of the catalogs that its peers hold.

use super::*;
use crate::catalog::{
    Catalog, Change, Content, Head, HeadHash, HeadSigner, HeadVerifier, SignedHead,
};
use crate::identity::NodeId;
use crate::proto::replica;
use crate::proto::wire::{Grant, Marks, Renew, Step, WireChange};
use crate::proto::worker::{Config, Input, Look, Mark, Neighbour, Restored};
use crate::spec::{SpecHash, SpecName};

const CATALOG: CatalogId = CatalogId::from_bytes([1; 16]);
const OTHER: CatalogId = CatalogId::from_bytes([2; 16]);
const START: Time = Time::from_micros(10_000_000);
const LEASE: Duration = Duration::from_millis(600);

/// Whoever's signature this is.
struct Signer(u8);

impl HeadSigner for Signer {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [self.0; 64]
    }
}

/// Believes the coordinator alone.
struct Pinned;

impl HeadVerifier for Pinned {
    fn verify(&self, _: &[u8], signature: &[u8; 64]) -> bool {
        *signature == [1; 64]
    }
}

fn name() -> SpecName {
    "n".parse().expect("a name")
}

/// Revisions of one name, each with its head.
#[derive(Clone)]
struct Line {
    catalog: CatalogId,
    epoch: u64,
    key: u8,
    records: Catalog,
    heads: Vec<(SignedHead, Vec<Change>)>,
}

impl Line {
    /// Revisions 0 to `rev`.
    fn of(catalog: CatalogId, epoch: u64, rev: u64, key: u8, text: &str) -> Self {
        let mut line = Self {
            catalog,
            epoch,
            key,
            records: Catalog::empty(),
            heads: Vec::new(),
        };
        line.seal(Vec::new());
        for rev in 1..=rev {
            line.publish(&format!("{text} {rev}"));
        }
        line
    }

    fn ours(rev: u64) -> Self {
        Self::of(CATALOG, 1, rev, 1, "v")
    }

    fn publish(&mut self, text: &str) {
        let change = Change {
            name: name(),
            content: Content::Present {
                hash: SpecHash::of(text.as_bytes()),
                len: text.len() as u64,
            },
        };
        self.records = self
            .records
            .apply(self.records.rev().next(), std::slice::from_ref(&change));
        self.seal(vec![change]);
    }

    fn seal(&mut self, changes: Vec<Change>) {
        let prev = self.heads.last().map_or(HeadHash::NONE, |(head, _)| {
            head.claimed().expect("a head").hash()
        });
        let head = Head {
            catalog: self.catalog,
            epoch: Epoch::new(self.epoch),
            rev: self.records.rev(),
            root: self.records.root(),
            prev,
        };
        self.heads.push((head.sign(&Signer(self.key)), changes));
    }

    fn rev(&self) -> Revision {
        self.records.rev()
    }

    fn whole(&self) -> CatalogDiff {
        let (head, _) = self.heads.last().expect("a head");
        replica::diff(&self.records, head, &[])
    }

    fn replica(&self) -> Replica {
        Replica::replace(None, self.whole(), &Pinned).expect("a catalog")
    }

    fn delta(&self, from: u64) -> Delta {
        let steps = self.heads.iter().skip(from as usize + 1);
        Delta {
            catalog: self.catalog,
            epoch: Epoch::new(self.epoch),
            rev: self.rev(),
            steps: steps
                .map(|(head, changes)| Step {
                    head: head.into(),
                    changes: changes.iter().map(WireChange::from).collect(),
                })
                .collect(),
        }
    }

    fn mark(&self) -> Mark {
        Mark {
            catalog: self.catalog,
            epoch: Epoch::new(self.epoch),
            rev: self.rev(),
        }
    }
}

struct Desk {
    machine: Worker,
    now: Time,
    out: Vec<Output>,
}

impl Desk {
    /// A worker with a coordinator and two peers that holds `held`.
    fn new(held: Option<&Line>) -> Self {
        let restored = Restored {
            mark: held.map(Line::mark),
            replica: held.map(Line::replica),
            ..Restored::default()
        };
        Self::restored(restored)
    }

    fn restored(restored: Restored) -> Self {
        let config = Config {
            coordinators: vec!["c".into()],
            peers: vec!["p0".into(), "p1".into()],
            lease: true,
            ..Config::default()
        };
        let mut desk = Self {
            machine: Worker::new(&config, Arc::new(Pinned), restored),
            now: START,
            out: Vec::new(),
        };
        desk.input(Input::Wake);
        desk
    }

    fn input(&mut self, input: Input) {
        self.out = self.machine.handle(input, self.now);
    }

    fn event(&mut self, call: CallId, event: Event) {
        self.input(Input::Event { call, event });
    }

    /// Goes on until someone is asked for the catalog; renewals fail, and watches too.
    fn cut_off_until_asked(&mut self) -> (CallId, Source, bool) {
        for _ in 0..40 {
            if let Some(asked) = self.asked() {
                return asked;
            }
            let failing: Vec<_> = self.out.iter().filter_map(session_call).collect();
            if failing.is_empty() {
                let wake = self.machine.next_wake().expect("a timer");
                self.now = self.now.max(wake);
                self.input(Input::Wake);
            }
            for call in failing {
                self.event(call, unreachable());
                if self.asked().is_some() {
                    break;
                }
            }
        }
        panic!("nobody is asked");
    }

    /// Who is asked for a catalog by the last outputs, and whether for the whole.
    fn asked(&self) -> Option<(CallId, Source, bool)> {
        self.out.iter().find_map(|output| match output {
            Output::GetDelta { call, source, .. } => Some((*call, *source, false)),
            Output::GetCatalog { call, source, .. } => Some((*call, *source, true)),
            _ => None,
        })
    }

    fn misbehaved(&self) -> Vec<String> {
        let named = self.out.iter().filter_map(|output| match output {
            Output::Misbehaved { hop, .. } => Some(hop.to_string()),
            _ => None,
        });
        named.collect()
    }

    fn shown(&self) -> Option<(u64, u64)> {
        let replica = self.machine.sight().replica()?;
        Some((replica.epoch().get(), replica.rev().get()))
    }

    fn strict(&self) -> Look {
        self.machine.sight().strict(&name(), self.now)
    }

    /// The coordinator answers the renewal of the last outputs, and names `line`.
    fn grant(&mut self, line: &Line, watching: bool) {
        let renewal = self.out.iter().rev().find_map(|output| match output {
            Output::Renew { call, request, .. } => Some((*call, request.clone())),
            _ => None,
        });
        let (call, renew) = renewal.expect("a renewal");
        let grant = granted(&renew, line, watching);
        self.event(call, Event::Granted(grant));
    }

    /// The next renewal is sent.
    fn renews(&mut self) {
        for _ in 0..20 {
            let renews = |output: &Output| matches!(output, Output::Renew { .. });
            if self.out.iter().any(renews) {
                return;
            }
            self.now = self.now.max(self.machine.next_wake().expect("a timer"));
            self.input(Input::Wake);
        }
        panic!("no renewal");
    }
}

fn granted(renew: &Renew, line: &Line, watching: bool) -> Grant {
    let Mark {
        catalog,
        epoch,
        rev,
    } = line.mark();
    Grant {
        sid: renew.sid,
        nonce: renew.nonce,
        catalog,
        epoch,
        rev,
        lease_us: if watching {
            LEASE.as_micros() as u64
        } else {
            0
        },
        watching,
        marks: Marks::default(),
        delta: Delta {
            catalog,
            epoch,
            rev,
            steps: Vec::new(),
        },
    }
}

fn session_call(output: &Output) -> Option<CallId> {
    match output {
        Output::Watch { call, .. } | Output::Renew { call, .. } => Some(*call),
        _ => None,
    }
}

fn unreachable() -> Event {
    Event::Failed {
        reason: "cannot be reached".into(),
        unreachable: true,
    }
}

fn is_peer(source: Source) -> bool {
    matches!(source, Source::Peer(_))
}

#[test]
fn an_empty_worker_that_is_cut_off_gets_the_catalog_of_a_peer_and_no_strict_read_from_it() {
    let mut desk = Desk::new(None);
    let (call, source, whole) = desk.cut_off_until_asked();
    assert!(is_peer(source) && whole);
    let line = Line::ours(3);
    desk.event(call, Event::Catalog(line.whole()));
    assert_eq!(desk.shown(), Some((1, 3)));
    assert_eq!(desk.machine.mark(), Some(line.mark()));
    let sight = desk.machine.sight();
    assert!(sight.at(&name(), Revision::new(3)).is_some());
    let token = crate::answer::RunToken {
        catalog: CATALOG,
        epoch: Epoch::new(1),
        rev: Revision::new(3),
    };
    assert!(matches!(sight.at_least(&name(), token), Look::Serve(..)));
    // It is nobody's word that this is current.
    assert_eq!(desk.strict(), Look::Ask);
    assert_eq!(sight.run_token(desk.now), None);
    assert_eq!(sight.age(desk.now), None);
    let bounded = sight.bounded(&name(), Duration::from_secs(3_600), desk.now);
    assert_eq!(bounded, Look::Ask);
    assert!(
        !desk
            .out
            .iter()
            .any(|output| matches!(output, Output::PrepAck { .. }))
    );
    assert_eq!(
        desk.machine.brought_by().map(|hop| hop.kind()),
        Some("peer")
    );
}

#[test]
fn peers_are_polled_in_turn_and_each_brings_what_is_missing() {
    let mut desk = Desk::new(Some(&Line::ours(2)));
    let (call, first, whole) = desk.cut_off_until_asked();
    assert!(is_peer(first) && !whole);
    desk.event(call, Event::Delta(Line::ours(2).delta(2)));
    assert_eq!(desk.asked(), None, "nothing new ends the poll");
    let before = desk.now;
    let (call, second, _) = desk.cut_off_until_asked();
    assert!(is_peer(second) && second != first);
    assert!(desk.now.since(before) >= crate::proto::limit::DEFAULT_LEASE / 3);
    desk.event(call, Event::Delta(Line::ours(5).delta(2)));
    assert_eq!(desk.shown(), Some((1, 5)));
}

#[test]
fn what_is_old_at_a_peer_is_ignored() {
    for old in [Line::ours(1), Line::of(CATALOG, 1, 0, 1, "v")] {
        let mut desk = Desk::new(Some(&Line::ours(4)));
        let (call, _, _) = desk.cut_off_until_asked();
        desk.event(call, Event::Delta(old.delta(0)));
        assert_eq!(desk.shown(), Some((1, 4)));
        assert_eq!(desk.machine.rollback(), None);
        assert!(desk.misbehaved().is_empty());
    }
    // Of an epoch that is over, and asked for whole.
    let mut desk = Desk::new(Some(&Line::of(CATALOG, 2, 4, 1, "v")));
    let (call, source, _) = desk.cut_off_until_asked();
    desk.event(call, Event::Refused(Refusal::new(Code::Compacted, "gone")));
    let (call, again, whole) = desk.asked().expect("asked");
    assert!(whole && again == source);
    desk.event(call, Event::Catalog(Line::ours(9).whole()));
    assert_eq!(desk.shown(), Some((2, 4)));
    assert_eq!(desk.machine.rollback(), None);
}

#[test]
fn a_peer_that_lies_is_named_and_avoided_and_the_coordinator_is_not_blamed() {
    let mut altered = Line::ours(5).delta(2);
    for change in altered.steps.iter_mut().flat_map(|step| &mut step.changes) {
        change.len += 1;
    }
    let lies = [altered, Line::of(CATALOG, 1, 5, 7, "v").delta(2)];
    for lie in lies {
        let mut desk = Desk::new(Some(&Line::ours(2)));
        let (call, liar, _) = desk.cut_off_until_asked();
        desk.event(call, Event::Delta(lie));
        assert_eq!(desk.misbehaved().len(), 1);
        assert!(
            desk.misbehaved()[0].starts_with("peer"),
            "{:?}",
            desk.misbehaved()
        );
        assert_eq!(desk.shown(), Some((1, 2)));
        assert_eq!(
            desk.machine.rollback(),
            None,
            "no evidence against the coordinator"
        );
        let (_, next, whole) = desk.asked().expect("another is asked in the same round");
        assert!(is_peer(next) && next != liar && !whole);
        assert!(!desk.machine.session.whole);
        let banned = desk.machine.sources(desk.now);
        let banned = banned.iter().filter(|source| source.banned_ms > 0);
        assert_eq!(banned.count(), 1);
    }
}

#[test]
fn another_catalog_of_a_peer_is_passed_over_and_its_bytes_are_not() {
    let stranger = Line::of(OTHER, 1, 5, 1, "other").delta(2);
    let posing = Delta {
        catalog: CATALOG,
        ..stranger.clone()
    };
    for strange in [stranger, posing] {
        let mut desk = Desk::new(Some(&Line::ours(2)));
        let (call, first, _) = desk.cut_off_until_asked();
        desk.event(call, Event::Delta(strange));
        assert_eq!(desk.shown(), Some((1, 2)));
        assert_eq!(desk.machine.rollback(), None, "it is evidence of nothing");
        assert!(desk.misbehaved().is_empty());
        let (_, next, _) = desk.asked().expect("another is asked");
        assert!(is_peer(next) && next != first);
        let sources = desk.machine.sources(desk.now);
        assert!(sources.iter().all(|source| source.banned_ms == 0));
    }
}

#[test]
fn two_heads_for_one_revision_quarantine_whoever_brings_them() {
    let mut desk = Desk::new(Some(&Line::ours(3)));
    let (call, _, _) = desk.cut_off_until_asked();
    let fork = Line::of(CATALOG, 1, 4, 1, "fork");
    desk.event(call, Event::Delta(fork.delta(2)));
    assert!(desk.machine.rollback().is_some());
    assert_eq!(desk.asked(), None);
    let quarantined = desk.machine.sight().delta(&GetDelta {
        epoch: Epoch::new(1),
        from: Revision::new(1),
    });
    assert_eq!(
        quarantined.map_err(|refusal| refusal.code),
        Err(Code::NoCatalog)
    );
}

#[test]
fn a_signed_head_of_a_newer_epoch_begins_it_and_ends_the_lease() {
    let line = Line::ours(3);
    let mut desk = Desk::new(Some(&line));
    let (call, _, _) = desk.cut_off_until_asked();
    // The claim alone begins nothing.
    let claim = Delta {
        epoch: Epoch::new(2),
        steps: Vec::new(),
        ..line.delta(3)
    };
    desk.event(call, Event::Delta(claim));
    assert_eq!(desk.machine.mark(), Some(line.mark()));
    let (call, _, whole) = desk.asked().expect("asked for the whole");
    assert!(whole);
    let newer = Line::of(CATALOG, 2, 2, 1, "restored");
    desk.event(call, Event::Catalog(newer.whole()));
    assert_eq!(desk.shown(), Some((2, 2)));
    assert_eq!(desk.machine.mark(), Some(newer.mark()));
    assert_eq!(desk.strict(), Look::Ask);
}

#[test]
fn a_mark_above_what_peers_have_keeps_their_catalog_from_being_current() {
    let ahead = Line::ours(9).mark();
    let mut desk = Desk::restored(Restored {
        mark: Some(ahead),
        ..Restored::default()
    });
    let (call, source, whole) = desk.cut_off_until_asked();
    assert!(is_peer(source) && whole);
    desk.event(call, Event::Catalog(Line::ours(4).whole()));
    assert_eq!(desk.machine.mark(), Some(ahead));
    let sight = desk.machine.sight();
    assert!(sight.at(&name(), Revision::new(4)).is_some());
    let token = crate::answer::RunToken {
        catalog: CATALOG,
        epoch: Epoch::new(1),
        rev: Revision::new(1),
    };
    assert_eq!(sight.at_least(&name(), token), Look::Ask);
}

#[test]
fn the_coordinator_is_asked_first_and_peers_when_it_gives_nothing() {
    let line = Line::ours(3);
    let mut desk = Desk::new(Some(&Line::ours(1)));
    desk.grant(&line, false);
    let mut asked = None;
    while asked.is_none() {
        desk.now = desk.now.max(desk.machine.next_wake().expect("a timer"));
        desk.input(Input::Wake);
        asked = desk.asked();
    }
    let (call, source, _) = asked.expect("asked");
    assert_eq!(source, Source::Coordinator(0));
    desk.event(call, Event::Refused(Refusal::new(Code::Busy, "busy")));
    let mut round = vec![source];
    while let Some((call, source, _)) = desk.asked() {
        round.push(source);
        desk.event(call, Event::Refused(Refusal::new(Code::NoCatalog, "none")));
    }
    assert_eq!(round.len(), 3, "{round:?}");
    assert!(is_peer(round[1]) && is_peer(round[2]) && round[1] != round[2]);
}

#[test]
fn a_coordinator_that_is_there_again_is_asked_rather_than_the_peer_that_says_nothing() {
    let mut desk = Desk::new(Some(&Line::ours(1)));
    let (call, source, _) = desk.cut_off_until_asked();
    assert!(is_peer(source));
    desk.now = desk.now + Duration::from_secs(1);
    desk.input(Input::Wake);
    desk.renews();
    desk.grant(&Line::ours(2), false);
    let cancelled = |output: &Output| matches!(output, Output::Cancel(id) if *id == call);
    assert!(desk.out.iter().any(cancelled));
}

#[test]
fn a_worker_gives_what_it_holds_and_says_what_it_does_not() {
    let epoch = Epoch::new(2);
    let refused = |sight: &Sight, epoch, from| {
        let get = GetDelta {
            epoch,
            from: Revision::new(from),
        };
        sight
            .delta(&get)
            .map(|delta| delta.steps.len())
            .map_err(|refusal| refusal.code)
    };
    let empty = Sight::default();
    assert_eq!(refused(&empty, epoch, 0), Err(Code::NoCatalog));
    let get = GetCatalog { have: Vec::new() };
    assert_eq!(
        empty.catalog(&get).map_err(|refusal| refusal.code),
        Err(Code::NoCatalog)
    );
    let mut line = Line::of(CATALOG, 2, 3, 1, "v");
    let held = line.replica();
    line.publish("later");
    let held = held
        .apply(&line.delta(3), &Pinned)
        .expect("applied")
        .expect("follows");
    let sight = Sight {
        replica: Some(Arc::new(held)),
        ..Sight::default()
    };
    assert_eq!(refused(&sight, epoch, 4), Ok(0));
    assert_eq!(refused(&sight, epoch, 3), Ok(1));
    assert_eq!(refused(&sight, epoch, 9), Ok(0));
    assert_eq!(refused(&sight, epoch, 1), Err(Code::Compacted));
    assert_eq!(refused(&sight, Epoch::new(3), 3), Err(Code::NoCatalog));
    assert_eq!(sight.catalog(&get), Ok(line.whole()));
}

/// What a member tells of the newest head of `line`.
fn heard(line: &Line, from: NodeId) -> Input {
    let (signed, _) = line.heads.last().expect("a head");
    let head = signed.verify(&Pinned).expect("signed");
    Input::Heard { head, from }
}

/// A member besides the two peers.
fn member(desk: &mut Desk) -> NodeId {
    let id = NodeId::of_addr("m");
    let addr = "m".into();
    desk.input(Input::Peers(vec![Neighbour { id, addr }]));
    id
}

#[test]
fn a_worker_that_is_cut_off_asks_whoever_told_it_of_a_newer_head() {
    let mut desk = Desk::new(Some(&Line::ours(2)));
    let id = member(&mut desk);
    let (call, _, _) = desk.cut_off_until_asked();
    desk.event(call, Event::Delta(Line::ours(2).delta(2)));
    desk.input(heard(&Line::ours(5), id));
    let (call, source, whole) = desk.asked().expect("asked");
    assert!(source == Source::Peer(id) && !whole);
    // It is nobody's word yet: the head alone changes nothing that readers see.
    assert_eq!(desk.shown(), Some((1, 2)));
    assert_eq!(desk.machine.mark(), Some(Line::ours(2).mark()));
    desk.event(call, Event::Delta(Line::ours(5).delta(2)));
    assert_eq!(desk.shown(), Some((1, 5)));
    assert_eq!(desk.strict(), Look::Ask);

    for old in [Line::ours(5), Line::ours(3), Line::of(OTHER, 1, 9, 1, "v")] {
        desk.input(heard(&old, id));
        assert_eq!(desk.asked(), None, "there is nothing to be had");
    }
}

#[test]
fn a_worker_whose_coordinator_tells_it_asks_nobody_for_what_members_tell() {
    let line = Line::ours(2);
    let mut desk = Desk::new(Some(&line));
    let watch = desk.out.iter().find_map(|output| match output {
        Output::Watch { call, .. } => Some(*call),
        _ => None,
    });
    desk.event(watch.expect("a watch"), Event::Watching);
    desk.grant(&line, true);
    let id = member(&mut desk);
    desk.input(heard(&Line::ours(3), id));
    assert_eq!(desk.asked(), None);
    assert!(matches!(desk.strict(), Look::Serve(..)), "the lease holds");
}

#[test]
fn two_heads_for_one_revision_that_members_show_quarantine() {
    let (signed, _) = Line::ours(3).heads.pop().expect("a head");
    let mut desk = Desk::new(Some(&Line::ours(2)));
    desk.input(Input::Forked(Box::new(signed)));
    assert!(desk.machine.rollback().is_some());
    // Of another catalog, or of an epoch that is over, it is no matter of this worker's.
    for (of, epoch) in [(OTHER, 1), (CATALOG, 1)] {
        let (signed, _) = Line::of(of, epoch, 3, 1, "v").heads.pop().expect("a head");
        let mut desk = Desk::new(Some(&Line::of(CATALOG, 2, 2, 1, "v")));
        desk.input(Input::Forked(Box::new(signed)));
        assert_eq!(desk.machine.rollback(), None);
    }
    // A head that contradicts the one that is held is a proof by itself.
    let mut desk = Desk::new(Some(&Line::ours(3)));
    let id = member(&mut desk);
    desk.input(heard(&Line::of(CATALOG, 1, 3, 1, "other"), id));
    assert!(desk.machine.rollback().is_some());
}
