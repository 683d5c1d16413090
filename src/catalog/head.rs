use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::catalog::{CatalogId, Epoch, Revision, StateRoot};
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::mutant::mutant;
use crate::spec::hash::{hex, parse_hex};

const TAG: &[u8; 16] = b"larder head 001\0";

/// BLAKE3 of a head's signed bytes, 32 bytes; zero stands before the first head.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadHash([u8; 32]);

impl HeadHash {
    /// What the first head of a catalog chains to.
    pub const NONE: Self = Self([0; 32]);

    /// Wraps a raw hash.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The raw hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for HeadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..6]))
    }
}

/// The coordinator's statement of what a catalog is at one revision. It holds no clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Counts restores.
    pub epoch: Epoch,
    /// The revision.
    pub rev: Revision,
    /// Commits to all records at that revision.
    pub root: StateRoot,
    /// The head before.
    pub prev: HeadHash,
}

impl Head {
    /// Bytes of the signed part.
    pub const LEN: usize = TAG.len() + 16 + 8 + 8 + 32 + 32;

    /// The bytes that are signed: tag, catalog id, epoch, revision, root, previous head.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut w = Writer::new();
        w.raw(TAG)
            .raw(self.catalog.as_bytes())
            .u64(self.epoch.get())
            .u64(self.rev.get())
            .raw(self.root.as_bytes())
            .raw(self.prev.as_bytes());
        let mut out = [0; Self::LEN];
        out.copy_from_slice(&w.finish());
        out
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array()? != *TAG {
            return Err(DecodeError::Value("not a head"));
        }
        let head = Self {
            catalog: CatalogId::from_bytes(r.array()?),
            epoch: Epoch::new(r.u64()?),
            rev: Revision::new(r.u64()?),
            root: StateRoot::from_bytes(r.array()?),
            prev: HeadHash::from_bytes(r.array()?),
        };
        r.end()?;
        Ok(head)
    }

    /// What the next head chains to.
    pub fn hash(&self) -> HeadHash {
        HeadHash(*blake3::hash(&self.to_bytes()).as_bytes())
    }

    /// Signs this head.
    pub fn sign(&self, signer: &dyn HeadSigner) -> SignedHead {
        let bytes = self.to_bytes();
        let mut out = [0; SignedHead::LEN];
        out[..Self::LEN].copy_from_slice(&bytes);
        out[Self::LEN..].copy_from_slice(&signer.sign(message(&bytes)));
        SignedHead(out)
    }
}

/// What a signature is over: all of a head.
fn message(head: &[u8]) -> &[u8] {
    if mutant!(X13) {
        return head.get(TAG.len() + 16..).unwrap_or_default();
    }
    head
}

/// Signs the bytes of a head. Pure: the same bytes give the same signature.
pub trait HeadSigner: Send + Sync {
    /// A signature over `message`.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// Checks a signature against the keys that this node pins.
pub trait HeadVerifier: Send + Sync {
    /// Whether one of the pinned keys made `signature` over `message`.
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool;
}

/// A head and its signature as they travel and as they are kept; nothing is checked yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignedHead([u8; Self::LEN]);

impl SignedHead {
    /// Bytes of a head with its signature.
    pub const LEN: usize = Head::LEN + 64;

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Takes foreign bytes, checking only their length.
    ///
    /// # Errors
    /// [`DecodeError`] when there are more or fewer than [`Self::LEN`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let head = Self(r.array()?);
        r.end()?;
        Ok(head)
    }

    /// Checks form, then signature.
    ///
    /// # Errors
    /// [`HeadError`] when the bytes are no head or no pinned key signed them.
    pub fn verify(&self, verifier: &dyn HeadVerifier) -> Result<VerifiedHead, HeadError> {
        let head = self.claimed()?;
        let mut signature = [0; 64];
        signature.copy_from_slice(&self.0[Head::LEN..]);
        if !verifier.verify(message(&self.0[..Head::LEN]), &signature) {
            return Err(HeadError::Signature);
        }
        Ok(VerifiedHead {
            head,
            signed: *self,
        })
    }

    /// What it says, unchecked: for our own bytes, and for messages.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no head.
    pub fn claimed(&self) -> Result<Head, DecodeError> {
        let mut bytes = [0; Head::LEN];
        bytes.copy_from_slice(&self.0[..Head::LEN]);
        Head::from_bytes(&bytes)
    }
}

impl fmt::Debug for SignedHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedHead({:?})", self.claimed())
    }
}

/// A head that a pinned key signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedHead {
    head: Head,
    signed: SignedHead,
}

impl VerifiedHead {
    /// What it says.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The bytes to pass on.
    pub fn signed(&self) -> &SignedHead {
        &self.signed
    }
}

/// Why bytes are not a head to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not a head.
    #[error("these bytes are no head")]
    Form(#[from] DecodeError),
    /// Signed by no key that this node pins.
    #[error("no pinned head key made this signature")]
    Signature,
}

/// The coordinator's Ed25519 head key.
///
/// Text form, the only line of `head.key`: `ed25519-secret:` and 64 hex digits.
#[derive(Clone)]
pub struct HeadKey(SigningKey);

impl HeadKey {
    const PREFIX: &str = "ed25519-secret:";

    /// Makes a key from 32 random bytes.
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The half that workers pin.
    pub fn pinned(&self) -> PinnedKey {
        PinnedKey(self.0.verifying_key())
    }

    /// The text form. It is the secret: it goes into `head.key` and nowhere else.
    pub fn to_secret_text(&self) -> String {
        format!("{}{}", Self::PREFIX, hex(self.0.as_bytes()))
    }
}

impl HeadSigner for HeadKey {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        Signer::sign(&self.0, message).to_bytes()
    }
}

impl FromStr for HeadKey {
    type Err = PinnedKeyError;

    fn from_str(text: &str) -> Result<Self, PinnedKeyError> {
        let digits = text
            .trim()
            .strip_prefix(Self::PREFIX)
            .ok_or(PinnedKeyError::Prefix(Self::PREFIX))?;
        parse_hex(digits)
            .map(Self::from_bytes)
            .ok_or(PinnedKeyError::Digits)
    }
}

impl fmt::Debug for HeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeadKey({})", self.pinned())
    }
}

/// The public half of a head key, as the trust file pins it: `ed25519:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PinnedKey(VerifyingKey);

impl PinnedKey {
    const PREFIX: &str = "ed25519:";
}

impl HeadVerifier for PinnedKey {
    /// Strict verification: no malleable signature and no weak key passes.
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl HeadVerifier for [PinnedKey] {
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.iter().any(|key| key.verify(message, signature))
    }
}

impl HeadVerifier for Vec<PinnedKey> {
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.as_slice().verify(message, signature)
    }
}

impl fmt::Display for PinnedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, hex(self.0.as_bytes()))
    }
}

impl fmt::Debug for PinnedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PinnedKey {
    type Err = PinnedKeyError;

    fn from_str(text: &str) -> Result<Self, PinnedKeyError> {
        let digits = text
            .trim()
            .strip_prefix(Self::PREFIX)
            .ok_or(PinnedKeyError::Prefix(Self::PREFIX))?;
        let raw = parse_hex(digits).ok_or(PinnedKeyError::Digits)?;
        VerifyingKey::from_bytes(&raw)
            .map(Self)
            .map_err(|_| PinnedKeyError::Point)
    }
}

/// Why a text is not a head key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinnedKeyError {
    /// It does not start as it should.
    #[error("a head key starts with `{0}`")]
    Prefix(&'static str),
    /// What follows is not 64 hex digits.
    #[error("a head key has 64 hex digits after its prefix")]
    Digits,
    /// The digits are no public key.
    #[error("these digits are no Ed25519 public key")]
    Point,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> Head {
        Head {
            catalog: CatalogId::from_bytes([1; 16]),
            epoch: Epoch::new(2),
            rev: Revision::new(3),
            root: StateRoot::from_bytes([4; 32]),
            prev: HeadHash::from_bytes([5; 32]),
        }
    }

    #[test]
    fn a_signed_head_verifies_with_its_own_key_only() {
        let key = HeadKey::from_bytes([7; 32]);
        let signed = head().sign(&key);
        let verified = signed.verify(&key.pinned()).expect("our own signature");
        assert_eq!(verified.head(), &head());

        let other = HeadKey::from_bytes([8; 32]).pinned();
        assert_eq!(signed.verify(&other), Err(HeadError::Signature));
        assert!(signed.verify(&vec![other, key.pinned()]).is_ok());
        assert!(signed.verify(&Vec::<PinnedKey>::new()).is_err());
    }

    #[test]
    fn every_bit_is_signed() {
        let key = HeadKey::from_bytes([7; 32]);
        let signed = head().sign(&key);
        for bit in 0..SignedHead::LEN * 8 {
            let mut bytes = *signed.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SignedHead(bytes).verify(&key.pinned()).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_signed_bytes_are_fixed() {
        let key = HeadKey::from_bytes([7; 32]);
        let golden = include_str!("../../tests/data/head.hex").trim();
        assert_eq!(hex(head().sign(&key).as_bytes()), golden);
    }

    #[test]
    fn keys_round_trip_as_text_and_debug_hides_the_secret() {
        let key = HeadKey::from_bytes([7; 32]);
        let again: HeadKey = key.to_secret_text().parse().expect("own text");
        assert_eq!(again.pinned(), key.pinned());
        let pinned: PinnedKey = key.pinned().to_string().parse().expect("own text");
        assert_eq!(pinned, key.pinned());
        assert!(!format!("{key:?}").contains(&hex(&[7; 32])));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, text in "\\PC{0,80}") {
            if let Ok(head) = SignedHead::from_slice(&bytes) {
                let _ = head.claimed();
            }
            let _ = text.parse::<PinnedKey>();
            let _ = text.parse::<HeadKey>();
        }
    }
}
