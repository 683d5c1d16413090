//! `larder doctor` against real processes: what is wrong is named, with what to do about it, and
//! what is not wrong is not.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::peers::{body, get, published};
use crate::site::{Ended, Site};
use crate::trust::expired;

/// The exit code of what does not work.
const UNSOUND: i32 = 10;

/// What a node says that could dial the one that is looked at.
const REACHES: &str = "it reaches this node at 127.0.0.1:";

/// Runs it for the identity in `certs`, on a port that is free and with a store of its own unless
/// `more` says otherwise.
fn doctor(site: &Site, certs: &str, more: &[&str]) -> Ended {
    let mut args = vec!["doctor", "--certs", certs];
    for (flag, value) in [("--listen", "127.0.0.1:0"), ("--store", "store")] {
        if !more.contains(&flag) {
            args.extend([flag, value]);
        }
    }
    args.extend(more);
    site.run(&args)
}

/// The lines of one check: the finding, and the hint if there is one.
#[track_caller]
fn lines<'a>(ended: &'a Ended, check: &str) -> Vec<&'a str> {
    let mut lines = ended.out.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        // The word for the verdict and the name of the check stand in columns.
        if line.get(9..).is_some_and(|rest| rest.starts_with(check)) {
            found.push(line);
            found.extend(lines.next_if(|next| next.trim_start().starts_with("hint: ")));
        }
    }
    assert!(!found.is_empty(), "no {check}: {ended:?}");
    found
}

/// One line of the check has this verdict and these words, and a hint with these.
#[track_caller]
fn finds(ended: &Ended, check: &str, verdict: &str, words: &[&str], hint: &str) {
    let lines = lines(ended, check);
    let good = lines.iter().enumerate().any(|(index, line)| {
        let next = lines.get(index + 1).copied().unwrap_or_default();
        let hinted = next.trim_start().starts_with("hint: ");
        line.starts_with(verdict)
            && words.iter().all(|word| line.contains(word))
            && hinted != hint.is_empty()
            && (hint.is_empty() || next.contains(hint))
    });
    assert!(good, "{check}: {verdict} {words:?}, {hint}: {ended:?}");
}

#[track_caller]
fn ends_unsound(ended: &Ended) {
    ended.ends(UNSOUND, &["checks failed"]);
}

#[test]
fn a_healthy_pair_passes_also_beside_the_daemon() {
    let site = Site::new();
    let (coordinator, worker) = published(&site);
    let certs = site.identity("worker", "new");
    let targets = ["--coordinator", coordinator.addr(), "--peer", worker.addr()];
    let ended = doctor(&site, &certs, &targets);
    for (check, words) in [
        (
            "identity",
            &["spiffe://test.example/worker/new", "left"][..],
        ),
        ("clock", &["boot clock and boot id can be read"]),
        ("store", &["store will be made", "free"]),
        ("port", &["127.0.0.1:", "is free"]),
        (
            "reach",
            &[
                coordinator.addr(),
                "/coordinator/c",
                "handshake",
                "round trip",
            ],
        ),
        ("reach", &[worker.addr(), "/worker/honest"]),
        ("mtu", &[coordinator.addr(), "bytes arrive"]),
        (
            "clock",
            &[coordinator.addr(), "not behind the newest revision"],
        ),
        ("head key", &["proven", "epoch 1, revision 1"]),
        ("dial-back", &[coordinator.addr(), REACHES]),
        ("dial-back", &[worker.addr(), REACHES]),
    ] {
        finds(&ended, check, "ok ", words, "");
    }
    // A busy machine answers late, which is a warning.
    assert!(
        lines(&ended, "loss").concat().contains("none of "),
        "{ended:?}"
    );
    assert!(ended.out.contains(" checks: "), "{ended:?}");
    ended.ok();

    let certs = site.identity("worker", "honest");
    let listen = worker.addr();
    let store = site.path("honest");
    let own = [
        "--listen",
        listen,
        "--socket",
        worker.socket(),
        "--store",
        store.to_str().expect("UTF-8"),
        "--coordinator",
        coordinator.addr(),
    ];
    let ended = doctor(&site, &certs, &own);
    finds(
        &ended,
        "port",
        "ok ",
        &[listen, "in use by this node itself"],
        "",
    );
    let pid = format!("in use by the worker with pid {}", worker.pid());
    finds(&ended, "store", "ok ", &[&pid], "");
    ended.ok();
    assert_eq!(get(&site, &worker, "daily", &[]).ok(), body(), "it goes on");
}

#[test]
fn coordinators_and_clients_are_looked_at_as_what_they_are() {
    let site = Site::new();
    let (coordinator, worker) = published(&site);
    let certs = site.identity("coordinator", "c");
    let listen = [
        "--listen",
        coordinator.addr(),
        "--socket",
        coordinator.socket(),
    ];
    let ended = doctor(
        &site,
        &certs,
        &[&listen[..], &["--peer", worker.addr()]].concat(),
    );
    finds(
        &ended,
        "port",
        "ok ",
        &["this node itself", "/coordinator/c"],
        "",
    );
    finds(&ended, "reach", "ok ", &["/worker/honest"], "");
    ended.ok();

    let certs = site.identity("publisher", "ci");
    let ended = doctor(
        &site,
        &certs,
        &["--coordinator", coordinator.addr(), "--json"],
    );
    let report = ended.json();
    let checks = report["checks"].as_array().expect("a list");
    let of = |name: &str| checks.iter().find(|found| found["check"] == name);
    for absent in ["port", "store", "dial-back"] {
        assert_eq!(of(absent), None, "{report}");
    }
    assert_eq!(of("head-key").expect("there")["verdict"], "ok", "{report}");
    assert_eq!(report["counts"]["failed"], 0, "{report}");
}

#[test]
fn a_coordinator_that_is_down_and_a_port_that_swallows_everything_are_told_apart() {
    let site = Site::new();
    let gone = {
        let coordinator = site.coordinator("c");
        let addr = coordinator.addr().to_owned();
        coordinator.stop();
        addr
    };
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().map(|addr| (addr.to_string(), silent));
    let (silent, _socket) = silent.expect("bound");
    let certs = site.identity("worker", "w");
    let targets = ["--coordinator", &gone, "--coordinator", &silent];
    let ended = doctor(&site, &certs, &targets);
    let (down, swallowed) = ("nobody listens on that UDP port", "no answer at all");
    finds(
        &ended,
        "reach",
        "FAILED",
        &[&gone, down],
        "start the node there",
    );
    finds(
        &ended,
        "reach",
        "FAILED",
        &[&silent, swallowed],
        "let UDP through",
    );
    ends_unsound(&ended);
}

#[test]
fn a_certificate_of_another_authority_is_refused_on_both_sides_and_named() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    site.found("other", "test.example");
    let certs = site.identity_of("other", "worker", "w");
    let ended = doctor(&site, &certs, &["--coordinator", coordinator.addr()]);
    finds(&ended, "identity", "ok ", &["/worker/w"], "");
    finds(
        &ended,
        "reach",
        "FAILED",
        &["this node refuses the peer", "unknown CA"],
        "ca.pem",
    );
    ends_unsound(&ended);

    site.found("foreign", "other.example");
    let certs = site.identity_of("foreign", "worker", "w");
    // It believes the authority of the coordinator, which does not believe its own.
    let ca = fs::read_to_string(Path::new(&certs).join("ca.pem")).expect("there");
    let theirs = fs::read_to_string(site.path("certs/ca.pem")).expect("there");
    fs::write(Path::new(&certs).join("ca.pem"), ca + &theirs).expect("written");
    let ended = doctor(&site, &certs, &["--coordinator", coordinator.addr()]);
    finds(
        &ended,
        "reach",
        "FAILED",
        &["another cluster"],
        "compare `cluster`",
    );
    ends_unsound(&ended);
}

#[test]
fn an_expired_certificate_is_named_with_its_dates_on_whichever_side_it_is() {
    let site = Site::new();
    let good = site.coordinator("c");
    let late = expired(&site, "worker", "late");
    let ended = doctor(&site, &late, &["--coordinator", good.addr()]);
    let hint = "larder certs issue --force";
    let words = ["expired", "until 2020-01-02T00:00:00Z"];
    finds(&ended, "identity", "FAILED", &words, hint);
    let words = ["the peer refuses this node", "expired"];
    finds(&ended, "reach", "FAILED", &words, hint);
    ends_unsound(&ended);

    let certs = expired(&site, "coordinator", "late");
    let late = site.start(&["coordinator", "--certs", &certs], "late");
    let late = late.expect("it starts");
    let certs = site.identity("worker", "w");
    let ended = doctor(&site, &certs, &["--coordinator", late.addr()]);
    let words = ["this node refuses the peer", "expired"];
    finds(&ended, "reach", "FAILED", &words, hint);
    ends_unsound(&ended);
}

#[test]
fn a_port_that_somebody_else_has_is_named() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|addr| (addr.to_string(), taken));
    let (taken, _socket) = taken.expect("bound");
    let certs = site.identity("worker", "v");
    let at = |listen: &str, socket: &str| {
        let flags = ["--listen", listen, "--socket", socket];
        let coordinator = ["--coordinator", coordinator.addr()];
        doctor(
            &site,
            &certs,
            &[flags, [coordinator[0], coordinator[1], "--log", "error"]].concat(),
        )
    };
    let ended = at(&taken, "none.sock");
    let words = [&*taken, "another process", "none.sock"];
    finds(&ended, "port", "FAILED", &words, "ss -ulpn");
    // The paths are tested all the same, from another port.
    finds(&ended, "reach", "ok ", &["/coordinator/c"], "");
    ends_unsound(&ended);
    let ended = at(worker.addr(), worker.socket());
    let words = ["/worker/w", "another node"];
    finds(&ended, "port", "FAILED", &words, "--listen");
    ends_unsound(&ended);
}

#[test]
fn a_host_that_is_unknown_and_a_node_of_another_role_are_named() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    let certs = site.identity("worker", "v");
    // The name ends in what never resolves.
    let targets = [
        "--coordinator",
        "no.host.invalid:7457",
        "--coordinator",
        worker.addr(),
    ];
    let ended = doctor(&site, &certs, &targets);
    let words = ["no.host.invalid", "does not resolve"];
    finds(&ended, "name", "FAILED", &words, "getent ahosts");
    let words = ["but a coordinator was expected"];
    finds(&ended, "reach", "FAILED", &words, "`--peer`");
    ends_unsound(&ended);
}

#[test]
fn an_identity_that_does_not_load_is_named_and_the_path_is_still_tried() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let certs = site.identity("worker", "w");
    let key = Path::new(&certs).join("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("ours");
    let ended = doctor(&site, &certs, &["--coordinator", coordinator.addr()]);
    finds(
        &ended,
        "identity",
        "FAILED",
        &["key.pem", "644"],
        "chmod 600",
    );
    let words = ["QUIC answers", "no handshake without an identity"];
    finds(&ended, "reach", "skipped", &words, "");
    ends_unsound(&ended);
    let ended = doctor(&site, "nowhere", &[]);
    finds(
        &ended,
        "identity",
        "FAILED",
        &["nowhere", "cannot be read"],
        "--certs",
    );
    finds(
        &ended,
        "reach",
        "warning",
        &["no coordinator"],
        "--coordinator",
    );
    ends_unsound(&ended);
}

#[test]
fn a_coordinator_that_another_head_key_speaks_for_is_not_believed() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let certs = site.identity("worker", "w");
    site.found("other", "test.example");
    let other = fs::read(site.path("other/trust.yaml")).expect("there");
    fs::write(Path::new(&certs).join("trust.yaml"), other).expect("written");
    let ended = doctor(&site, &certs, &["--coordinator", coordinator.addr()]);
    finds(&ended, "reach", "ok ", &["/coordinator/c"], "");
    finds(&ended, "head key", "FAILED", &["not believed"], "head_keys");
    ends_unsound(&ended);
}

#[test]
fn a_store_of_another_node_is_named() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let certs = site.identity("worker", "w");
    let theirs = site.path("c");
    let theirs = ["--store", theirs.to_str().expect("UTF-8")];
    let coordinator = ["--coordinator", coordinator.addr()];
    let ended = doctor(&site, &certs, &[theirs, coordinator].concat());
    let words = ["in use by the coordinator", "this node is a worker"];
    finds(&ended, "store", "FAILED", &words, "--store");
    let json = doctor(
        &site,
        &certs,
        &[&theirs[..], &coordinator, &["--json"]].concat(),
    );
    let report: Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(report["counts"]["failed"], 1, "{report}");
}
