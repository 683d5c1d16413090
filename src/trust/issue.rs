//! Making a cluster's CA and head key, and certificates for its nodes.
//!
//! ```text
//! DIR/ca.pem DIR/ca.key DIR/head.key DIR/trust.yaml
//! DIR/<role>/<name>/cert.pem key.pem ca.pem trust.yaml [head.key]
//! ```
//!
//! Each node's directory is complete: it is copied whole to the node. Secrets are written with
//! mode 0600 into directories of mode 0700.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

use super::{Credentials, IdentityError, IdentityOptions, IdentityPaths, TrustFile, Untrusted};
use crate::catalog::{HeadKey, PinnedKeyError};
use crate::identity::{NodeUri, NodeUriError, Role};

pub use self::throwaway::throwaway;

mod throwaway;

/// Validity of a CA: ten years.
pub const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Validity of a node's certificate unless the caller says otherwise: 397 days.
pub const NODE_VALIDITY: Duration = Duration::from_secs(397 * 24 * 3600);

/// Certificates begin this long before they are made, for nodes whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// What [`init`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initialised {
    /// The cluster.
    pub cluster: String,
    /// The public half of the head key, as nodes pin it.
    pub head_key: String,
    /// Every file, the secret ones too.
    pub files: Vec<PathBuf>,
}

/// What [`issue`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Who the certificate names.
    pub uri: NodeUri,
    /// The identity directory, to be copied whole to the node.
    pub dir: PathBuf,
    /// When it ends, in seconds since 1970.
    pub not_after_unix_s: i64,
    /// Every file in it.
    pub files: Vec<PathBuf>,
}

/// What [`issue`] is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What the node may do.
    pub role: Role,
    /// Its name, unique within the role.
    pub name: String,
    /// How long from now; [`NODE_VALIDITY`] is usual.
    pub valid_for: Duration,
    /// Where the identity directory goes; `None`: `DIR/<role>/<name>`.
    pub out: Option<PathBuf>,
    /// Whether an identity that is already there is replaced.
    pub force: bool,
}

/// Makes the CA and the head key of a new cluster in `dir`.
///
/// # Errors
/// [`IssueError::Exists`] when there is a CA already, which is never overwritten, and every other
/// [`IssueError`]; files written before the error stay.
pub fn init(dir: &Path, cluster: &str) -> Result<Initialised, IssueError> {
    // All of them before the first is written: half an authority is worse than none.
    for file in ["ca.key", "head.key", "ca.pem", "trust.yaml"] {
        let path = dir.join(file);
        if path.exists() {
            return Err(IssueError::Exists(path));
        }
    }
    let authority = Authority::generate(cluster, CA_VALIDITY)?;
    make_dir(dir)?;
    let mut files = Files::new(dir, false);
    files.secret("ca.key", &authority.key_pem())?;
    files.secret("head.key", &authority.head_key_line())?;
    files.public("ca.pem", &authority.ca_pem)?;
    files.public("trust.yaml", &authority.trust_yaml()?)?;
    Ok(Initialised {
        cluster: cluster.to_owned(),
        head_key: authority.head_key.pinned().to_string(),
        files: files.written,
    })
}

/// Issues an identity directory for one node with the CA in `dir`.
///
/// # Errors
/// [`IssueError::Exists`] when the node has one already and `force` is not set, and every other
/// [`IssueError`]; after [`IssueError::Unusable`] and [`IssueError::Refused`] the files are there.
pub fn issue(dir: &Path, order: &Order) -> Result<Issued, IssueError> {
    let authority = Authority::open(dir)?;
    let uri = NodeUri::new(&authority.trust.cluster, order.role, &order.name)
        .map_err(IssueError::Name)?;
    let out = match &order.out {
        Some(out) => out.clone(),
        None => dir.join(order.role.as_str()).join(&order.name),
    };
    let cert = out.join("cert.pem");
    if !order.force && cert.exists() {
        return Err(IssueError::Exists(cert));
    }
    let validity = Validity::from_now(order.valid_for)?;
    let files = authority.write_node(&out, Some(&uri), validity, order.force)?;
    // The CA's own files may have been edited: what was issued must work.
    Credentials::load(&IdentityPaths::in_dir(&out), IdentityOptions::default())
        .map_err(IssueError::Unusable)?
        .check_self(UnixTime::now())
        .map_err(IssueError::Refused)?;
    Ok(Issued {
        uri,
        dir: out,
        not_after_unix_s: validity.to.unix_timestamp(),
        files,
    })
}

/// Adds a node to `revoked` in `dir`'s trust file and returns whether it was new. The file then
/// has to reach every node.
///
/// # Errors
/// [`IssueError`]; the file is as it was.
pub fn revoke(dir: &Path, uri: &NodeUri) -> Result<bool, IssueError> {
    let path = dir.join("trust.yaml");
    let mut trust = read_trust(&path)?;
    if uri.cluster() != trust.cluster {
        let (uri, cluster) = (uri.clone(), trust.cluster);
        return Err(IssueError::OtherCluster { uri, cluster });
    }
    if trust.revoked.contains(uri) {
        return Ok(false);
    }
    trust.revoked.push(uri.clone());
    Files::new(dir, true).public("trust.yaml", &to_yaml(&trust)?)?;
    Ok(true)
}

/// From when to when.
#[derive(Debug, Clone, Copy)]
struct Validity {
    from: OffsetDateTime,
    to: OffsetDateTime,
}

impl Validity {
    fn from_now(length: Duration) -> Result<Self, IssueError> {
        let now = OffsetDateTime::now_utc();
        let length = time::Duration::try_from(length).map_err(|_| IssueError::Validity)?;
        let to = now.checked_add(length).filter(|to| to.year() < 9999);
        Ok(Self {
            from: now - BACKDATED,
            to: to.ok_or(IssueError::Validity)?,
        })
    }
}

/// A cluster's CA with all its secrets, in memory.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    head_key: HeadKey,
    trust: TrustFile,
}

impl Authority {
    fn generate(cluster: &str, valid_for: Duration) -> Result<Self, IssueError> {
        // The cluster is checked where a node's name will be.
        NodeUri::new(cluster, Role::Coordinator, "c").map_err(IssueError::Name)?;
        let key = KeyPair::generate().map_err(IssueError::Certificate)?;
        let validity = Validity::from_now(valid_for)?;
        let mut params = ca_params(cluster);
        params.not_before = validity.from;
        params.not_after = validity.to;
        params.serial_number = Some(random_serial());
        let ca = params.self_signed(&key).map_err(IssueError::Certificate)?;
        let head_key = HeadKey::from_bytes(rand::random());
        let trust = TrustFile {
            cluster: cluster.to_owned(),
            head_keys: vec![head_key.pinned().to_string()],
            revoked: Vec::new(),
        };
        Ok(Self {
            issuer: Issuer::new(params, key),
            ca_pem: ca.pem(),
            head_key,
            trust,
        })
    }

    fn open(dir: &Path) -> Result<Self, IssueError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| IssueError::Io { path, source })
        };
        let trust = read_trust(&dir.join("trust.yaml"))?;
        let key = KeyPair::from_pem(&read("ca.key")?).map_err(IssueError::Certificate)?;
        Ok(Self {
            issuer: Issuer::new(ca_params(&trust.cluster), key),
            ca_pem: read("ca.pem")?,
            head_key: read("head.key")?.parse().map_err(IssueError::HeadKey)?,
            trust,
        })
    }

    fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    fn head_key_line(&self) -> String {
        format!("{}\n", self.head_key.to_secret_text())
    }

    fn trust_yaml(&self) -> Result<String, IssueError> {
        to_yaml(&self.trust)
    }

    /// Writes an identity directory. A missing URI is for certificates that must be refused.
    fn write_node(
        &self,
        out: &Path,
        uri: Option<&NodeUri>,
        validity: Validity,
        replace: bool,
    ) -> Result<Vec<PathBuf>, IssueError> {
        let key = KeyPair::generate().map_err(IssueError::Certificate)?;
        let cert = self.sign(uri, validity, &key)?;
        make_dir(out)?;
        let mut files = Files::new(out, replace);
        files.secret("key.pem", &key.serialize_pem())?;
        if uri.is_some_and(|uri| uri.role() == Role::Coordinator) {
            files.secret("head.key", &self.head_key_line())?;
        }
        files.public("ca.pem", &self.ca_pem)?;
        files.public("trust.yaml", &self.trust_yaml()?)?;
        files.public("cert.pem", &cert.pem())?;
        Ok(files.written)
    }

    fn sign(
        &self,
        uri: Option<&NodeUri>,
        validity: Validity,
        key: &KeyPair,
    ) -> Result<Certificate, IssueError> {
        let mut params = CertificateParams::default();
        params.not_before = validity.from;
        params.not_after = validity.to;
        params.serial_number = Some(random_serial());
        params.distinguished_name = DistinguishedName::new();
        if let Some(uri) = uri {
            params
                .distinguished_name
                .push(DnType::CommonName, uri.name());
            let text = uri
                .to_string()
                .try_into()
                .map_err(IssueError::Certificate)?;
            params.subject_alt_names = vec![SanType::URI(text)];
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(key, &self.issuer)
            .map_err(IssueError::Certificate)
    }
}

/// What makes the issuer's name; it depends on the cluster alone, so that the CA's certificate
/// need not be parsed again.
fn ca_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = format!("Larder CA of {cluster}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // A serial number is positive and has no leading zero.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn read_trust(path: &Path) -> Result<TrustFile, IssueError> {
    let yaml = fs::read(path).map_err(|source| IssueError::Io {
        path: path.to_owned(),
        source,
    })?;
    TrustFile::parse(&yaml).map_err(IssueError::Yaml)
}

fn to_yaml(trust: &TrustFile) -> Result<String, IssueError> {
    serde_yaml::to_string(trust).map_err(IssueError::Yaml)
}

fn make_dir(dir: &Path) -> Result<(), IssueError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|source| IssueError::Io {
        path: dir.to_owned(),
        source,
    })
}

/// Writes files of one directory, each whole or not at all.
struct Files<'a> {
    dir: &'a Path,
    replace: bool,
    written: Vec<PathBuf>,
}

impl<'a> Files<'a> {
    fn new(dir: &'a Path, replace: bool) -> Self {
        Self {
            dir,
            replace,
            written: Vec::new(),
        }
    }

    fn secret(&mut self, name: &str, text: &str) -> Result<(), IssueError> {
        self.write(name, text, 0o600)
    }

    fn public(&mut self, name: &str, text: &str) -> Result<(), IssueError> {
        self.write(name, text, 0o644)
    }

    fn write(&mut self, name: &str, text: &str, mode: u32) -> Result<(), IssueError> {
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let write = |to: &Path| -> io::Result<()> {
            let mut file = options.open(to)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        let result = if self.replace {
            let temporary = self
                .dir
                .join(format!(".{name}.{:08x}", rand::random::<u32>()));
            write(&temporary).and_then(|()| fs::rename(&temporary, &path))
        } else {
            write(&path)
        };
        match result {
            Ok(()) => {
                self.written.push(path);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(IssueError::Exists(path))
            }
            Err(source) => Err(IssueError::Io { path, source }),
        }
    }
}

/// Why nothing, or not everything, was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It would overwrite something.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The disk refused.
    #[error("{} cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cluster's or the node's name is not one.
    #[error("not a name: {0}")]
    Name(#[source] NodeUriError),
    /// The validity ends beyond what a certificate can say.
    #[error("the certificate would be valid for too long")]
    Validity,
    /// The certificate or the CA's key is wrong.
    #[error("the certificate cannot be made")]
    Certificate(#[source] rcgen::Error),
    /// The head key is wrong.
    #[error("head.key is wrong")]
    HeadKey(#[source] PinnedKeyError),
    /// The trust file is wrong.
    #[error("trust.yaml is wrong: {0}")]
    Yaml(#[source] serde_yaml::Error),
    /// The node is of another cluster.
    #[error("{uri} is not of the cluster {cluster}")]
    OtherCluster {
        /// The node.
        uri: NodeUri,
        /// The cluster of the trust file.
        cluster: String,
    },
    /// What was issued does not load.
    #[error("the new identity cannot be used")]
    Unusable(#[source] IdentityError),
    /// What was issued would be refused.
    #[error("the new certificate would be refused")]
    Refused(#[source] Untrusted),
}

impl IssueError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Exists(_) => Some(
                "a CA is never overwritten, choose another directory; a node's identity is \
                 replaced with --force",
            ),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("`larder certs init` makes the directory of a CA")
            }
            Self::Validity => Some("at most a few thousand years are possible"),
            Self::Unusable(error) => Some(error.hint()),
            Self::Refused(Untrusted::UnknownCa) => {
                Some("ca.pem and ca.key of the CA's directory do not belong together")
            }
            Self::Refused(reason) => Some(reason.hint()),
            _ => None,
        }
    }
}
