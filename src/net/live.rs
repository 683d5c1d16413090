use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use quinn::Connection;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::identity::NodeUri;
use crate::proto::code::CloseCode;
use crate::trust::{Identity, Untrusted, Usage};

/// Connections checked in one go before others get a turn: some milliseconds.
const CHECKED_AT_ONCE: usize = 64;

/// Every connection of an endpoint with what its peer showed, so that it can be checked again.
///
/// Bounded by the limit on connections that come in, and by the links of this node.
#[derive(Debug, Default)]
pub(super) struct LiveConnections(Mutex<BTreeMap<usize, Entry>>);

#[derive(Debug, Clone)]
struct Entry {
    connection: Connection,
    chain: Vec<CertificateDer<'static>>,
    usage: Usage,
}

impl LiveConnections {
    /// Checks the peer against the trust of this moment and keeps the connection until
    /// [`remove`](Self::remove).
    ///
    /// It is kept first and checked then: a reload in between sees it in the one place or the
    /// other.
    pub(super) fn add(
        &self,
        connection: &Connection,
        usage: Usage,
        identity: &Identity,
    ) -> Result<NodeUri, Untrusted> {
        let entry = Entry {
            connection: connection.clone(),
            chain: peer_chain(connection),
            usage,
        };
        let chain = entry.chain.clone();
        self.lock().insert(connection.stable_id(), entry);
        let trust = identity.current();
        let checked = trust.trust().check(&chain, usage, UnixTime::now());
        if checked.is_err() {
            self.remove(connection);
            close(connection, CloseCode::Revoked);
        }
        checked
    }

    pub(super) fn remove(&self, connection: &Connection) {
        self.lock().remove(&connection.stable_id());
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Checks every peer again and closes what no longer passes; returns how many.
    pub(super) async fn check_again(&self, identity: &Identity, now: UnixTime) -> usize {
        let ids: Vec<usize> = self.lock().keys().copied().collect();
        let mut closed = 0;
        for some in ids.chunks(CHECKED_AT_ONCE) {
            closed += some
                .iter()
                .filter(|id| self.fails(**id, identity, now))
                .count();
            tokio::task::yield_now().await;
        }
        closed
    }

    fn fails(&self, id: usize, identity: &Identity, now: UnixTime) -> bool {
        // Cloned, so that the lock is not held while signatures are checked.
        let entry = self.lock().get(&id).cloned();
        let Some(Entry {
            connection,
            chain,
            usage,
        }) = entry
        else {
            return false;
        };
        let trust = identity.current();
        let Err(reason) = trust.trust().check(&chain, usage, now) else {
            return false;
        };
        close(&connection, CloseCode::Revoked);
        let addr = connection.remote_address();
        tracing::warn!(%addr, %reason, hint = reason.hint(), "connection closed: no longer trusted");
        metrics::counter!("larder_connections_revoked_total", "reason" => reason.as_str())
            .increment(1);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Entry>> {
        // Whole entries are inserted and removed: a panic elsewhere leaves the map as it should be.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn close(connection: &Connection, code: CloseCode) {
    connection.close(code.number().into(), code.as_str().as_bytes());
}

fn peer_chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| *chain)
        .unwrap_or_default()
}
