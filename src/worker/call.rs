use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::catalog::PinnedKey;
use crate::net::{Endpoint, Exchange, Link, LinkError, Patience, Wanted};
use crate::proto::limit::MAX_NAMES_PER_RESOLVE;
use crate::proto::wire::{GetBlob, HeadBytes, Outcome, Request, Resolve, Response};
use crate::proto::worker::Event;
use crate::spec::{MAX_SPEC_LEN, SpecHash};

/// An address of the coordinator: a link whose head must be signed by a pinned key.
#[derive(Debug)]
pub(super) struct CoordinatorLink {
    link: Link,
    /// The head that was checked last; a connection shows one.
    checked: Mutex<Option<HeadBytes>>,
    /// Whether the last answer was thrown away for want of a good head.
    unbelieved: AtomicBool,
}

impl CoordinatorLink {
    pub(super) fn new(endpoint: &Endpoint, addr: &str) -> Self {
        Self {
            link: Link::new(endpoint, addr, Wanted::Coordinator),
            checked: Mutex::default(),
            unbelieved: AtomicBool::new(false),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Asks something whose answer is one frame without a body.
    pub(super) async fn ask(
        &self,
        request: &Request,
        body: Bytes,
        patience: Patience,
        pinned: &[PinnedKey],
    ) -> Result<Response, Trouble> {
        let mut exchange = self.link.call(request, body, patience).await?;
        self.next(&mut exchange, pinned).await
    }

    /// Whether nothing but certificates or trust was in the way last time.
    pub(super) fn is_untrusted(&self) -> bool {
        match self.link.peer() {
            Some(_) => self.unbelieved.load(Ordering::Relaxed),
            None => self.link.is_untrusted(),
        }
    }

    async fn next(
        &self,
        exchange: &mut Exchange,
        pinned: &[PinnedKey],
    ) -> Result<Response, Trouble> {
        let result = self.checked_next(exchange, pinned).await;
        let unbelieved = matches!(result, Err(Trouble::Head(_)));
        self.unbelieved.store(unbelieved, Ordering::Relaxed);
        result
    }

    /// The first frame of an answer, from a node that may speak for the catalog.
    async fn checked_next(
        &self,
        exchange: &mut Exchange,
        pinned: &[PinnedKey],
    ) -> Result<Response, Trouble> {
        if let Some(head) = exchange.head() {
            self.check_head(head, pinned).map_err(Trouble::Head)?;
        }
        let response = exchange.next().await?;
        match response {
            // Of itself, every node may speak.
            Response::Status(_) => Ok(response),
            // A node without a catalog has no head, and refuses.
            _ if exchange.head().is_none() => {
                Err(Trouble::Head("it showed no signed head".to_owned()))
            }
            _ => Ok(response),
        }
    }

    /// Whether what answers there may speak for the catalog.
    fn check_head(&self, head: &HeadBytes, pinned: &[PinnedKey]) -> Result<(), String> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.as_ref() == Some(head) {
            return Ok(());
        }
        let signed = head.signed().map_err(|error| error.to_string())?;
        signed
            .verify(&pinned.to_vec())
            .map_err(|error| format!("its head is not to be believed: {error}"))?;
        *checked = Some(head.clone());
        Ok(())
    }

    /// Asks for names and hands each part of the answer to `sink` as it comes.
    pub(super) async fn resolve(
        &self,
        request: Resolve,
        pinned: &[PinnedKey],
        sink: impl Fn(Event),
    ) {
        debug_assert!(request.names.len() <= MAX_NAMES_PER_RESOLVE);
        let names = request.names.len();
        let result = self.exchange(request, names, pinned, &sink).await;
        sink(result.map_or_else(failed, |()| Event::End));
    }

    async fn exchange(
        &self,
        request: Resolve,
        names: usize,
        pinned: &[PinnedKey],
        sink: &impl Fn(Event),
    ) -> Result<(), Trouble> {
        let patience = Patience {
            dial_now: true,
            ..Patience::coordinator()
        };
        let request = Request::Resolve(request);
        let mut exchange = self.link.call(&request, Bytes::new(), patience).await?;
        match self.next(&mut exchange, pinned).await? {
            Response::Resolved(opening) => sink(Event::Opening(opening)),
            _ => return Err(Trouble::Order),
        }
        for _ in 0..names {
            let Response::Outcome(Outcome { version, body }) = exchange.next().await? else {
                return Err(Trouble::Order);
            };
            let version = version.map(Into::into);
            sink(Event::Outcome { version, body });
            if body {
                sink(Event::Body(exchange.body(MAX_SPEC_LEN).await?));
            }
        }
        Ok(())
    }
}

/// Asks one link for bytes.
pub(super) async fn fetch(link: &Link, hash: SpecHash, len: Option<u64>, peer: bool) -> Event {
    let patience = match peer {
        true => Patience::peer(),
        false => Patience::coordinator(),
    };
    let patience = Patience {
        dial_now: true,
        ..patience
    };
    let max = len.unwrap_or(MAX_SPEC_LEN).min(MAX_SPEC_LEN);
    let body = async {
        let request = Request::GetBlob(GetBlob { hash, force: true });
        let mut exchange = link.call(&request, Bytes::new(), patience).await?;
        match exchange.next().await? {
            Response::Blob(_) => Ok(exchange.body(max).await?),
            _ => Err(Trouble::Order),
        }
    };
    body.await.map_or_else(failed, Event::Body)
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The link.
    Link(LinkError),
    /// Whoever answers may not speak for the catalog.
    Head(String),
    /// The answer belongs to another question.
    Order,
}

impl Trouble {
    /// Whether nothing but certificates or trust is in the way.
    pub(super) const fn is_untrusted(&self) -> bool {
        match self {
            Self::Link(error) => error.is_untrusted(),
            Self::Head(_) => true,
            Self::Order => false,
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
            Self::Order => "it answered another question".to_owned(),
        }
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

fn failed(trouble: Trouble) -> Event {
    let reason = trouble.reason();
    let unreachable = match trouble {
        Trouble::Link(LinkError::Refused(refusal)) => return Event::Refused(refusal),
        Trouble::Link(LinkError::Lost(_)) => return Event::Lost { reason },
        Trouble::Link(error) => !error.is_peers_fault(),
        Trouble::Head(_) => true,
        Trouble::Order => false,
    };
    Event::Failed {
        reason,
        unreachable,
    }
}
