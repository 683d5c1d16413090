//! Goal: what the thread does and when, without waiting for it. Method: its loop with a script in
//! place of the clock.

use super::*;
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::store::cache::Options;

fn spec(number: u64, len: usize) -> Spec {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len, b'x');
    Spec::new(bytes.into())
}

fn mark(epoch: u64, rev: u64) -> Mark {
    Mark {
        catalog: CatalogId::from_bytes([1; 16]),
        epoch: Epoch::new(epoch),
        rev: Revision::new(rev),
    }
}

/// One step of a script.
enum Step<'a> {
    Save(Spec),
    Tick { quiet: bool },
    Look(&'a dyn Fn(&WorkerStore)),
}

/// Runs the loop over `steps`; a look sees what the steps before it did.
fn play(store: &WorkerStore, shared: &Shared, steps: Vec<Step<'_>>) {
    let mut steps = steps.into_iter();
    run(store, shared, || {
        loop {
            match steps.next() {
                Some(Step::Save(spec)) => {
                    let hash = spec.hash();
                    let mut waiting = shared.lock();
                    waiting.bytes += spec.len();
                    waiting.specs.insert(hash, spec);
                    return Wake::Job(Job::Body(hash));
                }
                Some(Step::Tick { quiet }) => return Wake::Tick { quiet },
                Some(Step::Look(look)) => look(store),
                None => return Wake::Ended,
            }
        }
    });
}

#[test]
fn a_quiet_moment_after_writes_compacts_and_a_busy_one_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        budget_bytes: 200_000,
        slack_bytes: 1 << 20,
        ..Options::default()
    };
    let (store, _) = WorkerStore::open(dir.path(), options).expect("a store");
    let disk = |store: &WorkerStore| store.size_on_disk().expect("a size");
    let large = |store: &WorkerStore| assert!(disk(store) > 3 * 200_000 + (1 << 20));
    let small = |store: &WorkerStore| assert!(disk(store) <= 3 * 200_000 + (1 << 20));
    let mut steps: Vec<_> = (0..100).map(|n| Step::Save(spec(n, 50_000))).collect();
    steps.extend([
        Step::Tick { quiet: false },
        Step::Look(&large),
        Step::Tick { quiet: true },
        Step::Look(&small),
    ]);
    play(&store, &Shared::default(), steps);
    let kept = spec(99, 50_000);
    let loaded = store.load(kept.hash(), None).expect("an answer");
    assert_eq!(loaded, crate::store::blobs::Loaded::Found(kept));
}

#[test]
fn the_newest_mark_is_written_in_whatever_order_they_come_and_without_room_in_the_queue() {
    let store = WorkerStore::in_memory(1_000);
    let shared = Shared::default();
    for (epoch, rev) in [(1, 6), (1, 5), (2, 1), (1, 9)] {
        shared.remember(mark(epoch, rev));
    }
    let found = |store: &WorkerStore| assert_eq!(super::mark(store), Some(mark(2, 1)));
    play(
        &store,
        &shared,
        vec![Step::Tick { quiet: true }, Step::Look(&found)],
    );
    shared.remember(mark(2, 2));
    play(&store, &shared, vec![]);
    assert_eq!(super::mark(&store), Some(mark(2, 2)), "written at the end");
}

#[test]
fn a_clock_ticks_however_many_jobs_come_and_tells_when_none_did() {
    let (queue, jobs) = mpsc::sync_channel(4);
    let mut clock = Clock::new(jobs);
    let past = |clock: &mut Clock| clock.ticked = Instant::now() - FLUSH_EVERY;
    queue.send(Job::Remember).expect("room");
    queue.send(Job::Remember).expect("room");
    assert!(matches!(clock.wait(), Wake::Job(Job::Remember)));
    past(&mut clock);
    assert!(matches!(clock.wait(), Wake::Tick { quiet: false }));
    assert!(matches!(clock.wait(), Wake::Job(Job::Remember)));
    past(&mut clock);
    assert!(matches!(clock.wait(), Wake::Tick { quiet: false }));
    past(&mut clock);
    assert!(matches!(clock.wait(), Wake::Tick { quiet: true }));
    drop(queue);
    assert!(matches!(clock.wait(), Wake::Ended));
}
