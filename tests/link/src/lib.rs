//! A flaky network for real processes, without netem.
//!
//! Each node is a network namespace with one TUN device, and a thread of this process carries
//! whole IP packets between them: it delays, drops, reorders, repeats and cuts, per direction and
//! per pair of nodes, as rules say that a scenario changes over time. In reading order:
//!
//! - [`rule`]: what a link does to packets, and [`mod@unit`]: how a scenario writes quantities;
//! - [`link`]: the decisions for one direction, without I/O or a clock;
//! - [`net`]: nodes, rules, and the thread that carries packets out (`forward`);
//! - [`scenario`]: the files that say when what changes, [`play`]: what carries that out,
//!   [`shipped`]: those that come with it;
//! - [`table`]: counters for people and programs;
//! - `sys`: the system calls.
//!
//! Namespaces have no name: they end with this process and those that were started in them.
//! Linux alone has them, and making one needs root.

mod forward;
pub mod link;
pub mod net;
pub mod play;
pub mod rule;
pub mod scenario;
pub mod shipped;
mod sys;
pub mod table;
pub mod unit;

use std::io::Write;
use std::time::Duration;

pub use net::{Missing, Net, Node, Options};
pub use rule::Rule;
pub use scenario::Scenario;

/// Now on the boot clock, which nobody sets and which runs on in suspension.
pub fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

/// Whether a test has to be left out here; says so on stderr, also where a harness captures what
/// tests print.
pub fn skips() -> bool {
    let Err(missing) = net::probe() else {
        return false;
    };
    let line = format!("skipped: needs root (network namespaces): {missing}\n");
    // Nobody is left to tell if stderr is closed.
    let _ = std::io::stderr().write_all(line.as_bytes());
    true
}
