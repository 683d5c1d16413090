//! Who gets a body from the coordinator when many ask for it at once, and who is pointed at others.
//!
//! The first [`FIRST_ASKERS`] of a body get it. A later one is pointed at two that asked before it,
//! so that a body spreads as a tree: whoever was given or pointed first is near its root, nobody is
//! named often, and nobody is pointed at whom it has been named to itself. Only who has a known
//! address is named; while there is nobody to name, the coordinator gives.
//!
//! It decides about bytes alone. What is current goes out in the same answer either way.

use std::collections::{BTreeMap, VecDeque};

use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{
    FIRST_ASKERS, HOLDERS_NAMED, MAX_ASKED_BODIES, MAX_ASKERS, MAX_MEMBERS, MAX_MET,
    MAX_TIMES_NAMED, MAX_TIMES_NAMED_AGAIN, SHED_WINDOW,
};
use crate::spec::SpecHash;

/// What an asker gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// The bytes.
    Give,
    /// One or two others to ask, in this order.
    Point(Vec<NodeId>),
}

/// Who has asked for what lately.
#[derive(Debug, Default)]
pub struct Askers {
    bodies: BTreeMap<SpecHash, Crowd>,
    /// When each of them was first asked for, the oldest first.
    begun: VecDeque<(Time, SpecHash)>,
    /// Askers of all bodies.
    askers: usize,
    /// Whom each asker was pointed at, the latest first: with the same ones again it needs no new
    /// connection.
    met: BTreeMap<NodeId, Vec<NodeId>>,
}

/// Those who asked for one body.
#[derive(Debug, Default)]
struct Crowd {
    told: BTreeMap<NodeId, Turn>,
    /// Those that can still be named, in the order in which they asked.
    open: VecDeque<Holder>,
}

/// Who has a body, or is about to.
#[derive(Debug)]
struct Holder {
    node: NodeId,
    /// To how many it was named,
    named: usize,
    /// and to how many as the one to be asked first.
    first: usize,
}

impl Askers {
    /// What `asker` gets, who can ask others. `is_there`: whether a node's address is known. Who
    /// asks again is told the same, as long as somebody whom it was pointed at is there.
    pub fn ask(
        &mut self,
        hash: SpecHash,
        asker: NodeId,
        is_there: impl Fn(NodeId) -> bool,
        now: Time,
    ) -> Turn {
        self.forget(now);
        let crowd = self.bodies.entry(hash).or_insert_with(|| {
            self.begun.push_back((now, hash));
            Crowd::default()
        });
        if let Some(told) = crowd.told.get(&asker) {
            return told.without(|node| !is_there(node));
        }
        let turn = match crowd.told.len() < FIRST_ASKERS {
            true => Turn::Give,
            false => {
                let met = self.met.get(&asker).map_or(&[][..], Vec::as_slice);
                crowd.point(met, &is_there)
            }
        };
        if let Turn::Point(named) = &turn {
            if self.met.len() >= MAX_MEMBERS {
                self.met.clear();
            }
            let met = self.met.entry(asker).or_default();
            met.retain(|node| !named.contains(node));
            met.splice(0..0, named.iter().copied());
            met.truncate(MAX_MET);
        }
        crowd.told.insert(asker, turn.clone());
        self.askers += 1;
        if is_there(asker) {
            crowd.open.push_back(Holder {
                node: asker,
                named: 0,
                first: 0,
            });
        }
        turn
    }

    /// Lets go of what is over, and of the oldest where there is too much.
    fn forget(&mut self, now: Time) {
        while let Some(&(begun, hash)) = self.begun.front() {
            let full = self.bodies.len() >= MAX_ASKED_BODIES || self.askers >= MAX_ASKERS;
            if !full && now.since(begun) < SHED_WINDOW {
                return;
            }
            self.begun.pop_front();
            let gone = self.bodies.remove(&hash);
            self.askers -= gone.map_or(0, |crowd| crowd.told.len());
        }
    }
}

impl Crowd {
    /// Those with room that the asker has met before, then those that asked first. For who has met
    /// them there is more room: a new connection costs more than a further question.
    fn point(&mut self, met: &[NodeId], is_there: impl Fn(NodeId) -> bool) -> Turn {
        let known = |&index: &usize| met.contains(&self.open[index].node);
        let fresh = |&index: &usize| self.open[index].named < MAX_TIMES_NAMED && !known(&index);
        let all = || 0..self.open.len();
        let order = all().filter(known).chain(all().filter(fresh));
        let mut chosen: Vec<_> = order
            .filter(|&index| is_there(self.open[index].node))
            .take(HOLDERS_NAMED)
            .collect();
        chosen.sort_by_key(|&index| self.open[index].first);
        for (place, &index) in chosen.iter().enumerate() {
            self.open[index].named += 1;
            self.open[index].first += usize::from(place == 0);
        }
        let named: Vec<_> = chosen.iter().map(|&index| self.open[index].node).collect();
        // From the back, so that what is left keeps its place.
        chosen.sort_unstable();
        for index in chosen.into_iter().rev() {
            if self.open[index].named >= MAX_TIMES_NAMED_AGAIN {
                self.open.remove(index);
            }
        }
        match named.is_empty() {
            true => Turn::Give,
            false => Turn::Point(named),
        }
    }
}

impl Turn {
    fn without(&self, gone: impl Fn(NodeId) -> bool) -> Self {
        match self {
            Self::Give => Self::Give,
            Self::Point(named) => {
                let there = named.iter().copied().filter(|&node| !gone(node));
                let there: Vec<_> = there.collect();
                match there.is_empty() {
                    true => Self::Give,
                    false => Self::Point(there),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn node(n: usize) -> NodeId {
        NodeId::of_addr(&format!("n{n}"))
    }

    fn hash(n: usize) -> SpecHash {
        SpecHash::of(&n.to_be_bytes())
    }

    const NOW: Time = Time::from_micros(1);

    /// What each of `count` askers gets, in this order.
    fn crowd(askers: &mut Askers, body: usize, count: usize) -> Vec<Turn> {
        let ask = |n| askers.ask(hash(body), node(n), |_| true, NOW);
        (0..count).map(ask).collect()
    }

    #[test]
    fn the_first_four_get_the_bytes_and_nobody_is_named_to_many() {
        for count in [5, 10, 100, 300, 2_000] {
            let turns = crowd(&mut Askers::default(), 1, count);
            let given = turns.iter().filter(|turn| **turn == Turn::Give).count();
            assert_eq!(given, FIRST_ASKERS, "of {count}");
            let (mut named, mut first) = (BTreeMap::new(), BTreeMap::new());
            let mut depth = BTreeMap::new();
            for (n, turn) in turns.iter().enumerate() {
                let Turn::Point(holders) = turn else {
                    depth.insert(node(n), 0);
                    continue;
                };
                *first.entry(holders[0]).or_insert(0) += 1;
                for holder in holders {
                    *named.entry(*holder).or_insert(0) += 1;
                }
                // Whoever is named has asked before.
                let depths = holders.iter().map(|holder| depth[holder]);
                depth.insert(node(n), 1 + depths.max().expect("somebody"));
            }
            assert!(named.values().all(|&times| times <= MAX_TIMES_NAMED));
            assert!(first.values().all(|&times| times <= MAX_TIMES_NAMED / 2));
            let deepest = depth.values().max().copied();
            assert!(deepest <= Some(count.ilog2() + 1), "{deepest:?} of {count}");
        }
    }

    #[test]
    fn who_asks_again_is_told_the_same_while_one_of_those_is_there() {
        let mut askers = Askers::default();
        let turns = crowd(&mut askers, 1, 20);
        assert_eq!(crowd(&mut askers, 1, 20), turns);
        let Turn::Point(named) = &turns[9] else {
            panic!("the tenth is pointed at others");
        };
        let [gone, left] = named[..] else {
            panic!("two of them");
        };
        let again = askers.ask(hash(1), node(9), |node| node != gone, NOW);
        assert_eq!(again, Turn::Point(vec![left]));
        let again = askers.ask(hash(1), node(9), |_| false, NOW);
        assert_eq!(again, Turn::Give);
    }

    #[test]
    fn only_who_has_a_known_address_is_named() {
        let mut askers = Askers::default();
        let there = |node_: NodeId| node_ == node(2);
        let mut ask = |n| askers.ask(hash(1), node(n), there, NOW);
        for n in 0..FIRST_ASKERS {
            assert_eq!(ask(n), Turn::Give);
        }
        for n in 0..MAX_TIMES_NAMED {
            assert_eq!(ask(100 + n), Turn::Point(vec![node(2)]));
        }
        assert_eq!(ask(200), Turn::Give, "it has been named often enough");
    }

    #[test]
    fn those_who_ask_for_many_bodies_are_pointed_at_the_same_ones() {
        let mut askers = Askers::default();
        let turns = crowd(&mut askers, 1, 50);
        for body in 2..20 {
            assert_eq!(crowd(&mut askers, body, 50), turns);
        }
    }

    #[test]
    fn in_whatever_order_they_ask_they_are_pointed_at_few() {
        const COUNT: usize = 50;
        let mut askers = Askers::default();
        let mut met: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
        for body in 0..100 {
            for turn in 0..COUNT {
                // Every number has no divisor in common with the count, so each asks once.
                let n = (turn * [1, 3, 7, 9, 11, 13][body % 6] + body * 17) % COUNT;
                let told = askers.ask(hash(body), node(n), |_| true, NOW);
                if let Turn::Point(named) = told {
                    met.entry(n).or_default().extend(named);
                }
            }
        }
        let most = met.values().map(BTreeSet::len).max();
        assert!(most <= Some(2 * MAX_MET), "{most:?}");
    }

    #[test]
    fn all_is_forgotten_after_the_window_and_the_oldest_when_there_is_too_much() {
        let mut askers = Askers::default();
        crowd(&mut askers, 1, 9);
        let later = NOW + SHED_WINDOW;
        assert_eq!(askers.ask(hash(1), node(8), |_| true, later), Turn::Give);
        assert_eq!((askers.bodies.len(), askers.askers), (1, 1));
        for body in 2..MAX_ASKED_BODIES + 9 {
            askers.ask(hash(body), node(0), |_| true, later);
        }
        assert_eq!(askers.bodies.len(), MAX_ASKED_BODIES);
        assert_eq!(askers.begun.len(), MAX_ASKED_BODIES);
        assert!(!askers.bodies.contains_key(&hash(1)));

        let mut askers = Askers::default();
        for n in 0..MAX_ASKERS + 1 {
            askers.ask(hash(n % 2), node(n), |_| false, NOW);
        }
        assert!(askers.askers <= MAX_ASKERS);
    }
}
