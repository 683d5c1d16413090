//! Judges a [`History`] by the invariants S1 to S10.
//!
//! One pass in the order of real time and no search: every name is a register whose versions
//! carry revisions, so an operation is compared with what had been answered before it began.
//! Beyond that order, all that was said of one name must fit together: an answer says that the
//! name did not change between the record's revision and the snapshot's.
//!
//! [`check`] takes a whole history; a [`Checker`] takes events as they come. It keeps what was
//! published, how each name's newest revision rose, and what each worker used in the last hour,
//! but no reads.
//!
//! What cannot be known is not held against anyone. A publish without an answer may explain any
//! revision after it was sent that shows what it wanted, and which of the names of a publish
//! were changed by it is open when not all were. Which violation is which:
//!
//! | found | blamed on |
//! | --- | --- |
//! | a strict read behind an acknowledged publish, or by a weaker promise | S1 |
//! | anything behind what a read returned; a version that nobody published; a revision used twice | S2 |
//! | bytes, length or catalog that are not the record's | S3 |
//! | S1 or S2 by the coordinator itself, across its restart | S4 |
//! | reads of a run or of a given revision that do not fit that revision | S5 |
//! | a worker that goes back, or behind a token | S6 |
//! | a bounded read behind a publish older than its bound | S7 |
//! | S1 or S2 where one of the two says that there is no such name | S8 |
//! | a pin that did not hold, a removed revision that was answered, a retained blob that was deleted | S9 |
//! | a blob of the visible revision that the coordinator lacks | S10 |

mod lineage;
mod publishes;
mod reads;
mod retention;
mod steps;
mod timeline;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use self::lineage::Lineage;
use self::publishes::{Misplaced, Publishes};
use self::retention::Retained;
use self::steps::Steps;
use self::timeline::{Clash, Timeline};
pub use self::verdict::{Invariant, Op, Report, Violation};
use super::history::{
    Event, History, Place, Publish, PublishAnswer, PublishId, Run, RunId, WorkerId,
};
use crate::answer::Snapshot;
use crate::catalog::{CatalogId, Content, Revision};
use crate::proto::Time;
use crate::spec::{SpecHash, SpecName};

/// What one worker used is kept this long: no read is open for longer, and one that is gets
/// compared with less.
const LONGEST_READ: Duration = Duration::from_secs(3600);

/// Checks a whole history.
///
/// # Errors
/// The first [`Violation`] in the order of real time.
pub fn check(history: &History) -> Result<Report, Violation> {
    let mut events: Vec<&Event> = history.events().iter().collect();
    events.sort_by_key(|event| (event.at(), event.rank()));
    let mut checker = Checker::new(history.catalog());
    for event in events {
        checker.push(event)?;
    }
    Ok(checker.finish())
}

/// Checks a history while it happens.
#[derive(Debug)]
pub struct Checker {
    catalog: CatalogId,
    now: Time,
    lineage: Lineage,
    names: BTreeMap<SpecName, Name>,
    publishes: Publishes,
    workers: BTreeMap<WorkerId, Steps>,
    runs: BTreeMap<RunId, Run>,
    /// Every revision that anyone was told of.
    newest: Steps,
    last_restart: Option<Time>,
    /// Lengths of all contents that were published.
    lens: BTreeMap<SpecHash, u64>,
    retained: Retained,
    report: Report,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Name {
    timeline: Timeline,
    /// Revisions of its changes, as reads returned and publishes wrote them.
    records: Steps,
    /// Revisions in which acknowledged publishes changed it.
    acknowledged: Steps,
    /// The same where some names of a publish were so already, and nobody knows which.
    confirmed: Steps,
}

/// Who learned something, and when.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Time,
    op: Op,
    /// It said that there is no such name.
    absent: bool,
    /// What it said, of a name.
    content: Option<Content>,
}

impl Seen {
    const fn new(at: Time, op: Op) -> Self {
        Self {
            at,
            op,
            absent: false,
            content: None,
        }
    }

    const fn content(mut self, content: Content) -> Self {
        self.absent = matches!(content, Content::Deleted);
        self.content = Some(content);
        self
    }
}

impl Checker {
    /// A checker of a new history of `catalog`.
    pub fn new(catalog: CatalogId) -> Self {
        Self {
            catalog,
            now: Time::default(),
            lineage: Lineage::default(),
            names: BTreeMap::new(),
            publishes: Publishes::default(),
            workers: BTreeMap::new(),
            runs: BTreeMap::new(),
            newest: Steps::default(),
            last_restart: None,
            lens: BTreeMap::new(),
            retained: Retained::default(),
            report: Report::default(),
        }
    }

    /// Takes the next event, in the order of [`Event::at`].
    ///
    /// # Errors
    /// A [`Violation`] that this event shows; nothing may be pushed after it.
    pub fn push(&mut self, event: &Event) -> Result<(), Violation> {
        if event.at() < self.now {
            let why = format!(
                "an event at {} us follows one at {} us",
                event.at().as_micros(),
                self.now.as_micros()
            );
            return Err(record(Op::Coordinator(event.at()), why));
        }
        self.now = event.at();
        match event {
            Event::PublishInvoked(publish) => self.publish_invoked(publish),
            Event::PublishAnswered { id, at, answer } => self.publish_answered(*id, *at, *answer),
            Event::Read(read) => self.read(read),
            Event::RunBegan(run) => self.run_began(*run),
            Event::RunEnded { id, .. } => {
                self.runs.remove(id);
                Ok(())
            }
            Event::Restarted { at, visible } => self.restarted(*at, *visible),
            Event::Restored { at, epoch, base } => {
                self.report.restarts += 1;
                match self.lineage.begin(*epoch, *base) {
                    true => Ok(()),
                    false => Err(record(
                        Op::Coordinator(*at),
                        format!("epoch {epoch} cannot continue from {base}"),
                    )),
                }
            }
            Event::Pinned(pin) => {
                self.pinned(*pin);
                Ok(())
            }
            Event::Unpinned { id, .. } => {
                self.retained.unpin(*id);
                Ok(())
            }
            Event::Compacted { oldest, .. } => {
                self.compacted(*oldest);
                Ok(())
            }
            Event::Collected { at, hash } => self.collected(*at, *hash),
            Event::Audited { at, visible, held } => self.audited(*at, *visible, held),
        }
    }

    /// The newest revision that anyone was told of.
    pub fn newest(&self) -> Option<Place> {
        self.newest.last().map(|step| step.place)
    }

    /// How much was checked.
    pub fn finish(mut self) -> Report {
        self.report.unanswered = self.publishes.unanswered() as u64;
        self.report
    }

    fn publish_invoked(&mut self, publish: &Publish) -> Result<(), Violation> {
        for change in &publish.changes {
            if let Content::Present { hash, len } = change.content {
                self.lens.insert(hash, len);
            }
        }
        let floor = self.newest.before(publish.invoked);
        let lineage = &self.lineage;
        let survives = |place| lineage.survives(place);
        match self
            .publishes
            .invoke(publish, floor, lineage.restores(), survives)
        {
            true => Ok(()),
            false => Err(record(
                Op::Publish(publish.id),
                "it was sent twice under one id".into(),
            )),
        }
    }

    fn publish_answered(
        &mut self,
        id: PublishId,
        at: Time,
        answer: PublishAnswer,
    ) -> Result<(), Violation> {
        let op = Op::Publish(id);
        let Some(answered) = self.publishes.close(id) else {
            return Err(record(op, "it was answered and is not open".into()));
        };
        let (snapshot, changed) = match answer {
            PublishAnswer::Acknowledged { snapshot, changed } => (snapshot, changed),
            PublishAnswer::Refused => {
                self.report.refused += 1;
                let refused = self.publishes.refuse(&answered);
                return refused.map_err(|misplaced| self.misplaced(op, misplaced));
            }
        };
        self.report.acknowledged += 1;
        let place = self.vouched(op, snapshot)?;
        let seen = Seen::new(at, op);
        self.not_behind(op, &answered.changes, answered.first.at, place)?;
        let acknowledged = self.publishes.acknowledge(&answered, place, changed);
        acknowledged.map_err(|misplaced| self.misplaced(op, misplaced))?;
        let complete = changed as usize == answered.changes.len();
        for (name, content) in answered.changes {
            let seen = seen.content(content);
            let state = self.names.entry(name.clone()).or_default();
            let told = if complete {
                state.acknowledged.rise(place, seen);
                state.records.rise(place, seen);
                self.retained.note(&name, place, content);
                state.timeline.claim(place, place.rev, content, seen)
            } else {
                state.confirmed.rise(place, seen);
                state.timeline.show(place, content, seen)
            };
            told.map_err(|clash| self.publish_clash(op, &name, place, content, &clash))?;
        }
        self.newest.rise(place, seen);
        Ok(())
    }

    /// S2 for a publish: not behind anything that was answered before it was first sent.
    fn not_behind(
        &self,
        op: Op,
        changes: &[(SpecName, Content)],
        invoked: Time,
        place: Place,
    ) -> Result<(), Violation> {
        for (name, _) in changes {
            let floor = self
                .names
                .get(name)
                .and_then(|name| name.records.before(invoked));
            if let Some(floor) = floor
                && floor.place.epoch == place.epoch
                && floor.place > place
            {
                let invariant = self.blame(Invariant::S2, Some(floor.seen), true, false);
                let why = format!(
                    "`{name}` was at {} when it was sent, and it was acknowledged at {place}",
                    floor.place
                );
                return Err(violation(invariant, Some(floor.seen), op, why));
            }
        }
        Ok(())
    }

    fn run_began(&mut self, run: Run) -> Result<(), Violation> {
        self.report.runs += 1;
        let op = Op::Run(run.id);
        let token = self.vouched(op, run.token)?;
        self.newest.rise(token, Seen::new(run.responded, op));
        self.runs.insert(run.id, run);
        Ok(())
    }

    /// S4: what the coordinator comes back with.
    fn restarted(&mut self, at: Time, visible: Option<Place>) -> Result<(), Violation> {
        self.report.restarts += 1;
        self.last_restart = Some(at);
        let (Some(visible), Some(known)) = (visible, self.newest.before(at)) else {
            return Ok(());
        };
        if self.lineage.resolve(visible) >= known.place {
            return Ok(());
        }
        let why = format!(
            "it came back at {visible}, and {} had been seen",
            known.place
        );
        Err(violation(
            Invariant::S4,
            Some(known.seen),
            Op::Coordinator(at),
            why,
        ))
    }

    /// S3: the catalog is the one that the coordinator vouches for; and the place within it.
    fn vouched(&mut self, op: Op, snapshot: Snapshot) -> Result<Place, Violation> {
        if snapshot.catalog != self.catalog {
            let why = format!(
                "it names catalog {}, not {}",
                snapshot.catalog, self.catalog
            );
            return Err(violation(Invariant::S3, None, op, why));
        }
        if !self.lineage.knows(snapshot.epoch) {
            let why = format!("it names epoch {}, which never began", snapshot.epoch);
            return Err(violation(Invariant::S2, None, op, why));
        }
        Ok(self.lineage.resolve(snapshot.into()))
    }

    /// Who is to blame for S1 or S2: the coordinator that forgot, an absence, or just that.
    fn blame(
        &self,
        plain: Invariant,
        earlier: Option<Seen>,
        asked: bool,
        absent: bool,
    ) -> Invariant {
        let forgot = earlier.is_some_and(|seen| self.last_restart.is_some_and(|at| seen.at < at));
        match plain {
            Invariant::S1 | Invariant::S2 if forgot && asked => Invariant::S4,
            Invariant::S1 | Invariant::S2 if absent || earlier.is_some_and(|seen| seen.absent) => {
                Invariant::S8
            }
            _ => plain,
        }
    }

    fn misplaced(&self, op: Op, misplaced: Misplaced) -> Violation {
        let invariant = self.blame(Invariant::S2, misplaced.earlier, true, false);
        violation(
            invariant,
            misplaced.earlier,
            op,
            format!("it was {}", misplaced.why),
        )
    }

    fn publish_clash(
        &self,
        op: Op,
        name: &SpecName,
        place: Place,
        content: Content,
        clash: &Clash,
    ) -> Violation {
        let absent = matches!(content, Content::Deleted);
        let invariant = self.blame(Invariant::S2, Some(clash.seen), true, absent);
        let why = format!(
            "it made `{name}` {} at {place}, {}",
            said(content),
            described(clash)
        );
        violation(invariant, Some(clash.seen), op, why)
    }
}

fn described(clash: &Clash) -> String {
    let (said, from, until) = (said(clash.content), clash.from, clash.until);
    format!("which elsewhere is {said} from {from} until revision {until} at least")
}

fn said(content: Content) -> String {
    match content {
        Content::Present { hash, len } => format!("{} of {len} bytes", hash.short()),
        Content::Deleted => "absent".into(),
    }
}

/// The revision of a record as it is compared; a name that never existed is as old as can be.
fn record_rev(record: Option<Revision>) -> Revision {
    record.unwrap_or(Revision::ZERO)
}

fn violation(invariant: Invariant, earlier: Option<Seen>, later: Op, why: String) -> Violation {
    Violation {
        invariant,
        earlier: earlier.map(|seen| seen.op),
        later,
        why,
    }
}

fn record(later: Op, why: String) -> Violation {
    violation(Invariant::Record, None, later, why)
}

#[cfg(test)]
mod tests;
