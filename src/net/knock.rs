//! Whether QUIC is there at all, without a certificate.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// How long a packet is that a server answers although it does not know its version.
const KNOCK_LEN: usize = 1_200;

/// A version that exists to be refused: every server names those that it speaks.
const UNKNOWN_VERSION: u32 = 0x1a2a_3a4a;

/// Bytes of a connection id of ours.
const ID_LEN: usize = 8;

/// When it is tried, counted from the beginning: a packet may be lost.
const KNOCKS_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_millis(900),
];

/// What came of asking an address whether QUIC is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knock {
    /// QUIC answers.
    Answered,
    /// The machine, or a firewall, says that nobody listens on that port.
    Refused,
    /// The packet did not leave, or a router sent it back: what the system says.
    Unroutable(String),
    /// Nothing came back.
    Silent,
}

/// Asks `to` for the versions of QUIC that it speaks, and waits up to `within` for any answer.
///
/// Nobody proves anything here: it only tells a path that is blocked from one that is not.
pub async fn knock(to: SocketAddr, within: Duration) -> Knock {
    match try_knock(to, within).await {
        Ok(knock) => knock,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
        Err(error) => Knock::Unroutable(error.to_string()),
    }
}

async fn try_knock(to: SocketAddr, within: Duration) -> io::Result<Knock> {
    let began = Instant::now();
    let socket = UdpSocket::bind(local_addr(to)).await?;
    // Only a connected socket is told what a router or the other machine says by ICMP.
    socket.connect(to).await?;
    let id: [u8; ID_LEN] = rand::random();
    let packet = packet(id);
    let mut answer = [0; KNOCK_LEN];
    for (tried, _) in KNOCKS_AT.iter().enumerate() {
        socket.send(&packet).await?;
        let next = KNOCKS_AT.get(tried + 1).copied().unwrap_or(within);
        let until = began + next.min(within);
        while let Ok(received) = timeout_at(until, socket.recv(&mut answer)).await {
            if is_answer(answer.get(..received?).unwrap_or_default(), id) {
                return Ok(Knock::Answered);
            }
        }
    }
    Ok(Knock::Silent)
}

fn local_addr(to: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

/// A long header of a version that nobody speaks, and zeros (RFC 8999, section 5.1).
fn packet(id: [u8; ID_LEN]) -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend(UNKNOWN_VERSION.to_be_bytes());
    for _ in 0..2 {
        packet.push(ID_LEN as u8);
        packet.extend(id);
    }
    packet.resize(KNOCK_LEN, 0);
    packet
}

/// Whether it is a version negotiation packet that answers ours (RFC 8999, section 6).
fn is_answer(bytes: &[u8], id: [u8; ID_LEN]) -> bool {
    let [first, 0, 0, 0, 0, len, rest @ ..] = bytes else {
        return false;
    };
    first & 0x80 != 0 && usize::from(*len) == ID_LEN && rest.starts_with(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    async fn loopback() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.expect("a port")
    }

    #[tokio::test]
    async fn a_port_that_swallows_everything_is_silent_and_a_free_one_refuses() {
        let socket = loopback().await;
        let addr = socket.local_addr().expect("bound");
        assert_eq!(knock(addr, SHORT).await, Knock::Silent);
        drop(socket);
        assert_eq!(knock(addr, SHORT).await, Knock::Refused);
    }

    #[tokio::test]
    async fn quic_answers_and_an_echo_is_no_answer() {
        let server = loopback().await;
        let addr = server.local_addr().expect("bound");
        let answers = tokio::spawn(async move {
            let mut bytes = [0; 2 * KNOCK_LEN];
            let (len, from) = server.recv_from(&mut bytes).await.expect("a packet");
            server.send_to(&bytes[..len], from).await.expect("sent");
            let id = bytes[6..6 + ID_LEN].to_vec();
            let versions = [&[0x80, 0, 0, 0, 0, 8][..], &id, &[0], &[0, 0, 0, 1]].concat();
            server.send_to(&versions, from).await.expect("sent");
            len
        });
        let patience = Duration::from_secs(60);
        assert_eq!(knock(addr, patience).await, Knock::Answered);
        assert_eq!(answers.await.expect("no panic"), KNOCK_LEN);
        assert!(!is_answer(&packet([7; ID_LEN]), [7; ID_LEN]));
    }

    #[test]
    fn foreign_bytes_are_no_answer() {
        let good = [0x80, 0, 0, 0, 0, 8, 1, 1, 1, 1, 1, 1, 1, 1, 0];
        assert!(is_answer(&good, [1; ID_LEN]));
        for len in 0..14 {
            assert!(!is_answer(&good[..len], [1; ID_LEN]), "{len}");
        }
        assert!(!is_answer(&good, [2; ID_LEN]));
    }
}
