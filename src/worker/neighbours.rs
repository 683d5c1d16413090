//! What an operator sees of the other workers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Node;
use super::members::Known;
use super::traffic::Bytes as Exchanged;
use crate::identity::{NodeId, NodeUri};
use crate::net::Patience;
use crate::proto::gossip::Standing;
use crate::proto::wire::{Request, Response};

/// Members that are asked how they are, those with a connection and a short way first; of the
/// others only what this node knows itself is shown.
const MAX_ASKED: usize = 64;

/// Members that are asked at once.
const ASKED_AT_ONCE: usize = 16;

/// How long one may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(1);

impl Node {
    /// The workers that this one knows, with what they say of themselves.
    pub(super) async fn peers_json(self: &Arc<Self>) -> Value {
        let Some(members) = self.members() else {
            return json!({ "gossip": "off", "members": [] });
        };
        let mut known = members.known();
        known.sort_by_key(|known| (known.standing, known.rtt.is_none(), known.rtt, known.id));
        let asked = known.iter().filter(|known| known.standing == Standing::Up);
        let asked: Vec<NodeId> = asked.map(|known| known.id).take(MAX_ASKED).collect();
        let mut statuses = self.statuses(asked).await;
        let traffic = self.engine().traffic().all();
        let rows: Vec<Value> = known
            .iter()
            .map(|known| {
                let at = statuses.iter().position(|(id, _)| *id == known.id);
                let status = at.map(|at| statuses.swap_remove(at).1);
                let exchanged = traffic.get(&known.id).copied().unwrap_or_default();
                row(known, exchanged, status.as_ref())
            })
            .collect();
        let own = members.own();
        json!({
            "gossip": "on",
            "node": self.engine().endpoint().identity().uri().name(),
            "addr": own.map(|(own, _)| own.addr.to_string()),
            "reachable": own.map(|(_, is_leaf)| !is_leaf),
            "generation": own.map(|(own, _)| own.generation),
            "members": rows,
        })
    }

    async fn statuses(self: &Arc<Self>, asked: Vec<NodeId>) -> Vec<(NodeId, Value)> {
        let room = Arc::new(Semaphore::new(ASKED_AT_ONCE));
        let mut tasks = JoinSet::new();
        for id in asked {
            let (node, room) = (Arc::clone(self), Arc::clone(&room));
            tasks.spawn(async move {
                let _permit = room.acquire().await.ok()?;
                let status = timeout(PATIENCE, node.status_of(id)).await;
                Some((id, status.ok()??))
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    async fn status_of(&self, id: NodeId) -> Option<Value> {
        let link = self.engine().peer_link(id)?;
        let call = link.call(&Request::GetStatus, Bytes::new(), Patience::peer());
        match call.await.ok()?.next().await.ok()? {
            Response::Status(status) => serde_json::from_str(&status.json).ok(),
            _ => None,
        }
    }
}

/// One member. What it says of itself is its own word.
fn row(known: &Known, exchanged: Exchanged, status: Option<&Value>) -> Value {
    let uri = known.uri.as_ref();
    let said = |pointer: &str| status.and_then(|status| status.pointer(pointer)).cloned();
    json!({
        "name": uri.map_or_else(|| known.id.to_string(), |uri| NodeUri::name(uri).to_owned()),
        "uri": uri,
        "node": known.id.to_string(),
        "addr": known.addr.to_string(),
        "state": known.standing.as_str(),
        "rtt_us": known.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        "revision": said("/high_water"),
        "coordinator": said("/path"),
        "given": exchanged.given,
        "taken": exchanged.taken,
    })
}
