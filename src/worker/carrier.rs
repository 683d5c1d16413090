use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use crate::net::{Carrier, Channel, Relay};

/// Sorts the packets of other workers: those of connections that are carried, and the rest.
#[derive(Debug)]
pub(super) struct Packets {
    relay: Arc<Relay>,
    rest: OnceLock<Arc<dyn Carrier>>,
    /// Connections with workers that are up. Bounded as connections are.
    channels: Mutex<BTreeMap<usize, Channel>>,
}

impl Packets {
    /// What is not carried goes nowhere yet.
    pub(super) fn new(relay: Arc<Relay>) -> Self {
        Self {
            relay,
            rest: OnceLock::new(),
            channels: Mutex::default(),
        }
    }

    /// What is not carried goes to `rest` from now on. It counts once, and before any connection
    /// is up.
    pub(super) fn give_rest_to(&self, rest: Arc<dyn Carrier>) {
        let _ = self.rest.set(rest);
    }

    /// The channel of that number, while it is up.
    pub(super) fn channel(&self, id: usize) -> Option<Channel> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier for Packets {
    fn up(&self, channel: &Channel) {
        self.lock().insert(channel.id(), channel.clone());
        if let Some(rest) = self.rest.get() {
            rest.up(channel);
        }
    }

    fn packet(&self, channel: &Channel, packet: Bytes) {
        if Relay::is_relayed(&packet) {
            self.relay.packet(channel, packet);
        } else if let Some(rest) = self.rest.get() {
            rest.packet(channel, packet);
        }
    }

    fn down(&self, channel: &Channel) {
        self.lock().remove(&channel.id());
        if let Some(rest) = self.rest.get() {
            rest.down(channel);
        }
    }
}
