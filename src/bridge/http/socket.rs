//! The Unix socket's file: made with its final mode before anyone can connect, removed at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

use super::server::UnixOptions;

/// Longest path of a socket in bytes: Linux keeps 108 with the final zero.
const MAX_PATH_LEN: usize = 107;

/// Connections that the kernel holds while all places are taken; Linux cuts it to its own limit.
const BACKLOG: u32 = 1_024;

/// Where groups have their numbers. Groups of a directory service are given as numbers.
const GROUPS: &str = "/etc/group";

/// Why there is no Unix socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("another larder is listening on {}", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket has that name; it is left alone.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Longer than the system can name.
    #[error("the socket path {} has {len} bytes, at most {MAX_PATH_LEN} are possible", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// There is no such group.
    #[error("there is no group `{group}` in {GROUPS}, and it is no number")]
    NoGroup {
        /// What was asked for.
        group: String,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SocketError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Makes the socket and listens. A file that nobody listens on is replaced.
///
/// The node's lock on its store keeps two daemons with one configuration apart; two with
/// different stores and one socket path may, if started in the same instant, replace each other's
/// file.
pub(super) async fn bind(options: &UnixOptions) -> Result<(UnixListener, SocketFile), SocketError> {
    let path = &options.path;
    let len = path.as_os_str().len();
    if len > MAX_PATH_LEN {
        let path = path.clone();
        return Err(SocketError::TooLong { path, len });
    }
    let gid = options.group.as_deref().map(gid_of).transpose()?;
    make_parent(path, gid.is_some())?;
    make_way(path).await?;
    let socket = UnixSocket::new_stream().map_err(SocketError::io("make a socket for", path))?;
    socket.bind(path).map_err(SocketError::io("bind", path))?;
    let file = SocketFile::of(path).map_err(SocketError::io("look at", path))?;
    // Nobody can connect before `listen`, so nobody gets in by an earlier mode.
    if gid.is_some() {
        chown(path, None, gid).map_err(SocketError::io("change the group of", path))?;
    }
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(SocketError::io("change the mode of", path))?;
    let listener = socket
        .listen(BACKLOG)
        .map_err(SocketError::io("listen on", path))?;
    Ok((listener, file))
}

/// A group must be able to pass through the directory; otherwise it is the owner's alone.
fn make_parent(path: &Path, shared: bool) -> Result<(), SocketError> {
    let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    else {
        return Ok(());
    };
    let mode = if shared { 0o755 } else { 0o700 };
    let made = DirBuilder::new().recursive(true).mode(mode).create(parent);
    made.map_err(SocketError::io("create", parent))
}

async fn make_way(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::io("look at", path)(error)),
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(SocketError::io("remove the stale socket", path))
        }
        // A full backlog is a listener too.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(SocketError::io("connect to the socket", path)(error))
        }
        Ok(_) | Err(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

fn gid_of(group: &str) -> Result<u32, SocketError> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let groups = Path::new(GROUPS);
    let text = fs::read_to_string(groups).map_err(SocketError::io("read", groups))?;
    find_gid(&text, group).ok_or_else(|| SocketError::NoGroup {
        group: group.to_owned(),
    })
}

/// The number of `group` in lines of the form `name:password:gid:members`.
fn find_gid(groups: &str, group: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(group);
        is_it.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Removes the socket's file when it is dropped, unless it has become somebody else's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // What remains is stale, which the next start sees for itself.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nlarder-dev:x:7:\nlarder:x:1042:ann,bob\nodd\nbad:x:y:\n";
        assert_eq!(find_gid(groups, "larder"), Some(1_042));
        assert_eq!(find_gid(groups, "root"), Some(0));
        assert_eq!(find_gid(groups, "lard"), None);
        assert_eq!(find_gid(groups, "odd"), None);
        assert_eq!(find_gid(groups, "bad"), None);
        assert_eq!(gid_of("12").ok(), Some(12));
    }
}
