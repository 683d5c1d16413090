//! The listeners: bound first, so that what is wrong shows before the node starts its work.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::gate::Door;
use super::routes::{Surface, router};
use super::socket::{self, SocketError, SocketFile};
use super::stall::Stalls;
use super::{HEAD_TIMEOUT, MAX_CONNECTIONS, MAX_UPLOADS, Node, STOP_DEADLINE};

/// Where to listen, and for whom.
pub struct HttpOptions {
    /// The Unix socket, if there shall be one.
    pub unix: Option<UnixOptions>,
    /// A loopback address, if reads over TCP shall be possible. Port 0 takes a free one.
    pub tcp: Option<SocketAddr>,
    /// Who answers.
    pub node: Arc<dyn Node>,
}

/// The Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixOptions {
    /// Its path. A missing directory is created, for the owner alone unless there is a group.
    pub path: PathBuf,
    /// A group, by name or number, that may connect too; `None`: only the owner.
    pub group: Option<String>,
}

/// Why local HTTP does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can be reached from other machines.
    #[error("local HTTP listens on loopback addresses only, {addr} is none")]
    NotLoopback {
        /// The address.
        addr: SocketAddr,
    },
    /// The address is taken or not ours.
    #[error("cannot listen on {addr}")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// There is no Unix socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Addresses that are taken before there is a node to answer there, so that a node which cannot
/// have them does not begin its work. Dropping it removes the socket's file.
pub struct Listeners {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, SocketAddr)>,
}

impl Listeners {
    /// Takes the addresses. Connections wait until [`Server::run`].
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind then, except a directory for the socket.
    pub async fn bind(
        unix: Option<&UnixOptions>,
        tcp: Option<SocketAddr>,
    ) -> Result<Self, ServeError> {
        let tcp = match tcp {
            Some(addr) => Some(bind_tcp(addr).await?),
            None => None,
        };
        let unix = match unix {
            Some(unix) => Some(socket::bind(unix).await?),
            None => None,
        };
        Ok(Self { unix, tcp })
    }

    /// Says who answers.
    pub fn with(self, node: Arc<dyn Node>) -> Server {
        Server {
            listeners: self,
            node,
        }
    }
}

/// Local HTTP that is bound and not yet served. Dropping it removes the socket's file.
pub struct Server {
    listeners: Listeners,
    node: Arc<dyn Node>,
}

impl Server {
    /// Takes the addresses. Connections wait until [`run`](Self::run).
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind then, except a directory for the socket.
    pub async fn bind(options: HttpOptions) -> Result<Self, ServeError> {
        let listeners = Listeners::bind(options.unix.as_ref(), options.tcp).await?;
        Ok(listeners.with(options.node))
    }

    /// The TCP address, with the port that was taken.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.listeners.tcp.as_ref().map(|(_, addr)| *addr)
    }

    /// Serves until `shutdown` ends; then requests in progress have [`STOP_DEADLINE`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let uploads = Arc::new(Semaphore::new(MAX_UPLOADS));
        let backups = Arc::new(Semaphore::new(1));
        let routes = |door| {
            router(Surface {
                node: Arc::clone(&self.node),
                door,
                uploads: Arc::clone(&uploads),
                backups: Arc::clone(&backups),
            })
        };
        let (stop, stopping) = watch::channel(false);
        let mut listeners = JoinSet::new();
        if let Some((listener, file)) = self.listeners.unix {
            listeners.spawn(serve(
                listener,
                Some(file),
                routes(Door::Unix),
                stopping.clone(),
            ));
        }
        if let Some((listener, _)) = self.listeners.tcp {
            listeners.spawn(serve(listener, None, routes(Door::Tcp), stopping.clone()));
        }
        shutdown.await;
        stop.send_replace(true);
        while listeners.join_next().await.is_some() {}
    }
}

async fn bind_tcp(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    if !addr.ip().is_loopback() {
        return Err(ServeError::NotLoopback { addr });
    }
    let failed = |source| ServeError::Tcp { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

/// Accepts until it is told to stop, then waits for what is in progress.
async fn serve<L: Listener>(
    mut listener: L,
    file: Option<SocketFile>,
    router: Router,
    stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = stopping.clone();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await.0)
        };
        let (place, io) = tokio::select! {
            (place, io) = next => (place.expect("never closed"), io),
            () = stopped(&mut stop) => break,
        };
        connections.spawn(connection(io, router.clone(), stopping.clone(), place));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    drop(file);
    let ending = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_DEADLINE, ending).await.is_err() {
        let cut = connections.len();
        tracing::warn!(cut, "local requests were still in progress at the end");
        connections.shutdown().await;
    }
}

async fn connection<I>(
    io: I,
    router: Router,
    mut stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Stalls::new(io)), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a local connection ended early");
    }
}

/// Ends when the server stops, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|&stop| stop).await;
}
