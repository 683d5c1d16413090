use crate::catalog::{CatalogId, Epoch, Head, SessionClaim};
use crate::net::{SessionKey, Vouch};
use crate::proto::wire::Welcome;
use crate::trust::Identity;

/// Believes a coordinator that proves, in the session at hand, to hold a head key that
/// `trust.yaml` pins.
///
/// The signature of the head itself is not looked at: it proves who made the head, not who
/// repeats it, and it may be from a key that has been replaced since.
#[derive(Debug)]
pub(crate) struct PinnedKeys(pub(crate) Identity);

impl Vouch for PinnedKeys {
    fn vouch(&self, session: &SessionKey, welcome: &Welcome) -> Result<(), String> {
        // Without a catalog it may refuse, and nothing else: see `check_answer`.
        let Some(head) = claimed(welcome)? else {
            return Ok(());
        };
        let Some(proof) = &welcome.proof else {
            return Err("it does not prove that it holds the head key of its catalog".into());
        };
        let claim = SessionClaim {
            session: *session,
            catalog: head.catalog,
            epoch: head.epoch,
        };
        let signature = proof.signature().map_err(|error| error.to_string())?;
        match claim.is_proven_by(&signature, self.0.current().trust().head_keys()) {
            true => Ok(()),
            false => {
                Err("no head key pinned in trust.yaml made its proof for this connection".into())
            }
        }
    }
}

/// What the welcome says of the catalog.
fn claimed(welcome: &Welcome) -> Result<Option<Head>, String> {
    let Some(head) = &welcome.head else {
        return Ok(None);
    };
    let signed = head.signed().map_err(|error| error.to_string())?;
    let head = signed.claimed().map_err(|error| error.to_string())?;
    Ok(Some(head))
}

/// The catalog that the welcome of a connection has proven.
///
/// # Errors
/// Why there is none, in one clause.
pub(super) fn proven(welcome: &Welcome) -> Result<CatalogId, String> {
    match claimed(welcome)? {
        Some(head) => Ok(head.catalog),
        None => Err("it speaks for a catalog and has proven none".into()),
    }
}

/// Whether an answer is about the catalog that the welcome of its connection has proven.
///
/// # Errors
/// Why not, in one clause.
pub(super) fn check_answer(
    welcome: &Welcome,
    catalog: CatalogId,
    epoch: Epoch,
) -> Result<(), String> {
    match claimed(welcome)? {
        None => Err("it speaks for a catalog and has proven none".into()),
        Some(head) if head.catalog != catalog => Err(format!(
            "it has proven catalog {} and speaks for {catalog}",
            head.catalog
        )),
        Some(head) if epoch < head.epoch => Err(format!(
            "it has proven epoch {} and speaks for {epoch}",
            head.epoch
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{HeadHash, HeadKey, Revision, StateRoot};
    use crate::proto::wire::HeadBytes;
    use crate::trust::{IdentityOptions, IdentityPaths, issue};

    #[test]
    fn a_signed_head_alone_is_no_proof() {
        let dir = tempfile::tempdir().expect("a directory");
        issue::throwaway(dir.path()).expect("certificates");
        let coordinator = dir.path().join("dev/coordinator/c1");
        let paths = IdentityPaths::in_dir(&coordinator);
        let identity = Identity::load(paths, IdentityOptions::default()).expect("an identity");
        let key: HeadKey = identity.current().head_key().expect("its key").clone();
        let head = Head {
            catalog: CatalogId::from_bytes([1; 16]),
            epoch: Epoch::new(1),
            rev: Revision::new(1),
            root: StateRoot::from_bytes([0; 32]),
            prev: HeadHash::NONE,
        };
        let claim = SessionClaim {
            session: [3; 32],
            catalog: head.catalog,
            epoch: head.epoch,
        };
        let mut welcome = Welcome {
            agent: String::new(),
            max_spec_len: 1,
            head: Some(HeadBytes::from(&head.sign(&key))),
            proof: None,
        };
        let keys = PinnedKeys(identity);
        let error = keys.vouch(&[3; 32], &welcome).expect_err("no proof");
        assert!(error.contains("does not prove"), "{error}");
        welcome.proof = Some(claim.sign(&key).into());
        keys.vouch(&[3; 32], &welcome).expect("a proof");
        keys.vouch(&[4; 32], &welcome).expect_err("another session");
    }
}
