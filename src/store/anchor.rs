//! Up to when a worker's copy of the catalog reflects everything, in a file of its own.
//!
//! ```text
//! magic 8 | format u32 | boot id 16 | boot clock u64, microseconds
//!         | catalog 16 | epoch u64 | revision u64 | check 16
//! ```
//!
//! The check is the first 16 bytes of BLAKE3 over what stands before it. The file is written over
//! itself and never synced: a power cut ends the boot that its time is of. Whatever else is wrong
//! with it costs bounded reads their answer until the coordinator has been heard once.

use std::io;

use super::file::{Disk, DiskFile};
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::Time;
use crate::proto::worker::{Anchor, BootId, KeptAnchor, Mark};

/// Name of the file within a worker's store.
const FILE: &str = "anchor";

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"LARDERA\n";
const CHECK_LEN: usize = 16;
const LEN: usize = 8 + 4 + 16 + 8 + 16 + 8 + 8 + CHECK_LEN;

/// The file; made by the first write.
#[derive(Debug)]
pub(crate) struct AnchorFile<D: Disk> {
    disk: D,
    file: Option<D::File>,
}

impl<D: Disk> AnchorFile<D> {
    /// Opens the file on `disk` and says what an earlier process left there, if that is whole.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn open(disk: D) -> io::Result<(Self, Option<KeptAnchor>)> {
        let file = disk.open(FILE)?;
        let kept = match &file {
            Some(file) => read(file)?,
            None => None,
        };
        Ok((Self { disk, file }, kept))
    }

    /// Keeps `anchor`; it survives the end of the process.
    ///
    /// # Errors
    /// Those of the operating system; there may be no anchor then.
    pub(crate) fn write(&mut self, anchor: KeptAnchor) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.disk.create(FILE)?,
        };
        self.file.insert(file).write_all_at(&encode(anchor), 0)
    }
}

fn read<F: DiskFile>(file: &F) -> io::Result<Option<KeptAnchor>> {
    let mut bytes = [0; LEN];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| decode(&bytes).ok()),
    }
}

fn encode(KeptAnchor { boot, anchor }: KeptAnchor) -> Vec<u8> {
    let Anchor { at, state } = anchor;
    let mut w = Writer::new();
    w.raw(&MAGIC).u32(FORMAT).raw(boot.as_bytes());
    w.u64(at.as_micros()).raw(state.catalog.as_bytes());
    w.u64(state.epoch.get()).u64(state.rev.get());
    let mut bytes = w.finish();
    let check = check_of(&bytes);
    bytes.extend_from_slice(&check);
    bytes
}

fn decode(bytes: &[u8; LEN]) -> Result<KeptAnchor, DecodeError> {
    let (covered, check) = bytes.split_at(LEN - CHECK_LEN);
    if check_of(covered) != *check {
        return Err(DecodeError::Value("not what was written"));
    }
    let mut r = Reader::new(covered);
    if (r.array()?, r.u32()?) != (MAGIC, FORMAT) {
        return Err(DecodeError::Value("not an anchor of this format"));
    }
    let boot = BootId::from_bytes(r.array()?);
    let at = Time::from_micros(r.u64()?);
    let state = Mark {
        catalog: CatalogId::from_bytes(r.array()?),
        epoch: Epoch::new(r.u64()?),
        rev: Revision::new(r.u64()?),
    };
    r.end()?;
    let anchor = Anchor { at, state };
    Ok(KeptAnchor { boot, anchor })
}

fn check_of(covered: &[u8]) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&blake3::hash(covered).as_bytes()[..CHECK_LEN]);
    check
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::hash::hex;
    use crate::store::file::sim::{Op, SimDisk};

    fn anchor(at: u64) -> KeptAnchor {
        KeptAnchor {
            boot: BootId::from_bytes([3; 16]),
            anchor: Anchor {
                at: Time::from_micros(at),
                state: Mark {
                    catalog: CatalogId::from_bytes([7; 16]),
                    epoch: Epoch::new(2),
                    rev: Revision::new(at),
                },
            },
        }
    }

    fn left_on(disk: &SimDisk) -> Option<KeptAnchor> {
        AnchorFile::open(disk.clone()).expect("it opens").1
    }

    #[test]
    fn the_last_anchor_outlives_its_process() {
        let disk = SimDisk::default();
        let (mut file, none) = AnchorFile::open(disk.clone()).expect("it opens");
        assert_eq!(none, None);
        for at in 1..4 {
            file.write(anchor(at)).expect("written");
            assert_eq!(left_on(&disk), Some(anchor(at)));
        }
    }

    #[test]
    fn a_write_that_fails_and_damage_leave_an_anchor_that_was_written_or_none() {
        let disk = SimDisk::default();
        let (mut file, _) = AnchorFile::open(disk.clone()).expect("it opens");
        file.write(anchor(1)).expect("written");
        disk.fail_next(Op::Write);
        file.write(anchor(2)).expect_err("refused");
        let left = left_on(&disk);
        assert!(left.is_none_or(|left| left == anchor(1) || left == anchor(2)));
        file.write(anchor(3)).expect("written");
        let content = disk.content(FILE).expect("the file");
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            disk.put(FILE, &flipped);
            assert_eq!(left_on(&disk), None, "bit {bit}");
        }
        for len in 0..content.len() {
            disk.put(FILE, &content[..len]);
            assert_eq!(left_on(&disk), None, "cut to {len}");
        }
        disk.put(FILE, &content);
        assert_eq!(left_on(&disk), Some(anchor(3)));
    }

    #[test]
    fn the_encoding_is_fixed() {
        let golden = include_str!("../../tests/data/anchor.hex");
        assert_eq!(hex(&encode(anchor(9))), golden.trim());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), LEN)) {
            let bytes: [u8; LEN] = bytes.try_into().expect("the length");
            let _ = decode(&bytes);
        }
    }
}
