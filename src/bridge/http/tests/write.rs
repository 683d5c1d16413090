//! Writes: what is checked before the node hears of it, and what the node's answer becomes.

use super::{Daemon, MAX_LEN, TestNode, connect, exchange};
use crate::spec::SpecHash;

const BYTES: &[u8] = b"steps: [a]\n";

#[tokio::test]
async fn a_put_is_published_and_read_back() {
    let daemon = Daemon::start(TestNode::new()).await;
    let put = daemon
        .send("PUT /v1/specs/etl/a.yaml?expect=0&note=a%20b", BYTES)
        .await;
    let expected = serde_json::json!({
        "catalog": "ca".repeat(16), "epoch": 4, "rev": 1, "changed": 1,
        "waited": { "ms": 0, "holders": 0, "expired": [] },
        "hash": SpecHash::of(BYTES).to_string(),
    });
    assert_eq!((put.status, put.json()), (200, expected));
    assert_eq!(daemon.ask("GET /v1/specs/etl/a").await.body, BYTES);
    let log = daemon.ask("GET /v1/log").await.json();
    assert_eq!(log["entries"][0]["note"], "a b");

    let lost = daemon
        .send("PUT /v1/specs/etl/a?expect=0", b"steps: [b]\n")
        .await;
    assert_eq!(lost.error(), (412, "expect-failed".into()));
    assert_eq!(lost.json()["error"]["rev"], 1);
    assert_eq!(daemon.ask("GET /v1/specs/etl/a").await.body, BYTES);
}

#[tokio::test]
async fn a_delete_leaves_a_proven_absence() {
    let daemon = Daemon::start(TestNode::new()).await;
    daemon.send("PUT /v1/specs/a", BYTES).await;
    let lost = daemon.ask("DELETE /v1/specs/a?expect=7").await;
    assert_eq!(lost.error(), (412, "expect-failed".into()));
    let gone = daemon.ask("DELETE /v1/specs/a?expect=1").await;
    assert_eq!(
        (gone.status, &gone.json()["hash"]),
        (200, &serde_json::Value::Null)
    );
    let absent = daemon.ask("GET /v1/specs/a").await;
    assert_eq!(absent.error(), (404, "absent".into()));
    assert_eq!(absent.header("larder-record-revision"), "2");
}

#[tokio::test]
async fn a_key_makes_a_repeated_put_one_publish() {
    let daemon = Daemon::start(TestNode::new()).await;
    let put = format!("PUT /v1/specs/a?key={}", "0f".repeat(16));
    let first = daemon.send(&put, BYTES).await;
    let again = daemon.send(&put, BYTES).await;
    assert_eq!((again.status, again.body), (200, first.body));
    let reused = daemon.send(&put, b"steps: [b]\n").await;
    assert_eq!(reused.error(), (409, "key-reused".into()));
    let bad = daemon.send("PUT /v1/specs/a?key=0f", BYTES).await;
    assert_eq!(bad.error(), (400, "invalid".into()));
}

#[tokio::test]
async fn what_no_engine_reads_is_refused_with_its_place() {
    let daemon = Daemon::start(TestNode::new()).await;
    let bad = daemon.send("PUT /v1/specs/a", b"steps:\n  - [\n").await;
    assert_eq!(bad.error(), (400, "invalid".into()));
    let message = bad.json()["error"]["message"].to_string();
    assert!(
        message.contains("line") && message.contains("column"),
        "{message}"
    );
    let empty = daemon.ask("PUT /v1/specs/a").await;
    assert_eq!(empty.error(), (400, "invalid".into()));
    let binary = daemon.send("PUT /v1/specs/a?validate=false", b"\xff").await;
    assert_eq!(binary.error(), (400, "invalid".into()));
    assert_eq!(
        daemon.ask("GET /v1/specs/a").await.error(),
        (404, "absent".into())
    );

    let forced = daemon
        .send("PUT /v1/specs/a?validate=false", b"steps:\n  - [\n")
        .await;
    assert_eq!(forced.status, 200);
}

#[tokio::test]
async fn a_blob_must_be_what_its_path_says() {
    let daemon = Daemon::start(TestNode::new()).await;
    let hash = SpecHash::of(BYTES);
    let wrong = daemon
        .send(&format!("PUT /v1/blobs/{hash}"), b"steps: [b]\n")
        .await;
    assert_eq!(wrong.error(), (400, "invalid".into()));
    let missing = format!(r#"{{"hashes":["{hash}"]}}"#);
    let lacks = daemon.send("POST /v1/missing", missing.as_bytes()).await;
    assert_eq!(lacks.json()["missing"][0], hash.to_string());

    let right = daemon.send(&format!("PUT /v1/blobs/{hash}"), BYTES).await;
    let expected = serde_json::json!({ "hash": hash.to_string(), "len": 11 });
    assert_eq!((right.status, right.json()), (200, expected));
    let lacks = daemon.send("POST /v1/missing", missing.as_bytes()).await;
    assert_eq!(lacks.json(), serde_json::json!({ "missing": [] }));
}

#[tokio::test]
async fn several_names_are_published_at_once() {
    let daemon = Daemon::start(TestNode::new()).await;
    let hash = SpecHash::of(BYTES);
    let json = format!(
        r#"{{"note":"n","changes":[{{"name":"a","hash":"{hash}","len":11}},
            {{"name":"b","hash":"{hash}","len":11,"expect":0}}]}}"#
    );
    let early = daemon.send("POST /v1/publish", json.as_bytes()).await;
    assert_eq!(early.error(), (409, "missing-body".into()));
    daemon.send(&format!("PUT /v1/blobs/{hash}"), BYTES).await;
    let published = daemon
        .send("POST /v1/publish", json.as_bytes())
        .await
        .json();
    assert_eq!(
        (&published["rev"], &published["changed"]),
        (&1.into(), &2.into())
    );

    let broken = daemon.send("POST /v1/publish", b"{\"changes\":").await;
    assert_eq!(broken.error(), (400, "invalid".into()));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let daemon = Daemon::start(TestNode::new()).await;
    // Nothing of the announced GiB is ever sent, so the answer cannot have waited for it.
    let announced = "PUT /v1/specs/a\nHost: larder\nContent-Length: 1073741824";
    let reply = exchange(connect(&daemon.path()).await, announced, b"").await;
    assert_eq!(reply.error(), (413, "too-large".into()));

    let limit = usize::try_from(MAX_LEN).expect("small");
    let over = vec![b'a'; limit + 1];
    assert_eq!(
        daemon.send("PUT /v1/specs/a", &over).await.error(),
        (413, "too-large".into())
    );
    assert_eq!(daemon.send("PUT /v1/specs/a", &over[1..]).await.status, 200);
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_at_the_limit() {
    let daemon = Daemon::start(TestNode::new()).await;
    let mut chunks = Vec::new();
    for _ in 0..100 {
        chunks.extend_from_slice(b"64\r\n");
        chunks.extend_from_slice(&[b'a'; 100]);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    let head = "PUT /v1/specs/a\nHost: larder\nTransfer-Encoding: chunked";
    let reply = exchange(connect(&daemon.path()).await, head, &chunks).await;
    assert_eq!(reply.error(), (413, "too-large".into()));
}

#[tokio::test]
async fn a_node_that_takes_no_publishes_says_where_to_go() {
    let mut node = TestNode::new();
    node.writable = false;
    let daemon = Daemon::start(node).await;
    for head in ["PUT /v1/specs/a", "DELETE /v1/specs/a", "POST /v1/publish"] {
        let reply = daemon.send(head, BYTES).await;
        assert_eq!(reply.error(), (403, "not-allowed".into()), "{head}");
        let hint = reply.json()["error"]["hint"].to_string();
        assert!(hint.contains("coordinator"), "{hint}");
    }
    assert_eq!(daemon.ask("GET /healthz").await.status, 200);
}

#[tokio::test]
async fn a_client_that_sends_first_still_reads_why_it_was_refused() {
    // More than the kernel holds: unread, it would break the client's write.
    let big = vec![b'a'; 4 << 20];
    let daemon = Daemon::start(TestNode::new()).await;
    let reply = daemon.send("PUT /v1/specs/a", &big).await;
    assert_eq!(reply.error(), (413, "too-large".into()));
    let mut node = TestNode::new();
    node.writable = false;
    let daemon = Daemon::start(node).await;
    let reply = daemon.send("PUT /v1/specs/a", &big).await;
    assert_eq!(reply.error(), (403, "not-allowed".into()));
}

#[tokio::test]
async fn pins_go_over_the_unix_socket_alone_and_need_no_right_to_publish() {
    let daemon = Daemon::start(TestNode {
        writable: false,
        ..TestNode::new()
    })
    .await;
    let token = daemon.ask("GET /v1/run-token").await.json();
    let token = token["token"].as_str().expect("a token").to_owned();
    let pin = format!("{{\"token\":\"{token}\",\"for_ms\":60000}}");
    let made = daemon.send("POST /v1/pins", pin.as_bytes()).await;
    assert_eq!((made.status, &made.json()["id"]), (200, &1.into()));
    let listed = daemon.ask("GET /v1/pins").await.json();
    assert_eq!(listed["pins"][0]["rev"], 0);
    for (method, path) in [
        ("GET", "/v1/pins"),
        ("POST", "/v1/pins"),
        ("DELETE", "/v1/pins/1"),
    ] {
        let head = format!("{method} {path}\nHost: localhost");
        let reply = daemon.ask_tcp(&head).await;
        assert_eq!(reply.error(), (403, "not-allowed".into()), "{method}");
    }
    let read = daemon.ask_tcp("GET /v1/run-token\nHost: localhost").await;
    assert_eq!(read.status, 200, "a token tells only what a read tells");
    assert_eq!(daemon.ask("DELETE /v1/pins/1").await.status, 200);
    let again = daemon.ask("DELETE /v1/pins/1").await;
    assert_eq!(again.error(), (404, "not-found".into()));
    let bad = daemon.send("POST /v1/pins", b"{\"token\":\"lr1:x\"}").await;
    assert_eq!(bad.error(), (400, "invalid".into()));
}
