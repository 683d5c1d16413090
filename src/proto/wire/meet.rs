//! Frames by which workers find each other, and carry each other's packets.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::identity::NodeUri;

/// Says that this worker is there, and asks who else is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meet {
    /// Where it listens, as far as it knows. `None`: at the address that its packets come from,
    /// or nowhere.
    pub addr: Option<SocketAddr>,
    /// Whether the other side shall dial it there, and say in [`Met::reached`] what came of it.
    pub dial_back: bool,
    /// Nobody can dial it, or it gives nothing: it is told of what is new over this connection, and never named to
    /// others.
    pub leaf: bool,
}

/// Answers [`Meet`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    /// Where the asker's packets come from.
    pub seen: SocketAddr,
    /// Whether a dial from a port of its own reached the asker where it says that it listens.
    /// `None`: not tried.
    pub reached: Option<bool>,
    /// Some workers that are there, at most
    /// [`MAX_NODES_PER_MEET`](crate::proto::limit::MAX_NODES_PER_MEET).
    pub nodes: Vec<Neighbour>,
}

/// A worker and where it listens. Nobody proves that: who dials checks the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Who.
    pub uri: NodeUri,
    /// Where.
    pub addr: SocketAddr,
}

/// Asks a worker for its list of members. Answered with [`Members`], one or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetMembers {}

/// One part of a worker's list of members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// A part as [`Gossip::parts`](crate::proto::gossip::Gossip::parts) gives it.
    pub part: Vec<u8>,
    /// URIs of members, where they are known: a node's id is their hash.
    pub uris: Vec<NodeUri>,
    /// Whether another part follows.
    pub more: bool,
}

/// Asks a worker to carry packets between this one and the coordinator, for as long as the stream
/// is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {}

/// Answers [`Relay`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relaying {
    /// Names the flow in each packet of it, on this connection.
    pub flow: u32,
    /// Where they are sent: an address of the coordinator as the answering worker knows it. For
    /// people only; who is there proves itself from end to end.
    pub to: SocketAddr,
}
