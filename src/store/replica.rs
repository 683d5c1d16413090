//! The copy of a catalog that a worker keeps: a base and the changes since, in one file.
//!
//! The file is framed like the [`journal`](super::journal): its header, its records, its way to
//! tell the torn end of a crash from damage. What the payloads say is the caller's matter. Unlike
//! a journal, a replica can be had again. So damage drops all of it, loudly, and never keeps a
//! worker from starting; what must not be lost with it is the [`mark`](super::mark).
//!
//! - [`append`](Replica::append) adds a change. It survives `kill -9` at once, and a power cut
//!   after the next [`sync`](Replica::sync). A crash may take the last changes; what is left is
//!   then an older state and whole.
//! - [`rewrite`](Replica::rewrite) replaces everything by a new base, once that is
//!   [due](Replica::is_rewrite_due).

use std::io;

use bytes::Bytes;

use super::file::{Disk, DiskFile, is_full};
use super::journal::record::{self, FRAME_LEN, HEADER_LEN, Header, PREFIX_LEN, Place};
use super::journal::{JournalError, JournalReader, ReadError};

/// Name of the file within a worker's store.
const FILE: &str = "replica";

/// Name of a file that is being written; one that is found at start is a leftover.
const NEW_FILE: &str = "replica.new";

/// The tag of its records; no entry of a journal has it.
const TAG: u8 = 128;

/// Longest file that is read: a million records of the longest names, twice over. A longer one
/// was not written by us and is dropped.
const MAX_LEN: u64 = 1 << 30;

/// A file that has doubled and is this much longer is due for a rewrite: a small catalog is not
/// worth one each few changes.
const SLACK_BYTES: u64 = 1 << 20;

/// The one writer of a replica.
#[derive(Debug)]
pub struct Replica<D: Disk> {
    disk: D,
    reader: JournalReader<D::File>,
    end: u64,
    /// Length of the file when it was last rewritten.
    base_len: u64,
    poisoned: bool,
}

/// What was in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The payloads, in the order in which they were written: the base, then the changes.
    pub payloads: Vec<Bytes>,
    /// Bytes of a torn end that were cut off.
    pub torn_bytes: u64,
}

/// Why a replica cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The operating system refused.
    #[error("cannot {action} the copy of the catalog")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No space is left; nothing changed.
    #[error("the disk is full")]
    Full(#[source] io::Error),
    /// The payload is longer than a record may be; nothing changed.
    #[error("a payload of {len} bytes, at most {max} are allowed", max = record::MAX_PAYLOAD_LEN)]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A sync failed now or earlier, or what a failed write left could not be cut off. Only a
    /// rewrite helps.
    #[error("the copy of the catalog takes no changes until it is written anew")]
    Poisoned(#[source] Option<io::Error>),
    /// A later version of Larder wrote it.
    #[error("the copy of the catalog has format {found}, this version knows up to {known}")]
    NewerFormat {
        /// The format of the file.
        found: u32,
        /// The newest that this version reads.
        known: u32,
    },
}

impl<D: Disk> Replica<D> {
    /// Opens the replica on `disk`, or makes an empty one. `None` if there was none, or if it was
    /// damaged and is dropped. What is found is durable when this returns.
    ///
    /// # Errors
    /// [`ReplicaError`], never for damage.
    pub fn open(disk: D) -> Result<(Self, Option<Replayed>), ReplicaError> {
        disk.remove(NEW_FILE).map_err(failed("clean up beside"))?;
        let Some(file) = disk.open(FILE).map_err(failed("open"))? else {
            return Ok((Self::empty(disk)?, None));
        };
        let (reader, replayed, proven) = match read_all(file) {
            Ok(read) => read,
            Err(Unreadable::Error(error)) => return Err(error),
            Err(Unreadable::Damaged { offset }) => {
                metrics::counter!("larder_replica_dropped_total").increment(1);
                tracing::warn!(
                    offset,
                    "the copy of the catalog is damaged and is fetched anew"
                );
                return Ok((Self::empty(disk)?, None));
            }
        };
        let end = record_end(&replayed.payloads);
        let file = reader.file();
        if replayed.torn_bytes > 0 {
            file.set_len(end).map_err(failed("cut the torn end off"))?;
        }
        // What a killed process wrote may be in the cache of the kernel only, its name as well;
        // and what a failed sync left there is synced only if it is written again.
        let again = reader.write_again(proven, end);
        again.map_err(failed("write the end again of"))?;
        file.sync_data().map_err(failed("sync"))?;
        disk.sync_dir().map_err(failed("sync the directory of"))?;
        reader.set_durable_end(end, end);
        let replica = Self {
            disk,
            base_len: reader.sealed(),
            reader,
            end,
            poisoned: false,
        };
        Ok((replica, Some(replayed)))
    }

    /// Adds a change at the end.
    ///
    /// # Errors
    /// [`ReplicaError`]; nothing changed then.
    pub fn append(&mut self, payload: &[u8]) -> Result<(), ReplicaError> {
        self.refuse_poison()?;
        let place = Place {
            generation: self.reader.generation(),
            offset: self.end,
        };
        let record = encode(place, self.reader.durable_end(), payload)?;
        let file = self.reader.file();
        if let Err(error) = file.write_all_at(&record, self.end) {
            if let Err(error) = file.set_len(self.end) {
                self.poisoned = true;
                return Err(ReplicaError::Poisoned(Some(error)));
            }
            return Err(write_error(error));
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// Makes all changes so far survive a power cut.
    ///
    /// # Errors
    /// [`ReplicaError::Poisoned`] at the first failure and until a rewrite.
    pub fn sync(&mut self) -> Result<(), ReplicaError> {
        self.refuse_poison()?;
        if let Err(error) = self.reader.file().sync_data() {
            self.poisoned = true;
            return Err(ReplicaError::Poisoned(Some(error)));
        }
        self.reader.set_durable_end(self.end, self.end);
        Ok(())
    }

    /// Whether the changes have outgrown the base.
    pub fn is_rewrite_due(&self) -> bool {
        let doubled = self.base_len.saturating_mul(2);
        self.poisoned || self.end > doubled.saturating_add(SLACK_BYTES)
    }

    /// Replaces everything by `payloads`, durably.
    ///
    /// # Errors
    /// [`ReplicaError`]; the old content stays in force, or, if the directory could not be
    /// synced, either of the two.
    pub fn rewrite<P: AsRef<[u8]>>(
        &mut self,
        payloads: impl IntoIterator<Item = P>,
    ) -> Result<(), ReplicaError> {
        let generation = self.reader.generation() + 1;
        let (file, header) = write_new(&self.disk, generation, payloads).inspect_err(|_| {
            // It is cleaned up at the next start at the latest.
            let _ = self.disk.remove(NEW_FILE);
        })?;
        if let Err(error) = self.disk.sync_dir() {
            // After a power cut either file may have the name, so neither can be appended to.
            self.poisoned = true;
            return Err(ReplicaError::Poisoned(Some(error)));
        }
        self.reader = JournalReader::of(file, header, header.sealed);
        self.end = header.sealed;
        self.base_len = header.sealed;
        self.poisoned = false;
        Ok(())
    }

    /// Bytes of the file.
    #[expect(clippy::len_without_is_empty, reason = "it always has a header")]
    pub fn len(&self) -> u64 {
        self.end
    }

    fn empty(disk: D) -> Result<Self, ReplicaError> {
        let generation = Header::first().generation;
        let (file, header) = write_new(&disk, generation, std::iter::empty::<&[u8]>())?;
        disk.sync_dir().map_err(failed("sync the directory of"))?;
        Ok(Self {
            disk,
            reader: JournalReader::of(file, header, header.sealed),
            end: header.sealed,
            base_len: header.sealed,
            poisoned: false,
        })
    }

    fn refuse_poison(&self) -> Result<(), ReplicaError> {
        match self.poisoned {
            true => Err(ReplicaError::Poisoned(None)),
            false => Ok(()),
        }
    }
}

/// Why a file gives no payloads.
enum Unreadable {
    Damaged { offset: u64 },
    Error(ReplicaError),
}

impl From<JournalError> for Unreadable {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Io { source, .. } => Self::Error(failed("read")(source)),
            JournalError::NewerFormat { found, known } => {
                Self::Error(ReplicaError::NewerFormat { found, known })
            }
            JournalError::Damaged { offset, .. } | JournalError::Unknown { offset, .. } => {
                Self::Damaged { offset }
            }
            JournalError::Gone => Self::Damaged { offset: 0 },
        }
    }
}

/// What a file holds, and up to where that is known to survive a power cut.
fn read_all<F: DiskFile>(file: F) -> Result<(JournalReader<F>, Replayed, u64), Unreadable> {
    let read_error = |error| Unreadable::Error(failed("read")(error));
    let reader = JournalReader::new(file)?;
    let file_len = reader.file().len().map_err(read_error)?;
    if file_len > MAX_LEN {
        return Err(Unreadable::Damaged { offset: MAX_LEN });
    }
    // All of it is looked at; what is durable is known at the end.
    reader.set_durable_end(file_len, file_len);
    let mut payloads = Vec::new();
    let mut offset = HEADER_LEN as u64;
    let mut proven = reader.sealed();
    for record in reader.raw_records() {
        match record {
            Ok(record) => {
                proven = proven.max(record::durable_through(offset, &record));
                offset += record.len() as u64;
                payloads.push(payload_of(&record));
            }
            Err(ReadError::Io(error)) => return Err(read_error(error)),
            Err(_) => break,
        }
    }
    let end = record_end(&payloads);
    reader.refuse_damage(end, file_len, None)?;
    let torn_bytes = file_len - end;
    Ok((
        reader,
        Replayed {
            payloads,
            torn_bytes,
        },
        proven,
    ))
}

/// Of an intact record.
fn payload_of(record: &Bytes) -> Bytes {
    let len = record.len().saturating_sub(FRAME_LEN);
    record.slice(PREFIX_LEN..PREFIX_LEN + len)
}

/// Where the record behind these would stand.
fn record_end(payloads: &[Bytes]) -> u64 {
    let records = payloads.iter().map(|payload| FRAME_LEN + payload.len());
    (HEADER_LEN + records.sum::<usize>()) as u64
}

fn write_new<D: Disk, P: AsRef<[u8]>>(
    disk: &D,
    generation: u64,
    payloads: impl IntoIterator<Item = P>,
) -> Result<(D::File, Header), ReplicaError> {
    let file = disk.create(NEW_FILE).map_err(write_error)?;
    let mut offset = HEADER_LEN as u64;
    for payload in payloads {
        let place = Place { generation, offset };
        let record = encode(place, HEADER_LEN as u64, payload.as_ref())?;
        file.write_all_at(&record, offset).map_err(write_error)?;
        offset += record.len() as u64;
    }
    let header = Header {
        generation,
        sealed: offset,
    };
    file.write_all_at(&header.encode(), 0)
        .map_err(write_error)?;
    file.sync_data().map_err(failed("sync"))?;
    disk.rename(NEW_FILE, FILE).map_err(failed("rename"))?;
    Ok((file, header))
}

fn encode(place: Place, durable: u64, payload: &[u8]) -> Result<Vec<u8>, ReplicaError> {
    let len = payload.len();
    record::encode_payload(place, durable, TAG, payload).ok_or(ReplicaError::TooLong { len })
}

fn write_error(error: io::Error) -> ReplicaError {
    match is_full(&error) {
        true => ReplicaError::Full(error),
        false => failed("write")(error),
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ReplicaError {
    move |source| ReplicaError::Io { action, source }
}

#[cfg(test)]
mod tests;
