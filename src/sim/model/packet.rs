//! What is on its way between the coordinator and the workers.

use std::fmt;
use std::sync::Arc;

use crate::catalog::Version;
use crate::proto::canon::Canon;
use crate::proto::wire::{
    CatalogDiff, Delta, GetCatalog, GetDelta, Grant, Marks, PrepAck, Push, Renew, Resolve,
    Resolved, SessionId,
};
use crate::proto::worker::CallId;

/// The call of one process of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct To {
    pub(super) worker: usize,
    /// Which start of its process.
    pub(super) life: u64,
    pub(super) call: CallId,
}

/// One message. It may arrive late, out of order, repeatedly, or never.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    Watch {
        from: To,
        sid: SessionId,
        stream: u64,
    },
    Unwatch {
        worker: usize,
        sid: SessionId,
        stream: u64,
    },
    Renew {
        worker: usize,
        renew: Renew,
    },
    Ack {
        worker: usize,
        ack: PrepAck,
    },
    Leave {
        worker: usize,
        sid: SessionId,
    },
    Resolve {
        from: To,
        request: Arc<Resolve>,
    },
    GetDelta {
        from: To,
        request: GetDelta,
    },
    GetCatalog {
        from: To,
        request: Arc<GetCatalog>,
    },
    Watching(To),
    Push(To, Arc<Push>),
    /// Bound to no call: whatever renewal is open may get it.
    Granted(usize, Arc<Grant>),
    Resolved(To, Resolved, Vec<Option<Version>>),
    Delta(To, Arc<Delta>),
    Refused(To),
    Catalog(To, Arc<CatalogDiff>),
    /// The connection is gone, as the worker sees it.
    Lost(To),
}

impl Packet {
    /// Whose it is.
    pub(super) fn worker(&self) -> usize {
        match self {
            Self::Watch { from, .. }
            | Self::Resolve { from, .. }
            | Self::GetDelta { from, .. }
            | Self::GetCatalog { from, .. } => from.worker,
            Self::Unwatch { worker, .. }
            | Self::Renew { worker, .. }
            | Self::Ack { worker, .. }
            | Self::Leave { worker, .. }
            | Self::Granted(worker, _) => *worker,
            Self::Watching(to)
            | Self::Push(to, _)
            | Self::Resolved(to, ..)
            | Self::Delta(to, _)
            | Self::Refused(to)
            | Self::Catalog(to, _)
            | Self::Lost(to) => to.worker,
        }
    }

    /// The call without which it has no effect any more.
    pub(super) fn call(&self) -> Option<To> {
        match self {
            Self::Watch { from, .. }
            | Self::Resolve { from, .. }
            | Self::GetDelta { from, .. }
            | Self::GetCatalog { from, .. } => Some(*from),
            Self::Watching(to)
            | Self::Push(to, _)
            | Self::Resolved(to, ..)
            | Self::Delta(to, _)
            | Self::Refused(to)
            | Self::Catalog(to, _)
            | Self::Lost(to) => Some(*to),
            Self::Unwatch { .. }
            | Self::Renew { .. }
            | Self::Ack { .. }
            | Self::Leave { .. }
            | Self::Granted(..) => None,
        }
    }

    /// Whether the coordinator gets it.
    pub(super) fn goes_up(&self) -> bool {
        matches!(
            self,
            Self::Watch { .. }
                | Self::Unwatch { .. }
                | Self::Renew { .. }
                | Self::Ack { .. }
                | Self::Leave { .. }
                | Self::Resolve { .. }
                | Self::GetDelta { .. }
                | Self::GetCatalog { .. }
        )
    }

    /// Whether a network that repeats may deliver it twice: a call is answered once.
    pub(super) fn repeats(&self) -> bool {
        matches!(
            self,
            Self::Renew { .. } | Self::Ack { .. } | Self::Push(..) | Self::Granted(..)
        )
    }

    /// Writes what tells it from another one.
    pub(super) fn canon(&self, canon: &mut Canon) {
        if let Some(to) = self.call() {
            canon.call(to.call.raw());
        }
        match self {
            Self::Watch { stream, .. } => canon.u64(1).u64(*stream),
            Self::Unwatch { stream, .. } => canon.u64(2).u64(*stream),
            Self::Renew { renew, .. } => {
                canon.u64(3).text(&renew.sid.to_string()).u64(renew.nonce);
                write_place(canon, renew.have);
                write_place(canon, renew.acked)
            }
            Self::Ack { ack, .. } => {
                canon.u64(4).text(&ack.sid.to_string());
                canon.u64(ack.epoch.get()).u64(ack.rev.get())
            }
            Self::Leave { sid, .. } => canon.u64(5).text(&sid.to_string()),
            Self::Resolve { request, .. } => {
                canon.u64(6).u64(request.names.len() as u64);
                for asked in &request.names {
                    canon.text(asked.name.as_str());
                }
                canon
            }
            Self::GetDelta { request, .. } => {
                canon.u64(7);
                canon.u64(request.epoch.get()).u64(request.from.get())
            }
            Self::GetCatalog { request, .. } => canon.u64(8).flag(request.have.is_empty()),
            Self::Watching(_) => canon.u64(9),
            Self::Push(_, push) => match &**push {
                Push::Prepare(prepare) => {
                    canon.u64(10);
                    canon.u64(prepare.epoch.get()).u64(prepare.rev.get());
                    write_marks(canon, &prepare.marks)
                }
                Push::Release(delta) => {
                    canon.u64(11);
                    write_delta(canon, delta)
                }
            },
            Self::Granted(_, grant) => {
                canon.u64(12).text(&grant.sid.to_string()).u64(grant.nonce);
                canon.u64(grant.epoch.get()).u64(grant.rev.get());
                canon.u64(grant.lease_us);
                write_marks(canon, &grant.marks);
                write_delta(canon, &grant.delta)
            }
            Self::Resolved(_, opening, versions) => {
                canon.u64(13);
                canon.u64(opening.epoch.get()).u64(opening.rev.get());
                for version in versions {
                    canon.u64(version.map_or(0, |version| version.rev.get()));
                }
                canon
            }
            Self::Delta(_, delta) => {
                canon.u64(14);
                write_delta(canon, delta)
            }
            Self::Refused(_) => canon.u64(15),
            Self::Catalog(_, diff) => canon.u64(16).text(&format!("{:?}", diff.head)),
            Self::Lost(_) => canon.u64(17),
        };
    }
}

fn write_place(
    canon: &mut Canon,
    place: Option<(crate::catalog::Epoch, crate::catalog::Revision)>,
) -> &mut Canon {
    canon.option(place, |canon, (epoch, rev)| {
        canon.u64(epoch.get()).u64(rev.get());
    })
}

fn write_marks<'a>(canon: &'a mut Canon, marks: &Marks) -> &'a mut Canon {
    canon.u64(marks.all.get()).u64(marks.names.len() as u64);
    for (name, rev) in &marks.names {
        canon.text(name.as_str()).u64(rev.get());
    }
    canon
}

fn write_delta<'a>(canon: &'a mut Canon, delta: &Delta) -> &'a mut Canon {
    canon.u64(delta.epoch.get()).u64(delta.rev.get());
    canon.u64(delta.steps.len() as u64);
    if let Some(head) = delta.steps.last().and_then(|step| step.head.signed().ok()) {
        canon.raw(head.as_bytes());
    }
    canon
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worker = self.worker();
        match self {
            Self::Watch { .. } => write!(f, "Watch of worker {worker}"),
            Self::Unwatch { .. } => write!(f, "end of the watch of worker {worker}"),
            Self::Renew { renew, .. } => {
                write!(f, "Renew {} of worker {worker}", renew.nonce)
            }
            Self::Ack { ack, .. } => write!(f, "PrepAck {} of worker {worker}", ack.rev),
            Self::Leave { .. } => write!(f, "Leave of worker {worker}"),
            Self::Resolve { request, .. } => {
                write!(
                    f,
                    "Resolve of `{}` by worker {worker}",
                    request.names[0].name
                )
            }
            Self::GetDelta { request, .. } => {
                write!(f, "GetDelta from {} by worker {worker}", request.from)
            }
            Self::GetCatalog { .. } => write!(f, "GetCatalog by worker {worker}"),
            Self::Watching(_) => write!(f, "Watching to worker {worker}"),
            Self::Push(_, push) => match &**push {
                Push::Prepare(prepare) => {
                    write!(f, "Prepare {} to worker {worker}", prepare.rev)
                }
                Push::Release(delta) => write!(f, "Release {} to worker {worker}", delta.rev),
            },
            Self::Granted(_, grant) => write!(
                f,
                "Grant {} (revision {}, {} marks, {} ms) to worker {worker}",
                grant.nonce,
                grant.rev,
                grant.marks.names.len(),
                grant.lease_us / 1_000
            ),
            Self::Resolved(_, opening, _) => {
                write!(f, "Resolved at {} to worker {worker}", opening.rev)
            }
            Self::Delta(_, delta) => write!(f, "Delta up to {} to worker {worker}", delta.rev),
            Self::Refused(_) => write!(f, "refusal to worker {worker}"),
            Self::Catalog(..) => write!(f, "Catalog to worker {worker}"),
            Self::Lost(_) => write!(f, "loss of the connection to worker {worker}"),
        }
    }
}
