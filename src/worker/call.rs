use std::sync::{Mutex, PoisonError};

use crate::catalog::PinnedKey;
use crate::net::{Endpoint, Link, LinkError, Patience, Wanted};
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
}

impl CoordinatorLink {
    pub(super) fn new(endpoint: &Endpoint, addr: &str) -> Self {
        Self {
            link: Link::new(endpoint, addr, Wanted::Coordinator),
            checked: Mutex::default(),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
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
        let mut exchange = self
            .link
            .call(&request, bytes::Bytes::new(), patience)
            .await?;
        if let Some(head) = exchange.head() {
            self.check_head(head, pinned).map_err(Trouble::Head)?;
        }
        match exchange.next().await? {
            // A node without a catalog has no head, and refuses.
            Response::Resolved(_) if exchange.head().is_none() => {
                return Err(Trouble::Head("it showed no signed head".to_owned()));
            }
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
        let mut exchange = link.call(&request, bytes::Bytes::new(), patience).await?;
        match exchange.next().await? {
            Response::Blob(_) => Ok(exchange.body(max).await?),
            _ => Err(Trouble::Order),
        }
    };
    body.await.map_or_else(failed, Event::Body)
}

enum Trouble {
    Link(LinkError),
    Head(String),
    Order,
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

fn failed(trouble: Trouble) -> Event {
    let (reason, unreachable) = match trouble {
        Trouble::Link(LinkError::Refused(refusal)) => return Event::Refused(refusal),
        Trouble::Link(error @ LinkError::Lost(_)) => {
            let reason = reason_of(&error);
            return Event::Lost { reason };
        }
        Trouble::Link(error) => {
            let unreachable = !error.is_peers_fault();
            (reason_of(&error), unreachable)
        }
        Trouble::Head(reason) => (reason, true),
        Trouble::Order => ("it answered another question".to_owned(), false),
    };
    Event::Failed {
        reason,
        unreachable,
    }
}

/// One clause for the list of hops, with what to do about it.
fn reason_of(error: &LinkError) -> String {
    match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}
