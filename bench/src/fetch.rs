//! One definition over a warm connection: a worker that reads by name from a coordinator, and
//! bare quinn that asks for bytes by hash. Each server is a process of its own.

pub(crate) mod bare;
pub(crate) mod larder;

use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::larder::net::Congestion;
use ::larder::spec::Spec;
use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use crate::Effort;
use crate::core::{self, Side};
use crate::corpus;
use crate::loss::Controller;
use crate::process::{self, Server};
use crate::report::{Aim, Measured};
use crate::sample::Sample;
use crate::site;

/// Requests in flight in the disciplines that have several.
const AT_ONCE: usize = 64;

/// Read before a round is timed: the connection is up and its congestion window open.
const WARM_UP: usize = 1_024;

/// Timed reads of a round, in each discipline.
const SEQUENTIAL: usize = 1_024;
const CONCURRENT: usize = 4_096;

/// What a server process is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Served {
    /// Certificates and stores.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) count: usize,
    /// Where to listen, on a port that is free.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) listen: IpAddr,
    /// Who decides how fast it sends, if not larder's default.
    #[arg(long)]
    pub(crate) controller: Option<Controller>,
}

impl Served {
    pub(crate) fn congestion(&self) -> Congestion {
        self.controller
            .map_or_else(Congestion::default, Controller::congestion)
    }

    /// The same for quinn alone, whose own default it is.
    pub(crate) fn bare_congestion(&self) -> Congestion {
        self.controller
            .map_or(Congestion::Cubic, Controller::congestion)
    }

    /// On loopback each side has cores of its own.
    pub(crate) fn pin(&self) -> anyhow::Result<Option<core::Pinned>> {
        let is_near = self.listen.is_loopback();
        is_near.then(|| core::pin(Side::Server)).transpose()
    }
}

/// A side of the comparison.
pub(crate) trait Contender: Clone + Send + Sync + 'static {
    /// Reads these definitions in one request and checks what comes.
    fn read(&self, first: usize, specs: &[Spec])
    -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// How requests follow each other.
#[derive(Debug, Clone, Copy)]
struct Discipline {
    name: &'static str,
    /// The first definition, and how many.
    first: usize,
    count: usize,
    at_once: usize,
    /// Definitions in one request.
    batch: usize,
    what: &'static str,
    aim: Aim,
}

fn disciplines(divisor: usize) -> [Discipline; 3] {
    let (sequential, concurrent) = (SEQUENTIAL / divisor, CONCURRENT / divisor);
    let sequential = Discipline {
        name: "one after the other",
        first: WARM_UP,
        count: sequential,
        at_once: 1,
        batch: 1,
        what: "p50",
        aim: Aim::AtMost(1.15),
    };
    let at_once = Discipline {
        name: "64 at once",
        first: sequential.first + sequential.count,
        count: concurrent,
        at_once: AT_ONCE,
        batch: 1,
        what: "per s",
        aim: Aim::AtLeast(0.85),
    };
    let batched = Discipline {
        name: "64 in one request",
        first: at_once.first + at_once.count,
        count: concurrent,
        at_once: 1,
        batch: AT_ONCE,
        what: "per s",
        aim: Aim::AtLeast(0.85),
    };
    [sequential, at_once, batched]
}

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let dir = dir.join("fetch");
    site::init(&dir, 1)?;
    let disciplines = disciplines(effort.divisor);
    let count = disciplines.iter().map(|d| d.first + d.count).max();
    let count = count.context("there are disciplines")?;
    let specs = Arc::new(corpus::specs(effort.seed, count));
    let mut larder_server = start("serve-larder", &dir, effort.seed, count)?;
    let mut bare_server = start("serve-bare", &dir, effort.seed, count)?;
    let _pinned = core::pin(Side::Client)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let bare = runtime.block_on(bare::Client::connect(&dir, bare_server.ready()))?;

    let mut ours = [const { Vec::new() }; 3];
    let mut theirs = [const { Vec::new() }; 3];
    for round in 0..effort.rounds {
        // A new worker each time, since what it has read it keeps.
        let worker = larder::Client::start(&dir, larder_server.ready())?;
        warm_up(&runtime, &worker, &specs)?;
        warm_up(&runtime, &bare, &specs)?;
        for (number, discipline) in disciplines.iter().enumerate() {
            for ours_turn in [round % 2 == 0, round % 2 != 0] {
                let (rounds, sample) = match ours_turn {
                    true => (
                        &mut ours,
                        run(&runtime, &worker, &mut larder_server, *discipline, &specs)?,
                    ),
                    false => (
                        &mut theirs,
                        run(&runtime, &bare, &mut bare_server, *discipline, &specs)?,
                    ),
                };
                rounds[number].push(sample);
            }
        }
        runtime.block_on(worker.stop());
    }

    let mut measured = Measured::new("Fetch: 4 KiB over a warm connection, hashed by the reader");
    for (number, discipline) in disciplines.iter().enumerate() {
        let (ours, theirs) = (&ours[number], &theirs[number]);
        measured.row(format!("larder, {}", discipline.name), ours);
        measured.row(format!("bare quinn, {}", discipline.name), theirs);
        let what = format!(
            "larder / bare quinn, {}, {}",
            discipline.name, discipline.what
        );
        measured.ratio(what, discipline.aim, ours, theirs)?;
    }
    Ok(measured)
}

/// Starts this program as a server over `count` definitions.
pub(crate) fn start(what: &str, dir: &Path, seed: u64, count: usize) -> anyhow::Result<Server> {
    let dir = dir.to_str().context("the directory's name is no text")?;
    let (seed, count) = (seed.to_string(), count.to_string());
    let args = [what, "--dir", dir, "--seed", &seed, "--count", &count];
    Server::start(&args.map(ToOwned::to_owned)).with_context(|| what.to_owned())
}

fn warm_up<C: Contender>(
    runtime: &Runtime,
    contender: &C,
    specs: &Arc<Vec<Spec>>,
) -> anyhow::Result<()> {
    let discipline = Discipline {
        name: "warm-up",
        first: 0,
        count: WARM_UP,
        at_once: AT_ONCE,
        ..disciplines(1)[0]
    };
    runtime.block_on(read_all(contender, discipline, specs))?;
    Ok(())
}

fn run<C: Contender>(
    runtime: &Runtime,
    contender: &C,
    server: &mut Server,
    discipline: Discipline,
    specs: &Arc<Vec<Spec>>,
) -> anyhow::Result<Sample> {
    let (client_cpu, server_cpu) = (process::cpu(), server.cpu()?);
    let began = Instant::now();
    let latencies = runtime.block_on(read_all(contender, discipline, specs))?;
    let elapsed = began.elapsed();
    let client_cpu = process::cpu().saturating_sub(client_cpu);
    let server_cpu = server.cpu()?.saturating_sub(server_cpu);
    let sample = Sample::new(latencies, discipline.batch, elapsed);
    Ok(sample.with_cpu(client_cpu, Some(server_cpu)))
}

/// Returns the latency of each request.
async fn read_all<C: Contender>(
    contender: &C,
    discipline: Discipline,
    specs: &Arc<Vec<Spec>>,
) -> anyhow::Result<Vec<Duration>> {
    let next = Arc::new(AtomicUsize::new(discipline.first));
    let end = discipline.first + discipline.count;
    let reader = || {
        let (contender, specs, next) = (contender.clone(), Arc::clone(specs), Arc::clone(&next));
        async move {
            let mut latencies = Vec::with_capacity(discipline.count);
            loop {
                let first = next.fetch_add(discipline.batch, Ordering::Relaxed);
                if first >= end {
                    return anyhow::Ok(latencies);
                }
                let specs = &specs[first..(first + discipline.batch).min(end)];
                let since = Instant::now();
                contender.read(first, specs).await?;
                latencies.push(since.elapsed());
            }
        }
    };
    if discipline.at_once == 1 {
        return reader().await;
    }
    let readers: Vec<_> = (0..discipline.at_once)
        .map(|_| tokio::spawn(reader()))
        .collect();
    let mut latencies = Vec::with_capacity(discipline.count);
    for reader in readers {
        latencies.extend(reader.await??);
    }
    Ok(latencies)
}
