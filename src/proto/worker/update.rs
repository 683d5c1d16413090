//! How a worker gets what its replica lacks: from the coordinator of its session, and from peers
//! when that one gives nothing.
//!
//! The signed head proves a catalog, so anyone may bring one. A *round* asks each source at most
//! once; the next round comes [`RETRY`] later. A worker that is cut off from every coordinator
//! also *polls* its peers, one at each renewal that fails. What a peer brings raises the replica,
//! floor and high-water mark. It is no word of the coordinator: it never gives a lease, never
//! sets the anchor of bounded reads by itself, and is never acknowledged.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{CatalogId, Epoch, Revision};
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::MAX_DELTA;
use crate::proto::mutant::mutant;
use crate::proto::replica::{Replica, ReplicaError};
use crate::proto::wire::{CatalogDiff, Delta, GetCatalog, GetDelta};
use crate::proto::worker::lease::RETRY;
use crate::proto::worker::{Call, CallId, Event, Output, Sight, Source, Timer, Worker};

/// A replica that is behind is given this long for the release that is on its way.
const CATCH_UP_AFTER: Duration = Duration::from_millis(20);

/// How long a delta or a whole catalog may take: 100,000 names at 1 Mbit/s. What comes more slowly
/// than the floor of the transport ends before.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(120);

/// A question for what the replica lacks.
#[derive(Debug, Clone)]
pub(super) struct UpdateCall {
    source: Source,
    since: Time,
    /// The whole catalog was asked for.
    whole: bool,
    /// What its digests were told of: the answer fits to no other.
    base: Option<Arc<Replica>>,
    /// Nothing newer is known to be: a peer was asked whether it has something.
    poll: bool,
}

/// What came of a question.
enum Outcome {
    /// The replica went forward; whether the source said that it has more.
    Forward { more: bool },
    /// The source has nothing newer.
    Nothing,
    /// Only the whole catalog of this source helps.
    Whole,
    /// Another source is asked.
    Failed,
}

impl UpdateCall {
    fn is_of_peer(&self) -> bool {
        self.source.is_peer()
    }

    pub(super) const fn source(&self) -> Source {
        self.source
    }
}

impl Worker {
    pub(super) fn is_behind(&self) -> bool {
        match (&self.sight.replica, self.mark) {
            (None, mark) => mark.is_some(),
            (Some(replica), Some(mark)) => {
                (replica.epoch(), replica.rev()) < (mark.epoch, mark.rev)
            }
            (Some(_), None) => false,
        }
    }

    fn held(&self) -> Option<(Epoch, Revision)> {
        let replica = self.sight.replica.as_ref();
        replica.map(|replica| (replica.epoch(), replica.rev()))
    }

    pub(super) fn plan_update(&mut self, now: Time) {
        let useless = self.session.left || self.rollback.is_some();
        if useless || self.session.update.is_some() || !self.is_behind() {
            return;
        }
        let at = match self.sight.replica {
            Some(_) => now + CATCH_UP_AFTER,
            None => now,
        };
        if self.update_at.is_none_or(|planned| at < planned) {
            self.arm_update(at);
        }
    }

    /// One update is planned at a time.
    fn arm_update(&mut self, at: Time) {
        if let Some(planned) = self.update_at.replace(at) {
            self.timers.remove(&(planned, Timer::Update));
        }
        self.timers.insert((at, Timer::Update));
    }

    /// Asks for what the replica lacks, unless it has come meanwhile.
    pub(super) fn update_due(&mut self, now: Time) {
        self.update_at = None;
        if self.session.update.is_none() && self.is_behind() {
            self.session.round.clear();
            self.ask_for_update(false, now);
        }
    }

    /// Cut off from every coordinator, asks one peer whether it has something newer.
    pub(super) fn poll(&mut self, now: Time) {
        let cut_off = self.session.failures > 1 || self.sources.is_alone();
        if !cut_off || self.rollback.is_some() || self.session.update.is_some() {
            return;
        }
        if self.is_behind() {
            return self.plan_update(now);
        }
        let interval = self.session.interval();
        let polled = self.session.polled_at;
        if polled.is_none_or(|at| now.since(at) >= interval) {
            self.session.polled_at = Some(now);
            self.session.round.clear();
            self.ask_for_update(true, now);
        }
    }

    /// Asks the next source of this round. Without one the round is over.
    pub(super) fn ask_for_update(&mut self, poll: bool, now: Time) {
        if self.rollback.is_some() || self.session.left {
            return self.session.round.clear();
        }
        let coordinator = match poll {
            true => None,
            false => self
                .session
                .coordinator
                .or_else(|| self.sources.next_coordinator(&[], now)),
        };
        let (round, polled) = (&self.session.round, &self.session.polled);
        let told_by = self.session.told_by.take();
        let told_by = told_by.filter(|source| self.sources.may_ask(*source, now));
        let next = || self.sources.next_of_round(coordinator, round, polled, now);
        let Some(source) = told_by.or_else(next) else {
            self.session.round.clear();
            if !poll {
                self.arm_update(now + RETRY);
            }
            return;
        };
        self.session.round.push(source);
        if poll {
            self.note_polled(source);
        }
        let whole = match source {
            Source::Coordinator(_) => self.session.whole,
            Source::Peer(_) => false,
        };
        self.ask_source(source, whole, poll, now);
    }

    /// Peers take turns, so that one that has nothing does not hide another.
    fn note_polled(&mut self, source: Source) {
        self.session.polled.push(source);
        if self.session.polled.len() >= self.sources.peers() {
            self.session.polled.clear();
            self.session.polled.push(source);
        }
    }

    fn ask_source(&mut self, source: Source, whole: bool, poll: bool, now: Time) {
        let held = self.sight.replica.clone();
        let delta_from = held.clone().filter(|_| !whole);
        let base = held.or_else(|| self.session.base.clone());
        let call = self.new_call(Call::Update(UpdateCall {
            source,
            since: now,
            whole: delta_from.is_none(),
            base: base.clone(),
            poll,
        }));
        self.session.update = Some(call);
        self.timers
            .insert((now + UPDATE_TIMEOUT, Timer::UpdateLate(call)));
        self.out.push(match delta_from {
            Some(replica) => Output::GetDelta {
                call,
                source,
                request: GetDelta {
                    epoch: replica.epoch(),
                    from: replica.rev(),
                },
            },
            None => {
                let have = base.map(|base| base.records().digests());
                let have = have.unwrap_or_default();
                Output::GetCatalog {
                    call,
                    source,
                    request: GetCatalog { have },
                }
            }
        });
    }

    pub(super) fn update_late(&mut self, id: CallId, now: Time) {
        if self.session.update == Some(id) {
            self.out.push(Output::Cancel(id));
            if let Some(call) = self.end_update(id) {
                self.sources.failed(call.source, true, now);
                self.ask_for_update(call.poll, now);
            }
        }
    }

    fn end_update(&mut self, id: CallId) -> Option<UpdateCall> {
        self.session.update = None;
        match self.calls.remove(&id) {
            Some(Call::Update(call)) => Some(call),
            _ => None,
        }
    }

    /// The coordinator is there again: it is asked rather than a peer.
    pub(super) fn end_peers_update(&mut self) {
        let Some(id) = self.session.update else {
            return;
        };
        if let Some(Call::Update(call)) = self.calls.get(&id)
            && call.is_of_peer()
        {
            self.out.push(Output::Cancel(id));
            self.end_update(id);
            self.session.round.clear();
        }
    }

    pub(super) fn update_event(&mut self, id: CallId, event: Event, now: Time) {
        if self.session.update != Some(id) {
            self.calls.remove(&id);
            return;
        }
        let Some(call) = self.end_update(id) else {
            return;
        };
        let outcome = match event {
            Event::Delta(delta) => self.updated_by_delta(&delta, &call, now),
            Event::Catalog(diff) => self.replaced_by(diff, &call, now),
            // Compacted, or another epoch.
            Event::Refused(refusal) if refusal.code == Code::Compacted => Outcome::Whole,
            Event::Refused(refusal) if refusal.code == Code::NoCatalog => Outcome::Failed,
            Event::Failed { unreachable, .. } => {
                self.sources.failed(call.source, unreachable, now);
                Outcome::Failed
            }
            _ => {
                self.sources.failed(call.source, false, now);
                Outcome::Failed
            }
        };
        self.updated(outcome, &call, now);
        self.show();
    }

    fn updated(&mut self, outcome: Outcome, call: &UpdateCall, now: Time) {
        let (source, poll) = (call.source, call.poll);
        match outcome {
            Outcome::Whole if !call.whole && self.rollback.is_none() => {
                if !call.is_of_peer() {
                    self.session.whole = true;
                }
                self.ask_source(source, true, poll, now);
            }
            Outcome::Forward { more } => {
                self.note_answer(call, now);
                if self.is_behind() {
                    // It is asked again, and first the coordinator.
                    self.session.round.clear();
                    self.plan_update(now);
                } else if more {
                    self.ask_source(source, false, poll, now);
                } else {
                    self.session.round.clear();
                }
            }
            Outcome::Nothing => {
                if call.is_of_peer() && call.whole && call.base.is_some() {
                    // It seemed to have something, and cost a whole answer.
                    self.sources.failed(source, true, now);
                } else {
                    self.note_answer(call, now);
                }
                match self.is_behind() {
                    true => self.ask_for_update(false, now),
                    false => self.session.round.clear(),
                }
            }
            Outcome::Whole | Outcome::Failed => self.ask_for_update(poll, now),
        }
    }

    /// What the coordinator's answers take is known from renewals.
    fn note_answer(&mut self, call: &UpdateCall, now: Time) {
        if call.is_of_peer() {
            self.sources.answered(call.source, now.since(call.since));
        }
    }

    fn updated_by_delta(&mut self, delta: &Delta, call: &UpdateCall, now: Time) -> Outcome {
        let Some(replica) = self.sight.replica.clone() else {
            return Outcome::Failed;
        };
        if self.takes_for_rollback(call, delta.epoch, delta.rev) {
            return Outcome::Failed;
        }
        let before = self.held();
        let newest = (delta.epoch, delta.rev);
        match replica.apply(delta, &*self.session.verifier.0) {
            Ok(Some(next)) => {
                self.adopt(next, Some(&replica), Some(call.source), now);
                match self.held() > before {
                    true => Outcome::Forward {
                        more: Some(newest) > self.held(),
                    },
                    false => Outcome::Nothing,
                }
            }
            // An older catalog of a peer says nothing of what is missing here.
            Ok(None) if call.is_of_peer() && Some(newest) <= before => Outcome::Nothing,
            Ok(None) => Outcome::Whole,
            Err(error) => {
                self.bad_catalog(&error, call.source, now);
                Outcome::Failed
            }
        }
    }

    fn replaced_by(&mut self, diff: CatalogDiff, call: &UpdateCall, now: Time) -> Outcome {
        let next = match Replica::replace(call.base.as_deref(), diff, &*self.session.verifier.0) {
            Ok(next) => next,
            Err(error) => {
                if !call.is_of_peer() {
                    // What the base gave may be what is wrong.
                    self.session.base = None;
                }
                self.bad_catalog(&error, call.source, now);
                return Outcome::Failed;
            }
        };
        let catalog = next.head().catalog;
        if !self.is_of_catalog(catalog) {
            if call.is_of_peer() {
                self.bad_catalog(&ReplicaError::Catalog(catalog), call.source, now);
            }
            return Outcome::Failed;
        }
        let held = self.sight.replica.as_ref();
        let forked = held.is_some_and(|held| held.contradicts(next.verified()));
        if forked && !mutant!(X17) {
            self.quarantine(next.rev(), next.rev());
            return Outcome::Failed;
        }
        if self.takes_for_rollback(call, next.epoch(), next.rev()) {
            return Outcome::Failed;
        }
        let before = self.held();
        self.adopt(next, None, Some(call.source), now);
        match self.held() > before {
            true => Outcome::Forward { more: false },
            false => Outcome::Nothing,
        }
    }

    /// Only the coordinator can go back: what a peer has may be old.
    fn takes_for_rollback(&mut self, call: &UpdateCall, epoch: Epoch, rev: Revision) -> bool {
        let mark = self.mark.filter(|_| call.is_of_peer() && mutant!(X32));
        let known = mark.filter(|mark| (epoch, rev) < (mark.epoch, mark.rev));
        if let Some(known) = known {
            self.quarantine(known.rev, rev);
        }
        known.is_some()
    }

    /// A peer is not asked again soon. The coordinator is, for the whole catalog. Two heads for
    /// one revision are the coordinator's fault, whoever shows them.
    pub(super) fn bad_catalog(&mut self, error: &ReplicaError, source: Source, now: Time) {
        if let ReplicaError::Fork(rev) = error {
            return self.quarantine(*rev, *rev);
        }
        if let (ReplicaError::Catalog(_), Source::Peer(_)) = (error, source) {
            // A stranger is no liar: its bytes may still be right.
            return self.sources.failed(source, true, now);
        }
        let hop = self.sources.hop(source);
        let what = format!("sent a catalog that is refused: {error}");
        self.out.push(Output::Misbehaved { hop, what });
        match source {
            Source::Coordinator(_) => self.session.whole = true,
            Source::Peer(_) => self.sources.lied(source, now),
        }
    }

    fn is_of_catalog(&self, catalog: CatalogId) -> bool {
        self.mark.is_none_or(|mark| mark.catalog == catalog)
    }
}

/// What a worker gives to others of its catalog: as the coordinator does, from what it holds.
impl Sight {
    /// Answers [`GetDelta`].
    ///
    /// # Errors
    /// [`Code::NoCatalog`] where there is none of that epoch, [`Code::Compacted`] where the
    /// revisions are not all held.
    pub fn delta(&self, get: &GetDelta) -> Result<Delta, Refusal> {
        let replica = self.given()?;
        if get.epoch > replica.epoch() {
            let message = format!("this worker's catalog is of epoch {}", replica.epoch());
            return Err(Refusal::new(Code::NoCatalog, message));
        }
        let delta = replica.delta(get.epoch, get.from, MAX_DELTA);
        delta.ok_or_else(|| {
            let message = format!("revisions after {} are not all held", get.from);
            Refusal::new(Code::Compacted, message).at(replica.records().oldest())
        })
    }

    /// Answers [`GetCatalog`].
    ///
    /// # Errors
    /// [`Code::NoCatalog`].
    pub fn catalog(&self, get: &GetCatalog) -> Result<CatalogDiff, Refusal> {
        Ok(self.given()?.diff(&get.have))
    }

    fn given(&self) -> Result<&Arc<Replica>, Refusal> {
        let replica = self.replica.as_ref().filter(|_| !self.quarantined);
        let message = "this worker holds no catalog that it believes; ask the coordinator";
        replica.ok_or_else(|| Refusal::new(Code::NoCatalog, message))
    }
}

#[cfg(test)]
mod tests;
