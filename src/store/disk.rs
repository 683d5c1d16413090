//! The one file that names sled.
//!
//! sled 0.34 is fast and survives `kill -9`, but it does not promise what a database should, so
//! this is how we use it:
//!
//! - Its `flush` does not fsync; [`sync`](Store::sync) does that itself. Values above about
//!   128 KiB go to files of their own, which sled never syncs; `sync` does. What a power cut
//!   takes between two syncs may be a page whose value is gone: an error or a miss, never
//!   a panic and never wrong bytes, since readers hash them.
//! - A `snap.*.generating` left by a crash makes every later open fail; it is removed first.
//! - Opening damaged files can panic, so that is caught, here and in every other call.
//! - Of a damaged log it keeps the batches before the damage, in silence. So a key that is absent
//!   proves nothing: a worker asks again, a coordinator has its journal.
//! - After a write that failed, as on a full disk, a flush may wait for ever, and closing it
//!   flushes. So it takes no further write, and is closed by a thread that nobody waits for.
//!   Every later write answers that it is damaged: its owner makes a new one from what it reads.
//! - Its own lock lingers for some milliseconds after a `kill -9`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sled::Transactional;
use sled::transaction::{ConflictableTransactionError, TransactionError};

use super::file::{is_full, sync_dir};
use super::lock::make_dir;
use super::{Batch, MAX_BATCH, Store, StoreError, Tree};

/// How long to wait for the lock of a process that was killed a moment ago: 10 times what was
/// seen. We hold our own lock by then, so nobody else is meant to have it.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Pause between two tries within [`LOCK_WAIT`].
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// How often sled writes on its own what was applied: what a killed worker may lose.
const FLUSH_EVERY_MS: u64 = 500;

/// A [`Store`] on disk.
pub struct SledStore {
    /// There until it is dropped.
    open: Option<Open>,
    dir: PathBuf,
    /// Why the first write that failed did.
    failed: OnceLock<String>,
    /// Files of large values that are synced; they never change.
    synced: Mutex<BTreeSet<OsString>>,
}

struct Open {
    db: sled::Db,
    /// In the order of [`Tree::ALL`].
    trees: Vec<sled::Tree>,
}

impl std::fmt::Debug for SledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SledStore").field(&self.dir).finish()
    }
}

impl SledStore {
    /// Opens the store in `dir`, or makes one. The caller holds the lock beside it.
    ///
    /// `cache_bytes` bounds what sled keeps in memory; left alone it would take 1 GiB.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is beyond repair and should be set aside; other errors
    /// when the disk fails.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        Self::open_within(dir, cache_bytes, LOCK_WAIT)
    }

    fn open_within(dir: &Path, cache_bytes: u64, wait: Duration) -> Result<Self, StoreError> {
        make_dir(dir).map_err(io_error)?;
        remove_snapshots(dir, |name| name.ends_with(".generating")).map_err(io_error)?;
        match Self::open_locked(dir, cache_bytes, wait) {
            Err(StoreError::Damaged(first)) => {
                // What sled has to leave out then it leaves out in silence.
                tracing::error!(
                    dir = %dir.display(),
                    error = %first,
                    "the store is damaged; it is opened without snapshots, and what its log had \
                     behind the damage is lost"
                );
                remove_snapshots(dir, |_| true).map_err(io_error)?;
                Self::open_locked(dir, cache_bytes, wait)
            }
            opened => opened,
        }
    }

    fn open_locked(dir: &Path, cache_bytes: u64, wait: Duration) -> Result<Self, StoreError> {
        let give_up_at = Instant::now() + wait;
        loop {
            match shielded(|| Self::open_once(dir, cache_bytes)) {
                Err(error) if is_lock(&error) && Instant::now() < give_up_at => {
                    std::thread::sleep(LOCK_RETRY);
                }
                opened => return opened,
            }
        }
    }

    fn open_once(dir: &Path, cache_bytes: u64) -> Result<Self, sled::Error> {
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .open()?;
        let trees = Tree::ALL
            .iter()
            .map(|tree| db.open_tree([tree.tag()]))
            .collect::<Result<_, _>>();
        match trees {
            Ok(trees) => Ok(Self {
                open: Some(Open { db, trees }),
                dir: dir.to_owned(),
                failed: OnceLock::new(),
                synced: Mutex::default(),
            }),
            Err(error) => {
                close_unattended(db);
                Err(error)
            }
        }
    }

    fn open_files(&self) -> &Open {
        self.open.as_ref().expect("open until it is dropped")
    }

    /// Runs a call that writes, unless one has failed.
    fn write<T>(&self, call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
        if let Some(why) = self.failed.get() {
            // Whoever can make it anew does so for damage, which this is from now on.
            let text = format!("it takes no writes since one failed: {why}");
            return Err(StoreError::Damaged(text));
        }
        shielded(call).inspect_err(|error| {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            let _ = self.failed.set(cause.unwrap_or_else(|| error.to_string()));
        })
    }

    /// As if a write had found the disk full.
    #[cfg(test)]
    pub(super) fn fail_as_if_full(&self) {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        let failed = self.write(|| Err::<(), _>(sled::Error::Io(error)));
        assert!(matches!(failed, Err(StoreError::Full(_))));
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        let at = Tree::ALL.iter().position(|&other| other == tree);
        &self.open_files().trees[at.expect("ALL holds every tree")]
    }

    fn sync_files(&self) -> io::Result<()> {
        File::open(self.dir.join("db"))?.sync_all()?;
        let large = self.dir.join("blobs");
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&large)? {
            let entry = entry?;
            if !synced.contains(&entry.file_name()) {
                match File::open(entry.path()) {
                    Ok(file) => file.sync_all()?,
                    // sled removes what was replaced at any moment.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            present.insert(entry.file_name());
        }
        *synced = present;
        sync_dir(&large)?;
        sync_dir(&self.dir)
    }
}

/// Shorter values are copied: to share one costs an allocation too.
const SHARED_LEN: usize = 1_024;

/// sled shares a long value with its own memory, which then outlives its place in the cache.
fn owned(value: sled::IVec) -> Bytes {
    match value.len() < SHARED_LEN {
        true => Bytes::copy_from_slice(&value),
        false => Bytes::from_owner(value),
    }
}

impl Store for SledStore {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = shielded(|| self.tree(tree).get(key))?;
        Ok(value.map(owned))
    }

    fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        if batch.ops.len() > MAX_BATCH {
            return Err(StoreError::TooMany(batch.ops.len()));
        }
        let touched: BTreeSet<_> = batch.ops.iter().map(|(tree, ..)| *tree).collect();
        if touched.is_empty() {
            return Ok(());
        }
        let touched: Vec<_> = touched.into_iter().collect();
        let trees: Vec<_> = touched.iter().map(|&tree| self.tree(tree)).collect();
        self.write(|| {
            let done = trees[..].transaction(|views| {
                for (tree, key, value) in &batch.ops {
                    let at = touched.binary_search(tree);
                    let view = &views[at.expect("every tree of the batch is touched")];
                    match value {
                        Some(value) => view.insert(&key[..], &value[..])?,
                        None => view.remove(&key[..])?,
                    };
                }
                Ok::<_, ConflictableTransactionError<()>>(())
            });
            done.map_err(|error| match error {
                TransactionError::Storage(error) => error,
                TransactionError::Abort(()) => sled::Error::Unsupported("never aborted".into()),
            })
        })
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let pairs: Vec<_> = shielded(|| {
            // A damaged page would make the iterator yield errors for ever: the first one ends it.
            self.tree(tree).range(from..).take(limit).collect()
        })?;
        let copy = |(key, value): (sled::IVec, sled::IVec)| {
            (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))
        };
        Ok(pairs.into_iter().map(copy).collect())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.write(|| self.open_files().db.flush())?;
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.flush()?;
        self.sync_files().map_err(io_error)
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        shielded(|| self.open_files().db.size_on_disk())
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        if self.failed.get().is_some() {
            close_unattended(self.open.take());
        }
    }
}

/// Closes a sled that failed. That may never end; until it does, it cannot be opened anew, so
/// there is one such thread at most for each directory.
fn close_unattended(open: impl Send + 'static) {
    let closing = std::thread::Builder::new().name("larder-close".into());
    if let Err(error) = closing.spawn(move || drop(open)) {
        tracing::warn!(%error, "a store that failed is closed in place");
    }
}

/// Runs a call into sled; a panic in it is damage.
fn shielded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => done.map_err(sled_error),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("no message");
            Err(StoreError::Damaged(format!("sled panicked: {text}")))
        }
    }
}

fn sled_error(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => io_error(error),
        // Also `Unsupported`: the parameters in a file that no other version of sled wrote.
        damage => StoreError::Damaged(damage.to_string()),
    }
}

pub(super) fn io_error(error: io::Error) -> StoreError {
    match is_full(&error) {
        true => StoreError::Full(error),
        false => StoreError::Io(error),
    }
}

/// Whether another process has the store. sled has no kind of error for this, only a text.
pub(super) fn is_lock(error: &StoreError) -> bool {
    matches!(error, StoreError::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Removes sled's snapshots of its page table; it rebuilds them from its log.
fn remove_snapshots(dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && which(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Damages a closed database so that it does not open.
#[cfg(test)]
pub(crate) fn damage(dir: &Path) {
    fs::write(dir.join("conf"), b"these are no parameters of sled").expect("written");
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    const CACHE: u64 = 16 << 20;

    fn open(dir: &Path) -> Result<SledStore, StoreError> {
        SledStore::open(dir, CACHE)
    }

    fn key(number: u32) -> [u8; 4] {
        number.to_be_bytes()
    }

    /// A closed store of 2,000 values.
    fn filled(dir: &Path) {
        let store = open(dir).expect("a store");
        for start in (0..2_000).step_by(500) {
            let mut batch = Batch::new();
            for number in start..start + 500 {
                batch.put(Tree::Blobs, key(number), vec![number as u8; 400]);
            }
            store.apply(&batch).expect("applied");
        }
        store.sync().expect("synced");
        drop(store);
        // Threads of sled may still be at work; they hold its lock until they are done.
        let file = File::open(db_file(dir)).expect("the file");
        flock(&file, FlockOperation::LockExclusive).expect("the lock");
    }

    fn count(store: &SledStore) -> usize {
        store.scan(Tree::Blobs, &[], 10_000).expect("a scan").len()
    }

    fn db_file(dir: &Path) -> PathBuf {
        dir.join("db")
    }

    #[test]
    fn what_was_synced_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().expect("a directory");
        let large = vec![7; 1 << 20];
        {
            let store = open(dir.path()).expect("a store");
            let mut batch = Batch::new();
            batch.put(Tree::Blobs, b"large", large.clone());
            batch.put(Tree::Meta, b"m", b"v".to_vec());
            store.apply(&batch).expect("applied");
            store.sync().expect("synced");
            store.sync().expect("synced twice");
        }
        let store = open(dir.path()).expect("a store");
        let found = store.get(Tree::Blobs, b"large").expect("an answer");
        assert_eq!(found.as_deref(), Some(&large[..]));
        let found = store.get(Tree::Meta, b"m").expect("an answer");
        assert_eq!(found.as_deref(), Some(&b"v"[..]));
    }

    #[test]
    fn the_lock_of_sled_is_told_from_other_errors_and_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path()).expect("a store");
        let second = SledStore::open_within(dir.path(), CACHE, Duration::ZERO);
        assert!(is_lock(&second.expect_err("it is held")));
        std::thread::scope(|scope| {
            let second = scope.spawn(|| open(dir.path()));
            drop(first);
            let second = second.join().expect("no panic");
            second.expect("a store, once the first is closed");
        });
    }

    #[test]
    fn after_a_write_that_failed_it_only_reads_until_it_is_opened_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        filled(dir.path());
        let store = open(dir.path()).expect("a store");
        store.fail_as_if_full();
        let mut batch = Batch::new();
        batch.put(Tree::Blobs, b"late", b"v".to_vec());
        let later = store.apply(&batch).expect_err("it takes no further write");
        assert!(matches!(&later, StoreError::Damaged(why) if why.contains("no storage space")));
        assert!(store.flush().is_err() && store.sync().is_err());
        assert_eq!(count(&store), 2_000);
        drop(store);
        let store = open(dir.path()).expect("a store, once the other is closed");
        store.apply(&batch).expect("applied");
    }

    #[test]
    fn a_snapshot_that_a_crash_left_half_made_does_not_stop_it() {
        let dir = tempfile::tempdir().expect("a directory");
        filled(dir.path());
        let leftover = dir.path().join("snap.00000000000000FF.generating");
        fs::write(&leftover, b"half").expect("a file");
        let store = open(dir.path()).expect("a store");
        assert_eq!(count(&store), 2_000);
        assert!(!leftover.exists());
    }

    #[test]
    fn a_damaged_snapshot_is_rebuilt() {
        let dir = tempfile::tempdir().expect("a directory");
        filled(dir.path());
        drop(open(dir.path()).expect("a store"));
        let mut snapshots = 0;
        for entry in fs::read_dir(dir.path()).expect("a listing") {
            let path = entry.expect("an entry").path();
            if path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("snap."))
            {
                let content = fs::read(&path).expect("a snapshot");
                fs::write(&path, &content[..content.len() / 2]).expect("cut");
                snapshots += 1;
            }
        }
        assert!(snapshots > 0, "sled wrote a snapshot when it opened");
        assert_eq!(count(&open(dir.path()).expect("a store")), 2_000);
    }

    #[test]
    fn a_database_that_was_cut_holds_the_first_batches_whole() {
        for cut in [1, 100_000, 512 << 10, 1 << 20] {
            let dir = tempfile::tempdir().expect("a directory");
            filled(dir.path());
            let file = File::options().write(true).open(db_file(dir.path()));
            let file = file.expect("the file");
            let len = file.metadata().expect("metadata").len();
            file.set_len(len - cut).expect("a cut");
            match open(dir.path()) {
                Err(StoreError::Damaged(_)) => {}
                Err(other) => panic!("not named as damage: {other:?}"),
                Ok(store) => {
                    let count = count(&store);
                    assert!(count < 2_000 && count.is_multiple_of(500), "{count}");
                }
            }
        }
    }

    #[test]
    fn a_database_that_makes_sled_panic_is_damaged_or_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        filled(dir.path());
        let path = db_file(dir.path());
        let mut content = fs::read(&path).expect("the file");
        content[..100].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(&path, content).expect("written");
        match open(dir.path()) {
            Err(StoreError::Damaged(text)) => assert!(text.contains("panicked"), "{text}"),
            Err(other) => panic!("not named as damage: {other:?}"),
            // Without its snapshots it opens now and then, and has lost what it had.
            Ok(store) => {
                let left = store
                    .scan(Tree::Blobs, &[], 10_000)
                    .map(|pairs| pairs.len());
                assert!(left.is_err() || left.is_ok_and(|left| left < 2_000));
            }
        }
    }

    #[test]
    fn a_database_with_damaged_parameters_is_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        filled(dir.path());
        damage(dir.path());
        assert!(matches!(open(dir.path()), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn flipped_bytes_give_errors_or_wrong_values_and_no_panic() {
        for at in (0..20).map(|step| step * 7_919) {
            let dir = tempfile::tempdir().expect("a directory");
            filled(dir.path());
            let path = db_file(dir.path());
            let mut content = fs::read(&path).expect("the file");
            let at = at % content.len();
            content[at] ^= 0x10;
            fs::write(&path, content).expect("written");
            let Ok(store) = open(dir.path()) else {
                continue;
            };
            for number in 0..2_000 {
                let _ = store.get(Tree::Blobs, &key(number));
            }
            let _ = store.scan(Tree::Blobs, &[], 10_000);
        }
    }
}
