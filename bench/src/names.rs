//! What many names cost: a publish into them at the coordinator, and a worker's memory.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use larder::catalog::{CatalogId, HeadKey};
use larder::proto::Time;
use larder::proto::coordinator::{Coordinator, Input, Ledger, Options, Output, Written};
use larder::proto::wire::{Publish, PublishName};
use larder::spec::SpecHash;

use crate::Effort;
use crate::corpus;
use crate::process;
use crate::publish::{Cluster, Kind};
use crate::report::{Aim, Measured};
use crate::sample::Sample;
use crate::site;

const NAMES: [usize; 3] = [0, 10_000, 100_000];

/// Timed publishes, of one name each.
const PUBLISHES: usize = 64;

const MIB: f64 = (1 << 20) as f64;

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let mut measured = Measured::new("Names: a publish of one name into many, and their memory");
    let mut figures = Vec::new();
    for names in NAMES {
        let machine = machine(names, effort)?;
        measured.row(
            format!("the machine alone, {names} names"),
            std::slice::from_ref(&machine),
        );

        let dir = dir.join(format!("names-{names}"));
        site::init(&dir, 1)?;
        let mut cluster = Cluster::start(&dir, effort, names, 1, Kind::STORED)?;
        let memory = cluster.watchers[0].memory()? as f64 / MIB;
        let coordinator = cluster.publisher.memory()? as f64 / MIB;
        let publishes = cluster.publish((PUBLISHES / effort.divisor).max(2))?;
        measured.row(
            format!("a worker and a coordinator, {names} names"),
            std::slice::from_ref(&publishes),
        );

        let aim = (names == 100_000).then_some(Aim::AtMost(2_000.0));
        let cpu = machine.client_cpu_us();
        figures.push((
            format!("CPU of a publish, machine, {names} names"),
            cpu,
            "us",
            aim,
        ));
        let cpu = publishes.server_cpu_us().unwrap_or_default();
        figures.push((
            format!("CPU of a publish, coordinator, {names} names"),
            cpu,
            "us",
            aim,
        ));
        let aim = (names == 10_000).then_some(Aim::AtMost(64.0));
        figures.push((
            format!("memory of a worker, {names} names"),
            memory,
            "MiB",
            aim,
        ));
        let what = format!("memory of a coordinator, {names} names");
        figures.push((what, coordinator, "MiB", None));
    }
    for (what, value, unit, aim) in figures {
        measured.figure(what, value, unit, aim);
    }
    Ok(measured)
}

/// Publishes by the coordinator's machine without a disk: the next catalog, its root, the signed
/// head, and what readers see.
fn machine(names: usize, effort: Effort) -> anyhow::Result<Sample> {
    let key = HeadKey::from_bytes([7; 32]);
    let genesis = Coordinator::genesis(CatalogId::from_bytes([7; 16]), &key);
    let ledger = Ledger::begin(&genesis)?.finish()?;
    let options = Options {
        lease: Duration::ZERO,
        ..Options::default()
    };
    let mut machine = Coordinator::new(ledger, Arc::new(key), options, 0, Time::from_micros(0));
    let numbers: Vec<_> = (0..names).collect();
    for numbers in numbers.chunks(10_000) {
        publish(&mut machine, numbers.iter().map(|&number| (number, 0)))?;
    }
    let mut latencies = Vec::with_capacity(PUBLISHES);
    let (cpu, began) = (process::cpu(), Instant::now());
    for round in 1..=(PUBLISHES / effort.divisor).max(2) {
        let since = Instant::now();
        publish(&mut machine, [(round * 7 % names.max(1), round)])?;
        latencies.push(since.elapsed());
    }
    let (elapsed, cpu) = (began.elapsed(), process::cpu().saturating_sub(cpu));
    Ok(Sample::new(latencies, 1, elapsed).with_cpu(cpu, None))
}

/// One publish of names by number, each with some definition of its own.
fn publish(
    machine: &mut Coordinator,
    changes: impl IntoIterator<Item = (usize, usize)>,
) -> anyhow::Result<()> {
    let changes = changes.into_iter().map(|(number, round)| PublishName {
        name: corpus::name(number),
        hash: Some(SpecHash::of(format!("{number} {round}").as_bytes())),
        len: corpus::BODY_LEN as u64,
        expect: None,
    });
    let mut inputs = VecDeque::from([Input::Publish {
        ticket: 0,
        by: "local".into(),
        publish: Publish {
            key: None,
            note: String::new(),
            changes: changes.collect(),
        },
        unix_ms: 0,
    }]);
    let mut replied = false;
    while let Some(input) = inputs.pop_front() {
        for output in machine.handle(input, Time::from_micros(1)) {
            match output {
                Output::Write(_) => inputs.push_back(Input::Written(Written::All)),
                Output::Reply { result, .. } => match result {
                    Ok(_) => replied = true,
                    Err(refusal) => bail!("not published: {refusal:?}"),
                },
                _ => {}
            }
        }
    }
    ensure!(replied, "the publish waits for something");
    Ok(())
}
