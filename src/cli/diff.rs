use std::time::Duration;

use larder::answer::{Freshness, Target};
use larder::api::Api;
use larder::catalog::Revision;
use larder::spec::SpecName;
use similar::TextDiff;

use super::connect::{Purpose, connect};
use super::get::{absent, read};
use super::option::{ClientArgs, GlobalArgs};
use super::screen::Screen;

/// After this long the rest is shown as replaced: two large texts with nothing in common would
/// take minutes.
const MAX_DIFF_TIME: Duration = Duration::from_secs(5);

/// Compare two revisions of a name, line by line.
///
/// Prints a unified diff, and nothing when both are equal; the exit code is 0 either way. A name
/// that did not exist at a revision counts as empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder diff etl/daily 12 14              what changed between two revisions
  larder diff etl/daily 12                 between revision 12 and now
  larder diff etl/daily 12 14 | patch -R -p0 daily.yaml")]
pub(crate) struct Args {
    /// The name
    name: SpecName,
    /// The old revision
    old: Revision,
    /// The new revision; without one, what `larder get` would print
    new: Option<Revision>,
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
    diff(&*api, args, config.deadline, screen).await
}

async fn diff(
    api: &dyn Api,
    args: &Args,
    deadline: Duration,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let target = Target::Name(args.name.clone());
    let at = Some(Freshness::At(args.old));
    let old = read(api, &target, at, deadline, screen).await?;
    let at = args.new.map(Freshness::At);
    let new = read(api, &target, at, deadline, screen).await?;
    if old.spec.is_none() && new.spec.is_none() {
        return Err(absent(api, &target, args.new, &new).await.into());
    }
    let text = |spec: &Option<larder::spec::Spec>| match spec {
        Some(spec) => String::from_utf8_lossy(spec.bytes()).into_owned(),
        None => String::new(),
    };
    let label = |rev: Option<Revision>| match rev {
        Some(rev) => format!("{}@{rev}", args.name),
        None => format!("{}@now", args.name),
    };
    let (old, new) = (text(&old.spec), text(&new.spec));
    let diff = TextDiff::configure()
        .timeout(MAX_DIFF_TIME)
        .diff_lines(&old, &new);
    let mut unified = diff.unified_diff();
    unified.header(&label(Some(args.old)), &label(args.new));
    Ok(screen.raw(unified.to_string().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::super::exit::Exit;
    use super::super::fake::{Fake, run_on};
    use super::*;

    fn shown(fake: &Fake, name: &str, old: u64, new: Option<u64>) -> anyhow::Result<String> {
        let args = Args {
            name: name.parse().expect("good"),
            old: Revision::new(old),
            new: new.map(Revision::new),
            client: ClientArgs::default(),
        };
        let deadline = Duration::from_secs(1);
        run_on(false, async |screen| {
            diff(fake, &args, deadline, screen).await
        })
        .map(|(out, _)| out)
    }

    #[test]
    fn changed_lines_show_with_their_context() {
        let fake = Fake::with(&[("a", "one\ntwo\n")]);
        fake.put(&[("a", "one\nthree\n")]);
        assert_eq!(
            shown(&fake, "a", 1, Some(2)).expect("shown"),
            "--- a@1\n+++ a@2\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
        );
        assert_eq!(shown(&fake, "a", 2, None).expect("shown"), "");
    }

    #[test]
    fn what_did_not_exist_counts_as_empty_but_not_on_both_sides() {
        let fake = Fake::with(&[("other", "x\n")]);
        fake.put(&[("a", "one\n")]);
        let text = shown(&fake, "a", 1, None).expect("shown");
        assert!(text.ends_with("+one\n"), "{text}");
        let error = shown(&fake, "b", 1, None).expect_err("never existed");
        assert_eq!(Exit::of(&error), Exit::NotFound);
    }
}
