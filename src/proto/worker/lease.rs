//! The worker's side of leases and of the catalog's replication.
//!
//! One *session* with the coordinator: a stream over which it tells what is about to change, and
//! a renewal now and then. What a grant or a push says is taken in one step: marks, floor and
//! lease become visible to readers together, and only then is anything acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::answer::{Hop, HopFailure};
use crate::catalog::{Epoch, HeadVerifier, Revision};
use crate::proto::Time;
use crate::proto::limit::{DEFAULT_LEASE, MAX_NONCES, MAX_PREFETCH, MIN_DOUBT, RENEWALS_PER_LEASE};
use crate::proto::mutant::mutant;
use crate::proto::replica::Replica;
use crate::proto::wire::{Delta, Grant, Hint, Marks, PrepAck, Prepare, Renew, SessionId};
use crate::proto::worker::sight::{MarkSet, Sight, usable};
use crate::proto::worker::{
    Anchor, Basis, Call, CallId, Event, Keep, Mark, Output, Prefetch, Source, Timer, Worker,
};

/// After a session failed it is tried again this soon; the link has its own backoff.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Whether a call failed because nothing came back, as opposed to an answer that says no.
const fn is_silence(event: &Event) -> bool {
    match event {
        Event::Failed { unreachable, .. } => *unreachable,
        Event::Lost { .. } => true,
        _ => false,
    }
}

/// The worker's session with the coordinator.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) sid: SessionId,
    /// It has been given back, or leases are not wanted.
    pub(super) left: bool,
    pub(super) verifier: Verifier,
    pub(super) prefetch: Prefetch,
    pub(super) nonce: u64,
    /// Local times at which renewals were sent, by nonce.
    pub(super) sent: BTreeMap<u64, Time>,
    /// What a full lease lasts, as the coordinator last said.
    pub(super) lease: Duration,
    pub(super) watch: Option<CallId>,
    /// The coordinator has confirmed the watch.
    pub(super) watching: bool,
    /// Where the session is kept.
    pub(super) coordinator: Option<usize>,
    /// Renewals that failed in a row.
    pub(super) failures: u32,
    /// The last grant was not believed, so no lease is asked for.
    pub(super) unbelieved: bool,
    /// Everything up to this is marked.
    pub(super) acked: Option<(Epoch, Revision)>,
    /// The newest request whose answer named a revision that the replica has not reached.
    pub(super) anchor_wait: Option<(Time, Revision)>,
    pub(super) update: Option<CallId>,
    /// Whom this round of questions for an update has asked.
    pub(super) round: Vec<Source>,
    /// When a peer was last asked whether it has something newer,
    pub(super) polled_at: Option<Time>,
    /// and which ones were, since all of them had their turn.
    pub(super) polled: Vec<Source>,
    /// Who told of the newest head, and is asked first.
    pub(super) told_by: Option<Source>,
    /// Who brought the replica's newest revision.
    pub(super) brought_by: Option<Hop>,
    /// A delta of the coordinator does not help: only the whole catalog does.
    pub(super) whole: bool,
    /// The catalog of another epoch, whose buckets may still be right.
    pub(super) base: Option<Arc<Replica>>,
}

/// Checks heads; a value of its own so that a session can be printed.
#[derive(Clone)]
pub(super) struct Verifier(pub(super) Arc<dyn HeadVerifier>);

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Session {
    pub(super) fn new(
        sid: SessionId,
        wanted: bool,
        prefetch: Prefetch,
        verifier: Arc<dyn HeadVerifier>,
        base: Option<Replica>,
    ) -> Self {
        Self {
            sid,
            left: !wanted,
            verifier: Verifier(verifier),
            prefetch,
            nonce: 0,
            sent: BTreeMap::new(),
            lease: DEFAULT_LEASE,
            watch: None,
            watching: false,
            coordinator: None,
            failures: 0,
            unbelieved: false,
            acked: None,
            anchor_wait: None,
            update: None,
            round: Vec::new(),
            polled_at: None,
            polled: Vec::new(),
            told_by: None,
            brought_by: None,
            whole: false,
            base: base.map(Arc::new),
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.lease / RENEWALS_PER_LEASE
    }

    /// How long a renewal may take where an answer usually takes `usual`, zero if that is not
    /// known: long before the lease ends, so that there is time for another way.
    fn patience(&self, usual: Duration) -> Duration {
        let most = (self.lease / 4).clamp(Duration::from_millis(50), Duration::from_millis(1_500));
        match usual.is_zero() {
            true => most,
            false => most.min(MIN_DOUBT.max(usual * 3)),
        }
    }
}

/// A renewal on its way.
#[derive(Debug, Clone)]
pub(super) struct RenewCall {
    pub(super) coordinator: usize,
    pub(super) nonce: u64,
    /// What had been seen when it was sent: an answer below it is a rollback.
    pub(super) mark: Option<Mark>,
    /// The coordinator had confirmed the watch when it was sent.
    pub(super) watching: bool,
}

impl Worker {
    /// The session's timer: watches if nobody does, and renews.
    pub(super) fn keep_session(&mut self, now: Time) {
        if self.session.left {
            return;
        }
        self.poll(now);
        let known = self.session.coordinator;
        let Some(coordinator) = known.or_else(|| self.sources.next_coordinator(&[], now)) else {
            if self.sources.peers() > 0 {
                self.arm_renewal(now + self.session.interval());
            }
            return;
        };
        self.session.coordinator = Some(coordinator);
        if self.session.watch.is_none() {
            let call = self.new_call(Call::Watch);
            self.session.watch = Some(call);
            self.session.watching = false;
            let sid = self.session.sid;
            self.out.push(Output::Watch {
                call,
                coordinator,
                sid,
            });
        }
        self.renew(coordinator, now);
        if let Some(direct) = self.next_probe() {
            self.renew(direct, now);
        }
    }

    fn renew(&mut self, coordinator: usize, now: Time) {
        self.session.nonce += 1;
        let nonce = self.session.nonce;
        self.session.sent.insert(nonce, now);
        while self.session.sent.len() > MAX_NONCES {
            self.session.sent.pop_first();
        }
        let call = self.new_call(Call::Renew(RenewCall {
            coordinator,
            nonce,
            mark: self.mark,
            watching: self.session.watching,
        }));
        let request = Renew {
            sid: self.session.sid,
            nonce,
            have: self.sight.replica.as_ref().map(|r| (r.epoch(), r.rev())),
            acked: self.session.acked,
            lease: !self.session.unbelieved && self.rollback.is_none(),
        };
        self.out.push(Output::Renew {
            call,
            coordinator,
            request,
        });
        let usual = self.sources.round_trip(coordinator);
        self.timers
            .insert((now + self.session.patience(usual), Timer::RenewLate(call)));
        self.arm_renewal(now + self.session.interval());
    }

    /// Without a coordinator there is nothing to renew until a peer is known.
    pub(super) fn poll_if_idle(&mut self, now: Time) {
        let idle = self.renewal.is_none() && self.sources.is_alone() && !self.session.left;
        if idle && self.sources.peers() > 0 {
            self.arm_renewal(now);
        }
    }

    /// One renewal is planned at a time.
    pub(super) fn arm_renewal(&mut self, at: Time) {
        if let Some(before) = self.renewal.replace(at) {
            self.timers.remove(&(before, Timer::Renew));
        }
        self.timers.insert((at, Timer::Renew));
    }

    pub(super) fn renew_due(&mut self, now: Time) {
        self.renewal = None;
        self.keep_session(now);
    }

    /// An answer is late: the next address is asked as well. The late one is still believed when
    /// it comes, since its nonce is known.
    pub(super) fn renew_late(&mut self, call: CallId, now: Time) {
        if let Some(Call::Renew(call)) = self.calls.get(&call) {
            let coordinator = call.coordinator;
            self.path_failed(coordinator, now);
        }
    }

    /// Nothing comes back over this address. While another worker carries the session, that it is
    /// so for a direct one is nothing new.
    fn path_failed(&mut self, coordinator: usize, now: Time) {
        if self.relay.is_up() && !self.is_relayed(coordinator) {
            return self
                .sources
                .failed(Source::Coordinator(coordinator), true, now);
        }
        self.session_failed(now);
        match self.is_relayed(coordinator) {
            true if self.session.failures > 1 => {
                self.relay_failed("the coordinator is silent over it", true, now);
            }
            true => {}
            false => self.want_relay(now),
        }
    }

    fn session_failed(&mut self, now: Time) {
        self.session.failures = self.session.failures.saturating_add(1);
        // A second failure in a row: the stream that nobody has missed is of no use either.
        if self.session.failures > 1 {
            self.end_watch();
            if let Some(failed) = self.session.coordinator.take() {
                self.sources.failed(Source::Coordinator(failed), true, now);
                self.session.coordinator = match self.is_relayed(failed) {
                    true => Some(failed),
                    false => self.sources.coordinator_after(failed),
                };
            }
        }
        self.arm_renewal(now + RETRY.min(self.session.interval()));
    }

    pub(super) fn end_watch(&mut self) {
        if let Some(call) = self.session.watch.take() {
            self.calls.remove(&call);
            self.out.push(Output::Cancel(call));
        }
        self.session.watching = false;
    }

    pub(super) fn watch_event(&mut self, id: CallId, event: Event, now: Time) {
        if self.session.watch != Some(id) {
            self.calls.remove(&id);
            return;
        }
        match event {
            Event::Watching => {
                self.session.watching = true;
                // Only now may a lease be had.
                if let Some(coordinator) = self.session.coordinator {
                    self.renew(coordinator, now);
                }
            }
            Event::Prepare(prepare) => self.prepare(&prepare, now),
            Event::Release(delta) => self.release(&delta, now),
            event => {
                self.calls.remove(&id);
                self.session.watch = None;
                self.session.watching = false;
                self.session_failed(now);
                if is_silence(&event) {
                    self.want_relay(now);
                }
            }
        }
    }

    pub(super) fn renew_event(&mut self, id: CallId, event: Event, now: Time) {
        let Some(Call::Renew(call)) = self.calls.remove(&id) else {
            return;
        };
        // Not a probe beside the session.
        let is_ours = !self.relay.is_up() || self.is_relayed(call.coordinator);
        match event {
            Event::Granted(grant) => {
                self.granted(&call, grant, now);
            }
            Event::Lost { .. } if self.session.failures == 0 && is_ours => {
                // The connection is gone, perhaps because the coordinator has restarted.
                self.session.failures = 1;
                self.end_watch();
                self.arm_renewal(now);
            }
            event if is_silence(&event) => self.path_failed(call.coordinator, now),
            _ => self.session_failed(now),
        }
    }

    fn granted(&mut self, call: &RenewCall, grant: Grant, now: Time) {
        let ours = grant.sid == self.session.sid || mutant!(M08);
        if !ours || self.session.left {
            return;
        }
        let sent = match self.session.sent.get(&grant.nonce).copied() {
            Some(sent) if grant.nonce == call.nonce => sent,
            _ if mutant!(M14) => self.session.sent.values().copied().max().unwrap_or(now),
            _ => return,
        };
        let state = Mark {
            catalog: grant.catalog,
            epoch: grant.epoch,
            rev: grant.rev,
        };
        self.session.unbelieved = !self.believe(state, call.mark);
        if self.session.unbelieved {
            // Another address may lead to the coordinator that this worker knows.
            self.session_failed(now);
            return self.show();
        }
        if std::mem::take(&mut self.session.failures) > 0 {
            self.end_peers_update();
        }
        if call.watching && !grant.watching {
            // The coordinator has lost the watch, which costs the lease: it is opened anew.
            self.end_watch();
            self.arm_renewal(now);
        }
        let source = Source::Coordinator(call.coordinator);
        self.sources.answered(source, now.since(sent));
        // First, since marks of a new epoch are told from old ones by it.
        self.raise_floor(state);
        self.take_marks(grant.epoch, &grant.marks, true);
        self.expect_anchor(sent, grant.rev);
        if grant.lease_us > 0 {
            self.session.lease = Duration::from_micros(grant.lease_us);
            let from = if mutant!(M01) { now } else { sent };
            let until = from + usable(self.session.lease);
            self.sight.lease_until = self.sight.lease_until.max(Some(until));
            self.arm_renewal(now + self.session.interval());
        }
        self.take_delta(&grant.delta, now);
        self.show();
        self.ack(call.coordinator, grant.epoch, grant.marks.newest());
        // One that took longer says nothing of the path as it is now.
        let is_prompt = now.since(sent) <= self.session.patience(Duration::ZERO);
        match self.is_relayed(call.coordinator) {
            true => self.relay_works(),
            false if is_prompt => self.direct_again(call.coordinator, now),
            false => {}
        }
    }

    /// Whether what the coordinator says of itself continues what was seen; `before` is what had
    /// been seen when it was asked.
    pub(super) fn believe(&mut self, state: Mark, before: Option<Mark>) -> bool {
        if let Some(mark) = self.mark
            && mark.catalog != state.catalog
        {
            return false;
        }
        if let Some(before) = before
            && (state.epoch, state.rev) < (before.epoch, before.rev)
            && self.mark.is_none_or(|mark| before.epoch == mark.epoch)
        {
            self.quarantine(before.rev, state.rev);
            return false;
        }
        match self.mark {
            Some(mark) if state.epoch < mark.epoch => return false,
            Some(mark) if state.epoch > mark.epoch => self.begin_epoch(),
            _ => {}
        }
        self.rollback.is_none()
    }

    pub(super) fn quarantine(&mut self, known: Revision, got: Revision) {
        self.rollback = Some((known, got));
        self.sight.quarantined = true;
        self.sight.lease_until = None;
        self.dirty = true;
    }

    /// A new epoch: nothing that was promised in the one before holds.
    fn begin_epoch(&mut self) {
        self.held.clear();
        self.out.push(Output::ForgetHeld);
        self.rollback = None;
        self.session.acked = None;
        self.session.anchor_wait = None;
        self.session.whole = true;
        if let Some(replica) = self.sight.replica.take() {
            self.session.base = Some(replica);
        }
        self.sight = Sight {
            floor: self.sight.floor,
            ..Sight::default()
        };
        self.dirty = true;
    }

    /// The coordinator named this state: no answer from the replica may be older.
    pub(super) fn raise_floor(&mut self, state: Mark) {
        if self.mark.is_none_or(|known| state > known) {
            self.mark = Some(state);
            if !mutant!(X12) {
                self.out.push(Output::Remember(state));
            }
        }
        let floor = if mutant!(M16) { Some(state) } else { self.mark };
        if self.sight.floor != floor {
            self.sight.floor = floor;
            self.dirty = true;
        }
    }

    /// What readers see of the newest epoch; a replica of an older one shows nothing of it.
    fn shown_rev(&self) -> Revision {
        let epoch = self.mark.map(|mark| mark.epoch);
        let replica = self.sight.replica.as_ref();
        let replica = replica.filter(|replica| Some(replica.epoch()) == epoch);
        replica.map_or(Revision::ZERO, |replica| replica.rev())
    }

    fn take_marks(&mut self, epoch: Epoch, marks: &Marks, granted: bool) {
        if self.mark.is_some_and(|mark| mark.epoch != epoch) {
            return;
        }
        let mut set = MarkSet::clone(&self.sight.marks);
        if granted && mutant!(M06) {
            set = MarkSet::default();
        }
        set.rise(marks, self.shown_rev());
        if set != *self.sight.marks {
            self.sight.marks = Arc::new(set);
            self.dirty = true;
        }
    }

    /// Says that everything up to `rev` is marked; readers see it already.
    fn ack(&mut self, coordinator: usize, epoch: Epoch, rev: Revision) {
        let acked = (epoch, rev);
        if rev == Revision::ZERO || self.session.acked >= Some(acked) {
            return;
        }
        self.session.acked = Some(acked);
        let sid = self.session.sid;
        let ack = PrepAck { sid, epoch, rev };
        self.out.push(Output::PrepAck { coordinator, ack });
    }

    fn prepare(&mut self, prepare: &Prepare, now: Time) {
        let (epoch, rev) = (prepare.epoch, prepare.rev);
        let foreign = self
            .mark
            .is_some_and(|mark| mark.catalog != prepare.catalog);
        if foreign || self.session.left || self.rollback.is_some() {
            return;
        }
        if self.mark.is_none_or(|mark| epoch > mark.epoch) {
            // What is current in that epoch is not known here yet: it is asked.
            self.sight.lease_until = None;
            self.dirty = true;
            self.arm_renewal(now);
            return self.show();
        }
        if self.mark.is_some_and(|mark| epoch < mark.epoch) {
            return;
        }
        let coordinator = self.session.coordinator.unwrap_or_default();
        if mutant!(M07) {
            return self.ack(coordinator, epoch, rev);
        }
        self.take_marks(epoch, &prepare.marks, false);
        self.show();
        self.ack_again(coordinator, epoch, rev);
        self.prefetch(&prepare.hints, now);
    }

    /// A prepare that comes again is acknowledged again: the first answer may be lost.
    fn ack_again(&mut self, coordinator: usize, epoch: Epoch, rev: Revision) {
        if self.session.acked >= Some((epoch, rev)) {
            let sid = self.session.sid;
            let ack = PrepAck { sid, epoch, rev };
            return self.out.push(Output::PrepAck { coordinator, ack });
        }
        self.ack(coordinator, epoch, rev);
    }

    /// Gets bodies before anyone asks for them.
    fn prefetch(&mut self, hints: &[Hint], now: Time) {
        for hint in hints {
            let wanted = match self.session.prefetch {
                Prefetch::None => false,
                Prefetch::Used => self.used.contains(&hint.name),
                Prefetch::All => true,
            };
            if wanted && self.fetches.len() < MAX_PREFETCH {
                let basis = Basis::pinned(now);
                self.want_bytes(hint.hash, Some(hint.len), basis, Vec::new(), Vec::new());
            }
        }
    }

    fn release(&mut self, delta: &Delta, now: Time) {
        let foreign = self.mark.is_some_and(|mark| mark.catalog != delta.catalog);
        let old = self.mark.is_none_or(|mark| mark.epoch != delta.epoch);
        if foreign || old || self.rollback.is_some() {
            return;
        }
        self.raise_floor(Mark {
            catalog: delta.catalog,
            epoch: delta.epoch,
            rev: delta.rev,
        });
        self.take_delta(delta, now);
        self.show();
    }

    /// Brings the replica forward, if the delta follows it.
    fn take_delta(&mut self, delta: &Delta, now: Time) {
        let Some(replica) = self.sight.replica.clone() else {
            return self.plan_update(now);
        };
        match replica.apply(delta, &*self.session.verifier.0) {
            Ok(Some(next)) => self.adopt(next, Some(&replica), None, now),
            Ok(None) => {}
            Err(error) => {
                let coordinator = self.session.coordinator.unwrap_or_default();
                self.bad_catalog(&error, Source::Coordinator(coordinator), now);
            }
        }
        self.plan_update(now);
    }

    /// The replica is this from now on; `before` is what it follows step by step, `source` who was
    /// asked for it.
    pub(super) fn adopt(
        &mut self,
        next: Replica,
        before: Option<&Replica>,
        source: Option<Source>,
        now: Time,
    ) {
        let newer = self.sight.replica.as_ref().is_none_or(|held| {
            (next.epoch(), next.rev()) > (held.epoch(), held.rev()) || mutant!(M16)
        });
        let of_epoch = self.mark.is_none_or(|mark| mark.epoch <= next.epoch());
        if !newer || !of_epoch {
            return;
        }
        if self.mark.is_some_and(|mark| mark.epoch < next.epoch()) {
            self.begin_epoch();
        }
        let rev = next.rev();
        let next = Arc::new(next);
        self.out.push(Output::Keep(match before {
            Some(before) => Keep::Steps {
                replica: Arc::clone(&next),
                after: before.rev(),
            },
            None => Keep::Whole(Arc::clone(&next)),
        }));
        self.session.whole = false;
        self.session.base = None;
        self.raise_floor(Mark {
            catalog: next.head().catalog,
            epoch: next.epoch(),
            rev,
        });
        self.sight.replica = Some(next);
        self.note_source(source, rev, now);
        let mut marks = MarkSet::clone(&self.sight.marks);
        marks.clear_to(rev);
        self.sight.marks = Arc::new(marks);
        self.settle_anchor(now);
        self.dirty = true;
    }

    fn note_source(&mut self, source: Option<Source>, rev: Revision, now: Time) {
        let session = self.session.coordinator.map(Source::Coordinator);
        let brought_by = source.or(session);
        self.session.brought_by = brought_by.map(|source| self.sources.hop(source));
        if let Some(source) = source {
            let hop = self.sources.hop(source);
            self.out.push(Output::Brought { hop, rev });
        }
        if mutant!(D2) && matches!(source, Some(Source::Peer(_))) {
            let until = now + usable(self.session.lease);
            self.sight.lease_until = self.sight.lease_until.max(Some(until));
        }
    }

    /// A request that was sent at `sent` was answered with `rev`.
    pub(super) fn expect_anchor(&mut self, sent: Time, rev: Revision) {
        if self
            .session
            .anchor_wait
            .is_none_or(|(before, _)| sent >= before)
        {
            self.session.anchor_wait = Some((sent, rev));
        }
        self.settle_anchor(sent);
    }

    fn settle_anchor(&mut self, _now: Time) {
        let Some((sent, rev)) = self.session.anchor_wait else {
            return;
        };
        let reached = self.sight.replica.as_ref().filter(|replica| {
            replica.rev() >= rev && self.mark.is_some_and(|mark| mark.epoch == replica.epoch())
        });
        let Some(replica) = reached else {
            return;
        };
        self.session.anchor_wait = None;
        if self.sight.anchor < Some(sent) {
            let state = Mark {
                catalog: replica.head().catalog,
                epoch: replica.epoch(),
                rev,
            };
            self.sight.anchor = Some(sent);
            self.out.push(Output::Anchor(Anchor { at: sent, state }));
            self.dirty = true;
        }
    }

    /// Whether this worker keeps a session at all.
    pub(super) fn session_is_wanted(&self) -> bool {
        !self.session.left
    }

    /// Gives the lease back: first readers lose it, then the coordinator is told.
    pub(super) fn leave(&mut self) {
        if std::mem::replace(&mut self.session.left, true) {
            return;
        }
        let coordinator = self.session.coordinator.unwrap_or_default();
        let sid = self.session.sid;
        let leave = Output::Leave { coordinator, sid };
        if mutant!(X30) {
            self.out.push(leave);
            return;
        }
        self.sight.lease_until = None;
        self.dirty = true;
        self.show();
        if !self.sources.is_alone() {
            self.out.push(leave);
        }
        self.end_watch();
    }

    /// The machine may have been asleep: whatever was promised is asked for anew.
    pub(super) fn resumed(&mut self, now: Time) {
        self.sight.lease_until = None;
        self.dirty = true;
        self.show();
        self.keep_session(now);
    }

    /// Shows readers what has changed, if anything has, and lets those go on that waited for it.
    pub(super) fn show(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.out.push(Output::Show(Arc::new(self.sight.clone())));
            self.shown = true;
        }
    }

    /// What a failed read tells of the replica.
    pub(super) fn hop_of_replica(&self, now: Time) -> HopFailure {
        let reason = match (&self.sight.replica, self.sight.quarantined) {
            (_, true) => "the coordinator went back, and nothing that it says is believed".into(),
            (None, _) => "this worker holds no catalog yet".into(),
            (Some(replica), _) if self.sight.leased(now) => format!(
                "revision {} is held, revision {} was named",
                replica.rev(),
                self.mark.map_or(replica.rev(), |mark| mark.rev)
            ),
            (Some(replica), _) => format!("revision {} is held, without a lease", replica.rev()),
        };
        HopFailure {
            hop: Hop::Disk,
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
