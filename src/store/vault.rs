//! What a coordinator keeps: the journal, its view, and who may read them.
//!
//! One thread owns the [`Vault`] and appends; any thread reads bodies through a [`BlobReader`].
//! The order of a publish is: append bodies and entry, [`sync`](Vault::sync), only then believe
//! it; then [`apply_to_view`](Vault::apply_to_view), which may fail without harm, since the view
//! only repeats what the journal says and catches up later.
//!
//! | name | what it is |
//! | --- | --- |
//! | `lock` | held by the process that owns the store |
//! | `journal` | the truth |
//! | `journal.new` | a journal being written; removed at start |
//! | `view/` | sled |
//! | `view.corrupt-<seconds since 1970>/` | a damaged view, kept for a look |

mod backup;
mod bodies;
#[cfg(test)]
mod tests;
pub mod view;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::backup::{
    BackupError, BackupReader, BackupReport, RestoreError, RestoreReport, restore,
};
pub use self::bodies::{BlobReader, BodyError};
use self::view::{View, ViewError};
use crate::catalog::{Entry, Revision};
use crate::identity::Role;
use crate::spec::{Spec, SpecHash};
use crate::store::file::{Disk, RealDisk};
use crate::store::journal::{
    AppendError, Journal, JournalError, OpenError, Position, RewriteError,
};
use crate::store::lock::{LockError, StoreLock};
use crate::store::meta::MetaError;
use crate::store::{Store, StoreError, aside};

/// Memory that sled may use at a coordinator: the view of 10,000 definitions fits several times.
pub const DEFAULT_CACHE_BYTES: u64 = 64 << 20;

/// Name of the view within the store's directory.
pub(super) const VIEW: &str = "view";

/// What a directory of the other role would hold.
const FOREIGN: &[&str] = &[super::cache::CACHE];
const FOREIGN_ROLE: Role = Role::Worker;

/// The coordinator's store.
#[derive(Debug)]
pub struct Vault<D: Disk = RealDisk> {
    journal: Journal<D>,
    view: View,
    reader: BlobReader<D::File>,
}

/// What was found when a vault opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Whether the journal has no entry yet: the caller writes the first.
    pub new: bool,
    /// Bytes of an unfinished append that were cut off; none of it was acknowledged.
    pub torn_bytes: u64,
    /// Where a damaged view went; the new one is built from the journal.
    pub view_rebuilt: Option<PathBuf>,
    /// Bodies that are kept.
    pub bodies: usize,
}

/// Why a vault did not open. Nothing that was acknowledged has changed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The directory cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The view cannot be opened, and it is not damage that setting it aside would cure.
    #[error("the view of the journal does not open")]
    View(#[from] MetaError),
}

/// Why a checkpoint failed. The old journal stays in force unless it is poisoned.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The new journal could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The entries do not start with [`Entry::Genesis`].
    #[error("the entries of a checkpoint must start with the genesis")]
    NoGenesis,
    /// A retained body is not in the journal.
    #[error("the retained body {} is not in the journal", .0.short())]
    MissingBody(SpecHash),
    /// A retained body cannot be read.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// What a checkpoint did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Length of the journal before.
    pub bytes_before: u64,
    /// Length of the journal now.
    pub bytes_after: u64,
    /// Bodies that were dropped.
    pub dropped_bodies: usize,
}

impl Vault<RealDisk> {
    /// Opens the store in `dir`, or makes a new one, and visits every entry but bodies in order.
    ///
    /// A damaged view is set aside and built anew; a damaged journal refuses.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(
        dir: &Path,
        cache_bytes: u64,
        visit: impl FnMut(&Entry),
    ) -> Result<(Self, Opened), VaultError> {
        let role = Role::Coordinator;
        let lock = StoreLock::acquire(dir, role, (FOREIGN_ROLE, FOREIGN))?;
        let mut set_aside = None;
        let open_view = |damage: Option<StoreError>| {
            if let Some(damage) = damage {
                set_aside = Some(aside::set_aside(dir, VIEW, &damage.into())?);
            }
            let (store, path) = aside::open(dir, VIEW, role, cache_bytes)?;
            set_aside = path.or(set_aside.take());
            Ok(Arc::new(store) as Arc<dyn Store>)
        };
        let disk = RealDisk::new(dir);
        let (vault, mut opened) = Self::assemble(disk, Some(lock), open_view, visit)?;
        opened.view_rebuilt = set_aside;
        Ok((vault, opened))
    }
}

impl<D: Disk> Vault<D> {
    /// Opens the journal on `disk`. `open_view` is called a second time, with the reason, if the
    /// first view turns out to be damaged.
    fn assemble(
        disk: D,
        lock: Option<StoreLock>,
        mut open_view: impl FnMut(Option<StoreError>) -> Result<Arc<dyn Store>, MetaError>,
        mut visit: impl FnMut(&Entry),
    ) -> Result<(Self, Opened), VaultError> {
        let mut view = View::new(open_view(None)?);
        let mut index = HashMap::new();
        let opened = Journal::open(disk, view.applied(), |position, entry| {
            match &entry {
                Entry::Body { bytes } => {
                    index.insert(SpecHash::of(bytes), position.offset);
                }
                entry => visit(entry),
            }
            view.observe(position, entry);
            Ok::<_, Infallible>(())
        });
        let (journal, report) = opened.map_err(|error| match error {
            OpenError::Journal(error) => error,
            OpenError::Visitor { source, .. } => match source {},
        })?;
        let opened = Opened {
            new: report.entries == 0,
            torn_bytes: report.torn_bytes,
            view_rebuilt: None,
            bodies: index.len(),
        };
        match view.catch_up(&journal.reader()) {
            Err(ViewError::Store(damage @ StoreError::Damaged(_))) => {
                // Its files must be closed before their directory gets another name.
                drop(view);
                view = View::new(open_view(Some(damage))?);
                // Nothing was observed for this one.
                view.forget();
            }
            // All of the journal was just read, so it is the view that stands at a wrong place.
            Err(ViewError::Journal(_)) => view.forget(),
            // The next try says why, if it fails again.
            Ok(()) | Err(ViewError::Store(_)) => {}
        }
        let reader = BlobReader::new(Arc::clone(view.store()), journal.reader(), index, lock);
        let mut vault = Self {
            journal,
            view,
            reader,
        };
        if let Err(error) = vault.apply_to_view() {
            tracing::warn!(%error, "the view stays behind the journal");
        }
        Ok((vault, opened))
    }

    /// Appends an entry; it is durable after the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`AppendError`]; nothing changed then.
    pub fn append(&mut self, entry: &Entry) -> Result<Position, AppendError> {
        let position = self.journal.append(entry)?;
        if let Entry::Body { bytes } = entry {
            self.reader.insert(SpecHash::of(bytes), position);
        }
        Ok(position)
    }

    /// Appends a body whose hash is known already; it is durable after the next
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`AppendError`]; nothing changed then.
    pub fn append_body(&mut self, spec: &Spec) -> Result<Position, AppendError> {
        let bytes = spec.bytes().clone();
        let position = self.journal.append(&Entry::Body { bytes })?;
        self.reader.insert(spec.hash(), position);
        Ok(position)
    }

    /// Makes everything appended so far survive a power cut.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`] now and ever after: restart.
    pub fn sync(&mut self) -> Result<(), AppendError> {
        self.journal.sync()
    }

    /// Applies to the view what is durable and not yet in it.
    ///
    /// # Errors
    /// [`ViewError`]; nothing is lost then, and the next call tries again.
    pub fn apply_to_view(&mut self) -> Result<(), ViewError> {
        self.view.catch_up(&self.journal.reader())
    }

    /// Rewrites the journal: the first of `entries`, which is the genesis, then the retained
    /// bodies, then the other entries. Other bodies are gone then.
    ///
    /// Bodies pass through memory one at a time. The view failing is no error: it is built anew
    /// later.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn checkpoint(
        &mut self,
        retained: &BTreeSet<SpecHash>,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<CheckpointReport, CheckpointError> {
        self.journal.sync()?;
        let up_to_date = self.apply_to_view();
        let bytes_before = self.journal.len();

        let mut entries = entries.into_iter();
        let Some(genesis @ Entry::Genesis { base, .. }) = entries.next() else {
            return Err(CheckpointError::NoGenesis);
        };
        let reader = self.reader.clone();
        let bodies = retained.iter().map(|&hash| match reader.body(hash, None)? {
            Some(spec) => Ok(Entry::Body {
                bytes: spec.into_bytes(),
            }),
            None => Err(CheckpointError::MissingBody(hash)),
        });
        let all = std::iter::once(Ok(genesis)).chain(bodies);
        let mut index = HashMap::new();
        let rewritten = self
            .journal
            .rewrite(all.chain(entries.map(Ok)), |position, entry| {
                if let Entry::Body { bytes } = entry {
                    index.insert(SpecHash::of(bytes), position.offset);
                }
            });
        rewritten.map_err(|error| match error {
            RewriteError::Append(error) => error.into(),
            RewriteError::Entry(error) => error,
        })?;
        let dropped = self.reader.replace(self.journal.reader(), index);
        self.prune_view(up_to_date, &dropped, base);
        Ok(CheckpointReport {
            bytes_before,
            bytes_after: self.journal.len(),
            dropped_bodies: dropped.len(),
        })
    }

    fn prune_view(
        &mut self,
        up_to_date: Result<(), ViewError>,
        dropped: &[SpecHash],
        base: Revision,
    ) {
        let end = self.journal.end();
        let pruned = up_to_date.and_then(|()| Ok(self.view.prune(dropped, base, end)?));
        if let Err(error) = pruned {
            tracing::warn!(%error, "the view is built anew after this checkpoint");
            self.view.forget();
        }
    }

    /// Reads bodies, and makes backups, from any thread.
    pub fn reader(&self) -> BlobReader<D::File> {
        self.reader.clone()
    }

    /// The view, for reading.
    pub fn view(&self) -> &Arc<dyn Store> {
        self.view.store()
    }

    /// Length of the journal in bytes, to decide on a checkpoint.
    pub fn journal_len(&self) -> u64 {
        self.journal.len()
    }

    /// Offset up to which the journal survives a power cut.
    pub fn durable_end(&self) -> u64 {
        self.journal.durable_end()
    }

    /// Bodies that are kept.
    pub fn bodies(&self) -> usize {
        self.reader.bodies()
    }
}
