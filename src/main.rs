//! The `larder` command: parse, run, and turn an error into an exit code.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
