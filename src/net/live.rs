use std::collections::BTreeMap;
use std::net::IpAddr;
#[cfg(test)]
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::Connection;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::session::{SessionKey, Vouch};
use crate::identity::NodeUri;
use crate::proto::code::CloseCode;
use crate::proto::wire::Welcome;
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
    vouched: Option<Vouched>,
}

/// Who vouches for a connection, and by what.
#[derive(Debug, Clone)]
pub(super) struct Vouched {
    pub(super) by: Arc<dyn Vouch>,
    pub(super) session: SessionKey,
    pub(super) welcome: Welcome,
}

impl Vouched {
    fn check(&self) -> Result<(), String> {
        self.by.vouch(&self.session, &self.welcome)
    }
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
            vouched: None,
        };
        let chain = entry.chain.clone();
        self.lock().insert(connection.stable_id(), entry);
        let trust = identity.current();
        let checked = trust.trust().check(&chain, usage, UnixTime::now());
        checked.inspect_err(|reason| {
            self.remove(connection);
            close(connection, code_of(*reason));
        })
    }

    /// Asks who vouches for a connection, now and at every later check. Kept first, as in
    /// [`add`](Self::add).
    pub(super) fn vouch(&self, connection: &Connection, vouched: Vouched) -> Result<(), String> {
        if let Some(entry) = self.lock().get_mut(&connection.stable_id()) {
            entry.vouched = Some(vouched.clone());
        }
        vouched.check().inspect_err(|_| {
            self.remove(connection);
            close(connection, CloseCode::Unproven);
        })
    }

    pub(super) fn remove(&self, connection: &Connection) {
        self.lock().remove(&connection.stable_id());
    }

    /// Closes the connections that others have dialled to an address which `is_gone`; returns how
    /// many.
    pub(super) fn close_at(&self, is_gone: impl Fn(IpAddr) -> bool) -> usize {
        let entries: Vec<_> = self.lock().values().cloned().collect();
        let mut asked = BTreeMap::new();
        let mut closed = 0;
        for Entry { connection, .. } in entries {
            // Quinn knows none of those that were dialled here.
            let Some(ip) = connection.local_ip() else {
                continue;
            };
            if *asked.entry(ip).or_insert_with(|| is_gone(ip)) {
                close(&connection, CloseCode::Done);
                closed += 1;
            }
        }
        closed
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// What each peer showed.
    #[cfg(test)]
    pub(super) fn chains(&self) -> Vec<Vec<CertificateDer<'static>>> {
        let entries = self.lock();
        entries.values().map(|entry| entry.chain.clone()).collect()
    }

    /// Where each leads.
    #[cfg(test)]
    pub(super) fn remotes(&self) -> Vec<SocketAddr> {
        let entries = self.lock();
        let connections = entries.values().map(|entry| &entry.connection);
        connections.map(Connection::remote_address).collect()
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
            vouched,
        }) = entry
        else {
            return false;
        };
        let trust = identity.current();
        let Err(reason) = trust.trust().check(&chain, usage, now) else {
            return vouched.is_some_and(|vouched| unproven(&connection, &vouched));
        };
        close(&connection, code_of(reason));
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

const fn code_of(reason: Untrusted) -> CloseCode {
    match reason {
        Untrusted::Expired => CloseCode::Expired,
        _ => CloseCode::Revoked,
    }
}

/// Closes a connection that nobody vouches for any more.
fn unproven(connection: &Connection, vouched: &Vouched) -> bool {
    let Err(reason) = vouched.check() else {
        return false;
    };
    let addr = connection.remote_address();
    tracing::warn!(%addr, reason, "connection closed: no longer believed");
    close(connection, CloseCode::Unproven);
    true
}

fn peer_chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| *chain)
        .unwrap_or_default()
}
