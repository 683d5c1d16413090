//! Which cores a process may use.
//!
//! Left alone, the kernel puts the two sides of a connection on one core in one round and on two
//! in the next, and bare quinn then takes 22 us or 79 us. So each side gets half of the cores, as
//! if it were a machine of its own.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A side of a measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Gives this thread, and those that it starts, the cores that it had before when dropped.
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A measure that follows on fewer cores is slower, not wrong.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Keeps this thread, and those that it starts, on its side's half of the cores.
pub(crate) fn pin(side: Side) -> anyhow::Result<Pinned> {
    let before = sched_getaffinity(None).context("the cores of this process")?;
    let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&n| before.is_set(n)).collect();
    let mut half = CpuSet::new();
    for core in halves(&cores, side) {
        half.set(*core);
    }
    sched_setaffinity(None, &half).context("half of the cores")?;
    Ok(Pinned { before })
}

/// One core is both halves.
fn halves(cores: &[usize], side: Side) -> &[usize] {
    let (first, second) = cores.split_at(cores.len() / 2);
    match side {
        Side::Client if !first.is_empty() => first,
        _ => second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sides_share_a_core_only_if_there_is_but_one() {
        for (cores, client, server) in [
            (&[3][..], &[3][..], &[3][..]),
            (&[0, 1], &[0], &[1]),
            (&[0, 2, 4], &[0], &[2, 4]),
            (&[0, 1, 2, 3], &[0, 1], &[2, 3]),
        ] {
            assert_eq!(halves(cores, Side::Client), client);
            assert_eq!(halves(cores, Side::Server), server);
        }
    }
}
