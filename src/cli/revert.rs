use std::time::Duration;

use larder::answer::{Freshness, Query, Target};
use larder::api::Api;
use larder::catalog::{IdempotencyKey, Revision};
use larder::proto::wire::{Publish, PublishName};
use larder::spec::{SpecName, Syntax};

use super::complaint::Complaint;
use super::connect::{Purpose, connect};
use super::exit::Exit;
use super::get::absent;
use super::option::{ClientArgs, GlobalArgs};
use super::publish::{check_note, parse_key, patiently, random_key, report, with_key};
use super::screen::Screen;

/// Publish an old revision of a name again.
///
/// The old bytes become a new revision; history only grows. If somebody publishes the name while
/// this command runs, nothing changes and the exit code is 5.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder log etl/daily                     find the revision that was good
  larder diff etl/daily 12                 look at what would go
  larder revert etl/daily 12 --note 'the new join loses rows'")]
pub(crate) struct Args {
    /// The name
    name: SpecName,
    /// The revision whose bytes come back
    rev: Revision,
    /// Why, for the history [default: revert to revision REV]
    #[arg(long, value_name = "TEXT", value_parser = check_note)]
    note: Option<String>,
    /// Revert only if the name's last change was in this revision [default: the current one]
    #[arg(long, value_name = "REV")]
    expect_rev: Option<Revision>,
    /// Repeat the revert that this key began [default: a new key]
    #[arg(long, value_name = "HEX", value_parser = parse_key, requires = "expect_rev")]
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
    revert(&*api, args, config.deadline, screen).await
}

async fn revert(
    api: &dyn Api,
    args: &Args,
    deadline: Duration,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let read = |freshness| Query {
        target: Target::Name(args.name.clone()),
        freshness,
        deadline,
    };
    // The current revision is read before anything else: what is published after this point is
    // never overwritten unseen.
    let expect = match args.expect_rev {
        Some(rev) => rev,
        None => {
            let now = api.get(read(Freshness::Strict)).await?;
            now.proof.record_rev.unwrap_or(Revision::ZERO)
        }
    };
    let query = read(Freshness::At(args.rev));
    let old = api.get(query.clone()).await?;
    let Some(spec) = old.spec.clone() else {
        let complaint = match old.proof.record_rev {
            Some(_) => Complaint::new(
                Exit::NotFound,
                format!("`{}` was deleted at revision {}", args.name, args.rev),
            )
            .hint(format!("to delete it again: `larder rm {}`", args.name)),
            None => absent(api, &query.target, Some(args.rev), &old).await,
        };
        return Err(complaint.into());
    };
    if !api.missing(vec![spec.hash()]).await?.is_empty() {
        api.put_body(spec.clone(), Syntax::AnyText).await?;
    }
    let note = args.note.clone();
    let change = PublishName {
        name: args.name.clone(),
        hash: Some(spec.hash()),
        len: spec.len(),
        expect: Some(expect),
    };
    let publish = Publish {
        key: Some(args.idempotency_key.unwrap_or_else(random_key)),
        note: note.unwrap_or_else(|| format!("revert to revision {}", args.rev)),
        changes: vec![change],
    };
    let published = patiently(api, &publish, false).await;
    let published = published.map_err(|failure| {
        let mut failure = with_key(failure, &publish);
        // The repetition must ask for the same.
        if let Some(hint) = failure.hint.take() {
            let repeats = hint.contains("--idempotency-key") && args.expect_rev.is_none();
            failure.hint = Some(match repeats {
                true => format!("{hint} and `--expect-rev {expect}`"),
                false => hint,
            });
        }
        failure
    })?;
    Ok(report(&publish.changes, &published, screen)?)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, run_on};
    use super::*;

    fn revert_to(fake: &Fake, rev: u64) -> anyhow::Result<String> {
        let args = Args {
            name: "a".parse().expect("good"),
            rev: Revision::new(rev),
            note: None,
            expect_rev: None,
            idempotency_key: None,
            client: ClientArgs::default(),
        };
        let deadline = Duration::from_secs(1);
        run_on(false, async |screen| {
            revert(fake, &args, deadline, screen).await
        })
        .map(|(out, _)| out)
    }

    #[test]
    fn old_bytes_become_a_new_revision_that_expects_the_current_one() {
        let fake = Fake::with(&[("a", "old")]);
        fake.put(&[("a", "new")]);
        let out = revert_to(&fake, 1).expect("published");
        assert!(out.ends_with("revision 3, 1 of 1 names changed\n"), "{out}");
        let history = fake.history();
        assert_eq!(history[2].changes[0].hash, history[0].changes[0].hash);
        assert_eq!(history[2].changes[0].expect, Some(Revision::new(2)));
        assert_eq!(history[2].note, "revert to revision 1");
        assert!(history[2].key.is_some());
    }

    #[test]
    fn a_deleted_name_comes_back() {
        let fake = Fake::with(&[("a", "old")]);
        fake.delete("a");
        revert_to(&fake, 1).expect("published");
        assert_eq!(fake.history()[2].changes[0].expect, Some(Revision::new(2)));
        let error = revert_to(&fake, 2).expect_err("it was deleted then");
        assert_eq!(Exit::of(&error), Exit::NotFound);
    }

    #[test]
    fn what_is_current_already_changes_nothing() {
        let fake = Fake::with(&[("a", "old")]);
        let out = revert_to(&fake, 1).expect("fine");
        assert!(out.ends_with("nothing changed, revision 1\n"), "{out}");
    }

    #[test]
    fn a_revert_with_a_key_asks_for_the_same_each_time() {
        let fake = Fake::with(&[("a", "old")]);
        fake.put(&[("a", "new")]);
        let args = Args {
            name: "a".parse().expect("good"),
            rev: Revision::new(1),
            note: None,
            expect_rev: Some(Revision::new(2)),
            idempotency_key: Some([7; 16]),
            client: ClientArgs::default(),
        };
        let deadline = Duration::from_secs(1);
        run_on(false, async |screen| {
            revert(&fake, &args, deadline, screen).await
        })
        .expect("published");
        let last = &fake.history()[2];
        assert_eq!(last.key, Some([7; 16]));
        assert_eq!(last.changes[0].expect, Some(Revision::new(2)));
    }
}
