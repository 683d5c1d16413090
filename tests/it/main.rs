//! Larder as its users meet it: in process through the crate, and as real processes.

mod bad_input;
mod crash;
mod doctor;
mod frames;
mod freshness;
mod full_disk;
mod hostile;
mod hostile_gossip;
mod in_process;
mod main_job;
mod membership;
mod peers;
mod runs;
mod site;
mod trust;
