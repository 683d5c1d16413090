//! The clocks, read nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::worker::BootId;
use crate::proto::{Clock, Time};

/// The boot clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Boot;

impl Clock for Boot {
    fn now(&self) -> Time {
        now()
    }
}

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

/// Names this start of the kernel, as long as what [`now`] says counts from it. `None` where that
/// cannot be told: in some containers, and where the clock of this process was shifted.
pub fn boot_id() -> Option<BootId> {
    if let Ok(offsets) = std::fs::read_to_string("/proc/self/timens_offsets")
        && is_shifted(&offsets)
    {
        return None;
    }
    parse_boot_id(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?)
}

/// Each line names a clock, then the seconds and nanoseconds by which it is off.
fn is_shifted(offsets: &str) -> bool {
    let mut lines = offsets.lines().map(str::split_whitespace);
    let boot = lines.find_map(|mut words| (words.next() == Some("boottime")).then_some(words));
    boot.is_some_and(|mut by| by.any(|part| part != "0"))
}

/// A UUID in its usual form.
fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().split('-').collect();
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok();
    let number = number.filter(|_| is_hex && digits.len() == 32);
    number.map(|number| BootId::from_bytes(number.to_be_bytes()))
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
    fn a_boot_has_one_id_and_what_is_none_is_refused() {
        assert_eq!(boot_id(), boot_id());
        let id = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").expect("an id");
        assert_eq!(id.as_bytes()[..3], [0, 0x11, 0x22]);
        assert_eq!(id.as_bytes()[15], 0xff);
        for text in ["", "0011", "+0112233-4455-6677-8899-aabbccddeeff", "none"] {
            assert_eq!(parse_boot_id(text), None, "{text}");
        }
    }

    #[test]
    fn a_clock_in_a_time_namespace_of_its_own_is_shifted() {
        assert!(!is_shifted("monotonic  0  0\nboottime   0  0\n"));
        assert!(!is_shifted(""));
        assert!(!is_shifted("monotonic  5  0\nboottime   0  0\n"));
        assert!(is_shifted("monotonic  0  0\nboottime   -7  0\n"));
        assert!(is_shifted("monotonic  0  0\nboottime   0  7\n"));
    }

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
