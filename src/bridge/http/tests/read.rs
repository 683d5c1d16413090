//! Reads: bytes with their proof, `304`, absence, and every refusal.

use std::time::Duration;

use super::{Daemon, TestNode};
use crate::answer::{Freshness, GetError, Hop, HopFailure};
use crate::api::Api;
use crate::api::conformance::{body, name, one};
use crate::catalog::Revision;
use crate::spec::{SpecHash, Syntax};

const BYTES: &[u8] = b"steps: [a]\n";

/// A daemon whose catalog holds `etl/a` at revision 1.
async fn stocked() -> Daemon {
    stock(TestNode::new()).await
}

async fn stock(node: TestNode) -> Daemon {
    let spec = body(BYTES);
    let shelf = &node.shelf;
    shelf
        .put_body(spec.clone(), Syntax::Yaml)
        .await
        .expect("stored");
    shelf
        .publish(one("etl/a", Some(&spec), None))
        .await
        .expect("published");
    Daemon::start(node).await
}

#[tokio::test]
async fn a_read_gives_exact_bytes_and_the_whole_proof() {
    let daemon = stocked().await;
    let reply = daemon.ask("GET /v1/specs/etl/a").await;
    assert_eq!((reply.status, &reply.body[..]), (200, BYTES));
    for (name, value) in [
        ("content-type", "application/yaml"),
        ("content-length", "11"),
        ("cache-control", "no-cache"),
        ("etag", &format!("\"{}\"", SpecHash::of(BYTES))),
        ("larder-catalog", &"ca".repeat(16)),
        ("larder-epoch", "4"),
        ("larder-revision", "1"),
        ("larder-record-revision", "1"),
        ("larder-mode", "asked"),
        ("larder-source", "coordinator [::1]:7457"),
        ("larder-age-us", "17"),
        ("larder-took-us", "1234"),
        ("larder-failed-hops", "3"),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn a_name_with_an_extension_is_the_same_name() {
    let daemon = stocked().await;
    for path in ["etl/a.yaml", "etl/a.yml", "etl%2Fa"] {
        let reply = daemon.ask(&format!("GET /v1/specs/{path}?at=1")).await;
        assert_eq!((reply.status, &reply.body[..]), (200, BYTES), "{path}");
        assert_eq!(reply.header("larder-mode"), "at");
    }
}

#[tokio::test]
async fn head_gives_the_same_headers_and_no_bytes() {
    let daemon = stocked().await;
    let reply = daemon.ask("HEAD /v1/specs/etl/a").await;
    assert_eq!((reply.status, &reply.body[..]), (200, &b""[..]));
    assert_eq!(reply.header("content-length"), "11");
    assert_eq!(reply.header("etag"), format!("\"{}\"", SpecHash::of(BYTES)));
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again_but_proven_again() {
    let daemon = stocked().await;
    let tag = format!("\"{}\"", SpecHash::of(BYTES));
    let other = format!("\"{}\"", SpecHash::of(b"other"));
    let ask = async |tag: &str| {
        daemon
            .ask(&format!("GET /v1/specs/etl/a\nIf-None-Match: {tag}"))
            .await
    };
    let same = ask(&format!("{other}, {tag}")).await;
    assert_eq!((same.status, &same.body[..]), (304, &b""[..]));
    assert_eq!(same.header("etag"), tag);
    assert_eq!(same.header("larder-revision"), "1");
    assert_eq!(ask("*").await.status, 304);
    assert_eq!(ask(&other).await.status, 200);

    let absent = daemon.ask("GET /v1/specs/none\nIf-None-Match: *").await;
    assert_eq!(absent.error(), (404, "absent".into()));
}

#[tokio::test]
async fn no_304_without_a_proof() {
    let node = TestNode::new();
    let hops = vec![HopFailure {
        hop: Hop::Coordinator("c:1".into()),
        reason: "timed out".into(),
    }];
    let error = GetError::NoFreshnessProof {
        name: name("etl/a"),
        last: None,
        hops,
    };
    node.shelf.fail(name("etl/a"), error);
    let daemon = Daemon::start(node).await;
    let tag = SpecHash::of(BYTES);
    let reply = daemon
        .ask(&format!("GET /v1/specs/etl/a\nIf-None-Match: \"{tag}\""))
        .await;
    assert_eq!(reply.error(), (503, "no-freshness-proof".into()));
    let error = &reply.json()["error"];
    assert_eq!(error["hops"][0]["reason"], "timed out");
    assert_eq!(error["name"], "etl/a");
    assert!(error["hint"].is_string());
}

#[tokio::test]
async fn an_absence_has_its_proof_too() {
    let daemon = stocked().await;
    let reply = daemon.ask("GET /v1/specs/etl/none").await;
    assert_eq!(reply.error(), (404, "absent".into()));
    assert_eq!(reply.header("larder-revision"), "1");
    assert_eq!(reply.header("larder-mode"), "asked");
    assert_eq!(reply.header("larder-record-revision"), "");
    assert_eq!(reply.header("etag"), "");
}

#[tokio::test]
async fn a_blob_is_read_by_its_hash() {
    let daemon = stocked().await;
    let hash = SpecHash::of(BYTES);
    let reply = daemon.ask(&format!("GET /v1/blobs/{hash}")).await;
    assert_eq!((reply.status, &reply.body[..]), (200, BYTES));
    assert_eq!(reply.header("larder-mode"), "pinned");
    assert_eq!(reply.header("larder-catalog"), "");
    let unknown = SpecHash::of(b"unknown");
    let reply = daemon.ask(&format!("GET /v1/blobs/{unknown}")).await;
    assert_eq!(reply.error(), (503, "no-bytes".into()));
}

#[tokio::test]
async fn what_makes_no_sense_is_named() {
    let daemon = stocked().await;
    for (path, expected) in [
        ("specs/etl/a?att=1", "unknown query parameter `att`"),
        ("specs/etl/a?stale=1", "unknown query parameter `stale`"),
        ("specs/etl/a?at=x", "`at=x`: it is a revision"),
        ("specs/etl/a?at_least=12", "`at_least=12`: a run's token"),
        ("specs/etl/a?max_staleness=30", "a number and a unit"),
        ("specs/etl/a?max_staleness=0s", "never younger"),
        ("specs/etl/a?verified=yes", "`verified=yes`"),
        (
            "specs/etl/a?at=1&verified=true",
            "`at` and `verified` exclude each other",
        ),
        (
            "specs/etl/a?max_staleness=1s&strict=true",
            "`max_staleness` and `strict` exclude each other",
        ),
        ("specs/etl/a?at=1&at=2", "`at` is given twice"),
        ("specs/etl/a?deadline_ms=0", "from 1 to 3600000"),
        ("specs/etl/a?deadline_ms=3600001", "from 1 to 3600000"),
        ("specs/etl/../a", "never `.` or `..`"),
        ("specs/a%20b", "' ' is not allowed"),
        ("specs/%ff", "the path cannot be read"),
        ("specs?deleted=yes", "`deleted=yes`"),
        ("specs?limit=-1", "`limit=-1`"),
        ("blobs/b3:00", "64 hex digits"),
        ("log?name=a//b", "no empty segment"),
        ("status?verbose=1", "unknown query parameter `verbose`"),
    ] {
        let reply = daemon.ask(&format!("GET /v1/{path}")).await;
        assert_eq!(reply.error(), (400, "invalid".into()), "{path}");
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[tokio::test]
async fn wrong_paths_and_methods_say_what_is_right() {
    let daemon = stocked().await;
    for path in ["/", "/v1", "/v1/specs/", "/v2/specs/a", "/v1/blobs/a/b"] {
        let reply = daemon.ask(&format!("GET {path}")).await;
        assert_eq!(reply.error(), (404, "no-such-path".into()), "{path}");
        let hint = reply.json()["error"]["hint"].to_string();
        assert!(hint.contains("/v1/specs/{name}"), "{hint}");
    }
    let reply = daemon.ask("PATCH /v1/specs/etl/a").await;
    assert_eq!(reply.error(), (405, "wrong-method".into()));
    assert_eq!(reply.header("allow"), "GET,HEAD,PUT,DELETE");
}

#[tokio::test]
async fn lists_and_logs_are_json_with_stable_names() {
    let daemon = stocked().await;
    let hash = SpecHash::of(BYTES).to_string();
    let list = daemon
        .ask("GET /v1/specs?prefix=etl/&deleted=true&limit=5&at=1")
        .await;
    let expected = serde_json::json!({
        "catalog": "ca".repeat(16), "epoch": 4, "rev": 1, "more": false,
        "records": [{ "name": "etl/a", "rev": 1, "hash": hash, "len": 11 }],
    });
    assert_eq!((list.status, list.json()), (200, expected));
    assert_eq!(list.header("content-type"), "application/json");

    let log = daemon
        .ask("GET /v1/log?name=etl/a.yaml&before=2&limit=5")
        .await;
    let expected = serde_json::json!({
        "catalog": "ca".repeat(16), "epoch": 4, "oldest": 1, "more": false,
        "entries": [{
            "rev": 1, "by": "spiffe://test/publisher/p", "at_unix_ms": 1_700_000_000_001_u64,
            "note": "", "changed": 1, "version": { "rev": 1, "hash": hash, "len": 11 },
        }],
    });
    assert_eq!((log.status, log.json()), (200, expected));

    let status = daemon.ask("GET /v1/status").await;
    assert_eq!(status.json()["role"], "shelf");
}

#[tokio::test]
async fn health_is_always_fine_and_readiness_says_why_not() {
    let mut node = TestNode::new();
    node.ready = Err("no coordinator answers".into());
    let daemon = Daemon::start(node).await;
    let health = daemon.ask("GET /healthz").await;
    assert_eq!((health.status, &health.body[..]), (200, &b"ok\n"[..]));
    let ready = daemon.ask("GET /readyz").await;
    assert_eq!(ready.error(), (503, "not-ready".into()));
    assert_eq!(ready.json()["error"]["message"], "no coordinator answers");
    let metrics = daemon.ask("GET /metrics").await;
    assert_eq!(&metrics.body[..], b"larder_reads_total 3\n");
    assert!(metrics.header("content-type").starts_with("text/plain"));
    assert_eq!(stocked().await.ask("GET /readyz").await.status, 200);
}

#[tokio::test]
async fn each_failure_of_a_read_has_its_status() {
    let node = TestNode::new();
    let (at, newest) = (Revision::new(3), Revision::new(9));
    let cases = [
        ("compacted", 410, GetError::Compacted { at, oldest: newest }),
        ("future", 404, GetError::Future { at, newest }),
        ("busy", 503, GetError::Busy),
        ("draining", 503, GetError::Draining),
        (
            "late",
            504,
            GetError::Deadline {
                target: "late".parse().expect("a name"),
                last: None,
                hops: Vec::new(),
            },
        ),
        (
            "disk",
            500,
            GetError::Disk {
                reason: "I/O error".into(),
            },
        ),
    ];
    for (path, _, error) in &cases {
        node.shelf.fail(name(path), error.clone());
    }
    let daemon = Daemon::start(node).await;
    for (path, status, error) in cases {
        let reply = daemon.ask(&format!("GET /v1/specs/{path}")).await;
        assert_eq!(reply.error(), (status, error.code().into()), "{path}");
        let retry = if path == "busy" { "1" } else { "" };
        assert_eq!(reply.header("retry-after"), retry, "{path}");
    }
}

#[tokio::test]
async fn a_read_that_says_nothing_gets_the_nodes_default_and_one_that_does_gets_that() {
    let node = TestNode::new();
    let bounded = Freshness::Bounded(Duration::from_secs(60));
    node.shelf.configure(bounded);
    let daemon = stock(node).await;
    let mode = async |query: &str| {
        let reply = daemon.ask(&format!("GET /v1/specs/etl/a{query}")).await;
        assert_eq!(reply.status, 200, "{query}");
        let is_default = matches!(query, "" | "?verified=false");
        let default = reply.headers.get("larder-default-freshness");
        assert_eq!(
            default.map(String::as_str),
            is_default.then_some("bounded:60s")
        );
        reply.header("larder-mode").to_owned()
    };
    assert_eq!(mode("").await, "bounded");
    assert_eq!(mode("?verified=false").await, "bounded");
    assert_eq!(mode("?strict=true").await, "asked");
    assert_eq!(mode("?max_staleness=30s").await, "bounded");
    assert_eq!(mode("?verified=true").await, "asked");
    let token = format!("lr1:{}:4:1", "ca".repeat(16));
    assert_eq!(mode(&format!("?at={token}")).await, "at");
    assert_eq!(mode(&format!("?at_least={token}")).await, "at-least");
    let other = daemon
        .ask(&format!(
            "GET /v1/specs/etl/a?at={}",
            token.replace(":4:", ":3:")
        ))
        .await;
    assert_eq!(other.error(), (410, "compacted".into()));
}
