//! A coordinator and many workers that are stopped, killed and started again while clients read
//! and publish. What the clients saw is judged by the checker that the simulator uses.
//!
//! `LARDER_CHAOS_SECONDS` says for how long, `LARDER_CHAOS_SEED` who is hit when. Processes are
//! not simulated: the seed repeats the faults and not how they fall.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder::answer::{Answer, Failure, Freshness, Query, RunToken, Snapshot, Target};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::catalog::{Change, Content, IdempotencyKey, Revision};
use larder::clock;
use larder::proto::code::Code;
use larder::proto::wire::{Publish, PublishName};
use larder::sim::check::{Op, Report, Violation, check};
use larder::sim::history::{self, Event, Failed, History, Mode, Outcome, Place, Read};
use larder::sim::history::{PublishAnswer, PublishId, ReadId, RunId, WorkerId};
use larder::spec::{Spec, Syntax};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

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

/// Few, so that a read often falls beside a publish of what it reads.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Longest stop of a worker: past its lease as often as not.
const LONGEST_STOP: Duration = Duration::from_millis(1_400);

/// Longest time without harm, so that leases come back in between.
const LONGEST_REST: Duration = Duration::from_millis(800);

/// Longer than any stop, so that reads survive one.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a read may lag that says it may lag.
const BOUND: Duration = Duration::from_millis(500);

/// Attempts to publish with one key.
const ATTEMPTS: usize = 5;

/// Before the next try where nobody listens, so that failures do not crowd out all else.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads under a lease in each second, without which nothing was tried: some hundredths of what
/// a busy machine does.
const LEASED_PER_SECOND: u64 = 10;

/// What clients share.
struct Scene {
    events: Mutex<Vec<Event>>,
    ids: AtomicU64,
    is_over: AtomicBool,
    seats: Vec<Seat>,
    publisher: HttpClient,
    /// Workers that are stopped now.
    stopped: Mutex<Vec<usize>>,
    /// The newest that anyone was told of.
    known: Mutex<Snapshot>,
    codes: Mutex<BTreeMap<String, u64>>,
}

/// A worker's place, whichever process sits in it.
struct Seat {
    client: HttpClient,
    starts: AtomicU64,
}

impl Scene {
    fn push(&self, event: Event) {
        self.events.lock().expect("no panic").push(event);
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn learn(&self, snapshot: Snapshot) {
        let mut known = self.known.lock().expect("no panic");
        if Place::from(snapshot) > Place::from(*known) {
            *known = snapshot;
        }
    }

    fn known(&self) -> RunToken {
        let Snapshot {
            catalog,
            epoch,
            rev,
        } = *self.known.lock().expect("no panic");
        RunToken {
            catalog,
            epoch,
            rev,
        }
    }

    /// Counts why something had no answer, and waits a little where nobody listens.
    async fn failed(&self, failure: &Failure) {
        let mut codes = self.codes.lock().expect("no panic");
        *codes.entry(failure.code.clone()).or_default() += 1;
        drop(codes);
        if failure.code == "unreachable" {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A worker for a reader; a stalker prefers those that are stopped, others pass them over.
    fn pick(&self, stalks: bool, rng: &mut StdRng) -> usize {
        let stopped = self.stopped.lock().expect("no panic").clone();
        if stalks && let Some(index) = stopped.choose(rng) {
            return *index;
        }
        let index = rng.random_range(0..WORKERS);
        match stopped.contains(&index) {
            true => (0..WORKERS)
                .find(|index| !stopped.contains(index))
                .unwrap_or(index),
            false => index,
        }
    }

    /// One read, recorded.
    async fn read(
        &self,
        index: usize,
        name: &str,
        freshness: Freshness,
        run: Option<RunId>,
    ) -> Option<Answer> {
        let seat = &self.seats[index];
        let query = Query {
            target: Target::Name(name.parse().expect("a name")),
            freshness,
            deadline: DEADLINE,
        };
        let ask = history::Ask::from(&query);
        let target = query.target.clone();
        let incarnation = seat.starts.load(Ordering::SeqCst);
        let invoked = clock::now();
        let answer = seat.client.get(query).await;
        let responded = clock::now();
        let outcome = match &answer {
            Ok(answer) => Outcome::from(answer),
            Err(failure) => Outcome::Failed(kind_of(failure)),
        };
        self.push(Event::Read(Read {
            id: ReadId(self.id()),
            worker: WorkerId(index as u64),
            incarnation,
            run,
            target,
            ask,
            invoked,
            responded,
            outcome,
        }));
        match answer {
            Ok(answer) => {
                if let Some(snapshot) = answer.proof.snapshot {
                    self.learn(snapshot);
                }
                Some(answer)
            }
            Err(failure) => {
                self.failed(&failure).await;
                None
            }
        }
    }

    async fn read_on(&self, stalks: bool, mut rng: StdRng) {
        while self.goes_on() {
            let index = self.pick(stalks, &mut rng);
            let name = NAMES.choose(&mut rng).expect("some");
            let token = self.known();
            let freshness = match rng.random_range(0..40) {
                0 => Freshness::Verified,
                1 => Freshness::Bounded(BOUND),
                2 => Freshness::AtLeast(token),
                3 => {
                    let back = rng.random_range(0..20);
                    let rev = token.rev.get().saturating_sub(back).max(1);
                    Freshness::At(Revision::new(rev))
                }
                4 if !stalks => {
                    self.run(index, &mut rng).await;
                    continue;
                }
                _ => Freshness::Strict,
            };
            self.read(index, name, freshness, None).await;
        }
    }

    /// A run begins at one worker and reads at many.
    async fn run(&self, index: usize, rng: &mut StdRng) {
        let id = RunId(self.id());
        let invoked = clock::now();
        let token = match self.seats[index].client.run_token().await {
            Ok(token) => token,
            Err(failure) => return self.failed(&failure).await,
        };
        let responded = clock::now();
        let snapshot = Snapshot {
            catalog: token.catalog,
            epoch: token.epoch,
            rev: token.rev,
        };
        self.push(Event::RunBegan(history::Run {
            id,
            invoked,
            responded,
            token: snapshot,
        }));
        self.learn(snapshot);
        for name in NAMES {
            let index = self.pick(false, rng);
            self.read(index, name, Freshness::Run(token), Some(id))
                .await;
        }
        let at = clock::now();
        self.push(Event::RunEnded { id, at });
    }

    async fn publish_on(&self, mut rng: StdRng) {
        while self.goes_on() {
            let batch = Batch::new(self.id(), &mut rng);
            for _ in 0..ATTEMPTS {
                match self.publish(&batch).await {
                    Ok(()) => break,
                    Err(failure) => self.failed(&failure).await,
                }
                // Some are never sent again, and nobody learns what became of them.
                if rng.random_ratio(1, 6) {
                    break;
                }
            }
            tokio::time::sleep(PAUSE * rng.random_range(0..3)).await;
        }
    }

    /// One attempt, recorded from when the publish itself is sent.
    async fn publish(&self, batch: &Batch) -> Result<(), Failure> {
        for spec in batch.specs.iter().flatten() {
            let put = self.publisher.put_body(spec.clone(), Syntax::Yaml);
            put.await?;
        }
        let id = PublishId(self.id());
        let changes = batch.publish.changes.iter().map(|change| Change {
            name: change.name.clone(),
            content: match change.hash {
                Some(hash) => Content::Present {
                    hash,
                    len: change.len,
                },
                None => Content::Deleted,
            },
        });
        self.push(Event::PublishInvoked(history::Publish {
            id,
            invoked: clock::now(),
            by: "local".to_owned(),
            key: batch.publish.key,
            changes: changes.collect(),
        }));
        let published = self.publisher.publish(batch.publish.clone()).await;
        let at = clock::now();
        let answer = match &published {
            Ok(published) => PublishAnswer::from(published),
            Err(failure) if failure.code == Code::Expect.as_str() => PublishAnswer::Refused,
            // It may have happened.
            Err(_) => return published.map(drop),
        };
        self.push(Event::PublishAnswered { id, at, answer });
        if let PublishAnswer::Acknowledged { snapshot, .. } = answer {
            self.learn(snapshot);
        }
        Ok(())
    }
}

fn kind_of(failure: &Failure) -> Failed {
    match &*failure.code {
        code if code == Code::Compacted.as_str() => Failed::Compacted,
        code if code == Code::Future.as_str() => Failed::Future,
        _ => Failed::Other,
    }
}

/// What is to be published, under one key.
struct Batch {
    publish: Publish,
    specs: Vec<Option<Spec>>,
}

impl Batch {
    /// Up to three names, some of them deleted; bodies tell who made them.
    fn new(number: u64, rng: &mut StdRng) -> Self {
        let count = rng.random_range(1..=3);
        let names: Vec<_> = NAMES.sample(rng, count).collect();
        let expects_none = rng.random_ratio(1, 10);
        let mut specs = Vec::new();
        let mut changes = Vec::new();
        for name in names {
            let is_deleted = rng.random_ratio(1, 8);
            let spec = (!is_deleted).then(|| Spec::new(format!("{name}: {number}\n").into()));
            changes.push(PublishName {
                name: name.parse().expect("a name"),
                hash: spec.as_ref().map(Spec::hash),
                len: spec.as_ref().map_or(0, Spec::len),
                expect: expects_none.then_some(Revision::ZERO),
            });
            specs.push(spec);
        }
        let key: IdempotencyKey = u128::from(number).to_be_bytes();
        let publish = Publish {
            key: Some(key),
            note: String::new(),
            changes,
        };
        Self { publish, specs }
    }
}

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
                self.scene.seats[index]
                    .starts
                    .fetch_add(1, Ordering::SeqCst);
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
        self.scene
            .stopped
            .lock()
            .expect("no panic")
            .clone_from(&all);
        all
    }

    fn wake(&self, stopped: &[usize]) {
        for &index in stopped {
            let worker = self.workers[index].as_ref().expect("it runs");
            worker.signal(Signal::CONT);
        }
        self.scene.stopped.lock().expect("no panic").clear();
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
struct Curtain<'a>(&'a AtomicBool);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The first publish, without which nobody knows the catalog.
fn scene(coordinator: &Daemon, workers: &[Option<Daemon>]) -> Scene {
    let connect = |node: &Daemon| wait(HttpClient::connect(node.socket())).expect("it answers");
    let status = status(coordinator);
    let catalog = status["catalog"].as_str().expect("a catalog");
    let snapshot = Snapshot {
        catalog: catalog.parse().expect("an id"),
        epoch: larder::catalog::Epoch::new(status["epoch"].as_u64().expect("a number")),
        rev: Revision::ZERO,
    };
    let seat = |worker: &Daemon| Seat {
        client: connect(worker),
        starts: AtomicU64::new(0),
    };
    Scene {
        events: Mutex::default(),
        ids: AtomicU64::new(1),
        is_over: AtomicBool::new(false),
        seats: workers.iter().flatten().map(seat).collect(),
        publisher: connect(coordinator),
        stopped: Mutex::default(),
        known: Mutex::new(snapshot),
        codes: Mutex::default(),
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
    let scene = scene(&coordinator, &workers);
    let catalog = scene.known().catalog;
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
        let curtain = Curtain(&scene.is_over);
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
    eprintln!(
        "failures by code: {:?}",
        scene.codes.into_inner().expect("no panic")
    );
    let mut history = History::new(catalog);
    for event in scene.events.into_inner().expect("no panic") {
        history.push(event);
    }
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
