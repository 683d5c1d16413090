//! A worker's copy of the catalog: every record at one revision and the revisions before it,
//! each proven by the head that the coordinator signed.
//!
//! A replica is an immutable value. [`Replica::apply`] and [`Replica::replace`] make the next one
//! and check it first: the records must give the state root of the head, the heads must form a
//! chain from the one that is held, and a pinned key must have signed the last of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::{
    Catalog, CatalogId, Change, Epoch, Head, HeadError, HeadVerifier, Record, Revision, SignedHead,
    VerifiedHead,
};
use crate::proto::limit::REPLICA_REVISIONS;
use crate::proto::mutant::mutant;
use crate::proto::wire::{CatalogDiff, Delta, Step, WireChange};
use crate::spec::SpecName;

/// Older revisions are dropped this many at a time, since dropping visits every bucket.
const PRUNE_STEP: u64 = 64;

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Replica {
    records: Catalog,
    head: VerifiedHead,
    /// How each retained revision came to be, oldest first.
    lines: Arc<BTreeMap<Revision, Arc<Line>>>,
}

#[derive(Debug, Clone)]
struct Line {
    head: SignedHead,
    names: Vec<SpecName>,
}

/// Why a catalog is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// Bytes that are no head, or one that no pinned key signed.
    #[error("its head is not to be believed")]
    Head(#[from] HeadError),
    /// A frame whose parts do not fit together.
    #[error("{0}")]
    Form(&'static str),
    /// It belongs to another catalog.
    #[error("it belongs to catalog {0}")]
    Catalog(CatalogId),
    /// The records are not those that the head signs.
    #[error("the records of revision {0} do not have the state root of its head")]
    Root(Revision),
    /// The coordinator signed two heads for one revision.
    #[error("there are two heads for revision {0}")]
    Fork(Revision),
}

impl Replica {
    /// Takes a whole catalog, parts of which may come from `base`.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn replace(
        base: Option<&Self>,
        diff: CatalogDiff,
        verifier: &dyn HeadVerifier,
    ) -> Result<Self, ReplicaError> {
        let signed = diff
            .head
            .signed()
            .map_err(|_| ReplicaError::Form("a head of another length"))?;
        let head = signed.verify(verifier)?;
        let base = base.map_or_else(Catalog::empty, |base| base.records.clone());
        let records = base
            .with_buckets(head.head().rev, &diff.buckets, diff.records)
            .ok_or(ReplicaError::Form("a record outside its buckets"))?;
        if records.root() != head.head().root {
            return Err(ReplicaError::Root(head.head().rev));
        }
        let line = Line {
            head: signed,
            names: Vec::new(),
        };
        Ok(Self {
            records,
            head,
            lines: Arc::new(BTreeMap::from([(head.head().rev, Arc::new(line))])),
        })
    }

    /// The replica with the revisions of `delta` that it does not have yet; `None` when they do
    /// not follow the newest one it has.
    ///
    /// # Errors
    /// [`ReplicaError`]; nothing of the delta is taken then.
    pub fn apply(
        &self,
        delta: &Delta,
        verifier: &dyn HeadVerifier,
    ) -> Result<Option<Self>, ReplicaError> {
        if delta.catalog != self.head().catalog && !mutant!(X34) {
            return Err(ReplicaError::Catalog(delta.catalog));
        }
        let mut records = self.records.clone();
        let mut prev = *self.head();
        let mut last = None;
        let mut lines = BTreeMap::new();
        for step in &delta.steps {
            let signed = step
                .head
                .signed()
                .map_err(|_| ReplicaError::Form("a head of another length"))?;
            let head = signed.claimed().map_err(HeadError::from)?;
            if head.catalog != self.head().catalog && !mutant!(X34) {
                // Signed for another catalog it is no evidence of anything here.
                return Err(ReplicaError::Catalog(head.catalog));
            }
            if head.rev <= self.rev() && head.epoch == self.epoch() {
                self.check_known(&head, &signed, verifier)?;
                continue;
            }
            if head.rev != prev.rev.next() || head.epoch < prev.epoch {
                return Ok(None);
            }
            if head.prev != prev.hash() && head.epoch > prev.epoch {
                // A restored coordinator tells another history from some revision on.
                return Ok(None);
            }
            if head.prev != prev.hash() {
                // Only a signed head is evidence.
                signed.verify(verifier)?;
                if !mutant!(X17) {
                    return Err(ReplicaError::Fork(prev.rev));
                }
            }
            let changes: Vec<Change> = step.changes.iter().cloned().map(Change::from).collect();
            records = records.apply(head.rev, &changes);
            if records.root() != head.root {
                return Err(ReplicaError::Root(head.rev));
            }
            let names = changes.into_iter().map(|change| change.name).collect();
            let head_of_line = signed;
            let line = Line {
                head: head_of_line,
                names,
            };
            lines.insert(head.rev, Arc::new(line));
            (prev, last) = (head, Some(signed));
        }
        let Some(last) = last else {
            return Ok(
                (delta.rev <= self.rev() && delta.epoch == self.epoch()).then(|| self.clone())
            );
        };
        // The chain makes this signature one over every head before it.
        let head = last.verify(verifier)?;
        let mut all = BTreeMap::clone(&self.lines);
        all.extend(lines);
        let mut next = Self {
            records,
            head,
            lines: Arc::new(all),
        };
        next.prune();
        Ok(Some(next))
    }

    /// A head for a revision that is held must be the one that is held.
    fn check_known(
        &self,
        head: &Head,
        signed: &SignedHead,
        verifier: &dyn HeadVerifier,
    ) -> Result<(), ReplicaError> {
        let Some(known) = self.lines.get(&head.rev) else {
            return Ok(());
        };
        let same = known
            .head
            .claimed()
            .is_ok_and(|known| known.hash() == head.hash());
        if same || mutant!(X17) {
            return Ok(());
        }
        signed.verify(verifier)?;
        Err(ReplicaError::Fork(head.rev))
    }

    /// Whether `head`, which a pinned key signed, contradicts what is held.
    pub fn contradicts(&self, head: &VerifiedHead) -> bool {
        let head = head.head();
        let known = self.lines.get(&head.rev).map(|line| line.head.claimed());
        head.epoch == self.epoch()
            && head.catalog == self.head().catalog
            && known.is_some_and(|known| known.is_ok_and(|known| known.hash() != head.hash()))
    }

    fn prune(&mut self) {
        let keep = Revision::new(self.rev().get().saturating_sub(REPLICA_REVISIONS));
        let oldest = self.records.oldest();
        if keep.get() < oldest.get() + PRUNE_STEP {
            return;
        }
        self.records = self.records.prune(keep);
        let mut lines = BTreeMap::clone(&self.lines);
        lines.retain(|rev, _| *rev >= keep);
        self.lines = Arc::new(lines);
    }

    /// The revisions after `from`, as far as they fit into `max_bytes`, at least one; `None` when
    /// they are not all held.
    pub fn delta(&self, epoch: Epoch, from: Revision, max_bytes: usize) -> Option<Delta> {
        let steps = steps(&self.records, from, (1, max_bytes), |rev| {
            let line = self.lines.get(&rev)?;
            Some((line.head, line.names.as_slice()))
        })?;
        let known = from >= self.records.oldest() && epoch <= self.epoch();
        known.then(|| Delta {
            catalog: self.head().catalog,
            epoch: self.epoch(),
            rev: self.rev(),
            steps,
        })
    }

    /// The records in the buckets whose digests differ from `have`.
    pub fn diff(&self, have: &[u8]) -> CatalogDiff {
        diff(&self.records, self.head.signed(), have)
    }

    /// All records at [`rev`](Self::rev), and the revisions before it.
    pub fn records(&self) -> &Catalog {
        &self.records
    }

    /// Its head, which a pinned key signed.
    pub fn verified(&self) -> &VerifiedHead {
        &self.head
    }

    /// What proves them.
    pub fn head(&self) -> &Head {
        self.head.head()
    }

    /// The same with its signature.
    pub fn signed(&self) -> &SignedHead {
        self.head.signed()
    }

    /// Its revision.
    pub fn rev(&self) -> Revision {
        self.head().rev
    }

    /// Its epoch.
    pub fn epoch(&self) -> Epoch {
        self.head().epoch
    }

    /// The oldest revision that is held and its records: what [`line`](Self::line)s follow.
    pub fn base(&self) -> (SignedHead, Vec<Record>) {
        let oldest = self.records.oldest();
        let head = self
            .lines
            .get(&oldest)
            .map_or(*self.signed(), |line| line.head);
        let records = self.records.iter().filter_map(|(name, versions)| {
            let after = versions.partition_point(|version| version.rev <= oldest);
            let version = *versions[..after].last()?;
            let name = name.clone();
            Some(Record { name, version })
        });
        (head, records.collect())
    }

    /// The head of `rev` and what it changed; `None` for the oldest revision and for those that
    /// are not held.
    pub fn line(&self, rev: Revision) -> Option<(SignedHead, Vec<Change>)> {
        let line = self
            .lines
            .get(&rev)
            .filter(|_| rev > self.records.oldest())?;
        Some((line.head, changes_of(&self.records, rev, &line.names)))
    }

    /// The replica that [`base`](Self::base) describes.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn restore(
        head: &SignedHead,
        records: Vec<Record>,
        verifier: &dyn HeadVerifier,
    ) -> Result<Self, ReplicaError> {
        let rev = head.claimed().map_err(HeadError::from)?.rev;
        let buckets = Catalog::from_records(rev, records.clone()).differing(&[]);
        let head = head.into();
        let diff = CatalogDiff {
            head,
            buckets,
            records,
        };
        Self::replace(None, diff, verifier)
    }
}

/// Revisions of `records` after `from`: as many as fit into `max_bytes`, or `at_least` so many if
/// there are.
pub(crate) fn steps<'a>(
    records: &Catalog,
    from: Revision,
    (at_least, max_bytes): (usize, usize),
    line: impl Fn(Revision) -> Option<(SignedHead, &'a [SpecName])>,
) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut bytes = 0;
    let mut rev = from.next();
    while rev <= records.rev() {
        let (head, names) = line(rev)?;
        bytes += Step::weight(names);
        if bytes > max_bytes && steps.len() >= at_least {
            break;
        }
        steps.push(step_of(records, rev, &head, names));
        rev = rev.next();
    }
    Some(steps)
}

fn step_of(records: &Catalog, rev: Revision, head: &SignedHead, names: &[SpecName]) -> Step {
    let changes = changes_of(records, rev, names);
    Step {
        head: head.into(),
        changes: changes.iter().map(WireChange::from).collect(),
    }
}

fn changes_of(records: &Catalog, rev: Revision, names: &[SpecName]) -> Vec<Change> {
    let changes = names.iter().filter_map(|name| {
        let versions = records.versions(name);
        let index = versions
            .binary_search_by_key(&rev, |version| version.rev)
            .ok()?;
        let content = versions[index].content;
        let name = name.clone();
        Some(Change { name, content })
    });
    changes.collect()
}

/// The records of `records` in the buckets whose digests differ from `have`.
pub(crate) fn diff(records: &Catalog, head: &SignedHead, have: &[u8]) -> CatalogDiff {
    let buckets = records.differing(have);
    CatalogDiff {
        head: head.into(),
        records: records.in_buckets(&buckets),
        buckets,
    }
}
