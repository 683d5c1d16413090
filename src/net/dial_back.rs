use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::{Endpoint, Link, Port, Wanted};
use crate::identity::NodeId;
use crate::proto::limit::{DIAL_BACK_EVERY, GOSSIP_DIAL_TIMEOUT, MAX_CONNECTIONS, MAX_DIAL_BACKS};

/// Finds out whether a worker can be reached where it says that it listens: from a port of its
/// own, since a NAT lets packets in from where the worker itself has sent some.
#[derive(Debug)]
pub struct DialBack {
    /// Whose identity is shown.
    own: Endpoint,
    /// Made with the first dial.
    endpoint: Mutex<Option<Endpoint>>,
    room: Semaphore,
    last: Mutex<BTreeMap<NodeId, Instant>>,
}

impl DialBack {
    /// Dials as `own` does.
    pub fn new(own: &Endpoint) -> Self {
        Self {
            own: own.clone(),
            endpoint: Mutex::default(),
            room: Semaphore::new(MAX_DIAL_BACKS),
            last: Mutex::default(),
        }
    }

    /// Whether `node` answers at `addr`; `None` when that is not tried now.
    pub async fn reaches(&self, node: NodeId, addr: SocketAddr) -> Option<bool> {
        let _permit = self.room.try_acquire().ok()?;
        if !self.may(node) {
            return None;
        }
        let endpoint = self.endpoint()?;
        let link = Link::new(&endpoint, addr.to_string(), Wanted::Node(node));
        let dialled = timeout(GOSSIP_DIAL_TIMEOUT, link.connect(Some(Duration::ZERO))).await;
        Some(matches!(dialled, Ok(Ok(()))))
    }

    fn may(&self, node: NodeId) -> bool {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= MAX_CONNECTIONS {
            last.retain(|_, at| now.duration_since(*at) < DIAL_BACK_EVERY);
        }
        let recent = last.get(&node).copied();
        if recent.is_some_and(|at| now.duration_since(at) < DIAL_BACK_EVERY)
            || last.len() >= MAX_CONNECTIONS
        {
            return false;
        }
        last.insert(node, now);
        true
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let mut endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &self.own.0;
        let ip = shared.addr().ip();
        // Its address may be gone with the one of the node.
        if endpoint
            .as_ref()
            .is_none_or(|own| own.local_addr().ip() != ip)
        {
            let addr = SocketAddr::new(ip, 0);
            let port = Port::bind(addr, shared.identity.uri().cluster());
            let started = port.and_then(|port| {
                let identity = shared.identity.clone();
                Endpoint::start(&shared.handle, port, identity, shared.options.clone())
            });
            match started {
                Ok(started) => *endpoint = Some(started),
                Err(error) => tracing::warn!(%error, "no port to dial workers back from"),
            }
        }
        endpoint.clone()
    }
}
