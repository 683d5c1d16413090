use std::collections::{BTreeMap, BTreeSet};

use super::held;
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::codec::{DecodeError, Reader, Writer};
use crate::spec::{Spec, SpecHash, SpecName};
use crate::store::blobs::{MAX_QUARANTINE, Quarantined};
use crate::store::recency::Recency;
use crate::store::{Batch, Store, StoreError, Tree, visit};

/// No store lives to see so many uses: a larger number on disk is damage, and counting on from it
/// would end in an overflow.
const MAX_USES: u64 = 1 << 60;

/// Pairs read at a time when the store opens.
const PAGE: usize = 1_024;

/// What is there and when it was used.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) blobs: Recency<SpecHash, u64>,
    pub(super) live_bytes: u64,
    /// Uses not written yet.
    pub(super) touched: BTreeSet<SpecHash>,
    /// What readers did not find as it should be, and not written yet.
    pub(super) spoilt: BTreeMap<SpecHash, Spoilt>,
    pub(super) held: Recency<(SpecName, Revision), ()>,
    /// Of which catalog and epoch those lines are.
    pub(super) held_of: Option<(CatalogId, Epoch)>,
}

/// What a reader found in place of a blob.
#[derive(Debug, Clone)]
pub(super) enum Spoilt {
    /// Nothing, where there should be something: a power cut may take the value of a key.
    Gone,
    /// Wrong bytes, and how they are wrong.
    Damaged(Quarantined),
}

impl Usage {
    pub(super) fn read(store: &dyn Store) -> Result<Self, StoreError> {
        let mut used = Vec::new();
        visit(store, Tree::Used, PAGE, |key, value| {
            used.push(decode_used(key, value).map_err(|error| {
                StoreError::Damaged(format!("when a blob was used last: {error}"))
            })?);
            Ok(())
        })?;
        used.sort_unstable();
        let mut usage = Self::default();
        for (at, hash, len) in used {
            usage.blobs.restore(hash, len, at);
            usage.live_bytes = usage.live_bytes.saturating_add(len);
        }
        let mut held = held::read_all(store)?;
        held.sort_by_key(|held| held.seen_at);
        for held in held {
            usage.held.insert(held.key(), ());
        }
        Ok(usage)
    }

    /// What must go so that `spec` fits into the budget.
    pub(super) fn victims(&self, spec: &Spec, budget_bytes: u64) -> Vec<SpecHash> {
        let old = self.blobs.get(&spec.hash()).map_or(0, |(_, &len)| len);
        let mut left = self.live_bytes.saturating_sub(old);
        let mut victims = Vec::new();
        let others = self.blobs.oldest_first();
        for (&hash, len) in others.filter(|(hash, _)| **hash != spec.hash()) {
            if left.saturating_add(spec.len()) <= budget_bytes {
                break;
            }
            victims.push(hash);
            left = left.saturating_sub(*len);
        }
        victims
    }

    /// Takes note that a blob is not there although it was kept, if that is so: of another length
    /// than `len` it is not missing.
    pub(super) fn missed(&mut self, hash: SpecHash, len: Option<u64>) {
        let known = self.blobs.get(&hash).map(|(_, &len)| len);
        if known.is_some_and(|known| len.is_none_or(|len| len == known)) {
            self.spoil(hash, Spoilt::Gone);
        }
    }

    pub(super) fn spoil(&mut self, hash: SpecHash, how: Spoilt) {
        // What finds no place is found again by its next reader.
        if self.spoilt.len() < MAX_QUARANTINE || self.spoilt.contains_key(&hash) {
            self.spoilt.insert(hash, how);
        }
    }

    pub(super) fn remove(&mut self, hash: SpecHash) {
        let len = self.blobs.remove(&hash).unwrap_or(0);
        self.live_bytes = self.live_bytes.saturating_sub(len);
        self.touched.remove(&hash);
    }
}

pub(super) fn put_used(batch: &mut Batch, hash: SpecHash, at: u64, len: u64) {
    let mut w = Writer::new();
    w.u64(at).u64(len);
    batch.put(Tree::Used, hash.as_bytes(), w.finish());
}

fn decode_used(key: &[u8], value: &[u8]) -> Result<(u64, SpecHash, u64), DecodeError> {
    let mut key = Reader::new(key);
    let hash = key.hash()?;
    key.end()?;
    let mut r = Reader::new(value);
    let (at, len) = (r.u64()?, r.u64()?);
    r.end()?;
    match at < MAX_USES {
        true => Ok((at, hash, len)),
        false => Err(DecodeError::Value("more uses than there can be")),
    }
}
