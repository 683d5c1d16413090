//! Counts what one counter of larder's counts in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// Bytes of definitions that a coordinator gave out.
const BODY_BYTES: &str = "larder_body_bytes_sent_total";

#[derive(Debug, Default)]
struct Bytes(AtomicU64);

impl CounterFn for Bytes {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

/// Bytes of definitions that this process's coordinator gave out since it was installed.
#[derive(Debug, Default, Clone)]
pub(crate) struct BodyBytes(Arc<Bytes>);

impl BodyBytes {
    /// Begins to count. No other recorder may be there.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let counter = Self::default();
        metrics::set_global_recorder(counter.clone())
            .map_err(|_| anyhow::anyhow!("something else counts metrics"))?;
        Ok(counter)
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }
}

impl Recorder for BodyBytes {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() {
            BODY_BYTES => Counter::from_arc(Arc::clone(&self.0)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
