use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::proto::wire::{Push, Response};

/// Pushes that may wait for one worker's stream. A worker that takes no more of them loses the
/// stream, and with it its next lease.
const MAX_QUEUED: usize = 64;

/// The streams that are pushed to, by number.
#[derive(Debug, Default)]
pub(super) struct Streams {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Sender<Bytes>>>,
}

impl Streams {
    /// A new stream: its number, and the frames that are pushed to it.
    pub(super) fn open(&self) -> (u64, Receiver<Bytes>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = mpsc::channel(MAX_QUEUED);
        self.lock().insert(number, send);
        (number, receive)
    }

    /// Nothing more is pushed to it.
    pub(super) fn close(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Sends the same frame, encoded once, to each of `streams`.
    pub(super) fn push(&self, streams: &[u64], push: &Push) {
        let response = match push {
            Push::Prepare(prepare) => Response::Prepare(prepare.clone()),
            Push::Release(delta) => Response::Release(delta.clone()),
        };
        let frame = match response.to_frame() {
            Ok(frame) => Bytes::from(frame),
            Err(error) => {
                // Who is not told must not hold a lease for longer.
                tracing::error!(%error, "a push does not fit a frame");
                return streams.iter().for_each(|number| self.close(*number));
            }
        };
        let mut open = self.lock();
        for number in streams {
            let taken = open.get(number).map(|to| to.try_send(frame.clone()));
            if matches!(taken, Some(Err(_))) {
                metrics::counter!("larder_pushes_dropped_total").increment(1);
                open.remove(number);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Sender<Bytes>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
