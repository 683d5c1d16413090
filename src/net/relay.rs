//! The way to the coordinator over another worker: worker - worker - coordinator, never longer.
//!
//! Both halves are here. Who *asks* runs QUIC over a socket whose packets go through a [`Channel`],
//! with TLS to the coordinator from end to end. Who *carries* opens one UDP socket per path,
//! connected to an address of the coordinator that it chooses itself, and forwards what comes on
//! either side. It can lose, delay, repeat or reorder packets, and nothing else.
//!
//! ```text
//! packet: KIND (1 byte) | flow (4 bytes, big-endian) | a QUIC packet
//! ```
//!
//! The flow is the carrier's choice and means something on one connection only. Who dialled that
//! connection is the one who asks, so packets the other way round are told apart.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Channel, Endpoint, Exchange, Gone, Link, LinkError, Patience, Reply};
use crate::clock;
use crate::identity::{NodeId, NodeUri};
use crate::proto::bucket::Bucket;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{
    MAX_RELAY_FLOWS, MAX_RELAY_FLOWS_PER_NODE, MAX_RELAY_QUEUE, MAX_SHORT_STREAM, RELAY_BURST,
    RELAY_BYTES_PER_SEC, RELAY_IDLE,
};
use crate::proto::wire::{self, Relaying, Request, Response};

/// How a packet of a relayed connection begins; what members send each other begins otherwise.
const KIND: u8 = 3;

/// Bytes before the QUIC packet.
const HEADER_LEN: usize = 5;

/// Longest QUIC packet that is carried.
const MAX_PACKET_LEN: usize = MAX_SHORT_STREAM - HEADER_LEN;

/// When a path is left, time for the closing packets to leave.
const LINGER: Duration = Duration::from_millis(500);

/// What a path over another worker is called where an address is needed: nobody has this one.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Bounds of what is carried for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Paths at once. Default [`MAX_RELAY_FLOWS`].
    pub flows: usize,
    /// Paths at once for one node. Default [`MAX_RELAY_FLOWS_PER_NODE`].
    pub flows_per_node: usize,
    /// How long the asker of a path may be silent. Default [`RELAY_IDLE`].
    pub idle: Duration,
    /// Bytes per second of one path, both ways. Default [`RELAY_BYTES_PER_SEC`].
    pub bytes_per_sec: u32,
    /// Bytes of one path at once. Default [`RELAY_BURST`].
    pub burst: u32,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            flows: MAX_RELAY_FLOWS,
            flows_per_node: MAX_RELAY_FLOWS_PER_NODE,
            idle: RELAY_IDLE,
            bytes_per_sec: RELAY_BYTES_PER_SEC,
            burst: RELAY_BURST,
        }
    }
}

/// A flow on one connection.
type FlowKey = (usize, u32);

/// The paths of this node that go over others, and those of others that go over this one.
#[derive(Debug, Default)]
pub struct Relay {
    limits: RelayLimits,
    /// Where packets of own paths are read.
    asked: Mutex<BTreeMap<FlowKey, mpsc::Sender<Bytes>>>,
    /// What is carried for others.
    carried: Mutex<BTreeMap<FlowKey, Arc<Flow>>>,
    next: AtomicU32,
}

/// One path that is carried for another worker.
#[derive(Debug)]
struct Flow {
    node: NodeId,
    socket: UdpSocket,
    /// Of bytes, both ways.
    budget: Mutex<Bucket>,
    /// When its asker last sent something.
    heard: Mutex<Instant>,
}

impl Relay {
    /// Nothing is carried yet.
    pub fn new(limits: RelayLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Whether a packet is for [`packet`](Self::packet).
    pub fn is_relayed(packet: &[u8]) -> bool {
        packet.first() == Some(&KIND)
    }

    /// Takes a packet that has come over `channel`. One of no flow that is known is dropped.
    pub fn packet(&self, channel: &Channel, mut packet: Bytes) {
        let Some((flow, _)) = split(&packet) else {
            return dropped("unreadable");
        };
        let inner = packet.split_off(HEADER_LEN);
        let key = (channel.id(), flow);
        match channel.is_dialled() {
            true => self.read(key, inner),
            false => self.forward(key, &inner),
        }
    }

    fn read(&self, key: FlowKey, inner: Bytes) {
        let queue = lock(&self.asked).get(&key).cloned();
        match queue.map(|queue| queue.try_send(inner)) {
            Some(Ok(())) => {}
            Some(Err(_)) => dropped("queue"),
            None => dropped("unknown"),
        }
    }

    fn forward(&self, key: FlowKey, inner: &[u8]) {
        let flow = lock(&self.carried).get(&key).cloned();
        let Some(flow) = flow else {
            return dropped("unknown");
        };
        *lock(&flow.heard) = Instant::now();
        if !lock(&flow.budget).takes(inner.len() as u64, clock::now()) {
            return dropped("rate");
        }
        match flow.socket.try_send(inner) {
            Ok(_) => carried(inner.len()),
            Err(_) => dropped("socket"),
        }
    }

    #[cfg(test)]
    pub(super) fn asked_for_test(&self, key: FlowKey, queue: mpsc::Sender<Bytes>) {
        lock(&self.asked).insert(key, queue);
    }

    /// Paths that are carried for others now.
    pub fn carried(&self) -> usize {
        lock(&self.carried).len()
    }

    /// Carries the packets of the asker of `reply`, whose connection is `channel`, to and from
    /// `to`, until the asker ends it or is silent for too long. `from` is the address that this
    /// node's own packets come from.
    ///
    /// # Errors
    /// [`Gone`] when the asker does not even hear whether it is carried.
    pub async fn carry(
        &self,
        channel: &Channel,
        from: IpAddr,
        to: SocketAddr,
        reply: &mut Reply,
    ) -> Result<(), Gone> {
        let carried = match self.admit(channel, from, to).await {
            Ok(carried) => carried,
            Err(refusal) => return reply.refuse(&refusal).await,
        };
        let flow = carried.key.1;
        let relaying = Response::Relaying(Relaying { flow, to });
        reply.send(&relaying).await?;
        let node = channel.uri();
        tracing::info!(%node, %to, "carrying packets to the coordinator");
        let why = self.bring_back(channel, &carried, reply).await;
        tracing::info!(%node, why, "no longer carrying packets to the coordinator");
        Ok(())
    }

    async fn admit(
        &self,
        channel: &Channel,
        from: IpAddr,
        to: SocketAddr,
    ) -> Result<Carried<'_>, Refusal> {
        let busy = |what| Refusal::new(Code::Busy, what);
        let node = channel.uri().id();
        self.room_for(node)?;
        let socket = connect(from, to).await.map_err(|error| {
            tracing::warn!(%to, %error, "no socket to carry packets with");
            busy("this worker has no socket for it")
        })?;
        // Asked again: others may have come meanwhile.
        let mut flows = lock(&self.carried);
        room_among(&flows, node, &self.limits)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let key = (channel.id(), id);
        if flows.contains_key(&key) {
            return Err(busy("this worker has no name for it"));
        }
        let flow = Arc::new(Flow {
            node,
            socket,
            budget: Mutex::new(self.budget()),
            heard: Mutex::new(Instant::now()),
        });
        flows.insert(key, flow.clone());
        Ok(Carried {
            relay: self,
            key,
            flow,
        })
    }

    fn budget(&self) -> Bucket {
        let RelayLimits {
            bytes_per_sec,
            burst,
            ..
        } = self.limits;
        Bucket::new(bytes_per_sec, burst, clock::now())
    }

    fn room_for(&self, node: NodeId) -> Result<(), Refusal> {
        room_among(&lock(&self.carried), node, &self.limits)
    }

    /// Sends the asker what comes from the coordinator; returns why it ends.
    async fn bring_back(
        &self,
        channel: &Channel,
        carried: &Carried<'_>,
        reply: &Reply,
    ) -> &'static str {
        let mut gone = pin!(reply.asker_gone());
        let flow = &carried.flow;
        let mut bytes = [0; MAX_PACKET_LEN + 1];
        loop {
            let idle_at = *lock(&flow.heard) + self.limits.idle;
            tokio::select! {
                () = &mut gone => return "the asker ended it",
                () = sleep_until(idle_at) => {
                    if *lock(&flow.heard) + self.limits.idle <= Instant::now() {
                        return "the asker is silent";
                    }
                }
                // That the coordinator is gone shows to the asker.
                received = flow.socket.recv(&mut bytes) => if let Ok(len) = received {
                    self.give(channel, carried, &bytes[..len]);
                }
            }
        }
    }

    fn give(&self, channel: &Channel, carried: &Carried<'_>, inner: &[u8]) {
        if inner.len() > MAX_PACKET_LEN {
            return dropped("long");
        }
        if !lock(&carried.flow.budget).takes(inner.len() as u64, clock::now()) {
            return dropped("rate");
        }
        match channel.send(joined(carried.key.1, inner)) {
            Ok(()) => self::carried(inner.len()),
            Err(_) => dropped("channel"),
        }
    }
}

fn room_among(
    flows: &BTreeMap<FlowKey, Arc<Flow>>,
    node: NodeId,
    limits: &RelayLimits,
) -> Result<(), Refusal> {
    let of_node = flows.values().filter(|flow| flow.node == node).count();
    if flows.len() >= limits.flows || of_node >= limits.flows_per_node {
        let message = "this worker carries packets for as many as it may";
        return Err(Refusal::new(Code::Busy, message));
    }
    Ok(())
}

/// A path that is carried; it ends with this.
struct Carried<'a> {
    relay: &'a Relay,
    key: FlowKey,
    flow: Arc<Flow>,
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        lock(&self.relay.carried).remove(&self.key);
    }
}

/// A socket that hears from `to` alone.
async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<UdpSocket> {
    let ip = match (from, to) {
        (IpAddr::V4(_), SocketAddr::V4(_)) | (IpAddr::V6(_), SocketAddr::V6(_)) => from,
        (_, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (_, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(ip, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// A way to the coordinator over another worker. It ends when this is dropped.
#[derive(Debug)]
pub struct RelayPath {
    endpoint: Endpoint,
    to: SocketAddr,
    via: NodeUri,
    /// Its stream is what keeps the other worker carrying. `None` when it is dropped.
    open: Option<(Exchange, Asked)>,
}

/// Where packets of a path are read, for as long as this lives.
#[derive(Debug)]
struct Asked {
    relay: Arc<Relay>,
    key: FlowKey,
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.relay.asked).remove(&self.key);
    }
}

impl RelayPath {
    /// Asks the worker at `peer` to carry packets. Nothing of the coordinator is known when this
    /// returns: a [`Link`] over [`endpoint`](Self::endpoint) finds out whether it is there.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open(relay: &Arc<Relay>, own: &Endpoint, peer: &Link) -> Result<Self, LinkError> {
        let request = Request::Relay(wire::Relay {});
        let patience = Patience {
            dial_within: Some(Duration::ZERO),
            ..Patience::peer()
        };
        let mut exchange = peer.call(&request, Bytes::new(), patience).await?;
        let Response::Relaying(Relaying { flow, to }) = exchange.next().await? else {
            return Err(LinkError::unexpected());
        };
        let channel = exchange.channel().clone();
        let key = (channel.id(), flow);
        let (queue, packets) = mpsc::channel(MAX_RELAY_QUEUE);
        lock(&relay.asked).insert(key, queue);
        let asked = Asked {
            relay: Arc::clone(relay),
            key,
        };
        let socket = RelaySocket {
            channel,
            flow,
            to,
            packets: Mutex::new(packets),
        };
        let endpoint = own.over(Arc::new(socket), to);
        let endpoint = endpoint.map_err(|error| LinkError::Lost(error.to_string()))?;
        Ok(Self {
            endpoint,
            to,
            via: exchange.peer().clone(),
            open: Some((exchange, asked)),
        })
    }

    /// Dials over the other worker.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Who carries the packets.
    pub fn via(&self) -> &NodeUri {
        &self.via
    }

    /// Where they are sent, as that worker says.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// Returns why the other worker no longer carries them, once it does not.
    pub async fn ended(&mut self) -> LinkError {
        let Some((exchange, _)) = &mut self.open else {
            return LinkError::ClosedHere;
        };
        match exchange.next_whenever().await {
            Ok(_) => LinkError::unexpected(),
            Err(error) => error,
        }
    }
}

impl Drop for RelayPath {
    /// The coordinator is told, as far as the other worker still carries that.
    fn drop(&mut self) {
        let open = self.open.take();
        self.endpoint.close();
        let endpoint = self.endpoint.clone();
        self.endpoint.0.handle.spawn(async move {
            let _ = timeout(LINGER, endpoint.0.quinn.wait_idle()).await;
            drop(open);
        });
    }
}

/// UDP as quinn knows it, over a [`Channel`].
struct RelaySocket {
    channel: Channel,
    flow: u32,
    to: SocketAddr,
    packets: Mutex<mpsc::Receiver<Bytes>>,
}

impl fmt::Debug for RelaySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelaySocket({} over {})", self.flow, self.channel.uri())
    }
}

impl AsyncUdpSocket for RelaySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Lost ones are sent again, and that the path has ended shows elsewhere.
        if transmit.contents.len() > MAX_PACKET_LEN
            || self
                .channel
                .send(joined(self.flow, transmit.contents))
                .is_err()
        {
            dropped("own");
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buf), Some(meta)) = (bufs.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        let mut packets = lock(&self.packets);
        loop {
            match packets.poll_recv(context) {
                Poll::Ready(Some(packet)) => {
                    let Some(room) = buf.get_mut(..packet.len()) else {
                        dropped("long");
                        continue;
                    };
                    room.copy_from_slice(&packet);
                    *meta = RecvMeta {
                        addr: self.to,
                        len: packet.len(),
                        stride: packet.len(),
                        ecn: None,
                        dst_ip: None,
                    };
                    return Poll::Ready(Ok(1));
                }
                // The path has ended: nothing comes any more.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(match self.to {
            SocketAddr::V4(_) => NOWHERE,
            SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        })
    }
}

/// Nothing is waited for: what does not fit is dropped.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn joined(flow: u32, inner: &[u8]) -> Bytes {
    let mut packet = BytesMut::with_capacity(HEADER_LEN + inner.len());
    packet.put_u8(KIND);
    packet.put_u32(flow);
    packet.put_slice(inner);
    packet.freeze()
}

/// The flow of a packet, and the QUIC packet in it.
fn split(packet: &[u8]) -> Option<(u32, &[u8])> {
    let (&[kind, a, b, c, d], inner) = packet.split_first_chunk::<HEADER_LEN>()?;
    (kind == KIND).then_some((u32::from_be_bytes([a, b, c, d]), inner))
}

fn carried(len: usize) {
    metrics::counter!("larder_relayed_packets_total").increment(1);
    metrics::counter!("larder_relayed_bytes_total").increment(len as u64);
}

fn dropped(why: &'static str) {
    metrics::counter!("larder_relay_dropped_total", "reason" => why).increment(1);
}

/// A poisoned lock is one whose holder panicked; what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_taken_apart_as_it_was_put_together() {
        let packet = joined(7, b"inner");
        assert_eq!(&packet[..], b"\x03\0\0\0\x07inner");
        assert_eq!(split(&packet), Some((7, &b"inner"[..])));
        assert!(Relay::is_relayed(&packet));
        assert!(!Relay::is_relayed(b"") && !Relay::is_relayed(&[1, 0, 0, 0, 7]));
        assert_eq!(split(&packet[..HEADER_LEN - 1]), None);
        assert_eq!(split(&[2, 0, 0, 0, 7, 1]), None);
    }
}
