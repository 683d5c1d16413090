use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use larder::Worker;
use larder::answer::{Freshness, Mode, Query, Target};
use larder::config::{
    Address, CoordinatorConfig, IdentityPaths, LocalConfig, LogConfig, LogFormat, StoreChoice,
    WorkerConfig,
};
use larder::identity::Role;
use larder::proto::limit::DEFAULT_LEASE;
use larder::proto::worker::Prefetch;
use larder::spec::SpecName;
use larder::trust::issue::{self, NODE_VALIDITY, Order};

/// Far more than a measure keeps: nothing is evicted.
const STORE_BUDGET: u64 = 1 << 30;

/// How long a worker may take to get a lease, with 199 others that want one.
pub(crate) const LEASE_PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of a coordinator and some workers that live on loopback.
pub(crate) fn init(dir: &Path, workers: usize) -> anyhow::Result<()> {
    issue::init(dir, "bench").context("a certificate authority")?;
    let workers = (0..workers).map(|number| (Role::Worker, worker_name(number)));
    for (role, name) in [(Role::Coordinator, "c".into())].into_iter().chain(workers) {
        let order = Order {
            role,
            name,
            valid_for: NODE_VALIDITY,
            out: None,
            force: false,
        };
        issue::issue(dir, &order).context("a certificate")?;
    }
    Ok(())
}

/// The coordinator of the cluster in `dir`.
pub(crate) fn coordinator(dir: &Path) -> anyhow::Result<CoordinatorConfig> {
    Ok(CoordinatorConfig {
        identity: identity(dir, Role::Coordinator, "c"),
        local: local(dir, "c.sock"),
        log: log(),
        listen: "127.0.0.1:0".parse()?,
        store: StoreChoice::Directory(dir.join("coordinator-store")),
        max_spec_len: 1 << 20,
        lease: DEFAULT_LEASE,
        new_epoch: false,
    })
}

/// A worker of the cluster in `dir`, as larder configures one.
pub(crate) fn worker(
    dir: &Path,
    number: usize,
    coordinators: Vec<Address>,
    store: StoreChoice,
) -> anyhow::Result<WorkerConfig> {
    let name = worker_name(number);
    Ok(WorkerConfig {
        identity: identity(dir, Role::Worker, &name),
        local: local(dir, &format!("{name}.sock")),
        log: log(),
        listen: "127.0.0.1:0".parse()?,
        coordinators,
        peers: vec![],
        membership: None,
        relay: false,
        store,
        store_budget: STORE_BUDGET,
        upload_limit: None,
        deadline: Duration::from_secs(10),
        lease: true,
        prefetch: Prefetch::Used,
        freshness: Freshness::Strict,
    })
}

/// Reads until an answer needs nobody's help, which a worker takes some milliseconds to reach.
pub(crate) async fn await_lease(worker: &Worker) -> anyhow::Result<()> {
    let absent: SpecName = "bench/absent".parse()?;
    let patience = Instant::now() + LEASE_PATIENCE;
    loop {
        let query = Query::strict(Target::Name(absent.clone()));
        let last = worker.query(query).await;
        if matches!(&last, Ok(answer) if answer.proof.mode == Mode::Lease) {
            return Ok(());
        }
        ensure!(Instant::now() < patience, "no lease: {last:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn worker_name(number: usize) -> String {
    format!("w{number}")
}

fn identity(dir: &Path, role: Role, name: &str) -> IdentityPaths {
    let dir = dir.join(role.as_str()).join(name);
    let head_key = matches!(role, Role::Coordinator).then(|| dir.join("head.key"));
    IdentityPaths {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        ca: dir.join("ca.pem"),
        trust: dir.join("trust.yaml"),
        head_key,
        allow_group_readable_key: false,
    }
}

fn local(dir: &Path, name: &str) -> LocalConfig {
    LocalConfig {
        socket: dir.join(name),
        socket_group: None,
        http: None,
    }
}

fn log() -> LogConfig {
    LogConfig {
        filter: "warn".into(),
        format: LogFormat::Human,
    }
}
