//! What a node's clock shows.

use std::time::Duration;

use crate::proto::Time;
use crate::proto::mutant::mutant;

/// One part in a million.
const MILLION: i128 = 1_000_000;

/// A boot clock that runs too fast or too slow, and a wall clock that jumps.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    real: i128,
    local: i128,
    /// Parts in a million by which it runs too fast.
    drift: i128,
    /// How far the wall clock is off, microseconds.
    wall: i128,
}

impl Clock {
    /// A clock that shows `local` at the real time `now`.
    pub(super) fn new(now: Time, local: Time, drift: i64) -> Self {
        Self {
            real: i128::from(now.as_micros()),
            local: i128::from(local.as_micros()),
            drift: i128::from(drift),
            wall: 0,
        }
    }

    /// What it shows at the real time `now`.
    pub(super) fn at(&self, now: Time) -> Time {
        let passed = i128::from(now.as_micros()) - self.real;
        micros(self.local + passed * (MILLION + self.drift) / MILLION)
    }

    /// The real time at which it shows `local`.
    pub(super) fn real(&self, local: Time) -> Time {
        let wanted = i128::from(local.as_micros()) - self.local;
        micros(self.real + wanted * MILLION / (MILLION + self.drift) + 1)
    }

    /// The node slept from `from` for so long.
    pub(super) fn slept(&mut self, from: Time, pause: Duration) {
        if mutant!(M13) {
            self.local = i128::from(self.at(from).as_micros());
            self.real = i128::from((from + pause).as_micros());
        }
    }

    /// The node boots: its clock begins anew.
    pub(super) fn restart(&mut self, now: Time, local: Time) {
        self.real = i128::from(now.as_micros());
        self.local = i128::from(local.as_micros());
    }

    /// Someone sets the wall clock.
    pub(super) fn jump(&mut self, by: i64) {
        self.wall += i128::from(by);
    }

    /// What a bounded read takes for now: the boot clock, if nobody mixes them up.
    pub(super) fn for_bounds(&self, now: Time) -> Time {
        if mutant!(X26) {
            return micros(i128::from(self.at(now).as_micros()) + self.wall);
        }
        self.at(now)
    }

    /// Milliseconds since 1970, as this node believes.
    pub(super) fn unix_ms(&self, now: Time) -> u64 {
        const START: i128 = 1_700_000_000_000;
        let ms = START + (i128::from(now.as_micros()) + self.wall) / 1_000;
        u64::try_from(ms).unwrap_or_default()
    }
}

fn micros(micros: i128) -> Time {
    Time::from_micros(u64::try_from(micros).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_and_its_inverse_fit() {
        let at = Time::from_micros;
        for drift in [-1_000, 0, 999] {
            let clock = Clock::new(at(5_000_000), at(77), drift);
            for shown in [77, 1_000, 123_456_789] {
                let real = clock.real(at(shown));
                assert!(clock.at(real) >= at(shown), "not woken too early");
                let before = at(real.as_micros() - 3);
                assert!(clock.at(before) <= at(shown), "nor much too late");
            }
        }
    }
}
