//! Good histories pass, and for each promise the histories that break it fail by its name.
//!
//! Bad histories are the smallest that break one thing: what stands before the bad event passes.

mod order;
mod random;
mod snapshots;
mod stores;

use std::ops::Range;
use std::time::Duration;

use super::*;
use crate::answer::Target;
use crate::catalog::{Change, Epoch};
use crate::sim::history::{Ask, Failed, Mode, Outcome, Pin, PinId, Proof, Read, ReadId};

const CATALOG: CatalogId = CatalogId::from_bytes([7; 16]);

/// A content that differs for each number but 0, which is the absence.
fn content(number: u8) -> Content {
    match number {
        0 => Content::Deleted,
        _ => Content::Present {
            hash: hash(number),
            len: u64::from(number),
        },
    }
}

fn hash(number: u8) -> SpecHash {
    SpecHash::from_bytes([number; 32])
}

fn name(text: &str) -> SpecName {
    text.parse().expect("a name")
}

fn time(us: u64) -> Time {
    Time::from_micros(us)
}

fn place(epoch: u64, rev: u64) -> Place {
    Place::new(Epoch::new(epoch), Revision::new(rev))
}

fn snapshot(place: Place) -> Snapshot {
    Snapshot {
        catalog: CATALOG,
        epoch: place.epoch,
        rev: place.rev,
    }
}

/// A history under construction; publishes and reads count their own ids.
struct Story {
    history: History,
    publishes: u64,
    reads: u64,
}

impl Story {
    fn new() -> Self {
        Self {
            history: History::new(CATALOG),
            publishes: 0,
            reads: 0,
        }
    }

    fn event(mut self, event: Event) -> Self {
        self.history.push(event);
        self
    }

    /// A publish of all of `changes`, acknowledged at this revision of epoch 1.
    fn publish(self, span: Range<u64>, rev: u64, changes: &[(&str, u8)]) -> Self {
        let changed = changes.len() as u32;
        self.sent(span.start, None, changes)
            .acknowledged(span.end, place(1, rev), changed)
    }

    fn sent(mut self, at: u64, key: Option<u8>, changes: &[(&str, u8)]) -> Self {
        self.publishes += 1;
        let changes = changes.iter().map(|&(text, number)| Change {
            name: name(text),
            content: content(number),
        });
        let publish = Publish {
            id: PublishId(self.publishes),
            invoked: time(at),
            by: "publisher".into(),
            key: key.map(|key| [key; 16]),
            changes: changes.collect(),
        };
        self.event(Event::PublishInvoked(publish))
    }

    /// The answer to the publish that was sent last.
    fn acknowledged(self, at: u64, place: Place, changed: u32) -> Self {
        let id = self.publishes;
        self.answered(id, at, place, changed)
    }

    fn answered(self, id: u64, at: u64, place: Place, changed: u32) -> Self {
        self.event(Event::PublishAnswered {
            id: PublishId(id),
            at: time(at),
            answer: PublishAnswer::Acknowledged {
                snapshot: snapshot(place),
                changed,
            },
        })
    }

    fn refused(self, at: u64) -> Self {
        let id = PublishId(self.publishes);
        self.event(Event::PublishAnswered {
            id,
            at: time(at),
            answer: PublishAnswer::Refused,
        })
    }

    fn read(mut self, mut read: Read) -> Self {
        self.reads += 1;
        read.id = ReadId(self.reads);
        self.event(Event::Read(read))
    }

    fn run(self, id: u64, span: Range<u64>, token: Place) -> Self {
        self.event(Event::RunBegan(Run {
            id: RunId(id),
            invoked: time(span.start),
            responded: time(span.end),
            token: snapshot(token),
        }))
    }

    fn restarted(self, at: u64, visible: Option<Place>) -> Self {
        self.event(Event::Restarted {
            at: time(at),
            visible,
        })
    }

    fn restored(self, at: u64, epoch: u64, base: Place) -> Self {
        self.event(Event::Restored {
            at: time(at),
            epoch: Epoch::new(epoch),
            base,
        })
    }

    fn pinned(self, at: u64, until: u64, place: Place) -> Self {
        self.event(Event::Pinned(Pin {
            id: PinId(1),
            acknowledged: time(at),
            until: time(until),
            place,
        }))
    }

    fn compacted(self, at: u64, oldest: u64) -> Self {
        self.event(Event::Compacted {
            at: time(at),
            oldest: place(1, oldest),
        })
    }

    fn collected(self, at: u64, number: u8) -> Self {
        self.event(Event::Collected {
            at: time(at),
            hash: hash(number),
        })
    }

    fn audited(self, at: u64, rev: u64, held: &[u8]) -> Self {
        self.event(Event::Audited {
            at: time(at),
            visible: place(1, rev),
            held: held.iter().copied().map(hash).collect(),
        })
    }

    #[track_caller]
    fn passes(&self) -> Report {
        match check(&self.history) {
            Ok(report) => report,
            Err(violation) => panic!("{violation}"),
        }
    }

    /// Its last event, in the order of telling, breaks `invariant` and nothing before does.
    #[track_caller]
    fn breaks(&self, invariant: Invariant) -> Violation {
        let violation = check(&self.history).expect_err("a violation");
        assert_eq!(violation.invariant, invariant, "{violation}");
        let mut before = History::new(CATALOG);
        let (_, rest) = self.history.events().split_last().expect("events");
        for event in rest {
            before.push(event.clone());
        }
        assert_eq!(check(&before).map(|_| ()), Ok(()), "too early");
        violation
    }
}

/// A strict read by worker 0 that asked the coordinator; `record` 0 means that it never existed.
fn read(text: &str, span: Range<u64>, at: Place, record: u64, number: u8) -> Read {
    Read {
        id: ReadId(0),
        worker: WorkerId(0),
        incarnation: 0,
        run: None,
        target: Target::Name(name(text)),
        ask: Ask::Strict,
        invoked: time(span.start),
        responded: time(span.end),
        outcome: Outcome::Answered {
            content: content(number),
            proof: Proof {
                mode: Mode::Asked,
                snapshot: Some(snapshot(at)),
                record: (record > 0).then_some(Revision::new(record)),
            },
        },
    }
}

trait With: Sized {
    fn of(self, ask: Ask, mode: Mode) -> Self;
    fn by(self, worker: u64, incarnation: u64) -> Self;
    fn within(self, run: u64) -> Self;
    fn failed(self, failed: Failed) -> Self;
}

impl With for Read {
    fn of(mut self, asked: Ask, held: Mode) -> Self {
        self.ask = asked;
        if let Outcome::Answered { proof, .. } = &mut self.outcome {
            proof.mode = held;
        }
        self
    }

    fn by(mut self, worker: u64, incarnation: u64) -> Self {
        self.worker = WorkerId(worker);
        self.incarnation = incarnation;
        self
    }

    fn within(mut self, run: u64) -> Self {
        self.run = Some(RunId(run));
        self
    }

    fn failed(mut self, failed: Failed) -> Self {
        self.outcome = Outcome::Failed(failed);
        self
    }
}

#[test]
fn a_report_counts_what_was_checked() {
    let report = Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(12, None, &[("a", 2)])
        .refused(13)
        .sent(14, None, &[("b", 2)])
        .read(read("a", 20..21, place(1, 1), 1, 1))
        .read(read("c", 22..23, place(1, 1), 0, 0).of(Ask::Strict, Mode::Lease))
        .read(read("a", 24..25, place(1, 1), 1, 1).failed(Failed::Other))
        .run(1, 26..27, place(1, 1))
        .restarted(30, Some(place(1, 1)))
        .audited(31, 1, &[1])
        .passes();
    let expected = Report {
        reads: [(Mode::Asked, 1), (Mode::Lease, 1)].into(),
        absences: 1,
        failed_reads: 1,
        acknowledged: 1,
        refused: 1,
        unanswered: 1,
        runs: 1,
        restarts: 1,
        audits: 1,
    };
    assert_eq!(report, expected);
    assert_eq!(report.answered_reads(), 2);
}

#[test]
fn a_record_that_makes_no_sense_is_not_the_systems_fault() {
    let mut backwards = read("a", 8..9, place(1, 0), 0, 0);
    backwards.invoked = time(10);
    Story::new().read(backwards).breaks(Invariant::Record);
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .answered(1, 11, place(1, 1), 1)
        .breaks(Invariant::Record);
    Story::new()
        .read(read("a", 1..2, place(1, 0), 0, 0).within(3))
        .breaks(Invariant::Record);
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .restored(11, 1, place(1, 1))
        .breaks(Invariant::Record);

    let mut checker = Checker::new(CATALOG);
    let restart = |us| Event::Restarted {
        at: time(us),
        visible: None,
    };
    assert_eq!(checker.push(&restart(5)), Ok(()));
    assert_eq!(checker.push(&restart(5)), Ok(()));
    let error = checker.push(&restart(4)).expect_err("out of order");
    assert_eq!(error.invariant, Invariant::Record);
}

#[test]
fn a_violation_names_both_operations_and_says_why() {
    let violation = Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .publish(20..30, 2, &[("a", 2)])
        .read(read("a", 31..40, place(1, 1), 1, 1).by(3, 1))
        .breaks(Invariant::S1);
    assert_eq!(
        violation.to_string(),
        "S1 freshness broken by read 1 after publish 2: worker 3 (start 1) said that `a` is \
         b3:010101010101 of 1 bytes since 1:1 at 1:1, and 1:2 had been answered before it began"
    );
}
