//! Goal: whatever byte of sled's files is wrong, a read gives right bytes, a miss or an error, and
//! once the lost bytes are saved again everything is there. Method: one prepared store, copied
//! and damaged at many places.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use super::*;

const SPECS: u64 = 160;

/// Small ones, several to a page, and some that sled keeps in files of their own.
fn prepared_spec(number: u64) -> Spec {
    match number % 40 {
        0 => spec(number, 300_000),
        rest => spec(number, 200 + rest as usize * 100),
    }
}

fn specs() -> Vec<Spec> {
    (0..SPECS).map(prepared_spec).collect()
}

fn large_budget() -> Options {
    options(1 << 30)
}

fn line(number: u64) -> Held {
    held(&format!("name-{number}"), number)
}

fn prepare(dir: &Path) {
    for part in 0..2 {
        let (store, _) = WorkerStore::open(dir, large_budget()).expect("a store");
        store.raise_high_water(mark(1, 9)).expect("raised");
        for spec in specs().iter().skip(part).step_by(2) {
            store.save(spec).expect("saved");
        }
        for number in (part as u64..60).step_by(2) {
            store.hold(&line(number)).expect("held");
        }
        store.sync().expect("synced");
    }
    // A start writes a snapshot: damage before it is not the torn end of a log.
    let _ = WorkerStore::open(dir, large_budget()).expect("a store");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a listing") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), target).expect("copied");
            }
        }
    }
}

/// sled's files, relative to the store, with their lengths.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for below in ["cache", "cache/blobs"] {
        for name in names(&dir.join(below)) {
            let path = Path::new(below).join(name);
            let metadata = fs::metadata(dir.join(&path)).expect("metadata");
            if metadata.is_file() {
                found.push((path, metadata.len()));
            }
        }
    }
    found
}

#[derive(Debug, Default)]
struct Seen {
    rebuilt: usize,
    missed: usize,
}

/// Where the damage happens: sled notices some of it when it opens, and the rest when it reads.
#[derive(Debug, Clone, Copy)]
enum When {
    Closed,
    Open,
}

/// Opens a damaged store, reads all, saves what was missed, and reads all again.
fn check(dir: &Path, (when, path, at): (When, &Path, u64), seen: &mut Seen) {
    let what = &format!("{} at {at}, {when:?}", path.display());
    if matches!(when, When::Closed) {
        flip(&dir.join(path), at);
    }
    let (store, _) = WorkerStore::open(dir, large_budget()).expect("it starts");
    // A start removes files that it needs no more.
    if matches!(when, When::Open) && dir.join(path).exists() {
        flip(&dir.join(path), at);
    }
    assert_eq!(store.high_water(), Some(mark(1, 9)), "{what}");
    let mut missed = Vec::new();
    for spec in specs() {
        match store.load(spec.hash(), Some(spec.len())) {
            Ok(Loaded::Found(found)) => assert_eq!(found, spec, "{what}"),
            Ok(Loaded::Missing | Loaded::Damaged) | Err(_) => missed.push(spec),
        }
    }
    seen.missed += missed.len();
    for spec in &missed {
        assert!(store.save(spec).expect("saved"), "{what}");
    }
    for number in 0..60 {
        store.hold(&line(number)).expect("held");
    }
    store.flush().expect("flushed");
    store.mend().expect("mended");
    seen.rebuilt += usize::from(store.mending.has_begun());
    let whole = |store: &WorkerStore, what: &str| {
        for spec in specs() {
            assert!(
                has(store, &spec),
                "{what}: {} of {} bytes",
                spec.hash(),
                spec.len()
            );
        }
        assert_eq!(store.held_all().expect("a list").len(), 60, "{what}");
        assert_eq!(store.quarantined().expect("a list"), [], "{what}");
        let total: u64 = specs().iter().map(Spec::len).sum();
        assert_eq!(store.live_bytes(), total, "{what}");
    };
    whole(&store, &format!("{what}, after the saves"));
    let what = &format!(
        "{what}, {} missed, rebuilt: {}",
        missed.len(),
        store.mending.has_begun()
    );
    drop(store);
    let (store, opened) = WorkerStore::open(dir, large_budget()).expect("it starts");
    // sled reads its parameters only when it opens.
    let unread = path.ends_with("conf") && matches!(when, When::Open);
    assert_eq!(opened.set_aside.is_some(), unread, "{what}");
    if unread {
        return;
    }
    // What was in memory while the file was damaged is read from it only now.
    for spec in specs() {
        let found = matches!(when, When::Closed) || has(&store, &spec);
        if !found {
            assert!(store.save(&spec).expect("saved"), "{what}");
        }
    }
    if matches!(when, When::Open) {
        // Lines too: where sled had put them may have been the damaged place.
        for number in 0..60 {
            store.hold(&line(number)).expect("held");
        }
    }
    store.flush().expect("flushed");
    store.mend().expect("mended");
    whole(&store, &format!("{what}, after a restart"));
}

/// Changes one byte in the middle of each file of a large blob.
fn damage_large_ones(dir: &Path) {
    for (path, len) in files(dir) {
        if path.starts_with("cache/blobs") {
            flip(&dir.join(path), len / 2);
        }
    }
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path);
    let file = file.expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x41], at).expect("written");
}

#[test]
fn a_reader_that_meets_damage_waits_for_no_writer_and_the_next_mend_rebuilds() {
    let dir = tempfile::tempdir().expect("a directory");
    prepare(dir.path());
    let (store, _) = WorkerStore::open(dir.path(), large_budget()).expect("it starts");
    // Nothing of it is in memory yet.
    damage_large_ones(dir.path());
    assert_eq!(store.mend().expect("an answer"), None, "nothing was met");
    let damaged = || {
        let mut found = Vec::new();
        for spec in specs() {
            let loaded = store.load(spec.hash(), None).expect("an answer");
            if loaded != Loaded::Found(spec.clone()) {
                found.push(spec);
            }
        }
        found
    };
    let writer = store.writer();
    let first = damaged();
    drop(writer);
    assert!(!first.is_empty());
    assert!(!store.mending.has_begun(), "no reader rebuilds");
    damaged();
    let mended = store.mend().expect("an answer").expect("rebuilt");
    assert_eq!(mended.lost_lines, 0);
    let noted = store.quarantined().expect("a list");
    let noted: BTreeSet<_> = noted.iter().map(|blob| blob.hash).collect();
    assert_eq!(noted, first.iter().map(Spec::hash).collect());
    assert_eq!(store.mend().expect("an answer"), None, "it is whole again");
    for spec in &first {
        assert!(!store.contains(spec.hash()));
    }
}

#[test]
fn damage_anywhere_costs_a_fetch_and_is_healed() {
    let sound = tempfile::tempdir().expect("a directory");
    prepare(sound.path());
    let mut seen = Seen::default();
    for (path, len) in files(sound.path()) {
        let step = match path.ends_with("db") {
            true => len / 30 + 1,
            false => len / 2 + 1,
        };
        for at in (step / 2..len).step_by(step as usize) {
            for when in [When::Closed, When::Open] {
                let dir = tempfile::tempdir().expect("a directory");
                copy_dir(sound.path(), dir.path());
                check(dir.path(), (when, &path, at), &mut seen);
            }
        }
    }
    assert!(seen.rebuilt > 0 && seen.missed > 0, "{seen:?}");
}
