use crate::catalog::{CatalogId, Epoch, HeadSigner, HeadVerifier};
use crate::codec::Writer;

const TAG: &[u8; 16] = b"larder sess 001\0";

/// The coordinator's claim to speak for a catalog within one TLS session.
///
/// Unlike a head, which anyone may repeat, a signature of it is worth nothing elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionClaim {
    /// Keying material of the session, which only its two ends know.
    pub session: [u8; 32],
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
}

impl SessionClaim {
    /// The bytes that are signed: tag, keying material, catalog id, epoch.
    fn to_bytes(self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(TAG)
            .raw(&self.session)
            .raw(self.catalog.as_bytes())
            .u64(self.epoch.get());
        w.finish()
    }

    /// Signs it with the head key.
    pub fn sign(self, signer: &dyn HeadSigner) -> [u8; 64] {
        signer.sign(&self.to_bytes())
    }

    /// Whether a pinned key made `signature`.
    pub fn is_proven_by(
        self,
        signature: &[u8; 64],
        verifier: &(impl HeadVerifier + ?Sized),
    ) -> bool {
        verifier.verify(&self.to_bytes(), signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::HeadKey;
    use crate::spec::hash::hex;

    fn claim() -> SessionClaim {
        SessionClaim {
            session: [1; 32],
            catalog: CatalogId::from_bytes([2; 16]),
            epoch: Epoch::new(3),
        }
    }

    #[test]
    fn a_proof_holds_for_its_session_catalog_epoch_and_key_only() {
        let key = HeadKey::from_bytes([7; 32]);
        let proof = claim().sign(&key);
        assert!(claim().is_proven_by(&proof, &key.pinned()));
        let mut others = [claim(); 3];
        others[0].session[31] ^= 1;
        others[1].catalog = CatalogId::from_bytes([9; 16]);
        others[2].epoch = Epoch::new(4);
        for other in others {
            assert!(!other.is_proven_by(&proof, &key.pinned()), "{other:?}");
        }
        let stranger = HeadKey::from_bytes([8; 32]).pinned();
        assert!(!claim().is_proven_by(&proof, &stranger));
    }

    #[test]
    fn the_signed_bytes_are_fixed() {
        let golden = include_str!("../../tests/data/session.hex").trim();
        assert_eq!(hex(&claim().to_bytes()), golden);
    }
}
