//! What tells one state of the worker's machine from another. Left out is what only bytes,
//! hedges, deadlines and `status` depend on.

use crate::proto::canon::Canon;
use crate::proto::replica::Replica;
use crate::proto::worker::lease::Session;
use crate::proto::worker::names::FlightKey;
use crate::proto::worker::{Call, CallId, Mark, MarkSet, Sight, Timer, Waiter, Worker};

impl Worker {
    /// Writes this state. The anchor matters to bounded reads alone.
    pub fn canon(&self, canon: &mut Canon, anchors: bool) {
        self.session.canon(canon, anchors);
        self.sight.canon(canon, anchors);
        write_mark(canon, self.mark);
        canon.option(self.rollback, |canon, (known, got)| {
            canon.u64(known.get()).u64(got.get());
        });
        canon.option(self.renewal, |canon, at| {
            canon.time(at);
        });
        canon.option(self.update_at, |canon, at| {
            canon.time(at);
        });
        self.write_calls(canon);
        self.write_reads(canon);
        for (at, timer) in &self.timers {
            match timer {
                Timer::RenewLate(call) if self.calls.contains_key(call) => {
                    canon.u64(1).call(call.0).time(*at);
                }
                Timer::Park(ticket) if self.parked.contains_key(ticket) => {
                    canon.u64(2).u64(*ticket).time(*at);
                }
                Timer::Update => {
                    canon.u64(3).time(*at);
                }
                _ => {}
            }
        }
    }

    fn write_calls(&self, canon: &mut Canon) {
        canon.u64(self.calls.len() as u64);
        for (id, call) in &self.calls {
            canon.call(id.0);
            match call {
                Call::Watch => canon.u64(1),
                Call::Update(_) => canon.u64(2),
                Call::Relay => canon.u64(6).u64(self.relay.canon()),
                Call::Renew(call) => {
                    canon.u64(3).u64(self.session.nonce - call.nonce);
                    canon.option(self.session.sent.get(&call.nonce), |canon, sent| {
                        canon.time(*sent);
                    });
                    write_mark(canon, call.mark);
                    &mut *canon
                }
                Call::Resolve(call) => {
                    canon.u64(4).u64(call.answered as u64);
                    canon.u64(call.keys.len() as u64);
                    for key in &call.keys {
                        write_key(canon, key);
                    }
                    canon.option(call.opening.as_ref(), |canon, opening| {
                        canon.u64(opening.epoch.get()).u64(opening.rev.get());
                    });
                    write_mark(canon, call.mark);
                    &mut *canon
                }
                Call::Fetch { hash, .. } => canon.u64(5).raw(hash.as_bytes()),
            };
        }
    }

    fn write_reads(&self, canon: &mut Canon) {
        canon.u64(self.parked.len() as u64);
        for (ticket, (name, _)) in &self.parked {
            canon.u64(*ticket).text(name.as_str());
        }
        canon.u64(self.flights.len() as u64);
        for (key, flight) in &self.flights {
            write_key(canon, key);
            write_waiters(canon, &flight.waiters);
            write_waiters(canon, &flight.next);
            canon.u64(flight.tried.len() as u64);
            canon.u64(flight.retried.len() as u64);
            canon.option(flight.sent, |canon, CallId(call)| {
                canon.call(call);
            });
        }
    }
}

impl CallId {
    /// The number that this call has in [`Canon::call`].
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The call of that number.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

impl Session {
    fn canon(&self, canon: &mut Canon, anchors: bool) {
        canon.flag(self.left).flag(self.watching).flag(self.whole);
        canon.u64(u64::try_from(self.lease.as_micros()).unwrap_or(u64::MAX));
        canon.option(self.watch, |canon, CallId(call)| {
            canon.call(call);
        });
        canon.flag(self.coordinator.is_some());
        canon.u64(u64::from(self.failures.min(2)));
        canon.option(self.acked, |canon, (epoch, rev)| {
            canon.u64(epoch.get()).u64(rev.get());
        });
        if anchors {
            canon.option(self.anchor_wait, |canon, (sent, rev)| {
                canon.time(sent).u64(rev.get());
            });
        }
        canon.option(self.update, |canon, CallId(call)| {
            canon.call(call);
        });
        canon.option(self.base.as_ref(), |canon, base| base.canon(canon));
    }
}

impl Sight {
    /// Writes what readers see.
    pub fn canon(&self, canon: &mut Canon, anchors: bool) {
        canon.option(self.replica.as_ref(), |canon, replica| replica.canon(canon));
        write_mark(canon, self.floor);
        self.marks.canon(canon);
        let now = canon.now();
        canon.option(
            self.lease_until.filter(|until| *until > now),
            |canon, until| {
                canon.time(until);
            },
        );
        if anchors {
            canon.option(self.anchor, |canon, anchor| {
                canon.time(anchor);
            });
        }
        canon.flag(self.quarantined);
    }
}

impl MarkSet {
    fn canon(&self, canon: &mut Canon) {
        canon.u64(self.all.get()).u64(self.names.len() as u64);
        for (name, rev) in &self.names {
            canon.text(name.as_str()).u64(rev.get());
        }
    }
}

impl Replica {
    /// Writes what it holds: its head commits to it.
    pub fn canon(&self, canon: &mut Canon) {
        let head = self.head();
        canon.u64(head.epoch.get()).u64(head.rev.get());
        canon.raw(head.root.as_bytes()).raw(head.prev.as_bytes());
        canon.u64(self.records().oldest().get());
    }
}

fn write_mark(canon: &mut Canon, mark: Option<Mark>) {
    canon.option(mark, |canon, mark| {
        canon.u64(mark.epoch.get()).u64(mark.rev.get());
    });
}

fn write_key(canon: &mut Canon, key: &FlightKey) {
    canon.text(key.name.as_str());
    canon.option(key.at, |canon, at| {
        canon.u64(at.get());
    });
}

fn write_waiters(canon: &mut Canon, waiters: &[Waiter]) {
    canon.u64(waiters.len() as u64);
    for waiter in waiters {
        canon.u64(waiter.ticket);
    }
}
