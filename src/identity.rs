//! Who a node is: the URI that its certificate carries.
//!
//! SPIFFE form, `spiffe://<cluster>/<role>/<name>`, so that certificates that SPIRE issued work
//! as they are. The [`NodeId`] hashes the URI and so survives a change of key.

use std::fmt;
use std::str::FromStr;

use crate::spec::hash::hex;

/// The cluster of the certificates that come with the source code. They are for loopback only,
/// and everything that binds an address checks for this name.
pub const THROWAWAY_CLUSTER: &str = "throwaway.larder.invalid";

/// What a node may be. The role decides what a connection may do; see `proto::role`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Says what is current.
    Coordinator,
    /// Resolves names and gives bytes.
    Worker,
    /// Publishes, and reads.
    Publisher,
    /// Reads only.
    Reader,
}

impl Role {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 4] = [
        Self::Coordinator,
        Self::Worker,
        Self::Publisher,
        Self::Reader,
    ];

    /// As it stands in a URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
            Self::Publisher => "publisher",
            Self::Reader => "reader",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NodeUriError;

    fn from_str(text: &str) -> Result<Self, NodeUriError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(NodeUriError::Role)
    }
}

/// `spiffe://<cluster>/<role>/<name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeUri {
    cluster: String,
    role: Role,
    name: String,
}

impl NodeUri {
    const SCHEME: &str = "spiffe://";
    /// Longest URI in bytes; SPIFFE allows 2,048, no sensible name needs it.
    pub const MAX_LEN: usize = 512;

    /// Builds a URI from its parts.
    ///
    /// # Errors
    /// [`NodeUriError`] when a part has a character that SPIFFE does not allow, or is empty.
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Self, NodeUriError> {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let any = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if cluster.is_empty() || !cluster.chars().all(lower) {
            return Err(NodeUriError::Cluster);
        }
        if name.is_empty() || name == "." || name == ".." || !name.chars().all(any) {
            return Err(NodeUriError::Name);
        }
        let uri = Self {
            cluster: cluster.to_owned(),
            role,
            name: name.to_owned(),
        };
        if uri.to_string().len() > Self::MAX_LEN {
            return Err(NodeUriError::TooLong);
        }
        Ok(uri)
    }

    /// The trust domain.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What the node may do.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The node's name within its role.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// First 16 bytes of BLAKE3 of the URI.
    pub fn id(&self) -> NodeId {
        let hash = blake3::hash(self.to_string().as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        NodeId(id)
    }
}

impl fmt::Display for NodeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            role,
            name,
        } = self;
        write!(f, "{}{cluster}/{role}/{name}", Self::SCHEME)
    }
}

impl fmt::Debug for NodeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeUri {
    type Err = NodeUriError;

    fn from_str(text: &str) -> Result<Self, NodeUriError> {
        if text.len() > Self::MAX_LEN {
            return Err(NodeUriError::TooLong);
        }
        let rest = text
            .strip_prefix(Self::SCHEME)
            .ok_or(NodeUriError::Scheme)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NodeUriError::Form);
        };
        Self::new(cluster, role.parse()?, name)
    }
}

impl serde::Serialize for NodeUri {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for NodeUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// First 16 bytes of BLAKE3 of a [`NodeUri`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// Wraps a raw id, as it stands on the wire and on disk.
    pub const fn from_bytes(raw: [u8; 16]) -> Self {
        Self(raw)
    }

    /// Stands for whoever is at an address, where nothing else is known of them.
    pub fn of_addr(addr: &str) -> Self {
        let hash = blake3::derive_key("larder 2026 node at an address", addr.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }

    /// The raw id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..4]))
    }
}

/// Why a text is no [`NodeUri`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeUriError {
    /// Not `spiffe://`.
    #[error("a node's URI starts with `spiffe://`")]
    Scheme,
    /// Not three parts.
    #[error("a node's URI has the form `spiffe://<cluster>/<role>/<name>`")]
    Form,
    /// A bad trust domain.
    #[error("a cluster name has lower-case letters, digits, `.`, `_` and `-`")]
    Cluster,
    /// An unknown role.
    #[error("a role is one of coordinator, worker, publisher, reader")]
    Role,
    /// A bad node name.
    #[error("a node name has letters, digits, `.`, `_` and `-`")]
    Name,
    /// More than [`NodeUri::MAX_LEN`] bytes.
    #[error("a node's URI has at most {} bytes", NodeUri::MAX_LEN)]
    TooLong,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_full_form_is_a_node() {
        let good: NodeUri = "spiffe://prod.example/worker/edge-7".parse().expect("good");
        assert_eq!(
            (good.cluster(), good.role(), good.name()),
            ("prod.example", Role::Worker, "edge-7")
        );
        for (bad, error) in [
            ("https://c/worker/a", NodeUriError::Scheme),
            ("spiffe://c/worker", NodeUriError::Form),
            ("spiffe://c/worker/a/b", NodeUriError::Form),
            ("spiffe://c/admin/a", NodeUriError::Role),
            ("spiffe:///worker/a", NodeUriError::Cluster),
            ("spiffe://C/worker/a", NodeUriError::Cluster),
            ("spiffe://c/worker/", NodeUriError::Name),
            ("spiffe://c/worker/..", NodeUriError::Name),
            ("spiffe://c/worker/a?b", NodeUriError::Name),
        ] {
            assert_eq!(bad.parse::<NodeUri>(), Err(error), "{bad}");
        }
    }

    #[test]
    fn the_id_depends_on_the_whole_uri() {
        let id = |text: &str| text.parse::<NodeUri>().expect("good").id();
        assert_eq!(id("spiffe://c/worker/a"), id("spiffe://c/worker/a"));
        assert_ne!(id("spiffe://c/worker/a"), id("spiffe://c/reader/a"));
        assert_ne!(id("spiffe://c/worker/a"), id("spiffe://d/worker/a"));
    }

    proptest! {
        #[test]
        fn a_uri_parses_to_itself(cluster in "[a-z0-9._-]{1,20}", name in "[A-Za-z0-9_-]{1,20}") {
            for role in Role::ALL {
                let uri = NodeUri::new(&cluster, role, &name).expect("allowed characters");
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,600}") {
            let _ = text.parse::<NodeUri>();
        }
    }
}
