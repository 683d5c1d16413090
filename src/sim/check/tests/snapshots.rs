//! S3, S5, S6 and S7: bytes, runs, one worker's way forward, and bounds.

use super::*;

fn two_versions() -> Story {
    Story::new()
        .publish(0..10, 1, &[("a", 1), ("b", 1)])
        .publish(20..30, 2, &[("a", 2), ("b", 2)])
}

fn at(rev: u64) -> Ask {
    Ask::At(Revision::new(rev))
}

#[test]
fn bytes_that_are_not_the_records_break_s3() {
    two_versions()
        .read(read("a", 31..32, place(1, 2), 2, 3))
        .breaks(Invariant::S3);
    // Right hash, wrong length.
    let mut long = read("a", 31..32, place(1, 2), 2, 2);
    if let Outcome::Answered { content, .. } = &mut long.outcome {
        *content = Content::Present {
            hash: hash(2),
            len: 3,
        };
    }
    two_versions().read(long).breaks(Invariant::S3);
    // Of a revision that nobody has acknowledged yet.
    two_versions()
        .sent(31, None, &[("a", 4)])
        .read(read("a", 32..33, place(1, 3), 3, 5))
        .breaks(Invariant::S3);
    // Of a name that was never changed.
    two_versions()
        .read(read("c", 32..33, place(1, 2), 0, 5))
        .breaks(Invariant::S3);
}

#[test]
fn a_read_by_hash_gets_exactly_these_bytes_or_breaks_s3() {
    let pinned = |wanted: u8, got: u8| {
        let mut read = read("a", 31..32, place(1, 2), 2, got);
        read.target = Target::Hash(hash(wanted));
        read.of(Ask::Pinned(hash(wanted)), Mode::Pinned)
    };
    two_versions()
        .read(pinned(1, 1))
        .read(pinned(9, 9))
        .passes();
    two_versions().read(pinned(1, 2)).breaks(Invariant::S3);
    two_versions().read(pinned(1, 0)).breaks(Invariant::S3);
    two_versions().read(pinned(9, 2)).breaks(Invariant::S3);
    let mut short = pinned(2, 2);
    if let Outcome::Answered { content, .. } = &mut short.outcome {
        *content = Content::Present {
            hash: hash(2),
            len: 1,
        };
    }
    two_versions().read(short).breaks(Invariant::S3);
}

#[test]
fn an_answer_from_another_catalog_or_none_breaks_s3() {
    let mut foreign = read("a", 31..32, place(1, 2), 2, 2);
    if let Outcome::Answered { proof, .. } = &mut foreign.outcome {
        proof.snapshot = Some(Snapshot {
            catalog: CatalogId::from_bytes([8; 16]),
            ..snapshot(place(1, 2))
        });
    }
    two_versions().read(foreign.clone()).breaks(Invariant::S3);
    if let Outcome::Answered { proof, .. } = &mut foreign.outcome {
        proof.snapshot = None;
    }
    two_versions().read(foreign).breaks(Invariant::S3);
}

#[test]
fn a_run_reads_one_revision() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1), ("b", 1)])
            .run(1, 11..12, place(1, 1))
            .publish(20..30, 2, &[("a", 2), ("b", 2)])
            .read(
                read("a", 31..32, place(1, 1), 1, 1)
                    .of(at(1), Mode::At)
                    .within(1),
            )
    };
    story()
        .read(
            read("b", 33..34, place(1, 1), 1, 1)
                .of(at(1), Mode::At)
                .within(1),
        )
        .event(Event::RunEnded {
            id: RunId(1),
            at: time(40),
        })
        .passes();
    // A child at latest.
    story()
        .read(read("b", 33..34, place(1, 2), 2, 2).within(1))
        .breaks(Invariant::S5);
    // At the token by its own words, and with what came later.
    let missing = read("b", 33..34, place(1, 1), 0, 0).of(at(1), Mode::At);
    story().read(missing.within(1)).breaks(Invariant::S5);
}

#[test]
fn a_run_with_a_token_behind_an_acknowledged_publish_breaks_s5() {
    let story = |began: u64| {
        two_versions()
            .publish(40..50, 3, &[("c", 3)])
            .run(1, began..began + 1, place(1, 1))
            .read(
                read("a", 70..71, place(1, 1), 1, 1)
                    .of(at(1), Mode::At)
                    .within(1),
            )
    };
    story(60).breaks(Invariant::S5);
    story(25).passes();
    // It never looks at the name that it is behind.
    two_versions()
        .publish(40..50, 3, &[("c", 3)])
        .run(1, 60..61, place(1, 2))
        .read(
            read("a", 70..71, place(1, 2), 2, 2)
                .of(at(2), Mode::At)
                .within(1),
        )
        .passes();
}

#[test]
fn a_read_at_a_revision_that_shows_another_breaks_s5() {
    two_versions()
        .read(read("a", 31..32, place(1, 1), 1, 1).of(at(1), Mode::At))
        .passes();
    two_versions()
        .read(read("a", 31..32, place(1, 2), 2, 2).of(at(1), Mode::At))
        .breaks(Invariant::S5);
    two_versions()
        .read(read("a", 31..32, place(1, 2), 1, 1).of(at(2), Mode::At))
        .breaks(Invariant::S5);
}

#[test]
fn a_worker_that_goes_back_breaks_s6() {
    let story = || two_versions().publish(40..50, 3, &[("c", 3)]);
    let newer = || read("c", 51..52, place(1, 3), 3, 3);
    let older = |from: u64| read("a", from..60, place(1, 2), 2, 2).of(Ask::Strict, Mode::Lease);
    // Another worker, or at the same time.
    story().read(newer()).read(older(55).by(1, 0)).passes();
    story().read(newer()).read(older(52)).passes();

    story().read(newer()).read(older(55)).breaks(Invariant::S6);
    let restarted = older(55).by(0, 1);
    story().read(newer()).read(restarted).breaks(Invariant::S6);
    let bound = Ask::Bounded(Duration::from_micros(20));
    let bounded = older(55).of(bound, Mode::Bounded);
    story()
        .read(newer())
        .read(bounded.clone())
        .breaks(Invariant::S6);
    story()
        .read(newer().of(bound, Mode::Bounded))
        .read(bounded)
        .breaks(Invariant::S6);
    let token = Ask::AtLeast(place(1, 2));
    let at_least = older(55).of(token, Mode::AtLeast);
    story().read(newer()).read(at_least).breaks(Invariant::S6);
    // A given revision is no step back.
    let given = older(55).of(at(2), Mode::At);
    story().read(newer()).read(given).passes();
}

#[test]
fn a_worker_that_goes_back_to_an_earlier_epoch_breaks_s6() {
    two_versions()
        .restored(40, 2, place(1, 1))
        .read(read("a", 41..42, place(2, 2), 1, 1))
        .read(read("b", 43..44, place(1, 2), 2, 2))
        .breaks(Invariant::S6);
}

#[test]
fn a_read_behind_its_token_breaks_s6() {
    let token = Ask::AtLeast(place(1, 2));
    two_versions()
        .read(read("a", 31..32, place(1, 2), 2, 2).of(token, Mode::AtLeast))
        .passes();
    two_versions()
        .read(read("a", 31..32, place(1, 1), 1, 1).of(token, Mode::AtLeast))
        .breaks(Invariant::S6);
}

#[test]
fn a_bounded_read_behind_an_older_publish_breaks_s7() {
    let story = |bound: u64| {
        let bound = Ask::Bounded(Duration::from_micros(bound));
        let old = read("a", 60..61, place(1, 1), 1, 1);
        two_versions().read(old.of(bound, Mode::Bounded))
    };
    story(100).passes();
    story(30).passes();
    story(29).breaks(Invariant::S7);
    story(0).breaks(Invariant::S7);
}

#[test]
fn a_run_stays_at_its_token_while_the_world_goes_on_and_then_ends() {
    let story = || {
        Story::new()
            .publish(0..10, 1, &[("a", 1)])
            .run(1, 11..12, place(1, 1))
            .publish(20..30, 2, &[("a", 2)])
            .read(
                read("a", 31..32, place(1, 1), 1, 1)
                    .of(Ask::Strict, Mode::At)
                    .within(1),
            )
    };
    story().passes();
    story()
        .event(Event::RunEnded {
            id: RunId(1),
            at: time(40),
        })
        .read(
            read("a", 41..42, place(1, 1), 1, 1)
                .of(at(1), Mode::At)
                .within(1),
        )
        .breaks(Invariant::Record);
}
