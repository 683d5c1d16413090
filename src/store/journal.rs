//! The coordinator's truth: one append-only file of checked entries.
//!
//! An [`Entry`] is appended, and durable after the next [`sync`](Journal::sync). Each record also
//! says up to which offset the file was durable when it was written. So an invalid record can be
//! judged at the next start: if a valid record behind it says that it was durable, or if the view
//! has applied it, then something that was acknowledged is **damaged** and the journal refuses to
//! open; else it is the **torn tail** of a crash and is cut off.
//!
//! Bodies behind the last other entry are of no publish yet. Until an entry follows they can be
//! [cut off](Journal::cut_unsettled), which gives their space back; the view and backups take
//! what is **settled** only, so that they never hold what may go.
//!
//! A [`rewrite`](Journal::rewrite) puts what is still needed into a new file of the next
//! generation and renames it over the old one.
//!
//! A record is framed by a magic, its tag, that offset, its length and a check over all of it,
//! its generation and its place; `journal/record.rs` specifies it.

mod error;
mod reader;
pub(crate) mod record;
mod scan;
#[cfg(test)]
mod tests;

use std::io;

pub use self::error::{AppendError, DamageProof, JournalError, OpenError, ReadError, RewriteError};
use self::error::{io_error, write_error};
pub use self::reader::JournalReader;
use self::reader::Visited;
use self::record::{HEADER_LEN, Header, Place};
use crate::catalog::Entry;
use crate::store::file::{Disk, DiskFile};

/// Name of the journal within its directory.
pub(crate) const FILE: &str = "journal";

/// Name of a journal that is being written; one that is found at start is a leftover.
pub(crate) const NEW_FILE: &str = "journal.new";

/// Where a record starts, or where the next one will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Counts rewrites of the journal.
    pub generation: u64,
    /// Bytes from the start of the file.
    pub offset: u64,
}

impl Position {
    fn place(self) -> Place {
        let Self { generation, offset } = self;
        Place { generation, offset }
    }
}

/// The one writer of a journal.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: D,
    reader: JournalReader<D::File>,
    end: u64,
    /// Offset behind the last entry that is no body: what stands before it is never cut off.
    settled: u64,
    poisoned: bool,
}

/// What [`Journal::open`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenReport {
    /// Entries that were visited.
    pub entries: u64,
    /// Bytes of a torn tail that were cut off.
    pub torn_bytes: u64,
}

impl<D: Disk> Journal<D> {
    /// Whether there is a journal on `disk`.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn exists(disk: &D) -> Result<bool, JournalError> {
        Ok(disk.open(FILE).map_err(io_error("open"))?.is_some())
    }

    /// Opens the journal on `disk`, or makes an empty one, and visits all entries in order.
    ///
    /// `applied` is up to where the view has applied the journal: what stands before it was
    /// durable. A view that was left behind by a rewrite says nothing. What is visited is durable
    /// when this returns.
    ///
    /// # Errors
    /// [`OpenError`]; nothing on disk has changed then but leftovers.
    pub fn open<E>(
        disk: D,
        applied: Option<Position>,
        mut visit: impl FnMut(Position, Entry) -> Result<(), E>,
    ) -> Result<(Self, OpenReport), OpenError<E>> {
        disk.remove(NEW_FILE).map_err(io_error("clean up beside"))?;
        let file = match disk.open(FILE).map_err(io_error("open"))? {
            Some(file) => file,
            None if applied.is_some() => return Err(JournalError::Gone.into()),
            None => create(&disk).map_err(io_error("create"))?,
        };
        let reader = JournalReader::new(file)?;
        let file_len = reader.file().len().map_err(io_error("read"))?;
        let Visited {
            entries,
            settled,
            end,
            proven,
        } = reader.visit_all(file_len, &mut visit)?;
        reader.refuse_damage(end, file_len, applied)?;
        let settled = reader.settled_at_start(settled, applied);
        if end < file_len {
            let cut = reader.file().set_len(end);
            cut.map_err(io_error("cut the torn tail off"))?;
        }
        // What a killed process wrote may be in the cache of the kernel only, its name as well;
        // and what a failed sync left there is synced only if it is written again. That is what
        // the last sync covered and what came behind it, however long the journal is.
        let again = reader.write_again(proven, end);
        again.map_err(io_error("write the end again of"))?;
        let synced = reader.file().sync_data();
        synced.map_err(io_error("sync"))?;
        disk.sync_dir().map_err(io_error("sync the directory of"))?;
        reader.set_durable_end(end, settled);
        let report = OpenReport {
            entries,
            torn_bytes: file_len - end,
        };
        let journal = Self {
            disk,
            reader,
            end,
            settled,
            poisoned: false,
        };
        Ok((journal, report))
    }

    /// Appends an entry; it is durable after the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`AppendError`]; nothing changed then.
    pub fn append(&mut self, entry: &Entry) -> Result<Position, AppendError> {
        self.refuse_poison()?;
        let position = self.end();
        let record = encode(position, self.durable_end(), entry)?;
        let file = self.reader.file();
        if let Err(error) = file.write_all_at(&record, position.offset) {
            if let Err(error) = file.set_len(position.offset) {
                self.poisoned = true;
                return Err(AppendError::Poisoned(Some(error)));
            }
            return Err(write_error(error));
        }
        self.end += record.len() as u64;
        if !matches!(entry, Entry::Body { .. }) {
            self.settled = self.end;
        }
        Ok(position)
    }

    /// Makes everything appended so far survive a power cut.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`] at the first failure and ever after: the kernel may have dropped
    /// what it could not write, so to try again would prove nothing.
    pub fn sync(&mut self) -> Result<(), AppendError> {
        self.refuse_poison()?;
        if let Err(error) = self.reader.file().sync_data() {
            self.poisoned = true;
            return Err(AppendError::Poisoned(Some(error)));
        }
        self.reader.set_durable_end(self.end, self.settled);
        Ok(())
    }

    /// Cuts off the bodies behind the last other entry, and says how many bytes that gave back.
    ///
    /// # Errors
    /// [`AppendError`]; nothing changed unless it is [`AppendError::Poisoned`].
    pub fn cut_unsettled(&mut self) -> Result<u64, AppendError> {
        self.refuse_poison()?;
        let bytes = self.end - self.settled;
        if bytes == 0 {
            return Ok(0);
        }
        let file = self.reader.file();
        file.set_len(self.settled).map_err(write_error)?;
        if self.durable_end() > self.settled {
            // A record that is cut off may say that others of its kind were durable. Should it
            // come back after a power cut, what is written here next would look damaged.
            if let Err(error) = file.sync_data() {
                self.poisoned = true;
                return Err(AppendError::Poisoned(Some(error)));
            }
            self.reader.set_durable_end(self.settled, self.settled);
        }
        self.end = self.settled;
        Ok(bytes)
    }

    /// Replaces the journal by one of the next generation that holds `entries`.
    ///
    /// `on_written` learns where each entry stands in the new file, which is in force only when
    /// this returns `Ok`.
    ///
    /// # Errors
    /// [`RewriteError`]; the old journal stays in force unless it is poisoned now.
    pub fn rewrite<E>(
        &mut self,
        entries: impl IntoIterator<Item = Result<Entry, E>>,
        on_written: impl FnMut(Position, &Entry),
    ) -> Result<(), RewriteError<E>> {
        self.refuse_poison()?;
        let generation = self.generation() + 1;
        let written = write_new(&self.disk, generation, entries, on_written).and_then(|new| {
            let renamed = self.disk.rename(NEW_FILE, FILE);
            renamed.map_err(write_error)?;
            Ok(new)
        });
        let (file, header) = match written {
            Ok(new) => new,
            Err(error) => {
                // It is cleaned up at the next start at the latest.
                let _ = self.disk.remove(NEW_FILE);
                return Err(error);
            }
        };
        if let Err(error) = self.disk.sync_dir() {
            // After a power cut either file may have the name, so neither can be appended to.
            self.poisoned = true;
            return Err(AppendError::Poisoned(Some(error)).into());
        }
        self.reader = JournalReader::of(file, header, header.sealed);
        self.end = header.sealed;
        self.settled = header.sealed;
        Ok(())
    }

    /// A handle that reads this file from any thread, also after a rewrite replaced it.
    pub fn reader(&self) -> JournalReader<D::File> {
        self.reader.clone()
    }

    /// The entry at `position`, checked again.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, position: Position) -> Result<Entry, ReadError> {
        self.reader.read(position)
    }

    /// Where the next entry will stand.
    pub fn end(&self) -> Position {
        let generation = self.generation();
        let offset = self.end;
        Position { generation, offset }
    }

    /// Where bodies begin that [`cut_unsettled`](Self::cut_unsettled) would cut off.
    pub fn settled_end(&self) -> u64 {
        self.settled
    }

    /// Where the journal lives.
    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// Bytes of the file.
    #[expect(clippy::len_without_is_empty, reason = "it always has a header")]
    pub fn len(&self) -> u64 {
        self.end
    }

    /// Counts rewrites.
    pub fn generation(&self) -> u64 {
        self.reader.generation()
    }

    /// Offset up to which the file survives a power cut.
    pub fn durable_end(&self) -> u64 {
        self.reader.durable_end()
    }

    fn refuse_poison(&self) -> Result<(), AppendError> {
        match self.poisoned {
            true => Err(AppendError::Poisoned(None)),
            false => Ok(()),
        }
    }
}

/// The first journal of a store: written aside, so that a file with the name is always whole.
fn create<D: Disk>(disk: &D) -> io::Result<D::File> {
    let file = disk.create(NEW_FILE)?;
    file.write_all_at(&Header::first().encode(), 0)?;
    file.sync_data()?;
    disk.rename(NEW_FILE, FILE)?;
    disk.sync_dir()?;
    Ok(file)
}

fn write_new<D: Disk, E>(
    disk: &D,
    generation: u64,
    entries: impl IntoIterator<Item = Result<Entry, E>>,
    mut on_written: impl FnMut(Position, &Entry),
) -> Result<(D::File, Header), RewriteError<E>> {
    let file = disk.create(NEW_FILE).map_err(write_error)?;
    let mut offset = HEADER_LEN as u64;
    for entry in entries {
        let entry = entry.map_err(RewriteError::Entry)?;
        let position = Position { generation, offset };
        let record = encode(position, HEADER_LEN as u64, &entry)?;
        file.write_all_at(&record, offset).map_err(write_error)?;
        on_written(position, &entry);
        offset += record.len() as u64;
    }
    let header = Header {
        generation,
        sealed: offset,
    };
    file.write_all_at(&header.encode(), 0)
        .map_err(write_error)?;
    file.sync_data().map_err(write_error)?;
    Ok((file, header))
}

fn encode(position: Position, durable: u64, entry: &Entry) -> Result<Vec<u8>, AppendError> {
    record::encode(position.place(), durable, entry).ok_or_else(|| AppendError::TooLong {
        len: entry.encode().len(),
    })
}
