//! The view of the journal: what sled holds at a coordinator, and how it catches up.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::{Entry, Pending, Published, Revision, Version};
use crate::codec::{DecodeError, Reader, Writer};
use crate::spec::{Spec, SpecHash, SpecName};
use crate::store::file::DiskFile;
use crate::store::journal::record::HEADER_LEN;
use crate::store::journal::{JournalReader, Position, ReadError};
use crate::store::meta::{self, Meta, MetaError};
use crate::store::{Batch, MAX_BATCH, Store, StoreError, Tree, blobs};

/// Bytes in one batch beyond which it is applied: one large body, or many small ones.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Operations that a batch keeps room for: a body takes two, the applied position one.
const RESERVED: usize = 3;

/// Keys removed at a time. Small, since a scan brings the values along.
const CLEAR_STEP: usize = 16;

/// Why the view is behind the journal, or absent. Nothing is lost: it catches up later.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The view cannot be opened.
    #[error("the view of the journal does not open")]
    Open(#[from] MetaError),
    /// The view did not take a batch.
    #[error("the view of the journal failed")]
    Store(#[from] StoreError),
    /// The journal could not be read back.
    #[error(transparent)]
    Journal(#[from] ReadError),
}

/// One line of the log of revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The revision.
    pub rev: Revision,
    /// Who, when and why.
    pub published: Published,
    /// Names that it changed.
    pub changed: u32,
}

/// What `name` was when the view was written last.
///
/// # Errors
/// [`StoreError`], also for a value that cannot be decoded.
pub fn record(store: &dyn Store, name: &SpecName) -> Result<Option<Version>, StoreError> {
    let Some(value) = store.get(Tree::Records, name.as_str().as_bytes())? else {
        return Ok(None);
    };
    let mut r = Reader::new(&value);
    let version = Version::decode(&mut r).and_then(|version| r.end().map(|()| version));
    version.map(Some).map_err(damaged("a record"))
}

/// Up to `limit` lines of the log from revision `from` on.
///
/// # Errors
/// [`StoreError`], also for a line that cannot be decoded.
pub fn log(store: &dyn Store, from: Revision, limit: usize) -> Result<Vec<Logged>, StoreError> {
    let pairs = store.scan(Tree::Log, &from.get().to_be_bytes(), limit)?;
    pairs
        .iter()
        .map(|(key, value)| decode_logged(key, value).map_err(damaged("a line of the log")))
        .collect()
}

fn damaged(what: &'static str) -> impl Fn(DecodeError) -> StoreError {
    move |error| StoreError::Damaged(format!("{what}: {error}"))
}

fn encode_logged(pending: &Pending) -> Vec<u8> {
    let Published {
        by,
        at_unix_ms,
        note,
    } = &pending.published;
    let mut w = Writer::new();
    // A publish has at most MAX_NAMES_PER_PUBLISH changes.
    w.u32(u32::try_from(pending.changes.len()).unwrap_or(u32::MAX));
    w.text(by).u64(*at_unix_ms).text(note);
    w.finish()
}

fn decode_logged(key: &Bytes, value: &Bytes) -> Result<Logged, DecodeError> {
    let mut key = Reader::new(key);
    let rev = Revision::new(key.u64()?);
    key.end()?;
    let mut r = Reader::new(value);
    let changed = r.u32()?;
    let published = Published {
        by: r.text()?.to_owned(),
        at_unix_ms: r.u64()?,
        note: r.text()?.to_owned(),
    };
    r.end()?;
    Ok(Logged {
        rev,
        published,
        changed,
    })
}

/// Writes the view.
#[derive(Debug)]
pub(super) struct View {
    store: Arc<dyn Store>,
    /// `None` when the view must be built anew.
    applied: Option<Position>,
    /// Publishes before `applied` that are not visible there.
    pending: BTreeMap<Revision, Pending>,
}

impl View {
    /// A view whose pending publishes are learned by [`observe`](Self::observe).
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        let applied = Meta::of(&*store).applied().unwrap_or_else(|error| {
            tracing::warn!(%error, "the view of the journal is built anew");
            None
        });
        Self {
            store,
            applied,
            pending: BTreeMap::new(),
        }
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// Learns at start what was pending where the view stands.
    pub(super) fn observe(&mut self, position: Position, entry: Entry) {
        let seen = self.applied.is_some_and(|applied| {
            applied.generation == position.generation && position.offset < applied.offset
        });
        match entry {
            Entry::Pending(pending) if seen => {
                self.pending.insert(pending.rev, *pending);
            }
            Entry::Visible { rev } if seen => self.pending.retain(|&other, _| other > rev),
            _ => {}
        }
    }

    /// Applies what is settled in the journal and not yet here.
    pub(super) fn catch_up<F: DiskFile>(
        &mut self,
        reader: &JournalReader<F>,
    ) -> Result<(), ViewError> {
        let generation = reader.generation();
        let from = match self.applied {
            Some(applied) if applied.generation == generation => applied,
            _ => self.clear(generation)?,
        };
        let store = Arc::clone(&self.store);
        let mut stage = Stage::new(&*store);
        let mut visible = Revision::ZERO;
        let mut reached = from;
        for read in reader.entries(from.offset) {
            let (behind, entry) = read?;
            reached = behind;
            match entry {
                Entry::Pending(pending) => {
                    self.pending.insert(pending.rev, *pending);
                }
                Entry::Visible { rev } => {
                    // Those up to `visible` are staged already.
                    let new = self.pending.values();
                    for pending in new.filter(|new| new.rev > visible && new.rev <= rev) {
                        stage.publish(pending)?;
                    }
                    visible = visible.max(rev);
                }
                entry => stage.entry(entry)?,
            }
            if stage.is_large() {
                stage.commit(reached)?;
                self.advance(reached, visible);
            }
        }
        if self.applied != Some(reached) {
            stage.commit(reached)?;
            self.advance(reached, visible);
        }
        Ok(())
    }

    /// After a rewrite of the journal: forgets what is not in it, and stands at its end.
    pub(super) fn prune(
        &mut self,
        dropped: &[SpecHash],
        base: Revision,
        end: Position,
    ) -> Result<(), StoreError> {
        self.applied = None;
        for hashes in dropped.chunks(MAX_BATCH) {
            let mut batch = Batch::new();
            for hash in hashes {
                batch.remove(Tree::Blobs, hash.as_bytes());
            }
            self.store.apply(&batch)?;
        }
        remove_up_to(&*self.store, base)?;
        let mut batch = Batch::new();
        meta::put_applied(&mut batch, end);
        self.store.apply(&batch)?;
        self.applied = Some(end);
        Ok(())
    }

    /// Builds the view anew at the next catch-up.
    pub(super) fn forget(&mut self) {
        self.applied = None;
    }

    /// Empties the view; says where it stands then.
    fn clear(&mut self, generation: u64) -> Result<Position, StoreError> {
        let mut batch = Batch::new();
        meta::remove_applied(&mut batch);
        self.store.apply(&batch)?;
        self.pending.clear();
        for tree in [Tree::Blobs, Tree::Records, Tree::Log] {
            clear_tree(&*self.store, tree)?;
        }
        let start = Position {
            generation,
            offset: HEADER_LEN as u64,
        };
        self.applied = Some(start);
        Ok(start)
    }

    fn advance(&mut self, applied: Position, visible: Revision) {
        self.applied = Some(applied);
        self.pending.retain(|&rev, _| rev > visible);
    }
}

/// Operations on their way into the view.
struct Stage<'a> {
    store: &'a dyn Store,
    batch: Batch,
    bytes: usize,
}

impl<'a> Stage<'a> {
    fn new(store: &'a dyn Store) -> Self {
        let batch = Batch::new();
        Self {
            store,
            batch,
            bytes: 0,
        }
    }

    fn is_large(&self) -> bool {
        self.batch.ops.len() + RESERVED > MAX_BATCH || self.bytes >= MAX_BATCH_BYTES
    }

    fn entry(&mut self, entry: Entry) -> Result<(), StoreError> {
        match entry {
            Entry::Genesis { catalog, .. } => meta::put_catalog(&mut self.batch, catalog),
            Entry::Base { records } => {
                for record in records {
                    self.record(&record.name, record.version)?;
                }
            }
            Entry::Body { bytes } => {
                self.make_room()?;
                self.bytes += bytes.len();
                blobs::put(&mut self.batch, &Spec::new(bytes));
            }
            Entry::Pending(_)
            | Entry::Visible { .. }
            | Entry::Keyed(_)
            | Entry::Epoch { .. }
            | Entry::LeaseMax { .. }
            | Entry::Pinned(_)
            | Entry::Unpinned { .. } => {}
        }
        Ok(())
    }

    fn publish(&mut self, pending: &Pending) -> Result<(), StoreError> {
        let rev = pending.rev;
        for change in &pending.changes {
            let content = change.content;
            self.record(&change.name, Version { rev, content })?;
        }
        self.put(Tree::Log, &rev.get().to_be_bytes(), encode_logged(pending))
    }

    fn record(&mut self, name: &SpecName, version: Version) -> Result<(), StoreError> {
        let mut w = Writer::new();
        version.encode(&mut w);
        self.put(Tree::Records, name.as_str().as_bytes(), w.finish())
    }

    fn put(&mut self, tree: Tree, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.make_room()?;
        self.bytes += key.len() + value.len();
        self.batch.put(tree, key, value);
        Ok(())
    }

    /// Applies what is staged without a position: a crash here replays it.
    fn make_room(&mut self) -> Result<(), StoreError> {
        match self.is_large() {
            true => self.apply(),
            false => Ok(()),
        }
    }

    fn commit(&mut self, reached: Position) -> Result<(), StoreError> {
        meta::put_applied(&mut self.batch, reached);
        self.apply()
    }

    fn apply(&mut self) -> Result<(), StoreError> {
        self.store.apply(&self.batch)?;
        self.batch.ops.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn clear_tree(store: &dyn Store, tree: Tree) -> Result<(), StoreError> {
    loop {
        let pairs = store.scan(tree, &[], CLEAR_STEP)?;
        if pairs.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (key, _) in pairs {
            batch.remove(tree, key);
        }
        store.apply(&batch)?;
    }
}

fn remove_up_to(store: &dyn Store, base: Revision) -> Result<(), StoreError> {
    loop {
        let pairs = store.scan(Tree::Log, &[], CLEAR_STEP)?;
        let last = base.get().to_be_bytes();
        let mut batch = Batch::new();
        for (key, _) in pairs.iter().filter(|(key, _)| **key <= last[..]) {
            batch.remove(Tree::Log, key);
        }
        if batch.ops.is_empty() {
            return Ok(());
        }
        store.apply(&batch)?;
    }
}
