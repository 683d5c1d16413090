//! One dial: the addresses of a name in turn, and the hello.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connecting, Connection, WriteError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Dialled, Greeting, Inner, MAX_ADDRS, Up};
use crate::net::channel::{Channel, carry};
use crate::net::endpoint::Shared;
use crate::net::error::{DialFailure, LinkError};
use crate::net::frame::{ReadFail, peek_end, read_frame};
use crate::net::live::{Vouched, close};
use crate::net::pace::Sharers;
use crate::net::session::session_key;
use crate::proto::code::CloseCode;
use crate::proto::limit::{ANSWERED_DIAL, MAX_FRAME_LEN};
use crate::proto::wire::{Hello, Request, Response, Welcome, decode_answer};
use crate::trust::{Credentials, Usage};

/// TLS wants a name; certificates are checked by their URI, so any will do.
const SERVER_NAME: &str = "larder";

impl Inner {
    pub(super) async fn dial(self: Arc<Self>, done: watch::Sender<Dialled>) {
        let within = self.endpoint.options.limits.dial;
        let deadline = Instant::now() + within;
        let result = match timeout(within * ANSWERED_DIAL, self.dial_any(deadline, &done)).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(DialFailure::Timeout(within * ANSWERED_DIAL))),
        };
        let word = result.as_ref().map_or_else(LinkError::kind, |_| "up");
        metrics::counter!("larder_dials_total", "result" => word).increment(1);
        if let Err(error) = &result {
            tracing::debug!(addr = %self.addr, %error, "dial failed");
        }
        self.state().record(&result);
        done.send_replace(Dialled::Done(result));
    }

    /// Tries the addresses of the name in turn, each with its share of the time that is left.
    async fn dial_any(
        &self,
        deadline: Instant,
        done: &watch::Sender<Dialled>,
    ) -> Result<Arc<Up>, LinkError> {
        let addrs = self.addrs().await?;
        let mut last = self.unreachable(DialFailure::NoAddress);
        for (tried, &addr) in addrs.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addrs.len() - tried).unwrap_or(1);
            last = match self.dial_one(addr, share, done).await {
                Ok(up) => return Ok(Arc::new(up)),
                Err(error) => error,
            };
        }
        Err(last)
    }

    /// The addresses of the name that the endpoint's socket reaches.
    async fn addrs(&self) -> Result<Vec<SocketAddr>, LinkError> {
        if let Some(only) = self.endpoint.only {
            return Ok(vec![only]);
        }
        let addrs = tokio::net::lookup_host(&self.addr)
            .await
            .map_err(|error| self.unreachable(DialFailure::Dns(Arc::new(error))))?;
        let v4_only = self.endpoint.addr().is_ipv4();
        let addrs = addrs.filter(|addr| addr.is_ipv4() || !v4_only);
        Ok(addrs.take(MAX_ADDRS).collect())
    }

    /// Waits for `within` for any answer.
    async fn dial_one(
        &self,
        addr: SocketAddr,
        within: Duration,
        done: &watch::Sender<Dialled>,
    ) -> Result<Up, LinkError> {
        let client = self.endpoint.client.clone();
        let own = self.endpoint.identity.current();
        let connecting = self.endpoint.quinn.connect_with(client, addr, SERVER_NAME);
        let mut connecting = connecting.map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => LinkError::ClosedHere,
            error => self.unreachable(DialFailure::Address(error.to_string())),
        })?;
        match timeout(within, connecting.handshake_data()).await {
            Ok(Ok(_)) => done.send_replace(Dialled::Answered),
            Ok(Err(error)) => return Err(self.not_connected(error)),
            Err(_) => return Err(self.unreachable(DialFailure::Timeout(within))),
        };
        match timeout(within * ANSWERED_DIAL, self.greet(connecting, own, done)).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(DialFailure::Timeout(within * ANSWERED_DIAL))),
        }
    }

    /// The rest of a handshake, and the hello.
    async fn greet(
        &self,
        connecting: Connecting,
        own: Arc<Credentials>,
        done: &watch::Sender<Dialled>,
    ) -> Result<Up, LinkError> {
        let connection = connecting
            .await
            .map_err(|error| self.not_connected(error))?;
        let mut unfinished = Unfinished {
            shared: &self.endpoint,
            connection: Some(connection.clone()),
        };
        let up = self.hello(&connection, own, done).await?;
        unfinished.connection = None;
        Ok(up)
    }

    /// With TLS 1.3 a refused certificate of ours shows only here.
    async fn hello(
        &self,
        connection: &Connection,
        own: Arc<Credentials>,
        done: &watch::Sender<Dialled>,
    ) -> Result<Up, LinkError> {
        let shared = &self.endpoint;
        let uri = shared
            .live
            .add(connection, Usage::Listener, &shared.identity)
            .map_err(LinkError::PeerUntrusted)?;
        tokio::spawn(forget_when_closed(shared.clone(), connection.clone()));
        if !self.wanted.accepts(&uri) {
            close(connection, CloseCode::WrongNode);
            let wanted = self.wanted;
            return Err(LinkError::WrongNode { uri, wanted });
        }
        let hello = Request::Hello(Hello {
            agent: shared.options.agent.clone(),
        });
        let (mut send, mut recv) = connection.open_bi().await?;
        match send.write_all(&hello.to_frame()?).await {
            Err(WriteError::ConnectionLost(error)) => return Err(self.not_connected(error)),
            _ => send.finish().ok(),
        };
        let sharers = Sharers::new();
        // Its stream is the first: what goes out from now on is behind it.
        done.send_replace(Dialled::Greeting(Greeting {
            connection: connection.clone(),
            sharers: sharers.clone(),
        }));
        let limits = &shared.options.limits;
        let patience = limits.dial * ANSWERED_DIAL;
        let first_byte = Instant::now() + patience;
        let share = sharers.join(limits.floor);
        let frame = read_frame(&mut recv, MAX_FRAME_LEN as usize, first_byte, &share).await;
        let (tag, header) = frame.map_err(|fail| match fail {
            ReadFail::Gone(quinn::ReadError::ConnectionLost(error)) => self.not_connected(error),
            fail => fail.or_silent(patience),
        })?;
        peek_end(&mut recv);
        match decode_answer(tag, &header)? {
            Ok(Response::Welcome(welcome)) => {
                self.vouch(connection, &welcome)?;
                let channel = Channel::new(shared, connection, Arc::new(uri.clone()), true);
                carry(&self.endpoint, &channel);
                Ok(Up {
                    connection: connection.clone(),
                    uri,
                    channel,
                    welcome,
                    own,
                    sharers,
                })
            }
            Ok(_) => Err(LinkError::unexpected()),
            Err(refusal) => Err(LinkError::Refused(refusal)),
        }
    }

    fn vouch(&self, connection: &Connection, welcome: &Welcome) -> Result<(), LinkError> {
        let Some(by) = self.vouch.clone() else {
            return Ok(());
        };
        let session = session_key(connection).ok_or(LinkError::ClosedHere)?;
        let welcome = welcome.clone();
        let vouched = Vouched {
            by,
            session,
            welcome,
        };
        let live = &self.endpoint.live;
        live.vouch(connection, vouched).map_err(LinkError::Unproven)
    }

    fn unreachable(&self, reason: DialFailure) -> LinkError {
        let addr = self.addr.clone();
        LinkError::Dial { addr, reason }
    }

    /// While a link is not up, these two mean something more.
    fn not_connected(&self, error: quinn::ConnectionError) -> LinkError {
        match error {
            quinn::ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                self.unreachable(DialFailure::Busy)
            }
            quinn::ConnectionError::TimedOut => {
                self.unreachable(DialFailure::Timeout(self.endpoint.options.limits.dial))
            }
            error => error.into(),
        }
    }
}

/// Closes and forgets a connection whose hello failed, or was given up.
struct Unfinished<'a> {
    shared: &'a Shared,
    /// `None` once it is up.
    connection: Option<Connection>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.shared.live.remove(&connection);
            close(&connection, CloseCode::Done);
        }
    }
}

async fn forget_when_closed(shared: Arc<Shared>, connection: Connection) {
    connection.closed().await;
    shared.live.remove(&connection);
}
