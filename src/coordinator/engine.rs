use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::timeout;

use super::session::Streams;
use super::writer::{Job, MAX_STAGING};
use crate::clock;
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{
    Coordinator, Input, Output, SessionInfo, Ticket, View, WaitInfo, Written, check_form,
};
use crate::proto::limit::{MAX_DELTA, MAX_HASHES_PER_HAVE};
use crate::proto::wire::{
    Delta, GetDelta, GetLog, Grant, List, Listing, Log, Pin, Pinned, Pins, PrepAck, Publish,
    PublishName, PublishedRev, Renew, SessionId,
};
use crate::spec::{Spec, SpecHash};
use crate::store::file::Disk;
use crate::store::file::RealDisk;
use crate::store::vault::{BlobReader, Vault};

/// A body up to this length is read and hashed where it is asked for: it takes about as long as
/// a hand-over to another thread. Longer ones go to a thread that may block.
const INLINE_LEN: u64 = 128 << 10;

/// A publish of up to this many names is carried out where it comes in.
const INLINE_BODIES: usize = 16;

/// A list of a catalog of up to this many names is answered in place, and a question for up to
/// this many hashes.
const INLINE_NAMES: usize = 1_024;

/// The journal is rewritten when it is longer than this and than twice what it held after the
/// last time.
const MIN_JOURNAL_LEN: u64 = 64 << 20;

/// Acknowledgements that wait for the machine's next turn. More are handed over at once.
const MAX_ACKS_PER_TURN: usize = 1_024;

/// A timer that is due at once still waits for this long: timers are no finer.
const FINEST_TIMER: Duration = Duration::from_millis(1);

const STORAGE_GONE: &str = "the storage thread has ended";

/// The answer to a publish, once there is one.
type Published = oneshot::Receiver<Result<PublishedRev, Refusal>>;

/// The body reader over real files.
pub(super) type Bodies = BlobReader<<RealDisk as Disk>::File>;

/// Those who wait for an answer of the machine.
type Waiting<T> = Mutex<BTreeMap<Ticket, oneshot::Sender<Result<T, Refusal>>>>;

/// Turns publishers and the disk into inputs of the machine, and carries out its outputs. It
/// takes no decision.
pub(super) struct Engine {
    machine: Mutex<Coordinator>,
    /// Notified after each input of the machine.
    moved: Notify,
    view: ArcSwap<View>,
    standing: ArcSwap<Standing>,
    max_spec_len: u64,
    /// The store, to name it where its disk is full.
    dir: PathBuf,
    bodies: Bodies,
    jobs: Sender<Job>,
    staging: Semaphore,
    publishers: Waiting<PublishedRev>,
    renewing: Waiting<Grant>,
    pinning: Waiting<Pinned>,
    streams: Streams,
    next_ticket: AtomicU64,
    handle: Handle,
    /// When the machine is to be woken, microseconds; `u64::MAX`: not at all.
    armed: AtomicU64,
    /// Notified when that has become earlier.
    rearm: Arc<Notify>,
    /// Acknowledgements for the machine's next turn, each with its sender's URI.
    acks: Mutex<Vec<(Arc<str>, PrepAck)>>,
    journal_len: AtomicU64,
    /// Length of the journal when it was last rewritten, or opened.
    journal_base: AtomicU64,
}

/// What `status` says of the machine, without waiting for it.
#[derive(Debug)]
pub(super) struct Standing {
    /// Publishes that are not visible yet.
    pub(super) pending: usize,
    /// Idempotency keys that are remembered.
    pub(super) keys: usize,
    /// Why nothing can be written any more, if so.
    pub(super) lost: Option<String>,
}

impl Standing {
    fn of(machine: &Coordinator) -> Self {
        Self {
            pending: machine.pending(),
            keys: machine.ledger().keys(),
            lost: machine.lost().map(str::to_owned),
        }
    }
}

impl Engine {
    pub(super) fn new(
        machine: Coordinator,
        (vault, dir): (&Vault, &Path),
        jobs: Sender<Job>,
        handle: &Handle,
    ) -> Arc<Self> {
        let journal_len = vault.journal_len();
        let engine = Arc::new(Self {
            view: ArcSwap::new(machine.view()),
            standing: ArcSwap::from_pointee(Standing::of(&machine)),
            max_spec_len: machine.max_spec_len(),
            machine: Mutex::new(machine),
            moved: Notify::new(),
            dir: dir.to_owned(),
            bodies: vault.reader(),
            jobs,
            staging: Semaphore::new(MAX_STAGING),
            publishers: Mutex::default(),
            renewing: Mutex::default(),
            pinning: Mutex::default(),
            streams: Streams::default(),
            next_ticket: AtomicU64::new(0),
            handle: handle.clone(),
            armed: AtomicU64::new(u64::MAX),
            rearm: Arc::default(),
            acks: Mutex::default(),
            journal_len: AtomicU64::new(journal_len),
            journal_base: AtomicU64::new(journal_len),
        });
        let rearm = Arc::clone(&engine.rearm);
        handle.spawn(timer(Arc::downgrade(&engine), rearm));
        engine
    }

    /// What readers may see now.
    pub(super) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// How the machine stands.
    pub(super) fn standing(&self) -> Arc<Standing> {
        self.standing.load_full()
    }

    /// Answers a list from what is visible.
    pub(super) async fn list(&self, list: List) -> Result<Listing, Refusal> {
        let view = self.view();
        match view.records.names() <= INLINE_NAMES {
            true => view.list(&list),
            false => blocking(move || view.list(&list)).await?,
        }
    }

    /// Answers a question for the history.
    pub(super) async fn log(self: &Arc<Self>, get: GetLog) -> Result<Log, Refusal> {
        // The machine may be at work on a large publish.
        let engine = Arc::clone(self);
        blocking(move || engine.machine().ledger().log(&get)).await
    }

    /// Answers [`GetDelta`].
    pub(super) fn delta(&self, get: &GetDelta) -> Result<Delta, Refusal> {
        let machine = self.machine();
        let delta = machine.ledger().delta(get.epoch, get.from, MAX_DELTA);
        delta.ok_or_else(|| {
            let oldest = machine.ledger().visible().oldest();
            let message = format!("revisions after {} are not all retained", get.from);
            Refusal::new(Code::Compacted, message).at(oldest)
        })
    }

    /// Whether the newest epoch has no head yet.
    pub(super) fn lacks_head(&self) -> bool {
        let machine = self.machine();
        machine.view().epoch < machine.ledger().epoch()
    }

    /// How long a lease lasts.
    pub(super) fn lease(&self) -> Duration {
        self.machine().options().lease
    }

    /// Live pins.
    pub(super) fn pins(&self) -> Pins {
        self.machine().pins(clock::unix_ms())
    }

    /// The workers that hold sessions, and what pending publishes wait for.
    pub(super) fn leases(&self) -> (Vec<SessionInfo>, Vec<WaitInfo>) {
        let (machine, now) = (self.machine(), clock::now());
        (machine.sessions(now), machine.waits(now))
    }

    /// When the machine is to be woken.
    fn armed(&self) -> Option<Time> {
        let armed = self.armed.load(Ordering::Acquire);
        (armed < u64::MAX).then(|| Time::from_micros(armed))
    }

    fn machine(&self) -> MutexGuard<'_, Coordinator> {
        lock(&self.machine)
    }

    /// Waits until the newest epoch has a visible revision. Before that, an answer would name the
    /// epoch before it, and a worker that saw more of that one would call it a rollback.
    pub(super) async fn await_epoch(&self) -> Result<(), String> {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            // From here on no turn is missed.
            moved.as_mut().enable();
            if let Some(result) = self.epoch_begun() {
                return result;
            }
            moved.await;
        }
    }

    /// `None` while there is something to wait for.
    fn epoch_begun(&self) -> Option<Result<(), String>> {
        let machine = self.machine();
        if machine.view().epoch >= machine.ledger().epoch() {
            return Some(Ok(()));
        }
        if let Some(reason) = machine.lost() {
            return Some(Err(reason.to_owned()));
        }
        let failed = "the first revision of the new epoch could not be written";
        (machine.pending() == 0).then(|| Err(failed.into()))
    }

    pub(super) fn journal_len(&self) -> u64 {
        self.journal_len.load(Ordering::Relaxed)
    }

    /// Why bodies are served from the journal alone, if they are.
    pub(super) fn view_absent(&self) -> Option<String> {
        self.bodies.view_absent()
    }

    /// Those of `hashes` that are not in the journal.
    pub(super) async fn missing(
        &self,
        mut hashes: Vec<SpecHash>,
    ) -> Result<Vec<SpecHash>, Refusal> {
        let count = hashes.len();
        if count > MAX_HASHES_PER_HAVE {
            let message =
                format!("{count} hashes in one request, at most {MAX_HASHES_PER_HAVE} are allowed");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let bodies = self.bodies.clone();
        let look = move || {
            hashes.retain(|hash| !bodies.has(*hash));
            hashes
        };
        match count <= INLINE_NAMES {
            true => Ok(look()),
            false => blocking(look).await,
        }
    }

    /// The bytes of `hash`; `None` when there are none here, or none that are whole.
    pub(super) async fn body(
        &self,
        hash: SpecHash,
        len: Option<u64>,
    ) -> Result<Option<Spec>, Refusal> {
        let known = len.or_else(|| self.bodies.len_of(hash));
        let bodies = self.bodies.clone();
        let read = move || bodies.body(hash, len);
        let result = match known {
            Some(len) if len > INLINE_LEN => blocking(read).await?,
            // One that is not there is not read at all.
            _ => read(),
        };
        result.map_err(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a body is lost here"
            );
            Refusal::new(
                Code::Damaged,
                "the coordinator's copy of these bytes is damaged",
            )
        })
    }

    /// Takes a body for a later publish.
    pub(super) async fn stage(self: &Arc<Self>, spec: Spec) -> Result<(), Refusal> {
        let _turn = self.staging.acquire().await;
        let (done, staged) = oneshot::channel();
        if !self.enqueue(Job::Body { spec, done }) {
            self.lose_storage();
        }
        let gone = |_| Err(Refusal::new(Code::Disk, STORAGE_GONE));
        let staged = staged.await.unwrap_or_else(gone);
        staged.map_err(|refusal| self.located(refusal))
    }

    /// Publishes; returns when it is durable and visible.
    pub(super) async fn publish(
        self: &Arc<Self>,
        by: String,
        publish: Publish,
    ) -> Result<PublishedRev, Refusal> {
        let names = publish.changes.len();
        let result = match self.begin(by.clone(), publish).await {
            Ok(receive) => receive.await.unwrap_or_else(|_| Err(not_told())),
            Err(refusal) => Err(refusal),
        };
        let result = result.map_err(|refusal| self.located(refusal));
        match &result {
            Ok(PublishedRev { rev, changed, .. }) => {
                metrics::counter!("larder_publishes_total", "result" => "ok").increment(1);
                tracing::info!(by, %rev, names, changed, "published");
            }
            Err(refusal) => {
                let code = refusal.code.as_str();
                metrics::counter!("larder_publishes_total", "result" => code).increment(1);
                tracing::warn!(by, names, code, "publish refused: {refusal}");
            }
        }
        result
    }

    /// Checks a publish and hands it to the machine. A large one, or one that would wait for the
    /// machine, is the work of a thread that may block.
    async fn begin(self: &Arc<Self>, by: String, publish: Publish) -> Result<Published, Refusal> {
        let lens = publish.changes.iter().map(|change| change.len);
        let quick = publish.changes.len() <= INLINE_BODIES
            && lens.fold(0, u64::saturating_add) <= INLINE_LEN
            && !matches!(self.machine.try_lock(), Err(TryLockError::WouldBlock));
        let engine = Arc::clone(self);
        let begin = move || {
            check_form(&publish, engine.max_spec_len)?;
            engine.check_bodies(&publish)?;
            Ok(engine.submit(by, publish))
        };
        match quick {
            true => begin(),
            false => blocking(begin).await?,
        }
    }

    fn submit(self: &Arc<Self>, by: String, publish: Publish) -> Published {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        lock(&self.publishers).insert(ticket, send);
        self.drive(Input::Publish {
            ticket,
            by,
            publish,
            unix_ms: clock::unix_ms(),
        });
        receive
    }

    /// Says which disk is full.
    fn located(&self, mut refusal: Refusal) -> Refusal {
        if refusal.code == Code::DiskFull {
            let message = format!("{} (its store is {})", refusal.message, self.dir.display());
            refusal.message = Refusal::new(refusal.code, message).message;
        }
        refusal
    }

    /// Gives a worker a lease, or the news without one.
    pub(super) async fn renew(
        self: &Arc<Self>,
        owner: String,
        renew: Renew,
    ) -> Result<Grant, Refusal> {
        self.ask(&self.renewing, |ticket| Input::Renew {
            ticket,
            owner,
            renew,
        })
        .await
    }

    /// Keeps a revision readable.
    pub(super) async fn pin(self: &Arc<Self>, by: String, pin: Pin) -> Result<Pinned, Refusal> {
        self.ask(&self.pinning, |ticket| Input::Pin {
            ticket,
            by,
            pin,
            unix_ms: clock::unix_ms(),
        })
        .await
    }

    /// Lets a pinned revision go.
    pub(super) async fn unpin(self: &Arc<Self>, by: String, id: u64) -> Result<Pinned, Refusal> {
        self.ask(&self.pinning, |ticket| Input::Unpin { ticket, by, id })
            .await
    }

    async fn ask<T>(
        self: &Arc<Self>,
        waiting: &Waiting<T>,
        input: impl FnOnce(Ticket) -> Input,
    ) -> Result<T, Refusal> {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        lock(waiting).insert(ticket, send);
        self.drive(input(ticket));
        receive.await.unwrap_or_else(|_| Err(not_told()))
    }

    /// Opens a stream of pushes to a worker; it ends when what is returned is dropped.
    pub(super) fn watch(self: &Arc<Self>, sid: SessionId, owner: String) -> Watching {
        let (stream, pushes) = self.streams.open();
        let engine = Arc::clone(self);
        let shared = Arc::from(owner.as_str());
        self.drive(Input::Watch { sid, owner, stream });
        Watching {
            engine,
            sid,
            owner: shared,
            stream,
            pushes,
        }
    }

    /// Takes an acknowledgement. Those that have come from many workers at once are handed to the
    /// machine together: each would have to lock it and to look at what can be released.
    fn acknowledge(self: &Arc<Self>, owner: &Arc<str>, ack: PrepAck) {
        let mut acks = lock(&self.acks);
        acks.push((Arc::clone(owner), ack));
        match acks.len() {
            1 => {
                // It runs behind the tasks that are to be polled already.
                let engine = Arc::clone(self);
                self.handle.spawn(async move { engine.take_acks() });
            }
            MAX_ACKS_PER_TURN => {
                drop(acks);
                self.take_acks();
            }
            _ => {}
        }
    }

    fn take_acks(self: &Arc<Self>) {
        let acks = std::mem::take(&mut *lock(&self.acks));
        self.drive_all(acks.into_iter().map(|(owner, ack)| {
            let owner = String::from(&*owner);
            Input::PrepAck { owner, ack }
        }));
    }

    /// A publish that names bytes which are not here, damaged or of another length is refused
    /// before it gets a revision.
    fn check_bodies(&self, publish: &Publish) -> Result<(), Refusal> {
        let mut lens = BTreeMap::new();
        for PublishName {
            name, hash, len, ..
        } in &publish.changes
        {
            let Some(hash) = *hash else { continue };
            let found = match lens.entry(hash) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(room) => match self.bodies.body(hash, None) {
                    Ok(Some(spec)) => *room.insert(spec.len()),
                    Ok(None) | Err(_) => {
                        let message = format!(
                            "the coordinator does not have the bytes of `{name}` ({})",
                            hash.short()
                        );
                        return Err(Refusal::new(Code::MissingBody, message).about(name.clone()));
                    }
                },
            };
            if found != *len {
                let hash = hash.short();
                let message = format!("`{name}` is said to have {len} bytes, {hash} has {found}");
                return Err(Refusal::new(Code::Invalid, message).about(name.clone()));
            }
        }
        Ok(())
    }

    /// Hands one input to the machine and carries out what follows from it, in order.
    pub(super) fn drive(&self, input: Input) {
        self.drive_all([input]);
    }

    /// The same for several, in one turn.
    fn drive_all(&self, inputs: impl IntoIterator<Item = Input>) {
        let mut machine = self.machine();
        for input in inputs {
            let mut next = Some(input);
            while let Some(input) = next.take() {
                for output in machine.handle(input, clock::now()) {
                    if !self.carry_out(output) {
                        next = Some(Input::Written(storage_lost()));
                    }
                }
            }
        }
        self.standing.store(Arc::new(Standing::of(&machine)));
        self.moved.notify_waiters();
        let wake = machine.next_wake().map_or(u64::MAX, Time::as_micros);
        if wake < self.armed.swap(wake, Ordering::AcqRel) {
            self.rearm.notify_one();
        }
    }

    /// Returns whether that was possible.
    fn carry_out(&self, output: Output) -> bool {
        match output {
            Output::Write(entries) => return self.enqueue(Job::Entries(entries)),
            Output::Checkpoint { entries, retained } => {
                return self.enqueue(Job::Checkpoint { entries, retained });
            }
            Output::Reveal(view) => self.view.store(view),
            Output::Push { streams, push } => self.streams.push(&streams, &push),
            Output::EndStream(stream) => self.streams.close(stream),
            Output::Reply { ticket, result } => answer(&self.publishers, ticket, result),
            Output::Granted { ticket, result } => answer(&self.renewing, ticket, result),
            Output::PinReply { ticket, result } => answer(&self.pinning, ticket, result),
        }
        true
    }

    /// The storage thread is gone: nobody will report the write that is under way.
    fn lose_storage(self: &Arc<Self>) {
        if self.standing().lost.is_none() {
            self.drive(Input::Written(storage_lost()));
        }
    }

    /// How a write ended; called by the storage thread.
    fn written(self: &Arc<Self>, written: Written, journal_len: u64) {
        let before = self.journal_len.swap(journal_len, Ordering::Relaxed);
        if journal_len < before {
            self.journal_base.store(journal_len, Ordering::Relaxed);
        }
        metrics::gauge!("larder_journal_bytes").set(journal_len as f64);
        self.drive(Input::Written(written));
        let base = self.journal_base.load(Ordering::Relaxed);
        if journal_len > MIN_JOURNAL_LEN && journal_len > base.saturating_mul(2) {
            // Not again before it has doubled, whatever comes of it.
            self.journal_base.store(journal_len, Ordering::Relaxed);
            self.drive(Input::Compact);
        }
    }

    fn enqueue(&self, job: Job) -> bool {
        // The machine is locked while it hands over its writes, so this must not wait for the
        // thread that locks it to report the write before.
        let taken = self.jobs.send(job).is_ok();
        if !taken {
            tracing::error!(STORAGE_GONE);
        }
        taken
    }

    /// Copies the durable part of the journal.
    pub(super) fn backup(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        match self.bodies.backup().write_to(out) {
            Ok(report) => {
                tracing::info!(
                    bytes = report.bytes,
                    entries = report.entries,
                    "backup written"
                );
                Ok(())
            }
            Err(error) => Err(std::io::Error::other(error)),
        }
    }
}

/// Reports for the storage thread, its end among it.
pub(super) struct Reporter(Weak<Engine>);

impl Reporter {
    pub(super) fn of(engine: &Arc<Engine>) -> Self {
        Self(Arc::downgrade(engine))
    }

    /// How a write ended.
    pub(super) fn written(&self, written: Written, journal_len: u64) {
        if let Some(engine) = self.0.upgrade() {
            engine.written(written, journal_len);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // With an engine left this is no stop but a panic, in which another one would abort the
        // process.
        if let Some(engine) = self.0.upgrade() {
            let handle = engine.handle.clone();
            handle.spawn(async move { engine.lose_storage() });
        }
    }
}

/// Wakes the machine when it is time, until the engine is gone.
async fn timer(engine: Weak<Engine>, rearm: Arc<Notify>) {
    loop {
        let Some(armed) = engine.upgrade().map(|engine| engine.armed()) else {
            return;
        };
        let Some(wake) = armed else {
            rearm.notified().await;
            continue;
        };
        // Not at once again, whatever the machine says: others run on this thread.
        let pause = wake.since(clock::now()).max(FINEST_TIMER);
        if timeout(pause, rearm.notified()).await.is_ok() {
            continue;
        }
        let Some(engine) = engine.upgrade() else {
            return;
        };
        // It may have become later meanwhile.
        if engine.armed().is_some_and(|wake| wake <= clock::now()) {
            engine.drive(Input::Wake);
        }
    }
}

fn storage_lost() -> Written {
    Written::Lost {
        reason: STORAGE_GONE.to_owned(),
    }
}

/// An open stream of pushes.
pub(super) struct Watching {
    engine: Arc<Engine>,
    sid: SessionId,
    owner: Arc<str>,
    stream: u64,
    pushes: tokio::sync::mpsc::Receiver<Bytes>,
}

impl Watching {
    /// The next frame; `None` when the worker has not kept up.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.pushes.recv().await
    }

    /// The worker has stopped answering for what is about to change.
    pub(super) fn acknowledge(&self, ack: PrepAck) {
        self.engine.acknowledge(&self.owner, ack);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.engine.streams.close(self.stream);
        let (sid, stream) = (self.sid, self.stream);
        self.engine.drive(Input::Unwatch { sid, stream });
    }
}

fn answer<T>(waiting: &Waiting<T>, ticket: Ticket, result: Result<T, Refusal>) {
    if let Some(asker) = lock(waiting).remove(&ticket) {
        let _ = asker.send(result);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Refusal::new(Code::Internal, "a reading thread failed"))
}

/// As after a failure of the disk: a node that is draining has done nothing.
fn not_told() -> Refusal {
    let message =
        "the coordinator stopped meanwhile; whether the publish happened shows after a restart";
    Refusal::new(Code::Disk, message)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests;
