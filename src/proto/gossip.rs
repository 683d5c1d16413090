//! The membership: workers find each other and spread what is new.
//!
//! [`Gossip`] is the SWIM protocol of the crate foca, with what that leaves to its user: who may
//! say what, how often, and what is done when packets alone are not enough. It does no I/O: a
//! driver carries datagrams between connections that have proven who is at the other end.
//!
//! ```text
//! datagram := 1 | packet                       membership, see `member.rs`
//!           | 2 | flags: u8 | items            heads, see `heads.rs`; bit 0: this is an answer
//! part     := count: u16 | items | updates     of the list that two nodes compare, on a stream
//! ```
//!
//! What holds:
//!
//! - A packet counts only if the node that it says it is from is the node whose certificate the
//!   connection showed.
//! - A head is spread only after its signature was verified with a pinned key.
//! - No member can make another renew itself at wire speed: generations are bounded, and a node
//!   takes a new one at most once per [`RENEW_EVERY`], with one jump over whatever others named.
//! - Members are trusted to be honest about each other. A dishonest one can have others declared
//!   dead, who then come back; a wrong address fails at the certificate of whoever answers there.
//! - Membership decides who is asked for bytes, and never what is current.

mod beginning;
mod heads;
mod health;
mod join;
mod leaf;
mod member;
mod near;
mod receive;
mod remembered;
mod spread;
mod timer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, OwnedNotification, PeriodicParams, Timer};
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use self::beginning::{AskPause, Beginning, Busy};
pub use self::heads::Pair;
use self::heads::{Heads, Item, Items, Taken};
use self::health::Health;
pub use self::member::Member;
use self::member::{Codec, Update, write_item, write_update};
pub use self::remembered::Remembered;
use self::timer::{Chore, Due, Timers};
use crate::catalog::{HeadVerifier, VerifiedHead};
use crate::codec::Writer;
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::bucket::Bucket;
use crate::proto::limit::{
    ENOUGH_QUIET_LISTS, FIRST_ANNOUNCE_BACKOFF, FIRST_SYNC, HEADS_EVERY, MAX_GENERATION,
    MAX_GOSSIP_PACKET, MAX_PROBE, MAX_REMEMBERED, MAX_SEEDS, MEMBERS_PER_PART, MIN_PROBE,
    REMEMBER_DEAD, REMEMBER_EVERY, RENEW_EVERY, SYNC_EVERY,
};

/// First byte of a datagram of the membership.
const MEMBERSHIP: u8 = 1;
/// First byte of a datagram of heads.
const HEADS: u8 = 2;
/// Foca's numbers are never those for a smaller cluster: there it would tell news only once, and
/// a single lost packet would keep it from someone.
const SMALLEST: u32 = 20;
/// Heads that answer heads are not answered again.
const IS_ANSWER: u8 = 1;
/// After a member that had to be dialled for it, the next probe waits this many times as long.
const AFRESH: u32 = 4;

/// How a node starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// Where others reach it.
    pub addr: SocketAddr,
    /// Addresses to join by, at most [`MAX_SEEDS`], as the driver understands them.
    pub seeds: Vec<String>,
    /// What it last remembered, or nothing at its first start.
    pub remembered: Remembered,
    /// Decides every random choice.
    pub seed: [u8; 32],
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Input<'a> {
    /// Once, before all others.
    Start,
    /// A datagram over the connection of `from`.
    Datagram {
        /// Whose certificate the connection showed.
        from: NodeId,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A connection with a worker is up.
    Connected {
        /// Who is at the other end.
        node: NodeId,
        /// Its address there; where it listens, if this node has dialled it.
        addr: SocketAddr,
    },
    /// No connection with a worker is left.
    Disconnected(NodeId),
    /// The seed of an [`Output::Reach`] was reached.
    Reached {
        /// Which one.
        seed: &'a str,
        /// Who is there.
        node: NodeId,
        /// Where it is reached; `None` for one that is no worker.
        addr: Option<SocketAddr>,
        /// Workers that it knows, and where.
        others: &'a [(NodeId, SocketAddr)],
    },
    /// Someone tried whether this node can be dialled where it says that it listens.
    Reachable(bool),
    /// A node that nobody can dial wants to be told what is new over its connection, or has gone.
    Leaf {
        /// Which.
        node: NodeId,
        /// Whether it is there.
        there: bool,
    },
    /// What came of an [`Output::Attach`]; also when such a connection has ended.
    Attached {
        /// To whom.
        node: NodeId,
        /// Whether it is connected.
        there: bool,
    },
    /// One part of the list of `from`, which [`Output::SyncWith`] asked for.
    Part {
        /// Whose certificate the connection showed.
        from: NodeId,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The worker has verified a head.
    Head(Box<VerifiedHead>),
    /// A round trip that nearly all members stay below.
    RoundTrip(Duration),
    /// All nodes whose certificates are refused from now on.
    Barred(BTreeSet<NodeId>),
    /// Something is due.
    Tick,
    /// The node is about to stop.
    Leave,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram; drop it where that is not possible soon.
    Send {
        /// To this node. The certificate has to be its own.
        to: Member,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Send a datagram if there is a connection.
    Tell {
        /// To this node.
        to: NodeId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Connect to a seed, of which only the address is known; say that this node is there, and
    /// ask who else is.
    Reach(String),
    /// Connect to a member and keep that up, since nobody can dial this node.
    Attach(Member),
    /// Ask for the list of a member, on a stream.
    SyncWith(Member),
    /// A member is there, or is at this address from now on.
    Up(Member),
    /// A member is gone.
    Down(Member),
    /// A newer head than all before it. It says what there is to fetch, and proves nothing to a
    /// strict read.
    Head {
        /// The head.
        head: Box<VerifiedHead>,
        /// Who told this node, and so has what it speaks of, or knows who has.
        from: NodeId,
    },
    /// Two heads for one revision: the head key is not honest any more.
    Equivocation(Box<Pair>),
    /// Keep this on disk in place of what was kept before.
    Remember(Remembered),
    /// The first member has answered.
    Joined,
    /// No member is left.
    Alone,
    /// Whether others can dial this node has changed.
    Dialled(bool),
}

/// How a member stands, as far as a node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answers.
    Up,
    /// It did not answer, and has some seconds left.
    Suspect,
    /// It is gone.
    Down,
}

impl Standing {
    /// One lower-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// What was dropped, and why; each counts up from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Datagrams and parts that were looked at.
    pub taken: u64,
    /// They were not what they should encode.
    pub malformed: u64,
    /// The source was not the node at the other end of the connection.
    pub forged: u64,
    /// Their sender sends more than [`MAX_GOSSIP_PER_SEC`](crate::proto::limit::MAX_GOSSIP_PER_SEC).
    pub throttled: u64,
    /// Their sender's certificate is refused.
    pub barred: u64,
    /// Members that were heard of with a generation that they cannot have.
    pub too_new: u64,
    /// Members beyond [`MAX_MEMBERS`](crate::proto::limit::MAX_MEMBERS).
    pub too_many: u64,
    /// Heads that no pinned key signed.
    pub unsigned: u64,
    /// What foca refused for another reason.
    pub refused: u64,
    /// New generations of this node in this process.
    pub renewals: u64,
}

/// The machine of one node.
pub struct Gossip {
    foca: Foca<Member, Codec, StdRng, Items>,
    rng: StdRng,
    verifier: Arc<dyn HeadVerifier>,
    seeds: Vec<Seed>,
    /// Where members may be, for when none is known.
    remembered: Vec<Member>,
    /// Nobody can dial this node.
    is_leaf: bool,
    /// Dials back that failed in a row.
    unreached: u32,
    /// Whom it is attached to then.
    attached: BTreeMap<NodeId, Member>,
    /// Nodes that nobody can dial, and that are connected to this one.
    leaves: BTreeSet<NodeId>,
    /// Who is there, as far as this node knows.
    up: BTreeMap<NodeId, Member>,
    /// With whom there is a connection, members and others.
    connected: BTreeSet<NodeId>,
    /// The last probe went to a member without a connection, which costs a handshake.
    probed_afresh: bool,
    /// The generation that each member last showed itself, over its own connection.
    shown: BTreeMap<NodeId, u64>,
    quotas: BTreeMap<NodeId, Bucket>,
    barred: BTreeSet<NodeId>,
    heads: Heads,
    health: Health,
    timers: Timers,
    counters: Counters,
    probe: Duration,
    /// The number of members that foca's configuration is for.
    sized_for: u32,
    /// The highest generation that anybody named for this node.
    named: u64,
    renewed: Option<Time>,
    renew_pause: Duration,
    announced: u32,
    sync_pause: Duration,
    /// How many lists of others were asked for since one had members that were new here.
    quiet_lists: u32,
    joined: bool,
    left: bool,
}

/// An address to join by.
#[derive(Debug, Clone)]
struct Seed {
    addr: String,
    /// Who was there last.
    node: Option<NodeId>,
}

impl Gossip {
    /// A node that knows nobody yet.
    pub fn new(config: Config, verifier: Arc<dyn HeadVerifier>) -> Self {
        let Config {
            id,
            addr,
            mut seeds,
            remembered,
            seed,
        } = config;
        // What it said in its last life must not count in this one.
        let generation = remembered.generation.saturating_add(1);
        let own = Member::new(id, addr, generation.min(MAX_GENERATION));
        seeds.truncate(MAX_SEEDS);
        let seed_of = |addr| Seed { addr, node: None };
        let seeds = seeds.into_iter().map(seed_of).collect();
        let mut remembered = remembered.members;
        remembered.retain(|member| member.id != id);
        remembered.truncate(MAX_REMEMBERED);
        let mut rng = StdRng::from_seed(seed);
        let focas = StdRng::from_rng(&mut rng);
        Self {
            foca: Foca::with_custom_broadcast(own, tuned(SMALLEST), focas, Codec, Items),
            rng,
            verifier,
            seeds,
            remembered,
            is_leaf: false,
            unreached: 0,
            attached: BTreeMap::new(),
            leaves: BTreeSet::new(),
            up: BTreeMap::new(),
            connected: BTreeSet::new(),
            probed_afresh: false,
            shown: BTreeMap::new(),
            quotas: BTreeMap::new(),
            barred: BTreeSet::new(),
            heads: Heads::default(),
            health: Health::default(),
            timers: Timers::default(),
            counters: Counters::default(),
            probe: MIN_PROBE,
            sized_for: SMALLEST,
            named: own.generation,
            renewed: None,
            renew_pause: RENEW_EVERY,
            announced: 0,
            sync_pause: FIRST_SYNC,
            quiet_lists: 0,
            joined: false,
            left: false,
        }
    }

    /// This node as it is now.
    pub fn own(&self) -> Member {
        *self.foca.identity()
    }

    /// Who is there, apart from this node.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.up.values()
    }

    /// Everyone that is known, and how they stand; this node is not among them.
    pub fn states(&self) -> Vec<(Member, Standing)> {
        if self.is_leaf {
            let attached = self.attached.values();
            return attached.map(|member| (*member, Standing::Up)).collect();
        }
        let own = self.own().id;
        let states = self.foca.iter_membership_state();
        let states = states.filter(|update| update.id().id != own);
        let standing = |update: &Update| match update.state() {
            foca::State::Alive => Standing::Up,
            foca::State::Suspect => Standing::Suspect,
            foca::State::Down => Standing::Down,
        };
        states
            .map(|update| (*update.id(), standing(update)))
            .collect()
    }

    /// What was dropped so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What this node's waits are multiplied by: 1, or more, up to
    /// [`MAX_STRETCH`](crate::proto::limit::MAX_STRETCH), while it is woken late.
    pub fn stretch(&self) -> u32 {
        self.health.stretch()
    }

    /// When [`Input::Tick`] is due.
    pub fn next_wake(&self) -> Option<Time> {
        self.timers.next()
    }

    /// What this node knows of all members, in parts for a stream. The first has the heads.
    pub fn parts(&self) -> Vec<Vec<u8>> {
        let updates: Vec<&Update> = self.foca.iter_membership_state().collect();
        let own = Update::alive(self.own());
        let all: Vec<&Update> = updates.into_iter().chain([&own]).collect();
        let mut heads = self.heads.items();
        let part = |updates: &[&Update]| {
            let items = std::mem::take(&mut heads);
            let mut w = Writer::new();
            w.u16(u16::try_from(items.len()).unwrap_or(u16::MAX));
            items
                .iter()
                .for_each(|item| write_item(&item.to_bytes(), &mut w));
            updates
                .iter()
                .for_each(|update| write_update(update, &mut w));
            w.finish()
        };
        all.chunks(MEMBERS_PER_PART).map(part).collect()
    }

    /// Takes one input and says what is to be done, in order.
    pub fn handle(&mut self, input: Input<'_>, now: Time) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Start => self.start(now, &mut out),
            Input::Datagram { from, bytes } => {
                if let Err(_malformed) = self.datagram(from, bytes, now, &mut out) {
                    self.counters.malformed += 1;
                }
            }
            Input::Part { from, bytes } => {
                if let Err(_malformed) = self.part(from, bytes, now, &mut out) {
                    self.counters.malformed += 1;
                }
            }
            Input::Connected { node, addr } => {
                self.connected.insert(node);
                let to = self.up.get(&node).copied();
                let to = to.unwrap_or(Member::new(node, addr, 0));
                out.extend(self.told(to, 0));
            }
            Input::Disconnected(node) => {
                self.connected.remove(&node);
            }
            Input::Reached {
                seed,
                node,
                addr,
                others,
            } => {
                self.seed_is(seed, node);
                self.reached(node, addr, others, now, &mut out);
            }
            Input::Reachable(is) => self.reachable(is, now, &mut out),
            Input::Leaf { node, there } => self.leaf(node, there, &mut out),
            Input::Attached { node, there } => self.attached(node, there, now, &mut out),
            Input::Head(head) => {
                let taken = self.heads.take_verified(*head);
                // Whoever says so knows it already.
                match taken {
                    Taken::New(head) => {
                        let own = self.own().id;
                        self.spread(&Item::Head(*head.signed()), own, now, &mut out);
                    }
                    other => self.taken(other, self.own().id, now, &mut out),
                }
            }
            Input::RoundTrip(rtt) => self.probe = (rtt * 3).clamp(MIN_PROBE, MAX_PROBE),
            Input::Barred(nodes) => self.bar(nodes, now, &mut out),
            Input::Tick => {
                if let Some(due) = self.timers.first() {
                    self.health.woken(due, now);
                }
                self.tick(now, &mut out);
            }
            Input::Leave => self.leave(now, &mut out),
        }
        out
    }

    fn start(&mut self, now: Time, out: &mut Vec<Output>) {
        out.push(self.remember());
        self.timers.set(Chore::Announce, now);
        self.timers.set(Chore::Heads, now + HEADS_EVERY);
        self.tick(now, out);
    }

    fn leave(&mut self, now: Time, out: &mut Vec<Output>) {
        out.push(self.remember());
        self.left = true;
        let mut runtime = AccumulatingRuntime::new();
        let result = self.foca.leave_cluster(&mut runtime);
        self.finish(result, runtime, now, out);
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Output>) {
        while let Some(due) = self.timers.pop(now) {
            match due {
                Due::Chore(chore) => self.chore(chore, now, out),
                Due::Foca(timer) => {
                    let mut runtime = AccumulatingRuntime::new();
                    let result = self.foca.handle_timer(timer, &mut runtime);
                    self.finish(result, runtime, now, out);
                }
            }
        }
    }

    fn chore(&mut self, chore: Chore, now: Time, out: &mut Vec<Output>) {
        if self.left {
            return;
        }
        match chore {
            Chore::Announce if self.is_leaf => self.attach(now, out),
            Chore::Announce => self.announce(now, out),
            Chore::Renew => self.renew(now, out),
            Chore::Sync => {
                out.extend(self.near_member().map(Output::SyncWith));
                out.extend(self.missing_seed().map(Output::Reach));
                self.quiet_lists = self.quiet_lists.saturating_add(1);
                if self.quiet_lists > ENOUGH_QUIET_LISTS {
                    self.sync_pause = (self.sync_pause * 2).min(SYNC_EVERY);
                }
                let pause = self.jittered(self.sync_pause);
                let pause = self.health.stretched(pause);
                self.timers.set(Chore::Sync, now + pause);
            }
            Chore::Heads => {
                if let Some(to) = self.near_member() {
                    out.extend(self.told(to, 0));
                }
                let pause = self.health.stretched(HEADS_EVERY);
                self.timers.set(Chore::Heads, now + pause);
            }
            Chore::Remember => out.push(self.remember()),
        }
    }
}

/// What foca wants.
impl Gossip {
    fn finish(
        &mut self,
        result: Result<(), foca::Error>,
        mut runtime: AccumulatingRuntime<Member>,
        now: Time,
        out: &mut Vec<Output>,
    ) {
        if let Err(_error) = result {
            self.counters.refused += 1;
        }
        let mut free = None;
        while let Some((to, packet)) = runtime.to_send() {
            // Lives of this node that are over are among the dead that foca looks after.
            if to.id == self.own().id || self.barred.contains(&to.id) {
                continue;
            }
            out.push(self.routed(to, &packet, &mut free, now));
        }
        while let Some((after, timer)) = runtime.to_schedule() {
            let after = self.stretched(&timer, after);
            self.timers.push(now + after, timer);
        }
        while let Some(note) = runtime.to_notify() {
            self.notice(note, now, out);
        }
    }

    /// Foca's probe times are fixed when it is made; those here follow the round trips, and how
    /// well this node is.
    fn stretched(&self, timer: &Timer<Member>, after: Duration) -> Duration {
        let wait = match timer {
            // News have their time: among them is that this node is not dead. And the dead are
            // forgotten after hours.
            Timer::PeriodicGossip(_) | Timer::RemoveDown(_) => return after,
            Timer::SendIndirectProbe { .. } => self.probe,
            Timer::ProbeRandomMember(_) if self.probed_afresh => self.probe * 2 * AFRESH,
            Timer::ProbeRandomMember(_) => self.probe * 2,
            Timer::ChangeSuspectToDown { .. } => {
                after.mul_f64(self.probe.as_secs_f64() / MIN_PROBE.as_secs_f64())
            }
            Timer::PeriodicAnnounce(_) | Timer::PeriodicAnnounceDown(_) => after,
        };
        self.health.stretched(wait)
    }

    fn notice(&mut self, note: OwnedNotification<Member>, now: Time, out: &mut Vec<Output>) {
        match note {
            OwnedNotification::MemberUp(member) => {
                self.up.insert(member.id, member);
                out.push(Output::Up(member));
                self.changed(now);
            }
            OwnedNotification::MemberDown(member) => {
                if self.up.remove(&member.id).is_some() {
                    out.push(Output::Down(member));
                    self.changed(now);
                }
            }
            OwnedNotification::Rename(_, member) => {
                // One that was dead shows as up by itself, if it is.
                if let Some(up) = self.up.get_mut(&member.id) {
                    *up = member;
                    out.push(Output::Up(member));
                    self.changed(now);
                }
            }
            OwnedNotification::Active => {
                self.joined = true;
                self.announced = 0;
                self.timers.clear(Chore::Announce);
                self.sync_pause = FIRST_SYNC;
                self.quiet_lists = 0;
                self.timers.set(Chore::Sync, now);
                out.push(Output::Joined);
            }
            OwnedNotification::Idle => {
                self.joined = false;
                self.health.alone();
                self.timers.clear(Chore::Sync);
                let pause = self.jittered(FIRST_ANNOUNCE_BACKOFF);
                self.timers.set(Chore::Announce, now + pause);
                out.push(Output::Alone);
            }
            OwnedNotification::Defunct => self.declared_dead(now),
            OwnedNotification::Rejoin(_) => {}
        }
    }

    fn changed(&mut self, now: Time) {
        if !self.timers.is_set(Chore::Remember) {
            self.timers.set(Chore::Remember, now + REMEMBER_EVERY);
        }
        let members = u32::try_from(self.up.len() + 1).unwrap_or(u32::MAX);
        let members = members.max(SMALLEST);
        if members > self.sized_for * 2 || members < self.sized_for / 4 {
            self.sized_for = members;
            if self.foca.set_config(tuned(members)).is_err() {
                self.counters.refused += 1;
            }
        }
    }
}

/// Foca's numbers for a cluster of this size: those of its LAN profile, whose times the machine
/// stretches where round trips are long. Dead members are asked more often than there, since that
/// is how two halves of a cluster find each other after a cut. News go to fewer at a time: heads are
/// sent at once anyway, see [`HEAD_FANOUT`](crate::proto::limit::HEAD_FANOUT), and lists over streams.
fn tuned(members: u32) -> foca::Config {
    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();
    const FEW: NonZeroUsize = NonZeroUsize::new(3).unwrap();
    const PACKET: NonZeroUsize = NonZeroUsize::new(MAX_GOSSIP_PACKET - 1).unwrap();
    let members = NonZeroU32::new(members).unwrap_or(NonZeroU32::MIN);
    foca::Config {
        max_packet_size: PACKET,
        remove_down_after: Some(REMEMBER_DEAD),
        probe_rtt: MIN_PROBE,
        probe_period: MIN_PROBE * 2,
        periodic_announce_to_down_members: Some(PeriodicParams {
            frequency: Duration::from_secs(15),
            num_members: FEW,
        }),
        periodic_gossip: Some(PeriodicParams {
            frequency: Duration::from_secs(1),
            num_members: TWO,
        }),
        ..foca::Config::new_lan(members)
    }
}

#[cfg(test)]
mod tests;
