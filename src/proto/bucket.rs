use std::time::Duration;

use super::Time;

/// A token bucket: `burst` at once, and `per_sec` over time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    left: u64,
    per_sec: u64,
    burst: u64,
    /// Up to when it has been filled.
    at: Time,
}

impl Bucket {
    /// A full one; `per_sec` is at least 1.
    pub(crate) fn new(per_sec: u32, burst: u32, now: Time) -> Self {
        Self {
            left: burst.into(),
            per_sec: u64::from(per_sec).max(1),
            burst: burst.into(),
            at: now,
        }
    }

    /// Whether `count` may pass now.
    pub(crate) fn takes(&mut self, count: u64, now: Time) -> bool {
        self.fill(now);
        match self.left.checked_sub(count) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// Whether as much is left as after a long silence.
    pub(crate) fn is_full(&mut self, now: Time) -> bool {
        self.fill(now);
        self.left == self.burst
    }

    /// What is too little for a whole token stays for the next time.
    fn fill(&mut self, now: Time) {
        let micros = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(self.per_sec) / 1_000_000;
        if gained == 0 {
            return;
        }
        self.left = self.left.saturating_add(gained).min(self.burst);
        self.at = match self.left == self.burst {
            true => now,
            false => self.at + Duration::from_micros(gained * 1_000_000 / self.per_sec),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_micros(5_000_000);

    #[test]
    fn it_gives_its_burst_at_once_and_its_rate_after_that() {
        let mut bucket = Bucket::new(1_000, 2_000, NOW);
        assert!(bucket.takes(1_500, NOW));
        assert!(!bucket.takes(501, NOW), "more than is left");
        assert!(bucket.takes(500, NOW));
        for ms in 1..=500 {
            let at = NOW + Duration::from_millis(ms);
            assert!(!bucket.takes(501, at), "{ms} ms");
        }
        assert!(bucket.takes(500, NOW + Duration::from_millis(500)));
        let later = NOW + Duration::from_secs(60);
        assert!(bucket.is_full(later));
        assert!(bucket.takes(2_000, later));
        assert!(!bucket.takes(1, later), "no more than the burst is saved");
    }

    #[test]
    fn however_often_it_is_asked_nothing_of_its_rate_is_lost() {
        // Not a whole number of microseconds each.
        let mut bucket = Bucket::new(64, 2, NOW);
        let mut passed = 0;
        for micros in 0..10_000_000_u64 {
            if micros % 700 == 0 {
                let at = NOW + Duration::from_micros(micros);
                passed += u64::from(bucket.takes(1, at));
            }
        }
        assert!((636..=643).contains(&passed), "{passed} in ten seconds");
    }
}
