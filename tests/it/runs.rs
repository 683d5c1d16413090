//! Runs and leases by the command line: one snapshot for many tasks, and whom a publish waits for.

use rustix::process::Signal;

use crate::site::{Daemon, Ended, Site};

/// Asks anew until a worker holds a lease; far more often than it takes.
const LOOKS: usize = 2_000;

fn publish(site: &Site, coordinator: &Daemon, body: &str) {
    let file = site.write("a.yaml", body);
    let args = ["publish", &file, "--socket", coordinator.socket()];
    site.run(&args).ok();
}

#[test]
fn all_tasks_of_a_run_read_its_snapshot() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    publish(&site, &coordinator, "steps: [old]\n");
    let token = site.run(&["run-token", "--socket", worker.socket()]).ok();
    let token = token.trim();
    publish(&site, &coordinator, "steps: [new]\n");

    let get = |variable: &str, value: &str, flags: &[&str]| {
        let mut args = vec!["get", "a", "--socket", worker.socket()];
        args.extend(flags);
        site.run_with(&[(variable, value)], &args)
    };
    let (old, new) = ("steps: [old]\n", "steps: [new]\n");
    assert_eq!(get("LARDER_REVISION", token, &[]).ok(), old);
    assert_eq!(get("LARDER_REVISION", token, &["--verified"]).ok(), new);
    assert_eq!(get("LARDER_AT_LEAST", token, &["--verified"]).ok(), new);
    let other = token.replacen(":1:", ":7:", 1);
    get("LARDER_REVISION", &other, &[]).fails(3, &["of epoch 7", "hint: "]);
    get("LARDER_REVISION", "soon", &[]).fails(2, &["LARDER_REVISION=`soon`"]);

    // A worker may not publish, and passes pins on all the same.
    let args = ["pin", token, "--for", "2h", "--socket", worker.socket()];
    let pinned = site.run(&args).ok();
    assert!(pinned.starts_with("pin 1: revision 1 until 20"), "{pinned}");
    let args = ["pins", "--json", "--socket", coordinator.socket()];
    let pins = site.run(&args).json();
    assert_eq!(pins["pins"][0]["by"], "spiffe://test.example/worker/w");
    site.run(&["unpin", "1", "--socket", worker.socket()]).ok();
    let gone = site.run(&["unpin", "1", "--socket", worker.socket()]);
    gone.fails(3, &["there is no pin 1"]);
}

#[test]
fn a_publish_says_whom_it_waits_for_and_status_says_who_holds_what() {
    let site = Site::new();
    let certs = site.identity("coordinator", "c");
    let args = ["coordinator", "--certs", &certs, "--lease", "3s"];
    let coordinator = site.start(&args, "c").expect("it starts");
    let worker = site.worker("w", &coordinator, &[]);
    publish(&site, &coordinator, "steps: [old]\n");
    let status = || {
        let args = ["status", "--json", "--socket", worker.socket()];
        site.run(&args).json()
    };
    let leased = (0..LOOKS).any(|_| status()["lease"]["left_ms"].as_u64() > Some(0));
    assert!(leased, "{}", worker.log());
    let args = ["status", "--json", "--socket", coordinator.socket()];
    let of_coordinator = site.run(&args).json();
    assert_eq!(of_coordinator["lease_ms"], 3_000);
    let session = &of_coordinator["workers"][0];
    assert_eq!(session["uri"], "spiffe://test.example/worker/w");

    worker.signal(Signal::STOP);
    let file = site.write("a.yaml", "steps: [new]\n");
    let args = ["publish", "-v", &file, "--socket", coordinator.socket()];
    let ended = site.run(&args);
    for words in [
        "waiting for w: its lease ends in",
        "no answer until its lease ended: w",
    ] {
        assert!(ended.err.contains(words), "{ended:?}");
    }
    ended.ok();
    worker.signal(Signal::CONT);
    let args = ["get", "a", "--socket", worker.socket()];
    assert_eq!(site.run(&args).ok(), "steps: [new]\n");
}

/// Reads `a` with further flags.
fn get(site: &Site, node: &Daemon, more: &[&str]) -> Ended {
    let args = [&["get", "a", "--socket", node.socket()], more].concat();
    site.run(&args)
}

#[test]
fn a_read_without_flags_gets_what_its_worker_is_configured_for_and_says_how_old_it_may_be() {
    let site = Site::new();
    let certs = site.identity("coordinator", "c");
    let args = ["coordinator", "--certs", &certs, "--lease", "600ms"];
    let coordinator = site.start(&args, "c").expect("it starts");
    let worker = site.worker("w", &coordinator, &["--freshness", "bounded:1h"]);
    let plain = site.worker("plain", &coordinator, &[]);
    publish(&site, &coordinator, "steps: [old]\n");
    for worker in [&worker, &plain] {
        assert_eq!(get(&site, worker, &["--strict"]).ok(), "steps: [old]\n");
    }
    let holds = (0..LOOKS).any(|_| {
        let bounded = get(&site, &worker, &["--json"]).json();
        bounded["proof"]["mode"] == "bounded" && bounded["body"] == "steps: [old]\n"
    });
    assert!(holds, "{}", worker.log());
    coordinator.stop();
    // Until its lease is over.
    let refuses = |node, more: &[&str]| (0..LOOKS).any(|_| !get(&site, node, more).succeeded());
    assert!(refuses(&plain, &[]) && refuses(&worker, &["--strict"]));

    let note = "note: answered as of ";
    let bounded = get(&site, &worker, &[]);
    assert_eq!(bounded.err.matches(note).count(), 1, "{bounded:?}");
    assert!(
        bounded
            .err
            .contains("ago at most, as the worker is configured (bounded:3600s)"),
        "{bounded:?}"
    );
    assert_eq!(bounded.ok(), "steps: [old]\n");
    let bounded = get(&site, &worker, &["-v", "--json"]);
    assert!(bounded.err.contains("mode bounded"), "{bounded:?}");
    assert_eq!(bounded.json()["proof"]["mode"], "bounded");
    let args = ["diff", "a", "1", "--socket", worker.socket()];
    let diff = site.run(&args);
    assert!(diff.err.starts_with(note), "{diff:?}");
    assert_eq!(diff.ok(), "");

    get(&site, &worker, &["--strict"]).fails(4, &["no proof"]);
    get(&site, &plain, &[]).fails(4, &["no proof"]);
    let both = get(&site, &worker, &["--strict", "--max-staleness", "1s"]);
    both.fails(2, &["cannot be used with"]);
    let token = site.run(&["run-token", "--socket", worker.socket()]);
    token.fails(4, &[]);
}

#[test]
fn a_bounded_read_is_answered_after_a_restart_while_nobody_can_be_asked() {
    if std::fs::read("/proc/sys/kernel/random/boot_id").is_err() {
        // Without it nothing is known of times of before a restart.
        return;
    }
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let addr = coordinator.addr().to_owned();
    let worker = site.worker("w", &coordinator, &[]);
    publish(&site, &coordinator, "steps: [old]\n");
    assert_eq!(get(&site, &worker, &[]).ok(), "steps: [old]\n");
    let holds = (0..LOOKS).any(|_| {
        let args = ["status", "--json", "--socket", worker.socket()];
        let lease = &site.run(&args).json()["lease"];
        lease["revision"] == 1 && lease["age_ms"].is_u64()
    });
    assert!(holds, "{}", worker.log());
    coordinator.kill();
    worker.stop();

    let worker = site.worker_of("w", &addr, &[]);
    let bounded = get(&site, &worker, &["--max-staleness", "1h", "--json"]).json();
    assert_eq!(bounded["body"], "steps: [old]\n");
    assert_eq!(bounded["proof"]["mode"], "bounded");
    let strict = get(&site, &worker, &[]);
    assert!(
        strict
            .err
            .contains("no proof that any copy of `a` is current"),
        "{strict:?}"
    );
}
