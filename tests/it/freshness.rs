//! Leases in real processes: a stopped holder delays a publish and never answers with what was.

mod chaos;
#[allow(dead_code, reason = "what other tests do with it as well")]
mod scene;

use std::thread;

use larder::answer::{Answer, Failure, Mode, Query, Target};
use larder::api::{Api, publish_one};
use larder::bridge::http::HttpClient;
use larder::spec::Spec;
use rustix::process::Signal;
use serde_json::Value;

use crate::site::{Daemon, Site};

const WORKER: &str = "spiffe://test.example/worker/w";

const OLD: &str = "steps: [old]\n";
const NEW: &str = "steps: [new]\n";

/// Asks until a worker holds a lease or has lost it; far more often than it takes.
const LOOKS: usize = 5_000;

/// So long that a test reaches its publish before a lease runs out that nobody renews.
const LONG: &str = "3s";

/// As long as publishes in tests should wait for one that is stopped.
const SHORT: &str = "600ms";

/// Reads that a stopped worker finds when it wakes up.
const QUEUED: usize = 4;

/// A coordinator that gives leases of `lease`.
fn coordinator(site: &Site, lease: &str) -> Daemon {
    let certs = site.identity("coordinator", "c");
    let args = ["coordinator", "--certs", &certs, "--lease", lease];
    site.start(&args, "c").expect("it starts")
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

/// Publishes `a` by the command line and returns what that says in JSON.
fn publish(site: &Site, coordinator: &Daemon, body: &str) -> Value {
    let file = site.write("a.yaml", body);
    let args = ["publish", &file, "--json", "--socket", coordinator.socket()];
    site.run(&args).json()
}

/// One strict read of `a`.
fn read(socket: &str) -> Result<Answer, Failure> {
    wait(async {
        let client = HttpClient::connect(socket).await?;
        let name = "a".parse().expect("a name");
        client.get(Query::strict(Target::Name(name))).await
    })
}

fn body(answer: &Answer) -> &[u8] {
    answer.spec.as_ref().expect("present").bytes()
}

fn status(node: &Daemon) -> Value {
    let asked = async { HttpClient::connect(node.socket()).await?.status().await };
    wait(asked).expect("a status")
}

/// What the coordinator says of its one worker.
fn session(coordinator: &Daemon) -> Value {
    status(coordinator)["workers"][0].clone()
}

/// Reads until the worker answers under its lease.
fn await_lease(worker: &Daemon) -> Answer {
    let answers = (0..LOOKS).map(|_| read(worker.socket()).expect("an answer"));
    let mut leased = answers.filter(|answer| answer.proof.mode == Mode::Lease);
    leased.next().expect("a lease within many reads")
}

#[test]
fn a_worker_that_was_stopped_past_its_lease_never_answers_from_it_on_waking() {
    let site = Site::new();
    let coordinator = coordinator(&site, SHORT);
    let worker = site.worker("w", &coordinator, &[]);
    publish(&site, &coordinator, OLD);
    assert_eq!(body(&await_lease(&worker)), OLD.as_bytes());

    worker.signal(Signal::STOP);
    let published = publish(&site, &coordinator, NEW);
    assert_eq!(published["rev"], 2);
    // Some reads are there before the worker is awake, so that they are the first that it does.
    let early: Vec<_> = (0..QUEUED)
        .map(|_| {
            let socket = worker.socket().to_owned();
            thread::spawn(move || read(&socket))
        })
        .collect();
    worker.signal(Signal::CONT);
    let late = read(worker.socket());
    for answer in early.into_iter().map(|read| read.join().expect("no panic")) {
        let answer = answer.expect("an answer");
        assert_eq!(body(&answer), NEW.as_bytes(), "{:?}", answer.proof);
    }
    let late = late.expect("an answer");
    assert_eq!(body(&late), NEW.as_bytes(), "{:?}", late.proof);
    // And it comes back to answering without a question.
    assert_eq!(body(&await_lease(&worker)), NEW.as_bytes());
}

#[test]
fn a_publish_waits_for_a_stopped_worker_until_its_lease_ends_and_names_it() {
    let site = Site::new();
    let coordinator = coordinator(&site, LONG);
    let worker = site.worker("w", &coordinator, &[]);
    let first = publish(&site, &coordinator, OLD);
    assert_eq!(first["waited"]["expired"], serde_json::json!([]), "{first}");
    await_lease(&worker);

    worker.signal(Signal::STOP);
    let published = publish(&site, &coordinator, NEW);
    let waited = &published["waited"];
    assert_eq!(waited["holders"], 1, "{published}");
    assert_eq!(waited["expired"], serde_json::json!([WORKER]));
    assert!(waited["ms"].as_u64() > Some(0), "{published}");
    worker.signal(Signal::CONT);

    // One that answers is waited for only until it does.
    await_lease(&worker);
    let published = publish(&site, &coordinator, OLD);
    let waited = &published["waited"];
    assert_eq!(waited["holders"], 1, "{published}");
    assert_eq!(waited["expired"], serde_json::json!([]), "{published}");
}

#[test]
fn a_worker_that_stops_in_good_order_is_not_waited_for() {
    let site = Site::new();
    // Longer than a command is waited for.
    let coordinator = coordinator(&site, "10m");
    let worker = site.worker("w", &coordinator, &[]);
    publish(&site, &coordinator, OLD);
    await_lease(&worker);
    let left = &session(&coordinator)["lease_ms"];
    assert!(left.as_u64() > Some(0), "{left}");

    worker.stop();
    let published = publish(&site, &coordinator, NEW);
    let waited = &published["waited"];
    assert_eq!(waited["holders"], 0, "{published}");
    assert_eq!(waited["expired"], serde_json::json!([]), "{published}");
    assert_eq!(session(&coordinator), Value::Null);
}

/// Publishes while the worker is stopped; whether its lease had to be waited out.
fn strikes(coordinator: &Daemon, worker: &Daemon, number: usize) -> bool {
    let client = wait(HttpClient::connect(coordinator.socket())).expect("it answers");
    worker.signal(Signal::STOP);
    let spec = Spec::new(format!("number: {number}\n").into());
    let published = wait(publish_one(&client, "a", Some(spec))).expect("published");
    worker.signal(Signal::CONT);
    !published.waited.expired.is_empty()
}

#[test]
fn three_strikes_bar_a_worker_and_status_names_it() {
    let site = Site::new();
    let coordinator = coordinator(&site, SHORT);
    let worker = site.worker("w", &coordinator, &[]);
    publish(&site, &coordinator, OLD);
    for strike in 0..3 {
        await_lease(&worker);
        assert_eq!(session(&coordinator)["barred_ms"], 0, "strike {strike}");
        // On a busy machine the lease may be over before the publish is durable: no strike.
        let struck = (0..LOOKS).any(|look| {
            await_lease(&worker);
            strikes(&coordinator, &worker, strike * LOOKS + look)
        });
        assert!(struck, "strike {strike}");
    }
    let barred = session(&coordinator);
    assert_eq!(barred["uri"], WORKER);
    assert!(barred["barred_ms"].as_u64() > Some(0), "{barred}");

    // It goes on answering, by asking, and nobody waits for it any more.
    let published = publish(&site, &coordinator, NEW);
    assert_eq!(published["waited"]["holders"], 0, "{published}");
    let answer = read(worker.socket()).expect("an answer");
    assert_eq!(answer.proof.mode, Mode::Asked);
    assert_eq!(body(&answer), NEW.as_bytes());
    let session = session(&coordinator);
    assert_eq!(session["lease_ms"], 0, "{session}");
}
