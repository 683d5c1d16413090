//! How many bytes of definitions went to which node, and came from which.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{EXCHANGE_OVER, MAX_MEMBERS};

/// Bytes of bodies, headers and whatever was sent again not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Bytes {
    /// To the node.
    pub(super) given: u64,
    /// From the node, right ones or not.
    pub(super) taken: u64,
}

/// See the [module](self). Of more than [`MAX_MEMBERS`] nodes the one with which the least was
/// exchanged is forgotten.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    nodes: Mutex<BTreeMap<NodeId, Bytes>>,
    /// When bytes went to or came from a node last, microseconds; 0: never.
    last: AtomicU64,
}

impl Traffic {
    /// Whether bytes went to other workers, or came from them, a moment ago.
    pub(super) fn flows(&self, now: Time) -> bool {
        let last = Time::from_micros(self.last.load(Ordering::Relaxed));
        last > Time::default() && now.since(last) < EXCHANGE_OVER
    }

    pub(super) fn gave(&self, node: NodeId, len: u64) {
        metrics::counter!("larder_blob_bytes_given_total").increment(len);
        self.count(node, clock::now(), |bytes| {
            bytes.given = bytes.given.saturating_add(len)
        });
    }

    pub(super) fn took(&self, node: NodeId, len: u64) {
        metrics::counter!("larder_blob_bytes_taken_total").increment(len);
        self.count(node, clock::now(), |bytes| {
            bytes.taken = bytes.taken.saturating_add(len)
        });
    }

    /// Each node that has been counted.
    pub(super) fn all(&self) -> BTreeMap<NodeId, Bytes> {
        self.lock().clone()
    }

    fn count(&self, node: NodeId, now: Time, change: impl FnOnce(&mut Bytes)) {
        self.last.fetch_max(now.as_micros(), Ordering::Relaxed);
        let mut nodes = self.lock();
        if nodes.len() >= MAX_MEMBERS && !nodes.contains_key(&node) {
            let least = nodes
                .iter()
                .min_by_key(|(_, b)| b.given.saturating_add(b.taken));
            if let Some(&least) = least.map(|(node, _)| node) {
                nodes.remove(&least);
            }
        }
        change(nodes.entry(node).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Bytes>> {
        // It only counts: a panic elsewhere leaves it usable.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_and_comes_is_counted_for_each_node_and_the_least_is_forgotten() {
        let traffic = Traffic::default();
        assert!(!traffic.flows(clock::now()));
        let node = |n: usize| NodeId::of_addr(&n.to_string());
        for n in 0..MAX_MEMBERS {
            traffic.gave(node(n), 10);
            traffic.took(node(n), if n == 7 { 1 } else { 2 });
        }
        traffic.gave(node(0), 5);
        assert!(traffic.flows(clock::now()));
        assert!(!traffic.flows(clock::now() + EXCHANGE_OVER));
        let first = Bytes {
            given: 15,
            taken: 2,
        };
        assert_eq!(traffic.all()[&node(0)], first);
        traffic.took(node(MAX_MEMBERS), 3);
        let all = traffic.all();
        assert_eq!(all.len(), MAX_MEMBERS);
        assert!(!all.contains_key(&node(7)));
        assert_eq!(all[&node(MAX_MEMBERS)].taken, 3);
    }
}
