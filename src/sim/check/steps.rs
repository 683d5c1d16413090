use super::Seen;
use crate::proto::Time;
use crate::sim::history::Place;

/// How a newest revision rose over time.
#[derive(Debug, Default)]
pub(super) struct Steps(Vec<Step>);

/// From `seen.at` on, nothing below `place`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) place: Place,
    pub(super) seen: Seen,
}

impl Steps {
    /// Notes that `place` was seen; ignored unless it is newer than all before.
    pub(super) fn rise(&mut self, place: Place, seen: Seen) {
        if self.0.last().is_none_or(|last| last.place < place) {
            self.0.push(Step { place, seen });
        }
    }

    /// The newest of all.
    pub(super) fn last(&self) -> Option<Step> {
        self.0.last().copied()
    }

    /// The newest that had been seen strictly before `time`.
    pub(super) fn before(&self, time: Time) -> Option<Step> {
        let behind = self.0.partition_point(|step| step.seen.at < time);
        behind.checked_sub(1).map(|newest| self.0[newest])
    }

    /// Drops what [`before`](Self::before) needs for no time from `time` on.
    pub(super) fn forget(&mut self, time: Time) {
        let behind = self.0.partition_point(|step| step.seen.at < time);
        // Half of them at a time, so that dropping costs little for each that is added.
        if behind > 64 && behind > self.0.len() / 2 {
            self.0.drain(..behind - 1);
        }
    }
}
