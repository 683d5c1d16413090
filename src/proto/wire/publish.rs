//! Frames of publishes.

use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogId, Epoch, IdempotencyKey, Revision};
use crate::spec::{SpecHash, SpecName};

/// Which of these bodies do you lack?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// At most [`MAX_HASHES_PER_HAVE`](crate::proto::limit::MAX_HASHES_PER_HAVE).
    pub hashes: Vec<SpecHash>,
}

/// Answers [`Have`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// To be sent with [`PutBlob`].
    pub hashes: Vec<SpecHash>,
}

/// A body for a later [`Publish`]; `len` bytes follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBlob {
    /// Of the body.
    pub hash: SpecHash,
    /// Length in bytes.
    pub len: u64,
}

/// Changes names, all in one revision or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Repeats of one key by one publisher are one publish.
    pub key: Option<IdempotencyKey>,
    /// For people.
    pub note: String,
    /// At most [`MAX_NAMES_PER_PUBLISH`](crate::catalog::MAX_NAMES_PER_PUBLISH), each name once.
    pub changes: Vec<PublishName>,
}

/// One name of a [`Publish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishName {
    /// The name.
    pub name: SpecName,
    /// Its new hash; `None` deletes it.
    pub hash: Option<SpecHash>,
    /// Length in bytes; 0 for a deletion.
    pub len: u64,
    /// The revision that the name must have; 0: it must not exist.
    pub expect: Option<Revision>,
}

/// Answers [`Publish`] once the revision is durable and visible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedRev {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision in which all of the request holds.
    pub rev: Revision,
    /// Names that changed; 0 when everything was so already.
    pub changed: u32,
    /// Whom it waited for.
    pub waited: Waited,
}

/// What a publish waited for between durable and visible.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Waited {
    /// Milliseconds.
    pub ms: u64,
    /// Workers that held a lease.
    pub holders: u32,
    /// Those that did not acknowledge, so that their lease was waited out; at most
    /// [`MAX_NAMED_HOLDERS`](crate::proto::limit::MAX_NAMED_HOLDERS) are named.
    pub expired: Vec<String>,
}

/// Keeps a revision readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The epoch that the revision was seen in.
    pub epoch: Epoch,
    /// The revision.
    pub rev: Revision,
    /// For how long, in milliseconds from now.
    pub for_ms: u64,
}

/// A revision that is kept readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Its number; given to [`Unpin`].
    pub id: u64,
    /// The revision.
    pub rev: Revision,
    /// Until when, by the coordinator's wall clock, milliseconds since 1970.
    pub until_unix_ms: u64,
    /// Who asked for it.
    pub by: String,
}

/// Lets a pinned revision go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpin {
    /// The number of the pin.
    pub id: u64,
}

/// What is pinned?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetPins {}

/// Answers [`GetPins`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// The live ones, the oldest first.
    pub pins: Vec<Pinned>,
}
