use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::keeper::Keeper;
use crate::catalog::Revision;
use crate::proto::replica::Replica;
use crate::proto::worker::{HeldRecord, Keep, KeptAnchor, Mark};
use crate::spec::{Spec, SpecHash, SpecName};
use crate::store::StoreError;
use crate::store::cache::{Held, WorkerStore};
use crate::store::replica::ReplicaError;

/// Writes that may wait for the disk. A further body is not kept: it is a cache, and the reader
/// has its answer already.
const MAX_QUEUE: usize = 1_024;

/// Bytes of bodies that may wait for the disk; see [`MAX_QUEUE`].
const MAX_QUEUED_BYTES: u64 = 64 << 20;

/// How often what was written is flushed, so that a killed process loses little of its cache and
/// a power cut no more than this of the mark.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// A worker that is never quiet looks this often, in ticks of [`FLUSH_EVERY`], whether a copy pays:
/// a copy stops its writes for a while, and what grows meanwhile is bounded by its disk.
const BUSY_TICKS: u32 = 30;

/// After what waited is written the thread looks away for this long: to wake it for each write
/// costs a reader more than the write itself, and what waits is readable meanwhile. Readers would
/// have to hand over 500,000 writes a second to fill the queue.
const GATHER: Duration = Duration::from_millis(2);

/// Writes to the worker's store on a thread of its own, so that no reader waits for the disk.
///
/// What waits is readable at once: [`Saver::waiting`] is asked before the disk is.
#[derive(Debug)]
pub(super) struct Saver {
    queue: Option<SyncSender<Job>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    bodies: Mutex<Waiting>,
    /// Bodies among them: most readers find none, and need no lock to know.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    specs: BTreeMap<SpecHash, Spec>,
    bytes: u64,
    /// Written with the next tick; only the newest counts.
    anchor: Option<KeptAnchor>,
    /// The same of the addresses of other workers.
    members: Option<Vec<u8>>,
    /// Not in the queue either: what names were is to be forgotten before the next write.
    forget_held: bool,
    /// The newest copy of the catalog, and what the disk has of it; `None`: nothing of use.
    copy: Option<(Arc<Replica>, Option<Revision>)>,
    /// Names that were read for the first time.
    used: Vec<SpecName>,
    /// How often that was said. A line that was handed over before the last time is not written.
    life: u64,
}

#[derive(Debug)]
enum Job {
    Body(SpecHash),
    /// Of this [`Waiting::life`].
    Hold(u64, HeldRecord),
    /// There is something to copy, to forget or to flush.
    Look,
}

/// Why the thread wakes.
#[derive(Debug)]
enum Wake {
    Job(Job),
    /// [`FLUSH_EVERY`] is over; `quiet` if nothing came in that time.
    Tick {
        quiet: bool,
    },
    Ended,
}

impl Saver {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says when it gives no thread.
    pub(super) fn start(
        store: Arc<WorkerStore>,
        mut keeper: Option<Keeper>,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel(MAX_QUEUE);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("larder-store".into())
            .spawn(move || {
                let mut clock = Clock::new(jobs);
                run(&store, &theirs, keeper.as_mut(), || clock.wait());
            })?;
        Ok(Self {
            queue: Some(queue),
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Keeps a body, soon.
    pub(super) fn save(&self, spec: Spec) {
        let hash = spec.hash();
        match self.shared.add(spec) {
            Added::Known => {}
            Added::NoRoom => dropped(),
            Added::New => {
                if !self.send(Job::Body(hash)) {
                    self.shared.take(hash);
                    dropped();
                }
            }
        }
    }

    /// A body that is on its way to the disk.
    pub(super) fn waiting(&self, hash: SpecHash) -> Option<Spec> {
        self.shared.get(hash)
    }

    /// Remembers what a name was, soon.
    pub(super) fn hold(&self, record: HeldRecord) {
        let life = self.shared.lock().life;
        self.send(Job::Hold(life, record));
    }

    /// Forgets what names were, before anything else is written.
    pub(super) fn forget_held(&self) {
        self.shared.forget_held();
        self.send(Job::Look);
    }

    /// Makes the mark, which was written, survive a power cut with the next tick.
    pub(super) fn flush_mark(&self) {
        // If there is no room, the jobs that are there have it flushed.
        self.send(Job::Look);
    }

    /// Remembers up to when the catalog reflects everything, within [`FLUSH_EVERY`].
    pub(super) fn keep_anchor(&self, anchor: KeptAnchor) {
        self.shared.lock().anchor = Some(anchor);
    }

    /// Remembers where other workers are, within [`FLUSH_EVERY`].
    pub(super) fn keep_members(&self, members: Vec<u8>) {
        self.shared.lock().members = Some(members);
    }

    /// Keeps a copy of the catalog, soon.
    pub(super) fn keep(&self, keep: &Keep) {
        self.shared.keep(keep);
        self.send(Job::Look);
    }

    /// Remembers that a name was read, soon.
    pub(super) fn note_use(&self, name: SpecName) {
        self.shared.lock().used.push(name);
        self.send(Job::Look);
    }

    fn send(&self, job: Job) -> bool {
        match self.queue.as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => true,
            Some(Err(TrySendError::Full(_))) => {
                metrics::counter!("larder_store_writes_dropped_total").increment(1);
                false
            }
            Some(Err(TrySendError::Disconnected(_))) | None => false,
        }
    }
}

fn dropped() {
    metrics::counter!("larder_store_bodies_not_kept_total").increment(1);
}

/// What became of a body that was handed over.
#[derive(Debug, PartialEq, Eq)]
enum Added {
    New,
    Known,
    NoRoom,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, hash: SpecHash) -> Option<Spec> {
        // Whoever knows of a body knows of the number that counts it.
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.lock().specs.get(&hash).cloned()
    }

    /// Takes a body that is to be written, if it does not wait already.
    fn add(&self, spec: Spec) -> Added {
        let mut waiting = self.lock();
        if waiting.specs.contains_key(&spec.hash()) {
            return Added::Known;
        }
        if waiting.bytes + spec.len() > MAX_QUEUED_BYTES {
            return Added::NoRoom;
        }
        waiting.bytes += spec.len();
        waiting.specs.insert(spec.hash(), spec);
        self.waiting.store(waiting.specs.len(), Ordering::Release);
        Added::New
    }

    fn forget_held(&self) {
        let mut waiting = self.lock();
        waiting.forget_held = true;
        waiting.life += 1;
    }

    /// Of several copies the newest is written, as steps if all of them were.
    fn keep(&self, keep: &Keep) {
        let mut waiting = self.lock();
        waiting.copy = Some(match keep {
            Keep::Whole(replica) => (Arc::clone(replica), None),
            Keep::Steps { replica, after } => {
                let after = match &waiting.copy {
                    Some((_, before)) => *before,
                    None => Some(*after),
                };
                (Arc::clone(replica), after)
            }
        });
    }

    fn take(&self, hash: SpecHash) -> Option<Spec> {
        let mut waiting = self.lock();
        let spec = waiting.specs.remove(&hash)?;
        self.waiting.store(waiting.specs.len(), Ordering::Release);
        waiting.bytes -= spec.len();
        Some(spec)
    }
}

impl Drop for Saver {
    /// Writes what waits, then flushes.
    fn drop(&mut self) {
        drop(self.queue.take());
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}

/// Waits for jobs, and says each [`FLUSH_EVERY`] that it is over, however many come.
struct Clock {
    jobs: mpsc::Receiver<Job>,
    ticked: Instant,
    quiet: bool,
    /// Whether the last wake was for a job.
    busy: bool,
}

impl Clock {
    fn new(jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            jobs,
            ticked: Instant::now(),
            quiet: true,
            busy: false,
        }
    }

    fn wait(&mut self) -> Wake {
        let received = self.receive();
        self.busy = received.is_ok();
        match received {
            Ok(job) => {
                self.quiet = false;
                Wake::Job(job)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.ticked = Instant::now();
                let quiet = std::mem::replace(&mut self.quiet, true);
                Wake::Tick { quiet }
            }
            Err(RecvTimeoutError::Disconnected) => Wake::Ended,
        }
    }

    fn receive(&self) -> Result<Job, RecvTimeoutError> {
        let left = FLUSH_EVERY.saturating_sub(self.ticked.elapsed());
        if left.is_zero() {
            return Err(RecvTimeoutError::Timeout);
        }
        if self.busy {
            match self.jobs.try_recv() {
                Ok(job) => return Ok(job),
                Err(TryRecvError::Empty) => thread::sleep(GATHER.min(left)),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            }
        }
        self.jobs.recv_timeout(left)
    }
}

fn run(
    store: &WorkerStore,
    shared: &Shared,
    mut keeper: Option<&mut Keeper>,
    mut wait: impl FnMut() -> Wake,
) {
    // Written since the last flush, and since the last look at the size of the disk.
    let (mut dirty, mut grown) = (false, false);
    let mut ticks = 0;
    loop {
        let wake = wait();
        note(forget_held(store, shared));
        match wake {
            Wake::Job(job) => {
                (dirty, grown) = (true, true);
                note(write(store, shared, job));
            }
            Wake::Tick { quiet } => {
                note(store.mend().map(drop));
                if let Some(keeper) = &mut keeper {
                    write_anchor(shared, keeper);
                    note_copy(keeper.sync());
                }
                dirty |= write_members(store, shared);
                if dirty {
                    let flushed = store.flush();
                    dirty = flushed.is_err();
                    note(flushed);
                } else {
                    note(store.write_uses());
                }
                ticks += 1;
                // sled never shrinks; a quiet moment is the time to see whether a copy pays.
                if grown && (quiet || ticks >= BUSY_TICKS) {
                    (grown, ticks) = (false, 0);
                    note(store.compact().map(drop));
                }
            }
            Wake::Ended => break,
        }
        write_copy(shared, keeper.as_deref_mut());
    }
    note(forget_held(store, shared));
    write_members(store, shared);
    write_copy(shared, keeper.as_deref_mut());
    if let Some(keeper) = &mut keeper {
        write_anchor(shared, keeper);
        note_copy(keeper.sync());
    }
    if let Err(error) = store.sync() {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the store was not flushed"
        );
    }
}

fn note(written: Result<(), StoreError>) {
    if let Err(error) = written {
        metrics::counter!("larder_store_write_errors_total").increment(1);
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the worker's store takes no writes; answers go on, from the network"
        );
    }
}

fn write_copy(shared: &Shared, keeper: Option<&mut Keeper>) {
    let (copy, used) = {
        let mut waiting = shared.lock();
        (waiting.copy.take(), std::mem::take(&mut waiting.used))
    };
    let Some(keeper) = keeper else {
        return;
    };
    for name in used {
        note_copy(keeper.note_use(name));
    }
    if let Some((replica, after)) = copy {
        note_copy(keeper.keep(&replica, after));
    }
}

/// Says whether there was something to write.
fn write_members(store: &WorkerStore, shared: &Shared) -> bool {
    let members = shared.lock().members.take();
    let written = members.map(|members| store.keep_members(&members));
    let is_some = written.is_some();
    note(written.unwrap_or(Ok(())));
    is_some
}

fn write_anchor(shared: &Shared, keeper: &mut Keeper) {
    let anchor = shared.lock().anchor.take();
    if let Some(error) = anchor.and_then(|anchor| keeper.keep_anchor(anchor).err()) {
        metrics::counter!("larder_store_write_errors_total").increment(1);
        tracing::warn!(%error, "the anchor of bounded reads is not written");
    }
}

fn note_copy(written: Result<(), ReplicaError>) {
    if let Err(error) = written {
        metrics::counter!("larder_store_write_errors_total").increment(1);
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the copy of the catalog is not written; the next change writes it anew"
        );
    }
}

fn write(store: &WorkerStore, shared: &Shared, job: Job) -> Result<(), StoreError> {
    match job {
        Job::Body(hash) => {
            let spec = shared.get(hash);
            let written = spec.map_or(Ok(()), |spec| store.save(&spec).map(|_kept| ()));
            // Only now may a reader be sent to the disk for it.
            shared.take(hash);
            written
        }
        Job::Hold(life, _) if life != shared.lock().life => Ok(()),
        Job::Hold(
            _,
            HeldRecord {
                name,
                version,
                seen,
            },
        ) => store.hold(&Held {
            name,
            version,
            seen_at: seen,
        }),
        // That is looked at with each job.
        Job::Look => Ok(()),
    }
}

fn forget_held(store: &WorkerStore, shared: &Shared) -> Result<(), StoreError> {
    if !std::mem::take(&mut shared.lock().forget_held) {
        return Ok(());
    }
    // If it fails it is tried again, whatever was written meanwhile: it can be asked again.
    store
        .forget_held()
        .inspect_err(|_| shared.lock().forget_held = true)
}

/// The newest state of the coordinator that an earlier process saw.
pub(super) fn mark(store: &WorkerStore) -> Option<Mark> {
    let high = store.high_water()?;
    Some(Mark {
        catalog: high.catalog,
        epoch: high.epoch,
        rev: high.rev,
    })
}

/// What an earlier process knew about names.
///
/// # Errors
/// [`StoreError`] when the store fails.
pub(super) fn held(store: &WorkerStore) -> Result<crate::proto::worker::Held, StoreError> {
    let records = store.held_all()?.into_iter();
    Ok(records
        .map(|held| HeldRecord {
            name: held.name,
            version: held.version,
            seen: held.seen_at,
        })
        .collect())
}

#[cfg(test)]
mod tests;
