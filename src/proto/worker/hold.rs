//! Questions of other workers for bytes that are on their way here: they are held for a moment, so
//! that bytes spread while they arrive.

use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{MAX_GUESTS, MAX_GUESTS_PER_BODY, MAX_HOLD};
use crate::proto::worker::{Output, Ticket, Timer, Worker};
use crate::spec::{Spec, SpecHash};

/// Who waits for bytes that are on their way here.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    hash: SpecHash,
    until: Time,
}

impl Worker {
    /// Another worker wants bytes that are not on disk.
    pub(super) fn hold_question(&mut self, ticket: Ticket, hash: SpecHash, now: Time) {
        if !self.may_come(hash) {
            return self.answer_guest(ticket, Err(not_here()));
        }
        let of_body = self.guests.values().filter(|guest| guest.hash == hash);
        if of_body.count() >= MAX_GUESTS_PER_BODY || self.guests.len() >= MAX_GUESTS {
            let message = "as many as may be wait here for these bytes already";
            return self.answer_guest(ticket, Err(Refusal::new(Code::Busy, message)));
        }
        let until = now + MAX_HOLD;
        self.timers.insert((until, Timer::Hold(ticket)));
        self.guests.insert(ticket, Guest { hash, until });
    }

    /// It does not wait any more.
    pub(super) fn let_go(&mut self, ticket: Ticket) {
        if let Some(guest) = self.guests.remove(&ticket) {
            self.timers.remove(&(guest.until, Timer::Hold(ticket)));
        }
    }

    pub(super) fn held_long(&mut self, ticket: Ticket) {
        let message = "these bytes have not come here yet";
        self.end_guest(ticket, Err(Refusal::new(Code::Busy, message)));
    }

    /// The bytes have come.
    pub(super) fn give_to_guests(&mut self, spec: &Spec) {
        for ticket in self.guests_of(|hash| hash == spec.hash()) {
            self.end_guest(ticket, Ok(spec.clone()));
        }
    }

    /// Those who wait for what will not come are told so.
    pub(super) fn refuse_guests(&mut self) {
        if !self.guests.is_empty() {
            for ticket in self.guests_of(|hash| !self.may_come(hash)) {
                self.end_guest(ticket, Err(not_here()));
            }
        }
    }

    /// Whether these bytes are being fetched, or may be what a name turns out to be: the answer to
    /// this worker may be slower than a question of one that was pointed at it.
    fn may_come(&self, hash: SpecHash) -> bool {
        self.fetches.contains_key(&hash) || !self.flights.is_empty()
    }

    fn guests_of(&self, wanted: impl Fn(SpecHash) -> bool) -> Vec<Ticket> {
        let guests = self.guests.iter();
        let found = guests.filter(|(_, guest)| wanted(guest.hash));
        found.map(|(&ticket, _)| ticket).collect()
    }

    fn end_guest(&mut self, ticket: Ticket, result: Result<Spec, Refusal>) {
        self.let_go(ticket);
        self.answer_guest(ticket, result);
    }

    fn answer_guest(&mut self, ticket: Ticket, result: Result<Spec, Refusal>) {
        self.out.push(Output::Give { ticket, result });
    }
}

/// What a worker says that has not got the bytes.
pub fn not_here() -> Refusal {
    Refusal::new(Code::NotFound, "no such blob here")
}
