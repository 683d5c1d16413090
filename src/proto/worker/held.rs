use std::collections::BTreeMap;

use crate::answer::LastKnown;
use crate::catalog::{Content, Revision, Version};
use crate::proto::limit::MAX_HELD;
use crate::spec::SpecName;

/// What a name was from its revision up to `seen`, as the coordinator said.
///
/// It never changes within an epoch, so it answers reads at those revisions without asking. A
/// name that did not exist is held as deleted at revision 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRecord {
    /// The name.
    pub name: SpecName,
    /// Its version.
    pub version: Version,
    /// The newest revision at which it was still so.
    pub seen: Revision,
}

/// All that is held, at most [`MAX_HELD`] records; names that were not read for longest go first.
#[derive(Debug, Clone, Default)]
pub struct Held {
    names: BTreeMap<SpecName, BTreeMap<Revision, (Content, Revision)>>,
    /// When a name was last held, in turns.
    order: BTreeMap<u64, SpecName>,
    turn_of: BTreeMap<SpecName, u64>,
    turn: u64,
    records: usize,
}

impl FromIterator<HeldRecord> for Held {
    fn from_iter<I: IntoIterator<Item = HeldRecord>>(records: I) -> Self {
        let mut held = Self::default();
        for record in records {
            held.hold(&record);
        }
        held
    }
}

impl Held {
    /// Remembers a record; returns whether that was news.
    pub(super) fn hold(&mut self, record: &HeldRecord) -> bool {
        self.touch(&record.name);
        let versions = self.names.entry(record.name.clone()).or_default();
        let news = match versions.get_mut(&record.version.rev) {
            Some((_, seen)) if *seen >= record.seen => false,
            Some((_, seen)) => {
                *seen = record.seen;
                true
            }
            None => {
                let value = (record.version.content, record.seen);
                versions.insert(record.version.rev, value);
                self.records += 1;
                true
            }
        };
        while self.records > MAX_HELD {
            self.drop_oldest();
        }
        news
    }

    fn touch(&mut self, name: &SpecName) {
        if let Some(turn) = self.turn_of.remove(name) {
            self.order.remove(&turn);
        }
        self.turn += 1;
        self.order.insert(self.turn, name.clone());
        self.turn_of.insert(name.clone(), self.turn);
    }

    fn drop_oldest(&mut self) {
        let Some((_, name)) = self.order.pop_first() else {
            return;
        };
        self.turn_of.remove(&name);
        if let Some(versions) = self.names.remove(&name) {
            self.records -= versions.len();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What `name` was at `at`, if that is known for certain.
    pub(super) fn at(&self, name: &SpecName, at: Revision) -> Option<Version> {
        let (&rev, &(content, seen)) = self.names.get(name)?.range(..=at).next_back()?;
        (at <= seen).then_some(Version { rev, content })
    }

    /// The newest version of `name` that is known, current or not.
    pub(super) fn last(&self, name: &SpecName) -> Option<LastKnown> {
        let (&record_rev, &(content, seen_rev)) = self.names.get(name)?.last_key_value()?;
        Some(LastKnown {
            record_rev,
            seen_rev,
            hash: content.hash(),
            age_ms: None,
        })
    }
}
