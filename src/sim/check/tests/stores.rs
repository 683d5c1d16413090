//! S9 and S10: what must be kept, and what is gone.

use super::*;

fn three_versions() -> Story {
    Story::new()
        .publish(0..10, 1, &[("a", 1), ("b", 9)])
        .publish(20..30, 2, &[("a", 2)])
        .publish(40..50, 3, &[("a", 3)])
}

fn at_one() -> Read {
    let ask = Ask::At(Revision::new(1));
    read("a", 90..91, place(1, 1), 1, 1).of(ask, Mode::At)
}

#[test]
fn a_pinned_revision_that_is_compacted_breaks_s9() {
    let refused = || at_one().failed(Failed::Compacted);
    three_versions().compacted(60, 3).read(refused()).passes();
    let pinned = |until| {
        three_versions()
            .pinned(55, until, place(1, 1))
            .compacted(60, 3)
    };
    pinned(100).read(refused()).breaks(Invariant::S9);
    pinned(100).read(at_one()).passes();
    // It ran out, or was given up, or was granted too late.
    pinned(91).read(refused()).passes();
    pinned(100)
        .event(Event::Unpinned {
            id: PinId(1),
            at: time(80),
        })
        .read(refused())
        .passes();
    three_versions()
        .pinned(90, 100, place(1, 1))
        .read(refused())
        .passes();
}

#[test]
fn a_removed_revision_that_is_answered_with_another_breaks_s9() {
    let ask = Ask::At(Revision::new(1));
    three_versions()
        .compacted(60, 3)
        .read(read("a", 90..91, place(1, 3), 3, 3).of(ask, Mode::At))
        .breaks(Invariant::S9);
}

#[test]
fn a_blob_that_a_retained_revision_or_a_pin_reaches_is_kept() {
    three_versions().collected(60, 1).breaks(Invariant::S9);
    three_versions()
        .compacted(60, 3)
        .collected(61, 1)
        .collected(62, 2)
        .passes();
    three_versions()
        .compacted(60, 2)
        .collected(61, 2)
        .breaks(Invariant::S9);
    three_versions()
        .compacted(60, 3)
        .collected(61, 3)
        .breaks(Invariant::S9);
    // `b` did not change since, so every revision reaches it.
    three_versions()
        .compacted(60, 3)
        .collected(61, 9)
        .breaks(Invariant::S9);
    let pinned = three_versions()
        .pinned(55, 100, place(1, 1))
        .compacted(60, 3);
    pinned.collected(61, 1).breaks(Invariant::S9);
    let expired = three_versions()
        .pinned(55, 100, place(1, 1))
        .compacted(60, 3);
    expired.collected(101, 1).passes();
    let other = three_versions()
        .pinned(55, 100, place(1, 2))
        .compacted(60, 3);
    other.collected(61, 1).passes();
}

#[test]
fn what_an_unanswered_publish_may_have_replaced_is_not_held_against_the_collector() {
    let story = || three_versions().sent(51, None, &[("a", 4)]);
    story().compacted(60, 4).collected(61, 3).passes();
    // Unless it was seen there.
    story()
        .read(read("a", 52..53, place(1, 4), 3, 3))
        .compacted(60, 4)
        .collected(61, 3)
        .breaks(Invariant::S9);
}

#[test]
fn a_visible_blob_that_the_coordinator_lacks_breaks_s10() {
    three_versions().audited(60, 3, &[3, 9, 77]).passes();
    three_versions().audited(60, 3, &[3]).breaks(Invariant::S10);
    three_versions()
        .audited(60, 3, &[1, 2, 9])
        .breaks(Invariant::S10);
    three_versions().audited(60, 2, &[2, 9]).passes();
    three_versions()
        .publish(51..52, 4, &[("b", 0)])
        .audited(60, 4, &[3])
        .passes();
}

#[test]
fn what_a_publish_may_have_changed_is_not_held_against_the_collector() {
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .sent(11, None, &[("a", 2), ("b", 2)])
        .acknowledged(12, place(1, 2), 1)
        .compacted(20, 2)
        .collected(21, 1)
        .passes();
}

#[test]
fn a_pin_of_a_lost_epoch_keeps_nothing_of_the_next() {
    let at = |rev: u64| place(2, rev);
    Story::new()
        .publish(0..10, 1, &[("a", 1)])
        .pinned(11, 100, place(1, 3))
        .restored(20, 2, place(1, 1))
        .sent(21, None, &[("a", 2)])
        .acknowledged(22, at(3), 1)
        .sent(23, None, &[("a", 3)])
        .acknowledged(24, at(4), 1)
        .event(Event::Compacted {
            at: time(30),
            oldest: at(4),
        })
        .collected(31, 2)
        .passes();
}

#[test]
fn a_blob_that_may_be_replaced_need_not_be_there() {
    three_versions()
        .sent(51, None, &[("a", 4)])
        .audited(60, 4, &[9])
        .passes();
}
