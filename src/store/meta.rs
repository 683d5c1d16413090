//! Single values that a store keeps about itself.
//!
//! | key | value | kept by |
//! | --- | --- | --- |
//! | `format` | u32 | both |
//! | `role` | text | both |
//! | `catalog` | id, 16 B | coordinator |
//! | `held-of` | catalog id 16 B, epoch u64: whose lines are in `Held` | worker |
//! | `reset-key` | 32 random bytes, made once | worker |
//! | `members` | generation and addresses, see `proto/gossip/remembered.rs` | worker |
//! | `applied` | generation u64, offset u64: how far the view has the journal | coordinator |
//!
//! What a worker must not lose with a damaged sled stands in a file of its own: see
//! [`mark`](super::mark).

use super::journal::Position;
use super::{Batch, Store, StoreError, Tree};
use crate::catalog::{CatalogId, Epoch};
use crate::codec::{DecodeError, Reader, Writer};
use crate::identity::Role;

/// The format of stores of `role` that this version writes and reads. The first format of workers
/// had the high-water mark in sled; whoever reads that one would not see the mark of this one.
pub const fn format(role: Role) -> u32 {
    match role {
        Role::Worker => 2,
        _ => 1,
    }
}

const FORMAT_KEY: &str = "format";
const ROLE_KEY: &str = "role";
const CATALOG_KEY: &str = "catalog";
const RESET_KEY: &str = "reset-key";
const HELD_OF_KEY: &str = "held-of";
const MEMBERS_KEY: &str = "members";
const APPLIED_KEY: &str = "applied";

/// Why a value about the store cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another version of Larder wrote the store; it is left as it is.
    #[error("the store has format {found}, this version knows {known}")]
    NewerFormat {
        /// The format of the store.
        found: u32,
        /// The one that this version knows.
        known: u32,
    },
    /// It is the store of a node of another role.
    #[error("this is the store of a {found}, not of a {wanted}")]
    OtherRole {
        /// Whose it is.
        found: Role,
        /// Who asked.
        wanted: Role,
    },
    /// The value is not what was written.
    #[error("`{key}` of the store is damaged")]
    Damaged {
        /// Which value.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
}

impl MetaError {
    /// Whether the store should be set aside.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::Store(StoreError::Damaged(_))
        )
    }
}

/// Typed access to the tree [`Tree::Meta`].
#[derive(Debug, Clone, Copy)]
pub struct Meta<'a>(&'a dyn Store);

impl<'a> Meta<'a> {
    /// The values of `store`.
    pub fn of(store: &'a dyn Store) -> Self {
        Self(store)
    }

    /// Marks a new store as one of this format and `role`, or checks that an old one is.
    ///
    /// # Errors
    /// [`MetaError`]; the store is not changed then.
    pub fn prepare(self, role: Role) -> Result<(), MetaError> {
        let found = self.get(ROLE_KEY, |r| {
            let role = r.text()?.parse();
            role.map_err(|_| DecodeError::Value("not a role"))
        })?;
        if let Some(found) = found.filter(|&found| found != role) {
            let wanted = role;
            return Err(MetaError::OtherRole { found, wanted });
        }
        let known = format(role);
        match self.get(FORMAT_KEY, |r| r.u32())? {
            Some(found) if found == known => Ok(()),
            Some(found) => Err(MetaError::NewerFormat { found, known }),
            None => self.mark_new(role),
        }
    }

    fn mark_new(self, role: Role) -> Result<(), MetaError> {
        let mut number = Writer::new();
        number.u32(format(role));
        let mut text = Writer::new();
        text.text(role.as_str());
        let mut batch = Batch::new();
        batch
            .put(Tree::Meta, FORMAT_KEY, number.finish())
            .put(Tree::Meta, ROLE_KEY, text.finish());
        Ok(self.0.apply(&batch)?)
    }

    /// Whose catalog this store follows.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn catalog(self) -> Result<Option<CatalogId>, MetaError> {
        self.get(CATALOG_KEY, |r| r.array().map(CatalogId::from_bytes))
    }

    /// The key for stateless resets of this node; `fresh` random bytes become it the first time.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn reset_key(self, fresh: [u8; 32]) -> Result<[u8; 32], MetaError> {
        if let Some(key) = self.known_reset_key()? {
            return Ok(key);
        }
        self.put(RESET_KEY, &fresh)?;
        Ok(fresh)
    }

    /// The key for stateless resets, if there is one yet.
    ///
    /// # Errors
    /// [`MetaError`].
    pub(super) fn known_reset_key(self) -> Result<Option<[u8; 32]>, MetaError> {
        self.get(RESET_KEY, |r| r.array())
    }

    /// What was kept of the membership, as it was given.
    ///
    /// # Errors
    /// [`MetaError`].
    pub(super) fn members(self) -> Result<Option<Vec<u8>>, MetaError> {
        self.get(MEMBERS_KEY, |r| Ok(r.raw(r.remaining())?.to_vec()))
    }

    /// Keeps this of the membership.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn set_members(self, bytes: &[u8]) -> Result<(), StoreError> {
        self.put(MEMBERS_KEY, bytes)
    }

    /// Of which catalog and epoch the lines in [`Tree::Held`] are.
    ///
    /// # Errors
    /// [`MetaError`].
    pub(super) fn held_of(self) -> Result<Option<(CatalogId, Epoch)>, MetaError> {
        self.get(HELD_OF_KEY, |r| {
            Ok((CatalogId::from_bytes(r.array()?), Epoch::new(r.u64()?)))
        })
    }

    /// Sets of which catalog and epoch the lines in [`Tree::Held`] are.
    ///
    /// # Errors
    /// [`StoreError`]; nothing changed then.
    pub(super) fn set_held_of(
        self,
        (catalog, epoch): (CatalogId, Epoch),
    ) -> Result<(), StoreError> {
        let mut w = Writer::new();
        w.raw(catalog.as_bytes()).u64(epoch.get());
        self.put(HELD_OF_KEY, &w.finish())
    }

    /// Up to where the view has applied the journal.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn applied(self) -> Result<Option<Position>, MetaError> {
        self.get(APPLIED_KEY, |r| {
            Ok(Position {
                generation: r.u64()?,
                offset: r.u64()?,
            })
        })
    }

    fn get<T>(
        self,
        key: &'static str,
        decode: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, MetaError> {
        let Some(bytes) = self.0.get(Tree::Meta, key.as_bytes())? else {
            return Ok(None);
        };
        let mut r = Reader::new(&bytes);
        let value = decode(&mut r).and_then(|value| {
            r.end()?;
            Ok(value)
        });
        match value {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(MetaError::Damaged { key, source }),
        }
    }

    fn put(self, key: &'static str, value: &[u8]) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(Tree::Meta, key, value.to_vec());
        self.0.apply(&batch)
    }
}

/// Adds whose catalog the store follows to a batch.
pub(super) fn put_catalog(batch: &mut Batch, id: CatalogId) {
    batch.put(Tree::Meta, CATALOG_KEY, id.as_bytes().to_vec());
}

/// Adds the applied position to the batch that reaches it.
pub(super) fn put_applied(batch: &mut Batch, position: Position) {
    let mut w = Writer::new();
    w.u64(position.generation).u64(position.offset);
    batch.put(Tree::Meta, APPLIED_KEY, w.finish());
}

/// Adds to a batch that nothing is applied any more.
pub(super) fn remove_applied(batch: &mut Batch) {
    batch.remove(Tree::Meta, APPLIED_KEY);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[test]
    fn each_value_round_trips() {
        let store = MemoryStore::new();
        let meta = Meta::of(&store);
        assert_eq!(meta.catalog().expect("an answer"), None);
        let id = CatalogId::from_bytes([3; 16]);
        let mut batch = Batch::new();
        put_catalog(&mut batch, id);
        store.apply(&batch).expect("applied");
        assert_eq!(meta.catalog().expect("an answer"), Some(id));

        let life = (id, Epoch::new(6));
        assert_eq!(meta.held_of().expect("an answer"), None);
        meta.set_held_of(life).expect("set");
        assert_eq!(meta.held_of().expect("an answer"), Some(life));

        let position = Position {
            generation: 5,
            offset: 6,
        };
        let mut batch = Batch::new();
        put_applied(&mut batch, position);
        store.apply(&batch).expect("applied");
        assert_eq!(meta.applied().expect("an answer"), Some(position));
        let mut batch = Batch::new();
        remove_applied(&mut batch);
        store.apply(&batch).expect("applied");
        assert_eq!(meta.applied().expect("an answer"), None);
    }

    #[test]
    fn the_reset_key_is_made_once() {
        let store = MemoryStore::new();
        let meta = Meta::of(&store);
        assert_eq!(meta.reset_key([1; 32]).expect("a key"), [1; 32]);
        assert_eq!(meta.reset_key([2; 32]).expect("a key"), [1; 32]);
    }

    #[test]
    fn another_format_or_role_is_refused() {
        let store = MemoryStore::new();
        let meta = Meta::of(&store);
        meta.prepare(Role::Worker).expect("new");
        meta.prepare(Role::Worker).expect("the same again");
        let error = meta.prepare(Role::Coordinator).expect_err("another role");
        assert!(matches!(
            error,
            MetaError::OtherRole {
                found: Role::Worker,
                ..
            }
        ));

        meta.put(FORMAT_KEY, &3_u32.to_be_bytes()).expect("set");
        let error = meta.prepare(Role::Worker).expect_err("a newer format");
        assert!(matches!(
            error,
            MetaError::NewerFormat { found: 3, known: 2 }
        ));
        assert!(!error.is_damage(), "it must not be set aside");
    }

    #[test]
    fn a_damaged_value_is_named() {
        let store = MemoryStore::new();
        let meta = Meta::of(&store);
        meta.put(CATALOG_KEY, b"short").expect("set");
        let error = meta.catalog().expect_err("too short");
        assert!(error.is_damage());
        assert!(error.to_string().contains("`catalog`"), "{error}");
    }
}
