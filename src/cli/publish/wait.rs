use std::io::{IsTerminal, Write};
use std::time::Duration;

use larder::answer::Failure;
use larder::api::Api;
use larder::proto::wire::{Publish, PublishedRev, Waited};
use serde_json::Value;

use crate::cli::table::clean;
use crate::cli::timestamp::seconds;

/// How often the coordinator is asked what a publish waits for: a lease lasts seconds, and a
/// publish that nothing holds up is over before the first time.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Whom a publish waits for, told on stderr while it waits: one line on a terminal, a line each
/// time that it changes where `-v` asks for it, and nothing else.
pub(in crate::cli) async fn publish(
    api: &dyn Api,
    request: &Publish,
    verbose: bool,
) -> Result<PublishedRev, Failure> {
    let terminal = std::io::stderr().is_terminal();
    if !terminal && !verbose {
        return api.publish(request.clone()).await;
    }
    publish_and_tell(api, request, &mut Line::new(std::io::stderr(), terminal)).await
}

async fn publish_and_tell<W: Write>(
    api: &dyn Api,
    request: &Publish,
    line: &mut Line<W>,
) -> Result<PublishedRev, Failure> {
    let mut publishing = api.publish(request.clone());
    let mut every = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_EVERY, LOOK_EVERY);
    loop {
        let status = async {
            every.tick().await;
            api.status().await
        };
        tokio::select! {
            biased;
            published = &mut publishing => return published,
            // A node that cannot say it now is asked again.
            status = status => if let Ok(status) = status {
                line.tell(&status);
            },
        }
    }
}

/// The words, and what the line showed last.
struct Line<W: Write> {
    err: W,
    terminal: bool,
    shown: Option<String>,
}

impl<W: Write> Line<W> {
    fn new(err: W, terminal: bool) -> Self {
        Self {
            err,
            terminal,
            shown: None,
        }
    }

    fn tell(&mut self, status: &Value) {
        let Some((whom, until)) = waiting_for(status) else {
            return;
        };
        if self.terminal {
            self.write(&format!("\r\x1b[Kwaiting for {whom}: {until}"));
        } else if self.shown.as_ref() != Some(&whom) {
            self.write(&format!("waiting for {whom}: {until}\n"));
        }
        self.shown = Some(whom);
    }

    /// Words are no part of the result: a terminal that went away is no error.
    fn write(&mut self, text: &str) {
        let err = &mut self.err;
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

impl<W: Write> Drop for Line<W> {
    /// Clears the line, so that the report does not start in the middle of it.
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            self.write("\r\x1b[K");
        }
    }
}

/// Whom the oldest pending publish waits for, and until when at the latest: publishes become
/// visible in order, so it is what every other one waits for too.
fn waiting_for(status: &Value) -> Option<(String, String)> {
    let waiting = status["waiting"].as_array()?.first()?;
    let left = seconds(Duration::from_millis(waiting["left_ms"].as_u64()?));
    let workers: Vec<_> = waiting["waiting_for"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .map(short)
        .collect();
    match workers.as_slice() {
        [] if waiting["grace"].as_bool() == Some(true) => {
            let whom = "leases of before the coordinator's start";
            Some((whom.into(), format!("they end in {left} at most")))
        }
        [] => None,
        [one] => Some((one.clone(), format!("its lease ends in {left}"))),
        [one, rest @ ..] => Some((
            format!("{one} and {} more", rest.len()),
            format!("their leases end in {left} at most"),
        )),
    }
}

/// The last part of a node's URI, which people know it by.
pub(super) fn short(uri: &str) -> String {
    clean(uri.rsplit('/').next().unwrap_or(uri)).into_owned()
}

/// What a publish had to wait for, for its report; nothing if nobody held a lease.
pub(super) fn describe(waited: &Waited) -> Option<String> {
    let Waited {
        ms,
        holders,
        expired,
    } = waited;
    if *holders == 0 && expired.is_empty() {
        return None;
    }
    let took = seconds(Duration::from_millis(*ms));
    let workers = match holders {
        1 => "1 worker".to_owned(),
        some => format!("{some} workers"),
    };
    let mut text = format!("waited {took} for {workers}");
    if !expired.is_empty() {
        let names: Vec<_> = expired.iter().map(|uri| short(uri)).collect();
        let names = names.join(", ");
        text.push_str(&format!("; no answer until its lease ended: {names}"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::fake::Fake;

    fn waiting(workers: &[&str], grace: bool) -> Value {
        json!({ "waiting": [
            { "rev": 7, "waited_ms": 10, "left_ms": 4_200, "waiting_for": workers, "grace": grace },
            { "rev": 8, "waited_ms": 1, "left_ms": 9_000, "waiting_for": ["x"], "grace": false },
        ]})
    }

    fn told(statuses: &[Value], terminal: bool) -> String {
        let mut err = Vec::new();
        let mut line = Line::new(&mut err, terminal);
        statuses.iter().for_each(|status| line.tell(status));
        drop(line);
        String::from_utf8(err).expect("text")
    }

    #[test]
    fn a_line_says_whom_the_publish_waits_for_and_until_when() {
        let one = waiting(&["spiffe://c/worker/edge-7"], false);
        let line = "waiting for edge-7: its lease ends in 4.2 s";
        assert_eq!(told(std::slice::from_ref(&one), false), format!("{line}\n"));
        let two = waiting(&["spiffe://c/worker/e\u{1b}1", "w"], false);
        assert!(told(&[two], false).starts_with("waiting for e\\u{1b}1 and 1 more: "));
        let start = waiting(&[], true);
        assert!(told(&[start], false).contains("before the coordinator's start"));
        for nothing in [json!({}), json!({ "waiting": [] }), json!({ "waiting": 3 })] {
            assert_eq!(told(&[nothing], false), "");
        }
    }

    #[test]
    fn the_same_is_said_once_and_a_terminal_is_cleared() {
        let one = waiting(&["w1"], false);
        let both = [one.clone(), one];
        assert_eq!(told(&both, false).lines().count(), 1);
        let shown = told(&both, true);
        assert!(shown.starts_with("\r\x1b[Kwaiting for w1") && shown.ends_with("\r\x1b[K"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_publish_that_waits_tells_so_until_it_is_over() {
        let fake = Fake::with(&[("a", "1")]);
        fake.say(waiting(&["w1"], false));
        fake.publish_takes(LOOK_EVERY * 3);
        let mut err = Vec::new();
        let request = fake.history().remove(0);
        let mut line = Line::new(&mut err, false);
        let published = publish_and_tell(&fake, &request, &mut line).await;
        drop(line);
        assert_eq!(published.expect("published").changed, 0);
        let text = String::from_utf8(err).expect("text");
        assert_eq!(text, "waiting for w1: its lease ends in 4.2 s\n");
    }

    #[test]
    fn a_report_names_those_whose_lease_was_waited_out() {
        let waited = |holders, expired: &[&str]| Waited {
            ms: 6_000,
            holders,
            expired: expired.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(describe(&Waited::default()), None);
        let all = describe(&waited(2, &[])).expect("waited");
        assert_eq!(all, "waited 6.0 s for 2 workers");
        let late = describe(&waited(1, &["spiffe://c/worker/edge-7"])).expect("waited");
        assert!(late.ends_with("until its lease ended: edge-7"), "{late}");
    }
}
