//! Reads bodies from any thread: from the view, and from the journal when the view fails.

use std::collections::HashMap;
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
    view: Arc<dyn Store>,
    places: RwLock<Places<F>>,
    /// Last, so that whoever gets the lock next finds the files of the view closed.
    _lock: Option<StoreLock>,
}

/// A file of the journal and where the bodies stand in it; the two change together.
#[derive(Debug)]
struct Places<F> {
    journal: JournalReader<F>,
    index: HashMap<SpecHash, u64>,
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
    pub(super) fn new(
        view: Arc<dyn Store>,
        journal: JournalReader<F>,
        index: HashMap<SpecHash, u64>,
        lock: Option<StoreLock>,
    ) -> Self {
        let places = RwLock::new(Places { journal, index });
        let shared = Arc::new(Shared {
            view,
            places,
            _lock: lock,
        });
        Self { shared }
    }

    /// Whether the body is in the journal, synced or not.
    pub fn has(&self, hash: SpecHash) -> bool {
        self.places().index.contains_key(&hash)
    }

    /// The body with `hash`, hashed anew; `None` if there is none of that length.
    ///
    /// A body that the view lacks or has wrong is taken from the journal and put back.
    ///
    /// # Errors
    /// [`BodyError`] when neither the view nor the journal has it right.
    pub fn body(&self, hash: SpecHash, len: Option<u64>) -> Result<Option<Spec>, BodyError> {
        if !self.has(hash) {
            return Ok(None);
        }
        match blobs::load(&*self.shared.view, hash, len) {
            Ok(Loaded::Found(spec)) => return Ok(Some(spec)),
            Ok(Loaded::Missing | Loaded::Damaged) => {}
            Err(error) => {
                tracing::warn!(hash = %hash.short(), %error, "the view failed, asking the journal");
            }
        }
        let Some(spec) = self.read_journal(hash)? else {
            return Ok(None);
        };
        self.heal(&spec);
        Ok(Some(spec).filter(|spec| len.is_none_or(|len| len == spec.len())))
    }

    /// A handle that copies the journal as it is now.
    pub fn backup(&self) -> BackupReader<F> {
        BackupReader::new(self.places().journal.clone())
    }

    pub(super) fn insert(&self, hash: SpecHash, position: Position) {
        self.places_mut().index.insert(hash, position.offset);
    }

    /// Changes to another file; returns the hashes that are not in it.
    pub(super) fn replace(
        &self,
        journal: JournalReader<F>,
        index: HashMap<SpecHash, u64>,
    ) -> Vec<SpecHash> {
        let mut places = self.places_mut();
        let mut old = std::mem::replace(&mut *places, Places { journal, index }).index;
        old.retain(|hash, _| !places.index.contains_key(hash));
        old.into_keys().collect()
    }

    pub(super) fn bodies(&self) -> usize {
        self.places().index.len()
    }

    fn read_journal(&self, hash: SpecHash) -> Result<Option<Spec>, BodyError> {
        let (journal, offset) = {
            let places = self.places();
            let Some(&offset) = places.index.get(&hash) else {
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
            Ok(spec) => Ok(Some(spec)),
            Err(source) => Err(BodyError::Journal { hash, source }),
        }
    }

    fn heal(&self, spec: &Spec) {
        // Reading goes on without it: the journal has the bytes.
        if let Err(error) = blobs::save(&*self.shared.view, spec) {
            let hash = spec.hash();
            tracing::warn!(hash = %hash.short(), %error, "a body cannot be put back into the view");
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
