//! The coordinator's machine: what is current, and when a publish may be acknowledged.
//!
//! A publish goes through three states, and each step outward waits for the one before:
//!
//! 1. *queued*: accepted against the newest state, its revision chosen, its head signed;
//! 2. *pending*: its entry is durable;
//! 3. *visible*: an entry that says so is durable. Only now does a reader see it, and only then
//!    is the publisher answered.
//!
//! Between the second and the third, every worker that holds a lease has stopped answering for
//! the names that change, or its lease has run out.
//!
//! There is no timer for grouping: a batch is what arrived during the batch before, so a busy
//! coordinator pays two fsyncs for many publishes.
//!
//! Readers never enter the machine. They hold a [`View`], an immutable revision that
//! [`Output::Reveal`] replaces.

mod askers;
#[cfg(feature = "sim")]
mod canon;
mod lease;
mod ledger;
mod pin;
mod publish;
mod session;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use self::askers::{Askers, Turn};
use self::lease::Leases;
pub use self::lease::{SessionInfo, WaitInfo};
pub use self::ledger::{Ledger, ReplayError};
pub use self::publish::check_form;
pub use self::view::View;
use crate::catalog::{
    CatalogId, Change, Entry, Head, HeadSigner, IdempotencyKey, Keyed, Pending, PinEntry,
    Published, Revision,
};
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{DEFAULT_LEASE, RETAINED_AGE, RETAINED_REVISIONS};
use crate::proto::mutant::mutant;
use crate::proto::wire::{
    Grant, Pin, Pinned, PrepAck, Publish, PublishedRev, Push, Renew, SessionId, Waited,
};
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

/// How a coordinator is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What stays readable.
    pub retention: Retention,
    /// Longest spec in bytes.
    pub max_spec_len: u64,
    /// How long a worker may answer without asking again; zero: no worker gets a lease.
    pub lease: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            max_spec_len: 1 << 20,
            lease: DEFAULT_LEASE,
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
    /// A worker wants to be told what is about to change, over this stream.
    Watch {
        /// Its session.
        sid: SessionId,
        /// The URI of its certificate.
        owner: String,
        /// The driver's number for the stream, never used again.
        stream: u64,
    },
    /// The stream has ended.
    Unwatch {
        /// Its session.
        sid: SessionId,
        /// The stream.
        stream: u64,
    },
    /// A worker wants a lease; answered with [`Output::Granted`].
    Renew {
        /// Under which the answer comes.
        ticket: Ticket,
        /// The URI of its certificate.
        owner: String,
        /// Its request.
        renew: Renew,
    },
    /// A worker has stopped answering for what changes.
    PrepAck {
        /// The URI of its certificate.
        owner: String,
        /// What it says.
        ack: PrepAck,
    },
    /// A worker gives its lease back.
    Leave {
        /// The URI of its certificate.
        owner: String,
        /// Its session.
        sid: SessionId,
    },
    /// Someone wants a revision kept; answered with [`Output::PinReply`].
    Pin {
        /// Under which the answer comes.
        ticket: Ticket,
        /// Who.
        by: String,
        /// What and for how long.
        pin: Pin,
        /// Wall clock, milliseconds since 1970.
        unix_ms: u64,
    },
    /// Someone lets a pinned revision go; answered with [`Output::PinReply`].
    Unpin {
        /// Under which the answer comes.
        ticket: Ticket,
        /// Who: whoever pinned it, or `local`.
        by: String,
        /// The pin's number.
        id: u64,
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
    /// Send this to each of these streams, and end a stream that does not take it.
    Push {
        /// The driver's numbers.
        streams: Vec<u64>,
        /// What to send.
        push: Arc<Push>,
    },
    /// End this stream: what is pushed to it is registered nowhere.
    EndStream(u64),
    /// Answer a worker that wants a lease.
    Granted {
        /// Of the request.
        ticket: Ticket,
        /// What it gets.
        result: Result<Grant, Refusal>,
    },
    /// Answer who pins or unpins.
    PinReply {
        /// Of the request.
        ticket: Ticket,
        /// The pin, durable, or gone for good; or why not.
        result: Result<Pinned, Refusal>,
    },
    /// Answer a publisher.
    Reply {
        /// Of the publish.
        ticket: Ticket,
        /// Durable and visible, or why not.
        result: Result<PublishedRev, Refusal>,
    },
}

/// See the [module](self).
#[derive(Clone)]
pub struct Coordinator {
    ledger: Ledger,
    signer: Arc<dyn HeadSigner>,
    options: Options,
    leases: Leases,
    /// Requests for a lease that wait for [`Entry::LeaseMax`] to be durable.
    parked: Vec<(Ticket, String, Renew)>,
    /// [`Entry::LeaseMax`] is on its way.
    raising: bool,
    /// Pins that wait to be durable, or gone.
    pinning: VecDeque<(u64, Ticket, Pinned)>,
    /// Pins that were taken back and whose entry is not durable yet.
    unpinned: BTreeMap<u64, PinEntry>,
    /// Entries of idempotency keys that are not durable yet, by number.
    key_numbers: BTreeMap<(String, IdempotencyKey), u64>,
    /// What the revisions that just became visible had to wait for.
    waited: BTreeMap<Revision, Waited>,
    now: Time,
    /// Entries for the next write.
    queue: VecDeque<Queued>,
    /// Counts entries that were queued; what it counts up to `written` is durable or refused.
    enqueued: u64,
    written: u64,
    /// The write that is under way.
    in_flight: Option<InFlight>,
    /// Publishers to answer once this revision is visible.
    waiting: VecDeque<Waiting>,
    /// Publishers to refuse once the revision that the refusal names is durable: what anyone was
    /// told survives a crash.
    refused: VecDeque<(Ticket, Refusal)>,
    /// The newest revision whose pending entry is durable.
    durable: Revision,
    compact_wanted: bool,
    retry_at: Option<Time>,
    lost: Option<String>,
}

#[derive(Clone)]
struct Queued {
    entry: Entry,
    /// Its number; that of the entry before for those that the machine adds itself.
    number: u64,
}

#[derive(Clone)]
enum InFlight {
    Batch(Vec<Queued>),
    Checkpoint,
}

/// A publisher that is answered once `rev` is visible and entry `number` is durable.
#[derive(Clone)]
struct Waiting {
    ticket: Ticket,
    number: u64,
    rev: Revision,
    changed: u32,
}

impl Coordinator {
    /// A machine over what the journal held; `unix_ms` is the wall clock now, and `now` the time
    /// of the process's start: leases of before it are waited out from then on.
    ///
    /// Its first outputs make pending revisions visible, and give a new epoch its first head.
    /// Call [`handle`](Self::handle) with [`Input::Wake`] to get them.
    pub fn new(
        ledger: Ledger,
        signer: Arc<dyn HeadSigner>,
        options: Options,
        unix_ms: u64,
        now: Time,
    ) -> Self {
        let grace = if mutant!(M03) {
            now
        } else {
            now + ledger.lease_max()
        };
        let mut machine = Self {
            durable: ledger.tip().rev(),
            ledger,
            signer,
            options,
            leases: Leases::new(options.lease, grace),
            parked: Vec::new(),
            raising: false,
            pinning: VecDeque::new(),
            unpinned: BTreeMap::new(),
            key_numbers: BTreeMap::new(),
            waited: BTreeMap::new(),
            now,
            queue: VecDeque::new(),
            enqueued: 0,
            written: 0,
            in_flight: None,
            waiting: VecDeque::new(),
            refused: VecDeque::new(),
            compact_wanted: false,
            retry_at: None,
            lost: None,
        };
        if mutant!(X10) {
            machine.ledger.truncate(machine.ledger.visible().rev());
            machine.durable = machine.ledger.tip().rev();
        }
        if mutant!(M18) && options.lease < machine.ledger.lease_max() {
            machine.ledger.set_lease_max(options.lease);
            machine.queue_lease_max();
        }
        for rev in machine.ledger.pending_revisions() {
            machine.leases.begin_wait(rev, now);
        }
        if machine.ledger.lacks_head() {
            machine.wait_out_epoch();
            machine.queue_empty_revision(unix_ms);
        }
        machine
    }

    /// Workers may hold leases of the epoch before that this journal knows nothing of, if it was
    /// restored from a backup.
    fn wait_out_epoch(&mut self) {
        let longest = self.ledger.lease_max().max(self.options.lease);
        self.leases.extend_grace(self.now + longest);
    }

    /// The entries that begin a new catalog's journal.
    pub fn genesis(catalog: CatalogId, signer: &dyn HeadSigner) -> Entry {
        Ledger::genesis(catalog, signer)
    }

    /// How it is set up.
    pub fn options(&self) -> Options {
        self.options
    }

    /// What readers may see now.
    pub fn view(&self) -> Arc<View> {
        self.ledger.view()
    }

    /// The longest definition that it takes.
    pub fn max_spec_len(&self) -> u64 {
        self.options.max_spec_len
    }

    /// The durable history: for logs of revisions.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Publishes that are not visible yet.
    pub fn pending(&self) -> usize {
        self.ledger.pending() + self.waiting.len() + self.refused.len()
    }

    /// Why nothing can be written any more, if so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// When to call [`handle`](Self::handle) with [`Input::Wake`] at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        let grace = self.leases.grace();
        let lower = (self.may_lower() && grace > self.now).then_some(grace);
        let leases = self.leases.next_wake(self.now);
        self.retry_at.into_iter().chain(lower).chain(leases).min()
    }

    /// The workers that hold sessions.
    pub fn sessions(&self, now: Time) -> Vec<SessionInfo> {
        let mut names = BTreeMap::<Revision, usize>::new();
        for (rev, _) in self.ledger.pending_changes(self.durable) {
            *names.entry(rev).or_default() += 1;
        }
        let marks = |acked| names.range(..=acked).map(|(_, names)| names).sum();
        self.leases.sessions(now, marks)
    }

    /// What pending publishes wait for, the oldest first.
    pub fn waits(&self, now: Time) -> Vec<WaitInfo> {
        self.leases.waits(now)
    }

    /// Takes one input and returns what must be done, in order.
    pub fn handle(&mut self, input: Input, now: Time) -> Vec<Output> {
        let mut out = Vec::new();
        self.now = now;
        self.leases.expire(now);
        match input {
            Input::Publish {
                ticket,
                by,
                publish,
                unix_ms,
            } => {
                if let Err(refusal) = self.publish(ticket, by, publish, unix_ms, &mut out) {
                    self.refused.push_back((ticket, refusal));
                    self.answer_refused(&mut out);
                }
            }
            Input::NewEpoch { unix_ms } => {
                let epoch = self.ledger.epoch().next();
                self.ledger.begin_epoch(epoch);
                self.wait_out_epoch();
                self.enqueue(Entry::Epoch { epoch });
                self.queue_empty_revision(unix_ms);
            }
            Input::Watch { sid, owner, stream } => self.watch(sid, &owner, stream, &mut out),
            Input::Unwatch { sid, stream } => self.leases.unwatch(sid, stream),
            Input::Renew {
                ticket,
                owner,
                renew,
            } => self.renew(ticket, owner, renew, &mut out),
            Input::PrepAck { owner, ack } => self.ack(&owner, &ack),
            Input::Leave { owner, sid } => self.leases.leave(sid, &owner),
            Input::Pin {
                ticket,
                by,
                pin,
                unix_ms,
            } => self.pin(ticket, by, &pin, unix_ms, &mut out),
            Input::Unpin { ticket, by, id } => self.unpin(ticket, &by, id, &mut out),
            Input::Compact => self.compact_wanted = true,
            Input::Written(written) => self.written(written, now, &mut out),
            Input::Wake => {
                if self.retry_at.is_some_and(|at| now >= at) {
                    self.retry_at = None;
                }
            }
        }
        if self.may_lower() && now >= self.leases.grace() {
            self.queue_lease_max();
        }
        self.start_write(&mut out);
        out
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
            waited: self.waited.get(&rev).cloned().unwrap_or_default(),
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
        let visible = self.ledger.visible().rev();
        let release = self
            .leases
            .releasable(self.now)
            .filter(|rev| *rev > visible);
        if self.queue.is_empty() && release.is_none() && self.compact_wanted {
            self.compact_wanted = false;
            let (entries, retained) = self.ledger.checkpoint();
            self.in_flight = Some(InFlight::Checkpoint);
            out.push(Output::Checkpoint { entries, retained });
            return;
        }
        let mut batch = Vec::with_capacity(self.queue.len() + 1);
        if let Some(rev) = release {
            let (entry, number) = (Entry::Visible { rev }, self.written);
            batch.push(Queued { entry, number });
            if mutant!(M15) {
                let before = self.reveal(rev, out);
                self.push_release(before, out);
                self.answer_visible(out);
            }
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
        let mut prepared = false;
        let mut before = None;
        for Queued { entry, number } in &batch[..kept] {
            self.written = *number;
            match entry {
                Entry::Pending(pending) => {
                    self.durable = pending.rev;
                    self.leases.begin_wait(pending.rev, now);
                    prepared = true;
                }
                Entry::Visible { rev } => before = before.or(self.reveal(*rev, out)),
                Entry::Unpinned { id } => drop(self.unpinned.remove(id)),
                Entry::LeaseMax { lease_us } => {
                    self.ledger.set_lease_max(Duration::from_micros(*lease_us));
                    self.raising = false;
                }
                _ => {}
            }
        }
        match written {
            Written::All => {}
            Written::Some { why, .. } => self.roll_back(&batch[kept..], &why, now, out),
            Written::Lost { reason } => self.lose(reason, out),
        }
        if prepared {
            self.push_prepare(self.leases.watchers(), out);
            if mutant!(D1) {
                before = before.or(self.reveal(self.durable, out));
            }
        }
        if !self.raising {
            self.answer_parked(out);
        }
        let written = self.written;
        self.key_numbers.retain(|_, number| *number > written);
        self.answer_pinned(out);
        self.answer_refused(out);
        self.answer_visible(out);
        // Behind the answers: the publisher waits, and the workers are not wrong meanwhile.
        self.push_release(before, out);
    }

    /// Returns what was visible before, if that has changed.
    fn reveal(&mut self, rev: Revision, out: &mut Vec<Output>) -> Option<Arc<View>> {
        let before = self.ledger.view();
        if rev <= before.records.rev() {
            return None;
        }
        let mut ended = before.records.rev().next();
        while ended <= rev {
            self.waited
                .insert(ended, self.leases.end_wait(ended, self.now));
            ended = ended.next();
        }
        self.ledger.make_visible(rev);
        self.ledger.retain(self.options.retention);
        out.push(Output::Reveal(self.ledger.view()));
        Some(before)
    }

    /// Refuses those whose refusal names nothing that a crash could take back.
    fn answer_refused(&mut self, out: &mut Vec<Output>) {
        for (ticket, refusal) in std::mem::take(&mut self.refused) {
            if refusal.rev.is_some_and(|rev| rev > self.durable) {
                self.refused.push_back((ticket, refusal));
            } else {
                let result = Err(refusal);
                out.push(Output::Reply { ticket, result });
            }
        }
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
        self.waited.clear();
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
        let queued = std::mem::take(&mut self.queue);
        for queued in failed.iter().chain(&queued) {
            match &queued.entry {
                Entry::Keyed(keyed) => self.ledger.forget(keyed),
                Entry::Unpinned { .. } | Entry::Pinned(_) => self.forget_pin(&queued.entry),
                Entry::LeaseMax { .. } => {
                    self.raising = false;
                    self.retry_at = Some(now + RETRY);
                }
                _ => {}
            }
        }
        self.refuse_pins(&refusal, out);
        self.ledger.truncate(self.durable);
        self.answer_refused(out);
        for (ticket, _) in std::mem::take(&mut self.refused) {
            // What stood against it has never been.
            let message = "a publish before this one failed, try again";
            let result = Err(Refusal::new(Code::Busy, message));
            out.push(Output::Reply { ticket, result });
        }
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
        self.raising = false;
        let refusal = Refusal::new(
            Code::Disk,
            format!("the coordinator's disk failed: {reason}"),
        );
        self.refuse_pins(&refusal, out);
        self.answer_refused(out);
        for (ticket, _) in std::mem::take(&mut self.refused) {
            let result = Err(refusal.clone());
            out.push(Output::Reply { ticket, result });
        }
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

#[cfg(test)]
mod tests;
