use bytes::Bytes;

use super::WorkerStore;
use crate::catalog::{CatalogId, Content, Epoch, Revision, Version};
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::limit::MAX_HELD;
use crate::spec::SpecName;
use crate::store::meta::{Meta, MetaError};
use crate::store::recency::Recency;
use crate::store::{Batch, MAX_BATCH, Store, StoreError, Tree, visit};

/// Lines read at a time.
const PAGE: usize = 1_024;

/// What a name was at a revision, as the coordinator said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The name.
    pub name: SpecName,
    /// What it was, and since when.
    pub version: Version,
    /// The last revision at which that was still so.
    pub seen_at: Revision,
}

impl Held {
    pub(super) fn key(&self) -> (SpecName, Revision) {
        (self.name.clone(), self.version.rev)
    }

    pub(super) fn put(&self, batch: &mut Batch) {
        let mut w = Writer::new();
        w.u64(self.seen_at.get());
        self.version.content.encode(&mut w);
        let key = encode_key(&self.name, self.version.rev);
        batch.put(Tree::Held, key, w.finish());
    }

    pub(super) fn decode(key: &Bytes, value: &Bytes) -> Result<Self, DecodeError> {
        let (name, rev) = decode_key(key)?;
        let mut r = Reader::new(value);
        let seen_at = Revision::new(r.u64()?);
        let content = Content::decode(&mut r)?;
        r.end()?;
        Ok(Self {
            name,
            version: Version { rev, content },
            seen_at,
        })
    }
}

impl WorkerStore {
    /// Remembers what a name was at a revision. When there are too many, what was remembered
    /// longest ago goes.
    ///
    /// # Errors
    /// [`StoreError`]; nothing changed then.
    pub fn hold(&self, held: &Held) -> Result<(), StoreError> {
        self.change(|store| self.hold_in(store, held))
    }

    fn hold_in(&self, store: &dyn Store, held: &Held) -> Result<(), StoreError> {
        self.begin_life(store)?;
        let mut batch = Batch::new();
        held.put(&mut batch);
        let key = held.key();
        let evicted = {
            let usage = self.usage();
            let is_new = usage.held.get(&key).is_none();
            let full = is_new && usage.held.len() >= MAX_HELD;
            let oldest = usage.held.oldest_first().next();
            oldest.filter(|_| full).map(|(key, ())| key.clone())
        };
        if let Some((name, rev)) = &evicted {
            batch.remove(Tree::Held, encode_key(name, *rev));
        }
        store.apply(&batch)?;
        let mut usage = self.usage();
        if let Some(key) = &evicted {
            usage.held.remove(key);
        }
        usage.held.insert(key, ());
        Ok(())
    }

    /// Everything that is remembered about names, in order of name and revision.
    ///
    /// # Errors
    /// [`StoreError`]; a line that cannot be decoded is left out, since it can be asked again.
    pub fn held_all(&self) -> Result<Vec<Held>, StoreError> {
        if self.life() != self.usage().held_of {
            return Ok(Vec::new());
        }
        self.noted(read_all(&**self.store()))
    }

    /// Forgets everything that is remembered about names: it belongs to an epoch that is over.
    ///
    /// # Errors
    /// [`StoreError`]; some of it may be forgotten then.
    pub fn forget_held(&self) -> Result<(), StoreError> {
        self.change(|store| {
            forget_all(store)?;
            self.usage().held = Recency::default();
            Ok(())
        })
    }

    /// Whose lines may be kept: the mark's catalog and epoch.
    fn life(&self) -> Option<(CatalogId, Epoch)> {
        self.high_water().map(|mark| (mark.catalog, mark.epoch))
    }

    /// Forgets lines of another life than the mark's, and says of whom the next ones are.
    fn begin_life(&self, store: &dyn Store) -> Result<(), StoreError> {
        let life = self.life();
        if self.usage().held_of == life {
            return Ok(());
        }
        forget_all(store)?;
        self.usage().held = Recency::default();
        if let Some(life) = life {
            Meta::of(store).set_held_of(life)?;
        }
        self.usage().held_of = life;
        Ok(())
    }
}

fn forget_all(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        let lines = store.scan(Tree::Held, &[], MAX_BATCH)?;
        if lines.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (key, _) in &lines {
            batch.remove(Tree::Held, key);
        }
        store.apply(&batch)?;
    }
}

/// Forgets all lines of a store that are of another life than the mark: the process may have
/// ended between the mark of a new epoch and the end of the old lines.
pub(super) fn drop_if_old(
    store: &dyn Store,
    life: Option<(CatalogId, Epoch)>,
) -> Result<(), MetaError> {
    let meta = Meta::of(store);
    if meta.held_of()? == life {
        return Ok(());
    }
    forget_all(store)?;
    if let Some(life) = life {
        meta.set_held_of(life)?;
    }
    Ok(())
}

/// No name holds the zero byte, so the order of keys is that of names, then of revisions.
pub(super) fn encode_key(name: &SpecName, rev: Revision) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(name.as_str().as_bytes()).u8(0).u64(rev.get());
    w.finish()
}

fn decode_key(key: &[u8]) -> Result<(SpecName, Revision), DecodeError> {
    let Some((rest, rev)) = key.split_last_chunk() else {
        return Err(DecodeError::Value("a key without a revision"));
    };
    let name = rest
        .strip_suffix(&[0])
        .and_then(|name| std::str::from_utf8(name).ok())
        .ok_or(DecodeError::Value("a key without a name"))?;
    let parsed: SpecName = name
        .parse()
        .map_err(|_| DecodeError::Value("not a spec name"))?;
    match parsed.as_str() == name {
        true => Ok((parsed, Revision::new(u64::from_be_bytes(*rev)))),
        false => Err(DecodeError::Value("not a canonical spec name")),
    }
}

pub(super) fn read_all(store: &dyn Store) -> Result<Vec<Held>, StoreError> {
    let mut all = Vec::new();
    visit(store, Tree::Held, PAGE, |key, value| {
        match Held::decode(key, value) {
            Ok(held) => all.push(held),
            Err(error) => tracing::warn!(%error, "a line about a name is damaged and left out"),
        }
        Ok(())
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::SpecHash;
    use crate::store::memory::MemoryStore;

    proptest! {
        #[test]
        fn what_is_held_round_trips(
            name in "[a-z]{1,4}(/[a-z]{1,4})?",
            rev: u64,
            seen_at: u64,
            hash: Option<[u8; 32]>,
            len: u64,
        ) {
            let content = match hash {
                Some(raw) => Content::Present { hash: SpecHash::from_bytes(raw), len },
                None => Content::Deleted,
            };
            let held = Held {
                name: name.parse().expect("a name"),
                version: Version { rev: Revision::new(rev), content },
                seen_at: Revision::new(seen_at),
            };
            let store = MemoryStore::new();
            let mut batch = Batch::new();
            held.put(&mut batch);
            store.apply(&batch).expect("applied");
            prop_assert_eq!(read_all(&store).expect("a list"), vec![held]);
        }

        #[test]
        fn foreign_bytes_never_panic(key: Vec<u8>, value: Vec<u8>) {
            let _ = Held::decode(&key.into(), &value.into());
        }
    }
}
