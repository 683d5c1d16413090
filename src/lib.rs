//! A content-addressed cache of workflow definitions, for workers behind flaky links.
//!
//! A [`Coordinator`] says what each name is now; a [`Worker`] answers reads of names with proof
//! and keeps the bytes; peers give bytes, never truth. Everything travels over QUIC with mutual
//! TLS, and every byte is hashed before anyone sees it.
//!
//! # The map, in reading order
//!
//! What the words mean:
//!
//! 1. [`spec`]: names, hashes, and the exact bytes of a definition.
//! 2. [`catalog`]: name -> revision and hash, its history, its state root, signed heads, and the
//!    entries that a journal holds.
//! 3. [`answer`]: what a reader asks, and the proof or the list of hops that it gets.
//! 4. [`identity`]: who a node is.
//!
//! What is decided, without I/O and without a clock:
//!
//! 5. [`proto`]: the protocol, its limits, codes and roles, and the two machines,
//!    [`proto::coordinator`] and [`proto::worker`].
//!
//! What carries it out:
//!
//! 6. [`store`]: what is on disk and what a crash may lose.
//! 7. [`trust`]: certificates, the trust file, and the check of a peer.
//! 8. [`net`]: frames over QUIC.
//! 9. [`coordinator`] and [`worker`]: the two daemons, wiring only. [`clock`] is the one place
//!    where they read time.
//!
//! How it is used:
//!
//! 10. [`api`]: what a node can be asked, whichever way the question comes.
//! 11. [`bridge`]: local HTTP, on a Unix socket and on request on loopback TCP.
//! 12. [`client`]: a member that speaks QUIC for itself and keeps nothing.
//! 13. [`config`]: from flags, variables and files to checked configurations.
//!
//! 14. [`doctor`]: tests a machine and its paths before a node has to rely on them.
//!
//! How it is tried: `sim`, behind the feature of that name, holds histories and their checker.
//!
//! The command line stands in `src/cli`, beside this library. ARCHITECTURE.md says what holds
//! across modules.
//!
//! # In a process of your own
//!
//! ```no_run
//! # async fn example(config: larder::config::WorkerConfig) -> Result<(), Box<dyn std::error::Error>> {
//! use larder::answer::Freshness;
//!
//! let worker = larder::Worker::start(&config)?;
//! let answer = worker.get("etl/child", Freshness::Strict).await?;
//! match &answer.spec {
//!     Some(spec) => println!("{} bytes, {}", spec.len(), spec.hash()),
//!     None => println!("no such name at revision {:?}", answer.proof.snapshot),
//! }
//! worker.stop().await;
//! # Ok(())
//! # }
//! ```

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
pub mod doctor;
pub mod identity;
pub mod net;
pub mod proto;
#[cfg(feature = "sim")]
pub mod sim;
pub mod spec;
pub mod store;
pub mod trust;
pub mod worker;

pub use codec::DecodeError;
pub use coordinator::Coordinator;
pub use daemon::{Part, RunError};
pub use worker::Worker;
