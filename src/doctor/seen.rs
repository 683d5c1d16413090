//! What was observed, before anyone says what it means.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::catalog::{CatalogId, Epoch, Revision};
use crate::config::Address;
use crate::identity::NodeUri;
use crate::net::{BindError, Knock, LinkError, Path};
use crate::store::lock::Holder;
use crate::trust::{Untrusted, Validity};

/// The files of an identity.
#[derive(Debug)]
pub(super) enum IdentitySeen {
    /// There are none.
    Missing {
        /// Where they were looked for.
        searched: Vec<PathBuf>,
    },
    /// They do not load.
    Unusable {
        /// Why, with the causes.
        error: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// They load.
    Loaded {
        /// Who the certificate says this node is.
        uri: NodeUri,
        /// When it is valid.
        validity: Option<Validity>,
        /// Why a peer with the same trust file would refuse it.
        refused: Option<Untrusted>,
    },
}

/// The clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockSeen {
    /// Wall clock, seconds since 1970.
    pub(super) unix_s: u64,
    /// Whether the boot clock runs.
    pub(super) boot_clock: bool,
    /// Whether this start of the kernel has a name that can be read.
    pub(super) boot_id: bool,
}

/// The store's directory.
#[derive(Debug)]
pub(super) struct StoreSeen {
    /// As configured.
    pub(super) dir: PathBuf,
    /// What is there.
    pub(super) place: Place,
    /// Free bytes where it lies, if the system says.
    pub(super) free: Option<u64>,
}

/// What is where a store should be.
#[derive(Debug)]
pub(super) enum Place {
    /// Nothing; it will be made below this directory.
    Nothing {
        /// The nearest directory that exists.
        parent: PathBuf,
        /// Whether this user may write there.
        writable: bool,
    },
    /// A directory.
    Directory {
        /// Whether this user may write there.
        writable: bool,
        /// Its mode, permissions only.
        mode: u32,
        /// Who holds its lock, or why that cannot be told.
        holder: Result<Option<Holder>, String>,
    },
    /// Something that is no directory.
    Other,
    /// What the system said instead.
    Unknown(String),
}

/// The UDP port of this node.
#[derive(Debug)]
pub(super) enum PortSeen {
    /// It could be bound.
    Free(SocketAddr),
    /// It could not.
    Refused(BindError),
    /// Somebody has it; what the daemon says that is asked over the local socket.
    InUse {
        /// The address.
        addr: SocketAddr,
        /// The socket that was asked.
        socket: Option<PathBuf>,
        /// The answer, or why there is none.
        daemon: Result<DaemonSaid, String>,
    },
}

/// What a daemon on this machine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DaemonSaid {
    /// Who it is.
    pub(super) uri: String,
    /// Where it listens.
    pub(super) listen: String,
}

/// One configured address and all that it resolves to.
#[derive(Debug)]
pub(super) struct TargetSeen {
    /// As configured.
    pub(super) given: Address,
    /// Its addresses, or why there are none.
    pub(super) addrs: Result<Vec<AddrSeen>, NoAddrs>,
}

/// Why a name has no addresses.
#[derive(Debug)]
pub(super) enum NoAddrs {
    /// What the resolver said.
    Refused(String),
    /// It did not answer.
    Silent(Duration),
}

/// One address of another node.
#[derive(Debug)]
pub(super) struct AddrSeen {
    /// Where.
    pub(super) addr: SocketAddr,
    /// What came of it.
    pub(super) reach: Reach,
    /// What more was asked over the connection.
    pub(super) session: Option<SessionSeen>,
}

/// Whether an address answers.
#[derive(Debug)]
pub(super) enum Reach {
    /// This node's socket is bound to loopback, and that address is not there.
    LoopbackOnly,
    /// This node's socket is of the other family.
    OtherFamily,
    /// More addresses than a node tries.
    BeyondLimit,
    /// Without an identity there is no handshake.
    Knocked(Knock),
    /// The dial failed.
    Failed {
        /// Why.
        error: LinkError,
        /// Whether anything answers there.
        knock: Knock,
    },
    /// A node answers.
    Up {
        /// Who.
        uri: NodeUri,
        /// Its program and version.
        agent: String,
        /// From the first packet to the end of the hello.
        took: Duration,
        /// Round trip time.
        rtt: Duration,
    },
}

/// What came of a connection that is up.
#[derive(Debug)]
pub(super) struct SessionSeen {
    /// Of its path, once that is known; `None` when the connection ended before.
    pub(super) path: Option<Path>,
    /// A burst of small requests.
    pub(super) burst: Burst,
    /// What it has proven of its catalog; `None` for a peer, which need not.
    pub(super) head: Option<HeadSeen>,
    /// When the newest revision was published by the coordinator's clock, and this clock then.
    pub(super) newest: Option<Newest>,
    /// Whether this node can be dialled; `None` when it is no worker.
    pub(super) dial_back: Option<DialBackSeen>,
}

/// Requests one shortly after the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Burst {
    /// How many were sent.
    pub(super) asked: usize,
    /// How long each answer took, of those that were answered.
    pub(super) took: Vec<Duration>,
    /// Why the last one without an answer has none.
    pub(super) error: Option<String>,
}

/// What a coordinator has proven.
#[derive(Debug)]
pub(super) enum HeadSeen {
    /// It holds no catalog.
    NoCatalog,
    /// That it holds a pinned head key.
    Proven {
        /// Of this catalog.
        catalog: CatalogId,
        /// In this epoch.
        epoch: Epoch,
        /// At this revision.
        rev: Revision,
    },
    /// Nothing, and why.
    Unproven(String),
}

/// Times of the newest revision, milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newest {
    /// By the coordinator's clock, when it was published.
    pub(super) published_unix_ms: u64,
    /// By this clock, after that was heard.
    pub(super) now_unix_ms: u64,
}

/// What a neighbour says when it is asked to dial this node.
#[derive(Debug)]
pub(super) enum DialBackSeen {
    /// It does not know the question.
    Unknown,
    /// No answer.
    Failed(String),
    /// It answers.
    Met {
        /// Where it was asked to dial.
        asked: SocketAddr,
        /// Where it sees the packets come from.
        seen: SocketAddr,
        /// Where they left.
        local: Option<IpAddr>,
        /// Whether its dial arrived.
        reached: Option<bool>,
    },
}
