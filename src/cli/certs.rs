use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use larder::identity::{NodeUri, Role};

use super::complaint::Complaint;
use super::screen::Screen;

/// Make a cluster's certificates.
///
/// A cluster has one certificate authority. Every node has a certificate whose URI names it:
/// spiffe://<cluster>/<role>/<name>. Certificates that SPIRE issued in this form work as well.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the certificate authority, the key that signs heads, and the trust file.
    ///
    /// An authority that exists is never overwritten. Keep ca.key off the nodes.
    #[command(after_help = "EXAMPLES
  larder certs init --cluster prod.example
  larder certs init --cluster prod.example --dir /secure/larder")]
    Init {
        /// Name of the cluster: lower-case letters, digits, `.`, `_`, `-`
        #[arg(long, value_name = "NAME")]
        cluster: String,
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
    },
    /// Issue a node's identity directory: certificate, key, CA and trust file.
    ///
    /// It is written to DIR/ROLE/NAME and is copied to the node whole.
    #[command(after_help = "EXAMPLES
  larder certs issue coordinator c1
  larder certs issue worker edge-7 --valid-for 90d
  larder certs issue publisher ci --out /secure/ci
  larder certs issue worker edge-7 --force         renew it")]
    Issue {
        /// coordinator, worker, publisher or reader
        role: Role,
        /// Name of the node: letters, digits, `.`, `_`, `-`
        name: String,
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// Write to this directory instead of DIR/ROLE/NAME
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// How long the certificate is valid
        #[arg(long, value_name = "TIME", default_value = "397d",
              value_parser = larder::config::duration)]
        valid_for: Duration,
        /// Replace an identity that is there
        #[arg(long)]
        force: bool,
    },
    /// Add a node to the list of revoked ones in the trust file.
    ///
    /// Copy the trust file to every node: each reads it again within seconds and closes that
    /// node's connections.
    #[command(after_help = "EXAMPLES
  larder certs revoke spiffe://prod.example/worker/edge-7")]
    Revoke {
        /// The node's URI
        uri: NodeUri,
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
    },
}

pub(crate) fn run(args: Args, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    for line in carry_out(args.command)? {
        screen.line(line)?;
    }
    Ok(())
}

/// Does it and says what was written, a line each.
fn carry_out(command: Command) -> anyhow::Result<Vec<String>> {
    let what = match command {
        Command::Init { .. } => "certificate authority",
        Command::Issue { .. } => "issuer of certificates",
        Command::Revoke { .. } => "revocation",
    };
    Err(Complaint::not_built(what).into())
}
