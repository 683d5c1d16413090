//! Flags that several commands share, and how they become options of the configuration.

use std::path::PathBuf;

use clap::Args;
use larder::config::{ClientConfig, Field, Options, Sources, Surroundings};

use super::logging;

/// Flags that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct GlobalArgs {
    /// Read this configuration file and no other [env: LARDER_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What to log on stderr, such as `info` or `larder=debug,warn` [env: LARDER_LOG]
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// How to log: human or json [env: LARDER_LOG_FORMAT]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// Print data and errors as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl GlobalArgs {
    /// Everything that a configuration is made of, with the flags that `add` sets.
    pub(crate) fn sources(&self, add: impl FnOnce(&mut Options)) -> Sources {
        let mut flags = Options::default();
        flags
            .set(Field::Log, self.log.as_ref())
            .set(Field::LogFormat, self.log_format.as_ref());
        add(&mut flags);
        Sources {
            flags,
            file: self.config.clone(),
            surroundings: Surroundings::of_this_process(),
        }
    }

    /// The configuration of a command that asks a node; its log is started.
    pub(crate) fn client(&self, args: &ClientArgs) -> anyhow::Result<ClientConfig> {
        let sources = self.sources(|flags| args.add(flags));
        let config = ClientConfig::load(&sources)?.config;
        logging::start(&config.log)?;
        Ok(config)
    }
}

/// How a command reaches a node.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ClientArgs {
    /// Ask the node behind this Unix socket and no other [env: LARDER_SOCKET]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<String>,
    /// Ask this coordinator over QUIC; repeat it for more [env: LARDER_COORDINATORS]
    #[arg(long = "coordinator", value_name = "HOST:PORT")]
    pub(crate) coordinators: Vec<String>,
    /// How long to wait, such as 500ms or 10s [env: LARDER_DEADLINE]
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
}

impl ClientArgs {
    fn add(&self, flags: &mut Options) {
        flags
            .set(Field::Socket, self.socket.as_ref())
            .set_list(Field::Coordinators, &self.coordinators)
            .set(Field::Deadline, self.deadline.as_ref());
        self.identity.add(flags);
    }
}

/// Who this node is.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Identity")]
pub(crate) struct IdentityArgs {
    /// Directory with cert.pem, key.pem, ca.pem and trust.yaml [env: LARDER_CERTS]
    #[arg(long, value_name = "DIR")]
    certs: Option<String>,
    /// Certificate, instead of DIR/cert.pem
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    cert: Option<String>,
    /// Private key, instead of DIR/key.pem
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    key: Option<String>,
    /// Certificate authorities, instead of DIR/ca.pem
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ca: Option<String>,
    /// Cluster, head keys and revoked nodes, instead of DIR/trust.yaml
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    trust: Option<String>,
    /// Accept a private key that its group can read
    #[arg(long, hide_short_help = true)]
    allow_group_readable_key: bool,
}

impl IdentityArgs {
    pub(crate) fn add(&self, flags: &mut Options) {
        flags
            .set(Field::Certs, self.certs.as_ref())
            .set(Field::Cert, self.cert.as_ref())
            .set(Field::Key, self.key.as_ref())
            .set(Field::Ca, self.ca.as_ref())
            .set(Field::Trust, self.trust.as_ref())
            .set_switch(Field::AllowGroupReadableKey, self.allow_group_readable_key);
    }
}

/// What the two daemons have in common.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// UDP address for QUIC [env: LARDER_LISTEN]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Store directory, or `none` [env: LARDER_STORE]
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// Local Unix socket [env: LARDER_SOCKET]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Group that may use the socket too [env: LARDER_SOCKET_GROUP]
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Loopback address for read-only HTTP over TCP [env: LARDER_HTTP]
    #[arg(long, value_name = "IP:PORT")]
    http: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
}

impl DaemonArgs {
    pub(crate) fn add(&self, flags: &mut Options) {
        flags
            .set(Field::Listen, self.listen.as_ref())
            .set(Field::Store, self.store.as_ref())
            .set(Field::Socket, self.socket.as_ref())
            .set(Field::SocketGroup, self.socket_group.as_ref())
            .set(Field::Http, self.http.as_ref());
        self.identity.add(flags);
    }
}
