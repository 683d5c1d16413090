//! What happened, as the outside saw it.
//!
//! Times are real time, not any node's clock. An operation `a` came before `b` only if `a` ended
//! at a smaller time than that at which `b` began; all else is concurrent.

use std::fmt;
use std::time::Duration;

use crate::answer::{Answer, Freshness, GetError, Query, Snapshot, Target};
use crate::catalog::{CatalogId, Change, Content, Epoch, IdempotencyKey, Revision};
use crate::proto::Time;
use crate::proto::wire::PublishedRev;
use crate::spec::SpecHash;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// One attempt to publish; a repetition with the same key is another attempt.
    PublishId
}
id! {
    /// One read.
    ReadId
}
id! {
    /// One run of a workflow, all reads of which see one revision.
    RunId
}
id! {
    /// One pin.
    PinId
}
id! {
    /// One worker, the same before and after its restarts.
    WorkerId
}

/// A revision with its epoch; a later epoch comes after every revision of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The epoch.
    pub epoch: Epoch,
    /// The revision.
    pub rev: Revision,
}

impl Place {
    /// Revision `rev` of `epoch`.
    pub const fn new(epoch: Epoch, rev: Revision) -> Self {
        Self { epoch, rev }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.rev)
    }
}

impl From<Snapshot> for Place {
    fn from(snapshot: Snapshot) -> Self {
        Self::new(snapshot.epoch, snapshot.rev)
    }
}

/// An attempt to publish, when it begins.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Its own id.
    pub id: PublishId,
    /// When it was sent.
    pub invoked: Time,
    /// Who publishes; keys are told apart by it.
    pub by: String,
    /// The idempotency key. Attempts with one key are one publish, however often it is sent.
    pub key: Option<IdempotencyKey>,
    /// What it wants every name to be, each name once.
    pub changes: Vec<Change>,
}

/// How an attempt to publish ended. One that never ended may or may not have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishAnswer {
    /// It happened.
    Acknowledged {
        /// In which catalog, and the revision in which all of it holds.
        snapshot: Snapshot,
        /// Names that changed; 0 when everything was so already.
        changed: u32,
    },
    /// It did not happen and never will.
    Refused,
}

impl From<&PublishedRev> for PublishAnswer {
    fn from(answer: &PublishedRev) -> Self {
        Self::Acknowledged {
            snapshot: Snapshot {
                catalog: answer.catalog,
                epoch: answer.epoch,
                rev: answer.rev,
            },
            changed: answer.changed,
        }
    }
}

/// How fresh a reader wanted the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Not older than any publish acknowledged before.
    Strict,
    /// Strict, and the coordinator was to be asked.
    Verified,
    /// Exactly this revision, of the epoch that the answer names.
    At(Revision),
    /// Not older than this.
    AtLeast(Place),
    /// With every publish older than this.
    Bounded(Duration),
    /// Exactly these bytes.
    Pinned(SpecHash),
}

impl From<Freshness> for Ask {
    fn from(freshness: Freshness) -> Self {
        match freshness {
            Freshness::Strict => Self::Strict,
            Freshness::Verified => Self::Verified,
            Freshness::At(rev) => Self::At(rev),
            Freshness::Run(token) => Self::At(token.rev),
            Freshness::AtLeast(token) => Self::AtLeast(Place::new(token.epoch, token.rev)),
            Freshness::Bounded(staleness) => Self::Bounded(staleness),
        }
    }
}

impl From<&Query> for Ask {
    fn from(query: &Query) -> Self {
        match query.target {
            Target::Hash(hash) => Self::Pinned(hash),
            Target::Name(_) => query.freshness.into(),
        }
    }
}

/// What the answer says that held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// A lease, without a question to anyone.
    Lease,
    /// The coordinator was asked after the read began.
    Asked,
    /// The revision was given.
    At,
    /// The catalog had reached the token.
    AtLeast,
    /// The anchor was young enough.
    Bounded,
    /// The hash was given.
    Pinned,
}

impl From<crate::answer::Mode> for Mode {
    fn from(mode: crate::answer::Mode) -> Self {
        match mode {
            crate::answer::Mode::Lease => Self::Lease,
            crate::answer::Mode::Asked => Self::Asked,
            crate::answer::Mode::At => Self::At,
            crate::answer::Mode::AtLeast => Self::AtLeast,
            crate::answer::Mode::Bounded => Self::Bounded,
            crate::answer::Mode::Pinned => Self::Pinned,
        }
    }
}

/// The proof that came with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// What held.
    pub mode: Mode,
    /// Where the record was read; `None` for a read by hash.
    pub snapshot: Option<Snapshot>,
    /// Revision of the name's last change; `None` if it never existed.
    pub record: Option<Revision>,
}

/// How a read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With bytes, or with an absence, which is [`Content::Deleted`] here.
    Answered {
        /// Hash and length of the bytes that the reader got, computed from these bytes.
        content: Content,
        /// Why it was right.
        proof: Proof,
    },
    /// Without an answer.
    Failed(Failed),
}

impl From<&Answer> for Outcome {
    fn from(answer: &Answer) -> Self {
        let content = match &answer.spec {
            Some(spec) => Content::Present {
                hash: SpecHash::of(spec.bytes()),
                len: spec.len(),
            },
            None => Content::Deleted,
        };
        Self::Answered {
            content,
            proof: Proof {
                mode: answer.proof.mode.into(),
                snapshot: answer.proof.snapshot,
                record: answer.proof.record_rev,
            },
        }
    }
}

/// Why a read had no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// The revision was said to be no longer retained.
    Compacted,
    /// The revision was said not to exist yet.
    Future,
    /// Any other error, which promises nothing.
    Other,
}

impl From<&GetError> for Failed {
    fn from(error: &GetError) -> Self {
        match error {
            GetError::Compacted { .. } => Self::Compacted,
            GetError::Future { .. } => Self::Future,
            _ => Self::Other,
        }
    }
}

/// A whole read.
#[derive(Debug, Clone)]
pub struct Read {
    /// Its own id.
    pub id: ReadId,
    /// Who was asked.
    pub worker: WorkerId,
    /// Which start of its process, counted from 0.
    pub incarnation: u64,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// What was wanted.
    pub target: Target,
    /// How fresh.
    pub ask: Ask,
    /// When it began.
    pub invoked: Time,
    /// When it ended.
    pub responded: Time,
    /// How it ended.
    pub outcome: Outcome,
}

/// A run that has got its token.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Its own id.
    pub id: RunId,
    /// When it asked for its token.
    pub invoked: Time,
    /// When it got it.
    pub responded: Time,
    /// The one revision that all its reads see.
    pub token: Snapshot,
}

/// A pin that was granted.
#[derive(Debug, Clone, Copy)]
pub struct Pin {
    /// Its own id.
    pub id: PinId,
    /// When it was acknowledged.
    pub acknowledged: Time,
    /// Until when it holds unless it is taken away.
    pub until: Time,
    /// The revision that it keeps.
    pub place: Place,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A publish was sent.
    PublishInvoked(Publish),
    /// A publish was answered.
    PublishAnswered {
        /// Which.
        id: PublishId,
        /// When.
        at: Time,
        /// How.
        answer: PublishAnswer,
    },
    /// A read ended.
    Read(Read),
    /// A run got its token.
    RunBegan(Run),
    /// A run is over: none of its reads follows.
    RunEnded {
        /// Which.
        id: RunId,
        /// When.
        at: Time,
    },
    /// The coordinator's process died and came back on the same store.
    Restarted {
        /// When it served again.
        at: Time,
        /// What it came back with, if that is known.
        visible: Option<Place>,
    },
    /// A backup was restored and a new epoch began.
    Restored {
        /// When.
        at: Time,
        /// The new epoch.
        epoch: Epoch,
        /// The newest revision in the backup. It and those below are shared by both epochs;
        /// later ones of the backup's epoch are lost.
        base: Place,
    },
    /// A pin was acknowledged.
    Pinned(Pin),
    /// A pin was given up.
    Unpinned {
        /// Which.
        id: PinId,
        /// When the request was sent.
        at: Time,
    },
    /// Revisions below this one are no longer retained, but for pins.
    Compacted {
        /// When.
        at: Time,
        /// The oldest retained revision.
        oldest: Place,
    },
    /// The coordinator deleted a blob.
    Collected {
        /// When.
        at: Time,
        /// Which.
        hash: SpecHash,
    },
    /// Someone looked which blobs the coordinator has on its disk.
    Audited {
        /// When.
        at: Time,
        /// The visible revision at that moment.
        visible: Place,
        /// All blobs that are there, whole and right.
        held: Vec<SpecHash>,
    },
}

impl Event {
    /// Its place in real time: an operation that is recorded whole stands where it ended.
    pub const fn at(&self) -> Time {
        match self {
            Self::PublishInvoked(publish) => publish.invoked,
            Self::Read(read) => read.responded,
            Self::RunBegan(run) => run.responded,
            Self::Pinned(pin) => pin.acknowledged,
            Self::PublishAnswered { at, .. }
            | Self::RunEnded { at, .. }
            | Self::Restarted { at, .. }
            | Self::Restored { at, .. }
            | Self::Unpinned { at, .. }
            | Self::Compacted { at, .. }
            | Self::Collected { at, .. }
            | Self::Audited { at, .. } => *at,
        }
    }

    /// Order among events of one moment: what others may depend on comes first.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::PublishInvoked(_)
            | Self::Restarted { .. }
            | Self::Restored { .. }
            | Self::Unpinned { .. }
            | Self::Compacted { .. } => 0,
            Self::RunEnded { .. } => 3,
            Self::Read(_) => 2,
            _ => 1,
        }
    }
}

/// All that happened to one catalog, in any order.
#[derive(Debug, Clone)]
pub struct History {
    catalog: CatalogId,
    events: Vec<Event>,
}

impl History {
    /// An empty history of `catalog`.
    pub const fn new(catalog: CatalogId) -> Self {
        Self {
            catalog,
            events: Vec::new(),
        }
    }

    /// Adds one event.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Whose history it is.
    pub const fn catalog(&self) -> CatalogId {
        self.catalog
    }

    /// What was added, in the order in which it was.
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}
