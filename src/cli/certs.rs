use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use larder::identity::{NodeUri, Role};
use larder::trust::issue::{self, IssueError, Order};

use super::complaint::Complaint;
use super::exit::Exit;
use super::screen::Screen;
use super::timestamp;

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
  larder certs init
  larder certs init --cluster prod.example
  larder certs init --cluster prod.example --dir /secure/larder")]
    Init {
        /// Name of the cluster: lower-case letters, digits, `.`, `_`, `-`
        #[arg(long, value_name = "NAME", default_value = "larder")]
        cluster: String,
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
    },
    /// Issue a node's identity directory: certificate, key, CA and trust file.
    ///
    /// It is written to DIR/ROLE/NAME and is copied to the node whole.
    #[command(after_help = "EXAMPLES
  larder certs issue --role coordinator --name c1
  larder certs issue --role worker --name edge-7 --valid-for 90d
  larder certs issue --role publisher --name ci --out /secure/ci
  larder certs issue --role worker --name edge-7 --force     renew it")]
    Issue {
        /// coordinator, worker, publisher or reader
        #[arg(long)]
        role: Role,
        /// Name of the node: letters, digits, `.`, `_`, `-`
        #[arg(long)]
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
    /// Remake the throw-away identities that come with the source code.
    #[command(
        hide = true,
        after_help = "EXAMPLES
  larder certs throwaway --dir certs"
    )]
    Throwaway {
        /// Directory whose `dev` and `bad` are replaced
        #[arg(long, value_name = "DIR")]
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
    match command {
        Command::Init { cluster, dir } => {
            let made = issue::init(&dir, &cluster).map_err(complain)?;
            let mut lines = vec![
                format!("cluster {}", made.cluster),
                format!("head key {}", made.head_key),
            ];
            lines.extend(made.files.iter().map(|file| file.display().to_string()));
            Ok(lines)
        }
        Command::Issue {
            role,
            name,
            dir,
            out,
            valid_for,
            force,
        } => {
            let order = Order {
                role,
                name,
                valid_for,
                out,
                force,
            };
            let issued = issue::issue(&dir, &order).map_err(complain)?;
            let end_ms = u64::try_from(issued.not_after_unix_s).unwrap_or_default() * 1000;
            Ok(vec![
                issued.uri.to_string(),
                format!("valid until {}", timestamp::rfc3339(end_ms)),
                issued.dir.display().to_string(),
            ])
        }
        Command::Revoke { uri, dir } => {
            let new = issue::revoke(&dir, &uri).map_err(complain)?;
            Ok(vec![match new {
                true => format!("revoked {uri}"),
                false => format!("{uri} was revoked already"),
            }])
        }
        Command::Throwaway { dir } => {
            let files = issue::throwaway(&dir).map_err(complain)?;
            Ok(files
                .iter()
                .map(|file| file.display().to_string())
                .collect())
        }
    }
}

fn complain(error: IssueError) -> anyhow::Error {
    let complaint = Complaint::new(Exit::Trust, error.to_string());
    let complaint = match error.hint() {
        Some(hint) => complaint.hint(hint),
        None => complaint,
    };
    complaint.because(error).into()
}
