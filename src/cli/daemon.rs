//! What the commands of both daemons share: their runtime and the signals that end them.

use std::future::Future;

use larder::proto::limit::MAX_BLOCKING_THREADS;
use larder::{Part, RunError};
use tokio::signal::unix::{SignalKind, signal};

use super::complaint::Complaint;
use super::exit::Exit;

/// A shutdown that a daemon waits for.
pub(crate) type Shutdown = std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// Runs a daemon until SIGTERM or SIGINT. The network has a thread of its own; this runtime
/// carries the local socket.
pub(crate) fn block_on<F>(daemon: impl FnOnce(Shutdown) -> F) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), RunError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Box::pin(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM"),
                _ = interrupt.recv() => tracing::info!("SIGINT"),
            }
        });
        daemon(shutdown).await.map_err(complain)
    })
}

/// A daemon's error with its exit code and hint.
pub(crate) fn complain(error: RunError) -> anyhow::Error {
    let exit = match error.part() {
        Part::Trust => Exit::Trust,
        Part::Address => Exit::Address,
        Part::Store => Exit::Store,
        Part::Other => Exit::General,
    };
    let complaint = Complaint::new(exit, error.to_string());
    let complaint = match error.hint() {
        Some(hint) => complaint.hint(hint),
        None => complaint,
    };
    complaint.because(error).into()
}
