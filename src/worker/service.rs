use std::sync::Arc;

use bytes::Bytes;

use super::Node;
use crate::net::{Peer, Reply, Service, SessionKey};
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::{Blob, HeadBytes, ProofBytes, Request, Response, Status};
use crate::proto::worker::Local;
use crate::spec::SpecHash;

/// What a worker gives to others: bytes by hash, and nothing that needs truth.
pub(super) struct Serving(pub(super) Arc<Node>);

impl Service for Serving {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, _peer: Peer, request: Request, _body: Bytes, reply: &mut Reply) {
        // A reader that is gone has nothing to be told.
        let _ = match request {
            Request::GetBlob(get) => self.give(get.hash, reply).await,
            Request::GetStatus => {
                let json = self.0.status_json().to_string();
                reply.send(&Response::Status(Status { json })).await
            }
            _ => {
                let message = "a worker holds no catalog; ask the coordinator";
                reply.refuse(&Refusal::new(Code::NoCatalog, message)).await
            }
        };
    }
}

impl Serving {
    async fn give(&self, hash: SpecHash, reply: &mut Reply) -> Result<(), crate::net::Gone> {
        let refusal = match self.0.engine().look(hash).await {
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
