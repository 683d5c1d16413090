//! Where the view comes from, at start and again after it failed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::VIEW;
use crate::identity::Role;
use crate::store::meta::MetaError;
use crate::store::{Store, StoreError, aside, disk};

/// Opens views of one vault, one at a time.
pub(super) trait ViewSource: fmt::Debug + Send {
    /// Opens the view, or makes one; with `damage`, the one that is there is set aside before.
    fn open(&mut self, damage: Option<StoreError>) -> Result<Arc<dyn Store>, MetaError>;

    /// Where the last damaged one went.
    fn set_aside(&self) -> Option<&Path>;

    /// Whether a damaged one is kept, of this start or another.
    fn keeps_damaged(&self) -> bool;
}

/// The view as a sled.
#[derive(Debug)]
pub(super) struct SledView {
    dir: PathBuf,
    cache_bytes: u64,
    set_aside: Option<PathBuf>,
}

impl SledView {
    /// The view within the store's directory `dir`.
    pub(super) fn new(dir: &Path, cache_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            cache_bytes,
            set_aside: None,
        }
    }
}

impl ViewSource for SledView {
    fn open(&mut self, damage: Option<StoreError>) -> Result<Arc<dyn Store>, MetaError> {
        if let Some(damage) = damage {
            self.set_aside = Some(aside::set_aside(&self.dir, VIEW, &damage.into())?);
        }
        let role = Role::Coordinator;
        let (store, path) = aside::open(&self.dir, VIEW, role, self.cache_bytes)?;
        self.set_aside = path.or(self.set_aside.take());
        Ok(Arc::new(store))
    }

    fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    fn keeps_damaged(&self) -> bool {
        aside::is_kept(&self.dir, VIEW)
    }
}

/// A view in memory, which every start builds anew.
#[cfg(feature = "sim")]
#[derive(Debug)]
pub(super) struct Forgotten;

#[cfg(feature = "sim")]
impl ViewSource for Forgotten {
    fn open(&mut self, _: Option<StoreError>) -> Result<Arc<dyn Store>, MetaError> {
        Ok(Arc::new(crate::store::memory::MemoryStore::new()))
    }

    fn set_aside(&self) -> Option<&Path> {
        None
    }

    fn keeps_damaged(&self) -> bool {
        false
    }
}

/// Whether a view that does not open must stop the coordinator: somebody else has it, or
/// another version or role made it. Whatever else is wrong, the journal can do without it.
pub(super) fn refuses(error: &MetaError) -> bool {
    match error {
        MetaError::NewerFormat { .. } | MetaError::OtherRole { .. } => true,
        MetaError::Store(error) => disk::is_lock(error),
        MetaError::Damaged { .. } => false,
    }
}
