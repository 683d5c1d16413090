use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::proto::wire::Push;

/// Pushes that may wait for one worker's stream. A worker that takes no more of them loses the
/// stream, and with it its next lease.
const MAX_QUEUED: usize = 64;

/// The streams that are pushed to, by number.
#[derive(Debug, Default)]
pub(super) struct Streams {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Sender<Arc<Push>>>>,
}

impl Streams {
    /// A new stream: its number, and what is pushed to it.
    pub(super) fn open(&self) -> (u64, Receiver<Arc<Push>>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = mpsc::channel(MAX_QUEUED);
        self.lock().insert(number, send);
        (number, receive)
    }

    /// Nothing more is pushed to it.
    pub(super) fn close(&self, number: u64) {
        self.lock().remove(&number);
    }

    pub(super) fn push(&self, streams: &[u64], push: &Arc<Push>) {
        let mut open = self.lock();
        for number in streams {
            let taken = open.get(number).map(|to| to.try_send(Arc::clone(push)));
            if matches!(taken, Some(Err(_))) {
                metrics::counter!("larder_pushes_dropped_total").increment(1);
                open.remove(number);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Sender<Arc<Push>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
