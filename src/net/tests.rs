//! Goal: what one end may rely on whatever the other end does. Method: both ends on loopback, one
//! of them bare quinn where it has to misbehave, with identities made anew.

mod answers;
mod channel;
mod first_request;
mod late;
mod life;
mod refusals;
mod relay;
mod requests;
mod roam;
mod slow_path;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::proto::code::Refusal;
use crate::proto::wire::{
    Blob, FRAME_PREFIX_LEN, GetBlob, HeadBytes, Hello, ProofBytes, Request, Response, Status,
    Welcome, decode_answer, parse_prefix,
};
use crate::spec::SpecHash;
use crate::trust::{self, Identity, IdentityOptions, IdentityPaths, issue};

const MAX_SPEC_LEN: u64 = 1 << 20;

/// Short, so that tests of silence are quick; nothing asserts how long anything took.
const QUICK: Floor = Floor {
    bytes_per_sec: 1 << 20,
    grace: Duration::from_millis(300),
};

fn patience() -> Patience {
    Patience {
        first_byte: Duration::from_secs(5),
        beyond_rtts: Duration::ZERO,
        late: Duration::ZERO,
        floor: Floor::default(),
        dial_within: None,
    }
}

/// The throw-away identities, in a directory of their own.
struct Certs(TempDir);

impl Certs {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        issue::throwaway(dir.path()).expect("throwaway");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, name: &str) -> Identity {
        load(&self.path(name))
    }

    /// The certificate of `shown` with the trust of `dev`, so that only the other end objects.
    fn posing(&self, shown: &str) -> Identity {
        let (from, to) = (self.path(shown), self.path("posing"));
        fs::create_dir(&to).expect("create");
        for file in ["cert.pem", "key.pem"] {
            fs::copy(from.join(file), to.join(file)).expect("copy");
        }
        for file in ["ca.pem", "trust.yaml"] {
            fs::copy(self.path("dev/worker/w1").join(file), to.join(file)).expect("copy");
        }
        load(&to)
    }
}

fn load(dir: &Path) -> Identity {
    Identity::load(IdentityPaths::in_dir(dir), IdentityOptions::default()).expect("an identity")
}

fn options() -> EndpointOptions {
    EndpointOptions {
        reset_key: [7; 32],
        agent: "test".to_owned(),
        max_spec_len: MAX_SPEC_LEN,
        limits: Limits::default(),
        congestion: Congestion::default(),
    }
}

fn bind(runtime: &Runtime, identity: Identity, options: EndpointOptions) -> Endpoint {
    let addr = "127.0.0.1:0".parse().expect("an address");
    bind_to(addr, runtime, identity, options)
}

fn bind_to(
    addr: SocketAddr,
    runtime: &Runtime,
    identity: Identity,
    options: EndpointOptions,
) -> Endpoint {
    let port = Port::bind(addr, identity.uri().cluster()).expect("bind");
    Endpoint::start(runtime.handle(), port, identity, options).expect("start")
}

fn link(from: &Endpoint, to: &Endpoint, wanted: Wanted) -> Link {
    Link::new(from, to.local_addr().to_string(), wanted)
}

/// Answers a status with the asker's URI, a blob with 100,000 bytes, a put with `Stored`, and a
/// list only when the gate opens.
#[derive(Default)]
struct Node {
    entered: Notify,
    gate: Notify,
}

const BLOB_LEN: usize = 100_000;

impl Service for Node {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, peer: Peer, request: Request, body: Bytes, reply: &mut Reply) {
        let sent = match request {
            Request::GetStatus => {
                let json = peer.uri.to_string();
                reply.send(&Response::Status(Status { json })).await
            }
            Request::GetBlob(get) => {
                let body = Bytes::from(vec![get.hash.as_bytes()[0]; BLOB_LEN]);
                let len = body.len() as u64;
                reply
                    .send_with_body(&Response::Blob(Blob { len }), body)
                    .await
            }
            Request::PutBlob(put) => {
                assert_eq!(
                    (SpecHash::of(&body), body.len() as u64),
                    (put.hash, put.len)
                );
                reply.send(&Response::Stored(())).await
            }
            Request::List(_) => {
                self.entered.notify_one();
                self.gate.notified().await;
                let json = "late".to_owned();
                reply.send(&Response::Status(Status { json })).await
            }
            // Left unanswered on purpose.
            _ => Ok(()),
        };
        sent.expect("the asker waits");
    }
}

/// A coordinator that serves, and a worker that dials it.
struct Pair {
    worker: Endpoint,
    coordinator: Endpoint,
    node: Arc<Node>,
    certs: Certs,
    runtime: Runtime,
}

impl Pair {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: EndpointOptions) -> Self {
        let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
        let coordinator = bind(&runtime, certs.load("dev/coordinator/c1"), options.clone());
        let node = Arc::new(Node::default());
        coordinator.serve(node.clone());
        let worker = bind(&runtime, certs.load("dev/worker/w1"), options);
        Self {
            worker,
            coordinator,
            node,
            certs,
            runtime,
        }
    }

    fn link(&self) -> Link {
        link(&self.worker, &self.coordinator, Wanted::Coordinator)
    }
}

/// Waits for what must come soon; a test that would wait for ever fails instead.
async fn eventually<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("it never came");
}

async fn status(link: &Link) -> Result<String, LinkError> {
    let mut exchange = link
        .call(&Request::GetStatus, Bytes::new(), patience())
        .await?;
    match exchange.next().await? {
        Response::Status(status) => Ok(status.json),
        other => panic!("{other:?}"),
    }
}

fn get_blob(byte: u8) -> Request {
    Request::GetBlob(GetBlob {
        hash: SpecHash::from_bytes([byte; 32]),
        force: false,
    })
}

fn hello() -> Request {
    Request::Hello(Hello {
        agent: "raw".to_owned(),
    })
}

fn welcome() -> Response {
    Response::Welcome(Welcome {
        agent: "raw".to_owned(),
        max_spec_len: MAX_SPEC_LEN,
        head: None,
        proof: None,
    })
}

/// Bare quinn with our TLS.
fn raw(tls: Option<rustls::ServerConfig>) -> quinn::Endpoint {
    let addr = "127.0.0.1:0".parse().expect("an address");
    match tls {
        None => quinn::Endpoint::client(addr).expect("bind"),
        Some(tls) => {
            let crypto = QuicServerConfig::try_from(tls).expect("a suite");
            let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
            quinn::Endpoint::server(config, addr).expect("bind")
        }
    }
}

async fn raw_dial(
    endpoint: &quinn::Endpoint,
    tls: rustls::ClientConfig,
    to: &Endpoint,
) -> Result<quinn::Connection, LinkError> {
    let crypto = QuicClientConfig::try_from(tls).expect("a suite");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, to.local_addr(), "any.name");
    Ok(connecting.expect("an address").await?)
}

/// Sends raw bytes on a stream of their own and reads one answer, which may be a refusal.
async fn raw_ask(
    connection: &quinn::Connection,
    bytes: &[u8],
    finish: bool,
) -> Result<Result<Response, Refusal>, LinkError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    // The other end may stop the stream before it has all: its answer tells why.
    let _ = send.write_all(bytes).await;
    if finish {
        let _ = send.finish();
    }
    let fail = |error| match error {
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => error.into(),
        _ => LinkError::Short,
    };
    let mut prefix = [0; FRAME_PREFIX_LEN];
    recv.read_exact(&mut prefix).await.map_err(fail)?;
    let (tag, len) = parse_prefix(prefix)?;
    let mut header = vec![0; len];
    recv.read_exact(&mut header).await.map_err(fail)?;
    Ok(decode_answer(tag, &header)?)
}

fn frame(request: &Request) -> Vec<u8> {
    request.to_frame().expect("small")
}
