//! A content-addressed cache of workflow definitions, for workers behind flaky links.

pub mod catalog;
mod codec;
pub mod spec;

pub use codec::DecodeError;
