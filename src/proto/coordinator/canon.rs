//! What tells one state of the coordinator's machine from another. Left out is what only people
//! are told, and what strikes and retention count.

use crate::catalog::Entry;
use crate::proto::canon::Canon;
use crate::proto::coordinator::lease::Leases;
use crate::proto::coordinator::{Coordinator, InFlight, Ledger, Queued};
use crate::proto::wire::SessionId;

impl Coordinator {
    /// Writes this state.
    pub fn canon(&self, canon: &mut Canon) {
        self.ledger.canon(canon);
        self.leases.canon(canon);
        canon.u64(self.parked.len() as u64);
        for (ticket, _, renew) in &self.parked {
            canon.u64(*ticket).u64(renew.nonce);
        }
        canon.flag(self.raising).flag(self.lost.is_some());
        let now = canon.now();
        canon.option(self.retry_at, |canon, at| {
            canon.time(at.max(now));
        });
        canon.u64(self.durable.get());
        canon.u64(self.queue.len() as u64);
        for queued in &self.queue {
            self.write_queued(canon, queued);
        }
        match &self.in_flight {
            None => canon.u64(0),
            Some(InFlight::Checkpoint) => canon.u64(1),
            Some(InFlight::Batch(batch)) => {
                canon.u64(2).u64(batch.len() as u64);
                for queued in batch {
                    self.write_queued(canon, queued);
                }
                &mut *canon
            }
        };
        canon.u64(self.waiting.len() as u64);
        for waiting in &self.waiting {
            canon.u64(waiting.ticket).u64(waiting.rev.get());
            canon.u64(waiting.number.saturating_sub(self.written));
        }
        canon.u64(self.refused.len() as u64);
        for (ticket, refusal) in &self.refused {
            canon.u64(*ticket);
            canon.u64(refusal.rev.map_or(0, |rev| rev.get()));
        }
    }

    fn write_queued(&self, canon: &mut Canon, queued: &Queued) {
        canon.u64(queued.number.saturating_sub(self.written));
        canon.u64(u64::from(queued.entry.tag()));
        match &queued.entry {
            Entry::Pending(pending) => canon.u64(pending.rev.get()),
            Entry::Visible { rev } => canon.u64(rev.get()),
            Entry::LeaseMax { lease_us } => canon.u64(*lease_us),
            _ => canon,
        };
    }
}

impl Ledger {
    /// Writes what it holds. The last head commits to everything before it.
    pub fn canon(&self, canon: &mut Canon) {
        let view = self.view();
        canon.u64(self.epoch().get()).u64(view.epoch.get());
        canon.u64(view.records.rev().get());
        canon.u64(self.tip().rev().get());
        canon.raw(self.last_head().as_bytes());
        canon.u64(self.pending.len() as u64);
        canon.u64(u64::try_from(self.lease_max().as_micros()).unwrap_or(u64::MAX));
        canon.u64(self.keys.len() as u64);
    }
}

impl Leases {
    fn canon(&self, canon: &mut Canon) {
        let now = canon.now();
        canon.time(self.grace.max(now));
        canon.u64(self.sessions.len() as u64);
        for (sid, session) in &self.sessions {
            write_sid(canon, *sid);
            canon.time(session.expires.max(now));
            canon.time(session.barred_until.max(now));
            canon.u64(session.acked.get());
            canon.u64(session.strikes.len() as u64);
            canon.option(session.watch, |canon, stream| {
                canon.u64(stream);
            });
        }
        canon.u64(self.waits.len() as u64);
        for (rev, wait) in &self.waits {
            canon.u64(rev.get()).u64(wait.left.len() as u64);
            for (sid, until) in &wait.left {
                write_sid(canon, *sid);
                canon.time((*until).max(now));
            }
        }
    }
}

fn write_sid(canon: &mut Canon, sid: SessionId) {
    canon.text(&sid.to_string());
}
