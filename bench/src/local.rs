//! One definition from this machine's disk: plain sled, a worker's store, a worker that is asked
//! for a hash, and one that is asked for a name and holds a lease.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use larder::Worker;
use larder::answer::{Answer, Hop, Mode, Query, Target};
use larder::config::StoreChoice;
use larder::spec::{Spec, SpecHash};
use larder::store::blobs::Loaded;
use larder::store::cache::{DEFAULT_CACHE_BYTES, Options, WorkerStore};
use tokio::runtime::Builder;

use crate::Effort;
use crate::corpus;
use crate::fetch;
use crate::process;
use crate::report::{Aim, Measured};
use crate::sample::Sample;
use crate::site;

/// Definitions in each store: with them sled's memory is half full.
const SPECS: usize = 2_048;

/// Reads of one contender in one round.
const READS: usize = 16_384;

/// Runs the measure with its stores in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let dir = dir.join("local");
    site::init(&dir, 1)?;
    let specs = corpus::specs(effort.seed, SPECS);
    let order = corpus::shuffled(effort.seed, SPECS);
    let reads = order.iter().cycle().take(READS / effort.divisor);
    let reads: Vec<_> = reads
        .map(|&number| (number, specs[number].hash()))
        .collect();

    let plain = plain(&dir.join("plain"), &specs)?;
    let store = store(&dir.join("store"), &specs)?;
    drop(self::store(&dir.join("worker"), &specs)?);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let server = fetch::start("serve-larder", &dir, effort.seed, SPECS)?;
    let worker = worker(&dir, server.ready())?;
    runtime.block_on(site::await_lease(&worker))?;

    let by_hash = reads.iter().map(|&(_, hash)| (Target::Hash(hash), hash));
    let by_hash: Vec<_> = by_hash.collect();
    let by_name = reads.iter();
    let by_name = by_name.map(|&(number, hash)| (Target::Name(corpus::name(number)), hash));
    let by_name: Vec<_> = by_name.collect();
    let mut rounds = [const { Vec::new() }; 4];
    for round in 0..effort.rounds {
        let turns = match round % 2 {
            0 => [0, 1, 2, 3],
            _ => [3, 2, 1, 0],
        };
        for turn in turns {
            let sample = match turn {
                0 => time(&reads, |hash| read_plain(&plain, hash))?,
                1 => time(&reads, |hash| read_store(&store, hash))?,
                2 => runtime.block_on(time_worker(&worker, by_hash.clone()))?,
                _ => runtime.block_on(time_worker(&worker, by_name.clone()))?,
            };
            rounds[turn].push(sample);
        }
    }
    runtime.block_on(worker.stop());

    let [plain, store, by_hash, by_name] = rounds;
    let mut measured = Measured::new("Local read: 4 KiB, hashed again, one after the other");
    measured.row("sled get + BLAKE3", &plain);
    measured.row("larder's store", &store);
    measured.row("larder's worker, by hash", &by_hash);
    measured.row("larder's worker, by name under a lease", &by_name);
    for (what, ours) in [
        ("store / sled get + BLAKE3, p50", &store),
        ("by hash / sled get + BLAKE3, p50", &by_hash),
        ("by name / sled get + BLAKE3, p50", &by_name),
    ] {
        measured.ratio(what, Aim::AtMost(1.5), ours, &plain)?;
    }
    Ok(measured)
}

fn time(
    reads: &[(usize, SpecHash)],
    mut read: impl FnMut(SpecHash) -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let mut latencies = Vec::with_capacity(reads.len());
    let (cpu, began) = (process::cpu(), Instant::now());
    for &(_, hash) in reads {
        let since = Instant::now();
        read(hash)?;
        latencies.push(since.elapsed());
    }
    let (elapsed, cpu) = (began.elapsed(), process::cpu().saturating_sub(cpu));
    Ok(Sample::new(latencies, 1, elapsed).with_cpu(cpu, None))
}

/// Opened as larder opens its own.
fn plain(dir: &Path, specs: &[Spec]) -> anyhow::Result<sled::Db> {
    let db = sled::Config::new()
        .path(dir)
        .cache_capacity(DEFAULT_CACHE_BYTES)
        .flush_every_ms(Some(500))
        .open()?;
    for spec in specs {
        db.insert(spec.hash().as_bytes(), &spec.bytes()[..])?;
    }
    db.flush()?;
    Ok(db)
}

fn read_plain(db: &sled::Db, hash: SpecHash) -> anyhow::Result<()> {
    let bytes = db.get(hash.as_bytes())?.context("the bytes are there")?;
    ensure!(blake3::hash(&bytes) == *hash.as_bytes(), "wrong bytes");
    Ok(())
}

fn store(dir: &Path, specs: &[Spec]) -> anyhow::Result<WorkerStore> {
    let (store, _) = WorkerStore::open(dir, Options::default())?;
    for spec in specs {
        ensure!(store.save(spec)?, "a body was not kept");
    }
    store.flush()?;
    Ok(store)
}

fn read_store(store: &WorkerStore, hash: SpecHash) -> anyhow::Result<()> {
    let loaded = store.load(hash, None)?;
    ensure!(matches!(loaded, Loaded::Found(_)), "{loaded:?}");
    Ok(())
}

fn worker(dir: &Path, coordinator: &str) -> anyhow::Result<Worker> {
    let store = StoreChoice::Directory(dir.join("worker"));
    let coordinators = vec![coordinator.parse().context("the coordinator's address")?];
    Ok(Worker::start(&site::worker(dir, 0, coordinators, store)?)?)
}

/// As a task of an engine reads, within a runtime; what it asks for it has already.
async fn time_worker(worker: &Worker, reads: Vec<(Target, SpecHash)>) -> anyhow::Result<Sample> {
    let mut latencies = Vec::with_capacity(reads.len());
    let (cpu, began) = (process::cpu(), Instant::now());
    for (target, hash) in reads {
        let mode = match target {
            Target::Name(_) => Mode::Lease,
            Target::Hash(_) => Mode::Pinned,
        };
        let since = Instant::now();
        let answer = worker.query(Query::strict(target)).await?;
        check(&answer, mode, hash)?;
        latencies.push(since.elapsed());
    }
    let (elapsed, cpu) = (began.elapsed(), process::cpu().saturating_sub(cpu));
    Ok(Sample::new(latencies, 1, elapsed).with_cpu(cpu, None))
}

fn check(answer: &Answer, mode: Mode, hash: SpecHash) -> anyhow::Result<()> {
    let proof = &answer.proof;
    ensure!(proof.source == Hop::Disk && proof.mode == mode, "{proof:?}");
    let spec = answer.spec.as_ref().context("the name is published")?;
    ensure!(spec.hash() == hash, "other bytes");
    ensure!(spec.bytes().len() == corpus::BODY_LEN, "a wrong length");
    Ok(())
}
