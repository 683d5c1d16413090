//! What workers with sessions ask, and what they are told without asking.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{Content, Entry, Epoch, Revision};
use crate::proto::code::Refusal;
use crate::proto::coordinator::{Coordinator, Output, Ticket, View};
use crate::proto::limit::{MAX_INLINE_DELTA, MAX_MARKS, MAX_PENDING};
use crate::proto::mutant::mutant;
use crate::proto::wire::{Delta, Grant, Hint, Marks, PrepAck, Prepare, Push, Renew, SessionId};

impl Coordinator {
    pub(super) fn watch(
        &mut self,
        sid: SessionId,
        owner: &str,
        stream: u64,
        out: &mut Vec<Output>,
    ) {
        match self.leases.watch(sid, owner, stream, self.now) {
            Ok(()) => self.push_prepare(vec![stream], out),
            Err(_) => out.push(Output::EndStream(stream)),
        }
    }

    pub(super) fn renew(
        &mut self,
        ticket: Ticket,
        owner: String,
        renew: Renew,
        out: &mut Vec<Output>,
    ) {
        let lease = self.options.lease;
        // A lease that a restart would not wait out must not be given.
        let known = self.ledger.lease_max() >= lease;
        if known || self.lost.is_some() || self.parked.len() >= MAX_PENDING {
            let result = self.grant(&owner, &renew, known);
            return out.push(Output::Granted { ticket, result });
        }
        self.parked.push((ticket, owner, renew));
        if !self.raising {
            self.queue_lease_max();
        }
    }

    pub(super) fn queue_lease_max(&mut self) {
        self.raising = true;
        let lease_us = micros(self.options.lease);
        self.enqueue(Entry::LeaseMax { lease_us });
    }

    /// Whether a longer lease than today's may be forgotten once it is waited out.
    pub(super) fn may_lower(&self) -> bool {
        let idle = !self.raising && self.lost.is_none() && self.retry_at.is_none();
        self.ledger.lease_max() > self.options.lease && idle
    }

    /// The write that the parked ones waited for has ended, well or not.
    pub(super) fn answer_parked(&mut self, out: &mut Vec<Output>) {
        let known = self.ledger.lease_max() >= self.options.lease;
        for (ticket, owner, renew) in std::mem::take(&mut self.parked) {
            let result = self.grant(&owner, &renew, known);
            out.push(Output::Granted { ticket, result });
        }
    }

    fn grant(&mut self, owner: &str, renew: &Renew, may_lease: bool) -> Result<Grant, Refusal> {
        let Renew {
            sid,
            nonce,
            have,
            acked,
            lease: wanted,
        } = *renew;
        if let Some((epoch, rev)) = acked {
            self.acked(sid, owner, epoch, rev);
        }
        let held = have.map_or(Revision::ZERO, |(_, rev)| rev);
        let view = self.ledger.view();
        let known = (held, view.records.rev());
        let lease = self
            .leases
            .grant(sid, owner, known, self.now, may_lease && wanted)?;
        Ok(Grant {
            sid,
            nonce,
            catalog: view.catalog,
            epoch: view.epoch,
            rev: view.records.rev(),
            lease_us: micros(lease),
            watching: self.leases.is_watching(sid),
            marks: if mutant!(M04) {
                Marks::default()
            } else {
                self.marks()
            },
            delta: self.inline_delta(have),
        })
    }

    pub(super) fn ack(&mut self, owner: &str, ack: &PrepAck) {
        self.acked(ack.sid, owner, ack.epoch, ack.rev);
    }

    fn acked(&mut self, sid: SessionId, owner: &str, epoch: Epoch, rev: Revision) {
        // Only what is durable has been prepared; nobody can have acknowledged more.
        if epoch == self.ledger.epoch() {
            self.leases.ack(sid, owner, rev.min(self.durable), self.now);
        }
    }

    /// Every name that a durable publish is about to change.
    fn marks(&self) -> Marks {
        let mut names = std::collections::BTreeMap::new();
        for (rev, change) in self.ledger.pending_changes(self.durable) {
            names.insert(change.name.clone(), rev);
            if names.len() > MAX_MARKS {
                break;
            }
        }
        if names.len() > MAX_MARKS {
            return Marks {
                all: self.durable,
                names: Vec::new(),
            };
        }
        Marks {
            all: Revision::ZERO,
            names: names.into_iter().collect(),
        }
    }

    fn hints(&self) -> Vec<Hint> {
        let changes = self.ledger.pending_changes(self.durable);
        let hints = changes.filter_map(|(_, change)| match change.content {
            Content::Present { hash, len } => Some(Hint {
                name: change.name.clone(),
                hash,
                len,
            }),
            Content::Deleted => None,
        });
        hints.take(MAX_MARKS).collect()
    }

    /// Tells `streams` what is about to change, if anything is.
    pub(super) fn push_prepare(&self, streams: Vec<u64>, out: &mut Vec<Output>) {
        if streams.is_empty() || self.durable <= self.ledger.visible().rev() {
            return;
        }
        let prepare = Prepare {
            catalog: self.ledger.catalog(),
            epoch: self.ledger.epoch(),
            rev: self.durable,
            marks: self.marks(),
            hints: self.hints(),
        };
        let push = Arc::new(Push::Prepare(prepare));
        out.push(Output::Push { streams, push });
    }

    /// Tells everyone what has become visible after `before`, if anything has.
    pub(super) fn push_release(&self, before: Option<Arc<View>>, out: &mut Vec<Output>) {
        let Some(before) = before else { return };
        let streams = self.leases.watchers();
        if streams.is_empty() {
            return;
        }
        let have = Some((before.epoch, before.records.rev()));
        let push = Arc::new(Push::Release(self.inline_delta(have)));
        out.push(Output::Push { streams, push });
    }

    /// What follows `have`, if it fits into a small frame.
    fn inline_delta(&self, have: Option<(Epoch, Revision)>) -> Delta {
        let view = self.ledger.view();
        let steps = have
            .and_then(|(epoch, rev)| self.ledger.inline_delta(epoch, rev, MAX_INLINE_DELTA))
            .map(|delta| delta.steps);
        Delta {
            catalog: view.catalog,
            epoch: view.epoch,
            rev: view.records.rev(),
            steps: steps.unwrap_or_default(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
