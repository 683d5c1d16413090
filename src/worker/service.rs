use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::Node;
use crate::net::{Gone, Peer, Reply, Service, SessionKey};
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{MAX_CATALOGS_GIVEN, RECORDS_PER_PART};
use crate::proto::wire::{
    Blob, GetCatalog, GetDelta, HeadBytes, ProofBytes, Request, Response, Status,
};
use crate::proto::worker::Local;
use crate::spec::SpecHash;

/// What a worker gives to others: bytes by hash and its catalog, which prove themselves, and
/// nothing that needs truth.
pub(super) struct Serving {
    node: Arc<Node>,
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
            Request::GetBlob(get) => self.give(get.hash, reply).await,
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
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            catalogs: Semaphore::new(MAX_CATALOGS_GIVEN),
        }
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

    async fn give(&self, hash: SpecHash, reply: &mut Reply) -> Result<(), Gone> {
        let refusal = match self.node.engine().look(hash).await {
            Local::Found(spec) => {
                let len = spec.len();
                metrics::counter!("larder_blobs_given_total").increment(1);
                metrics::counter!("larder_blob_bytes_given_total").increment(len);
                let blob = Response::Blob(Blob { len });
                return reply.send_with_body(&blob, spec.into_bytes()).await;
            }
            Local::Missing | Local::Damaged => Refusal::new(Code::NotFound, "no such blob here"),
            Local::Failed(reason) => Refusal::new(Code::Disk, format!("the disk failed: {reason}")),
        };
        reply.refuse(&refusal).await
    }
}
