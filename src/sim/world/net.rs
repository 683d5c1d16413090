//! Requests, answers and streams between nodes.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Step, World};
use crate::proto::Time;
use crate::proto::wire::{GetCatalog, GetDelta, PrepAck, Renew, Resolve, SessionId};
use crate::proto::worker::{CallId, Event};
use crate::spec::SpecHash;

/// A connection that is silent for so long is given up.
const IDLE: Duration = Duration::from_secs(10);

/// A packet that does not come through is sent again within this.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// A worker's call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) worker: usize,
    pub(super) incarnation: u64,
    pub(super) call: Option<CallId>,
}

/// What a worker asks the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    Resolve(Resolve),
    Renew(Renew),
    Delta(GetDelta),
    Catalog(GetCatalog),
    /// And whether it is to be answered at once and with the bytes.
    Blob(SpecHash, bool),
    Watch(SessionId),
    Unwatch(CallId),
    Ack(PrepAck),
    Leave(SessionId),
}

/// What the coordinator tells a worker without being asked, in order.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) caller: Caller,
    pub(super) sid: SessionId,
    pub(super) queue: VecDeque<Event>,
    /// When the last of it arrives.
    last: Time,
    /// Nothing comes through any more, and nobody has noticed.
    pub(super) silent: bool,
}

impl Stream {
    pub(super) fn new(caller: Caller, sid: SessionId) -> Self {
        Self {
            caller,
            sid,
            queue: VecDeque::new(),
            last: Time::default(),
            silent: false,
        }
    }
}

impl World {
    /// How long a packet takes this time.
    pub(super) fn travel(&mut self) -> Duration {
        let mut takes = self.random.span(self.plan.delay);
        if self.quiet {
            return takes;
        }
        while self.random.percent(self.plan.loss) && takes < IDLE {
            takes += self.random.span((AGAIN.0 * 5, AGAIN.1 * 2));
        }
        if self.random.permille(self.plan.slow) {
            takes += IDLE;
        }
        takes
    }

    /// A worker asks the coordinator.
    pub(super) fn send(&mut self, from: Caller, ask: Ask) {
        let sent = self.now;
        let repeats = !self.quiet && self.random.percent(self.plan.repeat);
        if repeats && !matches!(ask, Ask::Watch(_) | Ask::Unwatch(_)) {
            let pause = self.travel() * 2;
            let ask = ask.clone();
            self.later(pause, Step::Ask { from, ask, sent });
        }
        let pause = self.travel();
        self.later(pause, Step::Ask { from, ask, sent });
    }

    pub(super) fn ask_arrives(&mut self, from: Caller, ask: Ask, sent: Time) {
        if !self.nodes[from.worker].up.to {
            if self.now.since(sent) < IDLE {
                let pause = self.random.span(AGAIN);
                return self.later(pause, Step::Ask { from, ask, sent });
            }
            return self.fails(from, Duration::ZERO, true);
        }
        if !self.site.serves() {
            let pause = match self.random.percent(50) {
                true => self.travel(),
                false => self.random.span((AGAIN.1, AGAIN.1 * 12)),
            };
            return self.fails(from, pause, true);
        }
        self.asked(from, ask);
    }

    /// The caller finds out that nothing comes of its call.
    pub(super) fn fails(&mut self, to: Caller, after: Duration, unreachable: bool) {
        let event = match unreachable {
            true => Event::Failed {
                reason: "cannot be reached".into(),
                unreachable,
            },
            false => Event::Lost {
                reason: "the connection is gone".into(),
            },
        };
        let (events, sent, own) = (vec![event], self.now, true);
        let step = Step::Events {
            to,
            events,
            sent,
            own,
        };
        self.later(after, step);
    }

    /// The coordinator, or a peer, answers.
    pub(super) fn reply(&mut self, to: Caller, mut events: Vec<Event>) {
        if !self.quiet && events.len() > 1 && self.random.permille(10) {
            events.truncate(self.random.index(events.len()));
            events.push(match self.random.percent(50) {
                true => Event::End,
                false => Event::Lost {
                    reason: "the connection broke".into(),
                },
            });
        }
        if let [event @ Event::Granted(_)] = &events[..]
            && !self.quiet
            && self.random.percent(self.plan.ghosts)
        {
            let pause = self.random.span((AGAIN.0, IDLE / 5));
            let (worker, event) = (to.worker, event.clone());
            self.later(pause, Step::Ghost { worker, event });
        }
        let (sent, own) = (self.now, false);
        let step = Step::Events {
            to,
            events,
            sent,
            own,
        };
        let pause = self.travel();
        self.later(pause, step);
    }

    pub(super) fn events_arrive(&mut self, to: Caller, events: Vec<Event>, sent: Time, own: bool) {
        let node = &self.nodes[to.worker];
        let again = Step::Events {
            to,
            events: events.clone(),
            sent,
            own,
        };
        if let Some(until) = node.asleep(self.now) {
            let late = self.random.span(AGAIN);
            return self.schedule(until + late, again);
        }
        if !own && !node.up.from {
            if self.now.since(sent) < IDLE {
                let pause = self.random.span(AGAIN);
                return self.later(pause, again);
            }
            return self.fails(to, Duration::ZERO, true);
        }
        for event in events {
            self.event(to, event);
        }
    }

    pub(super) fn ghost_arrives(&mut self, worker: usize, event: Event) {
        let node = &self.nodes[worker];
        let incarnation = node.incarnation;
        if let Some(call) = node.renewing
            && node.asleep(self.now).is_none()
        {
            let call = Some(call);
            let to = Caller {
                worker,
                incarnation,
                call,
            };
            self.event(to, event);
        }
    }

    /// Puts something into a stream to a worker.
    pub(super) fn push(&mut self, stream: u64, event: Event) {
        let takes = self.travel();
        let now = self.now;
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        if found.silent {
            return;
        }
        found.queue.push_back(event);
        found.last = found.last.max(now + takes) + Duration::from_micros(1);
        let at = found.last;
        self.schedule(at, Step::Push(stream));
    }

    pub(super) fn push_arrives(&mut self, stream: u64) {
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        if found.silent {
            return;
        }
        let node = &self.nodes[found.caller.worker];
        if let Some(until) = node.asleep(self.now) {
            // What came meanwhile is lost, and comes again.
            let late = self.random.span(AGAIN);
            return self.schedule(until + late, Step::Push(stream));
        }
        if !node.up.from {
            let pause = self.random.span(AGAIN);
            return self.later(pause, Step::Push(stream));
        }
        let caller = found.caller;
        if let Some(event) = found.queue.pop_front() {
            self.event(caller, event);
        }
    }

    /// A stream breaks; each side finds out on its own, or not for long.
    pub(super) fn break_stream(&mut self, stream: u64) {
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        if std::mem::replace(&mut found.silent, true) {
            return;
        }
        found.queue.clear();
        let caller = found.caller;
        let pause = self.random.span((Duration::ZERO, IDLE));
        self.later(pause, Step::Unwatch(stream));
        let pause = self.random.span((Duration::ZERO, IDLE));
        self.fails(caller, pause, false);
    }
}
