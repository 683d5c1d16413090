//! What is on disk, and what a crash may lose.
//!
//! # Two kinds of disk
//!
//! - The **coordinator's** truth is its [`journal`]: checksummed entries in one file, fsynced
//!   before anything is acknowledged. sled is a view of it that can be thrown away, or done
//!   without while the disk is full.
//! - A **worker's** store is a cache in sled that can be rebuilt from the cluster, and beside it
//!   the [`mark`] that cannot, the copy of the catalog in [`replica`], and the `anchor`, which
//!   says since when that copy may be out of date.
//!
//! Both use sled through [`Store`], whose only implementations are [`disk::SledStore`] and, for
//! tests, [`memory::MemoryStore`]; one conformance suite runs over both.
//!
//! # Trees
//!
//! Integers in keys are big-endian, so that order of keys is order of numbers.
//!
//! | tree (tag) | key | value | written by | lives until |
//! | --- | --- | --- | --- | --- |
//! | `Blobs` (1) | hash, 32 B | exact bytes | both | no retained revision (coordinator) or no recent use (worker) needs it |
//! | `Records` (2) | name | [`Version`](crate::catalog::Version) | coordinator | overwritten by the next version |
//! | `Log` (3) | revision, 8 B | [`Published`](crate::catalog::Published) and number of changes | coordinator | retention |
//! | `Meta` (4) | text | see [`meta`] | both | the store |
//! | `Held` (5) | name, 0, revision 8 B | the last revision u64 at which it was still so, then hash and length, or tombstone | worker | least recently used goes first |
//! | `Used` (6) | hash, 32 B | number of the last use u64, length u64 | worker | its blob |
//! | `Quarantine` (7) | hash, 32 B | when, what was wrong | both | the blob is healed, or 1,024 newer ones |
//!
//! # Directories
//!
//! A store's directory belongs to one process, which holds its [`lock`]. A coordinator's is laid
//! out in [`vault`], a worker's in [`cache`]; neither opens the other's. The single values of
//! both are listed in [`meta`], among them a format number: an unknown one is refused.
//!
//! # What a crash may lose
//!
//! At the coordinator nothing that was acknowledged. At a worker the last moments of the cache
//! after a power cut, since it can ask again, and a mark that is less than a second old. When its
//! process alone ends it loses no mark.

pub(crate) mod anchor;
mod aside;
pub mod blobs;
pub mod cache;
#[cfg(test)]
mod conformance;
pub mod disk;
pub mod file;
pub mod journal;
pub mod lock;
pub mod mark;
pub mod memory;
pub mod meta;
mod recency;
pub mod replica;
pub mod vault;

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

/// The trees of a store. Tags are part of the format: explicit, never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tree {
    /// Bytes by hash.
    Blobs,
    /// Current version by name.
    Records,
    /// Who published a revision, and when.
    Log,
    /// Single values.
    Meta,
    /// What names were at revisions, as the coordinator said.
    Held,
    /// When a blob was last used.
    Used,
    /// Blobs that were damaged.
    Quarantine,
}

impl Tree {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Blobs,
        Self::Records,
        Self::Log,
        Self::Meta,
        Self::Held,
        Self::Used,
        Self::Quarantine,
    ];

    /// The name of the tree on disk: its tag, one byte.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Blobs => 1,
            Self::Records => 2,
            Self::Log => 3,
            Self::Meta => 4,
            Self::Held => 5,
            Self::Used => 6,
            Self::Quarantine => 7,
        }
    }
}

/// Most operations in one [`Batch`]; more would hold a sled transaction open for too long.
pub const MAX_BATCH: usize = 1_024;

/// Changes that a [`Store`] applies together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order; `None` removes the key.
    pub ops: Vec<(Tree, Bytes, Option<Bytes>)>,
}

impl Batch {
    /// No change yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, tree: Tree, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> &mut Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        self.ops.push((tree, key, Some(value.into())));
        self
    }

    /// Removes `key`, if it is there.
    pub fn remove(&mut self, tree: Tree, key: impl AsRef<[u8]>) -> &mut Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        self.ops.push((tree, key, None));
        self
    }
}

/// A small ordered key-value store over the [`Tree`]s. All calls block.
///
/// # Contract
///
/// - [`get`](Self::get) after [`apply`](Self::apply) sees the batch whole, from any thread.
/// - A batch is atomic for readers of one tree and across a crash: after a crash the store holds
///   a prefix of the batches applied, in order, each whole or absent.
/// - After [`flush`](Self::flush) returns, everything applied before survives `kill -9`; after
///   [`sync`](Self::sync), also a power cut.
/// - Damage is an error or a wrong value, never a panic: callers hash what they read.
/// - After an error nothing of that batch is visible.
pub trait Store: Send + Sync + fmt::Debug {
    /// The value of `key`.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails or the page is damaged.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Applies a batch of at most [`MAX_BATCH`] operations.
    ///
    /// # Errors
    /// [`StoreError`]; nothing changed then.
    fn apply(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Up to `limit` pairs with keys at or after `from`, ascending. Stops at the first error.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails or a page is damaged.
    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Makes what was applied survive the end of the process.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    fn flush(&self) -> Result<(), StoreError>;

    /// Makes what was applied survive a power cut.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    fn sync(&self) -> Result<(), StoreError>;

    /// Bytes on disk.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    fn size_on_disk(&self) -> Result<u64, StoreError>;
}

/// Why a store did not do what it was asked. Nothing changed unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("the disk failed")]
    Io(#[source] std::io::Error),
    /// No space is left.
    #[error("the disk is full")]
    Full(#[source] std::io::Error),
    /// What is on disk is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A batch with more than [`MAX_BATCH`] operations.
    #[error("a batch of {0} operations, at most {MAX_BATCH} are allowed")]
    TooMany(usize),
}

/// Visits every pair of a tree, `page` at a time; each page's values are in memory together.
pub(crate) fn visit(
    store: &dyn Store,
    tree: Tree,
    page: usize,
    mut visit: impl FnMut(&Bytes, &Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut from = Vec::new();
    loop {
        let pairs = store.scan(tree, &from, page)?;
        for (key, value) in &pairs {
            visit(key, value)?;
        }
        match pairs.last() {
            Some((key, _)) if pairs.len() == page => {
                // The smallest key after this one.
                from = [&key[..], &[0]].concat();
            }
            _ => return Ok(()),
        }
    }
}

/// Wall clock in milliseconds since 1970, for people.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
