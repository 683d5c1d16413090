use std::fmt::Write as _;

use larder::api::Api;
use serde_json::{Map, Value};

use super::connect::{Purpose, connect};
use super::option::{ClientArgs, GlobalArgs};
use super::screen::Screen;
use super::table::{clean, table};

/// Deepest nesting that is shown as lines; what lies below is shown as JSON.
const MAX_DEPTH: usize = 8;

/// Show what a node thinks of itself.
///
/// Asks the worker on this machine if there is one, else the coordinator.
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
    let width = single.iter().map(|(key, _)| key.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut out = String::new();
    for (key, value) in single {
        let _ = writeln!(out, "{:width$}  {}", clean(key), plain(value));
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
        let cell = |key: &&str| object.get(*key).map_or_else(String::new, plain);
        keys.iter().map(cell).collect::<Vec<_>>()
    };
    let rows: Vec<_> = objects.iter().map(row).collect();
    let header: Vec<_> = keys.iter().map(|key| clean(key)).collect();
    let header: Vec<&str> = header.iter().map(AsRef::as_ref).collect();
    table(&header, &rows)
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

    fn shown(value: &Value) -> String {
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
            shown(&status),
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
        assert!(shown(&deep).lines().count() <= MAX_DEPTH + 1);
    }

    #[test]
    fn json_is_passed_through() {
        let fake = Fake::with(&[("a", "1")]);
        let (out, _) = run_on(true, async |screen| status(&fake, screen).await).expect("shown");
        assert_eq!(out, "{\"rev\":1}\n");
    }
}
