//! Moves the frames of the [protocol](crate::proto) over QUIC, and knows nothing of what they say.
//!
//! - [`Runtime`] is the one thread that all of QUIC runs on.
//! - [`Port`] is a bound UDP socket, taken before anything else is touched.
//! - [`Endpoint`] is one that listens and dials. [`Endpoint::serve`] accepts
//!   connections, checks every request against the role table and the limits, and hands what
//!   passes to a [`Service`]. [`Endpoint::drain`] ends it.
//!   [`Endpoint::roam`] has it follow this machine's addresses.
//! - [`Link`] is one address to ask. It dials when it is used, once for all who wait, and each
//!   [`Link::call`] is one stream whose answer is read frame by frame from an [`Exchange`].
//!
//! - A [`Carrier`] takes the packets that workers send each other over their connections, beside
//!   requests, and a [`Channel`] sends them.
//! - A [`Relay`] carries the packets of other workers to the coordinator, and this worker's own over
//!   others: a [`RelayPath`] is an [`Endpoint`] whose packets go through a [`Channel`].
//!
//! Who a peer is comes from [`trust`](crate::trust); what more is asked of it, from a [`Vouch`]. A connection that no longer passes its check
//! is closed while it lives. Nothing here takes a decision about freshness, retries a request,
//! or trusts a length that it was told.

mod channel;
mod congestion;
mod dial_back;
mod endpoint;
mod error;
mod exchange;
mod frame;
mod knock;
mod link;
mod live;
mod pace;
mod path;
mod pulse;
mod relay;
mod roam;
mod runtime;
mod serve;
mod session;
mod socket;
mod transport;

use std::time::Duration;

pub use self::channel::{Carrier, Channel, Dropped};
pub use self::congestion::Congestion;
pub use self::dial_back::DialBack;
pub use self::endpoint::{Endpoint, EndpointOptions, Limits};
pub use self::error::{BindError, DialFailure, LinkError};
pub use self::exchange::{Exchange, Patience, Timing};
pub use self::knock::{Knock, knock};
pub use self::link::{Further, Link, MAX_ADDRS, Wanted};
pub use self::path::Path;
pub use self::relay::{Relay, RelayLimits, RelayPath};
pub use self::runtime::Runtime;
pub use self::serve::{Gone, Peer, Reply, Service};
pub use self::session::{SessionKey, Vouch};
pub use self::socket::{Buffers, Port, check_bind};
use crate::proto::limit;

/// The slowest pace at which bytes may move on a connection. Its streams share it: with n of them
/// under way, each may take n times as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Bytes that must have come per second, on average since the grace ended.
    pub bytes_per_sec: u64,
    /// How long nothing is demanded.
    pub grace: Duration,
}

impl Default for Floor {
    fn default() -> Self {
        Self {
            bytes_per_sec: limit::FLOOR_BYTES_PER_SEC,
            grace: limit::FLOOR_GRACE,
        }
    }
}

impl Floor {
    /// How long `len` bytes may take.
    fn allows(&self, len: u64) -> Duration {
        self.grace + self.moves(len)
    }

    /// The same without the grace.
    fn moves(&self, len: u64) -> Duration {
        let rate = self.bytes_per_sec.max(1);
        let micros = u128::from(len) * 1_000_000 / u128::from(rate);
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
