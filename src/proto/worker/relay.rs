//! The way to the coordinator over another worker, beside the direct ones.
//!
//! It is asked for when a renewal is late or every direct address has failed, of one worker at a
//! time, and each round asks a few of them. It counts as up once the coordinator has said hello
//! over it. From then on it is one more address, which the session and reads prefer; direct ones
//! are probed with each renewal, and the first that grants something has the session again.
//!
//! The session is the same all the time: whoever carries its packets can neither read nor change
//! them, so nothing here needs a proof.

use std::collections::BTreeSet;

use crate::answer::HopFailure;
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{RELAY_PAUSE, RELAY_TERM, RELAY_TIMEOUT};
use crate::proto::mutant::mutant;
use crate::proto::worker::names::FlightKey;
use crate::proto::worker::{Call, CallId, Event, Output, Source, Timer, Worker};

/// What becomes of the way over another worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Relay {
    /// Whether it is used at all.
    wanted: bool,
    state: State,
    /// Whom this round has asked.
    tried: Vec<NodeId>,
    /// What they said, if this round or the last one has led to nothing.
    said: Vec<HopFailure>,
    /// No round begins before.
    pause_until: Time,
    /// Reads for which every direct address has failed.
    waiting: BTreeSet<FlightKey>,
    /// Which direct address is probed next.
    probe: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Closed,
    Asking {
        call: CallId,
        peer: NodeId,
    },
    Up {
        call: CallId,
        peer: NodeId,
    },
}

impl Relay {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }

    const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub(super) const fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Who is asked, or carries.
    pub(super) const fn peer(&self) -> Option<NodeId> {
        match self.state {
            State::Closed => None,
            State::Asking { peer, .. } | State::Up { peer, .. } => Some(peer),
        }
    }

    const fn call(&self) -> Option<CallId> {
        match self.state {
            State::Closed => None,
            State::Asking { call, .. } | State::Up { call, .. } => Some(call),
        }
    }

    /// What tells two states apart, for the model.
    #[cfg(feature = "sim")]
    pub(super) const fn canon(&self) -> u64 {
        match self.state {
            State::Closed => 0,
            State::Asking { .. } => 1,
            State::Up { .. } => 2,
        }
    }
}

impl Worker {
    /// The direct address of the coordinator over which this worker may carry packets of others.
    /// `None` for one that itself goes over another worker, or wants to: a path has one worker
    /// between its ends and no more.
    pub fn direct(&self, now: Time) -> Option<usize> {
        match self.relay.is_closed() || mutant!(X33) {
            true => self.sources.direct(now),
            false => None,
        }
    }

    /// The name of the worker over which this one reaches the coordinator, if it does.
    pub fn via(&self) -> Option<&str> {
        self.relay.is_up().then(|| self.sources.via()).flatten()
    }

    /// Whether a call over this address goes over another worker.
    pub(super) fn is_relayed(&self, coordinator: usize) -> bool {
        coordinator == self.sources.relayed()
    }

    /// The direct way is in doubt: another one is opened beside it.
    pub(super) fn want_relay(&mut self, now: Time) {
        let may = self.relay.wanted && !self.sources.is_alone() && self.rollback.is_none();
        if may && self.relay.is_closed() && now >= self.relay.pause_until {
            self.ask_relay(now);
        }
    }

    /// Every address has failed for a read: it waits for a way over another worker if there may be
    /// one. False when there is none.
    pub(super) fn await_relay(&mut self, key: &FlightKey, now: Time) -> bool {
        self.want_relay(now);
        let asking = matches!(self.relay.state, State::Asking { .. });
        if asking {
            self.relay.waiting.insert(key.clone());
        } else if let Some(flight) = self.flights.get_mut(key) {
            for failure in &self.relay.said {
                flight.note(failure.clone());
            }
        }
        asking
    }

    /// Whether a read waits for the worker that is being asked, instead of asking an address that
    /// could not be reached a moment ago.
    pub(super) fn rather_waits(&mut self, coordinator: usize, key: &FlightKey, now: Time) -> bool {
        let asking = matches!(self.relay.state, State::Asking { .. });
        let waits = asking && self.sources.is_penalised(coordinator, now);
        if waits {
            self.relay.waiting.insert(key.clone());
        }
        waits
    }

    /// Asks the next worker of this round. Without one the round is over, and so are the reads
    /// that waited for it.
    fn ask_relay(&mut self, now: Time) {
        let Some(peer) = self.sources.next_relay(&self.relay.tried, now) else {
            self.relay.state = State::Closed;
            self.relay.tried.clear();
            self.relay.pause_until = now + RELAY_PAUSE;
            self.ready.extend(std::mem::take(&mut self.relay.waiting));
            return;
        };
        if self.relay.tried.is_empty() {
            self.relay.said.clear();
        }
        self.relay.tried.push(peer);
        let call = self.new_call(Call::Relay);
        self.relay.state = State::Asking { call, peer };
        self.timers
            .insert((now + RELAY_TIMEOUT, Timer::RelayLate(call)));
        self.out.push(Output::OpenRelay { call, peer });
    }

    pub(super) fn relay_event(&mut self, id: CallId, event: Event, now: Time) {
        if self.relay.call() != Some(id) {
            self.calls.remove(&id);
            return;
        }
        let (reason, unreachable) = match (event, self.relay.state) {
            (Event::RelayUp { addr, via }, State::Asking { call, peer }) => {
                self.relay.state = State::Up { call, peer };
                let said = std::mem::take(&mut self.relay.said);
                for key in &self.relay.waiting {
                    if let Some(flight) = self.flights.get_mut(key) {
                        said.iter().for_each(|failure| flight.note(failure.clone()));
                    }
                }
                self.sources.open_relayed(addr, via);
                return self.relay_up(now);
            }
            (Event::Refused(refusal), _) => (refusal.message, false),
            (
                Event::Failed {
                    reason,
                    unreachable,
                },
                _,
            ) => (reason, unreachable),
            (Event::Lost { reason }, _) => (reason, true),
            _ => ("it no longer carries packets".into(), true),
        };
        self.relay_failed(&reason, unreachable, now);
    }

    /// Nobody has said for too long whether the coordinator is there.
    pub(super) fn relay_late(&mut self, id: CallId, now: Time) {
        match self.relay.state {
            State::Asking { call, .. } if call == id => {
                self.relay_failed("the coordinator was not reached over it", true, now);
            }
            _ => {}
        }
    }

    /// Without renewals nobody finds out whether the direct way is there again.
    pub(super) fn relay_over(&mut self, id: CallId) {
        if self.relay.call() == Some(id) && self.session.left {
            self.leave_relay();
        }
    }

    fn relay_up(&mut self, now: Time) {
        let relayed = self.sources.relayed();
        if !self.session.left {
            self.end_watch();
            self.session.coordinator = Some(relayed);
            self.session.failures = 0;
            self.end_peers_update();
            self.keep_session(now);
        } else if let Some(call) = self.relay.call() {
            self.timers
                .insert((now + RELAY_TERM, Timer::RelayOver(call)));
        }
        // What was asked directly and has no answer yet would wait for a silence to end.
        let silent: Vec<_> = self.unanswered_resolves().collect();
        for call in silent {
            self.ask_elsewhere(call, now);
        }
        for key in std::mem::take(&mut self.relay.waiting) {
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.tried.retain(|&tried| tried != relayed);
                flight.retried.retain(|&retried| retried != relayed);
                self.ready.push(key);
            }
        }
    }

    /// Whoever was asked does not carry, or no longer: the next one is asked.
    pub(super) fn relay_failed(&mut self, reason: &str, unreachable: bool, now: Time) {
        let Some(peer) = self.relay.peer() else {
            return;
        };
        let source = Source::Peer(peer);
        if unreachable {
            self.sources.failed(source, true, now);
        }
        let failure = HopFailure {
            hop: self.sources.hop(source),
            reason: format!("no way to the coordinator over it: {reason}"),
        };
        self.relay.said.push(failure);
        if self.relay.is_up() && !self.session.left {
            self.arm_renewal(now);
        }
        self.close_relay();
        self.ask_relay(now);
    }

    /// A direct address has answered: it is used again, and nobody carries packets any more.
    pub(super) fn direct_again(&mut self, coordinator: usize, now: Time) {
        if self.relay.is_closed() {
            return;
        }
        let was_up = self.relay.is_up();
        self.leave_relay();
        if was_up && !self.session.left {
            self.session.coordinator = Some(coordinator);
            self.keep_session(now);
        }
        for key in std::mem::take(&mut self.relay.waiting) {
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.tried.retain(|&tried| tried != coordinator);
                self.ready.push(key);
            }
        }
    }

    fn leave_relay(&mut self) {
        self.close_relay();
        self.relay.tried.clear();
    }

    fn close_relay(&mut self) {
        if let Some(call) = self.relay.call() {
            self.calls.remove(&call);
            self.out.push(Output::Cancel(call));
        }
        self.relay.state = State::Closed;
        self.sources.close_relayed();
        if self.session.coordinator == Some(self.sources.relayed()) {
            self.end_watch();
            self.session.coordinator = None;
        }
    }

    /// The direct address that a renewal goes to as well while another worker carries the session.
    pub(super) fn next_probe(&mut self) -> Option<usize> {
        let directs = self.sources.relayed();
        if !self.relay.is_up() || directs == 0 {
            return None;
        }
        self.relay.probe = (self.relay.probe + 1) % directs;
        Some(self.relay.probe)
    }

    /// What a relayed session has proven: the next round may ask everyone again.
    pub(super) fn relay_works(&mut self) {
        let peer = self.relay.peer();
        self.relay.tried.retain(|tried| Some(*tried) == peer);
    }
}

#[cfg(test)]
mod tests;
