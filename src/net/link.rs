//! The side that dials: one address, one connection at a time, one stream per request.

mod dial;

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendStream, WriteError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::channel::Channel;
use super::endpoint::{Endpoint, Shared};
use super::error::LinkError;
use super::exchange::{Exchange, Patience, Sent};
use super::live::close;
use super::pace::{Over, Sharers};
use super::path::Path;
use super::pulse::{Pulse, received};
use super::session::Vouch;
use super::transport::dialler_window;
use crate::identity::{NodeId, NodeUri, Role};
use crate::proto::code::{CloseCode, Code};
use crate::proto::limit::ALIVE_EVERY;
use crate::proto::wire::{Request, Welcome};
use crate::trust::Credentials;

/// Addresses tried of one host name; a dual-stack host has two, further ones are left out.
pub const MAX_ADDRS: usize = 4;

/// After a failed dial the next one waits this long, doubled with each failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// At most this long, so that a link is up soon after the network is.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A call that may not wait out the backoff still dials at most this often, and waits for its turn if
/// it has the time.
const FORCED_DIAL_EVERY: Duration = Duration::from_millis(200);

/// Who is expected at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The coordinator.
    Coordinator,
    /// Anyone who has bytes: a worker or a coordinator.
    Peer,
    /// This node, whatever its role is.
    Node(NodeId),
}

impl Wanted {
    fn accepts(self, uri: &NodeUri) -> bool {
        match self {
            Self::Coordinator => matches!(uri.role(), Role::Coordinator),
            Self::Peer => matches!(uri.role(), Role::Worker | Role::Coordinator),
            Self::Node(id) => uri.id() == id,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Peer => f.write_str("worker or coordinator"),
            Self::Node(id) => write!(f, "node {id}"),
        }
    }
}

/// An address to ask. Cheap to clone; the connection closes with the last clone.
#[derive(Debug, Clone)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Arc<Shared>,
    addr: String,
    wanted: Wanted,
    vouch: Option<Arc<dyn Vouch>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: Option<Arc<Up>>,
    dial: Option<watch::Receiver<Dialled>>,
    /// The last dial, if it failed.
    failed: Option<Failed>,
}

/// How far a dial has come.
#[derive(Debug, Clone)]
enum Dialled {
    /// Nobody has been reached.
    Not,
    /// Somebody has answered, and the handshake goes on.
    Answered,
    /// Requests may go out.
    Greeting(Greeting),
    /// It has ended.
    Done(Result<Arc<Up>, LinkError>),
}

/// A connection that has said hello to whom the certificate says it should, and has no welcome
/// yet. Requests go out over it. What comes back is not read before the welcome: only that may
/// prove who answers.
#[derive(Debug, Clone)]
struct Greeting {
    connection: Connection,
    sharers: Sharers,
}

/// What requests go out over.
enum Way {
    Up(Arc<Up>),
    Greeting(Greeting, watch::Receiver<Dialled>),
}

#[derive(Debug)]
struct Failed {
    error: LinkError,
    at: Instant,
    again: Instant,
    in_a_row: u32,
}

/// A connection that has been welcomed.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) connection: Connection,
    pub(super) uri: NodeUri,
    /// For packets beside requests.
    pub(super) channel: Channel,
    pub(super) welcome: Welcome,
    /// What this node was when it dialled.
    own: Arc<Credentials>,
    sharers: Sharers,
}

impl Link {
    /// A link to `addr`, `host:port`; the name is resolved at each dial. Nothing is sent yet.
    pub fn new(endpoint: &Endpoint, addr: impl Into<String>, wanted: Wanted) -> Self {
        Self::with(endpoint, addr.into(), wanted, None)
    }

    /// The same for whom a certificate is not enough: `vouch` is asked at each hello, and again
    /// when the trust has changed.
    pub fn vouched(
        endpoint: &Endpoint,
        addr: impl Into<String>,
        wanted: Wanted,
        vouch: Arc<dyn Vouch>,
    ) -> Self {
        Self::with(endpoint, addr.into(), wanted, Some(vouch))
    }

    fn with(
        endpoint: &Endpoint,
        addr: String,
        wanted: Wanted,
        vouch: Option<Arc<dyn Vouch>>,
    ) -> Self {
        Self(Arc::new(Inner {
            endpoint: endpoint.0.clone(),
            addr,
            wanted,
            vouch,
            state: Mutex::default(),
        }))
    }

    /// The address as it was given.
    pub fn addr(&self) -> &str {
        &self.0.addr
    }

    /// Who answered the last dial, while that connection is up.
    pub fn peer(&self) -> Option<NodeUri> {
        self.0.up().map(|up| up.uri.clone())
    }

    /// What the peer said in its welcome, while that connection is up.
    pub fn welcome(&self) -> Option<Welcome> {
        self.0.up().map(|up| up.welcome.clone())
    }

    /// Where the connection that is up leads.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.0.up().map(|up| up.connection.remote_address())
    }

    /// The round trip time of the connection that is up.
    pub fn rtt(&self) -> Option<Duration> {
        self.0.up().map(|up| up.connection.rtt())
    }

    /// What QUIC knows of the path, while the connection is up.
    pub fn path(&self) -> Option<Path> {
        self.0.up().map(|up| Path::of(&up.connection))
    }

    /// Whether nothing but certificates or trust ended the last dial, or the connection since.
    pub fn is_untrusted(&self) -> bool {
        let state = self.0.state();
        let closed = state.live.as_ref().map(|up| up.connection.close_reason());
        match (&state.failed, closed) {
            // It is up, even if a dial that was to replace it has failed.
            (_, Some(None)) => false,
            // A dial that succeeds clears the failure, so this one came after that connection.
            (Some(failed), _) => failed.error.is_untrusted(),
            (None, Some(Some(reason))) => LinkError::from(reason).is_untrusted(),
            (None, _) => false,
        }
    }

    /// Dials unless a connection is up; all who wait share one dial. After one that has failed
    /// there is a pause, longer with each failure. With `dial_within` it is short, and is waited
    /// out if that does not take longer.
    ///
    /// # Errors
    /// [`LinkError`]; during that pause it is the error of the dial before it.
    pub async fn connect(&self, dial_within: Option<Duration>) -> Result<(), LinkError> {
        self.up(dial_within).await.map(|_| ())
    }

    /// Sends one request with its body, on a stream of its own. While there is no connection it
    /// leaves with the hello of a new one, and this waits for the welcome: whoever must know that
    /// nothing was sent when the other side does not answer [connects](Self::connect) before.
    ///
    /// # Errors
    /// [`LinkError`]; after all but [`LinkError::Dial`] the request may have been carried out.
    pub async fn call(
        &self,
        request: &Request,
        body: Bytes,
        patience: Patience,
    ) -> Result<Exchange, LinkError> {
        let (exchange, mut send) = self.begin(request, body, patience).await?;
        let _ = send.finish();
        Ok(exchange)
    }

    /// The same, and `alive` is called once in a while if a dial that this waits for has got on.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_noting(
        &self,
        request: &Request,
        patience: Patience,
        alive: impl Fn(),
    ) -> Result<Exchange, LinkError> {
        let call = self.call(request, Bytes::new(), patience);
        tokio::pin!(call);
        let mut seen = 0;
        loop {
            match timeout(ALIVE_EVERY, &mut call).await {
                Ok(result) => return result,
                Err(_) => {
                    let progress = self.progress();
                    if std::mem::replace(&mut seen, progress) != progress {
                        alive();
                    }
                }
            }
        }
    }

    /// The same as [`call`](Self::call), and the stream stays open for what is to be
    /// [said](Further::say) later.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_open(
        &self,
        request: &Request,
        patience: Patience,
    ) -> Result<(Exchange, Further), LinkError> {
        let (exchange, send) = self.begin(request, Bytes::new(), patience).await?;
        Ok((exchange, Further(Mutex::new(send))))
    }

    async fn begin(
        &self,
        request: &Request,
        body: Bytes,
        patience: Patience,
    ) -> Result<(Exchange, SendStream), LinkError> {
        let way = self.way(patience.dial_within).await?;
        let (connection, sharers) = way.parts();
        let pulse = (!patience.late.is_zero()).then(|| self.0.pulse(&way));
        let share = sharers.join(patience.floor);
        let frame = request.to_frame()?;
        let sent = Sent {
            at: Instant::now(),
            mark: share.mark(),
            len: (frame.len() + body.len()) as u64,
        };
        let allowed = patience.first_byte(connection.rtt()) + patience.floor.allows(sent.len);
        let send = async {
            let (mut send, recv) = connection.open_bi().await?;
            let mut parts = [Bytes::from(frame), body];
            match send.write_all_chunks(&mut parts).await {
                // A refusal stops what need not be sent; it is read next.
                Ok(()) | Err(WriteError::Stopped(_)) => {}
                Err(WriteError::ConnectionLost(error)) => return Err(error.into()),
                Err(error) => return Err(LinkError::Lost(error.to_string())),
            }
            Ok((send, recv))
        };
        let taken = share.within(sent.mark, allowed, send).await;
        let taken = taken.map_err(|Over| LinkError::TimedOut {
            what: "the request was not taken",
            within: sent.at.elapsed(),
        });
        // Why there is no welcome tells more than that the connection is gone.
        let up = way.welcomed(sent.at).await?;
        let (send, recv) = taken??;
        Ok((
            Exchange::new(up, patience, recv, (sent, share), pulse),
            send,
        ))
    }

    async fn up(&self, dial_within: Option<Duration>) -> Result<Arc<Up>, LinkError> {
        match self.way(dial_within).await? {
            Way::Up(up) => Ok(up),
            Way::Greeting(_, dial) => ended(dial).await,
        }
    }

    async fn way(&self, dial_within: Option<Duration>) -> Result<Way, LinkError> {
        let began = Instant::now();
        let mut dial = loop {
            let again = match self.step(began, dial_within)? {
                Step::Up(up) => return Ok(Way::Up(up)),
                Step::Dial(dial) => break dial,
                Step::Wait(again) => again,
            };
            sleep_until(again).await;
        };
        let reached = dial.wait_for(Dialled::is_over_or_greeting);
        let reached = reached.await.map(|dialled| dialled.clone());
        match reached {
            Ok(Dialled::Greeting(greeting)) => Ok(Way::Greeting(greeting, dial)),
            Ok(Dialled::Done(result)) => result.map(Way::Up),
            // The runtime stopped.
            Ok(Dialled::Not | Dialled::Answered) | Err(_) => Err(LinkError::ClosedHere),
        }
    }

    /// Grows as long as a dial gets on.
    fn progress(&self) -> u64 {
        let dial = self.0.state().running();
        match dial.as_ref().map(|dial| dial.borrow().clone()) {
            None | Some(Dialled::Not) => 0,
            Some(Dialled::Answered) => 1,
            Some(Dialled::Greeting(greeting)) => 2 + received(&greeting.connection),
            Some(Dialled::Done(_)) => u64::MAX,
        }
    }
}

impl Dialled {
    const fn is_over_or_greeting(&self) -> bool {
        matches!(self, Self::Greeting(_) | Self::Done(_))
    }
}

/// What a call that needs a connection does next.
enum Step {
    /// It has one.
    Up(Arc<Up>),
    /// It waits for this dial.
    Dial(watch::Receiver<Dialled>),
    /// It waits until it may dial.
    Wait(Instant),
}

/// Waits for the end of a dial.
async fn ended(mut dial: watch::Receiver<Dialled>) -> Result<Arc<Up>, LinkError> {
    let done = dial.wait_for(|dialled| matches!(dialled, Dialled::Done(_)));
    match done.await.map(|dialled| dialled.clone()) {
        Ok(Dialled::Done(result)) => result,
        // The runtime stopped.
        Ok(_) | Err(_) => Err(LinkError::ClosedHere),
    }
}

impl Way {
    fn parts(&self) -> (&Connection, &Sharers) {
        match self {
            Self::Up(up) => (&up.connection, &up.sharers),
            Self::Greeting(greeting, _) => (&greeting.connection, &greeting.sharers),
        }
    }

    /// Waits until answers to what has been sent over it since `sent` may be read.
    async fn welcomed(self, sent: Instant) -> Result<Arc<Up>, LinkError> {
        let (greeting, dial) = match self {
            Self::Up(up) => return Ok(up),
            Self::Greeting(greeting, dial) => (greeting, dial),
        };
        let up = ended(dial).await.map_err(|error| match error {
            // That would say that nothing was sent.
            LinkError::Dial { .. } => LinkError::TimedOut {
                what: "the welcome",
                within: sent.elapsed(),
            },
            error => error,
        })?;
        match up.connection.stable_id() == greeting.connection.stable_id() {
            true => Ok(up),
            // The name has another address, and that one welcomes.
            false => Err(LinkError::Lost("it was not welcomed there".to_owned())),
        }
    }
}

/// The asker's half of a stream that it goes on speaking on. It is finished when this is dropped.
#[derive(Debug)]
pub struct Further(Mutex<SendStream>);

impl Further {
    /// Says one thing more, which needs no answer and waits for nothing: it leaves with the next
    /// packet. False when it cannot; then nothing of it arrives.
    pub fn say(&self, request: &Request) -> bool {
        let Ok(frame) = request.to_frame() else {
            return false;
        };
        let mut send = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(&mut *send).poll_write(&mut context, &frame) {
            Poll::Ready(Ok(len)) if len == frame.len() => true,
            Poll::Ready(Ok(_)) => {
                // Half a frame: nobody could read what follows it.
                let _ = send.reset(Code::Busy.number().into());
                false
            }
            Poll::Ready(Err(_)) | Poll::Pending => false,
        }
    }
}

impl Link {
    /// For a call that began at `began`.
    fn step(&self, began: Instant, dial_within: Option<Duration>) -> Result<Step, LinkError> {
        let mut state = self.0.state();
        if let Some(up) = state.up() {
            if self.0.is_outdated(&up) && state.paused(false).is_none() {
                // It does for now; the next call goes over the new one.
                let _ = self.dialling(&mut state);
            }
            return Ok(Step::Up(up));
        }
        if state.running().is_none()
            && let Some((failed, again)) = state.paused(dial_within.is_some())
        {
            // A dial that has failed since is the answer.
            let is_old = failed.at < began;
            return match dial_within {
                Some(within) if is_old && again.duration_since(began) <= within => {
                    Ok(Step::Wait(again))
                }
                _ => Err(failed.error.clone()),
            };
        }
        Ok(Step::Dial(self.dialling(&mut state)))
    }

    /// The dial that is running, or a new one.
    fn dialling(&self, state: &mut State) -> watch::Receiver<Dialled> {
        if let Some(dial) = state.running() {
            return dial;
        }
        let (done, dial) = watch::channel(Dialled::Not);
        state.dial = Some(dial.clone());
        // In a task, so that a caller who gives up does not end it for the others.
        self.0.endpoint.handle.spawn(self.0.clone().dial(done));
        dial
    }
}

impl State {
    fn running(&self) -> Option<watch::Receiver<Dialled>> {
        // A dial whose task is gone never ends.
        self.dial.clone().filter(|dial| dial.has_changed().is_ok())
    }

    fn up(&self) -> Option<Arc<Up>> {
        let up = self.live.as_ref()?;
        up.connection.close_reason().is_none().then(|| up.clone())
    }

    /// The dial that has failed, while the pause after it lasts, and when that ends.
    fn paused(&self, is_forced: bool) -> Option<(&Failed, Instant)> {
        let failed = self.failed.as_ref()?;
        let again = match is_forced {
            true => failed.again.min(failed.at + FORCED_DIAL_EVERY),
            false => failed.again,
        };
        (Instant::now() < again).then_some((failed, again))
    }

    fn record(&mut self, result: &Result<Arc<Up>, LinkError>) {
        self.dial = None;
        match result {
            Ok(up) => {
                self.live = Some(up.clone());
                self.failed = None;
            }
            Err(error) => {
                let in_a_row = self.failed.as_ref().map_or(0, |failed| failed.in_a_row);
                let at = Instant::now();
                self.failed = Some(Failed {
                    error: error.clone(),
                    at,
                    again: at + backoff(in_a_row, rand::random_range(0.5..1.0)),
                    in_a_row: in_a_row.saturating_add(1),
                });
            }
        }
    }
}

/// How long to wait after `failures` failed dials before the last one; `jitter` spreads nodes
/// that lost the same peer at the same moment.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << failures.min(16));
    doubled.min(MAX_BACKOFF).mul_f64(jitter)
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one assignment: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Option<Arc<Up>> {
        self.state().up()
    }

    /// What tells whether packets come; those of the handshake count where it was waited for.
    fn pulse(&self, way: &Way) -> Pulse {
        let window = dialler_window(self.endpoint.only.is_some());
        match way {
            Way::Up(up) => Pulse::new(&up.connection, window),
            Way::Greeting(greeting, _) => Pulse::since_the_dial(&greeting.connection, window),
        }
    }

    /// Whether it was dialled with another certificate than this node has now: the other end
    /// closes it when that one expires, whatever it is doing then.
    fn is_outdated(&self, up: &Up) -> bool {
        let now = self.endpoint.identity.current();
        !Arc::ptr_eq(&now, &up.own) && now.certificate() != up.own.certificate()
    }
}

impl Drop for Up {
    /// One that a new one has replaced ends with the last call over it.
    fn drop(&mut self) {
        close(&self.connection, CloseCode::Done);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(up) = self.state().live.take() {
            close(&up.connection, CloseCode::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_bound_and_is_spread() {
        assert_eq!(backoff(0, 1.0), FIRST_BACKOFF);
        assert_eq!(backoff(1, 1.0), FIRST_BACKOFF * 2);
        assert_eq!(backoff(1, 0.5), FIRST_BACKOFF);
        assert_eq!(backoff(10, 1.0), MAX_BACKOFF);
        assert_eq!(backoff(u32::MAX, 1.0), MAX_BACKOFF);
    }

    #[test]
    fn after_a_failed_dial_calls_fail_fast_until_the_backoff_is_over() {
        let mut state = State::default();
        assert!(state.paused(false).is_none());
        state.record(&Err(LinkError::OtherVersion));
        for is_forced in [false, true] {
            let (failed, _) = state.paused(is_forced).expect("too soon");
            assert!(matches!(failed.error, LinkError::OtherVersion));
        }
        let failed = state.failed.as_mut().expect("recorded");
        // As if it had failed for the tenth time, a while ago.
        failed.at -= FORCED_DIAL_EVERY;
        failed.again = failed.at + MAX_BACKOFF;
        assert!(state.paused(false).is_some());
        assert!(state.paused(true).is_none(), "who cannot wait may dial");
        state.failed.as_mut().expect("recorded").again = Instant::now();
        assert!(state.paused(false).is_none());
    }

    #[test]
    fn roles_are_expected_as_the_address_says() {
        let uri = |role| NodeUri::new("c", role, "n").expect("a URI");
        let accepted = |wanted: Wanted| Role::ALL.map(|role| wanted.accepts(&uri(role)));
        assert_eq!(accepted(Wanted::Coordinator), [true, false, false, false]);
        assert_eq!(accepted(Wanted::Peer), [true, true, false, false]);
        let reader = Wanted::Node(uri(Role::Reader).id());
        assert_eq!(accepted(reader), [false, false, false, true]);
    }
}
