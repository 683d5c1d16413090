//! Requests that only the coordinator can answer, passed on to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::call::{CoordinatorLink, Trouble};
use super::engine::Engine;
use super::head::{check_answer, proven};
use crate::answer::{Failure, GetError, HopFailure};
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::net::{Link, LinkError, Patience};
use crate::proto::code::Code;
use crate::proto::limit::{ANSWER_TIMEOUT, MAX_PUBLISH_WAIT};
use crate::proto::wire::{Request, Response, Welcome};
use crate::proto::worker::Mark;

/// A body waits for its turn at the coordinator, behind whatever is queued there.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// The coordinator's address that answered last, which is asked first: an address that is dead
/// costs a dial each time.
#[derive(Debug, Default)]
pub(super) struct Preferred(Mutex<Option<String>>);

impl Preferred {
    fn answered(&self, link: &Link) {
        let mut preferred = self.lock();
        if preferred.as_deref() != Some(link.addr()) {
            *preferred = Some(link.addr().to_owned());
        }
    }

    fn failed(&self, link: &Link) {
        let mut preferred = self.lock();
        preferred.take_if(|addr| addr == link.addr());
    }

    /// `links` with the preferred one first.
    fn first(&self, mut links: Vec<Arc<CoordinatorLink>>) -> Vec<Arc<CoordinatorLink>> {
        let preferred = self.lock();
        // There is a way over another worker only while the direct ones are silent.
        links.sort_by_key(|link| {
            let is_preferred = preferred.as_deref() == Some(link.link().addr());
            !(is_preferred || link.is_relayed())
        });
        links
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends `request` to the coordinator's addresses, one after the other, until one answers.
///
/// Only what cannot have been carried out is sent to a second address, unless it is safe to
/// repeat.
pub(super) async fn to_coordinator(
    engine: &Engine,
    preferred: &Preferred,
    request: &Request,
    body: Bytes,
) -> Result<Response, Failure> {
    let mut tried = Tried::default();
    let repeatable = match request {
        Request::Publish(publish) => publish.key.is_some(),
        _ => true,
    };
    // Before anything is sent: what is seen meanwhile is no measure for these answers.
    let mark = engine.machine().mark();
    for link in preferred.first(engine.coordinator_links()) {
        let mut answer = ask(&link, request, body.clone(), mark).await;
        if let Err(Unanswered {
            trouble: Trouble::Link(error),
            sent,
        }) = &answer
            && error.is_lost()
            && (repeatable || !sent)
        {
            // A new connection may do.
            answer = ask(&link, request, body.clone(), mark).await;
        }
        let Unanswered { trouble, sent } = match answer {
            Ok(response) => {
                preferred.answered(link.link());
                return Ok(response);
            }
            Err(unanswered) => unanswered,
        };
        let nothing_happened = match &trouble {
            Trouble::Untrue(error) => {
                preferred.failed(link.link());
                return Err(tried.untrue(&link, error.clone()));
            }
            Trouble::Link(LinkError::Refused(refusal)) => match refusal.code {
                Code::NoCatalog | Code::Draining => true,
                _ => {
                    preferred.answered(link.link());
                    return Err(refusal.clone().into());
                }
            },
            _ => !sent,
        };
        preferred.failed(link.link());
        tried.add(&link, &trouble);
        if !repeatable && !nothing_happened {
            return Err(tried.failure("whether it happened is not known"));
        }
    }
    Err(tried.failure("no coordinator answered"))
}

struct Unanswered {
    trouble: Trouble,
    /// The request went out, and may have been carried out unless the answer says otherwise.
    sent: bool,
}

async fn ask(
    link: &CoordinatorLink,
    request: &Request,
    body: Bytes,
    mark: Option<Mark>,
) -> Result<Response, Unanswered> {
    let patience = patience_for(request);
    // By itself, so that a handshake that fails is told from an answer that does not come.
    let up = link.link().connect(patience.dial_within).await;
    up.map_err(|error| Unanswered {
        trouble: error.into(),
        sent: false,
    })?;
    let answer = link.ask(request, body, patience).await;
    let checked = answer.and_then(|(response, exchange)| {
        check(exchange.welcome(), request, &response, mark)?;
        Ok(response)
    });
    checked.map_err(|trouble| Unanswered {
        trouble,
        sent: true,
    })
}

fn patience_for(request: &Request) -> Patience {
    let usual = Patience::coordinator();
    Patience {
        dial_within: Some(ANSWER_TIMEOUT),
        first_byte: match request {
            Request::Publish(_) => MAX_PUBLISH_WAIT,
            Request::PutBlob(_) => WRITE_PATIENCE,
            _ => usual.first_byte,
        },
        ..usual
    }
}

/// Whether an answer is of the catalog that was proven, and may follow what had been seen.
fn check(
    welcome: &Welcome,
    request: &Request,
    response: &Response,
    mark: Option<Mark>,
) -> Result<(), Trouble> {
    // A coordinator without a catalog has a status too.
    if matches!(request, Request::GetStatus) {
        return Ok(());
    }
    let proven = proven(welcome).map_err(Trouble::Head)?;
    let said = Said::of(request, response);
    if let Some(said) = &said {
        check_answer(welcome, said.catalog, said.epoch).map_err(Trouble::Head)?;
    }
    match mark {
        Some(mark) => compare(mark, proven, said).map_err(Trouble::Untrue),
        None => Ok(()),
    }
}

/// What an answer says of the state of the catalog.
struct Said {
    catalog: CatalogId,
    epoch: Epoch,
    rev: Revision,
    /// Whether `rev` is the newest one, and not one that was asked for or that an earlier publish
    /// made.
    newest: bool,
}

impl Said {
    /// `None` for answers that say nothing of it.
    fn of(request: &Request, response: &Response) -> Option<Self> {
        Some(match (request, response) {
            (Request::List(list), Response::Listing(listing)) => Self {
                catalog: listing.catalog,
                epoch: listing.epoch,
                rev: listing.rev,
                newest: list.at.is_none(),
            },
            (Request::GetLog(get), Response::Log(log)) => Self {
                catalog: log.catalog,
                epoch: log.epoch,
                rev: log
                    .entries
                    .first()
                    .map_or(Revision::ZERO, |first| first.rev),
                newest: get.name.is_none() && get.before.is_none() && get.limit > 0,
            },
            (Request::Publish(publish), Response::Published(published)) => Self {
                catalog: published.catalog,
                epoch: published.epoch,
                rev: published.rev,
                // With a key it may be the answer to the first of several.
                newest: publish.key.is_none() && published.changed > 0,
            },
            _ => return None,
        })
    }
}

/// Whether an answer may follow what had been seen when it was asked for.
fn compare(mark: Mark, proven: CatalogId, said: Option<Said>) -> Result<(), GetError> {
    if proven != mark.catalog {
        return Err(GetError::WrongCatalog {
            known: mark.catalog,
            got: proven,
            hops: Vec::new(),
        });
    }
    match said {
        Some(said)
            if said.epoch < mark.epoch
                || (said.newest && said.epoch == mark.epoch && said.rev < mark.rev) =>
        {
            Err(GetError::Quarantined {
                known: mark.rev,
                got: said.rev,
            })
        }
        _ => Ok(()),
    }
}

/// The addresses that did not answer.
#[derive(Default)]
struct Tried {
    hops: Vec<HopFailure>,
    untrusted: usize,
}

impl Tried {
    fn add(&mut self, link: &CoordinatorLink, trouble: &Trouble) {
        let hop = link.hop();
        let reason = trouble.reason();
        self.hops.push(HopFailure { hop, reason });
        self.untrusted += usize::from(trouble.is_untrusted());
    }

    /// One answered, and what it said cannot be.
    fn untrue(mut self, link: &CoordinatorLink, error: GetError) -> Failure {
        let mut failure = Failure::from(error);
        let hop = link.hop();
        let reason = failure.message.clone();
        self.hops.push(HopFailure { hop, reason });
        failure.hops = self.hops;
        failure
    }

    fn failure(self, message: &str) -> Failure {
        let hint = match self.hops.is_empty() {
            true => "name one with `--coordinator HOST:PORT`",
            false => "check the coordinator and the path to it",
        };
        let mut failure = Failure::new("unreachable", message).hint(hint);
        failure.untrusted = !self.hops.is_empty() && self.untrusted == self.hops.len();
        failure.hops = self.hops;
        failure
    }
}

/// The answer was of another kind than the question.
pub(super) fn confused() -> Failure {
    Failure::new(
        Code::Internal.as_str(),
        "the coordinator answered another question",
    )
}

#[cfg(test)]
mod tests;
