//! A coordinator and thirty workers for a long time, while everything goes wrong that can.
//!
//! Links are cut, lose, delay, reorder and repeat packets; the cluster falls apart; processes are
//! killed and stand still. `LARDER_SOAK_SECONDS` says for how long, `LARDER_SOAK_SEED` repeats the
//! plan of an earlier soak, though processes are not simulated and may take it differently. In the
//! end the history is judged, all workers have to be current, and nothing may have grown.

mod gauge;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use larder::answer::Freshness;
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::catalog::Revision;
use larder::clock;
use larder::proto::Time;
use larder::proto::limit::MAX_BAR;
use larder::sim::check::{Report, check};
use larder::sim::history::{Event, History, Outcome, Place};
use larder_link::net::Net;
use larder_link::scenario::Scenario;
use larder_link::skips;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

use self::gauge::{Gauge, values};
use self::plan::{Act, Kind, Step, all_links, plan};
use crate::scene::{NAMES, Scene};
use crate::site::{Daemon, LARDER, PATIENCE, Site, wait};
use crate::user::User;
use crate::{BOUND, Curtain, LEASE, STAGE, listen, status};

/// Enough for each kind of fault, most of them more than once.
const SECONDS: u64 = 120;

const WORKERS: usize = 30;

/// The coordinator and the workers, by numbers from 1.
const NODES: usize = WORKERS + 1;

const COORDINATOR: usize = 1;

/// One client reads at each worker, and the processes share a machine with each other.
const PACE: Duration = Duration::from_millis(50);

/// Between two looks at something that takes seconds.
const LOOK: Duration = Duration::from_millis(500);

/// For all to know all again: who was declared dead often waits up to a minute before it says that
/// it lives, and halves that were apart meet by asking the dead now and then.
const REUNION: Duration = Duration::from_secs(300);

/// Who suffers, and what from.
struct Cluster {
    /// By number less one; `None` for those that were killed.
    daemons: Vec<Option<Daemon>>,
    stopped: BTreeSet<usize>,
    gauge: Gauge,
    done: BTreeMap<Kind, u64>,
    restarts: u64,
    site: Site,
    net: Net,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let names: Vec<_> = (1..=WORKERS).map(|worker| format!("w{worker}")).collect();
        let text = format!(
            "about: a soak\nnodes: [coordinator, {}]\nbase: {{ delay: 1ms }}\nlasts: 1s\n",
            names.join(", ")
        );
        let scenario: Scenario = text.parse().expect("a scenario");
        let mut cluster = Self {
            daemons: Vec::new(),
            stopped: BTreeSet::new(),
            gauge: Gauge::default(),
            done: BTreeMap::new(),
            restarts: 0,
            site: Site::new(),
            net: Net::of(&scenario, Some(seed)).expect("a net"),
        };
        for number in 1..=NODES {
            let daemon = cluster.launch(number);
            cluster.daemons.push(Some(daemon));
        }
        cluster
    }

    /// Starts a node where it always was.
    fn launch(&self, number: usize) -> Daemon {
        let node = self.net.node(number);
        let addr = listen(node);
        let coordinator = listen(self.net.node(COORDINATOR));
        let lease = format!("{}ms", LEASE.as_millis());
        let (role, flag, value) = match number {
            COORDINATOR => ("coordinator", "--lease", lease),
            _ => ("worker", "--coordinator", coordinator),
        };
        let certs = self.site.identity(role, node.name());
        let args = [role, flag, &value, "--certs", &certs, "--listen", &addr];
        let command = node.command(LARDER);
        self.site
            .start_as(command, &args, node.name())
            .expect("it starts")
    }

    fn name(&self, number: usize) -> &str {
        self.net.node(number).name()
    }

    fn daemon(&self, number: usize) -> &Daemon {
        self.daemons[number - 1].as_ref().expect("it runs")
    }

    fn coordinator(&self) -> &Daemon {
        self.daemon(COORDINATOR)
    }

    fn scene(&self) -> Scene {
        Scene::new(self.coordinator(), &self.daemons[1..])
    }

    /// Carries a plan out. Moments are random by purpose: nothing is waited for.
    fn suffer(&mut self, scene: &Scene, steps: &[Step]) {
        self.look();
        for Step { after, kind, act } in steps {
            thread::sleep(*after);
            match act {
                Act::Trouble(links, trouble) => {
                    for &(from, to) in links {
                        self.net.change(from, to, |rule| trouble.apply(rule));
                    }
                }
                Act::Kill(nodes) => nodes.iter().for_each(|node| self.kill(scene, *node)),
                Act::Stop(nodes) => self.halt(scene, nodes),
                Act::Revive => self.revive(scene),
                Act::Heal => self.heal(),
                Act::Measure => {
                    // Else a cluster that is not whole yet would be compared with one that is.
                    self.await_unity();
                    self.measure(Gauge::look_in_the_middle);
                }
            }
            if let Some(kind) = kind {
                *self.done.entry(*kind).or_default() += 1;
            }
            self.look();
        }
        self.revive(scene);
        self.heal();
    }

    fn heal(&self) {
        all_links().for_each(|(from, to)| self.net.reset(from, to));
    }

    /// Ends a node, unless that was done already; one that stands still too.
    fn kill(&mut self, scene: &Scene, number: usize) {
        let Some(daemon) = self.daemons[number - 1].take() else {
            return;
        };
        self.stopped.remove(&number);
        did_not_panic(&daemon);
        daemon.kill();
        if number != COORDINATOR {
            scene.count_end(number - 2);
        }
    }

    fn halt(&mut self, scene: &Scene, nodes: &[usize]) {
        for number in nodes {
            let Some(daemon) = &self.daemons[number - 1] else {
                continue;
            };
            // One that stands still already would never be seen to stop once more.
            if self.stopped.insert(*number) {
                daemon.signal(Signal::STOP);
            }
        }
        self.tell_stopped(scene);
    }

    /// All processes run.
    fn revive(&mut self, scene: &Scene) {
        for number in std::mem::take(&mut self.stopped) {
            self.daemon(number).signal(Signal::CONT);
        }
        self.tell_stopped(scene);
        for number in 1..=NODES {
            if self.daemons[number - 1].is_none() {
                let daemon = self.launch(number);
                if number == COORDINATOR {
                    note_restart(scene, &daemon);
                }
                self.daemons[number - 1] = Some(daemon);
                self.restarts += 1;
            }
        }
    }

    fn tell_stopped(&self, scene: &Scene) {
        let stopped: Vec<_> = self.stopped.iter().map(|number| number - 2).collect();
        scene.set_stopped(&stopped);
    }

    /// Notes what every process uses, and sees that none has ended by itself.
    fn look(&mut self) {
        for number in 1..=NODES {
            if let Some(daemon) = &self.daemons[number - 1] {
                let name = self.name(number).to_owned();
                let pid = daemon.pid();
                self.gauge.look(&name, pid, values(&name, pid, 0));
            }
        }
    }

    /// The same with connections, of which a process has to be asked.
    fn measure(&mut self, note: impl Fn(&mut Gauge, &str, u32, gauge::Values)) {
        for number in 1..=NODES {
            let name = self.name(number).to_owned();
            let daemon = self.daemon(number);
            let pid = daemon.pid();
            let connections = status(daemon)["connections"].as_u64();
            let values = values(&name, pid, connections.expect("a number"));
            note(&mut self.gauge, &name, pid, values);
        }
    }

    /// Every worker knows the newest revision, and every other worker.
    fn await_unity(&self) {
        let newest = status(self.coordinator())["revision"].as_u64();
        for number in 2..=NODES {
            self.until(number, PATIENCE, "the newest catalog", |daemon| {
                status(daemon)["lease"]["revision"].as_u64() >= newest
            });
        }
        let began = Instant::now();
        for number in 2..=NODES {
            let left = REUNION.saturating_sub(began.elapsed());
            self.until(number, left, "all members", |daemon| {
                members_up(daemon) == WORKERS - 1
            });
        }
    }

    /// Every worker has a lease, or the coordinator says why it gets none: publishes had to wait
    /// for it again and again. Returns how long each of those has none, in milliseconds.
    fn await_leases(&self) -> Vec<u64> {
        let mut barred = Vec::new();
        for number in 2..=NODES {
            self.until(number, PATIENCE, "a lease", |daemon| {
                status(daemon)["lease"]["left_ms"].as_u64() > Some(0) || self.bar(number) > 0
            });
            barred.extend(Some(self.bar(number)).filter(|left| *left > 0));
        }
        barred
    }

    fn bar(&self, number: usize) -> u64 {
        let name = self.name(number);
        let session = status_of_session(self.coordinator(), name);
        let left = session["barred_ms"].as_u64().unwrap_or_default();
        let is_too_long = Duration::from_millis(left) > MAX_BAR;
        assert!(!is_too_long, "{name} gets no lease for too long: {session}");
        left
    }

    fn until(
        &self,
        number: usize,
        patience: Duration,
        what: &str,
        is_it: impl Fn(&Daemon) -> bool,
    ) {
        let began = Instant::now();
        let daemon = self.daemon(number);
        while !is_it(daemon) {
            if began.elapsed() > patience {
                let (status, peers) = (status(daemon), peers(daemon));
                let coordinator = status_of_session(self.coordinator(), self.name(number));
                panic!(
                    "{} has not got {what}:\n{status}\n{peers}\n{coordinator}",
                    self.name(number)
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// All processes end well.
    fn stop(self) {
        let mut daemons = self.daemons.into_iter().flatten();
        let coordinator = daemons.next().expect("it runs");
        for daemon in daemons.chain([coordinator]) {
            did_not_panic(&daemon);
            daemon.stop();
        }
    }
}

fn did_not_panic(daemon: &Daemon) {
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("panicked"));
    assert_eq!(line, None, "{}", daemon.socket());
}

/// What was seen until now must be there when it is asked after now.
fn note_restart(scene: &Scene, coordinator: &Daemon) {
    let at = clock::now();
    let status = status(coordinator);
    let number = |key: &str| status[key].as_u64().expect("a number");
    let epoch = scene.known().epoch;
    assert_eq!(number("epoch"), epoch.get());
    let visible = Some(Place::new(epoch, Revision::new(number("revision"))));
    scene.push(Event::Restarted { at, visible });
}

fn peers(daemon: &Daemon) -> Value {
    let asked = async { HttpClient::connect(daemon.socket()).await?.peers().await };
    wait(asked).expect("a list")
}

fn members_up(daemon: &Daemon) -> usize {
    let peers = peers(daemon);
    let members = peers["members"].as_array().expect("a list");
    let up = members.iter().filter(|member| member["state"] == "up");
    up.count()
}

/// What the coordinator says of one worker, as it runs now.
fn status_of_session(coordinator: &Daemon, name: &str) -> Value {
    let status = status(coordinator);
    let mut workers = status["workers"].as_array().into_iter().flatten();
    let is_of = |worker: &&Value| {
        let uri = worker["uri"].as_str().unwrap_or_default();
        uri.ends_with(&format!("/{name}")) && worker["watching"] == true
    };
    workers
        .find(|&worker| is_of(&worker))
        .cloned()
        .unwrap_or_default()
}

/// Reads at one worker: strictly for the most part, and now and then in each other way.
async fn read_on(scene: &Scene, worker: usize, mut rng: StdRng) {
    let mut seen = None;
    while scene.goes_on() {
        let name = NAMES[rng.random_range(0..NAMES.len())];
        let freshness = match rng.random_range(0..20) {
            0 => Freshness::Verified,
            1 | 2 => Freshness::Bounded(BOUND),
            3 | 4 => Freshness::AtLeast(scene.known()),
            _ => Freshness::Strict,
        };
        let answer = match (rng.random_range(0..10), seen) {
            (0, Some(hash)) => scene.read_hash(worker, hash).await,
            _ => scene.read(worker, name, freshness, None).await,
        };
        let spec = answer.and_then(|answer| answer.spec);
        seen = spec.map(|spec| spec.hash()).or(seen);
        tokio::time::sleep(PACE).await;
    }
}

/// Reads strictly at a worker until it answers.
fn await_answer(scene: &Scene, worker: usize) {
    let began = Instant::now();
    let read = || wait(scene.read(worker, NAMES[0], Freshness::Strict, None));
    while read().is_none() {
        assert!(
            began.elapsed() < PATIENCE,
            "w{} does not answer",
            worker + 1
        );
    }
}

/// How reads ended, of all workers together.
fn tell(history: &History, settled: Time) -> String {
    let mut ends: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for event in history.events() {
        if let Event::Read(read) = event {
            use larder::sim::history::Ask;
            let ask = match read.ask {
                Ask::Strict => "strict",
                Ask::Verified => "verified",
                Ask::AtLeast(_) => "at least",
                Ask::Bounded(_) => "bounded",
                Ask::Pinned(_) => "by hash",
                Ask::At(_) => "at",
            };
            let (answered, failed) = ends.entry(ask).or_default();
            match read.outcome {
                Outcome::Answered { .. } => *answered += 1,
                Outcome::Failed(_) => *failed += 1,
            }
        }
    }
    let mut story = String::new();
    for (ask, (answered, failed)) in ends {
        story += &format!("  {ask}: {answered} answered, {failed} failed\n");
    }
    for worker in 0..WORKERS {
        let user = User::new(history, worker as u64).tell(settled);
        story += &format!("  w{}: {user}\n", worker + 1);
    }
    story
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Past the capture of test output, since it is what a run is for.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[test]
fn thirty_workers_stay_right_and_small_whatever_goes_wrong_for_long() {
    if skips() {
        return;
    }
    // Others measure how long things take.
    let _alone = STAGE.write().unwrap_or_else(PoisonError::into_inner);
    let seed = number_of("LARDER_SOAK_SEED").unwrap_or_else(rand::random);
    let seconds = number_of("LARDER_SOAK_SECONDS").unwrap_or(SECONDS);
    say(&format!(
        "LARDER_SOAK_SEED={seed} LARDER_SOAK_SECONDS={seconds}\n"
    ));
    let steps = plan(seed, Duration::from_secs(seconds));
    let mut cluster = Cluster::new(seed);
    let scene = cluster.scene();
    let mut settled = clock::now();
    thread::scope(|scope| {
        let curtain = Curtain(&scene);
        let mut rng = StdRng::seed_from_u64(seed);
        let (scene, publisher) = (&scene, StdRng::seed_from_u64(rng.random()));
        scope.spawn(move || wait(scene.publish_on(publisher)));
        for worker in 0..WORKERS {
            let rng = StdRng::seed_from_u64(rng.random());
            scope.spawn(move || wait(read_on(scene, worker, rng)));
        }
        cluster.suffer(scene, &steps);
        settled = clock::now();
        (0..WORKERS).for_each(|worker| await_answer(scene, worker));
        drop(curtain);
    });
    cluster.await_unity();
    let barred = cluster.await_leases();
    (0..WORKERS).for_each(|worker| await_answer(&scene, worker));
    cluster.measure(Gauge::look_at_the_end);
    let (history, failures) = scene.end();
    say(&format!(
        "soak: {:?}\n  {} restarts; failures by code: {failures:?}\n  \
         workers that get no lease for a while, in ms: {barred:?}\n{}{}",
        cluster.done,
        cluster.restarts,
        tell(&history, settled),
        cluster.gauge.table(),
    ));
    let report = check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    say(&format!("  no violation: {report:?}\n"));
    let Report { acknowledged, .. } = report;
    assert!(acknowledged > 0, "{report:?}");
    assert_eq!(cluster.gauge.grown(), Vec::<String>::new());
    assert!(
        cluster.gauge.survived() > WORKERS / 3,
        "too few are compared"
    );
    cluster.stop();
}
