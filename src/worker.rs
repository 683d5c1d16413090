//! The worker: the daemon beside an engine, or the crate inside it. Wiring only; what it decides
//! stands in [`proto::worker`](crate::proto::worker).

mod call;
mod carrier;
mod copy;
mod engine;
mod forward;
mod head;
mod keeper;
mod leased;
mod local;
mod members;
mod neighbours;
mod peers;
mod relayed;
mod run;
mod saver;
mod service;
mod traffic;
mod uploads;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::engine::Engine;
pub(crate) use self::engine::with_causes;
use self::forward::Preferred;
pub(crate) use self::head::PinnedKeys;
use self::members::Members;
use crate::answer::{Answer, Freshness, GetError, Query, Target};
use crate::api::Api;
use crate::config::{Membership, StoreChoice, WorkerConfig};
use crate::daemon::{self, RunError};
use crate::identity::Role;
use crate::net::{Congestion, Endpoint, EndpointOptions, Limits, Port, Runtime};
use crate::proto::wire::{Peering, SessionId};
use crate::proto::worker::Config;
use crate::spec::{MAX_SPEC_LEN, NameError, SpecName};
use crate::store::cache::{self, WorkerStore};
use crate::trust::Identity;

/// How often a coordinator address without a connection is dialled anew, so that the first read
/// after an outage finds one.
const KEEP_EVERY: Duration = Duration::from_millis(500);

/// A worker within this process. Cheap to clone; it ends with [`Worker::stop`].
///
/// ```no_run
/// # async fn example(config: larder::config::WorkerConfig) -> Result<(), Box<dyn std::error::Error>> {
/// use larder::answer::Freshness;
///
/// let worker = larder::Worker::start(&config)?;
/// let answer = worker.get("etl/child", Freshness::Strict).await?;
/// println!("{:?} from {}", answer.spec, answer.proof.source);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Worker(Arc<Node>);

/// What lives as long as the worker.
#[derive(Debug)]
pub(crate) struct Node {
    engine: Arc<Engine>,
    /// `None` where it does not look for others.
    members: Option<Arc<Members>>,
    /// `None` once it has been stopped.
    runtime: Mutex<Option<Runtime>>,
    deadline: Duration,
    /// For what is forwarded; reads have an order of their own.
    preferred: Preferred,
    /// What a read gets that says nothing of freshness.
    freshness: Freshness,
    store_dir: Option<PathBuf>,
    /// Whether it carries packets of others to the coordinator.
    carries: bool,
    started: Instant,
}

impl Node {
    fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    fn members(&self) -> Option<&Arc<Members>> {
        self.members.as_ref()
    }

    fn store_dir(&self) -> Option<&Path> {
        self.store_dir.as_deref()
    }

    fn carries(&self) -> bool {
        self.carries
    }

    fn started(&self) -> Instant {
        self.started
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn default_freshness(&self) -> Freshness {
        self.freshness
    }
}

/// Why a read by name failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The text is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no answer.
    #[error(transparent)]
    Get(#[from] GetError),
}

impl Worker {
    /// Binds the UDP port, opens the store and serves peers.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn start(config: &WorkerConfig) -> Result<Self, RunError> {
        Self::start_with(config, Congestion::default())
    }

    /// The same with a congestion controller that is not the usual one, to compare them.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn start_with(config: &WorkerConfig, congestion: Congestion) -> Result<Self, RunError> {
        let identity = daemon::load_identity(&config.identity)?;
        if identity.uri().role() != Role::Worker {
            return Err(RunError::Role {
                wanted: Role::Worker,
                uri: identity.uri().clone(),
            });
        }
        let worker = Self::open_with(config, identity, congestion)?;
        let Self(node) = &worker;
        let serving = service::Serving::new(Arc::clone(node), config.upload_limit);
        node.engine.endpoint().serve(Arc::new(serving));
        Ok(worker)
    }

    /// The same without serving peers: what a command does that speaks for itself.
    ///
    /// # Errors
    /// [`RunError`].
    pub(crate) fn open(config: &WorkerConfig, identity: Identity) -> Result<Self, RunError> {
        Self::open_with(config, identity, Congestion::default())
    }

    fn open_with(
        config: &WorkerConfig,
        identity: Identity,
        congestion: Congestion,
    ) -> Result<Self, RunError> {
        let port = Port::bind(config.listen, identity.uri().cluster())?;
        let store = match &config.store {
            StoreChoice::Directory(dir) => {
                let options = cache::Options {
                    budget_bytes: config.store_budget,
                    ..cache::Options::default()
                };
                let (store, opened) = WorkerStore::open(dir, options).map_err(RunError::Cache)?;
                tracing::info!(
                    store = %dir.display(),
                    blobs = opened.blobs,
                    lost_blobs = opened.lost_blobs,
                    live_bytes = opened.live_bytes,
                    "store open"
                );
                store
            }
            StoreChoice::None => WorkerStore::in_memory(config.store_budget),
        };
        let runtime = Runtime::start().map_err(RunError::Thread)?;
        let options = EndpointOptions {
            reset_key: store
                .reset_key(rand::random())
                .map_err(|error| RunError::Disk(with_causes(&error)))?,
            agent: daemon::agent(),
            max_spec_len: MAX_SPEC_LEN,
            limits: Limits::default(),
            congestion,
        };
        daemon::watch(&runtime, &identity);
        let role = identity.uri().role();
        let endpoint = Endpoint::start(runtime.handle(), port, identity, options)?;
        let machine = Config {
            coordinators: config
                .coordinators
                .iter()
                .map(ToString::to_string)
                .collect(),
            peers: config.peers.iter().map(ToString::to_string).collect(),
            seed: rand::random(),
            sid: SessionId::new(rand::random()),
            lease: config.lease,
            prefetch: config.prefetch,
            peering: peering(config, role),
            relay: config.relay,
        };
        let engine = Engine::new(&machine, Arc::new(store), endpoint, runtime.handle())?;
        runtime.handle().spawn(keep_links(Arc::downgrade(&engine)));
        let weak = Arc::downgrade(&engine);
        let toward = move || weak.upgrade()?.coordinator_addr();
        engine.endpoint().roam(toward);
        let gives = config.upload_limit != Some(0);
        let members = config.membership.as_ref();
        let members =
            members.map(|config| Members::start(&engine, config, gives, runtime.handle()));
        Ok(Self(Arc::new(Node {
            engine,
            members,
            runtime: Mutex::new(Some(runtime)),
            deadline: config.deadline,
            preferred: Preferred::default(),
            freshness: config.freshness,
            store_dir: match &config.store {
                StoreChoice::Directory(dir) => Some(dir.clone()),
                StoreChoice::None => None,
            },
            carries: config.relay,
            started: Instant::now(),
        })))
    }

    /// Reads what a name stands for.
    ///
    /// # Errors
    /// [`ReadError`]; an absent name is an answer and no error.
    pub async fn get(&self, name: &str, freshness: Freshness) -> Result<Answer, ReadError> {
        let name: SpecName = name.parse()?;
        let query = Query {
            target: Target::Name(name),
            freshness,
            deadline: self.0.deadline,
        };
        Ok(self.query(query).await?)
    }

    /// What the configuration gives to reads that say nothing of freshness: a caller that wants
    /// that asks for it by this, since [`Worker::get`] never weakens what it was asked for.
    pub fn default_freshness(&self) -> Freshness {
        self.0.freshness
    }

    /// Reads one definition.
    ///
    /// # Errors
    /// [`GetError`]; an absent name is an answer and no error.
    pub async fn query(&self, query: Query) -> Result<Answer, GetError> {
        self.0.engine.get(query).await
    }

    /// Reads several definitions, in the order asked. What needs the coordinator's truth goes out
    /// as one request and so shows one revision: up to 1,024 names that nobody else is asking for
    /// already, apart from those whose bytes here are longer than 128 KiB. For one revision
    /// whatever happens, read at a [`run token`](crate::answer::RunToken).
    pub async fn query_all(&self, queries: Vec<Query>) -> Vec<Result<Answer, GetError>> {
        self.0.engine.get_all(queries).await
    }

    /// What this worker can be asked, in the form that all ways in share.
    pub fn api(&self) -> &dyn Api {
        &self.0
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.0.engine.endpoint().local_addr()
    }

    /// Takes no further read, finishes what is in progress within a few seconds, tells peers,
    /// and writes what the cache still holds in memory. The store is closed when this returns,
    /// unless another clone is left.
    pub async fn stop(self) {
        self.0.engine.stop_reads();
        self.0.engine.leave().await;
        if let Some(members) = &self.0.members {
            members.leave();
        }
        let runtime = self.0.runtime.lock();
        let runtime = runtime.unwrap_or_else(PoisonError::into_inner).take();
        let Some(runtime) = runtime else {
            return;
        };
        let endpoint = self.0.engine.endpoint().clone();
        let drained = runtime.handle().spawn(async move {
            endpoint.drain(daemon::DRAIN).await;
        });
        let _ = drained.await;
        // The tasks hold the engine, and the engine the store.
        runtime.stop();
    }
}

/// Runs a worker until `shutdown`.
///
/// # Errors
/// [`RunError`] when it cannot start; nothing was changed then.
pub async fn run(config: WorkerConfig, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    daemon::install_metrics();
    let listeners = daemon::local(&config.local).await?;
    let worker = Worker::start(&config)?;
    let server = listeners.with(Arc::new(local::Local(Arc::clone(&worker.0))));
    let endpoint = worker.0.engine.endpoint().clone();
    tracing::info!(
        uri = %endpoint.identity().uri(),
        listen = %endpoint.local_addr(),
        socket = %config.local.socket.display(),
        http = server.tcp_addr().map(tracing::field::display),
        coordinators = config.coordinators.len(),
        peers = config.peers.len(),
        "worker ready"
    );
    daemon::serve_local(server, endpoint.identity(), shutdown).await;
    tracing::info!("worker stopping");
    worker.stop().await;
    Ok(())
}

/// Keeps a connection to each coordinator address up, with the link's own jittered backoff.
async fn keep_links(engine: std::sync::Weak<Engine>) {
    loop {
        let Some(engine) = engine.upgrade() else {
            return;
        };
        for link in engine.coordinator_links() {
            let link = link.link();
            if link.rtt().is_none() {
                let _ = link.connect(None).await;
            }
        }
        drop(engine);
        tokio::time::sleep(KEEP_EVERY).await;
    }
}

/// How a worker takes part in passing bytes on. Who is pointed elsewhere has to be one whom others
/// may know; where it is reached is not said here, so an address that was given by hand counts only
/// once membership has told it.
fn peering(config: &WorkerConfig, role: Role) -> Peering {
    let is_heard = |membership: &Membership| membership.advertise.is_none();
    let gives = config.membership.as_ref().is_some_and(is_heard) && config.upload_limit != Some(0);
    match (role, gives) {
        (Role::Worker, true) => Peering::Gives,
        (Role::Worker, false) => Peering::Takes,
        _ => Peering::Alone,
    }
}

#[cfg(test)]
mod tests;
