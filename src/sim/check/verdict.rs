use std::collections::BTreeMap;
use std::fmt;

use crate::proto::Time;
use crate::sim::history::{Mode, PinId, PublishId, ReadId, RunId};

/// What the protocol promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A strict read is not older than any publish acknowledged before.
    S1,
    /// Versions of a name are seen in one order, and only once they were published.
    S2,
    /// Bytes are those of the record.
    S3,
    /// What was returned survives every crash of the coordinator.
    S4,
    /// One revision for all reads of a run.
    S5,
    /// A worker never goes back.
    S6,
    /// A bounded read is not older than its bound.
    S7,
    /// An absence is an answer like any other.
    S8,
    /// What is pinned or retained is kept, and what is gone is an error.
    S9,
    /// What is visible is on the coordinator's disk.
    S10,
    /// Not the system but its record is wrong: events out of order, or about nothing.
    Record,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::S1 => "S1 freshness",
            Self::S2 => "S2 atomicity",
            Self::S3 => "S3 integrity",
            Self::S4 => "S4 durability",
            Self::S5 => "S5 snapshot",
            Self::S6 => "S6 monotone",
            Self::S7 => "S7 bounded",
            Self::S8 => "S8 absence",
            Self::S9 => "S9 pins",
            Self::S10 => "S10 closure",
            Self::Record => "the record",
        })
    }
}

/// One operation of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A publish, by its first attempt.
    Publish(PublishId),
    /// A read.
    Read(ReadId),
    /// A run.
    Run(RunId),
    /// A pin.
    Pin(PinId),
    /// What the coordinator did or was seen to have at this time.
    Coordinator(Time),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publish(id) => write!(f, "publish {id}"),
            Self::Read(id) => write!(f, "read {id}"),
            Self::Run(id) => write!(f, "run {id}"),
            Self::Pin(id) => write!(f, "pin {id}"),
            Self::Coordinator(at) => write!(f, "the coordinator at {} us", at.as_micros()),
        }
    }
}

/// A broken promise: two operations that cannot both have happened if it was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant} broken by {later}{}: {why}", earlier.map_or_else(String::new, |op| format!(" after {op}")))]
pub struct Violation {
    /// The promise.
    pub invariant: Invariant,
    /// What it does not fit, if that is one operation.
    pub earlier: Option<Op>,
    /// The operation at which it was noticed.
    pub later: Op,
    /// What is wrong, in one sentence.
    pub why: String,
}

/// How much was checked, so that a caller can demand enough.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Answered reads by what held.
    pub reads: BTreeMap<Mode, u64>,
    /// Answered reads that found no such name; counted in `reads` too.
    pub absences: u64,
    /// Reads that ended without an answer.
    pub failed_reads: u64,
    /// Attempts to publish that were acknowledged.
    pub acknowledged: u64,
    /// Attempts to publish that were refused.
    pub refused: u64,
    /// Attempts to publish that nobody answered.
    pub unanswered: u64,
    /// Runs.
    pub runs: u64,
    /// Restarts of the coordinator, restores among them.
    pub restarts: u64,
    /// Looks at the coordinator's disk.
    pub audits: u64,
}

impl Report {
    /// Answered reads of all modes.
    pub fn answered_reads(&self) -> u64 {
        self.reads.values().sum()
    }
}
