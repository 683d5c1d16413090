mod plan;
mod progress;
mod send;
mod tree;
mod wait;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use larder::api::Api;
use larder::catalog::{IdempotencyKey, Published, Revision};
use larder::proto::wire::{Publish, PublishName, PublishedRev};
use larder::spec::{SpecName, Syntax};
use serde_json::json;

use self::plan::{Definition, Rules};
pub(super) use self::send::with_key;
pub(super) use self::wait::publish as patiently;
use super::complaint::Complaint;
use super::connect::{Purpose, connect};
use super::exit::Exit;
use super::option::{ClientArgs, GlobalArgs};
use super::records::Pages;
use super::screen::Screen;

/// Publish files or a directory, all in one revision.
///
/// Every file is checked before anything is sent: UTF-8, size, YAML, name. Only bodies that the
/// coordinator lacks travel. When the command returns, the revision is on disk and every strict
/// read sees it; readers see all of it or nothing. For that it waits until each worker with a
/// lease has answered, or until the lease of one that does not answer has ended.
///
/// A directory is walked with its sub-folders; etl/daily.yaml becomes `etl/daily`. Only *.yaml
/// and *.yml count; files that begin with a dot and symbolic links that lead out of the directory
/// are passed over. Nothing is deleted: that is `larder rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder publish definitions/              etl/daily.yaml becomes etl/daily
  larder publish daily.yaml --name etl/daily
  larder publish definitions/ --prefix team-a --note \"$(git rev-parse HEAD)\"
  larder publish definitions/ --dry-run    what would change
  larder publish daily.yaml --expect-rev 12    only if nobody changed it since
  larder publish new.yaml --expect-rev 0   only if there is no such name")]
pub(crate) struct Args {
    /// Files, or directories
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Name of the one file [default: its file name without .yaml]
    #[arg(long, value_name = "NAME")]
    name: Option<SpecName>,
    /// Put this and a `/` before every name
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    prefix: Option<String>,
    /// Publish only if the name's last change was in this revision; 0: only if there is none
    #[arg(long, value_name = "REV")]
    expect_rev: Option<Revision>,
    /// Do not check that it is YAML
    #[arg(long)]
    no_validate: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = check_note)]
    note: String,
    /// Repeat the publish that this key began; both are one [default: a new key]
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    idempotency_key: Option<IdempotencyKey>,
    /// Check, compare with what is current, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Say on stderr whom the publish waits for, also when that is no terminal
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(
    args: &Args,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let definitions = gather(args, config.max_spec_len, screen)?;
    let purpose = match args.dry_run {
        true => Purpose::Read,
        false => Purpose::Write,
    };
    let api = Arc::from(connect(&config, purpose).await?);
    match args.dry_run {
        true => compare(&*api, &definitions, screen).await,
        false => publish(&api, &definitions, args, screen).await,
    }
}

/// Everything that is checked before a node is asked.
fn gather(
    args: &Args,
    max_len: u64,
    screen: &mut Screen<'_>,
) -> Result<Vec<Definition>, Complaint> {
    let rules = Rules {
        name: args.name.clone(),
        prefix: args.prefix.clone(),
        syntax: match args.no_validate {
            true => Syntax::AnyText,
            false => Syntax::Yaml,
        },
        max_len,
    };
    let definitions = plan::gather(&args.paths, &rules, &mut |path, why| {
        screen.say(format_args!("skipped {}: {why}", path.display()));
    })?;
    if args.expect_rev.is_some() && definitions.len() != 1 {
        let message = format!(
            "`--expect-rev` goes with one name, not {}",
            definitions.len()
        );
        return Err(Complaint::new(Exit::Usage, message));
    }
    Ok(definitions)
}

async fn publish(
    api: &Arc<dyn Api>,
    definitions: &[Definition],
    args: &Args,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let change = |definition: &Definition| PublishName {
        name: definition.name.clone(),
        hash: Some(definition.hash),
        len: definition.len,
        expect: args.expect_rev,
    };
    let request = Publish {
        key: Some(args.idempotency_key.unwrap_or_else(random_key)),
        note: args.note.clone(),
        changes: definitions.iter().map(change).collect(),
    };
    let published = send::send(api, definitions, &request, args.verbose).await?;
    Ok(report(&request.changes, &published, screen)?)
}

/// Says what a publish would do.
async fn compare(
    api: &dyn Api,
    definitions: &[Definition],
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let mut current = std::collections::BTreeMap::new();
    let mut pages = Pages::new(api, "", None, false);
    while let Some(page) = pages.next().await? {
        current.extend(page.records);
    }
    let verdict = |definition: &Definition| match current.get(&definition.name) {
        None => "new",
        Some(version) if version.hash == Some(definition.hash) => "same",
        Some(_) => "changed",
    };
    if screen.json() {
        let name = |definition: &Definition| {
            let Definition {
                name, hash, len, ..
            } = definition;
            json!({ "name": name, "hash": hash, "len": len, "would_be": verdict(definition) })
        };
        let names: Vec<_> = definitions.iter().map(name).collect();
        return Ok(screen.line(json!({ "dry_run": true, "names": names }))?);
    }
    for definition in definitions {
        let Definition { name, hash, .. } = definition;
        screen.line(format_args!(
            "{:8}{}  {name}",
            verdict(definition),
            hash.short()
        ))?;
    }
    Ok(())
}

/// Says what a publish did: a line per name, then the revision.
pub(super) fn report(
    changes: &[PublishName],
    published: &PublishedRev,
    screen: &mut Screen<'_>,
) -> io::Result<()> {
    let PublishedRev {
        catalog,
        epoch,
        rev,
        changed,
        waited,
    } = published;
    if screen.json() {
        let name = |change: &PublishName| json!({ "name": change.name, "hash": change.hash, "len": change.len });
        let names: Vec<_> = changes.iter().map(name).collect();
        return screen.line(json!({
            "catalog": catalog, "epoch": epoch, "rev": rev, "changed": changed, "waited": waited, "names": names,
        }));
    }
    for change in changes {
        let hash = change
            .hash
            .map_or_else(|| "deleted".into(), |hash| hash.short());
        screen.line(format_args!("{hash:15}  {}", change.name))?;
    }
    match changed {
        0 => screen.line(format_args!("nothing changed, revision {rev}"))?,
        _ => screen.line(format_args!(
            "revision {rev}, {changed} of {} names changed",
            changes.len()
        ))?,
    }
    if let Some(waited) = wait::describe(waited) {
        // On a terminal, what was done stands above how long it took.
        screen.flush()?;
        screen.say(waited);
    }
    Ok(())
}

/// A key that nobody used before.
pub(super) fn random_key() -> IdempotencyKey {
    rand::random()
}

pub(super) fn check_note(text: &str) -> Result<String, String> {
    let max = Published::MAX_NOTE_LEN;
    match text.len() {
        len if len > max => Err(format!(
            "a note has at most {max} bytes, this one has {len}"
        )),
        _ => Ok(text.to_owned()),
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_end_matches('/');
    // A prefix may end in what a name may not, so it is checked as part of one.
    let checked = format!("{prefix}/x").parse::<SpecName>();
    checked.map_err(|error| error.to_string())?;
    Ok(prefix.to_owned())
}

pub(super) fn parse_key(text: &str) -> Result<IdempotencyKey, String> {
    let wants = || "a key is 32 hex digits".to_owned();
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wants());
    }
    let key = u128::from_str_radix(text, 16).map_err(|_| wants())?;
    Ok(key.to_be_bytes())
}

/// As `--idempotency-key` takes it.
fn show_key(key: &IdempotencyKey) -> String {
    format!("{:032x}", u128::from_be_bytes(*key))
}

#[cfg(test)]
mod tests;
