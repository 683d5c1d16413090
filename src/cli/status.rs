use std::fmt::Write as _;
use std::time::Duration;

use larder::api::Api;
use serde_json::{Map, Value};

use super::connect::{Purpose, connect};
use super::option::{ClientArgs, GlobalArgs};
use super::screen::Screen;
use super::table::{clean, table};
use super::timestamp::{rfc3339, seconds};

/// Deepest nesting that is shown as lines; what lies below is shown as JSON.
const MAX_DEPTH: usize = 8;

/// Show what a node thinks of itself.
///
/// Asks the worker on this machine if there is one, else the coordinator. A worker shows its
/// lease and what it holds; a coordinator shows each worker's lease, what publishes wait for, and
/// which revisions are pinned.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder status                            the node on this machine
  larder status --socket /run/larder/coordinator.sock
  larder status --json | jq .catalog")]
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
    status(&*api, screen).await
}

async fn status(api: &dyn Api, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let status = api.status().await?;
    match (screen.json(), &status) {
        (false, Value::Object(fields)) => screen.raw(block(fields, 0).as_bytes())?,
        _ => screen.line(&status)?,
    }
    Ok(())
}

/// Single values first and aligned, then what is nested, under its name.
fn block(fields: &Map<String, Value>, depth: usize) -> String {
    let is_nested = |value: &Value| match value {
        Value::Object(inner) => !inner.is_empty() && depth < MAX_DEPTH,
        Value::Array(items) => is_table(items),
        _ => false,
    };
    let (nested, single): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, v)| is_nested(v));
    let width = single
        .iter()
        .map(|(key, _)| name_of(key).chars().count())
        .max();
    let width = width.unwrap_or(0);
    let mut out = String::new();
    for (key, value) in single {
        let _ = writeln!(out, "{:width$}  {}", clean(name_of(key)), shown(key, value));
    }
    for (key, value) in nested {
        let inner = match value {
            Value::Object(inner) => block(inner, depth + 1),
            Value::Array(items) => rows(items),
            _ => String::new(),
        };
        let _ = writeln!(out, "{}:", clean(key));
        for line in inner.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

fn is_table(items: &[Value]) -> bool {
    !items.is_empty() && items.iter().all(Value::is_object)
}

/// A list of objects, one line each, under the keys that any of them has.
fn rows(items: &[Value]) -> String {
    let objects: Vec<_> = items.iter().filter_map(Value::as_object).collect();
    let mut keys: Vec<&str> = Vec::new();
    for key in objects.iter().flat_map(|object| object.keys()) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let row = |object: &&Map<String, Value>| {
        let cell = |key: &&str| match object.get(*key) {
            Some(value) => shown(key, value),
            None => String::new(),
        };
        keys.iter().map(cell).collect::<Vec<_>>()
    };
    let rows: Vec<_> = objects.iter().map(row).collect();
    let header: Vec<_> = keys.iter().map(|key| clean(name_of(key))).collect();
    let header: Vec<&str> = header.iter().map(AsRef::as_ref).collect();
    table(&header, &rows)
}

/// The unit that ends a key goes to its value.
fn name_of(key: &str) -> &str {
    match key.strip_suffix("_unix_ms") {
        Some(name) => name,
        None => key.strip_suffix("_ms").unwrap_or(key),
    }
}

/// A value with the unit that its key names: times as dates, spans of time in what suits them.
fn shown(key: &str, value: &Value) -> String {
    let Some(number) = value.as_u64().filter(|_| key.ends_with("_ms")) else {
        return plain(value);
    };
    match key.ends_with("_unix_ms") {
        true => rfc3339(number),
        false => seconds(Duration::from_millis(number)),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => clean(text).into_owned(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.is_empty() => "none".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::{Fake, run_on};
    use super::*;

    fn text(value: &Value) -> String {
        block(value.as_object().expect("an object"), 0)
    }

    #[test]
    fn single_values_line_up_and_nested_ones_follow() {
        let status = json!({
            "role": "worker",
            "rev": 7,
            "lease": null,
            "store": { "bytes": 12, "names": ["a", "b"] },
            "peers": [{ "addr": "p1:1", "ok": true }, { "addr": "p2:1", "error": "gone" }],
            "pins": [],
        });
        assert_eq!(
            text(&status),
            "lease  -\n\
             pins   none\n\
             rev    7\n\
             role   worker\n\
             peers:\n  addr  ok    error\n  p1:1  true\n  p2:1        gone\n\
             store:\n  bytes  12\n  names  a, b\n"
        );
    }

    #[test]
    fn nothing_that_another_node_says_is_too_deep() {
        let mut deep = json!("end");
        for _ in 0..100 {
            deep = json!({ "d": deep });
        }
        assert!(text(&deep).lines().count() <= MAX_DEPTH + 1);
    }

    #[test]
    fn a_coordinator_shows_its_workers_and_whom_publishes_wait_for() {
        let status = json!({
            "role": "coordinator",
            "lease_ms": 6_000,
            "workers": [{ "uri": "w1", "lease_ms": 4_200, "rev": 7, "acked": 8, "barred_ms": 0 }],
            "waiting": [{ "rev": 8, "left_ms": 900, "waiting_for": ["w1", "w2"] }],
            "pins": [{ "id": 1, "rev": 3, "until_unix_ms": 1_795_492_800_000_u64 }],
        });
        let text = text(&status);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = text.lines().map(words).collect();
        for line in [
            "lease 6.0 s",
            "acked barred lease rev uri",
            "8 0 s 4.2 s 7 w1",
            "900 ms 8 w1, w2",
            "id rev until",
            "1 3 2026-11-24T04:00:00Z",
        ] {
            assert!(lines.iter().any(|shown| shown == line), "{line}: {text}");
        }
    }

    #[test]
    fn json_is_passed_through() {
        let fake = Fake::with(&[("a", "1")]);
        let (out, _) = run_on(true, async |screen| status(&fake, screen).await).expect("shown");
        assert_eq!(out, "{\"rev\":1}\n");
    }
}
