//! Goal: what the thread does and when, without waiting for it. Method: its loop with a script in
//! place of the clock.

use super::*;
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::proto::Time;
use crate::proto::worker::{Anchor, BootId};
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
    Hold(u64, HeldRecord),
    Look(&'a dyn Fn(&WorkerStore)),
}

/// Runs the loop over `steps`; a look sees what the steps before it did.
fn play(store: &WorkerStore, shared: &Shared, steps: Vec<Step<'_>>) {
    let mut steps = steps.into_iter();
    run(store, shared, None, || {
        loop {
            match steps.next() {
                Some(Step::Save(spec)) => {
                    let hash = spec.hash();
                    assert_eq!(shared.add(spec), Added::New);
                    return Wake::Job(Job::Body(hash));
                }
                Some(Step::Hold(life, record)) => return Wake::Job(Job::Hold(life, record)),
                Some(Step::Tick { quiet }) => return Wake::Tick { quiet },
                Some(Step::Look(look)) => look(store),
                None => return Wake::Ended,
            }
        }
    });
}

#[test]
fn a_body_that_waits_is_counted_once_however_often_it_is_saved() {
    let shared = Shared::default();
    assert_eq!(shared.add(spec(1, 100)), Added::New);
    assert_eq!(shared.add(spec(1, 100)), Added::Known);
    assert_eq!(shared.lock().bytes, 100);
    shared.take(spec(1, 100).hash());
    assert_eq!(shared.lock().bytes, 0);
    let large = spec(2, MAX_QUEUED_BYTES as usize);
    assert_eq!(shared.add(large.clone()), Added::New);
    assert_eq!(shared.add(spec(3, 10)), Added::NoRoom);
    assert_eq!(shared.add(large), Added::Known, "it has its room");
}

fn record(name: &str) -> HeldRecord {
    HeldRecord {
        name: name.parse().expect("a name"),
        version: crate::catalog::Version {
            rev: Revision::new(1),
            content: crate::catalog::Content::Deleted,
        },
        seen: Revision::new(1),
    }
}

#[test]
fn lines_that_were_handed_over_before_they_were_to_be_forgotten_are_not_written() {
    let store = WorkerStore::in_memory(1_000);
    let shared = Shared::default();
    let lines = |store: &WorkerStore| {
        let all = store.held_all().expect("a list").into_iter();
        all.map(|held| held.name.to_string()).collect::<Vec<_>>()
    };
    let forget = |_: &WorkerStore| shared.forget_held();
    let none = |store: &WorkerStore| assert!(lines(store).is_empty());
    let steps = vec![
        Step::Hold(0, record("written")),
        Step::Look(&forget),
        Step::Hold(0, record("late")),
        Step::Look(&none),
        Step::Hold(1, record("new")),
    ];
    play(&store, &shared, steps);
    assert_eq!(lines(&store), ["new"]);
    shared.forget_held();
    play(&store, &shared, vec![]);
    assert!(lines(&store).is_empty(), "at the end too");
}

#[test]
fn a_full_queue_stops_nobody_who_has_something_forgotten() {
    let (queue, _jobs) = mpsc::sync_channel(0);
    let saver = Saver {
        queue: Some(queue),
        shared: Arc::default(),
        thread: Mutex::default(),
    };
    saver.forget_held();
    let store = WorkerStore::in_memory(1_000);
    store
        .hold(&Held {
            name: "old".parse().expect("a name"),
            version: record("old").version,
            seen_at: Revision::new(1),
        })
        .expect("held");
    play(&store, &saver.shared, vec![Step::Tick { quiet: true }]);
    assert_eq!(store.held_all().expect("a list"), []);
}

#[test]
fn a_quiet_moment_after_writes_compacts_and_a_busy_one_only_after_a_while() {
    compacts_at_the_last_tick(&[false; 3], true);
    compacts_at_the_last_tick(&[false; BUSY_TICKS as usize - 1], false);
}

/// Nothing is copied at the ticks `before`, and at the `last` one it is.
fn compacts_at_the_last_tick(before: &[bool], last: bool) {
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
    steps.extend(before.iter().map(|&quiet| Step::Tick { quiet }));
    steps.extend([
        Step::Look(&large),
        Step::Tick { quiet: last },
        Step::Look(&small),
    ]);
    play(&store, &Shared::default(), steps);
    let kept = spec(99, 50_000);
    let loaded = store.load(kept.hash(), None).expect("an answer");
    assert_eq!(loaded, crate::store::blobs::Loaded::Found(kept));
}

#[test]
fn the_newest_anchor_is_kept_with_a_tick_and_at_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || {
        let verifier = crate::worker::copy::tests::key().pinned();
        Keeper::open(dir.path(), &verifier).expect("it opens")
    };
    let anchor = |at| KeptAnchor {
        boot: BootId::from_bytes([1; 16]),
        anchor: Anchor {
            at: Time::from_micros(at),
            state: mark(1, 6),
        },
    };
    let store = WorkerStore::in_memory(1_000);
    let (mut keeper, none) = open();
    assert_eq!(none.anchor, None);
    let (queue, jobs) = mpsc::sync_channel(1);
    let saver = Saver {
        queue: Some(queue),
        shared: Arc::default(),
        thread: Mutex::default(),
    };
    let mut wakes = [true, false].into_iter();
    saver.keep_anchor(anchor(1));
    saver.keep_anchor(anchor(2));
    run(&store, &saver.shared, Some(&mut keeper), || {
        match wakes.next() {
            Some(true) => Wake::Tick { quiet: true },
            Some(false) => {
                assert_eq!(open().1.anchor, Some(anchor(2)));
                saver.keep_anchor(anchor(3));
                Wake::Job(Job::Look)
            }
            None => Wake::Ended,
        }
    });
    assert_eq!(open().1.anchor, Some(anchor(3)));
    drop(jobs);
}

#[test]
fn a_clock_ticks_however_many_jobs_come_and_tells_when_none_did() {
    let (queue, jobs) = mpsc::sync_channel(4);
    let mut clock = Clock::new(jobs);
    let past = |clock: &mut Clock| clock.ticked = Instant::now() - FLUSH_EVERY;
    queue.send(Job::Look).expect("room");
    queue.send(Job::Look).expect("room");
    assert!(matches!(clock.wait(), Wake::Job(Job::Look)));
    past(&mut clock);
    assert!(matches!(clock.wait(), Wake::Tick { quiet: false }));
    assert!(matches!(clock.wait(), Wake::Job(Job::Look)));
    past(&mut clock);
    assert!(matches!(clock.wait(), Wake::Tick { quiet: false }));
    past(&mut clock);
    assert!(matches!(clock.wait(), Wake::Tick { quiet: true }));
    drop(queue);
    assert!(matches!(clock.wait(), Wake::Ended));
}

#[test]
fn the_newest_of_what_is_known_of_other_workers_is_written_with_the_tick_and_at_the_end() {
    let store = WorkerStore::in_memory(64 << 20);
    let shared = Shared::default();
    let kept = |store: &WorkerStore| store.members().expect("a store");
    shared.lock().members = Some(b"old".to_vec());
    shared.lock().members = Some(b"new".to_vec());
    let before = |store: &WorkerStore| assert_eq!(kept(store), None);
    let after = |store: &WorkerStore| {
        assert_eq!(kept(store), Some(b"new".to_vec()));
        shared.lock().members = Some(b"last".to_vec());
    };
    let steps = vec![
        Step::Look(&before),
        Step::Tick { quiet: false },
        Step::Look(&after),
    ];
    play(&store, &shared, steps);
    assert_eq!(kept(&store), Some(b"last".to_vec()));
}
