//! Goal: nothing that was synced is lost or changed in silence, whatever is cut or flipped.
//! Method: scripted histories on a simulated disk, cut at every operation and crashed with many
//! seeds; every bit of a small journal flipped.

use std::convert::Infallible;

use bytes::Bytes;

use super::*;
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::store::file::RealDisk;
use crate::store::file::sim::{Op, SimDisk};

fn body(number: usize) -> Entry {
    let text = format!("steps: [{number}]\n").repeat(number % 3 + 1);
    Entry::Body { bytes: text.into() }
}

fn genesis() -> Entry {
    Entry::Genesis {
        catalog: CatalogId::from_bytes([1; 16]),
        epoch: Epoch::ZERO,
        base: Revision::ZERO,
        last: Revision::ZERO,
        head: None,
    }
}

type Opened<D> = (Journal<D>, OpenReport, Vec<Entry>);

fn open_at<D: Disk + Clone>(
    disk: &D,
    applied: Option<Position>,
) -> Result<Opened<D>, OpenError<Infallible>> {
    let mut entries = Vec::new();
    let (journal, report) = Journal::open(disk.clone(), applied, |_, entry| {
        entries.push(entry);
        Ok(())
    })?;
    Ok((journal, report, entries))
}

fn open<D: Disk + Clone>(disk: &D) -> Opened<D> {
    open_at(disk, None).expect("a journal that opens")
}

/// What a script had reached when it ended or the power went.
#[derive(Default)]
struct Progress {
    appended: Vec<Entry>,
    synced: usize,
    /// The list that a rewrite in progress would put in force.
    rewriting: Option<Vec<Entry>>,
}

/// Groups of three entries and one rewrite that drops every second one.
fn run_script(disk: &SimDisk, progress: &mut Progress) -> Option<()> {
    let (mut journal, _) =
        Journal::open(disk.clone(), None, |_, _| Ok::<_, Infallible>(())).ok()?;
    for group in 0..4 {
        for number in 0..3 {
            let entry = body(group * 3 + number);
            // It may reach the disk even if the append fails or the power goes.
            progress.appended.push(entry.clone());
            journal.append(&entry).ok()?;
        }
        journal.sync().ok()?;
        progress.synced = progress.appended.len();
        if group == 1 {
            let kept: Vec<_> = progress.appended.iter().step_by(2).cloned().collect();
            progress.rewriting = Some(kept.clone());
            let entries = kept.iter().cloned().map(Ok::<_, Infallible>);
            journal.rewrite(entries, |_, _| {}).ok()?;
            progress.rewriting = None;
            progress.synced = kept.len();
            progress.appended = kept;
        }
    }
    Some(())
}

fn is_prefix_with_all_synced(found: &[Entry], progress: &Progress) -> bool {
    progress.appended.starts_with(found) && found.len() >= progress.synced
}

#[test]
fn a_cut_at_any_operation_loses_nothing_that_was_synced() {
    let whole = SimDisk::default();
    run_script(&whole, &mut Progress::default()).expect("nothing fails");
    let ops = whole.ops();
    assert!(ops > 20, "the script does something");
    for cut in 0..=ops {
        let disk = SimDisk::default();
        disk.power_off_after(cut);
        let mut progress = Progress::default();
        let done = run_script(&disk, &mut progress);
        assert_eq!(done.is_some(), cut == ops);
        for seed in 0..40 {
            let crashed = disk.crash(seed);
            let (mut journal, _, found) = open(&crashed);
            let rewritten = progress.rewriting.as_ref() == Some(&found);
            assert!(
                rewritten || is_prefix_with_all_synced(&found, &progress),
                "cut {cut} seed {seed}: {} of {} synced",
                found.len(),
                progress.synced
            );
            // What was found is durable now, and the journal goes on.
            let entry = body(99);
            journal.append(&entry).expect("an append");
            journal.sync().expect("a sync");
            let (_, report, again) = open(&crashed.crash(seed));
            assert_eq!(report.torn_bytes, 0);
            assert_eq!(again, [found, vec![entry]].concat());
        }
    }
}

#[test]
fn what_a_killed_process_left_unsynced_is_made_durable_at_the_next_start() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    journal.append(&body(1)).expect("an append");
    drop(journal);
    let (_, _, found) = open(&disk);
    assert_eq!(found, [body(1)]);
    for seed in 0..40 {
        let (_, _, after) = open(&disk.crash(seed));
        assert_eq!(after, found, "seed {seed}");
    }
}

/// A journal with `synced` groups of one entry each, then `unsynced` entries.
fn small(synced: usize, unsynced: usize) -> (Vec<u8>, u64, Vec<Entry>) {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    let entries: Vec<_> = (0..synced + unsynced).map(body).collect();
    for (index, entry) in entries.iter().enumerate() {
        journal.append(entry).expect("an append");
        if index < synced {
            journal.sync().expect("a sync");
        }
    }
    let content = disk.content(FILE).expect("the journal");
    (content, journal.durable_end(), entries)
}

fn flipped(content: &[u8], bit: usize) -> SimDisk {
    let mut content = content.to_vec();
    content[bit / 8] ^= 1 << (bit % 8);
    let disk = SimDisk::default();
    disk.put(FILE, &content);
    disk
}

#[test]
fn a_flipped_bit_is_damage_in_the_durable_part_and_a_torn_tail_behind_it() {
    let (content, durable, entries) = small(3, 2);
    let applied = Some(Position {
        generation: 1,
        offset: durable,
    });
    for bit in 0..content.len() * 8 {
        let in_durable = ((bit / 8) as u64) < durable;
        match open_at(&flipped(&content, bit), applied) {
            Err(OpenError::Journal(JournalError::Damaged { .. })) => assert!(in_durable, "{bit}"),
            Ok((_, report, found)) => {
                assert!(!in_durable, "bit {bit} went unnoticed");
                assert!(report.torn_bytes > 0);
                assert!(found.len() >= 3 && entries.starts_with(&found), "bit {bit}");
            }
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
}

#[test]
fn without_a_view_the_later_records_prove_what_was_durable() {
    let (content, durable, entries) = small(3, 1);
    for bit in 0..content.len() * 8 {
        let at = (bit / 8) as u64;
        match open_at(&flipped(&content, bit), None) {
            Err(OpenError::Journal(JournalError::Damaged { .. })) => assert!(at < durable),
            Ok((_, _, found)) => {
                assert!(at >= durable, "bit {bit} went unnoticed");
                assert_eq!(found, entries[..3]);
            }
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
}

#[test]
fn a_rewritten_journal_proves_all_of_itself() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    let entries = (0..3).map(|number| Ok::<_, Infallible>(body(number)));
    journal.rewrite(entries, |_, _| {}).expect("a rewrite");
    let content = disk.content(FILE).expect("the journal");
    for bit in 0..content.len() * 8 {
        let opened = open_at(&flipped(&content, bit), None);
        let damaged = matches!(
            opened,
            Err(OpenError::Journal(JournalError::Damaged { .. }))
        );
        assert!(damaged, "bit {bit} went unnoticed");
    }
}

#[test]
fn a_journal_that_is_shorter_than_what_was_applied_is_damaged() {
    let (content, durable, _) = small(3, 0);
    let disk = SimDisk::default();
    // Cut exactly between two records: nothing in the file itself looks wrong.
    let last = record::FRAME_LEN + body(2).encode().len();
    disk.put(FILE, &content[..content.len() - last]);
    let applied = Position {
        generation: 1,
        offset: durable,
    };
    let error = open_at(&disk, Some(applied)).expect_err("damage");
    assert!(error.to_string().contains("larder restore"), "{error}");

    let of_generation = |generation| Position {
        generation,
        ..applied
    };
    let later = open_at(&disk, Some(of_generation(2))).expect_err("an old journal");
    assert!(later.to_string().contains("generation 2"), "{later}");
    assert!(open_at(&disk, Some(of_generation(0))).is_ok());

    let empty = SimDisk::default();
    let gone = open_at(&empty, Some(applied)).expect_err("no journal");
    assert!(matches!(gone, OpenError::Journal(JournalError::Gone)));
    assert_eq!(empty.content(FILE), None, "none is made");
}

#[test]
fn after_a_failed_sync_nothing_is_taken_until_a_restart() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    journal.append(&body(0)).expect("an append");
    journal.sync().expect("a sync");
    journal.append(&body(1)).expect("an append");
    disk.fail_next(Op::SyncData);
    assert!(matches!(
        journal.sync(),
        Err(AppendError::Poisoned(Some(_)))
    ));
    assert!(matches!(journal.sync(), Err(AppendError::Poisoned(None))));
    let again = journal.append(&body(2));
    assert!(matches!(again, Err(AppendError::Poisoned(None))));
    let rewritten = journal.rewrite([Ok::<_, Infallible>(body(0))], |_, _| {});
    assert!(matches!(
        rewritten,
        Err(RewriteError::Append(AppendError::Poisoned(None)))
    ));

    for seed in 0..20 {
        let (_, _, found) = open(&disk.crash(seed));
        assert_eq!(found, [body(0)]);
    }
}

#[test]
fn a_full_disk_refuses_an_entry_and_takes_it_when_there_is_room() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    journal.append(&body(0)).expect("an append");
    let len = journal.len();
    for left in 0..20 {
        disk.space_left(Some(left));
        assert!(matches!(
            journal.append(&body(1)),
            Err(AppendError::Full(_))
        ));
        assert_eq!(journal.len(), len);
        assert_eq!(disk.content(FILE).expect("the journal").len() as u64, len);
    }
    let rewritten = journal.rewrite([Ok::<_, Infallible>(body(0))], |_, _| {});
    assert!(matches!(
        rewritten,
        Err(RewriteError::Append(AppendError::Full(_)))
    ));
    disk.space_left(None);
    journal.append(&body(2)).expect("an append");
    journal.sync().expect("a sync");
    let (_, _, found) = open(&disk.crash(1));
    assert_eq!(found, [body(0), body(2)]);
}

fn visible(rev: u64) -> Entry {
    Entry::Visible {
        rev: Revision::new(rev),
    }
}

/// Bodies, some of them durable, that are cut off, and entries where they stood. Says how many
/// entries were synced and whether all went well.
fn run_cut_script(disk: &SimDisk) -> (u64, Option<()>) {
    let mut synced = 0;
    let mut run = || {
        let (mut journal, ..) = open_at(disk, None).ok()?;
        journal.append(&visible(1)).ok()?;
        journal.append(&body(1)).ok()?;
        journal.sync().ok()?;
        synced = 1;
        // Records that say that the first body was durable.
        journal.append(&body(2)).ok()?;
        journal.append(&body(3)).ok()?;
        journal.cut_unsettled().ok()?;
        for rev in 2..=3 {
            journal.append(&visible(rev)).ok()?;
            journal.append(&body(3)).ok()?;
            journal.cut_unsettled().ok()?;
            journal.append(&body(4)).ok()?;
            journal.sync().ok()?;
            synced = rev;
        }
        Some(())
    };
    let done = run();
    (synced, done)
}

#[test]
fn bodies_that_were_cut_off_never_make_what_follows_look_damaged() {
    let whole = SimDisk::default();
    assert_eq!(run_cut_script(&whole), (3, Some(())));
    let (_, _, found) = open(&whole);
    let expected = [visible(1), visible(2), body(4), visible(3), body(4)];
    assert_eq!(found, expected);
    for cut in 0..=whole.ops() {
        for seed in 0..200 {
            let disk = SimDisk::default();
            disk.power_off_after(cut);
            let (synced, _) = run_cut_script(&disk);
            let opened = open_at(&disk.crash(seed), None);
            let (_, _, found) = opened.unwrap_or_else(|error| panic!("{cut}, {seed}: {error}"));
            let entries = found
                .iter()
                .filter(|entry| !matches!(entry, Entry::Body { .. }));
            let entries: Vec<_> = entries.cloned().collect();
            let all: Vec<_> = (1..=entries.len() as u64).map(visible).collect();
            assert_eq!(entries, all, "{cut}, {seed}");
            assert!(entries.len() as u64 >= synced, "{cut}, {seed}");
        }
    }
}

#[test]
fn what_is_sealed_or_applied_or_before_an_entry_is_not_cut_off() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    journal.append(&body(1)).expect("an append");
    journal.append(&visible(1)).expect("an append");
    let settled = journal.len();
    assert_eq!(journal.cut_unsettled().expect("nothing to do"), 0);
    journal.append(&body(2)).expect("an append");
    let applied = journal.end();
    journal.append(&body(3)).expect("an append");
    journal.sync().expect("a sync");
    let reader = journal.reader();
    assert_eq!(
        reader.settled_end(),
        settled,
        "the view and backups take no more"
    );
    assert_eq!(reader.entries(0).count(), 2);

    let (mut journal, ..) = open_at(&disk, Some(applied)).expect("a journal");
    assert!(journal.cut_unsettled().expect("a cut") > 0);
    assert_eq!(
        journal.end(),
        applied,
        "an older version may have applied it"
    );
    let (mut journal, ..) = open_at(&disk, Some(applied)).expect("and it opens");

    let bodies = [body(1), body(2)].map(Ok::<_, Infallible>);
    journal.rewrite(bodies, |_, _| {}).expect("rewritten");
    assert_eq!(journal.cut_unsettled().expect("nothing to do"), 0);
    let (mut journal, ..) = open(&disk);
    assert_eq!(journal.cut_unsettled().expect("nothing to do"), 0);
    assert_eq!(open(&disk).2, [body(1), body(2)]);
}

#[test]
fn a_cut_that_the_disk_refuses_changes_nothing_and_an_unproven_one_poisons() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    journal.append(&body(1)).expect("an append");
    journal.sync().expect("a sync");
    disk.fail_next(Op::SetLen);
    assert!(matches!(journal.cut_unsettled(), Err(AppendError::Io(_))));
    assert_eq!(open(&disk).2, [body(1)]);
    disk.fail_next(Op::SyncData);
    let cut = journal.cut_unsettled();
    assert!(matches!(cut, Err(AppendError::Poisoned(Some(_)))));
    let after = journal.append(&body(2));
    assert!(matches!(after, Err(AppendError::Poisoned(None))));
}

#[test]
fn a_failed_append_that_cannot_be_cut_off_poisons() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    disk.space_left(Some(5));
    disk.fail_next(Op::SetLen);
    assert!(matches!(
        journal.append(&body(0)),
        Err(AppendError::Poisoned(Some(_)))
    ));
    disk.space_left(None);
    assert!(matches!(
        journal.append(&body(0)),
        Err(AppendError::Poisoned(None))
    ));
    let (_, report, found) = open(&disk);
    assert_eq!((report.torn_bytes, found), (5, vec![]));
}

#[test]
fn a_failed_rewrite_leaves_the_old_journal_in_force() {
    for op in [Op::Write, Op::SyncData, Op::Rename] {
        let disk = SimDisk::default();
        let (mut journal, ..) = open(&disk);
        journal.append(&genesis()).expect("an append");
        disk.fail_next(op);
        let rewritten = journal.rewrite([Ok::<_, Infallible>(body(0))], |_, _| {});
        assert!(rewritten.is_err(), "{op:?}");
        journal.append(&body(1)).expect("an append");
        journal.sync().expect("a sync");
        let (_, _, found) = open(&disk.crash(3));
        assert_eq!(found, [genesis(), body(1)], "{op:?}");
    }
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    let missing = journal.rewrite([Ok(genesis()), Err("a body")], |_, _| {});
    assert!(matches!(missing, Err(RewriteError::Entry("a body"))));
    journal.append(&body(1)).expect("an append");
}

#[test]
fn a_rewrite_whose_name_may_not_last_poisons() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    disk.fail_next(Op::SyncDir);
    let rewritten = journal.rewrite([Ok::<_, Infallible>(body(0))], |_, _| {});
    assert!(matches!(
        rewritten,
        Err(RewriteError::Append(AppendError::Poisoned(Some(_))))
    ));
    assert!(matches!(
        journal.append(&body(1)),
        Err(AppendError::Poisoned(None))
    ));
}

#[test]
fn a_reader_of_an_old_generation_still_reads_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut journal, ..) = open(&RealDisk::new(dir.path()));
    let old = journal.append(&body(0)).expect("an append");
    journal.sync().expect("a sync");
    let reader = journal.reader();
    let mut new = None;
    let entries = [Ok::<_, Infallible>(genesis()), Ok(body(0))];
    journal
        .rewrite(entries, |position, _| new = Some(position))
        .expect("a rewrite");
    assert_eq!(reader.read(old).expect("the old file"), body(0));
    assert!(matches!(
        journal.read(old),
        Err(ReadError::Generation { .. })
    ));
    let new = new.expect("two entries");
    assert_eq!(journal.read(new).expect("the new file"), body(0));
    assert_eq!(journal.generation(), 2);
}

#[test]
fn a_newer_format_and_an_unknown_entry_are_refused_and_left_alone() {
    let disk = SimDisk::default();
    let (content, ..) = small(1, 0);
    let mut newer = content.clone();
    newer[11] += 1;
    let check = blake3::hash(&newer[..HEADER_LEN - 16]);
    newer[HEADER_LEN - 16..HEADER_LEN].copy_from_slice(&check.as_bytes()[..16]);
    disk.put(FILE, &newer);
    let error = open_at(&disk, None).expect_err("a newer format");
    assert!(matches!(
        error,
        OpenError::Journal(JournalError::NewerFormat { found: 2, known: 1 })
    ));
    assert_eq!(disk.content(FILE), Some(newer));

    let mut unknown = content;
    let end = unknown.len();
    unknown[HEADER_LEN + 4] = 200;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&1_u64.to_be_bytes());
    hasher.update(&(HEADER_LEN as u64).to_be_bytes());
    hasher.update(&unknown[HEADER_LEN..end - 16]);
    let check = hasher.finalize();
    unknown[end - 16..].copy_from_slice(&check.as_bytes()[..16]);
    disk.put(FILE, &unknown);
    let error = open_at(&disk, None).expect_err("an unknown entry");
    assert!(matches!(
        error,
        OpenError::Journal(JournalError::Unknown { .. })
    ));
    assert_eq!(disk.content(FILE), Some(unknown));
}

#[test]
fn a_body_that_holds_records_proves_nothing() {
    // The content of a journal, published as a spec, at the end of a journal that is then torn.
    let (content, ..) = small(3, 0);
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    journal.append(&body(0)).expect("an append");
    journal.sync().expect("a sync");
    let bytes = Bytes::from(content);
    journal.append(&Entry::Body { bytes }).expect("an append");
    let mut torn = disk.content(FILE).expect("the journal");
    torn.pop();
    disk.put(FILE, &torn);
    let (_, report, found) = open(&disk);
    assert_eq!(found, [body(0)]);
    assert!(report.torn_bytes > 0);
}

/// Entries of which the last two, one body among them, were in a sync that failed.
fn after_a_failed_sync() -> SimDisk {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    for rev in 1..=2 {
        journal.append(&body(rev)).expect("an append");
        journal.append(&visible(rev as u64)).expect("an append");
        if rev == 2 {
            disk.fail_next(Op::SyncData);
        }
        assert_eq!(journal.sync().is_ok(), rev == 1);
    }
    disk
}

#[test]
fn what_a_failed_sync_left_in_the_cache_is_durable_after_a_restart() {
    let disk = after_a_failed_sync();
    let (mut journal, _, found) = open(&disk);
    assert_eq!(found, [body(1), visible(1), body(2), visible(2)]);
    for seed in 0..40 {
        let (_, _, after) = open(&disk.crash(seed));
        assert_eq!(after, found, "seed {seed}: readers saw all of it");
    }
    journal.append(&visible(3)).expect("an append");
    journal.sync().expect("a sync");
    let (_, _, after) = open(&disk.crash(1));
    assert_eq!(after, [found, vec![visible(3)]].concat());
}

#[test]
fn a_restart_after_a_failed_sync_may_be_cut_at_any_operation() {
    let whole = after_a_failed_sync();
    let before = whole.ops();
    open(&whole);
    for cut in before..=whole.ops() {
        let disk = after_a_failed_sync();
        disk.power_off_after(cut);
        let opened = open_at(&disk, None);
        for seed in 0..40 {
            let (_, _, found) = open(&disk.crash(seed));
            let all = [body(1), visible(1), body(2), visible(2)];
            assert!(found.len() >= 2 && all.starts_with(&found), "{cut}, {seed}");
            assert!(opened.is_err() || found == all, "{cut}, {seed}");
        }
    }
    let disk = after_a_failed_sync();
    disk.fail_next(Op::SyncData);
    assert!(
        open_at(&disk, None).is_err(),
        "nothing is taken for durable"
    );
    let (_, _, found) = open(&disk);
    assert_eq!(open(&disk.crash(1)).2, found, "nor lost by the next start");
}

#[test]
fn a_start_writes_no_more_of_the_journal_again_than_the_last_sync_covered() {
    let disk = SimDisk::default();
    let (mut journal, ..) = open(&disk);
    let mut last = 0;
    for number in 0..100 {
        let position = journal.append(&body(number)).expect("an append");
        journal.sync().expect("a sync");
        last = journal.len() - position.offset;
    }
    let before = disk.written();
    open(&disk);
    assert_eq!(disk.written() - before, last);
    let bodies = (0..100).map(|number| Ok::<_, Infallible>(body(number)));
    journal.rewrite(bodies, |_, _| {}).expect("a rewrite");
    let before = disk.written();
    open(&disk);
    assert_eq!(disk.written(), before, "all of it was sealed");
}
