//! The listeners: who may connect, what a start replaces, how a server ends.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Daemon, TestNode, connect, exchange, socket_in};
use crate::answer::{Answer, Query, RunToken};
use crate::api::conformance::{body, one};
use crate::api::shelf::Shelf;
use crate::api::{Api, Reply};
use crate::bridge::http::{
    HttpOptions, MAX_CONNECTIONS, MAX_UPLOADS, Node, ServeError, Server, SocketError, UnixOptions,
    WRITE_STALL,
};
use crate::proto::wire::{GetLog, List, Listing, Log, Pinned, Pins};
use crate::spec::{Spec, SpecHash, Syntax};

async fn bind(path: PathBuf, group: Option<&str>) -> Result<Server, ServeError> {
    let group = group.map(Into::into);
    let unix = Some(UnixOptions { path, group });
    let node = Arc::new(TestNode::new());
    let tcp = None;
    Server::bind(HttpOptions { unix, tcp, node }).await
}

async fn bind_error(path: PathBuf, group: Option<&str>) -> ServeError {
    let bound = bind(path, group).await;
    bound.err().expect("refused")
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[tokio::test]
async fn a_socket_is_its_owners_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run/larder/larder.sock");
    let _server = bind(path.clone(), None).await.expect("bound");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("a directory")), 0o700);
}

#[tokio::test]
async fn a_group_may_be_let_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run/larder.sock");
    let own = fs::metadata(dir.path()).expect("there").gid();
    let _server = bind(path.clone(), Some(&own.to_string()))
        .await
        .expect("bound");
    assert_eq!(
        (mode(&path), fs::metadata(&path).expect("there").gid()),
        (0o660, own)
    );
    assert_eq!(mode(path.parent().expect("a directory")), 0o755);

    let error = bind_error(socket_in(&dir), Some("no such group")).await;
    assert!(
        matches!(error, ServeError::Socket(SocketError::NoGroup { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("`no such group`"), "{error}");
    assert!(!socket_in(&dir).exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_removed_at_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = socket_in(&dir);
    // The standard library leaves the file behind, as a killed process does.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists());
    let server = bind(path.clone(), None).await.expect("replaced");
    assert!(UnixStream::connect(&path).await.is_ok());
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_live_socket_is_refused_by_name_and_goes_on() {
    let daemon = Daemon::start(TestNode::new()).await;
    let error = bind_error(daemon.path(), None).await;
    assert!(
        matches!(error, ServeError::Socket(SocketError::InUse { .. })),
        "{error}"
    );
    let path = daemon.path().display().to_string();
    assert_eq!(
        error.to_string(),
        format!("another larder is listening on {path}")
    );
    assert_eq!(daemon.ask("GET /healthz").await.status, 200);
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = socket_in(&dir);
    fs::write(&path, "precious").expect("written");
    let error = bind_error(path.clone(), None).await;
    assert!(
        matches!(error, ServeError::Socket(SocketError::NotASocket { .. })),
        "{error}"
    );
    assert_eq!(fs::read(&path).expect("still there"), b"precious");
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = bind_error(dir.path().join("x".repeat(200)), None).await;
    assert!(
        matches!(error, ServeError::Socket(SocketError::TooLong { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_socket_that_somebody_else_replaced_is_not_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = socket_in(&dir);
    let server = bind(path.clone(), None).await.expect("bound");
    fs::rename(&path, dir.path().join("old")).expect("moved");
    fs::write(&path, "theirs").expect("written");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
    drop(server);
    assert!(path.exists());
}

#[tokio::test]
async fn tcp_beyond_loopback_is_refused() {
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let addr: SocketAddr = addr.parse().expect("an address");
        let (unix, tcp) = (None, Some(addr));
        let node = Arc::new(TestNode::new());
        let bound = Server::bind(HttpOptions { unix, tcp, node }).await;
        let error = bound.err().expect("refused");
        assert!(matches!(error, ServeError::NotLoopback { addr: got } if got == addr));
    }
}

#[tokio::test]
async fn tcp_only_reads() {
    let node = TestNode::new();
    let spec = body(b"steps: []\n");
    node.shelf
        .put_body(spec.clone(), Syntax::Yaml)
        .await
        .expect("stored");
    node.shelf
        .publish(one("a", Some(&spec), None))
        .await
        .expect("published");
    let daemon = Daemon::start(node).await;
    let read = daemon.ask_tcp("GET /v1/specs/a\nHost: localhost").await;
    assert_eq!((read.status, &read.body[..]), (200, &b"steps: []\n"[..]));
    for head in [
        "PUT /v1/specs/a",
        "DELETE /v1/specs/a",
        "POST /v1/missing",
        "GET /v1/backup",
    ] {
        let reply = daemon.ask_tcp(&format!("{head}\nHost: localhost")).await;
        assert_eq!(reply.error(), (403, "not-allowed".into()), "{head}");
        let hint = reply.json()["error"]["hint"].to_string();
        assert!(hint.contains("Unix socket"), "{hint}");
    }
}

#[tokio::test]
async fn tcp_answers_loopback_hosts_only() {
    let daemon = Daemon::start(TestNode::new()).await;
    let port = daemon.tcp.port();
    let own = daemon
        .ask_tcp(&format!("GET /healthz\nHost: 127.0.0.1:{port}"))
        .await;
    assert_eq!(own.status, 200);
    for lines in [
        "GET /v1/specs\nHost: rebound.example",
        "GET /v1/specs\nAccept: */*",
        "GET /v1/specs\nHost: localhost\nHost: rebound.example",
        "GET http://rebound.example/v1/specs\nHost: localhost",
    ] {
        let reply = daemon.ask_tcp(lines).await;
        assert_eq!(reply.error(), (403, "not-allowed".into()), "{lines}");
    }
}

/// A node whose reads wait for a permit.
struct SlowNode {
    shelf: Shelf,
    entered: Arc<Semaphore>,
    allowed: Arc<Semaphore>,
    /// Of each read.
    deadlines: Arc<Mutex<Vec<Duration>>>,
}

impl SlowNode {
    fn new() -> (Self, Arc<Semaphore>, Arc<Semaphore>) {
        let (entered, allowed) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let node = Self {
            shelf: Shelf::new(),
            entered: Arc::clone(&entered),
            allowed: Arc::clone(&allowed),
            deadlines: Arc::default(),
        };
        (node, entered, allowed)
    }
}

impl Api for SlowNode {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        Box::pin(async move {
            self.deadlines.lock().expect("whole").push(query.deadline);
            self.entered.add_permits(1);
            let _permit = self.allowed.acquire().await;
            self.shelf.get(query).await
        })
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        self.shelf.list(list)
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        self.shelf.log(get)
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        self.shelf.status()
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        self.shelf.run_token()
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        self.shelf.pin(token, keep)
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        self.shelf.unpin(id)
    }

    fn pins(&self) -> Reply<'_, Pins> {
        self.shelf.pins()
    }
}

impl Node for SlowNode {
    fn api(&self) -> &dyn Api {
        self
    }

    fn writable(&self) -> bool {
        false
    }

    fn max_spec_len(&self) -> u64 {
        1 << 20
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(1_234)
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

#[tokio::test]
async fn a_read_without_a_deadline_has_the_nodes() {
    let (node, _, allowed) = SlowNode::new();
    allowed.add_permits(3);
    let deadlines = Arc::clone(&node.deadlines);
    let daemon = Daemon::start(node).await;
    let hash = format!("/v1/blobs/{}", SpecHash::from_bytes([7; 32]));
    for path in ["/v1/specs/a", &hash, "/v1/specs/a?deadline_ms=5"] {
        daemon.ask(&format!("GET {path}")).await;
    }
    let millis: Vec<_> = deadlines
        .lock()
        .expect("whole")
        .iter()
        .map(Duration::as_millis)
        .collect();
    assert_eq!(millis, [1_234, 1_234, 5]);
}

#[tokio::test]
async fn a_stop_lets_requests_in_progress_end() {
    let (node, entered, allowed) = SlowNode::new();
    let daemon = Daemon::start(node).await;
    let path = daemon.path();
    let stream = connect(&path).await;
    let read =
        tokio::spawn(async move { exchange(stream, "GET /v1/specs/a\nHost: larder", b"").await });
    entered.acquire().await.expect("open").forget();
    daemon.stop.send(()).expect("running");
    // The file goes away before the request in progress has ended.
    while path.exists() {
        tokio::task::yield_now().await;
    }
    let refused = TcpStream::connect(daemon.tcp).await.expect_err("closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    allowed.add_permits(1);
    assert_eq!(
        read.await.expect("answered").error(),
        (404, "absent".into())
    );
    daemon.running.await.expect("ended");
}

#[tokio::test]
async fn a_stop_closes_idle_connections() {
    let daemon = Daemon::start(TestNode::new()).await;
    let _never_used = connect(&daemon.path()).await;
    let mut kept = connect(&daemon.path()).await;
    let request = b"GET /healthz HTTP/1.1\r\nHost: larder\r\n\r\n";
    kept.write_all(request).await.expect("sent");
    let mut reply = Vec::new();
    while !reply.ends_with(b"ok\n") {
        assert_ne!(kept.read_buf(&mut reply).await.expect("answered"), 0);
    }
    // The clock only moves when nothing but a timer is left: here, if the stop waited for them.
    tokio::time::pause();
    let before = Instant::now();
    daemon.stop.send(()).expect("running");
    assert_eq!(kept.read_buf(&mut reply).await.expect("closed"), 0);
    daemon.running.await.expect("ended");
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_stop_cuts_off_what_does_not_end() {
    let (node, entered, _allowed) = SlowNode::new();
    let daemon = Daemon::start(node).await;
    let mut stuck = connect(&daemon.path()).await;
    let request = b"GET /v1/specs/a HTTP/1.1\r\nHost: larder\r\n\r\n";
    stuck.write_all(request).await.expect("sent");
    entered.acquire().await.expect("open").forget();
    // From here the clock jumps to the next timer whenever nothing else is left to do.
    tokio::time::pause();
    daemon.stop.send(()).expect("running");
    daemon.running.await.expect("ended");
    let mut reply = Vec::new();
    stuck.read_to_end(&mut reply).await.expect("closed");
    assert_eq!(reply, b"");
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let daemon = Daemon::start(TestNode::new()).await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(connect(&daemon.path()).await);
    }
    let mut late = connect(&daemon.path()).await;
    let request = b"GET /healthz HTTP/1.1\r\nHost: larder\r\n\r\n";
    late.write_all(request).await.expect("sent");
    let mut reply = Vec::new();
    let early = timeout(Duration::from_secs(1), late.read_buf(&mut reply)).await;
    assert!(early.is_err(), "all places are taken");
    held.pop();
    assert_ne!(late.read_buf(&mut reply).await.expect("answered"), 0);
}

#[tokio::test(start_paused = true)]
async fn uploads_beyond_the_limit_are_told_to_come_back() {
    let daemon = Daemon::start(TestNode::new()).await;
    let mut uploads = JoinSet::new();
    for _ in 0..=MAX_UPLOADS {
        let stream = connect(&daemon.path()).await;
        // The body never comes, so each keeps its place until its time is over.
        let head = "PUT /v1/specs/a\nHost: larder\nContent-Length: 9";
        uploads.spawn(async move { exchange(stream, head, b"").await });
    }
    let (mut busy, mut slow) = (0, 0);
    while let Some(reply) = uploads.join_next().await {
        let reply = reply.expect("answered");
        match reply.error() {
            (503, code) if code == "busy" && reply.header("retry-after") == "1" => busy += 1,
            (408, code) if code == "slow-body" => slow += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((busy, slow), (1, MAX_UPLOADS));
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_cut_off() {
    let daemon = Daemon::start(TestNode::new()).await;
    let mut slow = connect(&daemon.path()).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: ")
        .await
        .expect("sent");
    let mut reply = Vec::new();
    slow.read_to_end(&mut reply).await.expect("closed");
    assert!(!reply.starts_with(b"HTTP/1.1 200"), "{reply:?}");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off() {
    let node = TestNode::new();
    let bytes = vec![b'a'; 1_000_000];
    let spec = Spec::new(bytes.into());
    node.shelf
        .put_body(spec.clone(), Syntax::AnyText)
        .await
        .expect("stored");
    let daemon = Daemon::start(node).await;
    let mut lazy = connect(&daemon.path()).await;
    let request = format!(
        "GET /v1/blobs/{} HTTP/1.1\r\nHost: larder\r\n\r\n",
        spec.hash()
    );
    lazy.write_all(request.as_bytes()).await.expect("sent");
    let mut reply = vec![0];
    lazy.read_exact(&mut reply).await.expect("answered");
    tokio::time::pause();
    sleep(WRITE_STALL * 2).await;
    lazy.read_to_end(&mut reply).await.expect("closed");
    assert!(reply.len() < 1_000_000, "{} bytes were sent", reply.len());
}
