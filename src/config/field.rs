use std::fmt;

use super::Kind;

macro_rules! fields {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $flag:literal, [$($kind:ident)*];)*) => {
        /// Every option. What each means and which bounds it has is said at the field of the
        /// configuration that it becomes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field {
            $($(#[$doc])* $variant,)*
        }

        impl Field {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its key in a file.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Its flag on the command line.
            pub const fn flag(self) -> &'static str {
                match self { $(Self::$variant => $flag,)* }
            }

            /// Which processes know it.
            pub const fn kinds(self) -> &'static [Kind] {
                match self { $(Self::$variant => &[$(Kind::$kind,)*],)* }
            }
        }
    };
}

fields! {
    /// Where this node listens for QUIC.
    Listen = "listen", "--listen", [Coordinator Worker];
    /// Where its store lies.
    Store = "store", "--store", [Coordinator Worker];
    /// How much the worker's store may hold.
    StoreBudget = "store_budget", "--store-budget", [Worker];
    /// Addresses of the coordinator.
    Coordinators = "coordinators", "--coordinator", [Worker Client];
    /// Addresses of other workers.
    Peers = "peers", "--peer", [Worker];
    /// Addresses to join the membership by.
    Join = "join", "--join", [Worker];
    /// Where other workers reach this one.
    Advertise = "advertise", "--advertise", [Worker];
    /// Whether the worker finds others by itself.
    Gossip = "gossip", "--gossip", [Worker];
    /// How long a read may take.
    Deadline = "deadline", "--deadline", [Worker Client];
    /// How long a worker may answer without asking again; at a worker, whether it does.
    Lease = "lease", "--lease", [Coordinator Worker];
    /// Which bodies a worker fetches before anyone asks.
    Prefetch = "prefetch", "--prefetch", [Worker];
    /// How many bytes per second a worker gives to others.
    UploadLimit = "upload_limit", "--upload-limit", [Worker];
    /// Whether a worker reaches the coordinator over others, and they over it.
    Relay = "relay", "--relay", [Worker];
    /// How fresh an answer is unless the reader says otherwise.
    Freshness = "freshness", "--freshness", [Worker];
    /// The largest spec.
    MaxSpecLen = "max_spec_len", "--max-spec-len", [Coordinator Client];
    /// The local Unix socket.
    Socket = "socket", "--socket", [Coordinator Worker Client];
    /// Who besides the owner may use that socket.
    SocketGroup = "socket_group", "--socket-group", [Coordinator Worker];
    /// The read-only local HTTP address.
    Http = "http", "--http", [Coordinator Worker];
    /// The identity directory.
    Certs = "certs", "--certs", [Coordinator Worker Client];
    /// The certificate, instead of the one in the identity directory.
    Cert = "cert", "--cert", [Coordinator Worker Client];
    /// The key, instead of the one in the identity directory.
    Key = "key", "--key", [Coordinator Worker Client];
    /// The CA, instead of the one in the identity directory.
    Ca = "ca", "--ca", [Coordinator Worker Client];
    /// The trust file, instead of the one in the identity directory.
    Trust = "trust", "--trust", [Coordinator Worker Client];
    /// The key that signs heads, instead of the one in the identity directory.
    HeadKey = "head_key", "--head-key", [Coordinator];
    /// Whether a key that its group can read is accepted.
    AllowGroupReadableKey = "allow_group_readable_key", "--allow-group-readable-key", [Coordinator Worker Client];
    /// What is logged.
    Log = "log", "--log", [Coordinator Worker Client];
    /// How it is logged.
    LogFormat = "log_format", "--log-format", [Coordinator Worker Client];
    /// Whether the coordinator starts a new epoch.
    NewEpoch = "new_epoch", "--new-epoch", [Coordinator];
}

impl Field {
    /// Its environment variable; `None` for what must be said anew at each start.
    pub fn variable(self) -> Option<String> {
        (!self.flag_only()).then(|| format!("LARDER_{}", self.name().to_uppercase()))
    }

    /// A new epoch is an operator's decision about one start, never a setting.
    pub(super) fn flag_only(self) -> bool {
        self == Self::NewEpoch
    }

    /// Whether it holds several values, given as repeated flags, a YAML list or with commas.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Self::Coordinators | Self::Peers | Self::Join)
    }

    /// The field of a key in a file.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|field| field.name() == name);
        found.copied().filter(|field| !field.flag_only())
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
