//! What `larder doctor` looks at: whether this machine and the paths to other nodes let a node do
//! its work.
//!
//! - `machine` and `target` observe: they open, ask and measure, and hold no opinion. What they
//!   have seen are the values in `seen`.
//! - `judge` says what that means and what to do about it. It is pure.
//! - [`Examination`] runs the checks beside each other, so many at once, each with a deadline, and
//!   gives their findings in an order that does not depend on who was first.
//!
//! Nothing is changed: a store is not opened, nothing is published, and no lease is asked for.
//! Other workers may hear that this one is there, since they are asked to dial it. What other nodes
//! say is shown and not relied upon.

mod judge;
mod machine;
mod seen;
mod target;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::machine::Stand;
use self::target::Target;
use crate::config::{Address, ConfigError, DoctorConfig, Kind, Sources};
use crate::daemon;
use crate::identity::Role;
use crate::net::{Endpoint, Runtime, Wanted};

/// Checks under way at once: enough that one silent address delays no other, few enough that they
/// do not lose each other's packets.
const CHECKS_AT_ONCE: usize = 16;

/// How long one check may take; each part of it has a shorter deadline of its own.
const CHECK_DEADLINE: Duration = Duration::from_secs(30);

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Certificate, key and trust file.
    Identity,
    /// Wall clock, boot clock and boot id.
    Clock,
    /// How many files the process may open.
    Files,
    /// The store's directory.
    Store,
    /// The UDP port of this node.
    Port,
    /// Socket buffers.
    Buffers,
    /// The addresses of a host name.
    Name,
    /// UDP, QUIC and TLS to one address.
    Reach,
    /// How long packets to one address may be.
    Mtu,
    /// Packets lost on the way to one address.
    Loss,
    /// Whether a coordinator holds a pinned head key.
    HeadKey,
    /// Whether others can dial this node.
    DialBack,
}

impl Check {
    /// Its name for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Clock => "clock",
            Self::Files => "files",
            Self::Store => "store",
            Self::Port => "port",
            Self::Buffers => "buffers",
            Self::Name => "name",
            Self::Reach => "reach",
            Self::Mtu => "mtu",
            Self::Loss => "loss",
            Self::HeadKey => "head key",
            Self::DialBack => "dial-back",
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A node works, and could work better.
    Warning,
    /// A node does not work, or not with that address.
    Failed,
    /// It could not be tested.
    Skipped,
}

impl Verdict {
    /// Its word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was tested.
    pub check: Check,
    /// Of which address, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, in one sentence. Parts of it may come from other nodes.
    pub finding: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    fn new(check: Check, verdict: Verdict, finding: impl Into<String>) -> Self {
        Self {
            check,
            about: None,
            verdict,
            finding: finding.into(),
            hint: None,
        }
    }

    fn about(mut self, about: impl Into<String>) -> Self {
        self.about = Some(about.into());
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The configuration of the node whose identity is configured, whichever role it has: a worker's
/// unless the certificate says otherwise, or only another role has one.
///
/// # Errors
/// [`ConfigError`] for the first option that is wrong.
pub fn configure(sources: &Sources) -> Result<DoctorConfig, ConfigError> {
    let mut nobody: Option<DoctorConfig> = None;
    for kind in [Kind::Worker, Kind::Coordinator, Kind::Client] {
        let config = DoctorConfig::load(sources, kind)?;
        if config.identity.is_some() {
            return match kind_of(&config) {
                Some(of) if of != kind => DoctorConfig::load(sources, of),
                _ => Ok(config),
            };
        }
        match &mut nobody {
            Some(first) => first.identity_searched.extend(config.identity_searched),
            None => nobody = Some(config),
        }
    }
    match nobody {
        Some(config) => Ok(config),
        None => DoctorConfig::load(sources, Kind::Worker),
    }
}

/// What the certificate is for, if it loads.
fn kind_of(config: &DoctorConfig) -> Option<Kind> {
    let identity = daemon::load_identity(config.identity.as_ref()?).ok()?;
    Some(match identity.uri().role() {
        Role::Coordinator => Kind::Coordinator,
        Role::Worker => Kind::Worker,
        Role::Publisher | Role::Reader => Kind::Client,
    })
}

/// Checks under way.
#[derive(Debug)]
pub struct Examination {
    running: VecDeque<Running>,
    endpoint: Option<Endpoint>,
    runtime: Runtime,
}

#[derive(Debug)]
struct Running {
    what: Finding,
    task: JoinHandle<Vec<Finding>>,
}

impl Examination {
    /// Starts every check of `config` on the runtime that this is called on.
    ///
    /// # Errors
    /// What the system says when it gives no thread for the network.
    pub async fn start(config: DoctorConfig) -> io::Result<Self> {
        let runtime = Runtime::start()?;
        let mut checks = Checks::default();
        let loaded = machine::identity(&config);
        let (seen, now_unix_s) = (loaded.seen, machine::unix_s());
        let judged = judge::identity(&seen, now_unix_s);
        checks.spawn(Check::Identity, None, async { vec![judged] });
        checks.spawn_blocking(Check::Clock, || judge::clock(&machine::clock()));
        checks.spawn_blocking(Check::Files, || judge::files(machine::files()));
        if let Some(dir) = config.store.clone() {
            let role = loaded.role.unwrap_or(Role::Worker);
            checks.spawn_blocking(Check::Store, move || {
                judge::store(&machine::store(&dir), role)
            });
        }
        let stand = Stand::take(&config, loaded.identity, &runtime).await;
        if let Some(port) = &stand.port {
            let judged = judge::port(port, &stand.uri);
            checks.spawn(Check::Port, None, async { vec![judged] });
        }
        checks.spawn_blocking(Check::Buffers, || judge::buffers(&machine::buffers()));
        let endpoint = stand.endpoint.clone();
        let stand = Arc::new(stand);
        if config.coordinators.is_empty() && config.kind != Kind::Coordinator {
            checks.spawn(Check::Reach, None, async { vec![judge::no_coordinator()] });
        }
        let coordinators = config
            .coordinators
            .iter()
            .map(|at| (at, Wanted::Coordinator));
        let new = |at: &&Address| !config.peers.contains(at) && !config.coordinators.contains(at);
        let workers = config.peers.iter().chain(config.join.iter().filter(new));
        let peers = workers.map(|at| (at, Wanted::Peer));
        for (address, wanted) in coordinators.chain(peers) {
            let target = Target::new(address.clone(), wanted, stand.clone());
            checks.spawn(Check::Reach, Some(address.to_string()), async move {
                judge::target(&target.look().await)
            });
        }
        Ok(Self {
            running: checks.running,
            endpoint,
            runtime,
        })
    }

    /// The findings of the next check, in a stable order; `None` after the last one.
    pub async fn next(&mut self) -> Option<Vec<Finding>> {
        let Running { what, task } = self.running.pop_front()?;
        Some(match task.await {
            Ok(findings) => findings,
            Err(error) => {
                let finding = format!("the check broke off: {error}");
                vec![Finding { finding, ..what }]
            }
        })
    }

    /// Tells the nodes that were asked that this one goes.
    pub async fn finish(self) {
        if let Some(endpoint) = self.endpoint {
            endpoint.drain(Duration::ZERO).await;
        }
        self.runtime.stop();
    }
}

/// Starts checks, each within its deadline and all within [`CHECKS_AT_ONCE`].
struct Checks {
    running: VecDeque<Running>,
    room: Arc<Semaphore>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            running: VecDeque::new(),
            room: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
        }
    }
}

impl Checks {
    fn spawn(
        &mut self,
        check: Check,
        about: Option<String>,
        look: impl Future<Output = Vec<Finding>> + Send + 'static,
    ) {
        let over = format!("it did not end within {} s", CHECK_DEADLINE.as_secs());
        let mut what = Finding::new(check, Verdict::Failed, over);
        what.about = about;
        let (room, late) = (self.room.clone(), what.clone());
        let task = tokio::spawn(async move {
            let _permit = room.acquire_owned().await;
            let found = timeout(CHECK_DEADLINE, look).await;
            found.unwrap_or_else(|_| vec![late])
        });
        self.running.push_back(Running { what, task });
    }

    /// The same for what may wait for a disk.
    fn spawn_blocking(&mut self, check: Check, look: impl FnOnce() -> Finding + Send + 'static) {
        self.spawn(check, None, async move {
            match tokio::task::spawn_blocking(look).await {
                Ok(finding) => vec![finding],
                Err(error) => {
                    let finding = format!("the check broke off: {error}");
                    vec![Finding::new(check, Verdict::Failed, finding)]
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
