use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::call::{CoordinatorLink, failed};
use super::carrier::Packets;
use crate::net::{Carrier, Channel, Endpoint, Gone, Link, Relay, RelayLimits, RelayPath, Reply};
use crate::proto::code::{Code, Refusal};
use crate::proto::worker::Event;

/// The way to the coordinator over another worker while there is one, and what this worker carries
/// for others.
#[derive(Debug)]
pub(super) struct Relayed {
    endpoint: Endpoint,
    relay: Arc<Relay>,
    packets: Arc<Packets>,
    link: Mutex<Option<Arc<CoordinatorLink>>>,
}

impl Relayed {
    /// Takes the packets of `endpoint`.
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        let relay = Arc::new(Relay::new(RelayLimits::default()));
        let packets = Arc::new(Packets::new(Arc::clone(&relay)));
        endpoint.carry(packets.clone());
        Self {
            endpoint: endpoint.clone(),
            relay,
            packets,
            link: Mutex::default(),
        }
    }

    /// Packets that are not carried go to `rest` from now on.
    pub(super) fn give_rest_to(&self, rest: Arc<dyn Carrier>) {
        self.packets.give_rest_to(rest);
    }

    /// The link that goes over another worker, if one carries it.
    pub(super) fn link(&self) -> Option<Arc<CoordinatorLink>> {
        self.lock().clone()
    }

    /// How many ways of others this worker carries.
    pub(super) fn carried(&self) -> usize {
        self.relay.carried()
    }

    /// Opens a way over the worker at `peer` and keeps it until this is dropped, or that worker
    /// carries nothing any more. What becomes of it goes to `sink`.
    pub(super) async fn keep(&self, peer: &Link, sink: impl Fn(Event)) {
        let mut path = match RelayPath::open(&self.relay, &self.endpoint, peer).await {
            Ok(path) => path,
            Err(error) => return sink(failed(error.into())),
        };
        let (addr, via) = (path.to().to_string(), path.via().name().to_owned());
        let link = Arc::new(CoordinatorLink::relayed(path.endpoint(), &addr, &via));
        if let Err(error) = link.link().connect(Some(Duration::ZERO)).await {
            return sink(failed(error.into()));
        }
        tracing::info!(via, addr, "the coordinator is reached over another worker");
        metrics::gauge!("larder_relayed").set(1);
        *self.lock() = Some(Arc::clone(&link));
        let shown = Shown {
            relayed: self,
            link,
        };
        sink(Event::RelayUp { addr, via });
        let ended = path.ended().await;
        drop(shown);
        sink(failed(ended.into()));
    }

    /// Carries the packets of the worker on connection `channel` to the coordinator at `to`.
    pub(super) async fn carry(
        &self,
        channel: usize,
        to: Option<SocketAddr>,
        reply: &mut Reply,
    ) -> Result<(), Gone> {
        let no = |code, message: &str| Refusal::new(code, message);
        let Some(to) = to else {
            let message = "this worker does not reach the coordinator directly itself";
            return reply.refuse(&no(Code::NoCatalog, message)).await;
        };
        let Some(channel) = self.channel(channel) else {
            let message = "this connection takes no packets yet";
            return reply.refuse(&no(Code::Busy, message)).await;
        };
        // On a socket for both families an address may be written as one of the newer.
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let from = self.endpoint.local_addr().ip();
        self.relay.carry(&channel, from, to, reply).await
    }

    fn channel(&self, id: usize) -> Option<Channel> {
        self.packets.channel(id)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<CoordinatorLink>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link that others find; also one whose call is cancelled is taken away.
struct Shown<'a> {
    relayed: &'a Relayed,
    link: Arc<CoordinatorLink>,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut link = self.relayed.lock();
        // A newer one may have come meanwhile.
        if link.take_if(|link| Arc::ptr_eq(link, &self.link)).is_some() {
            metrics::gauge!("larder_relayed").set(0);
        }
    }
}

#[cfg(test)]
mod tests;
