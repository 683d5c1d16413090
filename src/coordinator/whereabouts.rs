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

/// A worker that nobody has tried to dial yet is named for so long: those who start together are to
/// get bytes from each other at once, and who is named in vain costs an asker a moment.
const UNTRIED_KEPT: Duration = Duration::from_secs(10);

/// Where workers listen.
#[derive(Debug, Default)]
pub(super) struct Whereabouts(Mutex<BTreeMap<NodeId, Place>>);

#[derive(Debug)]
struct Place {
    uri: NodeUri,
    addr: SocketAddr,
    at: Instant,
    /// What came of a dial there; `None` before one.
    reached: Option<bool>,
}

impl Place {
    /// Whether others may be pointed at it.
    fn is_good(&self, now: Instant) -> bool {
        let kept = match self.reached {
            Some(true) => KEPT,
            Some(false) => Duration::ZERO,
            None => UNTRIED_KEPT,
        };
        now.duration_since(self.at) < kept
    }
}

impl Whereabouts {
    /// A worker's packets come from `addr`, and it gives bytes to others there, for all that it
    /// knows. What it says itself, and what came of a dial, counts more.
    pub(super) fn hear(&self, uri: &NodeUri, addr: SocketAddr) {
        let mut places = self.lock();
        if !places.contains_key(&uri.id()) {
            Self::put(&mut places, uri, addr, None);
        }
    }

    /// A worker says that it listens at `addr`; `reached` says whether a dial there found it, if
    /// that was tried.
    pub(super) fn note(&self, uri: &NodeUri, addr: SocketAddr, reached: Option<bool>) {
        let mut places = self.lock();
        let known = places.get(&uri.id()).filter(|place| place.addr == addr);
        match (reached, known.map(|place| place.reached)) {
            // It goes on as it was; one that nobody has tried does not become younger.
            (None, Some(Some(before))) => Self::put(&mut places, uri, addr, Some(before)),
            (None, Some(None)) => {}
            (tried, _) => Self::put(&mut places, uri, addr, tried),
        }
    }

    fn put(
        places: &mut BTreeMap<NodeId, Place>,
        uri: &NodeUri,
        addr: SocketAddr,
        reached: Option<bool>,
    ) {
        let (node, at) = (uri.id(), Instant::now());
        if places.len() >= MAX_CONNECTIONS && !places.contains_key(&node) {
            places.retain(|_, place| at.duration_since(place.at) < KEPT);
            if places.len() >= MAX_CONNECTIONS {
                return;
            }
        }
        let uri = uri.clone();
        let place = Place {
            uri,
            addr,
            at,
            reached,
        };
        places.insert(node, place);
    }

    /// It gives nothing, or has left.
    pub(super) fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// Where a worker listens that others may be pointed at.
    pub(super) fn of(&self, node: NodeId) -> Option<SocketAddr> {
        let places = self.lock();
        let place = places.get(&node)?;
        place.is_good(Instant::now()).then_some(place.addr)
    }

    /// Some workers that are there.
    pub(super) fn some(&self, but: NodeId) -> Vec<Neighbour> {
        let now = Instant::now();
        let places = self.lock();
        let there = places.iter().filter(|(node, place)| {
            **node != but && place.reached == Some(true) && place.is_good(now)
        });
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
    fn a_worker_that_asks_is_named_until_a_dial_has_failed() {
        let places = Whereabouts::default();
        let (worker, addr) = (uri(1), SocketAddr::from(([10, 0, 0, 1], 1)));
        let elsewhere = SocketAddr::from(([10, 0, 0, 1], 2));
        places.hear(&worker, addr);
        assert_eq!(places.of(worker.id()), Some(addr));
        assert!(places.some(uri(0).id()).is_empty(), "no member yet");
        places.note(&worker, addr, None);
        assert_eq!(places.of(worker.id()), Some(addr), "it was not tried");
        let age = |by: Duration| {
            let mut places = places.lock();
            let place = places.get_mut(&worker.id()).expect("known");
            place.at = place.at.checked_sub(by).expect("a clock that has run");
        };
        age(UNTRIED_KEPT);
        places.hear(&worker, addr);
        assert_eq!(places.of(worker.id()), None, "nobody has tried it for long");
        places.note(&worker, elsewhere, Some(true));
        places.hear(&worker, addr);
        assert_eq!(places.of(worker.id()), Some(elsewhere), "as it says itself");
        places.note(&worker, elsewhere, Some(false));
        places.hear(&worker, addr);
        assert_eq!(places.of(worker.id()), None);
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
