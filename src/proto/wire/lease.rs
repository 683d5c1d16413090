//! Frames of leases and of the catalog's replication.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{FrameError, HeadBytes, WireVersion};
use crate::catalog::{CatalogId, Change, Content, Epoch, Record, Revision};
use crate::spec::hash::hex;
use crate::spec::{SpecHash, SpecName};

/// Names one process of a worker towards the coordinator; random, never on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(u128);

impl SessionId {
    /// Wraps a random number.
    pub const fn new(raw: u128) -> Self {
        Self(raw)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0.to_be_bytes()[..4]))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Opens the stream of [`Push`]es to a worker; it stays open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Whose.
    pub sid: SessionId,
}

/// Asks for a lease, or a longer one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Whose.
    pub sid: SessionId,
    /// Comes back in the [`Grant`]; the worker knows by it when it asked.
    pub nonce: u64,
    /// The epoch and revision of the replica that the worker holds.
    pub have: Option<(Epoch, Revision)>,
    /// Every mark up to this revision has been set before this was sent.
    pub acked: Option<(Epoch, Revision)>,
    /// Whether a lease would be used. A worker that does not believe what it was told lets no
    /// publish wait for it.
    pub lease: bool,
}

/// Answers [`Renew`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Whose.
    pub sid: SessionId,
    /// Of the request.
    pub nonce: u64,
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The visible revision.
    pub rev: Revision,
    /// The lease in microseconds from the moment the request was *sent*; 0: none.
    pub lease_us: u64,
    /// Whether a [`Watch`] of this session is registered: without one there is no lease.
    pub watching: bool,
    /// What is about to change.
    pub marks: Marks,
    /// What changed since the replica that the worker holds, as far as it fits.
    pub delta: Delta,
}

/// Names that are about to change, each with the revision that will show it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Every name changes by this revision; 0: only the named ones do.
    pub all: Revision,
    /// At most [`MAX_MARKS`](crate::proto::limit::MAX_MARKS) names.
    pub names: Vec<(SpecName, Revision)>,
}

impl Marks {
    /// The newest revision among them.
    pub fn newest(&self) -> Revision {
        let names = self.names.iter().map(|(_, rev)| *rev);
        names.chain([self.all]).max().unwrap_or_default()
    }
}

/// A body that a publish is about to need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The name that will have it.
    pub name: SpecName,
    /// Its hash.
    pub hash: SpecHash,
    /// Its length in bytes.
    pub len: u64,
}

/// What the coordinator sends on its own over a [`Watch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// Something is about to change.
    Prepare(Prepare),
    /// Something has changed.
    Release(Delta),
}

/// Something is about to change: stop answering for it, then say so with [`PrepAck`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The newest pending revision.
    pub rev: Revision,
    /// Every pending mark.
    pub marks: Marks,
    /// Bodies that may be fetched already.
    pub hints: Vec<Hint>,
}

/// Every mark up to this revision is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepAck {
    /// Whose.
    pub sid: SessionId,
    /// The epoch of the revision.
    pub epoch: Epoch,
    /// The revision.
    pub rev: Revision,
}

/// Gives the lease back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// Whose.
    pub sid: SessionId,
}

/// Revisions in order, each with its head, so that whoever has the one before can check them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The newest visible revision, which the steps may fall short of.
    pub rev: Revision,
    /// Consecutive revisions.
    pub steps: Vec<Step>,
}

/// One revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its head.
    pub head: HeadBytes,
    /// What it changed; a name comes once.
    pub changes: Vec<WireChange>,
}

/// A [`Change`] in a frame: no hash means deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireChange {
    /// The name.
    pub name: SpecName,
    /// Its new hash, unless deleted.
    pub hash: Option<SpecHash>,
    /// Length in bytes; 0 when deleted.
    pub len: u64,
}

impl From<&Change> for WireChange {
    fn from(change: &Change) -> Self {
        let (hash, len) = match change.content {
            Content::Present { hash, len } => (Some(hash), len),
            Content::Deleted => (None, 0),
        };
        let name = change.name.clone();
        Self { name, hash, len }
    }
}

impl From<WireChange> for Change {
    fn from(wire: WireChange) -> Self {
        let content = match wire.hash {
            Some(hash) => Content::Present {
                hash,
                len: wire.len,
            },
            None => Content::Deleted,
        };
        let name = wire.name;
        Self { name, content }
    }
}

impl Step {
    /// Bytes that a step with changes of these names has in a frame, roughly.
    pub fn weight(names: &[SpecName]) -> usize {
        let lens = names.iter().map(|name| name.as_str().len());
        256 + lens.map(|len| len + 48).sum::<usize>()
    }
}

/// Revisions after `from`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetDelta {
    /// The epoch of `from`.
    pub epoch: Epoch,
    /// What the asker holds.
    pub from: Revision,
}

/// The newest catalog without its history, as far as it differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetCatalog {
    /// The first 8 bytes of each bucket's digest that the asker holds, in order; empty: nothing.
    pub have: Vec<u8>,
}

/// Opens the answer to [`GetCatalog`]; `parts` times [`CatalogPart`] follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogHead {
    /// Of the revision.
    pub head: HeadBytes,
    /// Buckets that differ.
    pub buckets: Vec<u16>,
    /// Records in them.
    pub records: u64,
    /// Frames that follow.
    pub parts: u32,
}

/// Some of the records in the buckets that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogPart {
    /// In any order.
    pub records: Vec<(SpecName, WireVersion)>,
}

/// A whole answer to [`GetCatalog`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogDiff {
    /// Of the revision.
    pub head: HeadBytes,
    /// Buckets that differ.
    pub buckets: Vec<u16>,
    /// The records in them.
    pub records: Vec<Record>,
}

impl CatalogDiff {
    /// The opening frame of an answer, and the others.
    pub fn frames(self, records_per_part: usize) -> (CatalogHead, Vec<CatalogPart>) {
        let parts: Vec<_> = self
            .records
            .chunks(records_per_part.max(1))
            .map(|chunk| CatalogPart {
                records: chunk
                    .iter()
                    .map(|record| (record.name.clone(), record.version.into()))
                    .collect(),
            })
            .collect();
        let head = CatalogHead {
            head: self.head,
            buckets: self.buckets,
            records: self.records.len() as u64,
            parts: u32::try_from(parts.len()).unwrap_or(u32::MAX),
        };
        (head, parts)
    }

    /// Puts an answer together; `parts` are all that the opening announced.
    ///
    /// # Errors
    /// [`FrameError::Value`] when the records are more or fewer than announced.
    pub fn join(head: CatalogHead, parts: Vec<CatalogPart>) -> Result<Self, FrameError> {
        let records: Vec<_> = parts
            .into_iter()
            .flat_map(|part| part.records)
            .map(|(name, version)| Record {
                name,
                version: version.into(),
            })
            .collect();
        if records.len() as u64 != head.records {
            return Err(FrameError::Value(
                "a catalog of another size than announced",
            ));
        }
        Ok(Self {
            head: head.head,
            buckets: head.buckets,
            records,
        })
    }
}
