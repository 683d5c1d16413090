//! One state of the model, and what each step makes of it.

mod calm;
mod drive;

use std::sync::Arc;

use bytes::Bytes;

use crate::answer::{Query, Target};
use crate::catalog::{Entry, Revision};
use crate::proto::Time;
use crate::proto::canon::Canon;
use crate::proto::coordinator::{self, Coordinator, Written};
use crate::proto::mutant::mutant;
use crate::proto::wire::{Publish, PublishName};
use crate::proto::worker::{self, CallId, Event, Look, look};
use crate::sim::history;
use crate::sim::model::judge::Judge;
use crate::sim::model::packet::Packet;
use crate::sim::model::place::{Place, Shown};
use crate::sim::model::scenario::{LEASE, Scenario, TICK, Wish};
use crate::sim::model::site::{CATALOG, Site, Unsigned};
use crate::spec::{Spec, SpecName};

/// Everything that exists.
#[derive(Clone)]
pub(super) struct World {
    scenario: Arc<Scenario>,
    pub(super) now: Time,
    pub(super) site: Arc<Site>,
    /// The journal that a restore goes back to.
    backup: Arc<Vec<Entry>>,
    pub(super) places: Vec<Arc<Place>>,
    pub(super) packets: Vec<Packet>,
    pub(super) judge: Judge,
    pub(super) left: Left,
}

/// How often things may still happen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    /// Index of the next publish.
    pub(super) publish: usize,
    pub(super) ticks: u32,
    pub(super) crashes: u32,
    pub(super) restores: u32,
    pub(super) restarts: u32,
    pub(super) reads: u32,
    pub(super) repeats: u32,
    pub(super) breaks: u32,
    pub(super) leaves: u32,
    pub(super) naps: u32,
}

impl Left {
    fn canon(&self, canon: &mut Canon) {
        canon.u64(self.publish as u64);
        let times = [
            self.ticks,
            self.crashes,
            self.restores,
            self.restarts,
            self.reads,
            self.repeats,
            self.breaks,
            self.leaves,
            self.naps,
        ];
        times.iter().for_each(|times| {
            canon.u64(u64::from(*times));
        });
    }
}

pub(super) fn name(index: usize) -> SpecName {
    let text = ["a", "b"][index];
    text.parse()
        .unwrap_or_else(|_| unreachable!("a plain name"))
}

fn body(text: &'static str) -> Spec {
    Spec::new(Bytes::from_static(text.as_bytes()))
}

impl World {
    /// A world in which every worker holds revision 1 and a lease, but for the cold ones.
    pub(super) fn new(scenario: &Arc<Scenario>) -> Result<Self, String> {
        let now = Time::from_micros(0);
        let genesis = Coordinator::genesis(CATALOG, &Unsigned);
        let mut world = Self {
            scenario: Arc::clone(scenario),
            now,
            site: Arc::new(Site::start(vec![genesis], LEASE, now)?),
            backup: Arc::default(),
            places: (0..scenario.workers)
                .map(|index| Arc::new(Place::new(index, scenario.clock)))
                .collect(),
            packets: Vec::new(),
            judge: Judge::new(scenario.names, scenario.workers),
            left: Left {
                publish: 0,
                ticks: scenario.ticks,
                crashes: scenario.crashes,
                restores: scenario.restores,
                restarts: scenario.restarts,
                reads: scenario.reads,
                repeats: scenario.repeats,
                breaks: scenario.breaks,
                leaves: scenario.leaves,
                naps: scenario.naps,
            },
        };
        world.prepare()?;
        Ok(world)
    }

    /// Time passes.
    pub(super) fn tick(&mut self) -> Result<(), String> {
        self.now = self.now + TICK;
        self.left.ticks -= 1;
        self.wake()
    }

    /// Everyone awake whose timer is due is told.
    fn wake(&mut self) -> Result<(), String> {
        if self
            .site
            .machine
            .next_wake()
            .is_some_and(|at| at <= self.now)
        {
            self.drive_site(coordinator::Input::Wake)?;
        }
        for worker in 0..self.places.len() {
            let place = &self.places[worker];
            let now = place.clock(self.now);
            let due = place.machine.next_wake().is_some_and(|at| at <= now);
            if due && place.asleep.is_none() {
                self.drive_place(worker, worker::Input::Wake)?;
            }
        }
        Ok(())
    }

    /// The disk has done what it was told.
    pub(super) fn written(&mut self) -> Result<(), String> {
        let site = Arc::make_mut(&mut self.site);
        let entries = site.writing.take().unwrap_or_default();
        let durable: Vec<_> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Pending(pending) => Some(pending.rev),
                _ => None,
            })
            .collect();
        let used = |rev: &Revision| {
            let of_rev = |entry: &Entry| matches!(entry, Entry::Pending(old) if old.rev == *rev);
            site.journal.iter().any(of_rev)
        };
        if let Some(rev) = durable.iter().find(|rev| used(rev)) {
            return Err(format!("C5: revision {rev} is used twice"));
        }
        site.journal.extend(entries);
        let due = (self.now + site.lease).max(site.grace);
        for rev in durable {
            self.judge.durable(rev, due);
        }
        self.drive_site(coordinator::Input::Written(Written::All))
    }

    /// The coordinator dies with `kept` entries of its write on disk, and comes back.
    pub(super) fn crash(&mut self, kept: usize) -> Result<(), String> {
        self.left.crashes -= 1;
        let mut journal = self.site.journal.clone();
        let writing = self.site.writing.clone().unwrap_or_default();
        journal.extend(writing.into_iter().take(kept));
        let lease = self.scenario.lease_after;
        self.site = Arc::new(Site::start(journal, lease, self.now)?);
        let ledger = self.site.machine.ledger();
        let tip = ledger.tip().rev();
        let view = &self.site.view;
        let visible = history::Place::new(view.epoch, view.records.rev());
        self.judge.restarted(visible)?;
        self.judge.forget_due();
        let grace = self.site.grace;
        let visible = self.site.view.records.rev();
        let mut rev = visible.next();
        while rev <= tip {
            self.judge.durable(rev, grace);
            rev = rev.next();
        }
        self.lose_watches();
        self.drive_site(coordinator::Input::Wake)
    }

    /// The connections are gone; workers see it later or never.
    fn lose_watches(&mut self) {
        for worker in 0..self.places.len() {
            let place = &self.places[worker];
            if let Some((call, _)) = place.streams.last_key_value() {
                let to = place.to(*call);
                self.send(Packet::Lost(to));
            }
        }
    }

    /// The coordinator is replaced by what it was at the beginning.
    pub(super) fn restore(&mut self) -> Result<(), String> {
        self.left.restores -= 1;
        let journal = Vec::clone(&self.backup);
        self.site = Arc::new(Site::start(journal, LEASE, self.now)?);
        self.judge.restored(!self.scenario.new_epoch);
        self.lose_watches();
        self.drive_site(coordinator::Input::Wake)?;
        if self.scenario.new_epoch {
            self.drive_site(coordinator::Input::NewEpoch { unix_ms: 0 })?;
        }
        Ok(())
    }

    pub(super) fn publish(&mut self) -> Result<(), String> {
        let index = self.left.publish;
        self.left.publish += 1;
        let scenario = Arc::clone(&self.scenario);
        self.send_publish(index as u64, &scenario.publishes[index])
    }

    fn send_publish(&mut self, ticket: u64, wishes: &[Wish]) -> Result<(), String> {
        let changes = wishes.iter().map(|wish| {
            let spec = wish.body.map(body);
            PublishName {
                name: name(wish.name),
                hash: spec.as_ref().map(Spec::hash),
                len: spec.map_or(0, |spec| spec.len()),
                expect: wish.expect.map(Revision::new),
            }
        });
        self.drive_site(coordinator::Input::Publish {
            ticket,
            by: "p".into(),
            publish: Publish {
                key: None,
                note: String::new(),
                changes: changes.collect(),
            },
            unix_ms: 0,
        })
    }

    /// A reader thread looks, as the driver's would.
    pub(super) fn look(&self, worker: usize, name: &SpecName) -> Look {
        let place = &self.places[worker];
        let cell = Shown(Arc::clone(&place.sight));
        let (_, _, look) = look(&cell, &|| place.clock(self.now), name);
        look
    }

    /// Everything that a sight answers is read, everywhere, until nobody learns anything new.
    /// Such a read changes nothing but what later ones must not go below, so that to read as soon
    /// and as often as possible finds all that reading now and then would.
    pub(super) fn read_all(&mut self) -> Result<Vec<String>, String> {
        let mut told = Vec::new();
        let mut learnt = true;
        while std::mem::take(&mut learnt) {
            for worker in 0..self.places.len() {
                for index in 0..self.scenario.names {
                    if let Some(news) = self.read_sight(worker, index)? {
                        told.push(news);
                        learnt = true;
                    }
                }
            }
        }
        Ok(told)
    }

    fn read_sight(&mut self, worker: usize, index: usize) -> Result<Option<String>, String> {
        let place = &self.places[worker];
        if place.asleep.is_some() {
            return Ok(None);
        }
        let (name, now) = (name(index), place.clock(self.now));
        if let Some(staleness) = self.scenario.bound
            && let Look::Serve(_, snapshot) = place.sight.bounded(&name, staleness, now)
        {
            self.judge
                .bounded(index, snapshot.into(), staleness, self.now)?;
        }
        if self.scenario.runs
            && let Some(token) = place.sight.run_token(now)
        {
            self.judge.run(token)?;
        }
        let Look::Serve(version, snapshot) = self.look(worker, &name) else {
            return Ok(None);
        };
        if !self.judge.is_news(worker, index, version, snapshot) {
            return Ok(None);
        }
        self.judge.begin(u64::MAX, worker, index);
        self.judge.end(u64::MAX, version, snapshot)?;
        Ok(Some(format!(
            "worker {worker} reads `{name}`: revision {} of {}",
            version.rev, snapshot.rev
        )))
    }

    /// A strict read begins that the sight does not answer.
    pub(super) fn read(&mut self, worker: usize, index: usize) -> Result<(), String> {
        let ticket = u64::from(self.left.reads);
        self.judge.begin(ticket, worker, index);
        self.left.reads -= 1;
        let query = Query::strict(Target::Name(name(index)));
        let reads = vec![(ticket, query)];
        self.drive_place(worker, worker::Input::Get { reads })
    }

    /// A worker's process dies and comes back.
    pub(super) fn restart(&mut self, worker: usize) -> Result<(), String> {
        let now = self.now;
        Arc::make_mut(&mut self.places[worker]).restart(now);
        self.judge.lose(worker);
        self.drive_place(worker, worker::Input::Wake)
    }

    /// The connection of a watch is gone; neither end knows it yet.
    pub(super) fn break_watch(&mut self, worker: usize) {
        self.left.breaks -= 1;
        let place = &self.places[worker];
        if let Some((call, stream)) = place.streams.last_key_value() {
            let (to, stream) = (place.to(*call), *stream);
            let sid = place.sid;
            self.packets
                .retain(|packet| !matches!(packet, Packet::Push(other, _) if *other == to));
            self.send(Packet::Lost(to));
            self.send(Packet::Unwatch {
                worker,
                sid,
                stream,
            });
        }
    }

    pub(super) fn leave(&mut self, worker: usize) -> Result<(), String> {
        self.left.leaves -= 1;
        Arc::make_mut(&mut self.places[worker]).left = true;
        self.drive_place(worker, worker::Input::Leave)
    }

    /// The machine under a worker sleeps, or wakes.
    pub(super) fn nap(&mut self, worker: usize) -> Result<(), String> {
        let now = self.now;
        let place = Arc::make_mut(&mut self.places[worker]);
        match place.asleep.take() {
            None => {
                self.left.naps -= 1;
                place.asleep = Some(now);
            }
            Some(since) => {
                if mutant!(M13) {
                    place.stood += now.since(since).as_micros() as u64;
                }
            }
        }
        Ok(())
    }

    /// Delivers a message, and leaves it on its way if it is to `stay`; false if nobody takes it.
    pub(super) fn deliver(&mut self, index: usize, stay: bool) -> Result<bool, String> {
        let packet = self.packets[index].clone();
        let taken = match &packet {
            Packet::Granted(worker, grant) => {
                let renewals = &self.places[*worker].renewals;
                let of = renewals.iter().find(|(_, nonce)| *nonce == grant.nonce);
                match of.map(|(call, _)| *call) {
                    Some(call) => {
                        self.take_away(index, stay);
                        self.grant(*worker, call, &packet)?;
                        true
                    }
                    None => false,
                }
            }
            _ if packet.goes_up() => {
                self.take_away(index, stay);
                self.arrive_up(packet)?;
                true
            }
            _ => {
                self.take_away(index, stay);
                self.arrive_down(packet)?;
                true
            }
        };
        Ok(taken)
    }

    /// Delivers a grant as the answer to another renewal than its own.
    pub(super) fn stray(&mut self, index: usize, call: CallId) -> Result<(), String> {
        let packet = self.packets[index].clone();
        self.take_away(index, false);
        self.grant(packet.worker(), call, &packet)
    }

    fn take_away(&mut self, index: usize, stay: bool) {
        if stay {
            self.left.repeats -= 1;
        } else {
            self.packets.remove(index);
        }
    }

    fn grant(&mut self, worker: usize, call: CallId, packet: &Packet) -> Result<(), String> {
        let Packet::Granted(_, grant) = packet else {
            return Ok(());
        };
        let place = Arc::make_mut(&mut self.places[worker]);
        place.renewals.retain(|(other, _)| *other != call);
        let event = Event::Granted(grant.as_ref().clone());
        self.drive_place(worker, worker::Input::Event { call, event })
    }

    /// The call that waits for this message fails.
    pub(super) fn cut(&mut self, index: usize) {
        self.left.breaks -= 1;
        if let Some(to) = self.packets[index].call() {
            self.packets[index] = Packet::Refused(to);
        }
    }

    pub(super) fn send(&mut self, packet: Packet) {
        // A second acknowledgement tells nothing that a repeated one would not.
        let again = matches!(&packet, Packet::Ack { ack, .. } if self.packets.iter().any(
            |other| matches!(other, Packet::Ack { ack: known, .. } if known == ack)
        ));
        if again {
            return;
        }
        self.packets.push(packet);
    }

    /// Messages that can have no effect any more are lost, and so are the oldest of too many.
    pub(super) fn lose_packets(&mut self) {
        self.lose_vain();
        while self.packets.len() > self.scenario.packets {
            self.packets.remove(0);
        }
    }

    fn lose_vain(&mut self) {
        let (places, stray) = (&self.places, self.scenario.stray);
        let wanted = |packet: &Packet| match (packet.call(), packet) {
            (Some(to), _) => places[to.worker].wants(to),
            (None, Packet::Granted(worker, grant)) => {
                let renewals = &places[*worker].renewals;
                stray || renewals.iter().any(|(_, nonce)| *nonce == grant.nonce)
            }
            _ => true,
        };
        self.packets.retain(wanted);
    }

    pub(super) fn digest(&self) -> u128 {
        let mut canon = Canon::new(LEASE + TICK);
        self.site.canon(canon.begin(self.now));
        self.judge.canon(&mut canon);
        self.left.canon(&mut canon);
        let anchors = self.scenario.bound.is_some();
        for place in &self.places {
            canon.begin(place.clock(self.now));
            place.canon(&mut canon, anchors);
            let mut packets: Vec<Vec<u8>> = self
                .packets
                .iter()
                .filter(|packet| packet.worker() == place.index)
                .map(|packet| {
                    let from = canon.len();
                    packet.canon(&mut canon);
                    canon.cut(from)
                })
                .collect();
            packets.sort_unstable();
            canon.u64(packets.len() as u64);
            packets.iter().for_each(|packet| {
                canon.u64(packet.len() as u64).raw(packet);
            });
        }
        canon.digest()
    }
}
