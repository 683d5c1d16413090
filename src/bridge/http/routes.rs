//! The routes: each takes its request apart, asks the node, and puts the answer into HTTP.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::gate::{self, Door};
use super::json::{
    HaveJson, KeyText, ListingJson, LogJson, MissingJson, PinJson, PublishJson, PublishedJson,
    PublishedOneJson, StoredJson, TokenJson,
};
use super::request::{Params, Tail, read_body};
use super::respond::{self, invalid};
use super::{DEFAULT_PAGE, MAX_DEADLINE, MAX_JSON_LEN, Node, backup};
use crate::answer::{At, Failure, Freshness, Query, RunToken, Target};
use crate::config;
use crate::proto::code::Code;
use crate::proto::limit::DEFAULT_PIN;
use crate::proto::wire::{GetLog, List, Publish, PublishName};
use crate::spec::{Mismatch, Spec, SpecHash, SpecName, Syntax, SyntaxError};

/// What the hint of a wrong path lists.
const ROUTES: &str = "/v1/specs, /v1/specs/{name}, /v1/blobs/{hash}, /v1/missing, /v1/publish, \
     /v1/log, /v1/run-token, /v1/pins, /v1/pins/{id}, /v1/status, /v1/peers, /v1/backup, /healthz, /readyz, /metrics";

/// Where pins are listed and made.
pub(super) const PINS: &str = "/v1/pins";
/// Below which each pin is.
pub(super) const PIN: &str = "/v1/pins/";

/// The state of one listener's routes.
pub(super) struct Surface {
    pub(super) node: Arc<dyn Node>,
    pub(super) door: Door,
    /// [`MAX_UPLOADS`](super::MAX_UPLOADS) places, shared by all listeners.
    pub(super) uploads: Arc<Semaphore>,
    /// One place: a backup reads the whole disk.
    pub(super) backups: Arc<Semaphore>,
}

type Here = State<Arc<Surface>>;
type Answered = Result<Response, Failure>;

/// All routes behind the gate.
pub(super) fn router(surface: Surface) -> Router {
    let surface = Arc::new(surface);
    let spec = get(get_spec).put(put_spec).delete(delete_spec);
    Router::new()
        .route("/v1/specs", get(list))
        .route("/v1/specs/{*name}", spec)
        .route("/v1/blobs/{hash}", get(get_blob).put(put_blob))
        .route("/v1/missing", post(missing))
        .route("/v1/publish", post(publish))
        .route("/v1/log", get(log))
        .route("/v1/run-token", get(run_token))
        .route(PINS, get(pins).post(pin))
        .route("/v1/pins/{id}", delete(unpin))
        .route("/v1/status", get(status))
        .route("/v1/peers", get(peers))
        .route("/v1/backup", get(get_backup))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_path)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&surface),
            gate::pass,
        ))
        .with_state(surface)
}

async fn get_spec(
    State(surface): Here,
    Tail(name): Tail<SpecName>,
    params: Params,
    headers: HeaderMap,
) -> Answered {
    let params = params.only(&[
        "at",
        "at_least",
        "max_staleness",
        "verified",
        "strict",
        "deadline_ms",
    ])?;
    let deadline = deadline(&surface, &params)?;
    let Some(freshness) = freshness(&params)? else {
        let api = surface.node.api();
        let answer = api.get_as_configured(name.clone(), deadline).await?;
        let target = Target::Name(name);
        return Ok(respond::answer_as_configured(&target, answer, &headers));
    };
    let query = Query {
        target: Target::Name(name),
        freshness,
        deadline,
    };
    read(&surface, query, &headers).await
}

async fn get_blob(
    State(surface): Here,
    Tail(hash): Tail<SpecHash>,
    params: Params,
    headers: HeaderMap,
) -> Answered {
    let params = params.only(&["deadline_ms"])?;
    let query = Query {
        target: Target::Hash(hash),
        freshness: Freshness::Strict,
        deadline: deadline(&surface, &params)?,
    };
    read(&surface, query, &headers).await
}

/// `If-None-Match` is looked at after the answer: a `304` needs the same proof as the bytes.
async fn read(surface: &Surface, query: Query, headers: &HeaderMap) -> Answered {
    let target = query.target.clone();
    let answer = surface.node.api().get(query).await?;
    Ok(respond::answer(&target, answer, headers))
}

async fn put_spec(
    State(surface): Here,
    Tail(name): Tail<SpecName>,
    params: Params,
    request: Request,
) -> Answered {
    let params = params.only(&["expect", "note", "key", "validate"])?;
    let expect = params.get("expect")?;
    let (note, key) = note_and_key(&params)?;
    let syntax = syntax(&params)?;
    let spec = take_body(&surface, request, syntax).await?;
    let change = PublishName {
        name,
        hash: Some(spec.hash()),
        len: spec.len(),
        expect,
    };
    publish_one(
        &surface,
        Publish {
            key,
            note,
            changes: vec![change],
        },
    )
    .await
}

async fn delete_spec(State(surface): Here, Tail(name): Tail<SpecName>, params: Params) -> Answered {
    let params = params.only(&["expect", "note", "key"])?;
    let (note, key) = note_and_key(&params)?;
    let change = PublishName {
        name,
        hash: None,
        len: 0,
        expect: params.get("expect")?,
    };
    publish_one(
        &surface,
        Publish {
            key,
            note,
            changes: vec![change],
        },
    )
    .await
}

async fn publish_one(surface: &Surface, publish: Publish) -> Answered {
    let hash = publish.changes.iter().find_map(|change| change.hash);
    let published = surface.node.api().publish(publish).await?.into();
    Ok(Json(PublishedOneJson { published, hash }).into_response())
}

async fn put_blob(
    State(surface): Here,
    Tail(hash): Tail<SpecHash>,
    params: Params,
    request: Request,
) -> Answered {
    let syntax = syntax(&params.only(&["validate"])?)?;
    let spec = take_body_of(&surface, request, syntax, Some(hash)).await?;
    let len = spec.len();
    Ok(Json(StoredJson { hash, len }).into_response())
}

async fn take_body(surface: &Surface, request: Request, syntax: Syntax) -> Result<Spec, Failure> {
    take_body_of(surface, request, syntax, None).await
}

/// Reads a body, checks it, and hands it to the node. Its place among the uploads is free again
/// when the node has it.
async fn take_body_of(
    surface: &Surface,
    request: Request,
    syntax: Syntax,
    promised: Option<SpecHash>,
) -> Result<Spec, Failure> {
    let max_len = surface.node.max_spec_len();
    let upload = read_body(request, &surface.uploads, max_len).await?;
    let bytes = upload.bytes;
    let checking = blocking(move || check_body(bytes, syntax, max_len, promised));
    let spec = checking.await??;
    // Checked already, so the receiver need not parse it once more.
    let stored = surface.node.api().put_body(spec.clone(), Syntax::AnyText);
    stored.await?;
    drop(upload.place);
    Ok(spec)
}

fn check_body(
    bytes: Bytes,
    syntax: Syntax,
    max_len: u64,
    promised: Option<SpecHash>,
) -> Result<Spec, Failure> {
    let spec = match promised {
        None => Spec::new(bytes),
        Some(hash) => Spec::verify(hash, None, bytes)
            .map_err(|error: Mismatch| invalid(format!("the body is not that blob: {error}")))?,
    };
    match syntax.check(spec.bytes(), max_len) {
        Ok(()) => Ok(spec),
        Err(SyntaxError::TooLarge { max_len, .. }) => Err(respond::too_large(max_len)),
        Err(error @ SyntaxError::Yaml { .. }) => {
            let failure = invalid(format!("the body is not YAML: {error}"));
            Err(failure.hint("`?validate=false` takes any text"))
        }
        Err(error) => Err(invalid(format!("the body is no definition: {error}"))),
    }
}

async fn missing(State(surface): Here, params: Params, request: Request) -> Answered {
    params.only(&[])?;
    let have: HaveJson = read_json(&surface, request).await?;
    let missing = surface.node.api().missing(have.hashes).await?;
    Ok(Json(MissingJson { missing }).into_response())
}

async fn publish(State(surface): Here, params: Params, request: Request) -> Answered {
    params.only(&[])?;
    let publish: PublishJson = read_json(&surface, request).await?;
    let published = surface.node.api().publish(publish.into()).await?;
    Ok(Json(PublishedJson::from(published)).into_response())
}

async fn list(State(surface): Here, params: Params) -> Answered {
    let params = params.only(&["prefix", "after", "limit", "at", "deleted"])?;
    let list = List {
        at: params.get("at")?,
        prefix: params.get("prefix")?.unwrap_or_default(),
        after: params.get("after")?,
        deleted: params.get("deleted")?.unwrap_or(false),
        limit: params.get("limit")?.unwrap_or(DEFAULT_PAGE),
    };
    let listing = surface.node.api().list(list).await?;
    Ok(Json(ListingJson::from(listing)).into_response())
}

async fn log(State(surface): Here, params: Params) -> Answered {
    let params = params.only(&["name", "before", "limit"])?;
    let get = GetLog {
        name: params.get("name")?,
        before: params.get("before")?,
        limit: params.get("limit")?.unwrap_or(DEFAULT_PAGE),
    };
    let log = surface.node.api().log(get).await?;
    Ok(Json(LogJson::from(log)).into_response())
}

async fn run_token(State(surface): Here, params: Params) -> Answered {
    params.only(&[])?;
    let token = surface.node.api().run_token().await?;
    Ok(Json(TokenJson::from(token)).into_response())
}

async fn pins(State(surface): Here, params: Params) -> Answered {
    params.only(&[])?;
    if surface.door != Door::Unix {
        let failure = Failure::new(Code::NotAllowed.as_str(), "no pins over TCP");
        return Err(failure.hint("use the Unix socket, as with `curl --unix-socket`"));
    }
    Ok(Json(surface.node.api().pins().await?).into_response())
}

async fn pin(State(surface): Here, params: Params, request: Request) -> Answered {
    params.only(&[])?;
    let pin: PinJson = read_json(&surface, request).await?;
    let keep = pin.for_ms.map_or(DEFAULT_PIN, Duration::from_millis);
    let pinned = surface.node.api().pin(pin.token, keep).await?;
    Ok(Json(pinned).into_response())
}

async fn unpin(State(surface): Here, Tail(id): Tail<u64>, params: Params) -> Answered {
    params.only(&[])?;
    Ok(Json(surface.node.api().unpin(id).await?).into_response())
}

async fn status(State(surface): Here, params: Params) -> Answered {
    params.only(&[])?;
    let status = surface.node.api().status().await?;
    Ok(Json(status).into_response())
}

async fn peers(State(surface): Here, params: Params) -> Answered {
    params.only(&[])?;
    let peers = surface.node.api().peers().await?;
    Ok(Json(peers).into_response())
}

async fn get_backup(State(surface): Here, params: Params) -> Answered {
    params.only(&[])?;
    if surface.door != Door::Unix {
        let failure = Failure::new(Code::NotAllowed.as_str(), "no backup over TCP");
        return Err(failure.hint("use the Unix socket, as with `curl --unix-socket`"));
    }
    let Ok(place) = Arc::clone(&surface.backups).try_acquire_owned() else {
        return Err(Failure::new(Code::Busy.as_str(), "a backup is in progress"));
    };
    backup::start(Arc::clone(&surface.node), place).await
}

async fn ready(State(surface): Here) -> Answered {
    match surface.node.ready() {
        Ok(()) => Ok("ready\n".into_response()),
        Err(reason) => Err(Failure::new(respond::NOT_READY, reason)),
    }
}

async fn metrics(State(surface): Here) -> Response {
    let text = surface.node.metrics();
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

async fn wrong_method(request: Request) -> Response {
    let method = request.method();
    let path = request.uri().path();
    let message = format!("`{path}` does not take {method}");
    let hint = "the `Allow` header lists what it takes";
    Failure::new(respond::WRONG_METHOD, message)
        .hint(hint)
        .into_response()
}

async fn no_such_path(request: Request) -> Response {
    let message = format!("there is no path `{}` here", request.uri().path());
    let failure = Failure::new(respond::NO_SUCH_PATH, message).hint(format!("there is {ROUTES}"));
    failure.into_response()
}

async fn read_json<T: DeserializeOwned + Send + 'static>(
    surface: &Surface,
    request: Request,
) -> Result<T, Failure> {
    let upload = read_body(request, &surface.uploads, MAX_JSON_LEN).await?;
    // The longest take a tenth of a second to parse, which would hold up other requests.
    let bytes = upload.bytes;
    let parsed = blocking(move || serde_json::from_slice(&bytes)).await?;
    drop(upload.place);
    parsed.map_err(|error| invalid(format!("the body is not the JSON of this route: {error}")))
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = spawn_blocking(work).await;
    done.map_err(|error| Failure::new(Code::Internal.as_str(), format!("a check failed: {error}")))
}

/// What a read says of freshness; two sayings would leave open which one holds.
fn freshness(params: &Params) -> Result<Option<Freshness>, Failure> {
    let switch = |name| Ok::<_, Failure>(params.get(name)?.filter(|on: &bool| *on));
    let at = params.get::<At>("at")?.map(Freshness::from);
    let at_least = params.get::<RunToken>("at_least")?.map(Freshness::AtLeast);
    let staleness = params.get::<Staleness>("max_staleness")?;
    let said = [
        ("at", at),
        ("at_least", at_least),
        (
            "max_staleness",
            staleness.map(|bound| Freshness::Bounded(bound.0)),
        ),
        ("verified", switch("verified")?.map(|_| Freshness::Verified)),
        ("strict", switch("strict")?.map(|_| Freshness::Strict)),
    ];
    let mut said = said
        .into_iter()
        .filter_map(|(name, how)| Some((name, how?)));
    match (said.next(), said.next()) {
        (None, _) => Ok(None),
        (Some((_, how)), None) => Ok(Some(how)),
        (Some((one, _)), Some((other, _))) => Err(invalid(format!(
            "query parameters `{one}` and `{other}` exclude each other"
        ))),
    }
}

/// How old an answer may be, such as `30s`.
struct Staleness(Duration);

impl FromStr for Staleness {
    type Err = config::Invalid;

    fn from_str(text: &str) -> Result<Self, config::Invalid> {
        config::staleness(text).map(Self)
    }
}

fn syntax(params: &Params) -> Result<Syntax, Failure> {
    Ok(match params.get("validate")? {
        Some(false) => Syntax::AnyText,
        Some(true) | None => Syntax::Yaml,
    })
}

fn note_and_key(params: &Params) -> Result<(String, Option<[u8; 16]>), Failure> {
    let key = params.get::<KeyText>("key")?;
    Ok((
        params.get("note")?.unwrap_or_default(),
        key.map(|key| key.0),
    ))
}

fn deadline(surface: &Surface, params: &Params) -> Result<Duration, Failure> {
    let Some(millis) = params.get("deadline_ms")? else {
        return Ok(surface.node.deadline());
    };
    let deadline = Duration::from_millis(millis);
    if deadline.is_zero() || deadline > MAX_DEADLINE {
        let max = MAX_DEADLINE.as_millis();
        let message = format!("query parameter `deadline_ms={millis}`: from 1 to {max} is allowed");
        return Err(invalid(message));
    }
    Ok(deadline)
}
