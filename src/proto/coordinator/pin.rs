//! Revisions that are kept readable for someone.

use crate::catalog::{AtError, Entry, PinEntry};
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{Coordinator, Output, Ticket};
use crate::proto::limit::{MAX_PIN, MAX_PINS};
use crate::proto::wire::{Pin, Pinned, Pins};

/// Who asks over the coordinator's own socket, where the file mode is the permission.
const LOCAL: &str = "local";

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
        self.end_pins(unix_ms);
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

    /// Lets go of pins that have ended, so that what only they kept may be dropped.
    pub(super) fn end_pins(&mut self, unix_ms: u64) {
        for id in self.ledger.ended_pins(unix_ms) {
            self.ledger.unpin(id);
            self.enqueue(Entry::Unpinned { id });
        }
    }

    /// Whoever pinned it may let it go, and whoever may use the coordinator's own socket.
    pub(super) fn unpin(&mut self, ticket: Ticket, by: &str, id: u64, out: &mut Vec<Output>) {
        let owner = self
            .ledger
            .pins()
            .find(|pin| pin.id == id)
            .map(|pin| pin.by.clone());
        let refusal = match owner {
            None => Refusal::new(Code::NotFound, format!("there is no pin {id}")),
            Some(owner) if owner != by && by != LOCAL => {
                Refusal::new(Code::NotAllowed, format!("pin {id} belongs to {owner}"))
            }
            Some(_) => match self.ledger.unpin(id) {
                Some(entry) => return self.take_back(ticket, entry),
                None => Refusal::new(Code::NotFound, format!("there is no pin {id}")),
            },
        };
        let result = Err(refusal);
        out.push(Output::PinReply { ticket, result });
    }

    fn take_back(&mut self, ticket: Ticket, entry: PinEntry) {
        let id = entry.id;
        let answer = shown(&entry);
        let number = self.enqueue(Entry::Unpinned { id });
        self.pinning.push_back((number, ticket, answer));
        self.unpinned.insert(id, entry);
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
        match entry {
            Entry::Pinned(pin) => drop(self.ledger.unpin(pin.id)),
            Entry::Unpinned { id } => {
                if let Some(pin) = self.unpinned.remove(id) {
                    self.ledger.pin(pin);
                }
            }
            _ => {}
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
