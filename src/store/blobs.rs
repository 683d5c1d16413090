//! Specs by hash. Every read is hashed, and wrong bytes are moved out of the way.

use bytes::Bytes;

use super::{Batch, Store, StoreError, Tree, unix_ms};
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::mutant::mutant;
use crate::spec::{Spec, SpecHash};

/// Most blobs remembered as damaged; the oldest goes. A disk that damages more is broken.
pub const MAX_QUARANTINE: usize = 1_024;

/// What [`load`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// The bytes, and they are right.
    Found(Spec),
    /// There is none.
    Missing,
    /// There were bytes, and they were wrong; they are gone now.
    Damaged,
}

/// A blob that was found damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What it should have been.
    pub hash: SpecHash,
    /// Wall clock when it was found, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What was wrong.
    pub reason: String,
}

/// The spec with `hash`, hashed anew.
///
/// A sound spec whose length is not `len` is not what was asked for: it counts as missing, and
/// stays.
///
/// # Errors
/// [`StoreError`] when the disk fails. A damaged page is no error but [`Loaded::Damaged`].
pub fn load(store: &dyn Store, hash: SpecHash, len: Option<u64>) -> Result<Loaded, StoreError> {
    let reason = match look(store, hash, len)? {
        Look::Found(spec) => return Ok(Loaded::Found(spec)),
        Look::Missing => return Ok(Loaded::Missing),
        Look::Wrong(reason) | Look::Unreadable(reason) => reason,
    };
    // The bytes are useless either way: a damaged page may refuse the removal too.
    if let Err(error) = quarantine(store, hash, &reason) {
        tracing::warn!(hash = %hash.short(), %error, "a damaged blob cannot be moved out");
    }
    Ok(Loaded::Damaged)
}

/// What [`look`] found.
#[derive(Debug)]
pub(super) enum Look {
    Found(Spec),
    Missing,
    /// Other bytes than it should be, and why.
    Wrong(String),
    /// The store is damaged where it was, and how.
    Unreadable(String),
}

/// The same as [`load`], but damage is told and left as it is.
pub(super) fn look(
    store: &dyn Store,
    hash: SpecHash,
    len: Option<u64>,
) -> Result<Look, StoreError> {
    let look = match store.get(Tree::Blobs, hash.as_bytes()) {
        Ok(None) => return Ok(Look::Missing),
        Ok(Some(bytes)) if mutant!(X05) => return Ok(Look::Found(Spec::new(bytes))),
        Ok(Some(bytes)) => match Spec::verify(hash, None, bytes) {
            Ok(spec) if len.is_some_and(|len| len != spec.len()) => return Ok(Look::Missing),
            Ok(spec) => return Ok(Look::Found(spec)),
            Err(mismatch) => Look::Wrong(mismatch.to_string()),
        },
        Err(StoreError::Damaged(reason)) => Look::Unreadable(reason),
        Err(error) => return Err(error),
    };
    metrics::counter!("larder_blob_damaged_total").increment(1);
    tracing::warn!(hash = %hash.short(), ?look, "a blob is damaged and not given to anyone");
    Ok(look)
}

/// Whether there are bytes for `hash`; only [`load`] tells whether they are right.
///
/// # Errors
/// [`StoreError`].
pub fn contains(store: &dyn Store, hash: SpecHash) -> Result<bool, StoreError> {
    match store.get(Tree::Blobs, hash.as_bytes()) {
        Ok(found) => Ok(found.is_some()),
        Err(StoreError::Damaged(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Keeps a spec.
///
/// # Errors
/// [`StoreError`]; nothing changed then.
pub fn save(store: &dyn Store, spec: &Spec) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    put(&mut batch, spec);
    store.apply(&batch)
}

/// Forgets a spec.
///
/// # Errors
/// [`StoreError`]; nothing changed then.
pub fn remove(store: &dyn Store, hash: SpecHash) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    batch.remove(Tree::Blobs, hash.as_bytes());
    store.apply(&batch)
}

/// What was found damaged and not healed since, in order of hash.
///
/// # Errors
/// [`StoreError`], also for an entry that cannot be decoded.
pub fn quarantined(store: &dyn Store) -> Result<Vec<Quarantined>, StoreError> {
    let pairs = store.scan(Tree::Quarantine, &[], MAX_QUARANTINE)?;
    pairs
        .iter()
        .map(|(key, value)| {
            decode(key, value).map_err(|error| StoreError::Damaged(format!("quarantine: {error}")))
        })
        .collect()
}

/// Adds a spec to a batch: two operations.
pub(super) fn put(batch: &mut Batch, spec: &Spec) {
    let hash = spec.hash();
    batch
        .put(Tree::Blobs, hash.as_bytes(), spec.bytes().clone())
        .remove(Tree::Quarantine, hash.as_bytes());
}

/// Moves a blob out, or notes it where a damaged page does not let it go; and the oldest entry with it when there are too many.
pub(super) fn quarantine(
    store: &dyn Store,
    hash: SpecHash,
    reason: &str,
) -> Result<(), StoreError> {
    let mut w = Writer::new();
    w.u64(unix_ms()).text(reason);
    let mut batch = Batch::new();
    batch.put(Tree::Quarantine, hash.as_bytes(), w.finish());
    let known = store.scan(Tree::Quarantine, &[], MAX_QUARANTINE)?;
    if known.len() >= MAX_QUARANTINE {
        // The time stands first in the value.
        let oldest = known.iter().min_by(|(_, a), (_, b)| a.cmp(b));
        if let Some((key, _)) = oldest.filter(|(key, _)| **key != hash.as_bytes()[..]) {
            batch.remove(Tree::Quarantine, key);
        }
    }
    let note = batch.clone();
    batch.remove(Tree::Blobs, hash.as_bytes());
    match store.apply(&batch) {
        Err(error @ StoreError::Damaged(_)) => store.apply(&note).and(Err(error)),
        applied => applied,
    }
}

fn decode(key: &Bytes, value: &Bytes) -> Result<Quarantined, DecodeError> {
    let mut key = Reader::new(key);
    let mut r = Reader::new(value);
    let found = Quarantined {
        hash: key.hash()?,
        at_unix_ms: r.u64()?,
        reason: r.text()?.to_owned(),
    };
    key.end()?;
    r.end()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::{Fault, MemoryStore};

    fn spec(text: &str) -> Spec {
        Spec::new(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_spec_is_kept_until_it_is_removed() {
        let store = MemoryStore::new();
        let spec = spec("steps: []\n");
        let hash = spec.hash();
        assert_eq!(
            load(&store, hash, None).expect("an answer"),
            Loaded::Missing
        );
        save(&store, &spec).expect("saved");
        let found = load(&store, hash, Some(spec.len())).expect("an answer");
        assert_eq!(found, Loaded::Found(spec));
        assert!(contains(&store, hash).expect("an answer"));
        remove(&store, hash).expect("removed");
        assert!(!contains(&store, hash).expect("an answer"));
    }

    #[test]
    fn damage_is_noticed_quarantined_and_healed_by_the_next_save() {
        for fault in [Fault::FlipBit, Fault::DamagedPage] {
            let store = MemoryStore::new();
            let spec = spec("steps: []\n");
            let hash = spec.hash();
            save(&store, &spec).expect("saved");
            store.inject(fault);
            let found = load(&store, hash, None).expect("an answer");
            assert_eq!(found, Loaded::Damaged, "{fault:?}");
            let found = load(&store, hash, None).expect("an answer");
            assert_eq!(found, Loaded::Missing, "wrong bytes are gone");
            let list = quarantined(&store).expect("a list");
            assert_eq!(list.len(), 1);
            assert_eq!(list[0].hash, hash);
            assert!(!list[0].reason.is_empty() && list[0].at_unix_ms > 0);

            save(&store, &spec).expect("saved");
            assert!(quarantined(&store).expect("a list").is_empty());
        }
    }

    #[test]
    fn a_sound_spec_of_another_length_is_not_taken_for_damage() {
        let store = MemoryStore::new();
        let spec = spec("steps: []\n");
        save(&store, &spec).expect("saved");
        let found = load(&store, spec.hash(), Some(3)).expect("an answer");
        assert_eq!(found, Loaded::Missing);
        assert!(contains(&store, spec.hash()).expect("an answer"));
    }

    #[test]
    fn a_full_disk_does_not_hide_damage() {
        let store = MemoryStore::new();
        let wrong = Bytes::from_static(b"wrong");
        let hash = spec("right").hash();
        let mut batch = Batch::new();
        batch.put(Tree::Blobs, hash.as_bytes(), wrong);
        store.apply(&batch).expect("applied");
        store.inject(Fault::Full);
        assert_eq!(
            load(&store, hash, None).expect("an answer"),
            Loaded::Damaged
        );
    }

    #[test]
    fn the_quarantine_is_bounded_and_forgets_the_oldest() {
        let store = MemoryStore::new();
        let hash = |number: usize| SpecHash::of(&number.to_be_bytes());
        let mut batch = Batch::new();
        for number in 0..MAX_QUARANTINE {
            let mut w = Writer::new();
            w.u64(number as u64 + 10).text("long ago");
            batch.put(Tree::Quarantine, hash(number).as_bytes(), w.finish());
        }
        store.apply(&batch).expect("applied");
        quarantine(&store, hash(MAX_QUARANTINE), "now").expect("moved");
        let list = quarantined(&store).expect("a list");
        assert_eq!(list.len(), MAX_QUARANTINE);
        assert!(list.iter().all(|entry| entry.hash != hash(0)));
        assert!(list.iter().any(|entry| entry.hash == hash(MAX_QUARANTINE)));
    }
}
