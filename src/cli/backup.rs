use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

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
async fn copy(_config: &ClientConfig, _out: &mut (dyn Write + Send)) -> anyhow::Result<u64> {
    Err(Complaint::not_built("client for a backup").into())
}
