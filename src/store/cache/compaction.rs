use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;

use super::{CACHE, Home, WorkerStore};
use crate::store::disk::{SledStore, io_error};
use crate::store::file::sync_dir;
use crate::store::memory::MemoryStore;
use crate::store::{Batch, Store, StoreError, Tree, visit};

const NEW: &str = "cache.new";
const OLD: &str = "cache.old";

/// sled settles at up to 2.8 times what lives in it and never shrinks; more than this factor...
const FACTOR: u64 = 3;

/// ...and this much on top is worth a copy.
const SLACK_BYTES: u64 = 64 << 20;

/// Pairs copied at a time: a handful of the largest bodies fit into memory.
const PAGE: usize = 4;

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes on disk before.
    pub bytes_before: u64,
    /// Bytes on disk now.
    pub bytes_after: u64,
}

impl WorkerStore {
    /// Copies what lives into a new store and changes to it, if the disk holds more than three
    /// times as much and 64 MiB; `None` if it does not.
    ///
    /// Reads go on meanwhile; changes wait.
    ///
    /// # Errors
    /// [`StoreError`]. If even the old store does not open again, the worker goes on in memory
    /// until it is restarted.
    pub fn compact(&self) -> Result<Option<Compacted>, StoreError> {
        let live = self.live_bytes().saturating_mul(FACTOR);
        let worth_it = live.saturating_add(SLACK_BYTES);
        match &self.home {
            Some(home) if self.size_on_disk()? > worth_it => self.compact_now(home).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn compact_now(&self, home: &Home) -> Result<Compacted, StoreError> {
        let _writer = self.writer();
        self.write_touched(&**self.store())?;
        let bytes_before = self.size_on_disk()?;
        if let Err(error) = copy(&**self.store(), home) {
            // It is cleaned up at the next start at the latest.
            let _ = remove_dir(&home.dir.join(NEW));
            return Err(error);
        }
        self.change_over(home)?;
        remove_dir(&home.dir.join(OLD)).map_err(io_error)?;
        let bytes_after = self.size_on_disk()?;
        Ok(Compacted {
            bytes_before,
            bytes_after,
        })
    }

    fn change_over(&self, home: &Home) -> Result<(), StoreError> {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // sled finds its files by path: it must be closed before its directory is renamed.
        *store = Box::new(MemoryStore::new());
        let swapped = swap(&home.dir).or_else(|error| {
            finish(&home.dir)?;
            Err(io_error(error))
        });
        *store = Box::new(SledStore::open(&home.dir.join(CACHE), home.cache_bytes)?);
        swapped
    }
}

/// Sorts out what a crash left of a compaction.
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

fn copy(from: &dyn Store, home: &Home) -> Result<(), StoreError> {
    let path = home.dir.join(NEW);
    remove_dir(&path).map_err(io_error)?;
    let to = SledStore::open(&path, home.cache_bytes)?;
    for tree in Tree::ALL {
        visit(from, tree, PAGE, |key, value| {
            let mut batch = Batch::new();
            batch.put(tree, key, value.clone());
            to.apply(&batch)
        })?;
    }
    to.sync()
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
