//! Revisions that are kept readable for someone.

use crate::catalog::{AtError, Entry, PinEntry};
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{Coordinator, Output, Ticket};
use crate::proto::limit::{MAX_PIN, MAX_PINS};
use crate::proto::wire::{Pin, Pinned, Pins};

impl Coordinator {
    /// The live pins.
    pub fn pins(&self, unix_ms: u64) -> Pins {
        let live = self.ledger.pins().filter(|pin| pin.until_unix_ms > unix_ms);
        let pins = live.map(shown).collect();
        Pins { pins }
    }

    pub(super) fn pin(
        &mut self,
        ticket: Ticket,
        by: String,
        pin: &Pin,
        unix_ms: u64,
        out: &mut Vec<Output>,
    ) {
        for id in self.ledger.ended_pins(unix_ms) {
            self.ledger.unpin(id);
            self.enqueue(Entry::Unpinned { id });
        }
        if let Err(refusal) = self.may_pin(pin) {
            let result = Err(refusal);
            return out.push(Output::PinReply { ticket, result });
        }
        let max_ms = u64::try_from(MAX_PIN.as_millis()).unwrap_or(u64::MAX);
        let entry = PinEntry {
            id: self.ledger.next_pin(),
            rev: pin.rev,
            until_unix_ms: unix_ms.saturating_add(pin.for_ms.min(max_ms)),
            by,
        };
        // Kept from now on, so that nothing is collected before the entry is durable.
        self.ledger.pin(entry.clone());
        let answer = shown(&entry);
        let number = self.enqueue(Entry::Pinned(entry));
        self.pinning.push_back((number, ticket, answer));
    }

    fn may_pin(&self, pin: &Pin) -> Result<(), Refusal> {
        if let Some(reason) = &self.lost {
            let message = format!("the coordinator's disk failed and takes nothing: {reason}");
            return Err(Refusal::new(Code::Disk, message));
        }
        if pin.epoch != self.ledger.epoch() {
            let message = format!(
                "revision {} was seen in epoch {}, the coordinator is in epoch {}",
                pin.rev,
                pin.epoch,
                self.ledger.epoch()
            );
            return Err(Refusal::new(Code::Compacted, message).at(self.ledger.visible().oldest()));
        }
        if self.ledger.pins().count() >= MAX_PINS {
            return Err(Refusal::new(Code::Busy, "too many revisions are pinned"));
        }
        self.ledger.visible().check_at(pin.rev).map_err(|error| {
            let (code, rev) = match error {
                AtError::Compacted { oldest, .. } => (Code::Compacted, oldest),
                AtError::Future { newest, .. } => (Code::Future, newest),
            };
            Refusal::new(code, error.to_string()).at(rev)
        })
    }

    pub(super) fn unpin(&mut self, ticket: Ticket, id: u64, out: &mut Vec<Output>) {
        let Some(entry) = self.ledger.unpin(id) else {
            let result = Err(Refusal::new(
                Code::NotFound,
                format!("there is no pin {id}"),
            ));
            return out.push(Output::PinReply { ticket, result });
        };
        let answer = shown(&entry);
        let number = self.enqueue(Entry::Unpinned { id });
        self.pinning.push_back((number, ticket, answer));
    }

    pub(super) fn answer_pinned(&mut self, out: &mut Vec<Output>) {
        while let Some((number, ..)) = self.pinning.front()
            && *number <= self.written
            && let Some((_, ticket, pinned)) = self.pinning.pop_front()
        {
            let result = Ok(pinned);
            out.push(Output::PinReply { ticket, result });
        }
    }

    /// The entry of a pin did not reach the disk.
    pub(super) fn forget_pin(&mut self, entry: &Entry) {
        // A pin that could not be taken back stays away until the next start: nobody was told
        // that it is gone, and keeping less than the journal says loses nothing that is named.
        if let Entry::Pinned(pin) = entry {
            self.ledger.unpin(pin.id);
        }
    }

    /// Refuses those whose entries are not durable.
    pub(super) fn refuse_pins(&mut self, refusal: &Refusal, out: &mut Vec<Output>) {
        let written = self.written;
        for (number, ticket, pinned) in std::mem::take(&mut self.pinning) {
            if number <= written {
                self.pinning.push_back((number, ticket, pinned));
                continue;
            }
            let result = Err(refusal.clone());
            out.push(Output::PinReply { ticket, result });
        }
    }
}

fn shown(pin: &PinEntry) -> Pinned {
    Pinned {
        id: pin.id,
        rev: pin.rev,
        until_unix_ms: pin.until_unix_ms,
        by: pin.by.clone(),
    }
}
