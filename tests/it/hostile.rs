//! Nodes that answer as they like: bare quinn with a certificate of the test's own cluster.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use larder::catalog::{HeadKey, SessionClaim, SignedHead};
use larder::proto::wire::{
    ALPN, FRAME_PREFIX_LEN, HeadBytes, ProofBytes, Request, Response, Welcome, parse_prefix,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Runtime;

use crate::site::PATIENCE;

/// What both ends derive the keying material of a session from.
const SESSION_LABEL: &[u8] = b"EXPORTER-larder/1 session";

/// Longest request that is read.
const MAX_REQUEST_LEN: usize = 1 << 20;

/// Longest packet that QUIC sends over loopback, with room.
const MAX_PACKET_LEN: usize = 64 << 10;

/// What a hostile node does after it has sent its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Then {
    /// Ends the stream.
    Finish,
    /// Sends nothing more and keeps the stream open.
    Hold,
    /// Sends zeros until it is stopped.
    Forever,
    /// Closes the connection, which may overtake the bytes.
    Close,
}

/// What a hostile node answers.
#[derive(Debug, Clone)]
pub(crate) struct Say {
    /// Sent as they are.
    pub(crate) bytes: Vec<u8>,
    /// And then.
    pub(crate) then: Then,
}

/// What a hostile node shows of a catalog when a connection begins.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// Anyone may repeat one.
    pub(crate) head: SignedHead,
    /// What it makes the proof with, if it makes one.
    pub(crate) key: Option<HeadKey>,
}

impl Shown {
    fn proof(&self, connection: &quinn::Connection) -> Option<ProofBytes> {
        let mut session = [0; 32];
        connection
            .export_keying_material(&mut session, SESSION_LABEL, b"")
            .expect("a session");
        let head = self.head.claimed().expect("a head");
        let claim = SessionClaim {
            session,
            catalog: head.catalog,
            epoch: head.epoch,
        };
        self.key.as_ref().map(|key| claim.sign(key).into())
    }
}

/// How a hostile node answers a request that is no hello.
type Manner = dyn Fn(Request) -> Say + Send + Sync;

/// A node with a good certificate and bad manners; it is gone when dropped.
pub(crate) struct Hostile {
    addr: String,
    runtime: Option<Runtime>,
}

impl Hostile {
    /// A node with the identity in `certs` that says hello properly and then answers with `manner`.
    pub(crate) fn start(
        certs: &str,
        shown: Option<Shown>,
        manner: impl Fn(Request) -> Say + Send + Sync + 'static,
    ) -> Self {
        Self::serve(certs, ALPN, shown, Arc::new(manner))
    }

    /// A node that speaks another version of the protocol.
    pub(crate) fn of_another_version(certs: &str) -> Self {
        let silent = |_| Say {
            bytes: Vec::new(),
            then: Then::Hold,
        };
        Self::serve(certs, b"larder/9", None, Arc::new(silent))
    }

    /// A node that answers each packet with as many zeros, and so is no QUIC.
    pub(crate) fn without_tls() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let addr = socket.local_addr().expect("bound").to_string();
        // It ends with the test's process; nobody knows its port any more by then.
        thread::spawn(move || {
            let mut packet = [0; 2_048];
            while let Ok((len, from)) = socket.recv_from(&mut packet) {
                let _ = socket.send_to(&vec![0; len], from);
            }
        });
        Self {
            addr,
            runtime: None,
        }
    }

    fn serve(certs: &str, alpn: &[u8], shown: Option<Shown>, manner: Arc<Manner>) -> Self {
        let runtime = runtime();
        let server = {
            let _context = runtime.enter();
            let addr = "127.0.0.1:0".parse().expect("an address");
            quinn::Endpoint::server(server_config(certs, alpn), addr).expect("a port")
        };
        let addr = server.local_addr().expect("bound").to_string();
        runtime.spawn(async move {
            while let Some(incoming) = server.accept().await {
                let (shown, manner) = (shown.clone(), Arc::clone(&manner));
                tokio::spawn(async move {
                    // Whoever refuses this node, or has another version, is gone.
                    if let Ok(connection) = incoming.await {
                        converse(&connection, shown.as_ref(), &manner).await;
                    }
                });
            }
        });
        Self {
            addr,
            runtime: Some(runtime),
        }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn converse(connection: &quinn::Connection, shown: Option<&Shown>, manner: &Arc<Manner>) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let Some(request) = hear(&mut recv).await else {
            return;
        };
        let say = match request {
            Request::Hello(_) => Say {
                bytes: welcome(connection, shown),
                then: Then::Finish,
            },
            other => manner(other),
        };
        let connection = connection.clone();
        tokio::spawn(async move {
            let _ = send.write_all(&say.bytes).await;
            match say.then {
                Then::Finish => drop(send.finish()),
                Then::Hold => {}
                Then::Forever => while send.write_all(&[0; 1_000]).await.is_ok() {},
                Then::Close => connection.close(2_u8.into(), b"draining"),
            }
            let _ = send.stopped().await;
        });
    }
}

fn welcome(connection: &quinn::Connection, shown: Option<&Shown>) -> Vec<u8> {
    let welcome = Response::Welcome(Welcome {
        agent: "hostile".into(),
        max_spec_len: 1 << 20,
        head: shown.map(|shown| HeadBytes::from(&shown.head)),
        proof: shown.and_then(|shown| shown.proof(connection)),
    });
    welcome.to_frame().expect("small")
}

/// A real node sends real requests. Acknowledgements may follow a watch for as long as it lasts.
async fn hear(recv: &mut quinn::RecvStream) -> Option<Request> {
    let mut prefix = [0; FRAME_PREFIX_LEN];
    recv.read_exact(&mut prefix).await.ok()?;
    let (tag, len) = parse_prefix(prefix).expect("a frame");
    let mut header = vec![0; len];
    recv.read_exact(&mut header).await.ok()?;
    let request = Request::from_frame(tag, &header).expect("a request");
    if !matches!(request, Request::Watch(_)) {
        recv.read_to_end(MAX_REQUEST_LEN).await.ok()?;
    }
    Some(request)
}

/// Dials `addr` as a client of another protocol, and returns why it was refused.
pub(crate) fn dial_with_another_alpn(addr: &str) -> quinn::ConnectionError {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("a suite");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    runtime().block_on(async {
        let any = "127.0.0.1:0".parse().expect("an address");
        let endpoint = quinn::Endpoint::client(any).expect("a port");
        let addr = addr.parse().expect("an address");
        let connecting = endpoint.connect_with(config, addr, "any.name");
        connecting.expect("an address").await.expect_err("refused")
    })
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn server_config(certs: &str, alpn: &[u8]) -> quinn::ServerConfig {
    let dir = Path::new(certs);
    let chain = CertificateDer::pem_file_iter(dir.join("cert.pem")).expect("there");
    let chain = chain.collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).expect("PEM");
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).expect("a suite");
    quinn::ServerConfig::with_crypto(Arc::new(crypto))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A path to a coordinator on which it is killed in the middle of an answer. Afterwards the path
/// leads to whoever has its port then.
pub(crate) struct DeadlyPath {
    addr: String,
    /// Bytes from the coordinator until it is killed, and its process.
    fate: Arc<Mutex<Option<(usize, Pid)>>>,
    killed: Receiver<()>,
}

impl DeadlyPath {
    /// Carries packets to `coordinator`.
    pub(crate) fn start(coordinator: &str) -> Self {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("a port");
        let (down, up) = (bind(), bind());
        up.connect(coordinator).expect("an address");
        let addr = down.local_addr().expect("bound").to_string();
        let (tell, killed) = channel();
        let fate = Arc::new(Mutex::new(None));
        let asker = Arc::new(Mutex::new(None));
        let clone = |socket: &UdpSocket| socket.try_clone().expect("a handle");
        // Both end with the test's process.
        let (from, to, known) = (clone(&down), clone(&up), Arc::clone(&asker));
        thread::spawn(move || {
            let mut packet = vec![0; MAX_PACKET_LEN];
            while let Ok((len, client)) = from.recv_from(&mut packet) {
                *known.lock().expect("no panic") = Some(client);
                // Nobody may be there for a moment; QUIC sends again.
                let _ = to.send(&packet[..len]);
            }
        });
        let its_fate = Arc::clone(&fate);
        thread::spawn(move || {
            let mut packet = vec![0; MAX_PACKET_LEN];
            loop {
                // An error says that nobody was there when a packet was sent.
                let Ok(len) = up.recv(&mut packet) else {
                    continue;
                };
                if spend(&its_fate, len) {
                    let _ = tell.send(());
                } else if let Some(client) = *asker.lock().expect("no panic") {
                    let _ = down.send_to(&packet[..len], client);
                }
            }
        });
        Self { addr, fate, killed }
    }

    /// Where it begins.
    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// Kills `pid` once `bytes` more have come from it.
    pub(crate) fn kill_after(&self, bytes: usize, pid: u32) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        *self.fate.lock().expect("no panic") = Some((bytes, pid.expect("a process")));
    }

    /// Waits for the kill.
    pub(crate) fn wait(&self) {
        self.killed.recv_timeout(PATIENCE).expect("it was killed");
    }
}

/// Counts a packet; true when it was the last of its sender.
fn spend(fate: &Mutex<Option<(usize, Pid)>>, len: usize) -> bool {
    let mut fate = fate.lock().expect("no panic");
    match fate.take() {
        Some((left, pid)) if left > len => {
            *fate = Some((left - len, pid));
            false
        }
        Some((_, pid)) => {
            kill_process(pid, Signal::KILL).expect("it runs");
            true
        }
        None => false,
    }
}
