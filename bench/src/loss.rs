//! Small definitions over a link with 40 ms there and back that loses packets: larder with each of
//! quinn's congestion controllers, beside gRPC and HTTPS over the kernel's TCP.
//!
//! Each contender has two network namespaces of its own, joined by a link of `larder-link`, a
//! server process in one and a reader process in the other. All contenders run at the same time, and all
//! losses: nearly all of it is waiting.

mod grpc;
mod http;
mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use larder::net::Congestion;
use larder::spec::Spec;
use larder_link::net::{Net, Options, probe};
use larder_link::rule::Rule;
use larder_link::unit::Share;
use tokio::runtime::Builder;

use crate::Effort;
use crate::corpus;
use crate::fetch::{Contender as _, Served, bare, larder as larder_fetch};
use crate::process::{self, Server};
use crate::report::{Aim, Grid, Measured};
use crate::sample::{Sample, median};
use crate::site;

/// One way.
const DELAY: Duration = Duration::from_millis(20);

/// Of a hundred packets in each direction.
const LOSSES: [u8; 3] = [0, 5, 20];

/// Definitions that a trial reads, where it reads more than one.
const SPECS: usize = 100;

/// Requests in flight in the discipline that has several.
const AT_ONCE: usize = 64;

/// A trial that takes longer is counted as so long.
const PATIENCE: Duration = Duration::from_secs(60);

const TITLE: &str = "Loss: 4 KiB over 40 ms there and back, connection included";

/// Which protocol is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Larder,
    Bare,
    Grpc,
    /// One connection.
    Http2,
    /// A pool of connections.
    Http1,
}

/// Who decides how fast each side sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Controller {
    Cubic,
    Newreno,
    Bbr,
}

impl Controller {
    /// The same in larder's words.
    pub(crate) fn congestion(self) -> Congestion {
        match self {
            Self::Cubic => Congestion::Cubic,
            Self::Newreno => Congestion::NewReno,
            Self::Bbr => Congestion::Bbr,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Newreno => "newreno",
            Self::Bbr => "bbr",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contender {
    protocol: Protocol,
    controller: Controller,
}

const CONTENDERS: [Contender; 10] = {
    use Controller::{Bbr, Cubic, Newreno};
    use Protocol::{Bare, Grpc, Http1, Http2, Larder};
    const fn of(protocol: Protocol, controller: Controller) -> Contender {
        Contender {
            protocol,
            controller,
        }
    }
    [
        of(Larder, Cubic),
        of(Larder, Newreno),
        of(Larder, Bbr),
        of(Bare, Bbr),
        of(Grpc, Cubic),
        of(Grpc, Bbr),
        of(Http2, Cubic),
        of(Http2, Bbr),
        of(Http1, Cubic),
        of(Http1, Bbr),
    ]
};

impl Contender {
    fn name(self) -> String {
        let Self {
            protocol,
            controller,
        } = self;
        let controller = controller.name();
        let usual = match self.is_ours() {
            true => ", the default",
            false => "",
        };
        match protocol {
            Protocol::Larder => format!("larder, {controller}{usual}"),
            Protocol::Bare => format!("bare quinn, {controller}"),
            Protocol::Grpc => format!("gRPC, TCP {controller}"),
            Protocol::Http2 => format!("HTTPS, one HTTP/2 connection, TCP {controller}"),
            Protocol::Http1 => format!("HTTPS, a pool of HTTP/1.1, TCP {controller}"),
        }
    }

    /// Larder as it is unless somebody chooses.
    fn is_ours(self) -> bool {
        let usual = self.controller.congestion() == Congestion::default();
        self.protocol == Protocol::Larder && usual
    }

    /// Whether ours is held against it.
    fn is_rival(self) -> bool {
        matches!(
            self.protocol,
            Protocol::Grpc | Protocol::Http2 | Protocol::Http1
        )
    }

    /// Why it cannot be tried here.
    fn missing(self) -> Option<String> {
        let tcp = self.is_rival().then(|| tcp::probe(self.controller))?;
        tcp.err().map(|error| format!("{error:#}"))
    }

    fn word(self) -> String {
        format!("{:?}-{:?}", self.protocol, self.controller).to_lowercase()
    }
}

/// How requests follow each other, and how many trials a round has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Discipline {
    One,
    Sequence,
    AtOnce,
}

impl Discipline {
    const ALL: [Self; 3] = [Self::One, Self::Sequence, Self::AtOnce];

    fn name(self) -> &'static str {
        match self {
            Self::One => "one definition",
            Self::Sequence => "100, one after the other",
            Self::AtOnce => "100, 64 at once",
        }
    }

    /// A single fetch says little about a link that loses one packet in five.
    fn trials(self) -> usize {
        match self {
            Self::One => 6,
            Self::Sequence | Self::AtOnce => 1,
        }
    }

    fn specs(self) -> usize {
        match self {
            Self::One => 1,
            Self::Sequence | Self::AtOnce => SPECS,
        }
    }

    fn at_once(self) -> usize {
        match self {
            Self::One | Self::Sequence => 1,
            Self::AtOnce => AT_ONCE,
        }
    }
}

/// What the trials of one contender at one loss gave.
#[derive(Debug, Default)]
struct Outcome {
    /// By discipline.
    took: [Vec<Duration>; 3],
    /// Requests that failed and were made again.
    failed: usize,
}

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let mut measured = Measured::new(TITLE);
    if let Err(missing) = probe() {
        measured.note(format!("skipped: {missing}"));
        return Ok(measured);
    }
    let rounds = (effort.rounds as usize / 2).max(1);
    measured.note(format!("{rounds} rounds of this"));
    let outcomes = std::thread::scope(|scope| {
        let tried = LOSSES.map(|loss| scope.spawn(move || try_all(dir, effort, rounds, loss)));
        let outcomes = tried.into_iter().map(joined);
        outcomes.collect::<anyhow::Result<Vec<_>>>()
    })?;
    for (number, discipline) in Discipline::ALL.into_iter().enumerate() {
        measured.grid(grid(number, discipline, &outcomes)?);
    }
    for (number, discipline) in Discipline::ALL.into_iter().enumerate() {
        for (loss, outcomes) in LOSSES.iter().zip(&outcomes) {
            compare(&mut measured, number, discipline, *loss, outcomes)?;
        }
    }
    for (loss, outcomes) in LOSSES.iter().zip(&outcomes) {
        for (contender, outcome) in CONTENDERS.iter().zip(outcomes) {
            match outcome {
                Ok(Outcome { failed: 0, .. }) => {}
                Ok(Outcome { failed, .. }) => measured.note(format!(
                    "{}, {loss} %: {failed} requests failed and were made again",
                    contender.name()
                )),
                Err(missing) => {
                    measured.note(format!("{}: not tried: {missing}", contender.name()));
                }
            }
        }
    }
    Ok(measured)
}

type Outcomes = Vec<Result<Outcome, String>>;

/// Tries every contender at one loss, all at the same time.
fn try_all(dir: &Path, effort: Effort, rounds: usize, loss: u8) -> anyhow::Result<Outcomes> {
    std::thread::scope(|scope| {
        let tried: Vec<_> = CONTENDERS
            .iter()
            .map(|&contender| {
                let dir = dir.join(format!("loss-{loss}-{}", contender.word()));
                scope.spawn(move || match contender.missing() {
                    Some(missing) => Ok(Err(missing)),
                    None => try_one(&dir, effort, rounds, loss, contender).map(Ok),
                })
            })
            .collect();
        tried.into_iter().map(joined).collect()
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    let joined = thread.join();
    joined.map_err(|_| anyhow::anyhow!("a thread of the measure panicked"))?
}

fn try_one(
    dir: &Path,
    effort: Effort,
    rounds: usize,
    loss: u8,
    contender: Contender,
) -> anyhow::Result<Outcome> {
    site::init(dir, 1)?;
    let options = Options {
        seed: effort.seed,
        rule: Rule {
            delay: DELAY,
            loss: Share::percent(loss),
            ..Rule::default()
        },
        ..Options::default()
    };
    let net = Net::new(2, options)?;
    let dir_text = dir.to_str().context("the directory's name is no text")?;
    let (seed, count) = (effort.seed.to_string(), SPECS.to_string());
    let start = |what: &str, node: usize, more: &[&str]| {
        let node = net.node(node);
        let listen = node.address().to_string();
        let mut args = vec![what, "--dir", dir_text, "--seed", &seed, "--count", &count];
        args.extend(["--listen", &listen]);
        args.extend(more);
        let args: Vec<_> = args.into_iter().map(ToOwned::to_owned).collect();
        Server::start_in(node, &args).with_context(|| what.to_owned())
    };
    let word = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map_or_else(String::new, |value| value.get_name().to_owned())
    };
    let protocol = word(&|| contender.protocol.to_possible_value());
    let controller = word(&|| contender.controller.to_possible_value());
    let by = ["--protocol", &protocol, "--controller", &controller];
    let server = start("serve-loss", 1, &by)?;
    let mut more = by.to_vec();
    more.extend(["--server", server.ready()]);
    let mut reader = start("read-loss", 2, &more)?;
    let mut outcome = Outcome::default();
    for _ in 0..rounds {
        for (number, discipline) in Discipline::ALL.into_iter().enumerate() {
            for _ in 0..discipline.trials() {
                let answer = reader.ask(discipline.name())?;
                let (nanos, failed) = answer.split_once(' ').context("two numbers")?;
                outcome.took[number].push(Duration::from_nanos(nanos.parse()?));
                outcome.failed += failed.parse::<usize>()?;
            }
        }
    }
    Ok(outcome)
}

/// One discipline: a row for each contender, a column for each loss.
fn grid(number: usize, discipline: Discipline, outcomes: &[Outcomes]) -> anyhow::Result<Grid> {
    let mut heads = vec![format!("{}, s, p50 (slowest)", discipline.name())];
    heads.extend(LOSSES.iter().map(|loss| format!("{loss} % lost")));
    let mut grid = Grid::new(heads);
    for (index, contender) in CONTENDERS.iter().enumerate() {
        let mut cells = vec![contender.name()];
        for outcomes in outcomes {
            cells.push(match &outcomes[index] {
                Ok(outcome) => cell(&outcome.took[number])?,
                Err(_) => "not tried".into(),
            });
        }
        grid.row(cells);
    }
    Ok(grid)
}

fn cell(took: &[Duration]) -> anyhow::Result<String> {
    let slowest = took.iter().max().context("no trial")?;
    let more = match *slowest >= PATIENCE {
        true => "over ",
        false => "",
    };
    let (p50, slowest) = (median_secs(took)?, slowest.as_secs_f64());
    Ok(format!("{p50:.2} ({more}{slowest:.2})"))
}

fn median_secs(took: &[Duration]) -> anyhow::Result<f64> {
    let secs: Vec<_> = took.iter().map(Duration::as_secs_f64).collect();
    median(&secs)
}

/// Larder as it is against the best of the others.
fn compare(
    measured: &mut Measured,
    number: usize,
    discipline: Discipline,
    loss: u8,
    outcomes: &Outcomes,
) -> anyhow::Result<()> {
    let mut ours = None;
    let mut best: Option<(f64, Contender, &[Duration])> = None;
    for (contender, outcome) in CONTENDERS.iter().zip(outcomes) {
        let Ok(outcome) = outcome else { continue };
        let took = &*outcome.took[number];
        if contender.is_ours() {
            ours = Some(took);
        } else if contender.is_rival() {
            let secs = median_secs(took)?;
            if best.is_none_or(|(best, ..)| secs < best) {
                best = Some((secs, *contender, took));
            }
        }
    }
    let Some((ours, (_, rival, theirs))) = ours.zip(best) else {
        return Ok(());
    };
    let what = format!("{}, {loss} %: larder / {}", discipline.name(), rival.name());
    let samples = |took: &[Duration]| {
        let trials = took.iter().map(|&took| Sample::new(vec![took], 1, took));
        trials.collect::<Vec<_>>()
    };
    measured.ratio(what, Aim::AtMost(1.0), &samples(ours), &samples(theirs))
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
    #[arg(long)]
    protocol: Protocol,
    #[arg(long)]
    controller: Controller,
    /// Where the server is, for a reader.
    #[arg(long)]
    server: Option<SocketAddr>,
}

/// A server of every definition, until nobody asks any more.
pub(crate) fn serve(told: &Told) -> anyhow::Result<()> {
    let served = Served {
        dir: told.dir.clone(),
        seed: told.seed,
        count: told.count,
        listen: told.listen,
        controller: Some(told.controller),
    };
    match told.protocol {
        Protocol::Larder => larder_fetch::serve(&served),
        Protocol::Bare => bare::serve(&served),
        Protocol::Grpc => grpc::serve(told),
        Protocol::Http1 | Protocol::Http2 => http::serve(told),
    }
}

/// A reader that makes one trial for each question, each with a new connection.
pub(crate) fn read(told: &Told) -> anyhow::Result<()> {
    let specs = Arc::new(corpus::specs(told.seed, told.count));
    let runtime = Builder::new_current_thread().enable_all().build()?;
    process::answer_with("reader", |question| {
        let mut all = Discipline::ALL.into_iter();
        let discipline = all.find(|discipline| discipline.name() == question);
        let Some(discipline) = discipline else {
            bail!("an unknown question: {question}");
        };
        let began = Instant::now();
        let failed = Arc::new(AtomicUsize::new(0));
        let reading = async {
            let client = Arc::new(Client::new(told)?);
            let trial = try_once(&client, discipline, &specs, &failed);
            // Too late is a result too.
            let done = tokio::time::timeout(PATIENCE, trial).await;
            let took = began.elapsed();
            if let Ok(done) = done {
                done?;
            }
            client.stop().await;
            anyhow::Ok(took)
        };
        let took = runtime.block_on(reading)?;
        let failed = failed.load(Ordering::Relaxed);
        Ok(format!("{} {failed}", took.as_nanos()))
    })
}

async fn try_once(
    client: &Arc<Client>,
    discipline: Discipline,
    specs: &Arc<Vec<Spec>>,
    failed: &Arc<AtomicUsize>,
) -> anyhow::Result<()> {
    ensure!(discipline.specs() <= specs.len(), "too few definitions");
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..discipline.at_once() {
        let (client, specs) = (Arc::clone(client), Arc::clone(specs));
        let (next, failed) = (Arc::clone(&next), Arc::clone(failed));
        readers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= discipline.specs() {
                    return;
                }
                while client.read(number, &specs[number]).await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                    // Where it fails at once, others get their turn.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    while let Some(reader) = readers.join_next().await {
        reader?;
    }
    Ok(())
}

/// A reader's side of any contender. It connects when it is first used.
enum Client {
    Larder(larder_fetch::Client),
    Bare(bare::Lazy),
    Grpc(grpc::Client),
    Http(http::Client),
}

impl Client {
    fn new(told: &Told) -> anyhow::Result<Self> {
        let server = told.server.context("a reader without a server")?;
        let Told {
            dir,
            listen,
            protocol,
            controller,
            ..
        } = told;
        let congestion = controller.congestion();
        Ok(match protocol {
            Protocol::Larder => {
                let client = larder_fetch::Client::start_at(dir, server, *listen, congestion);
                Self::Larder(client?)
            }
            Protocol::Bare => Self::Bare(bare::Lazy::new(dir, server, *listen, congestion)),
            Protocol::Grpc => Self::Grpc(grpc::Client::new(dir, server, *controller)?),
            Protocol::Http2 => Self::Http(http::Client::new(dir, server, *controller, true)?),
            Protocol::Http1 => Self::Http(http::Client::new(dir, server, *controller, false)?),
        })
    }

    async fn read(&self, number: usize, spec: &Spec) -> anyhow::Result<()> {
        match self {
            Self::Larder(client) => client.read(number, std::slice::from_ref(spec)).await,
            Self::Bare(client) => client.read(number, spec).await,
            Self::Grpc(client) => client.read(number, spec).await,
            Self::Http(client) => client.read(number, spec).await,
        }
    }

    async fn stop(&self) {
        match self {
            Self::Larder(client) => client.clone().stop().await,
            Self::Bare(_) | Self::Grpc(_) | Self::Http(_) => {}
        }
    }
}

/// Whether these are the bytes that were published.
fn check(body: &[u8], spec: &Spec) -> anyhow::Result<()> {
    let hash = larder::spec::SpecHash::of(body);
    ensure!(hash == spec.hash(), "other bytes");
    Ok(())
}
