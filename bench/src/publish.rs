//! From a publish to the moment at which it is visible to all: larder, whose workers hold leases,
//! and bare quinn that broadcasts and waits for acknowledgements.

pub(crate) mod bare;
pub(crate) mod larder;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::Effort;
use crate::fetch;
use crate::process::Server;
use crate::report::{Aim, Measured};
use crate::sample::Sample;
use crate::site;

/// How many workers there are.
const WORKERS: [usize; 3] = [1, 50, 200];

/// Processes that the workers are spread over.
const PROCESSES: usize = 4;

/// Publishes of one contender in one round.
const PUBLISHES: usize = 4;

/// What a worker may need, after a publish is visible, to take it in: there are 200 on one core.
const SETTLED: Duration = Duration::from_micros(500);

/// What a process full of workers is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Watching {
    /// Certificates and stores.
    #[arg(long)]
    dir: PathBuf,
    /// Where to connect to.
    #[arg(long)]
    server: String,
    /// Number of the first worker, and how many.
    #[arg(long)]
    first: usize,
    #[arg(long)]
    workers: usize,
    #[arg(long)]
    seed: u64,
    /// Each keeps a store on disk.
    #[arg(long)]
    store: bool,
    /// Each has a thread of its own, as larder's workers have.
    #[arg(long)]
    threads: bool,
}

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let mut measured = Measured::new(
        "Publish: one definition of 4 KiB, from the publisher's call to durable and visible",
    );
    for workers in WORKERS {
        let dir = dir.join(format!("publish-{workers}"));
        site::init(&dir, workers)?;
        let mut ours = Cluster::start(&dir, effort, 0, workers, Kind::LARDER)?;
        let mut theirs = Cluster::start(&dir, effort, 0, workers, Kind::BARE)?;
        let mut threads = Cluster::start(&dir, effort, 0, workers, Kind::BARE_THREADS)?;
        let mut rounds = [const { Vec::new() }; 3];
        for round in 0..effort.rounds as usize {
            for turn in 0..rounds.len() {
                let turn = (round + turn) % rounds.len();
                let cluster = match turn {
                    0 => &mut ours,
                    1 => &mut theirs,
                    _ => &mut threads,
                };
                rounds[turn].push(cluster.publish((PUBLISHES / effort.divisor).max(2))?);
            }
        }
        ours.check()?;
        let [ours, theirs, threads] = rounds;
        let s = if workers == 1 { "" } else { "s" };
        measured.row(format!("larder, {workers} worker{s}"), &ours);
        measured.row(format!("bare quinn, {workers} watcher{s}"), &theirs);
        let what = format!("larder / bare quinn, {workers} worker{s}, p50");
        measured.ratio(what, Aim::AtMost(1.3), &ours, &theirs)?;
        if workers > 1 {
            let row = format!("bare quinn, {workers} watchers, a thread each");
            measured.row(row, &threads);
            let what = format!("larder / bare quinn, {workers} workers, a thread each, p50");
            measured.ratio(what, Aim::AtMost(1.3), &ours, &threads)?;
        }
    }
    Ok(measured)
}

/// What the processes of a contender are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    publisher: &'static str,
    watchers: &'static str,
    /// Whether its watchers keep stores.
    store: bool,
    /// Whether each has a thread of its own, where it is not larder that decides.
    threads: bool,
}

impl Kind {
    pub(crate) const LARDER: Self = Self {
        publisher: "serve-publisher",
        watchers: "serve-workers",
        store: false,
        threads: false,
    };
    /// Workers as daemons are: with a store on disk.
    pub(crate) const STORED: Self = Self {
        store: true,
        ..Self::LARDER
    };
    const BARE: Self = Self {
        publisher: "serve-bare-publisher",
        watchers: "serve-bare-watchers",
        store: false,
        threads: false,
    };
    const BARE_THREADS: Self = Self {
        threads: true,
        ..Self::BARE
    };
}

/// A publisher's process, and the processes of those that must have heard of each publish.
pub(crate) struct Cluster {
    pub(crate) watchers: Vec<Server>,
    pub(crate) publisher: Server,
    workers: usize,
    published: usize,
}

impl Cluster {
    /// Starts it with `names` published, and waits until every worker has a lease.
    pub(crate) fn start(
        dir: &Path,
        effort: Effort,
        names: usize,
        workers: usize,
        kind: Kind,
    ) -> anyhow::Result<Self> {
        let publisher = fetch::start(kind.publisher, dir, effort.seed, names)?;
        let mut watchers = Vec::new();
        let mut first = 0;
        for process in 0..PROCESSES.min(workers) {
            let workers = (workers - first).div_ceil(PROCESSES.min(workers) - process);
            let dir = dir.to_str().context("the directory's name is no text")?;
            let [number, count, seed] =
                [first as u64, workers as u64, effort.seed].map(|n| n.to_string());
            let mut args = vec![kind.watchers, "--dir", dir, "--server", publisher.ready()];
            args.extend(["--first", &number, "--workers", &count, "--seed", &seed]);
            args.extend(kind.store.then_some("--store"));
            args.extend(kind.threads.then_some("--threads"));
            let args: Vec<_> = args.into_iter().map(ToOwned::to_owned).collect();
            watchers.push(Server::start(&args).context(kind.watchers)?);
            first += workers;
        }
        Ok(Self {
            watchers,
            publisher,
            workers,
            published: 0,
        })
    }

    /// Publishes one after the other, each when the one before is settled at all workers.
    pub(crate) fn publish(&mut self, count: usize) -> anyhow::Result<Sample> {
        let pause = Duration::from_millis(5) + self.workers as u32 * SETTLED;
        let question = format!("publish {} {count} {}", self.published, pause.as_micros());
        let (watchers, publisher) = (self.watchers_cpu()?, self.publisher.cpu()?);
        let began = Instant::now();
        let answer = self.publisher.ask(&question)?;
        let elapsed = began.elapsed();
        let watchers = self.watchers_cpu()?.saturating_sub(watchers);
        let publisher = self.publisher.cpu()?.saturating_sub(publisher);
        self.published += count;
        let nanos = answer.split_whitespace().map(str::parse);
        let nanos = nanos.collect::<Result<Vec<_>, _>>().context("latencies")?;
        ensure!(nanos.len() == count, "{} latencies", nanos.len());
        let latencies = nanos.into_iter().map(Duration::from_nanos).collect();
        Ok(Sample::new(latencies, 1, elapsed).with_cpu(watchers, Some(publisher)))
    }

    /// CPU time of all workers so far.
    pub(crate) fn watchers_cpu(&mut self) -> anyhow::Result<Duration> {
        self.watchers.iter_mut().map(Server::cpu).sum()
    }

    /// Sees that every worker reads what was published last.
    fn check(&mut self) -> anyhow::Result<()> {
        let last = self.published.checked_sub(1).context("nothing published")?;
        for process in &mut self.watchers {
            let answer = process.ask(&format!("read {last}"))?;
            ensure!(answer == "read", "{answer}");
        }
        Ok(())
    }
}

/// `what first count pause`, as a publisher is asked; the pause in microseconds.
fn question(line: &str) -> anyhow::Result<(usize, usize, Duration)> {
    let mut words = line.split(' ');
    ensure!(
        words.next() == Some("publish"),
        "an unknown question: {line}"
    );
    let mut number = || {
        words
            .next()
            .context("a number")?
            .parse::<usize>()
            .context("a number")
    };
    let (first, count, pause) = (number()?, number()?, number()?);
    Ok((first, count, Duration::from_micros(pause as u64)))
}

fn latencies(latencies: &[Duration]) -> String {
    let nanos = latencies
        .iter()
        .map(|latency| latency.as_nanos().to_string());
    nanos.collect::<Vec<_>>().join(" ")
}
