//! A content-addressed cache of workflow definitions, for workers behind flaky links.

pub mod answer;
pub mod api;
pub mod bridge;
pub mod catalog;
pub mod client;
pub mod clock;
mod codec;
pub mod config;
pub mod coordinator;
mod daemon;
pub mod identity;
pub mod net;
pub mod proto;
pub mod spec;
pub mod store;
pub mod trust;
pub mod worker;

pub use codec::DecodeError;
pub use coordinator::Coordinator;
pub use daemon::{Part, RunError};
pub use worker::Worker;
