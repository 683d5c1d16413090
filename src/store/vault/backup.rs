//! A backup is the settled part of the journal as it is, and a seal behind it. Bodies that no
//! publish has named yet are left out.
//!
//! ```text
//! seal  magic 4 | length of the journal u64 | BLAKE3 of the journal 32
//! ```
//!
//! The seal tells a whole backup from one whose end is lost between two records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::BytesMut;

use super::{FOREIGN, FOREIGN_ROLE};
use crate::catalog::{CatalogId, Content, Entry, Epoch, Revision};
use crate::codec::DecodeError;
use crate::identity::Role;
use crate::spec::{SpecHash, SpecName};
use crate::store::file::{Disk, DiskFile, RealDisk};
use crate::store::journal::record::{self, HEADER_LEN, Header, HeaderError, PREFIX_LEN};
use crate::store::journal::record::{Place, Prefix};
use crate::store::journal::{FILE, JournalReader, NEW_FILE, ReadError};
use crate::store::lock::{LockError, StoreLock};

const SEAL_MAGIC: [u8; 4] = [0xe5, b'E', b'N', b'D'];

/// Copies a journal from any thread, while it is appended to and even if it is rewritten.
#[derive(Debug)]
pub struct BackupReader<F> {
    journal: JournalReader<F>,
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupReport {
    /// Bytes written.
    pub bytes: u64,
    /// Entries in it.
    pub entries: u64,
}

/// Why there is no whole backup; what was written of it is useless.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] ReadError),
    /// The copy could not be written.
    #[error("cannot write the backup")]
    Output(#[source] io::Error),
}

impl<F: DiskFile> BackupReader<F> {
    pub(super) fn new(journal: JournalReader<F>) -> Self {
        Self { journal }
    }

    /// Writes all that is settled now, each record checked on the way.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn write_to(&self, out: &mut impl Write) -> Result<BackupReport, BackupError> {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let mut entries = 0;
        let mut copy = |chunk: &[u8]| {
            hasher.update(chunk);
            bytes += chunk.len() as u64;
            out.write_all(chunk).map_err(BackupError::Output)
        };
        copy(&self.journal.header())?;
        for record in self.journal.raw_records() {
            copy(&record?)?;
            entries += 1;
        }
        let mut seal = SEAL_MAGIC.to_vec();
        seal.extend_from_slice(&bytes.to_be_bytes());
        seal.extend_from_slice(hasher.finalize().as_bytes());
        out.write_all(&seal).map_err(BackupError::Output)?;
        out.flush().map_err(BackupError::Output)?;
        let bytes = bytes + seal.len() as u64;
        Ok(BackupReport { bytes, entries })
    }
}

/// What a restored store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreReport {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// The epoch that begins: workers follow it although its revisions may be lower.
    pub epoch: Epoch,
    /// The newest revision.
    pub rev: Revision,
    /// Definitions that exist at that revision.
    pub names: usize,
    /// Different bodies.
    pub bodies: usize,
    /// Entries of the backup.
    pub entries: u64,
}

/// Why nothing was restored. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something in the directory.
    #[error("{} is not empty; restore into a new directory", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The backup could not be read.
    #[error("cannot read the backup")]
    Input(#[source] io::Error),
    /// The store could not be written.
    #[error("cannot write the restored journal")]
    Output(#[source] io::Error),
    /// It is not a backup of ours.
    #[error("this is no backup of a coordinator")]
    NotABackup,
    /// It ends too early.
    #[error("the backup ends too early, after {offset} bytes")]
    Truncated {
        /// Bytes that were there.
        offset: u64,
    },
    /// A record is not what was written.
    #[error("the backup is damaged at byte {offset}")]
    Damaged {
        /// Where the record stands.
        offset: u64,
    },
    /// Another version wrote it.
    #[error("the backup has format {found}, this version knows {known}")]
    NewerFormat {
        /// The format of the backup.
        found: u32,
        /// The newest that this version reads.
        known: u32,
    },
    /// An intact entry that this version does not understand.
    #[error("the entry at byte {offset} of the backup was written by another version")]
    Unknown {
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// A definition without its bytes.
    #[error("the backup lacks the body {} of `{name}`", hash.short())]
    MissingBody {
        /// The definition.
        name: SpecName,
        /// Its hash.
        hash: SpecHash,
    },
}

/// Makes a coordinator's store in `dir` from a backup, and begins a new epoch in it.
///
/// # Errors
/// [`RestoreError`]; `dir` is as it was then.
pub fn restore(dir: &Path, input: &mut impl Read) -> Result<RestoreReport, RestoreError> {
    let existed = match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => true,
            Some(_) => {
                let dir = dir.to_owned();
                return Err(RestoreError::NotEmpty { dir });
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(RestoreError::Output(error)),
    };
    let lock = StoreLock::acquire(dir, Role::Coordinator, (FOREIGN_ROLE, FOREIGN))?;
    let restored = restore_to(&RealDisk::new(dir), input);
    if restored.is_err() {
        // The error that matters is the one above.
        let _ = lock.remove(dir);
        if !existed {
            let _ = fs::remove_dir(dir);
        }
    }
    restored
}

/// Restores onto a disk without a journal.
pub(super) fn restore_to<D: Disk>(
    disk: &D,
    input: &mut impl Read,
) -> Result<RestoreReport, RestoreError> {
    let restored = write_restored(disk, input);
    if restored.is_err() {
        // The error that matters is the one above; an unnamed leftover goes at the next start.
        let _ = disk.remove(NEW_FILE);
    }
    restored
}

fn write_restored<D: Disk>(disk: &D, input: &mut impl Read) -> Result<RestoreReport, RestoreError> {
    let file = disk.create(NEW_FILE).map_err(RestoreError::Output)?;
    let mut copy = Copier::begin(input, &file)?;
    let mut tally = Tally::default();
    while let Some((offset, entry)) = copy.next_entry()? {
        tally.add(offset, entry)?;
    }
    let report = tally.report(copy.offset)?;
    // Synced first, so that the next record can say so: its predecessors are proven durable.
    file.sync_data().map_err(RestoreError::Output)?;
    let epoch = Entry::Epoch {
        epoch: report.epoch,
    };
    let record = record::encode(copy.place(), copy.offset, &epoch);
    let record = record.expect("an epoch is short");
    let written = file
        .write_all_at(&record, copy.offset)
        .and_then(|()| file.sync_data())
        .and_then(|()| disk.rename(NEW_FILE, FILE))
        .and_then(|()| disk.sync_dir());
    written.map_err(RestoreError::Output)?;
    Ok(report)
}

/// Copies a backup record by record, checking each.
struct Copier<'a, R, F> {
    input: &'a mut R,
    file: &'a F,
    header: Header,
    hasher: blake3::Hasher,
    offset: u64,
}

impl<'a, R: Read, F: DiskFile> Copier<'a, R, F> {
    fn begin(input: &'a mut R, file: &'a F) -> Result<Self, RestoreError> {
        let mut bytes = [0; HEADER_LEN];
        read_whole(input, &mut bytes, 0)?;
        let header = Header::decode(&bytes).map_err(|error| match error {
            HeaderError::Damaged => RestoreError::NotABackup,
            HeaderError::Newer(found) => RestoreError::NewerFormat {
                found,
                known: record::FORMAT,
            },
        })?;
        let mut copier = Self {
            input,
            file,
            header,
            hasher: blake3::Hasher::new(),
            offset: 0,
        };
        copier.keep(&bytes)?;
        Ok(copier)
    }

    /// The next entry and where it stands, or `None` behind a seal that is right.
    fn next_entry(&mut self) -> Result<Option<(u64, Entry)>, RestoreError> {
        let offset = self.offset;
        let damaged = RestoreError::Damaged { offset };
        let mut prefix = [0; PREFIX_LEN];
        let (magic, rest) = prefix.split_at_mut(SEAL_MAGIC.len());
        read_whole(self.input, magic, offset)?;
        if *magic == SEAL_MAGIC {
            return self.check_seal().map(|()| None);
        }
        read_whole(self.input, rest, offset)?;
        let Some(fields) = Prefix::decode(&prefix) else {
            return Err(damaged);
        };
        let mut record = BytesMut::zeroed(fields.record_len());
        record[..PREFIX_LEN].copy_from_slice(&prefix);
        read_whole(self.input, &mut record[PREFIX_LEN..], offset)?;
        let record = record.freeze();
        if !record::is_intact(self.place(), &record) {
            return Err(damaged);
        }
        self.keep(&record)?;
        match record::entry_of(fields, &record) {
            Ok(entry) => Ok(Some((offset, entry))),
            Err(source) => Err(RestoreError::Unknown { offset, source }),
        }
    }

    fn check_seal(&mut self) -> Result<(), RestoreError> {
        let offset = self.offset;
        let mut len = [0; 8];
        let mut hash = [0; 32];
        read_whole(self.input, &mut len, offset)?;
        read_whole(self.input, &mut hash, offset)?;
        let right = u64::from_be_bytes(len) == offset
            && hash == *self.hasher.finalize().as_bytes()
            && self.header.sealed <= offset;
        let more = self.input.read(&mut [0]).map_err(RestoreError::Input)?;
        match right && more == 0 {
            true => Ok(()),
            false => Err(RestoreError::Damaged { offset }),
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let written = self.file.write_all_at(bytes, self.offset);
        written.map_err(RestoreError::Output)?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn place(&self) -> Place {
        Place {
            generation: self.header.generation,
            offset: self.offset,
        }
    }
}

fn read_whole(input: &mut impl Read, buf: &mut [u8], offset: u64) -> Result<(), RestoreError> {
    input.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => RestoreError::Truncated { offset },
        _ => RestoreError::Input(error),
    })
}

/// What the entries of a backup add up to.
#[derive(Default)]
struct Tally {
    genesis: Option<CatalogId>,
    epoch: Epoch,
    rev: Revision,
    names: BTreeMap<SpecName, Content>,
    bodies: BTreeSet<SpecHash>,
    entries: u64,
}

impl Tally {
    fn add(&mut self, offset: u64, entry: Entry) -> Result<(), RestoreError> {
        if self.genesis.is_some() == matches!(entry, Entry::Genesis { .. }) {
            // The first entry, and only the first, says whose catalog this is.
            return Err(RestoreError::Damaged { offset });
        }
        self.entries += 1;
        match entry {
            Entry::Genesis {
                catalog,
                epoch,
                last,
                ..
            } => {
                self.genesis = Some(catalog);
                self.epoch = epoch;
                self.rev = last;
            }
            Entry::Base { records } => {
                let contents = records
                    .into_iter()
                    .map(|record| (record.name, record.version.content));
                self.names.extend(contents);
            }
            Entry::Body { bytes } => {
                self.bodies.insert(SpecHash::of(&bytes));
            }
            Entry::Pending(pending) => {
                self.rev = self.rev.max(pending.rev);
                let changes = pending.changes.into_iter();
                self.names
                    .extend(changes.map(|change| (change.name, change.content)));
            }
            Entry::Epoch { epoch } => self.epoch = self.epoch.max(epoch),
            Entry::Visible { .. }
            | Entry::Keyed(_)
            | Entry::LeaseMax { .. }
            | Entry::Pinned(_)
            | Entry::Unpinned { .. } => {}
        }
        Ok(())
    }

    fn report(self, offset: u64) -> Result<RestoreReport, RestoreError> {
        let catalog = self.genesis.ok_or(RestoreError::NotABackup)?;
        let mut names = 0;
        for (name, content) in self.names {
            let Some(hash) = content.hash() else {
                continue;
            };
            if !self.bodies.contains(&hash) {
                return Err(RestoreError::MissingBody { name, hash });
            }
            names += 1;
        }
        let epoch = self.epoch.get().checked_add(1);
        Ok(RestoreReport {
            catalog,
            epoch: Epoch::new(epoch.ok_or(RestoreError::Damaged { offset })?),
            rev: self.rev,
            names,
            bodies: self.bodies.len(),
            entries: self.entries,
        })
    }
}
