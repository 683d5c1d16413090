//! Machines that talk to each other without a network: what one sends the other has at once.

mod health;
mod near;

use std::collections::VecDeque;

use foca::{Header, Message};
use proptest::prelude::*;

use super::member::Packet;
use super::*;
use crate::catalog::{CatalogId, Epoch, Head, HeadHash, HeadKey, Revision, SignedHead, StateRoot};
use crate::identity::{NodeUri, Role};
use crate::proto::limit::{
    LEAF_LINKS, MAX_ANNOUNCE_BACKOFF, MAX_GOSSIP_BURST, MAX_HEARD_GENERATION,
};

/// Outputs that one event may cause before it counts as a storm.
const STORM: usize = 5_000;

fn id(n: usize) -> NodeId {
    let uri = NodeUri::new("c", Role::Worker, &format!("w{n}"));
    uri.expect("a good name").id()
}

fn addr(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8 + 1], 4433))
}

fn key() -> HeadKey {
    HeadKey::from_bytes([7; 32])
}

fn head(rev: u64, root: u8, key: &HeadKey) -> SignedHead {
    let head = Head {
        catalog: CatalogId::from_bytes([1; 16]),
        epoch: Epoch::new(1),
        rev: Revision::new(rev),
        root: StateRoot::from_bytes([root; 32]),
        prev: HeadHash::NONE,
    };
    head.sign(key)
}

fn verified(rev: u64) -> VerifiedHead {
    let signed = head(rev, 0, &key());
    signed.verify(&key().pinned()).expect("our own signature")
}

fn machine(n: usize, generation: u64, seeds: &[usize], members: Vec<Member>) -> Gossip {
    let config = Config {
        id: id(n),
        addr: addr(n),
        seeds: seeds.iter().map(|n| addr(*n).to_string()).collect(),
        remembered: Remembered {
            generation: generation - 1,
            members,
        },
        seed: [n as u8; 32],
    };
    Gossip::new(config, Arc::new(key().pinned()))
}

struct Net {
    nodes: Vec<Gossip>,
    /// Nodes that nothing reaches and that reach nobody.
    dead: BTreeSet<usize>,
    now: Time,
    /// How late the first node is woken each time.
    late: Duration,
    sent: u64,
    /// Probes that the first node has sent.
    probes: u64,
    log: Vec<String>,
    heads: Vec<(usize, u64)>,
    pairs: Vec<usize>,
}

impl Net {
    /// Everyone joins by the first.
    fn new(count: usize) -> Self {
        let mut net = Self {
            nodes: (0..count)
                .map(|n| machine(n, 1, &[0], Vec::new()))
                .collect(),
            dead: BTreeSet::new(),
            now: Time::from_micros(1),
            late: Duration::ZERO,
            sent: 0,
            probes: 0,
            log: Vec::new(),
            heads: Vec::new(),
            pairs: Vec::new(),
        };
        for n in 0..count {
            net.input(n, Input::Start);
        }
        net
    }

    fn input(&mut self, n: usize, input: Input<'_>) {
        let out = self.nodes[n].handle(input, self.now);
        let mut queue: VecDeque<(usize, Output)> = out.into_iter().map(|o| (n, o)).collect();
        let mut steps = 0;
        while let Some((from, output)) = queue.pop_front() {
            steps += 1;
            assert!(steps < STORM, "a storm");
            self.log.push(format!("{from} {output:?}"));
            for (n, output) in self.carry(from, output) {
                queue.push_back((n, output));
            }
        }
    }

    fn carry(&mut self, from: usize, output: Output) -> Vec<(usize, Output)> {
        let source = id(from);
        let there = |n: usize| !self.dead.contains(&n) && !self.dead.contains(&from);
        let node = |wanted: NodeId| (0..self.nodes.len()).find(|n| id(*n) == wanted && there(*n));
        let listener =
            |at: &str| (0..self.nodes.len()).find(|n| addr(*n).to_string() == at && there(*n));
        let (n, out) = match output {
            Output::Send { to, bytes } => {
                self.sent += 1;
                assert!(bytes.len() <= MAX_GOSSIP_PACKET);
                let is_probe = matches!(message(&bytes), Some(Message::Ping(_)));
                self.probes += u64::from(from == 0 && is_probe);
                // Whoever is at a wrong address has another certificate.
                let Some(n) = node(to.id).filter(|n| addr(*n) == to.addr) else {
                    return Vec::new();
                };
                let input = Input::Datagram {
                    from: source,
                    bytes: &bytes,
                };
                (n, self.nodes[n].handle(input, self.now))
            }
            Output::Reach(at) => {
                let Some(n) = listener(&at) else {
                    return Vec::new();
                };
                let input = Input::Reached {
                    seed: &at,
                    node: id(n),
                    addr: Some(addr(n)),
                    others: &[],
                };
                (from, self.nodes[from].handle(input, self.now))
            }
            Output::Tell { to, bytes } => {
                let Some(n) = node(to) else {
                    return Vec::new();
                };
                let input = Input::Datagram {
                    from: source,
                    bytes: &bytes,
                };
                (n, self.nodes[n].handle(input, self.now))
            }
            Output::Attach(to) => {
                let found = node(to.id).filter(|n| addr(*n) == to.addr);
                let mut out = Vec::new();
                if let Some(n) = found {
                    let input = Input::Leaf {
                        node: source,
                        there: true,
                    };
                    let told = self.nodes[n].handle(input, self.now);
                    out.extend(told.into_iter().map(|output| (n, output)));
                }
                let input = Input::Attached {
                    node: to.id,
                    there: found.is_some(),
                };
                let told = self.nodes[from].handle(input, self.now);
                out.extend(told.into_iter().map(|output| (from, output)));
                return out;
            }
            Output::SyncWith(member) => {
                let Some(n) = node(member.id) else {
                    return Vec::new();
                };
                let mut out = Vec::new();
                for bytes in self.nodes[n].parts() {
                    let input = Input::Part {
                        from: member.id,
                        bytes: &bytes,
                    };
                    out.extend(self.nodes[from].handle(input, self.now));
                }
                (from, out)
            }
            Output::Head { head, .. } => {
                self.heads.push((from, head.head().rev.get()));
                return Vec::new();
            }
            Output::Equivocation(_) => {
                self.pairs.push(from);
                return Vec::new();
            }
            _ => return Vec::new(),
        };
        out.into_iter().map(|output| (n, output)).collect()
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let awake = (0..self.nodes.len()).filter(|n| !self.dead.contains(n));
            let wake = awake.filter_map(|n| Some((self.wake_of(n)?, n))).min();
            let Some((at, n)) = wake.filter(|(at, _)| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.input(n, Input::Tick);
        }
        self.now = end;
    }

    fn wake_of(&self, n: usize) -> Option<Time> {
        let late = if n == 0 { self.late } else { Duration::ZERO };
        Some(self.nodes[n].next_wake()? + late)
    }

    fn sees(&self, n: usize, other: usize) -> Option<u64> {
        let mut members = self.nodes[n].members();
        let member = members.find(|member| member.id == id(other))?;
        Some(member.generation)
    }

    /// What `from` says to `to`: that a member is alive in this generation.
    fn lie(&self, from: usize, to: usize, update: Update) -> Vec<u8> {
        let packet = Packet {
            header: Header {
                src: self.nodes[from].own(),
                src_incarnation: 0,
                dst: self.nodes[to].own(),
                message: Message::Gossip,
            },
            updates: vec![update],
            items: Vec::new(),
            len: 0,
        };
        [&[MEMBERSHIP][..], &packet.to_bytes()].concat()
    }

    fn told(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let from = id(from);
        self.input(to, Input::Datagram { from, bytes });
    }
}

/// What kind of packet a datagram of the membership is.
fn message(bytes: &[u8]) -> Option<Message<Member>> {
    let (&MEMBERSHIP, packet) = bytes.split_first()? else {
        return None;
    };
    let packet = Packet::read(packet).expect("our own packet");
    Some(packet.header.message)
}

fn items(of: &[Item]) -> Vec<u8> {
    let mut w = Writer::new();
    w.u8(HEADS).u8(IS_ANSWER);
    of.iter()
        .for_each(|item| write_item(&item.to_bytes(), &mut w));
    w.finish()
}

#[test]
fn nodes_that_join_by_one_address_all_find_each_other() {
    let mut net = Net::new(8);
    net.run(Duration::from_secs(70));
    for n in 0..8 {
        assert_eq!(net.nodes[n].members().count(), 7, "node {n}");
        assert_eq!(net.nodes[n].counters().malformed, 0);
        assert_eq!(net.nodes[n].counters().refused, 0);
    }
}

#[test]
fn a_node_whose_seed_is_late_announces_itself_until_it_is_answered() {
    let mut net = Net::new(2);
    net.dead.insert(0);
    net.nodes[1] = machine(1, 2, &[0], Vec::new());
    net.input(1, Input::Start);
    net.run(Duration::from_secs(120));
    assert_eq!(net.sees(1, 0), None);
    // It knows nobody, so it is for the other to find it.
    net.nodes[0] = machine(0, 2, &[], Vec::new());
    net.dead.clear();
    net.input(0, Input::Start);
    net.run(MAX_ANNOUNCE_BACKOFF);
    assert_eq!(net.sees(1, 0), Some(2));
    assert_eq!(net.sees(0, 1), Some(2));
}

#[test]
fn without_its_seed_a_node_finds_the_others_by_what_it_remembered() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(70));
    let members: Vec<Member> = net.nodes[2].members().copied().collect();
    net.dead.insert(0);
    net.nodes[2] = machine(2, 2, &[0], members);
    net.input(2, Input::Start);
    net.run(Duration::from_secs(5));
    assert_eq!(net.sees(2, 1), Some(1));
    assert_eq!(net.sees(1, 2), Some(2), "in its new life");
}

#[test]
fn who_leaves_is_gone_at_once_and_who_dies_within_seconds() {
    let mut net = Net::new(4);
    net.run(Duration::from_secs(70));
    net.input(3, Input::Leave);
    assert!((0..3).all(|n| net.sees(n, 3).is_none()));
    net.dead.insert(2);
    net.run(Duration::from_secs(20));
    assert!((0..2).all(|n| net.sees(n, 2).is_none()));
    assert_eq!(net.sees(0, 1), Some(1));
}

#[test]
fn a_packet_whose_source_is_not_at_the_other_end_is_dropped() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(70));
    let bytes = net.lie(1, 0, Update::down(net.nodes[2].own()));
    net.told(2, 0, &bytes);
    assert_eq!(net.nodes[0].counters().forged, 1);
    assert_eq!(net.sees(0, 2), Some(1));
    // The same from whom it says it is from has an effect.
    net.told(1, 0, &bytes);
    assert_eq!(net.sees(0, 2), None);
}

/// Someone says that a member lives in a later life than it does. It then has to overtake that,
/// and does it in one step and not at wire speed; what nobody could overtake is not believed.
#[test]
fn no_word_about_a_generation_makes_a_node_renew_itself_for_ever() {
    for lie in [50, MAX_HEARD_GENERATION, MAX_HEARD_GENERATION + 1, u64::MAX] {
        let mut net = Net::new(3);
        net.run(Duration::from_secs(70));
        let quiet = {
            let before = net.sent;
            net.run(Duration::from_secs(60));
            net.sent - before
        };
        let before = net.sent;
        for _ in 0..20 {
            let false_life = Member::new(id(0), addr(0), lie);
            for n in [0, 1] {
                let bytes = net.lie(2, n, Update::alive(false_life));
                net.told(2, n, &bytes);
            }
            net.run(Duration::from_secs(3));
        }
        let sent = net.sent - before;
        assert!(
            sent < 2 * quiet + 500,
            "{lie}: {sent} packets, {quiet} when quiet"
        );
        let renewals = net.nodes[0].counters().renewals;
        assert!(renewals <= 3, "{lie}: {renewals} renewals");
        net.run(Duration::from_secs(60));
        let own = net.nodes[0].own().generation;
        assert_eq!(net.sees(1, 0), Some(own), "{lie}");
        let too_new = net.nodes[1].counters().too_new > 0;
        assert_eq!(too_new, lie > MAX_HEARD_GENERATION, "{lie}");
    }
}

#[test]
fn a_node_that_is_declared_dead_again_and_again_renews_more_and_more_slowly() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(70));
    for _ in 0..600 {
        let bytes = net.lie(2, 0, Update::down(net.nodes[0].own()));
        net.told(2, 0, &bytes);
        net.run(Duration::from_millis(100));
    }
    let renewals = net.nodes[0].counters().renewals;
    assert!((3..=8).contains(&renewals), "{renewals} in a minute");
}

#[test]
fn a_member_that_floods_is_throttled_and_the_others_are_not() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(70));
    let bytes = net.lie(2, 0, Update::alive(net.nodes[1].own()));
    for _ in 0..1_000 {
        net.told(2, 0, &bytes);
    }
    let throttled = net.nodes[0].counters().throttled;
    assert!(
        throttled >= 1_000 - u64::from(MAX_GOSSIP_BURST),
        "{throttled}"
    );
    let bytes = net.lie(1, 0, Update::alive(net.nodes[2].own()));
    net.told(1, 0, &bytes);
    assert_eq!(net.nodes[0].counters().throttled, throttled);
    net.run(Duration::from_secs(30));
    assert_eq!(net.sees(0, 2), Some(1), "and it stays a member");
}

#[test]
fn a_member_whose_certificate_is_refused_is_gone_and_does_not_come_back() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(70));
    net.input(0, Input::Barred([id(2)].into()));
    assert_eq!(net.sees(0, 2), None);
    net.run(Duration::from_secs(120));
    assert_eq!(
        net.sees(0, 2),
        None,
        "although the others may still believe it"
    );
    assert_eq!(net.sees(0, 1), Some(1));
    net.input(0, Input::Barred(BTreeSet::new()));
    net.run(Duration::from_secs(120));
    assert!(net.sees(0, 2).is_some(), "until it is good again");
}

#[test]
fn a_head_reaches_all_at_once_and_an_older_one_nobody() {
    let mut net = Net::new(6);
    net.run(Duration::from_secs(70));
    net.input(0, Input::Head(Box::new(verified(5))));
    net.run(Duration::from_secs(2));
    let mut knowing: Vec<usize> = net.heads.iter().map(|(n, _)| *n).collect();
    knowing.sort_unstable();
    assert_eq!(
        knowing,
        [1, 2, 3, 4, 5],
        "each once, and not whoever said it"
    );
    net.heads.clear();
    net.input(3, Input::Head(Box::new(verified(4))));
    net.run(Duration::from_secs(60));
    assert_eq!(net.heads, []);
}

#[test]
fn a_head_that_no_pinned_key_signed_is_neither_kept_nor_spread() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(70));
    let forged = head(9, 0, &HeadKey::from_bytes([8; 32]));
    net.told(1, 0, &items(&[Item::Head(forged)]));
    net.run(Duration::from_secs(60));
    assert_eq!(net.heads, []);
    assert_eq!(net.nodes[0].counters().unsigned, 1);
    let known = net.nodes[0].heads.items();
    assert_eq!(known, []);
}

#[test]
fn a_late_connection_tells_which_heads_there_are() {
    let mut net = Net::new(3);
    net.input(0, Input::Head(Box::new(verified(5))));
    net.run(Duration::from_secs(70));
    net.heads.clear();
    net.nodes[2] = machine(2, 2, &[], Vec::new());
    net.input(2, Input::Start);
    assert_eq!(net.heads, []);
    let (node, addr) = (id(2), addr(2));
    net.input(0, Input::Connected { node, addr });
    assert_eq!(net.heads, [(2, 5)]);
}

#[test]
fn two_heads_for_one_revision_are_shown_to_everybody_once() {
    let mut net = Net::new(4);
    net.run(Duration::from_secs(70));
    net.input(0, Input::Head(Box::new(verified(5))));
    net.run(Duration::from_secs(5));
    let other = head(5, 1, &key());
    net.told(3, 1, &items(&[Item::Head(other)]));
    net.run(Duration::from_secs(60));
    net.pairs.sort_unstable();
    assert_eq!(net.pairs, [0, 1, 2, 3]);
    // What is no contradiction is no proof.
    let pair = Box::new((head(6, 0, &key()), head(7, 0, &key())));
    let unsigned = net.nodes[1].counters().unsigned;
    net.told(3, 1, &items(&[Item::Equivocation(pair)]));
    assert_eq!(net.nodes[1].counters().unsigned, unsigned + 1);
}

#[test]
fn the_same_seed_gives_the_same_outputs() {
    let log = || {
        let mut net = Net::new(5);
        net.run(Duration::from_secs(30));
        net.input(2, Input::Head(Box::new(verified(3))));
        net.dead.insert(1);
        net.run(Duration::from_secs(60));
        net.log
    };
    let first = log();
    assert!(first.len() > 100);
    assert!(first == log(), "two runs differ");
}

#[test]
fn a_packet_that_comes_again_changes_nothing() {
    let mut net = Net::new(2);
    net.run(Duration::from_secs(70));
    let bytes = net.lie(1, 0, Update::alive(Member::new(id(7), addr(7), 3)));
    net.told(1, 0, &bytes);
    let before: Vec<Member> = net.nodes[0].members().copied().collect();
    assert_eq!(before.len(), 2);
    for _ in 0..20 {
        net.told(1, 0, &bytes);
    }
    assert!(net.nodes[0].members().copied().eq(before));
}

#[test]
fn however_often_a_member_dies_there_is_one_timer_to_forget_it() {
    let mut timers = Timers::default();
    for generation in 0..100 {
        let member = Member::new(id(1), addr(1), generation);
        timers.push(Time::from_micros(generation), Timer::RemoveDown(member));
    }
    assert_eq!(timers.len(), 1);
    assert_eq!(timers.next(), Some(Time::from_micros(99)));
    assert!(matches!(
        timers.pop(Time::from_micros(99)),
        Some(Due::Foca(Timer::RemoveDown(member))) if member.generation == 99
    ));
}

#[test]
fn a_list_in_parts_is_taken_whole() {
    let mut net = Net::new(2);
    net.run(Duration::from_secs(70));
    let many = (2..2 + 2 * MEMBERS_PER_PART).map(|n| {
        let addr = SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 4433));
        Update::alive(Member::new(id(n), addr, 1))
    });
    let mut runtime = AccumulatingRuntime::new();
    let result = net.nodes[1].foca.apply_many(many, false, &mut runtime);
    result.expect("members are taken");
    let parts = net.nodes[1].parts();
    assert_eq!(parts.len(), 3);
    for bytes in parts {
        let from = id(1);
        let bytes = &bytes;
        net.nodes[0].handle(Input::Part { from, bytes }, net.now);
    }
    assert_eq!(net.nodes[0].members().count(), 1 + 2 * MEMBERS_PER_PART);
}

proptest! {
    #[test]
    fn no_bytes_of_others_panic(kind in 0u8..4, bytes: Vec<u8>) {
        let mut net = Net::new(2);
        let from = id(1);
        let datagram = [&[kind][..], &bytes].concat();
        net.nodes[0].handle(Input::Datagram { from, bytes: &datagram }, net.now);
        net.nodes[0].handle(Input::Part { from, bytes: &bytes }, net.now);
    }

    /// Whatever is done to a good packet, it is taken, refused or dropped.
    #[test]
    fn no_packet_that_was_changed_panics(
        cut in 0usize..200,
        flips in prop::collection::vec((0usize..200, 1u8..), 0..4),
        extra in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut net = Net::new(2);
        let mut bytes = net.lie(1, 0, Update::alive(Member::new(id(7), addr(7), 3)));
        for (place, by) in flips {
            let place = place % bytes.len();
            bytes[place] ^= by;
        }
        bytes.truncate(cut.max(1));
        bytes.extend(extra);
        net.told(1, 0, &bytes);
        net.run(Duration::from_secs(3));
    }
}

#[test]
fn a_node_that_nobody_can_dial_is_no_member_and_hears_of_every_head() {
    let mut net = Net::new(5);
    net.run(Duration::from_secs(20));
    net.input(4, Input::Reachable(false));
    assert!(!net.nodes[4].is_leaf(), "a packet may have been lost");
    net.input(4, Input::Reachable(false));
    net.run(Duration::from_secs(60));
    for n in 0..4 {
        let is_there = net.nodes[n].members().any(|member| member.id == id(4));
        assert!(!is_there, "{n} holds the leaf for a member");
    }
    assert_eq!(net.nodes[4].members().count(), LEAF_LINKS);
    net.input(0, Input::Head(Box::new(verified(7))));
    assert!(net.heads.contains(&(4, 7)), "{:?}", net.heads);
    net.input(4, Input::Head(Box::new(verified(8))));
    for n in 0..4 {
        assert!(net.heads.contains(&(n, 8)), "{n}: {:?}", net.heads);
    }

    // Its members go, and it finds others.
    let attached: Vec<NodeId> = net.nodes[4].members().map(|member| member.id).collect();
    net.input(
        4,
        Input::Attached {
            node: attached[0],
            there: false,
        },
    );
    assert_eq!(net.nodes[4].members().count(), LEAF_LINKS - 1);
    net.run(Duration::from_secs(60));
    assert_eq!(net.nodes[4].members().count(), LEAF_LINKS);

    net.input(4, Input::Reachable(true));
    net.run(Duration::from_secs(60));
    for n in 0..5 {
        assert_eq!(net.nodes[n].members().count(), 4, "{n}");
    }
}
