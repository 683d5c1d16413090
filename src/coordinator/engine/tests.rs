//! The engine over a real store whose storage thread is the test's to hold or to end.

use std::path::Path;
use std::sync::mpsc::Receiver;

use super::super::writer;
use super::*;
use crate::catalog::{CatalogId, HeadKey};
use crate::proto::coordinator::{Ledger, Options};
use crate::spec::MAX_SPEC_LEN;
use crate::store::vault::{DEFAULT_CACHE_BYTES, Vault};

/// An engine whose jobs nobody does, and the bodies `ten`, `six` and `long` in its store.
pub(in crate::coordinator) fn engine(dir: &Path) -> (Arc<Engine>, Receiver<Job>) {
    let (mut vault, _) = Vault::open(dir, DEFAULT_CACHE_BYTES, |_| {}).expect("a store");
    let key = HeadKey::from_bytes([1; 32]);
    let genesis = Coordinator::genesis(CatalogId::from_bytes([2; 16]), &key);
    vault.append(&genesis).expect("written");
    for body in [ten(), six(), long()] {
        vault.append_body(&body).expect("written");
    }
    let ledger = Ledger::begin(&genesis).and_then(Ledger::finish);
    let machine = Coordinator::new(
        ledger.expect("replayed"),
        Arc::new(key),
        Options {
            max_spec_len: MAX_SPEC_LEN,
            ..Options::default()
        },
        0,
        clock::now(),
    );
    let (jobs, queue) = writer::queue();
    let handle = Handle::current();
    let engine = Engine::new(machine, (&vault, dir), jobs, &handle);
    (engine, queue)
}

pub(in crate::coordinator) fn ten() -> Spec {
    Spec::new("ten: bytes".into())
}

fn six() -> Spec {
    Spec::new("six: 6".into())
}

/// Longer than what is read where it is asked for.
pub(in crate::coordinator) fn long() -> Spec {
    Spec::new(vec![b'x'; INLINE_LEN as usize + 1].into())
}

/// Changes as (name, hash, length).
pub(in crate::coordinator) fn publish(changes: &[(&str, SpecHash, u64)]) -> Publish {
    let change = |&(name, hash, len): &(&str, SpecHash, u64)| PublishName {
        name: name.parse().expect("a name"),
        hash: Some(hash),
        len,
        expect: None,
    };
    Publish {
        key: None,
        note: String::new(),
        changes: changes.iter().map(change).collect(),
    }
}

async fn refusal(engine: &Arc<Engine>, changes: &[(&str, SpecHash, u64)]) -> Code {
    let result = engine.publish("test".into(), publish(changes)).await;
    result.expect_err("refused").code
}

#[tokio::test]
async fn a_publish_is_held_against_the_bytes_that_are_here() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, queue) = engine(dir.path());
    let (ten, six, none) = (ten().hash(), six().hash(), SpecHash::of(b"none"));
    for (what, changes, code) in [
        (
            "lengths that overflow",
            &[("a", ten, u64::MAX), ("b", ten, u64::MAX)][..],
            Code::Invalid,
        ),
        ("no length", &[("a", ten, 0)], Code::Invalid),
        ("another length", &[("a", ten, 6)], Code::Invalid),
        (
            "two lengths of one hash",
            &[("a", six, 6), ("b", ten, 10), ("c", ten, 9)],
            Code::Invalid,
        ),
        (
            "bytes that are not here",
            &[("a", ten, 10), ("b", none, 4)],
            Code::MissingBody,
        ),
        (
            "a name twice, whatever the bytes",
            &[("a", none, 4), ("a", none, 4)],
            Code::Invalid,
        ),
    ] {
        assert_eq!(refusal(&engine, changes).await, code, "{what}");
    }
    assert!(queue.try_recv().is_err(), "nothing is written");
}

#[tokio::test]
async fn more_hashes_than_a_publish_may_name_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, _queue) = engine(dir.path());
    let mut hashes = vec![ten().hash(); MAX_HASHES_PER_HAVE];
    hashes[7] = SpecHash::of(b"none");
    let missing = engine.missing(hashes.clone()).await;
    assert_eq!(missing, Ok(vec![SpecHash::of(b"none")]));
    hashes.push(ten().hash());
    let refusal = engine.missing(hashes).await.expect_err("one too many");
    assert_eq!(refusal.code, Code::TooLarge);
}

#[tokio::test]
async fn without_its_storage_thread_the_coordinator_says_so_and_hangs_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, queue) = engine(dir.path());
    drop(queue);
    assert_eq!(engine.standing().lost, None);
    let staged = engine.stage(Spec::new("new: body".into())).await;
    assert_eq!(staged.expect_err("nobody writes").code, Code::Disk);
    assert_eq!(engine.standing().lost.as_deref(), Some(STORAGE_GONE));
    let changes = [("a", ten().hash(), 10)];
    assert_eq!(refusal(&engine, &changes).await, Code::Disk);
}

#[tokio::test]
async fn a_publish_fails_when_its_write_cannot_be_handed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, queue) = engine(dir.path());
    drop(queue);
    let changes = [("a", ten().hash(), 10)];
    assert_eq!(refusal(&engine, &changes).await, Code::Disk);
    assert_eq!(engine.standing().lost.as_deref(), Some(STORAGE_GONE));
}

#[tokio::test]
async fn a_publish_fails_when_the_storage_thread_ends_before_its_write_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, queue) = engine(dir.path());
    let reporter = Reporter::of(&engine);
    let thread = std::thread::spawn(move || {
        let _reporter = reporter;
        queue.recv().expect("the write");
        panic!("on purpose");
    });
    let changes = [("a", ten().hash(), 10)];
    assert_eq!(refusal(&engine, &changes).await, Code::Disk);
    assert!(thread.join().is_err());
}

#[tokio::test]
async fn who_asks_how_it_stands_does_not_wait_for_the_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, _queue) = engine(dir.path());
    let changes = [("a", ten().hash(), 10)];
    let waiting = engine.begin("test".into(), publish(&changes)).await;
    let _waiting = waiting.expect("taken");
    let second = {
        let machine = engine.machine();
        assert_eq!(engine.standing().pending, machine.pending());
        assert!(engine.standing().pending > 0);
        // One more publish would wait; its asker's thread does not.
        let mut second = Box::pin(engine.begin("test".into(), publish(&changes)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(second.as_mut().poll(&mut context).is_pending());
        second
    };
    second.await.expect("taken");
}

#[test]
fn a_short_body_is_read_without_a_thread_of_its_own_also_where_only_its_hash_is_known() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    let (free, held) = std::sync::mpsc::channel::<()>();
    // The only thread that could read does something else.
    runtime.spawn_blocking(move || held.recv());
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a directory");
        let (engine, _queue) = engine(dir.path());
        let read = |hash, len| {
            let mut read = Box::pin(engine.body(hash, len));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            read.as_mut().poll(&mut context)
        };
        use std::task::Poll::Ready;
        assert_eq!(read(ten().hash(), None), Ready(Ok(Some(ten()))));
        assert_eq!(read(ten().hash(), Some(10)), Ready(Ok(Some(ten()))));
        assert_eq!(read(SpecHash::of(b"none"), None), Ready(Ok(None)));
        assert!(read(long().hash(), None).is_pending());
        assert!(read(long().hash(), Some(long().len())).is_pending());
        drop(free);
        let read = engine.body(long().hash(), None).await;
        assert_eq!(read, Ok(Some(long())));
    });
}
