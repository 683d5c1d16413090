//! The files under a journal, behind a seam that tests can cut at every operation.
//!
//! # Contract
//!
//! - A write is visible to every reader of the same file at once, and survives a power cut only
//!   after [`sync_data`](DiskFile::sync_data) succeeded. Until then any part of it may be lost,
//!   later writes may survive earlier ones, and one write may be torn.
//! - A name made, renamed or removed survives a power cut only after
//!   [`sync_dir`](Disk::sync_dir). A rename is never half done.
//! - After a failed `sync_data` nothing is known about what was written since the last one, and
//!   trying again does not help: the kernel may have dropped the bytes.
//! - An open file stays readable when its name is renamed over or removed.

#[cfg(any(test, feature = "sim"))]
pub(crate) mod sim;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory of files.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// An open file; readers share it with the one writer.
    type File: DiskFile;

    /// The file `name` for reading and writing, or `None` if there is none.
    ///
    /// # Errors
    /// Those of the operating system.
    fn open(&self, name: &str) -> io::Result<Option<Self::File>>;

    /// A new empty file `name`; what it held before is gone.
    ///
    /// # Errors
    /// Those of the operating system.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Gives `from` the name `to`, replacing what had it.
    ///
    /// # Errors
    /// Those of the operating system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes `name`; succeeds if there is none.
    ///
    /// # Errors
    /// Those of the operating system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names survive a power cut.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One open file with positional reads and writes.
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Writes all of `bytes` at `offset`; after an error any part of it may be there.
    ///
    /// # Errors
    /// Those of the operating system; `StorageFull` when no space is left.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends earlier, or those of the operating system.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// Those of the operating system.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file to `len` bytes, or fills it up with zeros.
    ///
    /// # Errors
    /// Those of the operating system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes content and length survive a power cut.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync_data(&self) -> io::Result<()>;
}

/// A directory of the operating system.
#[derive(Debug, Clone)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// The existing directory `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }
}

/// Definitions may hold secrets: only the owner reads what is made here.
const FILE_MODE: u32 = 0o600;

impl Disk for RealDisk {
    type File = File;

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        let path = self.dir.join(name);
        match File::options().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }
}

impl DiskFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

/// Makes the names in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether an error says that no space is left, quota included.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::sim::SimDisk;
    use super::*;

    fn check_contract(disk: &impl Disk) {
        assert!(disk.open("a").expect("an answer").is_none());
        disk.remove("a").expect("removing nothing is no error");

        let file = disk.create("a").expect("a file");
        file.write_all_at(b"hello", 0).expect("a write");
        file.write_all_at(b"J", 0).expect("an overwrite");
        file.write_all_at(b"!", 6).expect("a write beyond the end");
        assert_eq!(file.len().expect("a length"), 7);
        let mut all = [1; 7];
        let reader = disk.open("a").expect("an answer").expect("the file");
        reader.read_exact_at(&mut all, 0).expect("a read");
        assert_eq!(&all, b"Jello\0!", "a gap reads as zero");
        let error = reader.read_exact_at(&mut all, 1).expect_err("too short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

        file.set_len(2).expect("a cut");
        file.sync_data().expect("a sync");
        assert_eq!(reader.len().expect("a length"), 2);

        let other = disk.create("b").expect("a file");
        other.write_all_at(b"new", 0).expect("a write");
        disk.rename("b", "a").expect("a rename");
        disk.sync_dir().expect("a sync");
        assert!(disk.open("b").expect("an answer").is_none());
        let renamed = disk.open("a").expect("an answer").expect("the file");
        assert_eq!(renamed.len().expect("a length"), 3);
        assert_eq!(reader.len().expect("a length"), 2, "still the old file");
        let emptied = disk.create("a").expect("a file");
        assert_eq!(emptied.len().expect("a length"), 0);
    }

    #[test]
    fn both_disks_keep_the_contract() {
        let dir = tempfile::tempdir().expect("a directory");
        check_contract(&RealDisk::new(dir.path()));
        check_contract(&SimDisk::default());
    }
}
