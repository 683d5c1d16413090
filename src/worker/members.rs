//! Carries out what the [membership](crate::proto::gossip) decides: datagrams over the
//! connections between workers, dials, lists over streams, and what is kept on disk.

mod book;
mod meet;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use self::book::Book;
pub(super) use self::book::Known;
use super::engine::Engine;
use crate::clock;
use crate::config::Membership;
use crate::identity::{NodeId, NodeUri};
use crate::net::{Carrier, Channel, DialBack, Link, Wanted};
use crate::proto::Time;
use crate::proto::gossip::{
    self, AskPause, Beginning, Busy, Gossip, Input, Member, Output, Remembered,
};
use crate::proto::limit::GOSSIP_DIAL_TIMEOUT;
use crate::proto::worker::Input as ToWorker;
use crate::proto::worker::Neighbour;
use crate::trust::Identity;

/// How often the machine is told what round trips are like.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked at whether this worker may begin to look for others.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often the engine is told at most who the members are: a cluster that starts changes all the
/// time, and each time all of them are looked at.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// So much longer for each of them that it knows already: it is the first that reads wait for.
const TELL_LATER: Duration = Duration::from_millis(10);

/// Never less often than this.
const MAX_TELL: Duration = Duration::from_secs(1);

/// The membership of this worker.
#[derive(Debug)]
pub(super) struct Members {
    own: NodeId,
    engine: Weak<Engine>,
    identity: Identity,
    handle: Handle,
    /// Taken before `machine`.
    beginning: Mutex<Beginning>,
    /// `None` until it begins.
    machine: Mutex<Option<Machine>>,
    book: Mutex<Book>,
    dial_back: DialBack,
    seeds: Vec<String>,
    /// Whether it gives bytes to others.
    gives: bool,
    /// The members have changed since the engine was told who they are.
    untold: AtomicBool,
    /// When the timer task wakes next, microseconds.
    armed: AtomicU64,
    rearm: Notify,
}

/// The machine, which has nothing to print.
struct Machine(Gossip);

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gossip")
    }
}

impl Members {
    /// Begins to look for others, on the engine's network thread.
    pub(super) fn start(
        engine: &Arc<Engine>,
        config: &Membership,
        gives: bool,
        handle: &Handle,
    ) -> Arc<Self> {
        let endpoint = engine.endpoint();
        let coordinators = engine.coordinator_addrs();
        let join = config.join.iter().map(ToString::to_string);
        let listen = endpoint.local_addr();
        let members = Arc::new(Self {
            own: endpoint.identity().uri().id(),
            engine: Arc::downgrade(engine),
            identity: endpoint.identity().clone(),
            handle: handle.clone(),
            beginning: Mutex::default(),
            machine: Mutex::default(),
            book: Mutex::default(),
            dial_back: DialBack::new(endpoint),
            seeds: coordinators.into_iter().chain(join).collect(),
            gives,
            untold: AtomicBool::new(false),
            armed: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
        });
        let ear = Arc::new(Ear(Arc::downgrade(&members)));
        engine.relayed().give_rest_to(ear);
        let is_known = !listen.ip().is_unspecified();
        let addr = config.advertise.or(is_known.then_some(listen));
        handle.spawn(live(Arc::downgrade(&members), addr, listen.port()));
        if config.advertise.is_none() {
            handle.spawn(follow(Arc::downgrade(&members), endpoint.moves()));
        }
        members
    }

    /// Who is known, for people.
    pub(super) fn known(&self) -> Vec<Known> {
        let states = match &*self.machine() {
            Some(Machine(machine)) => machine.states(),
            None => Vec::new(),
        };
        self.book().known(&states)
    }

    /// This node as others see it, and whether nobody can dial it; `None` before it begins.
    pub(super) fn own(&self) -> Option<(Member, bool)> {
        let machine = self.machine();
        let Machine(machine) = machine.as_ref()?;
        Some((machine.own(), machine.is_leaf()))
    }

    /// Who is there.
    fn all(&self) -> Vec<Member> {
        let machine = self.machine();
        let members = machine.as_ref().map(|Machine(machine)| machine.members());
        members.into_iter().flatten().copied().collect()
    }

    fn parts(&self) -> Vec<Vec<u8>> {
        let machine = self.machine();
        machine
            .as_ref()
            .map(|Machine(machine)| machine.parts())
            .unwrap_or_default()
    }

    /// Tells everyone that this node goes.
    pub(super) fn leave(self: &Arc<Self>) {
        self.drive(Input::Leave);
    }

    /// Whether it has begun, which it does if it may.
    fn look(self: &Arc<Self>, busy: Busy) -> bool {
        let mut beginning = self.beginning();
        if let Some(addr) = beginning.look(busy, clock::now()) {
            self.begin(addr);
        }
        beginning.has_begun()
    }

    fn located(&self, addr: SocketAddr) {
        self.beginning().located(addr, clock::now());
    }

    fn moved(self: &Arc<Self>, addr: SocketAddr) {
        let mut beginning = self.beginning();
        if let Some(addr) = beginning.moved(addr, clock::now()) {
            self.begin(addr);
        }
    }

    fn begin(self: &Arc<Self>, addr: SocketAddr) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        let mut remembered = remembered(&engine);
        if let Some((before, _)) = self.own() {
            // What is on disk may be behind.
            remembered.generation = remembered.generation.max(before.generation);
        }
        let config = gossip::Config {
            id: self.own,
            addr,
            seeds: self.seeds.clone(),
            remembered,
            seed: rand::random(),
        };
        tracing::info!(%addr, seeds = self.seeds.len(), "looking for other workers");
        let verifier = engine.verifier();
        *self.machine() = Some(Machine(Gossip::new(config, verifier)));
        self.drive(Input::Start);
        self.drive(Input::Barred(barred(&self.identity)));
        let channels = self.book().channels();
        for channel in channels {
            self.greet(&channel);
        }
    }

    /// Hands one input to the machine and carries out what follows from it.
    fn drive(self: &Arc<Self>, input: Input<'_>) {
        let outputs = {
            let mut machine = self.machine();
            let Some(Machine(machine)) = machine.as_mut() else {
                return;
            };
            let outputs = machine.handle(input, clock::now());
            self.arm(machine.next_wake());
            outputs
        };
        let changed = |output: &Output| matches!(output, Output::Up(_) | Output::Down(_));
        if outputs.iter().any(changed) && !self.untold.swap(true, Ordering::AcqRel) {
            self.rearm.notify_one();
        }
        for output in outputs {
            self.carry_out(output);
        }
    }

    /// Tells the engine who is there, and says after how long it may be told again.
    fn tell(&self) -> Duration {
        self.untold.store(false, Ordering::Release);
        let machine = self.machine();
        let neighbours = machine.as_ref().map(|Machine(machine)| neighbours(machine));
        drop(machine);
        let known = neighbours.as_ref().map_or(0, Vec::len);
        if let (Some(neighbours), Some(engine)) = (neighbours, self.engine.upgrade()) {
            metrics::gauge!("larder_members").set(neighbours.len() as f64);
            engine.set_peers(neighbours);
        }
        tell_pause(known)
    }

    fn carry_out(self: &Arc<Self>, output: Output) {
        match output {
            Output::Send { to, bytes } => self.send(to, bytes.into()),
            Output::Tell { to, bytes } => {
                let channel = self.book().channel(to);
                // Lost like any other packet.
                let _ = channel.map(|channel| channel.send(bytes.into()));
            }
            Output::Reach(seed) => {
                let members = Arc::clone(self);
                self.handle.spawn(async move { members.reach(&seed).await });
            }
            Output::Attach(member) => {
                let members = Arc::clone(self);
                self.handle
                    .spawn(async move { members.attach(member).await });
            }
            Output::SyncWith(member) => {
                let members = Arc::clone(self);
                self.handle.spawn(async move { members.sync(member).await });
            }
            Output::Up(member) => {
                let name = self.book().name(member.id);
                tracing::info!(node = %member.id, name, addr = %member.addr, "a worker is there");
            }
            Output::Down(member) => {
                let name = self.book().name(member.id);
                self.book().forget_link(member.id);
                tracing::info!(node = %member.id, name, addr = %member.addr, "a worker is gone");
            }
            Output::Head { head, from } => {
                if let Some(engine) = self.engine.upgrade() {
                    engine.drive(ToWorker::Heard { head: *head, from });
                }
            }
            Output::Equivocation(pair) => {
                metrics::counter!("larder_equivocations_total").increment(1);
                tracing::error!(
                    "two different heads are signed for one revision: whoever has the head key is not honest"
                );
                if let Some(engine) = self.engine.upgrade() {
                    engine.drive(ToWorker::Forked(Box::new(pair.0)));
                }
            }
            Output::Remember(remembered) => self.keep(&remembered),
            Output::Dialled(true) => tracing::info!("others can dial this worker now"),
            Output::Dialled(false) => {
                let hint = "forward its UDP port, or say with --advertise where it is reached";
                tracing::warn!(
                    hint,
                    "nobody can dial this worker: it is no member of the others"
                );
            }
            Output::Joined => tracing::info!("found other workers"),
            Output::Alone => tracing::info!("no other worker is left"),
        }
    }

    /// A datagram to a member: over a connection that is there, else over one that is dialled for
    /// it, for which a few may wait.
    fn send(self: &Arc<Self>, to: Member, packet: Bytes) {
        let mut book = self.book();
        if let Some(channel) = book.channel(to.id) {
            // Lost like any other packet.
            let _ = channel.send(packet);
            return;
        }
        if book.wait(to.id, packet) {
            drop(book);
            let members = Arc::clone(self);
            self.handle.spawn(async move { members.dial(to).await });
        }
    }

    async fn dial(self: Arc<Self>, to: Member) {
        let link = self.link(to);
        let dialled = match link {
            Some(link) => timeout(GOSSIP_DIAL_TIMEOUT, link.connect(None)).await,
            None => return self.book().dialled(to.id, false),
        };
        // What waited leaves when the connection says that it is up.
        self.book().dialled(to.id, matches!(dialled, Ok(Ok(()))));
    }

    /// A link to a member, or to one that may be.
    fn link(&self, to: Member) -> Option<Link> {
        let engine = self.engine.upgrade()?;
        if let Some(link) = engine.peer_link(to.id) {
            return Some(link);
        }
        let fresh = || Link::new(engine.endpoint(), to.addr.to_string(), Wanted::Node(to.id));
        Some(self.book().stranger(to, fresh))
    }

    fn keep(&self, remembered: &Remembered) {
        if let Some(engine) = self.engine.upgrade() {
            engine.keep_members(remembered.to_bytes());
        }
    }

    fn arm(&self, wake: Option<Time>) {
        let Some(wake) = wake else { return };
        let micros = wake.as_micros();
        if micros < self.armed.fetch_min(micros, Ordering::AcqRel) {
            self.rearm.notify_one();
        }
    }

    fn beginning(&self) -> MutexGuard<'_, Beginning> {
        self.beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> MutexGuard<'_, Option<Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn greet(self: &Arc<Self>, channel: &Channel) {
        let node = channel.uri().id();
        let addr = channel.addr();
        self.drive(Input::Connected { node, addr });
    }
}

/// Hears what comes over connections; the endpoint holds it, and must not keep the worker alive.
#[derive(Debug)]
struct Ear(Weak<Members>);

impl Carrier for Ear {
    fn up(&self, channel: &Channel) {
        let Some(members) = self.0.upgrade() else {
            return;
        };
        let waiting = members.book().up(channel);
        for packet in waiting {
            let _ = channel.send(packet);
        }
        members.greet(channel);
    }

    fn packet(&self, channel: &Channel, packet: Bytes) {
        if let Some(members) = self.0.upgrade() {
            members.drive(Input::Datagram {
                from: channel.uri().id(),
                bytes: &packet,
            });
        }
    }

    fn down(&self, channel: &Channel) {
        let Some(members) = self.0.upgrade() else {
            return;
        };
        let node = channel.uri().id();
        let ended = members.book().down(channel);
        if ended.was_last {
            members.drive(Input::Disconnected(node));
        }
        if ended.was_leafs {
            members.drive(Input::Leaf { node, there: false });
        }
        if ended.was_attached {
            members.drive(Input::Attached { node, there: false });
        }
    }
}

/// How long the engine goes without a new list once it knows so many.
fn tell_pause(known: usize) -> Duration {
    let known = u32::try_from(known).unwrap_or(u32::MAX);
    (TELL_EVERY + TELL_LATER.saturating_mul(known)).min(MAX_TELL)
}

fn neighbours(machine: &Gossip) -> Vec<Neighbour> {
    let members = machine.members();
    members
        .map(|member| Neighbour {
            id: member.id,
            addr: member.addr.to_string(),
        })
        .collect()
}

fn remembered(engine: &Engine) -> Remembered {
    let kept = match engine.store().members() {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(%error, "where other workers were cannot be read");
            None
        }
    };
    let kept = kept.map(|bytes| Remembered::from_bytes(&bytes));
    match kept {
        Some(Ok(remembered)) => remembered,
        Some(Err(error)) => {
            tracing::warn!(%error, "where other workers were is damaged on disk");
            Remembered::default()
        }
        None => Remembered::default(),
    }
}

fn barred(identity: &Identity) -> BTreeSet<NodeId> {
    let current = identity.current();
    current.trust().revoked().map(NodeUri::id).collect()
}

/// Finds out where this node is reached, then wakes the machine when something is due, until the
/// membership is gone.
async fn live(members: Weak<Members>, addr: Option<SocketAddr>, port: u16) {
    let Some(addr) = (match addr {
        Some(addr) => Some(addr),
        None => own_addr(&members, port).await,
    }) else {
        return;
    };
    let Some(mut trust) = members.upgrade().map(|members| {
        members.located(addr);
        members.identity.changes()
    }) else {
        return;
    };
    reads_first(&members).await;
    let mut measured = clock::now();
    let mut told = None;
    let mut tell_at = clock::now();
    loop {
        let Some(members) = members.upgrade() else {
            return;
        };
        let Some(engine) = members.engine.upgrade() else {
            return;
        };
        let now = clock::now();
        let sight = engine.shown();
        if let Some(replica) = sight.replica()
            && told != Some((replica.epoch(), replica.rev()))
        {
            told = Some((replica.epoch(), replica.rev()));
            members.drive(Input::Head(Box::new(*replica.verified())));
        }
        if now.since(measured) >= MEASURE_EVERY {
            measured = now;
            let slow = members.book().slow_round_trip();
            if let Some(rtt) = slow {
                members.drive(Input::RoundTrip(rtt));
            }
            members.count();
        }
        let untold = members.untold.load(Ordering::Acquire);
        if untold && tell_at <= now {
            tell_at = now + members.tell();
        }
        let wake = {
            let machine = members.machine();
            let wake = machine
                .as_ref()
                .and_then(|Machine(machine)| machine.next_wake());
            let micros = wake.map_or(u64::MAX, Time::as_micros);
            members.armed.store(micros, Ordering::Release);
            wake
        };
        if wake.is_some_and(|wake| wake <= now) {
            members.drive(Input::Tick);
            // One turn, so that a machine that always wants the next one starves nobody.
            tokio::task::yield_now().await;
            continue;
        }
        let pause = wake.map_or(MEASURE_EVERY, |wake| wake.since(now));
        let mut pause = pause.min(Duration::from_secs(1));
        if members.untold.load(Ordering::Acquire) {
            pause = pause.min(tell_at.since(now));
        }
        tokio::select! {
            () = members.rearm.notified() => {}
            () = engine.shown_anew() => {}
            changed = trust.changed() => {
                if changed.is_ok() {
                    members.drive(Input::Barred(barred(&members.identity)));
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Waits until the membership has begun.
async fn reads_first(members: &Weak<Members>) {
    loop {
        // The first reads come a moment after the start.
        tokio::time::sleep(LOOK_EVERY.mul_f64(rand::random_range(0.5..1.0))).await;
        let Some(members) = members.upgrade() else {
            return;
        };
        let Some(engine) = members.engine.upgrade() else {
            return;
        };
        let links = engine.coordinator_links();
        let busy = Busy {
            is_reading: engine.machine().is_reading() || engine.traffic().flows(clock::now()),
            has_coordinator: links.iter().any(|link| link.link().rtt().is_some()),
        };
        if members.look(busy) {
            return;
        }
    }
}

/// Begins anew under the address of a node that has moved, as others see it: the members know it
/// by the one before.
async fn follow(members: Weak<Members>, mut moves: watch::Receiver<Option<SocketAddr>>) {
    while moves.changed().await.is_ok() {
        let Some(moved) = *moves.borrow_and_update() else {
            continue;
        };
        let Some(addr) = own_addr(&members, moved.port()).await else {
            return;
        };
        let Some(members) = members.upgrade() else {
            return;
        };
        members.moved(addr);
    }
}

/// Where this node's packets come from, as a seed sees it.
async fn own_addr(members: &Weak<Members>, port: u16) -> Option<SocketAddr> {
    let mut pause = AskPause::default();
    loop {
        let members = members.upgrade()?;
        for seed in &members.seeds {
            if let Some(seen) = members.seen_by(seed).await {
                return Some(SocketAddr::new(seen.ip().to_canonical(), port));
            }
        }
        drop(members);
        let pause = pause.next_pause();
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

impl Members {
    fn count(&self) {
        let (counters, stretch) = {
            let machine = self.machine();
            let Some(Machine(machine)) = machine.as_ref() else {
                return;
            };
            (machine.counters(), machine.stretch())
        };
        metrics::gauge!("larder_membership_health").set(f64::from(stretch));
        let all = [
            ("malformed", counters.malformed),
            ("forged", counters.forged),
            ("throttled", counters.throttled),
            ("barred", counters.barred),
            ("too-new", counters.too_new),
            ("too-many", counters.too_many),
            ("unsigned", counters.unsigned),
            ("refused", counters.refused),
        ];
        metrics::counter!("larder_gossip_taken_total").absolute(counters.taken);
        metrics::counter!("larder_gossip_renewals_total").absolute(counters.renewals);
        for (reason, count) in all {
            metrics::counter!("larder_gossip_dropped_total", "reason" => reason).absolute(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_told_less_often_the_more_members_it_knows() {
        for (known, millis) in [(0, 100), (10, 200), (89, 990), (200, 1_000)] {
            assert_eq!(tell_pause(known), Duration::from_millis(millis), "{known}");
        }
        assert_eq!(tell_pause(usize::MAX), MAX_TELL);
    }
}
