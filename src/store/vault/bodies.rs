//! Reads bodies from any thread: from the view, and from the journal when the view fails or is
//! absent.

use std::collections::HashMap;
use std::error::Error;
use std::iter::successors;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::backup::BackupReader;
use crate::catalog::Entry;
use crate::spec::{Spec, SpecHash};
use crate::store::Store;
use crate::store::blobs::{self, Loaded};
use crate::store::file::DiskFile;
use crate::store::journal::{JournalReader, Position, ReadError};
use crate::store::lock::StoreLock;

/// Gives bodies to any thread; clones share everything.
#[derive(Debug)]
pub struct BlobReader<F> {
    shared: Arc<Shared<F>>,
}

#[derive(Debug)]
struct Shared<F> {
    places: RwLock<Places<F>>,
    /// Last, so that whoever gets the lock next finds the files of the view closed.
    _lock: Option<StoreLock>,
}

/// Where bodies stand. The journal and the index change together.
#[derive(Debug)]
struct Places<F> {
    view: View,
    journal: JournalReader<F>,
    index: Index,
}

/// Every body that is in the journal.
pub(super) type Index = HashMap<SpecHash, Place>;

/// Where a body stands in the journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    offset: u64,
    /// Bytes of the body.
    len: u64,
}

impl Place {
    pub(super) const fn new(position: Position, len: u64) -> Self {
        Self {
            offset: position.offset,
            len,
        }
    }
}

/// Where to look first.
#[derive(Debug, Clone)]
enum View {
    /// It has not caught up for the first time.
    Starting,
    /// It serves.
    Present(Arc<dyn Store>),
    /// It failed, and why.
    Absent(String),
}

impl View {
    fn store(&self) -> Option<Arc<dyn Store>> {
        match self {
            Self::Present(view) => Some(Arc::clone(view)),
            Self::Starting | Self::Absent(_) => None,
        }
    }
}

/// Why a body that should be there cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The view has no sound copy, and the journal cannot be read.
    #[error("the body {} is lost to the view and to the journal", hash.short())]
    Journal {
        /// What was asked for.
        hash: SpecHash,
        /// Why the journal does not give it.
        #[source]
        source: ReadError,
    },
}

impl<F> Clone for BlobReader<F> {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared }
    }
}

impl<F: DiskFile> BlobReader<F> {
    pub(super) fn new(journal: JournalReader<F>, index: Index, lock: Option<StoreLock>) -> Self {
        let places = RwLock::new(Places {
            view: View::Starting,
            journal,
            index,
        });
        let shared = Arc::new(Shared {
            places,
            _lock: lock,
        });
        Self { shared }
    }

    /// Whether the body is in the journal, synced or not.
    pub fn has(&self, hash: SpecHash) -> bool {
        self.places().index.contains_key(&hash)
    }

    /// How long the body is; `None` if it is not in the journal.
    pub fn len_of(&self, hash: SpecHash) -> Option<u64> {
        self.places().index.get(&hash).map(|place| place.len)
    }

    /// The body with `hash`, hashed anew; `None` if there is none of that length.
    ///
    /// A body that the view lacks or has wrong is taken from the journal and put back.
    ///
    /// # Errors
    /// [`BodyError`] when neither the view nor the journal has it right.
    pub fn body(&self, hash: SpecHash, len: Option<u64>) -> Result<Option<Spec>, BodyError> {
        let view = {
            let places = self.places();
            if !places.index.contains_key(&hash) {
                return Ok(None);
            }
            places.view.store()
        };
        if let Some(view) = &view {
            match blobs::load(&**view, hash, len) {
                Ok(Loaded::Found(spec)) => return Ok(Some(spec)),
                Ok(Loaded::Missing | Loaded::Damaged) => {}
                Err(error) => self.leave_view(&error),
            }
        }
        let (spec, settled) = match self.read_journal(hash) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            // It was cut off meanwhile.
            Err(_) if !self.has(hash) => return Ok(None),
            Err(error) => return Err(error),
        };
        // What may be cut off again does not belong into the view.
        if let Some(view) = view.filter(|_| settled) {
            heal(&*view, &spec);
        }
        Ok(Some(spec).filter(|spec| len.is_none_or(|len| len == spec.len())))
    }

    /// Why there is no view, if there is none.
    pub fn view_absent(&self) -> Option<String> {
        match &self.places().view {
            View::Absent(why) => Some(why.clone()),
            View::Starting | View::Present(_) => None,
        }
    }

    /// A handle that copies the journal as it is now.
    pub fn backup(&self) -> BackupReader<F> {
        BackupReader::new(self.places().journal.clone())
    }

    pub(super) fn view(&self) -> Option<Arc<dyn Store>> {
        self.places().view.store()
    }

    /// Reads from `view` from now on.
    pub(super) fn use_view(&self, view: &Arc<dyn Store>) {
        let present = View::Present(Arc::clone(view));
        let before = std::mem::replace(&mut self.places_mut().view, present);
        if let View::Absent(_) = before {
            tracing::info!("the view of the journal is back");
        }
        metrics::gauge!("larder_view_absent").set(0);
    }

    /// Reads from the journal alone from now on.
    pub(super) fn leave_view(&self, why: &(dyn Error + 'static)) {
        let causes = successors(Some(why), |&error| error.source());
        let causes: Vec<_> = causes.map(ToString::to_string).collect();
        let reason = causes.join(": ");
        let absent = View::Absent(reason.clone());
        let before = std::mem::replace(&mut self.places_mut().view, absent);
        if !matches!(before, View::Absent(_)) {
            tracing::error!(
                reason,
                "the view is absent: bodies are served from the journal"
            );
        }
        metrics::gauge!("larder_view_absent").set(1);
    }

    /// Forgets the bodies at or behind `offset`.
    pub(super) fn forget_behind(&self, offset: u64) {
        let mut places = self.places_mut();
        places.index.retain(|_, place| place.offset < offset);
    }

    pub(super) fn insert(&self, hash: SpecHash, place: Place) {
        let mut places = self.places_mut();
        places.index.entry(hash).or_insert(place);
    }

    /// Changes to another file; returns the hashes that are not in it.
    pub(super) fn replace(&self, journal: JournalReader<F>, index: Index) -> Vec<SpecHash> {
        let mut places = self.places_mut();
        places.journal = journal;
        let mut old = std::mem::replace(&mut places.index, index);
        old.retain(|hash, _| !places.index.contains_key(hash));
        old.into_keys().collect()
    }

    pub(super) fn bodies(&self) -> usize {
        self.places().index.len()
    }

    /// The body, and whether it is settled.
    fn read_journal(&self, hash: SpecHash) -> Result<Option<(Spec, bool)>, BodyError> {
        let (journal, offset) = {
            let places = self.places();
            let Some(&Place { offset, .. }) = places.index.get(&hash) else {
                return Ok(None);
            };
            (places.journal.clone(), offset)
        };
        let generation = journal.generation();
        let read = journal.read(Position { generation, offset });
        let spec = read.and_then(|entry| match entry {
            Entry::Body { bytes } => {
                Spec::verify(hash, None, bytes).map_err(|_| ReadError::Damaged { offset })
            }
            _ => Err(ReadError::Damaged { offset }),
        });
        match spec {
            Ok(spec) => Ok(Some((spec, offset < journal.settled_end()))),
            Err(source) => Err(BodyError::Journal { hash, source }),
        }
    }

    fn places(&self) -> RwLockReadGuard<'_, Places<F>> {
        let places = self.shared.places.read();
        places.unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> RwLockWriteGuard<'_, Places<F>> {
        let places = self.shared.places.write();
        places.unwrap_or_else(PoisonError::into_inner)
    }
}

fn heal(view: &dyn Store, spec: &Spec) {
    // Reading goes on without it: the journal has the bytes.
    if let Err(error) = blobs::save(view, spec) {
        let hash = spec.hash();
        tracing::warn!(hash = %hash.short(), %error, "a body cannot be put back into the view");
    }
}
