//! S1, S2, S4 and S8: one order of versions for each name, in real time.

use super::*;

#[test]
fn concurrent_operations_may_come_in_any_order() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .publish(20..40, 2, &[("a", 2)])
        // While the publish is under way both are right, until the newer one was returned.
        .read(read("a", 25..30, place(1, 1), 1, 1))
        .read(read("a", 26..31, place(1, 2), 2, 2).by(1, 0))
        .read(read("a", 31..33, place(1, 1), 1, 1))
        .read(read("a", 40..41, place(1, 2), 2, 2))
        .passes();
}

#[test]
fn an_end_at_the_same_moment_is_no_order() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .publish(20..30, 2, &[("a", 2)])
        .read(read("a", 30..31, place(1, 1), 1, 1))
        .passes();
}

#[test]
fn a_strict_read_behind_an_acknowledged_publish_breaks_s1() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1), ("b", 1)])
            .publish(20..30, 2, &[("a", 2)])
    };
    for ask in [Ask::Strict, Ask::Verified] {
        story()
            .read(read("a", 31..32, place(1, 1), 1, 1).of(ask, Mode::Asked))
            .breaks(Invariant::S1);
    }
    story()
        .read(read("a", 31..32, place(1, 1), 1, 1).of(Ask::Strict, Mode::Lease))
        .breaks(Invariant::S1);
    // Another name did not change, so an older snapshot of it is right.
    story().read(read("b", 31..32, place(1, 1), 1, 1)).passes();
}

#[test]
fn a_publish_that_changed_nothing_is_an_acknowledgement_too() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .publish(11..12, 2, &[("a", 2)])
            .publish(13..14, 3, &[("a", 1)])
            .sent(20, None, &[("a", 1)])
            .acknowledged(30, place(1, 3), 0)
    };
    story().read(read("a", 31..32, place(1, 3), 3, 1)).passes();
    // The content is the same, the version is not.
    story()
        .read(read("a", 31..32, place(1, 1), 1, 1))
        .breaks(Invariant::S1);
    Story::new()
        .sent(0, None, &[("a", 0), ("b", 1)])
        .acknowledged(10, place(1, 1), 1)
        .publish(20..30, 2, &[("b", 2)])
        .sent(31, None, &[("a", 0), ("b", 2)])
        .acknowledged(32, place(1, 2), 0)
        // It was so in both revisions, and no worker must know of the newer one to say so.
        .read(read("a", 33..34, place(1, 1), 0, 0).by(2, 0))
        .passes();
    Story::new()
        .publish(0..10, 1, &[("b", 1)])
        .sent(11, None, &[("a", 3), ("b", 1)])
        .acknowledged(12, place(1, 2), 1)
        .read(read("a", 13..14, place(1, 1), 0, 0).by(2, 0))
        .breaks(Invariant::S8);
}

#[test]
fn a_strict_read_by_a_weaker_promise_breaks_s1() {
    for mode in [Mode::At, Mode::AtLeast, Mode::Bounded, Mode::Pinned] {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .read(read("a", 11..12, place(1, 1), 1, 1).of(Ask::Strict, mode))
            .breaks(Invariant::S1);
    }
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .read(read("a", 11..12, place(1, 1), 1, 1).of(Ask::Verified, Mode::Lease))
        .breaks(Invariant::S1);
}

#[test]
fn a_strict_read_behind_another_read_breaks_s2() {
    let story = |first: Read| {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .sent(20, None, &[("a", 2)])
            .read(first)
            .read(read("a", 26..27, place(1, 1), 1, 1).by(1, 0))
    };
    let newer = read("a", 21..25, place(1, 2), 2, 2);
    story(newer.clone()).breaks(Invariant::S2);
    story(newer.of(Ask::At(Revision::new(2)), Mode::At)).breaks(Invariant::S2);
}

#[test]
fn a_publish_behind_what_was_read_breaks_s2() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(11, None, &[("a", 3)])
        .read(read("a", 12..13, place(1, 5), 5, 3))
        .sent(14, None, &[("a", 2)])
        .acknowledged(15, place(1, 4), 1)
        .breaks(Invariant::S2);
    // A publish that changes nothing cannot be older than what it found either.
    Story::new()
        .publish(0..10, 3, &[("a", 1)])
        .sent(11, None, &[("a", 1)])
        .acknowledged(12, place(1, 2), 0)
        .breaks(Invariant::S2);
    // Nor can a revision of one name be older than one that was known of another.
    Story::new()
        .publish(0..10, 3, &[("a", 1)])
        .publish(11..12, 2, &[("b", 1)])
        .breaks(Invariant::S2);
}

#[test]
fn a_version_that_nobody_published_breaks_s2() {
    Story::new()
        .read(read("a", 1..2, place(1, 1), 1, 1))
        .breaks(Invariant::S2);
    // Published, but only afterwards.
    let violation = check(
        &Story::new()
            .read(read("a", 1..2, place(1, 1), 1, 1))
            .publish(3..10, 1, &[("a", 1)])
            .history,
    );
    assert_eq!(violation.map_err(|it| it.invariant), Err(Invariant::S2));
    // Published before, but refused.
    Story::new()
        .sent(0, None, &[("a", 1)])
        .refused(1)
        .read(read("a", 2..3, place(1, 1), 1, 1))
        .breaks(Invariant::S2);
    // In a revision that changed another name.
    Story::new()
        .publish(0..10, 1, &[("b", 1)])
        .sent(11, None, &[("a", 1)])
        .read(read("a", 12..13, place(1, 1), 1, 1))
        .breaks(Invariant::S2);
    // In an epoch that never began.
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .read(read("a", 11..12, place(2, 1), 1, 1))
        .breaks(Invariant::S2);
    // Newer than the snapshot in which it was seen.
    Story::new()
        .publish(0..10, 2, &[("a", 1)])
        .read(read("a", 11..12, place(1, 1), 2, 1))
        .breaks(Invariant::S2);
}

#[test]
fn an_unanswered_publish_happened_at_most_once_and_late_enough() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .sent(20, None, &[("a", 2), ("b", 2)])
    };
    // Never.
    story().read(read("a", 30..31, place(1, 1), 1, 1)).passes();
    // Later, in one revision.
    story()
        .read(read("a", 30..31, place(1, 2), 2, 2))
        .read(read("b", 32..33, place(1, 2), 2, 2))
        .passes();
    // In two.
    story()
        .read(read("a", 30..31, place(1, 3), 2, 2))
        .read(read("b", 32..33, place(1, 3), 3, 2))
        .breaks(Invariant::S2);
    // Not before what was known when it was sent.
    Story::new()
        .publish(0..10, 5, &[("b", 1)])
        .sent(20, None, &[("a", 2)])
        .read(read("a", 30..31, place(1, 5), 4, 2))
        .breaks(Invariant::S2);
}

#[test]
fn what_readers_saw_narrows_down_which_publish_it_was() {
    let story = || {
        Story::new()
            .sent(0, None, &[("a", 1), ("b", 1)])
            .sent(0, None, &[("a", 1), ("b", 2)])
            .read(read("a", 10..11, place(1, 1), 1, 1))
    };
    story()
        .read(read("b", 12..13, place(1, 1), 1, 2))
        .answered(2, 20, place(1, 1), 2)
        .passes();
    story()
        .read(read("b", 12..13, place(1, 1), 1, 2))
        .answered(1, 20, place(1, 1), 2)
        .breaks(Invariant::S2);
    // The first made another revision, so the second made this one.
    story()
        .answered(1, 20, place(1, 2), 1)
        .read(read("b", 15..22, place(1, 1), 1, 1))
        .breaks(Invariant::S3);
    story()
        .answered(1, 20, place(1, 2), 1)
        .answered(2, 21, place(1, 3), 1)
        .breaks(Invariant::S2);
}

#[test]
fn a_revision_used_twice_breaks_s2() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(5, None, &[("b", 1)])
        .acknowledged(11, place(1, 1), 1)
        .breaks(Invariant::S2);
}

#[test]
fn attempts_with_one_key_are_one_publish() {
    let story = || {
        Story::new()
            .sent(0, Some(1), &[("a", 1)])
            .publish(20..30, 2, &[("a", 2)])
            .sent(31, Some(1), &[("a", 1)])
    };
    // The answer to a repetition names the old revision, and that is not a step back.
    story()
        .acknowledged(32, place(1, 1), 1)
        .read(read("a", 33..34, place(1, 2), 2, 2))
        .passes();
    story()
        .read(read("a", 10..11, place(1, 1), 1, 1))
        .acknowledged(32, place(1, 3), 1)
        .breaks(Invariant::S2);
    story()
        .acknowledged(32, place(1, 1), 1)
        .answered(1, 33, place(1, 3), 1)
        .breaks(Invariant::S2);
    // One attempt was refused, the other may still have happened.
    Story::new()
        .sent(0, Some(1), &[("a", 1)])
        .sent(5, Some(1), &[("a", 1)])
        .refused(6)
        .read(read("a", 7..8, place(1, 1), 1, 1))
        .passes();
}

#[test]
fn a_change_skipped_by_a_snapshot_breaks_s2() {
    // The snapshot has the publish of `a`, its record does not.
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(15, None, &[("a", 2)])
        .read(read("a", 16..30, place(1, 2), 2, 2))
        .read(read("a", 17..31, place(1, 2), 1, 1))
        .breaks(Invariant::S2);
}

#[test]
fn what_was_returned_survives_a_restart_of_the_coordinator() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .sent(20, None, &[("a", 2)])
            .read(read("a", 21..25, place(1, 2), 2, 2))
    };
    story()
        .restarted(30, Some(place(1, 2)))
        .restarted(31, Some(place(1, 2)))
        .read(read("a", 40..41, place(1, 2), 2, 2))
        .passes();
    story()
        .restarted(30, Some(place(1, 1)))
        .breaks(Invariant::S4);
    story()
        .restarted(30, None)
        .restarted(31, None)
        .read(read("a", 40..41, place(1, 1), 1, 1).by(1, 0))
        .breaks(Invariant::S4);
    // The revision is given to someone else after the restart.
    story()
        .restarted(30, None)
        .publish(40..41, 2, &[("b", 1)])
        .breaks(Invariant::S4);
    story()
        .restarted(30, None)
        .read(
            read("a", 40..41, place(1, 2), 2, 2)
                .of(Ask::At(Revision::new(2)), Mode::At)
                .failed(Failed::Future),
        )
        .breaks(Invariant::S4);
}

#[test]
fn a_stale_lease_after_a_restart_is_not_the_coordinators_loss() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .publish(20..21, 2, &[("a", 2)])
        .restarted(30, None)
        .read(read("a", 40..41, place(1, 1), 1, 1).of(Ask::Strict, Mode::Lease))
        .breaks(Invariant::S1);
}

#[test]
fn a_restore_takes_back_what_the_backup_lacks_and_nothing_else() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .publish(11..12, 2, &[("a", 2)])
            .publish(13..14, 3, &[("a", 3)])
            .restored(20, 2, place(1, 2))
    };
    story()
        .read(read("a", 30..31, place(2, 3), 2, 2))
        .sent(32, None, &[("a", 4)])
        .acknowledged(33, place(2, 4), 1)
        .read(read("a", 34..35, place(2, 4), 4, 4))
        .read(read("a", 36..37, place(2, 2), 2, 2).of(Ask::At(Revision::new(2)), Mode::At))
        .passes();
    story()
        .read(read("a", 30..31, place(2, 3), 1, 1))
        .breaks(Invariant::S2);
    // An epoch that is over is older than whatever the new one acknowledged.
    story()
        .sent(32, None, &[("a", 4)])
        .acknowledged(33, place(2, 4), 1)
        .read(read("a", 34..35, place(1, 3), 3, 3))
        .breaks(Invariant::S1);
    // The same key after a restore is a new publish if the old one was lost.
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(11, Some(1), &[("a", 2)])
        .acknowledged(12, place(1, 2), 1)
        .restored(20, 2, place(1, 1))
        .sent(21, Some(1), &[("a", 2)])
        .acknowledged(22, place(2, 3), 1)
        .read(read("a", 23..24, place(2, 3), 3, 2))
        .passes();
}

#[test]
fn an_absence_is_an_answer() {
    let story = || Story::new().publish(0..10, 1, &[("a", 1)]);
    Story::new()
        .read(read("a", 0..1, place(1, 0), 0, 0))
        .publish(0..10, 1, &[("a", 1)])
        .read(read("a", 5..11, place(1, 0), 0, 0))
        .publish(20..30, 2, &[("a", 0)])
        .read(read("a", 31..32, place(1, 2), 2, 0))
        .passes();
    // Never there, although it was published.
    story()
        .read(read("a", 11..12, place(1, 0), 0, 0))
        .breaks(Invariant::S8);
    story()
        .read(read("a", 11..12, place(1, 1), 0, 0))
        .breaks(Invariant::S8);
    // Back from the dead.
    story()
        .publish(20..30, 2, &[("a", 0)])
        .read(read("a", 31..32, place(1, 1), 1, 1))
        .breaks(Invariant::S8);
    // Deleted long ago, created again.
    story()
        .publish(20..30, 2, &[("a", 0)])
        .publish(40..50, 3, &[("a", 3)])
        .read(read("a", 51..52, place(1, 2), 2, 0))
        .breaks(Invariant::S8);
    // The tombstone is forgotten.
    story()
        .publish(20..30, 2, &[("a", 0)])
        .read(read("a", 31..32, place(1, 2), 0, 0))
        .breaks(Invariant::S8);
    // A deletion that nobody asked for.
    story()
        .read(read("a", 31..32, place(1, 2), 2, 0))
        .breaks(Invariant::S8);
}

#[test]
fn an_older_answer_that_ends_later_does_not_lower_the_floor() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(11, None, &[("a", 2)])
        .read(read("a", 12..20, place(1, 2), 2, 2))
        .read(read("a", 11..21, place(1, 1), 1, 1).by(1, 0))
        .read(read("a", 22..23, place(1, 1), 1, 1).by(2, 0))
        .breaks(Invariant::S2);
}

#[test]
fn a_change_within_what_was_unchanged_breaks_s2() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(11, None, &[("a", 2)])
        .read(read("a", 12..13, place(1, 5), 1, 1))
        .acknowledged(14, place(1, 3), 1)
        .breaks(Invariant::S2);
}

#[test]
fn all_of_a_publish_holds_at_its_revision_whichever_of_it_changed() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .sent(11, None, &[("a", 2), ("b", 2)])
    };
    let unchanged = || read("a", 12..20, place(1, 5), 1, 1);
    story()
        .read(unchanged())
        .acknowledged(21, place(1, 5), 1)
        .breaks(Invariant::S2);
    story()
        .acknowledged(15, place(1, 5), 1)
        .read(unchanged())
        .breaks(Invariant::S2);
}

#[test]
fn a_revision_that_others_must_have_made_is_not_a_third_ones() {
    Story::new()
        .sent(0, None, &[("a", 1)])
        .sent(0, None, &[("a", 1), ("b", 1)])
        .sent(0, None, &[("b", 2)])
        .read(read("a", 10..11, place(1, 1), 1, 1))
        .acknowledged(20, place(1, 1), 1)
        .breaks(Invariant::S2);
}

#[test]
fn a_refused_publish_that_was_seen_breaks_s2() {
    Story::new()
        .sent(0, None, &[("a", 1)])
        .read(read("a", 1..2, place(1, 1), 1, 1))
        .refused(3)
        .breaks(Invariant::S2);
}

#[test]
fn an_absence_in_an_epoch_that_never_began_breaks_s2() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .read(read("c", 11..12, place(2, 5), 0, 0))
        .breaks(Invariant::S2);
}
