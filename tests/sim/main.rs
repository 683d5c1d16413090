//! Worlds in virtual time, and the proof that they would notice: see `larder::sim::world`.

mod gossip;
mod mutants;
mod probes;
mod scenarios;
mod spread;
mod worlds;
