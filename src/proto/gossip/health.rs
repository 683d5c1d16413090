//! How much a node trusts its own sense of time, after Lifeguard's local health.
//!
//! A node without enough processor time is woken late and reads answers late, and would take others
//! for dead that are well. What it does about that, dials and rumours, costs the processor more
//! still. So a node that is woken late doubts itself first: all its waits are stretched until it is
//! woken in time again.
//!
//! Probes without an answer prove nothing by themselves, since the others may be dead. They count
//! against a node that doubts itself already.

use std::time::Duration;

use foca::ProbeNumber;

use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{ENOUGH_UNANSWERED, LATE_WAKE, MAX_STRETCH, SHRINK_EVERY};

#[derive(Debug)]
pub(super) struct Health {
    /// What waits are multiplied by, 1 to [`MAX_STRETCH`].
    stretch: u32,
    /// When that last changed.
    changed: Time,
    /// The last probe, until it is answered.
    asked: Option<(NodeId, ProbeNumber)>,
    /// Probes in a row without an answer.
    unanswered: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            stretch: 1,
            changed: Time::default(),
            asked: None,
            unanswered: 0,
        }
    }
}

impl Health {
    pub(super) fn stretch(&self) -> u32 {
        self.stretch
    }

    pub(super) fn stretched(&self, wait: Duration) -> Duration {
        wait.saturating_mul(self.stretch)
    }

    /// The node was to be woken at `due`. Doubling is quick enough to end an overload, and one step
    /// back at a time slow enough not to begin it anew.
    pub(super) fn woken(&mut self, due: Time, now: Time) {
        match now.since(due) > LATE_WAKE {
            true => self.set(self.stretch * 2, now),
            // Of a node that nobody answers its clock says too little.
            false if self.unanswered >= ENOUGH_UNANSWERED => {}
            // An answer says more than a wake, and comes less often the longer the waits are.
            false => self.shrink(SHRINK_EVERY * self.stretch, now),
        }
    }

    /// A probe is on its way.
    pub(super) fn asked(&mut self, node: NodeId, number: ProbeNumber, now: Time) {
        if self.asked.replace((node, number)).is_some() {
            self.unanswered = self.unanswered.saturating_add(1);
        }
        if self.unanswered >= ENOUGH_UNANSWERED && self.stretch > 1 {
            self.set(self.stretch + 1, now);
        }
    }

    /// `node` has answered a probe, itself or by way of another.
    pub(super) fn answered(&mut self, node: NodeId, number: ProbeNumber, now: Time) {
        if self.asked == Some((node, number)) {
            self.asked = None;
            self.unanswered = 0;
            self.shrink(SHRINK_EVERY, now);
        }
    }

    /// Nobody is left to probe.
    pub(super) fn alone(&mut self) {
        self.asked = None;
        self.unanswered = 0;
    }

    fn shrink(&mut self, after: Duration, now: Time) {
        if self.stretch > 1 && now.since(self.changed) >= after {
            self.set(self.stretch - 1, now);
        }
    }

    fn set(&mut self, stretch: u32, now: Time) {
        self.stretch = stretch.clamp(1, MAX_STRETCH);
        self.changed = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{NodeUri, Role};

    const START: Time = Time::from_micros(5_000_000);
    const TOO_LATE: Duration = Duration::from_millis(LATE_WAKE.as_millis() as u64 + 1);

    fn other() -> NodeId {
        let uri = NodeUri::new("c", Role::Worker, "other");
        uri.expect("a good name").id()
    }

    fn late(times: usize) -> Health {
        let mut health = Health::default();
        (0..times).for_each(|_| health.woken(START, START + TOO_LATE));
        health
    }

    #[test]
    fn each_late_wake_doubles_the_waits_up_to_a_bound() {
        for (times, stretch) in [(0, 1), (1, 2), (2, 4), (3, 8), (9, MAX_STRETCH)] {
            let health = late(times);
            assert_eq!(health.stretch(), stretch, "after {times}");
            let wait = Duration::from_millis(7);
            assert_eq!(health.stretched(wait), wait * stretch);
        }
    }

    #[test]
    fn a_wake_that_is_hardly_late_changes_nothing() {
        let mut health = Health::default();
        health.woken(START, START + LATE_WAKE);
        assert_eq!(health.stretch(), 1);
    }

    #[test]
    fn wakes_in_time_shrink_the_waits_step_by_step_and_never_below_what_is_configured() {
        let mut health = late(3);
        let mut now = START + TOO_LATE;
        for left in [7, 6, 5, 4, 3, 2, 1, 1] {
            // However often it is woken, there is one step in each stretch of time.
            let before = health.stretch();
            let next = now + SHRINK_EVERY * before;
            now = now + SHRINK_EVERY / 2;
            health.woken(now, now);
            assert_eq!(health.stretch(), before);
            now = next;
            health.woken(now, now);
            assert_eq!(health.stretch(), left);
        }
    }

    #[test]
    fn probes_without_an_answer_count_against_a_node_that_was_woken_late_and_no_other() {
        let now = START + TOO_LATE;
        for (times, stretch) in [(0, 1), (1, 4)] {
            let mut health = late(times);
            // One after the other, and of the last nothing is known yet.
            let sent = u8::try_from(ENOUGH_UNANSWERED).expect("few") + 2;
            (0..sent).for_each(|number| health.asked(other(), number, now));
            assert_eq!(health.stretch(), stretch, "{times} late wakes");
            // Only an answer, or nobody to ask, lets wakes count again.
            let later = now + SHRINK_EVERY * stretch;
            health.woken(later, later);
            assert_eq!(health.stretch(), stretch);
            health.alone();
            health.woken(later, later);
            assert_eq!(health.stretch(), (stretch - 1).max(1));
        }
    }

    #[test]
    fn an_answer_ends_the_row_and_shrinks_the_waits_in_its_time() {
        let mut health = late(1);
        let later = START + TOO_LATE + SHRINK_EVERY;
        health.asked(other(), 1, START + TOO_LATE);
        health.answered(other(), 7, later);
        assert_eq!(health.stretch(), 2, "that was another probe");
        health.answered(other(), 1, later);
        assert_eq!(health.stretch(), 1);
        assert_eq!(health.unanswered, 0);
    }
}
