use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::catalog::{Content, Entry};
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{NotWritten, Written};
use crate::spec::{Spec, SpecHash};
use crate::store::journal::AppendError;
use crate::store::vault::Vault;
use crate::worker::with_causes;

/// Bodies that may wait to be appended; further senders wait for their turn. The machine's own
/// writes need no bound: it has one on its way at most.
pub(super) const MAX_STAGING: usize = 1_024;

/// A body that no publish has named for this long is dropped by the next checkpoint.
const STAGED_FOR: Duration = Duration::from_secs(15 * 60);

/// What the storage thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Append a body for a later publish; it becomes durable with that.
    Body {
        spec: Spec,
        done: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Append and make durable.
    Entries(Vec<Entry>),
    /// Rewrite the journal.
    Checkpoint {
        entries: Vec<Entry>,
        retained: BTreeSet<SpecHash>,
    },
}

/// The queue to the one thread that writes.
pub(super) fn queue() -> (Sender<Job>, Receiver<Job>) {
    mpsc::channel()
}

/// Carries out jobs until the senders are gone; `written` hears how each write of the machine
/// ended. Returns the vault.
pub(super) fn run(mut vault: Vault, jobs: &Receiver<Job>, written: impl Fn(Written, u64)) {
    let mut staged = BTreeMap::new();
    for job in jobs {
        match job {
            Job::Body { spec, done } => {
                let result = stage(&mut vault, &spec, &mut staged);
                let _ = done.send(result);
            }
            Job::Entries(entries) => {
                let result = write(&mut vault, &entries, &mut staged);
                written(result, vault.journal_len());
                // Behind the answer: the view only repeats what the journal says.
                if let Err(error) = vault.apply_to_view() {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the view stays behind the journal"
                    );
                }
            }
            Job::Checkpoint {
                entries,
                mut retained,
            } => {
                staged.retain(|_, at: &mut Instant| at.elapsed() < STAGED_FOR);
                retained.extend(staged.keys().copied());
                checkpoint(&mut vault, entries, &retained);
                written(Written::All, vault.journal_len());
            }
        }
    }
}

fn stage(
    vault: &mut Vault,
    spec: &Spec,
    staged: &mut BTreeMap<SpecHash, Instant>,
) -> Result<(), Refusal> {
    if !vault.reader().has(spec.hash()) {
        vault.append_body(spec).map_err(|error| match error {
            AppendError::Full(_) => Refusal::new(Code::DiskFull, "the coordinator's disk is full"),
            error => Refusal::new(Code::Disk, with_causes(&error)),
        })?;
    }
    staged.insert(spec.hash(), Instant::now());
    Ok(())
}

fn write(
    vault: &mut Vault,
    entries: &[Entry],
    staged: &mut BTreeMap<SpecHash, Instant>,
) -> Written {
    let mut kept = 0;
    let mut failure = None;
    for entry in entries {
        match append(vault, entry) {
            Ok(()) => kept += 1,
            Err(Failed::Entry(why)) => {
                failure = Some(why);
                break;
            }
            Err(Failed::Journal(reason)) => return Written::Lost { reason },
        }
    }
    if kept > 0
        && let Err(error) = vault.sync()
    {
        let reason = with_causes(&error);
        tracing::error!(reason, "the journal takes nothing more until a restart");
        return Written::Lost { reason };
    }
    for entry in &entries[..kept] {
        for hash in bodies_of(entry) {
            staged.remove(&hash);
        }
    }
    match failure {
        None => Written::All,
        Some(why) => {
            tracing::warn!(?why, "a publish was not written");
            Written::Some { kept, why }
        }
    }
}

enum Failed {
    Entry(NotWritten),
    Journal(String),
}

fn append(vault: &mut Vault, entry: &Entry) -> Result<(), Failed> {
    let reader = vault.reader();
    if let Some(hash) = bodies_of(entry).find(|hash| !reader.has(*hash)) {
        return Err(Failed::Entry(NotWritten::MissingBody(hash)));
    }
    match vault.append(entry) {
        Ok(_) => Ok(()),
        Err(AppendError::Full(_)) => Err(Failed::Entry(NotWritten::Full)),
        Err(error @ (AppendError::Io(_) | AppendError::TooLong { .. })) => {
            Err(Failed::Entry(NotWritten::Io(with_causes(&error))))
        }
        Err(error) => Err(Failed::Journal(with_causes(&error))),
    }
}

fn bodies_of(entry: &Entry) -> impl Iterator<Item = SpecHash> {
    let changes = match entry {
        Entry::Pending(pending) => &pending.changes[..],
        _ => &[],
    };
    changes.iter().filter_map(|change| match change.content {
        Content::Present { hash, .. } => Some(hash),
        Content::Deleted => None,
    })
}

fn checkpoint(vault: &mut Vault, entries: Vec<Entry>, retained: &BTreeSet<SpecHash>) {
    match vault.checkpoint(retained, entries) {
        Ok(report) => tracing::info!(
            before = report.bytes_before,
            after = report.bytes_after,
            dropped_bodies = report.dropped_bodies,
            "journal rewritten"
        ),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the journal was not rewritten and goes on growing"
        ),
    }
}
