use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use larder::bridge::http::HttpClient;
use larder::config::ClientConfig;

use super::complaint::Complaint;
use super::exit::Exit;
use super::option::{ClientArgs, GlobalArgs};
use super::output::Output;
use super::screen::Screen;

/// Copy the coordinator's journal to a file while it runs.
///
/// The copy is of one moment and holds every body that is retained. It is made through the
/// coordinator's local socket. Keep it like the definitions themselves: it holds them in clear.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder backup /backup/larder.journal
  larder backup - | age -r age1... > larder.age
  larder restore /backup/larder.journal    make a store from it")]
pub(crate) struct Args {
    /// The file, or `-` for stdout
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(
    args: &Args,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let bytes = if args.file == Path::new("-") {
        if std::io::stdout().is_terminal() {
            let message = "a backup is no text for a terminal";
            let complaint = Complaint::new(Exit::Usage, message);
            return Err(complaint.hint("name a file, or pipe it").into());
        }
        copy(&config, &mut std::io::stdout()).await?
    } else {
        let mut output = Output::create_private(&args.file)?;
        let bytes = copy(&config, &mut output).await?;
        output.keep()?;
        bytes
    };
    screen.say(format_args!("{bytes} bytes"));
    Ok(())
}

/// Copies the journal of the coordinator on this machine and says how many bytes it has.
async fn copy(config: &ClientConfig, out: &mut (dyn Write + Send)) -> anyhow::Result<u64> {
    let sockets = match &config.socket {
        Some(socket) => std::slice::from_ref(socket),
        None => &config.coordinator_sockets[..],
    };
    let mut tried = Vec::new();
    for socket in sockets {
        match HttpClient::connect(socket.as_path()).await {
            Ok(client) => return Ok(client.backup(out).await?),
            Err(failure) => tried.push(format!("{}: {failure}", socket.display())),
        }
    }
    let complaint = Complaint::new(Exit::Unavailable, "found no coordinator on this machine");
    let hint = "run it where the coordinator runs, or name its socket with `--socket`";
    Err(complaint.details(tried).hint(hint).into())
}
