//! Connections with other workers, and what is known of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::identity::{NodeId, NodeUri};
use crate::net::{Channel, Link};
use crate::proto::gossip::{Member, Standing};
use crate::proto::limit::{MAX_GOSSIP_DIALS, MAX_GOSSIP_QUEUE, MAX_MEMBERS};

/// Links to nodes that are no members (yet): those that a new node announces itself to. The oldest
/// goes first.
const MAX_STRANGERS: usize = 16;

/// A worker that this one knows.
#[derive(Debug, Clone)]
pub(in crate::worker) struct Known {
    /// Who.
    pub(in crate::worker) id: NodeId,
    /// What its certificate says, if this node has seen that or was told.
    pub(in crate::worker) uri: Option<NodeUri>,
    /// Where.
    pub(in crate::worker) addr: SocketAddr,
    /// How it stands.
    pub(in crate::worker) standing: Standing,
    /// The round trip time of a connection that is there.
    pub(in crate::worker) rtt: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    channels: BTreeMap<NodeId, Vec<Channel>>,
    /// What waits for a dial that is under way.
    waiting: BTreeMap<NodeId, VecDeque<Bytes>>,
    strangers: VecDeque<(Member, Link)>,
    /// Whom this node is attached to, being a leaf.
    attached: BTreeMap<NodeId, Link>,
    /// Channels of leaves.
    leaves: BTreeSet<usize>,
    uris: BTreeMap<NodeId, NodeUri>,
}

/// A connection that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// There is no other with that node.
    pub(super) was_last: bool,
    /// The node is a leaf.
    pub(super) was_leafs: bool,
    /// This node was attached over it.
    pub(super) was_attached: bool,
}

impl Book {
    /// A connection; gives what has waited for it.
    pub(super) fn up(&mut self, channel: &Channel) -> VecDeque<Bytes> {
        let node = channel.uri().id();
        self.learn(channel.uri().clone());
        self.channels.entry(node).or_default().push(channel.clone());
        self.waiting.remove(&node).unwrap_or_default()
    }

    /// What the end of a connection means.
    pub(super) fn down(&mut self, channel: &Channel) -> Ended {
        let node = channel.uri().id();
        if let Some(channels) = self.channels.get_mut(&node) {
            channels.retain(|other| other.id() != channel.id());
            if channels.is_empty() {
                self.channels.remove(&node);
            }
        }
        Ended {
            was_last: !self.channels.contains_key(&node),
            was_leafs: self.leaves.remove(&channel.id()),
            was_attached: channel.is_dialled() && self.attached.remove(&node).is_some(),
        }
    }

    /// The newest connection with a node.
    pub(super) fn channel(&self, node: NodeId) -> Option<Channel> {
        let channels = self.channels.get(&node)?;
        channels.iter().rfind(|channel| channel.is_open()).cloned()
    }

    pub(super) fn channels(&self) -> Vec<Channel> {
        self.channels.values().flatten().cloned().collect()
    }

    /// A packet waits for a connection; whether that is to be dialled now.
    pub(super) fn wait(&mut self, node: NodeId, packet: Bytes) -> bool {
        let dials = self.waiting.len();
        if let Some(waiting) = self.waiting.get_mut(&node) {
            if waiting.len() >= MAX_GOSSIP_QUEUE {
                waiting.pop_front();
            }
            waiting.push_back(packet);
            return false;
        }
        if dials >= MAX_GOSSIP_DIALS {
            metrics::counter!("larder_gossip_undialled_total").increment(1);
            return false;
        }
        self.waiting.insert(node, VecDeque::from([packet]));
        true
    }

    /// A dial has ended. What waited for it leaves when the connection says that it is up.
    pub(super) fn dialled(&mut self, node: NodeId, up: bool) {
        if !up {
            self.waiting.remove(&node);
            self.forget_link(node);
        } else if let Some(channel) = self.channel(node) {
            // It was up before anything waited.
            for packet in self.waiting.remove(&node).unwrap_or_default() {
                let _ = channel.send(packet);
            }
        }
    }

    /// The link to a node that is no member, at this address.
    pub(super) fn stranger(&mut self, node: Member, fresh: impl FnOnce() -> Link) -> Link {
        let is_it = |known: &&(Member, Link)| known.0.id == node.id && known.0.addr == node.addr;
        if let Some((_, link)) = self.strangers.iter().find(is_it) {
            return link.clone();
        }
        let link = fresh();
        self.strangers.push_back((node, link.clone()));
        if self.strangers.len() > MAX_STRANGERS {
            self.strangers.pop_front();
        }
        link
    }

    pub(super) fn forget_link(&mut self, node: NodeId) {
        self.strangers.retain(|(member, _)| member.id != node);
    }

    pub(super) fn attach(&mut self, node: NodeId, link: Link) {
        self.attached.insert(node, link);
    }

    pub(super) fn detach(&mut self, node: NodeId) {
        self.attached.remove(&node);
    }

    /// Notes that a leaf is at the other end; false if that connection is gone.
    pub(super) fn is_leafs(&mut self, node: NodeId, channel: usize) -> bool {
        let channels = self.channels.get(&node);
        let is_there = channels.is_some_and(|all| all.iter().any(|other| other.id() == channel));
        if is_there {
            self.leaves.insert(channel);
        }
        is_there
    }

    /// A node's id is the hash of its URI, so whoever says so is right.
    pub(super) fn learn(&mut self, uri: NodeUri) {
        if self.uris.len() < MAX_MEMBERS || self.uris.contains_key(&uri.id()) {
            self.uris.insert(uri.id(), uri);
        }
    }

    /// When there are too many, forgets the names of nodes that are not there.
    pub(super) fn keep_names(&mut self, is_there: impl Fn(NodeId) -> bool) {
        if self.uris.len() >= MAX_MEMBERS {
            let channels = &self.channels;
            self.uris
                .retain(|node, _| is_there(*node) || channels.contains_key(node));
        }
    }

    pub(super) fn uri(&self, node: NodeId) -> Option<&NodeUri> {
        self.uris.get(&node)
    }

    pub(super) fn name(&self, node: NodeId) -> Option<String> {
        self.uri(node).map(|uri| uri.name().to_owned())
    }

    /// A round trip that nearly all connections stay below.
    pub(super) fn slow_round_trip(&self) -> Option<Duration> {
        let mut all: Vec<_> = self.channels.values().flatten().map(Channel::rtt).collect();
        all.sort_unstable();
        let place = (all.len() * 95 / 100).min(all.len().saturating_sub(1));
        all.get(place).copied()
    }

    pub(super) fn known(&self, standings: &[(Member, Standing)]) -> Vec<Known> {
        let known = |(member, standing): &(Member, Standing)| Known {
            id: member.id,
            uri: self.uri(member.id).cloned(),
            addr: member.addr,
            standing: *standing,
            rtt: self
                .channel(member.id)
                .filter(|_| *standing != Standing::Down)
                .map(|channel| channel.rtt()),
        };
        standings.iter().map(known).collect()
    }
}
