//! What is current: name -> revision and hash, with history, a state root and signed heads.
//!
//! A [`Catalog`] is an immutable value. [`Catalog::apply`] makes the next one and shares all that
//! did not change, so a reader keeps a whole consistent revision for the price of a pointer. The
//! [state root](Catalog::root) commits to every record; a [`Head`] signs it and chains to the
//! head before.

mod entry;
mod head;
mod record;
mod session;
mod tree;

use std::fmt;
use std::str::FromStr;

pub use self::entry::{Entry, IdempotencyKey, Keyed, Pending, PinEntry, Published};
pub use self::head::{
    Head, HeadError, HeadHash, HeadKey, HeadSigner, HeadVerifier, PinnedKey, PinnedKeyError,
    SignedHead, VerifiedHead,
};
pub use self::record::{Change, Content, Record, Version};
pub use self::session::SessionClaim;
pub use self::tree::{AtError, Catalog, StateRoot};
use crate::spec::hash::{hex, parse_hex};

/// Most names that one publish may change; one revision is one frame of hashes.
pub const MAX_NAMES_PER_PUBLISH: usize = 100_000;

/// Most names, deleted ones among them, that a catalog may hold: about 150 bytes of memory each.
pub const MAX_NAMES: usize = 1_000_000;

/// Names a catalog for its whole life; random, made with the coordinator's store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CatalogId([u8; 16]);

impl CatalogId {
    /// Wraps 16 random bytes.
    pub const fn from_bytes(raw: [u8; 16]) -> Self {
        Self(raw)
    }

    /// The raw id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first 8 hex digits, for logs.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

impl fmt::Display for CatalogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for CatalogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for CatalogId {
    type Err = CatalogIdError;

    fn from_str(text: &str) -> Result<Self, CatalogIdError> {
        parse_hex(text).map(Self).ok_or(CatalogIdError)
    }
}

impl serde::Serialize for CatalogId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> serde::Deserialize<'de> for CatalogId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

/// A text that is not a [`CatalogId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a catalog id is 32 hex digits")]
pub struct CatalogIdError;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);

            /// Wraps a number.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after this.
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

counter! {
    /// Counts the states of a catalog from 1; never reused within an epoch. 0 is the empty
    /// catalog, and "must not exist" where a revision is expected.
    Revision
}
counter! {
    /// Counts restores from backup; a higher epoch with a lower revision is no rollback.
    Epoch
}
