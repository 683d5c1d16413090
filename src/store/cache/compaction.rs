use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::PoisonError;

use super::held::{self, Held};
use super::{CACHE, Home, WorkerStore, put_used};
use crate::catalog::Revision;
use crate::identity::Role;
use crate::spec::{Spec, SpecHash, SpecName};
use crate::store::blobs::{self, MAX_QUARANTINE};
use crate::store::disk::{SledStore, io_error};
use crate::store::file::sync_dir;
use crate::store::memory::MemoryStore;
use crate::store::meta::{Meta, MetaError};
use crate::store::{Batch, Store, StoreError, Tree};

const NEW: &str = "cache.new";
const OLD: &str = "cache.old";

/// sled settles at up to 2.8 times what lives in it and never shrinks; more than this factor, and
/// the slack on top, is worth a copy.
const FACTOR: u64 = 3;

/// Bytes and operations that are copied together: one large body, or many small ones.
const COPY_BYTES: u64 = 1 << 20;
/// See [`COPY_BYTES`].
const COPY_OPS: usize = 256;

/// What a compaction or a rebuild did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes on disk before.
    pub bytes_before: u64,
    /// Bytes on disk now.
    pub bytes_after: u64,
    /// Blobs that could not be read, or were not what they should be; they are fetched again.
    pub lost_blobs: usize,
    /// Lines about names that could not be read; they are asked again.
    pub lost_lines: usize,
}

/// What is to be copied, as it is known in memory: a damaged tree cannot be listed.
struct Plan {
    /// Hash, number of the last use, length.
    blobs: Vec<(SpecHash, u64, u64)>,
    lines: Vec<(SpecName, Revision)>,
}

#[derive(Default)]
struct Lost {
    blobs: BTreeSet<SpecHash>,
    lines: BTreeSet<(SpecName, Revision)>,
}

impl WorkerStore {
    /// Copies what lives into a new store and changes to it, if the disk holds more than three
    /// times as much and the slack; `None` if it does not.
    ///
    /// Reads go on meanwhile; changes wait.
    ///
    /// # Errors
    /// [`StoreError`]. If even the old store does not open again, the worker goes on in memory
    /// until it is restarted.
    pub fn compact(&self) -> Result<Option<Compacted>, StoreError> {
        let Some(home) = &self.home else {
            return Ok(None);
        };
        let live = self.live_bytes().saturating_mul(FACTOR);
        let worth_it = live.saturating_add(home.options.slack_bytes);
        if self.size_on_disk()? <= worth_it {
            return Ok(None);
        }
        let _writer = self.writer();
        self.copy_and_swap(home).map(Some)
    }

    /// Replaces the store by a copy of what can be read; the caller holds the writer's lock.
    pub(super) fn copy_and_swap(&self, home: &Home) -> Result<Compacted, StoreError> {
        // Damage may hide even that, and it is only told.
        let bytes_before = self.size_on_disk().unwrap_or(0);
        let copied = copy(&**self.store(), home, &self.plan());
        let lost = copied.inspect_err(|_| {
            // It is cleaned up at the next start at the latest.
            let _ = remove_dir(&home.dir.join(NEW));
        })?;
        self.change_over(home)?;
        self.forget_lost(&lost);
        if let Err(error) = remove_dir(&home.dir.join(OLD)) {
            tracing::warn!(%error, "the old store stays until the next start");
        }
        Ok(Compacted {
            bytes_before,
            bytes_after: self.size_on_disk().unwrap_or(0),
            lost_blobs: lost.blobs.len(),
            lost_lines: lost.lines.len(),
        })
    }

    fn plan(&self) -> Plan {
        let mut usage = self.usage();
        // The copy has the last uses.
        usage.touched.clear();
        let blobs = usage.blobs.iter();
        let lines = usage.held.iter();
        Plan {
            blobs: blobs.map(|(hash, at, len)| (*hash, at, *len)).collect(),
            lines: lines.map(|(key, ..)| key.clone()).collect(),
        }
    }

    fn change_over(&self, home: &Home) -> Result<(), StoreError> {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // sled finds its files by path: it must be closed before its directory is renamed.
        let old = std::mem::replace(&mut *store, Box::new(MemoryStore::new()));
        if catch_unwind(AssertUnwindSafe(|| drop(old))).is_err() {
            tracing::warn!("sled panicked while it closed a damaged store");
        }
        let swapped = swap(&home.dir).or_else(|error| {
            finish(&home.dir)?;
            Err(io_error(error))
        });
        let cache_bytes = home.options.cache_bytes;
        *store = Box::new(SledStore::open(&home.dir.join(CACHE), cache_bytes)?);
        swapped
    }

    fn forget_lost(&self, lost: &Lost) {
        if lost.blobs.is_empty() && lost.lines.is_empty() {
            return;
        }
        let mut usage = self.usage();
        for hash in &lost.blobs {
            usage.remove(*hash);
        }
        for key in &lost.lines {
            usage.held.remove(key);
        }
        drop(usage);
        let (blobs, lines) = (lost.blobs.len(), lost.lines.len());
        metrics::counter!("larder_store_lost_total").increment((blobs + lines) as u64);
        tracing::warn!(
            blobs,
            lines,
            "not all of the store could be copied; what is lacking is fetched again"
        );
    }
}

/// Sorts out what a crash left of a copy.
pub(super) fn finish(dir: &Path) -> Result<(), StoreError> {
    let (cache, old) = (dir.join(CACHE), dir.join(OLD));
    let tidy = || {
        if !cache.exists() && old.exists() {
            fs::rename(&old, &cache)?;
            sync_dir(dir)?;
        }
        remove_dir(&dir.join(NEW))?;
        remove_dir(&old)
    };
    tidy().map_err(io_error)
}

/// Copies key by key what can be read, and says what could not.
fn copy(from: &dyn Store, home: &Home, plan: &Plan) -> Result<Lost, StoreError> {
    let path = home.dir.join(NEW);
    remove_dir(&path).map_err(io_error)?;
    let to = SledStore::open(&path, home.options.cache_bytes)?;
    let held = copy_meta(Meta::of(from), Meta::of(&to))?;
    let mut filling = Filling {
        to: &to,
        batch: Batch::new(),
        bytes: 0,
    };
    let mut lost = Lost::default();
    // Of what was damaged before, as much as can be listed.
    let quarantined = readable(from.scan(Tree::Quarantine, &[], MAX_QUARANTINE))?;
    for (key, value) in quarantined.unwrap_or_default() {
        filling.batch.put(Tree::Quarantine, key, value);
    }
    filling.empty()?;
    for &(hash, at, len) in &plan.blobs {
        match read_blob(from, hash)? {
            Ok(spec) => {
                blobs::put(&mut filling.batch, &spec);
                put_used(&mut filling.batch, hash, at, len);
                filling.grew(spec.len())?;
            }
            Err(reason) => {
                filling.empty()?;
                blobs::quarantine(&to, hash, &reason)?;
                lost.blobs.insert(hash);
            }
        }
    }
    for key in &plan.lines {
        match held.then(|| read_line(from, key)).transpose()?.flatten() {
            Some(line) => {
                line.put(&mut filling.batch);
                filling.grew(0)?;
            }
            None => {
                lost.lines.insert(key.clone());
            }
        }
    }
    filling.empty()?;
    to.sync()?;
    Ok(lost)
}

/// Copies the single values; says whether the lines about names are known to be of this epoch.
fn copy_meta(from: Meta<'_>, to: Meta<'_>) -> Result<bool, StoreError> {
    to.prepare(Role::Worker).map_err(store_error)?;
    if let Some(key) = readable_value(from.known_reset_key())? {
        to.reset_key(key).map_err(store_error)?;
    }
    let held_of = readable_value(from.held_of())?;
    if let Some(life) = held_of {
        to.set_held_of(life)?;
    }
    Ok(held_of.is_some())
}

fn read_blob(from: &dyn Store, hash: SpecHash) -> Result<Result<Spec, String>, StoreError> {
    Ok(match from.get(Tree::Blobs, hash.as_bytes()) {
        Ok(Some(bytes)) => Spec::verify(hash, None, bytes).map_err(|error| error.to_string()),
        Ok(None) => Err("its bytes are gone".into()),
        Err(error @ StoreError::Damaged(_)) => Err(error.to_string()),
        Err(error) => return Err(error),
    })
}

fn read_line(
    from: &dyn Store,
    (name, rev): &(SpecName, Revision),
) -> Result<Option<Held>, StoreError> {
    let key = held::encode_key(name, *rev);
    let value = readable(from.get(Tree::Held, &key))?.flatten();
    Ok(value.and_then(|value| Held::decode(&key.into(), &value).ok()))
}

/// What was read, or nothing where the store is damaged.
fn readable<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same of a single value.
fn readable_value<T>(read: Result<Option<T>, MetaError>) -> Result<Option<T>, StoreError> {
    match read {
        Err(error) if error.is_damage() => Ok(None),
        read => read.map_err(store_error),
    }
}

/// Of a value that is no damage, nor of another format or role.
fn store_error(error: MetaError) -> StoreError {
    match error {
        MetaError::Store(error) => error,
        other => StoreError::Damaged(other.to_string()),
    }
}

/// A new store while it is filled.
struct Filling<'a> {
    to: &'a SledStore,
    batch: Batch,
    bytes: u64,
}

impl Filling<'_> {
    fn grew(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.bytes += bytes;
        if self.bytes >= COPY_BYTES || self.batch.ops.len() >= COPY_OPS {
            self.empty()?;
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        self.to.apply(&std::mem::take(&mut self.batch))
    }
}

fn swap(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join(CACHE), dir.join(OLD))?;
    fs::rename(dir.join(NEW), dir.join(CACHE))?;
    sync_dir(dir)
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
