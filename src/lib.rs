//! A content-addressed cache of workflow definitions, for workers behind flaky links.

pub mod answer;
pub mod api;
pub mod bridge;
pub mod catalog;
mod codec;
pub mod config;
pub mod identity;
pub mod net;
pub mod proto;
pub mod spec;
pub mod store;
pub mod trust;

pub use codec::DecodeError;
