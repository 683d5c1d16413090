//! Looks at this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::Access;
use rustls::pki_types::UnixTime;
use serde_json::Value;
use tokio::time::timeout;

use super::seen::{ClockSeen, DaemonSaid, IdentitySeen, Place, PortSeen, StoreSeen};
use crate::api::Api;
use crate::bridge::http::HttpClient;
use crate::config::{Address, DoctorConfig};
use crate::identity::{NodeUri, Role};
use crate::net::{
    BindError, Buffers, Endpoint, EndpointOptions, Limits, Peer, Port, Reply, Runtime, Service,
    SessionKey,
};
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::{HeadBytes, ProofBytes, Request};
use crate::spec::MAX_SPEC_LEN;
use crate::store::lock;
use crate::trust::Identity;
use crate::{client, clock, daemon};

/// How long the daemon on this machine may take to say who it is.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(5);

/// Wall clock, seconds since 1970.
pub(super) fn unix_s() -> u64 {
    clock::unix_ms() / 1_000
}

/// An identity as far as it loads.
pub(super) struct LoadedIdentity {
    pub(super) seen: IdentitySeen,
    pub(super) role: Option<Role>,
    pub(super) identity: Option<Identity>,
}

/// Loads the identity.
pub(super) fn identity(config: &DoctorConfig) -> LoadedIdentity {
    let nobody = |seen| LoadedIdentity {
        seen,
        role: None,
        identity: None,
    };
    let Some(paths) = &config.identity else {
        let searched = config.identity_searched.clone();
        return nobody(IdentitySeen::Missing { searched });
    };
    let identity = match daemon::load_identity(paths) {
        Ok(identity) => identity,
        Err(error) => {
            return nobody(IdentitySeen::Unusable {
                error: causes_once(&error),
                hint: error.hint(),
            });
        }
    };
    let current = identity.current();
    LoadedIdentity {
        seen: IdentitySeen::Loaded {
            uri: identity.uri().clone(),
            validity: current.validity(),
            refused: current.check_self(UnixTime::now()).err(),
        },
        role: Some(identity.uri().role()),
        identity: Some(identity),
    }
}

/// An error with those of its causes that its own text does not say already.
fn causes_once(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Reads the clocks.
pub(super) fn clock() -> ClockSeen {
    ClockSeen {
        unix_s: unix_s(),
        boot_clock: clock::now().as_micros() > 0,
        boot_id: clock::boot_id().is_some(),
    }
}

/// How many files this process may open; `None` without a limit.
pub(super) fn files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Looks at the store's directory and makes nothing.
pub(super) fn store(dir: &Path) -> StoreSeen {
    let (place, exists) = match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => {
            let place = Place::Directory {
                writable: is_writable(dir),
                mode: found.permissions().mode() & 0o777,
                holder: lock::holder(dir).map_err(|error| error.to_string()),
            };
            (place, dir.to_owned())
        }
        Ok(_) => (Place::Other, dir.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = nearest(dir);
            let writable = is_writable(&parent);
            (
                Place::Nothing {
                    parent: parent.clone(),
                    writable,
                },
                parent,
            )
        }
        Err(error) => (Place::Unknown(error.to_string()), dir.to_owned()),
    };
    let room = rustix::fs::statvfs(&exists).ok();
    StoreSeen {
        dir: dir.to_owned(),
        place,
        free: room.map(|room| room.f_bavail.saturating_mul(room.f_frsize)),
    }
}

fn nearest(dir: &Path) -> PathBuf {
    let mut above = dir.ancestors().skip(1);
    let found = above.find(|dir| !dir.as_os_str().is_empty() && dir.exists());
    found.unwrap_or(Path::new(".")).to_owned()
}

fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// What a socket of this process gets.
pub(super) fn buffers() -> Result<Buffers, String> {
    let port = Port::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), "");
    let port = port.map_err(|error| causes_once(&error))?;
    port.buffers().map_err(|error| error.to_string())
}

/// From where this node speaks to others while it is examined.
#[derive(Debug)]
pub(super) struct Stand {
    /// What came of its port; `None` for a client, which has none.
    pub(super) port: Option<PortSeen>,
    /// Where others are to dial it, if that is not where it listens.
    pub(super) advertise: Option<SocketAddr>,
    /// Who it is, if it has an identity.
    pub(super) uri: Option<NodeUri>,
    /// Dials, and answers those who dial back; `None` without an identity or a socket.
    pub(super) endpoint: Option<Endpoint>,
}

impl Stand {
    /// Takes the port that the node would have. When that is not to be had, another one of the
    /// same address, so that packets take the same way.
    pub(super) async fn take(
        config: &DoctorConfig,
        identity: Option<Identity>,
        runtime: &Runtime,
    ) -> Self {
        let uri = identity.as_ref().map(|identity| identity.uri().clone());
        let cluster = uri.as_ref().map_or("", NodeUri::cluster);
        let bound = config.listen.map(|listen| Port::bind(listen, cluster));
        let mut taken = None;
        let port = match bound {
            Some(Ok(port)) => {
                let addr = port.local_addr();
                taken = Some(port);
                Some(PortSeen::Free(addr))
            }
            Some(Err(BindError::InUse { addr, .. })) => {
                let beside = SocketAddr::new(addr.ip(), 0);
                taken = Port::bind(beside, cluster).ok();
                Some(in_use(addr, config.socket.clone()).await)
            }
            Some(Err(error)) => Some(PortSeen::Refused(error)),
            None => None,
        };
        let taken = taken.or_else(|| {
            let all = config.coordinators.iter().chain(&config.peers);
            let all: Vec<Address> = all.cloned().collect();
            Port::bind(client::local_addr(&all), cluster).ok()
        });
        let endpoint = identity.zip(taken).and_then(|(identity, port)| {
            let endpoint = Endpoint::start(runtime.handle(), port, identity, options()).ok()?;
            endpoint.serve(Arc::new(Nobody));
            Some(endpoint)
        });
        Self {
            port,
            advertise: config.advertise,
            uri,
            endpoint,
        }
    }
}

fn options() -> EndpointOptions {
    EndpointOptions {
        reset_key: rand::random(),
        agent: daemon::agent(),
        max_spec_len: MAX_SPEC_LEN,
        limits: Limits::default(),
        congestion: crate::net::Congestion::default(),
    }
}

async fn in_use(addr: SocketAddr, socket: Option<PathBuf>) -> PortSeen {
    let daemon = match &socket {
        Some(path) => match timeout(DAEMON_TIMEOUT, ask_daemon(path)).await {
            Ok(said) => said,
            Err(_) => Err(format!("no answer within {} s", DAEMON_TIMEOUT.as_secs())),
        },
        None => Err("no socket is configured".into()),
    };
    PortSeen::InUse {
        addr,
        socket,
        daemon,
    }
}

async fn ask_daemon(socket: &Path) -> Result<DaemonSaid, String> {
    let client = HttpClient::connect(socket).await;
    let client = client.map_err(|failure| failure.to_string())?;
    let status = client.status().await;
    let status = status.map_err(|failure| failure.to_string())?;
    let text = |key: &str| status.get(key).and_then(Value::as_str).map(str::to_owned);
    match (text("uri"), text("listen")) {
        (Some(uri), Some(listen)) => Ok(DaemonSaid { uri, listen }),
        _ => Err("what answers there does not say who it is".into()),
    }
}

/// Welcomes whoever dials back, and answers nothing.
struct Nobody;

impl Service for Nobody {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, _: Peer, _: Request, _: Bytes, reply: &mut Reply) {
        let message = "this node is being examined and does not run";
        // An asker that is gone has nothing to be told.
        let _ = reply.refuse(&Refusal::new(Code::Draining, message)).await;
    }
}
