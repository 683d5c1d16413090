//! The model: every scenario whole, and every fault that it is meant to find.
//!
//! `cargo test --locked --test model -- --nocapture` prints both tables. `LARDER_MODEL_DEEP=1` lets
//! more happen in each scenario, which takes hours; `LARDER_MODEL_ONLY=<words>` picks scenarios by
//! name.

use std::time::Instant;

use larder::proto::mutant::{Guard, Mutant};
use larder::sim::model::{Scenario, caught, explore, meant_for};

/// States of one scenario, more than the largest has.
const LIMIT: usize = 1_000_000;

/// The same for a deep search: what 16 GiB of memory hold.
const DEEP_LIMIT: usize = 20_000_000;

/// The scenarios are shared out among so many tests, which run side by side.
const SHARES: usize = 2;

#[test]
fn every_scenario_keeps_every_promise() {
    keep_promises(0);
}

#[test]
fn every_other_scenario_keeps_every_promise() {
    keep_promises(1);
}

fn keep_promises(share: usize) {
    let deep = std::env::var_os("LARDER_MODEL_DEEP").is_some();
    let only = std::env::var("LARDER_MODEL_ONLY").unwrap_or_default();
    let limit = if deep { DEEP_LIMIT } else { LIMIT };
    for (number, scenario) in Scenario::all(deep).into_iter().enumerate() {
        if number % SHARES != share || !scenario.name.contains(&only) {
            continue;
        }
        let began = Instant::now();
        let found = explore(&scenario, limit).expect("the scenario begins");
        println!(
            "| {} | {} | {} | {} | {:.1} |",
            scenario.name,
            found.states,
            found.steps,
            found.depth,
            began.elapsed().as_secs_f64()
        );
        if let Some(trace) = found.trace {
            panic!("{}:\n{trace}", scenario.name);
        }
        assert!(found.complete, "{} has more states", scenario.name);
    }
}

#[test]
fn clocks_beyond_the_bound_break_a_promise() {
    let found = explore(&Scenario::drift_beyond_the_bound(), LIMIT).expect("it begins");
    let trace = found
        .trace
        .expect("a lease outlives what the coordinator waits for");
    assert!(trace.broken.starts_with("S1"), "{trace}");
}

#[test]
fn every_fault_that_the_model_is_meant_to_find_is_found() {
    for &mutant in Mutant::ALL {
        let Some(scenario) = meant_for(mutant) else {
            continue;
        };
        let began = Instant::now();
        let Some(caught) = caught(mutant) else {
            panic!("{} survives", mutant.name());
        };
        println!(
            "| {} | {} | {} steps | {} states | {:.1} s | {} |",
            mutant.name(),
            caught.scenario,
            caught.trace.steps.len(),
            caught.states,
            began.elapsed().as_secs_f64(),
            caught.trace.broken
        );
        assert_eq!(caught.scenario, scenario, "{}", mutant.name());
    }
}

#[test]
fn a_trace_tells_step_by_step_what_happened() {
    let _guard = Guard::new(Mutant::M02);
    let scenario = &Scenario::all(false)[0];
    let found = explore(scenario, LIMIT).expect("it begins");
    let told = found
        .trace
        .expect("nobody waits for the holder")
        .to_string();
    let expected = [
        "publish 2 is sent",
        "the disk has written pending 2",
        "the disk has written visible 2",
        "S1: worker 0 answered with 1:1, and a publish was acknowledged at 1:2 before",
    ];
    for line in expected {
        assert!(told.contains(line), "`{line}` is missing in\n{told}");
    }
    let again = explore(scenario, LIMIT).expect("it begins");
    assert_eq!(again.trace.expect("the same").to_string(), told);
}
