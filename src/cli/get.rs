use std::path::PathBuf;

use larder::answer::{Answer, Freshness, Query, Snapshot, Target};
use larder::api::Api;
use larder::catalog::Revision;
use larder::config::ClientConfig;
use serde_json::json;

use super::complaint::Complaint;
use super::connect::{Purpose, connect};
use super::exit::Exit;
use super::option::{ClientArgs, GlobalArgs};
use super::output;
use super::records::did_you_mean;
use super::screen::Screen;

/// Print a definition that is proven to be the current one.
///
/// The exact bytes go to stdout. A name is answered only with proof that no newer definition was
/// published before the command began; without proof it fails with exit code 4 and says what was
/// tried. A read at a revision or by hash needs no such proof and works while cut off.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder get etl/daily                     what is current
  larder get etl/daily -v > daily.yaml     the same, with its proof on stderr
  larder get etl/daily --at 12             what it was at revision 12
  larder get b3:4d5e... -o daily.yaml      exactly these bytes
  larder get etl/daily --json | jq .proof")]
pub(crate) struct Args {
    /// A name such as etl/daily, or a hash b3:...
    target: Target,
    /// Read the name as it was at this revision
    #[arg(long, value_name = "REV")]
    at: Option<Revision>,
    /// Write to this file, whole or not at all
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Say on stderr why the answer is right
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
    let query = query(args, &config)?;
    let api = connect(&config, Purpose::Read).await?;
    get(&*api, query, args, screen).await
}

fn query(args: &Args, config: &ClientConfig) -> Result<Query, Complaint> {
    if matches!((&args.target, args.at), (Target::Hash(_), Some(_))) {
        let message = "a hash is the same at every revision";
        return Err(Complaint::new(Exit::Usage, message).hint("leave `--at` out"));
    }
    Ok(Query {
        target: args.target.clone(),
        freshness: args.at.map_or(Freshness::Strict, Freshness::At),
        deadline: config.deadline,
    })
}

async fn get(
    api: &dyn Api,
    query: Query,
    args: &Args,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let answer = api.get(query.clone()).await?;
    if args.verbose {
        screen.say(describe(&query.target, &answer));
    }
    let Some(spec) = &answer.spec else {
        return Err(absent(api, &query, &answer).await.into());
    };
    let data = match screen.json() {
        true => format!("{}\n", to_json(&query.target, &answer)).into_bytes(),
        false => spec.bytes().to_vec(),
    };
    match &args.output {
        Some(path) => output::write(path, &data)?,
        None => screen.raw(&data)?,
    }
    Ok(())
}

/// The error for a name that is proven not to exist.
pub(crate) async fn absent(api: &dyn Api, query: &Query, answer: &Answer) -> Complaint {
    let at = match query.freshness {
        Freshness::At(rev) => Some(rev),
        _ => None,
    };
    let when = at.map_or_else(String::new, |rev| format!(" at revision {rev}"));
    let message = match answer.proof.record_rev {
        Some(rev) => format!("`{}` was deleted in revision {rev}", query.target),
        None => format!("there is no definition `{}`{when}", query.target),
    };
    let complaint = Complaint::new(Exit::NotFound, message);
    if let (Target::Name(name), None) = (&query.target, answer.proof.record_rev)
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
    words.push(format!("mode {}", proof.mode));
    words.push(format!("from {}", proof.source));
    words.push(format!("age {} us", proof.age_us));
    words.push(format!("took {} us", answer.took.as_micros()));
    let failed = answer.failed.iter().map(|hop| format!("\n  tried {hop}"));
    words.join(", ") + &failed.collect::<String>()
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
    use super::super::complaint::as_text;
    use super::super::fake::{Fake, run_on};
    use super::*;

    fn args(target: &str) -> Args {
        Args {
            target: target.parse().expect("good"),
            at: None,
            output: None,
            verbose: false,
            client: ClientArgs::default(),
        }
    }

    fn shown(fake: &Fake, args: &Args, json: bool) -> Result<(String, String), anyhow::Error> {
        let mut query = Query::strict(args.target.clone());
        query.freshness = args.at.map_or(Freshness::Strict, Freshness::At);
        run_on(json, async |screen| get(fake, query, args, screen).await)
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
        old.at = Some(Revision::new(1));
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
