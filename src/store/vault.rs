//! What a coordinator keeps: the journal, its view, and who may read them.
//!
//! One thread owns the [`Vault`] and appends; any thread reads bodies through a [`BlobReader`].
//! The order of a publish is: append bodies and entry, [`sync`](Vault::sync), only then believe
//! it; then [`apply_to_view`](Vault::apply_to_view), which may fail without harm, since the view
//! only repeats what the journal says and catches up later.
//!
//! A view that cannot be opened, or fails later, is **absent**: bodies are read from the journal,
//! where the index in memory says that they stand. [`mend_view`](Vault::mend_view) brings it back.
//!
//! | name | what it is |
//! | --- | --- |
//! | `lock` | held by the process that owns the store |
//! | `journal` | the truth |
//! | `journal.new` | a journal being written; removed at start |
//! | `view/` | sled |
//! | `reset-key` | 32 random bytes: the key for stateless resets |
//! | `view.corrupt-<seconds since 1970>/` | a damaged view, kept for a look |

mod backup;
mod bodies;
mod reset;
mod source;
#[cfg(test)]
pub(crate) mod tests;
pub mod view;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::backup::{
    BackupError, BackupReader, BackupReport, RestoreError, RestoreReport, restore,
};
pub use self::bodies::{BlobReader, BodyError};
use self::bodies::{Index, Place};
use self::source::{SledView, ViewSource};
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
use crate::store::{Store, StoreError};

/// Memory that sled may use at a coordinator: the view of 10,000 definitions fits several times.
pub const DEFAULT_CACHE_BYTES: u64 = 64 << 20;

/// Name of the view within the store's directory.
pub(super) const VIEW: &str = "view";

/// What a directory of the other role would hold.
const FOREIGN: &[&str] = &[super::cache::CACHE, super::mark::FILE];
const FOREIGN_ROLE: Role = Role::Worker;

/// The coordinator's store.
#[derive(Debug)]
pub struct Vault<D: Disk = RealDisk> {
    journal: Journal<D>,
    source: Box<dyn ViewSource>,
    /// `None` if it could not be opened.
    view: Option<View>,
    /// What was wrong with the view when it was used last: the next one replaces it.
    damage: Option<String>,
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
    /// Why there is no view, if there is none.
    pub view_absent: Option<String>,
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
    /// The view is in use, or of another version or role; or it cannot be opened and there is no
    /// journal to serve without it.
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
    /// A damaged view is set aside and built anew, one that cannot be opened is done without; a
    /// damaged journal refuses.
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
        let source = Box::new(SledView::new(dir, cache_bytes));
        Self::assemble(RealDisk::new(dir), Some(lock), source, visit)
    }
}

impl<D: Disk> Vault<D> {
    /// Opens the journal on `disk`, with a view in memory that is built from it.
    #[cfg(feature = "sim")]
    pub(crate) fn open_simulated(
        disk: D,
        visit: impl FnMut(&Entry),
    ) -> Result<(Self, Opened), VaultError> {
        Self::assemble(disk, None, Box::new(source::Forgotten), visit)
    }

    /// Opens the journal on `disk`, and the view of it.
    fn assemble(
        disk: D,
        lock: Option<StoreLock>,
        mut source: Box<dyn ViewSource>,
        mut visit: impl FnMut(&Entry),
    ) -> Result<(Self, Opened), VaultError> {
        let (mut view, failure) = match source.open(None) {
            // What was set aside was the view of a journal.
            Ok(_) if source.keeps_damaged() && !Journal::exists(&disk)? => {
                return Err(JournalError::Gone.into());
            }
            Ok(store) => (Some(View::new(store)), None),
            // A journal that was never there or is gone is told from the other by the view alone.
            Err(error) if source::refuses(&error) || !Journal::exists(&disk)? => {
                return Err(error.into());
            }
            Err(error) => (None, Some(error)),
        };
        let mut index = Index::new();
        let applied = view.as_ref().and_then(View::applied);
        let opened = Journal::open(disk, applied, |position, entry| {
            match &entry {
                Entry::Body { bytes } => {
                    // The first one stands before the entries that name it.
                    let hash = SpecHash::of(bytes);
                    let place = Place::new(position, bytes.len() as u64);
                    index.entry(hash).or_insert(place);
                }
                entry => visit(entry),
            }
            if let Some(view) = &mut view {
                view.observe(position, entry);
            }
            Ok::<_, Infallible>(())
        });
        let (journal, report) = opened.map_err(|error| match error {
            OpenError::Journal(error) => error,
            OpenError::Visitor { source, .. } => match source {},
        })?;
        let reader = BlobReader::new(journal.reader(), index, lock);
        let mut vault = Self {
            journal,
            source,
            view,
            damage: None,
            reader,
        };
        match failure {
            None => vault.start_view(),
            Some(error) => vault.start_alone(&error),
        }
        let opened = Opened {
            new: report.entries == 0,
            torn_bytes: report.torn_bytes,
            view_rebuilt: vault.source.set_aside().map(Path::to_owned),
            view_absent: vault.reader.view_absent(),
            bodies: vault.reader.bodies(),
        };
        Ok((vault, opened))
    }

    /// Lets the view catch up for the first time.
    fn start_view(&mut self) {
        let caught_up = self.apply_to_view();
        let again = match (caught_up, &mut self.view) {
            // All of the journal was just read, so it is the view that stands at a wrong place.
            (Err(ViewError::Journal(_)), Some(view)) => {
                view.forget();
                self.apply_to_view()
            }
            (Err(ViewError::Store(StoreError::Damaged(_))), _) => self.mend_view(),
            (caught_up, _) => caught_up,
        };
        if let Err(error) = again {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the view stays behind the journal"
            );
        }
    }

    /// Starts without a view. On a full disk the bodies of publishes that never came are in the
    /// way, and nobody can be at work on those now.
    fn start_alone(&mut self, failure: &MetaError) {
        self.reader.leave_view(failure);
        let is_full = matches!(failure, MetaError::Store(StoreError::Full(_)));
        if !is_full {
            return;
        }
        match self.drop_staged() {
            Ok(0) => {}
            // A failure was logged, and leaves things as they are.
            Ok(_) => drop(self.mend_view()),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "bodies that no publish named stay in the journal"
            ),
        }
    }

    /// Appends an entry; it is durable after the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`AppendError`]; nothing changed then.
    pub fn append(&mut self, entry: &Entry) -> Result<Position, AppendError> {
        let position = self.journal.append(entry)?;
        if let Entry::Body { bytes } = entry {
            let place = Place::new(position, bytes.len() as u64);
            self.reader.insert(SpecHash::of(bytes), place);
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
        let place = Place::new(position, spec.len());
        self.reader.insert(spec.hash(), place);
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
        let Some(view) = &mut self.view else {
            return Ok(());
        };
        let caught_up = view.catch_up(&self.journal.reader());
        match &caught_up {
            Ok(()) => self.reader.use_view(view.store()),
            Err(error) => {
                if let ViewError::Store(StoreError::Damaged(why)) = error {
                    self.damage = Some(why.clone());
                }
                self.reader.leave_view(error);
            }
        }
        caught_up
    }

    /// Opens the view anew if it is absent, and builds it from the journal: work for a quiet
    /// moment. A view that showed damage is set aside.
    ///
    /// # Errors
    /// [`ViewError`]; it stays absent then, and the next call tries again.
    pub fn mend_view(&mut self) -> Result<(), ViewError> {
        if self.reader.view_absent().is_none() {
            return Ok(());
        }
        // Its files must be closed before they are opened or their directory is renamed.
        self.view = None;
        let damage = self.damage.take().map(StoreError::Damaged);
        let store = self.source.open(damage).inspect_err(|error| {
            self.reader.leave_view(error);
        })?;
        let mut view = View::new(store);
        // What was pending where it stands was not observed for this one.
        view.forget();
        self.view = Some(view);
        self.apply_to_view()
    }

    /// Gives back the space of bodies that no publish has named yet, as far as they stand behind
    /// the last entry. Their publishers are told that they are missing, and send them once more.
    ///
    /// # Errors
    /// [`AppendError`]; nothing but those bodies is lost, and only [`AppendError::Poisoned`] says
    /// that more cannot be appended.
    pub fn drop_staged(&mut self) -> Result<u64, AppendError> {
        // First, so that nobody is sent to a place that is cut off.
        self.reader.forget_behind(self.journal.settled_end());
        self.journal.cut_unsettled()
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
        let mut index = Index::new();
        let rewritten = self
            .journal
            .rewrite(all.chain(entries.map(Ok)), |position, entry| {
                if let Entry::Body { bytes } = entry {
                    let place = Place::new(position, bytes.len() as u64);
                    index.insert(SpecHash::of(bytes), place);
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
        let Some(view) = &mut self.view else {
            return;
        };
        let end = self.journal.end();
        let pruned = up_to_date.and_then(|()| Ok(view.prune(dropped, base, end)?));
        if let Err(error) = pruned {
            tracing::warn!(%error, "the view is built anew after this checkpoint");
            view.forget();
        }
    }

    /// The key for stateless resets, which outlives restarts; `fresh` random bytes become it the
    /// first time.
    ///
    /// # Errors
    /// Those of the operating system; there is no key on disk then.
    pub fn reset_key(&self, fresh: [u8; 32]) -> io::Result<[u8; 32]> {
        reset::key(self.journal.disk(), fresh)
    }

    /// Reads bodies, and makes backups, from any thread.
    pub fn reader(&self) -> BlobReader<D::File> {
        self.reader.clone()
    }

    /// The view, for reading, unless it is absent.
    pub fn view(&self) -> Option<Arc<dyn Store>> {
        self.reader.view()
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
