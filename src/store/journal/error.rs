use std::io;

use super::record;
use crate::codec::DecodeError;
use crate::store::file::is_full;

/// Why a journal did not open.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot {action} the journal")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something that was acknowledged cannot be read back.
    #[error(
        "the journal is damaged at byte {offset}: {proof}; restore it from a backup with \
         `larder restore`"
    )]
    Damaged {
        /// Where the first invalid record stands.
        offset: u64,
        /// Why it cannot be the torn tail of a crash.
        proof: DamageProof,
    },
    /// There is no journal, but a view of one.
    #[error(
        "the journal is gone, and only its view is left; restore it from a backup with \
         `larder restore`"
    )]
    Gone,
    /// A later version of Larder wrote it.
    #[error("the journal has format {found}, this version knows up to {known}")]
    NewerFormat {
        /// The format of the file.
        found: u32,
        /// The newest that this version reads.
        known: u32,
    },
    /// An intact record that this version does not understand.
    #[error("the journal entry at byte {offset} was written by another version")]
    Unknown {
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
}

/// Why an invalid record is damage and not a torn tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DamageProof {
    /// The header of the file is wrong; it was durable before the file had its name.
    #[error("its header is wrong")]
    Header,
    /// A later record was written when this one was durable.
    #[error("the record at byte {witness} says that it was durable")]
    LaterRecord {
        /// Where that record stands.
        witness: u64,
    },
    /// The file got its name only when it was durable up to there.
    #[error("the file was whole up to byte {sealed} when it was made")]
    Sealed {
        /// Up to where.
        sealed: u64,
    },
    /// The view has applied more.
    #[error("entries up to byte {applied} were acknowledged")]
    Applied {
        /// Up to where.
        applied: u64,
    },
    /// The view has applied a later rewrite of the journal.
    #[error("it is of generation {found}, and generation {applied} was acknowledged")]
    Generation {
        /// The generation of the file.
        found: u64,
        /// The one that the view has applied.
        applied: u64,
    },
    /// The search for a later record was given up.
    #[error("what stands behind it looks too much like records")]
    Unclear,
}

/// Why [`Journal::open`](super::Journal::open) failed: the journal, or the visitor.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<E> {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The visitor refused an entry.
    #[error("the journal entry at byte {offset} does not fit")]
    Visitor {
        /// Where it stands.
        offset: u64,
        /// The visitor's reason.
        #[source]
        source: E,
    },
}

/// Why nothing was appended or synced.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No space is left; the next append may succeed.
    #[error("the disk of the journal is full")]
    Full(#[source] io::Error),
    /// The operating system refused; nothing changed.
    #[error("cannot write the journal")]
    Io(#[source] io::Error),
    /// The entry is longer than a record may be.
    #[error("an entry of {len} bytes, a record holds at most {max}", max = record::MAX_PAYLOAD_LEN)]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A sync failed now, or what a failed write left could not be cut off. What is on disk is
    /// known again only after a restart.
    #[error("the journal failed and takes nothing until a restart")]
    Poisoned(#[source] Option<io::Error>),
}

/// Why a record could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused.
    #[error("cannot read the journal")]
    Io(#[from] io::Error),
    /// There is no intact record.
    #[error("the journal is damaged at byte {offset}")]
    Damaged {
        /// Where it should stand.
        offset: u64,
    },
    /// An intact record that this version does not understand.
    #[error("the journal entry at byte {offset} was written by another version")]
    Unknown {
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The position is of a journal that was rewritten since.
    #[error("generation {asked} of the journal is gone, this is {current}")]
    Generation {
        /// The generation asked for.
        asked: u64,
        /// The one that is open.
        current: u64,
    },
}

/// Why a rewrite failed. Unless it is [`AppendError::Poisoned`], the old journal stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError<E> {
    /// The new file could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// An entry could not be had.
    #[error("an entry is missing")]
    Entry(#[source] E),
}

pub(super) fn write_error(error: io::Error) -> AppendError {
    match is_full(&error) {
        true => AppendError::Full(error),
        false => AppendError::Io(error),
    }
}

pub(super) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { action, source }
}
