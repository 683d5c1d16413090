//! Histories of a catalog that keeps all promises, made at random: every one of them passes.
//!
//! Each operation happens at one instant within its span. Spans overlap, and many publishes are
//! never answered, so that whatever the checker takes for an order that is none shows here.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Between two instants; spans are up to six times as long on each side.
const STEP: u64 = 10;

type Records = Rc<BTreeMap<&'static str, (u64, u8)>>;

/// SplitMix64: the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn span(&mut self, instant: u64) -> Range<u64> {
        instant - self.roll(6 * STEP)..instant + 1 + self.roll(6 * STEP)
    }
}

struct World {
    dice: Dice,
    epoch: u64,
    /// Records at each revision of this epoch.
    states: Vec<Records>,
    /// What was current from when on.
    log: Vec<(u64, Place, Records)>,
    runs: Vec<(u64, Place, Records)>,
    keys: u8,
    /// No restore before this: a repetition still waits for its answer.
    busy_until: u64,
    workers: u64,
    story: Story,
}

impl World {
    fn new(seed: u64) -> Self {
        let empty = Records::default();
        Self {
            dice: Dice(seed),
            epoch: 1,
            states: vec![empty.clone()],
            log: vec![(0, place(1, 0), empty)],
            runs: Vec::new(),
            keys: 0,
            busy_until: 0,
            workers: 10,
            story: Story::new(),
        }
    }

    fn tell(&mut self, more: impl FnOnce(Story) -> Story) {
        let story = std::mem::replace(&mut self.story, Story::new());
        self.story = more(story);
    }

    fn now(&self) -> (Place, Records) {
        let (_, place, records) = self.log.last().expect("a state");
        (*place, records.clone())
    }

    fn step(&mut self, instant: u64) {
        match self.dice.roll(40) {
            0..=11 => self.publish(instant),
            12..=13 => self.run(instant),
            14..=17 => self.read_of_run(instant),
            18..=20 => self.read_at(instant),
            21..=23 => self.bounded(instant),
            24 => {
                let (now, _) = self.now();
                self.tell(|story| story.restarted(instant, Some(now)));
            }
            25 if instant > self.busy_until => self.restore(instant),
            _ => {
                let (now, records) = self.now();
                let worker = self.dice.roll(4);
                let read = self.answer(instant, now, &records);
                self.tell(|story| story.read(read.by(worker, 0)));
            }
        }
    }

    fn publish(&mut self, instant: u64) {
        let mut changes = BTreeMap::new();
        for _ in 0..=self.dice.roll(3) {
            let name = NAMES[self.dice.roll(NAMES.len() as u64) as usize];
            changes.insert(name, self.dice.roll(4) as u8);
        }
        let changes: Vec<_> = changes.into_iter().collect();
        let span = self.dice.span(instant);
        let fate = match self.keys {
            // No key is used twice.
            u8::MAX => 1 + self.dice.roll(5),
            _ => self.dice.roll(6),
        };
        let key = (fate == 0).then(|| {
            self.keys += 1;
            self.keys
        });
        self.tell(|story| story.sent(span.start, key, &changes));
        match fate {
            // The answer is lost and the publish repeated.
            0 => {
                let (shown, changed) = self.apply(instant, &changes);
                let again = self.dice.span(span.end + 6 * STEP);
                self.busy_until = self.busy_until.max(again.end);
                self.tell(|story| {
                    let repeated = story.sent(again.start, key, &changes);
                    repeated.acknowledged(again.end, shown, changed)
                });
            }
            1 => {
                self.apply(instant, &changes);
            }
            2 => {}
            3 => self.tell(|story| story.refused(span.end)),
            _ => {
                let (shown, changed) = self.apply(instant, &changes);
                self.tell(|story| story.acknowledged(span.end, shown, changed));
            }
        }
    }

    fn apply(&mut self, instant: u64, changes: &[(&'static str, u8)]) -> (Place, u32) {
        let mut records = BTreeMap::clone(&self.now().1);
        let rev = self.states.len() as u64;
        let mut changed = 0;
        for &(name, number) in changes {
            if records.get(name).map_or(0, |&(_, before)| before) != number {
                records.insert(name, (rev, number));
                changed += 1;
            }
        }
        if changed > 0 {
            self.advance(instant, records.into());
        }
        (self.now().0, changed)
    }

    fn advance(&mut self, instant: u64, records: Records) {
        let now = place(self.epoch, self.states.len() as u64);
        self.states.push(records.clone());
        self.log.push((instant, now, records));
    }

    fn restore(&mut self, instant: u64) {
        let kept = self.states.len() - (self.dice.roll(4) as usize).min(self.states.len() - 1);
        let base = place(self.epoch, kept as u64 - 1);
        self.states.truncate(kept);
        self.epoch += 1;
        let epoch = self.epoch;
        self.tell(|story| story.restored(instant, epoch, base));
        let records = self.states[kept - 1].clone();
        self.advance(instant, records);
    }

    fn run(&mut self, instant: u64) {
        let (token, records) = self.now();
        let span = self.dice.span(instant);
        let id = self.runs.len() as u64;
        self.runs.push((span.end, token, records));
        self.tell(|story| story.run(id, span, token));
    }

    fn read_of_run(&mut self, instant: u64) {
        let Some(last) = self.runs.len().checked_sub(1) else {
            return;
        };
        let id = last - (self.dice.roll(4) as usize).min(last);
        let (began, token, records) = self.runs[id].clone();
        let read = self.answer(instant.max(began) + 6 * STEP, token, &records);
        let read = read.of(Ask::At(token.rev), Mode::At).within(id as u64);
        self.tell(|story| story.read(read));
    }

    fn read_at(&mut self, instant: u64) {
        let rev = self.dice.roll(self.states.len() as u64);
        let records = self.states[rev as usize].clone();
        let read = self.answer(instant, place(self.epoch, rev), &records);
        let read = read.of(Ask::At(Revision::new(rev)), Mode::At);
        self.tell(|story| story.read(read));
    }

    fn bounded(&mut self, instant: u64) {
        let bound = self.dice.roll(10 * STEP);
        let oldest = instant - 6 * STEP - bound;
        let first = self.log.partition_point(|&(at, ..)| at <= oldest) - 1;
        let chosen = first + self.dice.roll((self.log.len() - first) as u64) as usize;
        let (_, at, records) = self.log[chosen].clone();
        let mut read = self.answer(instant, at, &records);
        let earliest = instant - 6 * STEP;
        read.invoked = time(earliest);
        self.workers += 1;
        let worker = self.workers;
        let ask = Ask::Bounded(Duration::from_micros(bound));
        self.tell(|story| story.read(read.of(ask, Mode::Bounded).by(worker, 0)));
    }

    fn answer(&mut self, instant: u64, at: Place, records: &Records) -> Read {
        let name = NAMES[self.dice.roll(NAMES.len() as u64) as usize];
        let (rev, number) = records.get(name).copied().unwrap_or_default();
        read(name, self.dice.span(instant), at, rev, number)
    }
}

fn world(seed: u64, steps: u64) -> World {
    let mut world = World::new(seed);
    for step in 1..=steps {
        world.step(1_000 + step * STEP);
    }
    world
}

#[test]
fn every_history_that_keeps_the_promises_passes() {
    let mut reads = 0;
    for seed in 0..300 {
        let world = world(seed, 400);
        let report = check(&world.story.history);
        let report = report.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        reads += report.answered_reads();
    }
    assert!(reads > 50_000, "only {reads} reads");
}

#[test]
fn a_stale_read_at_the_end_of_any_history_is_found() {
    for seed in 0..40 {
        let mut world = world(seed, 100);
        let instant = 10_000;
        let (before, old) = world.now();
        let fresh = [("a", 9)];
        let (now, _) = world.apply(instant, &fresh);
        let changed = |story: Story| story.sent(instant, None, &fresh);
        world.tell(|story| changed(story).acknowledged(instant + 1, now, 1));
        let (rev, number) = old.get("a").copied().unwrap_or_default();
        let read = read("a", instant + 2..instant + 3, before, rev, number);
        world.tell(|story| story.read(read.of(Ask::Strict, Mode::Lease).by(5, 0)));
        let violation = check(&world.story.history).expect_err("a stale read");
        let names = [Invariant::S1, Invariant::S8];
        assert!(
            names.contains(&violation.invariant),
            "seed {seed}: {violation}"
        );
    }
}
