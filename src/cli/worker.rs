use larder::config::{Field, WorkerConfig};

use super::daemon;
use super::logging;
use super::option::{DaemonArgs, GlobalArgs};

/// Run a worker, which answers reads beside an engine.
///
/// It keeps a copy of the catalog and a lease on it, so that most reads send no packet; it keeps
/// the bytes of what was read, and fetches bytes from other workers when the coordinator does not
/// give them. Workers find each other through the coordinator, or any other worker. SIGTERM ends it
/// after requests in progress; SIGHUP reads certificates and the trust file again.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder worker --coordinator c1.example:7457 --certs certs/worker/w1
  larder worker --coordinator c1:7457,c2:7457 --join w2:7458
  larder peers                             who has been found
  curl --unix-socket /run/larder/worker.sock http://larder/v1/specs/etl/daily
  larder config check worker               show every option and its origin")]
pub(crate) struct Args {
    /// Address of the coordinator; repeat it for more [env: LARDER_COORDINATORS]
    #[arg(long = "coordinator", value_name = "HOST:PORT")]
    coordinators: Vec<String>,
    /// Another worker to fetch bytes from; repeat it for more [env: LARDER_PEERS]
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    /// Any worker of the cluster to find the others by, if the coordinator cannot be asked;
    /// repeat it for more [env: LARDER_JOIN]
    #[arg(long = "join", value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Where other workers reach this one, if that is not where it listens
    /// [env: LARDER_ADVERTISE]
    #[arg(long, value_name = "ADDR:PORT")]
    advertise: Option<String>,
    /// Whether it and other workers find each other, on or off [env: LARDER_GOSSIP]
    #[arg(long, value_name = "ON|OFF")]
    gossip: Option<String>,
    /// How many bytes of definitions to keep, such as 512MiB [env: LARDER_STORE_BUDGET]
    #[arg(long, value_name = "SIZE")]
    store_budget: Option<String>,
    /// How long a read may take unless it says otherwise [env: LARDER_DEADLINE]
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// Whether to keep a copy of the catalog and hold a lease, on or off [env: LARDER_LEASE]
    #[arg(long, value_name = "ON|OFF")]
    lease: Option<String>,
    /// Bodies to fetch before anyone asks: all, used or none [env: LARDER_PREFETCH]
    #[arg(long, value_name = "WHICH")]
    prefetch: Option<String>,
    /// How many bytes per second other workers get of this one: unlimited, off, or a size such as
    /// 2MiB [env: LARDER_UPLOAD_LIMIT]
    #[arg(long, value_name = "SIZE")]
    upload_limit: Option<String>,
    /// Whether to reach the coordinator over other workers, and they over this one: on or off
    /// [env: LARDER_RELAY]
    #[arg(long, value_name = "ON|OFF")]
    relay: Option<String>,
    /// What reads get that say nothing of freshness, `larder get` too: strict, or bounded:60s
    /// [env: LARDER_FRESHNESS]
    #[arg(long, value_name = "HOW")]
    freshness: Option<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(crate) fn run(args: &Args, global: &GlobalArgs) -> anyhow::Result<()> {
    let sources = global.sources(|flags| {
        args.daemon.add(flags);
        flags
            .set_list(Field::Coordinators, &args.coordinators)
            .set_list(Field::Peers, &args.peers)
            .set_list(Field::Join, &args.join)
            .set(Field::Advertise, args.advertise.as_ref())
            .set(Field::Gossip, args.gossip.as_ref())
            .set(Field::StoreBudget, args.store_budget.as_ref())
            .set(Field::Deadline, args.deadline.as_ref())
            .set(Field::Lease, args.lease.as_ref())
            .set(Field::Prefetch, args.prefetch.as_ref())
            .set(Field::UploadLimit, args.upload_limit.as_ref())
            .set(Field::Relay, args.relay.as_ref())
            .set(Field::Freshness, args.freshness.as_ref());
    });
    let config = WorkerConfig::load(&sources)?.config;
    logging::start(&config.log)?;
    serve(config)
}

fn serve(config: WorkerConfig) -> anyhow::Result<()> {
    daemon::block_on(|shutdown| larder::worker::run(config, shutdown))
}
