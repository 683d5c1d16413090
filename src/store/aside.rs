//! Opens a sled that can be rebuilt: a damaged one is set aside under a dated name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{SledStore, io_error};
use super::meta::{Meta, MetaError};
use super::{StoreError, unix_ms};
use crate::identity::Role;

/// Damaged stores that are kept for a look, per directory; the oldest is deleted. More would
/// fill the disk of a machine that damages them again and again.
const MAX_SET_ASIDE: usize = 3;

/// Opens the store `name` in `dir`, or starts a new one; says where a damaged one went.
pub(super) fn open(
    dir: &Path,
    name: &str,
    role: Role,
    cache_bytes: u64,
) -> Result<(SledStore, Option<PathBuf>), MetaError> {
    match open_once(dir, name, role, cache_bytes) {
        Err(error) if error.is_damage() => {
            let path = set_aside(dir, name, &error)?;
            let store = open_once(dir, name, role, cache_bytes)?;
            Ok((store, Some(path)))
        }
        opened => opened.map(|store| (store, None)),
    }
}

fn open_once(dir: &Path, name: &str, role: Role, cache_bytes: u64) -> Result<SledStore, MetaError> {
    let store = SledStore::open(&dir.join(name), cache_bytes)?;
    Meta::of(&store).prepare(role)?;
    Ok(store)
}

/// Renames the store `name`, loudly; says what it is called now.
pub(super) fn set_aside(dir: &Path, name: &str, why: &MetaError) -> Result<PathBuf, StoreError> {
    // However many copies a cache has seen, what is set aside of it is counted together.
    let kind = name.split('.').next().unwrap_or(name);
    let prefix = format!("{kind}.corrupt-");
    let stamps = stamps(dir, &prefix).map_err(io_error)?;
    // Later than every other, whatever the clock does: the smallest is deleted as the oldest.
    let after = stamps.last().map_or(0, |last| last.saturating_add(1));
    let stamp = after.max(unix_ms() / 1_000);
    let to = dir.join(format!("{prefix}{stamp}"));
    fs::rename(dir.join(name), &to).map_err(io_error)?;
    tracing::warn!(
        store = %dir.join(name).display(),
        kept_as = %to.display(),
        why = %why,
        "a damaged store is set aside and a new one started"
    );
    let surplus = (stamps.len() + 1).saturating_sub(MAX_SET_ASIDE);
    for stamp in &stamps[..surplus.min(stamps.len())] {
        let path = dir.join(format!("{prefix}{stamp}"));
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old damaged store stays");
        }
    }
    Ok(to)
}

/// Whether a damaged store `name` is kept in `dir`.
pub(super) fn is_kept(dir: &Path, name: &str) -> bool {
    stamps(dir, &format!("{name}.corrupt-")).is_ok_and(|stamps| !stamps.is_empty())
}

/// When the stores that are aside were put there, ascending.
fn stamps(dir: &Path, prefix: &str) -> io::Result<Vec<u64>> {
    let mut stamps = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let stamp = name.strip_prefix(prefix);
        stamps.extend(stamp.and_then(|stamp| stamp.parse::<u64>().ok()));
    }
    stamps.sort_unstable();
    Ok(stamps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_damaged_stores_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let why = MetaError::Store(StoreError::Damaged("a test".into()));
        let mut last = None;
        for _ in 0..MAX_SET_ASIDE + 2 {
            fs::create_dir(dir.path().join("view")).expect("made");
            last = Some(set_aside(dir.path(), "view", &why).expect("set aside"));
        }
        let left = fs::read_dir(dir.path()).expect("a listing").count();
        assert_eq!(left, MAX_SET_ASIDE);
        assert!(last.is_some_and(|path| path.exists()));
    }
}
