//! A model checker over the machines that production runs: every order in which messages arrive,
//! time passes, disks write and processes die, within a small [`Scenario`].
//!
//! A state is the coordinator's machine and its journal, every worker's machine and what its disk
//! keeps, the messages on their way, and what the operations so far have shown. Messages may
//! arrive in any order, late, twice, or never. Time passes in steps of half a lease by the
//! coordinator's clock; the clocks of workers are as slow against it as they may be. Reads from a
//! sight are tried in every state, and the others as often as the scenario says. Bytes are not
//! modelled: every body is on every disk.
//!
//! What is checked: S1, S2, S6 and S8 at the end of each read and publish, S4 when the coordinator
//! comes back, S5 and S7 where the scenario has runs and bounded reads, and of the liveness L1:
//! a publish waits for no longer than the leases that were out when it became durable. From many
//! states on, everything is let go well for a while: then every publish must be visible, every
//! worker current and leased, and every read ended (L3, L4).

mod judge;
mod packet;
mod place;
mod scenario;
mod site;
mod world;

use std::sync::Arc;

pub use self::scenario::Scenario;
use self::world::{World, name};
use crate::proto::mutant::{Guard, Mutant};
use crate::proto::worker::{CallId, Look};
use crate::sim::model::packet::Packet;
use crate::sim::search::{Found, Model, Trace, search};

/// States after which a search for a fault gives up: each of those that can be found here takes
/// a small part of it.
const FAULT_LIMIT: usize = 200_000;

/// From every so many-th state on, chosen by its digest, all is let go well.
const SETTLED_STATES: u128 = 64;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Tick,
    Deliver(usize),
    Repeat(usize),
    Stray(usize, CallId),
    Written,
    Crash(usize),
    Restore,
    Publish,
    Read(usize, usize),
    Cut(usize),
    Restart(usize),
    Break(usize),
    Leave(usize),
    Nap(usize),
}

/// Searches one scenario whole, or its first `limit` states.
///
/// # Errors
/// What went wrong before the scenario began.
pub fn explore(scenario: &Scenario, limit: usize) -> Result<Found, String> {
    let scenario = Arc::new(scenario.clone());
    let initial = World::new(&scenario)?;
    Ok(search(&Explored { scenario, initial }, limit))
}

/// A fault that the model finds.
#[derive(Debug, Clone)]
pub struct Caught {
    /// The scenario that shows it.
    pub scenario: &'static str,
    /// States that were visited before.
    pub states: usize,
    /// A shortest way to it in that scenario.
    pub trace: Trace,
}

/// Looks for `mutant`, first in the scenario that is meant for it; `None` if it survives.
pub fn caught(mutant: Mutant) -> Option<Caught> {
    let _guard = Guard::new(mutant);
    let mut scenarios = Scenario::all(false);
    scenarios.sort_by_key(|scenario| Some(scenario.name) != meant_for(mutant));
    scenarios.into_iter().find_map(|scenario| {
        let scenario_name = scenario.name;
        let (states, trace) = match explore(&scenario, FAULT_LIMIT) {
            Ok(found) => (found.states, found.trace?),
            Err(broken) => {
                let steps = Vec::new();
                (0, Trace { steps, broken })
            }
        };
        Some(Caught {
            scenario: scenario_name,
            states,
            trace,
        })
    })
}

/// The scenario that shows `mutant` soonest, if it is one that the model is meant to find.
pub fn meant_for(mutant: Mutant) -> Option<&'static str> {
    Some(match mutant {
        Mutant::M01
        | Mutant::M02
        | Mutant::M04
        | Mutant::M05
        | Mutant::M06
        | Mutant::M07
        | Mutant::M12
        | Mutant::M17
        | Mutant::D1 => "publish against a leased read",
        Mutant::M03 | Mutant::M15 | Mutant::X10 => "coordinator crash at each step",
        Mutant::M08 => "an old grant reaches a new process",
        Mutant::X23 => "worker restart between ack and release",
        Mutant::M13 => "a worker sleeps",
        Mutant::M14 => "renewals while pending",
        Mutant::M16 | Mutant::X28 => "a worker that holds nothing",
        Mutant::M18 => "lease length changed at restart",
        Mutant::X21 => "create and delete",
        Mutant::X22 => "a read fails",
        Mutant::X29 => "reads over the network",
        Mutant::X27 => "two names in one revision",
        Mutant::X30 => "a lease is given back",
        Mutant::X31 => "two publishers with expect",
        _ => return None,
    })
}

struct Explored {
    scenario: Arc<Scenario>,
    initial: World,
}

impl Model for Explored {
    type State = World;
    type Step = Step;

    fn initial(&self) -> World {
        self.initial.clone()
    }

    fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps = Vec::new();
        self.reads(world, &mut steps);
        self.messages(world, &mut steps);
        let left = &world.left;
        if left.publish < self.scenario.publishes.len() {
            steps.push(Step::Publish);
        }
        if let Some(writing) = &world.site.writing {
            steps.push(Step::Written);
            if left.crashes > 0 {
                steps.extend((1..=writing.len()).map(Step::Crash));
            }
        }
        if left.crashes > 0 {
            steps.push(Step::Crash(0));
        }
        if left.restores > 0 {
            steps.push(Step::Restore);
        }
        for (worker, place) in world.places.iter().enumerate() {
            if place.asleep.is_some() {
                steps.push(Step::Nap(worker));
                continue;
            }
            let mut may = |times: u32, step| {
                if times > 0 {
                    steps.push(step);
                }
            };
            may(left.naps, Step::Nap(worker));
            may(left.restarts, Step::Restart(worker));
            may(left.leaves, Step::Leave(worker));
            if !place.streams.is_empty() {
                may(left.breaks, Step::Break(worker));
            }
        }
        if left.ticks > 0 {
            steps.push(Step::Tick);
        }
        steps
    }

    fn take(&self, world: &World, step: Step) -> Result<World, String> {
        let mut next = world.clone();
        self.apply(&mut next, step)?;
        Ok(next)
    }

    fn look(&self, world: &World, digest: u128) -> Result<(), String> {
        if digest.is_multiple_of(SETTLED_STATES) {
            world.clone().settles()?;
        }
        Ok(())
    }

    fn digest(&self, world: &World) -> u128 {
        world.digest()
    }

    fn describe(&self, world: &World, step: Step) -> String {
        let packet = |index: usize| world.packets[index].to_string();
        let what = match step {
            Step::Tick => "time passes".into(),
            Step::Deliver(index) => format!("arrives: {}", packet(index)),
            Step::Repeat(index) => format!("arrives, and will again: {}", packet(index)),
            Step::Stray(index, _) => format!("arrives for another renewal: {}", packet(index)),
            Step::Written => format!("the disk has written {}", written(world)),
            Step::Crash(kept) => {
                format!("the coordinator dies and comes back, {kept} entries of its write are kept")
            }
            Step::Restore => "the coordinator is restored from its backup".into(),
            Step::Publish => format!("publish {} is sent", world.left.publish + 2),
            Step::Read(worker, index) => told(world, worker, index),
            Step::Cut(index) => format!("the connection breaks under {}", packet(index)),
            Step::Restart(worker) => format!("worker {worker} dies and comes back"),
            Step::Break(worker) => format!("the watch of worker {worker} breaks"),
            Step::Leave(worker) => format!("worker {worker} gives its lease back"),
            Step::Nap(worker) => match world.places[worker].asleep {
                None => format!("worker {worker} falls asleep"),
                Some(_) => format!("worker {worker} wakes"),
            },
        };
        let mut next = world.clone();
        let reads = self.apply(&mut next, step).unwrap_or_default();
        let reads: String = reads.iter().map(|read| format!("; {read}")).collect();
        format!("{:5} ms  {what}{reads}", world.now.as_micros() / 1_000)
    }
}

impl Explored {
    /// Takes the step and then every read that needs no message.
    fn apply(&self, next: &mut World, step: Step) -> Result<Vec<String>, String> {
        match step {
            Step::Tick => next.tick()?,
            Step::Deliver(index) => {
                next.deliver(index, false)?;
            }
            Step::Repeat(index) => {
                next.deliver(index, true)?;
            }
            Step::Stray(index, call) => next.stray(index, call)?,
            Step::Written => next.written()?,
            Step::Crash(kept) => next.crash(kept)?,
            Step::Restore => next.restore()?,
            Step::Publish => next.publish()?,
            Step::Read(worker, index) => next.read(worker, index)?,
            Step::Cut(index) => next.cut(index),
            Step::Restart(worker) => {
                next.left.restarts -= 1;
                next.restart(worker)?;
            }
            Step::Break(worker) => next.break_watch(worker),
            Step::Leave(worker) => next.leave(worker)?,
            Step::Nap(worker) => next.nap(worker)?,
        }
        next.lose_packets();
        next.read_all()
    }

    /// Reads that ask the coordinator.
    fn reads(&self, world: &World, steps: &mut Vec<Step>) {
        if world.left.reads == 0 {
            return;
        }
        for (worker, place) in world.places.iter().enumerate() {
            let asks =
                |index: &usize| !matches!(world.look(worker, &name(*index)), Look::Serve(..));
            if place.asleep.is_none() {
                let asked = (0..self.scenario.names).filter(asks);
                steps.extend(asked.map(|index| Step::Read(worker, index)));
            }
        }
    }

    fn messages(&self, world: &World, steps: &mut Vec<Step>) {
        for (index, packet) in world.packets.iter().enumerate() {
            let place = &world.places[packet.worker()];
            if packet.goes_up() {
                if !world.site.serves() {
                    continue;
                }
            } else if place.asleep.is_some() {
                continue;
            }
            if let Packet::Granted(_, grant) = packet {
                let own = place
                    .renewals
                    .iter()
                    .any(|(_, nonce)| *nonce == grant.nonce);
                let others = place
                    .renewals
                    .iter()
                    .filter(|(_, nonce)| *nonce != grant.nonce);
                if self.scenario.stray {
                    steps.extend(others.map(|(call, _)| Step::Stray(index, *call)));
                }
                if !own {
                    continue;
                }
            }
            steps.push(Step::Deliver(index));
            if world.left.repeats > 0 && packet.repeats() {
                steps.push(Step::Repeat(index));
            }
            let truth = matches!(packet, Packet::Resolve { .. } | Packet::Resolved(..));
            if world.left.breaks > 0 && truth {
                steps.push(Step::Cut(index));
            }
        }
    }
}

fn told(world: &World, worker: usize, index: usize) -> String {
    let name = name(index);
    match world.look(worker, &name) {
        Look::Soon => format!("a read of `{name}` at worker {worker} waits for a release"),
        Look::Serve(..) | Look::Ask => {
            format!("a read of `{name}` at worker {worker} asks the coordinator")
        }
    }
}

fn written(world: &World) -> String {
    use crate::catalog::Entry;
    let entries = world.site.writing.iter().flatten();
    let words: Vec<_> = entries
        .map(|entry| match entry {
            Entry::Pending(pending) => format!("pending {}", pending.rev),
            Entry::Visible { rev } => format!("visible {rev}"),
            Entry::LeaseMax { lease_us } => format!("longest lease {} ms", lease_us / 1_000),
            Entry::Epoch { epoch } => format!("epoch {epoch}"),
            _ => "something else".into(),
        })
        .collect();
    words.join(", ")
}
