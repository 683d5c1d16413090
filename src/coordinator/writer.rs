use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::catalog::{Content, Entry};
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{NotWritten, Written};
use crate::proto::mutant::mutant;
use crate::spec::{Spec, SpecHash};
use crate::store::file::Disk;
use crate::store::journal::AppendError;
use crate::store::vault::Vault;
use crate::worker::with_causes;

/// Bodies that may wait to be appended; further senders wait for their turn. The machine's own
/// writes need no bound: it has one on its way at most.
pub(super) const MAX_STAGING: usize = 1_024;

/// A body that no publish has named for this long is dropped by the next checkpoint. A full disk
/// drops it earlier.
const STAGED_FOR: Duration = Duration::from_secs(15 * 60);

/// An absent view is tried anew when nothing was written for this long: building it may take
/// seconds, in which publishers would wait, and until then bodies are only a little slower.
const MEND_AFTER: Duration = Duration::from_secs(60);

/// The view is brought up to the journal when nothing has come for this long: the entry that makes
/// a publish visible follows soon after the publish itself, and must not wait for the view.
const APPLY_AFTER: Duration = Duration::from_millis(5);

/// It is at the latest after so many writes. What it lacks is read from the journal.
const MAX_UNAPPLIED: usize = 64;

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
pub(super) fn run(vault: Vault, jobs: &Receiver<Job>, written: impl Fn(Written, u64)) {
    let mut storage = Storage::new(vault);
    // Writes that the view has not seen.
    let mut unapplied = 0;
    loop {
        let patience = match unapplied {
            0 => MEND_AFTER,
            _ => APPLY_AFTER,
        };
        let job = jobs.recv_timeout(patience);
        let quiet = !matches!(job, Ok(Job::Body { .. } | Job::Entries(_)));
        if unapplied > 0 && (quiet || unapplied >= MAX_UNAPPLIED) {
            storage.apply_to_view();
            unapplied = 0;
        } else if matches!(job, Err(RecvTimeoutError::Timeout)) {
            storage.mend_view();
        }
        let job = match job {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match job {
            Job::Body { spec, done } => {
                let result = storage.stage(&spec);
                let _ = done.send(result);
            }
            Job::Entries(entries) => {
                let result = storage.write(&entries);
                written(result, storage.vault.journal_len());
                // Behind the answer: the view only repeats what the journal says.
                unapplied += 1;
            }
            Job::Checkpoint { entries, retained } => {
                storage.checkpoint(entries, retained);
                written(Written::All, storage.vault.journal_len());
            }
        }
    }
}

/// The vault, and the bodies that no publish has named yet.
pub(crate) struct Storage<D: Disk> {
    pub(crate) vault: Vault<D>,
    staged: BTreeMap<SpecHash, Instant>,
}

impl<D: Disk> Storage<D> {
    pub(crate) fn new(vault: Vault<D>) -> Self {
        let staged = BTreeMap::new();
        Self { vault, staged }
    }

    pub(crate) fn stage(&mut self, spec: &Spec) -> Result<(), Refusal> {
        if !self.vault.reader().has(spec.hash())
            && let Err(error) = self.vault.append_body(spec)
        {
            return Err(match error {
                AppendError::Full(_) => {
                    self.give_space_back();
                    Refusal::new(Code::DiskFull, "the coordinator's disk is full")
                }
                error => Refusal::new(Code::Disk, with_causes(&error)),
            });
        }
        self.staged.insert(spec.hash(), Instant::now());
        Ok(())
    }

    pub(crate) fn write(&mut self, entries: &[Entry]) -> Written {
        let mut kept = 0;
        let mut failure = None;
        for entry in entries {
            match self.append(entry) {
                Ok(()) => kept += 1,
                Err(Failed::Entry(why)) => {
                    failure = Some(why);
                    break;
                }
                Err(Failed::Journal(reason)) => return Written::Lost { reason },
            }
        }
        if kept > 0
            && let Err(error) = self.vault.sync()
        {
            let reason = with_causes(&error);
            tracing::error!(reason, "the journal takes nothing more until a restart");
            return Written::Lost { reason };
        }
        for entry in &entries[..kept] {
            for hash in bodies_of(entry) {
                self.staged.remove(&hash);
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

    fn append(&mut self, entry: &Entry) -> Result<(), Failed> {
        if let Some(hash) = self.missing_body(entry)
            && !mutant!(X09)
        {
            return Err(Failed::Entry(NotWritten::MissingBody(hash)));
        }
        let mut appended = self.vault.append(entry);
        if let Err(AppendError::Full(_)) = &appended
            && self.give_space_back() > 0
            && self.missing_body(entry).is_none()
        {
            // It was not its own bodies that were in the way.
            appended = self.vault.append(entry);
        }
        match appended {
            Ok(_) => Ok(()),
            Err(AppendError::Full(_)) => Err(Failed::Entry(NotWritten::Full)),
            Err(error @ (AppendError::Io(_) | AppendError::TooLong { .. })) => {
                Err(Failed::Entry(NotWritten::Io(with_causes(&error))))
            }
            Err(error) => Err(Failed::Journal(with_causes(&error))),
        }
    }

    fn missing_body(&self, entry: &Entry) -> Option<SpecHash> {
        let reader = self.vault.reader();
        bodies_of(entry).find(|hash| !reader.has(*hash))
    }

    /// On a full disk, what was staged for publishes that cannot be written now is in the way.
    /// One of them that comes all the same is told which bytes are missing.
    fn give_space_back(&mut self) -> u64 {
        let bytes = self.vault.drop_staged().unwrap_or_else(|error| {
            // Appends fail from now on, and say why.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "bodies that no publish named stay in the journal"
            );
            0
        });
        let reader = self.vault.reader();
        self.staged.retain(|hash, _| reader.has(*hash));
        tracing::warn!(
            bytes,
            "the disk is full; bodies that no publish named were dropped"
        );
        bytes
    }

    pub(crate) fn apply_to_view(&mut self) {
        if let Err(error) = self.vault.apply_to_view() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the view stays behind the journal"
            );
        }
    }

    fn mend_view(&mut self) {
        if let Err(error) = self.vault.mend_view() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the view stays absent"
            );
        }
    }

    pub(crate) fn checkpoint(&mut self, entries: Vec<Entry>, mut retained: BTreeSet<SpecHash>) {
        self.staged.retain(|_, at| at.elapsed() < STAGED_FOR);
        retained.extend(self.staged.keys().copied());
        match self.vault.checkpoint(&retained, entries) {
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
}

/// Why an entry was not appended.
enum Failed {
    Entry(NotWritten),
    Journal(String),
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

#[cfg(test)]
mod tests {
    //! Goal: a full disk takes nothing that was acknowledged and keeps nothing that was refused.
    //! Method: a simulated disk with every amount of space.

    use super::*;
    use crate::store::file::sim::SimDisk;
    use crate::store::vault::tests::{change, genesis, pending_of, sim_vault, visible};

    fn spec(number: usize, len: usize) -> Spec {
        let text = format!("# {number}\n{}\n", "x".repeat(len));
        Spec::new(text.into())
    }

    fn pending(rev: u64, specs: &[Spec]) -> Entry {
        let name = |(number, spec)| change(&format!("r{rev}/{number}"), spec);
        pending_of(rev, specs.iter().enumerate().map(name).collect())
    }

    /// How far a publish came.
    #[derive(Debug, PartialEq)]
    enum Came {
        Nowhere,
        Pending,
        Visible,
    }

    fn publish(storage: &mut Storage<SimDisk>, rev: u64, specs: &[Spec]) -> Came {
        for spec in specs {
            if let Err(refusal) = storage.stage(spec) {
                assert_eq!(refusal.code, Code::DiskFull);
                return Came::Nowhere;
            }
        }
        let refused = Written::Some {
            kept: 0,
            why: NotWritten::Full,
        };
        let written = storage.write(&[pending(rev, specs)]);
        if written != Written::All {
            assert_eq!(written, refused);
            return Came::Nowhere;
        }
        let written = storage.write(&[visible(rev)]);
        storage.apply_to_view();
        if written != Written::All {
            assert_eq!(written, refused);
            return Came::Pending;
        }
        Came::Visible
    }

    /// One publish, and as much space as is asked for behind it.
    fn prepared(left: Option<u64>) -> (SimDisk, Storage<SimDisk>, [Spec; 1]) {
        let disk = SimDisk::default();
        let mut storage = Storage::new(sim_vault(&disk));
        assert_eq!(storage.write(&[genesis(0)]), Written::All);
        let first = [spec(1, 30)];
        assert_eq!(publish(&mut storage, 1, &first), Came::Visible);
        disk.space_left(left);
        (disk, storage, first)
    }

    #[test]
    fn a_publish_that_a_full_disk_refuses_gives_its_space_back() {
        let large = [2, 3, 4].map(|number| spec(number, 300));
        let small = [spec(5, 10)];
        let (disk, mut storage, _) = prepared(None);
        let before = disk.used();
        assert_eq!(publish(&mut storage, 2, &small), Came::Visible);
        let small_len = disk.used() - before;

        for left in 0.. {
            let (disk, mut storage, first) = prepared(Some(left));
            let before = disk.used();
            let came = publish(&mut storage, 2, &large);
            match came {
                Came::Nowhere => {
                    assert_eq!(disk.used(), before, "{left} bytes left");
                    assert!(storage.staged.is_empty());
                    let came = publish(&mut storage, 2, &small);
                    assert_eq!(
                        came == Came::Visible,
                        left >= small_len,
                        "{left} bytes left"
                    );
                }
                Came::Pending => {
                    disk.space_left(Some(small_len));
                    assert_eq!(storage.write(&[visible(2)]), Written::All);
                }
                Came::Visible => assert!(left > 1_000, "{left} bytes left"),
            }
            let reader = sim_vault(&disk.crash(left)).reader();
            let body = reader.body(first[0].hash(), None);
            assert_eq!(body.expect("an answer"), Some(first[0].clone()));
            if came == Came::Visible {
                break;
            }
        }
    }

    #[test]
    fn what_others_staged_makes_room_for_what_must_become_visible() {
        let (disk, mut storage, _) = prepared(None);
        let specs = [spec(2, 50)];
        storage.stage(&specs[0]).expect("staged");
        assert_eq!(storage.write(&[pending(2, &specs)]), Written::All);
        storage.stage(&spec(3, 100)).expect("staged");
        disk.space_left(Some(0));
        assert_eq!(storage.write(&[visible(2)]), Written::All);
        assert!(!storage.vault.reader().has(spec(3, 100).hash()));
    }

    #[test]
    fn a_publisher_whose_bodies_were_dropped_is_told_and_sends_them_again() {
        let (disk, mut storage, _) = prepared(Some(600));
        let specs = [spec(2, 50)];
        let hash = specs[0].hash();
        storage.stage(&specs[0]).expect("staged");
        let refused = storage.stage(&spec(3, 1_000)).expect_err("too large");
        assert_eq!(refused.code, Code::DiskFull);
        let missing = Written::Some {
            kept: 0,
            why: NotWritten::MissingBody(hash),
        };
        assert_eq!(storage.write(&[pending(2, &specs)]), missing);
        assert_eq!(publish(&mut storage, 2, &specs), Came::Visible);
        let reader = sim_vault(&disk.crash(0)).reader();
        let body = reader.body(hash, None).expect("an answer");
        assert_eq!(body, Some(specs[0].clone()));
    }
}
