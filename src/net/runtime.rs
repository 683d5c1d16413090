use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::proto::limit::MAX_BLOCKING_THREADS;

/// One thread with a single-threaded tokio runtime for all of QUIC: measured, it halves latency
/// and CPU against a runtime of several threads.
#[derive(Debug)]
pub struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says when it gives no thread or no event queue.
    pub fn start() -> io::Result<Self> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("larder-net".to_owned())
            .spawn(move || {
                let mut builder = Builder::new_current_thread();
                builder
                    .enable_all()
                    .max_blocking_threads(MAX_BLOCKING_THREADS);
                let runtime = match builder.build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let _ = ready.send(Ok(runtime.handle().clone()));
                // Ends when told, or when the owner is gone.
                let _ = runtime.block_on(stopped);
            })?;
        let ended = || io::Error::other("the network thread ended at once");
        let handle = started.recv().map_err(|_| ended())??;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What runs on the thread is spawned with this.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends every task and waits for the thread. Drain the endpoints first.
    pub fn stop(self) {}
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A thread cannot wait for itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the network thread panicked");
        }
    }
}
