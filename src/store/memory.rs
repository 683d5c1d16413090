//! A [`Store`] in memory: for tests, which can damage it, and for workers that keep no disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Batch, MAX_BATCH, Store, StoreError, Tree};

/// What a [`MemoryStore`] can be told to do wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next value that is read comes back with one bit flipped.
    FlipBit,
    /// The next read finds a damaged page.
    DamagedPage,
    /// The next batch does not fit on the disk.
    Full,
    /// The next batch fails.
    Io,
}

/// A [`Store`] that is gone with its last handle.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pairs: BTreeMap<(Tree, Bytes), Bytes>,
    bytes: u64,
    fault: Option<Fault>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the next fitting call fail.
    pub fn inject(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, fault: Fault) -> bool {
        let hit = self.fault == Some(fault);
        if hit {
            self.fault = None;
        }
        hit
    }

    fn check_page(&mut self) -> Result<(), StoreError> {
        match self.take(Fault::DamagedPage) {
            true => Err(StoreError::Damaged("injected".into())),
            false => Ok(()),
        }
    }

    fn set(&mut self, tree: Tree, key: &Bytes, value: Option<&Bytes>) {
        let at = (tree, key.clone());
        let len = |value: &Bytes| (key.len() + value.len()) as u64;
        let old = match value {
            Some(value) => {
                self.bytes += len(value);
                self.pairs.insert(at, value.clone())
            }
            None => self.pairs.remove(&at),
        };
        self.bytes -= old.as_ref().map_or(0, len);
    }
}

impl Store for MemoryStore {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let mut state = self.state();
        state.check_page()?;
        let at = (tree, Bytes::copy_from_slice(key));
        let Some(value) = state.pairs.get(&at).cloned() else {
            return Ok(None);
        };
        if value.is_empty() || !state.take(Fault::FlipBit) {
            return Ok(Some(value));
        }
        let mut flipped = value.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        Ok(Some(flipped.into()))
    }

    fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        if batch.ops.len() > MAX_BATCH {
            return Err(StoreError::TooMany(batch.ops.len()));
        }
        let mut state = self.state();
        if state.take(Fault::Full) {
            return Err(StoreError::Full(io::ErrorKind::StorageFull.into()));
        }
        if state.take(Fault::Io) {
            return Err(StoreError::Io(io::Error::other("injected")));
        }
        for (tree, key, value) in &batch.ops {
            state.set(*tree, key, value.as_ref());
        }
        Ok(())
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut state = self.state();
        state.check_page()?;
        let from = (tree, Bytes::copy_from_slice(from));
        let pairs = state
            .pairs
            .range(from..)
            .take_while(|((other, _), _)| *other == tree)
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()));
        Ok(pairs.collect())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.state().bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_once_and_changes_nothing_that_is_kept() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.put(Tree::Blobs, b"k", b"value".to_vec());
        store.inject(Fault::Full);
        assert!(matches!(store.apply(&batch), Err(StoreError::Full(_))));
        assert_eq!(store.get(Tree::Blobs, b"k").expect("an answer"), None);
        store.inject(Fault::Io);
        assert!(matches!(store.apply(&batch), Err(StoreError::Io(_))));
        store.apply(&batch).expect("applied");

        let value = || store.get(Tree::Blobs, b"k");
        store.inject(Fault::FlipBit);
        assert_ne!(value().expect("an answer").as_deref(), Some(&b"value"[..]));
        store.inject(Fault::DamagedPage);
        assert!(matches!(value(), Err(StoreError::Damaged(_))));
        assert_eq!(value().expect("an answer").as_deref(), Some(&b"value"[..]));
    }
}
