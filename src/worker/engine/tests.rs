//! Goal: a read by hash is answered from the disk without the machine, and never with wrong
//! bytes; and no reader sees a state that a restart would know nothing of. Method: an engine
//! without anyone to ask.

use std::sync::mpsc;

use super::*;
use crate::answer::Snapshot;
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::net::{Congestion, EndpointOptions, Limits, Port, Runtime};
use crate::store::file::sim::SimDisk;
use crate::store::mark::MarkFile;
use crate::trust::{Identity, IdentityOptions, IdentityPaths, issue};

struct Alone {
    engine: Arc<Engine>,
    runtime: Runtime,
}

impl Alone {
    fn with(store: WorkerStore) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        issue::throwaway(dir.path()).expect("throwaway");
        let paths = IdentityPaths::in_dir(&dir.path().join("dev/worker/w1"));
        let identity = Identity::load(paths, IdentityOptions::default()).expect("an identity");
        let runtime = Runtime::start().expect("a runtime");
        let addr = "127.0.0.1:0".parse().expect("an address");
        let port = Port::bind(addr, identity.uri().cluster()).expect("bind");
        let options = EndpointOptions {
            reset_key: [7; 32],
            agent: "test".to_owned(),
            max_spec_len: 1 << 20,
            limits: Limits::default(),
            congestion: Congestion::default(),
        };
        let endpoint =
            Endpoint::start(runtime.handle(), port, identity, options).expect("an endpoint");
        let config = Config {
            coordinators: vec![],
            peers: vec![],
            ..Config::default()
        };
        let engine = Engine::new(&config, Arc::new(store), endpoint, runtime.handle());
        Self {
            engine: engine.expect("an engine"),
            runtime,
        }
    }

    fn get(&self, hash: SpecHash) -> Result<Answer, GetError> {
        let query = Query::strict(Target::Hash(hash));
        let mut results = self
            .runtime
            .handle()
            .block_on(self.engine.get_all(vec![query]));
        results.pop().expect("one answer")
    }
}

/// One that is read in place, and one that is not.
fn specs() -> [Spec; 2] {
    [100, INLINE_LEN as usize + 1].map(|len| Spec::new(vec![b'x'; len].into()))
}

fn store() -> WorkerStore {
    let store = WorkerStore::in_memory(1 << 20);
    for spec in specs() {
        store.save(&spec).expect("saved");
    }
    store
}

#[test]
fn a_read_by_hash_of_what_is_on_disk_needs_no_turn_of_the_machine() {
    let alone = Alone::with(store());
    // Whoever needs the machine now waits.
    let machine = alone.engine.machine();
    let answers = read_all_elsewhere(&alone);
    drop(machine);
    for (spec, answer) in specs().into_iter().zip(answers) {
        let answer = answer.expect("an answer");
        assert_eq!(answer.spec, Some(spec));
        assert_eq!(answer.proof.source, Hop::Disk);
        assert_eq!(answer.proof.mode, Mode::Pinned);
        assert_eq!(answer.failed, []);
    }
}

/// Reads on another thread.
fn read_all_elsewhere(alone: &Alone) -> Vec<Result<Answer, GetError>> {
    let (send, receive) = mpsc::channel();
    let engine = Arc::clone(&alone.engine);
    alone.runtime.handle().spawn(async move {
        let mut answers = Vec::new();
        for spec in specs() {
            let query = Query::strict(Target::Hash(spec.hash()));
            answers.extend(engine.get_all(vec![query]).await);
        }
        let _ = send.send(answers);
    });
    let answers = receive.recv_timeout(Duration::from_secs(20));
    answers.expect("it waits for the machine")
}

#[test]
fn damaged_bytes_are_never_the_answer_to_a_read_by_hash() {
    let store = store();
    for spec in specs() {
        let mut wrong = spec.bytes().to_vec();
        wrong[50] ^= 1;
        store.spoil(spec.hash(), wrong);
    }
    let alone = Alone::with(store);
    for spec in specs() {
        for _ in 0..2 {
            let error = alone.get(spec.hash()).expect_err("nobody has it");
            assert_eq!(error.code(), "no-bytes", "{error}");
        }
        assert!(!alone.engine.store().contains(spec.hash()));
        let noted = alone.engine.store().quarantined().expect("a list");
        assert!(noted.iter().any(|blob| blob.hash == spec.hash()));
        alone.engine.store().save(&spec).expect("saved");
        let healed = alone.get(spec.hash()).expect("an answer");
        assert_eq!(healed.spec, Some(spec));
    }
}

#[test]
fn a_large_body_is_not_read_on_the_thread_that_asks() {
    let alone = Alone::with(store());
    let [small, large] = specs();
    assert!(alone.engine.load_in_place(small.hash()).is_some());
    assert!(alone.engine.load_in_place(large.hash()).is_none());
    // What waits for the disk is in memory, however large it is.
    let waiting = Spec::new(vec![b'y'; 200_000].into());
    alone.engine.saver.save(waiting.clone());
    let found = alone.engine.load_in_place(waiting.hash());
    let written = || alone.engine.store().contains(waiting.hash());
    assert!(found == Some(Local::Found(waiting.clone())) || written());
}

fn mark(rev: u64) -> Mark {
    Mark {
        catalog: CatalogId::from_bytes([1; 16]),
        epoch: Epoch::new(1),
        rev: Revision::new(rev),
    }
}

/// As when the coordinator names its newest state.
fn name(engine: &Arc<Engine>, state: Mark) {
    let (before, sent) = (engine.machine().mark(), clock::now());
    engine.drive(Input::Named {
        state,
        before,
        sent,
    });
}

/// The mark that another process would find now, if this one were killed.
fn after_a_kill(disk: &SimDisk) -> Option<u64> {
    let killed = SimDisk::default();
    killed.put("mark", &disk.content("mark").expect("the file"));
    let file = MarkFile::open(&killed).expect("it opens").expect("a file");
    file.get().map(|mark| mark.rev.get())
}

#[test]
fn a_mark_is_written_before_readers_see_its_state_whatever_else_the_disk_does() {
    let disk = SimDisk::default();
    let alone = Alone::with(WorkerStore::with_mark_on(1 << 20, &disk));
    let engine = &alone.engine;
    // As a copy of the whole store does, or a flush.
    let busy = engine.store().hold_up();
    for rev in 1..5 {
        name(engine, mark(rev));
        assert_eq!(engine.sight.load().floor(), Some(mark(rev)));
        assert_eq!(after_a_kill(&disk), Some(rev));
    }
    drop(busy);
}

#[test]
fn no_reader_is_told_of_a_state_that_the_disk_does_not_take() {
    let disk = SimDisk::default();
    let alone = Alone::with(WorkerStore::with_mark_on(1 << 20, &disk));
    let engine = &alone.engine;
    name(engine, mark(1));
    let answer = |mode| Answer {
        spec: None,
        proof: Proof {
            mode,
            snapshot: Some(Snapshot {
                catalog: mark(2).catalog,
                epoch: mark(2).epoch,
                rev: mark(2).rev,
            }),
            record_rev: None,
            source: Hop::Disk,
            age_us: 0,
        },
        failed: Vec::new(),
        took: Duration::ZERO,
    };
    let current = [Mode::Lease, Mode::Asked, Mode::AtLeast, Mode::Bounded];
    let told = |mode| engine.told(Ok(answer(mode))).is_ok();
    assert!(current.into_iter().all(told));

    disk.power_off_after(disk.ops());
    for rev in [2, 3] {
        name(engine, mark(rev));
        assert!(engine.is_unwritten());
        assert_eq!(engine.sight.load().floor(), None, "nothing to answer from");
        assert!(!current.into_iter().any(told));
        assert!(told(Mode::At) && told(Mode::Pinned), "never out of date");
        assert_eq!(after_a_kill(&disk), Some(1));
    }
    let refused = engine.told(Ok(answer(Mode::Asked))).expect_err("nothing");
    assert_eq!(refused.code(), "disk-failed", "{refused}");

    disk.repair();
    // Whatever happens next, or the look that is taken each second.
    engine.drive(Input::Wake);
    assert_eq!(after_a_kill(&disk), Some(3));
    assert!(!engine.is_unwritten());
    assert_eq!(engine.sight.load().floor(), Some(mark(3)));
    assert!(current.into_iter().all(told));
}
