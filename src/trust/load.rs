use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use webpki::EndEntityCert;

use super::tls::PROVIDER;
use super::verify::node_uri;
use super::{Trust, Untrusted, Usage, Validity, is_throwaway};
use crate::catalog::{HeadKey, PinnedKey, PinnedKeyError};
use crate::identity::NodeUri;

/// Longest file of an identity directory in bytes: a trust file with thousands of revoked nodes
/// fits. A longer one is refused.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Where the files of an identity are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPaths {
    /// The certificate and its chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The CAs.
    pub ca: PathBuf,
    /// The trust file.
    pub trust: PathBuf,
    /// The head key; read only by a node whose role is coordinator.
    pub head_key: PathBuf,
}

impl IdentityPaths {
    /// The usual names within one directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            ca: dir.join("ca.pem"),
            trust: dir.join("trust.yaml"),
            head_key: dir.join("head.key"),
        }
    }
}

/// How strictly an identity is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdentityOptions {
    /// Whether secrets may be readable by their group; default no. Kubernetes mounts them so
    /// when `fsGroup` is set.
    pub allow_group_readable_key: bool,
}

/// The content of `trust.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustFile {
    /// The cluster that this node and its peers belong to.
    pub cluster: String,
    /// Public halves of the head keys to believe, `ed25519:` and 64 hex digits; at least one.
    pub head_keys: Vec<String>,
    /// Nodes whose certificates are refused although they are valid.
    #[serde(default)]
    pub revoked: Vec<NodeUri>,
}

/// One consistent state of an identity directory.
#[derive(Debug)]
pub struct Credentials {
    uri: NodeUri,
    key: Arc<CertifiedKey>,
    trust: Trust,
    head_key: Option<HeadKey>,
    digest: blake3::Hash,
}

impl Credentials {
    pub(super) fn load(
        paths: &IdentityPaths,
        options: IdentityOptions,
    ) -> Result<Self, IdentityError> {
        let cert = read(&paths.cert)?;
        let ca = read(&paths.ca)?;
        let trust_yaml = read(&paths.trust)?;
        let key_pem = read(&paths.key)?;

        let chain = certificates(&paths.cert, &cert)?;
        let trust = parse_trust(paths, &ca, &trust_yaml)?;
        let uri = own_uri(paths, &chain, &trust)?;
        check_mode(&paths.key, &uri, options)?;
        let key = certified_key(paths, chain, &key_pem)?;
        let mut digest = blake3::Hasher::new();
        for file in [&cert, &ca, &trust_yaml, &key_pem] {
            digest.update(blake3::hash(file).as_bytes());
        }
        let head_key = match uri.role() {
            crate::identity::Role::Coordinator => load_head_key(paths, &uri, options)?,
            _ => None,
        };
        if let Some(head_key) = &head_key {
            digest.update(head_key.pinned().to_string().as_bytes());
        }
        Ok(Self {
            uri,
            key: Arc::new(key),
            trust,
            head_key,
            digest: digest.finalize(),
        })
    }

    /// Who the certificate says this node is.
    pub fn uri(&self) -> &NodeUri {
        &self.uri
    }

    /// Whom this node believes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The key that signs heads, at a coordinator whose directory has one.
    pub fn head_key(&self) -> Option<&HeadKey> {
        self.head_key.as_ref()
    }

    /// The certificate that this node shows, the rest of its chain behind it.
    pub(crate) fn certificate(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    /// When the certificate is valid; `None` when its dates cannot be read.
    pub fn validity(&self) -> Option<Validity> {
        Validity::of(self.key.cert.first()?)
    }

    /// Changes when any of the files does.
    pub(super) fn digest(&self) -> blake3::Hash {
        self.digest
    }

    /// Whether peers with this node's trust file would accept it, on either side of TLS.
    ///
    /// # Errors
    /// [`Untrusted`], as such a peer would say it.
    pub fn check_self(&self, now: UnixTime) -> Result<(), Untrusted> {
        for usage in [Usage::Listener, Usage::Dialler] {
            self.trust.check(&self.key.cert, usage, now)?;
        }
        Ok(())
    }

    pub(super) fn warn_if_refused(&self) {
        if let Err(reason) = self.check_self(UnixTime::now()) {
            let (uri, hint) = (&self.uri, reason.hint());
            tracing::warn!(%uri, %reason, hint, "peers will refuse this node's own certificate");
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let fail = |error| IdentityError::new(path, Problem::Read(error));
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(fail)?.take(MAX_FILE_LEN + 1);
    file.read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(IdentityError::new(path, Problem::TooLong));
    }
    Ok(bytes)
}

pub(super) fn certificates(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let fail = |problem| IdentityError::new(path, problem);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| fail(Problem::Pem(error)))?;
    if chain.is_empty() {
        return Err(fail(Problem::NoCertificate));
    }
    Ok(chain)
}

fn parse_trust(paths: &IdentityPaths, ca: &[u8], yaml: &[u8]) -> Result<Trust, IdentityError> {
    let fail = |problem| IdentityError::new(&paths.trust, problem);
    let file = TrustFile::parse(yaml).map_err(|error| fail(Problem::Yaml(error)))?;
    if file.head_keys.is_empty() {
        return Err(fail(Problem::NoHeadKey));
    }
    let head_keys = file.head_keys.iter().map(|text| text.parse());
    let head_keys = head_keys
        .collect::<Result<Vec<PinnedKey>, _>>()
        .map_err(|error| fail(Problem::HeadKey(error)))?;
    let mut anchors = Vec::new();
    for cert in certificates(&paths.ca, ca)? {
        let anchor = webpki::anchor_from_trusted_cert(&cert)
            .map_err(|error| IdentityError::new(&paths.ca, Problem::Ca(error)))?;
        anchors.push(anchor.to_owned());
    }
    Ok(Trust {
        cluster: file.cluster,
        anchors,
        revoked: file.revoked.into_iter().collect(),
        head_keys,
    })
}

impl TrustFile {
    pub(super) fn parse(yaml: &[u8]) -> Result<Self, serde_yaml::Error> {
        serde_yaml::from_slice(yaml)
    }
}

fn own_uri(
    paths: &IdentityPaths,
    chain: &[CertificateDer<'_>],
    trust: &Trust,
) -> Result<NodeUri, IdentityError> {
    let fail = |problem| IdentityError::new(&paths.cert, problem);
    let leaf = chain.first().ok_or_else(|| fail(Problem::NoCertificate))?;
    let uri = EndEntityCert::try_from(leaf)
        .map_err(|_| Untrusted::Malformed)
        .and_then(|leaf| node_uri(&leaf))
        .map_err(|error| fail(Problem::Uri(error)))?;
    if uri.cluster() != trust.cluster {
        let cluster = trust.cluster.clone();
        return Err(fail(Problem::Cluster { uri, cluster }));
    }
    Ok(uri)
}

fn certified_key(
    paths: &IdentityPaths,
    chain: Vec<CertificateDer<'static>>,
    pem: &[u8],
) -> Result<CertifiedKey, IdentityError> {
    let fail = |problem| IdentityError::new(&paths.key, problem);
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| fail(Problem::Pem(error)))?;
    CertifiedKey::from_der(chain, key.into(), &PROVIDER).map_err(|error| fail(Problem::Key(error)))
}

fn load_head_key(
    paths: &IdentityPaths,
    uri: &NodeUri,
    options: IdentityOptions,
) -> Result<Option<HeadKey>, IdentityError> {
    let path = &paths.head_key;
    // A coordinator whose catalog lives elsewhere has none.
    if !path.exists() {
        return Ok(None);
    }
    check_mode(path, uri, options)?;
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    text.parse()
        .map(Some)
        .map_err(|error| IdentityError::new(path, Problem::HeadKey(error)))
}

/// Everyone has the throw-away keys anyway, and git does not keep modes: those may be open.
fn check_mode(path: &Path, uri: &NodeUri, options: IdentityOptions) -> Result<(), IdentityError> {
    let fail = |problem| IdentityError::new(path, problem);
    let metadata = fs::metadata(path).map_err(|error| fail(Problem::Read(error)))?;
    let mode = metadata.permissions().mode() & 0o777;
    if is_throwaway(uri.cluster()) || mode & 0o077 == 0 {
        return Ok(());
    }
    if mode & 0o037 == 0 {
        return match options.allow_group_readable_key {
            true => Ok(()),
            false => Err(fail(Problem::GroupReadable { mode })),
        };
    }
    Err(fail(Problem::Open { mode }))
}

/// Why an identity directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct IdentityError {
    path: PathBuf,
    #[source]
    problem: Box<Problem>,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("longer than {MAX_FILE_LEN} bytes")]
    TooLong,
    #[error("mode {mode:o} lets others in, a key is for its owner alone")]
    Open { mode: u32 },
    #[error("mode {mode:o} lets the group read a key")]
    GroupReadable { mode: u32 },
    #[error("not PEM of the right kind")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("no certificate in it")]
    NoCertificate,
    #[error("not a CA certificate")]
    Ca(#[source] webpki::Error),
    #[error("{0}")]
    Uri(Untrusted),
    #[error("this certificate is {uri}, but trust.yaml has `cluster: {cluster}`")]
    Cluster { uri: NodeUri, cluster: String },
    #[error("not the key of the certificate")]
    Key(#[source] rustls::Error),
    #[error("not a trust file: {0}")]
    Yaml(#[source] serde_yaml::Error),
    #[error("`head_keys` is empty")]
    NoHeadKey,
    #[error("a head key is wrong: {0}")]
    HeadKey(#[source] PinnedKeyError),
    #[error("this certificate is {now}, but the node runs as {was}")]
    Renamed { was: NodeUri, now: NodeUri },
}

impl IdentityError {
    fn new(path: &Path, problem: Problem) -> Self {
        Self {
            path: path.to_owned(),
            problem: Box::new(problem),
        }
    }

    pub(super) fn renamed(paths: &IdentityPaths, was: &NodeUri, fresh: &Credentials) -> Self {
        let (was, now) = (was.clone(), fresh.uri().clone());
        Self::new(&paths.cert, Problem::Renamed { was, now })
    }

    /// The file that is wrong.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match &*self.problem {
            Problem::Read(error) if error.kind() == io::ErrorKind::NotFound => {
                "`larder certs issue` writes a whole identity directory; name it with --certs"
            }
            Problem::Read(_) => "the file must be readable by the user that runs larder",
            Problem::TooLong => "this is not the file that is meant",
            Problem::Open { .. } => "chmod 600",
            Problem::GroupReadable { .. } => {
                "chmod 600, or `defaultMode: 0400` without fsGroup in Kubernetes, or \
                 --allow-group-readable-key"
            }
            Problem::Pem(_) | Problem::NoCertificate => {
                "cert.pem and ca.pem hold `BEGIN CERTIFICATE`, key.pem `BEGIN PRIVATE KEY` (PKCS#8)"
            }
            Problem::Ca(_) => "ca.pem holds the certificates of the cluster's CAs and nothing else",
            Problem::Uri(reason) => reason.hint(),
            Problem::Cluster { .. } => Untrusted::OtherCluster.hint(),
            Problem::Key(_) => "cert.pem and key.pem are written as a pair, copy both",
            Problem::Yaml(_) => "it has `cluster`, `head_keys` and `revoked`",
            Problem::NoHeadKey => "copy trust.yaml from the directory of the CA",
            Problem::HeadKey(_) => "copy trust.yaml, and head.key to coordinators, from the CA",
            Problem::Renamed { .. } => "restart the node to give it another name",
        }
    }
}
