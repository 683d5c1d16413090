use std::collections::BTreeMap;

use crate::catalog::{Epoch, Revision};
use crate::sim::history::Place;

/// Which epoch continues which, and from where.
///
/// A record that an epoch took over from the backup keeps its revision, so one revision may be
/// named under many epochs; [`resolve`](Self::resolve) gives the one in which it was made.
#[derive(Debug, Default)]
pub(super) struct Lineage(BTreeMap<Epoch, Option<Place>>);

impl Lineage {
    /// Notes that `epoch` continues from `base`; whether that makes sense.
    pub(super) fn begin(&mut self, epoch: Epoch, base: Place) -> bool {
        if !self.knows(base.epoch) || epoch <= self.newest() {
            return false;
        }
        self.0.insert(epoch, Some(base));
        true
    }

    /// Whether `epoch` has begun; the first one asked about has.
    pub(super) fn knows(&mut self, epoch: Epoch) -> bool {
        if self.0.is_empty() {
            self.0.insert(epoch, None);
        }
        self.0.contains_key(&epoch)
    }

    pub(super) fn newest(&self) -> Epoch {
        self.0.keys().next_back().copied().unwrap_or_default()
    }

    /// How many epochs continue another one.
    pub(super) fn restores(&self) -> usize {
        self.0.values().flatten().count()
    }

    /// What `epoch` continues from.
    pub(super) fn base(&self, epoch: Epoch) -> Option<Place> {
        self.0.get(&epoch).copied().flatten()
    }

    /// The same revision under the epoch in which it was made.
    pub(super) fn resolve(&self, mut place: Place) -> Place {
        while let Some(base) = self.base(place.epoch)
            && place.rev <= base.rev
        {
            place.epoch = base.epoch;
        }
        place
    }

    /// Whether the newest epoch still has this resolved revision.
    pub(super) fn survives(&self, place: Place) -> bool {
        self.resolve(Place::new(self.newest(), place.rev)) == place
    }

    /// The interval of revisions `[record, until]` of `epoch`, cut at each epoch's base.
    pub(super) fn pieces(&self, at: Place, record: Revision) -> Vec<(Place, Revision)> {
        let mut pieces = Vec::with_capacity(1);
        let (mut epoch, mut until) = (at.epoch, at.rev);
        loop {
            match self.base(epoch) {
                Some(base) if until <= base.rev => epoch = base.epoch,
                Some(base) if record <= base.rev => {
                    pieces.push((Place::new(epoch, base.rev), until));
                    (epoch, until) = (base.epoch, base.rev);
                }
                _ => {
                    pieces.push((Place::new(epoch, record), until));
                    return pieces;
                }
            }
        }
    }
}
