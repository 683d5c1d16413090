//! Joining, coming back from the dead, and what is remembered for both.

use std::net::SocketAddr;
use std::time::Duration;

use foca::AccumulatingRuntime;
use rand::RngExt;

use super::timer::Chore;
use super::{Gossip, Member, Output, Remembered, Seed};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{
    ANNOUNCE_FANOUT, FIRST_ANNOUNCE_BACKOFF, MAX_ANNOUNCE_BACKOFF, MAX_GENERATION, MAX_REMEMBERED,
    MAX_RENEW_BACKOFF, RENEW_EVERY,
};

impl Gossip {
    /// Tells some of those who may be there that this node is. Foca does it once, and a lost
    /// packet would leave the node alone for ever.
    pub(super) fn announce(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.joined {
            return;
        }
        let known = self.up.values().chain(&self.remembered).copied();
        let known: Vec<Member> = known.filter(|to| !self.barred.contains(&to.id)).collect();
        self.reach_seeds(out);
        for member in self.some_of(known, ANNOUNCE_FANOUT) {
            self.announce_to(member, now, out);
        }
        let doubled = FIRST_ANNOUNCE_BACKOFF * (1 << self.announced.min(16));
        self.announced = self.announced.saturating_add(1);
        let pause = self.jittered(doubled.min(MAX_ANNOUNCE_BACKOFF));
        let pause = self.health.stretched(pause);
        self.timers.set(Chore::Announce, now + pause);
    }

    /// Whatever its generation is: an announcement is for the node.
    fn announce_to(&mut self, to: Member, now: Time, out: &mut Vec<Output>) {
        let mut runtime = AccumulatingRuntime::new();
        let result = self.foca.announce(to, &mut runtime);
        self.finish(result, runtime, now, out);
    }

    pub(super) fn reach_seeds(&mut self, out: &mut Vec<Output>) {
        let seeds = self.seeds.iter().map(|seed| seed.addr.clone()).collect();
        out.extend(
            self.some_of(seeds, ANNOUNCE_FANOUT)
                .into_iter()
                .map(Output::Reach),
        );
    }

    pub(super) fn seed_is(&mut self, seed: &str, node: NodeId) {
        for known in self.seeds.iter_mut().filter(|known| known.addr == seed) {
            known.node = Some(node);
        }
    }

    /// Announces itself to whoever is there and is no member here: half of the cluster may be
    /// behind it.
    pub(super) fn reached(
        &mut self,
        node: NodeId,
        addr: Option<SocketAddr>,
        others: &[(NodeId, SocketAddr)],
        now: Time,
        out: &mut Vec<Output>,
    ) {
        if self.left {
            return;
        }
        let others = others.iter().copied();
        let others = others.filter(|(node, _)| self.is_news(*node)).collect();
        let mut found = self.some_of(others, ANNOUNCE_FANOUT);
        found.extend(addr.map(|addr| (node, addr)).filter(|_| self.is_news(node)));
        for (node, addr) in found {
            let member = Member::new(node, addr, 0);
            match self.is_leaf {
                true => self.remember_place(member),
                false => self.announce_to(member, now, out),
            }
        }
    }

    fn is_news(&self, node: NodeId) -> bool {
        let known = self.up.contains_key(&node) && (self.joined || self.is_leaf);
        node != self.own().id && !known && !self.barred.contains(&node)
    }

    fn remember_place(&mut self, member: Member) {
        self.remembered.retain(|known| known.id != member.id);
        self.remembered.insert(0, member);
        self.remembered.truncate(MAX_REMEMBERED);
    }

    /// A seed that is no member here. A coordinator never is one: it is told now and then where
    /// this node listens, and knows who else does.
    pub(super) fn missing_seed(&mut self) -> Option<String> {
        let own = self.own().id;
        let is_missing = |seed: &&Seed| {
            let node = seed.node;
            node.is_none_or(|node| node != own && !self.up.contains_key(&node))
        };
        let missing: Vec<String> = self
            .seeds
            .iter()
            .filter(is_missing)
            .map(|seed| seed.addr.clone())
            .collect();
        let place = self.any_of(missing.len())?;
        missing.into_iter().nth(place)
    }

    /// The cluster holds this node for dead, and death cannot be taken back: it goes on in a new
    /// life, but not at once each time, or two nodes would do nothing else.
    pub(super) fn declared_dead(&mut self, now: Time) {
        if self.left || self.timers.is_set(Chore::Renew) {
            return;
        }
        let at = match self.renewed {
            Some(last) if now.since(last) < self.renew_pause * 2 => {
                let at = last + self.renew_pause;
                self.renew_pause = (self.renew_pause * 2).min(MAX_RENEW_BACKOFF);
                at
            }
            _ => {
                self.renew_pause = RENEW_EVERY;
                now
            }
        };
        self.timers.set(Chore::Renew, at.max(now));
    }

    pub(super) fn renew(&mut self, now: Time, out: &mut Vec<Output>) {
        let own = self.own();
        let generation = self.named.max(own.generation) + 1;
        if generation > MAX_GENERATION {
            return;
        }
        self.renewed = Some(now);
        self.named = generation;
        self.counters.renewals += 1;
        let mut runtime = AccumulatingRuntime::new();
        let next = Member::new(own.id, own.addr, generation);
        let result = self.foca.change_identity(next, &mut runtime);
        out.push(self.remember());
        self.joined = false;
        self.health.alone();
        self.announced = 0;
        self.finish(result, runtime, now, out);
        self.announce(now, out);
    }

    pub(super) fn remember(&mut self) -> Output {
        self.timers.clear(Chore::Remember);
        let mut members: Vec<Member> = self.up.values().copied().collect();
        if members.len() > MAX_REMEMBERED {
            // Any of them will do, and not the same at all nodes.
            for place in 0..MAX_REMEMBERED {
                let other = self.rng.random_range(place..members.len());
                members.swap(place, other);
            }
            members.truncate(MAX_REMEMBERED);
        }
        if members.is_empty() {
            // Alone for a while is no reason to forget where the others were.
            members.clone_from(&self.remembered);
        } else {
            self.remembered.clone_from(&members);
        }
        Output::Remember(Remembered {
            generation: self.own().generation,
            members,
        })
    }

    pub(super) fn any_of(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    /// Up to `count`, at random.
    pub(super) fn some_of<T>(&mut self, mut of: Vec<T>, count: usize) -> Vec<T> {
        for place in 0..of.len().min(count) {
            let other = self.rng.random_range(place..of.len());
            of.swap(place, other);
        }
        of.truncate(count);
        of
    }

    /// Spreads nodes that started at the same moment.
    pub(super) fn jittered(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(self.rng.random_range(0.5..1.0))
    }
}
