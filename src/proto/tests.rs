//! Both machines, with a network and disks that the test plays: what leases promise.

mod concurrency;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::answer::{Answer, Freshness, GetError, Hop, Mode, Query, RunToken};
use crate::catalog::{CatalogId, Entry, Epoch, HeadKey, Revision};
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{self, Coordinator, Ledger, Options, Retention, Written};
use crate::proto::limit::{DEFAULT_LEASE, MAX_DELTA};
use crate::proto::wire::{Publish, PublishName, PublishedRev, Push, SessionId};
use crate::proto::worker::{
    self, CallId, Config, Event, Local, Look, Prefetch, Restored, Sight, Source, Worker,
};
use crate::proto::{replica, worker::Keep};
use crate::spec::{Spec, SpecHash, SpecName};

const TICK: Duration = Duration::from_millis(1);

/// One coordinator and some workers. Messages take no time; what a test holds back it names.
struct Site {
    now: Time,
    coordinator: Option<Coordinator>,
    options: Options,
    journal: Vec<Entry>,
    bodies: BTreeMap<SpecHash, Spec>,
    published: BTreeMap<u64, Result<PublishedRev, Refusal>>,
    ticket: u64,
    nodes: Vec<Node>,
    /// Streams that are open: worker and call by the coordinator's number.
    streams: BTreeMap<u64, (usize, CallId)>,
    next_stream: u64,
    renewing: BTreeMap<u64, (usize, CallId)>,
}

struct Node {
    machine: Worker,
    shown: Arc<Sight>,
    disk: BTreeMap<SpecHash, Spec>,
    done: BTreeMap<u64, Result<Answer, GetError>>,
    /// Nothing gets through in either direction.
    cut: bool,
    /// Acknowledgements get lost.
    mute: bool,
    mark: Option<worker::Mark>,
    anchor: Option<worker::Anchor>,
    replica: Option<Arc<replica::Replica>>,
    /// Requests that went out.
    sent: u64,
}

fn key() -> Arc<HeadKey> {
    Arc::new(HeadKey::from_bytes([1; 32]))
}

fn name(text: &str) -> SpecName {
    text.parse().expect("a name")
}

fn spec(body: &str) -> Spec {
    Spec::new(Bytes::copy_from_slice(body.as_bytes()))
}

fn config(sid: u128) -> Config {
    Config {
        coordinators: vec!["c0".into()],
        sid: SessionId::new(sid),
        lease: true,
        ..Config::default()
    }
}

fn machine(sid: u128, restored: Restored) -> Worker {
    Worker::new(&config(sid), Arc::new(key().pinned()), restored)
}

fn node(config: &Config, restored: Restored) -> Node {
    Node {
        mark: restored.mark,
        anchor: restored.anchor,
        replica: restored.replica.clone().map(Arc::new),
        machine: Worker::new(config, Arc::new(key().pinned()), restored),
        shown: Arc::default(),
        disk: BTreeMap::new(),
        done: BTreeMap::new(),
        cut: false,
        mute: false,
        sent: 0,
    }
}

fn replay(journal: &[Entry]) -> Ledger {
    let (first, rest) = journal.split_first().expect("a genesis");
    let mut ledger = Ledger::begin(first).expect("a genesis");
    for entry in rest {
        ledger.replay(entry.clone()).expect("a history");
    }
    ledger.finish().expect("a whole history")
}

impl Site {
    fn new(workers: usize) -> Self {
        let genesis = Coordinator::genesis(CatalogId::from_bytes([9; 16]), &*key());
        let mut site = Self {
            now: Time::from_micros(1_000_000),
            coordinator: None,
            options: Options::default(),
            journal: vec![genesis],
            bodies: BTreeMap::new(),
            published: BTreeMap::new(),
            ticket: 0,
            nodes: (0..workers)
                .map(|n| node(&config(n as u128 + 1), Restored::default()))
                .collect(),
            streams: BTreeMap::new(),
            next_stream: 0,
            renewing: BTreeMap::new(),
        };
        site.start();
        for worker in 0..workers {
            site.feed(worker, worker::Input::Wake);
        }
        site
    }

    /// Another worker comes.
    fn join(&mut self, config: Config, restored: Restored) {
        self.nodes.push(node(&config, restored));
        self.feed(self.nodes.len() - 1, worker::Input::Wake);
    }

    fn start(&mut self) {
        let ledger = replay(&self.journal);
        self.coordinator = Some(Coordinator::new(ledger, key(), self.options, 0, self.now));
        self.ask(coordinator::Input::Wake);
    }

    /// The coordinator is gone, and with it every stream.
    fn crash(&mut self) {
        self.coordinator = None;
        for (_, (worker, call)) in std::mem::take(&mut self.streams) {
            let reason = "gone".into();
            let event = Event::Lost { reason };
            self.feed(worker, worker::Input::Event { call, event });
        }
    }

    /// The coordinator is gone, and its store is as it was at revision `rev`.
    fn go_back_to(&mut self, rev: u64) {
        self.crash();
        self.journal.retain(|entry| match entry {
            Entry::Pending(pending) => pending.rev.get() <= rev,
            Entry::Visible { rev: visible } => visible.get() <= rev,
            _ => true,
        });
    }

    fn ask(&mut self, input: coordinator::Input) {
        let Some(machine) = &mut self.coordinator else {
            return;
        };
        let outputs = machine.handle(input, self.now);
        let mut written = None;
        for output in outputs {
            match output {
                coordinator::Output::Write(entries) => {
                    self.journal.extend(entries);
                    written = Some(coordinator::Input::Written(Written::All));
                }
                coordinator::Output::Checkpoint { entries, .. } => {
                    self.journal = entries;
                    written = Some(coordinator::Input::Written(Written::All));
                }
                coordinator::Output::Reveal(_) | coordinator::Output::PinReply { .. } => {}
                coordinator::Output::Push { streams, push } => self.push(&streams, &push),
                coordinator::Output::EndStream(stream) => drop(self.streams.remove(&stream)),
                coordinator::Output::Granted { ticket, result } => {
                    let (worker, call) = self.renewing.remove(&ticket).expect("asked");
                    let event = Event::Granted(result.expect("a grant"));
                    self.deliver(worker, call, event);
                }
                coordinator::Output::Reply { ticket, result } => {
                    self.published.insert(ticket, result);
                }
            }
        }
        if let Some(written) = written {
            self.ask(written);
        }
    }

    fn push(&mut self, streams: &[u64], push: &Push) {
        for stream in streams {
            let Some(&(worker, call)) = self.streams.get(stream) else {
                continue;
            };
            let event = match push {
                Push::Prepare(prepare) => Event::Prepare(prepare.clone()),
                Push::Release(delta) => Event::Release(delta.clone()),
            };
            self.deliver(worker, call, event);
        }
    }

    fn deliver(&mut self, worker: usize, call: CallId, event: Event) {
        if !self.nodes[worker].cut {
            self.feed(worker, worker::Input::Event { call, event });
        }
    }

    fn feed(&mut self, worker: usize, input: worker::Input) {
        let now = self.now;
        for output in self.nodes[worker].machine.handle(input, now) {
            self.carry_out(worker, output);
        }
    }

    fn carry_out(&mut self, worker: usize, output: worker::Output) {
        use worker::Output;
        let owner = format!("w{worker}");
        let node = &mut self.nodes[worker];
        let cut = node.cut || self.coordinator.is_none();
        let lost = |call| worker::Input::Event {
            call,
            event: Event::Failed {
                reason: "cut".into(),
                unreachable: true,
            },
        };
        match output {
            Output::Show(sight) => node.shown = sight,
            Output::Load(hash) => {
                let local = node
                    .disk
                    .get(&hash)
                    .cloned()
                    .map_or(Local::Missing, Local::Found);
                let found = vec![(hash, local)];
                self.feed(worker, worker::Input::Loaded { found });
            }
            Output::Save(spec) => {
                node.disk.insert(spec.hash(), spec);
            }
            Output::Remember(mark) => node.mark = Some(mark),
            Output::Anchor(anchor) => node.anchor = Some(anchor),
            Output::Keep(Keep::Whole(replica) | Keep::Steps { replica, .. }) => {
                node.replica = Some(replica);
            }
            Output::Done { ticket, result } => {
                assert!(node.done.insert(ticket, result).is_none(), "answered twice");
            }
            Output::Watch { call, sid, .. } => {
                if cut {
                    return self.feed(worker, lost(call));
                }
                let stream = self.next_stream;
                self.next_stream += 1;
                self.streams.insert(stream, (worker, call));
                self.ask(coordinator::Input::Watch { sid, owner, stream });
                self.deliver(worker, call, Event::Watching);
            }
            Output::Renew { call, request, .. } => {
                node.sent += 1;
                if cut {
                    return self.feed(worker, lost(call));
                }
                let ticket = self.next_ticket();
                self.renewing.insert(ticket, (worker, call));
                self.ask(coordinator::Input::Renew {
                    ticket,
                    owner,
                    renew: request,
                });
            }
            Output::OpenRelay { .. } => panic!("nobody is there to carry"),
            Output::PrepAck { ack, .. } => {
                if !cut && !node.mute {
                    self.ask(coordinator::Input::PrepAck { owner, ack });
                }
            }
            Output::Leave { sid, .. } => {
                if !cut {
                    self.ask(coordinator::Input::Leave { owner, sid });
                }
            }
            Output::GetDelta { call, request, .. } => {
                node.sent += 1;
                let ledger = self
                    .coordinator
                    .as_ref()
                    .filter(|_| !cut)
                    .map(Coordinator::ledger);
                let delta = ledger.and_then(|l| l.delta(request.epoch, request.from, MAX_DELTA));
                match delta {
                    Some(delta) => self.deliver(worker, call, Event::Delta(delta)),
                    None if cut => self.feed(worker, lost(call)),
                    None => {
                        let refusal = Refusal::new(Code::Compacted, "compacted");
                        self.deliver(worker, call, Event::Refused(refusal));
                    }
                }
            }
            Output::GetCatalog { call, request, .. } => {
                node.sent += 1;
                let Some(coordinator) = self.coordinator.as_ref().filter(|_| !cut) else {
                    return self.feed(worker, lost(call));
                };
                let view = coordinator.view();
                let diff = replica::diff(&view.records, &view.head, &request.have);
                self.deliver(worker, call, Event::Catalog(diff));
            }
            Output::Resolve { call, request, .. } => {
                node.sent += 1;
                let Some(coordinator) = self.coordinator.as_ref().filter(|_| !cut) else {
                    return self.feed(worker, lost(call));
                };
                let (opening, versions) = coordinator.view().resolve(&request).expect("resolved");
                self.deliver(worker, call, Event::Opening(opening));
                for (version, asked) in versions.into_iter().zip(&request.names) {
                    let hash = version.and_then(|version| version.content.hash());
                    let wanted = hash.filter(|_| asked.if_hash != hash);
                    let (body, ask) = (wanted.is_some(), Vec::new());
                    self.deliver(worker, call, Event::Outcome { version, body, ask });
                    if let Some(hash) = wanted {
                        let bytes = self.bodies[&hash].bytes().clone();
                        self.deliver(worker, call, Event::Body(bytes));
                    }
                }
                self.deliver(worker, call, Event::End);
            }
            Output::Fetch {
                call, source, hash, ..
            } => {
                node.sent += 1;
                assert_eq!(source, Source::Coordinator(0));
                if cut {
                    return self.feed(worker, lost(call));
                }
                let bytes = self.bodies[&hash].bytes().clone();
                self.deliver(worker, call, Event::Body(bytes));
            }
            Output::Cancel(call) => self.streams.retain(|_, open| *open != (worker, call)),
            Output::Hold(_)
            | Output::ForgetHeld
            | Output::Use(_)
            | Output::Give { .. }
            | Output::Brought { .. }
            | Output::Misbehaved { .. } => {}
        }
    }

    fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    fn publish(&mut self, text: &str, body: Option<&str>) -> u64 {
        let body = body.map(spec);
        let change = PublishName {
            name: name(text),
            hash: body.as_ref().map(Spec::hash),
            len: body.as_ref().map_or(0, Spec::len),
            expect: None,
        };
        self.bodies.extend(body.map(|spec| (spec.hash(), spec)));
        let ticket = self.next_ticket();
        self.ask(coordinator::Input::Publish {
            ticket,
            by: "p".into(),
            publish: Publish {
                key: None,
                note: String::new(),
                changes: vec![change],
            },
            unix_ms: ticket * 3_600_000,
        });
        ticket
    }

    fn read(&mut self, worker: usize, text: &str, freshness: Freshness) -> u64 {
        let ticket = self.next_ticket();
        let query = Query {
            freshness,
            ..Query::strict(text.parse().expect("a target"))
        };
        let reads = vec![(ticket, query)];
        self.feed(worker, worker::Input::Get { reads });
        ticket
    }

    fn answer(&mut self, worker: usize, ticket: u64) -> Answer {
        let result = self.nodes[worker].done.remove(&ticket).expect("an answer");
        result.unwrap_or_else(|error| panic!("{error}: {:?}", error.hops()))
    }

    /// A strict read's body and the mode that held.
    fn strict(&mut self, worker: usize, text: &str) -> (Option<Spec>, Mode) {
        let ticket = self.read(worker, text, Freshness::Strict);
        let answer = self.answer(worker, ticket);
        (answer.spec, answer.proof.mode)
    }

    /// Lets time pass, waking whoever is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let nodes = self
                .nodes
                .iter()
                .filter_map(|node| node.machine.next_wake());
            let machine = self.coordinator.as_ref().and_then(Coordinator::next_wake);
            let due = nodes.chain(machine).min().unwrap_or(end);
            self.now = due.max(self.now + TICK).min(end);
            self.ask(coordinator::Input::Wake);
            for worker in 0..self.nodes.len() {
                self.feed(worker, worker::Input::Wake);
            }
        }
    }

    fn look(&self, worker: usize, text: &str) -> Look {
        self.nodes[worker].shown.strict(&name(text), self.now)
    }

    fn leased(&self, worker: usize) -> bool {
        self.nodes[worker].shown.leased(self.now)
    }
}

#[test]
fn under_a_lease_a_strict_read_sends_nothing() {
    let mut site = Site::new(1);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    assert!(site.leased(0));
    assert_eq!(site.strict(0, "a"), (Some(spec("1")), Mode::Lease));
    let sent = site.nodes[0].sent;
    let ticket = site.read(0, "a", Freshness::Strict);
    let answer = site.answer(0, ticket);
    assert_eq!(
        (answer.proof.mode, answer.proof.source),
        (Mode::Lease, Hop::Disk)
    );
    assert_eq!(
        site.strict(0, "nobody"),
        (None, Mode::Lease),
        "absence is proven too"
    );
    assert_eq!(site.nodes[0].sent, sent);
}

#[test]
fn a_publish_is_acknowledged_when_every_holder_has_marked_it_and_no_timer_is_needed() {
    let mut site = Site::new(3);
    site.pass(Duration::from_secs(3));
    let ticket = site.publish("a", Some("1"));
    let published = site.published[&ticket].clone().expect("published");
    assert_eq!((published.waited.holders, published.waited.ms), (3, 0));
    for worker in 0..3 {
        assert_eq!(site.strict(worker, "a"), (Some(spec("1")), Mode::Lease));
    }
}

#[test]
fn a_silent_holder_delays_a_publish_until_its_lease_has_run_out_and_not_longer() {
    let mut site = Site::new(2);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    site.strict(1, "a");
    site.nodes[1].cut = true;
    let began = site.now;
    let ticket = site.publish("a", Some("2"));
    assert!(matches!(site.look(0, "a"), Look::Soon), "marked");
    while !site.published.contains_key(&ticket) {
        // The one that is cut off goes on as if nothing had happened, rightly.
        if let Look::Serve(version, _) = site.look(1, "a") {
            assert_eq!(version.rev, Revision::new(1));
        }
        site.pass(TICK);
        assert!(site.now.since(began) <= DEFAULT_LEASE, "waits too long");
    }
    assert!(
        !matches!(site.look(1, "a"), Look::Serve(..)),
        "its lease is over"
    );
    let published = site.published[&ticket].clone().expect("published");
    assert_eq!(published.waited.expired, ["w1"]);
    assert_eq!(site.strict(0, "a"), (Some(spec("2")), Mode::Lease));
}

#[test]
fn the_coordinator_shows_how_far_each_worker_is_and_what_it_has_marked() {
    let mut site = Site::new(2);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    site.nodes[1].cut = true;
    site.publish("a", Some("2"));
    let coordinator = site.coordinator.as_ref().expect("running");
    let sessions = coordinator.sessions(site.now);
    let shown = sessions
        .iter()
        .map(|session| (&*session.uri, session.rev, session.floor, session.marks));
    let first = Revision::new(1);
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [("w0", first, first, 1), ("w1", first, first, 0)]
    );
}

#[test]
fn a_marked_name_is_not_served_and_every_other_one_is() {
    let mut site = Site::new(2);
    site.publish("a", Some("1"));
    site.publish("b", Some("1"));
    site.pass(Duration::from_secs(3));
    site.nodes[1].mute = true;
    site.publish("a", Some("2"));
    assert_eq!(site.look(0, "a"), Look::Soon);
    assert!(matches!(site.look(0, "b"), Look::Serve(..)));
    // What is not yet visible is not yet true either.
    let ticket = site.read(0, "a", Freshness::Verified);
    assert_eq!(site.answer(0, ticket).spec, Some(spec("1")));
}

#[test]
fn a_renewal_makes_up_for_a_lost_acknowledgement() {
    let mut site = Site::new(1);
    site.pass(Duration::from_secs(3));
    site.nodes[0].mute = true;
    let ticket = site.publish("a", Some("1"));
    assert!(!site.published.contains_key(&ticket));
    site.pass(DEFAULT_LEASE / 3 + TICK);
    let published = site.published[&ticket].clone().expect("published");
    assert!(published.waited.expired.is_empty());
}

#[test]
fn a_worker_that_leaves_is_not_waited_for() {
    let mut site = Site::new(1);
    site.pass(Duration::from_secs(3));
    site.feed(0, worker::Input::Leave);
    assert!(!site.leased(0));
    site.nodes[0].mute = true;
    let ticket = site.publish("a", Some("1"));
    assert_eq!(
        site.published[&ticket]
            .clone()
            .expect("published")
            .waited
            .holders,
        0
    );
    site.pass(Duration::from_secs(9));
    assert!(!site.leased(0), "and it asks for no other");
}

#[test]
fn a_restarted_coordinator_waits_out_leases_that_it_does_not_know() {
    let mut site = Site::new(1);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    site.strict(0, "a");
    site.nodes[0].cut = true;
    site.crash();
    site.start();
    let ticket = site.publish("a", Some("2"));
    while !site.published.contains_key(&ticket) {
        if let Look::Serve(version, _) = site.look(0, "a") {
            assert_eq!(version.rev, Revision::new(1));
        }
        site.pass(TICK);
    }
    assert!(!matches!(site.look(0, "a"), Look::Serve(..)));
    site.nodes[0].cut = false;
    site.pass(Duration::from_secs(9));
    assert_eq!(site.strict(0, "a"), (Some(spec("2")), Mode::Lease));
}

#[test]
fn no_lease_outlives_the_process_of_its_worker() {
    let mut site = Site::new(1);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    let before = &site.nodes[0];
    let restored = Restored {
        mark: before.mark,
        replica: before.replica.as_deref().cloned(),
        ..Restored::default()
    };
    site.nodes[0] = node(&config(77), restored);
    site.nodes[0].cut = true;
    site.feed(0, worker::Input::Wake);
    assert!(!site.leased(0));
    let at = site.read(0, "a", Freshness::At(Revision::new(1)));
    assert!(matches!(
        site.nodes[0].done.get(&at),
        Some(Err(GetError::NoBytes { .. }))
    ));
    let strict = site.read(0, "a", Freshness::Strict);
    assert!(matches!(
        site.nodes[0].done.get(&strict),
        Some(Err(GetError::NoFreshnessProof { .. }))
    ));
}

#[test]
fn marks_of_a_new_epoch_come_with_its_first_grant() {
    let mut site = Site::new(2);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    site.crash();
    site.journal.push(Entry::Epoch {
        epoch: Epoch::new(2),
    });
    site.start();
    site.pass(DEFAULT_LEASE * 2);
    assert!(site.leased(0) && site.leased(1));
    site.nodes[1].mute = true;
    site.publish("a", Some("2"));
    // This one hears of epoch 2 and of the pending change at once.
    let restored = Restored {
        mark: site.nodes[0].mark.map(|mark| worker::Mark {
            epoch: Epoch::new(1),
            rev: Revision::new(1),
            ..mark
        }),
        ..Restored::default()
    };
    site.nodes.push(node(&config(99), restored));
    site.feed(2, worker::Input::Wake);
    site.pass(TICK * 50);
    assert!(site.leased(2));
    assert_eq!(site.look(2, "a"), Look::Soon);
}

#[test]
fn a_run_that_asks_the_coordinator_finds_its_revision_in_the_replica() {
    let mut site = Site::new(1);
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    let token = site.nodes[0].shown.run_token(site.now).expect("leased");
    assert_eq!(token.rev, Revision::new(1));

    // Without a lease nothing is promised of the replica, so the coordinator is asked.
    site.nodes[0].cut = true;
    site.pass(DEFAULT_LEASE);
    site.publish("a", Some("2"));
    assert_eq!(site.nodes[0].shown.run_token(site.now), None);
    site.nodes[0].cut = false;
    let view = site.coordinator.as_ref().expect("running").view();
    let state = worker::Mark {
        catalog: view.catalog,
        epoch: view.epoch,
        rev: view.records.rev(),
    };
    assert_eq!(state.rev, Revision::new(2));
    let (before, sent) = (site.nodes[0].machine.mark(), site.now);
    site.feed(
        0,
        worker::Input::Named {
            state,
            before,
            sent,
        },
    );
    site.pass(Duration::from_millis(30));
    let replica = site.nodes[0].shown.replica().expect("a replica").clone();
    assert_eq!(replica.rev(), state.rev);
    assert_eq!(site.nodes[0].shown.age(sent), Some(Duration::ZERO));
}

#[test]
fn a_coordinator_that_names_less_than_was_seen_gives_no_run_its_revision() {
    let mut site = Site::new(1);
    site.publish("a", Some("1"));
    site.publish("a", Some("2"));
    site.pass(Duration::from_secs(3));
    let before = site.nodes[0].machine.mark();
    let state = worker::Mark {
        rev: Revision::new(1),
        ..before.expect("a mark")
    };
    let sent = site.now;
    site.feed(
        0,
        worker::Input::Named {
            state,
            before,
            sent,
        },
    );
    assert!(site.nodes[0].machine.rollback().is_some());
    assert_eq!(site.nodes[0].shown.run_token(site.now), None);
}

#[test]
fn a_replica_of_an_epoch_that_is_over_hides_no_mark_after_a_restart() {
    let mut site = Site::new(2);
    for number in 0..20 {
        site.publish("a", Some(&number.to_string()));
    }
    site.pass(Duration::from_secs(3));
    let old = site.nodes[0]
        .replica
        .as_deref()
        .cloned()
        .expect("a replica");
    site.go_back_to(1);
    let epoch = Epoch::new(2);
    site.journal.push(Entry::Epoch { epoch });
    site.start();
    site.pass(DEFAULT_LEASE * 2);
    assert!(site.leased(1));
    // This one heard of the new epoch, and died before it had the catalog.
    let rev = Revision::new(2);
    let restored = Restored {
        mark: site.nodes[1]
            .mark
            .map(|mark| worker::Mark { epoch, rev, ..mark }),
        replica: Some(old),
        ..Restored::default()
    };
    site.nodes[0] = node(&config(50), restored);
    site.nodes[1].mute = true;
    site.publish("a", Some("new"));
    site.feed(0, worker::Input::Wake);
    site.pass(TICK * 50);
    assert!(site.leased(0));
    assert_eq!(site.look(0, "a"), Look::Soon, "the mark is not hidden");
}

/// What a worker leaves that had a lease on revision 1, in which `a` is "1".
fn left_behind(site: &mut Site) -> Restored {
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    let left = &site.nodes[0];
    Restored {
        mark: left.mark,
        replica: left.replica.as_deref().cloned(),
        anchor: left.anchor,
        ..Restored::default()
    }
}

#[test]
fn a_bounded_read_is_answered_right_after_a_restart_when_nobody_can_be_asked() {
    let mut site = Site::new(1);
    let restored = left_behind(&mut site);
    let at = restored.anchor.expect("an anchor").at;
    let disk = std::mem::take(&mut site.nodes[0].disk);
    site.nodes[0] = node(&config(50), restored);
    site.nodes[0].disk = disk;
    site.nodes[0].disk.insert(spec("1").hash(), spec("1"));
    site.nodes[0].cut = true;
    site.feed(0, worker::Input::Wake);
    let age = site.now.since(at);
    let enough = site.read(0, "a", Freshness::Bounded(age * 2));
    let answer = site.nodes[0].done[&enough].clone().expect("an answer");
    assert_eq!(
        (answer.proof.mode, answer.spec),
        (Mode::Bounded, Some(spec("1")))
    );
    assert_eq!(u128::from(answer.proof.age_us), age.as_micros());
    let younger = site.read(0, "a", Freshness::Bounded(age));
    assert!(matches!(
        site.nodes[0].done.get(&younger),
        Some(Err(GetError::NoFreshnessProof { .. }))
    ));
}

#[test]
fn an_anchor_says_nothing_of_a_copy_that_does_not_reach_it() {
    let mut site = Site::new(1);
    let restored = left_behind(&mut site);
    let anchor = restored.anchor.expect("an anchor");
    let age = |restored: Restored| machine(50, restored).sight().age(site.now);
    assert!(age(restored.clone()).is_some());
    let with = |change: &dyn Fn(&mut worker::Mark)| {
        let mut state = anchor.state;
        change(&mut state);
        Restored {
            anchor: Some(worker::Anchor { state, ..anchor }),
            ..restored.clone()
        }
    };
    let next = anchor.state.rev.next();
    assert_eq!(age(with(&|state| state.rev = next)), None, "a later state");
    let other = CatalogId::from_bytes([8; 16]);
    assert_eq!(age(with(&|state| state.catalog = other)), None);
    for epoch in [0, 2].map(Epoch::new) {
        assert_eq!(age(with(&|state| state.epoch = epoch)), None, "{epoch}");
    }
    let nothing = Restored {
        replica: None,
        ..restored.clone()
    };
    assert_eq!(age(nothing), None, "no copy");
    let mark = restored.mark.map(|mark| worker::Mark {
        epoch: Epoch::new(2),
        ..mark
    });
    let over = Restored { mark, ..restored };
    assert_eq!(age(over), None, "a copy of an epoch that is over");
}

#[test]
fn a_copy_of_an_epoch_that_is_over_is_not_read_after_a_restart_however_high_its_revision() {
    let mut site = Site::new(1);
    for number in 0..20 {
        site.publish("a", Some(&number.to_string()));
    }
    site.pass(Duration::from_secs(3));
    let left = &site.nodes[0];
    let old = left.replica.as_deref().cloned().expect("a replica");
    let before = left.mark.expect("a mark");
    assert_eq!(old.rev(), Revision::new(20));
    let disk = left.disk.clone();
    let epoch = Epoch::new(2);
    let restored = Restored {
        mark: Some(worker::Mark {
            epoch,
            rev: Revision::new(1),
            ..before
        }),
        replica: Some(old),
        anchor: left.anchor,
        ..Restored::default()
    };
    site.nodes[0] = node(&config(50), restored);
    site.nodes[0].disk = disk;
    site.nodes[0].disk.insert(spec("19").hash(), spec("19"));
    site.nodes[0].cut = true;
    site.feed(0, worker::Input::Wake);
    assert!(site.nodes[0].shown.replica().is_none());
    let token = RunToken {
        catalog: before.catalog,
        epoch: before.epoch,
        rev: before.rev,
    };
    let day = Duration::from_secs(86_400);
    for freshness in [
        Freshness::Strict,
        Freshness::AtLeast(token),
        Freshness::Bounded(day),
        Freshness::At(before.rev),
    ] {
        let read = site.read(0, "a", freshness);
        assert!(
            matches!(site.nodes[0].done.get(&read), Some(Err(_))),
            "{freshness:?}"
        );
    }
    site.go_back_to(1);
    site.journal.push(Entry::Epoch { epoch });
    site.start();
    // Nobody is answered before the leases of the old epoch have ended.
    site.pass(DEFAULT_LEASE * 2);
    site.nodes[0].cut = false;
    site.pass(DEFAULT_LEASE * 2);
    assert_eq!(site.strict(0, "a"), (Some(spec("0")), Mode::Lease));
}

#[test]
fn a_watch_that_the_coordinator_has_lost_is_opened_anew() {
    let mut site = Site::new(1);
    site.pass(Duration::from_secs(3));
    let (&stream, _) = site.streams.last_key_value().expect("a stream");
    let sid = SessionId::new(1);
    // As when an older stream's end is told after a newer one was opened.
    site.ask(coordinator::Input::Unwatch { sid, stream });
    site.pass(DEFAULT_LEASE * 2);
    assert!(site.leased(0));
    let sessions = site
        .coordinator
        .as_ref()
        .expect("running")
        .sessions(site.now);
    assert!(sessions[0].watching);
}

#[test]
fn a_worker_that_does_not_believe_what_it_is_told_lets_no_publish_wait() {
    let mut site = Site::new(1);
    site.publish("a", Some("1"));
    site.publish("a", Some("2"));
    site.pass(Duration::from_secs(3));
    // Without a new epoch.
    site.go_back_to(1);
    site.start();
    site.pass(DEFAULT_LEASE * 3);
    assert!(site.nodes[0].machine.rollback().is_some());
    let ticket = site.publish("b", Some("1"));
    let published = site.published[&ticket].clone().expect("published at once");
    assert_eq!(published.waited.holders, 0);
    let sent = site.nodes[0].sent;
    site.pass(DEFAULT_LEASE);
    assert!(
        site.nodes[0].sent - sent < 40,
        "it asks now and then, no more"
    );
}

#[test]
fn a_worker_far_behind_takes_the_buckets_that_differ() {
    let mut site = Site::new(1);
    site.options.retention = Retention {
        revisions: 10,
        age: Duration::from_secs(60),
    };
    site.crash();
    site.start();
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    site.nodes[0].cut = true;
    let before = site.nodes[0].shown.replica().expect("a replica").rev();
    for number in 0..20 {
        for text in 0..20 {
            site.publish(&format!("n{text}"), Some(&number.to_string()));
        }
    }
    site.pass(DEFAULT_LEASE * 2);
    let ledger = site.coordinator.as_ref().expect("running").ledger();
    assert!(ledger.visible().oldest() > before, "no delta leads there");
    site.nodes[0].cut = false;
    site.pass(DEFAULT_LEASE * 2);
    assert_eq!(site.strict(0, "n7"), (Some(spec("19")), Mode::Lease));
    let replica = site.nodes[0].shown.replica().expect("a replica").clone();
    let view = site.coordinator.as_ref().expect("running").view();
    assert_eq!(replica.records().root(), view.records.root());
}

/// What a worker has on its disk after a publish that nobody reads: of a name that it has used
/// before, and of one that it has not.
fn fetched_ahead(prefetch: Prefetch) -> (bool, bool) {
    let mut site = Site::new(0);
    let used = BTreeSet::from([name("used")]);
    site.join(
        Config {
            prefetch,
            ..config(1)
        },
        Restored {
            used,
            ..Restored::default()
        },
    );
    site.pass(Duration::from_secs(3));
    assert!(site.leased(0));
    for text in ["used", "other"] {
        site.publish(text, Some(text));
    }
    site.pass(Duration::from_secs(1));
    let has = |text| site.nodes[0].disk.contains_key(&spec(text).hash());
    (has("used"), has("other"))
}

#[test]
fn a_worker_gets_ahead_of_its_readers_all_bodies_or_those_of_names_that_it_used_or_none() {
    assert_eq!(fetched_ahead(Prefetch::All), (true, true));
    assert_eq!(fetched_ahead(Prefetch::Used), (true, false));
    assert_eq!(fetched_ahead(Prefetch::None), (false, false));
    assert_eq!(Prefetch::default(), Prefetch::Used);
}

/// The bodies are there before the publish is acknowledged where that takes its time, so that the
/// first read of the new version needs nobody.
#[test]
fn a_body_that_was_hinted_is_there_before_the_change_is_visible() {
    let mut site = Site::new(1);
    let used = BTreeSet::from([name("a")]);
    site.join(
        config(2),
        Restored {
            used,
            ..Restored::default()
        },
    );
    site.publish("a", Some("1"));
    site.pass(Duration::from_secs(3));
    site.nodes[0].cut = true;
    let ticket = site.publish("a", Some("2"));
    assert!(
        !site.published.contains_key(&ticket),
        "the other one is waited for"
    );
    assert!(site.nodes[1].disk.contains_key(&spec("2").hash()));
    assert_eq!(site.look(1, "a"), Look::Soon, "and it is not served yet");
    site.pass(DEFAULT_LEASE);
    let sent = site.nodes[1].sent;
    assert_eq!(site.strict(1, "a"), (Some(spec("2")), Mode::Lease));
    assert_eq!(site.nodes[1].sent, sent);
}

#[test]
fn a_holder_that_is_waited_for_again_and_again_gets_no_lease_for_a_while() {
    let mut site = Site::new(1);
    site.pass(Duration::from_secs(3));
    for number in 0..3 {
        assert!(site.leased(0), "round {number}");
        site.nodes[0].cut = true;
        site.publish("a", Some(&number.to_string()));
        site.pass(DEFAULT_LEASE);
        site.nodes[0].cut = false;
        site.pass(Duration::from_secs(4));
    }
    assert!(!site.leased(0));
    assert_eq!(
        site.strict(0, "a").1,
        Mode::Asked,
        "its reads go to the coordinator"
    );
    let sessions = site
        .coordinator
        .as_ref()
        .expect("running")
        .sessions(site.now);
    assert!(sessions[0].barred_ms > 0);
    site.pass(Duration::from_secs(62));
    assert!(site.leased(0));
}
