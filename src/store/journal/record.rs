//! How one entry is framed in the journal, and the header before the first.
//!
//! ```text
//! header  magic 8 | format u32 | generation u64 | sealed u64 | check 16
//! record  magic 4 | tag u8 | durable through u64 | len u32 | payload | check 16
//! ```
//!
//! A check is the first 16 bytes of BLAKE3. A record's covers generation and offset too, so that
//! bytes of another generation, or a record inside the body of a spec, never pass for one.

use bytes::Bytes;

use crate::catalog::Entry;
use crate::codec::{DecodeError, Reader, Writer};

/// The journal format of this version.
pub(crate) const FORMAT: u32 = 1;

/// Bytes before the first record.
pub(crate) const HEADER_LEN: usize = 8 + 4 + 8 + 8 + CHECK_LEN;

/// Bytes of a record before its payload.
pub(crate) const PREFIX_LEN: usize = 4 + 1 + 8 + 4;

/// Bytes of a record beside its payload.
pub(crate) const FRAME_LEN: usize = PREFIX_LEN + CHECK_LEN;

/// Longest payload: a publish of 100,000 of the longest names is 30 MB, a body 16 MiB.
pub(crate) const MAX_PAYLOAD_LEN: usize = 32 << 20;

/// What a record starts with; not text, so that few bodies hold it.
pub(crate) const MAGIC: [u8; 4] = [0xf1, 0x4c, 0x52, 0xa7];

const HEADER_MAGIC: [u8; 8] = *b"LARDERJ\n";
const CHECK_LEN: usize = 16;

/// The start of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Counts rewrites.
    pub(crate) generation: u64,
    /// Length of the file when it got its name; all of that was durable then.
    pub(crate) sealed: u64,
}

/// Why the start of a file is no header of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Damaged,
    Newer(u32),
}

impl Header {
    /// The header of a store's first journal.
    pub(crate) const fn first() -> Self {
        Self {
            generation: 1,
            sealed: HEADER_LEN as u64,
        }
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let Self { generation, sealed } = self;
        let mut w = Writer::new();
        w.raw(&HEADER_MAGIC).u32(FORMAT).u64(generation).u64(sealed);
        let mut bytes = w.finish();
        let check = check_of(&[&bytes]);
        bytes.extend_from_slice(&check);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let (covered, check) = bytes.split_at(HEADER_LEN - CHECK_LEN);
        if check_of(&[covered]) != *check {
            return Err(HeaderError::Damaged);
        }
        let mut r = Reader::new(covered);
        let mut fields = || Ok::<_, DecodeError>((r.array()?, r.u32()?, r.u64()?, r.u64()?));
        match fields() {
            // There must be a next generation; nobody gets there by counting.
            Ok((HEADER_MAGIC, FORMAT, u64::MAX, _)) => Err(HeaderError::Damaged),
            Ok((HEADER_MAGIC, FORMAT, generation, sealed)) => Ok(Self { generation, sealed }),
            Ok((HEADER_MAGIC, format, ..)) => Err(HeaderError::Newer(format)),
            Ok(_) | Err(_) => Err(HeaderError::Damaged),
        }
    }
}

/// Where a record stands; its check covers both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

/// The fields before a payload, not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) tag: u8,
    /// Offset up to which the file was durable when this record was written.
    pub(crate) durable_through: u64,
    pub(crate) len: usize,
}

impl Prefix {
    /// Reads a prefix; `None` if the magic or the length cannot be right.
    pub(crate) fn decode(bytes: &[u8; PREFIX_LEN]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let magic: [u8; 4] = r.array().ok()?;
        let tag = r.u8().ok()?;
        let durable_through = r.u64().ok()?;
        let len = r.u32().ok()? as usize;
        let prefix = Self {
            tag,
            durable_through,
            len,
        };
        (magic == MAGIC && len <= MAX_PAYLOAD_LEN).then_some(prefix)
    }

    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> usize {
        FRAME_LEN + self.len
    }
}

/// The record of an entry at `place`, or `None` if its payload is too long.
pub(crate) fn encode(place: Place, durable_through: u64, entry: &Entry) -> Option<Vec<u8>> {
    encode_payload(place, durable_through, entry.tag(), &entry.encode())
}

/// The record of a payload at `place`, or `None` if it is too long.
pub(crate) fn encode_payload(
    place: Place,
    durable_through: u64,
    tag: u8,
    payload: &[u8],
) -> Option<Vec<u8>> {
    if payload.len() > MAX_PAYLOAD_LEN {
        return None;
    }
    let mut bytes = Vec::with_capacity(FRAME_LEN + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(tag);
    bytes.extend_from_slice(&durable_through.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(payload.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(payload);
    let check = record_check(place, &bytes);
    bytes.extend_from_slice(&check);
    Some(bytes)
}

/// Up to where the intact `record` at `offset` says that the file was durable.
pub(crate) fn durable_through(offset: u64, record: &[u8]) -> u64 {
    let prefix = record.first_chunk().and_then(Prefix::decode);
    let through = prefix.map_or(0, |prefix| prefix.durable_through);
    if through <= offset { through } else { 0 }
}

/// Whether `record`, prefix to check, was written at `place`.
pub(crate) fn is_intact(place: Place, record: &[u8]) -> bool {
    record
        .split_last_chunk::<CHECK_LEN>()
        .is_some_and(|(covered, check)| record_check(place, covered) == *check)
}

/// The entry in an intact record.
///
/// # Errors
/// [`DecodeError`] when this version does not understand the payload.
pub(crate) fn entry_of(prefix: Prefix, record: &Bytes) -> Result<Entry, DecodeError> {
    let end = PREFIX_LEN + prefix.len;
    if record.len() < end {
        return Err(DecodeError::Short {
            missing: end - record.len(),
        });
    }
    Entry::decode(prefix.tag, &record.slice(PREFIX_LEN..end))
}

fn record_check(place: Place, covered: &[u8]) -> [u8; CHECK_LEN] {
    let generation = place.generation.to_be_bytes();
    let offset = place.offset.to_be_bytes();
    check_of(&[&generation, &offset, covered])
}

fn check_of(parts: &[&[u8]]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_LEN]);
    check
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::hash::hex;

    fn prefix_of(bytes: &[u8]) -> Option<Prefix> {
        Prefix::decode(bytes.first_chunk()?)
    }

    #[test]
    fn a_header_round_trips_and_every_flipped_bit_is_noticed() {
        let header = Header {
            generation: 7,
            sealed: 99,
        };
        let bytes = header.encode();
        let whole: [u8; HEADER_LEN] = bytes.try_into().expect("the length of a header");
        assert_eq!(Header::decode(&whole), Ok(header));
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&flipped), Err(HeaderError::Damaged));
        }
    }

    #[test]
    fn the_encoding_is_fixed() {
        let header = Header {
            generation: 2,
            sealed: 300,
        };
        let place = Place {
            generation: 2,
            offset: 300,
        };
        let bytes = Bytes::from_static(b"steps: []\n");
        let record = encode(place, 290, &Entry::Body { bytes }).expect("short enough");
        let lines = [hex(&header.encode()), hex(&record)];
        let golden = include_str!("../../../tests/data/journal.hex");
        assert_eq!(lines, *golden.lines().collect::<Vec<_>>());
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut w = Writer::new();
        w.raw(&HEADER_MAGIC).u32(FORMAT + 1).u64(1).u64(0);
        let mut bytes = w.finish();
        bytes.extend_from_slice(&check_of(&[&bytes]));
        let header: [u8; HEADER_LEN] = bytes.try_into().expect("the length of a header");
        assert_eq!(Header::decode(&header), Err(HeaderError::Newer(FORMAT + 1)));
    }

    proptest! {
        #[test]
        fn a_record_round_trips_at_its_place_only(
            body: Vec<u8>,
            generation: u64,
            offset: u64,
            through: u64,
            bit: usize,
        ) {
            let place = Place { generation, offset };
            let entry = Entry::Body { bytes: body.into() };
            let record = encode(place, through, &entry).expect("short enough");
            let prefix = prefix_of(&record).expect("a prefix");
            prop_assert_eq!(prefix.durable_through, through);
            prop_assert_eq!(prefix.record_len(), record.len());
            prop_assert!(is_intact(place, &record));
            let bytes = Bytes::from(record.clone());
            prop_assert_eq!(entry_of(prefix, &bytes), Ok(entry));

            let elsewhere = Place { offset: offset.wrapping_add(1), ..place };
            prop_assert!(!is_intact(elsewhere, &record));
            let older = Place { generation: generation.wrapping_add(1), ..place };
            prop_assert!(!is_intact(older, &record));
            let mut flipped = record;
            let bit = bit % (flipped.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!is_intact(place, &flipped));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let place = Place { generation: 1, offset: 36 };
            let _ = is_intact(place, &bytes);
            if let Some(prefix) = prefix_of(&bytes) {
                let _ = entry_of(prefix, &bytes.into());
            }
        }
    }
}
