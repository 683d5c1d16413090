use std::collections::BTreeSet;

use larder::api::Api;
use larder::catalog::{IdempotencyKey, Revision};
use larder::proto::wire::{Publish, PublishName};
use larder::spec::SpecName;

use super::complaint::Complaint;
use super::connect::{Purpose, connect};
use super::exit::Exit;
use super::option::{ClientArgs, GlobalArgs};
use super::publish::{check_note, parse_key, patiently, random_key, report, with_key};
use super::records::{current, did_you_mean};
use super::screen::Screen;

/// Delete names, all in one revision or none.
///
/// The history stays readable with `--at` until it is compacted, and `larder revert` brings a
/// name back.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder rm etl/daily
  larder rm etl/daily etl/weekly --note 'moved to reports/'
  larder rm etl/daily --expect-rev 12      only if nobody changed it since")]
pub(crate) struct Args {
    /// The names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<SpecName>,
    /// Delete only if the name's last change was in this revision
    #[arg(long, value_name = "REV")]
    expect_rev: Option<Revision>,
    /// Names that do not exist are fine
    #[arg(short, long)]
    force: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = check_note)]
    note: String,
    /// Repeat the deletion that this key began, without a look whether the names are there
    /// [default: a new key]
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    idempotency_key: Option<IdempotencyKey>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(
    args: &Args,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let api = connect(&config, Purpose::Write).await?;
    rm(&*api, args, screen).await
}

async fn rm(api: &dyn Api, args: &Args, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let names: BTreeSet<_> = args.names.iter().collect();
    if args.expect_rev.is_some() && names.len() != 1 {
        let message = "`--expect-rev` goes with exactly one name";
        return Err(Complaint::new(Exit::Usage, message).into());
    }
    // What is repeated may have deleted them already.
    if !args.force && args.idempotency_key.is_none() {
        for name in &names {
            if current(api, name).await?.is_none() {
                return Err(not_there(api, name).await.into());
            }
        }
    }
    let change = |name: &SpecName| PublishName {
        name: name.clone(),
        hash: None,
        len: 0,
        expect: args.expect_rev,
    };
    let publish = Publish {
        key: Some(args.idempotency_key.unwrap_or_else(random_key)),
        note: args.note.clone(),
        changes: names.into_iter().map(change).collect(),
    };
    let published = patiently(api, &publish, false).await;
    let published = published.map_err(|failure| with_key(failure, &publish))?;
    Ok(report(&publish.changes, &published, screen)?)
}

async fn not_there(api: &dyn Api, name: &SpecName) -> Complaint {
    let message = format!("there is no definition `{name}`; nothing was deleted");
    let complaint = Complaint::new(Exit::NotFound, message);
    match did_you_mean(api, name, None).await {
        Some(hint) => complaint.hint(hint),
        None => complaint.hint("`--force` deletes the others all the same"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, run_on};
    use super::*;

    fn delete(fake: &Fake, names: &[&str], expect: Option<u64>) -> anyhow::Result<String> {
        let args = Args {
            names: names
                .iter()
                .map(|name| name.parse().expect("good"))
                .collect(),
            expect_rev: expect.map(Revision::new),
            force: false,
            note: String::new(),
            idempotency_key: None,
            client: ClientArgs::default(),
        };
        run_on(false, async |screen| rm(fake, &args, screen).await).map(|(out, _)| out)
    }

    #[test]
    fn several_names_go_in_one_revision() {
        let fake = Fake::with(&[("a", "1"), ("b", "2")]);
        let out = delete(&fake, &["b", "a.yaml", "b"], None).expect("deleted");
        assert!(out.ends_with("revision 2, 2 of 2 names changed\n"), "{out}");
        assert_eq!(fake.history()[1].changes.len(), 2);
    }

    #[test]
    fn one_unknown_name_and_nothing_goes() {
        let fake = Fake::with(&[("a/b", "1")]);
        let error = delete(&fake, &["a/b", "a"], None).expect_err("`a` is only a prefix");
        assert_eq!(Exit::of(&error), Exit::NotFound);
        assert_eq!(fake.history().len(), 1);
    }

    #[test]
    fn an_expectation_that_lost_is_a_refusal() {
        let fake = Fake::with(&[("a", "1"), ("b", "1")]);
        fake.put(&[("a", "2")]);
        let error = delete(&fake, &["a"], Some(1)).expect_err("it is at 2");
        assert_eq!(Exit::of(&error), Exit::Refused);
        let error = delete(&fake, &["a", "b"], Some(1)).expect_err("two names");
        assert_eq!(Exit::of(&error), Exit::Usage);
    }

    #[test]
    fn a_deletion_with_a_key_can_be_repeated() {
        let fake = Fake::with(&[("a", "1")]);
        let args = Args {
            names: vec!["a".parse().expect("good")],
            expect_rev: None,
            force: false,
            note: String::new(),
            idempotency_key: Some([7; 16]),
            client: ClientArgs::default(),
        };
        for _ in 0..2 {
            run_on(false, async |screen| rm(&fake, &args, screen).await).expect("deleted");
        }
        assert_eq!(fake.history()[1].key, Some([7; 16]));
    }
}
