//! Workers: their machines, what they keep, and what they do for each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::clock::Clock;
use super::net::{Ask, Caller, Route, Via};
use super::plan::Plan;
use super::readers::Open;
use super::site::Signed;
use super::{Step, World};
use crate::catalog::{CatalogId, Head, HeadSigner};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{FIRST_BYTE_MIN, MAX_HOLD};
use crate::proto::replica::Replica;
use crate::proto::wire::{HeadBytes, Peering, SessionId};
use crate::proto::worker::{
    BootId, CallId, Config, Event, HeldRecord, Input, Keep, KeptAnchor, Local, Mark, Neighbour,
    Output, Prefetch, Restored, Sight, SightCell, Source, Ticket, Worker,
};
use crate::sim::history::WorkerId;
use crate::sim::random::Random;
use crate::spec::{SpecHash, SpecName};
use crate::store::blobs::{self, Loaded};
use crate::store::memory::MemoryStore;

/// Addresses of the coordinator; they lead to the same one.
const COORDINATORS: usize = 2;

/// What a liar shows for news is renewed once in so many times that its readers see something new.
const PAST_EVERY: u64 = 40;

/// Members that one worker is told of at most.
const MAX_NAMED: usize = 30;

/// A worker.
pub(super) struct Node {
    pub(super) clock: Clock,
    pub(super) machine: Option<Worker>,
    pub(super) cell: Shown,
    pub(super) blobs: MemoryStore,
    kept: Kept,
    /// What of it survives a power cut.
    flushed: Kept,
    pub(super) incarnation: u64,
    /// Which start of the kernel it is.
    boots: u128,
    /// Under which the checker knows it; another one once it has forgotten what it saw.
    pub(super) identity: WorkerId,
    sleeps_until: Time,
    armed: Option<Time>,
    pub(super) open: BTreeMap<Ticket, Open>,
    pub(super) up: Up,
    /// The renewal that was sent last.
    pub(super) renewing: Option<CallId>,
    /// Its way to the coordinator over a peer,
    pub(super) relay: Option<Via>,
    /// and one that its machine has not heard of.
    pub(super) offered: Option<Via>,
    pub(super) liar: bool,
    peers: Vec<usize>,
    /// Those who wait for bytes that are on their way here.
    guests: BTreeMap<Ticket, Caller>,
    /// What its readers once saw, for a liar to show.
    past: Arc<Sight>,
    shown: u64,
}

/// Which way packets pass between a worker and the coordinator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Up {
    pub(super) to: bool,
    pub(super) from: bool,
}

/// What a worker's store holds besides blobs.
#[derive(Debug, Clone, Default)]
struct Kept {
    mark: Option<Mark>,
    replica: Option<Arc<Replica>>,
    anchor: Option<KeptAnchor>,
    held: Vec<HeldRecord>,
    used: BTreeSet<SpecName>,
    /// Kept by nobody, but for a mutant.
    lease_until: Option<Time>,
}

/// What reader threads see.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<Arc<Sight>>);

impl SightCell for Shown {
    fn load(&self) -> Arc<Sight> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn store(&self, sight: Arc<Sight>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sight;
    }
}

impl Node {
    pub(super) fn new(plan: &Plan, index: usize, random: &mut Random) -> Self {
        let local = Time::from_micros(1_000_000 + random.below(1 << 40));
        let drift = match plan.drift {
            0 => 0,
            // The worst is likelier than anything between.
            most if random.percent(60) => -i64::from(most),
            most => random.below(2 * u64::from(most) + 1) as i64 - i64::from(most),
        };
        let fixed = plan.peers && !plan.members;
        let others = (0..plan.workers).filter(|&other| other != index && fixed);
        let mut peers: Vec<_> = others.collect();
        while peers.len() > 3 {
            let gone = random.index(peers.len());
            peers.swap_remove(gone);
        }
        Self {
            clock: Clock::new(Time::default(), local, drift),
            machine: None,
            cell: Shown::default(),
            blobs: MemoryStore::new(),
            kept: Kept::default(),
            flushed: Kept::default(),
            incarnation: 0,
            boots: 0,
            identity: WorkerId(index as u64),
            sleeps_until: Time::default(),
            armed: None,
            open: BTreeMap::new(),
            up: Up {
                to: true,
                from: true,
            },
            renewing: None,
            relay: None,
            offered: None,
            liar: random.percent(plan.liars),
            peers,
            guests: BTreeMap::new(),
            past: Arc::default(),
            shown: 0,
        }
    }

    fn boot(&self) -> BootId {
        BootId::from_bytes(self.boots.to_be_bytes())
    }

    /// Until when it sleeps.
    pub(super) fn asleep(&self, now: Time) -> Option<Time> {
        (self.sleeps_until > now).then_some(self.sleeps_until)
    }

    /// When it last woke.
    pub(super) fn slept_until(&self) -> Time {
        self.sleeps_until
    }

    pub(super) fn wake_now(&mut self) {
        self.sleeps_until = Time::default();
    }

    pub(super) fn load(&self, hash: SpecHash, len: Option<u64>) -> Local {
        match blobs::load(&self.blobs, hash, len) {
            Ok(Loaded::Found(spec)) => Local::Found(spec),
            Ok(Loaded::Missing) => Local::Missing,
            Ok(Loaded::Damaged) => Local::Damaged,
            Err(error) => Local::Failed(error.to_string()),
        }
    }

    /// Carries out what only concerns its store; false leaves it to the world.
    fn keep(&mut self, output: &Output) -> bool {
        match output {
            Output::Save(spec) => {
                // A cache that takes no write asks again later.
                let _ = blobs::save(&self.blobs, spec);
            }
            Output::Hold(record) => self.kept.held.push(record.clone()),
            Output::ForgetHeld => self.kept.held.clear(),
            Output::Remember(mark) => self.kept.mark = Some(*mark),
            Output::Keep(Keep::Whole(replica) | Keep::Steps { replica, .. }) => {
                self.kept.replica = Some(Arc::clone(replica));
            }
            Output::Anchor(anchor) => {
                self.kept.anchor = Some(KeptAnchor {
                    boot: self.boot(),
                    anchor: *anchor,
                });
            }
            Output::Use(name) => {
                self.kept.used.insert(name.clone());
            }
            Output::Show(sight) => {
                self.shown += 1;
                if self.shown.is_multiple_of(PAST_EVERY) {
                    self.past = self.cell.load();
                }
                self.cell.store(Arc::clone(sight));
            }
            _ => return false,
        }
        true
    }
}

impl World {
    /// Hands one input to a worker's machine and carries out what follows from it.
    pub(super) fn tell(&mut self, worker: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let node = &mut self.nodes[worker];
            let now = node.clock.at(self.now);
            let Some(machine) = &mut node.machine else {
                return;
            };
            for output in machine.handle(input, now) {
                self.carry_out(worker, output, &mut inputs);
            }
        }
        let node = &mut self.nodes[worker];
        let wake = node.machine.as_ref().and_then(Worker::next_wake);
        let wake = wake.map(|local| node.clock.real(local).max(self.now));
        if let Some(at) = wake
            && node.armed.is_none_or(|armed| at < armed)
        {
            node.armed = Some(at);
            self.schedule(at, Step::NodeWakes(worker));
        }
    }

    fn carry_out(&mut self, worker: usize, output: Output, inputs: &mut VecDeque<Input>) {
        let incarnation = self.nodes[worker].incarnation;
        let over = self.nodes[worker].relay;
        let caller = |call| Caller {
            worker,
            incarnation,
            call,
            route: Route::Direct,
        };
        // Whatever is asked on a way that is gone fails at once.
        let on = |call: Option<CallId>, coordinator: usize| Caller {
            route: match (coordinator < COORDINATORS, over) {
                (false, Some(via)) => Route::Over(via),
                _ => Route::Direct,
            },
            ..caller(call)
        };
        self.oracle.note(self.now, 1, worker as u64, || {
            format!("w{worker} {}", told(&output))
        });
        if self.nodes[worker].keep(&output) {
            return;
        }
        match output {
            Output::Load(hash) => {
                let local = self.nodes[worker].load(hash, None);
                match inputs.back_mut() {
                    Some(Input::Loaded { found }) => found.push((hash, local)),
                    _ => inputs.push_back(Input::Loaded {
                        found: vec![(hash, local)],
                    }),
                }
            }
            Output::Watch {
                call,
                coordinator,
                sid,
            } => self.send(on(Some(call), coordinator), Ask::Watch(sid)),
            Output::Renew {
                call,
                coordinator,
                request,
            } => {
                self.nodes[worker].renewing = Some(call);
                self.send(on(Some(call), coordinator), Ask::Renew(request));
            }
            Output::PrepAck { coordinator, ack } => self.send(on(None, coordinator), Ask::Ack(ack)),
            Output::Leave { coordinator, sid } => {
                self.send(on(None, coordinator), Ask::Leave(sid));
            }
            Output::GetDelta {
                call,
                source,
                request,
            } => self.ask_source(
                on(Some(call), index_of(source)),
                source,
                Ask::Delta(request),
            ),
            Output::GetCatalog {
                call,
                source,
                request,
            } => self.ask_source(
                on(Some(call), index_of(source)),
                source,
                Ask::Catalog(request),
            ),
            Output::Resolve {
                call,
                coordinator,
                request,
                ..
            } => self.send(on(Some(call), coordinator), Ask::Resolve(request)),
            Output::OpenRelay { call, peer } => {
                self.ask_source(caller(Some(call)), Source::Peer(peer), Ask::Relay);
            }
            Output::Fetch {
                call,
                source,
                hash,
                force,
                ..
            } => self.ask_source(
                on(Some(call), index_of(source)),
                source,
                Ask::Blob(hash, force),
            ),
            Output::Give { ticket, result } => {
                if let Some(guest) = self.nodes[worker].guests.remove(&ticket) {
                    let given = result.map(|spec| Event::Body(spec.into_bytes()));
                    self.reply(guest, vec![given.unwrap_or_else(Event::Refused)]);
                }
            }
            Output::Cancel(call) => {
                self.relay_left(worker, call);
                self.send(caller(None), Ask::Unwatch(call));
            }
            Output::Done { ticket, result } => self.read_done(worker, ticket, result),
            Output::Misbehaved { .. } if self.oracle.is_betrayed() => {}
            Output::Misbehaved { hop, what } if hop.kind() == "coordinator" => {
                let why = format!("w{worker} says that the coordinator lies: it {what}");
                self.oracle.fail(self.now, why, format!("w{worker} "));
            }
            _ => {}
        }
    }

    fn ask_source(&mut self, from: Caller, source: Source, ask: Ask) {
        match source {
            Source::Coordinator(_) => self.send(from, ask),
            Source::Peer(id) => {
                let Some(&peer) = self.known.get(&id) else {
                    return self.fails(from, Duration::ZERO, true);
                };
                let pause = self.travel();
                let from = Caller {
                    route: Route::Peer,
                    ..from
                };
                self.later(pause, Step::Peer { from, peer, ask });
            }
        }
    }

    /// Something comes back for a call.
    pub(super) fn event(&mut self, to: Caller, event: Event) {
        let node = &self.nodes[to.worker];
        let Some(call) = to.call else { return };
        if node.incarnation != to.incarnation || node.machine.is_none() {
            return;
        }
        let worker = to.worker;
        if let Event::RelayUp { .. } = event {
            self.relay_opened(worker, call);
        }
        self.oracle.note(self.now, 2, worker as u64, || {
            format!("w{worker} <- {}", short(&event))
        });
        self.tell(worker, Input::Event { call, event });
    }

    pub(super) fn node_wakes(&mut self, worker: usize) {
        let node = &mut self.nodes[worker];
        if let Some(until) = node.asleep(self.now) {
            return self.schedule(until, Step::NodeWakes(worker));
        }
        if node.armed.is_some_and(|armed| armed <= self.now) {
            node.armed = None;
            self.tell(worker, Input::Wake);
        }
    }

    pub(super) fn start_node(&mut self, worker: usize) {
        if self.nodes[worker].machine.is_some() {
            return;
        }
        let high = u128::from(self.random.next()) << 64;
        let sid = SessionId::new(high | u128::from(self.random.next()));
        let seed = self.random.next();
        let prefetch = *self
            .random
            .pick(&[Prefetch::None, Prefetch::Used, Prefetch::All]);
        let node = &mut self.nodes[worker];
        let config = Config {
            coordinators: (0..COORDINATORS).map(|n| format!("c{n}")).collect(),
            peers: node.peers.iter().map(|&peer| peer_addr(peer)).collect(),
            seed,
            sid,
            lease: true,
            prefetch,
            peering: match self.plan.members {
                true => Peering::Gives,
                false => Peering::Alone,
            },
            relay: self.plan.relay,
        };
        let kept = node.kept.clone();
        let (boot, local) = (Some(node.boot()), node.clock.at(self.now));
        let restored = Restored {
            mark: kept.mark,
            replica: kept.replica.map(|replica| Replica::clone(&replica)),
            anchor: kept
                .anchor
                .and_then(|anchor| anchor.still_holds(boot, local)),
            held: kept.held.into_iter().collect(),
            used: kept.used,
            #[cfg(feature = "mutants")]
            lease_until: kept.lease_until,
        };
        node.cell = Shown::default();
        node.renewing = None;
        (node.relay, node.offered) = (None, None);
        node.machine = Some(Worker::new(&config, Arc::new(Signed), restored));
        self.oracle
            .note(self.now, 3, worker as u64, || format!("w{worker} starts"));
        self.tell(worker, Input::Wake);
        self.name_members(worker);
        self.later(Duration::from_secs(1), Step::Flush(worker));
    }

    /// Membership tells a worker of some others, another time of other ones.
    fn name_members(&mut self, worker: usize) {
        if !self.plan.members {
            return;
        }
        let mut others: Vec<_> = (0..self.nodes.len()).filter(|&n| n != worker).collect();
        let most = self.random.index(others.len().min(MAX_NAMED) + 1);
        while others.len() > most {
            let gone = self.random.index(others.len());
            others.swap_remove(gone);
        }
        let members = others.into_iter().map(neighbour).collect();
        self.tell(worker, Input::Peers(members));
    }

    pub(super) fn flush_node(&mut self, worker: usize) {
        // Copying is dear; in a crowd nobody loses anything.
        if self.nodes.len() <= 20 && !self.quiet {
            let node = &mut self.nodes[worker];
            node.flushed = node.kept.clone();
            self.name_members(worker);
            self.later(Duration::from_secs(1), Step::Flush(worker));
        }
    }

    /// The process is killed; `power` takes what was not flushed, and the clock with it.
    pub(super) fn kill_node(&mut self, worker: usize, power: bool) {
        let fresh = self.id();
        let loses_copy = self.random.percent(50);
        let drift_at = Time::from_micros(1_000_000);
        let now = self.now;
        let node = &mut self.nodes[worker];
        let Some(machine) = node.machine.take() else {
            return;
        };
        let local = node.clock.at(now);
        let left = machine.sight().lease_left(local);
        node.kept.lease_until = Some(local + left);
        node.incarnation += 1;
        node.open.clear();
        let guests = std::mem::take(&mut node.guests);
        node.armed = None;
        node.wake_now();
        if !power && loses_copy {
            // It is written behind the mark and beside the anchor.
            node.kept.replica = node.flushed.replica.clone();
        }
        if power {
            node.kept = node.flushed.clone();
            node.boots += 1;
            node.kept.lease_until = None;
            node.identity = WorkerId(1_000_000 + fresh);
            node.clock.restart(now, drift_at);
        }
        self.oracle.note(now, 4, worker as u64, || {
            format!("w{worker} is killed, power {power}")
        });
        for guest in guests.into_values() {
            self.fails(guest, Duration::from_millis(300), false);
        }
        let streams: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.caller.worker == worker)
            .map(|(&number, _)| number)
            .collect();
        for stream in streams {
            self.break_stream(stream);
        }
        self.carrier_gone(worker);
    }

    pub(super) fn suspend_node(&mut self, worker: usize, pause: Duration) {
        let node = &mut self.nodes[worker];
        if node.machine.is_none() || node.asleep(self.now).is_some() {
            return;
        }
        node.sleeps_until = self.now + pause;
        node.clock.slept(self.now, pause);
        let incarnation = node.incarnation;
        self.oracle.note(self.now, 5, worker as u64, || {
            format!("w{worker} sleeps for {pause:?}")
        });
        // It finds out a little later than its readers go on.
        let late = self
            .random
            .span((Duration::ZERO, Duration::from_millis(200)));
        let step = Step::Resumed {
            worker,
            incarnation,
        };
        self.later(pause + late, step);
    }

    pub(super) fn node_resumed(&mut self, worker: usize, incarnation: u64) {
        if self.nodes[worker].incarnation == incarnation {
            self.tell(worker, Input::Resumed);
        }
    }

    /// A peer is asked, and gives what it has, or what it likes.
    pub(super) fn peer_asked(&mut self, from: Caller, peer: usize, ask: &Ask) {
        let node = &self.nodes[peer];
        if node.machine.is_none() || node.asleep(self.now).is_some() {
            let pause = self
                .random
                .span((Duration::from_millis(5), Duration::from_secs(3)));
            return self.fails(from, pause, true);
        }
        if let Ask::Relay = ask {
            return self.relay_asked(from, peer);
        }
        let lies = node.liar && !self.quiet && self.random.percent(70);
        let Ask::Blob(hash, force) = *ask else {
            return self.catalog_asked(from, peer, ask, lies);
        };
        let node = &self.nodes[peer];
        let found = match node.load(hash, None) {
            Local::Found(spec) => Some(spec.into_bytes()),
            _ => None,
        };
        let event = match found {
            _ if lies => self.lie(found),
            Some(bytes) => Some(Event::Body(bytes)),
            None if !force => {
                let ticket = self.id();
                self.nodes[peer].guests.insert(ticket, from);
                self.reply(from, vec![Event::Held]);
                return self.tell(peer, Input::Hold { ticket, hash });
            }
            None => Some(Event::Refused(Refusal::new(Code::NotFound, "not here"))),
        };
        match event {
            Some(event) => self.reply(from, vec![event]),
            // Silence, until the asker's driver gives it up.
            None => {
                let held = if force { Duration::ZERO } else { MAX_HOLD };
                self.fails(from, held + FIRST_BYTE_MIN, true);
            }
        }
    }

    /// A peer is asked for its catalog, or for the end of it.
    fn catalog_asked(&mut self, from: Caller, peer: usize, ask: &Ask, lies: bool) {
        let node = &self.nodes[peer];
        let way = if lies { self.random.below(7) } else { u64::MAX };
        let sight = match way {
            // Old, and right otherwise.
            0 | 1 => Arc::clone(&node.past),
            _ => node.cell.load(),
        };
        let answer = match ask {
            Ask::Delta(get) => sight.delta(get).map(Event::Delta),
            Ask::Catalog(get) => sight.catalog(get).map(Event::Catalog),
            _ => return,
        };
        let mut event = answer.unwrap_or_else(Event::Refused);
        match (way, &mut event) {
            (2, _) => {
                // Silence, until the asker gives it up.
                let span = (Duration::from_millis(250), Duration::from_secs(3));
                let pause = self.random.span(span);
                return self.fails(from, pause, true);
            }
            (3, Event::Delta(delta)) => {
                delta.steps.pop();
            }
            (4, Event::Delta(delta)) => {
                for change in delta.steps.iter_mut().flat_map(|step| &mut step.changes) {
                    change.len ^= 1;
                }
            }
            (5, Event::Delta(delta)) => {
                for step in &mut delta.steps {
                    step.head = foreign(&step.head);
                }
            }
            (6, Event::Delta(delta)) => {
                for step in &mut delta.steps {
                    step.head = unsigned(&step.head);
                }
            }
            (3, Event::Catalog(diff)) => {
                diff.records.pop();
            }
            (4, Event::Catalog(diff)) => {
                if let Some(record) = diff.records.last_mut() {
                    record.version.rev = record.version.rev.next();
                }
            }
            (5, Event::Catalog(diff)) => diff.head = foreign(&diff.head),
            (6, Event::Catalog(diff)) => diff.head = unsigned(&diff.head),
            _ => {}
        }
        self.reply(from, vec![event]);
    }

    /// Wrong bytes, too few, too many, another definition, no time for it, or nothing at all.
    fn lie(&mut self, found: Option<Bytes>) -> Option<Event> {
        let mut bytes = found.map_or_else(|| b"steps: [lie]\n".to_vec(), |bytes| bytes.to_vec());
        let ways = if self.plan.members { 7 } else { 6 };
        match self.random.below(ways) {
            0 => return None,
            1 => bytes.truncate(bytes.len() / 2),
            2 => bytes.extend_from_slice(&[b'#'; 4_000]),
            3 => {
                let index = self.random.index(bytes.len());
                bytes[index] ^= 1;
            }
            4 => {
                // Right at first sight.
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
            }
            5 => return Some(Event::Refused(Refusal::new(Code::NotFound, "not here"))),
            _ => return Some(Event::Refused(Refusal::new(Code::Busy, "for ever"))),
        }
        Some(Event::Body(bytes.into()))
    }
}

/// What stands for a source where a coordinator is named.
const fn index_of(source: Source) -> usize {
    match source {
        Source::Coordinator(index) => index,
        Source::Peer(_) => 0,
    }
}

fn peer_addr(worker: usize) -> String {
    format!("w{worker}")
}

/// Under which others know a worker: as a fixed peer, and as a member.
pub(super) fn ids(worker: usize) -> [NodeId; 2] {
    [NodeId::of_addr(&peer_addr(worker)), member_id(worker)]
}

pub(super) fn member_id(worker: usize) -> NodeId {
    NodeId::of_addr(&format!("member w{worker}"))
}

/// A worker as membership and the coordinator name it.
pub(super) fn neighbour(worker: usize) -> Neighbour {
    Neighbour {
        id: member_id(worker),
        addr: format!("m{worker}"),
    }
}

/// The same head for another catalog, rightly signed.
fn foreign(head: &HeadBytes) -> HeadBytes {
    let catalog = CatalogId::from_bytes([9; 16]);
    signed_anew(head, &Signed, |head| head.catalog = catalog)
}

/// The same head, signed by somebody.
fn unsigned(head: &HeadBytes) -> HeadBytes {
    signed_anew(head, &Nobody, |_| {})
}

fn signed_anew(
    head: &HeadBytes,
    signer: &dyn HeadSigner,
    change: impl FnOnce(&mut Head),
) -> HeadBytes {
    let claimed = head.signed().ok().and_then(|head| head.claimed().ok());
    let Some(mut claimed) = claimed else {
        return head.clone();
    };
    change(&mut claimed);
    (&claimed.sign(signer)).into()
}

/// Holds no key.
struct Nobody;

impl HeadSigner for Nobody {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

/// One line for the log.
fn told(output: &Output) -> String {
    match output {
        Output::Show(sight) => format!(
            "shows {:?}, floor {:?}, marks {:?}",
            sight
                .replica()
                .map(|replica| (replica.epoch(), replica.rev())),
            sight.floor().map(|mark| (mark.epoch, mark.rev)),
            sight.marks()
        ),
        Output::Keep(_) => "keeps its replica".into(),
        Output::Save(spec) => format!("saves {}", spec.hash().short()),
        other => short(other),
    }
}

/// The beginning of what something prints.
pub(super) fn short(of: &impl std::fmt::Debug) -> String {
    format!("{of:?}").chars().take(300).collect()
}
