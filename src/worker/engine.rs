mod together;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use self::together::{Group, Question, To, Waiting};
use super::call::{CoordinatorLink, peers_catalog, peers_delta};
use super::keeper::{Keeper, Left};
use super::leased;
use super::peers::PeerLinks;
use super::relayed::Relayed;
use super::saver::{self, Saver};
use super::traffic::Traffic;
use crate::answer::{Answer, GetError, Hop, HopFailure, Mode, Proof, Query, Target};
use crate::catalog::{HeadHash, HeadVerifier};
use crate::clock;
use crate::daemon::RunError;
use crate::identity::NodeId;
use crate::net::{Endpoint, Link};
use crate::proto::Time;
use crate::proto::code::Refusal;
use crate::proto::limit::DEFAULT_DEADLINE;
use crate::proto::wire::{Leave, Request};
use crate::proto::worker::{
    Anchor, BootId, CallId, Config, Event, Input, KeptAnchor, Local, Mark, Neighbour, Output,
    Restored, Sight, SightCell, Source, Ticket, Worker, not_here,
};
use crate::spec::{Spec, SpecHash};
use crate::store::blobs::Loaded;
use crate::store::cache::WorkerStore;
use crate::store::mark::HighWater;
use crate::trust::Identity;

/// How long a worker that stops waits for the coordinator to hear of it. Who cannot be told finds
/// out when the lease has run out.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// The machine has slept when the boot clock ran ahead of the monotonic one by this much.
const SLEEP_NOTICED: Duration = Duration::from_millis(20);

/// A body up to this length is read and hashed where it is asked for: it takes about as long as
/// a hand-over to another thread. Longer ones go to a thread that may block.
const INLINE_LEN: u64 = 128 << 10;

/// Turns readers, timers and the network into inputs of the machine, and carries out its outputs.
/// It takes no decision.
#[derive(Debug)]
pub(super) struct Engine {
    machine: Mutex<Worker>,
    /// What readers may answer from.
    sight: Shown,
    /// The newest state that was seen is not on disk, so that a restart might go back behind it:
    /// no reader is told of it. Set and cleared with the machine locked.
    unwritten: AtomicBool,
    /// Of which start of the kernel the anchors are.
    boot: Option<BootId>,
    store: Arc<WorkerStore>,
    saver: Saver,
    endpoint: Endpoint,
    coordinators: Vec<Arc<CoordinatorLink>>,
    /// The way to the coordinator over another worker, and what is carried for others.
    relayed: Relayed,
    peers: Mutex<PeerLinks>,
    /// Wakes who waits for another sight.
    anew: Notify,
    traffic: Traffic,
    handle: Handle,
    answers: Mutex<BTreeMap<Ticket, oneshot::Sender<Result<Answer, GetError>>>>,
    /// Other workers that wait for bytes that are on their way here.
    guests: Mutex<BTreeMap<Ticket, oneshot::Sender<Result<Spec, Refusal>>>>,
    calls: Mutex<BTreeMap<CallId, Running>>,
    /// Questions for bytes that leave in a moment.
    waiting: Mutex<Waiting>,
    next_ticket: AtomicU64,
    /// Reads that are about to be handed to the machine together.
    gathered: Mutex<Vec<(Ticket, Query)>>,
    /// When the timer task wakes next, microseconds; `u64::MAX` without a timer.
    armed: AtomicU64,
    rearm: Notify,
    /// Words of leaving that are on their way.
    leaving: Mutex<Vec<JoinHandle<()>>>,
    draining: AtomicBool,
}

impl Engine {
    pub(super) fn new(
        config: &Config,
        store: Arc<WorkerStore>,
        endpoint: Endpoint,
        handle: &Handle,
    ) -> Result<Arc<Self>, RunError> {
        let disk = |error: &dyn std::error::Error| RunError::Disk(with_causes(error));
        let verifier = Arc::new(Pinned(endpoint.identity().clone()));
        let (keeper, left) = match store.dir().filter(|_| config.lease) {
            Some(dir) => {
                let (keeper, left) = Keeper::open(dir, &*verifier).map_err(|error| disk(&error))?;
                (Some(keeper), left)
            }
            None => (None, Left::default()),
        };
        let mark = saver::mark(&store);
        let boot = clock::boot_id();
        let anchor = left.anchor;
        let restored = Restored {
            mark,
            // Of another catalog than the mark's it would never be used.
            replica: left
                .replica
                .filter(|replica| mark.is_some_and(|mark| mark.catalog == replica.head().catalog)),
            anchor: anchor.and_then(|anchor| anchor.still_holds(boot, clock::now())),
            used: left.used,
            held: saver::held(&store).map_err(|error| disk(&error))?,
            #[cfg(feature = "mutants")]
            lease_until: None,
        };
        let coordinators = config.coordinators.iter();
        let peers = PeerLinks::new(&endpoint, &config.peers);
        let engine = Arc::new(Self {
            machine: Mutex::new(Worker::new(config, verifier, restored)),
            sight: Shown::default(),
            unwritten: AtomicBool::new(false),
            boot,
            saver: Saver::start(Arc::clone(&store), keeper).map_err(RunError::Thread)?,
            coordinators: coordinators
                .map(|addr| Arc::new(CoordinatorLink::new(&endpoint, addr)))
                .collect(),
            relayed: Relayed::new(&endpoint),
            peers: Mutex::new(peers),
            anew: Notify::new(),
            traffic: Traffic::default(),
            store,
            endpoint,
            handle: handle.clone(),
            answers: Mutex::default(),
            guests: Mutex::default(),
            calls: Mutex::default(),
            waiting: Mutex::default(),
            next_ticket: AtomicU64::new(0),
            gathered: Mutex::default(),
            armed: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
            leaving: Mutex::default(),
            draining: AtomicBool::new(false),
        });
        handle.spawn(timers(Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// Reads one definition. Under a lease that takes microseconds, so it is not wrapped into a
    /// list of one.
    pub(super) async fn get(self: &Arc<Self>, query: Query) -> Result<Answer, GetError> {
        if let Some(result) = self.at_once(&query) {
            return result;
        }
        let results = Box::pin(self.get_slowly(vec![query])).await;
        let result = results.into_iter().next();
        result.unwrap_or(Err(GetError::Draining))
    }

    /// The answer that needs no machine, if there is one.
    fn at_once(&self, query: &Query) -> Option<Result<Answer, GetError>> {
        if self.draining.load(Ordering::Acquire) {
            return Some(Err(GetError::Draining));
        }
        let load = |hash, len| self.load_of_len(hash, len);
        let result = Ok(leased::answer(&self.sight, &clock::Boot, load, query)?);
        note(&query.target, &result);
        Some(result)
    }

    /// Reads several definitions at once: what needs the coordinator goes out as one request.
    pub(super) async fn get_all(
        self: &Arc<Self>,
        queries: Vec<Query>,
    ) -> Vec<Result<Answer, GetError>> {
        if let [query] = &queries[..]
            && let Some(result) = self.at_once(query)
        {
            return vec![result];
        }
        self.get_slowly(queries).await
    }

    async fn get_slowly(self: &Arc<Self>, queries: Vec<Query>) -> Vec<Result<Answer, GetError>> {
        if self.draining.load(Ordering::Acquire) {
            return queries.iter().map(|_| Err(GetError::Draining)).collect();
        }
        let mut known = None;
        if let [query] = &queries[..]
            && let Target::Hash(hash) = query.target
        {
            let began = clock::now();
            match self.look(hash).await {
                Local::Found(spec) => return vec![held(query, spec, began)],
                other => known = Some((hash, other)),
            }
        }
        self.decide(queries, known).await
    }

    /// Asks the machine, which is spared a second look for the blob that is `known` already.
    async fn decide(
        self: &Arc<Self>,
        queries: Vec<Query>,
        known: Option<(SpecHash, Local)>,
    ) -> Vec<Result<Answer, GetError>> {
        let targets: Vec<_> = queries.iter().map(|query| query.target.clone()).collect();
        let mut reads = Vec::with_capacity(queries.len());
        let mut waiting = Vec::with_capacity(queries.len());
        for query in queries {
            let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
            let (send, receive) = oneshot::channel();
            lock(&self.answers).insert(ticket, send);
            waiting.push((
                receive,
                Reader {
                    engine: self,
                    ticket,
                },
            ));
            reads.push((ticket, query));
        }
        match known {
            Some(_) => self.drive_knowing(Input::Get { reads }, known),
            None => self.gather(reads).await,
        }
        let mut results = Vec::with_capacity(waiting.len());
        for ((receive, reader), target) in waiting.into_iter().zip(targets) {
            let result = receive.await.unwrap_or(Err(GetError::Draining));
            drop(reader);
            note(&target, &result);
            results.push(result);
        }
        results
    }

    /// Hands reads to the machine together with those that others begin in the same moment: what
    /// they ask the coordinator goes out as one request.
    async fn gather(self: &Arc<Self>, reads: Vec<(Ticket, Query)>) {
        let is_first = {
            let mut gathered = lock(&self.gathered);
            let is_first = gathered.is_empty();
            gathered.extend(reads);
            is_first
        };
        if is_first {
            let _turn = Turn(self);
            // Whoever is ready to read does so meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// Hands one input to the machine and carries out what follows from it.
    pub(super) fn drive(self: &Arc<Self>, input: Input) {
        self.drive_knowing(input, None);
    }

    fn drive_knowing(self: &Arc<Self>, input: Input, mut known: Option<(SpecHash, Local)>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let outputs = {
                let mut machine = lock(&self.machine);
                self.write_mark_again(&machine);
                let mut outputs = machine.handle(input, clock::now());
                self.arm(machine.next_wake());
                // What must not be overtaken by a later input's: readers would see an older
                // sight after a newer one, and the disk an older replica.
                outputs.retain(|output| !self.carry_out_in_order(output));
                // Calls too: one must not be cancelled before it has begun.
                let (now, later): (Vec<_>, Vec<_>) = outputs
                    .into_iter()
                    .partition(|output| !matches!(output, Output::Load(_)));
                for output in now {
                    self.carry_out(output);
                }
                later
            };
            if !outputs.is_empty() {
                let found = self.look_for(outputs, &mut known);
                inputs.push_back(Input::Loaded { found });
            }
        }
    }

    /// What is found out at once; what takes longer is handed in by another thread.
    fn look_for(
        self: &Arc<Self>,
        outputs: Vec<Output>,
        known: &mut Option<(SpecHash, Local)>,
    ) -> Vec<(SpecHash, Local)> {
        let mut found = Vec::with_capacity(outputs.len());
        for output in outputs {
            let Output::Load(hash) = output else { continue };
            let known = known.take_if(|(of, _)| *of == hash);
            match known.or_else(|| Some((hash, self.load_in_place(hash)?))) {
                Some(local) => found.push(local),
                None => {
                    let engine = Arc::clone(self);
                    self.handle.spawn_blocking(move || {
                        let found = vec![(hash, engine.load(hash))];
                        engine.drive(Input::Loaded { found });
                    });
                }
            }
        }
        found
    }

    /// Carries out what is done at once; false leaves it for later.
    fn carry_out_in_order(&self, output: &Output) -> bool {
        match output {
            Output::Show(sight) => self.show(sight),
            Output::Keep(keep) => self.saver.keep(keep),
            Output::Use(name) => self.saver.note_use(name.clone()),
            Output::Anchor(anchor) => self.keep_anchor(*anchor),
            Output::Hold(record) => self.saver.hold(record.clone()),
            Output::ForgetHeld => self.saver.forget_held(),
            Output::Remember(mark) => self.remember(*mark),
            _ => return false,
        }
        true
    }

    /// Writes the mark at once: what follows tells readers of it.
    fn remember(&self, mark: Mark) {
        let written = self.store.raise_high_water(HighWater {
            catalog: mark.catalog,
            epoch: mark.epoch,
            rev: mark.rev,
            // Truth comes from the coordinator's own answers here, not from a head.
            head: HeadHash::NONE,
        });
        let failed = written.is_err();
        let before = self.unwritten.swap(failed, Ordering::AcqRel);
        match written {
            Err(error) if !before => {
                metrics::gauge!("larder_mark_unwritten").set(1);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the newest state cannot be written down: no read by name is answered until it is"
                );
            }
            Ok(()) if before => {
                metrics::gauge!("larder_mark_unwritten").set(0);
                tracing::info!(
                    "the newest state is written down: reads by name are answered again"
                );
            }
            _ => {}
        }
        self.saver.flush_mark();
    }

    /// Tries again what a disk refused, and shows what was kept back meanwhile.
    fn write_mark_again(&self, machine: &Worker) {
        if self.is_unwritten()
            && let Some(mark) = machine.mark()
        {
            self.remember(mark);
            if !self.is_unwritten() {
                self.sight.store(Arc::new(machine.sight().clone()));
            }
        }
    }

    /// Whether readers are told nothing, since a restart would know less than they do.
    pub(super) fn is_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::Acquire)
    }

    fn show(&self, sight: &Arc<Sight>) {
        // In an empty sight no reader finds an answer, and asks the machine.
        let shown = match self.is_unwritten() {
            true => Arc::default(),
            false => Arc::clone(sight),
        };
        self.sight.store(shown);
        self.anew.notify_one();
    }

    fn keep_anchor(&self, anchor: Anchor) {
        if let Some(boot) = self.boot {
            self.saver.keep_anchor(KeptAnchor { boot, anchor });
        }
    }

    /// What a reader gets: nothing of a state that a restart would know nothing of.
    fn told(&self, result: Result<Answer, GetError>) -> Result<Answer, GetError> {
        let says_what_is_current =
            |answer: &Answer| !matches!(answer.proof.mode, Mode::At | Mode::Pinned);
        if self.is_unwritten() && result.as_ref().is_ok_and(says_what_is_current) {
            return Err(unwritten());
        }
        result
    }

    fn carry_out(self: &Arc<Self>, output: Output) {
        match output {
            Output::Save(spec) => self.saver.save(spec),
            Output::Load(_)
            | Output::Show(_)
            | Output::Keep(_)
            | Output::Anchor(_)
            | Output::Use(_)
            | Output::Hold(_)
            | Output::ForgetHeld
            | Output::Remember(_) => {}
            Output::Watch {
                call,
                coordinator,
                sid,
            } => self.spawn(call, move |engine| async move {
                let sink = |event| engine.drive(Input::Event { call, event });
                match engine.coordinator(coordinator) {
                    Some(link) => link.watch(sid, sink).await,
                    None => sink(no_way()),
                }
            }),
            Output::Renew {
                call,
                coordinator,
                request,
            } => self.spawn(call, move |engine| async move {
                let event = match engine.coordinator(coordinator) {
                    Some(link) => link.renew(request).await,
                    None => no_way(),
                };
                engine.drive(Input::Event { call, event });
            }),
            Output::PrepAck { coordinator, ack } => {
                // Otherwise on a stream of its own: the publisher waits for it.
                let link = self.coordinator(coordinator);
                if !link.is_some_and(|link| link.acknowledge(&ack)) {
                    self.tell(coordinator, Request::PrepAck(ack));
                }
            }
            Output::Leave { coordinator, sid } => {
                let task = self.tell(coordinator, Request::Leave(Leave { sid }));
                lock(&self.leaving).push(task);
            }
            Output::GetDelta {
                call,
                source,
                request,
            } => self.spawn(call, move |engine| async move {
                let event = match source {
                    Source::Coordinator(index) => match engine.coordinator(index) {
                        Some(link) => link.delta(request).await,
                        None => no_way(),
                    },
                    Source::Peer(id) => match engine.peer_link(id) {
                        Some(link) => peers_delta(&link, request).await,
                        None => no_member(),
                    },
                };
                engine.drive(Input::Event { call, event });
            }),
            Output::GetCatalog {
                call,
                source,
                request,
            } => self.spawn(call, move |engine| async move {
                let event = match source {
                    Source::Coordinator(index) => match engine.coordinator(index) {
                        Some(link) => link.catalog(request).await,
                        None => no_way(),
                    },
                    Source::Peer(id) => match engine.peer_link(id) {
                        Some(link) => peers_catalog(&link, request).await,
                        None => no_member(),
                    },
                };
                engine.drive(Input::Event { call, event });
            }),
            Output::Done { ticket, result } => {
                if let Some(reader) = lock(&self.answers).remove(&ticket) {
                    let _ = reader.send(self.told(result));
                }
            }
            Output::Give { ticket, result } => {
                if let Some(guest) = lock(&self.guests).remove(&ticket) {
                    let _ = guest.send(result);
                }
            }
            Output::Resolve {
                call,
                coordinator,
                request,
                within,
            } => self.spawn(call, move |engine| async move {
                let sink = |event| engine.drive(Input::Event { call, event });
                match engine.coordinator(coordinator) {
                    Some(link) => link.resolve(request, within, sink).await,
                    None => sink(no_way()),
                }
            }),
            Output::OpenRelay { call, peer } => self.spawn(call, move |engine| async move {
                let sink = |event| engine.drive(Input::Event { call, event });
                match engine.peer_link(peer) {
                    Some(link) => engine.relayed.keep(&link, sink).await,
                    None => sink(no_member()),
                }
            }),
            Output::Fetch {
                call,
                source,
                hash,
                len,
                addr,
                force,
                within,
            } => {
                let question = Question {
                    call,
                    hash,
                    len,
                    within,
                };
                self.add_question(To { source, force }, question, addr);
            }
            Output::Cancel(call) => match lock(&self.calls).remove(&call) {
                Some(Running::Alone(task)) => task.abort(),
                Some(Running::Together(group)) => group.let_go(),
                Some(Running::Waits) | None => {}
            },
            Output::Brought { hop, rev } => {
                metrics::counter!("larder_catalog_updates_total", "hop" => hop.kind()).increment(1);
                tracing::info!(from = %hop, revision = %rev, "the catalog was brought forward");
            }
            Output::Misbehaved { hop, what } => {
                metrics::counter!("larder_misbehaved_total", "hop" => hop.kind()).increment(1);
                tracing::warn!(%hop, what, "a node sent what its record does not allow");
            }
        }
    }

    fn link_to(&self, source: Source, addr: Option<String>) -> Option<Link> {
        match (source, addr) {
            (Source::Coordinator(index), _) => {
                let link = self.coordinator(index)?;
                Some(link.link().clone())
            }
            (Source::Peer(id), Some(addr)) => self.passing_link(id, &addr),
            (Source::Peer(id), None) => self.peer_link(id),
        }
    }

    fn count_taken(&self, source: Source, link: &Link, event: &Event) {
        if let (Source::Peer(_), Event::Body(bytes), Some(uri)) = (source, event, link.peer()) {
            self.traffic.took(uri.id(), bytes.len() as u64);
        }
    }

    /// What was given to other nodes and taken from them.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Bytes on disk, or on their way there.
    pub(super) async fn look(self: &Arc<Self>, hash: SpecHash) -> Local {
        if let Some(local) = self.load_in_place(hash) {
            return local;
        }
        let engine = Arc::clone(self);
        let loading = self.handle.spawn_blocking(move || engine.load(hash));
        match loading.await {
            Ok(local) => local,
            Err(_) => Local::Failed("the reading thread failed".into()),
        }
    }

    /// Waits for bytes that are not on disk, if they are on their way here.
    pub(super) async fn await_bytes(self: &Arc<Self>, hash: SpecHash) -> Result<Spec, Refusal> {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        lock(&self.guests).insert(ticket, send);
        let guest = Guest {
            engine: self,
            ticket,
        };
        self.drive(Input::Hold { ticket, hash });
        let result = receive.await.unwrap_or_else(|_| Err(not_here()));
        drop(guest);
        result
    }

    /// The same, or `None` if it takes too long for a thread that others wait for.
    fn load_in_place(&self, hash: SpecHash) -> Option<Local> {
        if let Some(spec) = self.saver.waiting(hash) {
            return Some(Local::Found(spec));
        }
        let is_large = self.store.len_of(hash).is_some_and(|len| len > INLINE_LEN);
        (!is_large).then(|| self.load(hash))
    }

    /// The same where the record says how long the bytes are: one look-up less.
    fn load_of_len(&self, hash: SpecHash, len: u64) -> Option<Local> {
        if len > INLINE_LEN {
            return None;
        }
        match self.saver.waiting(hash) {
            Some(spec) => Some(Local::Found(spec)),
            None => Some(self.load(hash)),
        }
    }

    fn load(&self, hash: SpecHash) -> Local {
        match self.store.load(hash, None) {
            Ok(Loaded::Found(spec)) => Local::Found(spec),
            Ok(Loaded::Missing) => Local::Missing,
            Ok(Loaded::Damaged) => Local::Damaged,
            Err(error) => Local::Failed(with_causes(&error)),
        }
    }

    /// Runs a call on the network thread, under its id so that it can be cancelled.
    fn spawn<F, T>(self: &Arc<Self>, call: CallId, task: F)
    where
        F: FnOnce(Arc<Self>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let engine = Arc::clone(self);
        let task = task(Arc::clone(self));
        // Registered under the lock before it can end.
        let mut calls = lock(&self.calls);
        let handle = self.handle.spawn(async move {
            task.await;
            lock(&engine.calls).remove(&call);
        });
        calls.insert(call, Running::Alone(handle.abort_handle()));
    }

    /// Gives the lease back, and waits for that to be said.
    pub(super) async fn leave(self: &Arc<Self>) {
        self.drive(Input::Leave);
        let told = std::mem::take(&mut *lock(&self.leaving));
        for task in told {
            let _ = tokio::time::timeout(LEAVE_PATIENCE, task).await;
        }
    }

    /// Says something that needs no answer.
    fn tell(self: &Arc<Self>, coordinator: usize, request: Request) -> JoinHandle<()> {
        let engine = Arc::clone(self);
        self.handle.spawn(async move {
            if let Some(link) = engine.coordinator(coordinator) {
                link.tell(request).await;
            }
        })
    }

    /// Wakes the timer task if it would sleep too long. Called with the machine locked, so that
    /// the task does not overlook it.
    fn arm(&self, wake: Option<Time>) {
        let Some(wake) = wake else { return };
        let micros = wake.as_micros();
        if micros < self.armed.fetch_min(micros, Ordering::AcqRel) {
            self.rearm.notify_one();
        }
    }

    /// No read is taken any more; those in progress end by their deadlines.
    pub(super) fn stop_reads(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Worker> {
        lock(&self.machine)
    }

    /// What readers see.
    pub(super) fn shown(&self) -> Arc<Sight> {
        self.sight.load()
    }

    /// Completes when readers have been shown something new since the last time; for one waiter.
    pub(super) async fn shown_anew(&self) {
        self.anew.notified().await;
    }

    /// Checks signatures with the keys that are pinned at that moment.
    pub(super) fn verifier(&self) -> Arc<dyn HeadVerifier> {
        Arc::new(Pinned(self.endpoint.identity().clone()))
    }

    /// The coordinator's addresses, in the order of the configuration.
    pub(super) fn coordinator_addrs(&self) -> Vec<String> {
        let addrs = self.coordinators.iter();
        addrs.map(|link| link.link().addr().to_owned()).collect()
    }

    /// The link to this address, if it is one of the coordinator's.
    pub(super) fn coordinator_link_to(&self, addr: &str) -> Option<Link> {
        let mut links = self.coordinators.iter().map(|link| link.link());
        links.find(|link| link.addr() == addr).cloned()
    }

    pub(super) fn store(&self) -> &WorkerStore {
        &self.store
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The coordinator's addresses, the one that answered last first; before them the way over
    /// another worker, if there is one.
    pub(super) fn coordinator_links(&self) -> Vec<Arc<CoordinatorLink>> {
        let sources = self.machine().sources(clock::now());
        let mut links: Vec<_> = self.coordinators.iter().zip(sources).collect();
        links.sort_by_key(|(_, source)| !source.preferred);
        let direct = links.into_iter().map(|(link, _)| Arc::clone(link));
        self.relayed.link().into_iter().chain(direct).collect()
    }

    /// The link to one of the addresses, or the one over another worker if that is up.
    fn coordinator(&self, index: usize) -> Option<Arc<CoordinatorLink>> {
        match self.coordinators.get(index) {
            Some(link) => Some(Arc::clone(link)),
            None => self.relayed.link(),
        }
    }

    /// Where packets of other workers go: an address of the coordinator that answers this worker
    /// directly. `None` if none does.
    pub(super) fn direct_addr(&self) -> Option<SocketAddr> {
        let direct = self.machine().direct(clock::now())?;
        self.coordinators.get(direct)?.link().remote_addr()
    }

    /// An address of the coordinator that this worker is connected to directly.
    pub(super) fn coordinator_addr(&self) -> Option<SocketAddr> {
        let mut links = self.coordinators.iter();
        links.find_map(|link| link.link().remote_addr())
    }

    /// The way over another worker, and what is carried for others.
    pub(super) fn relayed(&self) -> &Relayed {
        &self.relayed
    }

    /// Whether these hops failed for certificates or trust alone.
    pub(super) fn only_untrusted(&self, hops: &[HopFailure]) -> bool {
        let untrusted = |failure: &HopFailure| match &failure.hop {
            // What others say of their way says nothing of this node's certificates.
            Hop::Disk | Hop::Relayed { .. } => false,
            Hop::Coordinator(addr) => {
                let mut links = self.coordinators.iter();
                links.any(|link| link.link().addr() == addr && link.is_untrusted())
            }
            Hop::Peer(addr) => {
                let mut links = self.peer_links().into_iter();
                links.any(|link| link.addr() == addr && link.is_untrusted())
            }
        };
        // That the own disk was no help is not what stands in the way.
        let mut asked = hops
            .iter()
            .filter(|failure| failure.hop != Hop::Disk)
            .peekable();
        asked.peek().is_some() && asked.all(untrusted)
    }

    /// Every link to a peer that there is.
    pub(super) fn peer_links(&self) -> Vec<Link> {
        lock(&self.peers).all()
    }

    /// The link to a fixed peer or a member.
    pub(super) fn peer_link(&self, id: NodeId) -> Option<Link> {
        lock(&self.peers).link(id)
    }

    /// The link to a worker that the coordinator named.
    fn passing_link(&self, id: NodeId, addr: &str) -> Option<Link> {
        lock(&self.peers).passing(id, addr)
    }

    /// Remembers where other workers are.
    pub(super) fn keep_members(&self, members: Vec<u8>) {
        self.saver.keep_members(members);
    }

    /// These are the members from now on.
    pub(super) fn set_peers(self: &Arc<Self>, members: Vec<Neighbour>) {
        lock(&self.peers).set(&members);
        self.drive(Input::Peers(members));
    }
}

/// Where readers find the newest sight.
#[derive(Debug, Default)]
struct Shown(ArcSwap<Sight>);

impl SightCell for Shown {
    fn load(&self) -> Arc<Sight> {
        self.0.load_full()
    }

    fn store(&self, sight: Arc<Sight>) {
        self.0.store(sight);
    }
}

/// The head keys that are pinned now, also after a reload.
struct Pinned(Identity);

impl HeadVerifier for Pinned {
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0
            .current()
            .trust()
            .head_keys()
            .verify(message, signature)
    }
}

/// A call that can be cancelled.
#[derive(Debug)]
enum Running {
    Alone(AbortHandle),
    /// It has not left yet.
    Waits,
    Together(Arc<Group>),
}

/// A read that someone waits for; when they leave, the machine forgets it.
struct Reader<'a> {
    engine: &'a Arc<Engine>,
    ticket: Ticket,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let ticket = self.ticket;
        if lock(&self.engine.answers).remove(&ticket).is_some() {
            lock(&self.engine.gathered).retain(|(of, _)| *of != ticket);
            self.engine.drive(Input::Forget { ticket });
        }
    }
}

/// The turn of the reads that have gathered. It ends also if the reader that began it goes away.
struct Turn<'a>(&'a Arc<Engine>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let reads = std::mem::take(&mut *lock(&self.0.gathered));
        if !reads.is_empty() {
            self.0.drive(Input::Get { reads });
        }
    }
}

/// Another worker that waits for bytes; when it leaves, the machine forgets it.
struct Guest<'a> {
    engine: &'a Arc<Engine>,
    ticket: Ticket,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let ticket = self.ticket;
        if lock(&self.engine.guests).remove(&ticket).is_some() {
            self.engine.drive(Input::LetGo { ticket });
        }
    }
}

/// Wakes the machine when its next timer is due, until the engine is gone.
async fn timers(engine: std::sync::Weak<Engine>) {
    let mut slept = clock::slept();
    loop {
        let Some(engine) = engine.upgrade() else {
            return;
        };
        let slept_now = clock::slept();
        if slept_now > slept + SLEEP_NOTICED {
            tracing::info!("the machine has slept: the lease is dropped and asked for anew");
            engine.drive(Input::Resumed);
        }
        slept = slept_now;
        let wake = {
            let machine = engine.machine();
            engine.write_mark_again(&machine);
            let wake = machine.next_wake();
            let micros = wake.map_or(u64::MAX, Time::as_micros);
            engine.armed.store(micros, Ordering::Release);
            wake
        };
        let now = clock::now();
        if wake.is_some_and(|wake| wake <= now) {
            engine.drive(Input::Wake);
            continue;
        }
        // An idle engine still looks now and then whether it is wanted.
        let pause = wake.map_or(DEFAULT_DEADLINE, |wake| wake.since(now));
        let pause = pause.min(Duration::from_secs(1));
        let _ = tokio::time::timeout(pause, engine.rearm.notified()).await;
    }
}

/// The answer to a read by hash whose bytes are here. It needs no decision, and so no turn of the
/// machine: the hash is the question and the proof.
fn held(query: &Query, spec: Spec, began: Time) -> Result<Answer, GetError> {
    let result = Ok(Answer {
        spec: Some(spec),
        proof: Proof {
            mode: Mode::Pinned,
            snapshot: None,
            record_rev: None,
            source: Hop::Disk,
            age_us: 0,
        },
        failed: Vec::new(),
        took: clock::now().since(began),
    });
    note(&query.target, &result);
    result
}

/// What comes of a call over another worker that carries nothing any more.
fn no_way() -> Event {
    Event::Lost {
        reason: "the way over another worker is gone".into(),
    }
}

/// What comes of a call to a peer that has gone meanwhile.
fn no_member() -> Event {
    Event::Failed {
        reason: "it is no member any more".into(),
        unreachable: true,
    }
}

/// Why a worker tells nobody what is current while its disk takes no mark.
pub(super) fn unwritten() -> GetError {
    GetError::Disk {
        reason: "it cannot write down the newest state that was seen".into(),
    }
}

/// One line per read; a body is never in it.
fn note(target: &Target, result: &Result<Answer, GetError>) {
    match result {
        Ok(answer) => {
            let (hop, mode) = (&answer.proof.source, answer.proof.mode);
            count(hop, answer.took);
            tracing::info!(
                %target,
                hash = answer.spec.as_ref().map_or("absent".into(), |spec| spec.hash().short()),
                %hop,
                %mode,
                took_us = answer.took.as_micros(),
                tried = answer.failed.len(),
                "read"
            );
        }
        Err(error) => {
            metrics::counter!("larder_reads_total", "hop" => "none", "result" => error.code())
                .increment(1);
            let hops: Vec<_> = error.hops().iter().map(ToString::to_string).collect();
            tracing::warn!(%target, code = error.code(), hops = hops.join("; "), "read failed: {error}");
        }
    }
}

/// Labels that are known when this is compiled cost no allocation, and most reads end on disk.
fn count(hop: &Hop, took: Duration) {
    let (reads, seconds) = match hop {
        Hop::Disk => (
            metrics::counter!("larder_reads_total", "hop" => "disk", "result" => "ok"),
            metrics::histogram!("larder_read_seconds", "hop" => "disk"),
        ),
        Hop::Coordinator(_) | Hop::Relayed { .. } | Hop::Peer(_) => (
            metrics::counter!("larder_reads_total", "hop" => hop.kind(), "result" => "ok"),
            metrics::histogram!("larder_read_seconds", "hop" => hop.kind()),
        ),
    };
    reads.increment(1);
    seconds.record(took.as_secs_f64());
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A poisoned lock is one whose holder panicked; what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
