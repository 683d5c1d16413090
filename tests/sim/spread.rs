//! How often the coordinator gives the bytes of a definition to a crowd of workers.
//!
//! `cargo test --release --locked --test sim spread -- --nocapture` prints it.

use std::time::Duration;

use larder::sim::world::{Outcome, Plan, run};

/// Copies of one body that the coordinator may give where nothing is lost and nobody lies: to those
/// who ask first, and to some whose time with the others was over.
const MOST: u64 = 8;

/// A publish now and then, and workers that all read.
fn crowd(workers: usize, members: bool) -> Plan {
    let ms = Duration::from_millis;
    Plan {
        kind: "spread",
        workers,
        readers: 1,
        names: 2,
        members,
        deletes: 0,
        think: (ms(1), ms(400)),
        publish: (ms(2_000), ms(4_000)),
        length: Duration::from_secs(12),
        delay: (ms(1), ms(5)),
        lease: Duration::from_secs(6),
        ..Plan::small(7)
    }
}

fn measure(plan: &Plan) -> Outcome {
    let outcome = run(plan).unwrap_or_else(|failure| panic!("{failure}"));
    println!(
        "{} workers, members {}, liars {} %, loss {} %: {} bodies, {} copies of the coordinator's, at most {} of one",
        plan.workers,
        plan.members,
        plan.liars,
        plan.loss,
        outcome.bodies,
        outcome.copies,
        outcome.most_copies
    );
    outcome
}

#[test]
fn a_body_leaves_the_coordinator_a_few_times_however_many_workers_read_it() {
    for workers in [10, 100, 300] {
        let outcome = measure(&crowd(workers, true));
        assert!(outcome.bodies > 2, "something was read");
        assert!(
            outcome.most_copies <= MOST,
            "{workers} workers: {outcome:?}"
        );
    }
    let outcome = measure(&crowd(100, false));
    assert!(
        outcome.most_copies >= 50,
        "or this shows nothing: {outcome:?}"
    );
}

#[test]
fn members_that_lie_cost_time_and_never_a_wrong_byte() {
    let plan = Plan {
        liars: 30,
        loss: 5,
        ..crowd(100, true)
    };
    // The checker has seen every answer.
    assert!(measure(&plan).report.answered_reads() > 1_000);
}
