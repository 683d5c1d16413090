//! What goes wrong at the edges: files, names, stores, ports, certificates, silent nodes. Each is
//! refused with its own exit code and says what is wrong and what to do.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::site::{Daemon, Ended, Site, text};

const DAILY: &str = "steps:\n  - run: echo daily\n";

/// The throw-away identities that come with the source code.
fn throwaway(name: &str) -> String {
    let certs = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs");
    text(&certs.join(name)).to_owned()
}

/// Starts a daemon that must not get ready.
fn refused(site: &Site, args: &[&str], name: &str) -> Ended {
    site.start(args, name).expect_err("it must not start")
}

fn publish(site: &Site, coordinator: &Daemon, args: &[&str]) -> Ended {
    let mut all = vec!["publish", "--socket", coordinator.socket()];
    all.extend(args);
    site.run(&all)
}

#[test]
fn a_file_that_is_no_definition_is_refused_before_anything_is_sent() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let good = site.write("good.yaml", DAILY);
    let cases: &[(&str, &[u8], &str)] = &[
        ("latin.yaml", b"name: caf\xe9\n", "UTF-8"),
        ("syntax.yaml", b"a: 1\nb: [1,\nc: 2\n", "syntax.yaml:4:1: "),
        ("large.yaml", &[b'#'; (1 << 20) + 1], "1048576"),
        ("empty.yaml", b"", "empty"),
        ("no good.yaml", DAILY.as_bytes(), "no good"),
    ];
    for &(file, bytes, says) in cases {
        let bad = site.write(file, bytes);
        publish(&site, &coordinator, &[&good, &bad]).fails(6, &[file, says]);
    }
    let missing = publish(&site, &coordinator, &["nowhere"]);
    missing.fails(6, &["nowhere", "No such file"]);
    site.write("hollow/README.md", "nothing here");
    publish(&site, &coordinator, &["hollow"]).fails(6, &["no .yaml or .yml file"]);
    let list = site.run(&["ls", "--json", "--socket", coordinator.socket()]);
    assert_eq!(list.json()["rev"], 0);
}

#[test]
fn wrong_words_on_the_command_line_are_usage_errors() {
    let site = Site::new();
    let cases: &[(&[&str], &str)] = &[
        (&["get", "--colour", "a"], "--colour"),
        (&["gte", "a"], "gte"),
        (&["get", "a//b"], "a//b"),
        (&["get", "../a"], "../a"),
        (&["get", "b3:12"], "b3:12"),
        (&["get", "a", "--at", "soon"], "soon"),
        (&["get", "a", "--deadline", "soon"], "soon"),
        (&["publish", "a.yaml", "--idempotency-key", "1"], "32 hex"),
        (&["worker", "--listen", "nowhere"], "nowhere"),
        (&["coordinator", "--max-spec-len", "1TiB"], "1TiB"),
    ];
    for (args, says) in cases {
        site.run(args).fails(2, &[says]);
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest_ones() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    site.write("defs/etl/daily.yaml", DAILY);
    publish(&site, &coordinator, &["defs"]).ok();
    for node in [&coordinator, &worker] {
        let get = site.run(&["get", "etl/dialy", "--socket", node.socket()]);
        get.fails(3, &["`etl/dialy`", "did you mean `etl/daily`?"]);
    }
    let get = site.run(&["get", "etl/dialy", "--json", "--socket", worker.socket()]);
    get.fails(3, &["{\"error\":", "\"absent\""]);
    let socket = coordinator.socket();
    let rm = site.run(&["rm", "etl/daily", "etl/dialy", "--socket", socket]);
    rm.fails(3, &["nothing was deleted"]);
    let future = ["get", "etl/daily", "--at", "9", "--socket", socket];
    site.run(&future).fails(3, &["9", "1"]);
}

#[test]
fn a_port_or_a_socket_in_use_is_named() {
    let site = Site::new();
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("bound").to_string();
    let certs = site.identity("coordinator", "c");
    let args = ["coordinator", "--certs", &certs, "--listen", &addr];
    refused(&site, &args, "c").fails(9, &[&addr, "hint: "]);
    assert!(!site.path("c").exists(), "nothing is left behind");
    let worker = site.identity("worker", "w");
    let args = ["worker", "--certs", &worker, "--listen", &addr];
    let args = [&args[..], &["--coordinator", "127.0.0.1:9"]].concat();
    refused(&site, &args, "w").fails(9, &[&addr, "hint: "]);
    assert!(!site.path("w").exists(), "nothing is left behind");

    let first = site.coordinator("c");
    let args = ["coordinator", "--certs", &certs, "--socket", first.socket()];
    refused(&site, &args, "other").fails(9, &[first.socket(), "--socket"]);
}

#[test]
fn a_store_that_another_process_holds_names_the_process() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    for (role, name, holder) in [("coordinator", "c", &coordinator), ("worker", "w", &worker)] {
        let (certs, store) = (site.identity(role, name), site.path(name));
        let args = [role, "--certs", &certs, "--store", text(&store)];
        let args = [&args[..], &["--coordinator", "127.0.0.1:9"]].concat();
        let args = &args[..if role == "worker" { 7 } else { 5 }];
        let pid = format!("the {role} with pid {}", holder.pid());
        refused(&site, args, "other").fails(8, &[&pid, "--store"]);
    }
    let certs = site.identity("coordinator", "c");
    worker.stop();
    let store = site.path("w");
    let args = ["coordinator", "--certs", &certs, "--store", text(&store)];
    let other = refused(&site, &args, "other");
    other.fails(8, &["store of a worker, not of a coordinator"]);
}

#[test]
fn a_damaged_journal_is_refused_with_the_way_back() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let daily = site.write("daily.yaml", DAILY);
    publish(&site, &coordinator, &[&daily]).ok();
    publish(&site, &coordinator, &[&daily, "--name", "again"]).ok();
    coordinator.stop();
    let journal = site.path("c/journal");
    let mut bytes = fs::read(&journal).expect("there");
    let body = bytes
        .windows(DAILY.len())
        .position(|at| at == DAILY.as_bytes());
    bytes[body.expect("the body")] ^= 1;
    fs::write(&journal, &bytes).expect("written");

    let certs = site.identity("coordinator", "c");
    let end = refused(&site, &["coordinator", "--certs", &certs], "c");
    end.fails(8, &["damaged at byte", "larder restore"]);
    assert_eq!(fs::read(&journal).expect("there"), bytes, "left as it was");
}

#[test]
fn a_damaged_worker_store_is_set_aside_and_the_worker_starts() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let daily = site.write("daily.yaml", DAILY);
    publish(&site, &coordinator, &[&daily]).ok();
    let worker = site.worker("w", &coordinator, &[]);
    let get = |worker: &Daemon| site.run(&["get", "daily", "--socket", worker.socket()]);
    get(&worker).ok();
    worker.stop();
    let cache = site.path("w/cache");
    for entry in fs::read_dir(&cache).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::write(path, [0x5a; 100]).expect("written");
        }
    }
    let worker = site.worker("w", &coordinator, &[]);
    assert_eq!(get(&worker).ok(), DAILY);
    let names = fs::read_dir(site.path("w")).expect("a directory");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let aside = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("cache.corrupt-");
    assert_eq!(names.filter(aside).count(), 1);
    assert!(worker.log().contains("set aside"), "{}", worker.log());
}

#[test]
fn an_identity_that_cannot_serve_is_refused_at_the_start() {
    let site = Site::new();
    let loose = site.identity("coordinator", "loose");
    let key = Path::new(&loose).join("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("ours");
    let worker = site.identity("worker", "w");
    let dev = throwaway("dev/coordinator/c1");
    let (no_uri, none) = (throwaway("bad/no-uri"), site.path("none"));
    let cases: &[(&[&str], &[&str])] = &[
        (&["coordinator", "--certs", &loose], &["key.pem", "chmod"]),
        (
            &["coordinator", "--certs", &worker],
            &["worker/w", "--role"],
        ),
        (&["coordinator", "--certs", &no_uri], &["cert.pem"]),
        (&["coordinator", "--certs", text(&none)], &["cert.pem"]),
        (
            &["coordinator", "--certs", &dev, "--listen", "0.0.0.0:0"],
            &["loopback"],
        ),
    ];
    for (args, says) in cases {
        refused(&site, args, "c").fails(7, says);
    }
}

#[test]
fn a_node_whose_certificate_is_bad_reads_nothing() {
    let site = Site::new();
    let dev = throwaway("dev/coordinator/c1");
    let coordinator = site
        .start(&["coordinator", "--certs", &dev], "c")
        .expect("it starts");
    let daily = site.write("daily.yaml", DAILY);
    publish(&site, &coordinator, &[&daily]).ok();
    let get = |certs: &str| {
        let addr = coordinator.addr();
        site.run(&["get", "daily", "--coordinator", addr, "--certs", certs])
    };
    assert_eq!(get(&throwaway("dev/reader/r1")).ok(), DAILY);
    let cases = [
        ("bad/expired", "expired"),
        ("bad/not-yet-valid", "not valid yet"),
        ("bad/revoked", "revoked"),
        ("bad/wrong-ca", "unknown CA"),
        ("bad/wrong-cluster", "cluster"),
    ];
    for (certs, why) in cases {
        let end = get(&throwaway(certs));
        end.fails(7, &["tried coordinator", why]);
        assert!(!end.err.contains("WARN"), "the error says it: {end:?}");
    }
}

#[test]
fn who_answers_in_the_coordinators_place_is_not_believed() {
    let site = Site::new();
    site.found("others", "other.example");
    let coordinator = site.coordinator("c");
    let daily = site.write("daily.yaml", DAILY);
    publish(&site, &coordinator, &[&daily]).ok();
    let worker = site.worker("w", &coordinator, &[]);
    let certs = site.identity_of("others", "coordinator", "c");
    let stranger = site.start(&["coordinator", "--certs", &certs], "stranger");
    let stranger = stranger.expect("it starts");
    let reader = site.identity("reader", "r");
    for (node, why) in [
        (&stranger, "unknown CA"),
        (&worker, "but a coordinator was expected"),
    ] {
        let addr = node.addr();
        let hop = format!("tried coordinator {addr}: ");
        let get = ["get", "daily", "--coordinator", addr, "--certs", &reader];
        site.run(&get).fails(7, &[&hop, why]);
        let victim = site.worker("v", node, &[]);
        let get = site.run(&["get", "daily", "--socket", victim.socket()]);
        get.fails(7, &["no proof", &hop, why]);
    }
}

#[test]
fn a_worker_does_not_move_to_another_catalog_by_itself() {
    let site = Site::new();
    let first = site.coordinator("c");
    let daily = site.write("daily.yaml", DAILY);
    publish(&site, &first, &[&daily]).ok();
    let worker = site.worker("w", &first, &[]);
    let get = |worker: &Daemon| site.run(&["get", "daily", "--socket", worker.socket()]);
    get(&worker).ok();
    worker.stop();
    let certs = site.identity("coordinator", "c");
    let second = site.start(&["coordinator", "--certs", &certs], "second");
    let second = second.expect("it starts");
    publish(&site, &second, &[&daily]).ok();
    let worker = site.worker("w", &second, &[]);
    get(&worker).fails(4, &["serves catalog", "empty store"]);
}

#[test]
fn a_coordinator_whose_store_went_back_is_not_believed_until_a_new_epoch() {
    let site = Site::new();
    let daily = site.write("daily.yaml", DAILY);
    let (store, older) = (site.path("c"), site.path("older"));
    let coordinator = site.coordinator("c");
    publish(&site, &coordinator, &[&daily]).ok();
    let addr = coordinator.addr().to_owned();
    coordinator.stop();
    copy(&store, &older);

    let certs = site.identity("coordinator", "c");
    let args = ["coordinator", "--certs", &certs, "--listen", &addr];
    let start = |more: &[&str]| site.start(&[&args, more].concat(), "c").expect("it starts");
    let coordinator = start(&[]);
    publish(&site, &coordinator, &[&daily, "--name", "again"]).ok();
    let worker = site.worker("w", &coordinator, &[]);
    let get = || site.run(&["get", "daily", "--verified", "--socket", worker.socket()]);
    get().ok();
    coordinator.stop();
    fs::remove_dir_all(&store).expect("removed");
    fs::rename(&older, &store).expect("renamed");

    let coordinator = start(&[]);
    get().fails(4, &["went back to revision 1 after 2", "--new-epoch"]);
    coordinator.stop();
    let coordinator = start(&["--new-epoch"]);
    publish(&site, &coordinator, &[&daily, "--name", "once-more"]).ok();
    assert_eq!(get().ok(), DAILY);
}

/// Copies a directory as a snapshot of a file system would.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).expect("copied")),
        }
    }
}

#[test]
fn a_silent_coordinator_ends_a_read_within_its_deadline() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let daily = site.write("daily.yaml", DAILY);
    publish(&site, &coordinator, &[&daily]).ok();
    let worker = site.worker("w", &coordinator, &[]);
    let socket = worker.socket();
    let get = |more: &[&str]| site.run(&[&["get", "daily", "--socket", socket], more].concat());
    get(&[]).ok();
    coordinator.signal(Signal::STOP);
    let began = Instant::now();
    let silent = get(&["--deadline", "500ms", "--verified"]);
    let took = began.elapsed();
    let (least, most) = (Duration::from_millis(500), Duration::from_secs(5));
    assert!((least..most).contains(&took), "{took:?}");
    let hop = format!("tried coordinator {}: ", coordinator.addr());
    // Its words, since without one the worker would give up by itself after some seconds.
    silent.fails(4, &["the deadline passed", &hop, "hint: "]);
    assert_eq!(
        get(&["--at", "1"]).ok(),
        DAILY,
        "what is held needs no proof"
    );
    coordinator.signal(Signal::CONT);
    assert_eq!(get(&[]).ok(), DAILY);
}

#[test]
fn a_node_that_is_not_there_is_said_to_be_unreachable() {
    let site = Site::new();
    let nobody = site.path("nobody.sock");
    let get = site.run(&["get", "a", "--socket", text(&nobody)]);
    get.fails(4, &["nobody.sock", "hint: "]);
    let get = site.run(&["get", "a"]);
    get.fails(4, &["found no node to ask", "no coordinator is configured"]);
    // It is bound and never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let addr = silent.local_addr().expect("bound").to_string();
    let reader = site.identity("reader", "r");
    let get = ["get", "a", "--coordinator", &addr, "--certs", &reader];
    let get = site.run(&[&get[..], &["--deadline", "500ms"]].concat());
    get.fails(4, &[&addr]);
}

#[test]
fn a_coordinator_without_its_socket_begins_no_epoch() {
    let site = Site::new();
    let certs = site.identity("coordinator", "c");
    let epoch = |coordinator: &Daemon| {
        let status = site.run(&["status", "--json", "--socket", coordinator.socket()]);
        status.json()["epoch"].clone()
    };
    let coordinator = site.coordinator("c");
    let before = epoch(&coordinator);
    coordinator.stop();
    let taken = site.write("taken.sock", "no socket");
    let args = [
        "coordinator",
        "--certs",
        &certs,
        "--new-epoch",
        "--socket",
        &taken,
    ];
    let end = site.start(&args, "c").expect_err("the socket is a file");
    end.fails(9, &["taken.sock"]);
    assert_eq!(epoch(&site.coordinator("c")), before);
}
