//! A worker of the model: the production machine, its clock, and what is on its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::proto::Time;
use crate::proto::canon::Canon;
use crate::proto::replica::Replica;
use crate::proto::wire::SessionId;
use crate::proto::worker::{
    Anchor, CallId, Config, Mark, Prefetch, Restored, Sight, SightCell, Worker,
};
use crate::sim::model::packet::To;
use crate::sim::model::site::Unsigned;

/// Renewals whose answers are still wanted; older ones hang for ever.
const OPEN_RENEWALS: usize = 2;

/// What a worker's clock says when the model begins, so that no two clocks agree.
const CLOCK_ORIGIN: u64 = 1_000_000_000_000;

/// One worker.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) machine: Worker,
    pub(super) sight: Arc<Sight>,
    pub(super) index: usize,
    pub(super) sid: SessionId,
    /// Which start of its process, from 0.
    pub(super) life: u64,
    /// On disk.
    pub(super) mark: Option<Mark>,
    /// On disk.
    pub(super) kept: Option<Arc<Replica>>,
    /// On disk, of this boot.
    pub(super) anchor: Option<Anchor>,
    /// Calls that want an answer.
    pub(super) live: BTreeSet<u64>,
    /// Renewals that want an answer, with their nonces.
    pub(super) renewals: Vec<(CallId, u64)>,
    pub(super) renewals_left: u32,
    /// The streams that were asked for, by call.
    pub(super) streams: BTreeMap<CallId, u64>,
    pub(super) next_stream: u64,
    /// It has given its lease back for good.
    pub(super) left: bool,
    /// Speed of its clock in millionths.
    speed: u64,
    /// Since when it sleeps, by real time.
    pub(super) asleep: Option<Time>,
    /// How long its clock stood still: in faulty workers only.
    pub(super) stood: u64,
}

impl Place {
    pub(super) fn new(index: usize, speed: u64) -> Self {
        Self {
            machine: machine(index, 0, Restored::default()),
            sight: Arc::default(),
            index,
            sid: sid(index, 0),
            life: 0,
            mark: None,
            kept: None,
            anchor: None,
            live: BTreeSet::new(),
            renewals: Vec::new(),
            renewals_left: u32::MAX,
            streams: BTreeMap::new(),
            next_stream: index as u64,
            left: false,
            speed,
            asleep: None,
            stood: 0,
        }
    }

    /// What its clock says at the real time `now`.
    pub(super) fn clock(&self, now: Time) -> Time {
        let ran = now.as_micros() - self.stood;
        Time::from_micros(CLOCK_ORIGIN + ran * self.speed / 1_000_000)
    }

    /// A new process over what the disk has.
    pub(super) fn restart(&mut self, now: Time) {
        let now = self.clock(now);
        let lease = self.sight.lease_left(now);
        self.life += 1;
        self.sid = sid(self.index, self.life);
        let restored = Restored {
            mark: self.mark,
            replica: self.kept.as_deref().cloned(),
            anchor: self.anchor,
            // Only a faulty worker makes use of it.
            lease_until: (!lease.is_zero()).then(|| now + lease),
            ..Restored::default()
        };
        self.machine = machine(self.index, self.life, restored);
        self.sight = Arc::default();
        self.live.clear();
        self.renewals.clear();
        self.streams.clear();
        self.asleep = None;
        self.left = false;
    }

    pub(super) fn to(&self, call: CallId) -> To {
        To {
            worker: self.index,
            life: self.life,
            call,
        }
    }

    /// Whether an answer to this call has any effect.
    pub(super) fn wants(&self, to: To) -> bool {
        to.life == self.life && self.live.contains(&to.call.raw())
    }

    pub(super) fn open_renewal(&mut self, call: CallId, nonce: u64) {
        self.renewals.push((call, nonce));
        if self.renewals.len() > OPEN_RENEWALS {
            self.renewals.remove(0);
        }
    }

    pub(super) fn canon(&self, canon: &mut Canon, anchors: bool) {
        self.machine.canon(canon, anchors);
        canon.u64(self.life).flag(self.asleep.is_some());
        canon.u64(self.stood).u64(u64::from(self.renewals_left));
        canon.option(self.mark, |canon, mark| {
            canon.u64(mark.epoch.get()).u64(mark.rev.get());
        });
        canon.option(self.kept.as_ref(), |canon, kept| kept.canon(canon));
        if anchors {
            canon.option(self.anchor, |canon, Anchor { at, state }| {
                canon.time(at).u64(state.epoch.get()).u64(state.rev.get());
            });
        }
        for (call, _) in &self.renewals {
            canon.call(call.raw());
        }
        for (call, stream) in &self.streams {
            canon.call(call.raw()).u64(*stream);
        }
    }
}

fn machine(index: usize, life: u64, restored: Restored) -> Worker {
    let config = Config {
        coordinators: vec!["c".into()],
        sid: sid(index, life),
        lease: true,
        prefetch: Prefetch::None,
        ..Config::default()
    };
    Worker::new(&config, Arc::new(Unsigned), restored)
}

/// Its short form, which is its first 32 bits, differs too.
fn sid(index: usize, life: u64) -> SessionId {
    SessionId::new(u128::from(1 + index as u64 + 16 * life) << 96)
}

/// What a reader thread finds.
pub(super) struct Shown(pub(super) Arc<Sight>);

impl SightCell for Shown {
    fn load(&self) -> Arc<Sight> {
        Arc::clone(&self.0)
    }

    fn store(&self, _: Arc<Sight>) {}
}
