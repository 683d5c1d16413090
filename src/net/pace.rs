//! The floor of a connection, which its streams share.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Floor;

/// A wait looks at its time again no sooner than this: timers are no finer than a millisecond.
const FINEST: Duration = Duration::from_millis(2);

/// The streams under way on one connection.
///
/// A path at the floor gives each of n streams an n-th of its bytes, so the time of the streams
/// runs n times slower than the clock's.
#[derive(Debug, Clone)]
pub(super) struct Sharers(Arc<Mutex<Time>>);

#[derive(Debug)]
struct Time {
    streams: u32,
    read_at: Instant,
    passed: Duration,
}

impl Time {
    fn read(&mut self) -> Duration {
        let now = Instant::now();
        self.passed += now.saturating_duration_since(self.read_at) / self.streams.max(1);
        self.read_at = now;
        self.passed
    }
}

impl Sharers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Time {
            streams: 0,
            read_at: Instant::now(),
            passed: Duration::ZERO,
        })))
    }

    /// One stream more, until its share is dropped.
    pub(super) fn join(&self, floor: Floor) -> Share {
        let mut time = self.time();
        time.read();
        time.streams = time.streams.saturating_add(1);
        drop(time);
        let sharers = self.clone();
        Share { sharers, floor }
    }

    fn time(&self) -> MutexGuard<'_, Time> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one stream has of the floor.
#[derive(Debug)]
pub(super) struct Share {
    sharers: Sharers,
    pub(super) floor: Floor,
}

/// A moment in the time of the streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(Duration);

/// The time was over before the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Over;

impl Share {
    pub(super) fn mark(&self) -> Mark {
        Mark(self.sharers.time().read())
    }

    /// What is left of `allowed` since `mark`, if anything, were the connection this stream's
    /// alone from now on. Others may make it last longer, so one who waited for it asks again.
    pub(super) fn left(&self, mark: Mark, allowed: Duration) -> Option<Duration> {
        let passed = self.mark().0.saturating_sub(mark.0);
        let left = allowed.checked_sub(passed)?;
        (!left.is_zero()).then(|| left.max(FINEST))
    }

    /// `time` as the clock shows it while the streams are as many as now.
    pub(super) fn stretch(&self, time: Duration) -> Duration {
        time.saturating_mul(self.sharers.time().streams)
    }

    /// Waits for `work`, which may take `allowed` since `mark`.
    pub(super) async fn within<T>(
        &self,
        mark: Mark,
        allowed: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Over> {
        let mut work = pin!(work);
        loop {
            let left = self.left(mark, allowed);
            match timeout(left.unwrap_or_default(), &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if left.is_none() => return Err(Over),
                Err(_) => {}
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut time = self.sharers.time();
        time.read();
        time.streams = time.streams.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn waited(share: &Share, allowed: Duration) -> u64 {
        let began = Instant::now();
        let over = share.within(share.mark(), allowed, pending::<()>()).await;
        assert_eq!(over, Err(Over));
        began.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_stream_runs_slower_with_each_that_shares_the_connection() {
        let sharers = Sharers::new();
        let first = sharers.join(Floor::default());
        assert_eq!(waited(&first, 10 * SECOND).await, 10);
        let others: Vec<_> = (0..3).map(|_| sharers.join(Floor::default())).collect();
        assert_eq!(waited(&first, 10 * SECOND).await, 40);
        drop(others);
        assert_eq!(waited(&first, 10 * SECOND).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_was_shared_counts_as_shared_when_the_others_are_gone() {
        let sharers = Sharers::new();
        let first = sharers.join(Floor::default());
        let mark = first.mark();
        let other = sharers.join(Floor::default());
        advance(8 * SECOND).await;
        drop(other);
        advance(2 * SECOND).await;
        assert_eq!(first.left(mark, 10 * SECOND), Some(4 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_already_is_taken_whatever_the_time() {
        let share = Sharers::new().join(Floor::default());
        let mark = share.mark();
        advance(SECOND).await;
        assert_eq!(share.within(mark, Duration::ZERO, async { 1 }).await, Ok(1));
    }
}
