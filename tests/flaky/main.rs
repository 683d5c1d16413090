//! A coordinator and three workers as real processes, over links that fail by a script, and thirty
//! for a long time ([`soak`]).
//!
//! Each is in a network namespace of its own (`tests/link`). Clients read at every worker and
//! publish at the coordinator while a scenario is played; what they saw is judged by the checker
//! that the simulator uses, and each test says on stderr what a user saw. It takes root; without
//! it the tests say that they are skipped.

#[path = "../it/freshness/scene.rs"]
#[allow(dead_code, reason = "what other tests do with it as well")]
mod scene;
#[path = "../it/site.rs"]
#[allow(dead_code, reason = "what other tests do with it as well")]
mod site;
mod soak;
mod user;

use std::io::Write;
use std::ops::Range;
use std::sync::mpsc::channel;
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use larder::answer::Freshness;
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::clock;
use larder::proto::Time;
use larder::sim::check::{Report, check};
use larder::sim::history::{History, Mode};
use larder_link::net::{Net, Node};
use larder_link::play::play;
use larder_link::scenario::{Action, Event, Scenario};
use larder_link::{shipped, skips};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use self::scene::{NAMES, Scene};
use self::site::{Daemon, LARDER, PATIENCE, Site, wait};
use self::user::User;

const WORKERS: usize = 3;

/// Longer than the longest round trip, so that it can be renewed, and over within every cut.
const LEASE: Duration = Duration::from_secs(2);

/// How clients pace themselves: the tests are about links, and share a machine with others.
const PACE: Duration = Duration::from_millis(5);

/// What a read may lag that says it may lag.
const BOUND: Duration = Duration::from_millis(500);

/// Bytes of bodies that load a link: a tenth to a half of a second at 20 Mbit/s.
const LONG_BODIES: Range<usize> = 200 << 10..1 << 20;

/// Who has it alone has all of the machine.
static STAGE: RwLock<()> = RwLock::new(());

/// Every address is used once, so each node can have the usual port.
fn listen(node: &Node) -> String {
    format!("{}:7457", node.address())
}

/// The processes of one test; the net goes last.
struct Cluster {
    coordinator: Daemon,
    workers: Vec<Option<Daemon>>,
    _site: Site,
    net: Net,
}

impl Cluster {
    fn new(scenario: &Scenario, staging: &Staging) -> Self {
        let net = Net::of(scenario, None).expect("a net");
        let site = Site::new();
        let lease = format!("{}ms", LEASE.as_millis());
        let addrs: Vec<_> = net.nodes().iter().map(listen).collect();
        let start = |number: usize, args: &[&str]| {
            let node = net.node(number);
            let certs = site.identity(args[0], node.name());
            let mut all = args.to_vec();
            let own = staging.listen.filter(|_| number == 2);
            let listen = own.unwrap_or(&addrs[number - 1]);
            all.extend(["--certs", &certs, "--listen", listen]);
            all.extend(["--log", "larder::net::serve=debug,info"]);
            let command = node.command(LARDER);
            site.start_as(command, &all, node.name())
                .expect("it starts")
        };
        let coordinator = start(1, &["coordinator", "--lease", &lease]);
        let workers = (2..=1 + WORKERS).map(|number| {
            let mut args = vec!["worker", "--coordinator", &addrs[0]];
            args.extend(["--relay", staging.relay]);
            for (index, addr) in addrs.iter().enumerate().skip(1) {
                if index + 1 != number {
                    args.extend(["--peer", addr]);
                }
            }
            Some(start(number, &args))
        });
        Self {
            coordinator,
            workers: workers.collect(),
            _site: site,
            net,
        }
    }

    fn stop(self) {
        for worker in self.workers.into_iter().flatten() {
            worker.stop();
        }
        self.coordinator.stop();
    }
}

fn status(node: &Daemon) -> Value {
    status_at(node.socket())
}

fn status_at(socket: &str) -> Value {
    let asked = async { HttpClient::connect(socket).await?.status().await };
    wait(asked).expect("a status")
}

/// Reads at one worker: strictly for the most part, and now and then in each other way.
async fn read_on(scene: &Scene, worker: usize) {
    for (number, name) in NAMES.into_iter().cycle().enumerate() {
        if !scene.goes_on() {
            return;
        }
        let freshness = match number % 20 {
            0 => Freshness::Verified,
            7 => Freshness::Bounded(BOUND),
            14 => Freshness::AtLeast(scene.known()),
            _ => Freshness::Strict,
        };
        scene.read(worker, name, freshness, None).await;
        tokio::time::sleep(PACE).await;
    }
}

/// Reads strictly at a worker until it answers, in this way if one is given.
fn await_answer(scene: &Scene, worker: usize, mode: Option<larder::answer::Mode>) {
    let began = Instant::now();
    let is_it = || {
        let answer = wait(scene.read(worker, NAMES[0], Freshness::Strict, None));
        answer.is_some_and(|answer| mode.is_none_or(|mode| answer.proof.mode == mode))
    };
    while !is_it() {
        assert!(
            began.elapsed() < PATIENCE,
            "worker {worker} does not answer"
        );
    }
}

/// Clients end with this, also when what they wait for has panicked.
struct Curtain<'a>(&'a Scene);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What was seen while a scenario was played.
struct Played {
    history: History,
    report: Report,
    /// When each cut began to hold, and when each ended.
    cuts: Vec<(Time, Action)>,
    /// When the last change held.
    settled: Time,
    /// How worker 0 said that it reached the coordinator, one after the other.
    paths: Vec<String>,
    /// How often it said that its lease was over, of some twenty times a second.
    lapses: usize,
    /// What the coordinator has logged.
    log: String,
}

impl Played {
    /// What the user of a worker saw, from 0.
    fn user(&self, worker: usize) -> User {
        User::new(&self.history, worker as u64)
    }
}

/// How a worker says that it reaches the coordinator, each time that it changes, and how often it
/// says that the lease is over that it had.
fn watch(socket: &str, scene: &Scene) -> (Vec<String>, usize) {
    let (mut paths, mut has_had, mut lapses) = (Vec::new(), false, 0);
    while scene.goes_on() {
        let status = status_at(socket);
        let path = status["path"].as_str().map(str::to_owned);
        let path = path.expect("a worker has a path");
        if paths.last() != Some(&path) {
            paths.push(path);
        }
        let has_lease = status["lease"]["left_ms"].as_u64() != Some(0);
        lapses += usize::from(has_had && !has_lease);
        has_had |= has_lease;
        thread::sleep(PACE * 10);
    }
    (paths, lapses)
}

/// How a scenario is played.
struct Staging {
    /// Whether workers carry each other's packets, `on` or `off`.
    relay: &'static str,
    /// Where worker 0 listens, if not at the address of its node.
    listen: Option<&'static str>,
    /// What is changed of the scene.
    set: fn(Scene) -> Scene,
    /// What is done at each change of a link, once that holds.
    at: fn(&Cluster, &Event),
}

impl Default for Staging {
    fn default() -> Self {
        Self {
            relay: "on",
            listen: None,
            set: |scene| scene,
            at: |_, _| {},
        }
    }
}

/// Plays a scenario that comes with the harness, judges what was seen, and tells it. `None` where
/// that cannot be done.
fn perform(name: &str) -> Option<Played> {
    perform_with(name, "on")
}

/// The same where workers carry each other's packets, `on`, or do not, `off`.
fn perform_with(name: &str, relay: &'static str) -> Option<Played> {
    let text = shipped::text(name).expect("it comes with the harness");
    let staging = Staging {
        relay,
        ..Staging::default()
    };
    perform_as(name, text, &staging)
}

/// The same of any scenario, staged as the test wants it.
fn perform_as(name: &str, text: &str, staging: &Staging) -> Option<Played> {
    if skips() {
        return None;
    }
    let _shared = STAGE.read().unwrap_or_else(PoisonError::into_inner);
    let scenario: Scenario = text.parse().expect("a scenario");
    let cluster = Cluster::new(&scenario, staging);
    let scene = (staging.set)(Scene::new(&cluster.coordinator, &cluster.workers));
    let mut settled = clock::now();
    let (mut cuts, mut watched) = (Vec::new(), (Vec::new(), 0));
    let mut rng = StdRng::seed_from_u64(scenario.seed());
    thread::scope(|scope| {
        let curtain = Curtain(&scene);
        let (scene, rng) = (&scene, StdRng::seed_from_u64(rng.random()));
        scope.spawn(move || wait(scene.publish_on(rng)));
        let first = cluster.workers.first().and_then(Option::as_ref);
        let socket = first.expect("a worker").socket();
        let watcher = scope.spawn(move || watch(socket, scene));
        for worker in 0..WORKERS {
            scope.spawn(move || wait(read_on(scene, worker)));
        }
        // It begins with a cluster that works.
        for worker in 0..WORKERS {
            await_answer(scene, worker, Some(larder::answer::Mode::Lease));
        }
        let (_stop, stopped) = channel();
        settled = clock::now();
        play(&cluster.net, &scenario, &stopped, |event| {
            settled = clock::now();
            cuts.push((settled, event.action.clone()));
            (staging.at)(&cluster, event);
        });
        for worker in 0..WORKERS {
            await_answer(scene, worker, None);
        }
        drop(curtain);
        watched = watcher.join().expect("no panic");
    });
    let (history, failures) = scene.end();
    let report = check(&history).unwrap_or_else(|violation| panic!("{name}: {violation}"));
    let (paths, lapses) = watched;
    let played = Played {
        history,
        report,
        cuts,
        settled,
        paths,
        lapses,
        log: cluster.coordinator.log(),
    };
    let mut story = format!("{name}, relay {}: {}\n", staging.relay, scenario.about());
    for worker in 0..WORKERS {
        let user = played.user(worker).tell(played.settled);
        story += &format!("  w{}: {user}\n", worker + 1);
    }
    let Report {
        acknowledged,
        unanswered,
        ..
    } = played.report;
    story += &format!(
        "  {acknowledged} publishes acknowledged, {unanswered} without an answer; failures by code: {failures:?}\n"
    );
    // Past the capture of test output, since it is what a run is for.
    let _ = std::io::stderr().write_all(story.as_bytes());
    assert!(acknowledged > 0, "{:?}", played.report);
    cluster.stop();
    Some(played)
}

/// Between the moment at which a lease of before the cut is over, and the first that heals, no
/// strict read at `worker` has an answer, though someone asks.
fn fails_closed(played: &Played, worker: usize) {
    let time_of = |wanted: &Action| {
        let mut cuts = played.cuts.iter();
        cuts.find(|(_, action)| action == wanted).expect("played").0
    };
    // A lease counts from when it was asked for, and that was before the cut.
    let closed = time_of(&Action::Cut) + LEASE;
    let healed = time_of(&Action::Heal);
    let user = played.user(worker);
    assert_eq!(user.answered_between(closed, healed), 0, "worker {worker}");
    assert!(user.waited_between(closed, healed) > 0, "worker {worker}");
}

/// A worker whose links are whole answers under its lease all the time.
fn is_untouched(played: &Played, worker: usize) {
    let user = played.user(worker);
    assert!(user.count(Mode::Lease) > 0, "worker {worker}");
    assert_eq!(user.failed(), 0, "worker {worker}");
}

/// Worker 0 had its lease from the coordinator itself all the time.
fn keeps_its_lease(played: &Played) {
    assert_eq!(played.paths, ["direct"]);
    assert_eq!(played.lapses, 0);
}

#[test]
fn a_worker_whose_link_is_cut_fails_closed_after_its_lease_and_comes_back() {
    let Some(played) = perform_with("link-cut", "off") else {
        return;
    };
    fails_closed(&played, 0);
    is_untouched(&played, 1);
    is_untouched(&played, 2);
    assert_eq!(played.paths, ["direct", "none", "direct"]);
}

#[test]
fn a_worker_whose_link_is_cut_goes_on_over_another_worker_and_comes_back() {
    let Some(played) = perform_with("link-cut", "on") else {
        return;
    };
    (0..WORKERS).for_each(|worker| is_untouched(&played, worker));
    // For a moment it may not know of any.
    let paths = played.paths.iter().map(String::as_str);
    let mut paths: Vec<_> = paths.filter(|path| *path != "none").collect();
    paths.dedup();
    assert!(
        matches!(paths[..], ["direct", "via w2" | "via w3", "direct"]),
        "{paths:?}"
    );
}

#[test]
fn a_worker_that_is_not_heard_or_does_not_hear_never_answers_with_what_was() {
    let Some(played) = perform_with("asymmetric-cut", "off") else {
        return;
    };
    fails_closed(&played, 0);
    is_untouched(&played, 1);
    is_untouched(&played, 2);
}

#[test]
fn a_worker_whose_link_flaps_never_answers_with_what_was() {
    if let Some(played) = perform("flapping") {
        is_untouched(&played, 1);
        is_untouched(&played, 2);
    }
}

#[test]
fn a_cluster_goes_on_where_a_fifth_of_all_packets_is_lost() {
    perform("loss-20");
}

#[test]
fn a_cluster_goes_on_over_a_satellite() {
    perform("satellite");
}

#[test]
fn all_workers_fail_closed_without_their_coordinator_and_come_back() {
    if let Some(played) = perform("coordinator-isolated") {
        (0..WORKERS).for_each(|worker| fails_closed(&played, worker));
    }
}

#[test]
fn the_half_without_the_coordinator_fails_closed_and_the_other_goes_on() {
    let Some(played) = perform("split") else {
        return;
    };
    is_untouched(&played, 0);
    fails_closed(&played, 1);
    fails_closed(&played, 2);
}

#[test]
fn a_cluster_goes_on_where_long_packets_vanish() {
    if let Some(played) = perform("mtu-1280") {
        (0..WORKERS).for_each(|worker| is_untouched(&played, worker));
    }
}

#[test]
fn leases_hold_where_long_bodies_fill_the_coordinators_links() {
    let name = "coordinator-20mbit";
    let staging = Staging {
        set: |scene| scene.with_bodies(LONG_BODIES),
        ..Staging::default()
    };
    let text = shipped::text(name).expect("it comes with the harness");
    let Some(played) = perform_as(name, text, &staging) else {
        return;
    };
    (0..WORKERS).for_each(|worker| is_untouched(&played, worker));
    keeps_its_lease(&played);
}

/// Links stay as they are; worker 0's machine has its second address from the first step on, and
/// its first again from the second.
const NEW_ADDRESS: &str = "
about: The machine of one worker gets another address, and later its first again.
nodes: [coordinator, w1, w2, w3]
base: { delay: 2ms }
lasts: 10s
steps:
  - { at: 2s, link: w1 -> coordinator, do: reset }
  - { at: 6s, link: w1 -> coordinator, do: heal }
";

/// Plays it with a worker that listens there, and without relays, so that the worker has nothing
/// but its own connection.
fn goes_on_from_a_new_address(name: &str, listen: Option<&'static str>) {
    let staging = Staging {
        relay: "off",
        listen,
        at: |cluster, event| {
            let node = cluster.net.node(2);
            let second = node.second_address();
            if event.action == Action::Reset {
                node.take_address(second).expect("taken");
                return;
            }
            // The others have heard by now where it is, or they do soon.
            let seen = format!("{second}:7457");
            for worker in cluster.workers.iter().flatten().skip(1) {
                worker.says(&["a worker is there", &seen]);
            }
            node.take_address(node.address()).expect("taken back");
        },
        ..Staging::default()
    };
    let Some(played) = perform_as(name, NEW_ADDRESS, &staging) else {
        return;
    };
    (0..WORKERS).for_each(|worker| is_untouched(&played, worker));
    let gap = played.user(0).gap();
    assert!(gap < LEASE, "{gap:?}");
    keeps_its_lease(&played);
    // One handshake, before all of it.
    let is_it = |line: &&str| line.contains("\"connected\"") && line.contains("/worker/w1\"");
    let dialled = played.log.lines().filter(is_it);
    assert_eq!(dialled.count(), 1, "{}", played.log);
}

#[test]
fn a_worker_goes_on_from_a_new_address_without_a_new_connection() {
    goes_on_from_a_new_address("new address, bound to it", None);
}

#[test]
fn a_worker_on_the_wildcard_goes_on_from_a_new_address_without_a_new_connection() {
    goes_on_from_a_new_address("new address, bound to none", Some("0.0.0.0:7457"));
}
