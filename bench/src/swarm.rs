//! Many empty workers that start at the same moment and read the same definitions: over loopback,
//! and where the coordinator's link is slow and the workers are near each other. Beside bare quinn,
//! which sends everything to everybody.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use larder::answer::{Hop, Query, Target};
use larder::config::{Address, CoordinatorConfig, Membership, StoreChoice, WorkerConfig};
use larder::spec::Spec;
use larder::{Coordinator, Worker};
use larder_link::net::{Net, Options, probe};
use larder_link::rule::{Rate, Rule};
use larder_link::unit::{BitRate, Size};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::Effort;
use crate::core::{self, Side};
use crate::corpus;
use crate::counter::BodyBytes;
use crate::fetch::{Contender as _, Served, bare, larder as larder_fetch};
use crate::loss::Controller;
use crate::process::{self, Server};
use crate::report::{Aim, Grid, Measured};
use crate::sample::{Sample, median};
use crate::site;

/// How many workers there are, unless it is said.
pub(crate) const WORKERS: [u16; 2] = [50, 200];

/// Workers in one process.
const PER_PROCESS: usize = 50;

/// Definitions that each must have.
const SPECS: usize = 100;

/// Reads in flight at each worker.
const AT_ONCE: usize = 64;

/// What the coordinator's link carries in each direction.
const SLOW: NonZeroU64 = NonZeroU64::new(20_000_000).expect("not zero");

/// One way, over that link.
const DELAY: Duration = Duration::from_millis(5);

/// How long one read is tried, before it is counted as never answered: all bodies take 33 s if the
/// link carries each 200 times.
const PATIENCE: Duration = Duration::from_secs(120);

/// Before a read that has failed is made again, doubled each time up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// See [`FIRST_PAUSE`].
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Of quinn alone, at both ends: the one that larder bounds.
const BARE: Controller = Controller::Bbr;

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort, workers: &[u16]) -> anyhow::Result<Measured> {
    let mut measured =
        Measured::new("Swarm: empty workers that all start at once and read 100 x 4 KiB");
    let mut grid = Grid::new(
        [
            "row",
            "s until all have all, p50 (slowest)",
            "copies of each that the coordinator sent",
            "MB on its link",
            "reads with bytes of peers",
            "failed reads, of them given up",
            "CPU s, coordinator + workers",
        ]
        .map(ToOwned::to_owned)
        .to_vec(),
    );
    let mut ratios = Vec::new();
    for workers in workers.iter().copied().map(usize::from) {
        for path in [Way::Loopback, Way::Slow] {
            if path == Way::Slow
                && let Err(missing) = probe()
            {
                measured.note(format!("{}: skipped: {missing}", path.name()));
                continue;
            }
            let dir = dir.join(format!("swarm-{workers}-{path:?}"));
            let (ours, theirs) = compare(&dir, effort, workers, path)?;
            for (name, swarms) in [("larder", &ours), ("bare quinn", &theirs)] {
                let name = format!("{name}, {workers} workers, {}", path.name());
                grid.row(row(name, workers, swarms)?);
            }
            ratios.push((
                format!("larder / bare quinn, {workers} workers, {}", path.name()),
                path.aim(),
                samples(&ours),
                samples(&theirs),
            ));
        }
    }
    measured.grid(grid);
    for (what, aim, ours, theirs) in ratios {
        measured.ratio(what, aim, &ours, &theirs)?;
    }
    Ok(measured)
}

/// What lies between the coordinator and the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Loopback,
    Slow,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Slow => "coordinator at 20 Mbit/s",
        }
    }

    fn aim(self) -> Aim {
        match self {
            Self::Loopback => Aim::AtMost(2.0),
            Self::Slow => Aim::AtMost(1.0),
        }
    }

    /// A swarm over the slow link takes half a minute.
    fn rounds(self, effort: Effort) -> usize {
        let rounds = effort.rounds as usize;
        match self {
            Self::Loopback => (rounds / 4).max(1),
            Self::Slow => (rounds / 8).max(1),
        }
    }

    fn net(self, effort: Effort) -> anyhow::Result<Option<Net>> {
        if self == Self::Loopback {
            return Ok(None);
        }
        let rate = Rate {
            limit: BitRate(SLOW),
            bucket: Size(16 << 10),
            queue: Size(256 << 10),
        };
        let options = Options {
            seed: effort.seed,
            rule: Rule {
                delay: DELAY,
                rate: Some(rate),
                ..Rule::default()
            },
            ..Options::default()
        };
        Ok(Some(Net::new(2, options)?))
    }
}

/// What one swarm took.
#[derive(Debug, Default)]
struct Swarm {
    took: Duration,
    /// Bytes of bodies that the coordinator gave.
    bodies: u64,
    /// Bytes that it sent over a link that counts them.
    link: Option<u64>,
    /// Reads whose bytes came from a peer.
    by_peers: usize,
    failed: usize,
    given_up: usize,
    server_cpu: Duration,
    workers_cpu: Duration,
}

fn compare(
    dir: &Path,
    effort: Effort,
    workers: usize,
    path: Way,
) -> anyhow::Result<(Vec<Swarm>, Vec<Swarm>)> {
    site::init(dir, workers)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..path.rounds(effort) {
        for is_larder in [round % 2 == 0, round % 2 != 0] {
            // A new coordinator each time, which owes nobody anything.
            let swarm = run(dir, effort, workers, path, is_larder)?;
            if is_larder { &mut ours } else { &mut theirs }.push(swarm);
        }
    }
    Ok((ours, theirs))
}

fn run(
    dir: &Path,
    effort: Effort,
    workers: usize,
    path: Way,
    is_larder: bool,
) -> anyhow::Result<Swarm> {
    let net = path.net(effort)?;
    let scratch = tempfile::tempdir_in(dir)?;
    let start = |what: &str, node: usize, more: &[&str]| {
        let node = net.as_ref().map(|net| net.node(node));
        let listen = node.map_or(Ipv4Addr::LOCALHOST, |node| node.address());
        let text = |path: &Path| path.to_str().map(ToOwned::to_owned);
        let [dir, scratch] = [dir, scratch.path()].map(text);
        let (dir, scratch) = dir.zip(scratch).context("a directory's name is no text")?;
        let (seed, listen) = (effort.seed.to_string(), listen.to_string());
        let mut args = vec![what, "--dir", &dir, "--scratch", &scratch];
        args.extend(["--seed", &seed, "--listen", &listen]);
        args.extend((!is_larder).then_some("--bare"));
        args.extend(more);
        let args: Vec<_> = args.into_iter().map(ToOwned::to_owned).collect();
        match node {
            Some(node) => Server::start_in(node, &args),
            None => Server::start(&args),
        }
        .with_context(|| what.to_owned())
    };
    let mut server = start("serve-swarm", 1, &[])?;
    let mut processes = Vec::new();
    for first in (0..workers).step_by(PER_PROCESS) {
        let count = PER_PROCESS.min(workers - first).to_string();
        let first = first.to_string();
        let mut more = vec!["--server", server.ready()];
        more.extend(["--first", &first, "--workers", &count]);
        processes.push(start("join-swarm", 2, &more)?);
    }
    let sent = |net: &Option<Net>| net.as_ref().map(|net| net.counters(1, 2).sent_bytes);
    let (before, server_cpu) = (sent(&net), server.cpu()?);
    let cpu = |processes: &mut [Server]| -> anyhow::Result<Duration> {
        processes.iter_mut().map(Server::cpu).sum()
    };
    let workers_cpu = cpu(&mut processes)?;
    let mut swarm = Swarm::default();
    let began = Instant::now();
    for process in &mut processes {
        process.tell("go")?;
    }
    for process in &mut processes {
        let answer = process.answer()?;
        let mut numbers = answer.split(' ').map(str::parse::<usize>);
        let mut number = || numbers.next().context("three numbers");
        swarm.by_peers += number()??;
        swarm.failed += number()??;
        swarm.given_up += number()??;
    }
    swarm.took = began.elapsed();
    swarm.link = sent(&net).zip(before).map(|(after, before)| after - before);
    swarm.server_cpu = server.cpu()?.saturating_sub(server_cpu);
    swarm.workers_cpu = cpu(&mut processes)?.saturating_sub(workers_cpu);
    swarm.bodies = match is_larder {
        true => server.ask("bodies")?.parse().context("a number of bytes")?,
        false => (workers * SPECS * corpus::BODY_LEN) as u64,
    };
    Ok(swarm)
}

fn row(name: String, workers: usize, swarms: &[Swarm]) -> anyhow::Result<Vec<String>> {
    let mean = |of: &dyn Fn(&Swarm) -> f64| {
        swarms.iter().map(of).sum::<f64>() / swarms.len().max(1) as f64
    };
    let secs: Vec<_> = swarms
        .iter()
        .map(|swarm| swarm.took.as_secs_f64())
        .collect();
    let slowest = secs.iter().copied().fold(0.0, f64::max);
    let link = swarms.iter().all(|swarm| swarm.link.is_some());
    let one_each = (SPECS * corpus::BODY_LEN) as f64;
    let reads = (workers * SPECS) as f64;
    Ok(vec![
        name,
        format!("{:.2} ({slowest:.2})", median(&secs)?),
        format!("{:.1}", mean(&|swarm| swarm.bodies as f64) / one_each),
        match link {
            true => format!("{:.1}", mean(&|swarm| swarm.link.unwrap_or(0) as f64) / 1e6),
            false => "not counted".into(),
        },
        format!(
            "{:.0} %",
            mean(&|swarm| swarm.by_peers as f64) / reads * 100.0
        ),
        format!(
            "{:.0}, {:.0}",
            mean(&|swarm| swarm.failed as f64),
            mean(&|swarm| swarm.given_up as f64)
        ),
        format!(
            "{:.2} + {:.2}",
            mean(&|swarm| swarm.server_cpu.as_secs_f64()),
            mean(&|swarm| swarm.workers_cpu.as_secs_f64())
        ),
    ])
}

fn samples(swarms: &[Swarm]) -> Vec<Sample> {
    let swarms = swarms.iter().map(|swarm| swarm.took);
    swarms
        .map(|took| Sample::new(vec![took], 1, took))
        .collect()
}

/// What a process of this measure is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Told {
    /// Certificates.
    #[arg(long)]
    dir: PathBuf,
    /// Stores.
    #[arg(long)]
    scratch: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    listen: IpAddr,
    /// It is quinn alone.
    #[arg(long)]
    bare: bool,
    /// For workers: where the server is.
    #[arg(long)]
    server: Option<SocketAddr>,
    /// Number of the first worker, and how many.
    #[arg(long, default_value_t = 0)]
    first: usize,
    #[arg(long, default_value_t = 0)]
    workers: usize,
}

/// A server of every definition, until nobody asks any more.
pub(crate) fn serve(told: &Told) -> anyhow::Result<()> {
    if told.bare {
        return bare::serve(&Served {
            dir: told.dir.clone(),
            seed: told.seed,
            count: SPECS,
            listen: told.listen,
            controller: Some(BARE),
        });
    }
    let _pinned = core::pin(Side::Server)?;
    let bodies = BodyBytes::install()?;
    let coordinator = Coordinator::start(&CoordinatorConfig {
        listen: (told.listen, 0).into(),
        store: StoreChoice::Directory(told.scratch.join("coordinator")),
        ..site::coordinator(&told.dir)?
    })?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let specs = corpus::specs(told.seed, SPECS);
    runtime.block_on(larder_fetch::publish(coordinator.api(), specs))?;
    process::answer_with(&coordinator.local_addr().to_string(), |line| {
        ensure!(line == "bodies", "an unknown question: {line}");
        Ok(bodies.get().to_string())
    })?;
    runtime.block_on(coordinator.stop());
    Ok(())
}

/// What the reads of workers came to.
#[derive(Debug, Default)]
struct Tally {
    by_peers: AtomicUsize,
    failed: AtomicUsize,
    given_up: AtomicUsize,
}

/// Workers that start when they are told to, and stay until nobody asks any more: others may want
/// what they have.
pub(crate) fn join(told: &Told) -> anyhow::Result<()> {
    let _pinned = core::pin(Side::Client)?;
    let server = told.server.context("workers without a server")?;
    let specs = Arc::new(corpus::specs(told.seed, SPECS));
    let tally = Arc::new(Tally::default());
    if told.bare {
        return join_bare(told, server, &specs);
    }
    warm_up()?;
    let mut workers = Vec::new();
    process::answer_with("workers", |line| {
        ensure!(line == "go" && workers.is_empty(), "an unknown question");
        let numbers = told.first..told.first + told.workers;
        let started: Vec<_> = numbers
            .map(|number| {
                let store = told.scratch.join(format!("worker-{number}"));
                let store = StoreChoice::Directory(store);
                let coordinators: Vec<Address> = vec![server.to_string().parse()?];
                let config = WorkerConfig {
                    listen: (told.listen, 0).into(),
                    // They find each other by the coordinator.
                    membership: Some(Membership::default()),
                    ..site::worker(&told.dir, number, coordinators, store)?
                };
                let (specs, tally) = (Arc::clone(&specs), Arc::clone(&tally));
                // Each in a thread of its own, as if in a process of its own.
                Ok(std::thread::spawn(move || one(&config, &specs, &tally)))
            })
            .collect::<anyhow::Result<_>>()?;
        for worker in started {
            let worker = worker.join().map_err(|_| anyhow::anyhow!("a panic"))?;
            workers.push(worker?);
        }
        let Tally {
            by_peers,
            failed,
            given_up,
        } = &*tally;
        let counts = [by_peers, failed, given_up].map(|count| count.load(Ordering::Relaxed));
        Ok(counts.map(|count| count.to_string()).join(" "))
    })?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stopping = JoinSet::new();
        for worker in workers {
            stopping.spawn(worker.stop());
        }
        stopping.join_all().await;
    });
    Ok(())
}

/// sled makes its statics when a process opens its first store, and whoever opens one meanwhile
/// spins: fifty threads on one core would, which workers in processes of their own do not.
fn warm_up() -> anyhow::Result<()> {
    let db = sled::Config::new().temporary(true).open()?;
    db.insert("key", "value")?;
    db.get("key")?;
    Ok(())
}

/// Starts a worker and reads everything.
fn one(
    config: &WorkerConfig,
    specs: &Arc<Vec<Spec>>,
    tally: &Arc<Tally>,
) -> anyhow::Result<Worker> {
    let worker = Worker::start(config)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let next = Arc::new(AtomicUsize::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (worker, next) = (worker.clone(), Arc::clone(&next));
            let (specs, tally) = (Arc::clone(specs), Arc::clone(tally));
            readers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(spec) = specs.get(number) else {
                        return anyhow::Ok(());
                    };
                    read(&worker, number, spec, &tally).await?;
                }
            });
        }
        while let Some(reader) = readers.join_next().await {
            reader??;
        }
        anyhow::Ok(())
    })?;
    Ok(worker)
}

/// Reads until there is an answer, or nobody would wait for it any more.
async fn read(worker: &Worker, number: usize, spec: &Spec, tally: &Tally) -> anyhow::Result<()> {
    let patience = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        let query = Query {
            deadline: PATIENCE,
            ..Query::strict(Target::Name(corpus::name(number)))
        };
        match worker.query(query).await {
            Ok(answer) => {
                let found = answer.spec.context("the name is published")?;
                ensure!(found.hash() == spec.hash(), "other bytes");
                if matches!(answer.proof.source, Hop::Peer(_)) {
                    tally.by_peers.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(());
            }
            Err(_) => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
                if Instant::now() > patience {
                    tally.given_up.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

/// The same of quinn alone: an endpoint and a connection each, and one thread for all.
fn join_bare(told: &Told, server: SocketAddr, specs: &Arc<Vec<Spec>>) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    process::answer_with("workers", |line| {
        ensure!(line == "go", "an unknown question: {line}");
        let done = runtime.block_on(async {
            let mut workers = JoinSet::new();
            for _ in 0..told.workers {
                let (dir, specs) = (told.dir.clone(), Arc::clone(specs));
                workers.spawn(one_bare(dir, server, told.listen, specs));
            }
            let (mut failed, mut given_up) = (0, 0);
            while let Some(worker) = workers.join_next().await {
                let (more, left) = worker?;
                failed += more;
                given_up += left;
            }
            anyhow::Ok((failed, given_up))
        });
        done.map(|(failed, given_up)| format!("0 {failed} {given_up}"))
    })
}

/// Returns how many reads failed, and how many were given up. After a failure it connects anew.
async fn one_bare(
    dir: PathBuf,
    server: SocketAddr,
    listen: IpAddr,
    specs: Arc<Vec<Spec>>,
) -> (usize, usize) {
    let patience = Instant::now() + PATIENCE;
    let mut left: Vec<_> = (0..specs.len()).collect();
    let mut failed = 0;
    while !left.is_empty() && Instant::now() < patience {
        let client = bare::Client::connect_at(&dir, server, listen, BARE.congestion());
        if let Ok(client) = client.await {
            left = read_bare(&client, left, &specs).await;
        }
        failed += left.len();
    }
    (failed, left.len())
}

/// Reads these over one connection and returns those that failed.
async fn read_bare(
    client: &bare::Client,
    mut numbers: Vec<usize>,
    specs: &Arc<Vec<Spec>>,
) -> Vec<usize> {
    let mut failed = Vec::new();
    let mut reading = JoinSet::new();
    loop {
        while reading.len() < AT_ONCE
            && let Some(number) = numbers.pop()
        {
            let (client, specs) = (client.clone(), Arc::clone(specs));
            reading.spawn(async move {
                let spec = std::slice::from_ref(&specs[number]);
                (number, client.read(number, spec).await.is_ok())
            });
        }
        match reading.join_next().await {
            Some(Ok((_, true))) => {}
            Some(Ok((number, false))) => failed.push(number),
            // Nobody cancels one.
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => return failed,
        }
    }
}
