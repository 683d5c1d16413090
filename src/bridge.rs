//! Where definitions go once they are resolved: to engines and tools on the same machine.

pub mod http;
