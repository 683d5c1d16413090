use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Compacted, WorkerStore};
use crate::store::{Store, StoreError};

/// Shortest time between two rebuilds: each may copy the whole budget, and a disk that damages
/// what was written a moment ago is not cured by writing more.
const REBUILD_EVERY: Duration = Duration::from_secs(600);

/// What is known of damage in a store that is open.
#[derive(Debug, Default)]
pub(super) struct Mending(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What was met since the last rebuild.
    damage: Option<String>,
    /// When a rebuild last began, whatever came of it.
    began: Option<Instant>,
}

impl WorkerStore {
    /// Rebuilds the store from what can still be read, if damage was met; `None` if none was, or
    /// if the last rebuild began less than ten minutes ago, or if the store is in memory.
    ///
    /// Reads go on meanwhile, from the old store; changes wait. What cannot be read is forgotten
    /// and stands in the quarantine until it is saved again.
    ///
    /// # Errors
    /// [`StoreError`]; the old store stays in use.
    pub fn mend(&self) -> Result<Option<Compacted>, StoreError> {
        let Some(home) = self.home.as_ref().filter(|_| self.mending.is_needed()) else {
            return Ok(None);
        };
        let _writer = self.writer();
        let Some(why) = self.mending.begin(Instant::now()) else {
            return Ok(None);
        };
        metrics::counter!("larder_store_rebuilds_total").increment(1);
        tracing::warn!(why, store = %home.dir.display(), "the store is damaged and is rebuilt");
        let rebuilt = self.copy_and_swap(home).inspect_err(|error| {
            tracing::error!(
                error = error as &dyn std::error::Error,
                again_after_s = REBUILD_EVERY.as_secs(),
                "the store cannot be rebuilt now and keeps nothing new until then"
            );
        })?;
        self.mending.done();
        tracing::warn!(
            lost_blobs = rebuilt.lost_blobs,
            lost_lines = rebuilt.lost_lines,
            "the store is rebuilt; what was lost is fetched again when it is needed"
        );
        Ok(Some(rebuilt))
    }

    /// Makes a change. If it meets damage the store is rebuilt and the change is made once more.
    pub(super) fn change<T>(
        &self,
        change: impl Fn(&dyn Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let once = || {
            let _writer = self.writer();
            let store = self.store();
            self.noted(change(&**store))
        };
        match once() {
            // Another thread may have rebuilt it meanwhile.
            Err(StoreError::Damaged(_)) if self.mend()?.is_some() || !self.mending.is_needed() => {
                once()
            }
            done => done,
        }
    }

    /// Remembers damage until the store is rebuilt.
    pub(super) fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Damaged(why)) = &done {
            self.mending.needed(why);
        }
        done
    }
}

impl Mending {
    pub(super) fn needed(&self, why: &str) {
        self.lock().damage.get_or_insert_with(|| why.to_owned());
    }

    fn is_needed(&self) -> bool {
        self.lock().damage.is_some()
    }

    /// Why a rebuild is needed, if it is and may begin now.
    fn begin(&self, now: Instant) -> Option<String> {
        let mut state = self.lock();
        let early = |began: Instant| now.saturating_duration_since(began) < REBUILD_EVERY;
        let why = state.damage.clone()?;
        if state.began.is_some_and(early) {
            return None;
        }
        state.began = Some(now);
        Some(why)
    }

    /// Whether there was a rebuild.
    #[cfg(test)]
    pub(super) fn has_begun(&self) -> bool {
        self.lock().began.is_some()
    }

    fn done(&self) {
        self.lock().damage = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuild_begins_only_after_damage_and_not_too_soon_after_another() {
        let now = Instant::now();
        let mending = Mending::default();
        assert_eq!(mending.begin(now), None);
        let damage = || mending.lock().damage = Some("a page".into());
        damage();
        assert_eq!(mending.begin(now).as_deref(), Some("a page"));
        mending.done();
        assert!(!mending.is_needed());
        damage();
        let almost = now + REBUILD_EVERY - Duration::from_nanos(1);
        assert_eq!(mending.begin(almost), None);
        assert!(mending.is_needed());
        assert!(mending.begin(now + REBUILD_EVERY).is_some());
    }
}
