use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use larder::api::Api;
use serde_json::Value;

use super::connect::{Purpose, connect};
use super::option::{ClientArgs, GlobalArgs};
use super::screen::Screen;
use super::table::{clean, table};
use super::timestamp::seconds;

/// Show the other workers that a worker knows.
///
/// Asks the worker on this machine, which asks each of them how it is. A worker's name comes from
/// its certificate; until this one has seen that, its id is shown. STATE is up, suspect (it has not
/// answered, and has some seconds left) or down. REACHES says how it comes to the coordinator: direct,
/// `via` another worker, or none, when it does not come there at all.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder peers                             who is there
  larder peers --watch                     the same, each second
  larder peers --json | jq '.members[] | select(.state != \"up\")'")]
pub(crate) struct Args {
    /// Show them anew each second until it is interrupted; with --json one line each time
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    args: &Args,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let api = connect(&config, Purpose::Read).await?;
    if !args.watch {
        return show(&*api, screen).await;
    }
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        if !screen.json() && std::io::stdout().is_terminal() {
            // To the top left, and everything below is erased.
            screen.raw(b"\x1b[H\x1b[J")?;
        }
        show(&*api, screen).await?;
        screen.flush()?;
    }
}

async fn show(api: &dyn Api, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let peers = api.peers().await?;
    match screen.json() {
        true => screen.line(&peers)?,
        false => screen.raw(text(&peers).as_bytes())?,
    }
    Ok(())
}

fn text(peers: &Value) -> String {
    let mut out = String::new();
    let word = |key: &str| peers[key].as_str().map(clean);
    let _ = match (word("gossip").as_deref(), word("node"), word("addr")) {
        (Some("off"), ..) => writeln!(
            out,
            "this worker does not look for others: it was started with `--gossip off`"
        ),
        (_, Some(node), Some(addr)) if peers["reachable"] == false => writeln!(
            out,
            "{node} cannot be dialled at {addr}, so it is no member and is attached to these; \
             forward that UDP port, or say with --advertise where it is reached"
        ),
        (_, Some(node), Some(addr)) => writeln!(out, "{node} is reached at {addr}"),
        _ => writeln!(
            out,
            "where this worker is reached is not known yet: no address to join by answers"
        ),
    };
    let members = peers["members"].as_array().map(Vec::as_slice);
    let rows: Vec<Vec<String>> = members.unwrap_or_default().iter().map(row).collect();
    let header = [
        "NAME", "ADDRESS", "STATE", "RTT", "REVISION", "REACHES", "GIVEN", "TAKEN",
    ];
    if rows.is_empty() {
        out.push_str("no other worker is known\n");
    } else {
        out.push_str(&table(&header, &rows));
    }
    out
}

fn row(member: &Value) -> Vec<String> {
    let word = |key: &str| match &member[key] {
        Value::String(text) => clean(text).into_owned(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let rtt = member["rtt_us"].as_u64().map(Duration::from_micros);
    let bytes = |key: &str| member[key].as_u64().map_or("-".into(), amount);
    vec![
        word("name"),
        word("addr"),
        word("state"),
        rtt.map_or("-".into(), seconds),
        word("revision"),
        word("coordinator"),
        bytes("given"),
        bytes("taken"),
    ]
}

/// Bytes as people read them.
fn amount(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1_024.0 && unit + 1 < units.len() {
        value /= 1_024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_member_is_a_line_and_what_is_unknown_a_dash() {
        let peers = json!({
            "gossip": "on", "node": "edge-1", "addr": "10.0.0.1:7458", "reachable": true,
            "members": [
                { "name": "edge-2", "addr": "10.0.0.2:7458", "state": "up", "rtt_us": 12_300,
                  "revision": 7, "coordinator": "via edge-3", "given": 2_048, "taken": 12 },
                { "name": "edge\u{1b}[2J", "addr": "10.0.0.3:7458", "state": "down" },
            ],
        });
        let text = text(&peers);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "edge-1 is reached at 10.0.0.1:7458");
        let words: Vec<_> = lines[2].split_whitespace().collect();
        let expected = [
            "edge-2",
            "10.0.0.2:7458",
            "up",
            "12",
            "ms",
            "7",
            "via",
            "edge-3",
            "2.0",
            "KiB",
            "12",
            "B",
        ];
        assert_eq!(words, expected);
        assert!(lines[3].contains("down") && lines[3].contains('-'));
        assert!(
            !text.contains('\u{1b}'),
            "a name is no command to the terminal"
        );
    }

    #[test]
    fn a_worker_that_stands_alone_says_why() {
        let off = json!({ "gossip": "off", "members": [] });
        assert!(text(&off).contains("--gossip off"));
        let nowhere = json!({ "gossip": "on", "node": "w", "addr": null, "members": [] });
        assert!(text(&nowhere).contains("not known yet"));
        let leaf = json!({ "gossip": "on", "node": "w", "addr": "1.2.3.4:5", "reachable": false });
        assert!(text(&leaf).contains("--advertise"));
    }

    #[test]
    fn the_help_names_every_word_of_a_state_and_a_way() {
        use clap::Args as _;

        let mut help = Args::augment_args(clap::Command::new("peers"));
        let help = help.render_long_help().to_string();
        for word in ["up", "suspect", "down", "direct", "via", "none"] {
            let mut words = help.split(|c: char| !c.is_alphanumeric());
            assert!(words.any(|other| other == word), "{word}: {help}");
        }
    }
}
