use clap::{Subcommand, ValueEnum};
use larder::config::{
    ClientConfig, ConfigError, CoordinatorConfig, Effective, Kind, Sources, WorkerConfig,
};
use serde_json::json;

use super::option::GlobalArgs;
use super::screen::Screen;
use super::table::{clean, table};

/// Check the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show every option of a role, its effective value, and where that came from.
    ///
    /// A flag wins over an environment variable LARDER_*, that over a file, that over the
    /// default. Files are /etc/larder/larder.yaml and ~/.config/larder/larder.yaml, or the one
    /// that --config names. Nothing is started and no certificate is opened.
    #[command(after_help = "EXAMPLES
  larder config check worker
  larder config check coordinator --config ./larder.yaml
  LARDER_LISTEN=[::]:7457 larder config check coordinator --json")]
    Check {
        /// Whose options
        role: KindArg,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    /// `larder coordinator`
    Coordinator,
    /// `larder worker`
    Worker,
    /// Every command that asks a node
    Client,
}

impl From<KindArg> for Kind {
    fn from(arg: KindArg) -> Self {
        match arg {
            KindArg::Coordinator => Self::Coordinator,
            KindArg::Worker => Self::Worker,
            KindArg::Client => Self::Client,
        }
    }
}

pub(crate) fn run(args: &Args, global: &GlobalArgs, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let Command::Check { role } = args.command;
    check(role.into(), &global.sources(|_| {}), screen)
}

fn check(kind: Kind, sources: &Sources, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let effective = effective(kind, sources)?;
    if screen.json() {
        let options = effective.iter().map(|entry| {
            let value = json!({ "value": value(entry), "origin": entry.origin.to_string() });
            (entry.field.name().to_owned(), value)
        });
        let options: serde_json::Map<_, _> = options.collect();
        return Ok(screen.line(json!({ "role": kind.as_str(), "options": options }))?);
    }
    let row = |entry: &Effective| {
        let value = match entry.values.as_slice() {
            [] => "-".to_owned(),
            values => clean(&values.join(", ")).into_owned(),
        };
        vec![entry.field.to_string(), value, entry.origin.to_string()]
    };
    let rows: Vec<_> = effective.iter().map(row).collect();
    screen.raw(table(&["OPTION", "VALUE", "ORIGIN"], &rows).as_bytes())?;
    Ok(())
}

fn effective(kind: Kind, sources: &Sources) -> Result<Vec<Effective>, ConfigError> {
    Ok(match kind {
        Kind::Coordinator => CoordinatorConfig::load(sources)?.effective,
        Kind::Worker => WorkerConfig::load(sources)?.effective,
        Kind::Client => ClientConfig::load(sources)?.effective,
    })
}

/// A list for an option that has several values, `null` for one that has none.
fn value(entry: &Effective) -> serde_json::Value {
    match entry.values.as_slice() {
        [] => serde_json::Value::Null,
        [one] => json!(one),
        several => json!(several),
    }
}

#[cfg(test)]
mod tests {
    use larder::config::{Field, Options, Surroundings};

    use super::super::exit::Exit;
    use super::super::fake::run_on;
    use super::*;

    fn sources(dir: &tempfile::TempDir) -> Sources {
        let mut flags = Options::default();
        flags
            .set(Field::Coordinators, Some("c1:7457"))
            .set(Field::Certs, Some("/node"));
        Sources {
            flags,
            file: None,
            surroundings: Surroundings {
                variables: [("LARDER_DEADLINE".into(), "3s".into())].into(),
                root: true,
                etc: dir.path().into(),
                run: dir.path().into(),
                var: dir.path().into(),
            },
        }
    }

    #[test]
    fn each_option_shows_its_value_and_origin() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sources = sources(&dir);
        let show = |json| run_on(json, async |screen| check(Kind::Worker, &sources, screen));
        let (text, _) = show(false).expect("good");
        let line = |option: &str| {
            let found = text.lines().find(|line| line.starts_with(option));
            let words = found.expect("shown").split_whitespace();
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("deadline"), "deadline 3s environment LARDER_DEADLINE");
        assert_eq!(
            line("coordinators"),
            "coordinators c1:7457 flag --coordinator"
        );
        assert_eq!(line("http"), "http - default");

        let (text, _) = show(true).expect("good");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["options"]["deadline"]["value"], "3s");
        assert_eq!(value["options"]["http"]["value"], serde_json::Value::Null);
    }

    #[test]
    fn a_wrong_option_is_a_usage_error_and_a_missing_identity_one_of_trust() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut wrong = sources(&dir);
        wrong.flags.set(Field::Deadline, Some("soon"));
        let show = |sources: &Sources| {
            let shown = run_on(false, async |screen| check(Kind::Worker, sources, screen));
            Exit::of(&shown.expect_err("refused"))
        };
        assert_eq!(show(&wrong), Exit::Usage);
        let mut bare = sources(&dir);
        bare.flags = Options::default();
        bare.flags.set(Field::Coordinators, Some("c1:7457"));
        assert_eq!(show(&bare), Exit::Trust);
    }
}
