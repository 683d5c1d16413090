//! Local HTTP: what a node answers on its Unix socket and, on request, on loopback TCP.
//!
//! [`Server`] puts any [`Node`] behind HTTP; [`HttpClient`] is an [`Api`] over the Unix socket,
//! with the same answers and failures as the node gives in its own process.
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /v1/specs/{name}?at=&deadline_ms=` | the exact bytes; `ETag` is the hash, the proof is in the `Larder-*` headers. Instead of `at=`, which takes a revision or a run's token, one of `at_least=<token>`, `max_staleness=30s`, `verified=true`, `strict=true`; with none of them the node's default holds, and `Larder-Default-Freshness` says what that is |
//! | `PUT /v1/specs/{name}?expect=&note=&key=&validate=false` | `{catalog, epoch, rev, changed, hash}` |
//! | `DELETE /v1/specs/{name}?expect=&note=&key=` | the same, `hash` is null |
//! | `GET /v1/specs?prefix=&after=&limit=&at=&deleted=true` | `{catalog, epoch, rev, records, more}` |
//! | `GET /v1/blobs/{hash}?deadline_ms=` | the exact bytes |
//! | `PUT /v1/blobs/{hash}?validate=false` | `{hash, len}` |
//! | `POST /v1/missing` with `{hashes}` | `{missing}` |
//! | `POST /v1/publish` with `{key?, note?, changes: [{name, hash, len, expect?}]}` | `{catalog, epoch, rev, changed}` |
//! | `GET /v1/log?name=&before=&limit=` | `{catalog, epoch, oldest, entries, more}` |
//! | `GET /v1/run-token` | `{token, catalog, epoch, rev}` |
//! | `GET /v1/pins` | `{pins}`, Unix socket only |
//! | `POST /v1/pins` with `{token, for_ms?}` | `{id, rev, until_unix_ms, by}`, Unix socket only |
//! | `DELETE /v1/pins/{id}` | the same, Unix socket only |
//! | `GET /v1/status` | one JSON object |
//! | `GET /v1/peers` | a worker's view of the others |
//! | `GET /v1/backup` | a backup of the catalog, Unix socket only |
//! | `GET /healthz`, `/readyz`, `/metrics` | text |
//!
//! Every error is `{"error": Failure}` with one status per code; see the table in `respond.rs`.
//! A query parameter that a route does not know is an error: a misspelled `?at=` must not read
//! the newest revision in silence.
//!
//! On the Unix socket the file's mode is the permission. TCP is loopback only, reads only, and
//! answers only to loopback `Host` names, since any web page may make a browser send requests
//! there.

#![allow(
    clippy::result_large_err,
    reason = "a failure is rare and crosses a socket: one form of it everywhere is worth more"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the clock, tasks and sockets are disallowed in src/proto, this is a driver"
)]

mod backup;
mod client;
mod gate;
mod json;
mod request;
mod respond;
mod routes;
mod server;
mod socket;
mod stall;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

pub use self::client::HttpClient;
pub use self::server::{HttpOptions, Listeners, ServeError, Server, UnixOptions};
pub use self::socket::SocketError;
use crate::api::Api;
use crate::proto::limit::DEFAULT_DEADLINE;

/// Connections at once per listener. Further ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to send the head of a request, and how long an idle connection is
/// kept for its next one.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection whose client takes no byte of its answer for this long is closed, as it holds a
/// place.
pub const WRITE_STALL: Duration = Duration::from_secs(60);

/// How long a body may take to arrive. A later one is refused with `slow-body`.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Bodies held in memory at once over all listeners: with 32 MiB each, half a GiB.
pub const MAX_UPLOADS: usize = 16;

/// How long a request waits for one of the [`MAX_UPLOADS`] places before it is refused with
/// `busy`.
pub const UPLOAD_WAIT: Duration = Duration::from_secs(10);

/// Longest JSON that a client may send: a publish of 100,000 names of ordinary length.
pub const MAX_JSON_LEN: u64 = 32 << 20;

/// Unread bytes of a refused request that are read and dropped, so that a client which sends
/// first and reads later sees why it was refused: one spec of the largest kind. A client that
/// announces more is answered at once and cut off.
pub const MAX_DRAIN_LEN: u64 = crate::spec::MAX_SPEC_LEN;

/// How long such dropping may take.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest `deadline_ms`: no engine waits longer for one definition.
pub const MAX_DEADLINE: Duration = Duration::from_secs(3_600);

/// Records or log entries in one page unless the request says otherwise.
pub const DEFAULT_PAGE: u32 = 1_000;

/// Failed hops that an answer lists in its headers, so that they fit what clients accept; their
/// whole number is in `Larder-Failed-Hops`.
pub const MAX_HOPS_LISTED: usize = 16;

/// How long requests in progress may take once the server stops.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes of a backup on their way between the disk and the client, in chunks of
/// [`BACKUP_CHUNK_LEN`].
pub const BACKUP_CHUNKS: usize = 8;

/// See [`BACKUP_CHUNKS`].
pub const BACKUP_CHUNK_LEN: usize = 64 << 10;

/// A backup whose client takes no byte for this long is given up, as it holds a thread.
pub const BACKUP_STALL: Duration = Duration::from_secs(60);

/// What a node shows of itself over local HTTP.
///
/// # Contract
///
/// No method but [`backup`](Self::backup) blocks.
pub trait Node: Send + Sync {
    /// What it can be asked.
    fn api(&self) -> &dyn Api;

    /// Whether it takes publishes.
    fn writable(&self) -> bool;

    /// Largest spec that it takes, in bytes.
    fn max_spec_len(&self) -> u64;

    /// How long a read may take that does not say so itself.
    fn deadline(&self) -> Duration {
        DEFAULT_DEADLINE
    }

    /// Whether it can do its work now.
    ///
    /// # Errors
    /// Why it cannot, in one sentence.
    fn ready(&self) -> Result<(), String>;

    /// Its metrics as Prometheus text.
    fn metrics(&self) -> String;

    /// Writes a backup of the catalog; `None` at a node that has none to give. Runs on a thread
    /// that may block. `out` is unbuffered.
    fn backup(&self, out: Box<dyn io::Write + Send>) -> Option<io::Result<()>> {
        drop(out);
        None
    }
}
