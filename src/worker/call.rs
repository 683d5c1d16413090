use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::head::{PinnedKeys, check_answer, proven};
use crate::answer::{GetError, Hop};
use crate::catalog::MAX_NAMES;
use crate::net::{Endpoint, Exchange, Further, Link, LinkError, Patience, Wanted};
use crate::proto::limit::{
    FIRST_BYTE_MIN, HOLDERS_NAMED, MAX_HOLD, MAX_LATE, MAX_NAMES_PER_RESOLVE,
};
use crate::proto::wire::{
    CatalogDiff, GetCatalog, GetDelta, Holder, Outcome, PrepAck, Renew, Request, Resolve, Response,
    SessionId, Watch,
};
use crate::proto::worker::{Event, Neighbour, Source};
use crate::spec::MAX_SPEC_LEN;

/// An address of the coordinator: a link over which a pinned head key is proven.
#[derive(Debug)]
pub(super) struct CoordinatorLink {
    link: Link,
    /// Over which worker it goes, if it does.
    via: Option<String>,
    /// Whether the last answer was thrown away because it was not of what had been proven.
    unbelieved: AtomicBool,
    /// The stream of the watch that is open, for what goes back on it.
    watch: Mutex<Option<Arc<Further>>>,
}

impl CoordinatorLink {
    pub(super) fn new(endpoint: &Endpoint, addr: &str) -> Self {
        Self::with(endpoint, addr, None)
    }

    /// The same over another worker; `endpoint` is one that goes over it.
    pub(super) fn relayed(endpoint: &Endpoint, addr: &str, via: &str) -> Self {
        Self::with(endpoint, addr, Some(via.to_owned()))
    }

    fn with(endpoint: &Endpoint, addr: &str, via: Option<String>) -> Self {
        let keys = Arc::new(PinnedKeys(endpoint.identity().clone()));
        Self {
            link: Link::vouched(endpoint, addr, Wanted::Coordinator, keys),
            via,
            unbelieved: AtomicBool::new(false),
            watch: Mutex::default(),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) const fn is_relayed(&self) -> bool {
        self.via.is_some()
    }

    /// What an answer over it says of where it came from.
    pub(super) fn hop(&self) -> Hop {
        let addr = self.link.addr().to_owned();
        match &self.via {
            Some(via) => Hop::Relayed {
                addr,
                via: via.clone(),
            },
            None => Hop::Coordinator(addr),
        }
    }

    /// Asks something whose answer is one frame without a body, and gives with it what it came on.
    pub(super) async fn ask(
        &self,
        request: &Request,
        body: Bytes,
        patience: Patience,
    ) -> Result<(Response, Exchange), Trouble> {
        let mut exchange = self.link.call(request, body, patience).await?;
        let response = self.next(&mut exchange).await?;
        Ok((response, exchange))
    }

    /// Whether nothing but certificates or trust was in the way last time.
    pub(super) fn is_untrusted(&self) -> bool {
        match self.link.peer() {
            Some(_) => self.unbelieved.load(Ordering::Relaxed),
            None => self.link.is_untrusted(),
        }
    }

    async fn next(&self, exchange: &mut Exchange) -> Result<Response, Trouble> {
        let response = exchange.next().await;
        self.checked(exchange, response)
    }

    /// See [`Exchange::next_noting`].
    async fn next_noting(
        &self,
        exchange: &mut Exchange,
        alive: impl Fn(),
    ) -> Result<Response, Trouble> {
        let response = exchange.next_noting(alive).await;
        self.checked(exchange, response)
    }

    fn checked(
        &self,
        exchange: &Exchange,
        response: Result<Response, LinkError>,
    ) -> Result<Response, Trouble> {
        let response = response.map_err(Trouble::from);
        let result = response.and_then(|response| check_first(exchange, response));
        let unbelieved = matches!(result, Err(Trouble::Head(_)));
        self.unbelieved.store(unbelieved, Ordering::Relaxed);
        result
    }

    /// Asks for names and hands each part of the answer to `sink` as it comes.
    /// A dial that has failed a moment ago may keep it waiting for `within`.
    pub(super) async fn resolve(&self, request: Resolve, within: Duration, sink: impl Fn(Event)) {
        debug_assert!(request.names.len() <= MAX_NAMES_PER_RESOLVE);
        let result = self.exchange(request, within, &sink).await;
        sink(result.map_or_else(failed, |()| Event::End));
    }

    async fn exchange(
        &self,
        request: Resolve,
        within: Duration,
        sink: &impl Fn(Event),
    ) -> Result<(), Trouble> {
        let patience = Patience {
            dial_within: Some(within),
            ..lenient()
        };
        let names = request.names.len();
        let request = Request::Resolve(request);
        let alive = || sink(Event::Alive);
        let mut exchange = self.link.call_noting(&request, patience, alive).await?;
        match self.next_noting(&mut exchange, alive).await? {
            Response::Resolved(opening) => sink(Event::Opening(opening)),
            _ => return Err(Trouble::Order),
        }
        for _ in 0..names {
            let Response::Outcome(Outcome { version, body, ask }) = exchange.next().await? else {
                return Err(Trouble::Order);
            };
            let version = version.map(Into::into);
            let ask = neighbours(ask);
            sink(Event::Outcome { version, body, ask });
            if body {
                sink(Event::Body(exchange.body(MAX_SPEC_LEN).await?));
            }
        }
        Ok(())
    }
}

/// For what the coordinator alone has, or has first: to ask anew while the answer is on its way
/// would be twice the load.
fn lenient() -> Patience {
    Patience {
        late: MAX_LATE,
        ..Patience::coordinator()
    }
}

/// The first frame of an answer, if it is of what has been proven when its connection began.
fn check_first(exchange: &Exchange, response: Response) -> Result<Response, Trouble> {
    let welcome = exchange.welcome();
    match &response {
        // Of itself, every node may speak.
        Response::Status(_) => {}
        Response::Resolved(opening) => {
            check_answer(welcome, opening.catalog, opening.epoch).map_err(Trouble::Head)?;
        }
        _ => drop(proven(welcome).map_err(Trouble::Head)?),
    }
    Ok(response)
}

impl CoordinatorLink {
    /// Hears what is about to change, until the stream ends.
    pub(super) async fn watch(&self, sid: SessionId, sink: impl Fn(Event)) {
        let result = self.hear(sid, &sink).await;
        sink(result.map_or_else(failed, |()| Event::End));
    }

    async fn hear(&self, sid: SessionId, sink: &impl Fn(Event)) -> Result<(), Trouble> {
        let request = Request::Watch(Watch { sid });
        let patience = Patience::coordinator();
        let (mut exchange, further) = self.link.call_open(&request, patience).await?;
        let _open = self.open(Arc::new(further));
        match self.next(&mut exchange).await? {
            Response::Watching(()) => sink(Event::Watching),
            _ => return Err(Trouble::Order),
        }
        loop {
            match exchange.next_whenever().await? {
                Response::Prepare(prepare) => sink(Event::Prepare(prepare)),
                Response::Release(delta) => sink(Event::Release(delta)),
                _ => return Err(Trouble::Order),
            }
        }
    }

    fn open(&self, further: Arc<Further>) -> Open<'_> {
        *self.lock() = Some(Arc::clone(&further));
        Open {
            link: self,
            further,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Further>>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acknowledges on the stream of the watch. False without one, or when it takes nothing.
    pub(super) fn acknowledge(&self, ack: &PrepAck) -> bool {
        let watch = self.lock().clone();
        watch.is_some_and(|watch| watch.say(&Request::PrepAck(ack.clone())))
    }

    async fn one(&self, request: Request, patience: Patience) -> Result<Response, Trouble> {
        let mut exchange = self.link.call(&request, Bytes::new(), patience).await?;
        self.next(&mut exchange).await
    }

    pub(super) async fn renew(&self, renew: Renew) -> Event {
        // The next renewal asks again, and a way over another worker beside it.
        let patience = Patience::coordinator();
        match self.one(Request::Renew(renew), patience).await {
            Ok(Response::Grant(grant)) => Event::Granted(grant),
            Ok(_) => failed(Trouble::Order),
            Err(trouble) => failed(trouble),
        }
    }

    pub(super) async fn delta(&self, get: GetDelta) -> Event {
        match self.one(Request::GetDelta(get), lenient()).await {
            Ok(Response::Delta(delta)) => Event::Delta(delta),
            Ok(_) => failed(Trouble::Order),
            Err(trouble) => failed(trouble),
        }
    }

    pub(super) async fn catalog(&self, get: GetCatalog) -> Event {
        self.whole(get).await.map_or_else(failed, Event::Catalog)
    }

    async fn whole(&self, get: GetCatalog) -> Result<CatalogDiff, Trouble> {
        let request = Request::GetCatalog(get);
        let mut exchange = self.link.call(&request, Bytes::new(), lenient()).await?;
        let opening = self.next(&mut exchange).await?;
        rest_of_catalog(opening, &mut exchange).await
    }

    /// Says something; whether it arrives shows elsewhere.
    pub(super) async fn tell(&self, request: Request) {
        let patience = Patience::coordinator();
        if let Err(Trouble::Link(error)) = self.one(request, patience).await {
            tracing::debug!(addr = self.link.addr(), %error, "not said");
        }
    }
}

/// A watch that is open; also one that is cancelled takes its stream with it.
struct Open<'a> {
    link: &'a CoordinatorLink,
    further: Arc<Further>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut watch = self.link.lock();
        // A newer one may have come meanwhile.
        watch.take_if(|watch| Arc::ptr_eq(watch, &self.further));
    }
}

/// Frames of a whole catalog: as many as a million names need, and some.
const MAX_PARTS: u32 = 4_096;

/// A whole catalog, of which the first frame has been read.
async fn rest_of_catalog(
    opening: Response,
    exchange: &mut Exchange,
) -> Result<CatalogDiff, Trouble> {
    let Response::CatalogHead(head) = opening else {
        return Err(Trouble::Order);
    };
    if head.records > MAX_NAMES as u64 || head.parts > MAX_PARTS {
        return Err(Trouble::Order);
    }
    let (mut parts, mut records) = (Vec::new(), 0);
    for _ in 0..head.parts {
        let Response::CatalogPart(part) = exchange.next().await? else {
            return Err(Trouble::Order);
        };
        // Nobody makes this node keep more than was announced.
        records += part.records.len() as u64;
        if records > head.records {
            return Err(Trouble::Order);
        }
        parts.push(part);
    }
    CatalogDiff::join(head, parts).map_err(|_| Trouble::Order)
}

/// Asks a peer for revisions. The peer proves nothing of itself: the signed heads do.
pub(super) async fn peers_delta(link: &Link, get: GetDelta) -> Event {
    let answer = async {
        let request = Request::GetDelta(get);
        let mut exchange = link.call(&request, Bytes::new(), Patience::peer()).await?;
        match exchange.next().await? {
            Response::Delta(delta) => Ok(delta),
            _ => Err(Trouble::Order),
        }
    };
    answer.await.map_or_else(failed, Event::Delta)
}

/// Asks a peer for its catalog, which its signed head proves.
pub(super) async fn peers_catalog(link: &Link, get: GetCatalog) -> Event {
    let answer = async {
        let request = Request::GetCatalog(get);
        let mut exchange = link.call(&request, Bytes::new(), Patience::peer()).await?;
        let opening = exchange.next().await?;
        rest_of_catalog(opening, &mut exchange).await
    };
    answer.await.map_or_else(failed, Event::Catalog)
}

/// Workers that the coordinator named, as many as are asked.
pub(super) fn neighbours(holders: Vec<Holder>) -> Vec<Neighbour> {
    let holders = holders.into_iter().take(HOLDERS_NAMED);
    let neighbour = |holder: Holder| Neighbour {
        id: holder.node,
        addr: holder.addr.to_string(),
    };
    holders.map(neighbour).collect()
}

/// How long bytes are waited for.
/// `within`: what the most patient of their readers has left.
pub(super) fn for_bytes(from: Source, force: bool, within: Duration) -> Patience {
    let patience = match (from, force) {
        (Source::Peer(_), true) => Patience::peer(),
        // It may wait for them itself.
        (Source::Peer(_), false) => Patience {
            first_byte: MAX_HOLD + FIRST_BYTE_MIN,
            ..Patience::peer()
        },
        (Source::Coordinator(_), _) => lenient(),
    };
    Patience {
        // Of peers there are others.
        dial_within: Some(if from.is_peer() {
            Duration::ZERO
        } else {
            within
        }),
        ..patience
    }
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The link.
    Link(LinkError),
    /// Whoever answers may not speak for the catalog.
    Head(String),
    /// It is of another catalog than this worker's, or older than what has been seen.
    Untrue(GetError),
    /// The answer belongs to another question.
    Order,
}

impl Trouble {
    /// Whether nothing but certificates or trust is in the way.
    pub(super) const fn is_untrusted(&self) -> bool {
        match self {
            Self::Link(error) => error.is_untrusted(),
            Self::Head(_) => true,
            Self::Untrue(_) | Self::Order => false,
        }
    }

    /// One clause for the list of hops, with what to do about it.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Link(error) => match error.hint() {
                Some(hint) => format!("{error} ({hint})"),
                None => error.to_string(),
            },
            Self::Head(reason) => reason.clone(),
            Self::Untrue(error) => error.to_string(),
            Self::Order => "it answered another question".to_owned(),
        }
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

pub(super) fn failed(trouble: Trouble) -> Event {
    let reason = trouble.reason();
    let unreachable = match trouble {
        Trouble::Link(LinkError::Refused(refusal)) => return Event::Refused(refusal),
        Trouble::Link(error) if error.is_lost() => return Event::Lost { reason },
        Trouble::Link(error) => !error.is_peers_fault(),
        Trouble::Head(_) => true,
        Trouble::Untrue(_) | Trouble::Order => false,
    };
    Event::Failed {
        reason,
        unreachable,
    }
}
