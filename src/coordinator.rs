//! The coordinator: the daemon that says what is current. Wiring only; what it decides stands in
//! [`proto::coordinator`](crate::proto::coordinator).

mod engine;
mod local;
mod service;
mod session;
#[cfg(test)]
mod spread;
mod whereabouts;
pub(crate) mod writer;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use self::engine::{Engine, Reporter};
use self::whereabouts::Whereabouts;
use crate::api::Api;
use crate::catalog::{CatalogId, Entry, HeadKey, HeadVerifier};
use crate::clock;
use crate::config::{CoordinatorConfig, StoreChoice};
use crate::daemon::{self, RunError};
use crate::identity::Role;
use crate::net::{Congestion, DialBack, Endpoint, EndpointOptions, Limits, Peer, Port, Runtime};
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{
    Askers, Coordinator as Machine, Input, Ledger, Options, ReplayError, Turn,
};
use crate::proto::wire::Holder;
use crate::spec::SpecHash;
use crate::store::vault::{DEFAULT_CACHE_BYTES, Vault};
use crate::trust::Identity;

/// A coordinator within this process; it ends with [`Coordinator::stop`].
pub struct Coordinator {
    node: Arc<Node>,
    runtime: Runtime,
    storage: Option<JoinHandle<()>>,
}

/// What lives as long as the coordinator.
struct Node {
    /// `None`: started without a store, it holds no catalog.
    engine: Option<Arc<Engine>>,
    /// Proves to each worker that this is the catalog's coordinator; as long as there is one.
    head_key: Option<HeadKey>,
    /// Tries whether workers can be dialled where they say.
    dial_back: DialBack,
    whereabouts: Whereabouts,
    endpoint: Endpoint,
    store_dir: Option<PathBuf>,
    max_spec_len: u64,
    /// Who has asked for which bytes lately.
    askers: Mutex<Askers>,
    /// The newest epoch has a visible revision; before that nobody is told anything.
    begun: AtomicBool,
    started: Instant,
}

impl Node {
    fn engine(&self) -> Option<&Arc<Engine>> {
        self.engine.as_ref()
    }

    fn head_key(&self) -> Option<&HeadKey> {
        self.head_key.as_ref()
    }

    fn catalog(&self) -> Result<&Arc<Engine>, Refusal> {
        if !self.begun.load(Ordering::Acquire) {
            let message = "a new epoch begins here once every lease of the old one has ended";
            return Err(Refusal::new(Code::Busy, message));
        }
        self.engine.as_ref().ok_or_else(|| {
            let message = "no catalog here: this coordinator was started without a store";
            Refusal::new(Code::NoCatalog, message)
        })
    }

    /// Waits until the newest epoch has begun, and takes requests from then on.
    async fn begin(&self) -> Result<(), RunError> {
        if let Some(engine) = &self.engine {
            engine.await_epoch().await.map_err(RunError::Disk)?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whom `peer` is to ask for these bytes instead, which it has said that it can; nobody where
    /// it gets them here.
    fn point(&self, peer: &Peer, hash: SpecHash) -> Vec<Holder> {
        if peer.uri.role() != Role::Worker {
            return Vec::new();
        }
        let is_there = |node| self.whereabouts.of(node).is_some();
        let turn = {
            let askers = self.askers.lock();
            let mut askers = askers.unwrap_or_else(PoisonError::into_inner);
            askers.ask(hash, peer.uri.id(), is_there, clock::now())
        };
        let Turn::Point(nodes) = turn else {
            return Vec::new();
        };
        metrics::counter!("larder_askers_pointed_total").increment(1);
        let holders = nodes.into_iter().filter_map(|node| {
            let addr = self.whereabouts.of(node)?;
            Some(Holder { node, addr })
        });
        holders.collect()
    }

    fn store_dir(&self) -> Option<&Path> {
        self.store_dir.as_deref()
    }

    fn max_spec_len(&self) -> u64 {
        self.max_spec_len
    }

    fn started(&self) -> Instant {
        self.started
    }
}

impl Coordinator {
    /// Binds the UDP port, opens the store, replays the journal and serves. Blocks while a new
    /// epoch waits for the leases of the one before to end.
    ///
    /// # Errors
    /// [`RunError`]; nothing that was acknowledged has changed then.
    pub fn start(config: &CoordinatorConfig) -> Result<Self, RunError> {
        Self::start_with(config, Congestion::default())
    }

    /// The same with a congestion controller that is not the usual one, to compare them.
    ///
    /// # Errors
    /// As [`Coordinator::start`].
    pub fn start_with(
        config: &CoordinatorConfig,
        congestion: Congestion,
    ) -> Result<Self, RunError> {
        let coordinator = Self::launch(config, congestion)?;
        let node = Arc::clone(&coordinator.node);
        let (told, begun) = std::sync::mpsc::channel();
        coordinator.runtime.handle().spawn(async move {
            let _ = told.send(node.begin().await);
        });
        let ended = |_| RunError::Thread(std::io::Error::other("the network thread has ended"));
        begun.recv().map_err(ended)??;
        Ok(coordinator)
    }

    /// The same, but requests are refused until [`Node::begin`] returns.
    fn launch(config: &CoordinatorConfig, congestion: Congestion) -> Result<Self, RunError> {
        let identity = daemon::load_identity(&config.identity)?;
        if identity.uri().role() != Role::Coordinator {
            return Err(RunError::Role {
                wanted: Role::Coordinator,
                uri: identity.uri().clone(),
            });
        }
        let port = Port::bind(config.listen, identity.uri().cluster())?;
        let runtime = Runtime::start().map_err(RunError::Thread)?;
        let head_key = match &config.store {
            StoreChoice::None => None,
            StoreChoice::Directory(_) => Some(head_key(&identity)?),
        };
        let opened = match (&config.store, &head_key) {
            (StoreChoice::Directory(dir), Some(key)) => Some(open(dir, key.clone(), config)?),
            _ => None,
        };
        let options = EndpointOptions {
            reset_key: opened
                .as_ref()
                .map_or_else(rand::random, |(_, _, key)| *key),
            agent: daemon::agent(),
            max_spec_len: config.max_spec_len,
            limits: Limits::default(),
            congestion,
        };
        daemon::watch(&runtime, &identity);
        let endpoint = Endpoint::start(runtime.handle(), port, identity, options)?;
        let mut engine = None;
        let mut storage = None;
        if let Some((vault, machine, _)) = opened
            && let StoreChoice::Directory(dir) = &config.store
        {
            let (started, thread) = start_engine(vault, machine, &runtime, dir)?;
            // One that was asked for before and has not begun is begun first.
            if config.new_epoch && !started.lacks_head() {
                let unix_ms = clock::unix_ms();
                started.drive(Input::NewEpoch { unix_ms });
            }
            engine = Some(started);
            storage = Some(thread);
        }
        let node = Arc::new(Node {
            engine,
            head_key,
            dial_back: DialBack::new(&endpoint),
            whereabouts: Whereabouts::default(),
            endpoint,
            store_dir: match &config.store {
                StoreChoice::Directory(dir) => Some(dir.clone()),
                StoreChoice::None => None,
            },
            max_spec_len: config.max_spec_len,
            askers: Mutex::default(),
            begun: AtomicBool::new(false),
            started: Instant::now(),
        });
        let serving = service::Serving(Arc::clone(&node));
        node.endpoint.serve(Arc::new(serving));
        Ok(Self {
            node,
            runtime,
            storage,
        })
    }

    /// What this coordinator can be asked, in the form that all ways in share.
    pub fn api(&self) -> &dyn Api {
        &self.node
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.node.endpoint.local_addr()
    }

    /// Takes no further request, finishes what is in progress within a few seconds, tells the
    /// workers, and closes the store.
    pub async fn stop(self) {
        let endpoint = self.node.endpoint.clone();
        let drained = self.runtime.handle().spawn(async move {
            endpoint.drain(daemon::DRAIN).await;
        });
        let _ = drained.await;
        // The tasks hold the engine, and the engine the queue to the storage thread.
        self.runtime.stop();
        drop(self.node);
        if let Some(storage) = self.storage
            && storage.join().is_err()
        {
            tracing::error!("the storage thread panicked");
        }
    }
}

fn start_engine(
    vault: Vault,
    machine: Machine,
    runtime: &Runtime,
    dir: &Path,
) -> Result<(Arc<Engine>, JoinHandle<()>), RunError> {
    let (jobs, queue) = writer::queue();
    let engine = Engine::new(machine, (&vault, dir), jobs, runtime.handle());
    let reporter = Reporter::of(&engine);
    let thread = std::thread::Builder::new()
        .name("larder-journal".into())
        .spawn(move || {
            writer::run(vault, &queue, |written, journal_len| {
                reporter.written(written, journal_len);
            });
        })
        .map_err(RunError::Thread)?;
    // Whatever was pending rolls forward.
    engine.drive(Input::Wake);
    Ok((engine, thread))
}

/// Opens the store in `dir` and replays its journal.
fn open(
    dir: &Path,
    key: HeadKey,
    config: &CoordinatorConfig,
) -> Result<(Vault, Machine, [u8; 32]), RunError> {
    let mut ledger: Option<Result<Ledger, ReplayError>> = None;
    let (mut vault, opened) = Vault::open(dir, DEFAULT_CACHE_BYTES, |entry| {
        ledger = Some(match ledger.take() {
            None => Ledger::begin(entry),
            Some(Ok(mut before)) => before.replay(entry.clone()).map(|()| before),
            Some(Err(error)) => Err(error),
        });
    })
    .map_err(RunError::Vault)?;
    let ledger = match ledger {
        Some(replayed) => replayed.and_then(Ledger::finish)?,
        None => begin(&mut vault, &key)?,
    };
    let fresh = rand::random();
    let reset_key = vault.reset_key(fresh).unwrap_or_else(|error| {
        tracing::warn!(
            %error,
            "the key for stateless resets cannot be kept, so after the next start peers notice \
             a little later that their connections are gone"
        );
        fresh
    });
    let view = ledger.view();
    tracing::info!(
        store = %dir.display(),
        catalog = %view.catalog,
        epoch = %view.epoch,
        revision = %view.records.rev(),
        names = view.records.names(),
        bodies = opened.bodies,
        torn_bytes = opened.torn_bytes,
        view_absent = opened.view_absent,
        "store open"
    );
    let options = Options {
        max_spec_len: config.max_spec_len,
        lease: config.lease,
        ..Options::default()
    };
    let machine = Machine::new(
        ledger,
        Arc::new(key),
        options,
        clock::unix_ms(),
        clock::now(),
    );
    Ok((vault, machine, reset_key))
}

/// Makes a new catalog.
fn begin(vault: &mut Vault, key: &HeadKey) -> Result<Ledger, RunError> {
    let genesis: Entry = Machine::genesis(CatalogId::from_bytes(rand::random()), key);
    let disk = |error: crate::store::journal::AppendError| {
        RunError::Disk(crate::worker::with_causes(&error))
    };
    vault.append(&genesis).map_err(disk)?;
    vault.sync().map_err(disk)?;
    Ok(Ledger::begin(&genesis).and_then(Ledger::finish)?)
}

/// The key that signs heads; it must be one that workers pin.
fn head_key(identity: &Identity) -> Result<HeadKey, RunError> {
    let credentials = identity.current();
    let Some(key) = credentials.head_key() else {
        return Err(RunError::HeadKey("a coordinator needs its `head.key`"));
    };
    let probe = b"larder head key check";
    let signature = crate::catalog::HeadSigner::sign(key, probe);
    if !credentials.trust().head_keys().verify(probe, &signature) {
        return Err(RunError::HeadKey(
            "the public half of `head.key` is not among `head_keys` in trust.yaml, so no worker would believe this coordinator",
        ));
    }
    Ok(key.clone())
}

/// Runs a coordinator until `shutdown`.
///
/// # Errors
/// [`RunError`] when it cannot start; nothing that was acknowledged has changed then.
pub async fn run(
    config: CoordinatorConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    daemon::install_metrics();
    // Before anything happens that cannot be taken back, such as a new epoch.
    let listeners = daemon::local(&config.local).await?;
    let coordinator = Coordinator::launch(&config, Congestion::default())?;
    let node = Arc::clone(&coordinator.node);
    let server = listeners.with(Arc::new(local::Local(Arc::clone(&node))));
    let http = server.tcp_addr();
    let failed = {
        let ready = async {
            node.begin().await?;
            tracing::info!(
                uri = %node.endpoint.identity().uri(),
                listen = %node.endpoint.local_addr(),
                socket = %config.local.socket.display(),
                http = http.map(tracing::field::display),
                "coordinator ready"
            );
            std::future::pending::<Result<(), RunError>>().await
        };
        // A new epoch may take as long to begin as a lease lasts: it can be stopped meanwhile.
        tokio::select! {
            () = daemon::serve_local(server, node.endpoint.identity(), shutdown) => Ok(()),
            failed = ready => failed,
        }
    };
    tracing::info!("coordinator stopping");
    drop(node);
    coordinator.stop().await;
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::site::Site;

    #[tokio::test]
    async fn a_coordinator_that_waits_for_old_leases_can_be_stopped() {
        let site = Site::new();
        let mut config = site.coordinator_config(site.store("c"));
        config.lease = crate::proto::limit::MAX_LEASE;
        config.new_epoch = true;
        config.local.socket = site.path("c.sock");
        let running = run(config, std::future::ready(()));
        let stopped = tokio::time::timeout(MAX_TEST, running).await;
        stopped.expect("it does not wait").expect("it stops well");
    }

    /// Far less than it would wait for.
    const MAX_TEST: std::time::Duration = std::time::Duration::from_secs(30);
}
