//! Numbers of the QUIC transport, with their reasons.

use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, IdleTimeout, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::HmacKey;

use super::congestion::Congestion;
use crate::identity::Role;
use crate::proto::limit::{MAX_SHORT_STREAMS, MAX_STREAMS, RELAY_MTU};

/// A link that is cut for less than this goes on as if nothing had happened.
const IDLE_TIMEOUT_MS: u32 = 60_000;

/// Sent by the side that dialled: often enough for NATs that forget a mapping after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What is lost of a handshake is sent again after three times this. quinn's own 333 ms would make
/// that a second; where a round trip takes longer, a packet or two are sent for nothing. Of
/// connections with a first read, over 40 ms with 20 % lost in each direction, half took 0.5 s with
/// 100 ms here, 0.4 s with this, and 0.3 to 0.4 s with 30 ms.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// How long the other side may wait before it acknowledges a packet that stands alone. It is part
/// of how long a lost request or answer is waited for, and the usual 25 ms are much of that: a
/// hundred reads one after the other took 6.0 s with them and 5.7 s with this where 5 % were lost
/// in each direction, and 17.0 s and 15.1 s where 20 % were.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// What one stream may send unread: a spec of usual length in one round trip.
const STREAM_WINDOW: u32 = 1 << 20;

/// What one connection may send unread to the side that asks: many bodies at once.
const ASKER_WINDOW: u32 = 8 << 20;

/// The same to the side that answers: requests are small, and there may be 12,000 connections.
const ANSWERER_WINDOW: u32 = 2 << 20;

/// The same over another worker: what its share of that worker's path carries in a moment.
const RELAYED_WINDOW: u32 = 1 << 20;

/// Datagrams that wait on one connection, in bytes, each way; the oldest give way.
const DATAGRAM_BUFFER: usize = 64 << 10;

/// What the side that dials lets the other one send unread.
pub(super) const fn dialler_window(relayed: bool) -> u32 {
    match relayed {
        true => RELAYED_WINDOW,
        false => ASKER_WINDOW,
    }
}

/// For the side that is dialled.
pub(super) fn listener(role: Role, congestion: Congestion) -> Arc<TransportConfig> {
    let mut config = base(role, congestion);
    config
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .receive_window(ANSWERER_WINDOW.into())
        .send_window(ASKER_WINDOW.into());
    Arc::new(config)
}

/// For the side that dials; nobody opens a stream to it.
pub(super) fn dialler(role: Role, congestion: Congestion) -> Arc<TransportConfig> {
    let mut config = base(role, congestion);
    config
        .max_concurrent_bidi_streams(0_u8.into())
        .receive_window(ASKER_WINDOW.into())
        .send_window(ANSWERER_WINDOW.into())
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// For a connection that goes over another worker: the packets of the one inside must fit into
/// the one outside, whatever path that takes.
pub(super) fn relayed(role: Role, congestion: Congestion) -> Arc<TransportConfig> {
    let mut config = base(role, congestion);
    config
        .max_concurrent_bidi_streams(0_u8.into())
        .receive_window(RELAYED_WINDOW.into())
        .send_window(ANSWERER_WINDOW.into())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_mtu(RELAY_MTU)
        .min_mtu(RELAY_MTU)
        .mtu_discovery_config(None);
    Arc::new(config)
}

/// `bench --only loss` chose [`Congestion::Bbr`] as the default in November 2026. Over 40 ms there
/// and back with 0, 5 and 20 % lost in each direction, 100 definitions of 4 KiB took, in seconds:
///
/// | controller | 64 at once | one after the other |
/// | --- | --- | --- |
/// | cubic | 0.36, 2.14, 5.89 | 4.21, 6.19, 23.2 |
/// | NewReno | 0.36, 2.78, 12.2 | 4.20, 7.31, 28.0 |
/// | BBR, bounded | 0.25, 0.45, 1.05 | 4.21, 6.00, 15.1 |
///
/// On loopback the fetches of `bench` are the same with cubic and with BBR, within their noise.
fn base(role: Role, congestion: Congestion) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(ACK_DELAY));
    let mut config = TransportConfig::default();
    // Only workers send each other packets beside requests.
    let (streams, datagrams) = match role {
        Role::Worker => (MAX_SHORT_STREAMS, Some(DATAGRAM_BUFFER)),
        Role::Coordinator | Role::Publisher | Role::Reader => (0, None),
    };
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(STREAM_WINDOW.into())
        .max_concurrent_uni_streams(streams.into())
        .datagram_receive_buffer_size(datagrams)
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(congestion.factory());
    config
}

/// Makes a restarted node recognisable: with the same key it answers packets of connections
/// that it no longer knows with a reset that their peers believe, and those notice at once
/// instead of after the idle timeout. Both the tokens and the connection ids must come from it.
pub(super) fn endpoint(reset_key: &[u8; 32]) -> quinn::EndpointConfig {
    let hmac = ResetKey(blake3::derive_key(
        "larder 2026 stateless reset tokens",
        reset_key,
    ));
    let cid = blake3::derive_key("larder 2026 connection ids", reset_key);
    let (cid, _) = cid.split_first_chunk().expect("32 bytes begin with 8");
    let cid = u64::from_be_bytes(*cid);
    let mut config = quinn::EndpointConfig::new(Arc::new(hmac));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid)));
    config
}

/// The same for an endpoint whose packets go over another worker: the other side is told to send
/// no longer ones.
pub(super) fn relayed_endpoint(reset_key: &[u8; 32]) -> quinn::EndpointConfig {
    let mut config = endpoint(reset_key);
    config
        .max_udp_payload_size(RELAY_MTU)
        .expect("QUIC takes packets of 1,200 bytes");
    config
}

/// Keyed BLAKE3 as the MAC of reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        let mac = blake3::keyed_hash(&self.0, data);
        out.copy_from_slice(mac.as_bytes());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(
        &self,
        data: &[u8],
        signature: &[u8],
    ) -> Result<(), quinn_proto::crypto::CryptoError> {
        // `Hash` compares in constant time.
        let mac = blake3::keyed_hash(&self.0, data);
        match <&[u8; 32]>::try_from(signature) {
            Ok(claimed) if mac == *claimed => Ok(()),
            _ => Err(quinn_proto::crypto::CryptoError),
        }
    }
}
