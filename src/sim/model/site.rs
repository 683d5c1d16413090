//! The coordinator of the model: the production machine, its journal, and the write that is under
//! way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{CatalogId, Entry, HeadSigner, HeadVerifier};
use crate::proto::Time;
use crate::proto::canon::Canon;
use crate::proto::coordinator::{Coordinator, Ledger, Options, View};
use crate::sim::model::packet::To;

pub(super) const CATALOG: CatalogId = CatalogId::from_bytes([1; 16]);

/// Signs with nothing and believes everything: nobody forges heads in the model.
pub(super) struct Unsigned;

impl HeadSigner for Unsigned {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

impl HeadVerifier for Unsigned {
    fn verify(&self, _: &[u8], _: &[u8; 64]) -> bool {
        true
    }
}

/// One process of the coordinator and what is on its disk.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) machine: Coordinator,
    /// What the next resolve is answered from.
    pub(super) view: Arc<View>,
    /// Durable entries.
    pub(super) journal: Vec<Entry>,
    /// Entries that the disk is writing.
    pub(super) writing: Option<Vec<Entry>>,
    /// Who listens to a stream.
    pub(super) streams: BTreeMap<u64, To>,
    pub(super) lease: Duration,
    /// Until when leases of before may run, as the journal says.
    pub(super) grace: Time,
}

impl Site {
    /// A process that begins at `now` over `journal`. Its first outputs come with a wake.
    pub(super) fn start(journal: Vec<Entry>, lease: Duration, now: Time) -> Result<Self, String> {
        let ledger = replay(&journal)?;
        let grace = now + ledger.lease_max();
        let options = Options {
            lease,
            ..Options::default()
        };
        let machine = Coordinator::new(ledger, Arc::new(Unsigned), options, 0, now);
        Ok(Self {
            view: machine.view(),
            machine,
            journal,
            writing: None,
            streams: BTreeMap::new(),
            lease,
            grace,
        })
    }

    /// Whether it answers anyone: a new epoch must be visible first.
    pub(super) fn serves(&self) -> bool {
        self.view.epoch == self.machine.ledger().epoch()
    }

    pub(super) fn canon(&self, canon: &mut Canon) {
        self.machine.canon(canon);
        canon.u64(self.view.records.rev().get());
        canon.u64(self.journal.len() as u64);
        canon.u64(u64::try_from(self.lease.as_micros()).unwrap_or(u64::MAX));
        let now = canon.now();
        canon.time(self.grace.max(now));
    }
}

fn replay(journal: &[Entry]) -> Result<Ledger, String> {
    let (first, rest) = journal.split_first().ok_or("the journal is empty")?;
    let mut ledger = Ledger::begin(first).map_err(|error| error.to_string())?;
    for entry in rest {
        let replayed = ledger.replay(entry.clone());
        replayed.map_err(|error| format!("S4: the journal cannot be replayed: {error}"))?;
    }
    ledger.finish().map_err(|error| error.to_string())
}
