//! A coordinator that is killed while it publishes loses nothing that it acknowledged.
//!
//! A client publishes batches of three names in a loop. At a random moment the coordinator gets
//! SIGKILL and is started again on the same store. Then every acknowledged revision must be there
//! with its bytes, every revision must hold a whole batch, and the batch that was cut off is sent
//! again with its key and must not happen twice. `LARDER_KILL_ROUNDS` sets how often.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use larder::answer::{Failure, Freshness, Query, Target};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::catalog::Revision;
use larder::proto::wire::{GetLog, Publish, PublishName};
use larder::spec::{Spec, Syntax};
use rustix::process::{Pid, Signal, kill_process};

use crate::site::{Daemon, Site, wait};

/// Some seconds of a build's time.
const ROUNDS: u32 = 20;

/// Names in a batch; two batches share one, so that names also change.
const NAMES: [&str; 3] = ["own", "also-own", "shared"];

/// A read that takes longer than this on a local socket hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the client was told.
#[derive(Default)]
struct Acknowledged(BTreeMap<Revision, u64>);

/// One batch: three names, one of them new in every batch's own folder but the last.
fn batch(number: u64) -> Vec<(String, Spec)> {
    let name = |name: &&str| match *name {
        "shared" => "shared".to_owned(),
        own => format!("batch-{number}/{own}"),
    };
    // Up to 40 KB, so that a kill meets records that are being written.
    let filling = usize::try_from(number % 9).expect("small") * 5_000;
    let body = |name: &&str| {
        let text = format!("batch: {number}\nname: {name}\n# {}\n", "x".repeat(filling));
        Spec::new(text.into())
    };
    NAMES.iter().map(|each| (name(each), body(each))).collect()
}

async fn publish(client: &HttpClient, number: u64) -> Result<Revision, Failure> {
    let mut changes = Vec::new();
    for (name, spec) in batch(number) {
        changes.push(PublishName {
            name: name.parse().expect("a name"),
            hash: Some(spec.hash()),
            len: spec.len(),
            expect: None,
        });
        client.put_body(spec, Syntax::Yaml).await?;
    }
    let publish = Publish {
        key: Some(u128::from(number).to_be_bytes()),
        note: number.to_string(),
        changes,
    };
    Ok(client.publish(publish).await?.rev)
}

/// Publishes until the coordinator dies, and returns the number of the batch that was cut off.
async fn publish_until_killed(
    client: &HttpClient,
    mut number: u64,
    acknowledged: &mut Acknowledged,
) -> u64 {
    loop {
        match publish(client, number).await {
            Ok(rev) => {
                let known = acknowledged.0.insert(rev, number);
                assert_eq!(known, None, "revision {rev} twice");
            }
            Err(failure) if failure.code == "unreachable" => return number,
            Err(failure) => panic!("batch {number}: {failure:?}"),
        }
        number += 1;
    }
}

/// What was acknowledged after `since` is there, byte for byte, at its revision.
async fn check_bytes(client: &HttpClient, acknowledged: &Acknowledged, since: Revision) {
    for (rev, number) in acknowledged.0.range(since..) {
        for (name, spec) in batch(*number) {
            let query = Query {
                target: Target::Name(name.parse().expect("a name")),
                freshness: Freshness::At(*rev),
                deadline: DEADLINE,
            };
            let answer = client.get(query).await.expect("an answer");
            assert_eq!(answer.spec.as_ref(), Some(&spec), "{name} at {rev}");
            assert_eq!(answer.proof.record_rev, Some(*rev));
        }
    }
}

/// The history holds whole batches only, each once and in order, and all acknowledged ones.
async fn check_history(client: &HttpClient, acknowledged: &Acknowledged) {
    let mut before = None;
    let mut seen = BTreeMap::new();
    loop {
        let get = GetLog {
            name: None,
            before,
            limit: 1_000,
        };
        let log = client.log(get).await.expect("a log");
        for entry in &log.entries {
            assert_eq!(entry.changed, 3, "revision {} is torn", entry.rev);
            let number: u64 = entry.note.parse().expect("a batch's number");
            assert_eq!(seen.insert(number, entry.rev), None, "batch {number} twice");
        }
        match log.entries.last().filter(|_| log.more) {
            Some(last) => before = Some(last.rev),
            None => break,
        }
    }
    for (rev, number) in &acknowledged.0 {
        assert_eq!(seen.get(number), Some(rev), "batch {number}");
    }
    assert!(seen.values().is_sorted(), "batches out of order: {seen:?}");
}

/// Kills the coordinator at a random moment of its work and returns what was cut off.
fn one_kill(coordinator: Daemon, number: u64, acknowledged: &mut Acknowledged) -> u64 {
    let client = connect(&coordinator);
    let pid = Pid::from_raw(i32::try_from(coordinator.pid()).expect("a pid")).expect("a pid");
    // A random moment is the point: from the first body to some dozen revisions.
    let moment = Duration::from_micros(u64::from(rand::random::<u16>()));
    let killer = thread::spawn(move || {
        thread::sleep(moment);
        kill_process(pid, Signal::KILL).expect("it runs");
    });
    let cut_off = wait(publish_until_killed(&client, number, acknowledged));
    killer.join().expect("no panic");
    coordinator.kill();
    cut_off
}

fn connect(coordinator: &Daemon) -> HttpClient {
    wait(HttpClient::connect(coordinator.socket())).expect("it answers")
}

#[test]
fn a_coordinator_that_is_killed_loses_nothing_acknowledged_and_tears_no_batch() {
    let rounds = std::env::var("LARDER_KILL_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().expect("a number"));
    let site = Site::new();
    let mut acknowledged = Acknowledged::default();
    let (mut number, mut before_kills) = (1, 0);
    for _ in 0..rounds {
        let since = acknowledged.0.keys().next_back().copied();
        let known = acknowledged.0.len();
        let cut_off = one_kill(site.coordinator("c"), number, &mut acknowledged);
        before_kills += acknowledged.0.len() - known;
        let coordinator = site.coordinator("c");
        let client = connect(&coordinator);
        wait(async {
            check_history(&client, &acknowledged).await;
            let rev = publish(&client, cut_off).await.expect("published");
            acknowledged.0.insert(rev, cut_off);
            check_bytes(&client, &acknowledged, since.unwrap_or(Revision::ZERO)).await;
            check_history(&client, &acknowledged).await;
        });
        coordinator.stop();
        number = cut_off + 1;
    }
    let coordinator = site.coordinator("c");
    let client = connect(&coordinator);
    wait(check_bytes(&client, &acknowledged, Revision::ZERO));
    eprintln!("{rounds} kills, {before_kills} revisions acknowledged before them");
    // One a kill on average; those that are sent again after it prove nothing.
    let enough = usize::try_from(rounds).expect("small");
    assert!(before_kills >= enough, "{before_kills} in {rounds} rounds");
}
