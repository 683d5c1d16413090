//! The coordinator's machine: what is current, and when a publish may be acknowledged.
//!
//! A publish goes through three states, and each step outward waits for the one before:
//!
//! 1. *queued*: accepted against the newest state, its revision chosen, its head signed;
//! 2. *pending*: its entry is durable;
//! 3. *visible*: an entry that says so is durable. Only now does a reader see it, and only then
//!    is the publisher answered.
//!
//! There is no timer for grouping: a batch is what arrived during the batch before, so a busy
//! coordinator pays two fsyncs for many publishes.
//!
//! Readers never enter the machine. They hold a [`View`], an immutable revision that
//! [`Output::Reveal`] replaces.

mod ledger;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub use self::ledger::{Ledger, ReplayError};
pub use self::view::View;
use crate::catalog::{
    CatalogId, Change, Content, Entry, Head, HeadSigner, Keyed, MAX_NAMES, MAX_NAMES_PER_PUBLISH,
    Pending, Published, Revision,
};
use crate::codec::Writer;
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{KEY_LIFETIME, MAX_KEYS, MAX_PENDING, RETAINED_AGE, RETAINED_REVISIONS};
use crate::proto::wire::{Publish, PublishName, PublishedRev};
use crate::spec::SpecHash;

/// How long the machine waits before it tries again to write that a revision is visible.
const RETRY: Duration = Duration::from_secs(1);

/// Names one request of the driver, which gets its answer under it.
pub type Ticket = u64;

/// What the machine may be told to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Revisions that stay readable whatever their age.
    pub revisions: u64,
    /// Revisions younger than this stay readable whatever their number.
    pub age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            revisions: RETAINED_REVISIONS,
            age: RETAINED_AGE,
        }
    }
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Input {
    /// Someone publishes. Its bodies are in the journal already, or the write will fail.
    Publish {
        /// Under which the answer comes.
        ticket: Ticket,
        /// The publisher's URI, or `local`.
        by: String,
        /// What to change.
        publish: Publish,
        /// Wall clock, milliseconds since 1970: for people, keys and retention.
        unix_ms: u64,
    },
    /// A new epoch begins (after a restore from backup).
    NewEpoch {
        /// Wall clock, milliseconds since 1970.
        unix_ms: u64,
    },
    /// The driver finds that the journal has grown enough to be rewritten.
    Compact,
    /// The last [`Output::Write`] or [`Output::Checkpoint`] ended.
    Written(Written),
    /// [`Coordinator::next_wake`] has come.
    Wake,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// All of it is durable.
    All,
    /// The first `kept` entries are durable, the others are not in the journal at all.
    Some {
        /// Entries that are durable.
        kept: usize,
        /// Why the next one was refused.
        why: NotWritten,
    },
    /// Nobody knows what is durable: the journal takes no more entries until a restart.
    Lost {
        /// What the disk said.
        reason: String,
    },
}

/// Why an entry was not written; nothing of it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotWritten {
    /// No space.
    Full,
    /// A body that it refers to is not in the journal.
    MissingBody(SpecHash),
    /// The operating system refused.
    Io(String),
}

/// What the driver must do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Append these entries, fsync once, and say how it went.
    Write(Vec<Entry>),
    /// Rewrite the journal as these entries, the bodies of `retained` after the first one, and
    /// say how it went.
    Checkpoint {
        /// From [`Entry::Genesis`] on, without bodies.
        entries: Vec<Entry>,
        /// Hashes whose bodies stay.
        retained: std::collections::BTreeSet<SpecHash>,
    },
    /// Let readers see this revision from now on.
    Reveal(Arc<View>),
    /// Answer a publisher.
    Reply {
        /// Of the publish.
        ticket: Ticket,
        /// Durable and visible, or why not.
        result: Result<PublishedRev, Refusal>,
    },
}

/// See the [module](self).
pub struct Coordinator {
    ledger: Ledger,
    signer: Arc<dyn HeadSigner>,
    retention: Retention,
    max_spec_len: u64,
    /// Entries for the next write.
    queue: VecDeque<Queued>,
    /// Counts entries that were queued; what it counts up to `written` is durable or refused.
    enqueued: u64,
    written: u64,
    /// The write that is under way.
    in_flight: Option<InFlight>,
    /// Publishers to answer once this revision is visible.
    waiting: VecDeque<Waiting>,
    /// The newest revision whose pending entry is durable.
    durable: Revision,
    compact_wanted: bool,
    retry_at: Option<Time>,
    lost: Option<String>,
}

struct Queued {
    entry: Entry,
    /// Its number; that of the entry before for those that the machine adds itself.
    number: u64,
}

enum InFlight {
    Batch(Vec<Queued>),
    Checkpoint,
}

/// A publisher that is answered once `rev` is visible and entry `number` is durable.
struct Waiting {
    ticket: Ticket,
    number: u64,
    rev: Revision,
    changed: u32,
}

impl Coordinator {
    /// A machine over what the journal held; `unix_ms` is the wall clock now.
    ///
    /// Its first outputs make pending revisions visible, and give a new epoch its first head.
    /// Call [`handle`](Self::handle) with [`Input::Wake`] to get them.
    pub fn new(
        ledger: Ledger,
        signer: Arc<dyn HeadSigner>,
        retention: Retention,
        max_spec_len: u64,
        unix_ms: u64,
    ) -> Self {
        let mut machine = Self {
            durable: ledger.tip().rev(),
            ledger,
            signer,
            retention,
            max_spec_len,
            queue: VecDeque::new(),
            enqueued: 0,
            written: 0,
            in_flight: None,
            waiting: VecDeque::new(),
            compact_wanted: false,
            retry_at: None,
            lost: None,
        };
        if machine.ledger.lacks_head() {
            machine.queue_empty_revision(unix_ms);
        }
        machine
    }

    /// The entries that begin a new catalog's journal.
    pub fn genesis(catalog: CatalogId, signer: &dyn HeadSigner) -> Entry {
        Ledger::genesis(catalog, signer)
    }

    /// What readers may see now.
    pub fn view(&self) -> Arc<View> {
        self.ledger.view()
    }

    /// The longest definition that it takes.
    pub fn max_spec_len(&self) -> u64 {
        self.max_spec_len
    }

    /// The durable history: for logs of revisions.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Publishes that are not visible yet.
    pub fn pending(&self) -> usize {
        self.ledger.pending() + self.waiting.len()
    }

    /// Why nothing can be written any more, if so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// When to call [`handle`](Self::handle) with [`Input::Wake`] at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        self.retry_at
    }

    /// Takes one input and returns what must be done, in order.
    pub fn handle(&mut self, input: Input, now: Time) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Publish {
                ticket,
                by,
                publish,
                unix_ms,
            } => {
                if let Err(refusal) = self.publish(ticket, by, publish, unix_ms, &mut out) {
                    let result = Err(refusal);
                    out.push(Output::Reply { ticket, result });
                }
            }
            Input::NewEpoch { unix_ms } => {
                let epoch = self.ledger.epoch().next();
                self.ledger.begin_epoch(epoch);
                self.enqueue(Entry::Epoch { epoch });
                self.queue_empty_revision(unix_ms);
            }
            Input::Compact => self.compact_wanted = true,
            Input::Written(written) => self.written(written, now, &mut out),
            Input::Wake => {
                if self.retry_at.is_some_and(|at| now >= at) {
                    self.retry_at = None;
                }
            }
        }
        self.start_write(&mut out);
        out
    }

    fn publish(
        &mut self,
        ticket: Ticket,
        by: String,
        publish: Publish,
        unix_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if let Some(reason) = &self.lost {
            let message = format!("the coordinator's disk failed and takes nothing: {reason}");
            return Err(Refusal::new(Code::Disk, message));
        }
        check_form(&publish, self.max_spec_len)?;
        let request = request_digest(&publish);
        self.ledger.expire_keys(unix_ms, KEY_LIFETIME);
        if let Some(key) = publish.key
            && let Some(known) = self.ledger.key(&by, &key)
        {
            if known.request != request {
                let message = "this idempotency key was used with other content";
                return Err(Refusal::new(Code::KeyReused, message).at(known.rev));
            }
            let (rev, changed) = (known.rev, known.changed);
            // Its own entry may still be on the way; what is queued now includes it.
            self.answer_or_wait(ticket, rev, changed, self.enqueued, out);
            return Ok(());
        }
        if self.waiting.len() >= MAX_PENDING || self.ledger.keys() >= MAX_KEYS {
            return Err(Refusal::new(Code::Busy, "too many publishes are waiting"));
        }
        self.check_expected(&publish.changes)?;
        let changes = self.effective_changes(&publish.changes)?;
        let rev = match changes.is_empty() {
            true => self.rev_that_shows(&publish.changes),
            false => self.ledger.tip().rev().next(),
        };
        let changed = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let keyed = publish.key.map(|key| Keyed {
            by: by.clone(),
            key,
            request,
            rev,
            changed,
            at_unix_ms: unix_ms,
        });
        if changes.is_empty() {
            let number = keyed.map_or(0, |keyed| {
                self.ledger.remember(keyed.clone());
                self.enqueue(Entry::Keyed(keyed))
            });
            self.answer_or_wait(ticket, rev, 0, number, out);
            return Ok(());
        }
        let published = Published {
            by,
            at_unix_ms: unix_ms,
            note: publish.note,
        };
        let number = self.queue_revision(changes, published, keyed);
        self.answer_or_wait(ticket, rev, changed, number, out);
        Ok(())
    }

    /// Compares with the newest pending or visible record, never with the visible one alone.
    fn check_expected(&self, changes: &[PublishName]) -> Result<(), Refusal> {
        for PublishName { name, expect, .. } in changes {
            let Some(expect) = *expect else { continue };
            let current = self.ledger.tip().get(name);
            let rev = current.map_or(Revision::ZERO, |version| version.rev);
            let absent = current.is_none_or(|version| version.content == Content::Deleted);
            if rev == expect || (expect == Revision::ZERO && absent) {
                continue;
            }
            let message = match expect {
                Revision::ZERO => format!("`{name}` exists already, at revision {rev}"),
                _ if current.is_none() => format!("`{name}` does not exist"),
                _ => format!("`{name}` is at revision {rev}, not at {expect}"),
            };
            return Err(Refusal::new(Code::Expect, message)
                .at(rev)
                .about(name.clone()));
        }
        Ok(())
    }

    /// What is not so already.
    fn effective_changes(&self, wanted: &[PublishName]) -> Result<Vec<Change>, Refusal> {
        let tip = self.ledger.tip();
        let mut new_names = 0;
        let changes: Vec<_> = wanted
            .iter()
            .filter_map(|wanted| {
                let content = match wanted.hash {
                    Some(hash) => Content::Present {
                        hash,
                        len: wanted.len,
                    },
                    None => Content::Deleted,
                };
                let current = tip.get(&wanted.name).map(|version| version.content);
                if current.unwrap_or(Content::Deleted) == content {
                    return None;
                }
                new_names += usize::from(current.is_none());
                let name = wanted.name.clone();
                Some(Change { name, content })
            })
            .collect();
        if tip.names() + new_names > MAX_NAMES {
            let message = format!("a catalog holds at most {MAX_NAMES} names");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        Ok(changes)
    }

    /// The first revision at which everything that was asked for holds already: the visible one,
    /// or the pending one that brings the last of it.
    fn rev_that_shows(&self, wanted: &[PublishName]) -> Revision {
        wanted
            .iter()
            .filter_map(|wanted| self.ledger.tip().get(&wanted.name))
            .map(|version| version.rev)
            .chain([self.ledger.visible().rev()])
            .max()
            .unwrap_or_default()
    }

    fn answer_or_wait(
        &mut self,
        ticket: Ticket,
        rev: Revision,
        changed: u32,
        number: u64,
        out: &mut Vec<Output>,
    ) {
        self.waiting.push_back(Waiting {
            ticket,
            number,
            rev,
            changed,
        });
        self.answer_visible(out);
    }

    fn answer(&self, rev: Revision, changed: u32) -> PublishedRev {
        PublishedRev {
            catalog: self.ledger.catalog(),
            epoch: self.ledger.epoch(),
            rev,
            changed,
        }
    }

    fn queue_empty_revision(&mut self, unix_ms: u64) {
        let published = Published {
            by: "local".into(),
            at_unix_ms: unix_ms,
            note: format!("epoch {} begins", self.ledger.epoch()),
        };
        self.queue_revision(Vec::new(), published, None);
    }

    fn queue_revision(
        &mut self,
        changes: Vec<Change>,
        published: Published,
        keyed: Option<Keyed>,
    ) -> u64 {
        let rev = self.ledger.tip().rev().next();
        let tip = self.ledger.tip().apply(rev, &changes);
        let head = Head {
            catalog: self.ledger.catalog(),
            epoch: self.ledger.epoch(),
            rev,
            root: tip.root(),
            prev: self.ledger.last_head(),
        };
        let pending = Pending {
            rev,
            changes,
            published,
            keyed,
            head: head.sign(&*self.signer),
        };
        self.ledger.push(tip, pending.clone(), head.hash());
        self.enqueue(Entry::Pending(Box::new(pending)))
    }

    fn enqueue(&mut self, entry: Entry) -> u64 {
        self.enqueued += 1;
        let number = self.enqueued;
        self.queue.push_back(Queued { entry, number });
        number
    }

    /// Starts the next write, unless one is under way or the disk is being given time.
    fn start_write(&mut self, out: &mut Vec<Output>) {
        if self.in_flight.is_some() || self.lost.is_some() || self.retry_at.is_some() {
            return;
        }
        let quiet = self.queue.is_empty() && self.durable == self.ledger.visible().rev();
        if quiet && self.compact_wanted {
            self.compact_wanted = false;
            let (entries, retained) = self.ledger.checkpoint();
            self.in_flight = Some(InFlight::Checkpoint);
            out.push(Output::Checkpoint { entries, retained });
            return;
        }
        let mut batch = Vec::with_capacity(self.queue.len() + 1);
        if self.durable > self.ledger.visible().rev() {
            let (entry, number) = (Entry::Visible { rev: self.durable }, self.written);
            batch.push(Queued { entry, number });
        }
        batch.extend(self.queue.drain(..));
        if batch.is_empty() {
            return;
        }
        out.push(Output::Write(
            batch.iter().map(|queued| queued.entry.clone()).collect(),
        ));
        self.in_flight = Some(InFlight::Batch(batch));
    }

    fn written(&mut self, written: Written, now: Time, out: &mut Vec<Output>) {
        let batch = match self.in_flight.take() {
            Some(InFlight::Batch(batch)) => batch,
            Some(InFlight::Checkpoint) | None => Vec::new(),
        };
        let kept = match &written {
            Written::All => batch.len(),
            Written::Some { kept, .. } => (*kept).min(batch.len()),
            Written::Lost { .. } => 0,
        };
        for Queued { entry, number } in &batch[..kept] {
            self.written = *number;
            match entry {
                Entry::Pending(pending) => self.durable = pending.rev,
                Entry::Visible { rev } => self.reveal(*rev, out),
                _ => {}
            }
        }
        match written {
            Written::All => {}
            Written::Some { why, .. } => self.roll_back(&batch[kept..], &why, now, out),
            Written::Lost { reason } => self.lose(reason, out),
        }
        self.answer_visible(out);
    }

    fn reveal(&mut self, rev: Revision, out: &mut Vec<Output>) {
        self.ledger.make_visible(rev);
        self.ledger.retain(self.retention);
        out.push(Output::Reveal(self.ledger.view()));
    }

    fn answer_visible(&mut self, out: &mut Vec<Output>) {
        let visible = self.ledger.visible().rev();
        let waiting = std::mem::take(&mut self.waiting);
        for entry in waiting {
            if entry.rev <= visible && entry.number <= self.written {
                let result = Ok(self.answer(entry.rev, entry.changed));
                let ticket = entry.ticket;
                out.push(Output::Reply { ticket, result });
            } else {
                self.waiting.push_back(entry);
            }
        }
    }

    /// Forgets everything that is not durable: what failed and what was decided on top of it.
    fn roll_back(&mut self, failed: &[Queued], why: &NotWritten, now: Time, out: &mut Vec<Output>) {
        let only_visible = failed
            .first()
            .is_some_and(|queued| matches!(queued.entry, Entry::Visible { .. }));
        if only_visible {
            // What is durable stays and becomes visible later; the disk is given time.
            self.retry_at = Some(now + RETRY);
        }
        let first = failed.first().map_or(self.written, |queued| queued.number);
        let refusal = match why {
            NotWritten::Full => Refusal::new(Code::DiskFull, "the coordinator's disk is full"),
            NotWritten::MissingBody(hash) => Refusal::new(
                Code::MissingBody,
                format!("the coordinator does not have the bytes of {hash}"),
            ),
            NotWritten::Io(reason) => Refusal::new(
                Code::DiskFull,
                format!("the coordinator could not write: {reason}"),
            ),
        };
        for queued in failed.iter().chain(&self.queue) {
            if let Entry::Keyed(keyed) = &queued.entry {
                self.ledger.forget(keyed);
            }
        }
        self.queue.clear();
        self.ledger.truncate(self.durable);
        let waiting = std::mem::take(&mut self.waiting);
        for entry in waiting {
            if entry.number <= self.written && entry.rev <= self.durable {
                self.waiting.push_back(entry);
                continue;
            }
            let innocent = matches!(why, NotWritten::MissingBody(_)) && entry.number != first;
            let refusal = match innocent {
                true => Refusal::new(Code::Busy, "a publish before this one failed, try again"),
                false => refusal.clone(),
            };
            let (ticket, result) = (entry.ticket, Err(refusal));
            out.push(Output::Reply { ticket, result });
        }
        self.written = self.enqueued;
    }

    fn lose(&mut self, reason: String, out: &mut Vec<Output>) {
        self.queue.clear();
        for Waiting { ticket, .. } in self.waiting.drain(..) {
            let message = format!(
                "the coordinator's disk failed: {reason}; whether the publish happened shows after a restart"
            );
            let result = Err(Refusal::new(Code::Disk, message));
            out.push(Output::Reply { ticket, result });
        }
        self.lost = Some(reason);
    }
}

/// Whether a publish makes sense by itself, whatever the catalog holds.
///
/// # Errors
/// [`Refusal`] that says what is wrong with it.
pub fn check_form(publish: &Publish, max_spec_len: u64) -> Result<(), Refusal> {
    let count = publish.changes.len();
    if count == 0 {
        return Err(Refusal::new(Code::Invalid, "a publish names nothing"));
    }
    if count > MAX_NAMES_PER_PUBLISH {
        let message =
            format!("a publish of {count} names, at most {MAX_NAMES_PER_PUBLISH} are allowed");
        return Err(Refusal::new(Code::TooLarge, message));
    }
    if publish.note.len() > Published::MAX_NOTE_LEN {
        let message = format!("a note has at most {} bytes", Published::MAX_NOTE_LEN);
        return Err(Refusal::new(Code::TooLarge, message));
    }
    let mut names: Vec<_> = publish.changes.iter().map(|change| &change.name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("a publish names `{}` twice", pair[0]);
        return Err(Refusal::new(Code::Invalid, message).about(pair[0].clone()));
    }
    for PublishName {
        name, hash, len, ..
    } in &publish.changes
    {
        let message = match hash {
            Some(_) if *len == 0 => "a definition is never empty".to_owned(),
            Some(_) if *len > max_spec_len => format!(
                "`{name}` has {len} bytes, at most {} are allowed",
                max_spec_len
            ),
            None if *len != 0 => "a deletion has no length".to_owned(),
            _ => continue,
        };
        return Err(Refusal::new(Code::Invalid, message).about(name.clone()));
    }
    Ok(())
}

/// Tells a repetition from another request under the same key. The note is for people and does
/// not count.
fn request_digest(publish: &Publish) -> [u8; 32] {
    let mut w = Writer::new();
    w.raw(b"larder publish 1\0");
    for PublishName {
        name,
        hash,
        len,
        expect,
    } in &publish.changes
    {
        w.text(name.as_str());
        match hash {
            Some(hash) => w.u8(1).hash(*hash).u64(*len),
            None => w.u8(0),
        };
        match expect {
            Some(rev) => w.u8(1).u64(rev.get()),
            None => w.u8(0),
        };
    }
    *blake3::hash(&w.finish()).as_bytes()
}

#[cfg(test)]
mod tests;
