//! The side that is dialled: from a connection that comes in to an answer that goes out.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{Connection, Incoming, RecvStream, SendStream, WriteError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::channel::{Channel, carry};
use super::endpoint::Shared;
use super::frame::{Follows, ReadFail, peek_end, read_bytes, read_frame, read_prefix};
use super::live::close;
use super::pace::{Over, Share, Sharers};
use super::session::{SessionKey, session_key};
use crate::identity::{NodeUri, Role};
use crate::proto::code::{CloseCode, Code, Refusal};
use crate::proto::limit::{ANSWERED_DIAL, MAX_FRAME_LEN, MAX_NAMES_PER_RESOLVE};
use crate::proto::role::{self, Kind};
use crate::proto::wire::{
    FRAME_PREFIX_LEN, FrameError, HeadBytes, Hello, ProofBytes, Request, Response, Welcome,
    parse_prefix, refusal_frame,
};
use crate::spec::SpecName;
use crate::trust::Usage;

/// Longest header of a request from a node that may not publish: a full
/// [`Resolve`](crate::proto::wire::Resolve). A longer one is refused.
const MAX_SMALL_HEADER_LEN: usize = MAX_NAMES_PER_RESOLVE * (SpecName::MAX_LEN + 64);

/// Memory for the bytes of large requests, all connections together, in KiB: 256 MiB. Requests
/// wait for their share.
pub(super) const MAX_REQUEST_KIB: usize = 256 << 10;

/// A request up to this length needs no share of [`MAX_REQUEST_KIB`]: the number of requests
/// bounds them.
const SMALL_REQUEST_LEN: usize = 64 << 10;

/// Longest frame that follows a request on its stream, and what is read of them at once: an
/// acknowledgement has about 30 bytes.
const MAX_HEARD_LEN: usize = 1 << 10;

/// Bytes kept of what a peer says it runs.
const MAX_AGENT_LEN: usize = 64;

/// Answers requests. The role table, the limits and the form have been checked.
pub trait Service: Send + Sync + 'static {
    /// The newest visible head and the proof that goes with it in this session, for the welcome;
    /// `None` at a node without a catalog.
    fn catalog(&self, session: &SessionKey) -> Option<(HeadBytes, ProofBytes)>;

    /// Answers one request. `body` is whole, but its hash is unchecked. What is not answered when
    /// this returns is answered with [`Code::Internal`]. It runs to its end even if the asker
    /// goes away; [`Reply::asker_gone`] tells.
    fn serve(
        &self,
        peer: Peer,
        request: Request,
        body: Bytes,
        reply: &mut Reply,
    ) -> impl Future<Output = ()> + Send;
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What its certificate says.
    pub uri: Arc<NodeUri>,
    /// Where its packets come from now.
    pub addr: SocketAddr,
    /// The [`Channel`](super::Channel::id) of its connection.
    pub channel: usize,
}

/// The asker went away, or does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the asker is gone")]
pub struct Gone;

/// Where an answer goes.
#[derive(Debug)]
pub struct Reply {
    stream: SendStream,
    recv: RecvStream,
    share: Share,
    answered: bool,
    /// The roles of who asks and of this node.
    roles: (Role, Role),
    /// The beginning of a frame that [`hear`](Self::hear) has not seen the end of.
    heard: BytesMut,
}

impl Reply {
    fn new((stream, recv): (SendStream, RecvStream), share: Share, roles: (Role, Role)) -> Self {
        Self {
            stream,
            recv,
            share,
            answered: false,
            roles,
            heard: BytesMut::new(),
        }
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// [`Gone`]; nothing more need be sent.
    pub async fn send(&mut self, response: &Response) -> Result<(), Gone> {
        self.send_with_body(response, Bytes::new()).await
    }

    /// Sends one frame and the body that it announces.
    ///
    /// # Errors
    /// [`Gone`]; nothing more need be sent.
    pub async fn send_with_body(&mut self, response: &Response, body: Bytes) -> Result<(), Gone> {
        debug_assert_eq!(response.body_len(), body.len() as u64, "as announced");
        match response.to_frame() {
            Ok(frame) => self.write(frame.into(), body).await,
            Err(error) => {
                let message = format!("the answer does not fit a frame: {error}");
                self.refuse(&Refusal::new(Code::Internal, message)).await
            }
        }
    }

    /// Sends one frame that is encoded already.
    ///
    /// # Errors
    /// [`Gone`]; nothing more need be sent.
    pub async fn send_frame(&mut self, frame: Bytes) -> Result<(), Gone> {
        self.write(frame, Bytes::new()).await
    }

    /// What the asker says on the stream of its request, after it: short frames without bodies,
    /// as many as have come. It waits for ever when the asker has said that there are none. May
    /// be dropped at any time; nothing is lost.
    ///
    /// # Errors
    /// A [`Refusal`] for what is no such frame and for what the asker may not say; the stream is
    /// of no more use.
    pub async fn hear(&mut self) -> Result<Vec<Request>, Refusal> {
        loop {
            // No pace is demanded: what is kept of a frame that does not end is bounded.
            match self.recv.read_chunk(MAX_HEARD_LEN, true).await {
                Ok(Some(chunk)) => self.heard.extend_from_slice(&chunk.bytes),
                // That the connection is lost shows in `asker_gone`.
                Ok(None) | Err(_) => std::future::pending().await,
            }
            let heard = further(&mut self.heard, self.roles)?;
            if !heard.is_empty() {
                return Ok(heard);
            }
        }
    }

    /// Says no.
    ///
    /// # Errors
    /// [`Gone`]; nothing more need be sent.
    pub async fn refuse(&mut self, refusal: &Refusal) -> Result<(), Gone> {
        metrics::counter!("larder_refusals_total", "code" => refusal.code.as_str()).increment(1);
        self.write(refusal_frame(refusal).into(), Bytes::new())
            .await
    }

    /// Completes when nobody waits for the answer any more.
    pub fn asker_gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }

    async fn write(&mut self, frame: Bytes, body: Bytes) -> Result<(), Gone> {
        self.answered = true;
        let allowed = self.share.floor.allows((frame.len() + body.len()) as u64);
        let mut parts = [frame, body];
        let write = self.stream.write_all_chunks(&mut parts);
        match self.share.within(self.share.mark(), allowed, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(WriteError::Stopped(_) | WriteError::ConnectionLost(_))) => Err(Gone),
            Ok(Err(error)) => {
                tracing::debug!(%error, "answer not written");
                Err(Gone)
            }
            // It opened the stream and does not read: its window stays full.
            Err(Over) => {
                metrics::counter!("larder_slow_readers_total").increment(1);
                let _ = self.stream.reset(Code::Busy.number().into());
                Err(Gone)
            }
        }
    }
}

/// Accepts connections until the endpoint closes.
pub(super) async fn accept<S: Service>(shared: Arc<Shared>, service: Arc<S>) {
    let limits = shared.options.limits;
    while let Some(incoming) = shared.quinn.accept().await {
        let permit = shared.connections.clone().try_acquire_owned();
        let Some(permit) = permit.ok().filter(|_| !shared.is_draining()) else {
            metrics::counter!("larder_connections_refused_total").increment(1);
            incoming.refuse();
            continue;
        };
        // Half full: an address must now prove that packets to it arrive, so that made-up ones
        // take no room.
        let crowded = shared.connections.available_permits() * 2 < limits.max_connections;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        tokio::spawn(connection(
            shared.clone(),
            service.clone(),
            incoming,
            permit,
        ));
    }
}

async fn connection<S: Service>(
    shared: Arc<Shared>,
    service: Arc<S>,
    incoming: Incoming,
    permit: OwnedSemaphorePermit,
) {
    let addr = incoming.remote_address();
    let connection = match timeout(patience(&shared), incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(%addr, %error, "handshake failed");
            metrics::counter!("larder_handshakes_failed_total").increment(1);
            return;
        }
        Err(_) => {
            tracing::debug!(%addr, "handshake not finished in time");
            metrics::counter!("larder_handshakes_failed_total").increment(1);
            return;
        }
    };
    match shared
        .live
        .add(&connection, Usage::Dialler, &shared.identity)
    {
        Ok(uri) => {
            let uri = Arc::new(uri);
            metrics::gauge!("larder_connections").increment(1);
            serve_connection(&shared, &service, &connection, &uri).await;
            metrics::gauge!("larder_connections").decrement(1);
        }
        Err(reason) => tracing::info!(%addr, %reason, "connection refused"),
    }
    shared.live.remove(&connection);
    drop(permit);
}

async fn serve_connection<S: Service>(
    shared: &Arc<Shared>,
    service: &Arc<S>,
    connection: &Connection,
    uri: &Arc<NodeUri>,
) {
    // Requests may come together with it. QUIC keeps their streams, in order and no more of them
    // than it would later; they are accepted when the hello has been answered, or never.
    let hello = hello(shared, &**service, connection);
    match timeout(patience(shared), hello).await {
        Ok(Ok(agent)) => {
            let addr = connection.remote_address();
            tracing::debug!(%uri, %addr, agent, "connected");
        }
        Ok(Err(NoHello)) | Err(_) => {
            tracing::info!(%uri, "no hello on the first stream");
            close(connection, CloseCode::BadHello);
            return;
        }
    }
    carry(
        shared,
        &Channel::new(shared, connection, uri.clone(), false),
    );
    let sharers = Sharers::new();
    let floor = shared.options.limits.floor;
    while let Ok(stream) = connection.accept_bi().await {
        let roles = (uri.role(), shared.identity.uri().role());
        let mut reply = Reply::new(stream, sharers.join(floor), roles);
        if shared.is_draining() {
            // Unread: a drain holds all the room.
            let refusal = Refusal::new(Code::Draining, "this node is shutting down");
            let _ = reply.refuse(&refusal).await;
            let _ = reply.stream.finish();
            continue;
        }
        // Room is waited for here: QUIC then holds the peer's further streams back.
        let Ok(room) = shared.requests.clone().acquire_owned().await else {
            return;
        };
        let asked = Asked {
            shared: shared.clone(),
            peer: Peer {
                uri: uri.clone(),
                addr: connection.remote_address(),
                channel: connection.stable_id(),
            },
            reply,
        };
        let service = service.clone();
        tokio::spawn(asked.answer(service, room));
    }
}

/// What a dialler may take for its handshake, and for its hello: it waits as long for this side.
fn patience(shared: &Shared) -> Duration {
    shared.options.limits.hello * ANSWERED_DIAL
}

/// The first stream carried something else, or nothing.
struct NoHello;

async fn hello<S: Service>(
    shared: &Shared,
    service: &S,
    connection: &Connection,
) -> Result<String, NoHello> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|_| NoHello)?;
    let limits = &shared.options.limits;
    let first_byte = Instant::now() + patience(shared);
    let share = Sharers::new().join(limits.floor);
    let (tag, header) = read_frame(&mut recv, MAX_SMALL_HEADER_LEN, first_byte, &share)
        .await
        .map_err(|_| NoHello)?;
    let Ok(Request::Hello(Hello { mut agent })) = Request::from_frame(tag, &header) else {
        return Err(NoHello);
    };
    peek_end(&mut recv);
    agent.truncate(agent.floor_char_boundary(MAX_AGENT_LEN));
    let session = session_key(connection).ok_or(NoHello)?;
    let (head, proof) = service.catalog(&session).unzip();
    let welcome = Response::Welcome(Welcome {
        agent: shared.options.agent.clone(),
        max_spec_len: shared.options.max_spec_len,
        head,
        proof,
    });
    let frame = welcome.to_frame().map_err(|_| NoHello)?;
    send.write_all(&frame).await.map_err(|_| NoHello)?;
    send.finish().map_err(|_| NoHello)?;
    Ok(agent)
}

/// One request on its way from its stream to its answer.
struct Asked {
    shared: Arc<Shared>,
    peer: Peer,
    reply: Reply,
}

impl Asked {
    async fn answer<S: Service>(mut self, service: Arc<S>, room: OwnedSemaphorePermit) {
        let mut room = Some(room);
        match self.read().await {
            Ok(read) => {
                // These last as long as their connection: neither other requests nor a drain
                // wait for them.
                if is_lasting(read.request.kind()) {
                    room = None;
                }
                self.carry_out(&*service, read).await;
            }
            Err(Unread::Refuse(refusal)) => {
                let _ = self.reply.recv.stop(refusal.code.number().into());
                let _ = self.reply.refuse(&refusal).await;
            }
            Err(Unread::Gone) => return,
        }
        let _ = self.reply.stream.finish();
        // A drain closes the connection next: the answer must have arrived by then.
        if self.shared.is_draining() {
            let patience = self.shared.options.limits.hello;
            let _ = timeout(patience, self.reply.stream.stopped()).await;
        }
        drop(room);
    }

    async fn carry_out<S: Service>(&mut self, service: &S, read: Read) {
        let kind = read.request.kind().as_str();
        metrics::counter!("larder_requests_total", "kind" => kind).increment(1);
        let peer = self.peer.clone();
        service
            .serve(peer, read.request, read.body, &mut self.reply)
            .await;
        drop(read.room);
        if !self.reply.answered {
            let refusal = Refusal::new(Code::Internal, format!("{kind} was not answered"));
            let _ = self.reply.refuse(&refusal).await;
        }
    }

    /// Reads a whole request. Nothing is read, nor any memory taken, beyond what the asker's
    /// role allows.
    async fn read(&mut self) -> Result<Read, Unread> {
        let role = self.peer.uri.role();
        let share = &self.reply.share;
        let first_byte = Instant::now() + share.stretch(share.floor.grace);
        let (tag, len) = read_prefix(
            &mut self.reply.recv,
            max_header_len(role),
            first_byte,
            share,
        )
        .await?;
        let header_room = self.room(len).await?;
        let header = read_bytes(&mut self.reply.recv, len, share).await?;
        let request = decode(tag, header).await?;
        if request.kind() == Kind::Hello {
            return Err(
                Refusal::new(Code::BadFrame, "hello comes once, on the first stream").into(),
            );
        }
        role::check(request.kind(), role, self.shared.identity.uri().role())?;

        let len = self.body_len(&request)?;
        let body_room = self.room(len).await?;
        let body = read_bytes(&mut self.reply.recv, len, share).await?;
        // These go on in both directions.
        let open = is_lasting(request.kind());
        if !open && peek_end(&mut self.reply.recv) == Follows::Bytes {
            return Err(Refusal::new(Code::BadFrame, "bytes follow the request").into());
        }
        Ok(Read {
            request,
            body,
            room: [header_room, body_room],
        })
    }

    /// Waits for memory; small requests need none of the common share.
    async fn room(&self, len: usize) -> Result<Option<OwnedSemaphorePermit>, Unread> {
        if len <= SMALL_REQUEST_LEN {
            return Ok(None);
        }
        let kib = u32::try_from(len.div_ceil(1_024)).unwrap_or(u32::MAX);
        let room = self.shared.request_kib.clone().acquire_many_owned(kib);
        match timeout(self.shared.options.limits.hello, room).await {
            Ok(Ok(room)) => Ok(Some(room)),
            Ok(Err(_)) | Err(_) => {
                Err(Refusal::new(Code::Busy, "no memory for this request").into())
            }
        }
    }

    fn body_len(&self, request: &Request) -> Result<usize, Refusal> {
        let (len, max) = (request.body_len(), self.shared.options.max_spec_len);
        let allowed = usize::try_from(len).ok().filter(|_| len <= max);
        allowed.ok_or_else(|| {
            let message = format!("a body of {len} bytes, this node takes at most {max}");
            Refusal::new(Code::TooLarge, message)
        })
    }
}

const fn is_lasting(kind: Kind) -> bool {
    matches!(kind, Kind::Watch | Kind::Relay)
}

/// Takes whole frames off the front of `heard`.
fn further(heard: &mut BytesMut, (asker, asked): (Role, Role)) -> Result<Vec<Request>, Refusal> {
    let bad = |error: FrameError| Refusal::new(Code::BadFrame, error.to_string());
    let mut requests = Vec::new();
    while let Some(prefix) = heard.first_chunk::<FRAME_PREFIX_LEN>() {
        let (tag, len) = parse_prefix(*prefix).map_err(bad)?;
        if len > MAX_HEARD_LEN {
            let message = format!("{len} bytes follow a request, at most {MAX_HEARD_LEN} may");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let Some(header) = heard.get(FRAME_PREFIX_LEN..FRAME_PREFIX_LEN + len) else {
            break;
        };
        let request = Request::from_frame(tag, header).map_err(bad)?;
        role::check(request.kind(), asker, asked)?;
        heard.advance(FRAME_PREFIX_LEN + len);
        requests.push(request);
    }
    Ok(requests)
}

/// A long header is decoded where that holds up nobody else.
async fn decode(tag: u8, header: Bytes) -> Result<Request, Unread> {
    let small = header.len() <= SMALL_REQUEST_LEN;
    let decode = move || Request::from_frame(tag, &header).map_err(ReadFail::Frame);
    let decoded = match small {
        true => decode(),
        false => tokio::task::spawn_blocking(decode)
            .await
            .map_err(|_| Refusal::new(Code::Internal, "a decoding thread failed"))?,
    };
    Ok(decoded?)
}

/// Only a publisher has something long to say.
const fn max_header_len(role: Role) -> usize {
    match role {
        Role::Publisher => MAX_FRAME_LEN as usize,
        Role::Coordinator | Role::Worker | Role::Reader => MAX_SMALL_HEADER_LEN,
    }
}

/// A request that was read whole.
struct Read {
    request: Request,
    body: Bytes,
    room: [Option<OwnedSemaphorePermit>; 2],
}

/// Why a request was not read.
enum Unread {
    /// The asker is told.
    Refuse(Refusal),
    /// There is nobody to tell.
    Gone,
}

impl From<Refusal> for Unread {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

impl From<ReadFail> for Unread {
    fn from(fail: ReadFail) -> Self {
        let (word, refusal) = match fail {
            ReadFail::Frame(error @ FrameError::TooLong { .. }) => {
                ("too-long", Refusal::new(Code::TooLarge, error.to_string()))
            }
            ReadFail::Frame(error) => ("frame", Refusal::new(Code::BadFrame, error.to_string())),
            ReadFail::End => (
                "empty",
                Refusal::new(Code::BadFrame, "a stream without a request"),
            ),
            ReadFail::Short => (
                "short",
                Refusal::new(Code::BadFrame, "the request is cut short"),
            ),
            ReadFail::Silent | ReadFail::Slow { .. } => (
                "slow",
                Refusal::new(Code::Busy, "the request came too slowly"),
            ),
            ReadFail::Gone(_) => return Self::Gone,
        };
        metrics::counter!("larder_bad_requests_total", "reason" => word).increment(1);
        Self::Refuse(refusal)
    }
}
