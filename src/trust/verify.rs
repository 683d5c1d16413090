use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::catalog::PinnedKey;
use crate::identity::NodeUri;

/// Which side of TLS a certificate is shown by; it must be allowed for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// By the one who was dialled.
    Listener,
    /// By the one who dials.
    Dialler,
}

/// Whom a node believes: CAs, cluster, revoked nodes, head keys.
#[derive(Debug, Clone)]
pub struct Trust {
    pub(super) cluster: String,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) revoked: BTreeSet<NodeUri>,
    pub(super) head_keys: Vec<PinnedKey>,
}

impl Trust {
    /// Nodes whose certificates are refused.
    pub fn revoked(&self) -> impl Iterator<Item = &NodeUri> {
        self.revoked.iter()
    }

    /// The cluster that peers must belong to.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The keys whose heads are believed; never empty.
    pub fn head_keys(&self) -> &[PinnedKey] {
        &self.head_keys
    }

    /// Checks a peer's chain, its own certificate first, and returns who it is.
    ///
    /// The chain comes first: nothing that an unknown CA signed is looked at.
    ///
    /// # Errors
    /// [`Untrusted`].
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<NodeUri, Untrusted> {
        let (leaf, rest) = chain.split_first().ok_or(Untrusted::NoCertificate)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| Untrusted::Malformed)?;
        let key_usage = match usage {
            Usage::Listener => KeyUsage::server_auth(),
            Usage::Dialler => KeyUsage::client_auth(),
        };
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &self.anchors,
            rest,
            now,
            key_usage,
            None,
            None,
        )
        .map_err(Untrusted::from_chain)?;
        let uri = node_uri(&leaf)?;
        if uri.cluster() != self.cluster {
            return Err(Untrusted::OtherCluster);
        }
        if self.revoked.contains(&uri) {
            return Err(Untrusted::Revoked);
        }
        Ok(uri)
    }
}

/// The one node URI of a certificate.
pub(super) fn node_uri(leaf: &EndEntityCert<'_>) -> Result<NodeUri, Untrusted> {
    let mut uris = leaf.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| Untrusted::NoNodeUri),
        _ => Err(Untrusted::NoNodeUri),
    }
}

/// From when to when a certificate is valid, in seconds since 1970, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before_unix_s: u64,
    /// Its last second.
    pub not_after_unix_s: u64,
}

impl Validity {
    /// Later than any date that a certificate can hold.
    const NEVER_UNIX_S: u64 = 1 << 40;

    /// Of one certificate, whoever issued it; `None` when its dates cannot be read.
    ///
    /// The check of a chain begins with the dates of its first certificate, and a time at which
    /// nothing is valid makes it say them.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let leaf = EndEntityCert::try_from(certificate).ok()?;
        let check = |unix_s| {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[],
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(unix_s)),
                KeyUsage::client_auth(),
                None,
                None,
            )
        };
        let not_before = match check(0) {
            Err(webpki::Error::CertNotValidYet { not_before, .. }) => not_before.as_secs(),
            _ => 0,
        };
        let Err(webpki::Error::CertExpired { not_after, .. }) = check(Self::NEVER_UNIX_S) else {
            return None;
        };
        Some(Self {
            not_before_unix_s: not_before,
            not_after_unix_s: not_after.as_secs(),
        })
    }
}

/// Why a certificate is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untrusted {
    /// No certificate was shown.
    NoCertificate,
    /// These bytes are no certificate that can be checked.
    Malformed,
    /// No trusted CA issued it.
    UnknownCa,
    /// Its validity is over.
    Expired,
    /// Its validity has not begun.
    NotYetValid,
    /// It may not be used on this side of TLS.
    Purpose,
    /// It does not have exactly one URI that names a node.
    NoNodeUri,
    /// It names a node of another cluster.
    OtherCluster,
    /// The trust file revokes it.
    Revoked,
}

impl Untrusted {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::NoCertificate,
        Self::Malformed,
        Self::UnknownCa,
        Self::Expired,
        Self::NotYetValid,
        Self::Purpose,
        Self::NoNodeUri,
        Self::OtherCluster,
        Self::Revoked,
    ];

    /// One lower-case word, for metrics and for the other end.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::Malformed => "malformed",
            Self::UnknownCa => "unknown-ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Purpose => "purpose",
            Self::NoNodeUri => "no-node-uri",
            Self::OtherCluster => "other-cluster",
            Self::Revoked => "revoked",
        }
    }

    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::NoCertificate => "give the dialler an identity directory of this cluster",
            Self::Malformed => "write the certificate anew with `larder certs issue`",
            Self::UnknownCa => {
                "both ends need the CA that issued the other's certificate in ca.pem"
            }
            Self::Expired => "issue a new certificate with `larder certs issue --force`",
            Self::NotYetValid => "compare the clocks of both ends",
            Self::Purpose => "the certificate needs both server and client authentication",
            Self::NoNodeUri => {
                "the certificate needs exactly one URI name, spiffe://<cluster>/<role>/<name>"
            }
            Self::OtherCluster => "compare `cluster` in trust.yaml of both ends",
            Self::Revoked => "`revoked` in trust.yaml lists this node; give it another name",
        }
    }

    /// What precedes the word in the text that travels to the other end with a TLS alert.
    const MARK: &str = "untrusted: ";

    /// Reads a refusal out of a TLS alert and the text beside it, of our end or the other.
    ///
    /// Our own nodes send the word; without it the alert alone tells some reasons.
    pub(crate) fn from_alert(alert: u8, text: &str) -> Option<Self> {
        if let Some((_, word)) = text.split_once(Self::MARK) {
            let end = word.find(|c: char| !c.is_ascii_lowercase() && c != '-');
            let word = &word[..end.unwrap_or(word.len())];
            if let Some(reason) = Self::ALL.into_iter().find(|r| r.as_str() == word) {
                return Some(reason);
            }
        }
        match alert {
            42 => Some(Self::Malformed),
            43 => Some(Self::Purpose),
            44 => Some(Self::Revoked),
            45 => Some(Self::Expired),
            48 => Some(Self::UnknownCa),
            116 => Some(Self::NoCertificate),
            _ => None,
        }
    }

    /// As rustls wants it: the word always travels, so that the other end can tell what an alert
    /// cannot.
    pub(super) fn to_tls(self) -> rustls::Error {
        let word = rustls::OtherError(std::sync::Arc::new(Word(self)));
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(word))
    }

    fn from_chain(error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { .. } => Self::Expired,
            webpki::Error::CertNotValidYet { .. } => Self::NotYetValid,
            // Two CAs of one cluster name differ in their key only.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Self::UnknownCa
            }
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::CaUsedAsEndEntity => {
                Self::Purpose
            }
            _ => Self::Malformed,
        }
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "no certificate was shown",
            Self::Malformed => "the certificate is malformed",
            Self::UnknownCa => "the certificate is from an unknown CA",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet",
            Self::Purpose => "the certificate is not for this side of TLS",
            Self::NoNodeUri => "the certificate does not name exactly one node",
            Self::OtherCluster => "the certificate is of another cluster",
            Self::Revoked => "the certificate is revoked",
        })
    }
}

impl std::error::Error for Untrusted {}

/// rustls prints this with `Debug` into the text beside the alert.
struct Word(Untrusted);

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Untrusted::MARK, self.0.as_str())
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Word {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_way_through_a_tls_alert() {
        for reason in Untrusted::ALL {
            let text = reason.to_tls().to_string();
            assert_eq!(Untrusted::from_alert(46, &text), Some(reason), "{text}");
        }
    }

    #[test]
    fn an_alert_without_our_word_still_tells_what_it_can() {
        assert_eq!(Untrusted::from_alert(48, ""), Some(Untrusted::UnknownCa));
        assert_eq!(
            Untrusted::from_alert(116, "peer sent no certificates"),
            Some(Untrusted::NoCertificate)
        );
        assert_eq!(Untrusted::from_alert(46, "untrusted: of-the-moon"), None);
        assert_eq!(Untrusted::from_alert(80, ""), None);
    }
}
