use super::complaint::Complaint;
use super::option::GlobalArgs;
use super::screen::Screen;

/// Run a coordinator and workers in one process and show what they do.
///
/// Everything happens on loopback, with certificates that are made for it, in a directory that
/// goes away at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder demo")]
pub(crate) struct Args {}

pub(crate) fn run(
    _args: &Args,
    _global: &GlobalArgs,
    _screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    Err(Complaint::not_built("demo").into())
}
