//! What may happen in one search, and how often.

use std::time::Duration;

/// A lease in the model.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// Time passes in steps of this.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// How fast a worker's clock runs against the coordinator's at worst, in millionths: both drift by
/// the bound, in opposite directions. Clocks that are quicker give leases that end sooner.
pub(super) const AT_THE_BOUND: u64 = 998_002;

/// A worker's clock that is slower than it is allowed to be.
pub(super) const BEYOND_THE_BOUND: u64 = 950_000;

/// What a publish wants of one name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// Index of the name.
    pub(super) name: usize,
    /// Its new content; `None` deletes it.
    pub(super) body: Option<&'static str>,
    /// The revision that it must have.
    pub(super) expect: Option<u64>,
}

/// A small world and how often each thing may happen in it.
///
/// It begins with every name at revision 1 and every worker holding a lease and that revision,
/// but for those that are `cold`.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// A few words.
    pub name: &'static str,
    pub(super) workers: usize,
    pub(super) names: usize,
    /// Names that do not exist at the beginning, the last ones.
    pub(super) absent: usize,
    /// Workers whose process has just begun, without a lease.
    pub(super) cold: usize,
    /// Whether they hold nothing either, as on a new machine.
    pub(super) empty: bool,
    /// Sent in this order, each at any time.
    pub(super) publishes: Vec<Vec<Wish>>,
    pub(super) ticks: u32,
    /// The coordinator dies, at any point of a write, and comes back.
    pub(super) crashes: u32,
    /// The lease that the coordinator gives after a crash.
    pub(super) lease_after: Duration,
    /// The coordinator is restored from a backup of the beginning.
    pub(super) restores: u32,
    /// With a new epoch, as it must be.
    pub(super) new_epoch: bool,
    /// A worker's process dies and comes back on its store.
    pub(super) restarts: u32,
    /// Reads that do not find their answer in the sight; all others are free.
    pub(super) reads: u32,
    /// Messages that are delivered and stay on their way.
    pub(super) repeats: u32,
    /// A watch breaks, which either end may see first, late or never; or a resolve fails.
    pub(super) breaks: u32,
    /// Workers that give their lease back.
    pub(super) leaves: u32,
    /// Workers that sleep and wake later.
    pub(super) naps: u32,
    /// Renewals of each worker that are not lost.
    pub(super) renewals: u32,
    /// Whether a grant may come as the answer to another renewal, of a later process too.
    pub(super) stray: bool,
    /// How fast workers' clocks run.
    pub(super) clock: u64,
    /// Whether runs begin.
    pub(super) runs: bool,
    /// Whether bounded reads are made, with this bound.
    pub(super) bound: Option<Duration>,
    /// Messages on their way; beyond it the oldest is lost.
    pub(super) packets: usize,
}

impl Scenario {
    fn new(name: &'static str, workers: usize, publishes: Vec<Vec<Wish>>) -> Self {
        Self {
            name,
            workers,
            names: 1,
            absent: 0,
            cold: 0,
            empty: false,
            publishes,
            ticks: 3,
            crashes: 0,
            lease_after: LEASE,
            restores: 0,
            new_epoch: true,
            restarts: 0,
            reads: 0,
            repeats: 0,
            breaks: 0,
            leaves: 0,
            naps: 0,
            renewals: 1,
            stray: false,
            clock: AT_THE_BOUND,
            runs: false,
            bound: None,
            packets: 6,
        }
    }

    /// All that are searched; the deep ones take minutes each.
    pub fn all(deep: bool) -> Vec<Self> {
        let more = u32::from(deep);
        [
            Self::publishing(more),
            Self::failing(more),
            Self::others(more),
        ]
        .concat()
    }

    fn publishing(more: u32) -> Vec<Self> {
        vec![
            Self {
                ticks: 3 + more,
                renewals: 2 + more,
                repeats: 1 + more,
                ..Self::new("publish against a leased read", 1, vec![put("2")])
            },
            Self {
                ticks: 2 + more,
                renewals: 1 + more,
                ..Self::new("read at one worker, then at another", 2, vec![put("2")])
            },
            Self {
                ticks: 4 + more,
                renewals: 3,
                repeats: 1,
                stray: true,
                ..Self::new("renewals while pending", 1, vec![put("2")])
            },
            Self {
                cold: 1,
                ticks: 1 + more,
                renewals: 2,
                reads: 1,
                ..Self::new("unleased during a publish, then renewed", 1, vec![put("2")])
            },
            Self {
                cold: 1,
                empty: true,
                ticks: 1 + more,
                renewals: 2 + more,
                ..Self::new("a worker that holds nothing", 1, vec![put("2")])
            },
            Self {
                cold: 1,
                ticks: 2,
                renewals: more,
                reads: 2,
                ..Self::new("reads over the network", 1, vec![put("2")])
            },
            Self {
                ticks: 3,
                renewals: more,
                reads: 1,
                breaks: 1,
                ..Self::new("a read fails", 1, vec![put("2")])
            },
            Self {
                ticks: 2,
                renewals: 1,
                reads: more,
                ..Self::new("delete and re-create", 1, vec![delete(0), put("3")])
            },
            Self {
                names: 2,
                absent: 1,
                ticks: 2 + more,
                renewals: 1,
                ..Self::new("create and delete", 1, vec![create(), delete(1)])
            },
            Self {
                ticks: 2,
                renewals: 1,
                ..Self::new(
                    "two publishers with expect",
                    1,
                    vec![expect("2", 1), expect("3", 1)],
                )
            },
            Self {
                names: 2,
                runs: true,
                ticks: 2 + more,
                renewals: 1 + more,
                ..Self::new("two names in one revision", 1, vec![both("2"), put("3")])
            },
        ]
    }

    fn failing(more: u32) -> Vec<Self> {
        vec![
            Self {
                ticks: 2 + more,
                renewals: 1 + more,
                restarts: 1,
                ..Self::new("worker restart between ack and release", 1, vec![put("2")])
            },
            Self {
                cold: 1,
                ticks: 3,
                renewals: 1 + more,
                restarts: 1,
                stray: true,
                ..Self::new("an old grant reaches a new process", 1, vec![put("2")])
            },
            Self {
                ticks: 2 + more,
                renewals: 1,
                crashes: 1 + more,
                ..Self::new(
                    "coordinator crash at each step",
                    1,
                    vec![put("2"), put("3")],
                )
            },
            Self {
                ticks: 2 + more,
                renewals: 1 + more,
                crashes: 2,
                lease_after: LEASE / 2,
                ..Self::new("lease length changed at restart", 1, vec![put("2")])
            },
            Self {
                ticks: 2 + more,
                renewals: 1 + more,
                restores: 1,
                reads: more,
                ..Self::new("restore with a new epoch", 1, vec![put("2"), put("3")])
            },
            Self {
                ticks: 2,
                renewals: more,
                restores: 1,
                reads: 1,
                ..Self::new("a read across a restore", 1, vec![put("2")])
            },
            Self {
                ticks: more,
                renewals: more,
                restores: 1,
                new_epoch: false,
                restarts: 1,
                reads: 1,
                ..Self::new("restore without a new epoch", 1, vec![put("2")])
            },
        ]
    }

    fn others(more: u32) -> Vec<Self> {
        vec![
            Self {
                ticks: 2 + more,
                renewals: 2,
                breaks: 1,
                ..Self::new("the watch breaks", 1, vec![put("2")])
            },
            Self {
                ticks: 3 + more,
                renewals: 1 + more,
                leaves: 1,
                ..Self::new("a lease is given back", 1, vec![put("2")])
            },
            Self {
                ticks: 3 + more,
                renewals: 1 + more,
                naps: 1,
                ..Self::new("a worker sleeps", 1, vec![put("2")])
            },
            Self {
                ticks: 3 + more,
                renewals: 1 + more,
                bound: Some(TICK),
                ..Self::new("bounded reads", 1, vec![put("2")])
            },
            Self {
                ticks: 3 + more,
                renewals: 1 + more,
                restarts: 1,
                bound: Some(TICK),
                ..Self::new("bounded reads after a restart", 1, vec![put("2")])
            },
            Self {
                ticks: 2 + more,
                renewals: 1,
                restarts: 1,
                restores: 1,
                bound: Some(TICK),
                ..Self::new("bounded reads across a restore", 1, vec![put("2")])
            },
        ]
    }

    /// Assumes less than the protocol does: a violation must be found.
    pub fn drift_beyond_the_bound() -> Self {
        Self {
            clock: BEYOND_THE_BOUND,
            ..Self::new("drift beyond the bound", 1, vec![put("2")])
        }
    }
}

fn wish(name: usize, body: Option<&'static str>, expect: Option<u64>) -> Wish {
    Wish { name, body, expect }
}

fn put(body: &'static str) -> Vec<Wish> {
    vec![wish(0, Some(body), None)]
}

fn expect(body: &'static str, rev: u64) -> Vec<Wish> {
    vec![wish(0, Some(body), Some(rev))]
}

fn delete(name: usize) -> Vec<Wish> {
    vec![wish(name, None, None)]
}

fn create() -> Vec<Wish> {
    vec![wish(1, Some("2"), Some(0))]
}

fn both(body: &'static str) -> Vec<Wish> {
    vec![wish(0, Some(body), None), wish(1, Some(body), None)]
}
