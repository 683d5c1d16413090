//! Reads records back, and tells a torn tail from damage.

use std::io;

use bytes::{Bytes, BytesMut};

use super::record::{self, MAGIC, PREFIX_LEN, Place, Prefix};
use crate::store::file::DiskFile;

/// The intact record at `place`, or `None` if there is none. `file_len` bounds what is read.
pub(super) fn read_record<F: DiskFile>(
    file: &F,
    place: Place,
    file_len: u64,
) -> io::Result<Option<(Prefix, Bytes)>> {
    let Some(prefix) = read_prefix(file, place.offset, file_len)? else {
        return Ok(None);
    };
    let mut record = BytesMut::zeroed(prefix.record_len());
    file.read_exact_at(&mut record, place.offset)?;
    Ok(record::is_intact(place, &record).then(|| (prefix, record.freeze())))
}

/// A prefix whose record would fit into the file.
fn read_prefix<F: DiskFile>(file: &F, offset: u64, file_len: u64) -> io::Result<Option<Prefix>> {
    let room = file_len.saturating_sub(offset);
    if room < PREFIX_LEN as u64 {
        return Ok(None);
    }
    let mut prefix = [0; PREFIX_LEN];
    file.read_exact_at(&mut prefix, offset)?;
    let prefix = Prefix::decode(&prefix);
    Ok(prefix.filter(|prefix| prefix.record_len() as u64 <= room))
}

/// What stands behind an invalid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Nothing proves that the invalid record was ever durable.
    NoProof,
    /// The record at this offset was written when the invalid one was durable already.
    Proof(u64),
    /// [`SEARCH_BUDGET`] did not suffice.
    TooMuch,
}

/// Bytes that may be hashed in the search for a proof; about a second's work. A journal whose
/// tail is so full of look-alikes counts as damaged, which loses nothing.
const SEARCH_BUDGET: u64 = 1 << 30;

/// Bytes read at a time in the search.
const CHUNK: usize = 1 << 20;

/// Looks behind the invalid record at `at.offset` for one that proves it was durable.
pub(super) fn search<F: DiskFile>(file: &F, at: Place, file_len: u64) -> io::Result<Behind> {
    let mut budget = SEARCH_BUDGET;
    let mut chunk_start = at.offset.saturating_add(1);
    let mut chunk = vec![0; CHUNK];
    while chunk_start < file_len {
        let len = CHUNK.min(usize::try_from(file_len - chunk_start).unwrap_or(CHUNK));
        file.read_exact_at(&mut chunk[..len], chunk_start)?;
        for hit in hits(&chunk[..len]) {
            let offset = chunk_start + hit as u64;
            let Some(prefix) = read_prefix(file, offset, file_len)? else {
                continue;
            };
            // Only these can prove anything, so only these are worth hashing.
            if prefix.durable_through <= at.offset || prefix.durable_through > offset {
                continue;
            }
            let Some(left) = budget.checked_sub(prefix.record_len() as u64) else {
                return Ok(Behind::TooMuch);
            };
            budget = left;
            let place = Place { offset, ..at };
            if read_record(file, place, file_len)?.is_some() {
                return Ok(Behind::Proof(offset));
            }
        }
        if len < CHUNK {
            break;
        }
        // Chunks overlap, so that a magic across their border is found.
        chunk_start += (CHUNK - (MAGIC.len() - 1)) as u64;
    }
    Ok(Behind::NoProof)
}

fn hits(chunk: &[u8]) -> impl Iterator<Item = usize> + '_ {
    chunk
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .map(|(index, _)| index)
}
