//! Requests that only the coordinator can answer, passed on to it.

use std::time::Duration;

use bytes::Bytes;

use super::call::{CoordinatorLink, Trouble};
use super::engine::Engine;
use super::head::{check_answer, proven};
use crate::answer::{Failure, GetError, Hop, HopFailure};
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::net::{LinkError, Patience};
use crate::proto::code::Code;
use crate::proto::wire::{Request, Response, Welcome};
use crate::proto::worker::Mark;

/// A publish waits for two fsyncs at the coordinator, behind whatever is queued there.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(60);

/// Sends `request` to the coordinator's addresses, one after the other, until one answers.
///
/// Only what may not have been carried out is sent to a second address, unless it is safe to
/// repeat.
pub(super) async fn to_coordinator(
    engine: &Engine,
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
    for link in engine.coordinator_links() {
        let ask = || ask(link, request, body.clone(), mark);
        let mut answer = ask().await;
        if let Err(Trouble::Link(error)) = &answer
            && error.is_lost()
            && repeatable
        {
            // A new connection may do.
            answer = ask().await;
        }
        match answer {
            Ok(response) => return Ok(response),
            Err(Trouble::Link(LinkError::Refused(refusal)))
                if !matches!(refusal.code, Code::NoCatalog | Code::Draining) =>
            {
                return Err(refusal.into());
            }
            Err(Trouble::Untrue(error)) => return Err(tried.untrue(link, error)),
            Err(trouble) => {
                let dialled = !matches!(trouble, Trouble::Link(LinkError::Dial { .. }));
                tried.add(link, &trouble);
                if dialled && !repeatable {
                    return Err(tried.failure("whether it happened is not known"));
                }
            }
        }
    }
    Err(tried.failure("no coordinator answered"))
}

async fn ask(
    link: &CoordinatorLink,
    request: &Request,
    body: Bytes,
    mark: Option<Mark>,
) -> Result<Response, Trouble> {
    let (response, exchange) = link.ask(request, body, patience(request)).await?;
    check(exchange.welcome(), request, &response, mark)?;
    Ok(response)
}

fn patience(request: &Request) -> Patience {
    let mut patience = Patience {
        dial_now: true,
        ..Patience::coordinator()
    };
    if let Request::Publish(_) = request {
        patience.first_byte = PUBLISH_PATIENCE;
    }
    patience
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
        let hop = Hop::Coordinator(link.link().addr().to_owned());
        let reason = trouble.reason();
        self.hops.push(HopFailure { hop, reason });
        self.untrusted += usize::from(trouble.is_untrusted());
    }

    /// One answered, and what it said cannot be.
    fn untrue(mut self, link: &CoordinatorLink, error: GetError) -> Failure {
        let mut failure = Failure::from(error);
        let hop = Hop::Coordinator(link.link().addr().to_owned());
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
