use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use larder::answer::{Query, Target};
use larder::api::Api;
use larder::config::StoreChoice;
use larder::proto::wire::{Publish, PublishName};
use larder::spec::{Spec, SpecHash, SpecName, Syntax};
use larder::{Coordinator, Worker};
use tokio::runtime::{Builder, Runtime};

use super::Watching;
use crate::core::{self, Side};
use crate::corpus;
use crate::fetch::Served;
use crate::process;
use crate::site;

/// Names in one publish before the measure.
const NAMES_PER_PUBLISH: usize = 10_000;

/// Distinct definitions that these names share.
const BODIES: usize = 256;

/// A coordinator that publishes when it is asked to.
pub(crate) fn serve_publisher(served: &Served) -> anyhow::Result<()> {
    let _pinned = core::pin(Side::Server)?;
    let coordinator = Coordinator::start(&site::coordinator(&served.dir)?)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fill(coordinator.api(), served.seed, served.count))?;
    let ready = coordinator.local_addr().to_string();
    process::answer_with(&ready, |line| {
        let (first, count, pause) = super::question(line)?;
        let mut latencies = Vec::with_capacity(count);
        for number in first..first + count {
            // Not the definitions that were published first.
            let spec = corpus::spec(served.seed + 1, number);
            std::thread::sleep(pause);
            latencies.push(runtime.block_on(publish(coordinator.api(), spec))?);
        }
        Ok(super::latencies(&latencies))
    })?;
    runtime.block_on(coordinator.stop());
    Ok(())
}

async fn publish(api: &dyn Api, spec: Spec) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let changes = vec![change(corpus::name(0), spec.hash())];
    put(api, spec).await?;
    let published = api.publish(Publish {
        key: None,
        note: String::new(),
        changes,
    });
    let published = published.await;
    let published = published.map_err(|failure| anyhow::anyhow!("not published: {failure:?}"))?;
    let took = began.elapsed();
    let waited = published.waited;
    ensure!(
        waited.expired.is_empty(),
        "a worker did not hear: {waited:?}"
    );
    Ok(took)
}

async fn put(api: &dyn Api, spec: Spec) -> anyhow::Result<()> {
    let put = api.put_body(spec, Syntax::AnyText).await;
    put.map_err(|failure| anyhow::anyhow!("a body was not taken: {failure:?}"))
}

fn change(name: SpecName, hash: SpecHash) -> PublishName {
    PublishName {
        name,
        hash: Some(hash),
        len: corpus::BODY_LEN as u64,
        expect: None,
    }
}

async fn fill(api: &dyn Api, seed: u64, names: usize) -> anyhow::Result<()> {
    let specs = corpus::specs(seed, BODIES.min(names));
    for spec in &specs {
        put(api, spec.clone()).await?;
    }
    let numbers: Vec<_> = (0..names).collect();
    for numbers in numbers.chunks(NAMES_PER_PUBLISH) {
        let changes = numbers.iter().map(|&number| {
            let hash = specs[number % specs.len()].hash();
            change(corpus::name(number), hash)
        });
        let published = api.publish(Publish {
            key: None,
            note: String::new(),
            changes: changes.collect(),
        });
        let published = published.await;
        published.map_err(|failure| anyhow::anyhow!("not published: {failure:?}"))?;
    }
    Ok(())
}

/// Workers that hold leases, each with an endpoint of its own.
pub(crate) fn serve_workers(watching: &Watching) -> anyhow::Result<()> {
    let _pinned = core::pin(Side::Client)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let numbers = watching.first..watching.first + watching.workers;
    let workers = numbers.map(|number| {
        let store = match watching.store {
            true => StoreChoice::Directory(watching.dir.join(format!("store-{number}"))),
            false => StoreChoice::None,
        };
        let coordinators = vec![
            watching
                .server
                .parse()
                .context("the coordinator's address")?,
        ];
        let config = site::worker(&watching.dir, number, coordinators, store)?;
        Ok(Worker::start(&config)?)
    });
    let workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
    for worker in &workers {
        runtime.block_on(site::await_lease(worker))?;
    }
    process::answer_with("workers", |line| {
        let Some(number) = line.strip_prefix("read ") else {
            bail!("an unknown question: {line}");
        };
        let wanted = corpus::spec(watching.seed + 1, number.parse()?).hash();
        runtime.block_on(read(&workers, wanted))?;
        Ok("read".into())
    })?;
    stop(&runtime, workers);
    Ok(())
}

async fn read(workers: &[Worker], wanted: SpecHash) -> anyhow::Result<()> {
    for worker in workers {
        let answer = worker.query(Query::strict(Target::Name(corpus::name(0))));
        let spec = answer.await?.spec.context("the name is published")?;
        ensure!(spec.hash() == wanted, "an old definition");
    }
    Ok(())
}

/// All at once: each takes its time to say that it leaves.
fn stop(runtime: &Runtime, workers: Vec<Worker>) {
    runtime.block_on(async {
        let stopping: Vec<_> = workers
            .into_iter()
            .map(|worker| tokio::spawn(worker.stop()))
            .collect();
        for stopped in stopping {
            let _ = stopped.await;
        }
    });
}
