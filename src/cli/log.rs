use larder::api::Api;
use larder::catalog::Revision;
use larder::proto::limit::MAX_PAGE;
use larder::proto::wire::{GetLog, Log, LogEntry};
use larder::spec::SpecName;
use serde_json::json;

use super::complaint::Complaint;
use super::connect::{Purpose, connect};
use super::exit::Exit;
use super::option::{ClientArgs, GlobalArgs};
use super::records::did_you_mean;
use super::screen::Screen;
use super::table::{clean, table};
use super::timestamp::rfc3339;

/// Show the history of a name, or of the catalog, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder log                               what was published last
  larder log etl/daily                     every change of one name
  larder log --before 100 --limit 20       older ones
  larder log etl/daily --json | jq '.entries[0].by'")]
pub(crate) struct Args {
    /// The name; without one, every revision of the catalog
    name: Option<SpecName>,
    /// Show at most so many revisions
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=MAX_PAGE as i64))]
    limit: u32,
    /// Show only revisions before this one
    #[arg(long, value_name = "REV")]
    before: Option<Revision>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(
    args: &Args,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let api = connect(&config, Purpose::Read).await?;
    show(&*api, args, screen).await
}

async fn show(api: &dyn Api, args: &Args, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let get = GetLog {
        name: args.name.clone(),
        before: args.before,
        limit: args.limit,
    };
    let log = api.log(get).await?;
    if let (Some(name), None, true) = (&args.name, args.before, log.entries.is_empty()) {
        return Err(no_history(api, name, log.oldest).await.into());
    }
    if screen.json() {
        return Ok(screen.line(to_json(&log))?);
    }
    let what = match args.name {
        Some(_) => "HASH",
        None => "NAMES",
    };
    let row = |entry: &LogEntry| {
        vec![
            entry.rev.to_string(),
            rfc3339(entry.at_unix_ms),
            what_changed(entry),
            clean(&entry.by).into_owned(),
            clean(&entry.note).into_owned(),
        ]
    };
    let rows: Vec<_> = log.entries.iter().map(row).collect();
    let text = table(&["REVISION", "TIME", what, "BY", "NOTE"], &rows);
    screen.raw(text.as_bytes())?;
    if let Some(last) = log.entries.last().filter(|_| log.more) {
        screen.say(format_args!("older ones: --before {}", last.rev));
    }
    Ok(())
}

fn what_changed(entry: &LogEntry) -> String {
    match entry.version {
        Some(version) => version
            .hash
            .map_or_else(|| "deleted".into(), |hash| hash.short()),
        None => entry.changed.to_string(),
    }
}

async fn no_history(api: &dyn Api, name: &SpecName, oldest: Revision) -> Complaint {
    let message = format!("`{name}` has no history since revision {oldest}, the oldest retained");
    let complaint = Complaint::new(Exit::NotFound, message);
    match did_you_mean(api, name, None).await {
        Some(hint) => complaint.hint(hint),
        None => complaint,
    }
}

fn to_json(log: &Log) -> serde_json::Value {
    let entry = |entry: &LogEntry| {
        let version = entry
            .version
            .map(|version| json!({ "rev": version.rev, "hash": version.hash, "len": version.len }));
        json!({
            "rev": entry.rev,
            "by": entry.by,
            "at": rfc3339(entry.at_unix_ms),
            "at_unix_ms": entry.at_unix_ms,
            "note": entry.note,
            "changed": entry.changed,
            "version": version,
        })
    };
    json!({
        "catalog": log.catalog,
        "epoch": log.epoch,
        "oldest": log.oldest,
        "entries": log.entries.iter().map(entry).collect::<Vec<_>>(),
        "more": log.more,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, run_on};
    use super::*;

    fn shown(fake: &Fake, name: Option<&str>, limit: u32) -> anyhow::Result<(String, String)> {
        let args = Args {
            name: name.map(|name| name.parse().expect("good")),
            limit,
            before: None,
            client: ClientArgs::default(),
        };
        run_on(false, async |screen| show(fake, &args, screen).await)
    }

    #[test]
    fn the_newest_revision_comes_first_and_the_rest_is_announced() {
        let fake = Fake::with(&[("a", "1"), ("b", "2")]);
        fake.put(&[("a", "3")]);
        let (out, err) = shown(&fake, None, 1).expect("shown");
        assert_eq!(
            out,
            "REVISION  TIME                  NAMES  BY                       NOTE\n\
             2         2026-11-24T04:00:01Z  1      spiffe://c/publisher/p1\n"
        );
        assert_eq!(err, "older ones: --before 2\n");
    }

    #[test]
    fn the_history_of_a_name_shows_what_it_became() {
        let fake = Fake::with(&[("a", "1")]);
        fake.delete("a");
        let (out, err) = shown(&fake, Some("a"), 10).expect("shown");
        let became: Vec<_> = out
            .lines()
            .filter_map(|l| l.split_whitespace().nth(2))
            .collect();
        assert_eq!(became[..2], ["HASH", "deleted"]);
        assert!(became[2].starts_with("b3:"));
        assert_eq!(err, "");
    }

    #[test]
    fn a_name_without_history_is_not_found() {
        let fake = Fake::with(&[("abc", "1")]);
        let error = shown(&fake, Some("abd"), 10).expect_err("unknown");
        assert_eq!(Exit::of(&error), Exit::NotFound);
    }
}
