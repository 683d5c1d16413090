//! The key for stateless resets: a file of its own, so that it needs no view.

use std::io;

use crate::store::file::{Disk, DiskFile};

/// Name of the key within the store's directory.
const FILE: &str = "reset-key";

/// Name of a key that is being written; a leftover is written over.
const NEW_FILE: &str = "reset-key.new";

const LEN: usize = 32;

/// The key on `disk`; `fresh` becomes it if there is none, or none of the right length.
pub(super) fn key<D: Disk>(disk: &D, fresh: [u8; LEN]) -> io::Result<[u8; LEN]> {
    if let Some(file) = disk.open(FILE)?
        && file.len()? == LEN as u64
    {
        let mut key = [0; LEN];
        file.read_exact_at(&mut key, 0)?;
        return Ok(key);
    }
    let file = disk.create(NEW_FILE)?;
    let made = file
        .write_all_at(&fresh, 0)
        .and_then(|()| file.sync_data())
        .and_then(|()| disk.rename(NEW_FILE, FILE))
        .and_then(|()| disk.sync_dir());
    if made.is_err() {
        // The error that matters is the one above.
        let _ = disk.remove(NEW_FILE);
    }
    made.map(|()| fresh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::sim::SimDisk;

    #[test]
    fn the_key_is_made_once_and_a_crash_leaves_none_or_a_whole_one() {
        let whole = SimDisk::default();
        assert_eq!(key(&whole, [1; LEN]).expect("a key"), [1; LEN]);
        assert_eq!(key(&whole, [2; LEN]).expect("a key"), [1; LEN]);
        for cut in 0..=whole.ops() {
            for seed in 0..10 {
                let disk = SimDisk::default();
                disk.power_off_after(cut);
                let made = key(&disk, [1; LEN]).is_ok();
                let found = key(&disk.crash(seed), [2; LEN]).expect("a key");
                assert!(found == [1; LEN] || (!made && found == [2; LEN]), "{cut}");
            }
        }
    }

    #[test]
    fn a_full_disk_leaves_nothing_behind_and_a_file_that_is_no_key_is_replaced() {
        let disk = SimDisk::default();
        disk.put(FILE, b"short");
        disk.space_left(Some(31));
        assert!(key(&disk, [1; LEN]).is_err());
        assert!(disk.content(NEW_FILE).is_none());
        disk.space_left(None);
        assert_eq!(key(&disk, [1; LEN]).expect("a key"), [1; LEN]);
    }
}
