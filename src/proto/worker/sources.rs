use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::answer::Hop;
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{
    BUSY_PAUSE, HEDGE_DEFAULT, HEDGE_MAX, HEDGE_MIN, LIAR_BAN, MAX_KNOWN_HOLDERS, MAX_MEMBERS,
    MAX_PASSING_PEERS, MAX_PEERS_PER_FETCH, MAX_PEERS_PER_ROUND, MAX_RELAYS_PER_ROUND,
    UNREACHABLE_PENALTY,
};
use crate::proto::worker::Config;
use crate::spec::SpecHash;

/// Answers whose times are remembered per address: enough for a p95, few enough to follow a link
/// that changes.
const REMEMBERED: usize = 32;

/// Fewer answers than this say nothing about a p95.
const ENOUGH: usize = 8;

/// What a body takes from a peer in the same place, its disk included.
const NEAR: Duration = Duration::from_millis(4);

/// Members that are shown in `status` at most, of those that were asked.
const MAX_SHOWN: usize = 64;

/// Who can be asked for bytes or for the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Index into [`Config::coordinators`].
    Coordinator(usize),
    /// A member, or the [`of_addr`](NodeId::of_addr) of one of [`Config::peers`].
    Peer(NodeId),
}

impl Source {
    /// Whether it is no coordinator.
    pub const fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_))
    }
}

/// A worker that this one may ask, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Who.
    pub id: NodeId,
    /// Where, as it is shown in errors.
    pub addr: String,
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
    peers: BTreeMap<NodeId, Peer>,
    /// The way to the coordinator over another worker: the index after the last address.
    relayed: Option<Relayed>,
    /// The coordinator's addresses in the order in which they are tried, shuffled once. The way
    /// over another worker is among them while it is up.
    order: Vec<usize>,
    /// Who gave a body, in the order in which they did.
    givers: VecDeque<(SpecHash, NodeId)>,
    seed: u64,
}

/// What is to be fetched, and what its fetch knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) hash: SpecHash,
    /// Whom the coordinator named instead of giving the bytes; empty where it has not.
    pub(super) hinted: &'a [NodeId],
    pub(super) tried: &'a [Source],
}

/// How good a choice a source is; the least is the best.
type Choice = (bool, u8, u32, u32, (usize, u64));

#[derive(Debug, Clone)]
struct Relayed {
    seen: Seen,
    /// Who carries the packets.
    via: String,
}

#[derive(Debug, Clone)]
struct Peer {
    seen: Seen,
    standing: Standing,
}

/// Why a peer is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It stands in the configuration, at this place. It never goes.
    Fixed(usize),
    /// Membership named it last time.
    Member,
    /// Membership does not name it. Either it did and a call has not ended, or the coordinator
    /// said that it has something. It is asked for that alone.
    Passing,
}

#[derive(Debug, Clone)]
struct Seen {
    addr: String,
    answers: u64,
    failures: u64,
    /// Failures since the last answer.
    in_a_row: u32,
    times: VecDeque<Duration>,
    /// Median of `times`; unknown ones are tried before slow ones.
    usual: Duration,
    /// Until then it is asked after the others.
    penalty_until: Time,
    /// Until then it is not asked.
    banned_until: Time,
}

impl Sources {
    pub(super) fn new(config: &Config) -> Self {
        let coordinators = config.coordinators.iter();
        let fixed = config.peers.iter().enumerate().map(|(place, addr)| {
            let peer = Peer {
                seen: Seen::new(addr),
                standing: Standing::Fixed(place),
            };
            (NodeId::of_addr(addr), peer)
        });
        Self {
            coordinators: coordinators.map(|addr| Seen::new(addr)).collect(),
            peers: fixed.collect(),
            relayed: None,
            order: shuffled(config.coordinators.len(), config.seed),
            givers: VecDeque::new(),
            seed: config.seed,
        }
    }

    /// These are the members from now on, at most [`MAX_MEMBERS`]; those beyond it are not known.
    /// What was seen of one that stays is kept. One that went and is `in_use` goes with the next
    /// call of this. Who listens where a fixed peer does is that peer.
    pub(super) fn set_members(&mut self, members: Vec<Neighbour>, in_use: &BTreeSet<NodeId>) {
        for peer in self.peers.values_mut() {
            if peer.standing == Standing::Member {
                peer.standing = Standing::Passing;
            }
        }
        for Neighbour { id, addr } in members.into_iter().take(MAX_MEMBERS) {
            if self.fixed_at(&addr) {
                continue;
            }
            let peer = self.peers.entry(id).or_insert_with(|| Peer {
                seen: Seen::new(&addr),
                standing: Standing::Passing,
            });
            if let Standing::Fixed(_) = peer.standing {
                continue;
            }
            if peer.seen.addr != addr {
                peer.seen = Seen::new(&addr);
            }
            peer.standing = Standing::Member;
        }
        self.make_room(in_use);
    }

    /// The source for a worker that the coordinator named: a fixed peer if one listens there.
    /// `None` if there is no [room](Self::has_room).
    pub(super) fn meet(&mut self, Neighbour { id, addr }: &Neighbour) -> Option<NodeId> {
        if self.fixed_at(addr) {
            return Some(NodeId::of_addr(addr));
        }
        if self.peers.contains_key(id) {
            return Some(*id);
        }
        if !self.has_room() {
            return None;
        }
        let peer = Peer {
            seen: Seen::new(addr),
            standing: Standing::Passing,
        };
        self.peers.insert(*id, peer);
        Some(*id)
    }

    /// Whether one more can be known in passing.
    pub(super) fn has_room(&self) -> bool {
        let passing = |peer: &&Peer| peer.standing == Standing::Passing;
        self.peers.values().filter(passing).count() < MAX_PASSING_PEERS
    }

    /// Lets go of those that are known in passing and not in use.
    pub(super) fn make_room(&mut self, in_use: &BTreeSet<NodeId>) {
        self.peers
            .retain(|id, peer| peer.standing != Standing::Passing || in_use.contains(id));
    }

    /// Where a peer listens that membership does not name.
    pub(super) fn passing_addr(&self, source: Source) -> Option<String> {
        let Source::Peer(id) = source else {
            return None;
        };
        let peer = self.peers.get(&id)?;
        (peer.standing == Standing::Passing).then(|| peer.seen.addr.clone())
    }

    fn fixed_at(&self, addr: &str) -> bool {
        let peer = self.peers.get(&NodeId::of_addr(addr));
        peer.is_some_and(|peer| matches!(peer.standing, Standing::Fixed(_)))
    }

    pub(super) fn hop(&self, source: Source) -> Hop {
        let addr = self.seen(source).map(|seen| seen.addr.clone());
        match source {
            Source::Coordinator(index) => match &self.relayed {
                Some(relayed) if index == self.relayed() => Hop::Relayed {
                    addr: relayed.seen.addr.clone(),
                    via: relayed.via.clone(),
                },
                _ => Hop::Coordinator(addr.unwrap_or_default()),
            },
            Source::Peer(id) => Hop::Peer(addr.unwrap_or_else(|| id.to_string())),
        }
    }

    /// The coordinator address to ask next; `tried` ones are left out. One that could not be
    /// reached a moment ago costs no wait while there is another.
    pub(super) fn next_coordinator(&self, tried: &[usize], now: Time) -> Option<usize> {
        let untried = self.order.iter().filter(|index| !tried.contains(index));
        // The first of those that are alike.
        untried
            .copied()
            .min_by_key(|&index| self.is_penalised(index, now))
    }

    /// Whether it could not be reached a moment ago.
    pub(super) fn is_penalised(&self, coordinator: usize, now: Time) -> bool {
        let seen = self.seen(Source::Coordinator(coordinator));
        seen.is_some_and(|seen| seen.penalty_until > now)
    }

    /// The address after `failed` in the order.
    pub(super) fn coordinator_after(&self, failed: usize) -> Option<usize> {
        let at = self.order.iter().position(|&index| index == failed)?;
        self.order.get((at + 1) % self.order.len()).copied()
    }

    /// The index of the way over another worker, whether there is one or not.
    pub(super) fn relayed(&self) -> usize {
        self.coordinators.len()
    }

    /// Who carries the packets on it.
    pub(super) fn via(&self) -> Option<&str> {
        self.relayed.as_ref().map(|relayed| &*relayed.via)
    }

    /// There is such a way: it is asked first.
    pub(super) fn open_relayed(&mut self, addr: String, via: String) {
        let seen = Seen::new(&addr);
        self.relayed = Some(Relayed { seen, via });
        self.close_relayed();
        self.order.insert(0, self.relayed());
    }

    /// It is gone. What it was is remembered for those who still wait on it.
    pub(super) fn close_relayed(&mut self) {
        let relayed = self.relayed();
        self.order.retain(|&index| index != relayed);
    }

    /// Whom to ask next for a way to the coordinator: the best, those that failed lately or sent
    /// wrong bytes after all others, since a bad carrier costs time alone.
    pub(super) fn next_relay(&self, tried: &[NodeId], now: Time) -> Option<NodeId> {
        if tried.len() >= MAX_RELAYS_PER_ROUND {
            return None;
        }
        let untried = self.askable().filter_map(|source| match source {
            Source::Peer(id) if !tried.contains(&id) => Some((id, source)),
            _ => None,
        });
        untried
            .filter_map(|(id, source)| {
                let seen = self.seen(source)?;
                let bad = seen.banned_until > now || seen.penalty_until > now;
                Some(((bad, seen.in_a_row, seen.usual, self.rank(source)), id))
            })
            .min()
            .map(|(_, id)| id)
    }

    /// A direct address that answered the last time it was asked, the best first.
    pub(super) fn direct(&self, now: Time) -> Option<usize> {
        let relayed = self.relayed();
        let mut direct = self.order.iter().copied().filter(|&index| index != relayed);
        direct.find(|&index| {
            let seen = self.seen(Source::Coordinator(index));
            seen.is_some_and(|seen| {
                seen.answers > 0 && seen.in_a_row == 0 && seen.penalty_until <= now
            })
        })
    }

    /// Whether no coordinator is known.
    pub(super) fn is_alone(&self) -> bool {
        self.coordinators.is_empty()
    }

    /// The usual time of an answer from the coordinator.
    pub(super) fn round_trip(&self, coordinator: usize) -> Duration {
        let seen = self.seen(Source::Coordinator(coordinator));
        seen.map_or(Duration::ZERO, |seen| seen.usual)
    }

    /// It answered, so it is asked first from now on.
    pub(super) fn prefer(&mut self, coordinator: usize) {
        if !self.order.contains(&coordinator) {
            return;
        }
        self.order.retain(|&index| index != coordinator);
        self.order.insert(0, coordinator);
    }

    /// Whom to ask for bytes next. A coordinator that has not failed lately comes first, unless it
    /// named others: then those do, and it comes after them. Among peers it is those that are known to
    /// have the bytes, then those that fail least, then the near ones, then the order that all
    /// workers have for this hash, so that the load is spread and copies are where they are looked
    /// for. Who was [busy](Self::busy) or could not be reached a moment ago is asked after all
    /// others.
    pub(super) fn next_source(&self, wish: &Wish<'_>, now: Time) -> Option<Source> {
        let asked_peers = wish.tried.iter().filter(|source| source.is_peer()).count();
        let coordinators = self.order.iter().map(|&index| Source::Coordinator(index));
        let hinted = wish.hinted.iter().map(|&id| Source::Peer(id));
        let peers = self.askable().chain(hinted);
        let gave = self.givers.iter().filter(|(hash, _)| *hash == wish.hash);
        let givers: Vec<_> = gave.map(|&(_, id)| id).collect();
        coordinators
            .chain(peers.filter(|_| asked_peers < MAX_PEERS_PER_FETCH))
            .filter(|source| !wish.tried.contains(source))
            .filter_map(|source| Some((self.choice(source, wish, &givers, now)?, source)))
            .min()
            .map(|(_, source)| source)
    }

    /// `None` for one that is banned.
    fn choice(
        &self,
        source: Source,
        wish: &Wish<'_>,
        givers: &[NodeId],
        now: Time,
    ) -> Option<Choice> {
        let seen = self.seen(source).filter(|seen| seen.banned_until <= now)?;
        let tier = match source {
            // A path that others share.
            Source::Coordinator(index) if index == self.relayed() => 5,
            Source::Coordinator(_) if wish.hinted.is_empty() => 0,
            Source::Peer(id) if wish.hinted.contains(&id) => 1,
            // It is there, and whoever it did not name may have nothing and cost a handshake.
            Source::Coordinator(_) => 2,
            Source::Peer(id) if givers.contains(&id) => 3,
            Source::Peer(_) => 4,
        };
        // The coordinator named its holders in the order in which it wants them asked.
        let hinted = wish
            .hinted
            .iter()
            .position(|&id| Source::Peer(id) == source);
        let place = match (hinted, source) {
            (Some(place), _) => (place, 0),
            (None, Source::Coordinator(_)) => self.rank(source),
            (None, Source::Peer(id)) => (0, weight(wish.hash, id)),
        };
        let near = match source {
            Source::Coordinator(_) => 0,
            Source::Peer(_) => latency_class(seen.usual),
        };
        let penalised = seen.penalty_until > now;
        Some((penalised, tier, seen.in_a_row, near, place))
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
        let asked_peers = round.iter().filter(|source| source.is_peer()).count();
        let peers = self.askable().filter(|_| asked_peers < MAX_PEERS_PER_ROUND);
        let coordinator = coordinator.map(Source::Coordinator);
        coordinator
            .into_iter()
            .chain(peers)
            .filter(|source| !round.contains(source))
            .filter_map(|source| {
                let seen = self.seen(source).filter(|seen| seen.banned_until <= now)?;
                let penalised = seen.penalty_until > now;
                let turn_is_over = polled.contains(&source);
                let best = (seen.in_a_row, seen.usual, self.rank(source));
                Some(((penalised, source.is_peer(), turn_is_over, best), source))
            })
            .min()
            .map(|(_, source)| source)
    }

    /// Whether this peer is there, and has neither lied nor failed lately.
    pub(super) fn may_ask(&self, source: Source, now: Time) -> bool {
        let is_there = self.askable().any(|peer| peer == source);
        let seen = self.seen(source).filter(|_| is_there);
        seen.is_some_and(|seen| seen.banned_until <= now && seen.penalty_until <= now)
    }

    /// Peers that may be asked.
    pub(super) fn peers(&self) -> usize {
        self.askable().count()
    }

    fn askable(&self) -> impl Iterator<Item = Source> {
        let peers = self.peers.iter();
        let there = peers.filter(|(_, peer)| peer.standing != Standing::Passing);
        there.map(|(&id, _)| Source::Peer(id))
    }

    /// The place of those that are alike otherwise. Each worker has another order of members.
    fn rank(&self, source: Source) -> (usize, u64) {
        match source {
            Source::Coordinator(index) => {
                let found = self.order.iter().position(|&other| other == index);
                (found.unwrap_or(index), 0)
            }
            Source::Peer(id) => match self.peers.get(&id).map(|peer| peer.standing) {
                Some(Standing::Fixed(place)) => (place, 0),
                _ => (usize::MAX, mixed(self.seed ^ word(id.as_bytes()))),
            },
        }
    }

    /// After how long without an answer the next source is asked as well.
    pub(super) fn hedge_after(&self, source: Source) -> Duration {
        let times = self.seen(source).map(|seen| &seen.times);
        let Some(times) = times.filter(|times| times.len() >= ENOUGH) else {
            return HEDGE_DEFAULT;
        };
        let sorted = sorted(times);
        let p95 = sorted.get(sorted.len() * 95 / 100).or(sorted.last());
        p95.map_or(HEDGE_DEFAULT, |&p95| p95.clamp(HEDGE_MIN, HEDGE_MAX))
    }

    /// It gave what was asked. `took` is left out where that says nothing of how far it is.
    pub(super) fn answered(&mut self, source: Source, took: impl Into<Option<Duration>>) {
        let Some(seen) = self.seen_mut(source) else {
            return;
        };
        seen.answers += 1;
        seen.in_a_row = 0;
        seen.penalty_until = Time::default();
        let Some(took) = took.into() else {
            return;
        };
        if seen.times.len() == REMEMBERED {
            seen.times.pop_front();
        }
        seen.times.push_back(took);
        let sorted = sorted(&seen.times);
        seen.usual = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    }

    pub(super) fn failed(&mut self, source: Source, unreachable: bool, now: Time) {
        let Some(seen) = self.seen_mut(source) else {
            return;
        };
        seen.failures += 1;
        seen.in_a_row = seen.in_a_row.saturating_add(1);
        if unreachable {
            seen.penalty_until = now + UNREACHABLE_PENALTY;
        }
    }

    /// It gave a body.
    pub(super) fn gave(&mut self, hash: SpecHash, source: Source) {
        let Source::Peer(id) = source else {
            return;
        };
        if !self.givers.contains(&(hash, id)) {
            self.givers.push_back((hash, id));
        }
        if self.givers.len() > MAX_KNOWN_HOLDERS {
            self.givers.pop_front();
        }
    }

    /// It has too much to do, which is no failure of it: others are asked for a moment.
    pub(super) fn busy(&mut self, source: Source, now: Time) {
        if let Some(seen) = self.seen_mut(source) {
            seen.penalty_until = seen.penalty_until.max(now + BUSY_PAUSE);
        }
    }

    /// It sent wrong bytes. A coordinator is never banned: without it there is no truth.
    pub(super) fn lied(&mut self, source: Source, now: Time) {
        self.failed(source, true, now);
        if source.is_peer()
            && let Some(seen) = self.seen_mut(source)
        {
            seen.banned_until = now + LIAR_BAN;
        }
    }

    /// What is known of each coordinator and fixed peer, and of up to [`MAX_SHOWN`] members that
    /// were asked.
    pub(super) fn info(&self, now: Time) -> Vec<SourceInfo> {
        let coordinators = self.coordinators.iter().enumerate().map(|(index, seen)| {
            let preferred = self.order.first() == Some(&index);
            seen.info(self.hop(Source::Coordinator(index)), preferred, now)
        });
        let relayed = self.relayed();
        let is_up = self.order.contains(&relayed);
        let relayed = self.relayed.as_ref().filter(|_| is_up).map(|way| {
            let preferred = self.order.first() == Some(&relayed);
            way.seen
                .info(self.hop(Source::Coordinator(relayed)), preferred, now)
        });
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(_, peer)| peer.standing);
        let (mut fixed, mut shown) = (Vec::new(), Vec::new());
        for (&id, peer) in peers {
            let info = || peer.seen.info(self.hop(Source::Peer(id)), false, now);
            match peer.standing {
                Standing::Fixed(_) => fixed.push(info()),
                _ if peer.seen.is_new() || shown.len() == MAX_SHOWN => {}
                _ => shown.push(info()),
            }
        }
        coordinators
            .chain(relayed)
            .chain(fixed)
            .chain(shown)
            .collect()
    }

    fn seen(&self, source: Source) -> Option<&Seen> {
        match source {
            Source::Coordinator(index) if index == self.relayed() => {
                self.relayed.as_ref().map(|relayed| &relayed.seen)
            }
            Source::Coordinator(index) => self.coordinators.get(index),
            Source::Peer(id) => self.peers.get(&id).map(|peer| &peer.seen),
        }
    }

    fn seen_mut(&mut self, source: Source) -> Option<&mut Seen> {
        match source {
            Source::Coordinator(index) if index == self.relayed() => {
                self.relayed.as_mut().map(|relayed| &mut relayed.seen)
            }
            Source::Coordinator(index) => self.coordinators.get_mut(index),
            Source::Peer(id) => self.peers.get_mut(&id).map(|peer| &mut peer.seen),
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
            usual: Duration::ZERO,
            penalty_until: Time::default(),
            banned_until: Time::default(),
        }
    }

    const fn is_new(&self) -> bool {
        self.answers == 0 && self.failures == 0
    }

    fn info(&self, hop: Hop, preferred: bool, now: Time) -> SourceInfo {
        let usual = (!self.times.is_empty()).then_some(self.usual);
        let banned = self.banned_until.since(now).as_millis();
        SourceInfo {
            hop,
            answers: self.answers,
            failures: self.failures,
            median_us: usual.and_then(|usual| u64::try_from(usual.as_micros()).ok()),
            banned_ms: u64::try_from(banned).unwrap_or(u64::MAX),
            preferred,
        }
    }
}

fn sorted(times: &VecDeque<Duration>) -> Vec<Duration> {
    let mut sorted: Vec<_> = times.iter().copied().collect();
    sorted.sort_unstable();
    sorted
}

/// The place of a peer in the order that every worker has for this hash; the least is asked first
/// (rendezvous hashing). Both are hashes already, so that mixing them is enough.
pub fn weight(hash: SpecHash, peer: NodeId) -> u64 {
    let (first, second) = peer.as_bytes().split_at(8);
    mixed(mixed(word(hash.as_bytes()) ^ word(first)) ^ word(second))
}

/// The first eight bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().take(8);
    bytes.fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// SplitMix64's finish.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Times below [`NEAR`] are alike, then each class is four times as long as the one before: within
/// one, the spread of the load matters more. Who was never asked counts as near.
fn latency_class(usual: Duration) -> u32 {
    let times = usual.as_micros() / NEAR.as_micros();
    times.checked_ilog(4).map_or(0, |class| class + 1)
}

/// 0..len in an order that `seed` decides (Fisher-Yates over SplitMix64).
fn shuffled(len: usize, mut seed: u64) -> Vec<usize> {
    let mut next = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(seed)
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

    fn peer(index: usize) -> Source {
        Source::Peer(NodeId::of_addr(&format!("p{index}")))
    }

    fn hash() -> SpecHash {
        SpecHash::of(b"bytes")
    }

    /// The next of a fetch without hints.
    fn next(sources: &Sources, tried: &[Source], now: Time) -> Option<Source> {
        let (hash, hinted) = (hash(), &[][..]);
        let wish = Wish {
            hash,
            hinted,
            tried,
        };
        sources.next_source(&wish, now)
    }

    /// All that are asked, in this order.
    fn order(sources: &Sources, hash: SpecHash, hinted: &[NodeId]) -> Vec<Source> {
        let mut tried = Vec::new();
        loop {
            let wish = Wish {
                hash,
                hinted,
                tried: &tried,
            };
            match sources.next_source(&wish, Time::default()) {
                Some(source) => tried.push(source),
                None => return tried,
            }
        }
    }

    fn member(name: &str, addr: &str) -> Neighbour {
        Neighbour {
            id: NodeId::of_addr(name),
            addr: addr.to_owned(),
        }
    }

    #[test]
    fn members_come_and_go_and_what_was_seen_of_one_that_stays_is_kept() {
        let mut sources = sources(0, 1, 0);
        let nobody = BTreeSet::new();
        let (a, b) = (member("a", "a:1"), member("b", "b:1"));
        let source = |member: &Neighbour| Source::Peer(member.id);
        // Whoever listens where a fixed peer does counts once.
        let same = member("same", "p0");
        sources.set_members(vec![a.clone(), b.clone(), same.clone()], &nobody);
        assert_eq!(sources.peers(), 3);
        sources.answered(source(&a), Duration::from_millis(7));
        sources.set_members(vec![a.clone()], &BTreeSet::from([b.id]));
        assert_eq!(sources.peers(), 2);
        assert_eq!(sources.hop(source(&b)), Hop::Peer("b:1".into()));
        let answers = |sources: &Sources| sources.info(Time::default())[1].answers;
        assert_eq!(answers(&sources), 1);
        sources.set_members(Vec::new(), &nobody);
        assert_eq!(sources.peers.len(), 1, "what nobody uses is gone");
        assert_eq!(next(&sources, &[], Time::default()), Some(peer(0)));
        sources.answered(source(&a), Duration::ZERO);
        sources.lied(source(&b), Time::default());
        assert_eq!(sources.peers.len(), 1, "late news of it change nothing");
    }

    #[test]
    fn no_more_members_are_known_than_may_be() {
        let mut sources = sources(0, 0, 0);
        let members = (0..MAX_MEMBERS + 9).map(|n| member(&format!("m{n}"), "m:1"));
        sources.set_members(members.collect(), &BTreeSet::new());
        assert_eq!(sources.peers(), MAX_MEMBERS);
    }

    #[test]
    fn the_order_depends_on_the_seed_and_holds_each_address_once() {
        let orders: Vec<_> = (0..50).map(|seed| shuffled(4, seed)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        let firsts: BTreeSet<_> = orders.iter().map(|order| order[0]).collect();
        assert_eq!(firsts.len(), 4, "every address is first for some worker");
    }

    #[test]
    fn an_unreachable_coordinator_comes_after_the_peers_for_a_while() {
        let mut sources = sources(1, 2, 0);
        let now = Time::default();
        assert_eq!(next(&sources, &[], now), Some(Source::Coordinator(0)));
        sources.failed(Source::Coordinator(0), true, now);
        assert!(matches!(next(&sources, &[], now), Some(Source::Peer(_))));
        let later = now + UNREACHABLE_PENALTY;
        assert_eq!(next(&sources, &[], later), Some(Source::Coordinator(0)));
    }

    #[test]
    fn the_quicker_peer_is_asked_first_and_a_liar_not_at_all() {
        let mut sources = sources(0, 3, 0);
        let now = Time::default();
        for _ in 0..3 {
            sources.answered(peer(0), NEAR * 16);
            sources.answered(peer(1), NEAR);
            sources.answered(peer(2), NEAR * 4);
        }
        assert_eq!(next(&sources, &[], now), Some(peer(1)));
        sources.lied(peer(1), now);
        assert_eq!(next(&sources, &[], now), Some(peer(2)));
        let tried = [peer(0), peer(2)];
        assert_eq!(next(&sources, &tried, now), None);
        let after_ban = now + LIAR_BAN;
        assert_eq!(next(&sources, &tried, after_ban), Some(peer(1)));
    }

    #[test]
    fn peers_that_are_alike_are_asked_in_an_order_that_all_workers_share_for_a_hash() {
        let names: Vec<_> = (0..40).map(|n| format!("m{n}")).collect();
        let members = || names.iter().map(|name| member(name, name)).collect();
        let nobody = BTreeSet::new();
        let (mut one, mut other) = (sources(0, 1, 1), sources(0, 1, 2));
        one.set_members(members(), &nobody);
        other.set_members(members(), &nobody);
        let mut first = BTreeMap::new();
        for n in 0..4_100_u32 {
            let hash = SpecHash::of(&n.to_be_bytes());
            let asked = order(&one, hash, &[]);
            assert_eq!(asked, order(&other, hash, &[]));
            *first.entry(asked[0]).or_insert(0) += 1;
        }
        assert_eq!(first.len(), 41, "the fixed one is among them");
        let most = first.values().max();
        assert!(most < Some(&160), "100 each, give or take: {first:?}");
    }

    #[test]
    fn far_peers_and_those_that_fail_come_after_the_others() {
        let mut sources = sources(0, 3, 0);
        let [best, second, third] = order(&sources, hash(), &[])[..] else {
            panic!("three peers");
        };
        // As near as the others, for all that this says of the load.
        sources.answered(best, NEAR / 2);
        sources.answered(second, NEAR / 9);
        assert_eq!(order(&sources, hash(), &[])[0], best);
        sources.answered(best, NEAR * 4);
        assert_eq!(order(&sources, hash(), &[]), [second, third, best]);
        sources.failed(second, false, Time::default());
        assert_eq!(order(&sources, hash(), &[]), [third, best, second]);
        sources.busy(third, Time::default());
        assert_eq!(order(&sources, hash(), &[]), [best, second, third]);
        let after = Time::default() + BUSY_PAUSE;
        assert_eq!(next(&sources, &[], after), Some(third));
        assert_eq!(
            sources.info(after)[0].failures,
            u64::from(peer(0) == second)
        );
    }

    #[test]
    fn who_was_named_is_asked_first_and_then_the_coordinator_before_other_peers() {
        let mut sources = sources(1, 4, 0);
        let coordinator = Source::Coordinator(0);
        let plain = order(&sources, hash(), &[]);
        assert_eq!((plain[0], plain.len()), (coordinator, 4));
        let named = member("stranger", "s:1");
        let stranger = sources.meet(&named).expect("room");
        let fixed = sources.meet(&member("w", "p3"));
        let Source::Peer(last) = peer(3) else {
            panic!("a peer");
        };
        assert_eq!(fixed, Some(last), "it is known by its address");
        let asked = order(&sources, hash(), &[stranger, last]);
        assert_eq!(asked[..2], [Source::Peer(stranger), peer(3)]);
        assert_eq!((asked[2], asked.len()), (coordinator, 4));
        assert!(!plain.contains(&Source::Peer(stranger)));
        sources.failed(Source::Peer(stranger), true, Time::default());
        let asked = order(&sources, hash(), &[stranger, last]);
        assert_eq!(asked[0], peer(3), "unless it could not be reached");
        // Who gave these bytes before has them.
        let giver = *plain
            .iter()
            .rfind(|s| **s != peer(3))
            .expect("three others");
        sources.gave(hash(), giver);
        assert_eq!(order(&sources, hash(), &[])[1], giver);
        assert_eq!(order(&sources, hash(), &[last])[1..3], [coordinator, giver]);
    }

    #[test]
    fn only_so_many_strangers_are_known() {
        let mut sources = sources(0, 0, 0);
        let stranger = |n: usize| member(&format!("s{n}"), "s:1");
        let all: BTreeSet<_> = (0..MAX_PASSING_PEERS).map(|n| stranger(n).id).collect();
        for n in 0..MAX_PASSING_PEERS {
            assert!(sources.meet(&stranger(n)).is_some());
        }
        let next = stranger(MAX_PASSING_PEERS);
        sources.make_room(&all);
        assert_eq!(sources.meet(&next), None);
        sources.make_room(&BTreeSet::from([stranger(0).id]));
        assert_eq!(sources.meet(&next), Some(next.id));
        assert_eq!(sources.peers.len(), 2);
        assert_eq!(sources.peers(), 0, "nobody else is told to ask them");
    }

    #[test]
    fn at_most_three_peers_are_asked() {
        let sources = sources(0, 9, 0);
        let mut tried = Vec::new();
        while let Some(source) = next(&sources, &tried, Time::default()) {
            tried.push(source);
        }
        assert_eq!(tried.len(), MAX_PEERS_PER_FETCH);
    }

    #[test]
    fn the_hedge_follows_the_usual_p95_within_its_bounds() {
        let mut sources = sources(0, 1, 0);
        let peer = peer(0);
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
