use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Invariant, Op, Seen, Violation, violation};
use crate::catalog::{Content, Revision};
use crate::proto::Time;
use crate::sim::history::{Pin, PinId, Place};
use crate::spec::{SpecHash, SpecName};

/// What must be kept.
#[derive(Debug, Default)]
pub(super) struct Retained {
    pins: BTreeMap<PinId, Pin>,
    oldest: Option<Place>,
    /// Which changes made a name this content.
    uses: BTreeMap<SpecHash, BTreeSet<(SpecName, Place)>>,
}

impl Retained {
    pub(super) fn note(&mut self, name: &SpecName, from: Place, content: Content) {
        if let Some(hash) = content.hash() {
            let uses = self.uses.entry(hash).or_default();
            if !uses.contains(&(name.clone(), from)) {
                uses.insert((name.clone(), from));
            }
        }
    }

    pub(super) fn unpin(&mut self, id: PinId) {
        self.pins.remove(&id);
    }

    /// Whether a revision is known to be retained no more.
    pub(super) fn gone(&self, place: Place) -> bool {
        self.oldest.is_some_and(|oldest| place < oldest)
            && !self.pins.values().any(|pin| pin.place == place)
    }

    /// A pin of this revision that held all the time.
    pub(super) fn pin_of(&self, rev: Revision, from: Time, until: Time) -> Option<Seen> {
        let holds =
            |pin: &&Pin| pin.place.rev == rev && pin.acknowledged < from && pin.until > until;
        self.pins.values().find(holds).map(seen)
    }
}

fn seen(pin: &Pin) -> Seen {
    Seen::new(pin.acknowledged, Op::Pin(pin.id))
}

impl Checker {
    pub(super) fn pinned(&mut self, pin: Pin) {
        let place = self.lineage.resolve(pin.place);
        self.retained.pins.insert(pin.id, Pin { place, ..pin });
    }

    pub(super) fn compacted(&mut self, oldest: Place) {
        self.retained.oldest = self.retained.oldest.max(Some(oldest));
    }

    /// S9: nothing that a pin or a retained revision reaches is deleted.
    pub(super) fn collected(&mut self, at: Time, hash: SpecHash) -> Result<(), Violation> {
        self.retained.pins.retain(|_, pin| pin.until > at);
        let oldest = self.retained.oldest;
        for (name, from) in self.retained.uses.get(&hash).into_iter().flatten() {
            let Some((last, told)) = self.extent(name, *from) else {
                continue;
            };
            let within = |rev: Revision| rev >= from.rev && last.is_none_or(|last| rev <= last);
            let pins = &self.retained.pins;
            let pin = pins
                .values()
                .find(|pin| pin.place.epoch == from.epoch && within(pin.place.rev));
            if let Some(pin) = pin {
                let why = format!(
                    "it deleted {}, which `{name}` is at the pinned {}",
                    hash.short(),
                    pin.place
                );
                return Err(violation(
                    Invariant::S9,
                    Some(seen(pin)),
                    Op::Coordinator(at),
                    why,
                ));
            }
            let kept = match oldest {
                Some(oldest) => {
                    oldest.epoch == from.epoch && last.is_none_or(|last| last >= oldest.rev)
                }
                None => self.lineage.survives(*from),
            };
            if kept {
                let why = format!(
                    "it deleted {}, which `{name}` is from {from} on, still retained",
                    hash.short()
                );
                return Err(violation(
                    Invariant::S9,
                    Some(told),
                    Op::Coordinator(at),
                    why,
                ));
            }
        }
        Ok(())
    }

    /// S10: what the visible revision needs is there.
    pub(super) fn audited(
        &mut self,
        at: Time,
        visible: Place,
        held: &[SpecHash],
    ) -> Result<(), Violation> {
        self.report.audits += 1;
        let held: BTreeSet<_> = held.iter().copied().collect();
        let visible = self.lineage.resolve(visible);
        for (name, state) in &self.names {
            let Some((from, segment)) = state.timeline.at(visible) else {
                continue;
            };
            let reaches = self
                .extent(name, from)
                .is_some_and(|(last, _)| last.is_none_or(|last| last >= visible.rev));
            if let Some(hash) = segment.content.hash()
                && reaches
                && !held.contains(&hash)
            {
                let why = format!(
                    "it lacks {}, which `{name}` is at the visible {visible}",
                    hash.short()
                );
                return Err(violation(
                    Invariant::S10,
                    Some(segment.seen),
                    Op::Coordinator(at),
                    why,
                ));
            }
        }
        Ok(())
    }

    /// Until which revision of its epoch a name is known to have stayed what `from` made it;
    /// `None` for ever since.
    fn extent(&self, name: &SpecName, from: Place) -> Option<(Option<Revision>, Seen)> {
        let timeline = &self.names.get(name)?.timeline;
        let segment = timeline.get(from)?;
        let last = match timeline.after(from) {
            // An unanswered publish may have changed it in between.
            _ if !self.publishes.settled(name) => Some(segment.until),
            Some((next, _)) => Some(Revision::new(next.rev.get() - 1)),
            None => None,
        };
        Some((last, segment.seen))
    }
}
