//! Goal: reader threads that look while the machine shows, acknowledges and leaves never answer
//! with what is old, nor by a lease that is over; and the faults that only threads can show are
//! found. Method: the machine, two readers, the clock and a coordinator as threads, in hundreds
//! of orders that are the same in each run.

use std::cell::RefCell;
use std::sync::Mutex as Complaints;

use shuttle::scheduler::RandomScheduler;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::sync::{Mutex, mpsc};
use shuttle::{Config as Shuttle, Runner, thread};

use super::*;
use crate::proto::Clock;
use crate::proto::mutant::{Guard, Mutant, mutant};
use crate::proto::wire::{Delta, Marks, Prepare};
use crate::proto::worker::{Input, Output, SightCell, look};

/// Orders that are tried: each fault shows up in dozens of them, and one takes milliseconds.
const ORDERS: usize = 150;

/// How often each reader looks.
const LOOKS: usize = 3;

/// Bytes of a thread's stack: what the machine needs in a debug build, many times over.
const STACK: usize = 1 << 20;

/// What lets the coordinator acknowledge a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The worker says that its readers see the mark.
    Ack,
    /// The worker has given its lease back.
    Leave,
    /// The worker says nothing, and its lease is over.
    Expiry,
}

/// A worker with a lease, and a publish that it has not heard of.
#[derive(Clone)]
struct Stage {
    machine: Worker,
    shown: Arc<Sight>,
    watch: CallId,
    now: Time,
    prepare: Prepare,
    release: Delta,
}

impl Stage {
    fn new() -> Self {
        let mut site = Site::new(1);
        site.publish("a", Some("v1"));
        site.pass(TICK * 10);
        let node = &site.nodes[0];
        let (machine, shown, now) = (node.machine.clone(), Arc::clone(&node.shown), site.now);
        assert!(matches!(shown.strict(&name("a"), now), Look::Serve(..)));
        let (_, watch) = *site.streams.values().next().expect("a stream");
        let before = shown.replica().expect("a replica").rev();
        site.publish("a", Some("v2"));
        let ledger = site.coordinator.as_ref().expect("a coordinator").ledger();
        let release = ledger.delta(ledger.epoch(), before, MAX_DELTA);
        let release = release.expect("a delta");
        let prepare = Prepare {
            catalog: release.catalog,
            epoch: release.epoch,
            rev: before.next(),
            marks: Marks {
                all: Revision::ZERO,
                names: vec![(name("a"), before.next())],
            },
            hints: Vec::new(),
        };
        Self {
            machine,
            shown,
            watch,
            now,
            prepare,
            release,
        }
    }
}

/// What the threads share.
struct Shared {
    shown: Mutex<Arc<Sight>>,
    clock: AtomicU64,
    /// The revision of the newest publish that was acknowledged.
    acknowledged: AtomicU64,
}

/// Ticks by a thread of its own, so that it may go on between any two steps of a reader.
impl Clock for Shared {
    fn now(&self) -> Time {
        Time::from_micros(self.clock.load(Ordering::SeqCst))
    }
}

/// The cell as one thread uses it.
struct Cell<'a> {
    shared: &'a Shared,
    /// The time at the last load.
    loaded_at: RefCell<Time>,
    /// What the thread of a faulty worker keeps.
    kept: RefCell<Option<Arc<Sight>>>,
}

impl<'a> Cell<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            loaded_at: RefCell::default(),
            kept: RefCell::default(),
        }
    }
}

impl SightCell for Cell<'_> {
    fn load(&self) -> Arc<Sight> {
        if let Some(kept) = self.kept.borrow().as_ref() {
            return Arc::clone(kept);
        }
        let shown = self.shared.shown.lock().expect("no thread panics");
        // While nobody can show another one.
        self.loaded_at.replace(self.shared.now());
        Arc::clone(&shown)
    }

    fn store(&self, sight: Arc<Sight>) {
        *self.shared.shown.lock().expect("no thread panics") = sight;
    }
}

/// Looks, and says what was wrong with an answer.
fn read(shared: &Shared, misses: bool) -> Option<String> {
    let cell = Cell::new(shared);
    if misses {
        let first = cell.load();
        cell.kept.replace(Some(first));
    }
    (0..LOOKS).find_map(|_| {
        let least = shared.acknowledged.load(Ordering::SeqCst);
        let (sight, _, look) = look(&cell, shared, &name("a"));
        let Look::Serve(version, _) = look else {
            return None;
        };
        let rev = version.rev.get();
        if rev < least {
            return Some(format!("old: {rev} after {least} was acknowledged"));
        }
        let at = *cell.loaded_at.borrow();
        (!sight.leased(at)).then(|| "lapsed: the lease was over when it was loaded".into())
    })
}

/// The driver: carries out what the machine says, in order.
fn drive(
    mut machine: Worker,
    shared: &Shared,
    inputs: &mpsc::Receiver<Input>,
    said: &mpsc::Sender<Wait>,
) {
    let cell = Cell::new(shared);
    while let Ok(input) = inputs.recv() {
        for output in machine.handle(input, shared.now()) {
            // Who is told may be gone.
            let _ = match output {
                Output::Show(sight) => {
                    cell.store(sight);
                    Ok(())
                }
                Output::PrepAck { .. } => said.send(Wait::Ack),
                Output::Leave { .. } => said.send(Wait::Leave),
                _ => Ok(()),
            };
        }
    }
}

/// The clock: still for most of the time, and past the lease where that is waited for.
fn tick(shared: &Shared, wait: Wait, until: Time, said: &mpsc::Sender<Wait>) {
    let until = until.as_micros();
    let mut times = vec![until - 1_000, until - 1];
    if wait == Wait::Expiry {
        times.extend([until, until + 1]);
    }
    for time in times {
        shared.clock.store(time, Ordering::SeqCst);
        thread::yield_now();
    }
    if wait == Wait::Expiry {
        let _ = said.send(Wait::Expiry);
    }
}

/// One order of all threads.
fn play(stage: Stage, wait: Wait, complaints: &Arc<Complaints<Vec<String>>>) {
    let until = stage.now + stage.shown.lease_left(stage.now);
    let shared = Arc::new(Shared {
        shown: Mutex::new(stage.shown),
        clock: AtomicU64::new(stage.now.as_micros()),
        acknowledged: AtomicU64::new(0),
    });
    let (say, said) = mpsc::channel();
    let (input, inputs) = mpsc::channel();
    let mut threads = Vec::new();
    for reader in 0..2 {
        let (shared, complaints) = (Arc::clone(&shared), Arc::clone(complaints));
        threads.push(thread::spawn(move || {
            let wrong = read(&shared, reader == 1 && mutant!(X02));
            complaints.lock().expect("no panic").extend(wrong);
        }));
    }
    let (clock, ticked) = (Arc::clone(&shared), say.clone());
    threads.push(thread::spawn(move || tick(&clock, wait, until, &ticked)));
    let (driven, machine) = (Arc::clone(&shared), stage.machine);
    threads.push(thread::spawn(move || {
        drive(machine, &driven, &inputs, &say);
    }));

    let call = stage.watch;
    let event = |event| Input::Event { call, event };
    let sent = match wait {
        Wait::Ack => input.send(event(Event::Prepare(stage.prepare.clone()))),
        Wait::Leave => input.send(Input::Leave),
        Wait::Expiry => Ok(()),
    };
    sent.expect("a driver");
    assert_eq!(said.recv(), Ok(wait));
    let rev = stage.prepare.rev.get();
    shared.acknowledged.store(rev, Ordering::SeqCst);
    let released = input.send(event(Event::Release(stage.release)));
    released.expect("a driver");
    drop(input);
    for thread in threads {
        thread.join().expect("no thread panics");
    }
}

/// What was wrong in any order.
fn complaints(wait: Wait) -> Vec<String> {
    let stage = Stage::new();
    let found = Arc::new(Complaints::new(Vec::new()));
    let complaints = Arc::clone(&found);
    let scheduler = RandomScheduler::new_from_seed(1, ORDERS);
    let mut config = Shuttle::new();
    config.stack_size = STACK;
    Runner::new(scheduler, config).run(move || play(stage.clone(), wait, &complaints));
    std::mem::take(&mut *found.lock().expect("no panic"))
}

#[test]
fn no_reader_thread_answers_with_what_is_old_or_by_a_lease_that_is_over() {
    for wait in [Wait::Ack, Wait::Leave, Wait::Expiry] {
        assert_eq!(complaints(wait), Vec::<String>::new(), "{wait:?}");
    }
}

#[test]
fn faults_that_only_threads_can_show_are_found() {
    let faults = [
        (Mutant::X01, Wait::Expiry, "lapsed"),
        (Mutant::X02, Wait::Ack, "old"),
        (Mutant::X30, Wait::Leave, "old"),
        (Mutant::M07, Wait::Ack, "old"),
    ];
    for (mutant, wait, kind) in faults {
        let _guard = Guard::new(mutant);
        let found = complaints(wait);
        let caught = found.iter().filter(|found| found.starts_with(kind)).count();
        println!("| {} | {wait:?} | {caught} of {ORDERS} |", mutant.name());
        assert!(caught > 0, "{} survives", mutant.name());
    }
}
