//! The worker's machine: how a read becomes an answer.
//!
//! A read by name is first a question of *truth*: what is the name now? Only the coordinator may
//! say so, and only in answer to a request sent after the read began. Then it is a question of
//! *bytes*: anyone may give them, since their hash proves them.
//!
//! - Truth is asked through one *flight* per name: a strict read joins only a flight that
//!   has not been sent yet, so it can never return what was true before it began.
//! - Bytes are gathered by one *fetch* per hash, shared by all who want it; further
//!   sources are asked when the first is slow, and the first *verified* answer wins.
//!
//! - With a lease, truth is in the [`Sight`]: a strict read of a name that is not about to change
//!   is answered from the replica and sends nothing.
//!
//! The machine decides; the driver carries out [`Output`]s and hands in [`Input`]s. It may load
//! from disk at once, within the same call.

mod anchor;
#[cfg(feature = "sim")]
mod canon;
mod fetch;
mod heard;
mod held;
mod hold;
mod lease;
mod names;
mod relay;
mod sight;
mod sources;
mod update;
mod uploads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::anchor::{Anchor, BootId, KeptAnchor};
use self::fetch::Fetch;
pub use self::held::{Held, HeldRecord};
use self::hold::Guest;
pub use self::hold::not_here;
use self::lease::{RenewCall, Session};
use self::names::{Flight, FlightKey};
use self::relay::Relay;
pub use self::sight::{Look, MarkSet, Sight, SightCell, look};
use self::sources::Sources;
pub use self::sources::{Neighbour, Source, SourceInfo, weight};
use self::update::UpdateCall;
pub use self::uploads::Uploads;
use crate::answer::{
    Answer, Freshness, GetError, Hop, HopFailure, Mode, Proof, Query, RunToken, Snapshot, Target,
};
use crate::catalog::{CatalogId, Epoch, HeadVerifier, Revision, SignedHead, VerifiedHead, Version};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::code::Refusal;
use crate::proto::limit::{MAX_READS, MAX_USED};
use crate::proto::mutant::mutant;
use crate::proto::replica::Replica;
use crate::proto::wire::{
    CatalogDiff, Delta, GetCatalog, GetDelta, Grant, Peering, PrepAck, Prepare, Renew, Resolve,
    Resolved, SessionId,
};
use crate::spec::{Spec, SpecHash, SpecName};

/// Names one read of the driver, which gets its answer under it.
pub type Ticket = u64;

/// Names one request over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

/// What the machine knows when it starts.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Addresses of the coordinator, as they are shown in errors.
    pub coordinators: Vec<String>,
    /// Addresses of peers, as they are shown in errors. They are known whatever membership says,
    /// each as [`NodeId::of_addr`].
    pub peers: Vec<String>,
    /// Random; shuffles the coordinator's addresses once.
    pub seed: u64,
    /// Random, and another one in each process.
    pub sid: SessionId,
    /// Whether a replica and a lease are wanted: for what reads more than once.
    pub lease: bool,
    /// Which bodies are fetched before anyone asks for them.
    pub prefetch: Prefetch,
    /// Whether the coordinator may name other workers instead of giving bytes, and name this one.
    pub peering: Peering,
    /// Whether the coordinator is reached over a peer when it cannot be reached directly.
    pub relay: bool,
}

/// Which bodies a worker fetches before anyone asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// None.
    None,
    /// Those of names that this worker has read before.
    #[default]
    Used,
    /// All.
    All,
}

/// What an earlier process of this worker left behind.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// The newest state of the coordinator that it had seen.
    pub mark: Option<Mark>,
    /// Its copy of the catalog.
    pub replica: Option<Replica>,
    /// Up to when that reflects everything, on a clock that still runs.
    pub anchor: Option<Anchor>,
    /// What names were.
    pub held: Held,
    /// Names that it had read.
    pub used: BTreeSet<SpecName>,
    /// Until when it might answer: kept by a faulty worker only.
    #[cfg(feature = "mutants")]
    pub lease_until: Option<Time>,
}

/// The newest state of the coordinator that this worker has seen; kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The catalog that this worker belongs to.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its revision.
    pub rev: Revision,
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Input {
    /// Someone reads; what needs the coordinator's truth goes out as one request.
    Get {
        /// What is wanted, and under which ticket each answer comes.
        reads: Vec<(Ticket, Query)>,
    },
    /// The reader of this ticket has gone away.
    Forget {
        /// Of the read.
        ticket: Ticket,
    },
    /// Blobs were looked for on disk: what could be found out at once of all that one turn wanted,
    /// perhaps nothing, and then each of the rest.
    Loaded {
        /// The hashes that [`Output::Load`] named, and what was there.
        found: Vec<(SpecHash, Local)>,
    },
    /// Something came back for a call.
    Event {
        /// The call.
        call: CallId,
        /// What came.
        event: Event,
    },
    /// The coordinator named its newest state to a request of the driver's own.
    Named {
        /// What it named.
        state: Mark,
        /// The [`mark`](Worker::mark) before the request was sent.
        before: Option<Mark>,
        /// When that was, or earlier.
        sent: Time,
    },
    /// These are the members from now on; those before them are not.
    Peers(Vec<Neighbour>),
    /// A member has told of a head that a pinned key signed.
    Heard {
        /// The head.
        head: VerifiedHead,
        /// Who told.
        from: NodeId,
    },
    /// A pinned key has signed this head and another one for its revision.
    Forked(Box<SignedHead>),
    /// Another worker wants bytes that are not on disk, and can wait for a moment: they may be on
    /// their way here. Answered with [`Output::Give`].
    Hold {
        /// Names the question.
        ticket: Ticket,
        /// What it wants.
        hash: SpecHash,
    },
    /// Whoever asked that has gone away.
    LetGo {
        /// Names the question.
        ticket: Ticket,
    },
    /// [`Worker::next_wake`] has come.
    Wake,
    /// The machine has slept, or its clock has jumped.
    Resumed,
    /// The node is about to stop: the lease goes back.
    Leave,
}

/// What the disk had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// The right bytes.
    Found(Spec),
    /// Nothing.
    Missing,
    /// Wrong bytes, now set aside.
    Damaged,
    /// The disk itself failed.
    Failed(String),
}

/// What came back for a call.
#[derive(Debug, Clone)]
pub enum Event {
    /// A resolve has no answer yet, and since it was sent, or since this was said last, packets
    /// have come over its connection. Said once in a while.
    Alive,
    /// The opening of a resolve's answer.
    Opening(Resolved),
    /// What a name is; in the order of the request.
    Outcome {
        /// `None`: it never existed.
        version: Option<Version>,
        /// Whether its body follows.
        body: bool,
        /// Who has it, where it is left out because many ask for it.
        ask: Vec<Neighbour>,
    },
    /// Others have what a fetch asked for, or are about to.
    Pointed(Vec<Neighbour>),
    /// A peer that a fetch asked is there, and waits for the bytes itself.
    Held,
    /// A whole body, unverified: of the outcome before, or of a fetch.
    Body(Bytes),
    /// The coordinator will tell what is about to change.
    Watching,
    /// Something is about to change.
    Prepare(Prepare),
    /// Something has changed.
    Release(Delta),
    /// The answer to a renewal.
    Granted(Grant),
    /// The revisions that were asked for.
    Delta(Delta),
    /// The catalog that was asked for.
    Catalog(CatalogDiff),
    /// The coordinator has said hello over a peer. The call goes on for as long as the peer
    /// carries packets; whatever comes next ends it.
    RelayUp {
        /// Where the peer reaches the coordinator.
        addr: String,
        /// The peer's name, as its certificate says.
        via: String,
    },
    /// The other side said no.
    Refused(Refusal),
    /// The call failed; nothing more comes.
    Failed {
        /// Why, in one clause.
        reason: String,
        /// The address could not be reached at all.
        unreachable: bool,
    },
    /// The connection that carried the call is gone, as when the other side has restarted: a new
    /// one may do, so the same address is asked once more.
    Lost {
        /// Why, in one clause.
        reason: String,
    },
    /// The answer is complete.
    End,
}

/// What the driver must do.
#[derive(Debug, Clone)]
pub enum Output {
    /// Look for a blob on disk and hand in [`Input::Loaded`], one for all that can be looked at
    /// at once.
    Load(SpecHash),
    /// Keep these bytes.
    Save(Spec),
    /// Remember what a name was.
    Hold(HeldRecord),
    /// Forget what names were: it belongs to another epoch or catalog.
    ForgetHeld,
    /// Remember the newest state seen: it survives the end of the process before any later output
    /// of the machine is carried out.
    Remember(Mark),
    /// Ask a coordinator address.
    Resolve {
        /// Under which events come.
        call: CallId,
        /// Index into [`Config::coordinators`].
        coordinator: usize,
        /// The request.
        request: Resolve,
        /// What the most patient of its readers has left: so long it may wait for its turn to dial.
        within: Duration,
    },
    /// Ask for bytes.
    Fetch {
        /// Under which events come.
        call: CallId,
        /// Whom to ask.
        source: Source,
        /// For what.
        hash: SpecHash,
        /// Its length, where a record says so; else the general limit holds.
        len: Option<u64>,
        /// Where the source listens, if it is a peer that [`Input::Peers`] did not name.
        addr: Option<String>,
        /// Whether it shall answer at once and with the bytes. Else a coordinator may point at
        /// others, and a peer may let this wait for [`MAX_HOLD`](crate::proto::limit::MAX_HOLD).
        force: bool,
        /// What the most patient of its readers has left.
        within: Duration,
    },
    /// Show this to every reader, before any later output is carried out.
    Show(Arc<Sight>),
    /// Keep the replica.
    Keep(Keep),
    /// Say who gave what the replica lacked.
    Brought {
        /// Who.
        hop: Hop,
        /// What the replica shows now.
        rev: Revision,
    },
    /// Remember until when the replica reflects everything, with the next flush of the store.
    Anchor(Anchor),
    /// Remember that this name was read.
    Use(SpecName),
    /// Open a stream over which the coordinator tells what is about to change.
    Watch {
        /// Under which events come, until the stream ends.
        call: CallId,
        /// Index into [`Config::coordinators`].
        coordinator: usize,
        /// The session.
        sid: SessionId,
    },
    /// Ask for a lease.
    Renew {
        /// Under which events come.
        call: CallId,
        /// Index into [`Config::coordinators`].
        coordinator: usize,
        /// The request.
        request: Renew,
    },
    /// Say that readers see a mark. Whether it arrives is found out by the next renewal.
    PrepAck {
        /// Index into [`Config::coordinators`].
        coordinator: usize,
        /// What to say.
        ack: PrepAck,
    },
    /// Give the lease back.
    Leave {
        /// Index into [`Config::coordinators`].
        coordinator: usize,
        /// The session.
        sid: SessionId,
    },
    /// Ask for revisions.
    GetDelta {
        /// Under which events come.
        call: CallId,
        /// Whom to ask.
        source: Source,
        /// The request.
        request: GetDelta,
    },
    /// Ask for the catalog.
    GetCatalog {
        /// Under which events come.
        call: CallId,
        /// Whom to ask.
        source: Source,
        /// The request.
        request: GetCatalog,
    },
    /// Open a way to the coordinator over a peer, and keep it until the call is cancelled. The index
    /// after the last of [`Config::coordinators`] stands for it wherever a coordinator is named.
    OpenRelay {
        /// Under which events come.
        call: CallId,
        /// Whom to ask.
        peer: NodeId,
    },
    /// Stop a call; no event is wanted any more.
    Cancel(CallId),
    /// Answer a read.
    Done {
        /// Of the read.
        ticket: Ticket,
        /// The answer or why there is none.
        result: Result<Answer, GetError>,
    },
    /// Answer another worker's question for bytes.
    Give {
        /// Of the question.
        ticket: Ticket,
        /// The bytes or why there are none.
        result: Result<Spec, Refusal>,
    },
    /// Someone sent what its own record or hash does not allow.
    Misbehaved {
        /// Who.
        hop: Hop,
        /// What.
        what: String,
    },
}

/// How the replica on disk becomes the one in memory.
#[derive(Debug, Clone)]
pub enum Keep {
    /// It is this one.
    Whole(Arc<Replica>),
    /// The revisions after `after` are added.
    Steps {
        /// With the new revisions.
        replica: Arc<Replica>,
        /// What the disk has.
        after: Revision,
    },
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Worker {
    sources: Sources,
    peering: Peering,
    relay: Relay,
    session: Session,
    sight: Sight,
    /// The sight has changed since readers were last shown one.
    dirty: bool,
    /// Readers were shown one in this turn.
    shown: bool,
    /// When the next renewal is planned.
    renewal: Option<Time>,
    /// When the replica is brought forward.
    update_at: Option<Time>,
    /// Strict reads that wait for a release.
    parked: BTreeMap<Ticket, (SpecName, Waiter)>,
    /// Names that were read.
    used: BTreeSet<SpecName>,
    held: Held,
    mark: Option<Mark>,
    /// Set when the coordinator went back; only a higher epoch ends it.
    rollback: Option<(Revision, Revision)>,
    reads: BTreeMap<Ticket, Read>,
    flights: BTreeMap<FlightKey, Flight>,
    fetches: BTreeMap<SpecHash, Fetch>,
    calls: BTreeMap<CallId, Call>,
    next_call: u64,
    /// Other workers that wait for bytes that are on their way here.
    guests: BTreeMap<Ticket, Guest>,
    /// A fetch has ended in this turn, so that some of them may wait for nothing.
    fetch_ended: bool,
    /// Who waits for a blob to be looked for on disk.
    loading: BTreeMap<SpecHash, Vec<LoadFor>>,
    /// Flights that are ready to be sent, gathered within one turn and the look at the disk that
    /// it wants.
    ready: Vec<FlightKey>,
    timers: BTreeSet<(Time, Timer)>,
    out: Vec<Output>,
}

/// A read in progress.
#[derive(Debug, Clone)]
struct Read {
    target: Target,
    deadline: Time,
    place: Place,
}

/// What a read waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Parked,
    Flight(FlightKey),
    Fetch(SpecHash),
}

/// A read as its flight or fetch knows it.
#[derive(Debug, Clone)]
struct Waiter {
    ticket: Ticket,
    started: Time,
    /// An answer from before this one is none.
    at_least: Option<RunToken>,
    /// An answer from another history than this one's is none.
    within: Option<RunToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LoadFor {
    Flight(FlightKey),
    Fetch,
}

/// A request over the network and what it is for.
#[derive(Debug, Clone)]
enum Call {
    Resolve(names::ResolveCall),
    Watch,
    Renew(RenewCall),
    Update(UpdateCall),
    Relay,
    Fetch {
        hash: SpecHash,
        source: Source,
        since: Time,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Deadline(Ticket),
    Answer(CallId),
    Hedge(SpecHash),
    Renew,
    RenewLate(CallId),
    Update,
    UpdateLate(CallId),
    RelayLate(CallId),
    RelayOver(CallId),
    Park(Ticket),
    Hold(Ticket),
}

impl Worker {
    /// A machine with what the store remembered. Its first outputs, after [`Input::Wake`], show
    /// readers what is held and open the session.
    pub fn new(config: &Config, verifier: Arc<dyn HeadVerifier>, restored: Restored) -> Self {
        let Restored {
            mark,
            replica,
            anchor,
            held,
            used,
            ..
        } = restored;
        // A catalog is kept together with its mark, but a crash may come between the two.
        let restored_mark = mark;
        let newest = replica.as_ref().map(|replica| Mark {
            catalog: replica.head().catalog,
            epoch: replica.epoch(),
            rev: replica.rev(),
        });
        let mark = match (mark, newest) {
            (Some(mark), Some(newest)) if mark.catalog == newest.catalog => Some(mark.max(newest)),
            (mark, newest) => mark.or(newest),
        };
        // One of an epoch that is over helps to fetch its successor, and is not read.
        let (replica, base) = match replica {
            Some(replica) if mark.is_some_and(|mark| mark.epoch != replica.epoch()) => {
                (None, Some(replica))
            }
            replica => (replica, None),
        };
        // What it was named may be newer than the copy that reached the disk.
        let reached = |anchor: &Anchor| {
            let state = anchor.state;
            replica.as_ref().is_some_and(|replica| {
                let (of, epoch) = (replica.head().catalog, replica.epoch());
                (of, epoch) == (state.catalog, state.epoch) && replica.rev() >= state.rev
            })
        };
        let anchor = anchor.filter(reached).map(|anchor| anchor.at);
        let sight = Sight {
            replica: replica.map(Arc::new),
            floor: mark,
            anchor,
            #[cfg(feature = "mutants")]
            lease_until: restored.lease_until.filter(|_| mutant!(X23)),
            ..Sight::default()
        };
        let renewal = config.lease.then(Time::default);
        // Readers are about to see it, and the copy may be lost.
        let unwritten = mark.filter(|_| mark != restored_mark);
        let out = unwritten.map(Output::Remember).into_iter().collect();
        Self {
            sources: Sources::new(config),
            peering: config.peering,
            relay: Relay::new(config.relay),
            session: Session::new(config.sid, config.lease, config.prefetch, verifier, base),
            sight,
            dirty: true,
            shown: false,
            renewal,
            update_at: None,
            parked: BTreeMap::new(),
            used,
            held,
            mark,
            rollback: None,
            reads: BTreeMap::new(),
            flights: BTreeMap::new(),
            fetches: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            guests: BTreeMap::new(),
            fetch_ended: false,
            loading: BTreeMap::new(),
            ready: Vec::new(),
            timers: renewal.map(|at| (at, Timer::Renew)).into_iter().collect(),
            out,
        }
    }

    /// Takes one input and returns what must be done, in order.
    pub fn handle(&mut self, input: Input, now: Time) -> Vec<Output> {
        let had_flights = !self.flights.is_empty();
        match input {
            Input::Get { reads } => {
                for (ticket, query) in reads {
                    self.get(ticket, query, now);
                }
            }
            Input::Forget { ticket } => self.forget(ticket),
            Input::Loaded { found } => {
                for (hash, local) in found {
                    self.loaded(hash, local, now);
                }
            }
            Input::Event { call, event } => self.event(call, event, now),
            Input::Named {
                state,
                before,
                sent,
            } => self.named(state, before, sent, now),
            Input::Peers(members) => self.set_members(members, now),
            Input::Heard { head, from } => self.heard(&head, from, now),
            Input::Forked(head) => self.forked(&head),
            Input::Hold { ticket, hash } => self.hold_question(ticket, hash, now),
            Input::LetGo { ticket } => self.let_go(ticket),
            Input::Wake => self.wake(now),
            Input::Resumed => self.resumed(now),
            Input::Leave => self.leave(),
        }
        self.show();
        if std::mem::take(&mut self.shown) {
            self.look_again(now);
        }
        // What was asked together goes out together: the rest is ready when the disk was looked at.
        if !self
            .out
            .iter()
            .any(|output| matches!(output, Output::Load(_)))
        {
            self.send_ready(now);
        }
        let no_flights = had_flights && self.flights.is_empty();
        if std::mem::take(&mut self.fetch_ended) || no_flights {
            self.refuse_guests();
        }
        std::mem::take(&mut self.out)
    }

    /// Whether somebody waits for what is under way.
    pub fn is_reading(&self) -> bool {
        !self.flights.is_empty() || !self.fetches.is_empty()
    }

    /// When to call [`handle`](Self::handle) with [`Input::Wake`] at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The newest state of the coordinator that was seen.
    pub fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// What readers were last shown, or are about to be.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// The high-water mark and the lower revision that broke it, while reads by name fail.
    pub fn rollback(&self) -> Option<(Revision, Revision)> {
        self.rollback
    }

    /// Whether the coordinator has not answered several renewals in a row, over any way.
    pub fn is_unheard(&self) -> bool {
        self.session.failures > 1
    }

    /// Whether a replica is kept, or was not wanted, or is given up.
    pub fn keeps_replica(&self) -> bool {
        self.session_is_wanted()
    }

    /// Who brought the newest revision of the replica since this process began.
    pub fn brought_by(&self) -> Option<Hop> {
        self.session.brought_by.clone()
    }

    /// Reads in progress.
    pub fn reads(&self) -> usize {
        self.reads.len()
    }

    /// What is known of each address.
    pub fn sources(&self, now: Time) -> Vec<SourceInfo> {
        self.sources.info(now)
    }

    fn get(&mut self, ticket: Ticket, query: Query, now: Time) {
        if self.reads.len() >= MAX_READS {
            return self.done(ticket, Err(GetError::Busy));
        }
        let deadline = now + query.deadline;
        self.timers.insert((deadline, Timer::Deadline(ticket)));
        let waiter = Waiter {
            ticket,
            started: now,
            at_least: match query.freshness {
                Freshness::AtLeast(token) => Some(token),
                _ => None,
            },
            within: match query.freshness {
                Freshness::Run(token) => Some(token),
                _ => None,
            },
        };
        let place = match &query.target {
            Target::Hash(hash) => Place::Fetch(*hash),
            Target::Name(name) => Place::Flight(FlightKey::new(name, query.freshness)),
        };
        if let Target::Name(name) = &query.target {
            self.note_use(name);
        }
        let read = Read {
            target: query.target.clone(),
            deadline,
            place,
        };
        self.reads.insert(ticket, read);
        match (query.target, query.freshness) {
            (Target::Hash(hash), _) => {
                let basis = Basis::pinned(now);
                self.want_bytes(hash, None, basis, vec![waiter], Vec::new());
            }
            (Target::Name(name), Freshness::At(_)) if mutant!(X06) => self.ask(name, waiter),
            (Target::Name(name), Freshness::At(at)) => self.get_at(name, at, waiter, now),
            (Target::Name(name), Freshness::Run(token)) => self.get_run(name, token, waiter, now),
            (Target::Name(name), Freshness::Strict) => self.get_strict(name, waiter, now),
            (Target::Name(name), Freshness::Verified) => self.ask(name, waiter),
            (Target::Name(_), Freshness::AtLeast(token)) if self.is_foreign(token) => {
                let catalog = self.mark.map_or(token.catalog, |mark| mark.catalog);
                self.fail(vec![waiter], &GetError::OtherCatalog { token, catalog });
            }
            (Target::Name(name), Freshness::AtLeast(token)) => {
                let look = self.sight.at_least(&name, token);
                self.serve_or_ask(name, look, Mode::AtLeast, waiter, now);
            }
            (Target::Name(name), Freshness::Bounded(staleness)) => {
                let look = self.sight.bounded(&name, staleness, now);
                self.serve_or_ask(name, look, Mode::Bounded, waiter, now);
            }
        }
    }

    fn is_foreign(&self, token: RunToken) -> bool {
        self.mark.is_some_and(|mark| mark.catalog != token.catalog)
    }

    fn named(&mut self, state: Mark, before: Option<Mark>, sent: Time, now: Time) {
        if self.believe(state, before) {
            self.raise_floor(state);
            self.expect_anchor(sent, state.rev);
            self.plan_update(now);
        }
    }

    fn set_members(&mut self, members: Vec<Neighbour>, now: Time) {
        let in_use = self.peers_in_use();
        self.sources.set_members(members, &in_use);
        self.poll_if_idle(now);
    }

    /// Peers that are asked, or are about to be.
    fn peers_in_use(&self) -> BTreeSet<NodeId> {
        let asked = self.calls.values().filter_map(|call| match call {
            Call::Fetch { source, .. } => Some(*source),
            Call::Update(call) => Some(call.source()),
            _ => None,
        });
        let asked = asked.filter_map(|source| match source {
            Source::Peer(id) => Some(id),
            Source::Coordinator(_) => None,
        });
        let hinted = self.fetches.values().flat_map(Fetch::hinted);
        asked.chain(hinted).chain(self.relay.peer()).collect()
    }

    fn note_use(&mut self, name: &SpecName) {
        if self.used.len() < MAX_USED && !self.used.contains(name) {
            self.used.insert(name.clone());
            self.out.push(Output::Use(name.clone()));
        }
    }

    fn get_strict(&mut self, name: SpecName, waiter: Waiter, now: Time) {
        match self.sight.strict(&name, now) {
            Look::Soon => self.park(name, waiter, now),
            look => self.serve_or_ask(name, look, Mode::Lease, waiter, now),
        }
    }

    fn serve_or_ask(&mut self, name: SpecName, look: Look, mode: Mode, waiter: Waiter, now: Time) {
        let Look::Serve(version, snapshot) = look else {
            return self.ask(name, waiter);
        };
        let basis = Basis {
            mode,
            snapshot: Some(snapshot),
            record_rev: names::known_rev(version),
            asked: self.sight.anchor.unwrap_or(Basis::UNKNOWN),
        };
        self.settle(version, basis, vec![waiter], Vec::new(), Hop::Disk, now);
    }

    /// A change of this name is about to show: for a moment that is quicker than to ask.
    fn park(&mut self, name: SpecName, waiter: Waiter, now: Time) {
        let ticket = waiter.ticket;
        let at = now + self.release_wait(now);
        self.timers.insert((at, Timer::Park(ticket)));
        if let Some(read) = self.reads.get_mut(&ticket) {
            read.place = Place::Parked;
        }
        self.parked.insert(ticket, (name, waiter));
    }

    /// Those who waited for a release look again.
    fn look_again(&mut self, now: Time) {
        for (ticket, (name, waiter)) in std::mem::take(&mut self.parked) {
            match self.sight.strict(&name, now) {
                Look::Soon => {
                    self.parked.insert(ticket, (name, waiter));
                }
                look => self.unpark(name, look, waiter, now),
            }
        }
    }

    fn unpark(&mut self, name: SpecName, look: Look, waiter: Waiter, now: Time) {
        if let Some(read) = self.reads.get_mut(&waiter.ticket) {
            read.place = Place::Flight(FlightKey::new(&name, Freshness::Strict));
        }
        self.serve_or_ask(name, look, Mode::Lease, waiter, now);
    }

    fn parked_long(&mut self, ticket: Ticket, now: Time) {
        if let Some((name, waiter)) = self.parked.remove(&ticket) {
            self.unpark(name, Look::Ask, waiter, now);
        }
    }

    /// What the most patient of some readers has left.
    fn time_left(&self, waiters: &[Waiter], now: Time) -> Duration {
        let reads = waiters
            .iter()
            .filter_map(|waiter| self.reads.get(&waiter.ticket));
        let left = reads.map(|read| read.deadline.since(now));
        left.max().unwrap_or_default()
    }

    fn forget(&mut self, ticket: Ticket) {
        let Some(read) = self.reads.remove(&ticket) else {
            return;
        };
        self.timers
            .remove(&(read.deadline, Timer::Deadline(ticket)));
        match read.place {
            Place::Parked => {
                self.parked.remove(&ticket);
            }
            Place::Flight(key) => {
                if let Some(flight) = self.flights.get_mut(&key) {
                    flight.forget(ticket);
                }
            }
            Place::Fetch(hash) => {
                if let Some(fetch) = self.fetches.get_mut(&hash) {
                    fetch.forget(ticket);
                }
            }
        }
    }

    fn loaded(&mut self, hash: SpecHash, local: Local, now: Time) {
        for wanted in self.loading.remove(&hash).unwrap_or_default() {
            match wanted {
                LoadFor::Flight(key) => self.flight_loaded(&key, local.clone()),
                LoadFor::Fetch => self.fetch_loaded(hash, local.clone(), now),
            }
        }
    }

    fn event(&mut self, call: CallId, event: Event, now: Time) {
        match self.calls.get(&call) {
            Some(Call::Resolve(_)) => self.resolve_event(call, event, now),
            Some(Call::Fetch { .. }) => self.fetch_event(call, event, now),
            Some(Call::Watch) => self.watch_event(call, event, now),
            Some(Call::Renew(_)) => self.renew_event(call, event, now),
            Some(Call::Update(_)) => self.update_event(call, event, now),
            Some(Call::Relay) => self.relay_event(call, event, now),
            // A call that was cancelled meanwhile.
            None => {}
        }
    }

    fn wake(&mut self, now: Time) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            let Some((_, timer)) = self.timers.pop_first() else {
                return;
            };
            match timer {
                Timer::Deadline(ticket) => self.expire(ticket, now),
                Timer::Answer(call) => self.answer_late(call, now),
                Timer::Hedge(hash) => self.hedge(hash, now),
                Timer::Renew => self.renew_due(now),
                Timer::RenewLate(call) => self.renew_late(call, now),
                Timer::Update => self.update_due(now),
                Timer::UpdateLate(call) => self.update_late(call, now),
                Timer::RelayLate(call) => self.relay_late(call, now),
                Timer::RelayOver(call) => self.relay_over(call),
                Timer::Park(ticket) => self.parked_long(ticket, now),
                Timer::Hold(ticket) => self.held_long(ticket),
            }
        }
    }

    fn expire(&mut self, ticket: Ticket, now: Time) {
        let Some(read) = self.reads.get(&ticket) else {
            return;
        };
        let hops = match &read.place {
            Place::Parked => Vec::new(),
            Place::Flight(key) => self.flight_hops(key),
            Place::Fetch(hash) => self.fetch_hops(hash),
        };
        // Once the truth is known only its bytes are late, and what was known before is old.
        let last = match &read.place {
            Place::Flight(key) if key.at.is_none() => self.last_known_at(&key.name, now),
            _ => None,
        };
        let target = read.target.clone();
        self.forget(ticket);
        let error = GetError::Deadline { target, last, hops };
        self.done(ticket, Err(error));
    }

    fn new_call(&mut self, call: Call) -> CallId {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert(id, call);
        id
    }

    fn load(&mut self, hash: SpecHash, wanted: LoadFor) {
        let waiting = self.loading.entry(hash).or_default();
        if waiting.is_empty() {
            self.out.push(Output::Load(hash));
        }
        if !waiting.contains(&wanted) {
            waiting.push(wanted);
        }
    }

    fn done(&mut self, ticket: Ticket, result: Result<Answer, GetError>) {
        if let Some(read) = self.reads.remove(&ticket) {
            self.timers
                .remove(&(read.deadline, Timer::Deadline(ticket)));
        }
        self.out.push(Output::Done { ticket, result });
    }

    /// Answers `waiters` alike.
    fn answer(
        &mut self,
        waiters: Vec<Waiter>,
        spec: Option<&Spec>,
        proof: &Proof,
        failed: &[HopFailure],
        now: Time,
    ) {
        for Waiter {
            ticket, started, ..
        } in waiters
        {
            let answer = Answer {
                spec: spec.cloned(),
                proof: proof.clone(),
                failed: failed.to_vec(),
                took: now.since(started),
            };
            self.done(ticket, Ok(answer));
        }
    }

    fn fail(&mut self, waiters: Vec<Waiter>, error: &GetError) {
        for Waiter { ticket, .. } in waiters {
            self.done(ticket, Err(error.clone()));
        }
    }
}

/// What a proof says before it is known where the bytes come from.
#[derive(Debug, Clone)]
struct Basis {
    mode: Mode,
    snapshot: Option<Snapshot>,
    record_rev: Option<Revision>,
    /// When the request that gave the truth was sent.
    asked: Time,
}

impl Basis {
    /// When nobody knows since when the answer may be out of date: its age has no bound.
    const UNKNOWN: Time = Time::from_micros(0);

    fn pinned(now: Time) -> Self {
        Self {
            mode: Mode::Pinned,
            snapshot: None,
            record_rev: None,
            asked: now,
        }
    }

    fn proof(&self, source: Hop, now: Time) -> Proof {
        let age = match self.mode {
            Mode::Lease | Mode::AtLeast | Mode::Bounded if self.asked == Self::UNKNOWN => {
                Duration::MAX
            }
            Mode::Asked | Mode::Lease | Mode::AtLeast | Mode::Bounded => now.since(self.asked),
            Mode::At | Mode::Pinned => Duration::ZERO,
        };
        Proof {
            mode: self.mode,
            snapshot: self.snapshot,
            record_rev: self.record_rev,
            source,
            age_us: u64::try_from(age.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
