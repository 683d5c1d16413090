use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::writer::{Job, MAX_STAGING};
use crate::clock;
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{Coordinator, Input, Output, Ticket, View, Written};
use crate::proto::wire::{Publish, PublishedRev};
use crate::spec::{Spec, SpecHash};
use crate::store::file::Disk;
use crate::store::file::RealDisk;
use crate::store::vault::{BlobReader, Vault};

/// A body up to this length is read and hashed where it is asked for: it takes about as long as
/// a hand-over to another thread. Longer ones go to a thread that may block.
const INLINE_LEN: u64 = 128 << 10;

/// Bodies up to this number are checked in place when a publish names them.
const INLINE_BODIES: usize = 16;

/// The journal is rewritten when it is longer than this and than twice what it held after the
/// last time.
const MIN_JOURNAL_LEN: u64 = 64 << 20;

/// The body reader over real files.
pub(super) type Bodies = BlobReader<<RealDisk as Disk>::File>;

/// Turns publishers and the disk into inputs of the machine, and carries out its outputs. It
/// takes no decision.
pub(super) struct Engine {
    machine: Mutex<Coordinator>,
    /// Notified after each input of the machine.
    moved: Condvar,
    view: ArcSwap<View>,
    /// The store, to name it where its disk is full.
    dir: PathBuf,
    bodies: Bodies,
    jobs: Sender<Job>,
    staging: Semaphore,
    publishers: Mutex<BTreeMap<Ticket, oneshot::Sender<Result<PublishedRev, Refusal>>>>,
    next_ticket: AtomicU64,
    handle: Handle,
    /// The wake-up that a task sleeps for already, microseconds.
    armed: AtomicU64,
    journal_len: AtomicU64,
    /// Length of the journal when it was last rewritten, or opened.
    journal_base: AtomicU64,
}

impl Engine {
    pub(super) fn new(
        machine: Coordinator,
        (vault, dir): (&Vault, &Path),
        jobs: Sender<Job>,
        handle: &Handle,
    ) -> Arc<Self> {
        let journal_len = vault.journal_len();
        Arc::new(Self {
            view: ArcSwap::new(machine.view()),
            machine: Mutex::new(machine),
            moved: Condvar::new(),
            dir: dir.to_owned(),
            bodies: vault.reader(),
            jobs,
            staging: Semaphore::new(MAX_STAGING),
            publishers: Mutex::default(),
            next_ticket: AtomicU64::new(0),
            handle: handle.clone(),
            armed: AtomicU64::new(0),
            journal_len: AtomicU64::new(journal_len),
            journal_base: AtomicU64::new(journal_len),
        })
    }

    /// What readers may see now.
    pub(super) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Coordinator> {
        lock(&self.machine)
    }

    /// Waits until the newest epoch has a visible revision. Before that, an answer would name the
    /// epoch before it, and a worker that saw more of that one would call it a rollback.
    pub(super) fn await_epoch(&self) -> Result<(), String> {
        let mut machine = self.machine();
        while machine.view().epoch < machine.ledger().epoch() {
            if let Some(reason) = machine.lost() {
                return Err(reason.to_owned());
            }
            if machine.pending() == 0 {
                return Err("the first revision of the new epoch could not be written".into());
            }
            let moved = self.moved.wait(machine);
            machine = moved.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    pub(super) fn journal_len(&self) -> u64 {
        self.journal_len.load(Ordering::Relaxed)
    }

    /// Why bodies are served from the journal alone, if they are.
    pub(super) fn view_absent(&self) -> Option<String> {
        self.bodies.view_absent()
    }

    /// Those of `hashes` that are not in the journal.
    pub(super) fn missing(&self, mut hashes: Vec<SpecHash>) -> Vec<SpecHash> {
        hashes.retain(|hash| !self.bodies.has(*hash));
        hashes
    }

    /// The bytes of `hash`; `None` when there are none here, or none that are whole.
    pub(super) async fn body(
        &self,
        hash: SpecHash,
        len: Option<u64>,
    ) -> Result<Option<Spec>, Refusal> {
        let bodies = self.bodies.clone();
        let read = move || bodies.body(hash, len);
        let result = match len {
            Some(len) if len <= INLINE_LEN => read(),
            _ => blocking(read).await?,
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
        self.enqueue(Job::Body { spec, done });
        let staged = staged.await.unwrap_or_else(|_| Err(stopping()));
        staged.map_err(|refusal| self.located(refusal))
    }

    /// Publishes; returns when it is durable and visible.
    pub(super) async fn publish(
        self: &Arc<Self>,
        by: String,
        publish: Publish,
    ) -> Result<PublishedRev, Refusal> {
        self.check_bodies(&publish).await?;
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        lock(&self.publishers).insert(ticket, send);
        let names = publish.changes.len();
        let input = Input::Publish {
            ticket,
            by: by.clone(),
            publish,
            unix_ms: clock::unix_ms(),
        };
        self.drive(input);
        let result = receive.await.unwrap_or_else(|_| Err(not_told()));
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

    /// Says which disk is full.
    fn located(&self, mut refusal: Refusal) -> Refusal {
        if refusal.code == Code::DiskFull {
            let message = format!("{} (its store is {})", refusal.message, self.dir.display());
            refusal.message = Refusal::new(refusal.code, message).message;
        }
        refusal
    }

    /// A publish that names bytes which are not here, damaged or of another length is refused
    /// before it gets a revision.
    async fn check_bodies(&self, publish: &Publish) -> Result<(), Refusal> {
        let wanted: Vec<_> = publish
            .changes
            .iter()
            .filter_map(|change| Some((change.name.clone(), change.hash?, change.len)))
            .collect();
        let bodies = self.bodies.clone();
        let small = wanted.len() <= INLINE_BODIES
            && wanted.iter().map(|(_, _, len)| len).sum::<u64>() <= INLINE_LEN;
        let check = move || {
            for (name, hash, len) in wanted {
                if !matches!(bodies.body(hash, Some(len)), Ok(Some(_))) {
                    let message = format!(
                        "the coordinator does not have the {len} bytes of `{name}` ({})",
                        hash.short()
                    );
                    return Err(Refusal::new(Code::MissingBody, message).about(name));
                }
            }
            Ok(())
        };
        match small {
            true => check(),
            false => blocking(check).await?,
        }
    }

    /// Hands one input to the machine and carries out what follows from it, in order.
    pub(super) fn drive(self: &Arc<Self>, input: Input) {
        let mut machine = self.machine();
        for output in machine.handle(input, clock::now()) {
            match output {
                Output::Write(entries) => self.enqueue(Job::Entries(entries)),
                Output::Checkpoint { entries, retained } => {
                    self.enqueue(Job::Checkpoint { entries, retained });
                }
                Output::Reveal(view) => self.view.store(view),
                Output::Reply { ticket, result } => {
                    if let Some(publisher) = lock(&self.publishers).remove(&ticket) {
                        let _ = publisher.send(result);
                    }
                }
            }
        }
        self.moved.notify_all();
        if let Some(wake) = machine.next_wake()
            && self.armed.swap(wake.as_micros(), Ordering::Relaxed) != wake.as_micros()
        {
            let pause = wake.since(clock::now());
            let engine = Arc::downgrade(self);
            self.handle.spawn(async move {
                tokio::time::sleep(pause).await;
                if let Some(engine) = Weak::upgrade(&engine) {
                    engine.drive(Input::Wake);
                }
            });
        }
    }

    /// How a write ended; called by the storage thread.
    pub(super) fn written(self: &Arc<Self>, written: Written, journal_len: u64) {
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

    fn enqueue(&self, job: Job) {
        // The machine is locked while it hands over its writes, so this must not wait for the
        // thread that locks it to report the write before.
        if self.jobs.send(job).is_err() {
            tracing::error!("the storage thread is gone");
        }
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Refusal::new(Code::Internal, "a reading thread failed"))
}

fn stopping() -> Refusal {
    Refusal::new(Code::Draining, "the coordinator is stopping")
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
