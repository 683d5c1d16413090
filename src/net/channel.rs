//! What workers send each other beside requests: packets that nobody answers and that may get
//! lost.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::endpoint::Shared;
use crate::identity::{NodeUri, Role};
use crate::proto::code::Code;
use crate::proto::limit::{MAX_SHORT_STREAM, MAX_SHORT_STREAMS, SHORT_STREAM_TIMEOUT};

/// Takes what comes over the connections between workers, whoever has dialled them. Nothing here
/// may wait: it runs on the network's thread.
pub trait Carrier: fmt::Debug + Send + Sync + 'static {
    /// A connection with a worker has said hello.
    fn up(&self, channel: &Channel);

    /// A packet has come.
    fn packet(&self, channel: &Channel, packet: Bytes);

    /// The connection is gone.
    fn down(&self, channel: &Channel);
}

/// One connection with another worker, for packets. Cheap to clone; it keeps no connection open
/// that its [`Link`](super::Link) or the other side closes.
#[derive(Debug, Clone)]
pub struct Channel {
    connection: Connection,
    uri: Arc<NodeUri>,
    dialled: bool,
    /// Room for streams with packets that fit no datagram.
    streams: Arc<Semaphore>,
    /// Where those are sent: whoever sends may be on any thread.
    handle: Handle,
}

/// A packet that was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet was dropped")]
pub struct Dropped;

impl Channel {
    pub(super) fn new(
        shared: &Shared,
        connection: &Connection,
        uri: Arc<NodeUri>,
        dialled: bool,
    ) -> Self {
        Self {
            connection: connection.clone(),
            uri,
            dialled,
            streams: Arc::new(Semaphore::new(MAX_SHORT_STREAMS as usize)),
            handle: shared.handle.clone(),
        }
    }

    /// Names it among all channels of this process, as in [`Peer::channel`](super::Peer::channel).
    pub fn id(&self) -> usize {
        self.connection.stable_id()
    }

    /// Who is at the other end, as the certificate says.
    pub fn uri(&self) -> &NodeUri {
        &self.uri
    }

    /// Where the other side's packets come from now.
    pub fn addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Whether this node has dialled it: then [`addr`](Self::addr) is where the other one listens.
    pub fn is_dialled(&self) -> bool {
        self.dialled
    }

    /// Its round trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Whether it is there still.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Sends a packet: in a datagram, or on a stream of its own where it does not fit. It may get
    /// lost, be overtaken, or be dropped when many wait already.
    ///
    /// # Errors
    /// [`Dropped`] when it certainly does not arrive.
    pub fn send(&self, packet: Bytes) -> Result<(), Dropped> {
        let fits = self.connection.max_datagram_size();
        if fits.is_some_and(|max| packet.len() <= max) {
            return self.connection.send_datagram(packet).map_err(|_| Dropped);
        }
        if packet.len() > MAX_SHORT_STREAM {
            return Err(Dropped);
        }
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Dropped)?;
        let connection = self.connection.clone();
        self.handle.spawn(async move {
            let _ = timeout(SHORT_STREAM_TIMEOUT, send_stream(&connection, &packet)).await;
            drop(permit);
        });
        Ok(())
    }
}

async fn send_stream(connection: &Connection, packet: &[u8]) -> Option<()> {
    // Dropped in the middle it is reset, and nothing of it is sent again.
    let mut send = Resetting(connection.open_uni().await.ok()?);
    send.0.write_all(packet).await.ok()?;
    send.0.finish().ok()?;
    let _ = send.0.stopped().await;
    Some(())
}

struct Resetting(quinn::SendStream);

impl Drop for Resetting {
    fn drop(&mut self) {
        // No effect on what has been acknowledged.
        let _ = self.0.reset(Code::Busy.number().into());
    }
}

/// Hands the packets of a connection to the endpoint's carrier until it closes. Nothing happens
/// where there is none, or where not both ends are workers.
pub(super) fn carry(shared: &Arc<Shared>, channel: &Channel) {
    if channel.uri.role() != Role::Worker {
        return;
    }
    if let Some(carrier) = shared.carrier.get().cloned() {
        shared.handle.spawn(packets(carrier, channel.clone()));
    }
}

async fn packets(carrier: Arc<dyn Carrier>, channel: Channel) {
    carrier.up(&channel);
    let connection = &channel.connection;
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                Ok(packet) => carrier.packet(&channel, packet),
                Err(_) => break,
            },
            // QUIC bounds how many there are at once.
            stream = connection.accept_uni() => match stream {
                Ok(stream) => drop(tokio::spawn(one(carrier.clone(), channel.clone(), stream))),
                Err(_) => break,
            },
        }
    }
    carrier.down(&channel);
}

async fn one(carrier: Arc<dyn Carrier>, channel: Channel, mut stream: RecvStream) {
    let packet = timeout(SHORT_STREAM_TIMEOUT, stream.read_to_end(MAX_SHORT_STREAM)).await;
    if let Ok(Ok(packet)) = packet {
        carrier.packet(&channel, packet.into());
    }
}
