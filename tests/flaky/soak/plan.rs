//! What goes wrong in a soak and when, all of it from a seed.

use std::collections::BTreeSet;
use std::time::Duration;

use larder_link::Rule;
use larder_link::rule::Reorder;
use larder_link::unit::{Share, Span};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use super::{COORDINATOR, NODES};

/// Before each fault of a round.
const LONGEST_PAUSE: Duration = Duration::from_millis(1_500);

/// How long all faults of a round last together: past a lease as often as not.
const LONGEST_ROUND: Duration = Duration::from_secs(5);

/// After everything has healed.
const CALM: Duration = Duration::from_secs(4);

/// Faults in one round at most, beside those links that have not healed yet.
const FAULTS_PER_ROUND: usize = 4;

/// Links that one fault changes, if it does not change all.
const LINKS_PER_FAULT: usize = 20;

const LOSS_MAX: u8 = 30;

const DELAY_MAX: Duration = Duration::from_millis(300);

/// Kinds of faults, for those who read what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    CutOneWay,
    CutBothWays,
    Loss,
    Delay,
    Reorder,
    Duplicate,
    Isolate,
    Split,
    KillWorkers,
    StopWorkers,
    KillCoordinator,
}

impl Kind {
    /// One deck: what is drawn does not come back before all others were.
    const DECK: [Self; 14] = [
        Self::CutOneWay,
        Self::CutOneWay,
        Self::CutBothWays,
        Self::Loss,
        Self::Loss,
        Self::Delay,
        Self::Reorder,
        Self::Duplicate,
        Self::Isolate,
        Self::Split,
        Self::KillWorkers,
        Self::StopWorkers,
        Self::StopWorkers,
        Self::KillCoordinator,
    ];
}

/// What happens to the packets of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    Cut,
    Loss(Share),
    Delay(Duration),
    Reorder(Reorder),
    Duplicate(Share),
}

impl Trouble {
    /// Adds it to what happens there already.
    pub(super) fn apply(&self, rule: &mut Rule) {
        match self {
            Self::Cut => rule.cut = true,
            Self::Loss(share) => rule.loss = *share,
            Self::Delay(delay) => rule.delay = *delay,
            Self::Reorder(reorder) => rule.reorder = Some(reorder.clone()),
            Self::Duplicate(share) => rule.duplicate = *share,
        }
    }
}

/// What is done. Nodes are numbers from 1, as in their net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// These directions get worse.
    Trouble(Vec<(usize, usize)>, Trouble),
    /// These are killed.
    Kill(Vec<usize>),
    /// These stand still.
    Stop(Vec<usize>),
    /// Who stands still goes on, and who was killed starts again.
    Revive,
    /// All links are as they were in the beginning.
    Heal,
    /// All is well, and what processes use is noted.
    Measure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// After the step before it was done.
    pub(super) after: Duration,
    pub(super) kind: Option<Kind>,
    pub(super) act: Act,
}

/// At least one fault of each kind, and more until `length` is over; in the middle what processes
/// use is measured. Afterwards the coordinator is not killed any more, so that it is compared too.
pub(super) fn plan(seed: u64, length: Duration) -> Vec<Step> {
    let mut author = Author {
        rng: StdRng::seed_from_u64(seed),
        steps: Vec::new(),
        deck: Vec::new(),
        drawn: 0,
        written: Duration::ZERO,
        is_first_half: true,
    };
    while author.written < length / 2 || author.drawn < Kind::DECK.len() {
        author.write_round();
    }
    author.write_measure();
    author.is_first_half = false;
    author.deck.retain(|kind| *kind != Kind::KillCoordinator);
    while author.written < length {
        author.write_round();
    }
    author.steps
}

struct Author {
    rng: StdRng,
    steps: Vec<Step>,
    deck: Vec<Kind>,
    drawn: usize,
    written: Duration,
    is_first_half: bool,
}

impl Author {
    fn write_round(&mut self) {
        for _ in 0..self.rng.random_range(2..=FAULTS_PER_ROUND) {
            let kind = self.draw();
            let after = self.some_of(LONGEST_PAUSE);
            let act = self.act(kind);
            self.write(after, Some(kind), act);
        }
        let lasts = self.some_of(LONGEST_ROUND);
        self.write(lasts, None, Act::Revive);
        // Else what is wrong with links goes on in the next round.
        if self.rng.random_ratio(2, 3) {
            self.write(Duration::ZERO, None, Act::Heal);
            let calm = self.some_of(CALM);
            self.write(calm, None, Act::Revive);
        }
    }

    fn some_of(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.rng.random())
    }

    fn write_measure(&mut self) {
        self.write(Duration::ZERO, None, Act::Revive);
        self.write(Duration::ZERO, None, Act::Heal);
        self.write(CALM * 2, None, Act::Measure);
    }

    fn write(&mut self, after: Duration, kind: Option<Kind>, act: Act) {
        self.written += after;
        self.steps.push(Step { after, kind, act });
    }

    fn draw(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck = Kind::DECK.to_vec();
            self.deck.shuffle(&mut self.rng);
            if !self.is_first_half {
                self.deck.retain(|kind| *kind != Kind::KillCoordinator);
            }
        }
        self.drawn += 1;
        self.deck.pop().expect("it was filled")
    }

    fn act(&mut self, kind: Kind) -> Act {
        match kind {
            Kind::CutOneWay => Act::Trouble(self.links(false), Trouble::Cut),
            Kind::CutBothWays => Act::Trouble(both(self.links(false)), Trouble::Cut),
            Kind::Loss => {
                let share = Share::percent(self.rng.random_range(5..=LOSS_MAX));
                Act::Trouble(self.links(true), Trouble::Loss(share))
            }
            Kind::Delay => {
                let delay = DELAY_MAX.mul_f64(self.rng.random());
                Act::Trouble(self.links(true), Trouble::Delay(delay))
            }
            Kind::Reorder => {
                let reorder = Reorder {
                    share: Share::percent(self.rng.random_range(5..=50)),
                    hold: Span(Duration::from_millis(self.rng.random_range(5..=100))),
                };
                Act::Trouble(self.links(true), Trouble::Reorder(reorder))
            }
            Kind::Duplicate => {
                let share = Share::percent(self.rng.random_range(5..=50));
                Act::Trouble(self.links(true), Trouble::Duplicate(share))
            }
            Kind::Isolate => {
                let links = workers().map(|worker| (COORDINATOR, worker));
                Act::Trouble(both(links.collect()), Trouble::Cut)
            }
            Kind::Split => Act::Trouble(self.split(), Trouble::Cut),
            Kind::KillWorkers => Act::Kill(self.some_workers(3)),
            Kind::StopWorkers => Act::Stop(self.some_workers(5)),
            Kind::KillCoordinator => Act::Kill(vec![COORDINATOR]),
        }
    }

    /// Some directions, half of the time between the coordinator and workers.
    fn links(&mut self, may_be_all: bool) -> Vec<(usize, usize)> {
        if may_be_all && self.rng.random_ratio(1, 4) {
            return all_links().collect();
        }
        let touches = |&(from, to): &(usize, usize)| [from, to].contains(&COORDINATOR);
        let is_of_coordinator = self.rng.random_bool(0.5);
        let eligible = all_links().filter(|link| !is_of_coordinator || touches(link));
        let eligible: Vec<_> = eligible.collect();
        let count = self.rng.random_range(1..=LINKS_PER_FAULT);
        eligible.sample(&mut self.rng, count).copied().collect()
    }

    /// All links between two parts of the cluster, at least one worker in that without the
    /// coordinator.
    fn split(&mut self) -> Vec<(usize, usize)> {
        let lost: BTreeSet<_> = self.some_workers(NODES - 2).into_iter().collect();
        let is_between = |(from, to): &(usize, usize)| lost.contains(from) != lost.contains(to);
        all_links().filter(is_between).collect()
    }

    fn some_workers(&mut self, most: usize) -> Vec<usize> {
        let all: Vec<_> = workers().collect();
        let count = self.rng.random_range(1..=most);
        all.sample(&mut self.rng, count).copied().collect()
    }
}

fn workers() -> impl Iterator<Item = usize> {
    (1..=NODES).filter(|node| *node != COORDINATOR)
}

/// Every direction.
pub(super) fn all_links() -> impl Iterator<Item = (usize, usize)> {
    let from = |from| (1..=NODES).map(move |to| (from, to));
    (1..=NODES).flat_map(from).filter(|(from, to)| from != to)
}

fn both(links: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let back = links.iter().map(|&(from, to)| (to, from));
    links.iter().copied().chain(back).collect()
}

#[test]
fn a_seed_repeats_its_plan_and_every_plan_has_every_fault_and_a_measurement() {
    let minute = Duration::from_secs(60);
    assert_eq!(plan(1, minute), plan(1, minute));
    assert_ne!(plan(1, minute), plan(2, minute));
    for seed in 0..20 {
        let steps = plan(seed, minute);
        let middle = steps.iter().position(|step| step.act == Act::Measure);
        let (first, second) = steps.split_at(middle.expect("a measurement"));
        for kind in Kind::DECK {
            let mut kinds = first.iter().filter_map(|step| step.kind);
            assert!(kinds.any(|other| other == kind), "seed {seed}: {kind:?}");
        }
        let mut second = second.iter().filter_map(|step| step.kind);
        assert!(!second.any(|kind| kind == Kind::KillCoordinator));
    }
}
