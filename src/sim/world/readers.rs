//! Readers: what they ask, by which way they get it, and what the checker is told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::node::Shown;
use super::site::Asker;
use super::{Step, World};
use crate::answer::{Answer, Freshness, GetError, Query, RunToken, Snapshot, Target};
use crate::catalog::{Content, Revision, Version};
use crate::proto::Time;
use crate::proto::coordinator::Input as SiteInput;
use crate::proto::wire::Pin;
use crate::proto::worker::{Input, Local, Look, SightCell, Ticket, look};
use crate::sim::history::{self, Ask, Failed, Mode, Outcome, Proof, Read, ReadId, Run, RunId};
use crate::spec::{Spec, SpecHash, SpecName};

/// What timers may take beyond a deadline.
const SLACK: Duration = Duration::from_millis(200);

/// A reader that waits so long gets its answer when nothing is wrong.
const PATIENT: Duration = Duration::from_secs(4);

/// Snapshots that tokens are taken from.
const MAX_SEEN: usize = 8;

/// A read that a machine has before it.
#[derive(Debug)]
pub(super) struct Open {
    query: Query,
    invoked: Time,
    due: Time,
    purpose: Purpose,
}

impl Open {
    pub(super) fn is_due(&self, now: Time) -> bool {
        now > self.due
    }
}

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Plain,
    OfRun(RunId),
    Token,
}

/// What readers know of each other.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    seen: Vec<Snapshot>,
    runs: BTreeMap<RunId, Snapshot>,
}

impl World {
    /// A reader reads some names, one after the other.
    pub(super) fn burst(&mut self, worker: usize) {
        let (low, high) = self.plan.think;
        let pause = match self.quiet {
            true => self.random.span((high * 4, high * 16)),
            false => self.random.span((low, high)),
        };
        self.later(pause, Step::Burst { worker });
        let node = &self.nodes[worker];
        if node.machine.is_none() || node.asleep(self.now).is_some() {
            return;
        }
        for _ in 0..=self.random.below(4) {
            let query = self.query();
            self.read(worker, query, Purpose::Plain);
            self.now = self.now + Duration::from_micros(1);
        }
    }

    fn query(&mut self) -> Query {
        let name = self.random.pick(&self.names).clone();
        let mut query = Query::strict(Target::Name(name));
        if self.random.percent(30) {
            query.deadline = self.random.span((SLACK, query.deadline));
        }
        if !self.plan.rich {
            return query;
        }
        let seen = (!self.crowd.seen.is_empty()).then(|| *self.random.pick(&self.crowd.seen));
        query.freshness = match (self.random.below(100), seen) {
            (0..5, _) => Freshness::Verified,
            (5..9, Some(seen)) => {
                let back = self.random.below(3) * self.random.below(30);
                Freshness::At(Revision::new(seen.rev.get().saturating_sub(back)))
            }
            (9..13, Some(seen)) => Freshness::AtLeast(token(seen)),
            (13..20, _) => {
                let bounds = (Duration::ZERO, Duration::from_secs(5));
                Freshness::Bounded(self.random.span(bounds))
            }
            (20, _) if !self.specs.is_empty() => {
                query.target = Target::Hash(self.random.pick(&self.specs).hash());
                Freshness::Strict
            }
            _ => Freshness::Strict,
        };
        query
    }

    fn read(&mut self, worker: usize, query: Query, purpose: Purpose) {
        if let Some((answer, proof)) = self.at_once(worker, &query) {
            let invoked = self.now;
            return self.answered(worker, &query, invoked, purpose, answer.as_ref(), proof);
        }
        let ticket = self.id();
        let forgets = purpose == Purpose::Plain && self.random.permille(10);
        let open = Open {
            invoked: self.now,
            due: self.now + query.deadline + SLACK,
            query: query.clone(),
            purpose,
        };
        self.nodes[worker].open.insert(ticket, open);
        let reads = vec![(ticket, query)];
        self.tell(worker, Input::Get { reads });
        if forgets && self.nodes[worker].open.remove(&ticket).is_some() {
            self.tell(worker, Input::Forget { ticket });
        }
    }

    /// What a reader thread finds by itself, with no packet sent.
    fn at_once(&self, worker: usize, query: &Query) -> Option<(Option<Spec>, Proof)> {
        let node = &self.nodes[worker];
        let Target::Name(name) = &query.target else {
            return None;
        };
        let cell: &Shown = &node.cell;
        let (found, mode) = match query.freshness {
            Freshness::Strict => {
                let (_, _, found) = look(cell, &|| node.clock.at(self.now), name);
                (found, Mode::Lease)
            }
            Freshness::Bounded(staleness) => {
                let now = node.clock.for_bounds(self.now);
                (cell.load().bounded(name, staleness, now), Mode::Bounded)
            }
            Freshness::AtLeast(token) => (cell.load().at_least(name, token), Mode::AtLeast),
            Freshness::Verified | Freshness::At(_) | Freshness::Run(_) => return None,
        };
        let Look::Serve(Version { rev, content }, snapshot) = found else {
            return None;
        };
        let proof = Proof {
            mode,
            snapshot: Some(snapshot),
            record: (rev > Revision::ZERO).then_some(rev),
        };
        match content {
            Content::Deleted => Some((None, proof)),
            Content::Present { hash, len } => match node.load(hash, Some(len)) {
                Local::Found(spec) => Some((Some(spec), proof)),
                _ => None,
            },
        }
    }

    fn answered(
        &mut self,
        worker: usize,
        query: &Query,
        invoked: Time,
        purpose: Purpose,
        spec: Option<&Spec>,
        proof: Proof,
    ) {
        let content = match spec {
            Some(spec) => Content::Present {
                hash: SpecHash::of(spec.bytes()),
                len: spec.len(),
            },
            None => Content::Deleted,
        };
        self.record(
            worker,
            query,
            invoked,
            purpose,
            Outcome::Answered { content, proof },
        );
        let Some(snapshot) = proof.snapshot else {
            return;
        };
        if self.crowd.seen.len() == MAX_SEEN {
            self.crowd.seen.remove(0);
        }
        self.crowd.seen.push(snapshot);
        if purpose == Purpose::Token {
            self.run_has_token(worker, invoked, snapshot);
        }
    }

    fn record(
        &mut self,
        worker: usize,
        query: &Query,
        invoked: Time,
        purpose: Purpose,
        outcome: Outcome,
    ) {
        let id = ReadId(self.id());
        let node = &self.nodes[worker];
        let run = match purpose {
            Purpose::OfRun(run) if self.crowd.runs.contains_key(&run) => Some(run),
            _ => None,
        };
        let read = Read {
            id,
            worker: node.identity,
            incarnation: node.incarnation,
            run,
            target: query.target.clone(),
            ask: Ask::from(query),
            invoked,
            responded: self.now,
            outcome,
        };
        self.oracle.read(read, worker);
    }

    /// A machine answers a read.
    pub(super) fn read_done(
        &mut self,
        worker: usize,
        ticket: Ticket,
        result: Result<Answer, GetError>,
    ) {
        let Some(open) = self.nodes[worker].open.remove(&ticket) else {
            return;
        };
        let (now, query) = (self.now, &open.query);
        if now > open.due.max(self.nodes[worker].slept_until() + SLACK) {
            let why = format!("L4: w{worker} answered {} too late", query.target);
            self.oracle.fail(now, why, format!("w{worker} "));
        }
        match &result {
            Ok(answer) => {
                let Outcome::Answered { proof, .. } = Outcome::from(answer) else {
                    return;
                };
                let spec = answer.spec.as_ref();
                self.answered(worker, query, open.invoked, open.purpose, spec, proof);
            }
            Err(error) => {
                let outcome = Outcome::Failed(Failed::from(error));
                self.record(worker, query, open.invoked, open.purpose, outcome);
                self.read_failed(worker, query, open.invoked, error);
            }
        }
    }

    fn read_failed(&mut self, worker: usize, query: &Query, invoked: Time, error: &GetError) {
        if self.site.refuses || self.oracle.is_betrayed() {
            return;
        }
        let patient = query.deadline > PATIENT;
        let settled = self.quiet && invoked > self.settled_at() && patient;
        let strict = matches!(query.freshness, Freshness::Strict | Freshness::Verified)
            && matches!(query.target, Target::Name(_));
        let carried = self.plan.apart > 0 && patient;
        if carried && strict {
            let why = format!("L5: w{worker} read {} and got: {error}", query.target);
            return self.oracle.fail(self.now, why, format!("w{worker} "));
        }
        let liar = matches!(
            error,
            GetError::Quarantined { .. } | GetError::WrongCatalog { .. }
        );
        if liar || (settled && strict) {
            let why = format!("L3: w{worker} read {} and got: {error}", query.target);
            self.oracle.fail(self.now, why, format!("w{worker} "));
        }
    }

    pub(super) fn run_begins(&mut self) {
        if self.quiet {
            return;
        }
        let pause = self
            .random
            .span((Duration::from_millis(10), Duration::from_millis(600)));
        self.later(pause, Step::RunBegins);
        let worker = self.random.index(self.nodes.len());
        let node = &self.nodes[worker];
        if node.machine.is_none() || node.asleep(self.now).is_some() {
            return;
        }
        let now = node.clock.at(self.now);
        match node.cell.load().run_token(now) {
            Some(token) => {
                let snapshot = Snapshot {
                    catalog: token.catalog,
                    epoch: token.epoch,
                    rev: token.rev,
                };
                self.run_has_token(worker, self.now, snapshot);
            }
            None => {
                let name = self.random.pick(&self.names).clone();
                let mut query = Query::strict(Target::Name(name));
                query.freshness = Freshness::Verified;
                self.read(worker, query, Purpose::Token);
            }
        }
    }

    fn run_has_token(&mut self, worker: usize, invoked: Time, token: Snapshot) {
        let id = RunId(self.id());
        let run = Run {
            id,
            invoked,
            responded: self.now,
            token,
        };
        self.crowd.runs.insert(id, token);
        self.oracle
            .event(history::Event::RunBegan(run), &format!("w{worker} "));
        let step = Step::RunGoesOn {
            worker,
            run: id,
            left: 4,
        };
        self.later(Duration::from_micros(2), step);
    }

    pub(super) fn run_goes_on(&mut self, worker: usize, run: RunId, left: u32) {
        let Some(token) = self.crowd.runs.get(&run).copied() else {
            return;
        };
        if left == 0 {
            return self.run_ends(run);
        }
        let pause = self
            .random
            .span((Duration::from_millis(1), Duration::from_millis(500)));
        let step = Step::RunGoesOn {
            worker,
            run,
            left: left - 1,
        };
        self.later(pause, step);
        let node = &self.nodes[worker];
        if node.machine.is_none() || node.asleep(self.now).is_some() {
            return;
        }
        for name in self.some_names() {
            let mut query = Query::strict(Target::Name(name));
            query.freshness = Freshness::At(token.rev);
            self.read(worker, query, Purpose::OfRun(run));
        }
    }

    fn some_names(&mut self) -> Vec<SpecName> {
        let count = 1 + self.random.index(3);
        (0..count)
            .map(|_| self.random.pick(&self.names).clone())
            .collect()
    }

    fn run_ends(&mut self, id: RunId) {
        self.crowd.runs.remove(&id);
        let at = self.now;
        self.oracle
            .event(history::Event::RunEnded { id, at }, "run ");
    }

    /// The epoch of all tokens is over.
    pub(super) fn runs_are_over(&mut self) {
        let runs: Vec<_> = self.crowd.runs.keys().copied().collect();
        for run in runs {
            self.run_ends(run);
        }
        self.crowd.seen.clear();
    }

    /// Someone pins what is visible.
    pub(super) fn pins(&mut self) {
        if self.quiet {
            return;
        }
        let pause = self.random.around(Duration::from_secs(3));
        self.later(pause, Step::Pins);
        let Some(running) = &self.site.running else {
            return;
        };
        if !self.site.serves() {
            return;
        }
        let pin = Pin {
            epoch: running.view.epoch,
            rev: running.view.records.rev(),
            for_ms: 10_000_000,
        };
        let ticket = self.ticket(Asker::Pin);
        let by = "someone".into();
        let unix_ms = self.site.clock.unix_ms(self.now);
        self.drive(SiteInput::Pin {
            ticket,
            by,
            pin,
            unix_ms,
        });
    }

    /// A pinned revision is read once more and then let go.
    pub(super) fn unpins(&mut self, number: u64) {
        let Some(&(id, rev)) = self.site.pins.get(&number) else {
            return;
        };
        if !self.site.serves() {
            return self.later(Duration::from_millis(300), Step::Unpins(number));
        }
        let worker = self.random.index(self.nodes.len());
        for name in self.some_names() {
            let mut query = Query::strict(Target::Name(name));
            query.freshness = Freshness::At(rev);
            let node = &self.nodes[worker];
            if node.machine.is_some() && node.asleep(self.now).is_none() {
                self.read(worker, query, Purpose::Plain);
            }
        }
        if self.random.percent(60) {
            let pause = self.random.around(Duration::from_secs(4));
            return self.later(pause, Step::Unpins(number));
        }
        self.site.pins.remove(&number);
        let (at, id) = (self.now, history::PinId(id));
        self.oracle
            .event(history::Event::Unpinned { id, at }, "coordinator ");
        let ticket = self.ticket(Asker::Nobody);
        let by = "local".to_owned();
        self.drive(SiteInput::Unpin {
            ticket,
            by,
            id: number,
        });
    }
}

fn token(snapshot: Snapshot) -> RunToken {
    RunToken {
        catalog: snapshot.catalog,
        epoch: snapshot.epoch,
        rev: snapshot.rev,
    }
}
