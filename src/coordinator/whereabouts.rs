use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::seq::IteratorRandom;

use crate::identity::{NodeId, NodeUri};
use crate::proto::limit::{MAX_CONNECTIONS, MAX_NODES_PER_MEET};
use crate::proto::wire::Neighbour;

/// A worker that has not said for so long where it is, is not named any more. They say so about
/// once a minute.
const KEPT: Duration = Duration::from_secs(600);

/// Where workers listen, of those that were dialled there.
#[derive(Debug, Default)]
pub(super) struct Whereabouts(Mutex<BTreeMap<NodeId, Place>>);

#[derive(Debug)]
struct Place {
    uri: NodeUri,
    addr: SocketAddr,
    at: Instant,
}

impl Whereabouts {
    /// A worker says that it listens at `addr`; `reached` says whether a dial there found it, if
    /// that was tried. An address that nobody has dialled yet is not believed.
    pub(super) fn note(&self, uri: &NodeUri, addr: SocketAddr, reached: Option<bool>) {
        let (node, at) = (uri.id(), Instant::now());
        let mut places = self.lock();
        let known = places.get(&node).is_some_and(|place| place.addr == addr);
        let believed = reached.unwrap_or(known);
        if !believed {
            places.remove(&node);
            return;
        }
        if places.len() >= MAX_CONNECTIONS && !places.contains_key(&node) {
            places.retain(|_, place| at.duration_since(place.at) < KEPT);
            if places.len() >= MAX_CONNECTIONS {
                return;
            }
        }
        let uri = uri.clone();
        places.insert(node, Place { uri, addr, at });
    }

    /// Nobody can dial it, or it has left.
    pub(super) fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// Where it listens, if it has said so lately and a dial there found it.
    pub(super) fn of(&self, node: NodeId) -> Option<SocketAddr> {
        let places = self.lock();
        let place = places.get(&node)?;
        (place.at.elapsed() < KEPT).then_some(place.addr)
    }

    /// Some workers that are there.
    pub(super) fn some(&self, but: NodeId) -> Vec<Neighbour> {
        let now = Instant::now();
        let places = self.lock();
        let there = places
            .iter()
            .filter(|(node, place)| **node != but && now.duration_since(place.at) < KEPT);
        let there = there.map(|(_, place)| Neighbour {
            uri: place.uri.clone(),
            addr: place.addr,
        });
        there.sample(&mut rand::rng(), MAX_NODES_PER_MEET)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;

    fn uri(n: usize) -> NodeUri {
        NodeUri::new("c", Role::Worker, &format!("w{n}")).expect("a URI")
    }

    #[test]
    fn only_those_that_were_reached_are_named() {
        let places = Whereabouts::default();
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let named = || {
            let named = places.some(uri(0).id()).into_iter();
            named.map(|node| node.addr.port()).collect::<Vec<_>>()
        };
        places.note(&uri(1), addr(1), None);
        assert!(named().is_empty(), "nobody has dialled it");
        places.note(&uri(1), addr(1), Some(true));
        assert_eq!(named(), [1]);
        places.note(&uri(1), addr(1), None);
        assert_eq!(named(), [1], "it was reached there before");
        places.note(&uri(1), addr(2), None);
        assert!(named().is_empty(), "somewhere else it was not");
        places.note(&uri(1), addr(2), Some(true));
        places.note(&uri(1), addr(2), Some(false));
        assert!(named().is_empty());
        for n in 0..2 * MAX_NODES_PER_MEET {
            places.note(&uri(n), addr(n as u16 + 1), Some(true));
        }
        assert_eq!(named().len(), MAX_NODES_PER_MEET);
        assert!(!named().contains(&1), "the asker itself");
        places.forget(uri(1).id());
        assert!(!places.lock().contains_key(&uri(1).id()));
    }
}
