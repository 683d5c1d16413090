//! Goal: what loads, what is refused, and what a reload changes. Method: identities made anew in
//! a temporary directory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use tempfile::TempDir;

use super::issue::{self, IssueError, NODE_VALIDITY, Order};
use super::*;
use crate::identity::Role;

const CLUSTER: &str = "test.example";

fn cluster() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    issue::init(dir.path(), CLUSTER).expect("init");
    dir
}

fn order(role: Role, name: &str) -> Order {
    Order {
        role,
        name: name.to_owned(),
        valid_for: NODE_VALIDITY,
        out: None,
        force: false,
    }
}

fn load(dir: &Path) -> Result<Identity, IdentityError> {
    Identity::load(IdentityPaths::in_dir(dir), IdentityOptions::default())
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn an_issued_identity_loads_and_peers_accept_it() {
    let ca = cluster();
    let worker = issue::issue(ca.path(), &order(Role::Worker, "w1")).expect("issue");
    let coordinator = issue::issue(ca.path(), &order(Role::Coordinator, "c1")).expect("issue");
    let worker = load(&worker.dir).expect("load");
    let coordinator = load(&coordinator.dir).expect("load");

    assert_eq!(worker.uri().to_string(), "spiffe://test.example/worker/w1");
    assert!(worker.current().head_key().is_none());
    let head_key = coordinator.current();
    let head_key = head_key.head_key().expect("coordinators sign heads");
    assert_eq!(worker.current().trust().head_keys(), [head_key.pinned()]);
    for usage in [Usage::Listener, Usage::Dialler] {
        let shown = worker.current().certified_key();
        let trust = coordinator.current();
        let uri = trust.trust().check(&shown.cert, usage, UnixTime::now());
        assert_eq!(uri.as_ref(), Ok(worker.uri()));
    }
}

#[test]
fn validity_is_checked_at_the_time_given() {
    let ca = cluster();
    let issued = issue::issue(ca.path(), &order(Role::Worker, "w1")).expect("issue");
    let credentials = load(&issued.dir).expect("load").current();
    let now = UnixTime::now().as_secs();
    let at = |secs| credentials.check_self(UnixTime::since_unix_epoch(Duration::from_secs(secs)));
    assert_eq!(at(now), Ok(()));
    assert_eq!(at(now - 2 * 3600), Err(Untrusted::NotYetValid));
    assert_eq!(at(now + 398 * 24 * 3600), Err(Untrusted::Expired));
}

#[test]
fn another_ca_of_the_same_cluster_name_is_unknown() {
    let (ours, theirs) = (cluster(), cluster());
    let ours = issue::issue(ours.path(), &order(Role::Worker, "w1")).expect("issue");
    let theirs = issue::issue(theirs.path(), &order(Role::Worker, "w1")).expect("issue");
    let shown = load(&theirs.dir).expect("load").current().certified_key();
    let trust = load(&ours.dir).expect("load").current();
    let check = trust
        .trust()
        .check(&shown.cert, Usage::Dialler, UnixTime::now());
    assert_eq!(check, Err(Untrusted::UnknownCa));
}

#[test]
fn nothing_is_overwritten_unless_forced_and_a_ca_never() {
    let ca = cluster();
    assert!(matches!(
        issue::init(ca.path(), CLUSTER),
        Err(IssueError::Exists(_))
    ));
    for file in ["ca.key", "head.key", "ca.pem", "trust.yaml"] {
        let half = tempfile::tempdir().expect("a temporary directory");
        let path = half.path().join(file);
        fs::write(&path, "here before").expect("write");
        let error = issue::init(half.path(), CLUSTER).expect_err("refused");
        assert!(matches!(error, IssueError::Exists(found) if found == path));
        let files = fs::read_dir(half.path()).expect("there").count();
        assert_eq!(files, 1, "half an authority beside {file}");
    }
    let mut order = order(Role::Reader, "r1");
    issue::issue(ca.path(), &order).expect("issue");
    assert!(matches!(
        issue::issue(ca.path(), &order),
        Err(IssueError::Exists(_))
    ));
    order.force = true;
    let again = issue::issue(ca.path(), &order).expect("forced");
    load(&again.dir).expect("the pair belongs together");
}

#[test]
fn a_ca_key_that_is_not_of_the_ca_certificate_is_noticed_at_issue() {
    let (ours, theirs) = (cluster(), cluster());
    fs::copy(theirs.path().join("ca.key"), ours.path().join("ca.key")).expect("copy");
    let error = issue::issue(ours.path(), &order(Role::Worker, "w1")).expect_err("refused");
    assert!(
        matches!(error, IssueError::Refused(Untrusted::UnknownCa)),
        "{error:?}"
    );
}

#[test]
fn secrets_are_written_for_their_owner_alone() {
    let ca = cluster();
    let issued = issue::issue(ca.path(), &order(Role::Coordinator, "c1")).expect("issue");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for secret in [
        ca.path().join("ca.key"),
        ca.path().join("head.key"),
        issued.dir.join("key.pem"),
        issued.dir.join("head.key"),
    ] {
        assert_eq!(mode(&secret), 0o600, "{}", secret.display());
    }
    assert_eq!(mode(&issued.dir), 0o700);
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let ca = cluster();
    let issued = issue::issue(ca.path(), &order(Role::Coordinator, "c1")).expect("issue");
    for file in ["key.pem", "head.key"] {
        let path = issued.dir.join(file);
        for (mode, strict, relaxed) in [
            (0o400, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o660, false, false),
            (0o604, false, false),
            (0o644, false, false),
        ] {
            chmod(&path, mode);
            for (allow_group_readable_key, expected) in [(false, strict), (true, relaxed)] {
                let options = IdentityOptions {
                    allow_group_readable_key,
                };
                let result = Identity::load(IdentityPaths::in_dir(&issued.dir), options);
                assert_eq!(result.is_ok(), expected, "{file} {mode:o} {options:?}");
                if let Err(error) = result {
                    assert_eq!(error.path(), path);
                    assert!(error.hint().contains("chmod 600"), "{}", error.hint());
                }
            }
        }
        chmod(&path, 0o600);
    }
}

#[test]
fn what_is_wrong_in_a_directory_is_named() {
    let ca = cluster();
    let good = issue::issue(ca.path(), &order(Role::Worker, "w1")).expect("issue");
    let other = issue::issue(ca.path(), &order(Role::Worker, "w2")).expect("issue");
    let trust = fs::read_to_string(good.dir.join("trust.yaml")).expect("trust.yaml");
    let other_key = fs::read_to_string(other.dir.join("key.pem")).expect("key.pem");
    let unknown = format!("{trust}revokd: []\n");
    let cluster = trust.replace(CLUSTER, "prod.example");
    for (file, content, says) in [
        ("cert.pem", "", "no certificate"),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\n!\n", "not PEM"),
        ("ca.pem", "", "no certificate"),
        ("key.pem", "", "not PEM"),
        (
            "key.pem",
            other_key.as_str(),
            "not the key of the certificate",
        ),
        ("trust.yaml", unknown.as_str(), "revokd"),
        ("trust.yaml", "cluster: test.example\n", "head_keys"),
        (
            "trust.yaml",
            "cluster: test.example\nhead_keys: []\n",
            "`head_keys` is empty",
        ),
        (
            "trust.yaml",
            "cluster: test.example\nhead_keys: [x]\n",
            "head key",
        ),
        ("trust.yaml", cluster.as_str(), "cluster: prod.example"),
    ] {
        let path = good.dir.join(file);
        let before = fs::read(&path).expect("there");
        fs::write(&path, content).expect("write");
        let error = load(&good.dir).expect_err("refused").to_string();
        assert!(error.contains(says), "{file}: {error}");
        assert!(
            error.contains(".pem") || error.contains("trust.yaml"),
            "{error}"
        );
        fs::write(&path, before).expect("write");
        load(&good.dir).expect("as before");
    }
    fs::remove_file(good.dir.join("ca.pem")).expect("remove");
    let error = load(&good.dir).expect_err("refused");
    assert!(error.hint().contains("certs issue"), "{}", error.hint());
}

#[test]
fn a_reload_takes_what_is_whole_and_keeps_the_old_one_otherwise() {
    let ca = cluster();
    let mut renewal = order(Role::Worker, "w1");
    let issued = issue::issue(ca.path(), &renewal).expect("issue");
    let identity = load(&issued.dir).expect("load");
    let first = identity.current().certified_key();
    assert!(!identity.reload().expect("nothing changed"));

    renewal.force = true;
    issue::issue(ca.path(), &renewal).expect("renew");
    assert!(identity.reload().expect("renewed"));
    let second = identity.current().certified_key();
    assert_ne!(first.cert, second.cert);

    fs::write(issued.dir.join("trust.yaml"), "cluster: [").expect("write");
    identity.reload().expect_err("not YAML");
    assert_eq!(identity.current().certified_key().cert, second.cert);

    let other = issue::issue(ca.path(), &order(Role::Worker, "w2")).expect("issue");
    for file in ["cert.pem", "key.pem", "trust.yaml"] {
        fs::copy(other.dir.join(file), issued.dir.join(file)).expect("copy");
    }
    let error = identity.reload().expect_err("another node").to_string();
    assert!(error.contains("worker/w2"), "{error}");
}

#[test]
fn revoking_changes_the_trust_file_once() {
    let ca = cluster();
    let issued = issue::issue(ca.path(), &order(Role::Worker, "w1")).expect("issue");
    assert!(issue::revoke(ca.path(), &issued.uri).expect("revoke"));
    assert!(!issue::revoke(ca.path(), &issued.uri).expect("again"));
    let foreign = NodeUri::new("other", Role::Worker, "w1").expect("a URI");
    assert!(matches!(
        issue::revoke(ca.path(), &foreign),
        Err(IssueError::OtherCluster { .. })
    ));
    fs::copy(ca.path().join("trust.yaml"), issued.dir.join("trust.yaml")).expect("copy");
    let credentials = load(&issued.dir).expect("load").current();
    assert_eq!(
        credentials.check_self(UnixTime::now()),
        Err(Untrusted::Revoked)
    );
}

#[test]
fn the_certificates_of_the_repository_are_good_and_bad_as_their_names_say() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs");
    let fresh = tempfile::tempdir().expect("a temporary directory");
    issue::throwaway(fresh.path()).expect("throwaway");
    for dir in [repository.as_path(), fresh.path()] {
        let dev = load(&dir.join("dev/coordinator/c1"))
            .expect("load")
            .current();
        let check = |path: &str| {
            let pem = fs::read(dir.join(path).join("cert.pem")).expect("cert.pem");
            let chain = load::certificates(&dir.join(path), &pem).expect("a certificate");
            dev.trust()
                .check(&chain, Usage::Dialler, UnixTime::now())
                .map(|uri| uri.role())
        };
        assert_eq!(check("dev/worker/w1"), Ok(Role::Worker));
        assert_eq!(check("dev/worker/w2"), Ok(Role::Worker));
        assert_eq!(check("dev/publisher/p1"), Ok(Role::Publisher));
        assert_eq!(check("dev/reader/r1"), Ok(Role::Reader));
        assert_eq!(check("bad/wrong-role"), Ok(Role::Reader));
        assert_eq!(check("bad/expired"), Err(Untrusted::Expired));
        assert_eq!(check("bad/not-yet-valid"), Err(Untrusted::NotYetValid));
        assert_eq!(check("bad/no-uri"), Err(Untrusted::NoNodeUri));
        assert_eq!(check("bad/revoked"), Err(Untrusted::Revoked));
        assert_eq!(check("bad/wrong-cluster"), Err(Untrusted::OtherCluster));
        assert_eq!(check("bad/wrong-ca"), Err(Untrusted::UnknownCa));
    }
}

#[test]
fn throwaway_clusters_are_known_by_name_and_may_have_open_keys() {
    assert!(is_throwaway("throwaway.larder.invalid"));
    assert!(is_throwaway("other.throwaway.larder.invalid"));
    assert!(!is_throwaway("notthrowaway.larder.invalid"));
    assert!(!is_throwaway(CLUSTER));
    let dir = tempfile::tempdir().expect("a temporary directory");
    issue::throwaway(dir.path()).expect("throwaway");
    let worker = dir.path().join("dev/worker/w1");
    chmod(&worker.join("key.pem"), 0o644);
    load(&worker).expect("everyone has these keys anyway");
}

#[test]
fn a_file_that_stays_wrong_is_said_once_and_another_fault_again() {
    let ca = cluster();
    let issued = issue::issue(ca.path(), &order(Role::Worker, "w1")).expect("issue");
    let identity = load(&issued.dir).expect("load");
    let trust = issued.dir.join("trust.yaml");
    let good = fs::read(&trust).expect("there");
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::fmt().with_writer(Log(Arc::clone(&log)));
    tracing::subscriber::with_default(subscriber.finish(), || {
        for text in ["cluster: [", "cluster: {"] {
            for _ in 0..3 {
                fs::write(&trust, text).expect("write");
                identity.reload().expect_err("no trust file");
            }
        }
        fs::write(&trust, good).expect("write");
        identity.reload().expect("good again");
        fs::write(&trust, "cluster: [").expect("write");
        identity.reload().expect_err("no trust file");
    });
    let log = String::from_utf8(log.lock().expect("whole").clone()).expect("text");
    assert_eq!(log.matches("stay in force").count(), 3, "{log}");
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}
