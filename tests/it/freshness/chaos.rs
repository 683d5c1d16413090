//! A coordinator and many workers that are stopped, killed and started again while clients read
//! and publish. What the clients saw is judged by the checker that the simulator uses.
//!
//! `LARDER_CHAOS_SECONDS` says for how long, `LARDER_CHAOS_SEED` who is hit when. Processes are
//! not simulated: the seed repeats the faults and not how they fall.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use larder::answer::Freshness;
use larder::catalog::Revision;
use larder::clock;
use larder::sim::check::{Op, Report, Violation, check};
use larder::sim::history::{Event, History, Mode, Place};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use super::scene::{NAMES, Scene};
use super::{SHORT, coordinator, status, wait};
use crate::site::{Daemon, PATIENCE, Site};

/// Some seconds of a build's time.
const SECONDS: u64 = 5;

const WORKERS: usize = 20;

/// Clients that read at workers in good health.
const READERS: u64 = 12;

/// Clients that read at those that are stopped, so that they find work when they wake up.
const STALKERS: u64 = 4;

const PUBLISHERS: u64 = 2;

/// Longest stop of a worker: past its lease as often as not.
const LONGEST_STOP: Duration = Duration::from_millis(1_400);

/// Longest time without harm, so that leases come back in between.
const LONGEST_REST: Duration = Duration::from_millis(800);

/// Reads under a lease in each second, without which nothing was tried: some hundredths of what
/// a busy machine does.
const LEASED_PER_SECOND: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    StopWorkers,
    StopCoordinator,
    KillWorker,
    EndWorker,
    KillCoordinator,
    /// While workers stand still that may hold leases of the one that is killed.
    KillCoordinatorOfStopped,
}

impl Fault {
    /// One round. Those are often stopped that could be wrong on waking up.
    const ROUND: [Self; 8] = [
        Self::StopWorkers,
        Self::StopWorkers,
        Self::StopWorkers,
        Self::StopCoordinator,
        Self::KillWorker,
        Self::EndWorker,
        Self::KillCoordinator,
        Self::KillCoordinatorOfStopped,
    ];
}

/// Who suffers, and from what.
struct Cluster<'a> {
    site: &'a Site,
    scene: &'a Scene,
    rng: StdRng,
    coordinator: Option<Daemon>,
    addr: String,
    workers: Vec<Option<Daemon>>,
    done: BTreeMap<Fault, u64>,
}

impl Cluster<'_> {
    /// Does all kinds of harm, at least one round of it, until the time is over.
    fn suffer(&mut self, duration: Duration) {
        let began = Instant::now();
        for round in 0.. {
            let mut faults = Fault::ROUND;
            faults.shuffle(&mut self.rng);
            for fault in faults {
                if began.elapsed() >= duration && round > 0 {
                    return;
                }
                self.pause(LONGEST_REST);
                self.inflict(fault);
                *self.done.entry(fault).or_default() += 1;
            }
        }
    }

    /// Moments are random by purpose: nothing is waited for.
    fn pause(&mut self, longest: Duration) {
        thread::sleep(longest.mul_f64(self.rng.random()));
    }

    fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::StopWorkers => {
                let stopped = self.stop_workers();
                self.pause(LONGEST_STOP);
                self.wake(&stopped);
            }
            Fault::StopCoordinator => {
                let coordinator = self.coordinator.as_ref().expect("it runs");
                coordinator.signal(Signal::STOP);
                self.pause(LONGEST_STOP);
                let coordinator = self.coordinator.as_ref().expect("it runs");
                coordinator.signal(Signal::CONT);
            }
            Fault::KillWorker | Fault::EndWorker => {
                let index = self.rng.random_range(0..WORKERS);
                let worker = self.workers[index].take().expect("it runs");
                match fault {
                    Fault::KillWorker => worker.kill(),
                    _ => worker.stop(),
                }
                self.scene.count_end(index);
                self.pause(LONGEST_STOP / 4);
                let worker = self.site.worker_of(&worker_name(index), &self.addr, &[]);
                self.workers[index] = Some(worker);
            }
            Fault::KillCoordinator => self.kill_coordinator(),
            Fault::KillCoordinatorOfStopped => {
                let stopped = self.stop_workers();
                self.kill_coordinator();
                self.pause(LONGEST_STOP / 2);
                self.wake(&stopped);
            }
        }
    }

    fn stop_workers(&mut self) -> Vec<usize> {
        let mut all: Vec<_> = (0..WORKERS).collect();
        all.shuffle(&mut self.rng);
        all.truncate(self.rng.random_range(1..=3));
        for &index in &all {
            let worker = self.workers[index].as_ref().expect("it runs");
            worker.signal(Signal::STOP);
        }
        self.scene.set_stopped(&all);
        all
    }

    fn wake(&self, stopped: &[usize]) {
        for &index in stopped {
            let worker = self.workers[index].as_ref().expect("it runs");
            worker.signal(Signal::CONT);
        }
        self.scene.set_stopped(&[]);
    }

    fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("it runs").kill();
        self.pause(LONGEST_STOP / 4);
        let restarted = restart(self.site, &self.addr);
        // What was seen until now must be there when it is asked after now.
        let at = clock::now();
        let status = status(&restarted);
        let number = |key: &str| status[key].as_u64().expect("a number");
        let epoch = self.scene.known().epoch;
        assert_eq!(number("epoch"), epoch.get());
        let visible = Place::new(epoch, Revision::new(number("revision")));
        self.scene.push(Event::Restarted {
            at,
            visible: Some(visible),
        });
        self.coordinator = Some(restarted);
    }

    /// All is well again: every worker answers, and every process ends well.
    fn recover(self) {
        for index in 0..WORKERS {
            let began = Instant::now();
            let read = || self.scene.read(index, NAMES[0], Freshness::Strict, None);
            while wait(read()).is_none() {
                assert!(
                    began.elapsed() < PATIENCE,
                    "worker {index} does not recover"
                );
            }
        }
        for worker in self.workers.into_iter().flatten() {
            worker.stop();
        }
        self.coordinator.expect("it runs").stop();
    }
}

fn restart(site: &Site, addr: &str) -> Daemon {
    let certs = site.identity("coordinator", "c");
    let args = [
        "coordinator",
        "--certs",
        &certs,
        "--lease",
        SHORT,
        "--listen",
        addr,
    ];
    site.start(&args, "c").expect("it starts")
}

fn worker_name(index: usize) -> String {
    format!("w{index}")
}

/// Clients end with this, also when what they wait for has panicked.
struct Curtain<'a>(&'a Scene);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Lets it all happen and returns what was seen.
fn perform(seed: u64, duration: Duration) -> (History, BTreeMap<Fault, u64>) {
    let site = Site::new();
    let coordinator = coordinator(&site, SHORT);
    let addr = coordinator.addr().to_owned();
    let workers: Vec<_> = (0..WORKERS)
        .map(|index| Some(site.worker_of(&worker_name(index), &addr, &[])))
        .collect();
    let scene = Scene::new(&coordinator, &workers);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster {
        site: &site,
        scene: &scene,
        rng: StdRng::seed_from_u64(rng.random()),
        coordinator: Some(coordinator),
        addr,
        workers,
        done: BTreeMap::new(),
    };
    let done = thread::scope(|scope| {
        let curtain = Curtain(&scene);
        let mut clients = Vec::new();
        for reader in 0..READERS + STALKERS {
            let (scene, rng) = (&scene, StdRng::seed_from_u64(rng.random()));
            clients.push(scope.spawn(move || wait(scene.read_on(reader >= READERS, rng))));
        }
        for _ in 0..PUBLISHERS {
            let (scene, rng) = (&scene, StdRng::seed_from_u64(rng.random()));
            clients.push(scope.spawn(move || wait(scene.publish_on(rng))));
        }
        cluster.suffer(duration);
        drop(curtain);
        for client in clients {
            client.join().expect("no panic");
        }
        let done = cluster.done.clone();
        cluster.recover();
        done
    });
    let (history, failures) = scene.end();
    eprintln!("failures by code: {failures:?}");
    (history, done)
}

/// The violation and the operations that it names.
fn explain(history: &History, violation: &Violation) -> String {
    let ops = [Some(violation.later), violation.earlier];
    let is_of = |event: &Event, op: Op| match (event, op) {
        (Event::Read(read), Op::Read(id)) => read.id == id,
        (Event::PublishInvoked(publish), Op::Publish(id)) => publish.id == id,
        (Event::PublishAnswered { id, .. }, Op::Publish(wanted)) => *id == wanted,
        (Event::RunBegan(run), Op::Run(id)) => run.id == id,
        _ => false,
    };
    let mut text = violation.to_string();
    for op in ops.into_iter().flatten() {
        for event in history.events().iter().filter(|event| is_of(event, op)) {
            text += &format!("\n{event:?}");
        }
    }
    text
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn stopped_and_killed_processes_never_answer_with_what_was() {
    let seed = number_of("LARDER_CHAOS_SEED").unwrap_or_else(rand::random);
    let seconds = number_of("LARDER_CHAOS_SECONDS").unwrap_or(SECONDS);
    eprintln!("LARDER_CHAOS_SEED={seed} LARDER_CHAOS_SECONDS={seconds}");
    let (history, faults) = perform(seed, Duration::from_secs(seconds));
    let report = match check(&history) {
        Ok(report) => report,
        Err(violation) => panic!("seed {seed}: {}", explain(&history, &violation)),
    };
    eprintln!("no violation: {faults:?}\n{report:?}");
    let Report {
        reads,
        acknowledged,
        ..
    } = &report;
    let leased = reads.get(&Mode::Lease).copied().unwrap_or_default();
    assert!(leased >= LEASED_PER_SECOND * seconds, "{report:?}");
    assert!(*acknowledged >= seconds, "{report:?}");
}
