use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::Node;
use super::engine::unwritten;
use super::forward::{confused, to_coordinator};
use super::traffic::Bytes as Exchanged;
use crate::answer::{Answer, Failure, Freshness, Query, RunToken, Target};
use crate::api::{Api, Reply};
use crate::bridge::http;
use crate::identity::Role;
use crate::proto::Time;
use crate::proto::wire::{
    GetLog, GetPins, Have, List, Listing, Log, Pinned, Pins, Publish, PublishedRev, PutBlob,
    Request, Response, Unpin,
};
use crate::proto::worker::Sight;
use crate::spec::{Spec, SpecHash, SpecName, Syntax};
use crate::{clock, daemon};

impl Node {
    /// What this worker thinks of itself.
    pub(super) fn status_json(&self) -> serde_json::Value {
        let engine = self.engine();
        let (mark, rollback, reads, sources, lease, brought_by, via, unheard) = {
            let machine = engine.machine();
            let now = clock::now();
            let sources = machine.sources(now);
            let lease = match machine.keeps_replica() {
                true => lease_json(machine.sight(), now),
                false => json!("off"),
            };
            let (mark, rollback) = (machine.mark(), machine.rollback());
            let (reads, brought_by) = (machine.reads(), machine.brought_by());
            let via = machine.via().map(str::to_owned);
            let unheard = machine.is_unheard();
            (
                mark, rollback, reads, sources, lease, brought_by, via, unheard,
            )
        };
        let links = engine.coordinator_links();
        let cut_off = unheard || links.iter().all(|link| link.link().rtt().is_none());
        let links = engine.coordinator_links().into_iter();
        let up = links
            .map(|link| link.link().clone())
            .chain(engine.peer_links())
            .filter_map(|link| {
                let rtt = link.rtt()?;
                let uri = link.peer()?.to_string();
                let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                Some(json!({ "addr": link.addr(), "uri": uri, "rtt_us": rtt_us }))
            })
            .collect::<Vec<_>>();
        let traffic = engine.traffic().all();
        let total = |of: fn(&Exchanged) -> u64| traffic.values().map(of).sum::<u64>();
        json!({
            "role": "worker",
            "uri": engine.endpoint().identity().uri(),
            "version": daemon::VERSION,
            "listen": engine.endpoint().local_addr().to_string(),
            "uptime_s": self.started().elapsed().as_secs(),
            "catalog": mark.map(|mark| mark.catalog),
            "epoch": mark.map(|mark| mark.epoch),
            "high_water": mark.map(|mark| mark.rev),
            "high_water_written": !engine.is_unwritten(),
            "quarantined": rollback.map(|(known, got)| json!({ "known": known, "got": got })),
            "lease": lease,
            "path": match &via {
                Some(via) => format!("via {via}"),
                None if cut_off => "none".into(),
                None => "direct".into(),
            },
            "via": via,
            "carried": engine.relayed().carried(),
            "catalog_from": brought_by.map(|hop| hop.to_string()),
            "freshness": self.default_freshness().to_string(),
            "reads_in_progress": reads,
            "connections": engine.endpoint().connections(),
            "up": up,
            "sources": sources,
            "given_bytes": total(|bytes| bytes.given),
            "taken_bytes": total(|bytes| bytes.taken),
            "store": self.store_json(),
        })
    }
}

/// What readers may answer without asking: until when, from what, and what is about to change.
fn lease_json(sight: &Sight, now: Time) -> serde_json::Value {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let replica = sight.replica();
    json!({
        "left_ms": millis(sight.lease_left(now)),
        "revision": replica.map(|replica| replica.rev()),
        "names": replica.map(|replica| replica.records().names()),
        "floor": sight.floor().map(|floor| floor.rev),
        "marks": sight.marks().len(),
        "age_ms": sight.age(now).map(millis),
    })
}

impl Node {
    fn store_json(&self) -> serde_json::Value {
        let store = self.engine().store();
        let quarantined = store.quarantined().map(|blobs| {
            blobs
                .iter()
                .map(|blob| json!({ "hash": blob.hash, "at_unix_ms": blob.at_unix_ms, "reason": blob.reason }))
                .collect::<Vec<_>>()
        });
        json!({
            "dir": self.store_dir(),
            "live_bytes": store.live_bytes(),
            "disk_bytes": store.size_on_disk().ok(),
            "damaged": quarantined.unwrap_or_default(),
        })
    }
}

impl Api for Arc<Node> {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        Box::pin(async move {
            let mut results = self.engine().get_all(vec![query]).await;
            match results.pop() {
                Some(Ok(answer)) => Ok(answer),
                Some(Err(error)) => {
                    let mut failure = Failure::from(error);
                    failure.untrusted = self.engine().only_untrusted(&failure.hops);
                    Err(failure)
                }
                None => Err(confused()),
            }
        })
    }

    fn get_as_configured(
        &self,
        name: SpecName,
        deadline: Duration,
    ) -> Reply<'_, (Answer, Freshness)> {
        let freshness = self.default_freshness();
        let query = Query {
            target: Target::Name(name),
            freshness,
            deadline,
        };
        Box::pin(async move { Ok((self.get(query).await?, freshness)) })
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        Box::pin(async move {
            match self.forward(Request::List(list), Bytes::new()).await? {
                Response::Listing(listing) => Ok(listing),
                _ => Err(confused()),
            }
        })
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        Box::pin(async move {
            match self.forward(Request::GetLog(get), Bytes::new()).await? {
                Response::Log(log) => Ok(log),
                _ => Err(confused()),
            }
        })
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async move { Ok(self.status_json()) })
    }

    fn peers(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async move { Ok(self.peers_json().await) })
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        Box::pin(self.newest_token())
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        Box::pin(self.pin_token(token, keep))
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        Box::pin(async move {
            let request = Request::Unpin(Unpin { id });
            match self.forward(request, Bytes::new()).await? {
                Response::Pinned(pinned) => Ok(pinned),
                _ => Err(confused()),
            }
        })
    }

    fn pins(&self) -> Reply<'_, Pins> {
        Box::pin(async move {
            let request = Request::GetPins(GetPins {});
            match self.forward(request, Bytes::new()).await? {
                Response::Pins(pins) => Ok(pins),
                _ => Err(confused()),
            }
        })
    }

    fn missing(&self, hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        Box::pin(async move {
            let request = Request::Have(Have { hashes });
            match self.forward(request, Bytes::new()).await? {
                Response::Missing(missing) => Ok(missing.hashes),
                _ => Err(confused()),
            }
        })
    }

    fn put_body(&self, spec: Spec, syntax: Syntax) -> Reply<'_, ()> {
        Box::pin(async move {
            syntax
                .check(spec.bytes(), crate::spec::MAX_SPEC_LEN)
                .map_err(daemon::bad_syntax)?;
            let (hash, len) = (spec.hash(), spec.len());
            let request = Request::PutBlob(PutBlob { hash, len });
            match self.forward(request, spec.into_bytes()).await? {
                Response::Stored(()) => Ok(()),
                _ => Err(confused()),
            }
        })
    }

    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        Box::pin(async move {
            match self
                .forward(Request::Publish(publish), Bytes::new())
                .await?
            {
                Response::Published(published) => Ok(published),
                _ => Err(confused()),
            }
        })
    }
}

impl super::Worker {
    /// What the coordinator says of itself.
    pub(crate) fn remote_status(&self) -> Reply<'_, serde_json::Value> {
        let node = &self.0;
        Box::pin(async move {
            match node.forward(Request::GetStatus, Bytes::new()).await? {
                Response::Status(status) => {
                    serde_json::from_str(&status.json).map_err(|_| confused())
                }
                _ => Err(confused()),
            }
        })
    }
}

impl Node {
    pub(super) async fn forward(&self, request: Request, body: Bytes) -> Result<Response, Failure> {
        to_coordinator(self.engine(), &self.preferred, &request, body).await
    }
}

/// The worker on its local socket.
pub(super) struct Local(pub(super) Arc<Node>);

impl http::Node for Local {
    fn api(&self) -> &dyn Api {
        &self.0
    }

    /// A worker publishes only if its certificate says publisher.
    fn writable(&self) -> bool {
        self.0.engine().endpoint().identity().uri().role() == Role::Publisher
    }

    fn max_spec_len(&self) -> u64 {
        crate::spec::MAX_SPEC_LEN
    }

    fn deadline(&self) -> Duration {
        self.0.deadline
    }

    /// A worker can serve what it can prove as soon as its store is open.
    fn ready(&self) -> Result<(), String> {
        let engine = self.0.engine();
        let rollback = engine.machine().rollback();
        match rollback {
            None if engine.is_unwritten() => Err(unwritten().to_string()),
            None => Ok(()),
            Some((known, got)) => Err(format!(
                "the coordinator went back to revision {got} after {known} had been seen"
            )),
        }
    }

    fn metrics(&self) -> String {
        daemon::metrics()
    }
}
