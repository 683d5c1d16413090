//! The newest state of the coordinator that a worker has believed, in a file of its own.
//!
//! sled drops the end of its log in silence when a page there is damaged, and a worker that
//! forgot its mark could be led back by a coordinator that went back. So the mark stands beside
//! sled and outlives it:
//!
//! ```text
//! file  copy, at byte 0 | zeros | copy, at byte 4096 | zeros | copy, at 8192 | zeros | copy, at 12288
//! copy  magic 8 | format u32 | sequence u64 | known u8
//!       | catalog 16 | epoch u64 | revision u64 | head hash 32 | check 16
//! ```
//!
//! `known` is 1, or 0 for a worker that has asked nobody yet; the rest is zero then. The check is
//! the first 16 bytes of BLAKE3 over what stands before it.
//!
//! - A mark is written in place and survives `kill -9` at once. It goes over a copy that is neither
//!   the durable one, nor the newest, nor one that a sync waits for: so a power cut leaves a whole
//!   copy, a write that fails costs nothing that was written before, and no write waits for the
//!   disk. That takes four copies.
//! - [`sync`](MarkFile::sync) makes it durable and then writes the other copies too. From then on
//!   any copy may be damaged and nothing is lost; the next start repairs it.
//! - If all are damaged, or the file is gone while the cache is there, the worker refuses to
//!   start. Whoever removes the whole store decides that this worker believes the coordinator as
//!   a new one does.
//!
//! Format 1 had the first two copies alone; it is read, and the start makes the others.
//!
//! The file never grows. It is made before sled is, and durable before it has its name.

use std::io;
use std::sync::Arc;

use super::file::{Disk, DiskFile};
use crate::catalog::{CatalogId, Epoch, HeadHash, Revision};
use crate::codec::{DecodeError, Reader, Writer};

/// Name of the file within a worker's store.
pub(super) const FILE: &str = "mark";

/// Name of a file that is being made; one that is found at start is a leftover.
const NEW_FILE: &str = "mark.new";

/// The format of the file that this version writes and reads.
const FORMAT: u32 = 2;

/// The oldest format that it reads.
const OLDEST_FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"LARDERM\n";
const CHECK_LEN: usize = 16;
const COPY_LEN: usize = 8 + 4 + 8 + 1 + 16 + 8 + 8 + 32 + CHECK_LEN;

/// Where the copies stand: in different sectors and pages, so that no write touches both.
const COPY_AT: [u64; COPIES] = [0, 4_096, 8_192, 12_288];

/// One that is durable, one that a sync waits for, the newest, and one to write.
pub(super) const COPIES: usize = 4;

/// The newest state that a worker has believed; an older one is never believed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HighWater {
    /// Whose catalog it is.
    pub catalog: CatalogId,
    /// Counts restores; compared first.
    pub epoch: Epoch,
    /// The revision.
    pub rev: Revision,
    /// The head of that revision.
    pub head: HeadHash,
}

impl HighWater {
    /// Whether `self` may replace `known`: it is of another catalog, or not older.
    pub(super) fn may_replace(&self, known: &Self) -> bool {
        self.catalog != known.catalog || (self.epoch, self.rev) >= (known.epoch, known.rev)
    }
}

/// Why there is no high-water mark to start with.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The operating system refused.
    #[error("cannot {action} the high-water mark")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No copy is what was written.
    #[error(
        "all copies of the high-water mark are damaged: this worker cannot tell any more \
         whether a coordinator went back"
    )]
    Damaged,
    /// There is a cache, but no mark.
    #[error(
        "the high-water mark is gone, or an older version of Larder made this store: this worker \
         cannot tell whether a coordinator went back"
    )]
    Gone,
    /// A later version of Larder wrote it.
    #[error("the high-water mark has format {found}, this version knows {known}")]
    NewerFormat {
        /// The format of the file.
        found: u32,
        /// The one that this version knows.
        known: u32,
    },
}

/// The file, open for as long as the store.
#[derive(Debug)]
pub struct MarkFile<D: Disk> {
    file: Arc<D::File>,
    content: Content,
    /// The copy that survives a power cut.
    durable: usize,
    /// The copy that was written last, which holds [`Self::content`] if that is `written`.
    newest: usize,
    /// Whether [`Self::content`] would survive the end of the process.
    written: bool,
    /// The copy that a sync waits for.
    syncing: Option<usize>,
    /// Copies that are not known to hold [`Self::content`] durably.
    behind: usize,
}

/// A copy on its way to the disk: who waits for it needs no hold of the file.
#[derive(Debug)]
pub struct Syncing<D: Disk> {
    file: Arc<D::File>,
    copy: usize,
    sequence: u64,
}

impl<D: Disk> Syncing<D> {
    /// Waits for the disk.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn wait(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    /// Counts changes; the higher one is newer.
    sequence: u64,
    mark: Option<HighWater>,
}

impl<D: Disk> MarkFile<D> {
    /// Opens the file on `disk` and repairs a damaged or older copy; `None` if there is no file.
    /// What is found is durable when this returns.
    ///
    /// # Errors
    /// [`MarkError`]; the file is left as it is.
    pub fn open(disk: &D) -> Result<Option<Self>, MarkError> {
        let io_error = |source| MarkError::Io {
            action: "read",
            source,
        };
        let Some(file) = disk.open(FILE).map_err(io_error)? else {
            return Ok(None);
        };
        let mut copies = [None; COPIES];
        for (at, copy) in copies.iter_mut().enumerate() {
            *copy = read_copy(&file, at)?;
        }
        let newest = (0..COPIES).max_by_key(|&at| copies[at].map(|copy| copy.sequence));
        let Some((newest, content)) = newest.and_then(|at| Some((at, copies[at]?))) else {
            return Err(MarkError::Damaged);
        };
        let damaged = copies.iter().filter(|copy| copy.is_none()).count();
        if damaged > 0 {
            tracing::warn!(
                damaged,
                "copies of the high-water mark are missing; they are repaired"
            );
        }
        let mut opened = Self {
            file: Arc::new(file),
            content,
            // The newest is written over itself first: either it is durable already, or another
            // one is, which stays as it is until then. What looks durable may be in the cache of
            // the kernel only, and skipped by a sync since an earlier one failed.
            durable: (newest + COPIES - 1) % COPIES,
            newest,
            written: true,
            syncing: None,
            behind: COPIES,
        };
        opened.sync().map_err(|source| MarkError::Io {
            action: "repair",
            source,
        })?;
        Ok(Some(opened))
    }

    /// Makes the file of a worker that has asked nobody yet; it is durable when this returns.
    ///
    /// # Errors
    /// [`MarkError::Io`]; there is no such file then, or one that is whole.
    pub fn create(disk: &D) -> Result<Self, MarkError> {
        let content = Content {
            sequence: 0,
            mark: None,
        };
        let create = || {
            let file = disk.create(NEW_FILE)?;
            for at in COPY_AT {
                file.write_all_at(&content.encode(), at)?;
            }
            file.sync_data()?;
            disk.rename(NEW_FILE, FILE)?;
            disk.sync_dir()?;
            Ok(file)
        };
        let file = create().map_err(|source| MarkError::Io {
            action: "make",
            source,
        })?;
        Ok(Self {
            file: Arc::new(file),
            content,
            durable: 0,
            newest: 0,
            written: true,
            syncing: None,
            behind: 0,
        })
    }

    /// The mark, if this worker ever believed a coordinator.
    pub fn get(&self) -> Option<HighWater> {
        self.content.mark
    }

    /// Whether the mark would survive the end of the process.
    pub fn is_written(&self) -> bool {
        self.written
    }

    /// Sets the mark, unless it would go back within its catalog. It survives the end of the
    /// process when this returns, and a power cut after the next [`sync`](Self::sync). It waits
    /// for no sync, and writes an earlier mark that is not [written](Self::is_written) again.
    ///
    /// # Errors
    /// Those of the operating system. What was written before is still there, and the next call or
    /// sync tries again.
    pub fn raise(&mut self, mark: HighWater) -> io::Result<()> {
        let refused = |known: HighWater| known == mark || !mark.may_replace(&known);
        if !self.content.mark.is_some_and(refused) {
            self.content = Content {
                sequence: self.content.sequence.saturating_add(1),
                mark: Some(mark),
            };
            self.behind = COPIES;
            self.written = false;
        }
        match self.written {
            true => Ok(()),
            false => self.write(self.free()),
        }
    }

    /// Makes the mark survive a power cut, and then damage to any copy.
    ///
    /// # Errors
    /// Those of the operating system; an earlier durable mark still stands, and the next sync
    /// tries again.
    pub fn sync(&mut self) -> io::Result<()> {
        while let Some(syncing) = self.begin_sync()? {
            let synced = syncing.wait();
            self.end_sync(&syncing, synced.is_ok());
            synced?;
        }
        Ok(())
    }

    /// Writes the next copy that must become durable; `None` if all are. Whoever wants it calls
    /// [`Syncing::wait`], during which marks may be raised, and then [`end_sync`](Self::end_sync);
    /// one at a time. When it has been done once for each copy, the mark of the first call is durable
    /// however many came since.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn begin_sync(&mut self) -> io::Result<Option<Syncing<D>>> {
        if self.behind == 0 {
            return Ok(None);
        }
        let copy = match self.newest {
            _ if !self.written => self.free(),
            newest if newest == self.durable => (newest + 1) % COPIES,
            // Written again: the kernel drops what it could not write, and calls it clean.
            newest => newest,
        };
        self.write(copy)?;
        self.syncing = Some(copy);
        Ok(Some(Syncing {
            file: Arc::clone(&self.file),
            copy,
            sequence: self.content.sequence,
        }))
    }

    /// Says how the wait for a copy ended.
    pub fn end_sync(&mut self, syncing: &Syncing<D>, synced: bool) {
        self.syncing = None;
        if synced {
            // Nothing was written over it meanwhile.
            self.durable = syncing.copy;
            if self.content.sequence == syncing.sequence {
                self.behind -= 1;
            }
        }
    }

    /// A copy that may be torn.
    fn free(&self) -> usize {
        let kept = [Some(self.durable), Some(self.newest), self.syncing];
        let mut copies = 0..COPIES;
        let free = copies.find(|copy| !kept.contains(&Some(*copy)));
        free.expect("there is one more than are kept")
    }

    fn write(&mut self, copy: usize) -> io::Result<()> {
        self.file
            .write_all_at(&self.content.encode(), COPY_AT[copy])?;
        self.newest = copy;
        self.written = true;
        Ok(())
    }
}

/// The content of a copy, or `None` if it is damaged.
fn read_copy<F: DiskFile>(file: &F, copy: usize) -> Result<Option<Content>, MarkError> {
    let mut bytes = [0; COPY_LEN];
    match file.read_exact_at(&mut bytes, COPY_AT[copy]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(|source| MarkError::Io {
            action: "read",
            source,
        })?,
    }
    Content::decode(&bytes)
}

impl Content {
    fn encode(self) -> Vec<u8> {
        let Self { sequence, mark } = self;
        let mut w = Writer::new();
        w.raw(&MAGIC).u32(FORMAT).u64(sequence);
        match mark {
            Some(mark) => w
                .u8(1)
                .raw(mark.catalog.as_bytes())
                .u64(mark.epoch.get())
                .u64(mark.rev.get())
                .raw(mark.head.as_bytes()),
            None => w.raw(&[0; 1 + 16 + 8 + 8 + 32]),
        };
        let mut bytes = w.finish();
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        bytes
    }

    fn decode(bytes: &[u8; COPY_LEN]) -> Result<Option<Self>, MarkError> {
        let (covered, check) = bytes.split_at(COPY_LEN - CHECK_LEN);
        if check_of(covered) != *check {
            return Ok(None);
        }
        let mut r = Reader::new(covered);
        match (r.array(), r.u32()) {
            (Ok(MAGIC), Ok(OLDEST_FORMAT..=FORMAT)) => {}
            (Ok(MAGIC), Ok(found)) => {
                let known = FORMAT;
                return Err(MarkError::NewerFormat { found, known });
            }
            _ => return Ok(None),
        }
        Ok(Self::decode_rest(&mut r).ok())
    }

    fn decode_rest(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let sequence = r.u64()?;
        let known = r.u8()?;
        let mark = HighWater {
            catalog: CatalogId::from_bytes(r.array()?),
            epoch: Epoch::new(r.u64()?),
            rev: Revision::new(r.u64()?),
            head: HeadHash::from_bytes(r.array()?),
        };
        r.end()?;
        match known {
            0 | 1 => Ok(Self {
                sequence,
                mark: (known == 1).then_some(mark),
            }),
            _ => Err(DecodeError::Value("neither known nor unknown")),
        }
    }
}

fn check_of(covered: &[u8]) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&blake3::hash(covered).as_bytes()[..CHECK_LEN]);
    check
}

#[cfg(test)]
mod tests;
