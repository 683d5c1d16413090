//! The gate that bytes for others go through.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::identity::NodeId;
use crate::proto::code::Refusal;
use crate::proto::worker::Uploads;

/// What this worker gives to others at most.
#[derive(Debug)]
pub(super) struct Gate(Arc<Mutex<Uploads>>);

/// A question that is being answered; it ends with this value.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Mutex<Uploads>>,
    node: NodeId,
}

impl Gate {
    /// At most `limit` bytes per second.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(Uploads::new(limit))))
    }

    /// A question of `node` comes.
    ///
    /// # Errors
    /// What it is told instead of an answer.
    pub(super) fn enter(&self, node: NodeId) -> Result<Pass, Refusal> {
        lock(&self.0).begin(node)?;
        let gate = Arc::clone(&self.0);
        Ok(Pass { gate, node })
    }
}

impl Pass {
    /// `len` bytes are about to go out.
    ///
    /// # Errors
    /// What the asker is told instead.
    pub(super) fn take(&self, len: u64) -> Result<(), Refusal> {
        lock(&self.gate).take(len, clock::now())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.gate).end(self.node);
    }
}

fn lock(uploads: &Mutex<Uploads>) -> MutexGuard<'_, Uploads> {
    // It only counts: a panic elsewhere leaves it usable.
    uploads.lock().unwrap_or_else(PoisonError::into_inner)
}
