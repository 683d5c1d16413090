//! Workers that find each other, as real processes.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::Value;

use crate::peers::{body, get};
use crate::site::{Daemon, PATIENCE, Site};

/// Waits until `worker` has found the worker at `addr`.
pub(crate) fn finds(worker: &Daemon, addr: &str) {
    worker.says(&["a worker is there", addr]);
}

fn peers(site: &Site, worker: &Daemon) -> Value {
    site.run(&["peers", "--json", "--socket", worker.socket()])
        .json()
}

/// The members that `worker` holds for up, by address.
pub(crate) fn up(site: &Site, worker: &Daemon) -> Vec<String> {
    let peers = peers(site, worker);
    let members = peers["members"].as_array().expect("a list");
    let up = members.iter().filter(|member| member["state"] == "up");
    let mut up: Vec<_> = up
        .map(|member| member["addr"].as_str().expect("an address").to_owned())
        .collect();
    up.sort();
    up
}

#[test]
fn workers_that_know_the_coordinator_alone_find_each_other_and_see_who_leaves() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let workers = ["w1", "w2", "w3"].map(|name| site.worker(name, &coordinator, &[]));
    for one in &workers {
        for other in workers.iter().filter(|other| other.addr() != one.addr()) {
            finds(one, other.addr());
        }
    }
    let text = site.run(&["peers", "--socket", workers[0].socket()]).ok();
    assert!(text.contains(&format!("w1 is reached at {}", workers[0].addr())));
    let [w1, w2, w3] = workers;
    let shown = peers(&site, &w1);
    assert_eq!(shown["reachable"], true);
    let members = shown["members"].as_array().expect("a list");
    assert_eq!(members.len(), 2, "{shown}");

    let gone = w3.addr().to_owned();
    w3.stop();
    for one in [&w1, &w2] {
        one.says(&["a worker is gone", &gone]);
    }
    assert_eq!(up(&site, &w1), [w2.addr()]);
}

#[test]
fn without_a_coordinator_a_worker_joins_by_any_other_and_by_what_it_remembers() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let nobody = coordinator.addr().to_owned();
    let file = site.write("daily.yaml", body());
    let publish = ["publish", &file, "--socket", coordinator.socket()];
    site.run(&publish).ok();
    let w1 = site.worker("w1", &coordinator, &[]);
    assert_eq!(get(&site, &w1, "daily", &[]).ok(), body());
    w1.says(&["the catalog was brought forward"]);
    coordinator.stop();

    let join = ["--join", w1.addr()];
    let w2 = site.worker_of("w2", &nobody, &join);
    let w3 = site.worker_of("w3", &nobody, &join);
    finds(&w2, w1.addr());
    finds(&w3, w2.addr());
    // What was published arrived with the membership.
    w2.says(&["the catalog was brought forward"]);

    // The one by which it joined is gone when it comes back.
    let [w1_addr, w2_addr, w3_addr] = [&w1, &w2, &w3].map(|worker| worker.addr().to_owned());
    finds(&w2, &w3_addr);
    w1.kill();
    w2.stop();
    let again = ["--listen", &w2_addr];
    let w2 = site.worker_of("w2", &nobody, &again);
    finds(&w2, &w3_addr);
    // Who died shows within seconds.
    w3.says(&["a worker is gone", &w1_addr]);
    assert!(up(&site, &w2).contains(&w3_addr));
}

/// What a daemon counts.
pub(crate) fn metrics(daemon: &Daemon) -> String {
    let mut socket = UnixStream::connect(daemon.socket()).expect("it listens");
    let ask = b"GET /metrics HTTP/1.1\r\nhost: larder\r\nconnection: close\r\n\r\n";
    socket.write_all(ask).expect("asked");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("answered");
    text
}

/// Bytes of bodies that a coordinator has sent.
fn sent(coordinator: &Daemon) -> u64 {
    let text = metrics(coordinator);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("larder_body_bytes_sent_total "));
    line.map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn a_body_leaves_the_coordinator_four_times_however_many_workers_want_it() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let names = ["w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8"];
    let workers = names.map(|name| site.worker(name, &coordinator, &["--prefetch", "all"]));
    let began = Instant::now();
    for number in 0.. {
        let text = format!("{}# {number}\n", body());
        let file = site.write("many.yaml", &text);
        let before = sent(&coordinator);
        let publish = ["publish", &file, "--socket", coordinator.socket()];
        site.run(&publish).ok();
        for worker in &workers {
            assert_eq!(get(&site, worker, "many", &[]).ok(), text);
        }
        let copies = (sent(&coordinator) - before) / text.len() as u64;
        // More while it has not dialled them yet, and so knows of nobody to point at.
        if copies == 4 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{copies} copies");
    }
}

#[test]
fn a_worker_that_was_told_not_to_looks_for_nobody() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let w1 = site.worker("w1", &coordinator, &["--gossip", "off"]);
    let w2 = site.worker("w2", &coordinator, &[]);
    let w3 = site.worker("w3", &coordinator, &[]);
    finds(&w2, w3.addr());
    assert_eq!(up(&site, &w2), [w3.addr()]);
    assert_eq!(peers(&site, &w1)["gossip"], "off");
    let text = site.run(&["peers", "--socket", w1.socket()]).ok();
    assert!(text.contains("--gossip off"), "{text}");
}

#[test]
fn a_worker_that_nobody_can_dial_is_no_member_and_is_told_what_is_new() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let w1 = site.worker("w1", &coordinator, &[]);
    let w2 = site.worker("w2", &coordinator, &[]);
    finds(&w1, w2.addr());
    // Nobody answers there, as behind a NAT.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let nobody = nobody.local_addr().expect("bound").to_string();
    let leaf = site.worker("leaf", &coordinator, &["--advertise", &nobody]);
    finds(&leaf, w1.addr());
    leaf.says(&["nobody can dial this worker"]);
    let shown = peers(&site, &leaf);
    assert_eq!(shown["reachable"], false, "{shown}");
    w1.says(&["a worker is gone", &nobody]);
    assert!(!up(&site, &w1).contains(&nobody));
}

#[test]
fn an_address_that_nobody_can_dial_is_refused_with_what_would_do() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let certs = site.identity("worker", "w");
    let args = [
        "worker",
        "--certs",
        &certs,
        "--coordinator",
        coordinator.addr(),
    ];
    let refused = |more: &[&str], words: &[&str]| {
        let ended = site.start(&[&args, more].concat(), "w");
        ended.expect_err("refused").fails(2, words);
    };
    refused(
        &["--advertise", "0.0.0.0:7458"],
        &["--advertise", "an address that others can dial"],
    );
    refused(&["--gossip", "maybe"], &["--gossip", "it is `on` or `off`"]);
    refused(&["--join", "w1"], &["--join", "HOST:PORT"]);
}
