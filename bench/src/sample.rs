use std::time::Duration;

use anyhow::Context;

/// What reads of one contender gave: one round, or all of them together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    /// Of each request.
    latencies: Vec<Duration>,
    reads: usize,
    elapsed: Duration,
    client_cpu: Duration,
    server_cpu: Option<Duration>,
}

impl Sample {
    /// `latencies` are those of requests, each of which read `batch` definitions.
    pub(crate) fn new(latencies: Vec<Duration>, batch: usize, elapsed: Duration) -> Self {
        Self {
            reads: latencies.len() * batch,
            latencies,
            elapsed,
            ..Self::default()
        }
    }

    /// With the CPU time that it took.
    pub(crate) fn with_cpu(mut self, client: Duration, server: Option<Duration>) -> Self {
        self.client_cpu = client;
        self.server_cpu = server;
        self
    }

    /// All rounds as one.
    pub(crate) fn together(rounds: &[Self]) -> Self {
        let mut all = Self::default();
        for round in rounds {
            all.latencies.extend_from_slice(&round.latencies);
            all.reads += round.reads;
            all.elapsed += round.elapsed;
            all.client_cpu += round.client_cpu;
            if let Some(cpu) = round.server_cpu {
                *all.server_cpu.get_or_insert_default() += cpu;
            }
        }
        all
    }

    /// The latency, in microseconds, that a share `quantile` of requests does not exceed.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (quantile * sorted.len() as f64).ceil() as usize;
        let at = rank.clamp(1, sorted.len().max(1)) - 1;
        sorted.get(at).copied().map_or(0.0, micros)
    }

    pub(crate) fn reads_per_sec(&self) -> f64 {
        self.reads as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time per definition of the reading side, in microseconds.
    pub(crate) fn client_cpu_us(&self) -> f64 {
        micros(self.client_cpu) / self.reads as f64
    }

    /// The same of the answering side, if that is another process.
    pub(crate) fn server_cpu_us(&self) -> Option<f64> {
        self.server_cpu.map(|cpu| micros(cpu) / self.reads as f64)
    }
}

/// A ratio in each round.
pub(crate) fn ratios(ours: &[Sample], theirs: &[Sample], of: impl Fn(&Sample) -> f64) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs);
    pairs.map(|(ours, theirs)| of(ours) / of(theirs)).collect()
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> anyhow::Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ((sorted.len().max(1) - 1) / 2, sorted.len() / 2);
    let middle = sorted.get(low).zip(sorted.get(high));
    let (low, high) = middle.context("no round was measured")?;
    Ok(f64::midpoint(*low, *high))
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(micros: impl IntoIterator<Item = u64>) -> Sample {
        let latencies = micros.into_iter().map(Duration::from_micros).collect();
        Sample::new(latencies, 1, Duration::from_secs(1))
    }

    #[test]
    fn a_quantile_is_a_latency_that_was_seen() {
        let hundred = sample((1..=100).rev());
        assert_eq!(hundred.quantile_us(0.5), 50.0);
        assert_eq!(hundred.quantile_us(0.99), 99.0);
        assert_eq!(hundred.quantile_us(1.0), 100.0);
        assert_eq!(sample([7]).quantile_us(0.01), 7.0);
        assert_eq!(sample([]).quantile_us(0.5), 0.0);
    }

    #[test]
    fn rounds_add_up() {
        let cpu = Duration::from_micros(30);
        let round = sample([1, 2]).with_cpu(cpu, Some(cpu));
        let all = Sample::together(&[round.clone(), round]);
        assert_eq!(all.reads_per_sec(), 2.0);
        assert_eq!(all.client_cpu_us(), 15.0);
        assert_eq!(all.server_cpu_us(), Some(15.0));
        assert_eq!(Sample::together(&[sample([1])]).server_cpu_us(), None);
    }

    #[test]
    fn a_batch_counts_its_reads() {
        let batches = Sample::new(
            vec![Duration::from_micros(5); 2],
            64,
            Duration::from_secs(1),
        );
        assert_eq!(batches.reads_per_sec(), 128.0);
        assert_eq!(batches.quantile_us(0.5), 5.0);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).expect("one"), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).expect("one"), 2.5);
        assert!(median(&[]).is_err());
    }
}
