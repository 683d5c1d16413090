//! Local HTTP from outside: real sockets in a directory of their own, a small node behind them.

mod client;
mod listen;
mod read;
mod write;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{HttpOptions, Node, Server, UnixOptions};
use crate::api::Api;
use crate::api::shelf::Shelf;

/// Largest spec of a [`TestNode`], in bytes.
const MAX_LEN: u64 = 1_000;

type Backup = fn(&mut dyn io::Write) -> io::Result<()>;

/// A node with nothing but a [`Shelf`].
struct TestNode {
    shelf: Arc<Shelf>,
    writable: bool,
    ready: Result<(), String>,
    backup: Option<Backup>,
}

impl TestNode {
    fn new() -> Self {
        Self {
            shelf: Arc::new(Shelf::new()),
            writable: true,
            ready: Ok(()),
            backup: None,
        }
    }
}

impl Node for TestNode {
    fn api(&self) -> &dyn Api {
        &*self.shelf
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn max_spec_len(&self) -> u64 {
        MAX_LEN
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }

    fn metrics(&self) -> String {
        "larder_reads_total 3\n".into()
    }

    fn backup(&self, mut out: Box<dyn io::Write + Send>) -> Option<io::Result<()>> {
        self.backup.map(|backup| backup(&mut *out))
    }
}

/// A server that runs until it is stopped or dropped.
struct Daemon {
    dir: TempDir,
    tcp: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Daemon {
    async fn start(node: impl Node + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = HttpOptions {
            unix: Some(UnixOptions {
                path: socket_in(&dir),
                group: None,
            }),
            tcp: Some(([127, 0, 0, 1], 0).into()),
            node: Arc::new(node),
        };
        let server = Server::bind(options).await.expect("bound");
        let tcp = server.tcp_addr().expect("TCP was asked for");
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            dir,
            tcp,
            stop,
            running,
        }
    }

    fn path(&self) -> PathBuf {
        socket_in(&self.dir)
    }

    /// One request over the Unix socket.
    async fn ask(&self, head: &str) -> Reply {
        self.send(head, b"").await
    }

    /// One request with a body over the Unix socket.
    async fn send(&self, head: &str, body: &[u8]) -> Reply {
        let stream = connect(&self.path()).await;
        let length = format!("{head}\nContent-Length: {}", body.len());
        let head = if body.is_empty() { head } else { &length };
        exchange(stream, &format!("{head}\nHost: larder"), body).await
    }

    /// One request over TCP.
    async fn ask_tcp(&self, head: &str) -> Reply {
        let stream = TcpStream::connect(self.tcp).await.expect("connected");
        exchange(stream, head, b"").await
    }
}

fn socket_in(dir: &TempDir) -> PathBuf {
    dir.path().join("larder.sock")
}

async fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).await.expect("connected")
}

/// An answer as it came.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The status and the error's code.
    fn error(&self) -> (u16, String) {
        let code = self.json()["error"]["code"].clone();
        (self.status, code.as_str().unwrap_or_default().into())
    }
}

/// Sends `GET /path` and further header lines, then the body, and reads until the end.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    head: &str,
    body: &[u8],
) -> Reply {
    let head = format!("{head}\n");
    let request = head.replacen('\n', " HTTP/1.1\n", 1).replace('\n', "\r\n");
    let request = format!("{request}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream.write_all(body).await.expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("answered");
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Reply {
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let head = std::str::from_utf8(&bytes[..end]).expect("text");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines.filter_map(|line| line.split_once(": "));
    Reply {
        status: status.expect("a status").parse().expect("a number"),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: bytes[end + 4..].to_vec(),
    }
}
