//! Requests that only the coordinator can answer, passed on to it.

use std::time::Duration;

use bytes::Bytes;

use super::call::{CoordinatorLink, Trouble};
use super::engine::Engine;
use crate::answer::{Failure, Hop, HopFailure};
use crate::net::{LinkError, Patience};
use crate::proto::code::Code;
use crate::proto::wire::{Request, Response};

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
    for link in engine.coordinator_links() {
        let ask = || link.ask(request, body.clone(), patience(request));
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
