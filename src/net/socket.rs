use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::BindError;
use crate::trust::is_throwaway;

/// Asked for in each direction: with the kernel's default a swarm of 200 workers lost enough
/// packets to take twice as long.
const BUFFER_LEN: usize = 4 << 20;

/// Granted less than this, a hint is logged.
const BUFFER_LEN_POOR: usize = 1 << 20;

/// What the kernel granted to a socket of its buffers, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// For packets that come in.
    pub receive: usize,
    /// For packets that go out.
    pub send: usize,
}

impl Buffers {
    /// What a node asks for, each way.
    pub const ASKED: usize = BUFFER_LEN;

    /// What to do about [poor](Self::are_poor) ones.
    pub const HINT: &str = "raise net.core.rmem_max and net.core.wmem_max to 4194304";

    fn of(socket: SockRef<'_>) -> io::Result<Self> {
        // Linux reports twice what it grants.
        Ok(Self {
            receive: socket.recv_buffer_size()? / 2,
            send: socket.send_buffer_size()? / 2,
        })
    }

    /// Whether bursts will lose packets.
    pub fn are_poor(self) -> bool {
        self.receive.min(self.send) < BUFFER_LEN_POOR
    }
}

/// Whether a node of `cluster` may bind `addr`: the certificates that come with the source code
/// are for loopback only, since everyone has their keys.
///
/// # Errors
/// [`BindError::Throwaway`].
pub fn check_bind(addr: SocketAddr, cluster: &str) -> Result<(), BindError> {
    if is_throwaway(cluster) && !addr.ip().to_canonical().is_loopback() {
        let cluster = cluster.to_owned();
        return Err(BindError::Throwaway { addr, cluster });
    }
    Ok(())
}

/// A UDP socket that is bound and not yet used: a daemon takes it first, so that one which cannot
/// have its port leaves no trace.
#[derive(Debug)]
pub struct Port {
    pub(super) socket: UdpSocket,
    pub(super) addr: SocketAddr,
}

impl Port {
    /// Binds `addr` for a node of `cluster`.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(addr: SocketAddr, cluster: &str) -> Result<Self, BindError> {
        check_bind(addr, cluster)?;
        let bound = open(addr).and_then(|socket| {
            let addr = socket.local_addr()?;
            Ok(Self { socket, addr })
        });
        bound.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr, source },
            _ => BindError::Io { addr, source },
        })
    }

    /// The address that it has, with its port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What the kernel granted.
    ///
    /// # Errors
    /// What the system said.
    pub fn buffers(&self) -> io::Result<Buffers> {
        Buffers::of(SockRef::from(&self.socket))
    }
}

fn open(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel grants what its limits allow, or nothing; either way the socket works.
    let _ = socket.set_recv_buffer_size(BUFFER_LEN);
    let _ = socket.set_send_buffer_size(BUFFER_LEN);
    socket.bind(&addr.into())?;
    let buffers = Buffers::of(SockRef::from(&socket))?;
    let Buffers { receive, send } = buffers;
    if buffers.are_poor() {
        tracing::warn!(
            receive,
            send,
            hint = Buffers::HINT,
            "small socket buffers: bursts will lose packets"
        );
    } else {
        tracing::debug!(receive, send, "socket buffers");
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::THROWAWAY_CLUSTER;

    #[test]
    fn throwaway_certificates_bind_loopback_only() {
        for addr in [
            "127.0.0.1:0",
            "127.9.9.9:1",
            "[::1]:0",
            "[::ffff:127.0.0.1]:0",
        ] {
            let addr = addr.parse().expect("an address");
            assert!(check_bind(addr, THROWAWAY_CLUSTER).is_ok(), "{addr}");
        }
        for addr in [
            "0.0.0.0:0",
            "[::]:0",
            "192.0.2.1:4321",
            "[::ffff:10.0.0.1]:0",
        ] {
            let addr = addr.parse().expect("an address");
            assert!(check_bind(addr, "prod.example").is_ok(), "{addr}");
            let error = check_bind(addr, THROWAWAY_CLUSTER).expect_err("refused");
            assert!(error.to_string().contains("loopback"), "{error}");
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let bind = |addr| Port::bind(addr, "prod.example");
        let first = bind("127.0.0.1:0".parse().expect("an address")).expect("bind");
        let addr = first.addr;
        let error = bind(addr).expect_err("in use");
        assert!(matches!(error, BindError::InUse { .. }));
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}
