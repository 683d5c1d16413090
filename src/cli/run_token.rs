use larder::api::Api;
use serde_json::json;

use super::connect::{Purpose, connect};
use super::option::{ClientArgs, GlobalArgs};
use super::screen::Screen;

/// Print the token of the snapshot that a run should read.
///
/// Nothing that was published before the command began is missing in it. Set LARDER_REVISION to
/// it, and every `larder get` of the run reads that one snapshot, whatever is published meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  export LARDER_REVISION=\"$(larder run-token)\"
  larder get etl/daily --at \"$(larder run-token)\"
  larder run-token --json | jq .rev")]
pub(crate) struct Args {
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
    run_token(&*api, screen).await
}

async fn run_token(api: &dyn Api, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let token = api.run_token().await?;
    if screen.json() {
        return Ok(screen.line(json!({
            "token": token, "catalog": token.catalog, "epoch": token.epoch, "rev": token.rev,
        }))?);
    }
    Ok(screen.line(token)?)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, run_on};
    use super::*;

    #[test]
    fn the_token_is_one_word_or_json() {
        let fake = Fake::with(&[("a", "1")]);
        let show = |json| run_on(json, async |screen| run_token(&fake, screen).await);
        let (text, _) = show(false).expect("shown");
        let token = "lr1:07070707070707070707070707070707:1:1";
        assert_eq!(text, format!("{token}\n"));
        let (text, _) = show(true).expect("shown");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&value["token"], &value["rev"]), (&token.into(), &1.into()));
    }
}
