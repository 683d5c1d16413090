//! A coordinator whose disk is full goes on reading, restarts, and publishes when there is space.
//!
//! The disk is a tmpfs of its own, which takes root: the test runs itself once more in a private
//! mount namespace, so that nothing is left mounted, and is skipped where that is not allowed.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use larder::answer::{Failure, Freshness, Query, Target};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::spec::{Spec, Syntax};

use crate::site::{Daemon, Ended, Site, text, wait};

/// Set in the run within the namespace.
const INSIDE: &str = "LARDER_TEST_FULL_DISK";

/// The size of the disk: several times what sled takes for an empty view.
const SIZE: &str = "size=24m";

/// A body that fills the disk within a few.
const LARGE: usize = 1_000_000;

/// Longer than any read on a local socket takes.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

#[test]
fn a_coordinator_on_a_full_disk_restarts_reads_and_publishes_again() {
    if std::env::var_os(INSIDE).is_some() {
        return run_inside();
    }
    let namespace = Command::new("unshare").args(["--mount", "true"]).output();
    match namespace {
        Ok(output) if output.status.success() => {}
        other => {
            eprintln!("skipped: no private mount namespace, which takes root: {other:?}");
            return;
        }
    }
    let name = "full_disk::a_coordinator_on_a_full_disk_restarts_reads_and_publishes_again";
    let status = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().expect("a path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.expect("it starts").success());
}

/// A small disk, and what fills it.
struct SmallDisk {
    dir: PathBuf,
    ballast: PathBuf,
}

impl SmallDisk {
    fn mount(site: &Site) -> Self {
        let dir = site.path("disk");
        fs::create_dir(&dir).expect("made");
        let args = ["-t", "tmpfs", "-o", SIZE, "tmpfs", text(&dir)];
        let mounted = Command::new("mount").args(args).status();
        assert!(mounted.expect("it starts").success());
        let ballast = dir.join("ballast");
        Self { dir, ballast }
    }

    /// Leaves no more than `left` bytes free.
    fn fill(&self, left: u64) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&self.ballast)
            .expect("opened");
        for step in [64 << 10, 4 << 10] {
            let chunk = vec![7; step];
            loop {
                match file.write_all(&chunk) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let len = file.metadata().expect("metadata").len();
        file.set_len(len.saturating_sub(left)).expect("a cut");
    }

    fn empty(&self) {
        fs::remove_file(&self.ballast).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Else the site's directory could not be removed. A test that fails says so by itself.
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
    }
}

struct Scene {
    /// Before the site, which it lies in.
    disk: SmallDisk,
    site: Site,
    certs: String,
}

impl Scene {
    fn start(&self) -> Daemon {
        let store = self.store();
        let args = [
            "coordinator",
            "--certs",
            &self.certs,
            "--store",
            text(&store),
        ];
        self.site.start(&args, "c").expect("it starts")
    }

    fn store(&self) -> PathBuf {
        self.disk.dir.join("c")
    }

    fn journal_len(&self) -> u64 {
        let journal = fs::metadata(self.store().join("journal"));
        journal.expect("the journal").len()
    }

    fn publish(&self, coordinator: &Daemon, args: &[&str]) -> Ended {
        let mut all = vec!["publish", "--socket", coordinator.socket()];
        all.extend(args);
        self.site.run(&all)
    }

    /// Whether the coordinator says that it has no view.
    fn view_absent(&self, coordinator: &Daemon) -> bool {
        let args = ["status", "--json", "--socket", coordinator.socket()];
        let status = self.site.run(&args).json();
        !status["view_absent"].is_null()
    }
}

fn large(number: usize) -> Spec {
    let text = format!("# {number}\n# {}\nsteps: []\n", "x".repeat(LARGE));
    Spec::new(text.into())
}

fn connect(coordinator: &Daemon) -> HttpClient {
    wait(HttpClient::connect(coordinator.socket())).expect("it answers")
}

/// Every definition that was published is read back, byte for byte.
fn check_reads(coordinator: &Daemon, published: &[(&str, Spec)]) {
    let client = connect(coordinator);
    for (name, spec) in published {
        let query = Query {
            target: Target::Name(name.parse().expect("a name")),
            freshness: Freshness::Strict,
            deadline: DEADLINE,
        };
        let answer = wait(client.get(query)).expect("an answer");
        assert_eq!(answer.spec.as_ref(), Some(spec), "{name}");
    }
}

/// Sends bodies for a publish that never comes.
fn stage(coordinator: &Daemon, numbers: std::ops::Range<usize>) -> Result<(), Failure> {
    let client = connect(coordinator);
    for number in numbers {
        wait(client.put_body(large(number), Syntax::AnyText))?;
    }
    Ok(())
}

fn run_inside() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site);
    let certs = site.identity("coordinator", "c");
    let scene = Scene { disk, site, certs };
    let small = Spec::new("steps: []\n".into());
    let mut published = vec![("small", small), ("large", large(0))];
    for (name, spec) in &published {
        scene
            .site
            .write(&format!("first/{name}.yaml"), spec.bytes());
    }
    for number in 1..30 {
        let name = format!("too-much/{number}.yaml");
        scene.site.write(&name, large(number).bytes());
    }
    let second = text(&scene.site.path("second.yaml")).to_owned();
    scene.site.write("second.yaml", large(100).bytes());
    let later = Spec::new(format!("# {}\nsteps: []\n", "x".repeat(20_000)).into());
    let third = scene.site.write("third.yaml", later.bytes());

    let coordinator = scene.start();
    scene.publish(&coordinator, &["first"]).ok();
    let before = scene.journal_len();
    let refused = scene.publish(&coordinator, &["too-much"]);
    let store = scene.store();
    let words = ["disk is full", text(&store), "hint: free space there"];
    refused.fails(8, &words);
    // Bodies that were on their way when the refusal came may follow what was dropped.
    let left_over = scene.journal_len() - before;
    assert!(left_over < 17 * LARGE as u64, "{left_over} bytes");
    check_reads(&coordinator, &published);

    // Killed on a full disk in the middle of a publish: what was staged is dropped at the start.
    scene.disk.fill(4 * LARGE as u64);
    stage(&coordinator, 40..43).expect("they fit");
    scene.disk.fill(0);
    coordinator.kill();
    let coordinator = scene.start();
    assert_eq!(scene.journal_len(), before);
    check_reads(&coordinator, &published);

    // There is space for the journal, and none for the view that repeats it.
    scene.disk.fill(LARGE as u64 * 3 / 2);
    scene.publish(&coordinator, &[&second]).ok();
    published.push(("second", large(100)));
    check_reads(&coordinator, &published);
    assert!(scene.view_absent(&coordinator), "{}", coordinator.log());
    coordinator.stop();

    // Nothing of the view is left, and no space for a new one.
    fs::remove_dir_all(scene.store().join("view")).expect("removed");
    scene.disk.fill(0);
    let coordinator = scene.start();
    check_reads(&coordinator, &published);
    assert!(scene.view_absent(&coordinator), "{}", coordinator.log());
    scene.publish(&coordinator, &[&third]).fails(8, &words);

    scene.disk.empty();
    scene.publish(&coordinator, &[&third]).ok();
    published.push(("third", later));
    check_reads(&coordinator, &published);
    coordinator.stop();
    let coordinator = scene.start();
    check_reads(&coordinator, &published);
    assert!(!scene.view_absent(&coordinator), "{}", coordinator.log());
    coordinator.stop();
}
