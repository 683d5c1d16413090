//! Pins: revisions that stay readable for a run that takes long.

use std::time::Duration;

use larder::answer::RunToken;
use larder::api::Api;
use larder::config::duration;
use larder::proto::limit::DEFAULT_PIN;
use larder::proto::wire::Pinned;

use super::connect::{Purpose, connect};
use super::option::{ClientArgs, GlobalArgs};
use super::screen::Screen;
use super::table::{clean, table};
use super::timestamp::rfc3339;

/// Keep a run's revision readable.
///
/// The coordinator keeps the newest 256 revisions and those of the last 24 hours; a run that may
/// take longer pins its own. The pin is on disk when the command returns.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder pin \"$LARDER_REVISION\" --for 2h
  larder pin \"$(larder run-token)\" --json | jq .id")]
pub(crate) struct PinArgs {
    /// The run's token, as `larder run-token` prints it
    token: RunToken,
    /// For how long, up to 30d [default: 24h]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    keep: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

/// List the revisions that are pinned.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder pins
  larder pins --json | jq '.pins[].rev'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Let a pinned revision go before its time.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder unpin 17                          the number that `larder pin` printed")]
pub(crate) struct UnpinArgs {
    /// The pin's number
    id: u64,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn pin(
    args: &PinArgs,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let api = connect(&config, Purpose::Read).await?;
    pin_on(&*api, args.token, args.keep, screen).await
}

pub(crate) async fn list(
    args: &ListArgs,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let api = connect(&config, Purpose::Read).await?;
    list_on(&*api, screen).await
}

pub(crate) async fn unpin(
    args: &UnpinArgs,
    global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let config = global.client(&args.client)?;
    let api = connect(&config, Purpose::Read).await?;
    unpin_on(&*api, args.id, screen).await
}

async fn pin_on(
    api: &dyn Api,
    token: RunToken,
    keep: Option<Duration>,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let pinned = api.pin(token, keep.unwrap_or(DEFAULT_PIN)).await?;
    if screen.json() {
        return Ok(screen.line(serde_json::to_value(&pinned)?)?);
    }
    Ok(screen.line(format_args!(
        "pin {}: revision {} until {}",
        pinned.id,
        pinned.rev,
        rfc3339(pinned.until_unix_ms)
    ))?)
}

async fn list_on(api: &dyn Api, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let pins = api.pins().await?;
    if screen.json() {
        return Ok(screen.line(serde_json::to_value(&pins)?)?);
    }
    let row = |pin: &Pinned| {
        vec![
            pin.id.to_string(),
            pin.rev.to_string(),
            rfc3339(pin.until_unix_ms),
            clean(&pin.by).into_owned(),
        ]
    };
    let rows: Vec<_> = pins.pins.iter().map(row).collect();
    Ok(screen.raw(table(&["ID", "REV", "UNTIL", "BY"], &rows).as_bytes())?)
}

async fn unpin_on(api: &dyn Api, id: u64, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let pinned = api.unpin(id).await?;
    if screen.json() {
        return Ok(screen.line(serde_json::to_value(&pinned)?)?);
    }
    Ok(screen.line(format_args!(
        "pin {id} is gone, revision {} is no longer kept for it",
        pinned.rev
    ))?)
}

#[cfg(test)]
mod tests {
    use super::super::exit::Exit;
    use super::super::fake::{Fake, run_on};
    use super::*;

    const TOKEN: &str = "lr1:07070707070707070707070707070707:1:1";

    #[test]
    fn a_pin_is_made_listed_and_taken_back() {
        let fake = Fake::with(&[("a", "1")]);
        let token = TOKEN.parse().expect("a token");
        let keep = Some(Duration::from_secs(7_200));
        let made = run_on(false, async |screen| {
            pin_on(&fake, token, keep, screen).await
        });
        let line = "pin 1: revision 1 until 1970-01-01T02:00:00Z\n";
        assert_eq!(made.expect("made").0, line);
        let listed = run_on(false, async |screen| list_on(&fake, screen).await);
        assert_eq!(
            listed.expect("listed").0,
            "ID  REV  UNTIL                 BY\n1   1    1970-01-01T02:00:00Z  local\n"
        );
        let json = run_on(true, async |screen| list_on(&fake, screen).await);
        let (json, _) = json.expect("listed");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["pins"][0]["rev"], 1);
        let gone = run_on(false, async |screen| unpin_on(&fake, 1, screen).await);
        assert!(gone.expect("gone").0.starts_with("pin 1 is gone"));
        let again = run_on(false, async |screen| unpin_on(&fake, 1, screen).await);
        assert_eq!(Exit::of(&again.expect_err("gone")), Exit::NotFound);
    }

    #[test]
    fn a_pin_lives_a_day_unless_it_is_said() {
        let fake = Fake::with(&[("a", "1")]);
        let token = TOKEN.parse().expect("a token");
        let made = run_on(false, async |screen| {
            pin_on(&fake, token, None, screen).await
        });
        assert!(made.expect("made").0.contains("1970-01-02T00:00:00Z"));
    }
}
