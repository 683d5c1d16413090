use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionError;

use super::Wanted;
use crate::identity::NodeUri;
use crate::proto::code::{CloseCode, Refusal};
use crate::proto::wire::FrameError;
use crate::trust::Untrusted;

/// Why an endpoint does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error("{addr} is in use by another process")]
    InUse {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses.
    #[error("{addr} cannot be bound")]
    Io {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates that everyone has the keys of.
    #[error("{addr} is not a loopback address, and {cluster} is a throw-away cluster")]
    Throwaway {
        /// The address.
        addr: SocketAddr,
        /// The cluster.
        cluster: String,
    },
}

impl BindError {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "stop the other process, or listen on another port",
            Self::Io { .. } => "listen on an address of this machine, or on a port above 1023",
            Self::Throwaway { .. } => {
                "make certificates of your own: `larder certs init`, then `larder certs issue`"
            }
        }
    }
}

/// Why a call over a [`Link`](super::Link) has no answer, and whose fault that is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// Nobody was reached; nothing was sent.
    #[error("{addr} cannot be reached: {reason}")]
    Dial {
        /// As configured.
        addr: String,
        /// Why.
        #[source]
        reason: DialFailure,
    },
    /// This node refuses the peer's certificate.
    #[error("this node refuses the peer: {0}")]
    PeerUntrusted(#[source] Untrusted),
    /// The peer refuses this node's certificate.
    #[error("the peer refuses this node: {0}")]
    SelfUntrusted(#[source] Untrusted),
    /// The two ends have no protocol in common.
    #[error("the peer does not speak this version of the protocol")]
    OtherVersion,
    /// The handshake failed for another reason.
    #[error("the handshake failed: {0}")]
    Tls(String),
    /// A node of another role answers at that address.
    #[error("{uri} answers, but a {wanted} was expected")]
    WrongNode {
        /// Who answers.
        uri: NodeUri,
        /// Who should.
        wanted: Wanted,
    },
    /// The peer's certificate is good, and what it says of its catalog is not to be believed.
    #[error("it is not believed: {0}")]
    Unproven(String),
    /// The peer sent what is no answer.
    #[error("the peer's answer is wrong: {0}")]
    BadAnswer(#[from] FrameError),
    /// The peer announced a body that is longer than it may be; it was not read.
    #[error("the peer announced a body of {len} bytes, at most {max} are allowed")]
    TooLong {
        /// As announced, in bytes.
        len: u64,
        /// What is allowed, in bytes.
        max: u64,
    },
    /// The answer ends before its end.
    #[error("the peer's answer is cut short")]
    Short,
    /// The peer says no.
    #[error("the peer says no: {0}")]
    Refused(#[source] Refusal),
    /// The peer closed the connection.
    #[error("the peer closed the connection: {0}")]
    Closed(CloseCode),
    /// This node closed the connection: it stops, or no longer trusts the peer.
    #[error("this node closed the connection")]
    ClosedHere,
    /// The connection is gone. The request may have been carried out.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The peer did not answer in time. The request may have been carried out.
    #[error("no answer within {} ms: {what}", within.as_millis())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
    },
    /// The peer sends slower than the floor.
    #[error("the peer sends too slowly: {received} bytes in {} ms", within.as_millis())]
    TooSlow {
        /// Bytes that came.
        received: u64,
        /// In this time.
        within: Duration,
    },
}

/// Why nobody was reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialFailure {
    /// The name has no address.
    #[error("its name does not resolve")]
    Dns(#[source] Arc<io::Error>),
    /// No address of the name is of a family that this node's socket can reach.
    #[error("no address that this node's socket can reach")]
    NoAddress,
    /// Silence.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// It takes no more connections.
    #[error("it takes no more connections")]
    Busy,
    /// The address makes no sense.
    #[error("{0}")]
    Address(String),
}

impl LinkError {
    /// One lower-case word, for metrics and for the list of hops.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Dial { reason, .. } => match reason {
                DialFailure::Dns(_) => "dns",
                DialFailure::NoAddress | DialFailure::Address(_) => "unreachable",
                DialFailure::Timeout(_) => "dial-timeout",
                DialFailure::Busy => "busy",
            },
            Self::PeerUntrusted(_) => "peer-untrusted",
            Self::SelfUntrusted(_) => "self-untrusted",
            Self::OtherVersion => "other-version",
            Self::Tls(_) => "tls",
            Self::WrongNode { .. } => "wrong-node",
            Self::Unproven(_) => "unproven",
            Self::BadAnswer(_) => "bad-answer",
            Self::TooLong { .. } => "too-long",
            Self::Short => "short",
            Self::Refused(_) => "refused",
            Self::Closed(_) => "closed",
            Self::ClosedHere => "closed-here",
            Self::Lost(_) => "lost",
            Self::TimedOut { .. } => "timed-out",
            Self::TooSlow { .. } => "too-slow",
        }
    }

    /// What to do about it, where something can be done.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Dial { reason, .. } => match reason {
                DialFailure::Dns(_) => Some("check the name and the resolver"),
                DialFailure::NoAddress => Some("listen on an IPv6 address to reach IPv6"),
                DialFailure::Timeout(_) => {
                    Some("is the node running, and does a firewall let UDP through?")
                }
                DialFailure::Busy => None,
                DialFailure::Address(_) => Some("an address is `host:port`"),
            },
            Self::PeerUntrusted(reason) | Self::SelfUntrusted(reason) => Some(reason.hint()),
            Self::OtherVersion => Some("update the older end"),
            Self::WrongNode { .. } => Some("check the address and the peer's certificate"),
            Self::Unproven(_) => Some("compare `head_keys` in trust.yaml with the coordinator's"),
            Self::Closed(CloseCode::Revoked) => {
                Some("compare `revoked` in trust.yaml and ca.pem of both ends")
            }
            Self::Closed(CloseCode::Expired) => Some(Untrusted::Expired.hint()),
            _ => None,
        }
    }

    /// An answer that is well formed and does not belong to the question.
    pub(crate) const fn unexpected() -> Self {
        Self::BadAnswer(FrameError::Value("an answer to another question"))
    }

    /// Whether nothing but certificates or trust stands between the two ends.
    pub const fn is_untrusted(&self) -> bool {
        matches!(
            self,
            Self::PeerUntrusted(_)
                | Self::SelfUntrusted(_)
                | Self::WrongNode { .. }
                | Self::Unproven(_)
                | Self::Closed(
                    CloseCode::Revoked
                        | CloseCode::Expired
                        | CloseCode::WrongNode
                        | CloseCode::Unproven
                )
        )
    }

    /// Whether the connection went away under the call, so that a new one may do: the peer has
    /// restarted, or a certificate that has been renewed since was shown when it began.
    pub const fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Lost(_) | Self::Closed(CloseCode::Expired) | Self::ClosedHere
        )
    }

    /// Whether the peer broke the protocol, as opposed to being slow, away or unwilling.
    pub const fn is_peers_fault(&self) -> bool {
        matches!(
            self,
            Self::BadAnswer(_) | Self::TooLong { .. } | Self::Short
        )
    }
}

/// Crypto errors of QUIC are TLS alerts from here on.
const CRYPTO: std::ops::Range<u64> = 0x100..0x200;
/// TLS: no protocol in common.
const NO_APPLICATION_PROTOCOL: u8 = 120;

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(error) => {
                from_code(error.code.into(), &error.reason, Self::PeerUntrusted)
            }
            ConnectionError::ConnectionClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason);
                from_code(close.error_code.into(), &reason, Self::SelfUntrusted)
            }
            ConnectionError::ApplicationClosed(close) => {
                let code = u32::try_from(close.error_code.into_inner()).ok();
                match code.and_then(CloseCode::from_number) {
                    Some(code) => Self::Closed(code),
                    None => Self::Lost(format!("closed with unknown code {}", close.error_code)),
                }
            }
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::VersionMismatch => Self::OtherVersion,
            ConnectionError::Reset => Self::Lost("the peer has restarted".to_owned()),
            ConnectionError::TimedOut => Self::Lost("the peer is silent".to_owned()),
            ConnectionError::CidsExhausted => Self::Lost(error.to_string()),
        }
    }
}

fn from_code(code: u64, text: &str, untrusted: fn(Untrusted) -> LinkError) -> LinkError {
    if !CRYPTO.contains(&code) {
        return LinkError::Lost(format!("transport error {code}: {}", shorten(text)));
    }
    let alert = u8::try_from(code - CRYPTO.start).expect("the range has 256 numbers");
    if alert == NO_APPLICATION_PROTOCOL {
        return LinkError::OtherVersion;
    }
    match Untrusted::from_alert(alert, text) {
        Some(reason) => untrusted(reason),
        None => LinkError::Tls(format!("alert {alert}: {}", shorten(text))),
    }
}

/// The peer chose this text.
fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(MAX_CHARS).collect()
}
