//! The coordinator: its machine, its vault over a disk in memory, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::net::{Ask, Caller, Stream};
use super::node::{member_id, neighbour};
use super::plan::Plan;
use super::publishers::Sent;
use super::{Step, World};
use crate::catalog::{CatalogId, Content, Entry, Epoch, HeadSigner, HeadVerifier, Revision};
use crate::coordinator::writer::Storage;
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{
    Askers, Coordinator, Input, Ledger, Options, Output, Ticket, Turn, View,
};
use crate::proto::limit::MAX_DELTA;
use crate::proto::replica;
use crate::proto::wire::{Peering, Pinned, Push};
use crate::proto::worker::Event;
use crate::sim::history::{self, Pin, PinId, Place};
use crate::sim::random::Random;
use crate::spec::SpecHash;
use crate::store::file::sim::SimDisk;
use crate::store::vault::Vault;

/// Signs with a hash: what is right is still told from what is wrong, and quickly.
pub(super) struct Signed;

fn signature(message: &[u8]) -> [u8; 64] {
    let hash = blake3::hash(message);
    let mut signature = [7; 64];
    signature[..32].copy_from_slice(hash.as_bytes());
    signature
}

impl HeadSigner for Signed {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        signature(message)
    }
}

impl HeadVerifier for Signed {
    fn verify(&self, message: &[u8], claimed: &[u8; 64]) -> bool {
        signature(message) == *claimed
    }
}

/// The coordinator's node.
pub(super) struct Site {
    catalog: CatalogId,
    pub(super) disk: SimDisk,
    pub(super) clock: Clock,
    pub(super) running: Option<Running>,
    /// Counts starts of its process.
    pub(super) generation: u64,
    pub(super) lease: Duration,
    /// The longest lease that was ever configured.
    pub(super) longest: Duration,
    /// A journal as it once was.
    pub(super) backup: Option<Vec<u8>>,
    /// The newest epoch that was begun.
    epoch: Epoch,
    /// Its disk has acknowledged what it did not write.
    pub(super) lied: bool,
    /// It found out when it was started, and does not start.
    pub(super) refuses: bool,
    /// The next start is one after a restore.
    pub(super) restores: bool,
    /// Until then nobody can demand that a publish ends in time.
    pub(super) excused_until: Time,
    /// Live pins: what the checker calls them, and what they keep.
    pub(super) pins: BTreeMap<u64, (u64, Revision)>,
    /// How often it gave which bytes.
    pub(super) copies: BTreeMap<SpecHash, u64>,
}

/// Its process.
pub(super) struct Running {
    pub(super) storage: Storage<SimDisk>,
    pub(super) machine: Coordinator,
    pub(super) view: Arc<View>,
    pub(super) asked: BTreeMap<Ticket, Asker>,
    pub(super) job: Option<Job>,
    armed: Option<Time>,
    started: Time,
    /// It answers: its epoch has a head.
    pub(super) serves: bool,
    pub(super) oldest: Revision,
    askers: Askers,
}

pub(super) enum Job {
    Entries(Vec<Entry>),
    Checkpoint(Vec<Entry>, BTreeSet<SpecHash>),
}

/// Who waits for an answer of the machine.
pub(super) enum Asker {
    Worker(Caller),
    Publisher(Sent),
    Pin,
    Nobody,
}

impl Site {
    pub(super) fn new(plan: &Plan, random: &mut Random) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random.next().to_be_bytes());
        let drift = i64::from(plan.drift);
        Self {
            catalog: CatalogId::from_bytes(id),
            disk: SimDisk::default(),
            clock: Clock::new(Time::default(), Time::from_micros(5_000_000), drift),
            running: None,
            generation: 0,
            lease: plan.lease,
            longest: plan.lease,
            backup: None,
            epoch: Epoch::new(1),
            lied: false,
            refuses: false,
            restores: false,
            excused_until: Time::default(),
            pins: BTreeMap::new(),
            copies: BTreeMap::new(),
        }
    }

    pub(super) fn catalog(&self) -> CatalogId {
        self.catalog
    }

    pub(super) fn serves(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.serves)
    }

    /// Until when a publish that arrives now may take, but for the disk.
    pub(super) fn patience(&self, now: Time) -> Time {
        let started = self.running.as_ref().map_or(now, |running| running.started);
        // Clocks may be slow.
        let longest = self.longest + self.longest / 500;
        (started + longest).max(now + longest)
    }

    fn open(&self) -> Result<(Vault<SimDisk>, Ledger), String> {
        let mut entries = Vec::new();
        let visit = |entry: &Entry| entries.push(entry.clone());
        let opened = Vault::open_simulated(self.disk.clone(), visit);
        let (mut vault, opened) = opened.map_err(|error| format!("{error}: {error:?}"))?;
        if opened.new {
            let genesis = Coordinator::genesis(self.catalog, &Signed);
            vault.append(&genesis).map_err(|error| error.to_string())?;
            vault.sync().map_err(|error| error.to_string())?;
            entries.push(genesis);
        }
        let Some((first, rest)) = entries.split_first() else {
            return Err("the journal is empty".into());
        };
        let mut ledger = Ledger::begin(first).map_err(|error| error.to_string())?;
        for entry in rest {
            let replayed = ledger.replay(entry.clone());
            replayed.map_err(|error| error.to_string())?;
        }
        let ledger = ledger.finish().map_err(|error| error.to_string())?;
        Ok((vault, ledger))
    }
}

impl World {
    pub(super) fn start_site(&mut self) {
        if self.site.running.is_some() {
            return;
        }
        let (vault, ledger) = match self.site.open() {
            Ok(opened) => opened,
            Err(why) if self.site.lied => {
                self.site.refuses = true;
                return self.oracle.note(self.now, 13, 0, || {
                    format!("coordinator refuses to start: {why}")
                });
            }
            Err(why) => {
                let why = format!("S4: the coordinator's journal does not open: {why}");
                return self.oracle.fail(self.now, why, "coordinator ".into());
            }
        };
        let (now, local) = (self.now, self.site.clock.at(self.now));
        let options = Options {
            retention: self.plan.retention,
            lease: self.site.lease,
            ..Options::default()
        };
        let unix_ms = self.site.clock.unix_ms(now);
        let tip = ledger.tip().rev();
        let (lease_max, newest) = (ledger.lease_max(), ledger.epoch());
        let machine = Coordinator::new(ledger, Arc::new(Signed), options, unix_ms, local);
        let view = machine.view();
        let visible = Place::new(view.epoch, view.records.rev());
        self.oracle.note(now, 6, visible.rev.get(), || {
            format!("coordinator starts at {visible}, tip {tip}, longest lease {lease_max:?}")
        });
        let view_is_current = view.epoch == machine.ledger().epoch();
        let first = self.site.generation == 0;
        self.site.generation += 1;
        let restores = std::mem::take(&mut self.site.restores);
        self.site.running = Some(Running {
            storage: Storage::new(vault),
            oldest: view.records.oldest(),
            view: Arc::clone(&view),
            machine,
            asked: BTreeMap::new(),
            job: None,
            armed: None,
            askers: Askers::default(),
            started: now,
            serves: view_is_current && !restores && newest >= self.site.epoch,
        });
        if restores {
            let (epoch, base) = (newest.next(), Place::new(view.epoch, tip));
            self.site.epoch = epoch;
            self.restored(epoch, base);
        }
        if newest < self.site.epoch {
            // The operator says so until it is done.
            return self.drive(Input::NewEpoch { unix_ms });
        }
        if self.site.lied && self.oracle.newest() > Some(visible) {
            self.oracle.betray(now, visible);
        }
        if !first {
            let visible = Some(visible).filter(|_| view_is_current);
            let at = now;
            self.oracle
                .event(history::Event::Restarted { at, visible }, "coordinator ");
        }
        self.drive(Input::Wake);
    }

    /// Hands one input to the coordinator's machine and carries out what follows.
    pub(super) fn drive(&mut self, input: Input) {
        let now = self.site.clock.at(self.now);
        let Some(running) = &mut self.site.running else {
            return;
        };
        for output in running.machine.handle(input, now) {
            self.obey(output);
        }
        let Some(running) = &mut self.site.running else {
            return;
        };
        if !running.serves && running.machine.view().epoch == running.machine.ledger().epoch() {
            running.serves = true;
        }
        let wake = running.machine.next_wake();
        let wake = wake.map(|local| self.site.clock.real(local).max(self.now));
        if let Some(at) = wake
            && running.armed.is_none_or(|armed| at < armed)
        {
            running.armed = Some(at);
            self.schedule(at, Step::SiteWakes);
        }
    }

    fn obey(&mut self, output: Output) {
        let (now, generation) = (self.now, self.site.generation);
        self.oracle.note(now, 7, 0, || {
            let mut text = format!("coordinator {output:?}");
            text = text.chars().take(300).collect();
            text
        });
        let Some(running) = &mut self.site.running else {
            return;
        };
        match output {
            Output::Write(entries) => {
                running.job = Some(Job::Entries(entries));
                let pause = self.random.span(self.plan.fsync);
                self.later(pause, Step::Written(generation));
            }
            Output::EndStream(stream) => self.stream_gone(stream),
            Output::Checkpoint { entries, retained } => {
                running.job = Some(Job::Checkpoint(entries, retained));
                let pause = self.random.span(self.plan.fsync) * 3;
                self.later(pause, Step::Written(generation));
            }
            Output::Reveal(view) => running.view = view,
            Output::Push { streams, push } => {
                let event = match &*push {
                    Push::Prepare(prepare) => Event::Prepare(prepare.clone()),
                    Push::Release(delta) => Event::Release(delta.clone()),
                };
                for stream in streams {
                    self.push(stream, event.clone());
                }
            }
            Output::Granted { ticket, result } => {
                if let Some(Asker::Worker(caller)) = running.asked.remove(&ticket) {
                    let event = result.map_or_else(Event::Refused, Event::Granted);
                    self.reply(caller, vec![event]);
                }
            }
            Output::PinReply { ticket, result } => {
                if let Some(Asker::Pin) = running.asked.remove(&ticket) {
                    self.pin_answered(result);
                }
            }
            Output::Reply { ticket, result } => {
                if let Some(Asker::Publisher(sent)) = running.asked.remove(&ticket) {
                    self.publish_answered(sent, result);
                }
            }
        }
    }

    fn pin_answered(&mut self, result: Result<Pinned, Refusal>) {
        let (Ok(pinned), Some(running)) = (result, &self.site.running) else {
            return;
        };
        let epoch = running.view.epoch;
        // Whether its wall clock jumps or not.
        let until = self.now + Duration::from_secs(3_000);
        let id = self.id();
        self.site.pins.insert(pinned.id, (id, pinned.rev));
        let pin = Pin {
            id: PinId(id),
            acknowledged: self.now,
            until,
            place: Place::new(epoch, pinned.rev),
        };
        self.oracle
            .event(history::Event::Pinned(pin), "coordinator ");
        let pause = self
            .random
            .span((Duration::from_secs(2), Duration::from_secs(20)));
        self.later(pause, Step::Unpins(pinned.id));
    }

    pub(super) fn site_wakes(&mut self) {
        if let Some(running) = &mut self.site.running
            && running.armed.is_some_and(|armed| armed <= self.now)
        {
            running.armed = None;
            self.drive(Input::Wake);
        }
    }

    /// A request has reached the coordinator.
    pub(super) fn asked(&mut self, from: Caller, ask: Ask) {
        let owner = format!("w{}", from.worker);
        self.oracle.note(self.now, 10, from.worker as u64, || {
            format!("coordinator <- {owner} {ask:?}")
                .chars()
                .take(300)
                .collect()
        });
        match ask {
            Ask::Renew(renew) => {
                let ticket = self.ticket(Asker::Worker(from));
                self.drive(Input::Renew {
                    ticket,
                    owner,
                    renew,
                });
            }
            Ask::Ack(ack) => self.drive(Input::PrepAck { owner, ack }),
            Ask::Leave(sid) => self.drive(Input::Leave { owner, sid }),
            Ask::Watch(sid) => {
                let stream = self.id();
                self.streams.insert(stream, Stream::new(from, sid));
                self.push(stream, Event::Watching);
                self.drive(Input::Watch { sid, owner, stream });
            }
            Ask::Unwatch(call) => {
                let call = Some(call);
                let mut streams = self.streams.iter();
                let found = streams.find(|(_, stream)| {
                    let Caller {
                        worker,
                        incarnation,
                        ..
                    } = stream.caller;
                    (worker, incarnation) == (from.worker, from.incarnation)
                        && stream.caller.call == call
                });
                if let Some((&stream, _)) = found {
                    self.stream_gone(stream);
                }
            }
            ask => {
                let events = self.answer(&ask, from.worker);
                self.count_copies(&events);
                self.reply(from, events);
            }
        }
    }

    pub(super) fn ticket(&mut self, asker: Asker) -> Ticket {
        let ticket = self.id();
        if let Some(running) = &mut self.site.running {
            running.asked.insert(ticket, asker);
        }
        ticket
    }

    pub(super) fn stream_gone(&mut self, stream: u64) {
        if let Some(found) = self.streams.remove(&stream) {
            let sid = found.sid;
            self.drive(Input::Unwatch { sid, stream });
        }
    }

    /// Answers what needs no input of the machine, as the coordinator's service does.
    fn answer(&mut self, ask: &Ask, asker: usize) -> Vec<Event> {
        let now = self.site.clock.at(self.now);
        let Some(running) = &mut self.site.running else {
            return Vec::new();
        };
        let (askers, ids) = (&mut running.askers, &self.known);
        let mut point = |hash| match askers.ask(hash, member_id(asker), |_| true, now) {
            Turn::Give => Vec::new(),
            Turn::Point(nodes) => {
                let named = nodes.iter().filter_map(|node| ids.get(node));
                named.map(|&worker| neighbour(worker)).collect()
            }
        };
        let body = |hash, len| match running.storage.vault.reader().body(hash, len) {
            Ok(Some(spec)) => Some(spec.into_bytes()),
            Ok(None) | Err(_) => None,
        };
        match ask {
            Ask::Resolve(resolve) => match running.view.resolve(resolve) {
                Err(refusal) => vec![Event::Refused(refusal)],
                Ok((opening, versions)) => {
                    let mut events = vec![Event::Opening(opening)];
                    for (asked, version) in resolve.names.iter().zip(versions) {
                        let content = version.map(|version| version.content);
                        let (mut bytes, mut ask) = (None, Vec::new());
                        if let Some(Content::Present { hash, len }) = content
                            && asked.if_hash != Some(hash)
                            && asked.body
                        {
                            if resolve.peering > Peering::Alone {
                                ask = point(hash);
                            }
                            if ask.is_empty() {
                                bytes = body(hash, Some(len));
                            }
                        }
                        let body = bytes.is_some();
                        events.push(Event::Outcome { version, body, ask });
                        events.extend(bytes.map(Event::Body));
                    }
                    events.push(Event::End);
                    events
                }
            },
            Ask::Delta(get) => {
                let ledger = running.machine.ledger();
                vec![match ledger.delta(get.epoch, get.from, MAX_DELTA) {
                    Some(delta) => Event::Delta(delta),
                    None => Event::Refused(Refusal::new(Code::Compacted, "not retained")),
                }]
            }
            Ask::Catalog(get) => {
                let view = &running.view;
                vec![Event::Catalog(replica::diff(
                    &view.records,
                    &view.head,
                    &get.have,
                ))]
            }
            Ask::Blob(hash, force) => {
                let ask = if *force { Vec::new() } else { point(*hash) };
                vec![match body(*hash, None) {
                    _ if !ask.is_empty() => Event::Pointed(ask),
                    Some(bytes) => Event::Body(bytes),
                    None => Event::Refused(Refusal::new(Code::NotFound, "not here")),
                }]
            }
            _ => Vec::new(),
        }
    }

    fn count_copies(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Body(bytes) = event {
                let copies = &mut self.site.copies;
                *copies.entry(SpecHash::of(bytes)).or_default() += 1;
            }
        }
    }
}
