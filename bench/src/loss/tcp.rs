//! TCP sockets with a congestion controller of our choice, and a certificate for their servers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use rcgen::generate_simple_self_signed;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::Controller;

/// In the certificate, and what readers expect.
pub(super) const SERVER_NAME: &str = "localhost";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// Whether the kernel has it.
pub(super) fn probe(controller: Controller) -> anyhow::Result<()> {
    socket(controller).map(drop)
}

/// One that does not block and sends without delay.
fn socket(controller: Controller) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let word = match controller {
        Controller::Cubic => "cubic",
        Controller::Newreno => "reno",
        Controller::Bbr => "bbr",
    };
    let set = socket.set_tcp_congestion(word.as_bytes());
    set.with_context(|| format!("this kernel has no TCP {word}"))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What it accepts has the same controller.
pub(super) fn listen(controller: Controller, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = socket(controller)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into())?)
}

pub(super) async fn connect(
    controller: Controller,
    addr: SocketAddr,
) -> std::io::Result<TcpStream> {
    let socket = socket(controller).map_err(std::io::Error::other)?;
    TcpSocket::from_std_stream(socket.into())
        .connect(addr)
        .await
}

/// A certificate whose public half readers find in `dir`.
pub(super) struct Certificate {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Certificate {
    pub(super) fn make(dir: &Path) -> anyhow::Result<Self> {
        let made = generate_simple_self_signed([SERVER_NAME.to_owned()])?;
        let cert = made.cert.pem();
        fs::write(dir.join("tls.pem"), &cert)?;
        let key = made.signing_key.serialize_pem();
        Ok(Self { cert, key })
    }

    /// The public half.
    pub(super) fn read(dir: &Path) -> anyhow::Result<String> {
        fs::read_to_string(dir.join("tls.pem")).context("the server's certificate")
    }
}
