use std::time::Duration;

use quinn::Connection;

/// What QUIC has found out about the path of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Round trip time.
    pub rtt: Duration,
    /// Longest UDP payload in bytes that is known to arrive.
    pub mtu: u16,
    /// Packets that this side has sent, without [`probes`](Self::probes).
    pub sent: u64,
    /// Those of them that were lost.
    pub lost: u64,
    /// Packets sent to find out how long one may be.
    pub probes: u64,
}

impl Path {
    /// UDP payload in bytes that every path of QUIC must carry; a connection begins with it.
    pub const MIN_MTU: u16 = 1_200;

    pub(super) fn of(connection: &Connection) -> Self {
        let path = connection.stats().path;
        Self {
            rtt: path.rtt,
            mtu: path.current_mtu,
            sent: path.sent_packets.saturating_sub(path.sent_plpmtud_probes),
            lost: path.lost_packets,
            probes: path.sent_plpmtud_probes,
        }
    }
}
