use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AsyncUdpSocket, TransportConfig};
use rustls::pki_types::UnixTime;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::channel::Carrier;
use super::live::LiveConnections;
use super::serve::{self, Service};
use super::{BindError, Congestion, Floor, Port, transport};
use crate::proto::code::CloseCode;
use crate::proto::limit;
use crate::spec::MAX_SPEC_LEN;
use crate::trust::{self, Identity};

/// Peers are checked against the clock this often: certificates expire without a reload.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// After the last request of a drain, time for answers on their way to arrive.
const DRAIN_LINGER: Duration = Duration::from_millis(50);

/// After a drain, time for the closing packets to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What an endpoint is told when it starts.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// 32 random bytes that survive restarts, so that peers notice one at once.
    pub reset_key: [u8; 32],
    /// Program and version, as told to peers.
    pub agent: String,
    /// Largest spec in bytes that this node takes; cut to [`MAX_SPEC_LEN`].
    pub max_spec_len: u64,
    /// Bounds.
    pub limits: Limits,
    /// Who decides how fast this node sends.
    pub congestion: Congestion,
}

/// Bounds of an endpoint. More of each costs memory and helps against nothing but a bad network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that may come in; a further one is refused. Default
    /// [`limit::MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// Requests being read and answered at once; further ones wait. Default 4,096: 16 busy
    /// connections.
    pub max_requests: usize,
    /// How long a handshake, and then the first request, may take. Default
    /// [`limit::DIAL_TIMEOUT`].
    pub hello: Duration,
    /// How long one dial may take, hello included; [`limit::ANSWERED_DIAL`] times as long once it
    /// has been answered. Default [`limit::DIAL_TIMEOUT`].
    pub dial: Duration,
    /// The slowest pace of a request, and of a peer that reads an answer.
    pub floor: Floor,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: limit::MAX_CONNECTIONS,
            max_requests: 4_096,
            hello: limit::DIAL_TIMEOUT,
            dial: limit::DIAL_TIMEOUT,
            floor: Floor::default(),
        }
    }
}

/// One UDP socket that dials, and listens once [`serve`](Self::serve) is called.
///
/// Cheap to clone. It lives until [`drain`](Self::drain), or until its runtime stops.
#[derive(Debug, Clone)]
pub struct Endpoint(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) quinn: quinn::Endpoint,
    pub(super) handle: Handle,
    pub(super) identity: Identity,
    pub(super) options: EndpointOptions,
    /// What it is bound to now.
    bound: Mutex<Bound>,
    /// Where packets come from, after each change of that.
    pub(super) moved: watch::Sender<Option<SocketAddr>>,
    pub(super) client: quinn::ClientConfig,
    /// Shared with the endpoints that go [over](Endpoint::over) others.
    pub(super) live: Arc<LiveConnections>,
    /// Where every packet goes, whatever address is dialled.
    pub(super) only: Option<SocketAddr>,
    /// Takes packets, if any are wanted.
    pub(super) carrier: OnceLock<Arc<dyn Carrier>>,
    /// Room for connections that come in.
    pub(super) connections: Arc<Semaphore>,
    /// Room for requests.
    pub(super) requests: Arc<Semaphore>,
    /// Room for the bytes of large requests, in KiB.
    pub(super) request_kib: Arc<Semaphore>,
    /// Set once, by a drain.
    pub(super) draining: watch::Sender<bool>,
}

#[derive(Debug)]
struct Bound {
    addr: SocketAddr,
    /// The same socket as quinn's; `None` where packets go over another worker.
    socket: Option<UdpSocket>,
}

impl Endpoint {
    /// Runs on `handle`, which is a [`Runtime`](super::Runtime)'s, over a socket that is bound.
    ///
    /// # Errors
    /// [`BindError::Io`] when the system takes the socket back.
    pub fn start(
        handle: &Handle,
        port: Port,
        identity: Identity,
        mut options: EndpointOptions,
    ) -> Result<Self, BindError> {
        options.max_spec_len = options.max_spec_len.min(MAX_SPEC_LEN);
        let Port { socket, addr } = port;
        let fail = |source| BindError::Io { addr, source };
        let kept = socket.try_clone().map_err(fail)?;
        let config = transport::endpoint(&options.reset_key);
        // quinn finds the runtime of its tasks in the context.
        let context = handle.enter();
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new(config, None, socket, runtime).map_err(fail)?;
        drop(context);
        let (limits, congestion) = (options.limits, options.congestion);
        let shared = Arc::new(Shared {
            quinn,
            handle: handle.clone(),
            client: client_config(
                &identity,
                transport::dialler(identity.uri().role(), congestion),
            ),
            identity,
            options,
            bound: Mutex::new(Bound {
                addr,
                socket: Some(kept),
            }),
            moved: watch::Sender::new(None),
            live: Arc::default(),
            only: None,
            carrier: OnceLock::new(),
            connections: Arc::new(Semaphore::new(limits.max_connections)),
            requests: Arc::new(Semaphore::new(limits.max_requests)),
            request_kib: Arc::new(Semaphore::new(serve::MAX_REQUEST_KIB)),
            draining: watch::Sender::new(false),
        });
        handle.spawn(check_peers(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// The same node over a socket of another kind, which leads to one address alone. It dials
    /// only, and its peers are checked whenever this endpoint's are.
    pub(super) fn over(&self, socket: Arc<dyn AsyncUdpSocket>, to: SocketAddr) -> io::Result<Self> {
        let outer = &self.0;
        let addr = socket.local_addr()?;
        let config = transport::relayed_endpoint(&outer.options.reset_key);
        let context = outer.handle.enter();
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime)?;
        drop(context);
        let transport = transport::relayed(outer.identity.uri().role(), outer.options.congestion);
        Ok(Self(Arc::new(Shared {
            quinn,
            handle: outer.handle.clone(),
            client: client_config(&outer.identity, transport),
            identity: outer.identity.clone(),
            options: outer.options.clone(),
            bound: Mutex::new(Bound { addr, socket: None }),
            moved: watch::Sender::new(None),
            live: Arc::clone(&outer.live),
            only: Some(to),
            carrier: OnceLock::new(),
            connections: Arc::new(Semaphore::new(0)),
            requests: Arc::new(Semaphore::new(0)),
            request_kib: Arc::new(Semaphore::new(0)),
            draining: watch::Sender::new(false),
        })))
    }

    /// Closes every connection and takes no new one.
    pub(super) fn close(&self) {
        let code = CloseCode::Done;
        self.0
            .quinn
            .close(code.number().into(), code.as_str().as_bytes());
    }

    /// The address that it is bound to, with its port. It changes where the endpoint
    /// [roams](Self::roam).
    pub fn local_addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// This node's certificate and trust.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Connections that are open, in both directions.
    pub fn connections(&self) -> usize {
        self.0.live.len()
    }

    /// Hands the packets of connections with workers to `carrier`, from the next connection on. It
    /// counts once; a second carrier is ignored.
    pub fn carry(&self, carrier: Arc<dyn Carrier>) {
        let _ = self.0.carrier.set(carrier);
    }

    /// Accepts connections and answers requests with `service` until the drain.
    pub fn serve<S: Service>(&self, service: Arc<S>) {
        let congestion = self.0.options.congestion;
        self.0
            .quinn
            .set_server_config(Some(server_config(&self.0.identity, congestion)));
        self.0.handle.spawn(serve::accept(self.0.clone(), service));
    }

    /// Ends the endpoint: no new connection, new requests are refused with
    /// [`Draining`](crate::proto::code::Code::Draining), those in progress may finish within
    /// `patience`, then every connection is closed with [`CloseCode::Draining`].
    ///
    /// Returns whether all requests had finished.
    pub async fn drain(&self, patience: Duration) -> bool {
        let shared = &self.0;
        let deadline = Instant::now() + patience;
        shared.draining.send_replace(true);
        let all = u32::try_from(shared.options.limits.max_requests).unwrap_or(u32::MAX);
        let finished = timeout_at(deadline, shared.requests.acquire_many(all))
            .await
            .is_ok();
        if !finished {
            tracing::warn!(?patience, "drained with requests in progress");
        }
        sleep(DRAIN_LINGER).await;
        let code = CloseCode::Draining;
        shared
            .quinn
            .close(code.number().into(), code.as_str().as_bytes());
        // Else the packets that say so may not leave before the process ends.
        if timeout(CLOSE_TIMEOUT, shared.quinn.wait_idle())
            .await
            .is_err()
        {
            tracing::debug!("some peers did not acknowledge the close");
        }
        finished
    }
}

impl Shared {
    pub(super) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.bound().addr
    }

    /// The present socket once more.
    pub(super) fn clone_socket(&self) -> io::Result<UdpSocket> {
        match &self.bound().socket {
            Some(socket) => socket.try_clone(),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Remembers what quinn was given.
    pub(super) fn set_socket(&self, socket: UdpSocket, addr: SocketAddr) {
        let socket = Some(socket);
        *self.bound() = Bound { addr, socket };
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        // It is replaced whole.
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client_config(identity: &Identity, transport: Arc<TransportConfig>) -> quinn::ClientConfig {
    let tls = trust::client_config(identity);
    let crypto = QuicClientConfig::try_from(tls).expect("ring has QUIC's initial suite");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    config
}

fn server_config(identity: &Identity, congestion: Congestion) -> quinn::ServerConfig {
    let tls = trust::server_config(identity);
    let crypto = QuicServerConfig::try_from(tls).expect("ring has QUIC's initial suite");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let role = identity.uri().role();
    config.transport_config(transport::listener(role, congestion));
    config
}

/// Holds every live connection against the trust again, after each reload and now and then.
async fn check_peers(shared: Weak<Shared>) {
    let Some(mut changes) = shared.upgrade().map(|shared| shared.identity.changes()) else {
        return;
    };
    loop {
        // Either way: a change, or time has passed.
        if let Ok(Err(_)) = timeout(CHECK_EVERY, changes.changed()).await {
            return;
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared
            .live
            .check_again(&shared.identity, UnixTime::now())
            .await;
    }
}
