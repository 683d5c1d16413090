//! Judges what happens, and remembers what led to it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use super::plan::Plan;
use crate::answer::Target;
use crate::catalog::CatalogId;
use crate::proto::Time;
use crate::sim::check::{Checker, Report};
use crate::sim::history::{Ask, Event, Place, Read};

/// Lines that are remembered.
const LINES: usize = 200_000;

/// Characters of a line.
const LINE: usize = 240;

/// Lines that are shown, of those that concern the failure, unless `LARDER_SIM_LINES` says
/// otherwise.
const SHOWN: usize = 60;

fn shown() -> usize {
    let wanted = std::env::var("LARDER_SIM_LINES").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(SHOWN)
}

/// A world that kept its promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How much was checked.
    pub report: Report,
    /// A hash over every step.
    pub log: u64,
    /// Steps.
    pub steps: u64,
    /// Definitions of which the coordinator gave the bytes to a worker,
    pub bodies: u64,
    /// how often it gave them,
    pub copies: u64,
    /// and how often those that it gave most often.
    pub most_copies: u64,
    /// Whether the coordinator did not start after its disk had lost what it acknowledged.
    pub refused: bool,
    /// Workers that believed no coordinator at the end.
    pub quarantined: usize,
}

/// A world that did not.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What was promised, and what happened.
    pub why: String,
    /// Virtual time.
    pub at: Time,
    /// The world.
    pub plan: Plan,
    /// The last steps that concern it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Plan { seed, kind, .. } = self.plan;
        let at = self.at.as_micros();
        writeln!(f, "{kind} world, seed {seed}, at {at} us: {}", self.why)?;
        write!(
            f,
            "again: LARDER_SIM_PLAN='{kind}' LARDER_SIM_SEED={seed} cargo test --locked --test sim one_seed -- --nocapture"
        )
    }
}

impl std::error::Error for Failure {}

/// What is written down of the steps besides their hash.
pub(super) enum Log {
    Nothing,
    /// The end of it, in short.
    Last(VecDeque<String>),
    /// All of it, each line whole.
    All(Vec<String>),
}

impl Log {
    fn write(&mut self, at: Time, text: impl FnOnce() -> String) {
        let line = |text: &str| format!("{:>11} {text}", at.as_micros());
        match self {
            Self::Nothing => {}
            Self::Last(lines) => {
                if lines.len() == LINES {
                    lines.pop_front();
                }
                let text: String = text().chars().take(LINE).collect();
                lines.push_back(line(&text));
            }
            Self::All(lines) => lines.push(line(&text())),
        }
    }
}

pub(super) struct Oracle {
    checker: Option<Checker>,
    report: Report,
    log: u64,
    steps: u64,
    lines: Log,
    failure: Option<(String, Time)>,
    /// What a line must contain to concern the failure.
    about: Vec<String>,
    /// The newest that reads of what is current showed at each worker.
    shown: BTreeMap<usize, Place>,
    betrayed: Option<Betrayed>,
}

/// The coordinator came back without what its disk had acknowledged.
struct Betrayed {
    /// With this,
    visible: Place,
    /// and this had been seen.
    newest: Place,
}

impl Oracle {
    pub(super) fn new(catalog: CatalogId, lines: Log) -> Self {
        Self {
            checker: Some(Checker::new(catalog)),
            report: Report::default(),
            log: 0xcbf2_9ce4_8422_2325,
            steps: 0,
            lines,
            failure: None,
            about: Vec::new(),
            shown: BTreeMap::new(),
            betrayed: None,
        }
    }

    /// Notes a step: in the hash by its numbers, in the log of a second run by its words.
    pub(super) fn note(&mut self, at: Time, kind: u64, about: u64, text: impl FnOnce() -> String) {
        self.steps += 1;
        for word in [at.as_micros(), kind, about] {
            self.log = (self.log ^ word).wrapping_mul(0x0100_0000_01b3);
            self.log ^= self.log >> 29;
        }
        self.lines.write(at, text);
    }

    /// Something that the checker judges; `who` did it.
    pub(super) fn event(&mut self, event: Event, who: &str) {
        let at = event.at();
        self.note(at, 20, 0, || format!("{who}: {event:?}"));
        let Some(checker) = &mut self.checker else {
            return;
        };
        if let Err(violation) = checker.push(&event) {
            self.fail(at, violation.to_string(), who.to_owned());
        }
    }

    pub(super) fn read(&mut self, read: Read, at_worker: usize) {
        let content = match &read.outcome {
            crate::sim::history::Outcome::Answered { proof, .. } => {
                proof.record.map_or(1, |rev| rev.get() + 2)
            }
            crate::sim::history::Outcome::Failed(_) => 0,
        };
        self.note(read.responded, 21, content, || {
            format!("w{at_worker} read {read:?}")
        });
        let name = match &read.target {
            Target::Name(name) => name.to_string(),
            Target::Hash(hash) => hash.short(),
        };
        let at = read.responded;
        if let Some(why) = self.goes_back(&read, at_worker) {
            return self.fail(at, why, format!("w{at_worker} "));
        }
        let Some(checker) = &mut self.checker else {
            return;
        };
        if let Err(violation) = checker.push(&Event::Read(read)) {
            self.about.push(name);
            self.fail(at, violation.to_string(), format!("w{at_worker} "));
        }
    }

    /// The newest revision that anyone was told of.
    pub(super) fn newest(&self) -> Option<Place> {
        self.checker.as_ref().and_then(Checker::newest)
    }

    /// The coordinator came back with `visible`, which is older than what was seen: from here on no
    /// promise can be kept but that no worker that has seen more follows it.
    pub(super) fn betray(&mut self, at: Time, visible: Place) {
        let Some(newest) = self.newest() else {
            return;
        };
        self.note(at, 14, visible.rev.get(), || {
            format!("coordinator came back at {visible} after {newest} had been seen")
        });
        self.betrayed = Some(Betrayed { visible, newest });
        if let Some(checker) = self.checker.take() {
            self.report = checker.finish();
        }
    }

    pub(super) fn is_betrayed(&self) -> bool {
        self.betrayed.is_some()
    }

    /// What is wrong with a read of what is current, once the coordinator has gone back: S6, and
    /// a worker that has seen what is lost answers with the lost history or not at all.
    fn goes_back(&mut self, read: &Read, worker: usize) -> Option<String> {
        let crate::sim::history::Outcome::Answered { proof, .. } = &read.outcome else {
            return None;
        };
        if matches!(read.ask, Ask::At(_) | Ask::Pinned(_)) {
            return None;
        }
        let place = Place::from(proof.snapshot?);
        let before = self.shown.insert(worker, place);
        let (before, betrayed) = (before?, self.betrayed.as_ref()?);
        self.shown.insert(worker, place.max(before));
        let Betrayed { visible, newest } = betrayed;
        let follows = before > *visible && place > *newest;
        (place < before || follows).then(|| {
            format!("S6: w{worker} showed {before}, the coordinator went back from {newest} to {visible}, and it shows {place}")
        })
    }

    pub(super) fn fail(&mut self, at: Time, why: String, who: String) {
        if self.failure.is_none() {
            self.failure = Some((why, at));
            self.about.push(who);
            self.about.push("coordinator ".into());
            self.checker = None;
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What was written down, if it was all of it.
    pub(super) fn take_log(&mut self) -> Vec<String> {
        match &mut self.lines {
            Log::All(lines) => std::mem::take(lines),
            Log::Nothing | Log::Last(_) => Vec::new(),
        }
    }

    pub(super) fn close(mut self, plan: &Plan, _now: Time) -> Result<Outcome, Failure> {
        let Some((why, at)) = self.failure.take() else {
            if let Some(checker) = self.checker.take() {
                self.report = checker.finish();
            }
            return Ok(Outcome {
                report: self.report,
                log: self.log,
                steps: self.steps,
                bodies: 0,
                copies: 0,
                most_copies: 0,
                refused: false,
                quarantined: 0,
            });
        };
        let concerns = |line: &&String| self.about.iter().any(|about| line.contains(about));
        let lines = match &self.lines {
            Log::Last(lines) => Some(lines),
            Log::Nothing | Log::All(_) => None,
        };
        let lines = lines.into_iter().flatten().rev().filter(concerns);
        let mut trace: Vec<_> = lines.take(shown()).cloned().collect();
        trace.reverse();
        Err(Failure {
            why,
            at,
            plan: plan.clone(),
            trace,
        })
    }
}
