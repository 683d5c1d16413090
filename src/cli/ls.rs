use larder::api::Api;
use larder::catalog::Revision;
use larder::proto::wire::WireVersion;
use larder::spec::SpecName;
use serde_json::json;

use super::connect::{Purpose, connect};
use super::option::{ClientArgs, GlobalArgs};
use super::records::Pages;
use super::screen::Screen;

/// List names with their revisions.
///
/// One line per name: the revision of its last change, its hash, its length in bytes. The whole
/// list is of one revision, however long it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder ls                                every name
  larder ls etl/                           names that start with etl/
  larder ls --at 12                        the catalog as it was at revision 12
  larder ls --deleted                      deleted names too
  larder ls --json | jq -r '.records[].name'")]
pub(crate) struct Args {
    /// Only names that start with this
    #[arg(default_value = "")]
    prefix: String,
    /// List the catalog as it was at this revision
    #[arg(long, value_name = "REV")]
    at: Option<Revision>,
    /// Also list names that were deleted
    #[arg(long)]
    deleted: bool,
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
    ls(&*api, args, screen).await
}

async fn ls(api: &dyn Api, args: &Args, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let mut pages = Pages::new(api, &args.prefix, args.at, args.deleted);
    let mut records = Vec::new();
    let mut head = json!({});
    let mut titled = screen.json();
    while let Some(page) = pages.next().await? {
        // Only now: a command that fails prints no data.
        if !std::mem::replace(&mut titled, true) {
            screen.line(format_args!(
                "{:>8}  {:15}  {:>9}  NAME",
                "REVISION", "HASH", "BYTES"
            ))?;
        }
        for (name, version) in &page.records {
            match screen.json() {
                true => records.push(to_json(name, version)),
                false => screen.line(line(name, version))?,
            }
        }
        head = json!({ "catalog": page.catalog, "epoch": page.epoch, "rev": page.rev });
    }
    if screen.json() {
        head["records"] = records.into();
        screen.line(head)?;
    }
    Ok(())
}

/// The name comes last, so that lines go out before the longest name is known.
fn line(name: &SpecName, version: &WireVersion) -> String {
    let hash = version
        .hash
        .map_or_else(|| "deleted".into(), |hash| hash.short());
    format!("{:>8}  {hash:15}  {:>9}  {name}", version.rev, version.len)
}

fn to_json(name: &SpecName, version: &WireVersion) -> serde_json::Value {
    json!({ "name": name, "rev": version.rev, "hash": version.hash, "len": version.len })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, run_on};
    use super::*;

    fn shown(fake: &Fake, prefix: &str, deleted: bool, json: bool) -> String {
        let args = Args {
            prefix: prefix.into(),
            at: None,
            deleted,
            client: ClientArgs::default(),
        };
        let shown = run_on(json, async |screen| ls(fake, &args, screen).await);
        shown.expect("listed").0
    }

    #[test]
    fn names_come_in_order_over_all_pages() {
        let fake = Fake::with(&[("b", "1"), ("a/x", "22"), ("a/y", "333"), ("c", "1")]);
        fake.page_by(1);
        let text = shown(&fake, "", false, false);
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.split("  ").last())
            .collect();
        assert_eq!(names, ["NAME", "a/x", "a/y", "b", "c"]);
        assert_eq!(shown(&fake, "a/", false, false).lines().count(), 3);
    }

    #[test]
    fn deleted_names_show_only_when_asked_for() {
        let fake = Fake::with(&[("a", "1")]);
        fake.delete("a");
        assert_eq!(shown(&fake, "", false, false).lines().count(), 1);
        let text = shown(&fake, "", true, false);
        assert!(
            text.ends_with("       2  deleted                  0  a\n"),
            "{text}"
        );
    }

    #[test]
    fn json_names_the_revision_that_was_read() {
        let fake = Fake::with(&[("a", "1")]);
        let value: serde_json::Value =
            serde_json::from_str(&shown(&fake, "", false, true)).expect("JSON");
        assert_eq!(value["rev"], 1);
        assert_eq!(value["records"][0]["name"], "a");
        assert_eq!(value["records"][0]["len"], 1);
    }
}
