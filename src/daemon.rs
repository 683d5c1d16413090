//! What both daemons share: metrics, the watch over certificates, and the local socket.

use std::future::Future;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::answer::Failure;
use crate::bridge::http::{Listeners, ServeError, Server, SocketError, UnixOptions};
use crate::config::{IdentityPaths, LocalConfig};
use crate::net::{BindError, Runtime};
use crate::proto::code::Code;
use crate::proto::coordinator::ReplayError;
use crate::spec::SyntaxError;
use crate::store::cache::CacheError;
use crate::store::journal::JournalError;
use crate::store::lock::LockError;
use crate::store::mark::MarkError;
use crate::store::meta::MetaError;
use crate::store::vault::VaultError;
use crate::trust::{self, Identity, IdentityError, IdentityOptions};

/// The version that nodes tell each other.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How often certificates and trust are looked at for a change; tests do not wait as long.
const RELOAD_EVERY: Duration = match cfg!(test) {
    true => Duration::from_millis(50),
    false => Duration::from_secs(5),
};

/// How often the samples of histograms are put together.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// How long a daemon that was told to stop finishes what it has begun.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Program and version.
pub(crate) fn agent() -> String {
    format!("larder/{VERSION}")
}

/// Why a daemon does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Certificates, keys or the trust file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate's role is another one than the daemon's.
    #[error("a {wanted} cannot run with the certificate of {uri}")]
    Role {
        /// What was started.
        wanted: crate::identity::Role,
        /// Whose certificate it has.
        uri: crate::identity::NodeUri,
    },
    /// A coordinator without a usable head key.
    #[error("{0}")]
    HeadKey(&'static str),
    /// The UDP port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The local socket.
    #[error(transparent)]
    Local(#[from] ServeError),
    /// The coordinator's store.
    #[error("the coordinator's store does not open")]
    Vault(#[source] VaultError),
    /// The worker's store.
    #[error("the worker's store does not open")]
    Cache(#[source] CacheError),
    /// A journal whose records are whole and make no history.
    #[error("the journal makes no history")]
    Replay(#[from] ReplayError),
    /// The store's disk, while starting.
    #[error("the store failed while starting: {0}")]
    Disk(String),
    /// No thread.
    #[error("the operating system gives no thread")]
    Thread(#[source] std::io::Error),
}

/// Which part of a daemon refuses, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Certificates and trust.
    Trust,
    /// A port or a socket.
    Address,
    /// The store.
    Store,
    /// Anything else.
    Other,
}

impl RunError {
    /// Which part it is about.
    pub fn part(&self) -> Part {
        match self {
            Self::Identity(_)
            | Self::Role { .. }
            | Self::HeadKey(_)
            | Self::Bind(BindError::Throwaway { .. }) => Part::Trust,
            Self::Bind(_) | Self::Local(_) => Part::Address,
            Self::Vault(_) | Self::Cache(_) | Self::Replay(_) | Self::Disk(_) => Part::Store,
            Self::Thread(_) => Part::Other,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Identity(error) => Some(error.hint().to_owned()),
            Self::Role { wanted, .. } => Some(format!(
                "issue one with `larder certs issue --role {wanted} --name NAME` and pass its directory with `--certs`"
            )),
            Self::HeadKey(_) => Some(
                "`larder certs issue --role coordinator` puts `head.key` beside the certificate and its public half into trust.yaml".into(),
            ),
            Self::Bind(error) => Some(error.hint().to_owned()),
            Self::Local(error) => Some(local_hint(error).to_owned()),
            Self::Vault(VaultError::Lock(error)) | Self::Cache(CacheError::Lock(error)) => {
                Some(lock_hint(error).to_owned())
            }
            Self::Vault(VaultError::Journal(error)) => Some(journal_hint(error).to_owned()),
            Self::Vault(VaultError::View(error)) | Self::Cache(CacheError::Store(error)) => {
                Some(meta_hint(error).to_owned())
            }
            Self::Cache(CacheError::Mark(error)) => Some(mark_hint(error).to_owned()),
            Self::Replay(_) => Some(RESTORE.to_owned()),
            Self::Disk(_) => Some("check the disk and its free space".into()),
            Self::Thread(_) => None,
        }
    }
}

fn local_hint(error: &ServeError) -> &'static str {
    match error {
        ServeError::NotLoopback { .. } => "put a proxy of your own in front for other machines",
        ServeError::Tcp { .. } => "name another address with `--http`",
        ServeError::Socket(SocketError::InUse { .. } | SocketError::NotASocket { .. }) => {
            "name another one with `--socket`"
        }
        ServeError::Socket(SocketError::TooLong { .. }) => "name a shorter path with `--socket`",
        ServeError::Socket(SocketError::NoGroup { .. }) => "name a group with `--socket-group`",
        ServeError::Socket(SocketError::Io { .. }) => {
            "name a directory that this user may write to with `--socket`"
        }
    }
}

const RESTORE: &str =
    "move the store aside and bring the newest backup back with `larder restore FILE --store DIR`";

fn lock_hint(error: &LockError) -> &'static str {
    match error {
        LockError::Held { .. } => {
            "stop that process first, or name another directory with `--store`"
        }
        LockError::OtherRole { .. } => "name another directory with `--store`",
        LockError::Io { .. } => "check that this user may write there",
    }
}

fn journal_hint(error: &JournalError) -> &'static str {
    match error {
        JournalError::Io { .. } => "check the disk and that this user may write there",
        JournalError::Damaged { .. } | JournalError::Gone => RESTORE,
        JournalError::NewerFormat { .. } | JournalError::Unknown { .. } => {
            "start the version of Larder that wrote it, or a newer one"
        }
    }
}

fn mark_hint(error: &MarkError) -> &'static str {
    match error {
        MarkError::Io { .. } => "check the disk and that this user may write there",
        MarkError::Damaged | MarkError::Gone => {
            "if the coordinator was not set back, remove the worker's store: it starts empty and believes what the coordinator says now"
        }
        MarkError::NewerFormat { .. } => {
            "start the version of Larder that wrote it, or a newer one"
        }
    }
}

fn meta_hint(error: &MetaError) -> &'static str {
    match error {
        MetaError::NewerFormat { .. } => {
            "start the version of Larder that wrote it, or a newer one"
        }
        MetaError::OtherRole { .. } => "name another directory with `--store`",
        MetaError::Store(_) | MetaError::Damaged { .. } => {
            "check the disk and that this user may write there"
        }
    }
}

/// Loads certificates and trust.
pub(crate) fn load_identity(paths: &IdentityPaths) -> Result<Identity, IdentityError> {
    let options = IdentityOptions {
        allow_group_readable_key: paths.allow_group_readable_key,
    };
    let beside = |path: &Path| path.with_file_name("head.key");
    let files = trust::IdentityPaths {
        cert: paths.cert.clone(),
        key: paths.key.clone(),
        ca: paths.ca.clone(),
        trust: paths.trust.clone(),
        head_key: paths
            .head_key
            .clone()
            .unwrap_or_else(|| beside(&paths.cert)),
    };
    Identity::load(files, options)
}

/// Looks at the files of `identity` every few seconds until `runtime` stops, for a daemon and for
/// a node within another program alike.
pub(crate) fn watch(runtime: &Runtime, identity: &Identity) {
    let identity = identity.clone();
    runtime.handle().spawn(async move {
        let mut ticks = tokio::time::interval(RELOAD_EVERY);
        loop {
            ticks.tick().await;
            reload(&identity).await;
        }
    });
}

/// The same on SIGHUP, whose handler is a daemon's to take, for as long as it is polled.
async fn hangups(identity: &Identity) {
    let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let Ok(mut signal) = signal else {
        return std::future::pending().await;
    };
    while signal.recv().await.is_some() {
        tracing::info!("SIGHUP: looking at certificates and trust");
        reload(identity).await;
    }
}

/// What came of it is logged where it is known.
async fn reload(identity: &Identity) {
    let identity = identity.clone();
    let _ = tokio::task::spawn_blocking(move || identity.reload()).await;
}

/// Calls `chore` again and again: without it, the samples of every histogram would stay in memory
/// until someone asks for the metrics.
async fn upkeep(chore: impl Fn()) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        chore();
    }
}

/// Binds the local socket.
pub(crate) async fn local(config: &LocalConfig) -> Result<Listeners, ServeError> {
    let unix = UnixOptions {
        path: config.socket.clone(),
        group: config.socket_group.clone(),
    };
    Listeners::bind(Some(&unix), config.http).await
}

/// Runs the local socket, and what a daemon does besides, until `shutdown`.
pub(crate) async fn serve_local(
    server: Server,
    identity: &Identity,
    shutdown: impl Future<Output = ()>,
) {
    tokio::select! {
        () = server.run(shutdown) => {}
        () = hangups(identity) => {}
        () = upkeep(|| if let Some(metrics) = install_metrics() { metrics.run_upkeep() }) => {}
    }
}

/// All metrics of this process as Prometheus text.
pub(crate) fn metrics() -> String {
    install_metrics().map_or_else(String::new, PrometheusHandle::render)
}

/// Installs the recorder once per process; a host application may have one of its own.
pub(crate) fn install_metrics() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| PrometheusBuilder::new().install_recorder().ok())
        .as_ref()
}

/// A body that is no definition.
pub(crate) fn bad_syntax(error: SyntaxError) -> Failure {
    let code = match error {
        SyntaxError::TooLarge { .. } => Code::TooLarge,
        _ => Code::Invalid,
    };
    Failure::new(code.as_str(), error.to_string())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn histograms_are_put_together_although_nobody_asks_for_them() {
        let done = Cell::new(0);
        let running = upkeep(|| done.set(done.get() + 1));
        let _ = tokio::time::timeout(UPKEEP_EVERY * 10, running).await;
        assert!((10..=11).contains(&done.get()), "{}", done.get());
    }
}
