//! Every fault of [`Mutant::ALL`] is noticed: by a small world that asks for its kind of trouble,
//! or by a rule that is asked for directly.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder::proto::mutant::{Guard, Mutant};
use larder::sim::world::run;

use crate::probes;
use crate::scenarios;

/// Seeds that are tried before a fault counts as unnoticed.
const SEEDS: u64 = 24;

/// What notices a fault.
#[derive(Clone, Copy)]
enum Way {
    /// A kind of world of [`scenarios::ALL`].
    World(&'static str),
    /// A rule of [`probes::ALL`].
    Rule(&'static str),
}

use Way::{Rule, World};

/// What is expected to notice each of them.
fn way(mutant: Mutant) -> Way {
    match mutant {
        Mutant::M01 => World("cut off"),
        Mutant::M02 => World("calm"),
        Mutant::M03 => World("restarts"),
        Mutant::M04 => World("cut off"),
        Mutant::M05 => World("one way"),
        Mutant::M06 => World("slow"),
        Mutant::M07 => World("calm"),
        Mutant::M08 => World("ghosts"),
        Mutant::M12 => World("drift"),
        Mutant::M13 => World("suspend"),
        Mutant::M14 => World("ghosts"),
        Mutant::M15 => World("restarts"),
        Mutant::M16 => World("far behind"),
        Mutant::M17 => World("calm"),
        Mutant::M18 => World("leases"),
        Mutant::D1 => World("calm"),
        Mutant::D2 => World("neighbours"),
        Mutant::X01 => Rule("a lease is compared with the time after it was loaded"),
        Mutant::X02 => World("calm"),
        Mutant::X03 => World("liars"),
        Mutant::X04 => Rule("a spec of another length is told as such"),
        Mutant::X05 => World("liars"),
        Mutant::X06 => World("rich"),
        Mutant::X07 => World("retention"),
        Mutant::X08 => World("retention"),
        Mutant::X09 => World("keys"),
        Mutant::X10 => World("restarts"),
        Mutant::X11 => Rule("another catalog's state is not remembered"),
        Mutant::X12 => Rule("the newest state is remembered"),
        Mutant::X13 => Rule("a head is of the catalog that it was signed for"),
        Mutant::X15 => World("liars"),
        Mutant::X16 => World("retention"),
        Mutant::X17 => Rule("two heads for one revision are a fork"),
        Mutant::X20 => World("keys"),
        Mutant::X21 => World("calm"),
        Mutant::X22 => World("cut off"),
        Mutant::X23 => World("restarts"),
        Mutant::X25 => World("liars"),
        Mutant::X26 => World("rich"),
        Mutant::X27 => World("rich"),
        Mutant::X28 => World("far behind"),
        Mutant::X29 => World("slow"),
        Mutant::X30 => World("leave"),
        Mutant::X31 => World("keys"),
        Mutant::X32 => World("neighbours"),
        Mutant::X33 => Rule("a worker that is carried carries nobody"),
        Mutant::X34 => Rule("a delta of another catalog is refused"),
    }
}

/// How a fault was noticed.
struct Caught {
    by: String,
    why: String,
}

/// What notices `mutant`, if anything does.
fn caught(mutant: Mutant) -> Option<Caught> {
    match way(mutant) {
        Rule(rule) => {
            let (_, probe) = probes::ALL.iter().find(|(name, _)| *name == rule)?;
            let _guard = Guard::new(mutant);
            let why = probe().err()?;
            let by = format!("rule: {rule}");
            Some(Caught { by, why })
        }
        World(kind) => (1..=SEEDS).find_map(|seed| in_world(mutant, kind, seed)),
    }
}

fn in_world(mutant: Mutant, kind: &'static str, seed: u64) -> Option<Caught> {
    let (_, scenario) = scenarios::ALL.iter().find(|(name, _)| *name == kind)?;
    let _guard = Guard::new(mutant);
    let by = format!("world: {kind}, seed {seed}");
    match catch_unwind(AssertUnwindSafe(|| run(&scenario(seed)))) {
        Ok(Ok(_)) => None,
        Ok(Err(failure)) => Some(Caught {
            by,
            why: failure.why,
        }),
        Err(_) => Some(Caught {
            by,
            why: "a panic".into(),
        }),
    }
}

/// One line of the table.
type Row = (Mutant, Duration, Option<Caught>);

#[test]
fn all_mutants_are_noticed() {
    let only = std::env::var("LARDER_SIM_MUTANT").ok();
    let chosen = |mutant: &&Mutant| only.as_ref().is_none_or(|only| only == mutant.name());
    let mutants: Vec<_> = Mutant::ALL.iter().filter(chosen).copied().collect();
    let next = AtomicUsize::new(0);
    let rows: Mutex<Vec<Row>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(&mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let from = Instant::now();
                    let found = caught(mutant);
                    let row = (mutant, from.elapsed(), found);
                    rows.lock().expect("no panic").push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no panic");
    rows.sort_by_key(|(mutant, ..)| *mutant);
    println!("| mutant | noticed by | seconds | as |\n| --- | --- | --- | --- |");
    for (mutant, took, found) in &rows {
        let (by, why) = match found {
            Some(found) => (found.by.as_str(), found.why.as_str()),
            None => ("NOBODY", ""),
        };
        let why: String = why.chars().take(60).collect();
        let seconds = took.as_secs_f64();
        println!("| {} | {by} | {seconds:.2} | {why} |", mutant.name());
    }
    let left: Vec<_> = rows.iter().filter(|(.., found)| found.is_none()).collect();
    let left: Vec<_> = left.iter().map(|(mutant, ..)| mutant.name()).collect();
    assert!(left.is_empty(), "nothing noticed {left:?}");
}
