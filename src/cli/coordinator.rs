use larder::config::{CoordinatorConfig, Field};

use super::daemon;
use super::logging;
use super::option::{DaemonArgs, GlobalArgs};

/// Run the coordinator, which holds the catalog.
///
/// There is one per cluster. It keeps a journal that survives a power cut, answers reads and
/// takes publishes over QUIC and on its local socket. SIGTERM ends it after requests in progress;
/// SIGHUP reads certificates and the trust file again.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder coordinator --certs certs/coordinator/c1
  larder coordinator --listen 0.0.0.0:7457 --store /srv/larder
  larder coordinator --lease 2s            a dead worker delays a publish by 2 s at most
  larder coordinator --store none          hold no catalog, say so to whoever asks
  larder config check coordinator          show every option and its origin")]
pub(crate) struct Args {
    /// Largest spec that it takes, up to 16MiB [env: LARDER_MAX_SPEC_LEN]
    #[arg(long, value_name = "SIZE")]
    max_spec_len: Option<String>,
    /// Key that signs heads, instead of DIR/head.key
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    head_key: Option<String>,
    /// How long a worker may answer without asking again, up to 10m, or off [env: LARDER_LEASE]
    #[arg(long, value_name = "TIME")]
    lease: Option<String>,
    /// Start a new epoch, so that workers accept a catalog that went back on purpose
    #[arg(long)]
    new_epoch: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(crate) fn run(args: &Args, global: &GlobalArgs) -> anyhow::Result<()> {
    let sources = global.sources(|flags| {
        args.daemon.add(flags);
        flags
            .set(Field::MaxSpecLen, args.max_spec_len.as_ref())
            .set(Field::HeadKey, args.head_key.as_ref())
            .set(Field::Lease, args.lease.as_ref())
            .set_switch(Field::NewEpoch, args.new_epoch);
    });
    let config = CoordinatorConfig::load(&sources)?.config;
    logging::start(&config.log)?;
    serve(config)
}

fn serve(config: CoordinatorConfig) -> anyhow::Result<()> {
    daemon::block_on(|shutdown| larder::coordinator::run(config, shutdown))
}
