use clap_complete::Shell;

use super::screen::Screen;

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder completions bash > /etc/bash_completion.d/larder
  larder completions zsh > ~/.zfunc/_larder
  larder completions fish > ~/.config/fish/completions/larder.fish")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(
    args: &Args,
    mut line: clap::Command,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    // Into memory first: the generator panics when its output goes away.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut line, "larder", &mut script);
    Ok(screen.raw(&script)?)
}
