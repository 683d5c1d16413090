//! What Larder is for, by its command line and daemons.

use serde_json::Value;

use crate::site::{Daemon, Ended, Site, text};

const DAILY: &str = "steps:\n  - run: echo daily\n";
const WEEKLY: &str = "steps:\n  - run: echo weekly\n";

/// Two definitions published from a directory at revision 1.
fn published(site: &Site, coordinator: &Daemon) {
    site.write("defs/etl/daily.yaml", DAILY);
    site.write("defs/etl/weekly.yml", WEEKLY);
    site.write("defs/README.md", "no definition");
    let out = publish(site, coordinator, &["defs"]).ok();
    assert!(out.ends_with("revision 1, 2 of 2 names changed\n"), "{out}");
}

fn publish(site: &Site, coordinator: &Daemon, args: &[&str]) -> Ended {
    let mut all = vec!["publish", "--socket", coordinator.socket()];
    all.extend(args);
    site.run(&all)
}

fn ask(site: &Site, node: &Daemon, args: &[&str]) -> Ended {
    let mut all = args.to_vec();
    all.extend(["--socket", node.socket()]);
    site.run(&all)
}

#[test]
fn a_published_directory_is_read_through_a_worker() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    published(&site, &coordinator);

    assert_eq!(ask(&site, &worker, &["get", "etl/daily"]).ok(), DAILY);
    assert_eq!(ask(&site, &worker, &["get", "etl/weekly.yml"]).ok(), WEEKLY);
    let answer = ask(&site, &worker, &["get", "etl/daily", "--json"]).json();
    assert_eq!(answer["body"], DAILY);
    // Under a lease once it has one.
    let mode = &answer["proof"]["mode"];
    assert!(mode == "lease" || mode == "asked", "{mode}");
    assert_eq!(answer["proof"]["source"]["hop"], "disk");

    let daily = site.write("daily.yaml", "steps: []\n");
    publish(&site, &coordinator, &[&daily, "--name", "etl/daily"]).ok();
    assert_eq!(
        ask(&site, &worker, &["get", "etl/daily"]).ok(),
        "steps: []\n"
    );
    let old = ask(&site, &worker, &["get", "etl/daily", "--at", "1"]).ok();
    assert_eq!(old, DAILY);
    let hash = answer["hash"].as_str().expect("a hash");
    assert_eq!(ask(&site, &worker, &["get", hash]).ok(), DAILY);
}

#[test]
fn history_is_listed_compared_and_reverted() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    published(&site, &coordinator);
    let daily = site.write("daily.yaml", "steps: []\n");
    let args = [&*daily, "--name", "etl/daily", "--note", "no steps"];
    publish(&site, &coordinator, &args).ok();

    let diff = ask(&site, &worker, &["diff", "etl/daily", "1"]).ok();
    assert!(
        diff.contains("\n-  - run: echo daily\n+steps: []\n"),
        "{diff}"
    );
    ask(&site, &coordinator, &["revert", "etl/daily", "1"]).ok();
    assert_eq!(ask(&site, &worker, &["get", "etl/daily"]).ok(), DAILY);
    ask(&site, &coordinator, &["rm", "etl/weekly"]).ok();
    let gone = ask(&site, &worker, &["get", "etl/weekly"]);
    gone.fails(3, &["`etl/weekly` was deleted in revision 4"]);

    let list = ask(&site, &worker, &["ls", "etl/", "--json"]).json();
    let names: Vec<_> = records(&list).map(|record| &record["name"]).collect();
    assert_eq!(names, ["etl/daily"]);
    assert_eq!(list["rev"], 4);
    let list = ask(&site, &worker, &["ls", "--at", "1"]).ok();
    assert_eq!(list.lines().count(), 3, "{list}");
    let log = ask(&site, &worker, &["log", "etl/daily", "--json"]).json();
    let notes: Vec<_> = log["entries"].as_array().expect("a list").iter().collect();
    let notes: Vec<_> = notes.iter().map(|entry| &entry["note"]).collect();
    assert_eq!(notes, ["revert to revision 1", "no steps", ""]);
}

fn records(list: &Value) -> impl Iterator<Item = &Value> {
    list["records"].as_array().expect("a list").iter()
}

#[test]
fn status_says_who_a_node_is_and_what_it_holds() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let worker = site.worker("w", &coordinator, &[]);
    published(&site, &coordinator);
    ask(&site, &worker, &["get", "etl/daily"]).ok();
    let status = ask(&site, &coordinator, &["status", "--json"]).json();
    assert_eq!(status["uri"], "spiffe://test.example/coordinator/c");
    assert_eq!(status["revision"], 1);
    assert_eq!(status["names"], 2);
    let catalog = &status["catalog"];
    let status = ask(&site, &worker, &["status", "--json"]).json();
    assert_eq!(status["uri"], "spiffe://test.example/worker/w");
    assert_eq!(&status["catalog"], catalog);
    assert_eq!(status["high_water"], 1);
    assert_eq!(status["up"][0]["addr"], coordinator.addr());
}

#[test]
fn a_worker_that_saw_later_revisions_follows_a_restored_coordinator() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    published(&site, &coordinator);
    ask(&site, &coordinator, &["backup", "saved"]).ok();
    let daily = site.write("daily.yaml", "steps: []\n");
    publish(&site, &coordinator, &[&daily, "--name", "etl/daily"]).ok();
    let worker = site.worker("w", &coordinator, &[]);
    let late = ask(&site, &worker, &["get", "etl/daily"]).ok();
    assert_eq!(late, "steps: []\n");
    let addr = coordinator.addr().to_owned();
    coordinator.stop();

    let restored = site.path("restored");
    let restored = text(&restored);
    let out = site.run(&["restore", "saved", "--store", restored]).ok();
    assert!(out.contains("revision 1, 2 names, 2 bodies"), "{out}");
    let certs = site.identity("coordinator", "c");
    let args = [
        "coordinator",
        "--certs",
        &certs,
        "--listen",
        &addr,
        "--store",
        restored,
    ];
    let coordinator = site.start(&args, "c").expect("it starts");
    let status = ask(&site, &coordinator, &["status", "--json"]).json();
    assert_eq!(status["epoch"], 2, "{status}");
    let answer = ask(&site, &worker, &["get", "etl/daily", "--json"]).json();
    assert_eq!(answer["body"], DAILY);
    assert_eq!(answer["proof"]["snapshot"]["epoch"], 2);
}

#[test]
fn a_restarted_coordinator_holds_what_it_held() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    published(&site, &coordinator);
    let list = ask(&site, &coordinator, &["ls", "--json"]).ok();
    coordinator.stop();
    let coordinator = site.coordinator("c");
    assert_eq!(ask(&site, &coordinator, &["ls", "--json"]).ok(), list);
    let again = publish(&site, &coordinator, &["defs"]).ok();
    assert!(again.ends_with("nothing changed, revision 1\n"), "{again}");
}

#[test]
fn a_certificate_is_enough_where_no_daemon_runs() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let daily = site.write("daily.yaml", DAILY);
    let publisher = site.identity("publisher", "ci");
    let reader = site.identity("reader", "r");
    let as_node = |certs: &str, args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--coordinator", coordinator.addr(), "--certs", certs]);
        site.run(&all)
    };
    as_node(&publisher, &["publish", &daily]).ok();
    assert_eq!(as_node(&reader, &["get", "daily"]).ok(), DAILY);
    let log = as_node(&reader, &["log", "--json"]).json();
    assert_eq!(
        log["entries"][0]["by"],
        "spiffe://test.example/publisher/ci"
    );

    let other = site.write("other.yaml", WEEKLY);
    let refused = as_node(&reader, &["publish", &other]);
    refused.fails(5, &["reader"]);
    let refused = as_node(&reader, &["rm", "daily"]);
    refused.fails(5, &["reader"]);
    let status = as_node(&reader, &["status", "--json"]).json();
    assert_eq!(status["revision"], 1);
}

#[test]
fn an_expectation_that_lost_changes_nothing() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    published(&site, &coordinator);
    let daily = site.write("daily.yaml", "steps: []\n");
    let args = [&*daily, "--name", "etl/daily", "--expect-rev", "0"];
    publish(&site, &coordinator, &args).fails(5, &["etl/daily"]);
    assert_eq!(ask(&site, &coordinator, &["get", "etl/daily"]).ok(), DAILY);
    let args = [&*daily, "--name", "etl/daily", "--expect-rev", "1"];
    publish(&site, &coordinator, &args).ok();
    let lost = publish(&site, &coordinator, &args);
    lost.fails(5, &["`etl/daily` is at revision 2, not at 1"]);
    let log = ask(&site, &coordinator, &["log", "--json"]).json();
    assert_eq!(log["entries"].as_array().map(Vec::len), Some(2));
}
