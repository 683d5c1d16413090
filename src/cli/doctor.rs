use larder::config::Field;
use larder::doctor::{Examination, Finding, Verdict, configure};
use serde_json::json;

use super::complaint::Complaint;
use super::exit::Exit;
use super::logging;
use super::option::{GlobalArgs, IdentityArgs};
use super::screen::Screen;
use super::table::clean;

/// Test the paths of a node, and say what is wrong and what to do.
///
/// It takes the configuration of `larder worker`, or of a coordinator or a client where the
/// certificate is one of theirs, and looks at the certificate, clocks, store, port and socket
/// buffers, then at each coordinator and peer: name, UDP, handshake, packet length, loss, head key,
/// and whether others can dial this node. It may run beside the daemon and changes nothing.
///
/// Each line says ok, warning, FAILED or skipped, and below what is not as it should be stands a
/// hint. If anything failed, it ends with exit code 10.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder doctor                            the node that is configured here
  larder doctor --coordinator c1.example:7457 --certs certs/worker/w1
  larder doctor --peer w2.example:7458 --listen '[::]:7458'
  larder doctor --json | jq '.checks[] | select(.verdict == \"failed\")'")]
pub(crate) struct Args {
    /// Address of the coordinator; repeat it for more [env: LARDER_COORDINATORS]
    #[arg(long = "coordinator", value_name = "HOST:PORT")]
    coordinators: Vec<String>,
    /// Address of another worker; repeat it for more [env: LARDER_PEERS]
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    /// Worker to find others by; repeat it for more [env: LARDER_JOIN]
    #[arg(long, value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Where other workers reach this one, if that is not where it listens
    /// [env: LARDER_ADVERTISE]
    #[arg(long, value_name = "ADDR:PORT")]
    advertise: Option<String>,
    /// UDP address that the node has for QUIC [env: LARDER_LISTEN]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Store directory of the node, or `none` [env: LARDER_STORE]
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// Local Unix socket of the node, asked if it runs [env: LARDER_SOCKET]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
}

pub(crate) fn run(args: &Args, global: &GlobalArgs, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let sources = global.sources(|flags| {
        args.identity.add(flags);
        flags
            .set(Field::Listen, args.listen.as_ref())
            .set(Field::Store, args.store.as_ref())
            .set(Field::Socket, args.socket.as_ref())
            .set_list(Field::Coordinators, &args.coordinators)
            .set_list(Field::Peers, &args.peers)
            .set_list(Field::Join, &args.join)
            .set(Field::Advertise, args.advertise.as_ref());
    });
    let config = configure(&sources)?;
    logging::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let mut examination = Examination::start(config).await?;
        let mut all = Vec::new();
        while let Some(findings) = examination.next().await {
            for finding in findings {
                show(&finding, screen)?;
                all.push(finding);
            }
        }
        examination.finish().await;
        conclude(&all, screen)
    });
    // A resolver or a disk that hangs is not waited for.
    runtime.shutdown_background();
    result
}

fn show(finding: &Finding, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    if screen.json() {
        return Ok(());
    }
    screen.line(line(finding))?;
    if let Some(hint) = &finding.hint {
        screen.line(format_args!("{:21}hint: {}", "", clean(hint)))?;
    }
    // Some checks take seconds.
    Ok(screen.flush()?)
}

fn line(finding: &Finding) -> String {
    let (verdict, check) = (finding.verdict.as_str(), finding.check.as_str());
    let text = clean(&finding.finding);
    match &finding.about {
        Some(about) => format!("{verdict:8} {check:11} {}: {text}", clean(about)),
        None => format!("{verdict:8} {check:11} {text}"),
    }
}

/// Sums up, and makes an error of what failed.
fn conclude(all: &[Finding], screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let count = |verdict| all.iter().filter(|found| found.verdict == verdict).count();
    let failed = count(Verdict::Failed);
    let counts = [
        (count(Verdict::Ok), "ok"),
        (count(Verdict::Warning), "warning"),
        (failed, "failed"),
        (count(Verdict::Skipped), "skipped"),
    ];
    if screen.json() {
        let counts = counts.map(|(count, word)| (word.to_owned(), json!(count)));
        let counts: serde_json::Map<_, _> = counts.into_iter().collect();
        screen.line(json!({ "checks": all, "counts": counts }))?;
    } else {
        let some = counts.iter().filter(|(count, _)| *count > 0);
        let some: Vec<_> = some
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        screen.line(format_args!("{} checks: {}", all.len(), some.join(", ")))?;
    }
    screen.flush()?;
    if failed == 0 {
        return Ok(());
    }
    let message = format!("{failed} of {} checks failed", all.len());
    Err(Complaint::new(Exit::Unsound, message).into())
}

#[cfg(test)]
mod tests {
    use larder::doctor::Check;

    use super::super::fake::run_on;
    use super::*;

    fn finding(verdict: Verdict, hint: Option<&str>) -> Finding {
        Finding {
            check: Check::HeadKey,
            about: Some("c1:7457".into()),
            verdict,
            finding: "it says\u{1b}[31m".into(),
            hint: hint.map(str::to_owned),
        }
    }

    #[test]
    fn a_finding_is_a_line_and_its_hint_stands_below() {
        let shown = run_on(false, async |screen| {
            show(&finding(Verdict::Failed, Some("do this")), screen)?;
            show(&finding(Verdict::Ok, None), screen)
        });
        let (out, _) = shown.expect("shown");
        assert_eq!(
            out,
            "FAILED   head key    c1:7457: it says\\u{1b}[31m\n                     \
             hint: do this\nok       head key    c1:7457: it says\\u{1b}[31m\n"
        );
    }

    #[test]
    fn only_what_failed_is_an_error() {
        let good = [
            finding(Verdict::Ok, None),
            finding(Verdict::Warning, None),
            finding(Verdict::Skipped, None),
        ];
        let shown = run_on(false, async |screen| conclude(&good, screen)).expect("no error");
        assert_eq!(shown.0, "3 checks: 1 ok, 1 warning, 1 skipped\n");
        let bad = [finding(Verdict::Failed, None)];
        let error = run_on(true, async |screen| conclude(&bad, screen)).expect_err("an error");
        assert_eq!(Exit::of(&error), Exit::Unsound);
    }

    #[test]
    fn json_is_one_object() {
        let good = [finding(Verdict::Warning, Some("do this"))];
        let (out, _) = run_on(true, async |screen| {
            show(&good[0], screen)?;
            conclude(&good, screen)
        })
        .expect("shown");
        let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(value["checks"][0]["check"], "head-key");
        assert_eq!(value["checks"][0]["verdict"], "warning");
        assert_eq!(value["checks"][0]["hint"], "do this");
        assert_eq!(value["counts"]["warning"], 1);
    }
}
