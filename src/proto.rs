//! The protocol: who takes part, what they say, and what each must never do.
//!
//! # Participants
//!
//! - The **coordinator** holds the catalog: name -> revision and hash. It alone says what a name
//!   is *now*. Only a process with a `coordinator` certificate is believed, and only where it
//!   proves, for the TLS session at hand, that it holds a head key that the worker pins.
//! - A **worker** resolves names for an engine and keeps bytes. It gives bytes to anyone in the
//!   cluster; it never says what is current.
//! - A **publisher** changes the catalog. A **reader** only asks.
//!
//! # Goals
//!
//! - A strict read never returns a definition older than any publish that was acknowledged
//!   before the read began.
//! - Bytes are hashed before anyone sees them, wherever they came from: disk, peer, coordinator.
//! - What was acknowledged survives every crash of the coordinator.
//! - A read that cannot be answered fails with every hop that was tried and why it failed.
//!
//! # Non-goals
//!
//! - Secrecy within the cluster: every member may read every definition.
//! - Consensus: there is one coordinator.
//!
//! # Form
//!
//! A connection is QUIC with ALPN [`ALPN`](wire::ALPN), TLS 1.3 and certificates on both sides.
//! Each request is one bidirectional stream that the dialler opens. The first stream carries
//! [`Hello`](wire::Hello) and its [`Welcome`](wire::Welcome): with TLS 1.3 a refused client
//! certificate shows only in this first round trip, so a link counts as up when it has succeeded.
//! Requests may leave together with the hello, on further streams: they are served after the welcome
//! has been sent, and their answers read after it has come and is believed. A hello that is no good
//! closes the connection, and nothing of them is served.
//!
//! A coordinator's welcome has the newest visible head, and a proof: its head key's signature over
//! a tag, 32 bytes of keying material that only the two ends of this session know, and the head's
//! catalog id and epoch ([`SessionClaim`](crate::catalog::SessionClaim)). Answers over that
//! connection are of that catalog, and of that epoch or a later one. A coordinator without a
//! store shows neither, and everything it answers but a refusal is ignored.
//!
//! | request (dialler) | answer | who may ask | a short or missing answer means |
//! | --- | --- | --- | --- |
//! | `Hello` | `Welcome` | all | the link is not up |
//! | `Resolve` | `Resolved`, then one `Outcome` (and body) per name | all | names without an outcome are unknown; an outcome without its whole body is still the truth about its name |
//! | `GetBlob` | `Blob` and body, or `Holders` unless it says `force` | all | ask someone else, and in the end the coordinator with `force` |
//! | `GetBlobs` | per hash one `BlobOf` and body, `HoldersOf` or `NoBlobOf`; of a worker `Holding` before it waits for the rest | all | the same for what has no answer |
//! | `List`, `GetLog` | `Listing`, `Log` | all | nothing |
//! | `GetStatus` | `Status` | all | nothing |
//! | `Have` | `Missing` | publisher | nothing changed |
//! | `PutBlob` and body | `Stored` | publisher | nothing changed that a reader can see |
//! | `Publish` | `Published` | publisher | it may have happened: repeat it with the same key |
//! | `Watch` | `Watching`, then `Prepare`s and `Release`s | worker | no further lease is had without one |
//! | `Renew` | `Grant` | worker | the lease is no longer than before |
//! | `Meet` | `Met` | worker | nothing is known of who else is there |
//! | `GetMembers` | `Members`, one or several | worker, of a worker | the rest comes with the next one |
//! | `Relay` | `Relaying`, then nothing until the stream ends | worker, of a worker | packets are not carried |
//! | `PrepAck`, `Leave` | `Done` | worker | the publish waits for the lease to run out, or for the next `Renew` |
//!
//! Where many workers ask for one body, the coordinator leaves it out and names one or two that
//! asked before: in `Outcome::ask`, if the `Resolve` says that the asker has `peers`, or in
//! `Holders`. They have the bytes or are about to; a worker holds a question without `force` for
//! [`limit::MAX_HOLD`] while the bytes are on their way to it, and says so in an answer to `GetBlobs`.
//! Bodies above [`limit::MAX_SHARED_BODY`] are left out of an answer about several names: those
//! behind them would wait. `Busy` from a worker is no failure:
//! others are asked.
//!
//! A `PrepAck` usually follows the `Watch` on its stream instead, as many as there are, and is not
//! answered then: a publisher waits for it, and a stream of its own costs more than all the rest.
//! Nothing else may follow a request.
//!
//! Workers also send each other packets that nobody answers: QUIC datagrams, or unidirectional
//! streams with one packet each where it does not fit. Their first byte says what they are: 1 and 2
//! are of the [membership](gossip), 3 is carried between a worker and the coordinator.
//!
//! After `Relay` the one who asked sends `3 | flow | packet`, the flow as four bytes, big-endian, and
//! the other side sends each packet on from a socket of its own, to an address of the coordinator
//! that it chose; what comes back goes the same way. Inside is a connection of this protocol, whose
//! packets have at most [`RELAY_MTU`](limit::RELAY_MTU) bytes. Nobody carries who is carried.
//!
//! Any answer may be [`Refusal`](code::Refusal) instead, with a [`Code`](code::Code) from one
//! table. A body follows its header frame as raw bytes, so that nothing copies it through a
//! codec. Every length is checked against [`limit`] before anything is allocated.
//!
//! # The machines
//!
//! [`coordinator::Coordinator`], [`worker::Worker`] and [`gossip::Gossip`] take
//! `handle(input, now)` and return outputs. They own every decision and do no I/O: no socket, file, clock or random source is
//! named below this module, and a lint says so.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub(crate) mod bucket;
#[cfg(feature = "sim")]
pub mod canon;
pub mod code;
pub mod coordinator;
pub mod gossip;
pub mod limit;
pub mod mutant;
pub mod replica;
pub mod role;
pub mod wire;
pub mod worker;

use std::time::Duration;

/// A point on a clock that never goes back, in microseconds from an arbitrary origin.
///
/// Machines only compare such points and add durations; where they come from is the driver's
/// business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// A point `micros` after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

/// What shows a [`Time`]. For a lease it has to run on while the machine is suspended.
///
/// Nothing in this module has one of its own: a driver hands it to [`worker::look`], which reads
/// it at the only moment that is right, and the simulator, the model and tests hand in others.
pub trait Clock {
    /// Now.
    fn now(&self) -> Time;
}

impl<F: Fn() -> Time> Clock for F {
    fn now(&self) -> Time {
        self()
    }
}

#[cfg(test)]
mod tests;
