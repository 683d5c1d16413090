//! What 200 workers that hold leases, and do nothing, cost the coordinator.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::Effort;
use crate::publish::{Cluster, Kind};
use crate::report::Measured;
use crate::site;

const WORKERS: usize = 200;

/// Several renewals of each worker.
const WATCHED: Duration = Duration::from_secs(10);
const WATCHED_QUICKLY: Duration = Duration::from_secs(4);

/// Loopback without them.
const BEFORE: Duration = Duration::from_secs(1);

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let dir = dir.join("idle");
    site::init(&dir, WORKERS)?;
    let before = watch(BEFORE)?;
    let mut cluster = Cluster::start(&dir, effort, 1, WORKERS, Kind::LARDER)?;
    let (coordinator, workers) = (cluster.publisher.cpu()?, cluster.watchers_cpu()?);
    let began = Instant::now();
    let watched = match effort.divisor {
        1 => WATCHED,
        _ => WATCHED_QUICKLY,
    };
    let with = watch(watched)?;
    let coordinator = cluster.publisher.cpu()?.saturating_sub(coordinator);
    let workers = cluster.watchers_cpu()?.saturating_sub(workers);
    let elapsed = began.elapsed().as_secs_f64();

    let mut measured = Measured::new("Idle: 200 workers hold leases of 6 s and nobody reads");
    let percent = |cpu: Duration| cpu.as_secs_f64() / elapsed * 100.0;
    measured.figure(
        "CPU of the coordinator",
        percent(coordinator),
        "% of a core",
        None,
    );
    let of_one = percent(workers) / WORKERS as f64;
    measured.figure("CPU of a worker", of_one, "% of a core", None);
    measured.figure("loopback, both directions", with / 1e3, "kB/s", None);
    measured.figure("the same before they started", before / 1e3, "kB/s", None);
    Ok(measured)
}

/// Bytes per second over loopback, IP headers among them.
fn watch(duration: Duration) -> anyhow::Result<f64> {
    let (bytes, began) = (loopback()?, Instant::now());
    std::thread::sleep(duration);
    Ok((loopback()? - bytes) as f64 / began.elapsed().as_secs_f64())
}

fn loopback() -> anyhow::Result<u64> {
    let devices = fs::read_to_string("/proc/net/dev").context("/proc/net/dev")?;
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next());
    received
        .context("no loopback")?
        .parse()
        .context("a number of bytes")
}
