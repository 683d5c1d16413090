//! The command line, one file per command.
//!
//! Data goes to stdout and everything else to stderr. An error is one sentence, its causes, and a
//! hint. A command that asks a node is written against [`larder::api::Api`], so it does the same
//! whichever way [`connect`] found to the node.

mod backup;
mod certs;
mod complaint;
mod completions;
mod config;
mod connect;
mod coordinator;
mod daemon;
mod demo;
mod diff;
mod doctor;
mod exit;
#[cfg(test)]
mod fake;
mod get;
mod log;
mod logging;
mod ls;
mod option;
mod output;
mod peers;
mod pins;
mod publish;
mod records;
mod restore;
mod revert;
mod rm;
mod run_token;
mod screen;
mod status;
mod table;
mod timestamp;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::exit::Exit;
use self::option::GlobalArgs;
use self::screen::Screen;

/// A content-addressed cache of workflow definitions: truth from the coordinator, bytes from
/// anyone, over any path.
///
/// A coordinator holds the catalog; a worker runs beside an engine and answers its reads; every
/// other command asks one of them. A command uses the local socket of a node on this machine if
/// there is one, else QUIC with a certificate.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = exit::help(), arg_required_else_help = true)]
struct Line {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// What each does is said at its arguments.
#[derive(Debug, Subcommand)]
enum Command {
    Get(get::Args),
    Ls(ls::Args),
    Log(log::Args),
    Diff(diff::Args),
    Publish(publish::Args),
    Revert(revert::Args),
    Rm(rm::Args),
    RunToken(run_token::Args),
    Pin(pins::PinArgs),
    Pins(pins::ListArgs),
    Unpin(pins::UnpinArgs),
    Status(status::Args),
    Peers(peers::Args),
    Coordinator(coordinator::Args),
    Worker(worker::Args),
    Certs(certs::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Config(config::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // Nobody is left to tell when this fails.
            let _ = error.print();
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            return exit.into();
        }
    };
    let json = line.global.json;
    let mut screen = Screen::of_this_process(json);
    let result = run(line, &mut screen).and_then(|()| Ok(screen.flush()?));
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(error) if exit::is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            complaint::print(&error, json);
            Exit::of(&error).into()
        }
    }
}

fn run(line: Line, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let Line { global, command } = line;
    match command {
        Command::Get(args) => wait(get::run(&args, &global, screen)),
        Command::Ls(args) => wait(ls::run(&args, &global, screen)),
        Command::Log(args) => wait(log::run(&args, &global, screen)),
        Command::Diff(args) => wait(diff::run(&args, &global, screen)),
        Command::Publish(args) => wait(publish::run(&args, &global, screen)),
        Command::Revert(args) => wait(revert::run(&args, &global, screen)),
        Command::Rm(args) => wait(rm::run(&args, &global, screen)),
        Command::RunToken(args) => wait(run_token::run(&args, &global, screen)),
        Command::Pin(args) => wait(pins::pin(&args, &global, screen)),
        Command::Pins(args) => wait(pins::list(&args, &global, screen)),
        Command::Unpin(args) => wait(pins::unpin(&args, &global, screen)),
        Command::Status(args) => wait(status::run(&args, &global, screen)),
        Command::Peers(args) => wait(peers::run(&args, &global, screen)),
        Command::Backup(args) => wait(backup::run(&args, &global, screen)),
        Command::Coordinator(args) => coordinator::run(&args, &global),
        Command::Worker(args) => worker::run(&args, &global),
        Command::Certs(args) => certs::run(args, screen),
        Command::Restore(args) => restore::run(&args, &global, screen),
        Command::Config(args) => config::run(&args, &global, screen),
        Command::Doctor(args) => doctor::run(&args, &global, screen),
        Command::Demo(args) => demo::run(&args, &global, screen),
        Command::Completions(args) => completions::run(&args, Line::command(), screen),
    }
}

/// Runs a command that asks a node; daemons have runtimes of their own.
fn wait(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_example() {
        fn check(command: &clap::Command) {
            let children: Vec<_> = command.get_subcommands().collect();
            if children.is_empty() {
                let help = command.get_after_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                assert!(help.starts_with("EXAMPLES\n"), "{}", command.get_name());
                assert!(help.contains("larder "), "{}", command.get_name());
            }
            children.into_iter().for_each(check);
        }
        check(&Line::command());
    }

    #[test]
    fn help_lists_every_exit_code() {
        let help = Line::command().render_help().to_string();
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{exit:?}");
        }
    }
}
