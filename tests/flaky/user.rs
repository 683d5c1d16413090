//! What the user of one worker saw.

use std::time::Duration;

use larder::proto::Time;
use larder::sim::history::{Ask, Event, History, Mode, Outcome, Read, WorkerId};

/// A strict read.
struct Strict {
    invoked: Time,
    responded: Time,
    /// How it was answered, if it was.
    mode: Option<Mode>,
}

/// The strict reads at one worker, by when they ended.
pub(crate) struct User(Vec<Strict>);

impl User {
    pub(crate) fn new(history: &History, worker: u64) -> Self {
        let events = history.events().iter();
        let reads = events.filter_map(|event| match event {
            Event::Read(read) if read.worker == WorkerId(worker) && read.ask == Ask::Strict => {
                Some(Strict::from(read))
            }
            _ => None,
        });
        let mut reads: Vec<_> = reads.collect();
        reads.sort_by_key(|read| read.responded);
        Self(reads)
    }

    fn answered(&self) -> impl Iterator<Item = &Strict> {
        self.0.iter().filter(|read| read.mode.is_some())
    }

    /// Answers of one mode.
    pub(crate) fn count(&self, mode: Mode) -> usize {
        let is_it = |read: &&Strict| read.mode == Some(mode);
        self.0.iter().filter(is_it).count()
    }

    /// Reads that ended without an answer.
    pub(crate) fn failed(&self) -> usize {
        self.0.iter().filter(|read| read.mode.is_none()).count()
    }

    /// Answers to reads that lie within two times.
    pub(crate) fn answered_between(&self, from: Time, to: Time) -> usize {
        let is_within = |read: &&Strict| read.invoked > from && read.responded < to;
        self.answered().filter(is_within).count()
    }

    /// Reads that waited at some moment between two times, however they ended: one may wait from
    /// before the first until after the second.
    pub(crate) fn waited_between(&self, from: Time, to: Time) -> usize {
        let waited = |read: &&Strict| read.responded > from && read.invoked < to;
        self.0.iter().filter(waited).count()
    }

    /// The longest time from one answer to the next.
    pub(crate) fn gap(&self) -> Duration {
        let ends: Vec<_> = self.answered().map(|read| read.responded).collect();
        let gaps = ends.windows(2).map(|pair| pair[1].since(pair[0]));
        gaps.max().unwrap_or_default()
    }

    /// How long after `settled` the first answer came that `is_it`.
    fn after(&self, settled: Time, is_it: impl Fn(&Strict) -> bool) -> String {
        let mut answered = self.answered();
        let first = answered.find(|read| read.responded > settled && is_it(read));
        first.map_or_else(
            || "never".to_owned(),
            |read| format!("{:.1?}", read.responded.since(settled)),
        )
    }

    /// All of it in a line; times of recovery count from `settled`, when the last change held.
    pub(crate) fn tell(&self, settled: Time) -> String {
        format!(
            "{} strict reads under a lease, {} asked, {} failed; longest gap {:.1?}; \
             after the last change {} to an answer, {} to one under a lease",
            self.count(Mode::Lease),
            self.count(Mode::Asked),
            self.failed(),
            self.gap(),
            self.after(settled, |_| true),
            self.after(settled, |read| read.mode == Some(Mode::Lease)),
        )
    }
}

impl From<&Read> for Strict {
    fn from(read: &Read) -> Self {
        let mode = match &read.outcome {
            Outcome::Failed(_) => None,
            Outcome::Answered { proof, .. } => Some(proof.mode),
        };
        Self {
            invoked: read.invoked,
            responded: read.responded,
            mode,
        }
    }
}
