//! One definition from this machine's disk: plain sled, a worker's store, a worker.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use larder::Worker;
use larder::answer::{Hop, Query, Target};
use larder::config::StoreChoice;
use larder::spec::{Spec, SpecHash};
use larder::store::blobs::Loaded;
use larder::store::cache::{DEFAULT_CACHE_BYTES, Options, WorkerStore};
use tokio::runtime::{Builder, Runtime};

use crate::Effort;
use crate::corpus;
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
    site::init(&dir)?;
    let specs = corpus::specs(effort.seed, SPECS);
    let order = corpus::shuffled(effort.seed, SPECS);
    let reads = order.iter().cycle().take(READS / effort.divisor);
    let hashes: Vec<_> = reads.map(|&number| specs[number].hash()).collect();

    let plain = plain(&dir.join("plain"), &specs)?;
    let store = store(&dir.join("store"), &specs)?;
    drop(self::store(&dir.join("worker"), &specs)?);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let worker = worker(&dir)?;

    let mut rounds = [const { Vec::new() }; 3];
    for round in 0..effort.rounds {
        let turns = match round % 2 {
            0 => [0, 1, 2],
            _ => [2, 1, 0],
        };
        for turn in turns {
            let sample = match turn {
                0 => time(&hashes, |hash| read_plain(&plain, hash))?,
                1 => time(&hashes, |hash| read_store(&store, hash))?,
                _ => time(&hashes, |hash| read_worker(&runtime, &worker, hash))?,
            };
            rounds[turn].push(sample);
        }
    }
    runtime.block_on(worker.stop());

    let [plain, store, worker] = rounds;
    let mut measured =
        Measured::new("Local read: 4 KiB by hash, hashed again, one after the other");
    measured.row("sled get + BLAKE3", &plain);
    measured.row("larder's store", &store);
    measured.row("larder's worker", &worker);
    let aim = Aim::AtMost(1.5);
    measured.ratio("store / sled get + BLAKE3, p50", aim, &store, &plain)?;
    measured.ratio("worker / sled get + BLAKE3, p50", aim, &worker, &plain)?;
    Ok(measured)
}

fn time(
    hashes: &[SpecHash],
    mut read: impl FnMut(SpecHash) -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let mut latencies = Vec::with_capacity(hashes.len());
    let (cpu, began) = (process::cpu(), Instant::now());
    for &hash in hashes {
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

/// It needs no coordinator: a hash is its own proof.
fn worker(dir: &Path) -> anyhow::Result<Worker> {
    let store = StoreChoice::Directory(dir.join("worker"));
    Ok(Worker::start(&site::worker(dir, vec![], store)?)?)
}

fn read_worker(runtime: &Runtime, worker: &Worker, hash: SpecHash) -> anyhow::Result<()> {
    let query = Query {
        deadline: Duration::from_secs(10),
        ..Query::strict(Target::Hash(hash))
    };
    let answer = runtime.block_on(worker.query(query))?;
    ensure!(answer.proof.source == Hop::Disk, "{:?}", answer.proof);
    let len = answer.spec.map(|spec| spec.bytes().len());
    ensure!(len == Some(corpus::BODY_LEN), "{len:?} bytes");
    Ok(())
}
