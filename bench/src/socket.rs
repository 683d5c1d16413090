//! One definition by name over the Unix socket of a worker that holds a lease, beside a bare
//! Unix socket that gives the same bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use larder::Coordinator;
use larder::answer::{Hop, Mode, Query, Target};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::config::StoreChoice;
use larder::spec::{Spec, SpecHash};
use tokio::runtime::{Builder, Runtime};

use crate::Effort;
use crate::core::{self, Side};
use crate::corpus;
use crate::fetch::{self, Served};
use crate::process;
use crate::report::Measured;
use crate::sample::{Sample, median, ratios};
use crate::site;

/// Definitions that are read in turn.
const SPECS: usize = 256;

/// Reads of one contender in one round.
const READS: usize = 1_024;

/// Length of a bare request: a number, and as many bytes as a name may have.
const REQUEST_LEN: usize = 64;

/// Runs the measure with what it needs on disk in `dir`.
pub(crate) fn measure(dir: &Path, effort: Effort) -> anyhow::Result<Measured> {
    let dir = dir.join("socket");
    site::init(&dir, 1)?;
    let specs = corpus::specs(effort.seed, SPECS);
    let mut server = fetch::start("serve-socket", &dir, effort.seed, SPECS)?;
    let _pinned = core::pin(Side::Client)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(HttpClient::connect(dir.join("w0.sock")));
    let client = client.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let mut kept = BufReader::new(UnixStream::connect(dir.join("w0.sock"))?);
    let mut bare = UnixStream::connect(dir.join("bare.sock"))?;

    let mut rounds = [const { Vec::new() }; 3];
    for round in 0..effort.rounds {
        let turns = match round % 2 {
            0 => [0, 1, 2],
            _ => [2, 1, 0],
        };
        for turn in turns {
            let mut latencies = Vec::new();
            let (cpu, server_cpu, began) = (process::cpu(), server.cpu()?, Instant::now());
            for number in (0..SPECS).cycle().take(READS / effort.divisor) {
                let hash = specs[number].hash();
                let since = Instant::now();
                match turn {
                    0 => read_bare(&mut bare, number, hash)?,
                    1 => read_kept(&mut kept, number, hash)?,
                    _ => read_client(&runtime, &client, number, hash)?,
                }
                latencies.push(since.elapsed());
            }
            let elapsed = began.elapsed();
            let cpu = process::cpu().saturating_sub(cpu);
            let server_cpu = server.cpu()?.saturating_sub(server_cpu);
            let sample = Sample::new(latencies, 1, elapsed);
            rounds[turn].push(sample.with_cpu(cpu, Some(server_cpu)));
        }
    }

    let [bare, kept, client] = rounds;
    let mut measured =
        Measured::new("Socket: 4 KiB by name under a lease, hashed at both ends, one at a time");
    measured.row("bare Unix socket", &bare);
    measured.row("HTTP, one connection", &kept);
    measured.row("HttpClient, a connection per read", &client);
    for (what, ours) in [("HTTP", &kept), ("HttpClient", &client)] {
        let ratio = median(&ratios(ours, &bare, |sample| sample.quantile_us(0.5)))?;
        measured.figure(format!("{what} / bare Unix socket, p50"), ratio, "", None);
    }
    Ok(measured)
}

/// A coordinator, a worker's daemon that has read everything, and the bare socket.
pub(crate) fn serve(served: &Served) -> anyhow::Result<()> {
    let _pinned = core::pin(Side::Server)?;
    let dir = &served.dir;
    let specs = corpus::specs(served.seed, served.count);
    let listener = UnixListener::bind(dir.join("bare.sock"))?;
    let bodies = specs.clone();
    std::thread::spawn(move || answer_bare(&listener, &bodies));
    let coordinator = Coordinator::start(&site::coordinator(dir)?)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(fetch::larder::publish(coordinator.api(), specs))?;
    let addr = coordinator.local_addr().to_string().parse();
    let store = StoreChoice::Directory(dir.join("worker-store"));
    let config = site::worker(dir, 0, vec![addr.context("the address")?], store)?;
    let socket = config.local.socket.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let running = runtime.spawn(larder::worker::run(config, async {
        let _ = stopped.await;
    }));
    runtime.block_on(warm_up(&socket, served.count))?;
    process::answer("socket")?;
    let _ = stop.send(());
    runtime.block_on(running)??;
    runtime.block_on(coordinator.stop());
    Ok(())
}

/// Until every name is answered by the worker alone.
async fn warm_up(socket: &Path, names: usize) -> anyhow::Result<()> {
    let patience = Instant::now() + site::LEASE_PATIENCE;
    let mut next = 0;
    while next < names {
        ensure!(Instant::now() < patience, "name {next} is not leased");
        let target = Target::Name(corpus::name(next));
        let Ok(client) = HttpClient::connect(socket).await else {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            continue;
        };
        match client.get(Query::strict(target)).await {
            Ok(answer) if answer.proof.mode == Mode::Lease && answer.proof.source == Hop::Disk => {
                next += 1;
            }
            _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
    Ok(())
}

fn answer_bare(listener: &UnixListener, bodies: &[Spec]) -> anyhow::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut request = [0; REQUEST_LEN];
    loop {
        stream.read_exact(&mut request)?;
        let body = bodies
            .get(usize::from(request[0]))
            .context("an unknown number")?;
        ensure!(SpecHash::of(body.bytes()) == body.hash(), "wrong bytes");
        stream.write_all(body.bytes())?;
    }
}

fn read_bare(stream: &mut UnixStream, number: usize, hash: SpecHash) -> anyhow::Result<()> {
    let mut request = [0; REQUEST_LEN];
    request[0] = u8::try_from(number)?;
    stream.write_all(&request)?;
    let mut body = [0; corpus::BODY_LEN];
    stream.read_exact(&mut body)?;
    ensure!(SpecHash::of(&body) == hash, "wrong bytes");
    Ok(())
}

/// As a client in any language may do it.
fn read_kept(
    stream: &mut BufReader<UnixStream>,
    number: usize,
    hash: SpecHash,
) -> anyhow::Result<()> {
    let name = corpus::name(number);
    let request = format!("GET /v1/specs/{name}?strict=true HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let (mut leased, mut line) = (false, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            bail!("the worker hung up");
        }
        match line.trim_end() {
            "" => break,
            "larder-mode: lease" => leased = true,
            _ => {}
        }
    }
    ensure!(leased, "no lease");
    let mut body = [0; corpus::BODY_LEN];
    stream.read_exact(&mut body)?;
    ensure!(SpecHash::of(&body) == hash, "wrong bytes");
    Ok(())
}

fn read_client(
    runtime: &Runtime,
    client: &HttpClient,
    number: usize,
    hash: SpecHash,
) -> anyhow::Result<()> {
    let answer = client.get(Query::strict(Target::Name(corpus::name(number))));
    let answer = runtime.block_on(answer);
    let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let proof = &answer.proof;
    ensure!(proof.mode == Mode::Lease, "{proof:?}");
    let spec = answer.spec.context("the name is published")?;
    ensure!(spec.hash() == hash, "other bytes");
    Ok(())
}
