//! What a reader asks and what it gets: a definition with the proof that it is the right one, or
//! an error that names every hop that was tried.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogId, Epoch, Revision};
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::DEFAULT_DEADLINE;
use crate::spec::{HashParseError, NameError, Spec, SpecHash, SpecName};

/// What a reader wants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// What a name stands for.
    Name(SpecName),
    /// Exactly these bytes, whatever any name stands for.
    Hash(SpecHash),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Hash(hash) => hash.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    /// `b3:...` is a hash, everything else a name: no name holds a colon.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.starts_with("b3:") {
            return Ok(Self::Hash(text.parse()?));
        }
        Ok(Self::Name(text.parse()?))
    }
}

/// A text that is neither a name nor a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It looks like a hash.
    #[error(transparent)]
    Hash(#[from] HashParseError),
    /// It looks like a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// How fresh the answer to a name must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// Not older than any publish acknowledged before the read began, or an error. Answered with
    /// no packet sent while the worker holds a lease.
    #[default]
    Strict,
    /// The same, but the coordinator is always asked: no clock is relied on.
    Verified,
    /// Exactly what the name was at this revision of the newest epoch.
    At(Revision),
    /// Exactly what the name was at this token's revision, in its catalog and epoch.
    Run(RunToken),
    /// Not older than this token's revision.
    AtLeast(RunToken),
    /// Not older than any publish acknowledged this long before the read began.
    Bounded(Duration),
}

impl Freshness {
    /// The one revision that is read, whatever is newest.
    pub fn revision(self) -> Option<Revision> {
        match self {
            Self::At(rev) => Some(rev),
            Self::Run(token) => Some(token.rev),
            Self::Strict | Self::Verified | Self::AtLeast(_) | Self::Bounded(_) => None,
        }
    }
}

impl fmt::Display for Freshness {
    /// `strict`, `verified`, `at:12`, `at:lr1:...`, `at-least:lr1:...`, `bounded:60s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strict => f.write_str("strict"),
            Self::Verified => f.write_str("verified"),
            Self::At(rev) => write!(f, "at:{rev}"),
            Self::Run(token) => write!(f, "at:{token}"),
            Self::AtLeast(token) => write!(f, "at-least:{token}"),
            Self::Bounded(bound) if bound.subsec_millis() == 0 => {
                write!(f, "bounded:{}s", bound.as_secs())
            }
            Self::Bounded(bound) => write!(f, "bounded:{}ms", bound.as_millis()),
        }
    }
}

/// A snapshot that a reader names: `12`, or a run's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// By number.
    Revision(Revision),
    /// By number, epoch and catalog.
    Token(RunToken),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision(rev) => rev.fmt(f),
            Self::Token(token) => token.fmt(f),
        }
    }
}

impl FromStr for At {
    type Err = AtParseError;

    fn from_str(text: &str) -> Result<Self, AtParseError> {
        let token = text.parse().map(Self::Token);
        let rev = || text.parse().map(Self::Revision);
        token.or_else(|_| rev()).map_err(|_| AtParseError)
    }
}

impl From<At> for Freshness {
    fn from(at: At) -> Self {
        match at {
            At::Revision(rev) => Self::At(rev),
            At::Token(token) => Self::Run(token),
        }
    }
}

/// A text that is no [`At`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is a revision such as `12`, or a run's token `lr1:<catalog>:<epoch>:<revision>`")]
pub struct AtParseError;

/// The revision that a run resolves its definitions at.
///
/// Text form: `lr1:<catalog>:<epoch>:<revision>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunToken {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision.
    pub rev: Revision,
}

impl RunToken {
    const PREFIX: &str = "lr1:";

    /// Whether a catalog in an epoch is the history that this token's revision belongs to.
    ///
    /// # Errors
    /// [`GetError::OtherCatalog`] or [`GetError::OtherEpoch`]: the same number in another history
    /// may be anything.
    pub fn check(self, catalog: CatalogId, epoch: Epoch) -> Result<(), GetError> {
        let token = self;
        if self.catalog != catalog {
            return Err(GetError::OtherCatalog { token, catalog });
        }
        match self.epoch == epoch {
            true => Ok(()),
            false => Err(GetError::OtherEpoch { token, epoch }),
        }
    }

    /// Whether a catalog at a revision is not older than this token.
    ///
    /// # Errors
    /// [`GetError::OtherCatalog`] or [`GetError::Future`].
    pub fn check_reached(
        self,
        catalog: CatalogId,
        epoch: Epoch,
        newest: Revision,
    ) -> Result<(), GetError> {
        let token = self;
        if self.catalog != catalog {
            return Err(GetError::OtherCatalog { token, catalog });
        }
        if self.epoch > epoch {
            return Err(GetError::OtherEpoch { token, epoch });
        }
        match (epoch, newest) >= (self.epoch, self.rev) {
            true => Ok(()),
            false => Err(GetError::Future {
                at: self.rev,
                newest,
            }),
        }
    }
}

impl fmt::Display for RunToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            catalog,
            epoch,
            rev,
        } = self;
        write!(f, "{}{catalog}:{epoch}:{rev}", Self::PREFIX)
    }
}

impl FromStr for RunToken {
    type Err = RunTokenError;

    fn from_str(text: &str) -> Result<Self, RunTokenError> {
        let rest = text.strip_prefix(Self::PREFIX).ok_or(RunTokenError)?;
        let mut parts = rest.split(':');
        let mut part = || parts.next().ok_or(RunTokenError);
        let token = Self {
            catalog: part()?.parse().map_err(|_| RunTokenError)?,
            epoch: part()?.parse().map_err(|_| RunTokenError)?,
            rev: part()?.parse().map_err(|_| RunTokenError)?,
        };
        match parts.next() {
            None => Ok(token),
            Some(_) => Err(RunTokenError),
        }
    }
}

impl Serialize for RunToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no [`RunToken`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run's token looks like `lr1:<catalog>:<epoch>:<revision>`")]
pub struct RunTokenError;

/// One read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// What is wanted.
    pub target: Target,
    /// How fresh; without meaning for a hash.
    pub freshness: Freshness,
    /// How long it may take.
    pub deadline: Duration,
}

impl Query {
    /// A strict read with the default deadline of 10 s.
    pub fn strict(target: Target) -> Self {
        Self {
            target,
            freshness: Freshness::Strict,
            deadline: DEFAULT_DEADLINE,
        }
    }
}

/// Where something was looked for. As JSON it is `hop`, and `addr` and `via` where it has them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "HopFields", into = "HopFields")]
pub enum Hop {
    /// This node's own store.
    Disk,
    /// A coordinator, by its configured address.
    Coordinator(String),
    /// A coordinator that was reached over another worker.
    Relayed {
        /// Where that worker reaches it.
        addr: String,
        /// That worker's name, as its certificate says.
        via: String,
    },
    /// A peer, by its configured address.
    Peer(String),
}

impl Hop {
    /// `disk`, `coordinator` or `peer`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Coordinator(_) | Self::Relayed { .. } => "coordinator",
            Self::Peer(_) => "peer",
        }
    }

    /// A hop from its parts; `None` for what is none.
    pub(crate) fn from_parts(
        kind: &str,
        addr: Option<String>,
        via: Option<String>,
    ) -> Option<Self> {
        match (kind, addr, via) {
            ("disk", None, None) => Some(Self::Disk),
            ("coordinator", Some(addr), None) => Some(Self::Coordinator(addr)),
            ("coordinator", Some(addr), Some(via)) => Some(Self::Relayed { addr, via }),
            ("peer", Some(addr), None) => Some(Self::Peer(addr)),
            _ => None,
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("disk"),
            Self::Coordinator(addr) => write!(f, "coordinator {addr}"),
            Self::Relayed { addr, via } => write!(f, "coordinator {addr} via {via}"),
            Self::Peer(addr) => write!(f, "peer {addr}"),
        }
    }
}

/// A [`Hop`] as JSON.
#[derive(Serialize, Deserialize)]
struct HopFields {
    hop: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    addr: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    via: Option<String>,
}

impl From<Hop> for HopFields {
    fn from(hop: Hop) -> Self {
        let kind = hop.kind().to_owned();
        let (addr, via) = match hop {
            Hop::Disk => (None, None),
            Hop::Coordinator(addr) | Hop::Peer(addr) => (Some(addr), None),
            Hop::Relayed { addr, via } => (Some(addr), Some(via)),
        };
        Self {
            hop: kind,
            addr,
            via,
        }
    }
}

impl TryFrom<HopFields> for Hop {
    type Error = &'static str;

    fn try_from(fields: HopFields) -> Result<Self, Self::Error> {
        let HopFields { hop, addr, via } = fields;
        Self::from_parts(&hop, addr, via).ok_or("no such hop")
    }
}

/// A hop that did not help, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopFailure {
    /// Where.
    #[serde(flatten)]
    pub hop: Hop,
    /// Why, in one clause.
    pub reason: String,
}

impl fmt::Display for HopFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.hop, self.reason)
    }
}

/// What made an answer right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The coordinator promised that nothing becomes visible behind this worker's back.
    Lease,
    /// The coordinator was asked after the read began.
    Asked,
    /// The record at a revision never changes.
    At,
    /// The replica is not older than the token that the reader gave.
    #[serde(rename = "at-least")]
    AtLeast,
    /// The replica is not older than the bound that the reader gave.
    Bounded,
    /// The hash was given by the reader.
    Pinned,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Lease,
        Self::Asked,
        Self::At,
        Self::AtLeast,
        Self::Bounded,
        Self::Pinned,
    ];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Asked => "asked",
            Self::At => "at",
            Self::AtLeast => "at-least",
            Self::Bounded => "bounded",
            Self::Pinned => "pinned",
        })
    }
}

/// Why an answer may be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What held.
    pub mode: Mode,
    /// Where the record was read; `None` for a read by hash.
    pub snapshot: Option<Snapshot>,
    /// Revision of the name's last change; `None` for a read by hash, or if it never existed.
    pub record_rev: Option<Revision>,
    /// The hop that gave the bytes, or the absence.
    pub source: Hop,
    /// The answer was current at most this long ago, counted at the moment it was given.
    /// The largest number: nobody knows, as for a catalog that an earlier process fetched.
    pub age_us: u64,
}

/// A catalog at one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whose.
    pub catalog: CatalogId,
    /// In which epoch.
    pub epoch: Epoch,
    /// At which revision.
    pub rev: Revision,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The definition; `None` means: there is no such name, proven like any other answer.
    pub spec: Option<Spec>,
    /// Why it is right.
    pub proof: Proof,
    /// Hops that were tried before and did not help.
    pub failed: Vec<HopFailure>,
    /// How long it took.
    pub took: Duration,
}

/// What was known about a name when it could not be proven current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKnown {
    /// Revision of the name's last change that is known here.
    pub record_rev: Revision,
    /// The newest revision at which it was still so.
    pub seen_rev: Revision,
    /// Its hash, unless it was deleted.
    pub hash: Option<SpecHash>,
    /// It was current this long ago at most, milliseconds; `None` when nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

/// Why a read has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GetError {
    /// Nobody who may say so said what the name is now.
    #[error("no proof that any copy of `{name}` is current")]
    NoFreshnessProof {
        /// The name.
        name: SpecName,
        /// What is known here all the same.
        last: Option<LastKnown>,
        /// What was tried.
        hops: Vec<HopFailure>,
    },
    /// Nobody who may say so said what the name was at that revision.
    #[error("what `{name}` was at revision {at} is not known here, and no coordinator said it")]
    NotHeld {
        /// The name.
        name: SpecName,
        /// The revision.
        at: Revision,
        /// What was tried.
        hops: Vec<HopFailure>,
    },
    /// The hash is known and nobody gave its bytes.
    #[error("nobody gave the bytes of {}", hash.short())]
    NoBytes {
        /// The hash.
        hash: SpecHash,
        /// What was tried.
        hops: Vec<HopFailure>,
    },
    /// The revision is no longer retained.
    #[error("revision {at} is compacted, the oldest that can be read is {oldest}")]
    Compacted {
        /// The revision asked for.
        at: Revision,
        /// The oldest retained one.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {at} does not exist yet, the newest is {newest}")]
    Future {
        /// The revision asked for.
        at: Revision,
        /// The newest one.
        newest: Revision,
    },
    /// Time ran out.
    #[error("the deadline passed while reading `{target}`")]
    Deadline {
        /// What was wanted.
        target: Target,
        /// What is known here of a name whose proof did not come in time.
        last: Option<LastKnown>,
        /// What was tried, the unfinished hops among it.
        hops: Vec<HopFailure>,
    },
    /// The coordinator holds another catalog than this worker's.
    #[error("the coordinator serves catalog {got}, this worker belongs to {known}")]
    WrongCatalog {
        /// The catalog that this worker knows.
        known: CatalogId,
        /// The catalog that answered.
        got: CatalogId,
        /// What was tried.
        hops: Vec<HopFailure>,
    },
    /// The token names a revision of another catalog.
    #[error("the token is of catalog {}, the one that is read is {catalog}", token.catalog)]
    OtherCatalog {
        /// What was asked for.
        token: RunToken,
        /// The catalog that this node belongs to.
        catalog: CatalogId,
    },
    /// The token names a revision of another epoch, whose number means something else now.
    #[error(
        "revision {} of epoch {} cannot be read, the catalog is in epoch {epoch}",
        token.rev,
        token.epoch
    )]
    OtherEpoch {
        /// What was asked for.
        token: RunToken,
        /// The epoch that the catalog is in.
        epoch: Epoch,
    },
    /// The coordinator went back in time: its answers are not believed until an operator decides.
    #[error("the coordinator went back to revision {got} after {known} had been seen")]
    Quarantined {
        /// The high-water mark.
        known: Revision,
        /// The revision that was named afterwards.
        got: Revision,
    },
    /// Too many reads at once.
    #[error("too many reads are in progress")]
    Busy,
    /// This node's own disk failed.
    #[error("this node's store failed: {reason}")]
    Disk {
        /// What the disk said.
        reason: String,
    },
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Draining,
}

impl GetError {
    /// The hops that were tried.
    pub fn hops(&self) -> &[HopFailure] {
        match self {
            Self::NoFreshnessProof { hops, .. }
            | Self::NotHeld { hops, .. }
            | Self::NoBytes { hops, .. }
            | Self::Deadline { hops, .. }
            | Self::WrongCatalog { hops, .. } => hops,
            _ => &[],
        }
    }

    /// One lower-case word, for JSON and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoFreshnessProof { .. } => "no-freshness-proof",
            Self::NotHeld { .. } => "not-held",
            Self::NoBytes { .. } => "no-bytes",
            Self::Compacted { .. } => Code::Compacted.as_str(),
            Self::Future { .. } => Code::Future.as_str(),
            Self::Deadline { .. } => "deadline",
            Self::WrongCatalog { .. } | Self::OtherCatalog { .. } => "wrong-catalog",
            Self::OtherEpoch { token, epoch } if token.epoch > *epoch => Code::Future.as_str(),
            Self::OtherEpoch { .. } => Code::Compacted.as_str(),
            Self::Quarantined { .. } => "quarantined",
            Self::Busy => Code::Busy.as_str(),
            Self::Disk { .. } => Code::Disk.as_str(),
            Self::Draining => Code::Draining.as_str(),
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoFreshnessProof { name, last, .. } => Some(match last {
                Some(last) => older_on_purpose(name, last),
                None => "check the coordinator and the path to it; `larder status` shows both".into(),
            }),
            Self::NotHeld { .. } => {
                Some("a revision that this worker has read before works without a coordinator".into())
            }
            Self::NoBytes { .. } => {
                Some("add workers that may have it with `--peer`, or bring the coordinator back".into())
            }
            Self::Compacted { oldest, .. } => Some(format!("read at {oldest} or later")),
            Self::Deadline { target, last, .. } => {
                let more = "allow more time with `--deadline`";
                Some(match (target, last) {
                    (Target::Name(name), Some(last)) => {
                        format!("{more}; {}", older_on_purpose(name, last))
                    }
                    _ => more.into(),
                })
            }
            Self::WrongCatalog { .. } => Some(
                "check the coordinator addresses; a worker that moved to another cluster needs an empty store".into(),
            ),
            Self::OtherCatalog { .. } => {
                Some("a token holds for the cluster that gave it; `larder run-token` gives one".into())
            }
            Self::OtherEpoch { .. } => Some(
                "the catalog was restored since; `larder run-token` gives a token of its new epoch".into(),
            ),
            Self::Quarantined { .. } => Some(
                "if the coordinator was restored from a backup, start it once with `--new-epoch`".into(),
            ),
            Self::Future { .. } | Self::Busy | Self::Disk { .. } | Self::Draining => None,
        }
    }
}

/// The ways to read what is known, each of which says on purpose that it may be old.
fn older_on_purpose(name: &SpecName, last: &LastKnown) -> String {
    let mut ways = vec![format!("`larder get {name} --at {}`", last.seen_rev)];
    if let Some(hash) = last.hash {
        ways.push(format!("`larder get {hash}`"));
    }
    if let Some(enough) = last.age_ms.and_then(enough_staleness) {
        ways.push(format!("`larder get {name} --max-staleness {enough}`"));
    }
    format!("to take an older one on purpose: {}", ways.join(" or "))
}

/// A round bound that something this old meets for some seconds to come: age grows while a person
/// types, and a worker takes off what clocks may drift apart.
fn enough_staleness(age_ms: u64) -> Option<&'static str> {
    const ROUND: [(&str, u64); 8] = [
        ("30s", 30),
        ("2m", 120),
        ("10m", 600),
        ("1h", 3_600),
        ("6h", 6 * 3_600),
        ("1d", 24 * 3_600),
        ("7d", 7 * 24 * 3_600),
        ("30d", 30 * 24 * 3_600),
    ];
    let wanted = age_ms.saturating_add(age_ms / 100).saturating_add(10_000);
    let fits = |(_, seconds): &&(&str, u64)| seconds * 1_000 >= wanted;
    ROUND.iter().find(fits).map(|(text, _)| *text)
}

/// Any request that failed, in the one form that local HTTP, QUIC and the command line share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One lower-case word: a [`Code`], or the code of a [`GetError`].
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Every hop that was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<HopFailure>,
    /// Whether every hop failed for certificates or trust alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// The current, oldest or newest revision, where the code has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<Revision>,
    /// The name that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SpecName>,
    /// What is known of the name without proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastKnown>,
}

impl Failure {
    /// A failure with a code and a message.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: None,
            hops: Vec::new(),
            untrusted: false,
            rev: None,
            name: None,
            last: None,
        }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let mut failure = Self::new(refusal.code.as_str(), refusal.message);
        if refusal.code == Code::DiskFull {
            failure.hint = Some(
                "free space there and publish again: nothing of it was published, nothing is lost"
                    .into(),
            );
        }
        failure.rev = refusal.rev;
        failure.name = refusal.name;
        failure
    }
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Self {
        let mut failure = Self::new(error.code(), error.to_string());
        failure.hint = error.hint();
        failure.hops = error.hops().to_vec();
        match error {
            GetError::NoFreshnessProof { name, last, .. } => {
                failure.name = Some(name);
                failure.last = last;
            }
            GetError::Deadline {
                target: Target::Name(name),
                last,
                ..
            } => {
                failure.name = Some(name);
                failure.last = last;
            }
            GetError::NotHeld { name, .. } => failure.name = Some(name),
            GetError::Compacted { oldest, .. } => failure.rev = Some(oldest),
            GetError::Future { newest, .. } => failure.rev = Some(newest),
            _ => {}
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> RunToken {
        RunToken {
            catalog: CatalogId::from_bytes([1; 16]),
            epoch: Epoch::new(2),
            rev: Revision::new(7),
        }
    }

    #[test]
    fn a_snapshot_is_named_by_a_number_or_by_a_token() {
        assert_eq!("12".parse(), Ok(At::Revision(Revision::new(12))));
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(At::Token(token())));
        for bad in ["", "-1", "lr1:", "lr2:00:1:2", &format!("{text}:1")] {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_holds_for_its_own_history_alone() {
        let token = token();
        assert_eq!(token.check(token.catalog, token.epoch), Ok(()));
        let other = CatalogId::from_bytes([9; 16]);
        let code = |catalog, epoch| token.check(catalog, epoch).map_err(|error| error.code());
        assert_eq!(code(other, token.epoch), Err("wrong-catalog"));
        assert_eq!(code(token.catalog, Epoch::new(3)), Err("compacted"));
        assert_eq!(code(token.catalog, Epoch::new(1)), Err("future-revision"));
    }

    #[test]
    fn without_proof_the_hint_names_every_way_to_take_an_older_one() {
        let mut last = LastKnown {
            record_rev: Revision::new(3),
            seen_rev: Revision::new(5),
            hash: Some(SpecHash::of(b"x")),
            age_ms: Some(14_000),
        };
        let hint = |last: LastKnown| {
            let error = GetError::NoFreshnessProof {
                name: "etl/a".parse().expect("a name"),
                last: Some(last),
                hops: Vec::new(),
            };
            error.hint().expect("a hint")
        };
        let all = hint(last);
        for way in ["etl/a --at 5`", "get b3:", "--max-staleness 30s`"] {
            assert!(all.contains(way), "{way} is not in {all}");
        }
        last.age_ms = Some(25_000);
        assert!(hint(last).contains("--max-staleness 2m`"));
        last.age_ms = None;
        assert!(!hint(last).contains("max-staleness"), "no bound would do");
        let late = |last| GetError::Deadline {
            target: "etl/a".parse().expect("a name"),
            last,
            hops: Vec::new(),
        };
        let hint = late(Some(last)).hint().expect("a hint");
        assert!(hint.contains("--deadline") && hint.contains("etl/a --at 5`"));
        assert!(!late(None).hint().expect("a hint").contains("--at"));
        assert_eq!(Failure::from(late(Some(last))).last, Some(last));
    }
}
