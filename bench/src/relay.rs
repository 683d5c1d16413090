//! A read that asks the coordinator over another worker, beside the round trips that it cannot do
//! without: from the worker to the one that carries, and from there to the coordinator.
//!
//! Three network namespaces of `larder-link`, a process in each. Round trips are those of bare UDP
//! packets over the same links, in the same round.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use larder::Worker;
use larder::answer::{Freshness, Mode, Query, Target};
use larder::config::{StoreChoice, WorkerConfig};
use larder_link::Node;
use larder_link::net::{Net, Options, probe};
use tokio::runtime::Builder;

use crate::Effort;
use crate::corpus;
use crate::process::{self, Server};
use crate::report::Measured;
use crate::sample::{Sample, median, ratios};
use crate::site;

/// Nodes of the net.
const COORDINATOR: usize = 1;
const CARRIER: usize = 2;
const READER: usize = 3;

/// One way between the reader and the worker that carries.
const NEAR: Duration = Duration::from_millis(10);

/// One way between that worker and the coordinator.
const FAR: Duration = Duration::from_millis(15);

/// Definitions that are read in turn; after the first turn the reader has all bytes.
const SPECS: usize = 16;

/// Reads in one round, and echoes on each link.
const READS: usize = 64;

/// How long it may take until the coordinator is reached over the other worker.
const PATIENCE: Duration = Duration::from_secs(30);

/// A packet of an echo, as long as one with a short question or answer.
const ECHO: [u8; 128] = [7; 128];

const TITLE: &str = "Relay: a read that asks, over another worker, 20 ms and 30 ms there and back";

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let mut measured = Measured::new(TITLE);
    if let Err(missing) = probe() {
        measured.note(format!("skipped: {missing}"));
        return Ok(measured);
    }
    let dir = dir.join("relay");
    site::init(&dir, 2)?;
    let options = Options {
        seed: effort.seed,
        ..Options::default()
    };
    let net = Net::new(READER, options)?;
    for (a, b, delay) in [(COORDINATOR, CARRIER, FAR), (CARRIER, READER, NEAR)] {
        net.change(a, b, |rule| rule.delay = delay);
        net.change(b, a, |rule| rule.delay = delay);
    }
    net.cut(COORDINATOR, READER);
    net.cut(READER, COORDINATOR);
    let far = Echo::between(net.node(CARRIER), net.node(COORDINATOR))?;
    let near = Echo::between(net.node(READER), net.node(CARRIER))?;

    let coordinator = start(&dir, effort, net.node(COORDINATOR), "serve-larder", &[])?;
    let server = ["--server", coordinator.ready()];
    let carrier = start(&dir, effort, net.node(CARRIER), "serve-relay", &server)?;
    let both = [&server[..], &["--carrier", carrier.ready()]].concat();
    let mut reader = start(&dir, effort, net.node(READER), "read-relay", &both)?;

    let (mut reads, mut trips) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let count = (READS / effort.divisor).max(1);
        reads.push(sample(latencies(&reader.ask(&count.to_string())?)?));
        let both = (0..count).map(|_| anyhow::Ok(near.trip()? + far.trip()?));
        trips.push(sample(both.collect::<anyhow::Result<_>>()?));
    }
    measured.row("read over another worker", &reads);
    measured.row("both round trips, bare UDP", &trips);
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let ratio = median(&ratios(&reads, &trips, |sample| {
            sample.quantile_us(quantile)
        }))?;
        let what = format!("read / both round trips, {name}");
        measured.figure(what, ratio * 100.0, "%", None);
    }
    Ok(measured)
}

fn sample(latencies: Vec<Duration>) -> Sample {
    let elapsed = latencies.iter().sum();
    Sample::new(latencies, 1, elapsed)
}

/// Times as a reader says them, in nanoseconds.
fn latencies(answer: &str) -> anyhow::Result<Vec<Duration>> {
    let nanos = answer.split(' ');
    let times = nanos.map(|nanos| Ok(Duration::from_nanos(nanos.parse()?)));
    times.collect()
}

fn start(
    dir: &Path,
    effort: Effort,
    node: &Node,
    what: &str,
    more: &[&str],
) -> anyhow::Result<Server> {
    let dir = dir.to_str().context("the directory's name is no text")?;
    let (seed, count) = (effort.seed.to_string(), SPECS.to_string());
    let listen = node.address().to_string();
    let mut args = vec![what, "--dir", dir, "--seed", &seed, "--count", &count];
    args.extend(["--listen", &listen]);
    args.extend(more);
    let args: Vec<_> = args.into_iter().map(ToOwned::to_owned).collect();
    Server::start_in(node, &args).with_context(|| what.to_owned())
}

/// Bare UDP from one node to another and back.
struct Echo {
    socket: UdpSocket,
}

impl Echo {
    fn between(from: &Node, to: &Node) -> anyhow::Result<Self> {
        let bind = |node: &Node| {
            let addr = (node.address(), 0);
            anyhow::Ok(node.inside(|| UdpSocket::bind(addr))??)
        };
        let (socket, far) = (bind(from)?, bind(to)?);
        socket.connect(far.local_addr()?)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // It ends with the program.
        thread::spawn(move || answer_echoes(&far));
        Ok(Self { socket })
    }

    fn trip(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.socket.send(&ECHO)?;
        let len = self.socket.recv(&mut [0; ECHO.len()])?;
        ensure!(len == ECHO.len(), "a short echo");
        Ok(began.elapsed())
    }
}

fn answer_echoes(socket: &UdpSocket) {
    let mut bytes = [0; ECHO.len()];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((len, from)) => drop(socket.send_to(&bytes[..len], from)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// What a process of this measure is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Told {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    count: usize,
    /// The address of its node.
    #[arg(long)]
    listen: IpAddr,
    /// Where the coordinator is.
    #[arg(long)]
    server: SocketAddr,
    /// Where the worker is that carries, for the one that reads.
    #[arg(long)]
    carrier: Option<SocketAddr>,
}

impl Told {
    fn start(&self, number: usize) -> anyhow::Result<Worker> {
        let address = |addr: SocketAddr| addr.to_string().parse().context("an address");
        let peers = self.carrier.map(address).transpose()?;
        let coordinators = vec![address(self.server)?];
        let config = WorkerConfig {
            listen: (self.listen, 0).into(),
            relay: true,
            peers: peers.into_iter().collect(),
            ..site::worker(&self.dir, number, coordinators, StoreChoice::None)?
        };
        Ok(Worker::start(&config)?)
    }
}

/// A worker that reaches the coordinator itself, until nobody asks any more.
pub(crate) fn serve(told: &Told) -> anyhow::Result<()> {
    let worker = told.start(1)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(site::await_lease(&worker))?;
    process::answer(&worker.local_addr().to_string())?;
    runtime.block_on(worker.stop());
    Ok(())
}

/// A worker that reaches the coordinator over the other alone. It is asked for a number of reads.
pub(crate) fn read(told: &Told) -> anyhow::Result<()> {
    let worker = told.start(0)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(warm_up(&worker, told.count))?;
    process::answer_with("reader", |question| {
        let count: usize = question.parse().context("a number of reads")?;
        let mut nanos = Vec::with_capacity(count);
        for number in (0..told.count).cycle().take(count) {
            let began = Instant::now();
            runtime.block_on(read_one(&worker, number))?;
            nanos.push(began.elapsed().as_nanos().to_string());
        }
        ensure!(runtime.block_on(is_relayed(&worker))?, "another way");
        Ok(nanos.join(" "))
    })?;
    runtime.block_on(worker.stop());
    Ok(())
}

/// Until the coordinator is reached over the other worker and every definition is here.
async fn warm_up(worker: &Worker, names: usize) -> anyhow::Result<()> {
    let patience = Instant::now() + PATIENCE;
    while !is_relayed(worker).await? {
        ensure!(Instant::now() < patience, "no way over the other worker");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for number in 0..names {
        read_one(worker, number).await?;
    }
    Ok(())
}

async fn is_relayed(worker: &Worker) -> anyhow::Result<bool> {
    let status = worker.api().status().await;
    let status = status.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    Ok(status["path"] == "via w1")
}

/// Asks for the truth of one name, and checks its bytes.
async fn read_one(worker: &Worker, number: usize) -> anyhow::Result<()> {
    let query = Query {
        freshness: Freshness::Verified,
        ..Query::strict(Target::Name(corpus::name(number)))
    };
    let answer = worker.query(query).await?;
    ensure!(answer.proof.mode == Mode::Asked, "{:?}", answer.proof);
    ensure!(answer.spec.is_some(), "the name is published");
    Ok(())
}
