//! Who may use a store's directory: one process, of one role.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::file::{is_full, sync_dir};
use crate::identity::Role;

/// Name of the lock within a store's directory.
const FILE: &str = "lock";

/// The lock file holds a pid and a role; what is longer was not written by us.
const MAX_LEN: u64 = 64;

/// An exclusive lock on a directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

/// Why a store's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by {holder}", dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Pid and role, as the holder wrote them.
        holder: Holder,
    },
    /// It belongs to a node of another role.
    #[error(
        "{} holds the store of a {found}, not of a {wanted}; give each its own directory",
        dir.display()
    )]
    OtherRole {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: Role,
        /// Who asked.
        wanted: Role,
    },
    /// The operating system refused.
    #[error("cannot lock {}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who holds a lock, as far as the lock file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process, unless it is just starting.
    pub pid: Option<u32>,
    /// Its role.
    pub role: Option<Role>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, self.role) {
            (Some(pid), Some(role)) => write!(f, "the {role} with pid {pid}"),
            (Some(pid), None) => write!(f, "pid {pid}"),
            _ => f.write_str("another process"),
        }
    }
}

impl StoreLock {
    /// Makes `dir` if need be, readable by its owner only, and locks it.
    ///
    /// `foreign` are names that stand in the directories of the other role.
    ///
    /// # Errors
    /// [`LockError`].
    pub(super) fn acquire(
        dir: &Path,
        role: Role,
        (other, foreign): (Role, &[&str]),
    ) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        make_dir(dir).map_err(io_error)?;
        if foreign.iter().any(|name| dir.join(name).exists()) {
            return Err(LockError::OtherRole {
                dir: dir.to_owned(),
                found: other,
                wanted: role,
            });
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(FILE))
            .map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = read_holder(&mut file);
                return Err(LockError::Held {
                    dir: dir.to_owned(),
                    holder,
                });
            }
            Err(errno) => return Err(io_error(errno.into())),
        }
        match write_holder(&mut file, role) {
            // It only improves a message.
            Err(error) if !is_full(&error) => return Err(io_error(error)),
            _ => {}
        }
        Ok(Self { _file: file })
    }

    /// Removes the lock file of a directory that no store was made in.
    pub(super) fn remove(self, dir: &Path) -> io::Result<()> {
        std::fs::remove_file(dir.join(FILE))
    }
}

/// Who holds the lock of `dir`; `None` when nobody does, or when there is no store. Makes nothing.
///
/// # Errors
/// What the operating system said.
pub fn holder(dir: &Path) -> io::Result<Option<Holder>> {
    let mut file = match File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Shared, so that two who look are not in each other's way; given back with the file.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(read_holder(&mut file))),
        Err(errno) => Err(errno.into()),
    }
}

fn write_holder(file: &mut File, role: Role) -> io::Result<()> {
    let text = format!("{} {role}\n", std::process::id());
    file.rewind()?;
    // Over what is there: that takes no space, and on a full disk there is none.
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    // It only improves a message, so what cannot be read is left out.
    let _ = file.take(MAX_LEN).read_to_string(&mut text);
    let mut words = text.split_whitespace();
    Holder {
        pid: words.next().and_then(|word| word.parse().ok()),
        role: words.next().and_then(|word| word.parse().ok()),
    }
}

/// Makes a directory that only its owner can enter; one that exists is left as it is.
///
/// The names that it makes survive a power cut: what is acknowledged stands below them.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<_> = dir.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for parent in missing.iter().filter_map(|made| made.parent()) {
        match parent.as_os_str().is_empty() {
            true => sync_dir(Path::new("."))?,
            false => sync_dir(parent)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn acquire(dir: &Path) -> Result<StoreLock, LockError> {
        StoreLock::acquire(dir, Role::Worker, (Role::Coordinator, &["journal"]))
    }

    #[test]
    fn a_second_opener_learns_who_holds_the_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = acquire(dir.path()).expect("the lock");
        let error = acquire(dir.path()).expect_err("it is held");
        let LockError::Held { holder, .. } = &error else {
            panic!("not a held lock: {error}");
        };
        assert_eq!(holder.pid, Some(std::process::id()));
        assert_eq!(holder.role, Some(Role::Worker));
        let pid = std::process::id();
        assert!(
            error
                .to_string()
                .contains(&format!("the worker with pid {pid}"))
        );
        let seen = super::holder(dir.path()).expect("it can be seen");
        assert_eq!(seen, Some(*holder), "whoever looks learns the same");
        drop(lock);
        assert_eq!(super::holder(dir.path()).expect("it can be seen"), None);
        acquire(dir.path()).expect("the lock is free again");
    }

    #[test]
    fn a_lock_file_that_says_nothing_still_locks() {
        let dir = tempfile::tempdir().expect("a directory");
        let _lock = acquire(dir.path()).expect("the lock");
        fs::write(dir.path().join(FILE), [0xff; 200]).expect("written");
        let error = acquire(dir.path()).expect_err("it is held");
        assert!(error.to_string().contains("another process"), "{error}");
    }

    #[test]
    fn the_directory_of_another_role_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("journal"), b"").expect("written");
        let error = acquire(dir.path()).expect_err("a coordinator's");
        assert!(matches!(
            error,
            LockError::OtherRole {
                found: Role::Coordinator,
                ..
            }
        ));
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_new_directory_is_closed_to_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = dir.path().join("a/b");
        let _lock = acquire(&inner).expect("the lock");
        let mode = fs::metadata(&inner).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
