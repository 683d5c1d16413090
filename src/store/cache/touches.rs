use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::spec::SpecHash;

/// Blobs that are told apart without a lock. Two that share a place are noted more often than
/// needed, and both are.
const PLACES: usize = 8_192;

/// Uses that wait to be gathered; a reader that finds no room gathers them.
const MAX_NOTED: usize = 65_536;

/// Which blobs were used since that was last gathered. It is on the path of every read, so a blob
/// that is read again costs two atomic operations and no lock.
///
/// What is gathered is in the order of first uses: which of two blobs was used last is known up to
/// the time between two gatherings, which is about a second.
#[derive(Debug)]
pub(super) struct Touches {
    /// What was noted last at each place, in which round.
    places: Box<[AtomicU64]>,
    round: AtomicU64,
    noted: Mutex<Vec<SpecHash>>,
}

impl Default for Touches {
    fn default() -> Self {
        Self {
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            round: AtomicU64::new(1),
            noted: Mutex::default(),
        }
    }
}

impl Touches {
    /// Notes a use; false where there is no room until what is there is gathered.
    pub(super) fn note(&self, hash: SpecHash) -> bool {
        let [place, name] = halves(hash);
        // A multiple of an odd number: no two rounds name a blob alike.
        let round = self.round.load(Ordering::Relaxed);
        let name = name ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Some(place) = self.places.get(place as usize % PLACES) else {
            return true;
        };
        if place.load(Ordering::Relaxed) == name {
            return true;
        }
        let mut noted = self.noted();
        if noted.len() >= MAX_NOTED {
            return false;
        }
        noted.push(hash);
        place.store(name, Ordering::Relaxed);
        true
    }

    /// Takes what was noted, and begins anew.
    pub(super) fn gather(&self) -> Vec<SpecHash> {
        let mut noted = self.noted();
        self.round.fetch_add(1, Ordering::Relaxed);
        std::mem::take(&mut noted)
    }

    fn noted(&self) -> MutexGuard<'_, Vec<SpecHash>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two numbers of a hash, each as good as random.
fn halves(hash: SpecHash) -> [u64; 2] {
    let bytes = hash.as_bytes();
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(number)
    };
    [number(0), number(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> SpecHash {
        SpecHash::of(&number.to_be_bytes())
    }

    #[test]
    fn each_blob_is_noted_once_until_that_is_gathered() {
        let touches = Touches::default();
        for number in [1, 2, 1, 1, 2] {
            assert!(touches.note(hash(number)));
        }
        assert_eq!(touches.gather(), [hash(1), hash(2)]);
        assert_eq!(touches.gather(), []);
        assert!(touches.note(hash(2)));
        assert_eq!(touches.gather(), [hash(2)]);
    }

    #[test]
    fn no_blob_is_overlooked_for_another_at_its_place_and_room_is_bounded() {
        let touches = Touches::default();
        let all: Vec<_> = (0..MAX_NOTED as u64).map(hash).collect();
        assert!(all.iter().all(|hash| touches.note(*hash)));
        assert!(!touches.note(hash(u64::MAX)), "no room");
        assert_eq!(touches.gather(), all);
        assert!(touches.note(hash(u64::MAX)));
    }
}
