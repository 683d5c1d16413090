use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{
    Catalog, CatalogId, Change, Content, Entry, Epoch, Head, HeadHash, HeadSigner, IdempotencyKey,
    Keyed, Pending, PinEntry, Published, Record, Revision, SignedHead,
};
use crate::proto::coordinator::{Retention, View};
use crate::proto::limit::MAX_PAGE;
use crate::proto::mutant::mutant;
use crate::proto::replica;
use crate::proto::wire::{Delta, GetLog, Log, LogEntry};
use crate::spec::{SpecHash, SpecName};

/// History is dropped this many revisions at a time, since dropping visits every bucket.
const PRUNE_STEP: usize = 64;

/// Records in one base entry of a checkpoint: about 64 KiB.
const BASE_CHUNK: usize = 1_024;

/// The coordinator's durable state: what a replay of its journal gives.
///
/// The same methods change it while the coordinator runs and while it replays, so both agree.
#[derive(Debug, Clone)]
pub struct Ledger {
    catalog: CatalogId,
    epoch: Epoch,
    visible: Arc<View>,
    /// All that was accepted, pending revisions among it.
    tip: Catalog,
    /// The catalog after each revision that is not visible yet, oldest first.
    pub(super) pending: VecDeque<(Catalog, Pending)>,
    /// Retained revisions, the newest of which may be pending.
    log: BTreeMap<Revision, Line>,
    pub(super) keys: BTreeMap<(String, IdempotencyKey), Keyed>,
    /// Keys in the order in which they expire.
    key_order: VecDeque<(u64, String, IdempotencyKey)>,
    last_head: HeadHash,
    /// The longest lease that may be out.
    lease_max: Duration,
    /// Live pins by number.
    pins: BTreeMap<u64, PinEntry>,
    next_pin: u64,
    base: Base,
}

#[derive(Debug, Clone)]
struct Line {
    published: Published,
    names: Vec<SpecName>,
    head: SignedHead,
}

/// The revision below the retained ones, while a replay still reads its records.
#[derive(Debug, Clone)]
struct Base {
    rev: Revision,
    last: Revision,
    head: SignedHead,
    records: Vec<Record>,
}

/// Entries that make no history: the journal was not written by a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The first entry is not the genesis, or a second one follows.
    #[error("the journal does not begin with exactly one genesis entry")]
    Genesis,
    /// A base record after the first revision.
    #[error("a base entry stands behind a revision")]
    Base,
    /// A revision is left out or comes twice.
    #[error("revision {got} follows revision {last}")]
    Order {
        /// The revision before.
        last: Revision,
        /// The one found.
        got: Revision,
    },
    /// A revision becomes visible that is not pending.
    #[error("revision {0} becomes visible and is not pending")]
    Visible(Revision),
    /// The records do not give the root that the head signs.
    #[error("revision {0} does not have the state root of its head")]
    Root(Revision),
    /// A head that is no head.
    #[error("the head of revision {0} does not decode")]
    Head(Revision),
    /// The journal ends before the newest revision that its genesis names.
    #[error("the journal ends at revision {got} and once held {last}")]
    Short {
        /// The newest revision found.
        got: Revision,
        /// The newest revision named.
        last: Revision,
    },
}

impl Ledger {
    /// The first entry of a new catalog's journal; it holds the head of revision 0.
    pub fn genesis(catalog: CatalogId, signer: &dyn HeadSigner) -> Entry {
        let epoch = Epoch::new(1);
        let head = Head {
            catalog,
            epoch,
            rev: Revision::ZERO,
            root: Catalog::empty().root(),
            prev: HeadHash::NONE,
        };
        Entry::Genesis {
            catalog,
            epoch,
            base: Revision::ZERO,
            last: Revision::ZERO,
            head: Some(head.sign(signer)),
        }
    }

    /// Starts a replay with the journal's first entry.
    ///
    /// # Errors
    /// [`ReplayError::Genesis`] when it is another one.
    pub fn begin(entry: &Entry) -> Result<Self, ReplayError> {
        let Entry::Genesis {
            catalog,
            epoch,
            base,
            last,
            head: Some(head),
        } = *entry
        else {
            return Err(ReplayError::Genesis);
        };
        let claimed = head.claimed().map_err(|_| ReplayError::Head(base))?;
        let empty = Catalog::empty();
        Ok(Self {
            catalog,
            epoch,
            visible: Arc::new(View {
                catalog,
                epoch,
                head,
                records: empty.clone(),
            }),
            tip: empty,
            pending: VecDeque::new(),
            log: BTreeMap::new(),
            keys: BTreeMap::new(),
            key_order: VecDeque::new(),
            last_head: claimed.hash(),
            lease_max: Duration::ZERO,
            pins: BTreeMap::new(),
            next_pin: 1,
            base: Base {
                rev: base,
                last,
                head,
                records: Vec::new(),
            },
        })
    }

    /// Replays one entry after the first. Bodies are not looked at.
    ///
    /// # Errors
    /// [`ReplayError`] when the entry cannot follow what came before.
    pub fn replay(&mut self, entry: Entry) -> Result<(), ReplayError> {
        match entry {
            Entry::Genesis { .. } => return Err(ReplayError::Genesis),
            Entry::Body { .. } => {}
            Entry::Base { records } => {
                if self.base_is_closed() {
                    return Err(ReplayError::Base);
                }
                self.base.records.extend(records);
            }
            Entry::Epoch { epoch } => {
                self.close_base()?;
                self.begin_epoch(epoch);
            }
            Entry::Keyed(keyed) => self.remember(keyed),
            Entry::LeaseMax { lease_us } => self.set_lease_max(Duration::from_micros(lease_us)),
            Entry::Pinned(pin) => self.pin(pin),
            Entry::Unpinned { id } => {
                self.unpin(id);
            }
            Entry::Pending(pending) => {
                self.close_base()?;
                self.replay_pending(*pending)?;
            }
            Entry::Visible { rev } => {
                self.close_base()?;
                if rev > self.tip.rev() || rev < self.visible.records.rev() {
                    return Err(ReplayError::Visible(rev));
                }
                self.make_visible(rev);
            }
        }
        Ok(())
    }

    /// Ends a replay.
    ///
    /// # Errors
    /// [`ReplayError`] when the base is wrong or revisions are missing at the end.
    pub fn finish(mut self) -> Result<Self, ReplayError> {
        self.close_base()?;
        let (got, last) = (self.tip.rev(), self.base.last);
        if got < last {
            return Err(ReplayError::Short { got, last });
        }
        Ok(self)
    }

    fn base_is_closed(&self) -> bool {
        self.tip.rev() >= self.base.rev && (self.tip.rev() > Revision::ZERO || !self.log.is_empty())
    }

    /// The base records are complete once something else follows.
    fn close_base(&mut self) -> Result<(), ReplayError> {
        if self.base_is_closed() {
            return Ok(());
        }
        let rev = self.base.rev;
        let records = std::mem::take(&mut self.base.records);
        let catalog = Catalog::from_records(rev, records);
        let head = self.base.head;
        let claimed = head.claimed().map_err(|_| ReplayError::Head(rev))?;
        if claimed.root != catalog.root() || claimed.rev != rev {
            return Err(ReplayError::Root(rev));
        }
        self.tip = catalog.clone();
        self.show(catalog, head);
        Ok(())
    }

    fn replay_pending(&mut self, pending: Pending) -> Result<(), ReplayError> {
        let (last, got) = (self.tip.rev(), pending.rev);
        if got != last.next() {
            return Err(ReplayError::Order { last, got });
        }
        let head = pending.head.claimed().map_err(|_| ReplayError::Head(got))?;
        let tip = self.tip.apply(got, &pending.changes);
        if head.root != tip.root() || head.rev != got {
            return Err(ReplayError::Root(got));
        }
        self.push(tip, pending, head.hash());
        Ok(())
    }

    /// Adds a revision that is not visible yet; `tip` is the catalog with it.
    pub(super) fn push(&mut self, tip: Catalog, pending: Pending, head: HeadHash) {
        let line = Line {
            published: pending.published.clone(),
            names: pending.changes.iter().map(|c| c.name.clone()).collect(),
            head: pending.head,
        };
        self.log.insert(pending.rev, line);
        if let Some(keyed) = &pending.keyed {
            self.remember(keyed.clone());
        }
        self.last_head = head;
        self.tip = tip.clone();
        self.pending.push_back((tip, pending));
    }

    /// Everything up to `rev` is visible from now on.
    pub(super) fn make_visible(&mut self, rev: Revision) {
        while let Some((catalog, pending)) = self.pending.front()
            && pending.rev <= rev
        {
            let (catalog, head) = (catalog.clone(), pending.head);
            self.show(catalog, head);
            self.pending.pop_front();
        }
    }

    fn show(&mut self, records: Catalog, head: SignedHead) {
        self.visible = Arc::new(View {
            catalog: self.catalog,
            epoch: head.claimed().map_or(self.epoch, |head| head.epoch),
            head,
            records,
        });
    }

    /// Forgets every pending revision after `durable`, as if it had never been asked for.
    pub(super) fn truncate(&mut self, durable: Revision) {
        while let Some((_, pending)) = self.pending.back()
            && pending.rev > durable
        {
            if let Some(keyed) = &pending.keyed {
                self.keys.remove(&(keyed.by.clone(), keyed.key));
            }
            self.log.remove(&pending.rev);
            self.pending.pop_back();
        }
        let (tip, head) = match self.pending.back() {
            Some((tip, pending)) => (tip.clone(), pending.head),
            None => (self.visible.records.clone(), self.visible.head),
        };
        self.tip = tip;
        if let Ok(head) = head.claimed() {
            self.last_head = head.hash();
        }
    }

    /// A key whose entry did not reach the disk.
    pub(super) fn forget(&mut self, keyed: &Keyed) {
        self.keys.remove(&(keyed.by.clone(), keyed.key));
    }

    pub(super) fn remember(&mut self, keyed: Keyed) {
        let (by, key) = (keyed.by.clone(), keyed.key);
        self.key_order
            .push_back((keyed.at_unix_ms, by.clone(), key));
        self.keys.insert((by, key), keyed);
    }

    pub(super) fn expire_keys(&mut self, unix_ms: u64, lifetime: Duration) {
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        while let Some((at, ..)) = self.key_order.front()
            && at.saturating_add(lifetime_ms) < unix_ms
        {
            if let Some((at, by, key)) = self.key_order.pop_front() {
                let id = (by, key);
                if self
                    .keys
                    .get(&id)
                    .is_some_and(|keyed| keyed.at_unix_ms == at)
                {
                    self.keys.remove(&id);
                }
            }
        }
    }

    /// The longest lease that may be out.
    pub fn lease_max(&self) -> Duration {
        self.lease_max
    }

    pub(super) fn set_lease_max(&mut self, lease: Duration) {
        self.lease_max = lease;
    }

    /// Live pins, the oldest first.
    pub fn pins(&self) -> impl Iterator<Item = &PinEntry> {
        self.pins.values()
    }

    pub(super) fn next_pin(&self) -> u64 {
        self.next_pin
    }

    pub(super) fn pin(&mut self, pin: PinEntry) {
        self.next_pin = self.next_pin.max(pin.id + 1);
        self.pins.insert(pin.id, pin);
    }

    pub(super) fn unpin(&mut self, id: u64) -> Option<PinEntry> {
        self.next_pin = self.next_pin.max(id + 1);
        self.pins.remove(&id)
    }

    /// Pins that have ended by `unix_ms`.
    pub(super) fn ended_pins(&self, unix_ms: u64) -> Vec<u64> {
        let ended = self
            .pins
            .values()
            .filter(|pin| pin.until_unix_ms <= unix_ms);
        ended.map(|pin| pin.id).collect()
    }

    /// The visible revisions after `from`, as far as they fit, at least one; `None` when they are
    /// not all retained, or belong to another epoch.
    pub fn delta(&self, epoch: Epoch, from: Revision, max_bytes: usize) -> Option<Delta> {
        self.delta_of(epoch, from, (1, max_bytes))
    }

    /// The same, and none where the first does not fit: what is too long is not even built.
    pub(super) fn inline_delta(
        &self,
        epoch: Epoch,
        from: Revision,
        max_bytes: usize,
    ) -> Option<Delta> {
        self.delta_of(epoch, from, (0, max_bytes))
    }

    fn delta_of(&self, epoch: Epoch, from: Revision, at_least: (usize, usize)) -> Option<Delta> {
        let view = &self.visible;
        if epoch > view.epoch || from < view.records.oldest() || from > view.records.rev() {
            return None;
        }
        let steps = replica::steps(&view.records, from, at_least, |rev| {
            let line = self.log.get(&rev)?;
            Some((line.head, line.names.as_slice()))
        })?;
        Some(Delta {
            catalog: view.catalog,
            epoch: view.epoch,
            rev: view.records.rev(),
            steps,
        })
    }

    /// Revisions that are durable and not visible.
    pub(super) fn pending_revisions(&self) -> Vec<Revision> {
        self.pending
            .iter()
            .map(|(_, pending)| pending.rev)
            .collect()
    }

    /// Pending changes up to `durable`, each with its revision.
    pub(super) fn pending_changes(
        &self,
        durable: Revision,
    ) -> impl Iterator<Item = (Revision, &Change)> {
        let pending = self.pending.iter().map(|(_, pending)| pending);
        pending
            .filter(move |pending| pending.rev <= durable)
            .flat_map(|pending| pending.changes.iter().map(|change| (pending.rev, change)))
    }

    pub(super) fn begin_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch.max(self.epoch);
    }

    /// Drops history that nothing needs any more, now and then.
    pub(super) fn retain(&mut self, retention: Retention) {
        let Some((&newest, line)) = self.log.range(..=self.visible.records.rev()).next_back()
        else {
            return;
        };
        let age_ms = u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX);
        let young = line.published.at_unix_ms.saturating_sub(age_ms);
        // A pin keeps what its revision sees, and with it every revision after.
        let pinned = self.pins.values().map(|pin| pin.rev).min();
        let pinned = pinned.filter(|_| !mutant!(X07)).unwrap_or(newest);
        let droppable: Vec<_> = self
            .log
            .range(..newest.min(pinned))
            .take_while(|(rev, line)| {
                rev.get() + retention.revisions <= newest.get() && line.published.at_unix_ms < young
            })
            .map(|(&rev, _)| rev)
            .collect();
        let Some(&oldest) = droppable.last() else {
            return;
        };
        if droppable.len() < PRUNE_STEP {
            return;
        }
        if let Some(line) = self.log.get(&oldest) {
            self.base.head = line.head;
            self.base.rev = oldest;
        }
        for rev in droppable {
            self.log.remove(&rev);
        }
        self.tip = self.tip.prune(oldest);
        for (catalog, _) in &mut self.pending {
            *catalog = catalog.prune(oldest);
        }
        let records = self.visible.records.prune(oldest);
        let head = self.visible.head;
        self.show(records, head);
    }

    /// The entries of a new journal that says the same in less space, and the bodies it needs.
    pub(super) fn checkpoint(&self) -> (Vec<Entry>, BTreeSet<SpecHash>) {
        let mut entries = vec![Entry::Genesis {
            catalog: self.catalog,
            epoch: self.base_epoch(),
            base: self.base.rev,
            last: self.tip.rev(),
            head: Some(self.base.head),
        }];
        let mut base = Vec::new();
        let mut retained = BTreeSet::new();
        let mut changes: BTreeMap<Revision, Vec<Change>> = BTreeMap::new();
        let kept = if mutant!(X08) {
            self.visible()
        } else {
            &self.tip
        };
        for (name, versions) in kept.iter() {
            if mutant!(X16)
                && versions
                    .last()
                    .is_some_and(|last| last.content == Content::Deleted)
            {
                continue;
            }
            for version in versions {
                retained.extend(version.content.hash());
                let name = name.clone();
                if version.rev <= self.base.rev {
                    let version = *version;
                    base.push(Record { name, version });
                } else {
                    let content = version.content;
                    let change = Change { name, content };
                    changes.entry(version.rev).or_default().push(change);
                }
            }
        }
        for chunk in base.chunks(BASE_CHUNK) {
            let records = chunk.to_vec();
            entries.push(Entry::Base { records });
        }
        let mut epoch = self.base_epoch();
        for (&rev, line) in &self.log {
            let of_line = line.head.claimed().map_or(epoch, |head| head.epoch);
            if of_line > epoch {
                epoch = of_line;
                entries.push(Entry::Epoch { epoch });
            }
            entries.push(Entry::Pending(Box::new(Pending {
                rev,
                changes: changes.remove(&rev).unwrap_or_default(),
                published: line.published.clone(),
                keyed: None,
                head: line.head,
            })));
        }
        let rev = self.visible.records.rev();
        entries.push(Entry::Visible { rev });
        entries.extend(self.keys.values().cloned().map(Entry::Keyed));
        let lease_us = u64::try_from(self.lease_max.as_micros()).unwrap_or(u64::MAX);
        entries.push(Entry::LeaseMax { lease_us });
        entries.extend(self.pins.values().cloned().map(Entry::Pinned));
        // So that a number is never given twice.
        let id = self.next_pin - 1;
        if !self.pins.contains_key(&id) && id > 0 {
            entries.push(Entry::Unpinned { id });
        }
        (entries, retained)
    }

    fn base_epoch(&self) -> Epoch {
        self.base
            .head
            .claimed()
            .map_or(self.epoch, |head| head.epoch)
    }

    /// Answers [`GetLog`], newest first, visible revisions only.
    pub fn log(&self, get: &GetLog) -> Log {
        let limit = (get.limit as usize).clamp(1, MAX_PAGE);
        let visible = self.visible.records.rev();
        let before = get.before.unwrap_or(visible.next()).min(visible.next());
        let mut entries: Vec<_> = match &get.name {
            Some(name) => self.log_of(name, before).take(limit + 1).collect(),
            None => self
                .log
                .range(..before)
                .rev()
                .take(limit + 1)
                .map(|(&rev, line)| line.entry(rev))
                .collect(),
        };
        let more = entries.len() > limit;
        entries.truncate(limit);
        Log {
            catalog: self.catalog,
            epoch: self.epoch,
            oldest: self.visible.records.oldest(),
            entries,
            more,
        }
    }

    fn log_of(&self, name: &SpecName, before: Revision) -> impl Iterator<Item = LogEntry> {
        let versions = self.visible.records.versions(name).iter().rev();
        versions
            .filter(move |version| version.rev < before)
            .map(|version| {
                let mut entry = match self.log.get(&version.rev) {
                    Some(line) => line.entry(version.rev),
                    None => LogEntry::forgotten(version.rev),
                };
                entry.version = Some((*version).into());
                entry
            })
    }

    /// Whose catalog.
    pub fn catalog(&self) -> CatalogId {
        self.catalog
    }

    /// The current epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What readers may see.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.visible)
    }

    /// The visible records.
    pub fn visible(&self) -> &Catalog {
        &self.visible.records
    }

    /// The newest records, pending ones among them.
    pub fn tip(&self) -> &Catalog {
        &self.tip
    }

    pub(super) fn last_head(&self) -> HeadHash {
        self.last_head
    }

    /// Revisions that are not visible yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn key(&self, by: &str, key: &IdempotencyKey) -> Option<&Keyed> {
        self.keys.get(&(by.to_owned(), *key))
    }

    /// Remembered idempotency keys.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Whether the current epoch has no head yet.
    pub fn lacks_head(&self) -> bool {
        let newest = self
            .pending
            .back()
            .map_or(self.visible.head, |(_, p)| p.head);
        newest.claimed().is_ok_and(|head| head.epoch < self.epoch)
    }

    /// Bytes that a checkpoint would keep, roughly: bodies of every retained version.
    pub fn retained_bytes(&self) -> u64 {
        let mut seen = BTreeSet::new();
        self.tip
            .iter()
            .flat_map(|(_, versions)| versions)
            .filter_map(|version| match version.content {
                Content::Present { hash, len } => seen.insert(hash).then_some(len),
                Content::Deleted => None,
            })
            .sum()
    }
}

impl Line {
    fn entry(&self, rev: Revision) -> LogEntry {
        LogEntry {
            rev,
            by: self.published.by.clone(),
            at_unix_ms: self.published.at_unix_ms,
            note: self.published.note.clone(),
            changed: u32::try_from(self.names.len()).unwrap_or(u32::MAX),
            version: None,
        }
    }
}

impl LogEntry {
    /// A revision whose records are retained and whose circumstances are not.
    fn forgotten(rev: Revision) -> Self {
        Self {
            rev,
            by: String::new(),
            at_unix_ms: 0,
            note: String::new(),
            changed: 0,
            version: None,
        }
    }
}
