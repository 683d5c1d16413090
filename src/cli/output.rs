use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::complaint::Complaint;
use super::exit::Exit;

/// A file that appears whole or not at all: written under another name, fsynced, renamed.
pub(crate) struct Output {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Output {
    /// Starts a file for everybody, as far as the umask allows.
    pub(crate) fn create(path: &Path) -> Result<Self, Complaint> {
        Self::with_mode(path, 0o666)
    }

    /// Starts a file that only its owner can read.
    pub(crate) fn create_private(path: &Path) -> Result<Self, Complaint> {
        Self::with_mode(path, 0o600)
    }

    fn with_mode(path: &Path, mode: u32) -> Result<Self, Complaint> {
        let file = tempfile::Builder::new()
            .prefix(".larder-")
            // Engines that watch a directory take whatever ends in `.yaml`.
            .suffix(".part")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory(path))
            .map_err(|error| failed(path, error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Gives the file its name, over whatever had it.
    pub(crate) fn keep(self) -> Result<(), Complaint> {
        let Self { file, path } = self;
        file.as_file()
            .sync_all()
            .map_err(|error| failed(&path, error))?;
        let kept = file.persist(&path);
        kept.map_err(|error| failed(&path, error.error))?;
        let directory = std::fs::File::open(directory(&path));
        let synced = directory.and_then(|directory| directory.sync_all());
        synced.map_err(|error| failed(&path, error))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Complaint> {
    let mut output = Output::create(path)?;
    output
        .write_all(bytes)
        .map_err(|error| failed(path, error))?;
    output.keep()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed(path: &Path, error: io::Error) -> Complaint {
    let message = format!("cannot write {}", path.display());
    Complaint::new(Exit::General, message).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_kept_leaves_nothing_and_the_old_one_in_place() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.yaml");
        write(&path, b"old").expect("writable");
        let mut output = Output::create(&path).expect("writable");
        output.write_all(b"ne").expect("writable");
        drop(output);
        assert_eq!(std::fs::read(&path).expect("there"), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1);
        write(&path, b"new").expect("writable");
        assert_eq!(std::fs::read(&path).expect("there"), b"new");
    }

    #[test]
    fn a_private_file_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("backup");
        Output::create_private(&path)
            .expect("writable")
            .keep()
            .expect("kept");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
