//! Truth: what is a name now, or at a revision?

use std::collections::BTreeMap;

use crate::answer::Hop;
use crate::answer::{Freshness, GetError, HopFailure, LastKnown, Mode, RunToken, Snapshot};
use crate::catalog::{CatalogId, Content, Epoch, Revision, Version};
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{ANSWER_TIMEOUT, MAX_NAMES_PER_RESOLVE, MAX_QUESTIONS, MAX_RELEASE_WAIT};
use crate::proto::mutant::mutant;
use crate::proto::wire::{Resolve, ResolveName, Resolved};
use crate::proto::worker::{
    Basis, Call, CallId, Event, HeldRecord, LoadFor, Local, Mark, Neighbour, Output, Place, Source,
    Ticket, Timer, Waiter, Worker,
};
use crate::spec::{Spec, SpecName};

/// Below this a wait for a release is not worth while: the answer of a coordinator nearby takes as
/// long, and one whose round trip is not known yet gets this much.
const MIN_RELEASE_WAIT: std::time::Duration = std::time::Duration::from_millis(5);

/// Hops that are named in one error: more tell nothing new.
const MAX_HOPS: usize = 32;

/// How often a question that came to nothing is asked again over another worker.
const MAX_RELAYED_RETRIES: usize = 3;

/// One question of truth: a name, now or at a revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlightKey {
    pub(super) name: SpecName,
    pub(super) at: Option<Revision>,
}

impl FlightKey {
    pub(super) fn new(name: &SpecName, freshness: Freshness) -> Self {
        Self {
            name: name.clone(),
            at: freshness.revision(),
        }
    }
}

/// A question on its way.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) waiters: Vec<Waiter>,
    /// Strict reads that began after the question was sent: they ask again.
    pub(super) next: Vec<Waiter>,
    /// The newest version that is on disk, so that the coordinator need not send it.
    local: Option<Spec>,
    hops: Vec<HopFailure>,
    pub(super) tried: Vec<usize>,
    /// Addresses that were given a second try over a new connection.
    pub(super) retried: Vec<usize>,
    pub(super) sent: Option<CallId>,
}

impl Flight {
    /// Adds what did not help.
    pub(super) fn note(&mut self, failure: HopFailure) {
        if self.hops.len() < MAX_HOPS {
            self.hops.push(failure);
        }
    }

    fn new(waiters: Vec<Waiter>) -> Self {
        Self {
            waiters,
            next: Vec::new(),
            local: None,
            hops: Vec::new(),
            tried: Vec::new(),
            retried: Vec::new(),
            sent: None,
        }
    }

    /// Whether all who waited for it have gone away.
    fn is_forgotten(&self) -> bool {
        self.waiters.is_empty() && self.next.is_empty()
    }

    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.waiters.retain(|waiter| waiter.ticket != ticket);
        self.next.retain(|waiter| waiter.ticket != ticket);
    }
}

/// Several questions in one request to one coordinator.
#[derive(Debug, Clone)]
pub(super) struct ResolveCall {
    coordinator: usize,
    sent: Time,
    /// When it is looked at whether it is still worth its wait, until the answer begins.
    late_at: Time,
    /// Packets have come since it was looked at last.
    alive: bool,
    /// In the order of the request; the first `answered` are done.
    pub(super) keys: Vec<FlightKey>,
    pub(super) answered: usize,
    pub(super) opening: Option<Resolved>,
    /// What had been seen when the request was sent: an answer below it is a rollback.
    pub(super) mark: Option<Mark>,
    /// Whose body comes next.
    body_of: Option<crate::spec::SpecHash>,
}

impl Worker {
    /// Asks the coordinator what a name is now.
    pub(super) fn ask(&mut self, name: SpecName, waiter: Waiter) {
        let key = FlightKey { name, at: None };
        match self.flights.get_mut(&key) {
            Some(flight) if flight.sent.is_some() && !mutant!(X29) => flight.next.push(waiter),
            Some(flight) => flight.waiters.push(waiter),
            None => self.start_flight(key, vec![waiter]),
        }
    }

    /// The same within one history: nothing from another one is an answer, whatever its number.
    pub(super) fn get_run(&mut self, name: SpecName, token: RunToken, waiter: Waiter, now: Time) {
        let known = self.mark.map(|mark| token.check(mark.catalog, mark.epoch));
        match known {
            // Of an epoch that is still to come here: the coordinator may be in it.
            Some(Err(GetError::OtherEpoch { epoch, .. })) if epoch < token.epoch => {}
            Some(Err(error)) => return self.fail(vec![waiter], &error),
            Some(Ok(())) | None => {}
        }
        self.get_at(name, token.rev, waiter, now);
    }

    /// What a name was at a revision never changes, so any flight may be joined.
    pub(super) fn get_at(&mut self, name: SpecName, at: Revision, waiter: Waiter, now: Time) {
        if let Some((version, snapshot)) = self.sight.at(&name, at)
            && waiter.is_within(snapshot.catalog, snapshot.epoch)
        {
            let basis = Basis {
                mode: Mode::At,
                snapshot: Some(snapshot),
                record_rev: known_rev(version),
                asked: now,
            };
            let waiters = vec![waiter];
            return self.settle(version, basis, waiters, Vec::new(), Hop::Disk, now);
        }
        if let (Some(version), Some(mark)) = (self.held.at(&name, at), self.mark)
            && waiter.is_within(mark.catalog, mark.epoch)
        {
            let basis = Basis {
                mode: Mode::At,
                snapshot: Some(mark.at(at)),
                record_rev: known_rev(version),
                asked: now,
            };
            let waiters = vec![waiter];
            return self.settle(version, basis, waiters, Vec::new(), Hop::Disk, now);
        }
        let at = Some(at);
        let key = FlightKey { name, at };
        match self.flights.get_mut(&key) {
            Some(flight) => flight.waiters.push(waiter),
            None => self.start_flight(key, vec![waiter]),
        }
    }

    fn start_flight(&mut self, key: FlightKey, waiters: Vec<Waiter>) {
        let last = self.last_known(&key.name).and_then(|last| last.hash);
        self.flights.insert(key.clone(), Flight::new(waiters));
        match last {
            Some(hash) => self.load(hash, LoadFor::Flight(key)),
            None => self.ready.push(key),
        }
    }

    /// The newest version of a name that is known here, current or not.
    fn last_known(&self, name: &SpecName) -> Option<LastKnown> {
        let held = self.held.last(name);
        let replica = self.sight.replica.as_ref();
        let found = replica.and_then(|replica| Some((replica, replica.records().get(name)?)));
        let Some((replica, version)) = found else {
            return held;
        };
        if held.is_some_and(|held| held.seen_rev > replica.rev()) {
            return held;
        }
        Some(LastKnown {
            record_rev: version.rev,
            seen_rev: replica.rev(),
            hash: version.content.hash(),
            age_ms: None,
        })
    }

    /// The same with its age.
    pub(super) fn last_known_at(&self, name: &SpecName, now: Time) -> Option<LastKnown> {
        self.last_known(name).map(|last| LastKnown {
            age_ms: self.age_of(last.seen_rev, now),
            ..last
        })
    }

    /// How long a strict read waits for a release before it asks.
    pub(super) fn release_wait(&self, now: Time) -> std::time::Duration {
        let coordinator = self.sources.next_coordinator(&[], now);
        let round_trip = coordinator.map(|coordinator| self.sources.round_trip(coordinator));
        (round_trip.unwrap_or_default() * 2).clamp(MIN_RELEASE_WAIT, MAX_RELEASE_WAIT)
    }

    pub(super) fn flight_loaded(&mut self, key: &FlightKey, local: Local) {
        let Some(flight) = self.flights.get_mut(key) else {
            return;
        };
        match local {
            Local::Found(spec) => flight.local = Some(spec),
            Local::Missing => {}
            Local::Damaged => flight.hops.push(damaged()),
            Local::Failed(reason) => {
                // A broken disk is reported as itself; asking elsewhere would hide it.
                let error = GetError::Disk { reason };
                if let Some(flight) = self.flights.remove(key) {
                    self.fail(flight.waiters, &error);
                    self.fail(flight.next, &error);
                }
                return;
            }
        }
        self.ready.push(key.clone());
    }

    /// Sends what became ready in this turn, as few requests as possible.
    pub(super) fn send_ready(&mut self, now: Time) {
        while !self.ready.is_empty() {
            let room = MAX_QUESTIONS.saturating_sub(self.questions());
            if room == 0 {
                // The next answer, or the end of a wait for one, makes room.
                return;
            }
            let mut groups: BTreeMap<(Option<Revision>, usize), Vec<FlightKey>> = BTreeMap::new();
            for key in std::mem::take(&mut self.ready) {
                let Some(flight) = self.flights.get(&key) else {
                    continue;
                };
                if flight.is_forgotten() {
                    self.flights.remove(&key);
                    continue;
                }
                match self.sources.next_coordinator(&flight.tried, now) {
                    Some(coordinator) if self.rather_waits(coordinator, &key, now) => {}
                    Some(coordinator) => groups.entry((key.at, coordinator)).or_default().push(key),
                    None if self.await_relay(&key, now) => {}
                    None => self.truth_failed(&key, now),
                }
            }
            let requests = groups.iter().flat_map(|(&(at, coordinator), keys)| {
                let keys = keys.chunks(MAX_NAMES_PER_RESOLVE);
                keys.map(move |keys| (at, coordinator, keys))
            });
            for (sent, (at, coordinator, keys)) in requests.enumerate() {
                match sent < room {
                    true => self.send_resolve(at, coordinator, keys.to_vec(), now),
                    false => self.ready.extend_from_slice(keys),
                }
            }
        }
    }

    /// Questions under way.
    fn questions(&self) -> usize {
        let calls = self.calls.values();
        calls
            .filter(|call| matches!(call, Call::Resolve(_)))
            .count()
    }

    fn send_resolve(
        &mut self,
        at: Option<Revision>,
        coordinator: usize,
        keys: Vec<FlightKey>,
        now: Time,
    ) {
        let call = self.new_call(Call::Resolve(ResolveCall {
            coordinator,
            sent: now,
            late_at: now + ANSWER_TIMEOUT,
            alive: false,
            keys: keys.clone(),
            answered: 0,
            opening: None,
            mark: self.mark,
            body_of: None,
        }));
        let flights = keys.iter().filter_map(|key| self.flights.get(key));
        let left = flights.map(|flight| self.time_left(&flight.waiters, now));
        let within = left.max().unwrap_or_default();
        let mut names = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.sent = Some(call);
                let if_hash = flight.local.as_ref().map(Spec::hash);
                let (name, body) = (key.name, true);
                names.push(ResolveName {
                    name,
                    if_hash,
                    body,
                });
            }
        }
        self.timers
            .insert((now + ANSWER_TIMEOUT, Timer::Answer(call)));
        let peering = self.peering;
        let request = Resolve { at, names, peering };
        self.out.push(Output::Resolve {
            call,
            coordinator,
            request,
            within,
        });
    }

    pub(super) fn resolve_event(&mut self, id: CallId, event: Event, now: Time) {
        let Some(Call::Resolve(mut call)) = self.calls.remove(&id) else {
            return;
        };
        let goes_on = match event {
            Event::Alive => {
                call.alive = true;
                true
            }
            Event::Opening(opening) if call.opening.is_none() => {
                self.timers.remove(&(call.late_at, Timer::Answer(id)));
                self.opened(id, &mut call, opening, now)
            }
            Event::Outcome { version, body, ask } if call.body_of.is_none() => {
                self.outcome(id, &mut call, version, (body, &ask), now)
            }
            Event::Body(bytes) if call.body_of.is_some() => {
                if let Some(hash) = call.body_of.take() {
                    let source = Source::Coordinator(call.coordinator);
                    self.fetch_body(hash, id, source, call.sent, bytes, now);
                }
                true
            }
            Event::Refused(refusal) => {
                self.refused(id, &mut call, &refusal, now);
                return;
            }
            Event::Failed {
                reason,
                unreachable,
            } => return self.call_failed(id, call, &reason, unreachable, now),
            Event::Lost { reason } => {
                let source = Source::Coordinator(call.coordinator);
                self.sources.failed(source, false, now);
                self.drop_call(id, &mut call, &reason, true, now);
                return;
            }
            Event::End if call.answered == call.keys.len() && call.body_of.is_none() => return,
            Event::End => return self.call_failed(id, call, "the answer ended early", false, now),
            _ => {
                self.out.push(Output::Cancel(id));
                return self.call_failed(id, call, "the answer is out of order", false, now);
            }
        };
        if goes_on {
            self.calls.insert(id, Call::Resolve(call));
        } else {
            self.out.push(Output::Cancel(id));
        }
    }

    /// Checks that the answer continues what was seen before; false ends the call.
    fn opened(&mut self, id: CallId, call: &mut ResolveCall, opening: Resolved, now: Time) -> bool {
        let hop = self.sources.hop(Source::Coordinator(call.coordinator));
        let said = Mark {
            catalog: opening.catalog,
            epoch: opening.epoch,
            rev: opening.rev,
        };
        if mutant!(X11) {
            self.out.push(Output::Remember(said));
        }
        if let Some(mark) = self.mark
            && mark.catalog != opening.catalog
        {
            let reason = format!("serves catalog {}", opening.catalog.short());
            self.fail_call(call, |hops| GetError::WrongCatalog {
                known: mark.catalog,
                got: opening.catalog,
                hops: [
                    hops,
                    vec![HopFailure {
                        hop: hop.clone(),
                        reason: reason.clone(),
                    }],
                ]
                .concat(),
            });
            return false;
        }
        let at = call.keys.first().and_then(|key| key.at);
        // An answer for an old revision says nothing of the newest one.
        let state = match (at, call.mark) {
            (Some(_), Some(mark)) if mark.epoch == said.epoch => said.max(mark),
            _ => said,
        };
        if !self.believe(state, call.mark) {
            match self.rollback {
                Some((known, got)) => {
                    self.fail_call(call, |_| GetError::Quarantined { known, got });
                }
                None => {
                    self.drop_call(id, call, "it answered for an epoch that is over", true, now)
                }
            }
            return false;
        }
        self.raise_floor(said);
        if at.is_none() {
            self.expect_anchor(call.sent, said.rev);
        }
        self.plan_update(now);
        let source = Source::Coordinator(call.coordinator);
        self.sources.answered(source, now.since(call.sent));
        self.sources.prefer(call.coordinator);
        if self.is_relayed(call.coordinator) {
            self.relay_works();
        }
        call.opening = Some(opening);
        true
    }

    /// Takes the truth about the next name of the call; false ends the call.
    fn outcome(
        &mut self,
        id: CallId,
        call: &mut ResolveCall,
        version: Option<Version>,
        (body, ask): (bool, &[Neighbour]),
        now: Time,
    ) -> bool {
        let (Some(opening), Some(key)) = (&call.opening, call.keys.get(call.answered)) else {
            self.drop_call(id, call, "the answer is out of order", false, now);
            return false;
        };
        let (opening, key) = (opening.clone(), key.clone());
        let version = version.unwrap_or(Version {
            rev: Revision::ZERO,
            content: Content::Deleted,
        });
        // Nothing can have changed after the revision at which it is shown.
        let shown = key.at.map_or(opening.rev, |at| at.min(opening.rev));
        if version.rev > shown {
            let what = format!("showed revision {} of a name at {shown}", version.rev);
            let source = Source::Coordinator(call.coordinator);
            let hop = self.sources.hop(source);
            self.sources.lied(source, now);
            self.drop_call(id, call, &what, false, now);
            self.out.push(Output::Misbehaved { hop, what });
            return false;
        }
        call.answered += 1;
        let name = key.name.clone();
        self.hold(HeldRecord {
            name,
            version,
            seen: opening.rev,
        });
        let basis = Basis {
            mode: key.at.map_or(Mode::Asked, |_| Mode::At),
            snapshot: Some(Snapshot {
                catalog: opening.catalog,
                epoch: opening.epoch,
                rev: opening.rev,
            }),
            record_rev: known_rev(version),
            asked: call.sent,
        };
        if body {
            call.body_of = version.content.hash();
        }
        let Some(flight) = self.flights.remove(&key) else {
            return true;
        };
        if !flight.next.is_empty() {
            self.start_flight(key, flight.next);
        }
        let (waiters, hops) = (self.reaching(flight.waiters, &opening), flight.hops);
        let source = Source::Coordinator(call.coordinator);
        match (version.content, flight.local) {
            (Content::Present { hash, len }, Some(local))
                if local.hash() == hash && local.len() == len =>
            {
                let proof = basis.proof(Hop::Disk, now);
                self.answer(waiters, Some(&local), &proof, &hops, now);
            }
            (Content::Present { hash, len }, _) if body => {
                self.place(&waiters, &Place::Fetch(hash));
                self.want_inline(hash, len, basis, waiters, hops, (id, source), now);
            }
            _ => {
                let hop = self.sources.hop(source);
                self.settle(version, basis, waiters, hops, hop, now);
                if let (Some(hash), false) = (version.content.hash(), ask.is_empty()) {
                    self.point(hash, ask, call.sent, now);
                }
            }
        }
        true
    }

    /// Those for whom the answer is of the right history and new enough; the others are told so.
    fn reaching(&mut self, waiters: Vec<Waiter>, opening: &Resolved) -> Vec<Waiter> {
        let mut reaching = Vec::with_capacity(waiters.len());
        for waiter in waiters {
            match waiter.takes(opening) {
                Ok(()) => reaching.push(waiter),
                Err(error) => self.fail(vec![waiter], &error),
            }
        }
        reaching
    }

    /// Answers from a record that is known to be right.
    pub(super) fn settle(
        &mut self,
        version: Version,
        basis: Basis,
        waiters: Vec<Waiter>,
        hops: Vec<HopFailure>,
        truth: Hop,
        now: Time,
    ) {
        match version.content {
            Content::Deleted => {
                let proof = basis.proof(truth, now);
                self.answer(waiters, None, &proof, &hops, now);
            }
            Content::Present { hash, len } => {
                self.place(&waiters, &Place::Fetch(hash));
                self.want_bytes(hash, Some(len), basis, waiters, hops);
            }
        }
    }

    fn place(&mut self, waiters: &[Waiter], place: &Place) {
        for waiter in waiters {
            if let Some(read) = self.reads.get_mut(&waiter.ticket) {
                read.place = place.clone();
            }
        }
    }

    fn hold(&mut self, record: HeldRecord) {
        if self.held.hold(&record) {
            self.out.push(Output::Hold(record));
        }
    }

    fn refused(&mut self, id: CallId, call: &mut ResolveCall, refusal: &Refusal, now: Time) {
        let at = call.keys.first().and_then(|key| key.at);
        let definite = match (refusal.code, at, refusal.rev) {
            (Code::Compacted, Some(at), Some(oldest)) => Some(GetError::Compacted { at, oldest }),
            (Code::Future, Some(at), Some(newest)) => Some(GetError::Future { at, newest }),
            _ => None,
        };
        match definite {
            Some(error) if call.opening.is_none() => {
                self.timers.remove(&(call.late_at, Timer::Answer(id)));
                self.fail_call(call, |_| error.clone());
            }
            _ => self.drop_call(id, call, &refusal.message, false, now),
        }
    }

    fn call_failed(
        &mut self,
        id: CallId,
        mut call: ResolveCall,
        reason: &str,
        unreachable: bool,
        now: Time,
    ) {
        let source = Source::Coordinator(call.coordinator);
        self.sources.failed(source, unreachable, now);
        self.drop_call(id, &mut call, reason, false, now);
        if unreachable && self.is_relayed(call.coordinator) && self.relay.is_up() {
            self.relay_failed(reason, true, now);
        }
    }

    /// Questions to a direct address that nobody has begun to answer.
    pub(super) fn unanswered_resolves(&self) -> impl Iterator<Item = CallId> {
        self.calls.iter().filter_map(|(&id, call)| match call {
            Call::Resolve(call) if call.opening.is_none() => {
                (!self.is_relayed(call.coordinator)).then_some(id)
            }
            _ => None,
        })
    }

    /// Takes a question back and asks the next address. This one may be asked again later.
    pub(super) fn ask_elsewhere(&mut self, id: CallId, now: Time) {
        if let Some(Call::Resolve(mut call)) = self.calls.remove(&id) {
            self.out.push(Output::Cancel(id));
            self.drop_call(id, &mut call, "no answer yet", true, now);
        }
    }

    /// What the call has not answered is asked elsewhere, or `again` there.
    fn drop_call(
        &mut self,
        id: CallId,
        call: &mut ResolveCall,
        reason: &str,
        again: bool,
        now: Time,
    ) {
        self.timers.remove(&(call.late_at, Timer::Answer(id)));
        // While another worker carries the session, the direct addresses are silent: to ask there
        // would take longer than to ask again.
        let relayed = self.is_relayed(call.coordinator);
        let again = again || relayed;
        let tries = if relayed { MAX_RELAYED_RETRIES } else { 1 };
        let source = Source::Coordinator(call.coordinator);
        let failure = HopFailure {
            hop: self.sources.hop(source),
            reason: reason.to_owned(),
        };
        for key in call.keys.drain(..).skip(call.answered) {
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.note(failure.clone());
                let retried = flight.retried.iter();
                let retried = retried.filter(|index| **index == call.coordinator);
                if !again || retried.count() >= tries {
                    flight.tried.push(call.coordinator);
                } else {
                    flight.retried.push(call.coordinator);
                }
                flight.sent = None;
                self.ready.push(key);
            }
        }
        call.answered = 0;
        if let Some(hash) = call.body_of.take() {
            // Its bytes come last now, whatever the reason was.
            self.sources.failed(source, true, now);
            self.source_failed(hash, id, reason, now);
        }
    }

    fn fail_call(&mut self, call: &mut ResolveCall, error: impl Fn(Vec<HopFailure>) -> GetError) {
        for key in call.keys.drain(..).skip(call.answered) {
            if let Some(flight) = self.flights.remove(&key) {
                self.fail(flight.waiters, &error(flight.hops));
                if !flight.next.is_empty() {
                    self.start_flight(key, flight.next);
                }
            }
        }
        call.answered = 0;
    }

    /// A question has had no answer for [`ANSWER_TIMEOUT`], or for so long again. While its path
    /// lives the answer is on its way, and to ask anew would be twice the load: only another
    /// address that was not asked yet may be quicker.
    pub(super) fn answer_late(&mut self, id: CallId, now: Time) {
        let Some(Call::Resolve(mut call)) = self.calls.remove(&id) else {
            return;
        };
        let reason = format!("no answer within {} ms", ANSWER_TIMEOUT.as_millis());
        if !std::mem::take(&mut call.alive) {
            self.out.push(Output::Cancel(id));
            self.call_failed(id, call, &reason, true, now);
        } else if self.is_forgotten(&call) {
            self.out.push(Output::Cancel(id));
            self.forget_call(call, now);
        } else if self.has_untried(&call, now) {
            self.out.push(Output::Cancel(id));
            // The others come first now; without an answer from them it is asked again.
            let source = Source::Coordinator(call.coordinator);
            self.sources.failed(source, true, now);
            self.drop_call(id, &mut call, &reason, true, now);
        } else {
            call.late_at = now + ANSWER_TIMEOUT;
            self.timers.insert((call.late_at, Timer::Answer(id)));
            self.calls.insert(id, Call::Resolve(call));
        }
    }

    /// Whether all who waited for the answer have gone away.
    fn is_forgotten(&self, call: &ResolveCall) -> bool {
        let mut flights = call.keys.iter().filter_map(|key| self.flights.get(key));
        flights.all(|flight| flight.waiters.is_empty())
    }

    /// Gives a question up that nobody waits for. Reads that began after it was sent ask anew, so
    /// that one stream without an answer holds up nobody else.
    fn forget_call(&mut self, call: ResolveCall, now: Time) {
        let source = Source::Coordinator(call.coordinator);
        self.sources.failed(source, false, now);
        for key in call.keys {
            if let Some(flight) = self.flights.remove(&key)
                && !flight.next.is_empty()
            {
                self.start_flight(key, flight.next);
            }
        }
    }

    /// Whether an address may be quicker that none of these names was asked for at. The direct
    /// ones are silent while another worker carries the session.
    fn has_untried(&self, call: &ResolveCall, now: Time) -> bool {
        let mut flights = call.keys.iter().filter_map(|key| self.flights.get(key));
        !self.is_relayed(call.coordinator)
            && flights.all(|flight| {
                let asked = [&flight.tried[..], &flight.retried, &[call.coordinator]].concat();
                let next = self.sources.next_coordinator(&asked, now);
                next.is_some_and(|next| !self.sources.is_penalised(next, now))
            })
    }

    /// No coordinator is left to ask.
    fn truth_failed(&mut self, key: &FlightKey, now: Time) {
        let Some(mut flight) = self.flights.remove(key) else {
            return;
        };
        if mutant!(X22)
            && let Some(replica) = &self.sight.replica
            && let Some(version) = replica.records().get(&key.name)
        {
            let mut basis = Basis::pinned(now);
            basis.mode = Mode::Lease;
            basis.record_rev = known_rev(version);
            basis.snapshot = self.mark.map(|mark| mark.at(replica.rev()));
            return self.settle(version, basis, flight.waiters, Vec::new(), Hop::Disk, now);
        }
        if key.at.is_none() && self.session_is_wanted() {
            flight.hops.insert(0, self.hop_of_replica(now));
        }
        if flight.tried.is_empty() {
            flight.hops.push(HopFailure {
                hop: Hop::Coordinator("none".into()),
                reason: "no coordinator is configured".into(),
            });
        }
        let (name, hops) = (key.name.clone(), flight.hops);
        let error = match key.at {
            Some(at) => GetError::NotHeld { name, at, hops },
            None => GetError::NoFreshnessProof {
                last: self.last_known_at(&name, now),
                name,
                hops,
            },
        };
        self.fail(flight.waiters, &error);
        if !flight.next.is_empty() {
            self.start_flight(key.clone(), flight.next);
        }
    }

    /// How long ago the replica was current at most, if it is what shows `rev`.
    fn age_of(&self, rev: Revision, now: Time) -> Option<u64> {
        let replica = self.sight.replica.as_ref()?;
        let age = self.sight.age(now).filter(|_| replica.rev() == rev)?;
        u64::try_from(age.as_millis()).ok()
    }

    /// The hops of a flight, the one that is still awaited among them.
    pub(super) fn flight_hops(&self, key: &FlightKey) -> Vec<HopFailure> {
        let Some(flight) = self.flights.get(key) else {
            return Vec::new();
        };
        let mut hops = flight.hops.clone();
        if let Some(Call::Resolve(call)) = flight.sent.and_then(|id| self.calls.get(&id)) {
            hops.push(HopFailure {
                hop: self.sources.hop(Source::Coordinator(call.coordinator)),
                reason: "no answer yet".into(),
            });
        }
        hops
    }
}

impl Waiter {
    fn is_within(&self, catalog: CatalogId, epoch: Epoch) -> bool {
        self.within
            .is_none_or(|token| token.check(catalog, epoch).is_ok())
    }

    fn takes(&self, opening: &Resolved) -> Result<(), GetError> {
        if let Some(token) = self.within {
            token.check(opening.catalog, opening.epoch)?;
        }
        match self.at_least {
            Some(token) => token.check_reached(opening.catalog, opening.epoch, opening.rev),
            None => Ok(()),
        }
    }
}

impl Mark {
    fn at(self, rev: Revision) -> Snapshot {
        Snapshot {
            catalog: self.catalog,
            epoch: self.epoch,
            rev,
        }
    }
}

pub(super) fn damaged() -> HopFailure {
    HopFailure {
        hop: Hop::Disk,
        reason: "the bytes on disk were damaged and are set aside".into(),
    }
}

/// A name that never existed is held at revision 0, which is no record's.
pub(super) fn known_rev(version: Version) -> Option<Revision> {
    (version.rev > Revision::ZERO).then_some(version.rev)
}
