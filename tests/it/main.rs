//! Larder as its users meet it: in process through the crate, and as real processes.

mod in_process;
