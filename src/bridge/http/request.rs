//! Taking requests apart: names, query parameters and bodies, each within its limit.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Path, Query, Request};
use axum::http::header::EXPECT;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::respond::{invalid, too_large};
use super::{BODY_TIMEOUT, DRAIN_TIMEOUT, MAX_DRAIN_LEN, UPLOAD_WAIT};
use crate::answer::Failure;
use crate::proto::code::Code;

/// The part of the path that a route leaves open, parsed.
pub(super) struct Tail<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Tail<T>
where
    T: FromStr<Err: fmt::Display>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| invalid(format!("the path cannot be read: {error}")))?;
        text.parse()
            .map(Self)
            .map_err(|error| invalid(format!("`{text}` in the path: {error}")))
    }
}

/// The query parameters of a request, each known and given once.
pub(super) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Query(pairs) = Query::try_from_uri(&parts.uri)
            .map_err(|error| invalid(format!("the query cannot be read: {error}")))?;
        Ok(Self(pairs))
    }
}

impl Params {
    /// Refuses every parameter that is not in `known`, and repeated ones.
    pub(super) fn only(self, known: &[&str]) -> Result<Self, Failure> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
            let hint = match known {
                [] => "this route takes none".into(),
                _ => format!("this route takes `{}`", known.join("`, `")),
            };
            return Err(invalid(format!("unknown query parameter `{name}`")).hint(hint));
        }
        names.sort_unstable();
        match names.array_windows().find(|[a, b]| a == b) {
            Some([name, _]) => Err(invalid(format!("query parameter `{name}` is given twice"))),
            None => Ok(self),
        }
    }

    /// The parameter `name`, parsed; `None` if it is not given.
    pub(super) fn get<T: FromStr<Err: fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        let Some((_, text)) = self.0.iter().find(|(key, _)| key == name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(invalid(format!("query parameter `{name}={text}`: {error}"))),
        }
    }
}

/// A whole body, and the place among [`MAX_UPLOADS`](super::MAX_UPLOADS) that it takes.
pub(super) struct Upload {
    pub(super) bytes: Bytes,
    pub(super) place: OwnedSemaphorePermit,
}

/// Reads a body of at most `limit` bytes. A longer one that announces its length is refused
/// before any of it is kept.
pub(super) async fn read_body(
    request: Request,
    places: &Arc<Semaphore>,
    limit: u64,
) -> Result<Upload, Failure> {
    let place = match timeout(UPLOAD_WAIT, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(place)) => place,
        Ok(Err(_)) | Err(_) => {
            drain(request).await;
            return Err(Failure::new(
                Code::Busy.as_str(),
                "too many uploads are in progress",
            ));
        }
    };
    if request.body().size_hint().lower() > limit {
        drain(request).await;
        return Err(too_large(limit));
    }
    let max = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut body = request.into_body();
    match timeout(BODY_TIMEOUT, Limited::new(&mut body, max).collect()).await {
        Ok(Ok(collected)) => Ok(Upload {
            bytes: collected.to_bytes(),
            place,
        }),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_large(limit))
        }
        Ok(Err(error)) => Err(invalid(format!("the body broke off: {error}"))),
        Err(_) => Err(Failure::new(
            super::respond::SLOW_BODY,
            format!("the body took longer than {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

/// Reads and drops the body of a request that is refused; see [`MAX_DRAIN_LEN`].
pub(super) async fn drain(request: Request) {
    // A client that waits for `100 Continue` has sent nothing and need not.
    if !request.headers().contains_key(EXPECT)
        && request.body().size_hint().lower() <= MAX_DRAIN_LEN
    {
        discard(request.into_body()).await;
    }
}

async fn discard(mut body: Body) {
    let reading = async {
        let mut left = MAX_DRAIN_LEN;
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(len as u64) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Whether it was all or not, the answer follows.
    let _ = timeout(DRAIN_TIMEOUT, reading).await;
}
