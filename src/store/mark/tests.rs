//! Goal: the mark never falls behind what was synced, whatever is cut or flipped, and without it
//! nothing starts. Method: a simulated disk, cut at every operation and crashed with many seeds.

use proptest::prelude::*;

use super::*;
use crate::spec::hash::hex;
use crate::store::file::RealDisk;
use crate::store::file::sim::{Op, SimDisk};

fn mark(epoch: u64, rev: u64) -> HighWater {
    HighWater {
        catalog: CatalogId::from_bytes([7; 16]),
        epoch: Epoch::new(epoch),
        rev: Revision::new(rev),
        head: HeadHash::from_bytes([rev as u8; 32]),
    }
}

fn open(disk: &SimDisk) -> MarkFile<SimDisk> {
    let opened = MarkFile::open(disk).expect("a file that opens");
    opened.expect("there is one")
}

/// A durable file with this mark.
fn with_mark(rev: u64) -> SimDisk {
    let disk = SimDisk::default();
    let mut file = MarkFile::create(&disk).expect("made");
    file.raise(mark(1, rev)).expect("raised");
    file.sync().expect("synced");
    disk
}

/// What a script had reached when it ended or the power went.
#[derive(Default)]
struct Progress {
    made: bool,
    tried: u64,
    raised: u64,
    synced: u64,
}

fn run_script(disk: &SimDisk, progress: &mut Progress) -> Option<()> {
    let mut file = MarkFile::create(disk).ok()?;
    progress.made = true;
    for rev in 1..=9 {
        progress.tried = rev;
        file.raise(mark(1, rev)).ok()?;
        progress.raised = rev;
        if rev % 3 == 0 {
            file.sync().ok()?;
            progress.synced = rev;
        }
        if rev == 5 {
            // A restart while one copy is newer than the other.
            file = MarkFile::open(disk).ok()?.expect("it is there");
            progress.synced = rev;
        }
    }
    Some(())
}

fn rev_of(found: Option<HighWater>) -> u64 {
    found.map_or(0, |mark| mark.rev.get())
}

#[test]
fn a_cut_at_any_operation_keeps_what_was_synced() {
    let whole = SimDisk::default();
    run_script(&whole, &mut Progress::default()).expect("no fault");
    for cut in 0..=whole.ops() {
        let disk = SimDisk::default();
        disk.power_off_after(cut);
        let mut progress = Progress::default();
        let _ = run_script(&disk, &mut progress);
        for seed in 0..100 {
            let crashed = disk.crash(seed);
            let found = MarkFile::open(&crashed).expect("a whole copy");
            let Some(found) = found else {
                assert!(!progress.made, "cut {cut}, seed {seed}: the file is gone");
                continue;
            };
            let rev = rev_of(found.get());
            let possible = progress.synced..=progress.tried;
            assert!(possible.contains(&rev), "cut {cut}, seed {seed}: {rev}");
            let again = rev_of(open(&crashed.crash(seed)).get());
            assert_eq!(again, rev, "what was found is durable");
        }
    }
}

#[test]
fn a_killed_process_loses_no_mark() {
    let disk = SimDisk::default();
    let mut file = MarkFile::create(&disk).expect("made");
    for rev in 1..6 {
        file.raise(mark(1, rev)).expect("raised");
        assert_eq!(open(&disk).get(), Some(mark(1, rev)));
        // That start has synced both copies; this process knows nothing of it and goes on.
    }
}

#[test]
fn damage_to_any_copy_loses_nothing_that_was_synced_and_is_repaired() {
    let disk = with_mark(5);
    let content = disk.content(FILE).expect("the file");
    for bit in 0..content.len() * 8 {
        let mut flipped = content.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let damaged = SimDisk::default();
        damaged.put(FILE, &flipped);
        assert_eq!(open(&damaged).get(), Some(mark(1, 5)), "bit {bit}");
        let repaired = damaged.crash(1).content(FILE).expect("the file");
        let copies = COPY_AT.map(|at| repaired[at as usize..][..COPY_LEN].to_vec());
        assert!(copies.iter().all(|copy| *copy == copies[0]), "bit {bit}");
    }
    for len in COPY_LEN..content.len() {
        let cut = SimDisk::default();
        cut.put(FILE, &content[..len]);
        assert_eq!(open(&cut).get(), Some(mark(1, 5)), "cut to {len}");
    }
}

#[test]
fn a_file_without_a_whole_copy_is_refused_and_left_alone() {
    let mut content = with_mark(5).content(FILE).expect("the file");
    for at in COPY_AT {
        content[at as usize + 30] ^= 1;
    }
    for content in [&content[..], &content[..50], &[]] {
        let disk = SimDisk::default();
        disk.put(FILE, content);
        let error = MarkFile::open(&disk).expect_err("no whole copy");
        assert!(matches!(error, MarkError::Damaged), "{error}");
        assert_eq!(disk.content(FILE).as_deref(), Some(content));
    }
}

#[test]
fn a_mark_goes_back_only_with_another_catalog() {
    let disk = SimDisk::default();
    assert!(MarkFile::open(&disk).expect("an answer").is_none());
    let mut file = MarkFile::create(&disk).expect("made");
    assert_eq!(file.get(), None);
    let elsewhere = HighWater {
        catalog: CatalogId::from_bytes([8; 16]),
        ..mark(1, 1)
    };
    let steps = [
        (mark(1, 5), mark(1, 5)),
        (mark(1, 4), mark(1, 5)),
        (mark(1, 6), mark(1, 6)),
        (mark(2, 1), mark(2, 1)),
        (mark(1, 9), mark(2, 1)),
        (elsewhere, elsewhere),
    ];
    for (raised, expected) in steps {
        file.raise(raised).expect("an answer");
        assert_eq!(file.get(), Some(expected));
        file.sync().expect("synced");
        assert_eq!(open(&disk).get(), Some(expected));
    }
}

#[test]
fn a_failed_write_or_sync_keeps_the_old_mark_and_the_next_sync_helps() {
    for op in [Op::Write, Op::SyncData] {
        let disk = with_mark(5);
        let mut file = open(&disk);
        disk.fail_next(op);
        let failed = file.raise(mark(1, 6)).and_then(|()| file.sync());
        assert!(failed.is_err(), "{op:?}");
        for seed in 0..50 {
            let rev = rev_of(open(&disk.crash(seed)).get());
            assert!((5..=6).contains(&rev), "{op:?}, seed {seed}: {rev}");
        }
        file.sync().expect("synced");
        for seed in 0..50 {
            assert_eq!(open(&disk.crash(seed)).get(), Some(mark(1, 6)), "{op:?}");
        }
    }
}

#[test]
fn what_a_failed_sync_left_in_the_cache_is_durable_after_a_restart() {
    // The first sync makes the mark durable, the others its other copies.
    for synced in 0..COPIES {
        let failed = || {
            let disk = with_mark(5);
            let mut file = open(&disk);
            file.raise(mark(1, 6)).expect("raised");
            for _ in 0..synced {
                let wait = file.begin_sync().expect("written").expect("behind");
                wait.wait().expect("synced");
                file.end_sync(&wait, true);
            }
            let wait = file.begin_sync().expect("written").expect("behind");
            disk.fail_next(Op::SyncData);
            assert!(wait.wait().is_err());
            disk
        };
        let whole = failed();
        let before = whole.ops();
        open(&whole);
        for cut in before..=whole.ops() {
            let disk = failed();
            disk.power_off_after(cut);
            let opened = MarkFile::open(&disk);
            for seed in 0..50 {
                let rev = rev_of(open(&disk.crash(seed)).get());
                let least = if opened.is_ok() || synced > 0 { 6 } else { 5 };
                assert!((least..=6).contains(&rev), "{synced}, {cut}, {seed}: {rev}");
            }
        }
        for at in COPY_AT {
            let mut damaged = whole.crash(1).content(FILE).expect("the file");
            damaged[at as usize + 30] ^= 1;
            whole.put(FILE, &damaged);
            assert_eq!(open(&whole).get(), Some(mark(1, 6)), "in every copy");
        }
    }
}

/// What another process would find now, if this one were killed.
fn after_a_kill(disk: &SimDisk) -> u64 {
    let killed = SimDisk::default();
    killed.put(FILE, &disk.content(FILE).expect("the file"));
    rev_of(open(&killed).get())
}

#[test]
fn marks_that_are_raised_while_a_sync_waits_survive_a_kill_at_once_and_cost_the_sync_nothing() {
    let disk = with_mark(5);
    let mut file = open(&disk);
    let mut rev = 5;
    let mut durable = 5;
    for round in 0..20 {
        rev += 1;
        file.raise(mark(1, rev)).expect("raised");
        let wait = file.begin_sync().expect("written").expect("behind");
        let begun = rev;
        for _ in 0..round % 5 {
            rev += 1;
            file.raise(mark(1, rev)).expect("raised");
            assert_eq!(after_a_kill(&disk), rev);
        }
        for seed in 0..50 {
            let left = rev_of(open(&disk.crash(seed)).get());
            assert!((durable..=rev).contains(&left), "{round}, {seed}: {left}");
        }
        wait.wait().expect("synced");
        // What is written now may be torn by a power cut, and what was synced is not.
        for _ in 0..round % 3 {
            rev += 1;
            file.raise(mark(1, rev)).expect("raised");
            assert_eq!(after_a_kill(&disk), rev);
        }
        file.end_sync(&wait, true);
        durable = begun;
        for seed in 0..50 {
            let left = rev_of(open(&disk.crash(seed)).get());
            assert!((durable..=rev).contains(&left), "{round}, {seed}: {left}");
        }
    }
    file.sync().expect("synced");
    for seed in 0..50 {
        assert_eq!(rev_of(open(&disk.crash(seed)).get()), rev);
    }
}

#[test]
fn a_write_that_fails_costs_no_mark_that_was_written_before() {
    for raised in 0..4 {
        for waits in [false, true] {
            let disk = with_mark(5);
            let mut file = open(&disk);
            file.raise(mark(1, 6)).expect("raised");
            let wait = waits.then(|| file.begin_sync().expect("written").expect("behind"));
            for rev in 0..raised {
                file.raise(mark(1, 7 + rev)).expect("raised");
            }
            assert!(file.is_written());
            for _ in 0..3 {
                disk.fail_next(Op::Write);
                file.raise(mark(1, 20)).expect_err("refused");
                assert!(!file.is_written());
                assert_eq!(after_a_kill(&disk), 6 + raised, "what was written last");
            }
            if let Some(wait) = wait {
                wait.wait().expect("synced");
                file.end_sync(&wait, true);
            }
            file.raise(mark(1, 20)).expect("the same mark, once more");
            assert!(file.is_written());
            assert_eq!(after_a_kill(&disk), 20);
        }
    }
}

#[test]
fn a_file_of_two_copies_gets_the_others() {
    let disk = SimDisk::default();
    let mut old = Content {
        sequence: 3,
        mark: Some(mark(1, 5)),
    }
    .encode();
    old[11] = OLDEST_FORMAT as u8;
    let check = check_of(&old[..COPY_LEN - CHECK_LEN]);
    old[COPY_LEN - CHECK_LEN..].copy_from_slice(&check);
    let mut content = old.clone();
    content.resize(COPY_AT[1] as usize, 0);
    content.extend_from_slice(&old);
    disk.put(FILE, &content);
    assert_eq!(rev_of(open(&disk).get()), 5);
    let made = disk.crash(1).content(FILE).expect("the file");
    assert_eq!(made, with_sequence(3));
}

fn with_sequence(sequence: u64) -> Vec<u8> {
    let copy = Content {
        sequence,
        mark: Some(mark(1, 5)),
    }
    .encode();
    let mut content = Vec::new();
    for at in COPY_AT {
        content.resize(at as usize, 0);
        content.extend_from_slice(&copy);
    }
    content
}

#[test]
fn a_newer_format_is_refused_also_beside_a_damaged_copy() {
    let mut newer = with_mark(5).content(FILE).expect("the file");
    let at = COPY_AT[1] as usize;
    newer[at + 11] += 1;
    let check = check_of(&newer[at..at + COPY_LEN - CHECK_LEN]);
    newer[at + COPY_LEN - CHECK_LEN..at + COPY_LEN].copy_from_slice(&check);
    let disk = SimDisk::default();
    disk.put(FILE, &newer);
    let error = MarkFile::open(&disk).expect_err("a newer format");
    assert!(matches!(
        error,
        MarkError::NewerFormat { found: 3, known: 2 }
    ));
    assert_eq!(disk.content(FILE), Some(newer));
}

#[test]
fn a_real_disk_keeps_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = RealDisk::new(dir.path());
    let mut file = MarkFile::create(&disk).expect("made");
    file.raise(mark(3, 4)).expect("raised");
    drop(file);
    let opened = MarkFile::open(&disk).expect("it opens");
    assert_eq!(opened.and_then(|file| file.get()), Some(mark(3, 4)));
}

#[test]
fn the_encoding_is_fixed() {
    let mark = Some(mark(2, 3));
    let lines = [None, mark].map(|mark| hex(&Content { sequence: 9, mark }.encode()));
    let golden = include_str!("../../../tests/data/mark.hex");
    assert_eq!(lines.to_vec(), golden.lines().collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), COPY_LEN)) {
        let bytes: [u8; COPY_LEN] = bytes.try_into().expect("the length");
        let _ = Content::decode(&bytes);
        let _ = Content::decode_rest(&mut Reader::new(&bytes[12..COPY_LEN - CHECK_LEN]));
    }
}
