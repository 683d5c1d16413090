//! A cluster in one thread: virtual time, a network and disks that go wrong as a seed wills, and
//! the checker over all that readers and publishers saw.
//!
//! It drives the machines of production, [`Worker`](crate::proto::worker::Worker) and
//! [`Coordinator`](crate::proto::coordinator::Coordinator), and carries out each of their outputs;
//! the coordinator's store is the real vault over a disk in memory, and readers look at a
//! worker's sight as reader threads do. Nothing asks a clock, a thread or the operating system,
//! so a [`Plan`] and its seed decide every step: [`run`] twice gives the same log.
//!
//! Besides the invariants of [`check`](super::check) a world demands that every read ends by its
//! deadline, that a publish ends once the leases of its time have run out, that nobody blames the
//! coordinator or calls it a liar, and that every worker is current some time after the last
//! fault.

mod clock;
mod disk;
mod faults;
mod net;
mod node;
mod oracle;
mod plan;
mod publishers;
mod readers;
mod site;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use self::faults::Fault;
use self::net::{Ask, Caller, Stream};
use self::node::Node;
pub use self::oracle::{Failure, Outcome};
use self::oracle::{Log, Oracle};
pub use self::plan::{Faults, Plan};
use self::publishers::{Attempt, Publisher};
use self::readers::Crowd;
use self::site::Site;
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::worker::Event;
use crate::sim::history::{PublishId, RunId};
use crate::sim::random::Random;
use crate::spec::{Spec, SpecName};

/// After the last fault: idle timeouts of ten seconds, and some renewals.
const QUIET: Duration = Duration::from_secs(30);

/// Lets a world happen.
///
/// # Errors
/// What went wrong first, with the log of the steps before it.
pub fn run(plan: &Plan) -> Result<Outcome, Box<Failure>> {
    World::new(plan, Log::Nothing).run().map_err(|failure| {
        // The same again, to write down what led to it.
        let again = World::new(plan, Log::Last(VecDeque::new())).run().err();
        Box::new(again.unwrap_or(failure))
    })
}

/// Lets a world happen, and returns a line for each of its steps, up to its end or to what went
/// wrong.
pub fn log(plan: &Plan) -> Vec<String> {
    let mut world = World::new(plan, Log::All(Vec::new()));
    world.play();
    world.oracle.take_log()
}

struct World {
    plan: Plan,
    random: Random,
    now: Time,
    queue: BTreeMap<(Time, u64), Step>,
    serial: u64,
    /// No fault happens any more.
    quiet: bool,
    site: Site,
    nodes: Vec<Node>,
    /// Workers by the ids under which others know them.
    known: BTreeMap<NodeId, usize>,
    publishers: Vec<Publisher>,
    streams: BTreeMap<u64, Stream>,
    names: Vec<SpecName>,
    /// Every definition that anyone has tried to publish.
    specs: Vec<Spec>,
    oracle: Oracle,
    crowd: Crowd,
    ids: u64,
}

/// What happens at some time.
enum Step {
    /// A request reaches the coordinator.
    Ask {
        from: Caller,
        ask: Ask,
        sent: Time,
    },
    /// An answer reaches a worker; one that it gives itself crosses no link.
    Events {
        to: Caller,
        events: Vec<Event>,
        sent: Time,
        own: bool,
    },
    /// The answer to a renewal comes as that of another one.
    Ghost {
        worker: usize,
        event: Event,
    },
    /// A request reaches a peer.
    Peer {
        from: Caller,
        peer: usize,
        ask: Ask,
    },
    /// What came of dialling the coordinator over a peer.
    Dialled {
        from: Caller,
        peer: usize,
        incarnation: u64,
    },
    /// Something comes over a stream.
    Push(u64),
    /// The coordinator finds out that a stream is gone.
    Unwatch(u64),
    NodeWakes(usize),
    NodeStarts(usize),
    /// A worker writes what it holds back.
    Flush(usize),
    /// A worker that slept is told so.
    Resumed {
        worker: usize,
        incarnation: u64,
    },
    SiteWakes,
    SiteStarts,
    /// A write ends.
    Written(u64),
    Burst {
        worker: usize,
    },
    RunBegins,
    RunGoesOn {
        worker: usize,
        run: RunId,
        left: u32,
    },
    Pins,
    Unpins(u64),
    Publishes(usize),
    Publishing(usize, Attempt),
    Published {
        publisher: usize,
        id: PublishId,
        result: publishers::Answer,
    },
    Audit,
    Fault(Fault),
    Mended(Fault, usize),
}

impl World {
    fn new(plan: &Plan, log: Log) -> Self {
        let mut random = Random::new(plan.seed);
        let names = (0..plan.names).map(|n| match format!("n{n}").parse() {
            Ok(name) => name,
            Err(error) => unreachable!("`n{n}` is a name: {error}"),
        });
        let names: Vec<_> = names.collect();
        let site = Site::new(plan, &mut random);
        let nodes = (0..plan.workers).map(|index| Node::new(plan, index, &mut random));
        let nodes = nodes.collect();
        Self {
            plan: plan.clone(),
            now: Time::default(),
            queue: BTreeMap::new(),
            serial: 0,
            quiet: false,
            oracle: Oracle::new(site.catalog(), log),
            site,
            nodes,
            known: (0..plan.workers)
                .flat_map(|worker| node::ids(worker).map(|id| (id, worker)))
                .collect(),
            publishers: (0..plan.publishers).map(Publisher::new).collect(),
            streams: BTreeMap::new(),
            names,
            specs: Vec::new(),
            random,
            crowd: Crowd::default(),
            ids: 0,
        }
    }

    fn run(mut self) -> Result<Outcome, Failure> {
        self.play();
        self.close()
    }

    fn play(&mut self) {
        self.begin();
        let end = Time::default() + self.plan.length;
        while !self.oracle.failed() {
            let Some(((at, _), step)) = self.queue.pop_first() else {
                break;
            };
            if at > end && !self.quiet {
                self.fall_quiet();
            }
            if at > end + QUIET {
                break;
            }
            // Two steps are never at one time, so that the checker can tell which was first.
            self.now = at.max(self.now + Duration::from_micros(1));
            self.step(step);
        }
        self.finish();
    }

    fn close(mut self) -> Result<Outcome, Failure> {
        let copies = std::mem::take(&mut self.site.copies);
        let machines = self.nodes.iter().filter_map(|node| node.machine.as_ref());
        let quarantined = machines.filter(|machine| machine.rollback().is_some());
        let quarantined = quarantined.count();
        let outcome = self.oracle.close(&self.plan, self.now)?;
        Ok(Outcome {
            bodies: copies.len() as u64,
            copies: copies.values().sum(),
            most_copies: copies.into_values().max().unwrap_or_default(),
            refused: self.site.refuses,
            quarantined,
            ..outcome
        })
    }

    fn begin(&mut self) {
        self.start_site();
        for worker in 0..self.nodes.len() {
            let at = self.now
                + self
                    .random
                    .span((Duration::ZERO, Duration::from_millis(300)));
            self.schedule(at, Step::NodeStarts(worker));
            for _ in 0..self.plan.readers {
                let at = self.now + self.random.span(self.plan.think);
                self.schedule(at, Step::Burst { worker });
            }
        }
        for publisher in 0..self.publishers.len() {
            self.schedule(self.now, Step::Publishes(publisher));
        }
        if self.plan.rich {
            self.schedule(self.now + Duration::from_millis(500), Step::RunBegins);
            self.schedule(self.now + Duration::from_millis(700), Step::Pins);
        }
        self.schedule(self.now + Duration::from_secs(1), Step::Audit);
        self.plan_faults();
    }

    fn schedule(&mut self, at: Time, step: Step) {
        self.serial += 1;
        self.queue.insert((at, self.serial), step);
    }

    fn later(&mut self, pause: Duration, step: Step) {
        self.schedule(self.now + pause, step);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask { from, ask, sent } => self.ask_arrives(from, ask, sent),
            Step::Events {
                to,
                events,
                sent,
                own,
            } => self.events_arrive(to, events, sent, own),
            Step::Ghost { worker, event } => self.ghost_arrives(worker, event),
            Step::Peer { from, peer, ask } => self.peer_asked(from, peer, &ask),
            Step::Dialled {
                from,
                peer,
                incarnation,
            } => self.relay_dialled(from, peer, incarnation),
            Step::Push(stream) => self.push_arrives(stream),
            Step::Unwatch(stream) => self.stream_gone(stream),
            Step::NodeWakes(worker) => self.node_wakes(worker),
            Step::NodeStarts(worker) => self.start_node(worker),
            Step::Flush(worker) => self.flush_node(worker),
            Step::Resumed {
                worker,
                incarnation,
            } => self.node_resumed(worker, incarnation),
            Step::SiteWakes => self.site_wakes(),
            Step::SiteStarts => self.start_site(),
            Step::Written(generation) => self.write_ends(generation),
            Step::Burst { worker } => self.burst(worker),
            Step::RunBegins => self.run_begins(),
            Step::RunGoesOn { worker, run, left } => self.run_goes_on(worker, run, left),
            Step::Pins => self.pins(),
            Step::Unpins(id) => self.unpins(id),
            Step::Publishes(publisher) => self.publishes(publisher),
            Step::Publishing(publisher, attempt) => self.publish_arrives(publisher, attempt),
            Step::Published {
                publisher,
                id,
                result,
            } => self.published(publisher, id, result),
            Step::Audit => self.audit(),
            Step::Fault(fault) => self.fault(fault),
            Step::Mended(fault, of) => self.mended(fault, of),
        }
    }

    /// A number that nothing else has.
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// A definition that nobody has seen before.
    fn new_spec(&mut self, name: &SpecName) -> Spec {
        let number = self.id();
        let mut text = format!("# {name} {number}\nsteps:\n");
        // Some are longer than what is looked at first.
        let lines = self.random.below(8) * self.random.below(12);
        for line in 0..lines {
            text.push_str(&format!("  - run: step {line} of definition {number}\n"));
        }
        let spec = Spec::new(Bytes::from(text));
        self.specs.push(spec.clone());
        spec
    }
}
