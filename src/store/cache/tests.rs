//! Goal: the budget holds, damage costs a fetch and never a start, and no crash of a compaction
//! loses the store. Method: real directories, damaged by hand.

use std::fs;

use super::*;
use crate::catalog::{CatalogId, Content, Epoch, HeadHash, Revision, Version};
use crate::store::disk::damage;

mod damaged;

fn spec(number: u64, len: usize) -> Spec {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len, b'x');
    Spec::new(bytes.into())
}

fn options(budget_bytes: u64) -> Options {
    Options {
        budget_bytes,
        ..Options::default()
    }
}

fn open(dir: &Path) -> (WorkerStore, OpenedCache) {
    WorkerStore::open(dir, options(1 << 20)).expect("a store")
}

fn has(store: &WorkerStore, spec: &Spec) -> bool {
    let loaded = store.load(spec.hash(), Some(spec.len()));
    loaded.expect("an answer") == Loaded::Found(spec.clone())
}

fn mark(epoch: u64, rev: u64) -> HighWater {
    HighWater {
        catalog: CatalogId::from_bytes([4; 16]),
        epoch: Epoch::new(epoch),
        rev: Revision::new(rev),
        head: HeadHash::from_bytes([3; 32]),
    }
}

fn held(name: &str, rev: u64) -> Held {
    Held {
        name: name.parse().expect("a name"),
        version: Version {
            rev: Revision::new(rev),
            content: Content::Deleted,
        },
        seen_at: Revision::new(rev + 5),
    }
}

#[test]
fn the_least_recently_used_blobs_go_when_the_budget_is_full() {
    let dir = tempfile::tempdir().expect("a directory");
    let on_disk = WorkerStore::open(dir.path(), options(300))
        .expect("a store")
        .0;
    for store in [on_disk, WorkerStore::in_memory(300)] {
        let [a, b, c, d] = [1, 2, 3, 4].map(|number| spec(number, 100));
        for spec in [&a, &b, &c] {
            assert!(store.save(spec).expect("saved"));
        }
        assert!(has(&store, &a), "used now");
        assert!(store.save(&d).expect("saved"));
        assert!(!has(&store, &b), "not used for longest");
        assert!(has(&store, &a) && has(&store, &c) && has(&store, &d));
        assert_eq!(store.live_bytes(), 300);

        assert!(store.save(&d).expect("saved"), "again");
        assert_eq!(store.live_bytes(), 300);
        let large = spec(5, 301);
        assert!(!store.save(&large).expect("an answer"), "larger than all");
        assert!(has(&store, &a), "nothing was evicted for it");
        assert!(store.save(&spec(6, 250)).expect("saved"));
        assert_eq!(store.live_bytes(), 250);
    }
}

#[test]
fn blobs_uses_names_and_marks_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b, c] = [1, 2, 3].map(|number| spec(number, 100));
    {
        let (store, opened) = open(dir.path());
        assert_eq!(opened.blobs, 0);
        for spec in [&a, &b] {
            store.save(spec).expect("saved");
        }
        store.touch(a.hash());
        store.raise_high_water(mark(1, 2)).expect("raised");
        assert_eq!(store.reset_key([5; 32]).expect("a key"), [5; 32]);
        store.hold(&held("b", 1)).expect("held");
        store.hold(&held("a", 2)).expect("held");
        store.sync().expect("synced");
    }
    let (store, opened) = WorkerStore::open(dir.path(), options(200)).expect("a store");
    assert_eq!((opened.blobs, opened.live_bytes), (2, 200));
    assert_eq!(opened.set_aside, None);
    assert_eq!(store.high_water(), Some(mark(1, 2)));
    assert_eq!(store.reset_key([6; 32]).expect("a key"), [5; 32]);
    let all = store.held_all().expect("a list");
    assert_eq!(all, [held("a", 2), held("b", 1)]);
    store.save(&c).expect("saved");
    assert!(has(&store, &a), "its use was written");
    assert!(!has(&store, &b));
}

#[test]
fn a_later_sight_of_the_same_version_replaces_the_line() {
    let store = WorkerStore::in_memory(100);
    store.hold(&held("a", 1)).expect("held");
    let later = Held {
        seen_at: Revision::new(99),
        ..held("a", 1)
    };
    store.hold(&later).expect("held");
    assert_eq!(store.held_all().expect("a list"), [later]);
}

#[test]
fn a_damaged_blob_is_a_miss_once_and_frees_its_budget() {
    let store = WorkerStore::in_memory(1_000);
    let spec = spec(1, 100);
    store.save(&spec).expect("saved");
    let mut batch = Batch::new();
    batch.put(Tree::Blobs, spec.hash().as_bytes(), b"wrong".to_vec());
    store.store().apply(&batch).expect("applied");
    let loaded = store.load(spec.hash(), None).expect("an answer");
    assert_eq!(loaded, Loaded::Damaged);
    assert!(!store.contains(spec.hash()));
    assert_eq!(store.quarantined().expect("a list").len(), 1);
    store.write_uses().expect("written");
    assert_eq!(store.quarantined().expect("a list").len(), 1);
    assert_eq!(store.live_bytes(), 0);
    let loaded = store.load(spec.hash(), None).expect("an answer");
    assert_eq!(loaded, Loaded::Missing);
    store.save(&spec).expect("saved");
    assert!(has(&store, &spec));
    assert!(store.quarantined().expect("a list").is_empty());
}

#[test]
fn a_blob_whose_value_is_lost_frees_its_budget() {
    let store = WorkerStore::in_memory(1_000);
    let spec = spec(1, 100);
    store.save(&spec).expect("saved");
    let other_len = store.load(spec.hash(), Some(7)).expect("an answer");
    assert_eq!(other_len, Loaded::Missing);
    assert!(
        store.contains(spec.hash()),
        "it is there, of another length"
    );
    blobs::remove(&**store.store(), spec.hash()).expect("removed");
    let loaded = store.load(spec.hash(), None).expect("an answer");
    assert_eq!(loaded, Loaded::Missing);
    assert!(!store.contains(spec.hash()));
    store.write_uses().expect("written");
    assert_eq!(store.live_bytes(), 0);
}

#[test]
fn a_blob_that_is_saved_after_a_reader_met_its_damage_stays() {
    let store = WorkerStore::in_memory(1_000);
    let [early, late] = [1, 2].map(|number| spec(number, 100));
    for spec in [&early, &late] {
        store.save(spec).expect("saved");
        blobs::remove(&**store.store(), spec.hash()).expect("removed");
        store.load(spec.hash(), None).expect("an answer");
    }
    store.save(&early).expect("saved");
    // As if the reader had taken note only after the blob was back.
    blobs::save(&**store.store(), &late).expect("saved");
    store.write_uses().expect("written");
    for spec in [&early, &late] {
        assert!(has(&store, spec) && store.contains(spec.hash()));
    }
    assert_eq!(store.live_bytes(), 200);
}

#[test]
fn a_read_waits_for_no_change_whatever_it_finds() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    let [sound, wrong, gone] = [1, 2, 3].map(|number| spec(number, 100));
    for spec in [&sound, &wrong, &gone] {
        store.save(spec).expect("saved");
    }
    let mut batch = Batch::new();
    batch.put(Tree::Blobs, wrong.hash().as_bytes(), vec![7; 100]);
    batch.remove(Tree::Blobs, gone.hash().as_bytes());
    store.store().apply(&batch).expect("applied");
    // As a copy holds it from its first to its last byte.
    let writer = store.writer();
    let load = |spec: &Spec| store.load(spec.hash(), None).expect("an answer");
    assert_eq!(load(&sound), Loaded::Found(sound.clone()));
    assert_eq!(load(&wrong), Loaded::Damaged);
    assert_eq!(load(&gone), Loaded::Missing);
    let noted = store.store().scan(Tree::Quarantine, &[], 10);
    assert_eq!(noted.expect("a list"), [], "nothing is written in a read");
    drop(writer);
    store.write_uses().expect("written");
    assert_eq!(store.live_bytes(), 100);
    assert_eq!(store.quarantined().expect("a list").len(), 1);
}

#[test]
fn the_order_of_uses_holds_over_more_than_one_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b, c] = [1, 2, 3].map(|number| spec(number, 100));
    {
        let (store, _) = open(dir.path());
        for spec in [&a, &b, &c] {
            store.save(spec).expect("saved");
        }
        for _ in 0..10 {
            store.touch(b.hash());
            store.touch(c.hash());
        }
        store.sync().expect("synced");
    }
    {
        let (store, _) = open(dir.path());
        // The last use of all, in a life that began with large numbers on disk.
        store.touch(a.hash());
        store.sync().expect("synced");
    }
    let (store, _) = WorkerStore::open(dir.path(), options(300)).expect("a store");
    store.save(&spec(4, 100)).expect("saved");
    assert!(!store.contains(b.hash()), "not used for longest");
    assert!(store.contains(a.hash()) && store.contains(c.hash()));
}

#[test]
fn a_number_of_uses_that_cannot_be_is_damage_and_overflows_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let (store, _) = open(dir.path());
        store.save(&spec(1, 10)).expect("saved");
        let mut batch = Batch::new();
        put_used(&mut batch, spec(1, 10).hash(), u64::MAX, 10);
        store.store().apply(&batch).expect("applied");
    }
    let (store, opened) = open(dir.path());
    assert!(opened.set_aside.is_some());
    assert!(store.save(&spec(1, 10)).expect("saved"));
}

#[test]
fn a_cache_whose_disk_refused_a_write_is_made_anew_by_the_next_change() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    let [early, late] = [1, 2].map(|number| spec(number, 100));
    store.save(&early).expect("saved");
    store.hold(&held("a", 1)).expect("held");
    let failing = SledStore::open(&dir.path().join("failing"), 1 << 20).expect("a store");
    {
        // What was written so far, in a store whose next write fails.
        let mut batch = Batch::new();
        blobs::put(&mut batch, &early);
        held("a", 1).put(&mut batch);
        failing.apply(&batch).expect("applied");
        Meta::of(&failing).prepare(Role::Worker).expect("prepared");
        failing.fail_as_if_full();
        *store.store.write().expect("the lock") = Box::new(failing);
    }
    assert!(store.save(&late).expect("saved"), "in the new one");
    assert!(store.mending.has_begun());
    assert!(has(&store, &early) && has(&store, &late));
    store.sync().expect("synced");
    drop(store);
    let (store, opened) = open(dir.path());
    assert_eq!((opened.blobs, opened.set_aside), (2, None));
    assert!(has(&store, &early) && has(&store, &late));
}

#[test]
fn a_store_that_does_not_open_is_set_aside_and_the_worker_starts_empty() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let (store, _) = open(dir.path());
        for number in 0..200 {
            store.save(&spec(number, 4_000)).expect("saved");
        }
        store.raise_high_water(mark(1, 7)).expect("raised");
        store.sync().expect("synced");
    }
    damage(&dir.path().join("cache"));
    let (store, opened) = open(dir.path());
    let aside = opened.set_aside.expect("it is set aside");
    assert!(aside.join("db").exists());
    assert_eq!((opened.blobs, opened.lost_blobs), (0, 200));
    assert_eq!(store.high_water(), Some(mark(1, 7)), "it outlives sled");
    assert!(store.save(&spec(1, 10)).expect("saved"));
    assert!(has(&store, &spec(1, 10)));
}

#[test]
fn a_store_that_opens_and_shows_its_damage_only_then_is_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let (store, _) = open(dir.path());
        store.save(&spec(1, 10)).expect("saved");
        let mut batch = Batch::new();
        batch.put(Tree::Used, b"not a hash", b"nonsense".to_vec());
        store.store().apply(&batch).expect("applied");
    }
    let (store, opened) = open(dir.path());
    assert!(opened.set_aside.is_some_and(|path| path.exists()));
    assert_eq!(opened.blobs, 0);
    assert!(!has(&store, &spec(1, 10)));
}

#[test]
fn a_start_tells_how_many_blobs_are_gone_that_were_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let (store, opened) = open(dir.path());
        assert_eq!(opened.lost_blobs, 0, "a new one");
        for number in 0..5 {
            store.save(&spec(number, 100)).expect("saved");
        }
        store.flush().expect("flushed");
        // As sled leaves out the end of a damaged log.
        let mut batch = Batch::new();
        for number in 2..5 {
            remove_blob(&mut batch, spec(number, 100).hash());
        }
        store.store().apply(&batch).expect("applied");
    }
    let (store, opened) = open(dir.path());
    assert_eq!((opened.blobs, opened.lost_blobs), (2, 3));
    store.flush().expect("flushed");
    drop(store);
    assert_eq!(open(dir.path()).1.lost_blobs, 0, "told once");
    fs::write(dir.path().join("count"), "1000").expect("cut short");
    assert_eq!(open(dir.path()).1.lost_blobs, 0);
}

#[test]
fn a_second_worker_and_a_coordinators_directory_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path());
    let second = WorkerStore::open(dir.path(), Options::default());
    assert!(matches!(
        second,
        Err(CacheError::Lock(LockError::Held { .. }))
    ));
    drop(first);
    fs::write(dir.path().join(journal::FILE), b"").expect("written");
    let error = WorkerStore::open(dir.path(), Options::default()).expect_err("another role");
    assert!(matches!(
        error,
        CacheError::Lock(LockError::OtherRole { .. })
    ));
}

#[test]
fn a_newer_format_is_refused_and_not_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let (store, _) = open(dir.path());
        let mut batch = Batch::new();
        batch.put(Tree::Meta, "format", 9_u32.to_be_bytes().to_vec());
        store.store().apply(&batch).expect("applied");
        store.sync().expect("synced");
    }
    let error = WorkerStore::open(dir.path(), Options::default()).expect_err("a newer format");
    assert!(matches!(
        error,
        CacheError::Store(MetaError::NewerFormat { found: 9, known: 2 })
    ));
    assert_eq!(names(dir.path()), ["cache", "count", "lock", "mark"]);
}

#[test]
fn a_cache_without_its_mark_is_refused_and_so_is_one_with_a_damaged_mark() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("mark");
    let (store, _) = open(dir.path());
    store.raise_high_water(mark(1, 7)).expect("raised");
    drop(store);
    fs::write(&path, [7; 5_000]).expect("written");
    let refused = |kind: fn(&MarkError) -> bool| {
        let error = WorkerStore::open(dir.path(), Options::default()).expect_err("no mark");
        assert!(
            matches!(&error, CacheError::Mark(error) if kind(error)),
            "{error}"
        );
    };
    // And again: nothing that the first start did lets the second one through.
    for _ in 0..2 {
        refused(|error| matches!(error, MarkError::Damaged));
    }
    fs::remove_file(&path).expect("removed");
    damage(&dir.path().join("cache"));
    for _ in 0..2 {
        refused(|error| matches!(error, MarkError::Gone));
    }
    fs::remove_dir_all(dir.path().join("cache")).expect("removed");
    let (store, _) = open(dir.path());
    assert_eq!(store.high_water(), None, "a new worker");
}

#[test]
fn lines_of_an_old_epoch_never_meet_the_mark_of_a_new_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let lines = |store: &WorkerStore| store.held_all().expect("a list");
    let (store, _) = open(dir.path());
    store.raise_high_water(mark(1, 7)).expect("raised");
    store.hold(&held("a", 1)).expect("held");
    store.raise_high_water(mark(1, 8)).expect("raised");
    assert_eq!(lines(&store), [held("a", 1)], "the same epoch");
    store.raise_high_water(mark(2, 3)).expect("raised");
    assert_eq!(lines(&store), []);
    store.hold(&held("b", 1)).expect("held");
    drop(store);
    let (store, _) = open(dir.path());
    assert_eq!(lines(&store), [held("b", 1)]);
    // As if the process had ended when only the mark of the next epoch was written.
    store.mark().raise(mark(3, 1)).expect("raised");
    drop(store);
    let (store, _) = open(dir.path());
    assert_eq!(lines(&store), []);
    store.hold(&held("c", 1)).expect("held");
    drop(store);
    let (store, _) = open(dir.path());
    assert_eq!(lines(&store), [held("c", 1)]);
    assert_eq!(store.high_water(), Some(mark(3, 1)));
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a listing");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_compaction_keeps_everything_and_shrinks_the_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let kept = spec(7, 50_000);
    {
        let (store, _) = WorkerStore::open(dir.path(), options(200_000)).expect("a store");
        for number in 100..300 {
            store.save(&spec(number, 50_000)).expect("saved");
        }
        store.save(&kept).expect("saved");
        store.raise_high_water(mark(1, 1)).expect("raised");
        store.hold(&held("a", 1)).expect("held");
        assert_eq!(store.reset_key([5; 32]).expect("a key"), [5; 32]);
        assert_eq!(store.compact().expect("an answer"), None, "not worth it");
        let home = store.home.as_ref().expect("it is on disk");
        let writer = store.writer();
        let done = store.copy_and_swap(home).expect("compacted");
        drop(writer);
        assert!(done.bytes_after < done.bytes_before, "{done:?}");
        assert_eq!((done.lost_blobs, done.lost_lines), (0, 0));
        assert!(has(&store, &kept));
        assert!(store.save(&spec(8, 100)).expect("saved"), "it goes on");
        store.sync().expect("synced");
    }
    assert_eq!(names(dir.path()), ["cache.1", "count", "lock", "mark"]);
    let (store, opened) = open(dir.path());
    assert_eq!(names(dir.path()), ["cache.1", "count", "lock", "mark"]);
    assert!(has(&store, &kept) && has(&store, &spec(8, 100)));
    assert_eq!(opened.blobs, 4, "three large ones fit beside a small one");
    assert_eq!(store.reset_key([6; 32]).expect("a key"), [5; 32]);
    assert_eq!(store.held_all().expect("a list"), [held("a", 1)]);
}

#[test]
fn a_copy_leaves_wrong_bytes_behind_and_names_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    let [sound, wrong] = [1, 2].map(|number| spec(number, 100));
    for spec in [&sound, &wrong] {
        store.save(spec).expect("saved");
    }
    let mut batch = Batch::new();
    batch.put(Tree::Blobs, wrong.hash().as_bytes(), vec![7; 100]);
    store.store().apply(&batch).expect("applied");
    let home = store.home.as_ref().expect("it is on disk");
    let writer = store.writer();
    let done = store.copy_and_swap(home).expect("copied");
    drop(writer);
    assert_eq!((done.lost_blobs, done.lost_lines), (1, 0));
    assert!(has(&store, &sound) && !store.contains(wrong.hash()));
    assert_eq!(store.live_bytes(), 100);
    let noted = store.quarantined().expect("a list");
    assert_eq!(
        noted.iter().map(|blob| blob.hash).collect::<Vec<_>>(),
        [wrong.hash()]
    );
}

#[test]
fn what_a_crash_left_of_a_compaction_is_sorted_out() {
    let kept = spec(1, 100);
    let prepare = || {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = open(dir.path());
        store.save(&kept).expect("saved");
        store.sync().expect("synced");
        dir
    };
    let path = |dir: &tempfile::TempDir, name: &str| dir.path().join(name);

    let copying = prepare();
    fs::create_dir(path(&copying, "cache.new")).expect("made");
    fs::write(path(&copying, "cache.new/db"), b"half").expect("written");

    // Before the old one was removed, while it was, and while another copy was in progress.
    let [whole, partly, again] = [(); 3].map(|()| {
        let dir = prepare();
        fs::rename(path(&dir, "cache"), path(&dir, "cache.10")).expect("renamed");
        dir
    });
    for below in ["cache", "cache.9"] {
        drop(SledStore::open(&path(&whole, below), 1 << 20).expect("a store"));
    }
    fs::create_dir(path(&partly, "cache")).expect("made");
    fs::write(path(&partly, "cache/conf"), b"half").expect("written");
    fs::create_dir(path(&again, "cache.new")).expect("made");

    for (dir, name) in [
        (copying, "cache"),
        (whole, "cache.10"),
        (partly, "cache.10"),
        (again, "cache.10"),
    ] {
        let (store, _) = open(dir.path());
        assert!(has(&store, &kept));
        assert_eq!(names(dir.path()), [name, "count", "lock", "mark"]);
    }
}
