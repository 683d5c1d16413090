//! What was promised, checked over what happened.
//!
//! A [`history`] holds operations with the real time at which each began and ended; [`check`]
//! finds the first that breaks one of the invariants S1 to S10. The simulator and the
//! tests of real processes all judge by it. Nothing here is in a release build: it stands behind
//! the feature `sim`.
//!
//! `model` tries every order of events in small clusters of the production machines, with the
//! exhaustive [`search`]. [`gossip`] is a world of its own, for the membership alone.

pub mod check;
pub mod gossip;
pub mod history;
#[cfg(feature = "mutants")]
pub mod model;
mod random;
pub mod search;
pub mod world;
