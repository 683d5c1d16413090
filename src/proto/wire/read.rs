//! Frames of reads.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogId, Content, Epoch, Revision, Version};
use crate::identity::NodeId;
use crate::proto::code::{Code, Refusal, WireRefusal};
use crate::proto::limit::MAX_BLOBS_PER_REQUEST;
use crate::spec::{SpecHash, SpecName};

/// What are these names, now or at a revision?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// The revision to look at; `None` is the newest visible one.
    pub at: Option<Revision>,
    /// At most [`MAX_NAMES_PER_RESOLVE`](crate::proto::limit::MAX_NAMES_PER_RESOLVE) names; none
    /// asks only which revision is the newest.
    pub names: Vec<ResolveName>,
    /// What other workers can do for the asker, and it for them.
    pub peering: Peering,
}

/// How an asker takes part in passing bytes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Peering {
    /// Not at all.
    #[default]
    Alone,
    /// It gets bytes from other workers if it is told which.
    Takes,
    /// It also gives them, at the address that its packets come from, unless a
    /// [`Meet`](super::Meet) says another one.
    Gives,
}

/// One name of a [`Resolve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveName {
    /// The name.
    pub name: SpecName,
    /// The bytes that the asker has: a body with this hash is left out.
    pub if_hash: Option<SpecHash>,
    /// Whether a body is wanted at all.
    pub body: bool,
}

/// Opens the answer to [`Resolve`]; one [`Outcome`] per name follows, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision that every outcome was read at.
    pub rev: Revision,
}

/// One name of a [`Resolved`]; a body of `len` bytes follows if `body` says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// `None`: the name never existed.
    pub version: Option<WireVersion>,
    /// Whether the body follows.
    pub body: bool,
    /// Who has the body or is about to, where it is left out because many ask for it.
    pub ask: Vec<Holder>,
}

/// A worker that has bytes or is about to, and where it listens. Whoever dials it checks who
/// answers, and the bytes prove themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    #[serde(with = "raw_id")]
    pub node: NodeId,
    /// Where.
    pub addr: SocketAddr,
}

/// A node's id as its bytes.
mod raw_id {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::NodeId;

    pub(super) fn serialize<S: Serializer>(id: &NodeId, to: S) -> Result<S::Ok, S::Error> {
        id.as_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NodeId, D::Error> {
        <[u8; 16]>::deserialize(from).map(NodeId::from_bytes)
    }
}

/// A [`Version`] in a frame: no hash means deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVersion {
    /// Revision of the last change.
    pub rev: Revision,
    /// Hash, unless deleted.
    pub hash: Option<SpecHash>,
    /// Length in bytes; 0 when deleted.
    pub len: u64,
}

impl From<Version> for WireVersion {
    fn from(version: Version) -> Self {
        let (hash, len) = match version.content {
            Content::Present { hash, len } => (Some(hash), len),
            Content::Deleted => (None, 0),
        };
        Self {
            rev: version.rev,
            hash,
            len,
        }
    }
}

impl From<WireVersion> for Version {
    fn from(wire: WireVersion) -> Self {
        let content = match wire.hash {
            Some(hash) => Content::Present {
                hash,
                len: wire.len,
            },
            None => Content::Deleted,
        };
        Self {
            rev: wire.rev,
            content,
        }
    }
}

/// Bytes by hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBlob {
    /// Of what.
    pub hash: SpecHash,
    /// Answer at once and with the bytes: point at nobody else, and wait for nothing. Without it
    /// the coordinator may answer [`Holders`], and a worker to which the bytes are on their way
    /// holds the question for a moment.
    pub force: bool,
}

/// Answers [`GetBlob`] where many ask for the same: others have the bytes, or are about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holders {
    /// At least one, in the order in which they are to be asked.
    pub ask: Vec<Holder>,
}

/// Answers [`GetBlob`]; a body of `len` bytes follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Length in bytes.
    pub len: u64,
}

/// Bytes by several hashes. For each there is one [`BlobOf`], [`HoldersOf`] or [`NoBlobOf`], in
/// whatever order they come. A worker that holds what is left of the question says so once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBlobs {
    /// Of what; at most [`MAX_BLOBS_PER_REQUEST`](crate::proto::limit::MAX_BLOBS_PER_REQUEST).
    pub hashes: Vec<SpecHash>,
    /// See [`GetBlob::force`].
    pub force: bool,
}

impl GetBlobs {
    /// Whether it may be asked.
    ///
    /// # Errors
    /// [`Code::TooLarge`] for too many hashes.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.hashes.len() <= MAX_BLOBS_PER_REQUEST {
            return Ok(());
        }
        let message = format!(
            "{} bodies in one request, at most {MAX_BLOBS_PER_REQUEST} are allowed",
            self.hashes.len()
        );
        Err(Refusal::new(Code::TooLarge, message))
    }
}

/// Answers a part of [`GetBlobs`]; a body of `len` bytes follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobOf {
    /// Place of its hash in the request.
    pub index: u32,
    /// Length in bytes.
    pub len: u64,
}

/// Answers a part of [`GetBlobs`] as [`Holders`] answers a [`GetBlob`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldersOf {
    /// Place of the hash in the request.
    pub index: u32,
    /// See [`Holders::ask`].
    pub ask: Vec<Holder>,
}

/// Answers a part of [`GetBlobs`]: these bytes are not to be had here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoBlobOf {
    /// Place of the hash in the request.
    pub index: u32,
    /// Why.
    pub refusal: WireRefusal,
}

/// Records by prefix, in order of name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The revision to look at; `None` is the newest visible one.
    pub at: Option<Revision>,
    /// Names that start with this text.
    pub prefix: String,
    /// Only names after this one.
    pub after: Option<SpecName>,
    /// Whether tombstones are wanted.
    pub deleted: bool,
    /// At most [`MAX_PAGE`](crate::proto::limit::MAX_PAGE).
    pub limit: u32,
}

/// Answers [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision that was read.
    pub rev: Revision,
    /// Names with their versions.
    pub records: Vec<(SpecName, WireVersion)>,
    /// Whether more follow after the last one.
    pub more: bool,
}

/// The history of a name, or of the catalog, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLog {
    /// `None`: every revision.
    pub name: Option<SpecName>,
    /// Only revisions before this one.
    pub before: Option<Revision>,
    /// At most [`MAX_PAGE`](crate::proto::limit::MAX_PAGE).
    pub limit: u32,
}

/// Answers [`GetLog`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The oldest revision that is retained.
    pub oldest: Revision,
    /// Newest first.
    pub entries: Vec<LogEntry>,
    /// Whether older ones follow.
    pub more: bool,
}

/// One revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number.
    pub rev: Revision,
    /// The publisher's URI.
    pub by: String,
    /// Wall clock at the coordinator, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The publisher's words.
    pub note: String,
    /// Names that it changed.
    pub changed: u32,
    /// What the name that was asked for became in it.
    pub version: Option<WireVersion>,
}

/// What a node says of itself: one JSON object, the same as local HTTP's `/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The JSON text.
    pub json: String,
}
