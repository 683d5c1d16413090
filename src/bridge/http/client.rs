//! The client of local HTTP: an [`Api`] over a daemon's Unix socket.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::http::header::{ETAG, HOST};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::json::{
    ErrorJson, HaveJson, ListingJson, LogJson, MissingJson, PinJson, PublishJson, PublishedJson,
    StoredJson, TokenJson,
};
use super::respond::{ABSENT, header, too_large};
use super::{BACKUP_STALL, MAX_DEADLINE};
use crate::answer::{
    Answer, Failure, Freshness, Hop, HopFailure, Mode, Proof, Query, RunToken, Snapshot, Target,
};
use crate::api::{Api, Reply};
use crate::config;
use crate::proto::code::Code;
use crate::proto::limit::MAX_PUBLISH_WAIT;
use crate::proto::wire::{GetLog, List, Listing, Log, Pinned, Pins, Publish, PublishedRev};
use crate::spec::{MAX_SPEC_LEN, Spec, SpecHash, SpecName, Syntax};

/// Longest JSON that is read from a daemon: a page of 10,000 records with long names has 4 MiB.
const MAX_ANSWER_LEN: u64 = 64 << 20;

/// How long a daemon may take to say that it is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Added to what the daemon waits for itself, so that what it has to say arrives.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);

/// How long everything else may take: some of it waits for the disk.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Nobody answers on the socket.
const UNREACHABLE: &str = "unreachable";

/// What answered does not speak as a daemon of ours does.
const BAD_ANSWER: &str = "bad-answer";

/// A daemon on this machine, by its Unix socket.
///
/// Each request is a connection of its own, so a daemon may restart between two of them.
#[derive(Debug, Clone)]
pub struct HttpClient {
    pub(super) path: PathBuf,
}

impl HttpClient {
    /// Sees that a daemon answers on the socket at `path`.
    ///
    /// # Errors
    /// A [`Failure`] with code `unreachable` when none does, or when it is no daemon of ours.
    pub async fn connect(path: impl Into<PathBuf>) -> Result<Self, Failure> {
        let client = Self { path: path.into() };
        let ask = Ask::get("/healthz".into()).within(CONNECT_TIMEOUT);
        client.exchange(ask).await?;
        Ok(client)
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the node's backup to `out` and returns its length in bytes.
    ///
    /// # Errors
    /// A [`Failure`] of the node, the connection or `out`; what `out` holds then is not whole.
    pub async fn backup(&self, out: &mut (dyn io::Write + Send)) -> Result<u64, Failure> {
        let ask = Ask::get("/v1/backup".into());
        let response = within(REQUEST_TIMEOUT, self.send(&ask)).await?;
        if response.status() != StatusCode::OK {
            let (parts, body) = within(REQUEST_TIMEOUT, self.collect(response, &ask)).await?;
            return Err(failure_of(&parts, &body));
        }
        let mut body = response.into_body();
        let mut len = 0;
        while let Some(frame) = timed(BACKUP_STALL, body.frame()).await? {
            let frame = frame.map_err(|error| self.broke_off(&error))?;
            if let Ok(chunk) = frame.into_data() {
                let written = out.write_all(&chunk);
                written.map_err(|error| {
                    let message = format!("cannot write the backup: {error}");
                    Failure::new(Code::Disk.as_str(), message)
                })?;
                len += chunk.len() as u64;
            }
        }
        Ok(len)
    }

    async fn read(&self, query: Query) -> Result<Answer, Failure> {
        let freshness = match (&query.target, query.freshness) {
            (Target::Name(_), Freshness::At(rev)) => ("at", Some(rev.to_string())),
            (Target::Name(_), Freshness::Run(token)) => ("at", Some(token.to_string())),
            (Target::Name(_), Freshness::AtLeast(token)) => ("at_least", Some(token.to_string())),
            (Target::Name(_), Freshness::Bounded(staleness)) => {
                let millis = staleness.as_millis();
                ("max_staleness", Some(format!("{millis}ms")))
            }
            (Target::Name(_), Freshness::Verified) => ("verified", Some("true".into())),
            // Said in so many words: the node's default may be weaker.
            (Target::Name(_), Freshness::Strict) => ("strict", Some("true".into())),
            (Target::Hash(_), _) => ("at", None),
        };
        let (answer, _) = self
            .ask_for(&query.target, freshness, query.deadline)
            .await?;
        Ok(answer)
    }

    async fn read_as_configured(
        &self,
        name: SpecName,
        deadline: Duration,
    ) -> Result<(Answer, Freshness), Failure> {
        let target = Target::Name(name);
        let (answer, headers) = self.ask_for(&target, ("at", None), deadline).await?;
        let text: String = required(&headers, &header::DEFAULT_FRESHNESS)?;
        let freshness = config::freshness(&text);
        let freshness = freshness.map_err(|_| bad_answer(format!("the freshness `{text}`")))?;
        Ok((answer, freshness))
    }

    /// The answer to a read, and the headers that it came with.
    async fn ask_for(
        &self,
        target: &Target,
        freshness: (&str, Option<String>),
        deadline: Duration,
    ) -> Result<(Answer, HeaderMap), Failure> {
        let path = match target {
            Target::Name(name) => format!("/v1/specs/{name}"),
            Target::Hash(hash) => format!("/v1/blobs/{hash}"),
        };
        let deadline = deadline.clamp(Duration::from_millis(1), MAX_DEADLINE);
        let pairs = [
            freshness,
            ("deadline_ms", Some(deadline.as_millis().to_string())),
        ];
        let ask = Ask::get(with_query(&path, &pairs))
            .within(deadline + DEADLINE_GRACE)
            .up_to(MAX_SPEC_LEN);
        let (parts, body) = self.exchange_any(&ask).await?;
        let spec = if parts.status == StatusCode::OK {
            Some(verified(target, &parts.headers, body)?)
        } else {
            let failure = failure_of(&parts, &body);
            if failure.code != ABSENT {
                return Err(failure);
            }
            None
        };
        Ok((answer_of(&parts.headers, spec)?, parts.headers))
    }

    async fn json<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, Failure> {
        let body = self.exchange(ask).await?;
        serde_json::from_slice(&body).map_err(|error| bad_answer(format!("its JSON: {error}")))
    }

    /// The body of a `200`; anything else is a failure.
    async fn exchange(&self, ask: Ask) -> Result<Bytes, Failure> {
        let (parts, body) = self.exchange_any(&ask).await?;
        match parts.status {
            StatusCode::OK => Ok(body),
            _ => Err(failure_of(&parts, &body)),
        }
    }

    async fn exchange_any(&self, ask: &Ask) -> Result<(Parts, Bytes), Failure> {
        let exchange = async {
            let response = self.send(ask).await?;
            self.collect(response, ask).await
        };
        within(ask.timeout, exchange).await
    }

    async fn send(&self, ask: &Ask) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.path).await;
        let stream = stream.map_err(|error| self.unreachable(&error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broke_off(&error))?;
        // It ends with the answer, or when the answer is dropped.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.target)
            .header(HOST, "localhost")
            .body(Full::new(ask.body.clone()))
            .map_err(|error| {
                Failure::new(
                    Code::Invalid.as_str(),
                    format!("the request has no form: {error}"),
                )
            })?;
        let response = sender.send_request(request).await;
        response.map_err(|error| self.broke_off(&error))
    }

    async fn collect(
        &self,
        response: Response<Incoming>,
        ask: &Ask,
    ) -> Result<(Parts, Bytes), Failure> {
        let (parts, body) = response.into_parts();
        let limit = usize::try_from(ask.max_answer_len).unwrap_or(usize::MAX);
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok((parts, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(bad_answer(format!("it has more than {limit} bytes")))
            }
            Err(error) => Err(self.broke_off(&error)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let path = self.path.display();
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "the daemon's `--socket-group` decides who may connect beside its owner"
            }
            _ => "is a daemon running, and is this its `--socket`?",
        };
        Failure::new(UNREACHABLE, format!("no daemon answers on {path}: {error}")).hint(hint)
    }

    fn broke_off(&self, error: &dyn Display) -> Failure {
        let path = self.path.display();
        let message = format!("the connection to the daemon on {path} broke off: {error}");
        Failure::new(UNREACHABLE, message).hint("it may have been stopped; its log says why")
    }
}

impl Api for HttpClient {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        Box::pin(self.read(query))
    }

    fn get_as_configured(
        &self,
        name: SpecName,
        deadline: Duration,
    ) -> Reply<'_, (Answer, Freshness)> {
        Box::pin(self.read_as_configured(name, deadline))
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        let pairs = [
            ("at", list.at.map(|rev| rev.to_string())),
            ("prefix", Some(list.prefix)),
            ("after", list.after.map(|name| name.to_string())),
            ("deleted", Some(list.deleted.to_string())),
            ("limit", Some(list.limit.to_string())),
        ];
        let ask = Ask::get(with_query("/v1/specs", &pairs));
        Box::pin(async { Ok(self.json::<ListingJson>(ask).await?.into()) })
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        let pairs = [
            ("name", get.name.map(|name| name.to_string())),
            ("before", get.before.map(|rev| rev.to_string())),
            ("limit", Some(get.limit.to_string())),
        ];
        let ask = Ask::get(with_query("/v1/log", &pairs));
        Box::pin(async { Ok(self.json::<LogJson>(ask).await?.into()) })
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(self.json(Ask::get("/v1/status".into())))
    }

    fn peers(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(self.json(Ask::get("/v1/peers".into())))
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        Box::pin(async {
            let ask = Ask::get("/v1/run-token".into());
            Ok(self.json::<TokenJson>(ask).await?.token)
        })
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        Box::pin(async move {
            let for_ms = Some(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
            let ask = Ask::post("/v1/pins", &PinJson { token, for_ms })?;
            self.json(ask).await
        })
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        let target = format!("/v1/pins/{id}");
        Box::pin(self.json(Ask::new(Method::DELETE, target, Bytes::new())))
    }

    fn pins(&self) -> Reply<'_, Pins> {
        Box::pin(self.json(Ask::get("/v1/pins".into())))
    }

    fn missing(&self, hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        Box::pin(async {
            let ask = Ask::post("/v1/missing", &HaveJson { hashes })?;
            Ok(self.json::<MissingJson>(ask).await?.missing)
        })
    }

    fn put_body(&self, spec: Spec, syntax: Syntax) -> Reply<'_, ()> {
        Box::pin(async move {
            if spec.len() > MAX_SPEC_LEN {
                return Err(too_large(MAX_SPEC_LEN));
            }
            let validate = match syntax {
                Syntax::Yaml => None,
                Syntax::AnyText => Some("false".into()),
            };
            let target = with_query(
                &format!("/v1/blobs/{}", spec.hash()),
                &[("validate", validate)],
            );
            let hash = spec.hash();
            let ask = Ask::new(Method::PUT, target, spec.into_bytes());
            let stored: StoredJson = self.json(ask).await?;
            if stored.hash != hash {
                return Err(bad_answer(format!("it stored {}", stored.hash)));
            }
            Ok(())
        })
    }

    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        Box::pin(async {
            let ask = Ask::post("/v1/publish", &PublishJson::from(publish))?
                .within(MAX_PUBLISH_WAIT + DEADLINE_GRACE);
            Ok(self.json::<PublishedJson>(ask).await?.into())
        })
    }
}

/// One request, and what its answer may cost.
struct Ask {
    method: Method,
    target: String,
    body: Bytes,
    timeout: Duration,
    max_answer_len: u64,
}

impl Ask {
    fn new(method: Method, target: String, body: Bytes) -> Self {
        Self {
            method,
            target,
            body,
            timeout: REQUEST_TIMEOUT,
            max_answer_len: MAX_ANSWER_LEN,
        }
    }

    fn get(target: String) -> Self {
        Self::new(Method::GET, target, Bytes::new())
    }

    fn post(target: &str, json: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_vec(json).map_err(|error| {
            Failure::new(
                Code::Internal.as_str(),
                format!("the request has no JSON: {error}"),
            )
        })?;
        Ok(Self::new(Method::POST, target.into(), body.into()))
    }

    fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn up_to(mut self, max_answer_len: u64) -> Self {
        self.max_answer_len = max_answer_len;
        self
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timed(limit, work).await?
}

async fn timed<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| {
        let message = format!("the daemon did not answer within {} ms", limit.as_millis());
        Failure::new("deadline", message)
    };
    timeout(limit, work).await.map_err(late)
}

fn bad_answer(what: impl Display) -> Failure {
    let message = format!("the daemon's answer cannot be used: {what}");
    Failure::new(BAD_ANSWER, message).hint("are the daemon and this program of one version?")
}

fn failure_of(parts: &Parts, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorJson>(body) {
        Ok(json) => json.error,
        Err(_) => bad_answer(format!("status {} without a reason", parts.status.as_u16())),
    }
}

/// The bytes, once they are what the reader asked for and what the daemon says they are.
fn verified(target: &Target, headers: &HeaderMap, bytes: Bytes) -> Result<Spec, Failure> {
    let tag: String = required(headers, &ETAG)?;
    let hash = tag.trim_matches('"').parse::<SpecHash>();
    let hash = hash.map_err(|error| bad_answer(format!("its `ETag`: {error}")))?;
    if let Target::Hash(wanted) = target
        && *wanted != hash
    {
        return Err(bad_answer(format!("it is for {hash}, not for {wanted}")));
    }
    Spec::verify(hash, None, bytes).map_err(|error| bad_answer(format!("its bytes: {error}")))
}

fn answer_of(headers: &HeaderMap, spec: Option<Spec>) -> Result<Answer, Failure> {
    let snapshot = match optional(headers, &header::CATALOG)? {
        None => None,
        Some(catalog) => Some(Snapshot {
            catalog,
            epoch: required(headers, &header::EPOCH)?,
            rev: required(headers, &header::REVISION)?,
        }),
    };
    let mode: String = required(headers, &header::MODE)?;
    let source: String = required(headers, &header::SOURCE)?;
    let proof = Proof {
        mode: mode_of(&mode).ok_or_else(|| bad_answer(format!("the mode `{mode}`")))?,
        snapshot,
        record_rev: optional(headers, &header::RECORD_REVISION)?,
        source: hop_of(&source).ok_or_else(|| bad_answer(format!("the source `{source}`")))?,
        age_us: required(headers, &header::AGE_US)?,
    };
    let failed = headers.get_all(header::FAILED_HOP).into_iter();
    let failed = failed.map(|hop| {
        serde_json::from_slice::<HopFailure>(hop.as_bytes())
            .map_err(|error| bad_answer(format!("a failed hop: {error}")))
    });
    Ok(Answer {
        spec,
        proof,
        failed: failed.collect::<Result<_, _>>()?,
        took: Duration::from_micros(required(headers, &header::TOOK_US)?),
    })
}

fn mode_of(text: &str) -> Option<Mode> {
    Mode::ALL.into_iter().find(|mode| mode.to_string() == text)
}

fn hop_of(text: &str) -> Option<Hop> {
    let Some((kind, addr)) = text.split_once(' ') else {
        return Hop::from_parts(text, None, None);
    };
    // Neither an address nor a name has a space in it.
    match addr.split_once(" via ") {
        Some((addr, via)) => Hop::from_parts(kind, Some(addr.into()), Some(via.into())),
        None => Hop::from_parts(kind, Some(addr.into()), None),
    }
}

fn required<T: FromStr<Err: Display>>(
    headers: &HeaderMap,
    name: &HeaderName,
) -> Result<T, Failure> {
    optional(headers, name)?.ok_or_else(|| bad_answer(format!("no `{name}` header")))
}

fn optional<T: FromStr<Err: Display>>(
    headers: &HeaderMap,
    name: &HeaderName,
) -> Result<Option<T>, Failure> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let bad = |error: &dyn Display| bad_answer(format!("its `{name}` header: {error}"));
    let text = value.to_str().map_err(|error| bad(&error))?;
    text.parse().map(Some).map_err(|error| bad(&error))
}

/// `path?name=value&...` with what is given.
fn with_query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut target = path.to_owned();
    let mut separator = '?';
    for (name, value) in pairs {
        if let Some(value) = value {
            target.push(separator);
            target.push_str(name);
            target.push('=');
            escape(value, &mut target);
            separator = '&';
        }
    }
    target
}

/// Percent-encodes all but what RFC 3986 leaves alone everywhere.
fn escape(value: &str, out: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}
