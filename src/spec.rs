//! What is stored: names, hashes, and the exact bytes of definitions.
//!
//! A [`Spec`] is the bytes of one workflow definition, kept exactly as they were published. It
//! is identified by its [`SpecHash`] and found under a [`SpecName`]. Nothing here parses the
//! meaning of a definition; [`Syntax::check`] only refuses what no engine could read.

pub(crate) mod hash;
mod name;
mod syntax;

use bytes::Bytes;

pub use self::hash::{HashParseError, SpecHash};
pub use self::name::{NameError, SpecName};
pub use self::syntax::{Syntax, SyntaxError};
use crate::proto::mutant::mutant;

/// Largest spec that a coordinator accepts unless it is configured otherwise, in bytes.
///
/// Real definitions are a few KiB; the largest in the suites that we tried is below 64 KiB.
pub const DEFAULT_MAX_SPEC_LEN: u64 = 1 << 20;

/// Largest spec that the protocol can carry, in bytes. Configuration cannot go beyond it.
pub const MAX_SPEC_LEN: u64 = 16 << 20;

/// What a faulty check looks at.
const FIRST_CHUNK: u64 = 1_024;

/// The exact bytes of one definition together with their hash.
///
/// The hash is computed when the value is made, so a `Spec` is always consistent with itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Spec {
    hash: SpecHash,
    bytes: Bytes,
}

impl Spec {
    /// Hashes `bytes` and keeps both.
    pub fn new(bytes: Bytes) -> Self {
        Self {
            hash: SpecHash::of(&bytes),
            bytes,
        }
    }

    /// Keeps `bytes` if they are what `hash` and `len` promise.
    ///
    /// # Errors
    /// [`Mismatch`] when the length or the hash differs; the length is compared first, since it
    /// costs nothing.
    pub fn verify(hash: SpecHash, len: Option<u64>, bytes: Bytes) -> Result<Self, Mismatch> {
        let got_len = bytes.len() as u64;
        if let Some(expected) = len
            && expected != got_len
            && !mutant!(X04)
        {
            return Err(Mismatch::Length {
                expected,
                got: got_len,
            });
        }
        let got = SpecHash::of(&bytes);
        let unseen = mutant!(X03) && got_len > FIRST_CHUNK;
        if got != hash && !unseen {
            return Err(Mismatch::Hash {
                expected: hash,
                got,
            });
        }
        Ok(Self { hash, bytes })
    }

    /// BLAKE3 of the bytes.
    pub fn hash(&self) -> SpecHash {
        self.hash
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The exact bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty spec is never stored")]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Bodies may hold secrets, so `Debug` shows the hash and the length only.
impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("hash", &self.hash)
            .field("len", &self.bytes.len())
            .finish()
    }
}

/// Why bytes are not the spec that they were said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The length differs from the record's.
    #[error("expected {expected} bytes, got {got}")]
    Length {
        /// Length in the record.
        expected: u64,
        /// Length received.
        got: u64,
    },
    /// The length is right but the content is not.
    #[error("expected {}, got {}", expected.short(), got.short())]
    Hash {
        /// Hash in the record.
        expected: SpecHash,
        /// Hash of what was received.
        got: SpecHash,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_bytes_verify_and_wrong_ones_say_what_differs() {
        let spec = Spec::new(Bytes::from_static(b"steps: []\n"));
        let again = Spec::verify(spec.hash(), Some(10), spec.bytes().clone());
        assert_eq!(again, Ok(spec.clone()));

        let short = Spec::verify(spec.hash(), Some(10), Bytes::from_static(b"steps: []"));
        assert_eq!(
            short,
            Err(Mismatch::Length {
                expected: 10,
                got: 9
            })
        );
        let changed = Spec::verify(spec.hash(), Some(10), Bytes::from_static(b"steps: {}\n"));
        assert!(matches!(changed, Err(Mismatch::Hash { .. })));
    }

    #[test]
    fn debug_output_never_holds_the_body() {
        let spec = Spec::new(Bytes::from_static(b"password: hunter2"));
        assert!(!format!("{spec:?}").contains("hunter2"));
    }
}
