//! Every limit of the protocol, with its reason. What happens beyond one is said beside it.

use std::time::Duration;

/// Longest frame in bytes, its length field not counted: a publish of 100,000 names of ordinary
/// length fits. A longer one closes the stream with [`TooLarge`](super::code::Code::TooLarge).
pub const MAX_FRAME_LEN: u32 = 17 << 20;

/// Names in one [`Resolve`](super::wire::Resolve): what an engine asks for in one go. More is
/// refused.
pub const MAX_NAMES_PER_RESOLVE: usize = 1_024;

/// Records in one [`Listing`](super::wire::Listing) or entries in one
/// [`Log`](super::wire::Log). The rest is in the next page.
pub const MAX_PAGE: usize = 10_000;

/// Hashes in one [`Have`](super::wire::Have): as many as a publish may name. More is refused.
pub const MAX_HASHES_PER_HAVE: usize = crate::catalog::MAX_NAMES_PER_PUBLISH;

/// Requests at once on a connection; QUIC holds further ones back at the sender.
pub const MAX_STREAMS: u32 = 256;

/// Connections to one endpoint: a coordinator with 10,000 workers and some room. A further one is
/// refused.
pub const MAX_CONNECTIONS: usize = 12_000;

/// How long a resolve may take unless the caller says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How long one dial may take, hello included. A silent address costs this once, then the next
/// hop is tried.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the coordinator may take to answer a resolve before the next address is asked: three
/// retransmissions at 300 ms.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(2_500);

/// A peer's first byte may take this long at least, whatever its round trip was.
pub const FIRST_BYTE_MIN: Duration = Duration::from_millis(250);

/// Added to two round trips for a peer's first byte: time to read its disk.
pub const FIRST_BYTE_EXTRA: Duration = Duration::from_millis(100);

/// A body may not come slower than this in bytes per second, counted from [`FLOOR_GRACE`] after
/// its first byte: a peer that drips is dropped. The streams of a connection share it: with n of
/// them under way, a body may take n times as long.
pub const FLOOR_BYTES_PER_SEC: u64 = 64 << 10;

/// See [`FLOOR_BYTES_PER_SEC`].
pub const FLOOR_GRACE: Duration = Duration::from_secs(1);

/// Peers asked for one hash, one after the other or hedged.
pub const MAX_PEERS_PER_FETCH: usize = 3;

/// The next hop is asked when the one before is slower than its usual p95, within these bounds:
/// below, a hedge would double the load of a quick LAN; above, a reader would notice.
pub const HEDGE_MIN: Duration = Duration::from_millis(20);
/// See [`HEDGE_MIN`].
pub const HEDGE_MAX: Duration = Duration::from_secs(1);
/// Hedge delay while too few answers have been seen to know a p95.
pub const HEDGE_DEFAULT: Duration = Duration::from_millis(250);

/// A peer that sent wrong bytes is not asked again for this long.
pub const LIAR_BAN: Duration = Duration::from_secs(60);

/// A peer or coordinator address that failed to connect is tried after the others for this long.
pub const UNREACHABLE_PENALTY: Duration = Duration::from_secs(5);

/// Reads in progress at one worker. A further one fails with `busy`.
pub const MAX_READS: usize = 65_536;

/// Records that a worker remembers for reads at a revision; the least recently used go first.
pub const MAX_HELD: usize = 100_000;

/// Publishes waiting at the coordinator. A further one is refused with
/// [`Busy`](super::code::Code::Busy).
pub const MAX_PENDING: usize = 1_024;

/// Remembered idempotency keys: 24 h at one keyed publish a second, rounded up. When it is full
/// a keyed publish is refused with [`Busy`](super::code::Code::Busy).
pub const MAX_KEYS: usize = 100_000;

/// How long an idempotency key is remembered.
pub const KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Revisions that stay readable whatever their age.
pub const RETAINED_REVISIONS: u64 = 256;

/// Revisions younger than this stay readable whatever their number.
pub const RETAINED_AGE: Duration = Duration::from_secs(24 * 3600);
