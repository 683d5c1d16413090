//! What a worker keeps: blobs within a budget, and what it knows about names.
//!
//! What is in sled can be had again from the cluster. So damage costs a fetch: a store that does
//! not open is set aside and a new one started, and one whose pages turn out to be damaged later
//! is rebuilt from what can still be read, by the change that met the damage or by the next
//! [`mend`](WorkerStore::mend). The high-water mark cannot be had again and stands beside sled.
//! Calls block; any thread may make them.
//!
//! | name | what it is |
//! | --- | --- |
//! | `lock` | held by the process that owns the store |
//! | `mark` | the [`mark`], which outlives a damaged sled |
//! | `anchor` | boot clock at which the copy of the catalog was known to be current, with the boot's id |
//! | `cache/` | sled |
//! | `count` | how many blobs there were, so that a start can tell how many are lost |
//! | `cache.new/` | a copy in progress; what a crash left of it is removed at start |
//! | `cache.<number>/` | a finished copy, which is used instead; the one with the highest number |
//! | `cache.corrupt-<seconds since 1970>/` | a damaged store, kept for a look |

mod compaction;
mod count;
mod held;
mod mend;
mod touches;
mod usage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

pub use self::compaction::Compacted;
pub use self::held::Held;
use self::mend::Mending;
use self::touches::Touches;
use self::usage::{Spoilt, Usage, put_used};
use crate::identity::Role;
use crate::spec::{Spec, SpecHash};
use crate::store::blobs::{self, Loaded, Look, Quarantined};
use crate::store::disk::{SledStore, io_error};
use crate::store::file::RealDisk;
#[cfg(test)]
use crate::store::file::sim::SimDisk;
use crate::store::lock::{LockError, StoreLock};
use crate::store::mark::{self, HighWater, MarkError, MarkFile, Syncing};
use crate::store::memory::MemoryStore;
use crate::store::meta::{Meta, MetaError};
use crate::store::{Batch, MAX_BATCH, Store, StoreError, Tree, aside, journal, unix_ms, vault};

/// Memory that sled may use at a worker.
pub const DEFAULT_CACHE_BYTES: u64 = 16 << 20;

/// Bytes of blobs that a worker keeps by default: 100,000 definitions of 10 KiB.
pub const DEFAULT_BUDGET_BYTES: u64 = 1 << 30;

/// Name of sled's directory within the store's.
pub(super) const CACHE: &str = "cache";

/// Bytes that the disk may hold beyond three times the live ones, by default.
pub const DEFAULT_SLACK_BYTES: u64 = 64 << 20;

/// How a worker's store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of blobs to keep at most; [`DEFAULT_BUDGET_BYTES`]. The disk may hold up to three
    /// times as much, and the slack, until a compaction.
    pub budget_bytes: u64,
    /// What the disk may hold on top; [`DEFAULT_SLACK_BYTES`]. Less means more copying.
    pub slack_bytes: u64,
    /// Memory that sled may use; [`DEFAULT_CACHE_BYTES`].
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            budget_bytes: DEFAULT_BUDGET_BYTES,
            slack_bytes: DEFAULT_SLACK_BYTES,
            cache_bytes: DEFAULT_CACHE_BYTES,
        }
    }
}

/// A worker's store.
#[derive(Debug)]
pub struct WorkerStore {
    /// Compaction replaces it.
    store: RwLock<Box<dyn Store>>,
    /// Taken before every change, and by compaction throughout. Before `store`, never after.
    writer: Mutex<()>,
    /// Taken last and never while waiting for another.
    usage: Mutex<Usage>,
    touches: Touches,
    /// The same. Not held while the disk is waited for.
    mark: Mutex<Mark>,
    /// Held by who makes the mark durable, and by nobody who only writes it.
    mark_sync: Mutex<()>,
    mending: Mending,
    budget_bytes: u64,
    home: Option<Home>,
}

/// Where the store is, if it is on disk.
#[derive(Debug)]
struct Home {
    dir: PathBuf,
    options: Options,
    /// Copies that were changed to so far; the last one is in use.
    copies: AtomicU64,
    /// What the count says; a start leaves that as it is until the first flush.
    counted: AtomicUsize,
    _lock: StoreLock,
}

/// Where the high-water mark is.
#[derive(Debug)]
enum Mark {
    Memory(Option<HighWater>),
    Disk(MarkFile<RealDisk>),
    #[cfg(test)]
    Simulated(MarkFile<SimDisk>),
}

/// What was found when a worker's store opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedCache {
    /// Where a damaged store went; the new one is empty.
    pub set_aside: Option<PathBuf>,
    /// Blobs in it.
    pub blobs: usize,
    /// Blobs that were there when they were last counted and are lost, as with a store that was
    /// set aside or with the end of a damaged log; after a crash also what was evicted since.
    pub lost_blobs: usize,
    /// Bytes of these blobs.
    pub live_bytes: u64,
}

/// Why a worker's store did not open.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store in it cannot be used, and it is not damage that setting it aside would cure.
    #[error("the store of this worker does not open")]
    Store(#[from] MetaError),
    /// What must outlive the rest of the store is not there, so the rest is not used.
    #[error(transparent)]
    Mark(#[from] MarkError),
}

impl WorkerStore {
    /// Opens the store in `dir`, or makes one; a damaged one is set aside, loudly.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(dir: &Path, options: Options) -> Result<(Self, OpenedCache), CacheError> {
        let foreign: &[&str] = &[journal::FILE, vault::VIEW];
        let lock = StoreLock::acquire(dir, Role::Worker, (Role::Coordinator, foreign))?;
        let copies = compaction::finish(dir).map_err(MetaError::from)?;
        let name = &compaction::name(copies);
        let mark = open_mark(dir, name)?;
        let place = (dir, &name[..]);
        let (store, usage, set_aside) = open_cache(place, options.cache_bytes, mark.get())?;
        let opened = OpenedCache {
            set_aside,
            blobs: usage.blobs.len(),
            lost_blobs: count::lost(dir, usage.blobs.len()),
            live_bytes: usage.live_bytes,
        };
        let home = Home {
            dir: dir.to_owned(),
            options,
            copies: AtomicU64::new(copies),
            counted: AtomicUsize::new(usize::MAX),
            _lock: lock,
        };
        let store = Self {
            store: RwLock::new(Box::new(store)),
            writer: Mutex::default(),
            usage: Mutex::new(usage),
            touches: Touches::default(),
            mark: Mutex::new(Mark::Disk(mark)),
            mark_sync: Mutex::default(),
            mending: Mending::default(),
            budget_bytes: options.budget_bytes,
            home: Some(home),
        };
        Ok((store, opened))
    }

    /// A store that keeps up to `budget_bytes` of blobs in memory and nothing on disk.
    pub fn in_memory(budget_bytes: u64) -> Self {
        Self {
            store: RwLock::new(Box::new(MemoryStore::new())),
            writer: Mutex::default(),
            usage: Mutex::default(),
            touches: Touches::default(),
            mark: Mutex::new(Mark::Memory(None)),
            mark_sync: Mutex::default(),
            mending: Mending::default(),
            budget_bytes,
            home: None,
        }
    }

    /// Where it is; `None` in memory.
    pub fn dir(&self) -> Option<&Path> {
        self.home.as_ref().map(|home| &*home.dir)
    }

    /// The spec with `hash`, hashed anew, and counted as used now. It writes nothing and waits
    /// for no change: what it finds damaged is moved out by the next [`flush`](Self::flush) or
    /// [`write_uses`](Self::write_uses).
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails; damage is no error but [`Loaded::Damaged`].
    pub fn load(&self, hash: SpecHash, len: Option<u64>) -> Result<Loaded, StoreError> {
        let reason = match blobs::look(&**self.store(), hash, len)? {
            Look::Found(spec) => {
                self.touch(hash);
                return Ok(Loaded::Found(spec));
            }
            Look::Missing => {
                self.usage().missed(hash, len);
                return Ok(Loaded::Missing);
            }
            Look::Wrong(reason) => reason,
            Look::Unreadable(reason) => {
                self.mending.needed(&reason);
                reason
            }
        };
        let found = Quarantined {
            hash,
            at_unix_ms: unix_ms(),
            reason,
        };
        self.usage().spoil(hash, Spoilt::Damaged(found));
        Ok(Loaded::Damaged)
    }

    /// Whether there are bytes for `hash`, as far as is known without reading them.
    pub fn contains(&self, hash: SpecHash) -> bool {
        self.len_of(hash).is_some()
    }

    /// How many there are, as far as is known without reading them.
    pub fn len_of(&self, hash: SpecHash) -> Option<u64> {
        let usage = self.usage();
        let (_, &len) = usage.blobs.get(&hash)?;
        (!usage.spoilt.contains_key(&hash)).then_some(len)
    }

    /// Keeps a spec; what was not used for longest goes if the budget demands it. Says whether
    /// it is kept: one that is larger than the whole budget is not.
    ///
    /// # Errors
    /// [`StoreError`]; the spec is not kept then.
    pub fn save(&self, spec: &Spec) -> Result<bool, StoreError> {
        if spec.len() > self.budget_bytes {
            return Ok(false);
        }
        self.change(|store| self.save_in(store, spec))?;
        Ok(true)
    }

    fn save_in(&self, store: &dyn Store, spec: &Spec) -> Result<(), StoreError> {
        self.make_room(store, spec)?;
        let mut usage = self.usage();
        let old = usage.blobs.remove(&spec.hash());
        usage.live_bytes = usage.live_bytes.saturating_sub(old.unwrap_or(0));
        let at = usage.blobs.insert(spec.hash(), spec.len());
        usage.live_bytes = usage.live_bytes.saturating_add(spec.len());
        usage.spoilt.remove(&spec.hash());
        drop(usage);

        let mut batch = Batch::new();
        blobs::put(&mut batch, spec);
        put_used(&mut batch, spec.hash(), at, spec.len());
        store.apply(&batch).inspect_err(|_| {
            self.usage().remove(spec.hash());
        })
    }

    /// Counts a blob as used now. It is written with the next [`flush`](Self::flush) or
    /// [`write_uses`](Self::write_uses): a read never waits for a write. After a crash as many
    /// blobs may look less recently used than they are. Of two blobs that were used between two
    /// of these, which is about a second, either may count as the one used last.
    pub fn touch(&self, hash: SpecHash) {
        if !self.touches.note(hash) {
            self.gather_uses();
            self.touches.note(hash);
        }
    }

    /// Puts blobs into the order of their uses.
    fn gather_uses(&self) {
        let noted = self.touches.gather();
        let mut usage = self.usage();
        for hash in noted {
            if usage.blobs.touch(&hash) {
                usage.touched.insert(hash);
            }
        }
    }

    /// Writes what readers found since this was last done: which blobs they used, and which were
    /// not as they should be.
    ///
    /// # Errors
    /// [`StoreError`]; the uses are not written then.
    pub fn write_uses(&self) -> Result<(), StoreError> {
        self.change(|store| self.write_found(store))
    }

    /// Blobs that were found damaged and not fetched again since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn quarantined(&self) -> Result<Vec<Quarantined>, StoreError> {
        let written = self.noted(blobs::quarantined(&**self.store()))?;
        let mut all: BTreeMap<_, _> = written.into_iter().map(|blob| (blob.hash, blob)).collect();
        for (hash, spoilt) in &self.usage().spoilt {
            if let Spoilt::Damaged(blob) = spoilt {
                all.insert(*hash, blob.clone());
            }
        }
        Ok(all.into_values().collect())
    }

    /// The newest state of a coordinator that was believed.
    pub fn high_water(&self) -> Option<HighWater> {
        self.mark().get()
    }

    /// Sets the newest state that was believed, unless that would go back. It survives the end of
    /// the process when this returns, and a power cut after the next [`flush`](Self::flush). It
    /// waits for no change, copy or flush that runs.
    ///
    /// With a new epoch or catalog, what names were in the old one is forgotten by the next
    /// [`hold`](Self::hold) or start, and not listed any more.
    ///
    /// # Errors
    /// [`StoreError`]. An earlier mark is still there then; the next call, also with the same
    /// mark, or flush tries again.
    pub fn raise_high_water(&self, mark: HighWater) -> Result<(), StoreError> {
        self.mark().raise(mark).map_err(io_error)
    }

    /// Makes the mark survive a power cut. Marks may be raised meanwhile; what there was when this
    /// began is durable when it returns.
    fn sync_mark(&self) -> Result<(), StoreError> {
        let _alone = self
            .mark_sync
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for _copy in 0..mark::COPIES {
            let Some(wait) = self.mark().begin_sync().map_err(io_error)? else {
                return Ok(());
            };
            let synced = wait.wait();
            self.mark().end_sync(&wait, synced.is_ok());
            synced.map_err(io_error)?;
        }
        Ok(())
    }

    /// The key for stateless resets of this node; `fresh` random bytes become it the first time.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn reset_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], MetaError> {
        let _writer = self.writer();
        Meta::of(&**self.store()).reset_key(fresh)
    }

    /// What was kept of the membership.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn members(&self) -> Result<Option<Vec<u8>>, MetaError> {
        Meta::of(&**self.store()).members()
    }

    /// Keeps this of the membership, with the next flush.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_members(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.change(|store| Meta::of(store).set_members(bytes))
    }

    /// Makes everything so far survive the end of the process, and the mark a power cut.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    pub fn flush(&self) -> Result<(), StoreError> {
        let marked = self.sync_mark();
        self.change(|store| {
            self.write_found(store)?;
            store.flush()
        })?;
        self.write_count();
        marked
    }

    /// Makes everything so far survive a power cut.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        let marked = self.sync_mark();
        self.change(|store| {
            self.write_found(store)?;
            store.sync()
        })?;
        self.write_count();
        marked
    }

    fn write_count(&self) {
        let Some(home) = &self.home else { return };
        let now = self.usage().blobs.len();
        if home.counted.swap(now, Ordering::Relaxed) != now {
            count::write(&home.dir, now);
        }
    }

    /// Bytes of the blobs that are kept.
    pub fn live_bytes(&self) -> u64 {
        self.usage().live_bytes
    }

    /// Bytes on disk.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.store().size_on_disk()
    }

    /// One in memory whose mark is on `disk`.
    #[cfg(test)]
    pub(crate) fn with_mark_on(budget_bytes: u64, disk: &SimDisk) -> Self {
        let file = MarkFile::create(disk).expect("made");
        Self {
            mark: Mutex::new(Mark::Simulated(file)),
            ..Self::in_memory(budget_bytes)
        }
    }

    /// Holds up every change until it is dropped, as a copy of the whole store does.
    #[cfg(test)]
    pub(crate) fn hold_up(&self) -> impl Sized + '_ {
        self.writer()
    }

    /// Puts other bytes in the place of a blob, as a disk may.
    #[cfg(test)]
    pub(crate) fn spoil(&self, hash: SpecHash, wrong: Vec<u8>) {
        let mut batch = Batch::new();
        batch.put(Tree::Blobs, hash.as_bytes(), wrong);
        self.store().apply(&batch).expect("applied");
    }

    fn make_room(&self, store: &dyn Store, spec: &Spec) -> Result<(), StoreError> {
        if self.live_bytes().saturating_add(spec.len()) > self.budget_bytes {
            self.gather_uses();
        }
        let victims = self.usage().victims(spec, self.budget_bytes);
        // Two operations each.
        for hashes in victims.chunks(MAX_BATCH / 2) {
            let mut batch = Batch::new();
            for hash in hashes {
                remove_blob(&mut batch, *hash);
            }
            store.apply(&batch)?;
            let mut usage = self.usage();
            for hash in hashes {
                usage.remove(*hash);
            }
            metrics::counter!("larder_blob_evicted_total").increment(hashes.len() as u64);
        }
        Ok(())
    }

    fn write_found(&self, store: &dyn Store) -> Result<(), StoreError> {
        self.write_touched(store)?;
        let spoilt = self.usage().spoilt.clone();
        for (hash, found) in spoilt {
            // What cannot be looked at now is found again by its next reader.
            let look = blobs::look(store, hash, None).ok();
            // Someone may have saved it since.
            if look.is_some_and(|look| !matches!(look, Look::Found(_))) {
                if let Spoilt::Damaged(blob) = &found {
                    blobs::quarantine(store, hash, &blob.reason)?;
                }
                let mut batch = Batch::new();
                remove_blob(&mut batch, hash);
                store.apply(&batch)?;
                self.usage().remove(hash);
            }
            self.usage().spoilt.remove(&hash);
        }
        Ok(())
    }

    fn write_touched(&self, store: &dyn Store) -> Result<(), StoreError> {
        self.gather_uses();
        let touched: Vec<_> = std::mem::take(&mut self.usage().touched)
            .into_iter()
            .collect();
        for hashes in touched.chunks(MAX_BATCH) {
            let mut batch = Batch::new();
            for hash in hashes {
                if let Some((at, len)) = self.usage().blobs.get(hash) {
                    put_used(&mut batch, *hash, at, *len);
                }
            }
            store.apply(&batch)?;
        }
        Ok(())
    }

    fn store(&self) -> RwLockReadGuard<'_, Box<dyn Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self) -> MutexGuard<'_, Mark> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the mark, or makes it for a store that is new.
fn open_mark(dir: &Path, name: &str) -> Result<MarkFile<RealDisk>, MarkError> {
    let disk = RealDisk::new(dir);
    match MarkFile::open(&disk)? {
        Some(mark) => Ok(mark),
        None if dir.join(name).exists() => Err(MarkError::Gone),
        None => MarkFile::create(&disk),
    }
}

/// Opens sled, or starts a new one if it is damaged; says where the damaged one went.
fn open_cache(
    (dir, name): (&Path, &str),
    cache_bytes: u64,
    mark: Option<HighWater>,
) -> Result<(SledStore, Usage, Option<PathBuf>), MetaError> {
    let (store, set_aside) = aside::open(dir, name, Role::Worker, cache_bytes)?;
    let life = mark.map(|mark| (mark.catalog, mark.epoch));
    let read = held::drop_if_old(&store, life).and_then(|()| Ok(Usage::read(&store)?));
    match read {
        Err(error) if error.is_damage() => {
            // Its files must be closed before their directory gets another name.
            drop(store);
            let set_aside = aside::set_aside(dir, name, &error)?;
            let (store, _) = aside::open(dir, name, Role::Worker, cache_bytes)?;
            if let Some(life) = life {
                Meta::of(&store).set_held_of(life)?;
            }
            let usage = Usage {
                held_of: life,
                ..Usage::default()
            };
            Ok((store, usage, Some(set_aside)))
        }
        read => {
            let mut usage = read?;
            usage.held_of = life;
            Ok((store, usage, set_aside))
        }
    }
}

impl Mark {
    fn get(&self) -> Option<HighWater> {
        match self {
            Self::Memory(mark) => *mark,
            Self::Disk(file) => file.get(),
            #[cfg(test)]
            Self::Simulated(file) => file.get(),
        }
    }

    fn raise(&mut self, new: HighWater) -> std::io::Result<()> {
        match self {
            Self::Memory(mark) => {
                if mark.is_none_or(|known| new.may_replace(&known)) {
                    *mark = Some(new);
                }
                Ok(())
            }
            Self::Disk(file) => file.raise(new),
            #[cfg(test)]
            Self::Simulated(file) => file.raise(new),
        }
    }

    fn begin_sync(&mut self) -> std::io::Result<Option<Waiting>> {
        Ok(match self {
            Self::Memory(_) => None,
            Self::Disk(file) => file.begin_sync()?.map(Waiting::Disk),
            #[cfg(test)]
            Self::Simulated(file) => file.begin_sync()?.map(Waiting::Simulated),
        })
    }

    fn end_sync(&mut self, waiting: &Waiting, synced: bool) {
        match (self, waiting) {
            (Self::Disk(file), Waiting::Disk(copy)) => file.end_sync(copy, synced),
            #[cfg(test)]
            (Self::Simulated(file), Waiting::Simulated(copy)) => file.end_sync(copy, synced),
            // Of another place than this.
            _ => {}
        }
    }
}

/// A copy of the mark on its way to the disk.
enum Waiting {
    Disk(Syncing<RealDisk>),
    #[cfg(test)]
    Simulated(Syncing<SimDisk>),
}

impl Waiting {
    fn wait(&self) -> std::io::Result<()> {
        match self {
            Self::Disk(copy) => copy.wait(),
            #[cfg(test)]
            Self::Simulated(copy) => copy.wait(),
        }
    }
}

fn remove_blob(batch: &mut Batch, hash: SpecHash) {
    batch
        .remove(Tree::Blobs, hash.as_bytes())
        .remove(Tree::Used, hash.as_bytes());
}

#[cfg(test)]
mod tests;
