use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use larder::net::Congestion;
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use super::Watching;
use crate::core::{self, Side};
use crate::corpus;
use crate::fetch::Served;
use crate::fetch::bare::{bind, connect, server_config};
use crate::process;

/// What a watcher hears of a publish: about as much as larder says.
const NEWS_LEN: usize = 128;

/// What says that a publish is visible.
const VISIBLE_LEN: usize = 32;

/// One stream of each watcher.
type Watchers = Arc<Mutex<Vec<(SendStream, RecvStream)>>>;

/// A publisher that tells each watcher and waits for its acknowledgement, between two fsyncs.
pub(crate) fn serve_publisher(served: &Served) -> anyhow::Result<()> {
    let _pinned = core::pin(Side::Server)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = server_config(&served.dir, Congestion::Cubic)?;
    let (endpoint, addr) = {
        let _context = runtime.enter();
        bind(Some(config), served.listen)?
    };
    let mut file = File::create(served.dir.join("bare-journal"))?;
    let watchers = Watchers::default();
    runtime.spawn(accept(endpoint, Arc::clone(&watchers)));
    let (handle, seed) = (runtime.handle().clone(), served.seed);
    // The runtime's thread is the main one; questions come in on another.
    let asked = std::thread::spawn(move || {
        process::answer_with(&addr.to_string(), |line| {
            let (first, count, pause) = super::question(line)?;
            let mut latencies = Vec::with_capacity(count);
            for number in first..first + count {
                let body = corpus::spec(seed + 1, number).into_bytes();
                std::thread::sleep(pause);
                let (file, watchers) = (file.try_clone()?, Arc::clone(&watchers));
                let publishing = handle.spawn(publish(file, watchers, body));
                latencies.push(handle.block_on(publishing)??);
            }
            file.flush()?;
            Ok(super::latencies(&latencies))
        })
    });
    runtime.block_on(async {
        let ended = tokio::task::spawn_blocking(move || asked.join());
        match ended.await? {
            Ok(answered) => answered,
            Err(_) => Err(anyhow::anyhow!("the answering thread panicked")),
        }
    })
}

async fn accept(endpoint: Endpoint, watchers: Watchers) {
    while let Some(incoming) = endpoint.accept().await {
        let watchers = Arc::clone(&watchers);
        tokio::spawn(async move {
            let connection = incoming.await?;
            let (mut send, mut recv) = connection.accept_bi().await?;
            let mut greeting = [0];
            recv.read_exact(&mut greeting).await?;
            send.write_all(&greeting).await?;
            let mut watchers = watchers.lock().unwrap_or_else(PoisonError::into_inner);
            watchers.push((send, recv));
            anyhow::Ok(())
        });
    }
}

async fn publish(
    mut file: File,
    watchers: Watchers,
    body: bytes::Bytes,
) -> anyhow::Result<Duration> {
    // Nobody else takes them while one publish follows the other.
    let mut streams = std::mem::take(&mut *watchers.lock().unwrap_or_else(PoisonError::into_inner));
    let began = Instant::now();
    file.write_all(&body)?;
    file.write_all(&[1; NEWS_LEN])?;
    file.sync_data()?;
    for (send, _) in &mut streams {
        send.write_all(&[1; NEWS_LEN]).await?;
    }
    for (_, recv) in &mut streams {
        recv.read_exact(&mut [0]).await?;
    }
    file.write_all(&[2; VISIBLE_LEN])?;
    file.sync_data()?;
    let took = began.elapsed();
    watchers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(streams);
    Ok(took)
}

/// Watchers that acknowledge all they hear, each with an endpoint of its own.
pub(crate) fn serve_watchers(watching: &Watching) -> anyhow::Result<()> {
    let _pinned = core::pin(Side::Client)?;
    if watching.threads {
        return serve_watching_threads(watching);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut connections = Vec::with_capacity(watching.workers);
    for _ in 0..watching.workers {
        let (endpoint, connection, streams) = runtime.block_on(watch(watching))?;
        runtime.spawn(acknowledge(streams));
        connections.push((endpoint, connection));
    }
    let asked = std::thread::spawn(|| process::answer("watchers"));
    runtime.block_on(async {
        let ended = tokio::task::spawn_blocking(move || asked.join());
        match ended.await? {
            Ok(answered) => answered,
            Err(_) => Err(anyhow::anyhow!("the answering thread panicked")),
        }
    })
}

/// The same with a runtime and a thread for each. They end with the process.
fn serve_watching_threads(watching: &Watching) -> anyhow::Result<()> {
    for _ in 0..watching.workers {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (endpoint, connection, streams) = runtime.block_on(watch(watching))?;
        std::thread::spawn(move || {
            let _open = (endpoint, connection);
            runtime.block_on(acknowledge(streams))
        });
    }
    process::answer("watchers")
}

async fn watch(
    watching: &Watching,
) -> anyhow::Result<(Endpoint, Connection, (SendStream, RecvStream))> {
    let (endpoint, connection) = connect(
        &watching.dir,
        watching.server.parse().context("the publisher's address")?,
        Ipv4Addr::LOCALHOST.into(),
        Congestion::Cubic,
    )
    .await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&[7]).await?;
    let mut greeting = [0];
    let greeted = recv.read_exact(&mut greeting).await;
    greeted.context("the publisher's greeting")?;
    ensure!(greeting == [7], "another greeting");
    Ok((endpoint, connection, (send, recv)))
}

async fn acknowledge((mut send, mut recv): (SendStream, RecvStream)) -> anyhow::Result<()> {
    let mut news = [0; NEWS_LEN];
    loop {
        recv.read_exact(&mut news).await?;
        send.write_all(&[1]).await?;
    }
}
