//! What was promised, checked step by step: what an operation must not go below is noted when it
//! begins.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::answer::{RunToken, Snapshot};
use crate::catalog::{Content, Epoch, Revision, Version};
use crate::proto::Time;
use crate::proto::canon::Canon;
use crate::sim::history::Place;

const NOWHERE: Place = Place::new(Epoch::ZERO, Revision::ZERO);

/// What operations have shown so far.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    names: Vec<Seen>,
    /// By worker.
    used: Vec<Place>,
    open: Vec<Open>,
    /// What a record that anyone was shown stands for, by name and place.
    contents: BTreeMap<(usize, Place), Content>,
    /// By when a durable revision must be on its way to be visible.
    due: BTreeMap<Revision, Time>,
    /// The coordinator went back, as no operator should let it.
    rolled_back: bool,
}

/// One name.
#[derive(Debug, Clone)]
struct Seen {
    /// In acknowledged publishes.
    acked: Place,
    /// In all operations that have ended.
    any: Place,
    /// When publishes were acknowledged.
    acks: Vec<(Time, Place)>,
}

/// A read that has begun and not ended.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) ticket: u64,
    pub(super) worker: usize,
    pub(super) name: usize,
    acked: Place,
    any: Place,
    used: Place,
}

impl Judge {
    pub(super) fn new(names: usize, workers: usize) -> Self {
        let seen = Seen {
            acked: NOWHERE,
            any: NOWHERE,
            acks: Vec::new(),
        };
        Self {
            names: vec![seen; names],
            used: vec![NOWHERE; workers],
            open: Vec::new(),
            contents: BTreeMap::new(),
            due: BTreeMap::new(),
            rolled_back: false,
        }
    }

    /// A read by `worker` begins.
    pub(super) fn begin(&mut self, ticket: u64, worker: usize, name: usize) -> Open {
        let seen = &self.names[name];
        let open = Open {
            ticket,
            worker,
            name,
            acked: seen.acked,
            any: seen.any,
            used: self.used[worker],
        };
        self.open.push(open.clone());
        open
    }

    /// A read ends with an error, which promises nothing.
    pub(super) fn fail(&mut self, ticket: u64) {
        self.open.retain(|open| open.ticket != ticket);
    }

    /// Reads that have not ended.
    pub(super) fn reads(&self) -> usize {
        self.open.len()
    }

    /// The process of `worker` dies, and with it whoever reads there.
    pub(super) fn lose(&mut self, worker: usize) {
        self.open.retain(|open| open.worker != worker);
    }

    /// A strict read ends with this.
    pub(super) fn end(
        &mut self,
        ticket: u64,
        version: Version,
        snapshot: Snapshot,
    ) -> Result<(), String> {
        let Some(at) = self.open.iter().position(|open| open.ticket == ticket) else {
            return Err("a read was answered twice".into());
        };
        let open = self.open.remove(at);
        self.check(&open, version, snapshot)?;
        let place = Place::new(snapshot.epoch, version.rev);
        let seen = &mut self.names[open.name];
        seen.any = seen.any.max(place);
        let used = &mut self.used[open.worker];
        *used = (*used).max(snapshot.into());
        self.contents.insert((open.name, place), version.content);
        Ok(())
    }

    fn check(&self, open: &Open, version: Version, snapshot: Snapshot) -> Result<(), String> {
        let place = Place::new(snapshot.epoch, version.rev);
        if Place::from(snapshot) < open.used {
            return Err(format!(
                "S6: worker {} used {} after {}",
                open.worker,
                Place::from(snapshot),
                open.used
            ));
        }
        if self.rolled_back {
            return Ok(());
        }
        let absent = match version.content {
            Content::Deleted => ", an absence",
            Content::Present { .. } => "",
        };
        if place < open.acked {
            return Err(format!(
                "S1: worker {} answered with {place}{absent}, and a publish was acknowledged at {} before",
                open.worker, open.acked
            ));
        }
        if place < open.any {
            return Err(format!(
                "S2: worker {} answered with {place}{absent}, and a read had ended with {} before",
                open.worker, open.any
            ));
        }
        self.agrees(open.name, place, version.content)
    }

    /// A revision is used once.
    fn agrees(&self, name: usize, place: Place, content: Content) -> Result<(), String> {
        match self.contents.get(&(name, place)) {
            Some(known) if *known != content => Err(format!(
                "S2: revision {place} shows two contents of one name"
            )),
            _ => Ok(()),
        }
    }

    /// Whether a read that begins and ends now with this shows anything new, or breaks a promise.
    pub(super) fn is_news(
        &self,
        worker: usize,
        name: usize,
        version: Version,
        snapshot: Snapshot,
    ) -> bool {
        let seen = &self.names[name];
        let place = Place::new(snapshot.epoch, version.rev);
        let known = self.contents.get(&(name, place)) == Some(&version.content);
        place != seen.any || Place::from(snapshot) != self.used[worker] || !known
    }

    /// A publish is acknowledged at `snapshot` and made `name` this.
    pub(super) fn acknowledge(
        &mut self,
        name: usize,
        version: Version,
        epoch: Epoch,
        now: Option<Time>,
    ) -> Result<(), String> {
        let place = Place::new(epoch, version.rev);
        self.agrees(name, place, version.content)?;
        let seen = &mut self.names[name];
        seen.acked = seen.acked.max(place);
        seen.any = seen.any.max(place);
        if let Some(now) = now {
            seen.acks.push((now, place));
        }
        self.contents.insert((name, place), version.content);
        Ok(())
    }

    /// S5: a run that begins now at `token`.
    pub(super) fn run(&self, token: RunToken) -> Result<(), String> {
        let place = Place::new(token.epoch, token.rev);
        match self.names.iter().find(|seen| seen.acked > place) {
            Some(seen) => Err(format!(
                "S5: a run began at {place}, and a publish was acknowledged at {} before",
                seen.acked
            )),
            None => Ok(()),
        }
    }

    /// S7: a bounded read that begins now.
    pub(super) fn bounded(
        &self,
        name: usize,
        place: Place,
        staleness: Duration,
        now: Time,
    ) -> Result<(), String> {
        let late = |(at, acked): &&(Time, Place)| *acked > place && *at + staleness < now;
        match self.names[name].acks.iter().find(late) {
            Some((_, acked)) => Err(format!(
                "S7: a read with a bound of {} ms showed {place}, not {acked}",
                staleness.as_millis()
            )),
            None => Ok(()),
        }
    }

    /// S4: the coordinator comes back with all that was seen.
    pub(super) fn restarted(&self, visible: Place) -> Result<(), String> {
        match self.names.iter().find(|seen| seen.any > visible) {
            Some(seen) => Err(format!(
                "S4: the coordinator came back at {visible}, and {} had been seen",
                seen.any
            )),
            None => Ok(()),
        }
    }

    /// Publishes that are lost with a coordinator which is restored.
    pub(super) fn restored(&mut self, rolled_back: bool) {
        self.rolled_back |= rolled_back;
        self.due.clear();
    }

    /// L1: `rev` is durable now and waits until `due` at most.
    pub(super) fn durable(&mut self, rev: Revision, due: Time) {
        self.due.insert(rev, due);
    }

    pub(super) fn forget_due(&mut self) {
        self.due.clear();
    }

    /// L1: the coordinator shows `visible` and writes nothing.
    pub(super) fn idle(&mut self, visible: Revision, now: Time) -> Result<(), String> {
        self.due.retain(|rev, _| *rev > visible);
        match self.due.iter().find(|(_, due)| **due <= now) {
            Some((rev, due)) => Err(format!(
                "L1: revision {rev} still waits {} ms after every lease that it waits for has ended",
                now.since(*due).as_millis()
            )),
            None => Ok(()),
        }
    }

    pub(super) fn is_rolled_back(&self) -> bool {
        self.rolled_back
    }

    /// Writes what further checks depend on.
    pub(super) fn canon(&self, canon: &mut Canon) {
        for seen in &self.names {
            write(canon, seen.acked);
            write(canon, seen.any);
            for (at, place) in &seen.acks {
                canon.time(*at);
                write(canon, *place);
            }
        }
        for used in &self.used {
            write(canon, *used);
        }
        for open in &self.open {
            canon.u64(open.ticket).u64(open.worker as u64);
            canon.u64(open.name as u64);
            write(canon, open.acked);
            write(canon, open.any);
            write(canon, open.used);
        }
        canon.u64(self.contents.len() as u64);
        for ((name, place), content) in &self.contents {
            canon.u64(*name as u64);
            write(canon, *place);
            canon.option(content.hash(), |canon, hash| {
                canon.raw(hash.as_bytes());
            });
        }
        for (rev, due) in &self.due {
            canon.u64(rev.get()).time(*due);
        }
        canon.flag(self.rolled_back);
    }
}

fn write(canon: &mut Canon, place: Place) {
    canon.u64(place.epoch.get()).u64(place.rev.get());
}
