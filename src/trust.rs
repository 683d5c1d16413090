//! Whom this node believes: its identity directory, the check of a peer's certificate, and reload.
//!
//! # An identity directory
//!
//! | file | content | mode |
//! | --- | --- | --- |
//! | `cert.pem` | the node's certificate, then the rest of its chain | any |
//! | `key.pem` | its private key, PKCS#8 | 0600 |
//! | `ca.pem` | one or several CA certificates; several while one replaces another | any |
//! | `trust.yaml` | see [`TrustFile`] | any |
//! | `head.key` | coordinators only: the key that signs heads | 0600 |
//!
//! # What a peer must show
//!
//! A chain to one of the CAs that is valid now and allowed for its side of TLS, exactly one URI
//! name that is a [`NodeUri`] of the same cluster, and not a revoked one. No DNS name is looked
//! at, so certificates that SPIRE issued work as they are. [`Trust::check`] is that check, and
//! the only one: handshakes in both directions use it, and live connections are held against it
//! again after each reload.
//!
//! # Reload
//!
//! An [`Identity`] is a handle. [`Identity::reload`] reads the files again; what does not parse
//! changes nothing. Handshakes after it use the new files, and nothing is resumed, so no
//! connection skips the check.

pub mod issue;
mod load;
mod tls;
mod verify;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use self::load::{Credentials, IdentityError, IdentityOptions, IdentityPaths, TrustFile};
pub(crate) use self::tls::{client_config, server_config};
pub use self::verify::{Trust, Untrusted, Usage, Validity};
use crate::identity::{NodeUri, THROWAWAY_CLUSTER};

/// Whether a cluster is one of those whose certificates come with the source code, so that its
/// keys are known to everyone. Such a cluster lives on loopback only.
pub fn is_throwaway(cluster: &str) -> bool {
    cluster
        .strip_suffix(THROWAWAY_CLUSTER)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A node's own certificate and whom it trusts; a cheap handle to what was last loaded.
#[derive(Debug, Clone)]
pub struct Identity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    paths: IdentityPaths,
    options: IdentityOptions,
    uri: NodeUri,
    current: ArcSwap<Credentials>,
    /// Why the last reload failed, so that it is said once and not every few seconds.
    refused: Mutex<Option<String>>,
    /// Counts successful reloads that changed something.
    changes: watch::Sender<u64>,
}

impl Identity {
    /// Reads and checks an identity directory.
    ///
    /// A certificate that its own CA would refuse loads with a warning: peers decide, and a clock
    /// that is wrong at boot is set later.
    ///
    /// # Errors
    /// [`IdentityError`], which names the file and what is wrong with it.
    pub fn load(paths: IdentityPaths, options: IdentityOptions) -> Result<Self, IdentityError> {
        let credentials = Credentials::load(&paths, options)?;
        credentials.warn_if_refused();
        Ok(Self(Arc::new(Shared {
            paths,
            options,
            uri: credentials.uri().clone(),
            current: ArcSwap::from_pointee(credentials),
            refused: Mutex::default(),
            changes: watch::Sender::new(0),
        })))
    }

    /// Who this node is; a reload never changes it.
    pub fn uri(&self) -> &NodeUri {
        &self.0.uri
    }

    /// What is in force now.
    pub fn current(&self) -> Arc<Credentials> {
        self.0.current.load_full()
    }

    /// Reads the files again and returns whether anything changed. Blocks on the disk. Logs what
    /// changed, and what is wrong once.
    ///
    /// # Errors
    /// [`IdentityError`]; what was in force stays in force.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let fresh = Credentials::load(&self.0.paths, self.0.options).and_then(|fresh| {
            if fresh.uri() == self.uri() {
                return Ok(fresh);
            }
            Err(IdentityError::renamed(&self.0.paths, self.uri(), &fresh))
        });
        let fresh = fresh.inspect_err(|error| self.refuse(error))?;
        *self.refused() = None;
        if fresh.digest() == self.current().digest() {
            return Ok(false);
        }
        fresh.warn_if_refused();
        self.0.current.store(Arc::new(fresh));
        self.0.changes.send_modify(|count| *count += 1);
        tracing::info!(uri = %self.uri(), "certificates and trust reloaded");
        Ok(true)
    }

    fn refuse(&self, error: &IdentityError) {
        // With its causes: the same file may be wrong in another way next.
        let text = format!("{error:?}");
        let mut refused = self.refused();
        if refused.as_ref() == Some(&text) {
            return;
        }
        *refused = Some(text);
        tracing::error!(
            error = error as &dyn std::error::Error,
            hint = error.hint(),
            "the old certificates and trust stay in force"
        );
    }

    fn refused(&self) -> MutexGuard<'_, Option<String>> {
        self.0
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever must look at live connections again.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
