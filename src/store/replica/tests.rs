//! Goal: a crash leaves a whole older state, and damage drops the copy and nothing else. Method: a
//! simulated disk, cut at every operation and crashed with many seeds; every bit flipped.

use super::*;
use crate::store::file::sim::{Op, SimDisk};

fn payload(number: usize) -> Vec<u8> {
    format!("change {number} ").repeat(number % 3 + 1).into()
}

fn open(disk: &SimDisk) -> (Replica<SimDisk>, Option<Vec<Bytes>>) {
    let (replica, replayed) = Replica::open(disk.clone()).expect("it opens");
    (replica, replayed.map(|replayed| replayed.payloads))
}

/// What a script had reached when it ended or the power went.
#[derive(Default)]
struct Progress {
    made: bool,
    appended: Vec<Vec<u8>>,
    synced: usize,
    /// The list that a rewrite in progress would put in force.
    rewriting: Option<Vec<Vec<u8>>>,
}

fn run_script(disk: &SimDisk, progress: &mut Progress) -> Option<()> {
    let (mut replica, _) = Replica::open(disk.clone()).ok()?;
    progress.made = true;
    for group in 0..4 {
        for number in group * 3..group * 3 + 3 {
            progress.appended.push(payload(number));
            replica.append(&payload(number)).ok()?;
        }
        replica.sync().ok()?;
        progress.synced = progress.appended.len();
        if group == 1 {
            let kept: Vec<_> = progress.appended.iter().step_by(2).cloned().collect();
            progress.rewriting = Some(kept.clone());
            replica.rewrite(&kept).ok()?;
            progress.rewriting = None;
            progress.synced = kept.len();
            progress.appended = kept;
        }
    }
    Some(())
}

fn is_prefix(found: &[Bytes], synced: usize, appended: &[Vec<u8>]) -> bool {
    let long_enough = (synced..=appended.len()).contains(&found.len());
    long_enough && found.iter().zip(appended).all(|(a, b)| a == b)
}

#[test]
fn a_cut_at_any_operation_leaves_what_was_synced_and_a_whole_state() {
    let whole = SimDisk::default();
    run_script(&whole, &mut Progress::default()).expect("no fault");
    for cut in 0..=whole.ops() {
        let disk = SimDisk::default();
        disk.power_off_after(cut);
        let mut progress = Progress::default();
        let _ = run_script(&disk, &mut progress);
        for seed in 0..60 {
            let crashed = disk.crash(seed);
            let (_, found) = open(&crashed);
            let Some(found) = found else {
                assert!(!progress.made, "cut {cut}, seed {seed}: it is dropped");
                continue;
            };
            let rewritten = progress.rewriting.as_deref();
            let fits = is_prefix(&found, progress.synced, &progress.appended)
                || rewritten.is_some_and(|list| is_prefix(&found, list.len(), list));
            assert!(fits, "cut {cut}, seed {seed}: {found:?}");
            assert_eq!(open(&crashed.crash(seed)).1, Some(found), "it is durable");
        }
    }
}

/// A durable file of a base of two and three synced changes.
fn small() -> Vec<u8> {
    let disk = SimDisk::default();
    let (mut replica, _) = open(&disk);
    replica.rewrite([payload(0), payload(1)]).expect("written");
    for number in 2..5 {
        replica.append(&payload(number)).expect("appended");
        replica.sync().expect("synced");
    }
    disk.content(FILE).expect("the file")
}

#[test]
fn damage_in_the_middle_drops_it_and_it_can_be_filled_again() {
    let content = small();
    let last = FRAME_LEN + payload(4).len();
    let all: Vec<_> = (0..5).map(payload).collect();
    for bit in 0..content.len() * 8 {
        let mut flipped = content.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let disk = SimDisk::default();
        disk.put(FILE, &flipped);
        let (mut replica, found) = open(&disk);
        match found {
            None => assert!(bit / 8 < content.len() - last, "bit {bit}"),
            Some(found) => {
                assert!(bit / 8 >= content.len() - last, "bit {bit} went unnoticed");
                assert_eq!(found, all[..4], "nothing proves that the last was durable");
            }
        }
        replica.rewrite(&all).expect("written");
        replica.append(b"more").expect("appended");
        let (_, found) = open(&disk);
        assert_eq!(found.map(|found| found.len()), Some(6));
    }
}

#[test]
fn a_killed_process_loses_nothing_and_a_torn_end_is_cut_off() {
    let disk = SimDisk::default();
    let (mut replica, found) = open(&disk);
    assert_eq!(found, None, "a new one");
    replica.append(&payload(0)).expect("appended");
    replica.append(&payload(1)).expect("appended");
    assert_eq!(open(&disk).1.map(|found| found.len()), Some(2));
    let mut torn = disk.content(FILE).expect("the file");
    torn.pop();
    disk.put(FILE, &torn);
    let (_, replayed) = Replica::open(disk.clone()).expect("it opens");
    let replayed = replayed.expect("a state");
    assert_eq!(replayed.payloads, [payload(0)]);
    assert!(replayed.torn_bytes > 0);
    assert_eq!(open(&disk).1.map(|found| found.len()), Some(1));
}

#[test]
fn after_a_failed_sync_only_a_rewrite_helps() {
    let disk = SimDisk::default();
    let (mut replica, _) = open(&disk);
    replica.append(&payload(0)).expect("appended");
    disk.fail_next(Op::SyncData);
    assert!(replica.sync().is_err());
    let refused = replica.append(&payload(1));
    assert!(matches!(refused, Err(ReplicaError::Poisoned(None))));
    assert!(replica.is_rewrite_due());
    replica.rewrite([payload(0)]).expect("written");
    replica.append(&payload(1)).expect("appended");
    replica.sync().expect("synced");
    for seed in 0..20 {
        let (_, found) = open(&disk.crash(seed));
        assert_eq!(found.map(|found| found.len()), Some(2));
    }
}

#[test]
fn a_full_disk_refuses_a_change_and_takes_it_when_there_is_room() {
    let disk = SimDisk::default();
    let (mut replica, _) = open(&disk);
    replica.append(&payload(0)).expect("appended");
    disk.space_left(Some(5));
    let refused = replica.append(&payload(1));
    assert!(matches!(refused, Err(ReplicaError::Full(_))));
    let refused = replica.rewrite([payload(2)]);
    assert!(matches!(refused, Err(ReplicaError::Full(_))));
    disk.space_left(None);
    replica.append(&payload(1)).expect("appended");
    assert_eq!(open(&disk).1.map(|found| found.len()), Some(2));
}

#[test]
fn a_rewrite_is_due_when_the_file_has_doubled_and_is_not_small() {
    let disk = SimDisk::default();
    let (mut replica, _) = open(&disk);
    let megabyte = vec![7; 1 << 20];
    replica
        .append(&megabyte[..SLACK_BYTES as usize / 2])
        .expect("appended");
    assert!(!replica.is_rewrite_due(), "small");
    replica.rewrite([&megabyte, &megabyte]).expect("written");
    replica.append(&megabyte).expect("appended");
    replica.append(&megabyte).expect("appended");
    assert!(!replica.is_rewrite_due(), "just doubled");
    replica.append(&megabyte).expect("appended");
    replica.append(&megabyte).expect("appended");
    assert!(replica.is_rewrite_due());
    assert!(open(&disk).0.is_rewrite_due(), "after a restart too");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let mut newer = small();
    newer[11] += 1;
    let check = blake3::hash(&newer[..HEADER_LEN - 16]);
    newer[HEADER_LEN - 16..HEADER_LEN].copy_from_slice(&check.as_bytes()[..16]);
    let disk = SimDisk::default();
    disk.put(FILE, &newer);
    let error = Replica::open(disk.clone()).expect_err("a newer format");
    assert!(matches!(error, ReplicaError::NewerFormat { found: 2, .. }));
    assert_eq!(disk.content(FILE), Some(newer));
}

#[test]
fn what_a_failed_sync_left_in_the_cache_is_durable_after_a_restart() {
    let disk = SimDisk::default();
    let (mut replica, _) = open(&disk);
    replica.append(&payload(0)).expect("appended");
    replica.sync().expect("synced");
    replica.append(&payload(1)).expect("appended");
    disk.fail_next(Op::SyncData);
    assert!(replica.sync().is_err());
    let before = disk.written();
    let (mut replica, found) = open(&disk);
    assert_eq!(found.as_ref().map(Vec::len), Some(2));
    let tail = FRAME_LEN + payload(1).len();
    assert_eq!(disk.written() - before, tail as u64, "and no more");
    for seed in 0..40 {
        assert_eq!(open(&disk.crash(seed)).1, found, "seed {seed}");
    }
    replica.append(&payload(2)).expect("appended");
    replica.sync().expect("synced");
    assert_eq!(open(&disk.crash(1)).1.map(|found| found.len()), Some(3));
}
