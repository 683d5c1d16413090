//! Measures larder beside what it is built from, in one run, and prints ratios.
//!
//! | file | what it is |
//! | --- | --- |
//! | `fetch.rs`, `fetch/` | measure: one definition over a warm connection, beside bare quinn |
//! | `local.rs` | measure: one definition from this machine's disk, beside sled |
//! | `socket.rs` | measure: one definition over a worker's Unix socket |
//! | `publish.rs`, `publish/` | measure: a publish that all workers have heard of, beside bare quinn |
//! | `loss.rs`, `loss/` | measure: definitions over a link that loses packets, beside gRPC and HTTPS |
//! | `relay.rs` | measure: a read that asks over another worker, beside bare UDP |
//! | `swarm.rs` | measure: empty workers that all start at once, beside bare quinn |
//! | `idle.rs` | measure: what workers that do nothing cost |
//! | `names.rs` | measure: what many names cost |
//! | `counter.rs` | bytes that a coordinator gave out |
//! | `corpus.rs` | the definitions that are read |
//! | `site.rs` | certificates and configurations of larder's nodes |
//! | `process.rs` | the other process of a measure, and CPU time |
//! | `core.rs` | which cores each process may use |
//! | `sample.rs` | what a round gave: quantiles and ratios |
//! | `report.rs`, `table.rs`, `machine.rs` | what is printed |

mod core;
mod corpus;
mod counter;
mod fetch;
mod idle;
mod local;
mod loss;
mod machine;
mod names;
mod process;
mod publish;
mod relay;
mod report;
mod sample;
mod site;
mod socket;
mod swarm;
mod table;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use self::report::Report;

/// Measure larder beside what it is built from.
///
/// Every number that counts is a ratio of two things measured in this run, in rounds that take
/// turns, so that a machine which is slow for a while is slow for both. A measure lists its rows,
/// then each ratio with the median of its rounds, the spread, and the aim that it is held against.
#[derive(Debug, Parser)]
#[command(
    name = "larder-bench",
    version,
    after_help = "Examples:
  larder-bench                  everything, about a minute and a half
  larder-bench --quick          a look, half a minute; the ratios are noisy
  larder-bench --only local     one measure
  larder-bench --only loss      links that lose packets; as root, ten minutes
  larder-bench --only relay     reads over another worker; as root, two minutes
  larder-bench --json > r.json  for a script

Numbers are worth something only on an idle machine: see the load in the first lines.
The kernel should grant 4 MiB of socket buffer: sysctl -w net.core.rmem_max=4194304
net.core.wmem_max=4194304"
)]
struct Args {
    /// Few rounds of few reads.
    #[arg(long)]
    quick: bool,
    /// One JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Only this measure; may be given several times.
    #[arg(long, value_name = "MEASURE")]
    only: Vec<Measure>,
    /// Rounds of each measure [default: 16, with --quick 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// How many workers a swarm has; may be given several times.
    #[arg(long, value_name = "N", default_values_t = swarm::WORKERS, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    swarm: Vec<u16>,
    /// Where the bytes and the order of reads come from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where stores are put; a directory in it is made and removed [default: the system's
    /// temporary directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    serve: Option<Serve>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// One definition over a warm connection.
    Fetch,
    /// One definition from this machine's disk.
    Local,
    /// One definition over a worker's Unix socket.
    Socket,
    /// A publish that all workers have heard of.
    Publish,
    /// Workers that do nothing.
    Idle,
    /// Many names.
    Names,
    /// Links that lose packets, beside gRPC and HTTPS; only if asked for, and as root.
    Loss,
    /// Reads over another worker; only if asked for, and as root.
    Relay,
    /// Empty workers that all start at once; only if asked for, and as root for all of it.
    Swarm,
}

impl Measure {
    const ALL: [Self; 9] = [
        Self::Fetch,
        Self::Local,
        Self::Socket,
        Self::Publish,
        Self::Idle,
        Self::Names,
        Self::Loss,
        Self::Relay,
        Self::Swarm,
    ];

    /// Whether it is part of a run that names no measure: what takes minutes is not.
    fn is_usual(self) -> bool {
        !matches!(self, Self::Loss | Self::Relay | Self::Swarm)
    }
}

/// The other process of a measure: this program starts itself.
#[derive(Debug, Subcommand)]
enum Serve {
    #[command(hide = true, name = "serve-larder")]
    Larder(fetch::Served),
    #[command(hide = true, name = "serve-bare")]
    Bare(fetch::Served),
    #[command(hide = true, name = "serve-socket")]
    Socket(fetch::Served),
    #[command(hide = true, name = "serve-publisher")]
    Publisher(fetch::Served),
    #[command(hide = true, name = "serve-workers")]
    Workers(publish::Watching),
    #[command(hide = true, name = "serve-bare-publisher")]
    BarePublisher(fetch::Served),
    #[command(hide = true, name = "serve-bare-watchers")]
    BareWatchers(publish::Watching),
    #[command(hide = true, name = "serve-loss")]
    Loss(loss::Told),
    #[command(hide = true, name = "read-loss")]
    LossReader(loss::Told),
    #[command(hide = true, name = "serve-relay")]
    Carrier(relay::Told),
    #[command(hide = true, name = "read-relay")]
    RelayReader(relay::Told),
    #[command(hide = true, name = "serve-swarm")]
    Swarm(swarm::Told),
    #[command(hide = true, name = "join-swarm")]
    SwarmWorkers(swarm::Told),
}

impl Serve {
    fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Larder(served) => fetch::larder::serve(served),
            Self::Bare(served) => fetch::bare::serve(served),
            Self::Socket(served) => socket::serve(served),
            Self::Publisher(served) => publish::larder::serve_publisher(served),
            Self::Workers(watching) => publish::larder::serve_workers(watching),
            Self::BarePublisher(served) => publish::bare::serve_publisher(served),
            Self::BareWatchers(watching) => publish::bare::serve_watchers(watching),
            Self::Loss(told) => loss::serve(told),
            Self::LossReader(told) => loss::read(told),
            Self::Carrier(told) => relay::serve(told),
            Self::RelayReader(told) => relay::read(told),
            Self::Swarm(told) => swarm::serve(told),
            Self::SwarmWorkers(told) => swarm::join(told),
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u32,
    /// Divides the number of reads in a round.
    divisor: usize,
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(serve) = &args.serve {
        return serve.run();
    }
    let effort = Effort {
        rounds: args.rounds.unwrap_or(if args.quick { 4 } else { 16 }),
        divisor: if args.quick { 4 } else { 1 },
        seed: args.seed,
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix("larder-bench-");
    let dir = match &args.dir {
        Some(parent) => builder.tempdir_in(parent)?,
        None => builder.tempdir()?,
    };
    let mut report = Report::new(effort)?;
    if !args.json {
        print!("{report}");
    }
    for measure in Measure::ALL {
        let is_wanted = match args.only.is_empty() {
            true => measure.is_usual(),
            false => args.only.contains(&measure),
        };
        if !is_wanted {
            continue;
        }
        let measured = match measure {
            Measure::Fetch => fetch::measure(dir.path(), effort)?,
            Measure::Local => local::measure(dir.path(), effort)?,
            Measure::Socket => socket::measure(dir.path(), effort)?,
            Measure::Publish => publish::measure(dir.path(), effort)?,
            Measure::Idle => idle::measure(dir.path(), effort)?,
            Measure::Names => names::measure(dir.path(), effort)?,
            Measure::Loss => loss::measure(dir.path(), effort)?,
            Measure::Relay => relay::measure(dir.path(), effort)?,
            Measure::Swarm => swarm::measure(dir.path(), effort, &args.swarm)?,
        };
        if !args.json {
            print!("{measured}");
        }
        report.measures.push(measured);
    }
    if args.json {
        println!("{:#}", report.to_json());
    }
    Ok(())
}
