use std::sync::Arc;

use bytes::Bytes;

use super::Node;
use crate::catalog::SessionClaim;
use crate::identity::Role;
use crate::net::{Gone, Peer, Reply, Service, SessionKey};
use crate::proto::code::{Code, Refusal, WireRefusal};
use crate::proto::coordinator::Input;
use crate::proto::limit::{MAX_SHARED_BODY, RECORDS_PER_PART};
use crate::proto::replica;
use crate::proto::wire::{
    Blob, BlobOf, GetBlob, GetBlobs, GetCatalog, HeadBytes, Holders, HoldersOf, Leave, Meet, Met,
    Missing, NoBlobOf, Outcome, Peering, ProofBytes, PutBlob, Request, Resolve, Response, Status,
    Watch, WireVersion,
};
use crate::spec::{Spec, SpecHash, Syntax};

/// What the coordinator answers over QUIC. Roles and lengths have been checked.
pub(super) struct Serving(pub(super) Arc<Node>);

impl Service for Serving {
    fn catalog(&self, session: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        let view = self.0.engine()?.view();
        let claim = SessionClaim {
            session: *session,
            catalog: view.catalog,
            epoch: view.epoch,
        };
        let proof = claim.sign(self.0.head_key()?);
        Some((HeadBytes::from(&view.head), proof.into()))
    }

    async fn serve(&self, peer: Peer, request: Request, body: Bytes, reply: &mut Reply) {
        // An asker that is gone has nothing to be told.
        let _ = match self.answer(peer, request, body, reply).await {
            Ok(()) | Err(Trouble::Gone) => Ok(()),
            Err(Trouble::Refused(refusal)) => reply.refuse(&refusal).await,
        };
    }
}

enum Trouble {
    Refused(Refusal),
    Gone,
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Gone> for Trouble {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl Serving {
    async fn answer(
        &self,
        peer: Peer,
        request: Request,
        body: Bytes,
        reply: &mut Reply,
    ) -> Result<(), Trouble> {
        if let Request::GetStatus = request {
            let json = self.0.status_json().to_string();
            return Ok(reply.send(&Response::Status(Status { json })).await?);
        }
        if let Request::Meet(meet) = request {
            let met = self.0.met(&peer, &meet).await;
            return Ok(reply.send(&Response::Met(met)).await?);
        }
        let engine = self.0.catalog()?;
        let response = match request {
            Request::Resolve(resolve) => return self.resolve(&peer, resolve, reply).await,
            Request::GetBlob(get) => return self.give(&peer, get, reply).await,
            Request::GetBlobs(get) => return self.give_several(&peer, get, reply).await,
            Request::List(list) => Response::Listing(engine.list(list).await?),
            Request::GetLog(get) => Response::Log(engine.log(get).await?),
            Request::Have(have) => Response::Missing(Missing {
                hashes: engine.missing(have.hashes).await?,
            }),
            Request::PutBlob(PutBlob { hash, len }) => {
                let spec = self.check_body(hash, len, body)?;
                engine.stage(spec).await?;
                Response::Stored(())
            }
            Request::Publish(publish) => {
                let by = peer.uri.to_string();
                Response::Published(engine.publish(by, publish).await?)
            }
            Request::Watch(watch) => {
                return self.watch(&peer, watch, reply).await;
            }
            Request::Renew(renew) => {
                Response::Grant(engine.renew(peer.uri.to_string(), renew).await?)
            }
            Request::PrepAck(ack) => {
                let owner = peer.uri.to_string();
                engine.drive(Input::PrepAck { owner, ack });
                Response::Done(())
            }
            Request::Leave(Leave { sid }) => {
                let owner = peer.uri.to_string();
                self.0.whereabouts.forget(peer.uri.id());
                engine.drive(Input::Leave { owner, sid });
                Response::Done(())
            }
            Request::GetDelta(get) => Response::Delta(engine.delta(&get)?),
            Request::GetCatalog(get) => return self.catalog(&get, reply).await,
            Request::Pin(pin) => Response::Pinned(engine.pin(peer.uri.to_string(), pin).await?),
            Request::Unpin(unpin) => {
                Response::Pinned(engine.unpin(peer.uri.to_string(), unpin.id).await?)
            }
            Request::GetPins(_) => Response::Pins(engine.pins()),
            Request::Hello(_)
            | Request::GetStatus
            | Request::Meet(_)
            | Request::GetMembers(_)
            | Request::Relay(_) => {
                return Err(Refusal::new(Code::BadFrame, "a hello opens a connection").into());
            }
        };
        Ok(reply.send(&response).await?)
    }

    async fn resolve(
        &self,
        peer: &Peer,
        resolve: Resolve,
        reply: &mut Reply,
    ) -> Result<(), Trouble> {
        let engine = self.0.catalog()?;
        if resolve.peering == Peering::Gives && peer.uri.role() == Role::Worker {
            self.0.whereabouts.hear(&peer.uri, peer.addr);
        }
        let (opening, versions) = engine.view().resolve(&resolve)?;
        reply.send(&Response::Resolved(opening)).await?;
        for (asked, version) in resolve.names.iter().zip(versions) {
            let content = version.map(|version| version.content);
            let hash = content.and_then(|content| content.hash());
            let version: Option<WireVersion> = version.map(Into::into);
            let wanted = hash.filter(|_| asked.body && asked.if_hash != hash);
            // Those behind it would wait for it; it is asked for on a stream of its own.
            let holds_up = version.is_some_and(|version| version.len > MAX_SHARED_BODY);
            let wanted = wanted.filter(|_| resolve.names.len() == 1 || !holds_up);
            let ask = match wanted.filter(|_| resolve.peering > Peering::Alone) {
                Some(hash) => self.0.point(peer, hash),
                None => Vec::new(),
            };
            // The truth goes out even when the bytes cannot: others may have them.
            let body = match wanted.filter(|_| ask.is_empty()) {
                Some(hash) => engine
                    .body(hash, version_len(&version))
                    .await
                    .unwrap_or(None),
                None => None,
            };
            let outcome = Response::Outcome(Outcome {
                version,
                body: body.is_some(),
                ask,
            });
            let body = body.map_or_else(Bytes::new, Spec::into_bytes);
            metrics::counter!("larder_body_bytes_sent_total").increment(body.len() as u64);
            reply.send_with_body(&outcome, body).await?;
        }
        Ok(())
    }

    /// Tells a worker what is about to change and what has changed, until it goes away.
    async fn watch(&self, peer: &Peer, watch: Watch, reply: &mut Reply) -> Result<(), Trouble> {
        let gone = reply.asker_gone();
        tokio::pin!(gone);
        // Registered first: a renewal that follows the answer gets a lease.
        let mut watching = self.0.catalog()?.watch(watch.sid, peer.uri.to_string());
        reply.send(&Response::Watching(())).await?;
        loop {
            tokio::select! {
                push = watching.next() => {
                    let Some(frame) = push else {
                        let message = "this worker did not take what it was told in time, or has too many sessions";
                        return Err(Refusal::new(Code::Busy, message).into());
                    };
                    reply.send_frame(frame).await?;
                }
                heard = reply.hear() => {
                    for request in heard? {
                        let Request::PrepAck(ack) = request else {
                            let message = "a watch is followed by acknowledgements alone";
                            return Err(Refusal::new(Code::BadFrame, message).into());
                        };
                        watching.acknowledge(ack);
                    }
                }
                () = &mut gone => return Err(Trouble::Gone),
            }
        }
    }

    async fn catalog(&self, get: &GetCatalog, reply: &mut Reply) -> Result<(), Trouble> {
        let view = self.0.catalog()?.view();
        let diff = replica::diff(&view.records, &view.head, &get.have);
        let (head, parts) = diff.frames(RECORDS_PER_PART);
        reply.send(&Response::CatalogHead(head)).await?;
        for part in parts {
            reply.send(&Response::CatalogPart(part)).await?;
        }
        Ok(())
    }

    async fn give(&self, peer: &Peer, get: GetBlob, reply: &mut Reply) -> Result<(), Trouble> {
        if !get.force {
            let ask = self.0.point(peer, get.hash);
            if !ask.is_empty() {
                return Ok(reply.send(&Response::Holders(Holders { ask })).await?);
            }
        }
        let spec = self.body(get.hash).await?;
        let blob = Response::Blob(Blob { len: spec.len() });
        Ok(reply.send_with_body(&blob, spec.into_bytes()).await?)
    }

    async fn give_several(
        &self,
        peer: &Peer,
        get: GetBlobs,
        reply: &mut Reply,
    ) -> Result<(), Trouble> {
        get.check()?;
        for (index, hash) in (0..).zip(get.hashes) {
            let ask = match get.force {
                true => Vec::new(),
                false => self.0.point(peer, hash),
            };
            if !ask.is_empty() {
                let holders = HoldersOf { index, ask };
                reply.send(&Response::HoldersOf(holders)).await?;
                continue;
            }
            match self.body(hash).await {
                Ok(spec) => {
                    let len = spec.len();
                    let blob = Response::BlobOf(BlobOf { index, len });
                    reply.send_with_body(&blob, spec.into_bytes()).await?;
                }
                Err(refusal) => {
                    let refusal = WireRefusal::from(&refusal);
                    let none = NoBlobOf { index, refusal };
                    reply.send(&Response::NoBlobOf(none)).await?;
                }
            }
        }
        Ok(())
    }

    /// A body that is about to go out.
    async fn body(&self, hash: SpecHash) -> Result<Spec, Refusal> {
        let spec = self.0.catalog()?.body(hash, None).await?;
        let spec = spec.ok_or_else(|| Refusal::new(Code::NotFound, "no such blob here"))?;
        metrics::counter!("larder_body_bytes_sent_total").increment(spec.len());
        Ok(spec)
    }

    /// A publisher has checked the YAML, or has been told not to; text it must be all the same.
    fn check_body(&self, hash: SpecHash, len: u64, body: Bytes) -> Result<Spec, Refusal> {
        let spec = Spec::verify(hash, Some(len), body).map_err(|mismatch| {
            Refusal::new(
                Code::Invalid,
                format!("the body is not what it should be: {mismatch}"),
            )
        })?;
        Syntax::AnyText
            .check(spec.bytes(), self.0.max_spec_len())
            .map_err(|error| Refusal::new(Code::Invalid, error.to_string()))?;
        Ok(spec)
    }
}

fn version_len(version: &Option<WireVersion>) -> Option<u64> {
    version.map(|version| version.len)
}

impl Node {
    /// Notes where a worker listens and says who else does.
    async fn met(&self, peer: &Peer, meet: &Meet) -> Met {
        let node = peer.uri.id();
        let mut reached = None;
        if let Some(addr) = meet.addr {
            if meet.dial_back {
                reached = self.dial_back.reaches(node, addr).await;
            }
            match meet.leaf {
                true => self.whereabouts.forget(node),
                false => self.whereabouts.note(&peer.uri, addr, reached),
            }
        }
        Met {
            seen: peer.addr,
            reached,
            nodes: self.whereabouts.some(node),
        }
    }
}
