//! A cluster that only gossips, in virtual time: how long news takes, and what it costs.
//!
//! Datagrams take 10 to 30 ms and are lost at random; the first one between two nodes waits for a
//! dial, and streams arrive late rather than never. A cut separates the first half of the nodes
//! from the second.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::random::Random;
use crate::catalog::{
    CatalogId, Epoch, Head, HeadHash, HeadKey, PinnedKey, Revision, StateRoot, VerifiedHead,
};
use crate::codec::Writer;
use crate::identity::{NodeId, NodeUri, Role};
use crate::proto::Time;
use crate::proto::gossip::{Config, Counters, Gossip, Input, Member, Output, Remembered};
use crate::proto::limit::{MAX_GOSSIP_QUEUE, MEMBERS_PER_PART};

/// How long a packet takes.
const LATENCY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(30));

/// A packet of a dial or a stream that was lost is sent again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// A connection without a packet for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// A cluster.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// How many; all of them start within a second and join by the first.
    pub nodes: usize,
    /// Datagrams of a hundred that are lost.
    pub loss_percent: u32,
}

/// What a stretch of time cost, for a node and a second of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Datagrams sent.
    pub datagrams: f64,
    /// Bytes of them, without what QUIC and IP add.
    pub bytes: f64,
    /// Bytes of lists on streams.
    pub stream_bytes: f64,
}

/// Nodes, and what is on its way between them.
pub struct Cluster {
    plan: Plan,
    nodes: Vec<Gossip>,
    ids: BTreeMap<NodeId, usize>,
    random: Random,
    now: Time,
    seq: u64,
    events: BTreeMap<(Time, u64), Event>,
    wakes: BTreeSet<(Time, usize)>,
    wake_of: Vec<Option<Time>>,
    /// When two nodes last heard of each other over their connection; in the future while it is
    /// being dialled, with the packets that wait for it.
    links: BTreeMap<(usize, usize), Link>,
    is_cut: bool,
    heads: Vec<u64>,
    handshakes: u64,
    sent: Sent,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    used: Time,
    waiting: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    datagrams: u64,
    bytes: u64,
    stream_bytes: u64,
}

#[derive(Debug)]
enum Event {
    Start(usize),
    Connected(usize, usize),
    Reached(usize, usize),
    Datagram(usize, usize, Vec<u8>),
    Ask(usize, usize),
    Part(usize, usize, Vec<u8>),
}

impl Cluster {
    /// Nodes that are about to start.
    pub fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let pinned = key().pinned();
        let nodes: Vec<Gossip> = (0..plan.nodes)
            .map(|n| node(n, &mut random, pinned))
            .collect();
        let ids = (0..plan.nodes).map(|n| (id(n), n)).collect();
        let mut cluster = Self {
            plan,
            nodes,
            ids,
            random,
            now: Time::from_micros(1),
            seq: 0,
            events: BTreeMap::new(),
            wakes: BTreeSet::new(),
            wake_of: vec![None; plan.nodes],
            links: BTreeMap::new(),
            is_cut: false,
            heads: vec![0; plan.nodes],
            handshakes: 0,
            sent: Sent::default(),
        };
        for n in 0..plan.nodes {
            let after = cluster
                .random
                .span((Duration::ZERO, Duration::from_secs(1)));
            cluster.push(after, Event::Start(n));
        }
        cluster
    }

    /// Nodes that know each other already, as after they have run for long: finding each other is
    /// what takes most of the time of a large cluster.
    pub fn that_knows_itself(plan: Plan) -> Self {
        let mut cluster = Self::new(plan);
        // All have started, and nothing of what they said at that has arrived.
        cluster.events.clear();
        let lists = lists(plan.nodes);
        for n in 0..plan.nodes {
            cluster.input(n, Input::Start);
            for (part, bytes) in lists.iter().enumerate() {
                // In the name of as many others, since nobody may send so many at once.
                let from = id((n + 1 + part) % plan.nodes);
                cluster.input(n, Input::Part { from, bytes });
            }
        }
        cluster.events.clear();
        cluster
    }

    /// Handshakes for each node since the start.
    pub fn handshakes(&self) -> f64 {
        // There are two at each.
        2.0 * self.handshakes as f64 / self.plan.nodes as f64
    }

    /// How many members the node with the fewest lists.
    pub fn fewest_members(&self) -> usize {
        let counts = self.nodes.iter().map(|node| node.members().count());
        counts.min().unwrap_or_default()
    }

    /// Runs until every node lists every other, and says how long that took; `None` if it took
    /// longer than `within`.
    pub fn until_all_know_all(&mut self, within: Duration) -> Option<Duration> {
        let all = self.plan.nodes - 1;
        self.until(within, |cluster| {
            cluster
                .nodes
                .iter()
                .all(|node| node.members().count() == all)
        })
    }

    /// Runs until every node has this revision's head.
    pub fn until_all_have(&mut self, rev: u64, within: Duration) -> Option<Duration> {
        self.until(within, |cluster| {
            cluster.heads.iter().all(|head| *head >= rev)
        })
    }

    /// Runs for a while, and says what it cost.
    pub fn run(&mut self, time: Duration) -> Cost {
        let before = self.sent;
        self.until(time, |_| false);
        let per = |count: u64| count as f64 / self.plan.nodes as f64 / time.as_secs_f64();
        Cost {
            datagrams: per(self.sent.datagrams - before.datagrams),
            bytes: per(self.sent.bytes - before.bytes),
            stream_bytes: per(self.sent.stream_bytes - before.stream_bytes),
        }
    }

    /// A node learns of a head from the coordinator.
    pub fn publish(&mut self, at: usize, rev: u64) {
        self.heads[at] = rev;
        self.input(at, Input::Head(Box::new(head(rev))));
    }

    /// Separates the two halves, or joins them again.
    pub fn cut(&mut self, is_cut: bool) {
        self.is_cut = is_cut;
        let half = self.plan.nodes / 2;
        self.links.retain(|(a, b), _| (*a < half) == (*b < half));
    }

    /// Runs until no node lists one of the other half.
    pub fn until_halves_are_apart(&mut self, within: Duration) -> Option<Duration> {
        self.until(within, |cluster| cluster.seen_over_the_cut() == 0)
    }

    /// The most members that any node lists of the other half.
    fn seen_over_the_cut(&self) -> usize {
        let half = self.plan.nodes / 2;
        let over = |n: usize| {
            let other = |member: &&Member| (self.ids[&member.id] < half) != (n < half);
            self.nodes[n].members().filter(other).count()
        };
        (0..self.plan.nodes).map(over).max().unwrap_or_default()
    }

    /// What a node dropped.
    pub fn counters(&self, n: usize) -> Counters {
        self.nodes[n].counters()
    }

    fn until(&mut self, within: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        const LOOK_EVERY: Duration = Duration::from_millis(50);
        let start = self.now;
        let end = start + within;
        let mut look = start;
        while self.now < end {
            if self.now >= look {
                if done(self) {
                    return Some(self.now.since(start));
                }
                look = self.now + LOOK_EVERY;
            }
            self.step(look.min(end));
        }
        done(self).then(|| self.now.since(start))
    }

    /// One event, or none before `end`.
    fn step(&mut self, end: Time) {
        let wake = self.wakes.first().copied();
        let event = self.events.first_key_value().map(|(at, _)| at.0);
        let next = wake.map(|(at, _)| at).into_iter().chain(event).min();
        let Some(next) = next.filter(|next| *next <= end) else {
            self.now = end;
            return;
        };
        self.now = self.now.max(next);
        if event == Some(next) {
            if let Some((_, event)) = self.events.pop_first() {
                self.event(event);
            }
        } else if let Some((_, n)) = wake {
            self.input(n, Input::Tick);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Start(n) => self.input(n, Input::Start),
            Event::Connected(at, with) => {
                if let Some(link) = self.links.get_mut(&pair(at, with)) {
                    link.waiting = 0;
                }
                if self.may_pass(at, with) {
                    let (node, addr) = (id(with), addr(with));
                    self.input(at, Input::Connected { node, addr });
                }
            }
            Event::Reached(at, who) => {
                if self.may_pass(at, who) {
                    let (node, addr) = (id(who), addr(who));
                    let input = Input::Reached {
                        seed: &addr.to_string(),
                        node,
                        addr: Some(addr),
                        others: &[],
                    };
                    self.input(at, input);
                }
            }
            Event::Datagram(from, to, bytes) => {
                if self.may_pass(from, to) {
                    let from = id(from);
                    self.input(
                        to,
                        Input::Datagram {
                            from,
                            bytes: &bytes,
                        },
                    );
                }
            }
            Event::Ask(from, to) => {
                if self.may_pass(from, to) {
                    for part in self.nodes[to].parts() {
                        self.sent.stream_bytes += part.len() as u64;
                        let after = self.reliable();
                        self.push(after, Event::Part(to, from, part));
                    }
                }
            }
            Event::Part(from, to, bytes) => {
                if self.may_pass(from, to) {
                    let from = id(from);
                    self.input(
                        to,
                        Input::Part {
                            from,
                            bytes: &bytes,
                        },
                    );
                }
            }
        }
    }

    fn input(&mut self, n: usize, input: Input<'_>) {
        let out = self.nodes[n].handle(input, self.now);
        for output in out {
            self.output(n, output);
        }
        let next = self.nodes[n].next_wake();
        if next != self.wake_of[n] {
            if let Some(before) = self.wake_of[n] {
                self.wakes.remove(&(before, n));
            }
            self.wakes.extend(next.map(|at| (at, n)));
            self.wake_of[n] = next;
        }
    }

    fn output(&mut self, n: usize, output: Output) {
        match output {
            Output::Send { to, bytes } => {
                if let Some(&other) = self.ids.get(&to.id).filter(|other| **other != n) {
                    self.send(n, other, bytes);
                }
            }
            Output::Reach(at) => {
                let who = (0..self.plan.nodes).find(|n| addr(*n).to_string() == at);
                if let Some(who) = who.filter(|who| *who != n) {
                    let after = self.connect(n, who) + self.reliable();
                    self.push(after, Event::Reached(n, who));
                }
            }
            Output::SyncWith(member) => {
                if let Some(&other) = self.ids.get(&member.id) {
                    let after = self.connect(n, other) + self.reliable();
                    self.push(after, Event::Ask(n, other));
                }
            }
            Output::Head { head, .. } => self.heads[n] = self.heads[n].max(head.head().rev.get()),
            _ => {}
        }
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let wait = self.connect(from, to);
        if wait > Duration::ZERO {
            let waiting = self.links.get_mut(&pair(from, to));
            if let Some(link) = waiting {
                link.waiting += 1;
                if link.waiting > MAX_GOSSIP_QUEUE {
                    return;
                }
            }
        }
        self.sent.datagrams += 1;
        self.sent.bytes += bytes.len() as u64;
        if self.random.percent(self.plan.loss_percent) {
            return;
        }
        let after = wait + self.random.span(LATENCY);
        self.push(after, Event::Datagram(from, to, bytes));
    }

    /// How long it takes until the two are connected.
    fn connect(&mut self, a: usize, b: usize) -> Duration {
        let key = pair(a, b);
        if let Some(link) = self.links.get_mut(&key)
            && self.now.since(link.used) < IDLE
        {
            let wait = link.used.since(self.now);
            link.used = link.used.max(self.now);
            return wait;
        }
        if !self.may_pass(a, b) {
            return Duration::ZERO;
        }
        let takes = self.reliable() + self.reliable() + self.reliable();
        let link = Link {
            used: self.now + takes,
            waiting: 0,
        };
        self.links.insert(key, link);
        self.handshakes += 1;
        self.push(takes, Event::Connected(a, b));
        self.push(takes, Event::Connected(b, a));
        takes
    }

    /// How long a packet takes that is sent again until it arrives.
    fn reliable(&mut self) -> Duration {
        let mut takes = self.random.span(LATENCY);
        while self.random.percent(self.plan.loss_percent) {
            takes += AGAIN;
        }
        takes
    }

    fn may_pass(&self, a: usize, b: usize) -> bool {
        let half = self.plan.nodes / 2;
        !self.is_cut || (a < half) == (b < half)
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.seq += 1;
        self.events.insert((self.now + after, self.seq), event);
    }
}

fn node(n: usize, random: &mut Random, pinned: PinnedKey) -> Gossip {
    let mut seed = [0; 32];
    for chunk in seed.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_be_bytes());
    }
    let config = Config {
        id: id(n),
        addr: addr(n),
        seeds: vec![addr(0).to_string()],
        remembered: Remembered::default(),
        seed,
    };
    Gossip::new(config, Arc::new(pinned))
}

/// The list of a node that knows all of them, in parts.
fn lists(nodes: usize) -> Vec<Vec<u8>> {
    let all: Vec<usize> = (0..nodes).collect();
    let part = |some: &[usize]| {
        let mut w = Writer::new();
        w.u16(0);
        for &n in some {
            Member::new(id(n), addr(n), 1).write(&mut w);
            // Incarnation, and alive.
            w.u16(0).u8(0);
        }
        w.finish()
    };
    all.chunks(MEMBERS_PER_PART).map(part).collect()
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn id(n: usize) -> NodeId {
    let uri = NodeUri::new("sim", Role::Worker, &format!("w{n}"));
    uri.expect("letters and digits").id()
}

fn addr(n: usize) -> SocketAddr {
    let [.., high, low] = (n as u32).to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 4433))
}

fn key() -> HeadKey {
    HeadKey::from_bytes([7; 32])
}

fn head(rev: u64) -> VerifiedHead {
    let head = Head {
        catalog: CatalogId::from_bytes([1; 16]),
        epoch: Epoch::new(1),
        rev: Revision::new(rev),
        root: StateRoot::from_bytes([rev as u8; 32]),
        prev: HeadHash::NONE,
    };
    let signed = head.sign(&key());
    signed.verify(&key().pinned()).expect("our own signature")
}
