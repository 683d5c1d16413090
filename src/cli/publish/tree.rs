//! Which files of a directory are definitions.

use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};

/// Deepest folder: a name of 255 bytes has at most 128 segments.
const MAX_DEPTH: usize = 128;

/// A file below the root, by its path relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) relative: PathBuf,
}

/// What a walk met.
pub(super) enum Step {
    /// A definition.
    File(Found),
    /// Something that is passed over, and why; said to the user.
    Skipped(PathBuf, &'static str),
    /// Something that cannot be read.
    Failed(PathBuf, io::Error),
}

/// Walks a directory in order of file names. `on_step` returns whether to go on.
pub(super) fn walk(root: &Path, on_step: &mut dyn FnMut(Step) -> bool) {
    let canonical = match root.canonicalize() {
        Ok(canonical) => canonical,
        Err(error) => {
            on_step(Step::Failed(root.to_owned(), error));
            return;
        }
    };
    let mut walk = Walk {
        root: canonical.clone(),
        above: vec![canonical],
        on_step,
    };
    walk.folder(root, Path::new(""));
}

struct Walk<'a> {
    root: PathBuf,
    /// The folders that the walk is in, without links: one that leads back is a loop.
    above: Vec<PathBuf>,
    on_step: &'a mut dyn FnMut(Step) -> bool,
}

impl Walk<'_> {
    fn folder(&mut self, path: &Path, relative: &Path) -> bool {
        let entries = match entries(path) {
            Ok(entries) => entries,
            Err(error) => return (self.on_step)(Step::Failed(path.to_owned(), error)),
        };
        for (name, kind) in entries {
            let (path, relative) = (path.join(&name), relative.join(&name));
            if !self.entry(path, relative, kind) {
                return false;
            }
        }
        true
    }

    fn entry(&mut self, path: PathBuf, relative: PathBuf, kind: FileType) -> bool {
        let name = path.file_name().unwrap_or_default().to_owned();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        if kind.is_file() && !is_yaml(&name) {
            return true;
        }
        if is_hidden {
            return (self.on_step)(Step::Skipped(path, "its name begins with a dot"));
        }
        if kind.is_symlink() {
            return self.link(path, relative);
        }
        if kind.is_dir() {
            return self.enter(path, relative);
        }
        self.file(path, relative, kind.is_file())
    }

    fn link(&mut self, path: PathBuf, relative: PathBuf) -> bool {
        let target = path
            .canonicalize()
            .and_then(|to| Ok((fs::metadata(&to)?, to)));
        match target {
            Ok((_, to)) if !to.starts_with(&self.root) => {
                (self.on_step)(Step::Skipped(path, "the link leads out of the directory"))
            }
            Ok((metadata, _)) if metadata.is_dir() => self.enter(path, relative),
            Ok((metadata, _)) => match path.file_name().is_some_and(is_yaml) {
                true => self.file(path, relative, metadata.is_file()),
                false => true,
            },
            Err(error) => (self.on_step)(Step::Failed(path, error)),
        }
    }

    fn enter(&mut self, path: PathBuf, relative: PathBuf) -> bool {
        let canonical = match path.canonicalize() {
            Ok(canonical) => canonical,
            Err(error) => return (self.on_step)(Step::Failed(path, error)),
        };
        if self.above.contains(&canonical) {
            return (self.on_step)(Step::Skipped(path, "the link leads back to where it lies"));
        }
        if self.above.len() >= MAX_DEPTH {
            return (self.on_step)(Step::Skipped(path, "it lies deeper than any name reaches"));
        }
        self.above.push(canonical);
        let go_on = self.folder(&path, &relative);
        self.above.pop();
        go_on
    }

    fn file(&mut self, path: PathBuf, relative: PathBuf, is_regular: bool) -> bool {
        // Reading a pipe or a device might never end.
        (self.on_step)(match is_regular {
            true => Step::File(Found { path, relative }),
            false => Step::Skipped(path, "it is no regular file"),
        })
    }
}

fn entries(path: &Path) -> io::Result<Vec<(std::ffi::OsString, FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        entries.push((entry.file_name(), entry.file_type()?));
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

fn is_yaml(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".yaml") || name.ends_with(b".yml")
}
