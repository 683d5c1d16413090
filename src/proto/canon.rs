//! What a search must tell apart: the states of machines as bytes, without what does not matter.
//!
//! Two states with the same bytes behave alike from now on. Times are written relative to now,
//! what lies far in the past as one, calls by the order in which the machine made them, and what
//! is only counted for people is left out.

use std::time::Duration;

use crate::proto::Time;

/// Collects what tells one state from another.
#[derive(Debug, Default)]
pub struct Canon {
    bytes: Vec<u8>,
    now: Time,
    /// Times before this long ago are alike.
    horizon: Duration,
    /// Calls of the machine that is written, in the order of their first mention.
    calls: Vec<u64>,
}

impl Canon {
    /// Empty; times more than `horizon` in the past are written as one.
    pub fn new(horizon: Duration) -> Self {
        Self {
            horizon,
            ..Self::default()
        }
    }

    /// Begins with another machine, whose clock says `now`.
    pub fn begin(&mut self, now: Time) -> &mut Self {
        self.now = now;
        self.calls.clear();
        self
    }

    /// What the machine's clock says.
    pub fn now(&self) -> Time {
        self.now
    }

    /// A number.
    pub fn u64(&mut self, number: u64) -> &mut Self {
        // Nearly all numbers are small.
        match u8::try_from(number) {
            Ok(small) if small < u8::MAX => self.bytes.push(small),
            _ => {
                self.bytes.push(u8::MAX);
                self.bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        self
    }

    /// Bytes, whose length is known from what stands before them.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A short text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    /// A condition.
    pub fn flag(&mut self, flag: bool) -> &mut Self {
        self.bytes.push(u8::from(flag));
        self
    }

    /// Something that may be missing.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    /// A point on the machine's clock.
    pub fn time(&mut self, time: Time) -> &mut Self {
        let ahead = time.since(self.now);
        let behind = self.now.since(time).min(self.horizon);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.u64(micros(ahead)).u64(micros(behind))
    }

    /// One of the machine's calls.
    pub fn call(&mut self, raw: u64) -> &mut Self {
        let known = self.calls.iter().position(|call| *call == raw);
        let index = known.unwrap_or_else(|| {
            self.calls.push(raw);
            self.calls.len() - 1
        });
        self.u64(index as u64)
    }

    /// Where the next byte goes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes what was written from `from` on away again.
    pub fn cut(&mut self, from: usize) -> Vec<u8> {
        self.bytes.split_off(from)
    }

    /// The state in 128 bits: a million million states collide with a chance of one in 10^14.
    pub fn digest(&self) -> u128 {
        let mut raw = [0; 16];
        raw.copy_from_slice(&blake3::hash(&self.bytes).as_bytes()[..16]);
        u128::from_le_bytes(raw)
    }
}
