//! Requests, answers and streams between nodes.

use std::collections::VecDeque;
use std::time::Duration;

use super::node::Up;
use super::{Step, World};
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::ALIVE_EVERY;
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
    pub(super) route: Route,
}

/// Which way a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// To the coordinator.
    Direct,
    /// To the coordinator over a peer.
    Over(Via),
    /// To a peer. Nothing cuts these two apart.
    Peer,
}

/// A way over a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Via {
    pub(super) peer: usize,
    /// Of the peer.
    pub(super) incarnation: u64,
    /// What opened it.
    pub(super) call: CallId,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    Free,
    /// It is sent again, and may come through later.
    Blocked,
    /// There is no such way any more.
    Gone,
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
    /// That a peer carry packets.
    Relay,
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

    /// How long one takes on this route: over a peer it has two links to cross, and whoever means
    /// ill holds some of them back.
    fn travel_on(&mut self, route: Route) -> Duration {
        let takes = self.travel();
        let Route::Over(via) = route else {
            return takes;
        };
        let mut takes = takes + self.travel();
        if self.nodes[via.peer].liar && !self.quiet && self.random.percent(30) {
            takes += self.random.span((AGAIN.0, IDLE / 20));
        }
        takes
    }

    fn passage(&self, of: Caller, to_coordinator: bool) -> Passage {
        let is_up = |up: Up| match if to_coordinator { up.to } else { up.from } {
            true => Passage::Free,
            false => Passage::Blocked,
        };
        let node = &self.nodes[of.worker];
        match of.route {
            Route::Peer => Passage::Free,
            Route::Direct => is_up(node.up),
            Route::Over(via) if node.relay != Some(via) => Passage::Gone,
            Route::Over(via) => {
                let peer = &self.nodes[via.peer];
                let carries = peer.machine.is_some() && peer.incarnation == via.incarnation;
                match carries && peer.asleep(self.now).is_none() {
                    true => is_up(peer.up),
                    false => Passage::Blocked,
                }
            }
        }
    }

    /// A worker asks the coordinator.
    pub(super) fn send(&mut self, from: Caller, ask: Ask) {
        let sent = self.now;
        let repeats = !self.quiet && self.random.percent(self.plan.repeat);
        if repeats && !matches!(ask, Ask::Watch(_) | Ask::Unwatch(_)) {
            let pause = self.travel_on(from.route) * 2;
            let ask = ask.clone();
            self.later(pause, Step::Ask { from, ask, sent });
        }
        let pause = self.travel_on(from.route);
        self.later(pause, Step::Ask { from, ask, sent });
    }

    pub(super) fn ask_arrives(&mut self, from: Caller, ask: Ask, sent: Time) {
        let passage = self.passage(from, true);
        if passage != Passage::Free {
            if passage == Passage::Gone {
                return self.fails(from, Duration::ZERO, false);
            }
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
        let pause = self.travel_on(to.route);
        if let Some(Event::Opening(_)) = events.first() {
            self.lives_for(to, pause);
        }
        let step = Step::Events {
            to,
            events,
            sent,
            own,
        };
        self.later(pause, step);
    }

    /// Other packets come while an answer is on its way for so long.
    fn lives_for(&mut self, to: Caller, pause: Duration) {
        let mut after = ALIVE_EVERY;
        while after < pause {
            let (events, sent, own) = (vec![Event::Alive], self.now, false);
            let step = Step::Events {
                to,
                events,
                sent,
                own,
            };
            self.later(after, step);
            after += ALIVE_EVERY;
        }
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
        let passage = if own {
            Passage::Free
        } else {
            self.passage(to, false)
        };
        if passage != Passage::Free {
            if let [Event::Alive] = events[..] {
                // It says that something comes, and nothing does.
                return;
            }
            if passage == Passage::Gone {
                return self.fails(to, Duration::ZERO, false);
            }
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
                route: Route::Direct,
            };
            self.event(to, event);
        }
    }

    /// Puts something into a stream to a worker.
    pub(super) fn push(&mut self, stream: u64, event: Event) {
        let Some(found) = self.streams.get(&stream) else {
            return;
        };
        let takes = self.travel_on(found.caller.route);
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
        let caller = found.caller;
        if self.passage(caller, false) != Passage::Free {
            let pause = self.random.span(AGAIN);
            return self.later(pause, Step::Push(stream));
        }
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        if let Some(event) = found.queue.pop_front() {
            self.event(caller, event);
        }
    }

    /// A peer was asked to carry packets. It does if its machine lets it, and then the coordinator
    /// has to say hello over it.
    pub(super) fn relay_asked(&mut self, from: Caller, peer: usize) {
        let node = &self.nodes[peer];
        let now = node.clock.at(self.now);
        let direct = node
            .machine
            .as_ref()
            .and_then(|machine| machine.direct(now));
        if direct.is_none() {
            let refusal = Refusal::new(Code::NoCatalog, "no path of its own");
            return self.reply(from, vec![Event::Refused(refusal)]);
        }
        let incarnation = node.incarnation;
        let mut pause = Duration::ZERO;
        for _ in 0..6 {
            pause += self.travel();
        }
        let step = Step::Dialled {
            from,
            peer,
            incarnation,
        };
        self.later(pause, step);
    }

    /// Whether the coordinator has said hello over a peer shows.
    pub(super) fn relay_dialled(&mut self, from: Caller, peer: usize, incarnation: u64) {
        let node = &self.nodes[peer];
        let carries = node.machine.is_some() && node.incarnation == incarnation;
        let up = node.up.to && node.up.from && node.asleep(self.now).is_none();
        if !(carries && up && self.site.serves()) {
            let pause = self.random.span((AGAIN.0, AGAIN.1 * 12));
            return self.fails(from, pause, true);
        }
        let Some(call) = from.call else { return };
        self.nodes[from.worker].offered = Some(Via {
            peer,
            incarnation,
            call,
        });
        let (addr, via) = ("c0".into(), format!("w{peer}"));
        self.reply(from, vec![Event::RelayUp { addr, via }]);
    }

    /// The way over a peer is there, for the machine to use.
    pub(super) fn relay_opened(&mut self, worker: usize, call: CallId) {
        let node = &mut self.nodes[worker];
        if node.offered.is_some_and(|via| via.call == call) {
            node.relay = node.offered.take();
        }
    }

    /// A call is cancelled: the way that it keeps open goes with it.
    pub(super) fn relay_left(&mut self, worker: usize, call: CallId) {
        let node = &mut self.nodes[worker];
        node.offered.take_if(|via| via.call == call);
        let Some(via) = node.relay.take_if(|via| via.call == call) else {
            return;
        };
        let streams = self.streams.iter();
        let over = streams.filter(|(_, stream)| {
            stream.caller.worker == worker && stream.caller.route == Route::Over(via)
        });
        let over: Vec<_> = over.map(|(&number, _)| number).collect();
        for stream in over {
            self.break_stream(stream);
        }
    }

    /// A peer that carried is gone: those whose packets it carried find out when they do.
    pub(super) fn carrier_gone(&mut self, peer: usize) {
        let carried: Vec<_> = (0..self.nodes.len())
            .filter_map(|worker| {
                let node = &self.nodes[worker];
                let via = node.relay.filter(|via| via.peer == peer)?;
                Some(Caller {
                    worker,
                    incarnation: node.incarnation,
                    call: Some(via.call),
                    route: Route::Peer,
                })
            })
            .collect();
        for caller in carried {
            let pause = self.random.span((Duration::ZERO, IDLE));
            self.fails(caller, pause, false);
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
