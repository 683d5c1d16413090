//! What a node can be asked, whichever way the question comes.
//!
//! [`Api`] has one implementation per way: in the worker's and in the coordinator's process, over
//! the local socket, and over QUIC. The command line is written against the trait, so a command
//! behaves the same with and without a daemon beside it.

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod shelf;
#[cfg(test)]
pub(crate) mod site;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::answer::{Answer, Failure, Freshness, Query, RunToken, Target};
use crate::proto::code::Code;
use crate::proto::limit::MAX_PIN;
use crate::proto::wire::{
    GetLog, List, Listing, Log, Pinned, Pins, Publish, PublishName, PublishedRev,
};
use crate::spec::{NameError, Spec, SpecHash, SpecName, Syntax};

/// A future that an [`Api`] method returns.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// The requests of Larder.
///
/// # Contract
///
/// - No method panics or hangs: each ends by its deadline, or by the transport's, with an answer
///   or a [`Failure`].
/// - [`publish`](Self::publish) has happened, durably and visibly, when it returns `Ok`. After a
///   failure with code `disk-failed`, `deadline` or a transport's code it may have happened:
///   repeating it with the same key is safe.
pub trait Api: Send + Sync {
    /// Reads one definition.
    fn get(&self, query: Query) -> Reply<'_, Answer>;

    /// Reads what a name stands for, as fresh as the node is configured to answer whoever says
    /// nothing of freshness, and says how fresh that is: strict, or what an operator has chosen for
    /// it. It is for people and engines that leave the choice to the node; whoever needs a promise
    /// asks for it with [`get`](Self::get).
    fn get_as_configured(
        &self,
        name: SpecName,
        deadline: Duration,
    ) -> Reply<'_, (Answer, Freshness)> {
        let query = Query {
            deadline,
            ..Query::strict(Target::Name(name))
        };
        Box::pin(async move { Ok((self.get(query).await?, Freshness::Strict)) })
    }

    /// Records by prefix.
    fn list(&self, list: List) -> Reply<'_, Listing>;

    /// History of a name or of the catalog, newest first.
    fn log(&self, get: GetLog) -> Reply<'_, Log>;

    /// What the node thinks of itself, one JSON object.
    fn status(&self) -> Reply<'_, serde_json::Value>;

    /// The other workers that a worker knows, one JSON object.
    fn peers(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async {
            let message = "only a worker knows other workers";
            Err(Failure::new(Code::NoCatalog.as_str(), message)
                .hint("ask a worker on its socket: larder peers --socket PATH"))
        })
    }

    /// The revision that a run resolves all its definitions at: nothing that was acknowledged
    /// before the call is missing in it. Read at it with
    /// [`Freshness::Run`], and [`pin`](Self::pin) it if the run may
    /// outlive the retention of old revisions.
    fn run_token(&self) -> Reply<'_, RunToken>;

    /// Keeps a token's revision readable for at most [`MAX_PIN`]; the pin is durable when this
    /// returns `Ok`. A revision that is no longer retained fails with code `compacted`.
    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned>;

    /// Lets a pinned revision go before its time, by the number of its pin.
    fn unpin(&self, id: u64) -> Reply<'_, Pinned>;

    /// Every live pin, the oldest first.
    fn pins(&self) -> Reply<'_, Pins>;

    /// Which of these bodies the coordinator lacks.
    fn missing(&self, hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        let _ = hashes;
        read_only()
    }

    /// Hands over a body for a later [`publish`](Self::publish). `syntax` is what the receiver
    /// checks; a sender that has checked the YAML itself asks for [`Syntax::AnyText`].
    fn put_body(&self, spec: Spec, syntax: Syntax) -> Reply<'_, ()> {
        let _ = (spec, syntax);
        read_only()
    }

    /// Changes names, all in one revision or none.
    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        let _ = publish;
        read_only()
    }
}

/// Publishes one definition, or deletes one, without a key: body first, then the change.
///
/// # Errors
/// The [`Failure`] of whichever step failed.
pub async fn publish_one(
    api: &dyn Api,
    name: &str,
    spec: Option<Spec>,
) -> Result<PublishedRev, Failure> {
    let invalid = |error: NameError| Failure::new(Code::Invalid.as_str(), error.to_string());
    let name: SpecName = name.parse().map_err(invalid)?;
    let (hash, len) = match &spec {
        Some(spec) => (Some(spec.hash()), spec.len()),
        None => (None, 0),
    };
    if let Some(spec) = spec {
        api.put_body(spec, Syntax::Yaml).await?;
    }
    api.publish(Publish {
        key: None,
        note: String::new(),
        changes: vec![PublishName {
            name,
            hash,
            len,
            expect: None,
        }],
    })
    .await
}

/// How long a pin lives, in milliseconds.
///
/// # Errors
/// Code `invalid` for no time at all, and for more than [`MAX_PIN`].
pub(crate) fn pin_ms(keep: Duration) -> Result<u64, Failure> {
    if keep.is_zero() || keep > MAX_PIN {
        let days = MAX_PIN.as_secs() / (24 * 3600);
        let message = format!("a pin lives between 1 ms and {days} days");
        return Err(Failure::new(Code::Invalid.as_str(), message));
    }
    Ok(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).max(1))
}

fn read_only<T: Send + 'static>() -> Reply<'static, T> {
    Box::pin(async {
        let message = "this node does not take publishes";
        Err(Failure::new(Code::NotAllowed.as_str(), message).hint(
            "publish to the coordinator, with a publisher's certificate or on its own socket",
        ))
    })
}
