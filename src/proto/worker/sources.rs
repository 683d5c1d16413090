use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::answer::Hop;
use crate::proto::Time;
use crate::proto::limit::{
    HEDGE_DEFAULT, HEDGE_MAX, HEDGE_MIN, LIAR_BAN, MAX_PEERS_PER_FETCH, MAX_PEERS_PER_ROUND,
    UNREACHABLE_PENALTY,
};
use crate::proto::worker::Config;

/// Answers whose times are remembered per address: enough for a p95, few enough to follow a link
/// that changes.
const REMEMBERED: usize = 32;

/// Fewer answers than this say nothing about a p95.
const ENOUGH: usize = 8;

/// Who can be asked for bytes or for the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Index into [`Config::coordinators`].
    Coordinator(usize),
    /// Index into [`Config::peers`].
    Peer(usize),
}

/// What is known of an address, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceInfo {
    /// Its role and address.
    #[serde(flatten)]
    pub hop: Hop,
    /// Answers that were used.
    pub answers: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Usual time of an answer, microseconds; `None` before the first.
    pub median_us: Option<u64>,
    /// It is not asked for this long because of what it sent.
    pub banned_ms: u64,
    /// The coordinator address that is asked first.
    pub preferred: bool,
}

/// The addresses with what was seen of each.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    coordinators: Vec<Seen>,
    peers: Vec<Seen>,
    /// The coordinator's addresses in the order in which they are tried, shuffled once.
    order: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Seen {
    addr: String,
    answers: u64,
    failures: u64,
    /// Failures since the last answer.
    in_a_row: u32,
    times: VecDeque<Duration>,
    penalty_until: Time,
    banned_until: Time,
}

impl Sources {
    pub(super) fn new(config: &Config) -> Self {
        let seen = |addrs: &[String]| addrs.iter().map(|addr| Seen::new(addr)).collect();
        Self {
            coordinators: seen(&config.coordinators),
            peers: seen(&config.peers),
            order: shuffled(config.coordinators.len(), config.seed),
        }
    }

    pub(super) fn hop(&self, source: Source) -> Hop {
        match source {
            Source::Coordinator(index) => Hop::Coordinator(self.coordinators[index].addr.clone()),
            Source::Peer(index) => Hop::Peer(self.peers[index].addr.clone()),
        }
    }

    /// The coordinator address to ask next; `tried` ones are left out.
    pub(super) fn next_coordinator(&self, tried: &[usize]) -> Option<usize> {
        self.order
            .iter()
            .copied()
            .find(|index| !tried.contains(index))
    }

    /// The address after `failed` in the order.
    pub(super) fn coordinator_after(&self, failed: usize) -> Option<usize> {
        let at = self.order.iter().position(|&index| index == failed)?;
        self.order.get((at + 1) % self.order.len()).copied()
    }

    /// Whether no coordinator is known.
    pub(super) fn is_alone(&self) -> bool {
        self.coordinators.is_empty()
    }

    /// The usual time of an answer from the coordinator.
    pub(super) fn round_trip(&self, coordinator: usize) -> Duration {
        self.seen(Source::Coordinator(coordinator)).usual()
    }

    /// It answered, so it is asked first from now on.
    pub(super) fn prefer(&mut self, coordinator: usize) {
        self.order.retain(|&index| index != coordinator);
        self.order.insert(0, coordinator);
    }

    /// Whom to ask for bytes next: a coordinator that has not failed lately, then peers, best
    /// first, then the rest.
    pub(super) fn next_source(&self, tried: &[Source], now: Time) -> Option<Source> {
        let coordinators = self.order.iter().map(|&index| Source::Coordinator(index));
        let asked_peers = tried
            .iter()
            .filter(|source| matches!(source, Source::Peer(_)))
            .count();
        let peers = (0..self.peers.len())
            .map(Source::Peer)
            .filter(|_| asked_peers < MAX_PEERS_PER_FETCH);
        coordinators
            .chain(peers)
            .filter(|source| !tried.contains(source))
            .filter(|&source| self.seen(source).banned_until <= now)
            .min_by_key(|&source| {
                let seen = self.seen(source);
                let penalised = seen.penalty_until > now;
                let is_peer = matches!(source, Source::Peer(_));
                (
                    penalised,
                    is_peer,
                    seen.in_a_row,
                    seen.usual(),
                    self.rank(source),
                )
            })
    }

    /// Whom to ask for the catalog next: this coordinator unless it could not be reached lately,
    /// then peers, those that were not `polled` lately and the best first.
    pub(super) fn next_of_round(
        &self,
        coordinator: Option<usize>,
        round: &[Source],
        polled: &[Source],
        now: Time,
    ) -> Option<Source> {
        let is_peer = |source: &Source| matches!(source, Source::Peer(_));
        let asked_peers = round.iter().filter(|source| is_peer(source)).count();
        let peers = (0..self.peers.len())
            .map(Source::Peer)
            .filter(|_| asked_peers < MAX_PEERS_PER_ROUND);
        let coordinator = coordinator.map(Source::Coordinator);
        coordinator
            .into_iter()
            .chain(peers)
            .filter(|source| !round.contains(source))
            .filter(|&source| self.seen(source).banned_until <= now)
            .min_by_key(|source| {
                let seen = self.seen(*source);
                let penalised = seen.penalty_until > now;
                let turn_is_over = polled.contains(source);
                let best = (seen.in_a_row, seen.usual(), self.rank(*source));
                (penalised, is_peer(source), turn_is_over, best)
            })
    }

    /// Peers that are known.
    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }

    fn rank(&self, source: Source) -> usize {
        match source {
            Source::Coordinator(index) => {
                let found = self.order.iter().position(|&other| other == index);
                found.unwrap_or(index)
            }
            Source::Peer(index) => index,
        }
    }

    /// After how long without an answer the next source is asked as well.
    pub(super) fn hedge_after(&self, source: Source) -> Duration {
        let times = &self.seen(source).times;
        if times.len() < ENOUGH {
            return HEDGE_DEFAULT;
        }
        let mut sorted: Vec<_> = times.iter().copied().collect();
        sorted.sort_unstable();
        let p95 = sorted[(sorted.len() * 95 / 100).min(sorted.len() - 1)];
        p95.clamp(HEDGE_MIN, HEDGE_MAX)
    }

    pub(super) fn answered(&mut self, source: Source, took: Duration) {
        let seen = self.seen_mut(source);
        seen.answers += 1;
        seen.in_a_row = 0;
        seen.penalty_until = Time::default();
        if seen.times.len() == REMEMBERED {
            seen.times.pop_front();
        }
        seen.times.push_back(took);
    }

    pub(super) fn failed(&mut self, source: Source, unreachable: bool, now: Time) {
        let seen = self.seen_mut(source);
        seen.failures += 1;
        seen.in_a_row = seen.in_a_row.saturating_add(1);
        if unreachable {
            seen.penalty_until = now + UNREACHABLE_PENALTY;
        }
    }

    /// It sent wrong bytes. A coordinator is never banned: without it there is no truth.
    pub(super) fn lied(&mut self, source: Source, now: Time) {
        self.failed(source, true, now);
        if let Source::Peer(_) = source {
            self.seen_mut(source).banned_until = now + LIAR_BAN;
        }
    }

    pub(super) fn info(&self, now: Time) -> Vec<SourceInfo> {
        let coordinators = (0..self.coordinators.len()).map(Source::Coordinator);
        let peers = (0..self.peers.len()).map(Source::Peer);
        coordinators
            .chain(peers)
            .map(|source| {
                let seen = self.seen(source);
                let usual = (!seen.times.is_empty()).then(|| seen.usual());
                SourceInfo {
                    hop: self.hop(source),
                    answers: seen.answers,
                    failures: seen.failures,
                    median_us: usual.and_then(|usual| u64::try_from(usual.as_micros()).ok()),
                    banned_ms: u64::try_from(seen.banned_until.since(now).as_millis())
                        .unwrap_or(u64::MAX),
                    preferred: self.order.first().map(|&i| Source::Coordinator(i)) == Some(source),
                }
            })
            .collect()
    }

    /// Indices come from this value itself, so they are in range.
    fn seen(&self, source: Source) -> &Seen {
        match source {
            Source::Coordinator(index) => &self.coordinators[index],
            Source::Peer(index) => &self.peers[index],
        }
    }

    fn seen_mut(&mut self, source: Source) -> &mut Seen {
        match source {
            Source::Coordinator(index) => &mut self.coordinators[index],
            Source::Peer(index) => &mut self.peers[index],
        }
    }
}

impl Seen {
    fn new(addr: &str) -> Self {
        Self {
            addr: addr.to_owned(),
            answers: 0,
            failures: 0,
            in_a_row: 0,
            times: VecDeque::new(),
            penalty_until: Time::default(),
            banned_until: Time::default(),
        }
    }

    /// Median time of an answer; unknown ones are tried before slow ones.
    fn usual(&self) -> Duration {
        let mut sorted: Vec<_> = self.times.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

/// 0..len in an order that `seed` decides (Fisher-Yates over SplitMix64).
fn shuffled(len: usize, mut seed: u64) -> Vec<usize> {
    let mut next = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut order: Vec<_> = (0..len).collect();
    for last in (1..len).rev() {
        let other = (next() % (last as u64 + 1)) as usize;
        order.swap(last, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(coordinators: usize, peers: usize, seed: u64) -> Sources {
        let addrs = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}{n}")).collect();
        Sources::new(&Config {
            coordinators: addrs("c", coordinators),
            peers: addrs("p", peers),
            seed,
            ..Config::default()
        })
    }

    #[test]
    fn the_order_depends_on_the_seed_and_holds_each_address_once() {
        let orders: Vec<_> = (0..50).map(|seed| shuffled(4, seed)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        let firsts: std::collections::BTreeSet<_> = orders.iter().map(|order| order[0]).collect();
        assert_eq!(firsts.len(), 4, "every address is first for some worker");
    }

    #[test]
    fn an_unreachable_coordinator_comes_after_the_peers_for_a_while() {
        let mut sources = sources(1, 2, 0);
        let now = Time::default();
        assert_eq!(sources.next_source(&[], now), Some(Source::Coordinator(0)));
        sources.failed(Source::Coordinator(0), true, now);
        assert!(matches!(
            sources.next_source(&[], now),
            Some(Source::Peer(_))
        ));
        let later = now + UNREACHABLE_PENALTY;
        assert_eq!(
            sources.next_source(&[], later),
            Some(Source::Coordinator(0))
        );
    }

    #[test]
    fn the_quicker_peer_is_asked_first_and_a_liar_not_at_all() {
        let mut sources = sources(0, 3, 0);
        let now = Time::default();
        for _ in 0..3 {
            sources.answered(Source::Peer(0), Duration::from_millis(9));
            sources.answered(Source::Peer(1), Duration::from_millis(1));
            sources.answered(Source::Peer(2), Duration::from_millis(2));
        }
        assert_eq!(sources.next_source(&[], now), Some(Source::Peer(1)));
        sources.lied(Source::Peer(1), now);
        assert_eq!(sources.next_source(&[], now), Some(Source::Peer(2)));
        let tried = [Source::Peer(0), Source::Peer(2)];
        assert_eq!(sources.next_source(&tried, now), None);
        let after_ban = now + LIAR_BAN;
        assert_eq!(
            sources.next_source(&tried, after_ban),
            Some(Source::Peer(1))
        );
    }

    #[test]
    fn at_most_three_peers_are_asked() {
        let sources = sources(0, 9, 0);
        let mut tried = Vec::new();
        while let Some(source) = sources.next_source(&tried, Time::default()) {
            tried.push(source);
        }
        assert_eq!(tried.len(), MAX_PEERS_PER_FETCH);
    }

    #[test]
    fn the_hedge_follows_the_usual_p95_within_its_bounds() {
        let mut sources = sources(0, 1, 0);
        let peer = Source::Peer(0);
        assert_eq!(sources.hedge_after(peer), HEDGE_DEFAULT);
        for _ in 0..REMEMBERED {
            sources.answered(peer, Duration::from_millis(40));
        }
        assert_eq!(sources.hedge_after(peer), Duration::from_millis(40));
        for _ in 0..REMEMBERED {
            sources.answered(peer, Duration::from_micros(100));
        }
        assert_eq!(sources.hedge_after(peer), HEDGE_MIN);
        for _ in 0..REMEMBERED {
            sources.answered(peer, Duration::from_secs(9));
        }
        assert_eq!(sources.hedge_after(peer), HEDGE_MAX);
    }
}
