use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Node;
use super::uploads::Gate;
use crate::net::{Gone, Peer, Reply, Service, SessionKey};
use crate::proto::code::{Code, Refusal, WireRefusal};
use crate::proto::limit::{MAX_CATALOGS_GIVEN, RECORDS_PER_PART};
use crate::proto::wire::{
    Blob, BlobOf, GetBlob, GetBlobs, GetCatalog, GetDelta, HeadBytes, NoBlobOf, ProofBytes,
    Request, Response, Status,
};
use crate::proto::worker::{Local, not_here};
use crate::spec::{Spec, SpecHash};

/// What a worker gives to others: bytes by hash and its catalog, which prove themselves, and
/// nothing that needs truth.
pub(super) struct Serving {
    node: Arc<Node>,
    gate: Gate,
    /// Whole catalogs that may be under way.
    catalogs: Semaphore,
}

impl Service for Serving {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, peer: Peer, request: Request, _body: Bytes, reply: &mut Reply) {
        // A reader that is gone has nothing to be told.
        let _ = match request {
            Request::GetBlob(get) => self.give(&peer, get, reply).await,
            Request::GetBlobs(get) => self.give_several(&peer, get, reply).await,
            Request::GetDelta(get) => self.give_delta(&get, reply).await,
            Request::GetCatalog(get) => self.give_catalog(&get, reply).await,
            Request::Meet(meet) => match self.node.members() {
                Some(members) => {
                    let met = members.met(&peer, &meet).await;
                    reply.send(&Response::Met(met)).await
                }
                None => reply.refuse(&alone()).await,
            },
            Request::GetMembers(_) => match self.node.members() {
                Some(members) => members.give_list(reply).await,
                None => reply.refuse(&alone()).await,
            },
            Request::Relay(_) => self.carry(&peer, reply).await,
            Request::GetStatus => {
                let json = self.node.status_json().to_string();
                reply.send(&Response::Status(Status { json })).await
            }
            _ => {
                let message = "a worker does not say what is current; ask the coordinator";
                reply.refuse(&Refusal::new(Code::NoCatalog, message)).await
            }
        };
    }
}

fn alone() -> Refusal {
    Refusal::new(
        Code::Busy,
        "this worker does not look for others: `gossip` is off",
    )
}

impl Serving {
    /// Gives at most `upload_limit` bytes per second.
    pub(super) fn new(node: Arc<Node>, upload_limit: Option<u64>) -> Self {
        Self {
            node,
            gate: Gate::new(upload_limit),
            catalogs: Semaphore::new(MAX_CATALOGS_GIVEN),
        }
    }

    async fn carry(&self, peer: &Peer, reply: &mut Reply) -> Result<(), Gone> {
        if !self.node.carries() {
            let message = "this worker carries no packets of others (`relay: off`)";
            return reply.refuse(&Refusal::new(Code::NotAllowed, message)).await;
        }
        let engine = self.node.engine();
        let to = engine.direct_addr();
        engine.relayed().carry(peer.channel, to, reply).await
    }

    async fn give_delta(&self, get: &GetDelta, reply: &mut Reply) -> Result<(), Gone> {
        match self.node.engine().shown().delta(get) {
            Ok(delta) => reply.send(&Response::Delta(delta)).await,
            Err(refusal) => reply.refuse(&refusal).await,
        }
    }

    async fn give_catalog(&self, get: &GetCatalog, reply: &mut Reply) -> Result<(), Gone> {
        let Ok(_permit) = self.catalogs.try_acquire() else {
            let message = "this worker gives its catalog to others already";
            return reply.refuse(&Refusal::new(Code::Busy, message)).await;
        };
        let diff = match self.node.engine().shown().catalog(get) {
            Ok(diff) => diff,
            Err(refusal) => return reply.refuse(&refusal).await,
        };
        metrics::counter!("larder_catalogs_given_total").increment(1);
        let (head, parts) = diff.frames(RECORDS_PER_PART);
        reply.send(&Response::CatalogHead(head)).await?;
        for part in parts {
            reply.send(&Response::CatalogPart(part)).await?;
        }
        Ok(())
    }

    /// Gives what is here, and the rest as it comes.
    async fn give_several(
        &self,
        peer: &Peer,
        get: GetBlobs,
        reply: &mut Reply,
    ) -> Result<(), Gone> {
        if let Err(refusal) = get.check() {
            return reply.refuse(&refusal).await;
        }
        let gone = reply.asker_gone();
        tokio::pin!(gone);
        let mut coming = JoinSet::new();
        for (index, hash) in (0..).zip(get.hashes) {
            let pass = match self.gate.enter(peer.uri.id()) {
                Ok(pass) => pass,
                Err(refusal) => {
                    self.give_part(peer, index, Err(refusal), reply).await?;
                    continue;
                }
            };
            match found(self.node.engine().look(hash).await) {
                Err(refusal) if refusal.code == Code::NotFound && !get.force => {
                    let node = Arc::clone(&self.node);
                    coming.spawn(async move { (index, await_bytes(&node, hash).await, pass) });
                }
                found => {
                    let spec = found.and_then(|spec| pass.take(spec.len()).map(|()| spec));
                    self.give_part(peer, index, spec, reply).await?;
                }
            }
        }
        if !coming.is_empty() {
            reply.send(&Response::Holding(())).await?;
        }
        loop {
            let came = tokio::select! {
                came = coming.join_next() => came,
                // What is waited for may be a moment away; the asker is not there any more.
                () = &mut gone => return Err(Gone),
            };
            match came {
                Some(Ok((index, spec, pass))) => {
                    let spec = spec.and_then(|spec| pass.take(spec.len()).map(|()| spec));
                    self.give_part(peer, index, spec, reply).await?;
                }
                // It has failed: what it was for stays unanswered, which the asker sees.
                Some(Err(_)) => {}
                None => return Ok(()),
            }
        }
    }

    async fn give_part(
        &self,
        peer: &Peer,
        index: u32,
        spec: Result<Spec, Refusal>,
        reply: &mut Reply,
    ) -> Result<(), Gone> {
        match spec {
            Ok(spec) => {
                let len = spec.len();
                self.count_given(peer, len);
                let blob = Response::BlobOf(BlobOf { index, len });
                reply.send_with_body(&blob, spec.into_bytes()).await
            }
            Err(refusal) => {
                let refusal = WireRefusal::from(&refusal);
                let none = NoBlobOf { index, refusal };
                reply.send(&Response::NoBlobOf(none)).await
            }
        }
    }

    fn count_given(&self, peer: &Peer, len: u64) {
        metrics::counter!("larder_blobs_given_total").increment(1);
        self.node.engine().traffic().gave(peer.uri.id(), len);
    }

    async fn give(&self, peer: &Peer, get: GetBlob, reply: &mut Reply) -> Result<(), Gone> {
        let spec = match self.gate.enter(peer.uri.id()) {
            Ok(pass) => {
                let gone = reply.asker_gone();
                let spec = tokio::select! {
                    spec = find(&self.node, get.hash, get.force) => spec,
                    // What it waits for may be a moment away; the asker is not there any more.
                    () = gone => return Err(Gone),
                };
                let taken = spec.and_then(|spec| pass.take(spec.len()).map(|()| spec));
                taken.map(|spec| (spec, pass))
            }
            Err(refusal) => Err(refusal),
        };
        let (spec, _pass) = match spec {
            Ok(found) => found,
            Err(refusal) => return reply.refuse(&refusal).await,
        };
        let len = spec.len();
        self.count_given(peer, len);
        let blob = Response::Blob(Blob { len });
        reply.send_with_body(&blob, spec.into_bytes()).await
    }
}

/// What is here, or comes within a moment unless it is `forced` now.
async fn find(node: &Node, hash: SpecHash, forced: bool) -> Result<Spec, Refusal> {
    match found(node.engine().look(hash).await) {
        Err(refusal) if refusal.code == Code::NotFound && !forced => await_bytes(node, hash).await,
        found => found,
    }
}

/// What is not here, if it comes within a moment.
async fn await_bytes(node: &Node, hash: SpecHash) -> Result<Spec, Refusal> {
    let engine = node.engine();
    match engine.await_bytes(hash).await {
        // They may have come in between.
        Err(refusal) if refusal.code == Code::NotFound => found(engine.look(hash).await),
        came => came,
    }
}

fn found(local: Local) -> Result<Spec, Refusal> {
    match local {
        Local::Found(spec) => Ok(spec),
        Local::Missing | Local::Damaged => Err(not_here()),
        Local::Failed(reason) => {
            let message = format!("the disk failed: {reason}");
            Err(Refusal::new(Code::Disk, message))
        }
    }
}
