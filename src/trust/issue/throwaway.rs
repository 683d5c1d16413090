use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;

use super::{Authority, BACKDATED, IssueError, Validity};
use crate::identity::{NodeUri, Role, THROWAWAY_CLUSTER};

/// Validity of the certificates that come with the source code: 100 years, so that no test ever
/// fails because of the date.
const VALIDITY: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// The good ones.
const NODES: [(Role, &str); 5] = [
    (Role::Coordinator, "c1"),
    (Role::Worker, "w1"),
    (Role::Worker, "w2"),
    (Role::Publisher, "p1"),
    (Role::Reader, "r1"),
];

/// Writes the identities of the repository's `certs` directory: `dir/dev/<role>/<name>`, which
/// trust each other, and `dir/bad/<reason>`, each of which `dev` refuses for exactly that reason.
///
/// What is there is replaced. The keys of the CAs are not kept.
///
/// # Errors
/// [`IssueError`].
pub fn throwaway(dir: &Path) -> Result<Vec<PathBuf>, IssueError> {
    let mut authority = Authority::generate(THROWAWAY_CLUSTER, VALIDITY)?;
    let revoked = node(THROWAWAY_CLUSTER, Role::Worker, "revoked");
    authority.trust.revoked.push(revoked.clone());
    for part in ["dev", "bad"] {
        remove(&dir.join(part))?;
    }
    let usual = Validity::from_now(VALIDITY)?;
    let mut files = Vec::new();
    for (role, name) in NODES {
        let out = dir.join("dev").join(role.as_str()).join(name);
        let uri = node(THROWAWAY_CLUSTER, role, name);
        files.extend(authority.write_node(&out, Some(&uri), usual, false)?);
    }
    write_bad(&dir.join("bad"), authority, usual, &mut files)?;
    Ok(files)
}

fn write_bad(
    dir: &Path,
    mut authority: Authority,
    usual: Validity,
    files: &mut Vec<PathBuf>,
) -> Result<(), IssueError> {
    let now = OffsetDateTime::now_utc();
    let over = Validity {
        from: now - 2 * BACKDATED,
        to: now - BACKDATED,
    };
    let later = Validity {
        from: usual.to - BACKDATED,
        to: usual.to,
    };
    let worker = |name| node(THROWAWAY_CLUSTER, Role::Worker, name);
    for (reason, uri, validity) in [
        ("expired", Some(worker("expired")), over),
        ("not-yet-valid", Some(worker("not-yet-valid")), later),
        ("no-uri", None, usual),
        ("revoked", Some(worker("revoked")), usual),
        // A reader that sits where a coordinator is expected.
        (
            "wrong-role",
            Some(node(THROWAWAY_CLUSTER, Role::Reader, "wrong-role")),
            usual,
        ),
    ] {
        files.extend(authority.write_node(&dir.join(reason), uri.as_ref(), validity, false)?);
    }

    let other = format!("other.{THROWAWAY_CLUSTER}");
    let uri = node(&other, Role::Worker, "wrong-cluster");
    authority.trust.cluster = other;
    authority.trust.revoked.clear();
    files.extend(authority.write_node(&dir.join("wrong-cluster"), Some(&uri), usual, false)?);

    let foreign = Authority::generate(THROWAWAY_CLUSTER, VALIDITY)?;
    let out = dir.join("wrong-ca");
    files.extend(foreign.write_node(&out, Some(&worker("wrong-ca")), usual, false)?);
    Ok(())
}

fn node(cluster: &str, role: Role, name: &str) -> NodeUri {
    NodeUri::new(cluster, role, name).expect("the names above are names")
}

fn remove(dir: &Path) -> Result<(), IssueError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(IssueError::Io {
            path: dir.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
