//! The clocks, read nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::Time;

/// Now on the boot clock: it runs on while the machine is suspended and is never set, so a
/// deadline means what it says.
pub fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let micros = u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000;
    Time::from_micros(seconds * 1_000_000 + micros)
}

/// How long the machine has slept since it was started: the boot clock runs on meanwhile, and the
/// monotonic one does not.
pub fn slept() -> std::time::Duration {
    // The boot clock is read between two looks at the other one, so that a thread that is held up
    // in between does not seem to have slept.
    let before = monotonic();
    let boot = now();
    let after = monotonic();
    boot.since(before).min(boot.since(after))
}

fn monotonic() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let micros = u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000;
    Time::from_micros(seconds * 1_000_000 + micros)
}

/// Wall clock, milliseconds since 1970: for people, idempotency keys and retention.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_never_goes_back() {
        let mut last = now();
        for _ in 0..10_000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }
}
