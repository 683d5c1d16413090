//! What reader threads see: the replica, and whether it may be answered from right now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::answer::{RunToken, Snapshot};
use crate::catalog::{Content, Revision, Version};
use crate::proto::limit::{DRIFT_PER_MILLE, LEASE_MARGIN};
use crate::proto::mutant::mutant;
use crate::proto::replica::Replica;
use crate::proto::wire::Marks;
use crate::proto::worker::Mark;
use crate::proto::{Clock, Time};
use crate::spec::SpecName;

/// An immutable picture of what a worker may answer without asking. The machine makes a new one
/// with each change and the driver swaps it in, whole, for every reader.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    pub(super) replica: Option<Arc<Replica>>,
    /// The newest state that the coordinator named to this worker.
    pub(super) floor: Option<Mark>,
    pub(super) marks: Arc<MarkSet>,
    pub(super) lease_until: Option<Time>,
    /// The replica reflects everything that was acknowledged before.
    pub(super) anchor: Option<Time>,
    /// The coordinator contradicted itself; nothing that it says is believed.
    pub(super) quarantined: bool,
}

/// Names that are about to change, or have changed where this worker cannot see it yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct MarkSet {
    pub(super) all: Revision,
    pub(super) names: BTreeMap<SpecName, Revision>,
}

/// What a look at a [`Sight`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The answer. A name that never existed is deleted at revision 0.
    Serve(Version, Snapshot),
    /// The answer is about to be known: the release of a change is on its way.
    Soon,
    /// Someone must be asked.
    Ask,
}

/// Where readers find the newest [`Sight`].
pub trait SightCell {
    /// The newest one. What is loaded was whole when it was stored.
    fn load(&self) -> Arc<Sight>;

    /// Shows another one to every later load.
    fn store(&self, sight: Arc<Sight>);
}

/// A strict read of `name` with no packet sent: first the sight is loaded, *then* the clock is
/// read. In the other order a reader that is held up between the two would take a lease that it
/// loads later for one that covers the time that it read earlier.
pub fn look(
    cell: &impl SightCell,
    clock: &impl Clock,
    name: &SpecName,
) -> (Arc<Sight>, Time, Look) {
    let early = mutant!(X01).then(|| clock.now());
    let sight = load(cell);
    let now = early.unwrap_or_else(|| clock.now());
    let look = sight.strict(name, now);
    (sight, now, look)
}

#[cfg(not(feature = "mutants"))]
fn load(cell: &impl SightCell) -> Arc<Sight> {
    cell.load()
}

/// A faulty reader thread keeps the first sight with a lease that it gets.
#[cfg(feature = "mutants")]
fn load(cell: &impl SightCell) -> Arc<Sight> {
    use std::cell::RefCell;
    thread_local! {
        static KEPT: RefCell<(u64, Option<Arc<Sight>>)> = RefCell::default();
    }
    let sight = cell.load();
    if !mutant!(X02) {
        return sight;
    }
    KEPT.with_borrow_mut(|(turn, kept)| {
        let now = crate::proto::mutant::turn();
        if *turn != now || kept.as_ref().is_none_or(|kept| kept.lease_until.is_none()) {
            (*turn, *kept) = (now, Some(Arc::clone(&sight)));
        }
        kept.clone().unwrap_or(sight)
    })
}

impl MarkSet {
    /// The revision that shows the change of `name`; 0: it is fresh.
    pub fn of(&self, name: &SpecName) -> Revision {
        self.names
            .get(name)
            .copied()
            .unwrap_or_default()
            .max(self.all)
    }

    /// The newest mark.
    pub fn newest(&self) -> Revision {
        self.names
            .values()
            .copied()
            .chain([self.all])
            .max()
            .unwrap_or_default()
    }

    /// Marks that are set.
    pub fn len(&self) -> usize {
        self.names.len() + usize::from(self.all > Revision::ZERO)
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks only rise: whatever else arrives, a name stays marked until the replica shows the
    /// change.
    pub(super) fn rise(&mut self, marks: &Marks, shown: Revision) {
        for (name, rev) in &marks.names {
            if *rev > shown {
                let mark = self.names.entry(name.clone()).or_default();
                *mark = (*mark).max(*rev);
            }
        }
        if marks.all > shown {
            self.all = self.all.max(marks.all);
        }
    }

    /// The replica shows `rev`.
    pub(super) fn clear_to(&mut self, rev: Revision) {
        self.names.retain(|_, mark| *mark > rev);
        if self.all <= rev {
            self.all = Revision::ZERO;
        }
    }
}

impl Sight {
    /// Whether the coordinator's promise holds at `now`.
    pub fn leased(&self, now: Time) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }

    /// The replica, when it shows all that the coordinator has named.
    fn current(&self) -> Option<&Arc<Replica>> {
        let replica = self.replica.as_ref().filter(|_| !self.quarantined)?;
        let floor = self.floor?;
        let reached =
            replica.epoch() == floor.epoch && (replica.rev() >= floor.rev || mutant!(X28));
        reached.then_some(replica)
    }

    /// A strict read: what `name` is at `now`, which was read after this sight was loaded.
    pub fn strict(&self, name: &SpecName, now: Time) -> Look {
        if self.quarantined || !self.leased(now) {
            return Look::Ask;
        }
        let Some(replica) = self.current() else {
            return Look::Soon;
        };
        let marked = self.marks.of(name) > replica.rev() && !mutant!(M17);
        let found = found(replica.records().get(name));
        let stale_absence = mutant!(X21) && found.content == Content::Deleted;
        if marked && !stale_absence {
            return Look::Soon;
        }
        Look::Serve(found, snapshot(replica))
    }

    /// What `name` is in a replica that is not older than `token`.
    pub fn at_least(&self, name: &SpecName, token: RunToken) -> Look {
        match self.current() {
            Some(replica) if reaches(replica, token) => {
                Look::Serve(found(replica.records().get(name)), snapshot(replica))
            }
            _ => Look::Ask,
        }
    }

    /// What `name` is in a replica that reflects all that was acknowledged more than `staleness`
    /// before `now`.
    pub fn bounded(&self, name: &SpecName, staleness: Duration, now: Time) -> Look {
        let (Some(replica), Some(anchor)) = (self.current(), self.anchor) else {
            return Look::Ask;
        };
        if now.since(anchor) > shortened(staleness) {
            return Look::Ask;
        }
        Look::Serve(found(replica.records().get(name)), snapshot(replica))
    }

    /// What `name` was at `at`, where the replica goes back so far.
    pub fn at(&self, name: &SpecName, at: Revision) -> Option<(Version, Snapshot)> {
        let replica = self.replica.as_ref()?;
        if self
            .floor
            .is_some_and(|floor| floor.epoch != replica.epoch())
        {
            return None;
        }
        let version = replica.records().get_at(name, at).ok()?;
        let snapshot = Snapshot {
            rev: at,
            ..snapshot(replica)
        };
        Some((found(version), snapshot))
    }

    /// The revision that a run may take at `now` without asking: nothing that was acknowledged
    /// before is missing in it.
    pub fn run_token(&self, now: Time) -> Option<RunToken> {
        let replica = self.current()?;
        let outstanding = self.marks.newest() > replica.rev() && !mutant!(X27);
        (self.leased(now) && !outstanding && !self.quarantined).then(|| RunToken {
            catalog: replica.head().catalog,
            epoch: replica.epoch(),
            rev: replica.rev(),
        })
    }

    /// How old the replica is at `now` at most; `None` when nobody knows.
    pub fn age(&self, now: Time) -> Option<Duration> {
        self.anchor.map(|anchor| now.since(anchor))
    }

    /// The catalog that this worker holds.
    pub fn replica(&self) -> Option<&Arc<Replica>> {
        self.replica.as_ref()
    }

    /// The newest state that the coordinator named.
    pub fn floor(&self) -> Option<Mark> {
        self.floor
    }

    /// Names that are about to change.
    pub fn marks(&self) -> &MarkSet {
        &self.marks
    }

    /// How long the lease still runs at `now`; zero without one.
    pub fn lease_left(&self, now: Time) -> Duration {
        self.lease_until
            .map_or(Duration::ZERO, |until| until.since(now))
    }
}

/// A worker's share of a lease or bound: its clock may run slower than the coordinator's by the
/// drift, and the coordinator's quicker than the truth by as much.
pub(super) fn shortened(lease: Duration) -> Duration {
    if mutant!(M12) {
        return lease;
    }
    lease.saturating_sub(lease * 2 * DRIFT_PER_MILLE / 1_000)
}

/// How long a worker may answer under a lease, counted from when it asked.
pub(super) fn usable(lease: Duration) -> Duration {
    let shortened = shortened(lease);
    if mutant!(M12) {
        return shortened;
    }
    shortened.saturating_sub(LEASE_MARGIN)
}

fn reaches(replica: &Replica, token: RunToken) -> bool {
    replica.head().catalog == token.catalog
        && (replica.epoch(), replica.rev()) >= (token.epoch, token.rev)
}

fn found(version: Option<Version>) -> Version {
    version.unwrap_or(Version {
        rev: Revision::ZERO,
        content: Content::Deleted,
    })
}

fn snapshot(replica: &Replica) -> Snapshot {
    Snapshot {
        catalog: replica.head().catalog,
        epoch: replica.epoch(),
        rev: replica.rev(),
    }
}
