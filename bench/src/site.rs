use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use larder::answer::Freshness;
use larder::config::{
    Address, CoordinatorConfig, IdentityPaths, LocalConfig, LogConfig, LogFormat, StoreChoice,
    WorkerConfig,
};
use larder::identity::Role;
use larder::proto::worker::Prefetch;
use larder::trust::issue::{self, NODE_VALIDITY, Order};

/// Far more than a measure keeps: nothing is evicted.
const STORE_BUDGET: u64 = 1 << 30;

/// A cluster of a coordinator and a worker that live on loopback.
pub(crate) fn init(dir: &Path) -> anyhow::Result<()> {
    issue::init(dir, "bench").context("a certificate authority")?;
    for (role, name) in [(Role::Coordinator, "c"), (Role::Worker, "w")] {
        let order = Order {
            role,
            name: name.into(),
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
        lease: Duration::from_secs(6),
        new_epoch: false,
    })
}

/// The worker of the cluster in `dir`.
pub(crate) fn worker(
    dir: &Path,
    coordinators: Vec<Address>,
    store: StoreChoice,
) -> anyhow::Result<WorkerConfig> {
    Ok(WorkerConfig {
        identity: identity(dir, Role::Worker, "w"),
        local: local(dir, "w.sock"),
        log: log(),
        listen: "127.0.0.1:0".parse()?,
        coordinators,
        peers: vec![],
        store,
        store_budget: STORE_BUDGET,
        deadline: Duration::from_secs(10),
        lease: false,
        prefetch: Prefetch::None,
        freshness: Freshness::Strict,
    })
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
