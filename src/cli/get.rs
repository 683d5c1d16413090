use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use larder::answer::{
    Answer, At, Failure, Freshness, Mode, Proof, Query, RunToken, Snapshot, Target,
};
use larder::api::Api;
use larder::catalog::Revision;
use larder::config::{Surroundings, staleness};
use serde_json::json;

use super::complaint::Complaint;
use super::connect::{Purpose, connect};
use super::exit::Exit;
use super::option::{ClientArgs, GlobalArgs};
use super::output;
use super::records::did_you_mean;
use super::screen::Screen;
use super::timestamp::seconds;

/// Print a definition that is proven to be the current one.
///
/// The exact bytes go to stdout. A name is answered only with proof that no newer definition was
/// published before the command began; without proof it fails with exit code 4 and says what was
/// tried. A read at a revision or by hash needs no such proof and works while cut off. An answer may
/// be old only with --max-staleness, or without a flag if the worker asked is configured for that
/// (`larder worker --freshness bounded:60s`): a note on stderr then says how old at most. --strict
/// takes none that may be old, whatever the worker is configured for.
///
/// Without a flag, LARDER_REVISION means --at and LARDER_AT_LEAST means --at-least, so that all
/// tasks of a run read one snapshot.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder get etl/daily                     what is current
  larder get etl/daily -v > daily.yaml     the same, with its proof on stderr
  larder get etl/daily --at 12             what it was at revision 12
  larder get etl/daily --at \"$(larder run-token)\"
  larder get etl/daily --max-staleness 30s works through a short cut of the network
  larder get etl/daily --strict            current or an error, at any worker
  larder get b3:4d5e... -o daily.yaml      exactly these bytes
  larder get etl/daily --json | jq .proof")]
pub(crate) struct Args {
    /// A name such as etl/daily, or a hash b3:...
    target: Target,
    #[command(flatten)]
    how: FreshnessArgs,
    /// Write to this file, whole or not at all
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Say on stderr why the answer is right
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// How fresh the answer must be; one at most, and none means: as the node is configured, which is
/// strict unless a worker's operator has chosen otherwise.
#[derive(Debug, Default, clap::Args)]
#[group(multiple = false)]
struct FreshnessArgs {
    /// Read the name as it was at this revision, or at a run's token [env: LARDER_REVISION]
    #[arg(long, value_name = "REV|TOKEN")]
    at: Option<At>,
    /// Read what is not older than this run's token [env: LARDER_AT_LEAST]
    #[arg(long, value_name = "TOKEN")]
    at_least: Option<RunToken>,
    /// Take an answer that was current this long ago, such as 30s
    #[arg(long, value_name = "TIME", value_parser = staleness)]
    max_staleness: Option<Duration>,
    /// Ask the coordinator even under a lease, so that no clock is relied on
    #[arg(long)]
    verified: bool,
    /// Take only what is proven to be current, also of a worker that is configured for less
    #[arg(long)]
    strict: bool,
}

impl FreshnessArgs {
    /// What the flags say.
    fn said(&self) -> Option<Freshness> {
        let verified = self.verified.then_some(Freshness::Verified);
        let at = self.at.map(Freshness::from);
        let at_least = self.at_least.map(Freshness::AtLeast);
        let bounded = self.max_staleness.map(Freshness::Bounded);
        let strict = self.strict.then_some(Freshness::Strict);
        at.or(at_least).or(bounded).or(verified).or(strict)
    }
}

/// What a run's variables say: one of them at most.
fn of_environment(variables: &Variables) -> Result<Option<Freshness>, Complaint> {
    let at = variable::<At>(variables, "LARDER_REVISION")?.map(Freshness::from);
    let at_least = variable(variables, "LARDER_AT_LEAST")?.map(Freshness::AtLeast);
    if at.is_some() && at_least.is_some() {
        let message = "LARDER_REVISION and LARDER_AT_LEAST are both set";
        return Err(Complaint::new(Exit::Usage, message).hint("unset one, or give a flag"));
    }
    Ok(at.or(at_least))
}

type Variables = BTreeMap<OsString, OsString>;

/// An empty variable is one that is not set.
fn variable<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    variables: &Variables,
    name: &str,
) -> Result<Option<T>, Complaint> {
    let Some(value) = variables.get(OsStr::new(name)).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    let text = value.to_string_lossy();
    text.parse().map(Some).map_err(|error| {
        Complaint::new(Exit::Usage, format!("environment {name}=`{text}`")).because(error)
    })
}

pub(crate) async fn run(
    args: &Args,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let variables = Surroundings::of_this_process().variables;
    let freshness = freshness(args, &variables)?;
    let api = connect(&config, Purpose::Read).await?;
    get(&*api, freshness, config.deadline, args, screen).await
}

/// How fresh the answer must be; `None` leaves it to the node.
fn freshness(args: &Args, variables: &Variables) -> Result<Option<Freshness>, Complaint> {
    match (&args.target, args.how.said()) {
        (Target::Hash(_), Some(_)) => {
            let message = "a hash is the same at every revision and never out of date";
            let hint = "leave `--at`, `--at-least`, `--max-staleness`, `--verified` and \
                        `--strict` out";
            Err(Complaint::new(Exit::Usage, message).hint(hint))
        }
        (Target::Hash(_), None) => Ok(Some(Freshness::Strict)),
        (Target::Name(_), Some(said)) => Ok(Some(said)),
        (Target::Name(_), None) => of_environment(variables),
    }
}

async fn get(
    api: &dyn Api,
    freshness: Option<Freshness>,
    deadline: Duration,
    args: &Args,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let target = &args.target;
    let answer = read(api, target, freshness, deadline, screen).await?;
    if args.verbose {
        screen.say(describe(target, &answer));
    }
    let Some(spec) = &answer.spec else {
        let at = freshness.and_then(Freshness::revision);
        return Err(absent(api, target, at, &answer).await.into());
    };
    let data = match screen.json() {
        true => format!("{}\n", to_json(target, &answer)).into_bytes(),
        false => spec.bytes().to_vec(),
    };
    match &args.output {
        Some(path) => output::write(path, &data)?,
        None => screen.raw(&data)?,
    }
    Ok(())
}

/// Reads as fresh as is said; `None` leaves it to the node, and what that gives is no secret if it
/// may be old.
pub(crate) async fn read(
    api: &dyn Api,
    target: &Target,
    freshness: Option<Freshness>,
    deadline: Duration,
    screen: &mut Screen<'_>,
) -> Result<Answer, Failure> {
    if let (Target::Name(name), None) = (target, freshness) {
        let (answer, configured) = api.get_as_configured(name.clone(), deadline).await?;
        if answer.proof.mode == Mode::Bounded {
            let age = age(&answer.proof);
            screen.say(format_args!(
                "note: answered as of {age} ago at most, as the worker is configured ({configured})"
            ));
        }
        return Ok(answer);
    }
    let query = Query {
        target: target.clone(),
        freshness: freshness.unwrap_or_default(),
        deadline,
    };
    api.get(query).await
}

/// The error for a name that is proven not to exist, now or at a revision.
pub(crate) async fn absent(
    api: &dyn Api,
    target: &Target,
    at: Option<Revision>,
    answer: &Answer,
) -> Complaint {
    let when = at.map_or_else(String::new, |rev| format!(" at revision {rev}"));
    let message = match answer.proof.record_rev {
        Some(rev) => format!("`{target}` was deleted in revision {rev}"),
        None => format!("there is no definition `{target}`{when}"),
    };
    let complaint = Complaint::new(Exit::NotFound, message);
    if let (Target::Name(name), None) = (target, answer.proof.record_rev)
        && let Some(hint) = did_you_mean(api, name, at).await
    {
        return complaint.hint(hint);
    }
    complaint
}

/// One line: what, which, since when, why, from where, how old, how long.
fn describe(target: &Target, answer: &Answer) -> String {
    let proof = &answer.proof;
    let mut words = vec![target.to_string()];
    words.push(match &answer.spec {
        Some(spec) => spec.hash().short(),
        None => "absent".into(),
    });
    if let Some(rev) = proof.record_rev {
        words.push(format!("changed in revision {rev}"));
    }
    if let Some(Snapshot { rev, epoch, .. }) = proof.snapshot {
        words.push(format!("read at revision {rev} of epoch {epoch}"));
    }
    words.push(format!("mode {} ({})", proof.mode, reason(proof)));
    words.push(format!("from {}", proof.source));
    words.push(format!("took {} us", answer.took.as_micros()));
    let failed = answer.failed.iter().map(|hop| format!("\n  tried {hop}"));
    words.join(", ") + &failed.collect::<String>()
}

/// How long ago the answer was current at the latest.
fn age(proof: &Proof) -> String {
    match proof.age_us {
        u64::MAX => "nobody knows how long".to_owned(),
        micros => seconds(Duration::from_micros(micros)),
    }
}

/// Why the answer is right, in words.
fn reason(proof: &Proof) -> String {
    let age = age(proof);
    match proof.mode {
        Mode::Lease => format!("current under a lease, heard from the coordinator {age} ago"),
        Mode::Asked => format!("the coordinator was asked {age} ago"),
        Mode::At => "what it was at that revision never changes".into(),
        Mode::AtLeast => "not older than the token".into(),
        Mode::Bounded => format!("may be old: known to be current {age} ago"),
        Mode::Pinned => "the hash proves the bytes".into(),
    }
}

fn to_json(target: &Target, answer: &Answer) -> serde_json::Value {
    let spec = answer.spec.as_ref();
    json!({
        "target": target.to_string(),
        "hash": spec.map(|spec| spec.hash()),
        "len": spec.map(|spec| spec.len()),
        "proof": answer.proof,
        "failed": answer.failed,
        "took_us": u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX),
        "body": spec.map(|spec| String::from_utf8_lossy(spec.bytes())),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::complaint::as_text;
    use super::super::fake::{Fake, run_on};
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    const TOKEN: &str = "lr1:07070707070707070707070707070707:1:1";

    fn line(flags: &[&str]) -> Result<Args, String> {
        let words = ["get"].iter().chain(flags);
        let line = Line::try_parse_from(words).map_err(|error| error.to_string());
        line.map(|line| line.args)
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn one_flag_says_how_fresh_and_wins_over_the_environment() {
        let wanted = |flags: &[&str], pairs: &[(&str, &str)]| {
            let args = line(flags).expect("good flags");
            freshness(&args, &variables(pairs))
        };
        let token: RunToken = TOKEN.parse().expect("a token");
        let at = Freshness::At(Revision::new(4));
        let run = [("LARDER_REVISION", TOKEN)];
        let least = [("LARDER_AT_LEAST", TOKEN)];
        let ok = |got: Result<Option<Freshness>, Complaint>| got.expect("good").expect("said");
        assert_eq!(wanted(&["a"], &[]).expect("good"), None);
        assert_eq!(ok(wanted(&["a", "--strict"], &run)), Freshness::Strict);
        assert_eq!(ok(wanted(&["a", "--at", "4"], &run)), at);
        assert_eq!(ok(wanted(&["a"], &run)), Freshness::Run(token));
        assert_eq!(ok(wanted(&["a"], &[("LARDER_REVISION", "4")])), at);
        assert_eq!(ok(wanted(&["a"], &least)), Freshness::AtLeast(token));
        assert_eq!(
            ok(wanted(&["a", "--verified"], &least)),
            Freshness::Verified
        );
        let bounded = Freshness::Bounded(Duration::from_secs(30));
        assert_eq!(ok(wanted(&["a", "--max-staleness", "30s"], &[])), bounded);

        let both = [run[0], least[0]];
        let error = wanted(&["a"], &both).expect_err("which one?");
        assert_eq!(error.exit(), Exit::Usage);
        let error = wanted(&["a"], &[("LARDER_REVISION", "soon")]).expect_err("no revision");
        assert!(
            error.to_string().contains("LARDER_REVISION=`soon`"),
            "{error}"
        );
        let hash = larder::spec::SpecHash::of(b"x").to_string();
        assert!(wanted(&[&hash, "--verified"], &[]).is_err());
        assert_eq!(ok(wanted(&[&hash], &run)), Freshness::Strict);
    }

    #[test]
    fn two_flags_and_nonsense_are_refused() {
        let refused = |flags: &[&str]| line(flags).expect_err("refused");
        let two = refused(&["a", "--at", "1", "--verified"]);
        assert!(two.contains("cannot be used with"), "{two}");
        for other in [
            ["--at", "1"],
            ["--at-least", TOKEN],
            ["--max-staleness", "1s"],
        ] {
            refused(&["a", "--strict", other[0], other[1]]);
        }
        refused(&["a", "--strict", "--verified"]);
        for flags in [
            ["a", "--at", "soon"],
            ["a", "--at-least", "12"],
            ["a", "--max-staleness", "0s"],
        ] {
            refused(&flags);
        }
    }

    #[test]
    fn a_token_of_another_epoch_is_refused_and_never_read_by_its_number() {
        let fake = Fake::with(&[("a", "one")]);
        let mut args = args("a");
        args.how.at = Some(TOKEN.parse().expect("a token"));
        assert_eq!(shown(&fake, &args, false).expect("there").0, "one");
        args.how.at = Some(TOKEN.replace(":1:1", ":2:1").parse().expect("a token"));
        assert!(shown(&fake, &args, false).is_err());
    }

    fn args(target: &str) -> Args {
        Args {
            target: target.parse().expect("good"),
            how: FreshnessArgs::default(),
            output: None,
            verbose: false,
            client: ClientArgs::default(),
        }
    }

    fn shown(fake: &Fake, args: &Args, json: bool) -> Result<(String, String), anyhow::Error> {
        let freshness = freshness(args, &Variables::new())?;
        let second = Duration::from_secs(1);
        run_on(json, async |screen| {
            get(fake, freshness, second, args, screen).await
        })
    }

    #[test]
    fn an_answer_that_is_old_by_configuration_says_so_once_and_strict_takes_none() {
        let fake = Fake::with(&[("a", "one")]);
        fake.configure(Freshness::Bounded(Duration::from_secs(60)));
        let note = "note: answered as of 5 us ago at most, as the worker is configured \
                    (bounded:60s)\n";
        let (out, err) = shown(&fake, &args("a"), false).expect("there");
        assert_eq!((&*out, &*err), ("one", note));
        let (out, err) = shown(&fake, &args("a"), true).expect("there");
        assert_eq!(err, note);
        let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(value["proof"]["mode"], "bounded");
        let mut strict = args("a");
        strict.how.strict = true;
        strict.verbose = true;
        let (_, err) = shown(&fake, &strict, false).expect("there");
        assert!(
            err.starts_with("a, b3:") && err.contains("mode asked"),
            "{err}"
        );
    }

    #[test]
    fn the_body_goes_to_stdout_and_the_proof_to_stderr() {
        let fake = Fake::with(&[("etl/daily", "steps: []\n")]);
        let mut args = args("etl/daily");
        args.verbose = true;
        let (out, err) = shown(&fake, &args, false).expect("there");
        assert_eq!(out, "steps: []\n");
        assert!(err.starts_with("etl/daily, b3:"), "{err}");
        assert!(
            err.contains("read at revision 1 of epoch 1, mode asked"),
            "{err}"
        );
    }

    #[test]
    fn json_has_the_proof_and_the_body() {
        let fake = Fake::with(&[("a", "x: 1\n")]);
        let (out, _) = shown(&fake, &args("a"), true).expect("there");
        let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(value["body"], "x: 1\n");
        assert_eq!(value["proof"]["mode"], "asked");
        assert_eq!(value["proof"]["snapshot"]["rev"], 1);
    }

    #[test]
    fn an_absent_name_fails_with_the_nearest_ones() {
        let fake = Fake::with(&[("etl/daily", "x"), ("etl/weekly", "x")]);
        let error = shown(&fake, &args("etl/dialy"), false).expect_err("absent");
        assert_eq!(error.to_string(), "there is no definition `etl/dialy`");
        assert_eq!(Exit::of(&error), Exit::NotFound);
        assert!(as_text(&error).ends_with("hint: did you mean `etl/daily`?\n"));
    }

    #[test]
    fn an_old_revision_is_still_readable_and_a_deletion_is_named() {
        let fake = Fake::with(&[("a", "one")]);
        fake.delete("a");
        let error = shown(&fake, &args("a"), false).expect_err("deleted");
        assert_eq!(error.to_string(), "`a` was deleted in revision 2");
        let mut old = args("a");
        old.how.at = Some(At::Revision(Revision::new(1)));
        assert_eq!(shown(&fake, &old, false).expect("there").0, "one");
    }

    #[test]
    fn a_file_gets_the_same_bytes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fake = Fake::with(&[("a", "one")]);
        let mut args = args("a");
        args.output = Some(dir.path().join("a.yaml"));
        assert_eq!(shown(&fake, &args, false).expect("there").0, "");
        assert_eq!(
            std::fs::read(dir.path().join("a.yaml")).expect("written"),
            b"one"
        );
    }
}
