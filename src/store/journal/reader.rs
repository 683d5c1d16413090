use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Position;
use super::error::{DamageProof, JournalError, OpenError, ReadError, io_error};
use super::record::{self, HEADER_LEN, Header, HeaderError, Place};
use super::scan::{self, Behind};
use bytes::Bytes;

use crate::catalog::Entry;
use crate::store::file::DiskFile;

/// Reads one file of a journal from any thread; clones share it.
#[derive(Debug)]
pub struct JournalReader<F> {
    open: Arc<OpenFile<F>>,
}

#[derive(Debug)]
struct OpenFile<F> {
    file: F,
    header: Header,
    /// Offset up to which the file survives a power cut.
    durable: AtomicU64,
    /// Offset up to which it does, and is never cut off either.
    settled: AtomicU64,
}

/// What a walk over all records found.
pub(super) struct Visited {
    /// How many there are.
    pub(super) entries: u64,
    /// Offset behind the last one that is no body.
    pub(super) settled: u64,
    /// Offset of the first invalid one.
    pub(super) end: u64,
    /// Offset up to which they prove that the file survives a power cut.
    pub(super) proven: u64,
}

/// One entry as a record holds it.
struct Found {
    entry: Entry,
    /// Offset behind it.
    next: u64,
    /// Offset up to which the file was durable when it was written.
    durable_through: u64,
}

impl<F> Clone for JournalReader<F> {
    fn clone(&self) -> Self {
        let open = Arc::clone(&self.open);
        Self { open }
    }
}

impl<F: DiskFile> JournalReader<F> {
    pub(crate) fn new(file: F) -> Result<Self, JournalError> {
        let damaged = JournalError::Damaged {
            offset: 0,
            proof: DamageProof::Header,
        };
        let mut header = [0; HEADER_LEN];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged),
            read => read.map_err(io_error("read"))?,
        }
        let header = Header::decode(&header).map_err(|error| match error {
            HeaderError::Damaged => damaged,
            HeaderError::Newer(found) => JournalError::NewerFormat {
                found,
                known: record::FORMAT,
            },
        })?;
        Ok(Self::of(file, header, HEADER_LEN as u64))
    }

    pub(crate) fn of(file: F, header: Header, durable: u64) -> Self {
        let open = Arc::new(OpenFile {
            file,
            header,
            durable: AtomicU64::new(durable),
            settled: AtomicU64::new(durable),
        });
        Self { open }
    }

    /// The entry at `position`, checked again.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, position: Position) -> Result<Entry, ReadError> {
        let asked = position.generation;
        let current = self.generation();
        if asked != current {
            return Err(ReadError::Generation { asked, current });
        }
        let found = self.read_at(position.offset, self.open.file.len()?)?;
        Ok(found.entry)
    }

    /// The settled entries at or after `from`, and for each the position behind it.
    pub fn entries(
        &self,
        from: u64,
    ) -> impl Iterator<Item = Result<(Position, Entry), ReadError>> + '_ {
        let end = self.settled_end();
        let generation = self.generation();
        let mut offset = from.max(HEADER_LEN as u64);
        std::iter::from_fn(move || {
            if offset >= end {
                return None;
            }
            let step = self.read_at(offset, end).map(|found| {
                offset = found.next;
                (Position { generation, offset }, found.entry)
            });
            if step.is_err() {
                offset = end;
            }
            Some(step)
        })
    }

    /// Counts rewrites.
    pub fn generation(&self) -> u64 {
        self.open.header.generation
    }

    /// Offset up to which the file survives a power cut.
    pub fn durable_end(&self) -> u64 {
        self.open.durable.load(Ordering::Acquire)
    }

    /// Offset up to which the file survives a power cut and is never cut off: bodies behind it
    /// may be.
    pub fn settled_end(&self) -> u64 {
        self.open.settled.load(Ordering::Acquire)
    }

    /// Length of the file when it got its name.
    pub(crate) fn sealed(&self) -> u64 {
        self.open.header.sealed
    }

    /// The header as it stands in the file.
    pub(crate) fn header(&self) -> Vec<u8> {
        self.open.header.encode()
    }

    /// The settled records as they stand in the file, each checked.
    pub(crate) fn raw_records(&self) -> impl Iterator<Item = Result<Bytes, ReadError>> + '_ {
        let end = self.settled_end();
        let mut offset = HEADER_LEN as u64;
        std::iter::from_fn(move || {
            if offset >= end {
                return None;
            }
            let read = scan::read_record(&self.open.file, self.place(offset), end);
            let record = match read {
                Ok(Some((_, record))) => Ok(record),
                Ok(None) => Err(ReadError::Damaged { offset }),
                Err(error) => Err(error.into()),
            };
            // The first error ends it.
            offset = record
                .as_ref()
                .map_or(end, |bytes| offset + bytes.len() as u64);
            Some(record)
        })
    }

    pub(crate) fn file(&self) -> &F {
        &self.open.file
    }

    pub(crate) fn set_durable_end(&self, end: u64, settled: u64) {
        self.open.durable.store(end, Ordering::Release);
        self.open.settled.store(settled, Ordering::Release);
    }

    /// What a rewrite has sealed and what the view has applied stays as well.
    pub(super) fn settled_at_start(&self, visited: u64, applied: Option<Position>) -> u64 {
        let same = applied.filter(|applied| applied.generation == self.generation());
        let applied = same.map_or(0, |applied| applied.offset);
        visited.max(self.open.header.sealed).max(applied)
    }

    /// Writes the records from `from` to `end` again, in place and as they are.
    ///
    /// A sync that failed in an earlier process may have left them in the cache of the kernel as
    /// if they had been written: they are read, a sync skips them, and a power cut takes them.
    pub(crate) fn write_again(&self, from: u64, end: u64) -> io::Result<()> {
        let mut offset = from;
        while offset < end {
            let read = scan::read_record(&self.open.file, self.place(offset), end)?;
            let Some((_, record)) = read else {
                // The cache has dropped it meanwhile, and the next start finds less.
                let reason = format!("the record at byte {offset} changed while it was read");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            };
            self.open.file.write_all_at(&record, offset)?;
            offset += record.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, file_len: u64) -> Result<Found, ReadError> {
        let place = self.place(offset);
        let Some((prefix, bytes)) = scan::read_record(&self.open.file, place, file_len)? else {
            return Err(ReadError::Damaged { offset });
        };
        let next = offset + bytes.len() as u64;
        match record::entry_of(prefix, &bytes) {
            Ok(entry) => Ok(Found {
                entry,
                next,
                durable_through: record::durable_through(offset, &bytes),
            }),
            Err(source) => Err(ReadError::Unknown { offset, source }),
        }
    }

    fn place(&self, offset: u64) -> Place {
        let generation = self.generation();
        Place { generation, offset }
    }

    /// Visits entries up to the first invalid record.
    pub(super) fn visit_all<E>(
        &self,
        file_len: u64,
        visit: &mut impl FnMut(Position, Entry) -> Result<(), E>,
    ) -> Result<Visited, OpenError<E>> {
        let mut offset = HEADER_LEN as u64;
        let mut settled = offset;
        let mut entries = 0;
        let mut proven = self.sealed();
        loop {
            let found = match self.read_at(offset, file_len) {
                Ok(read) => read,
                Err(ReadError::Damaged { .. } | ReadError::Generation { .. }) => {
                    return Ok(Visited {
                        entries,
                        settled,
                        end: offset,
                        proven,
                    });
                }
                Err(ReadError::Unknown { offset, source }) => {
                    return Err(JournalError::Unknown { offset, source }.into());
                }
                Err(ReadError::Io(error)) => return Err(io_error("read")(error).into()),
            };
            let Found { entry, next, .. } = found;
            proven = proven.max(found.durable_through);
            if !matches!(entry, Entry::Body { .. }) {
                settled = next;
            }
            let generation = self.generation();
            let visited = visit(Position { generation, offset }, entry);
            visited.map_err(|source| OpenError::Visitor { offset, source })?;
            offset = next;
            entries += 1;
        }
    }

    /// Whether what ends at `end` was once longer and durable.
    pub(crate) fn refuse_damage(
        &self,
        end: u64,
        file_len: u64,
        applied: Option<Position>,
    ) -> Result<(), JournalError> {
        let found = self.generation();
        let later = applied.filter(|applied| applied.generation > found);
        let same = applied.filter(|applied| applied.generation == found);
        let applied = same.map_or(0, |applied| applied.offset);
        let sealed = self.open.header.sealed;
        let proof = if let Some(Position { generation, .. }) = later {
            DamageProof::Generation {
                found,
                applied: generation,
            }
        } else if sealed > end {
            DamageProof::Sealed { sealed }
        } else if applied > end {
            DamageProof::Applied { applied }
        } else {
            let behind = scan::search(&self.open.file, self.place(end), file_len);
            match behind.map_err(io_error("read"))? {
                Behind::NoProof => return Ok(()),
                Behind::Proof(witness) => DamageProof::LaterRecord { witness },
                Behind::TooMuch => DamageProof::Unclear,
            }
        };
        Err(JournalError::Damaged { offset: end, proof })
    }
}
