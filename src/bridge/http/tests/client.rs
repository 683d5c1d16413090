//! The client: nothing is lost on the way, and nothing unproven comes out.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::{Backup, Daemon, TestNode, socket_in};
use crate::answer::{
    Failure, Freshness, GetError, Hop, HopFailure, LastKnown, Mode, Query, Target,
};
use crate::api::Api;
use crate::api::conformance::{body, check, name, strict};
use crate::api::shelf::Shelf;
use crate::bridge::http::HttpClient;
use crate::catalog::{CatalogId, Revision};
use crate::spec::{MAX_SPEC_LEN, Spec, SpecHash, Syntax};

async fn client(daemon: &Daemon) -> HttpClient {
    HttpClient::connect(daemon.path()).await.expect("a daemon")
}

#[tokio::test]
async fn the_socket_gives_what_the_node_gives() {
    let daemon = Daemon::start(TestNode::new()).await;
    let far = check(&client(&daemon).await).await;
    let near = check(&Shelf::new()).await;
    assert_eq!(far, near);
}

#[tokio::test]
async fn every_failure_of_a_read_comes_over_whole() {
    let node = TestNode::new();
    let hops = vec![
        HopFailure {
            hop: Hop::Disk,
            reason: "not here".into(),
        },
        HopFailure {
            hop: Hop::Peer("w1:7457".into()),
            reason: "said \"nö\"\nand left".into(),
        },
    ];
    let (at, newest) = (Revision::new(3), Revision::new(9));
    let last = Some(LastKnown {
        record_rev: at,
        seen_rev: newest,
        hash: Some(SpecHash::of(b"x")),
        age_ms: Some(40),
    });
    let a = || name("a");
    let catalog = CatalogId::from_bytes;
    let (known, got) = (catalog([1; 16]), catalog([2; 16]));
    let errors = [
        GetError::NoFreshnessProof {
            name: a(),
            last,
            hops: hops.clone(),
        },
        GetError::NotHeld {
            name: a(),
            at,
            hops: hops.clone(),
        },
        GetError::NoBytes {
            hash: SpecHash::of(b"x"),
            hops: hops.clone(),
        },
        GetError::Compacted { at, oldest: newest },
        GetError::Future { at, newest },
        GetError::Deadline {
            target: Target::Name(a()),
            last,
            hops: hops.clone(),
        },
        GetError::WrongCatalog { known, got, hops },
        GetError::Quarantined {
            known: newest,
            got: at,
        },
        GetError::Busy,
        GetError::Disk {
            reason: "I/O error".into(),
        },
        GetError::Draining,
    ];
    let shelf = std::sync::Arc::clone(&node.shelf);
    let daemon = Daemon::start(node).await;
    let client = client(&daemon).await;
    for error in errors {
        shelf.fail(a(), error.clone());
        let got = client.get(strict("a")).await.expect_err("it fails");
        assert_eq!(got, Failure::from(error));
    }
}

#[tokio::test]
async fn a_read_without_a_wish_gets_what_the_node_is_configured_for_and_is_told() {
    let node = TestNode::new();
    let bounded = Freshness::Bounded(Duration::from_millis(1_500));
    node.shelf.configure(bounded);
    let daemon = Daemon::start(node).await;
    let client = client(&daemon).await;
    let second = Duration::from_secs(1);
    let (answer, freshness) = client
        .get_as_configured(name("a"), second)
        .await
        .expect("absent");
    assert_eq!((answer.spec, freshness), (None, bounded));
    assert_eq!(answer.proof.mode, Mode::Bounded);
    let strict = client.get(strict("a")).await.expect("absent");
    assert_eq!(strict.proof.mode, Mode::Asked);
}

#[tokio::test]
async fn a_node_that_takes_no_publishes_fails_as_it_does_in_process() {
    let mut node = TestNode::new();
    node.writable = false;
    let daemon = Daemon::start(node).await;
    // Longer than what the kernel holds back, so it must be read for the answer to arrive.
    let big = Spec::new(Bytes::from(vec![b'a'; 8 << 20]));
    let error = client(&daemon).await.put_body(big, Syntax::AnyText).await;
    let error = error.expect_err("read-only");
    assert_eq!(error.code, "not-allowed");
    assert!(error.hint.is_some_and(|hint| hint.contains("coordinator")));
}

#[tokio::test]
async fn a_body_over_the_nodes_limit_is_refused_with_that_reason() {
    let daemon = Daemon::start(TestNode::new()).await;
    let client = client(&daemon).await;
    let big = Spec::new(Bytes::from(vec![b'a'; 8 << 20]));
    let error = client
        .put_body(big, Syntax::AnyText)
        .await
        .expect_err("too large");
    assert_eq!(error.code, "too-large");
    let len = usize::try_from(MAX_SPEC_LEN).expect("small") + 1;
    let huge = Spec::new(Bytes::from(vec![b'a'; len]));
    let error = client
        .put_body(huge, Syntax::AnyText)
        .await
        .expect_err("too large");
    assert_eq!(error.code, "too-large");
}

#[tokio::test]
async fn nobody_on_the_socket_is_a_failure_with_a_hint() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = HttpClient::connect(socket_in(&dir))
        .await
        .expect_err("nobody");
    assert_eq!(error.code, "unreachable");
    assert!(error.message.contains("larder.sock"), "{error}");
    assert!(error.hint.is_some());
}

#[tokio::test]
async fn a_daemon_may_restart_between_two_requests() {
    let first = Daemon::start(TestNode::new()).await;
    let client = client(&first).await;
    assert!(client.status().await.is_ok());
    first.stop.send(()).expect("running");
    first.running.await.expect("ended");
    assert_eq!(client.status().await.expect_err("down").code, "unreachable");
    let listener = UnixListener::bind(client.path()).expect("bound");
    answer_once(listener, "200 OK", "", b"{\"up\":true}");
    assert_eq!(client.status().await.expect("up")["up"], true);
}

/// Answers one connection with this, whatever it asks.
fn answer_once(listener: UnixListener, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
    let answer = [head.as_bytes(), body].concat();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.expect("a request"), 0);
        }
        // A client that has seen enough may hang up.
        let _ = stream.write_all(&answer).await;
    });
}

/// A client of a daemon that answers each read with `status`, `headers` and `body`.
fn fake(status: &str, headers: &str, body: &[u8]) -> (HttpClient, TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let path: PathBuf = socket_in(&dir);
    let listener = UnixListener::bind(&path).expect("bound");
    answer_once(listener, status, headers, body);
    (HttpClient { path }, dir)
}

fn proof_of(bytes: &[u8]) -> String {
    let hash = SpecHash::of(bytes);
    format!(
        "ETag: \"{hash}\"\r\nLarder-Mode: pinned\r\nLarder-Source: disk\r\nLarder-Age-Us: 0\r\n\
         Larder-Took-Us: 1\r\n"
    )
}

#[tokio::test]
async fn bytes_that_are_not_their_hash_never_come_out() {
    let good = proof_of(b"steps: [a]\n");
    let (client, _dir) = fake("200 OK", &good, b"steps: [a]\n");
    let answer = client.get(strict("a")).await.expect("right");
    assert_eq!(answer.spec, Some(body(b"steps: [a]\n")));

    let (client, _dir) = fake("200 OK", &good, b"steps: [b]\n");
    let error = client.get(strict("a")).await.expect_err("wrong bytes");
    assert_eq!(error.code, "bad-answer");

    // Consistent with itself, but not what was asked for.
    let (client, _dir) = fake("200 OK", &good, b"steps: [a]\n");
    let wanted = Query::strict(Target::Hash(SpecHash::of(b"other")));
    assert_eq!(
        client.get(wanted).await.expect_err("another blob").code,
        "bad-answer"
    );
}

#[tokio::test]
async fn an_answer_that_is_none_of_ours_is_called_so() {
    let good = proof_of(b"a");
    let no_source = good.replace("Larder-Source: disk\r\n", "");
    let odd_mode = good.replace("pinned", "believed");
    for (status, headers, body) in [
        ("200 OK", "", &b"a"[..]),
        ("200 OK", &no_source, b"a"),
        ("200 OK", &odd_mode, b"a"),
        ("200 OK", "ETag: \"abc\"\r\n", b"a"),
        ("502 Bad Gateway", "", b"<html>"),
        (
            "404 Not Found",
            "",
            br#"{"error":{"code":"absent","message":"without proof"}}"#,
        ),
    ] {
        let (client, _dir) = fake(status, headers, body);
        let error = client.get(strict("a")).await.expect_err(status);
        assert_eq!(error.code, "bad-answer", "{status} {headers}: {error}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let len = usize::try_from(MAX_SPEC_LEN).expect("small") + 1;
    let bytes = vec![b'a'; len];
    let (client, _dir) = fake("200 OK", &proof_of(&bytes), &bytes);
    let error = client.get(strict("a")).await.expect_err("too long");
    assert!(error.message.contains("16777216"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_daemon_costs_the_deadline_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = socket_in(&dir);
    // The kernel connects; nobody accepts.
    let _listener = UnixListener::bind(&path).expect("bound");
    let client = HttpClient { path };
    let mut query = strict("a");
    query.deadline = Duration::from_secs(3_000);
    let began = tokio::time::Instant::now();
    let error = client.get(query).await.expect_err("silence");
    assert_eq!(error.code, "deadline");
    // The clock stands still but for the wait itself; the daemon may say first what it tried.
    let waited = began.elapsed().as_secs();
    assert!((3_000..=3_002).contains(&waited), "{waited} s");
}

#[tokio::test]
async fn a_backup_comes_whole_or_not_at_all() {
    let mut node = TestNode::new();
    node.backup = Some(|out| {
        for byte in 0..200 {
            out.write_all(&[byte; 10_000])?;
        }
        Ok(())
    });
    let daemon = Daemon::start(node).await;
    let mut out = Vec::new();
    let len = client(&daemon).await.backup(&mut out).await;
    assert_eq!((len, out.len()), (Ok(2_000_000), 2_000_000));
    assert!(
        out.chunks(10_000)
            .zip(0..)
            .all(|(chunk, byte)| chunk == [byte; 10_000])
    );

    let breaks: [Backup; 2] = [
        |out| {
            out.write_all(b"the first part")?;
            Err(io::Error::other("the disk is gone"))
        },
        |out| {
            out.write_all(b"the first part")?;
            panic!("a defect")
        },
    ];
    for backup in breaks {
        let mut node = TestNode::new();
        node.backup = Some(backup);
        let daemon = Daemon::start(node).await;
        let cut = client(&daemon).await.backup(&mut Vec::new()).await;
        assert_eq!(cut.expect_err("cut").code, "unreachable");
    }
}

#[tokio::test]
async fn a_backup_that_cannot_start_says_why() {
    let daemon = Daemon::start(TestNode::new()).await;
    let none = client(&daemon)
        .await
        .backup(&mut Vec::new())
        .await
        .expect_err("none");
    assert_eq!(none.code, "not-allowed");

    let mut node = TestNode::new();
    node.backup = Some(|_| Err(io::Error::other("the disk is gone")));
    let daemon = Daemon::start(node).await;
    let failed = client(&daemon)
        .await
        .backup(&mut Vec::new())
        .await
        .expect_err("failed");
    assert_eq!(failed.code, "disk-failed");
    assert!(failed.message.contains("the disk is gone"), "{failed}");

    let mut node = TestNode::new();
    node.backup = Some(|_| panic!("a defect"));
    let daemon = Daemon::start(node).await;
    let broken = client(&daemon)
        .await
        .backup(&mut Vec::new())
        .await
        .expect_err("broken");
    assert_eq!(broken.code, "internal");
}

#[tokio::test]
async fn a_backup_ends_when_its_reader_is_gone() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut node = TestNode::new();
    // Without end: it stops because its writes fail, and then the next one may start.
    node.backup = Some(|out| {
        loop {
            out.write_all(&[0; 64 << 10])?;
        }
    });
    let daemon = Daemon::start(node).await;
    let client = client(&daemon).await;
    let error = client.backup(&mut Full).await.expect_err("full");
    assert_eq!(error.code, "disk-failed");
    while client.backup(&mut Full).await.expect_err("still full").code == "busy" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_mode_that_held_comes_over_for_every_freshness() {
    let node = TestNode::new();
    node.shelf.lease();
    let daemon = Daemon::start(node).await;
    let client = client(&daemon).await;
    let token = client.run_token().await.expect("a token");
    for (freshness, mode) in [
        (Freshness::Strict, Mode::Lease),
        (Freshness::Verified, Mode::Asked),
        (Freshness::At(token.rev), Mode::At),
        (Freshness::Run(token), Mode::At),
        (Freshness::AtLeast(token), Mode::AtLeast),
        (
            Freshness::Bounded(Duration::from_millis(1_500)),
            Mode::Bounded,
        ),
    ] {
        let query = Query {
            freshness,
            ..strict("etl/a")
        };
        let answer = client.get(query).await.expect("an answer");
        assert_eq!(answer.proof.mode, mode, "{freshness:?}");
    }
}
