//! From options to checked configurations, in one fallible step each.
//!
//! A flag wins over an environment variable `LARDER_*`, that over a file, that over the default.
//! Files are `/etc/larder/larder.yaml` and `~/.config/larder/larder.yaml` (the later one wins),
//! or the one file that `--config` or `LARDER_CONFIG` names. An option at the top of a file holds
//! for every role that knows it; the sections `coordinator:`, `worker:` and `client:` win over
//! the top. Relative paths in a file start at the file's directory.
//!
//! An error names the option, its value, where the value came from, and what is allowed.

pub mod default;
mod error;
mod field;
mod layer;
mod pick;
mod value;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use self::error::ConfigError;
pub use self::field::Field;
pub use self::layer::{Options, Origin, Sources, Surroundings};
use self::pick::Picker;
pub use self::value::{Address, Invalid, duration, staleness};
use crate::answer::Freshness;
use crate::proto::limit::{DEFAULT_LEASE, MAX_LEASE, MIN_LEASE};
use crate::proto::worker::Prefetch;
use crate::spec::MAX_SPEC_LEN;

/// Most coordinator addresses: a name with several is tried one after the other, each for up to
/// a dial's timeout.
pub const MAX_COORDINATORS: usize = 16;

/// Most configured peers; a fetch asks three.
pub const MAX_PEERS: usize = 256;

/// Most addresses to join by: those of the coordinator come on top.
pub const MAX_JOIN: usize = 64;

/// Smallest budget of a worker's store: one spec of the largest size, and room for its pages.
pub const MIN_STORE_BUDGET: u64 = 32 << 20;

/// Longest deadline of a read: whoever waits longer has given up.
pub const MAX_DEADLINE: Duration = Duration::from_secs(3_600);

/// What a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `larder coordinator`.
    Coordinator,
    /// `larder worker`.
    Worker,
    /// Every command that asks a node.
    Client,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Coordinator, Self::Worker, Self::Client];

    /// Its section in a file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The files that say who this node is and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPaths {
    /// Certificate, with its chain (`cert.pem`).
    pub cert: PathBuf,
    /// Private key (`key.pem`).
    pub key: PathBuf,
    /// Certificate authorities of the cluster (`ca.pem`).
    pub ca: PathBuf,
    /// Cluster, head keys, revoked nodes (`trust.yaml`).
    pub trust: PathBuf,
    /// The key that signs heads (`head.key`); only coordinators have one.
    pub head_key: Option<PathBuf>,
    /// Whether a key that its group can read is accepted. Default no.
    pub allow_group_readable_key: bool,
}

/// Where a daemon keeps what it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// In this directory.
    Directory(PathBuf),
    /// Nowhere (`none`): a coordinator holds no catalog, a worker forgets when it ends.
    None,
}

/// The local HTTP of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// The Unix socket, mode 0600. Default `/run/larder/<role>.sock` for root, else in
    /// `$XDG_RUNTIME_DIR/larder`, else in the state directory.
    pub socket: PathBuf,
    /// A group that may use the socket too, by name or number. Default nobody.
    pub socket_group: Option<String>,
    /// A loopback address that serves reads over TCP. Default none.
    pub http: Option<SocketAddr>,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter such as `info` or `larder=debug,quinn=warn`. Default `info` for daemons, `error`
    /// for commands.
    pub filter: String,
    /// Default human.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Configuration of `larder coordinator`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorConfig {
    /// Who this coordinator is.
    pub identity: IdentityPaths,
    /// Its local HTTP.
    pub local: LocalConfig,
    /// Its log.
    pub log: LogConfig,
    /// UDP address for QUIC. Default 127.0.0.1:7457: opening it to the network is a decision.
    pub listen: SocketAddr,
    /// The catalog's directory. Default `/var/lib/larder/coordinator` for root, else
    /// `~/.local/state/larder/coordinator`.
    pub store: StoreChoice,
    /// Largest spec that it takes, 1 byte to 16 MiB. Default 1 MiB; more costs memory per
    /// publish and per read. Workers have no limit of their own below 16 MiB: one that refused
    /// what its coordinator took would fail reads of a good definition.
    pub max_spec_len: u64,
    /// How long a worker may answer without asking again, 200 ms to 10 min; zero (`off`): no
    /// worker may. Default 6 s. A longer one lets readers work through longer cuts of the network,
    /// and lets a worker that dies without a word delay publishes by as much.
    pub lease: Duration,
    /// Start a new epoch: the operator says that going back was meant. Only a flag.
    pub new_epoch: bool,
}

/// Configuration of `larder worker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Who this worker is.
    pub identity: IdentityPaths,
    /// Its local HTTP.
    pub local: LocalConfig,
    /// Its log.
    pub log: LogConfig,
    /// UDP address for QUIC, where peers fetch. While the machine does not have it, the one that
    /// packets to the coordinator leave from is taken instead. Default 127.0.0.1:7458.
    pub listen: SocketAddr,
    /// Addresses of the coordinator, 1 to 16. No default.
    pub coordinators: Vec<Address>,
    /// Workers to fetch bytes from, up to 256. Default none.
    pub peers: Vec<Address>,
    /// How it and others find each other; `None` with `gossip: off`. Default on.
    pub membership: Option<Membership>,
    /// The cache's directory. Default `/var/lib/larder/worker` for root, else
    /// `~/.local/state/larder/worker`.
    pub store: StoreChoice,
    /// Bytes of definitions that the store keeps, 32 MiB or more. Default 1 GiB; the directory
    /// may take about three times as much.
    pub store_budget: u64,
    /// How long a read may take unless it says otherwise, up to 1 h. Default 10 s.
    pub deadline: Duration,
    /// Whether it keeps a copy of the catalog and holds a lease: `on` or `off`; a span of time,
    /// which is for the coordinator, is `on` too. Default on; off costs a round trip to the
    /// coordinator per read.
    pub lease: bool,
    /// Which bodies it fetches before anyone asks: `used` (those of names that it has read),
    /// `all`, `none`. Default used; all costs a body per worker and publish.
    pub prefetch: Prefetch,
    /// Bytes per second that other workers get of it, all together: a size, `unlimited`, or `off`.
    /// Default unlimited. With a limit others ask elsewhere, in the end the coordinator.
    pub upload_limit: Option<u64>,
    /// Whether it reaches the coordinator over another worker when it cannot reach it directly, and
    /// carries the packets of others in the same way: `on` or `off`. Default on; it sees nothing
    /// of what it carries, at most 2 MiB/s for each of up to 64.
    pub relay: bool,
    /// What a read gets that says nothing of freshness: `strict`, or `bounded:60s`. Default
    /// strict. Each answer says which mode held.
    pub freshness: Freshness,
}

/// How workers find each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Addresses to join by, beside those of the coordinator: any worker, up to 64. Default none.
    pub join: Vec<Address>,
    /// Where other workers reach this one, if that is not where it listens: behind a NAT whose
    /// port is forwarded, say. Default the address of `listen`, or, if that is a wildcard, the one
    /// that its packets come from.
    pub advertise: Option<SocketAddr>,
}

/// Configuration of a command that asks a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// The socket to use and no other. Default none: the usual ones are tried.
    pub socket: Option<PathBuf>,
    /// Where a worker's socket usually is, the user's own first.
    pub worker_sockets: Vec<PathBuf>,
    /// Where a coordinator's socket usually is, the user's own first.
    pub coordinator_sockets: Vec<PathBuf>,
    /// Addresses of the coordinator for QUIC, up to 16. Default none.
    pub coordinators: Vec<Address>,
    /// Whether those came from the command line, and so go before a local socket.
    pub coordinators_asked_for: bool,
    /// Who this client is, for QUIC; `None` when no identity directory was found.
    pub identity: Option<IdentityPaths>,
    /// Where identity directories were looked for.
    pub identity_searched: Vec<PathBuf>,
    /// How long a request may take, up to 1 h. Default 10 s.
    pub deadline: Duration,
    /// Largest spec that is published, 1 byte to 16 MiB. Default 1 MiB.
    pub max_spec_len: u64,
    /// The command's log.
    pub log: LogConfig,
}

/// What `larder doctor` looks at: the configuration of a node that may lack some of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoctorConfig {
    /// Whose configuration it is.
    pub kind: Kind,
    /// Who the node is; `None` when no identity directory was found.
    pub identity: Option<IdentityPaths>,
    /// Where identity directories were looked for.
    pub identity_searched: Vec<PathBuf>,
    /// UDP address for QUIC; `None` for a client, which does not listen.
    pub listen: Option<SocketAddr>,
    /// Where other workers reach this one, if that is not where it listens.
    pub advertise: Option<SocketAddr>,
    /// Workers to find others by, up to 64.
    pub join: Vec<Address>,
    /// The store's directory; `None` for a client, and for a daemon without one.
    pub store: Option<PathBuf>,
    /// The local socket of the daemon; `None` for a client.
    pub socket: Option<PathBuf>,
    /// Addresses of the coordinator, up to 16.
    pub coordinators: Vec<Address>,
    /// Addresses of workers, up to 256.
    pub peers: Vec<Address>,
    /// The command's log. Default `error`.
    pub log: LogConfig,
}

/// A configuration and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The checked values.
    pub config: T,
    /// Every option with its effective text and where that came from.
    pub effective: Vec<Effective>,
}

/// The effective value of one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Which.
    pub field: Field,
    /// Its texts; none when it is not set and has no default, several for a list.
    pub values: Vec<String>,
    /// Where they came from.
    pub origin: Origin,
}

impl CoordinatorConfig {
    /// Merges and checks.
    ///
    /// # Errors
    /// [`ConfigError`] for the first option that is wrong.
    pub fn load(sources: &Sources) -> Result<Loaded<Self>, ConfigError> {
        let mut pick = Picker::new(sources, Kind::Coordinator)?;
        let config = Self {
            listen: pick.or(
                Field::Listen,
                default::COORDINATOR_LISTEN,
                value::socket_addr,
            )?,
            store: store(&mut pick)?,
            max_spec_len: max_spec_len(&mut pick)?,
            local: local(&mut pick)?,
            lease: pick.or(Field::Lease, default::LEASE, lease)?,
            identity: pick.identity()?,
            log: log(&mut pick)?,
            new_epoch: pick.or(Field::NewEpoch, "false", value::boolean)?,
        };
        Ok(pick.loaded(config))
    }

    /// Only where the store lies, for commands that work on it while no coordinator runs.
    ///
    /// # Errors
    /// [`ConfigError`] when that option is wrong.
    pub fn load_store(sources: &Sources) -> Result<StoreChoice, ConfigError> {
        store(&mut Picker::new(sources, Kind::Coordinator)?)
    }
}

impl WorkerConfig {
    /// Merges and checks.
    ///
    /// # Errors
    /// [`ConfigError`] for the first option that is wrong.
    pub fn load(sources: &Sources) -> Result<Loaded<Self>, ConfigError> {
        let mut pick = Picker::new(sources, Kind::Worker)?;
        let listen = pick.or(Field::Listen, default::WORKER_LISTEN, value::socket_addr)?;
        let store = store(&mut pick)?;
        let budget = move |text: &str| match value::bytes(text)? {
            bytes if bytes >= MIN_STORE_BUDGET => Ok(bytes),
            _ => Err(Invalid(format!(
                "at least {} are needed",
                value::show_bytes(MIN_STORE_BUDGET)
            ))),
        };
        let store_budget = pick.or(Field::StoreBudget, default::STORE_BUDGET, budget)?;
        let coordinators = pick.list(Field::Coordinators, MAX_COORDINATORS)?;
        if coordinators.is_empty() {
            return Err(ConfigError::NotSet {
                field: Field::Coordinators,
                hint: "a worker asks the coordinator what is current: `--coordinator HOST:7457`",
            });
        }
        let config = Self {
            listen,
            store,
            store_budget,
            coordinators,
            peers: pick.list(Field::Peers, MAX_PEERS)?,
            membership: membership(&mut pick, listen)?,
            deadline: deadline(&mut pick)?,
            lease: pick.or(Field::Lease, default::KEEP_LEASE, |text| {
                Ok(!lease(text)?.is_zero())
            })?,
            prefetch: pick.or(Field::Prefetch, default::PREFETCH, prefetch)?,
            upload_limit: pick.or(Field::UploadLimit, default::UPLOAD_LIMIT, upload_limit)?,
            relay: pick.or(Field::Relay, default::RELAY, value::switch)?,
            freshness: pick.or(Field::Freshness, default::FRESHNESS, freshness)?,
            local: local(&mut pick)?,
            identity: pick.identity()?,
            log: log(&mut pick)?,
        };
        Ok(pick.loaded(config))
    }
}

impl ClientConfig {
    /// Merges and checks.
    ///
    /// # Errors
    /// [`ConfigError`] for the first option that is wrong.
    pub fn load(sources: &Sources) -> Result<Loaded<Self>, ConfigError> {
        let mut pick = Picker::new(sources, Kind::Client)?;
        let surroundings = &sources.surroundings;
        let config = Self {
            coordinators: pick.list(Field::Coordinators, MAX_COORDINATORS)?,
            coordinators_asked_for: sources.flags.has(Field::Coordinators),
            deadline: deadline(&mut pick)?,
            max_spec_len: max_spec_len(&mut pick)?,
            socket: pick.path(Field::Socket)?,
            worker_sockets: default::sockets(surroundings, Kind::Worker),
            coordinator_sockets: default::sockets(surroundings, Kind::Coordinator),
            identity: pick.identity_if_any()?,
            identity_searched: default::certs(surroundings, Kind::Client),
            log: log(&mut pick)?,
        };
        Ok(pick.loaded(config))
    }
}

impl DoctorConfig {
    /// Merges and checks what a node of `kind` would have.
    ///
    /// # Errors
    /// [`ConfigError`] for the first option that is wrong.
    pub fn load(sources: &Sources, kind: Kind) -> Result<Self, ConfigError> {
        let mut pick = Picker::new(sources, kind)?;
        let listen = match kind {
            Kind::Coordinator => Some(default::COORDINATOR_LISTEN),
            Kind::Worker => Some(default::WORKER_LISTEN),
            Kind::Client => None,
        };
        let listen = listen.map(|usual| pick.or(Field::Listen, usual, value::socket_addr));
        let listen = listen.transpose()?;
        let membership = match (kind, listen) {
            (Kind::Worker, Some(listen)) => membership(&mut pick, listen)?.unwrap_or_default(),
            _ => Membership::default(),
        };
        let daemon = listen.is_some();
        let store = match daemon {
            true => store(&mut pick)?,
            false => StoreChoice::None,
        };
        let socket = match daemon {
            true => Some(pick.path_or(Field::Socket, default::socket)?),
            false => None,
        };
        Ok(Self {
            kind,
            listen,
            advertise: membership.advertise,
            join: membership.join,
            store: match store {
                StoreChoice::Directory(dir) => Some(dir),
                StoreChoice::None => None,
            },
            socket,
            coordinators: pick.list(Field::Coordinators, MAX_COORDINATORS)?,
            peers: pick.list(Field::Peers, MAX_PEERS)?,
            identity: pick.identity_if_any()?,
            identity_searched: default::certs(&sources.surroundings, kind),
            log: log_of(&mut pick, Kind::Client)?,
        })
    }
}

fn store(pick: &mut Picker<'_>) -> Result<StoreChoice, ConfigError> {
    let path = pick.path_or(Field::Store, default::store)?;
    Ok(match path.as_os_str() == "none" {
        true => StoreChoice::None,
        false => StoreChoice::Directory(path),
    })
}

fn local(pick: &mut Picker<'_>) -> Result<LocalConfig, ConfigError> {
    let http = |text: &str| {
        match value::socket_addr(text)? {
        addr if addr.ip().is_loopback() => Ok(addr),
        _ => Err(Invalid(
            "local HTTP has no authentication and binds loopback only: 127.0.0.1:PORT or [::1]:PORT"
                .into(),
        )),
    }
    };
    Ok(LocalConfig {
        socket: pick.path_or(Field::Socket, default::socket)?,
        socket_group: pick.optional(Field::SocketGroup, value::text)?,
        http: pick.optional(Field::Http, http)?,
    })
}

fn log(pick: &mut Picker<'_>) -> Result<LogConfig, ConfigError> {
    let kind = pick.kind();
    log_of(pick, kind)
}

/// What the process logs may differ from what the node would that its options are of.
fn log_of(pick: &mut Picker<'_>, process: Kind) -> Result<LogConfig, ConfigError> {
    let format = |text: &str| match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err(Invalid("it is `human` or `json`".into())),
    };
    let filter = |text: &str| match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Invalid(format!(
            "{error}; a filter is a level or `target=level` with commas, such as `larder=debug,warn`"
        ))),
    };
    Ok(LogConfig {
        filter: pick.or(Field::Log, default::log(process), filter)?,
        format: pick.or(Field::LogFormat, default::LOG_FORMAT, format)?,
    })
}

fn deadline(pick: &mut Picker<'_>) -> Result<Duration, ConfigError> {
    let bounded = |text: &str| match duration(text)? {
        deadline if !deadline.is_zero() && deadline <= MAX_DEADLINE => Ok(deadline),
        _ => Err(Invalid("a deadline is between 1ms and 1h".into())),
    };
    pick.or(Field::Deadline, default::DEADLINE, bounded)
}

fn lease(text: &str) -> Result<Duration, Invalid> {
    match text {
        "0" | "off" | "false" => return Ok(Duration::ZERO),
        // Of how long a lease is, the coordinator alone decides; one file may serve both.
        "on" | "true" => return Ok(DEFAULT_LEASE),
        _ => {}
    }
    match duration(text)? {
        lease if (MIN_LEASE..=MAX_LEASE).contains(&lease) || lease.is_zero() => Ok(lease),
        _ => Err(Invalid(format!(
            "a lease lasts between {} ms and {} s; `off` gives none",
            MIN_LEASE.as_millis(),
            MAX_LEASE.as_secs()
        ))),
    }
}

fn prefetch(text: &str) -> Result<Prefetch, Invalid> {
    match text {
        "all" => Ok(Prefetch::All),
        "used" => Ok(Prefetch::Used),
        "none" => Ok(Prefetch::None),
        _ => Err(Invalid("it is `all`, `used` or `none`".into())),
    }
}

fn membership(
    pick: &mut Picker<'_>,
    listen: SocketAddr,
) -> Result<Option<Membership>, ConfigError> {
    let on = pick.or(Field::Gossip, default::GOSSIP, value::switch)?;
    let join = pick.list(Field::Join, MAX_JOIN)?;
    let advertise = pick.optional(Field::Advertise, |text| {
        let addr = value::socket_addr(text)?;
        match addr.ip().is_unspecified() || addr.port() == 0 {
            true => Err(Invalid(format!(
                "an address that others can dial, such as 192.0.2.7:{}",
                listen.port()
            ))),
            false => Ok(addr),
        }
    })?;
    Ok(on.then_some(Membership { join, advertise }))
}

/// `None`: no limit.
fn upload_limit(text: &str) -> Result<Option<u64>, Invalid> {
    match text {
        "unlimited" => Ok(None),
        "off" => Ok(Some(0)),
        text => value::bytes(text).map(Some).map_err(|_| {
            Invalid("it is `unlimited`, `off` or a size per second, such as `2MiB`".into())
        }),
    }
}

/// What reads get that say nothing of freshness, as [`Freshness`] is written.
pub(crate) fn freshness(text: &str) -> Result<Freshness, Invalid> {
    match text.split_once(':') {
        None if text == "strict" => Ok(Freshness::Strict),
        Some(("bounded", bound)) => Ok(Freshness::Bounded(staleness(bound)?)),
        _ => Err(Invalid(
            "it is `strict`, or `bounded:` and a span of time, such as `bounded:60s`".into(),
        )),
    }
}

fn max_spec_len(pick: &mut Picker<'_>) -> Result<u64, ConfigError> {
    let bounded = |text: &str| match value::bytes(text)? {
        len if (1..=MAX_SPEC_LEN).contains(&len) => Ok(len),
        _ => Err(Invalid("a spec has between 1 byte and 16MiB".into())),
    };
    pick.or(Field::MaxSpecLen, default::MAX_SPEC_LEN, bounded)
}

#[cfg(test)]
mod tests;
