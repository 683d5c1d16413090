use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use larder::net::Congestion;
use larder::spec::{Spec, SpecHash};
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::OnceCell;

use super::{AT_ONCE, Contender, Served};
use crate::corpus;
use crate::machine;
use crate::process;

/// In the certificate, and what the client expects.
const SERVER_NAME: &str = "localhost";

/// Bytes by hash, until nobody asks any more.
pub(crate) fn serve(served: &Served) -> anyhow::Result<()> {
    let _pinned = served.pin()?;
    let specs = corpus::specs(served.seed, served.count).into_iter();
    let bodies = specs.map(|spec| (spec.hash(), spec.into_bytes()));
    let bodies = Arc::new(bodies.collect::<HashMap<_, _>>());
    let config = server_config(&served.dir, served.bare_congestion())?;
    process::serve(|| {
        let (endpoint, addr) = bind(Some(config), served.listen)?;
        tokio::spawn(accept(endpoint, bodies));
        Ok(addr.to_string())
    })
}

type Bodies = Arc<HashMap<SpecHash, Bytes>>;

async fn accept(endpoint: Endpoint, bodies: Bodies) {
    while let Some(incoming) = endpoint.accept().await {
        let bodies = Arc::clone(&bodies);
        tokio::spawn(async move {
            let connection = incoming.await?;
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(answer(send, recv, Arc::clone(&bodies)));
            }
            anyhow::Ok(())
        });
    }
}

/// The request is hashes and nothing else, the answer their bytes.
async fn answer(
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    bodies: Bodies,
) -> anyhow::Result<()> {
    let request = recv.read_to_end(AT_ONCE * SpecHash::LEN).await?;
    let (hashes, _) = request.as_chunks::<{ SpecHash::LEN }>();
    let found = hashes
        .iter()
        .map(|hash| bodies.get(&SpecHash::from_bytes(*hash)));
    let mut found = found
        .map(|body| body.cloned().context("an unknown hash"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    send.write_all_chunks(&mut found).await?;
    send.finish()?;
    Ok(())
}

/// A connection to the server.
#[derive(Clone)]
pub(crate) struct Client {
    connection: Connection,
    // The connection lives as long as its endpoint.
    _endpoint: Endpoint,
}

impl Client {
    pub(super) async fn connect(dir: &Path, addr: &str) -> anyhow::Result<Self> {
        let addr = addr.parse().context("the server's address")?;
        Self::connect_at(dir, addr, Ipv4Addr::LOCALHOST.into(), Congestion::Cubic).await
    }

    /// The same from an address of this node.
    pub(crate) async fn connect_at(
        dir: &Path,
        addr: SocketAddr,
        listen: IpAddr,
        congestion: Congestion,
    ) -> anyhow::Result<Self> {
        let (endpoint, connection) = connect(dir, addr, listen, congestion).await?;
        Ok(Self {
            connection,
            _endpoint: endpoint,
        })
    }
}

/// A client that connects when it is first used.
pub(crate) struct Lazy {
    dir: PathBuf,
    addr: SocketAddr,
    listen: IpAddr,
    congestion: Congestion,
    client: OnceCell<Client>,
}

impl Lazy {
    pub(crate) fn new(
        dir: &Path,
        addr: SocketAddr,
        listen: IpAddr,
        congestion: Congestion,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            addr,
            listen,
            congestion,
            client: OnceCell::new(),
        }
    }

    pub(crate) async fn read(&self, number: usize, spec: &Spec) -> anyhow::Result<()> {
        let connect = || Client::connect_at(&self.dir, self.addr, self.listen, self.congestion);
        let client = self.client.get_or_try_init(connect).await?;
        client.read(number, std::slice::from_ref(spec)).await
    }
}

impl Contender for Client {
    async fn read(&self, _first: usize, specs: &[Spec]) -> anyhow::Result<()> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        let hashes: Vec<_> = specs.iter().map(|spec| *spec.hash().as_bytes()).collect();
        send.write_all(hashes.as_flattened()).await?;
        send.finish()?;
        let answer = recv.read_to_end(specs.len() * corpus::BODY_LEN).await?;
        ensure!(
            answer.len() == specs.len() * corpus::BODY_LEN,
            "a short answer"
        );
        for (body, spec) in answer.chunks(corpus::BODY_LEN).zip(specs) {
            ensure!(SpecHash::of(body) == spec.hash(), "wrong bytes");
        }
        Ok(())
    }
}

/// A connection from an endpoint of its own.
pub(crate) async fn connect(
    dir: &Path,
    addr: SocketAddr,
    listen: IpAddr,
    congestion: Congestion,
) -> anyhow::Result<(Endpoint, Connection)> {
    let (endpoint, _) = bind(None, listen)?;
    let config = client_config(dir, congestion)?;
    let connection = endpoint.connect_with(config, addr, SERVER_NAME)?.await?;
    Ok((endpoint, connection))
}

/// A socket with the buffers that larder asks for.
pub(crate) fn bind(
    config: Option<quinn::ServerConfig>,
    listen: IpAddr,
) -> anyhow::Result<(Endpoint, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    machine::enlarge(&socket)?;
    socket.bind(&SocketAddr::new(listen, 0).into())?;
    let socket = UdpSocket::from(socket);
    let addr = socket.local_addr()?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), config, socket, runtime)?;
    Ok((endpoint, addr))
}

/// Makes a certificate and puts its public half where the client finds it.
pub(crate) fn server_config(
    dir: &Path,
    congestion: Congestion,
) -> anyhow::Result<quinn::ServerConfig> {
    let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])?;
    fs::write(dir.join("bare.pem"), made.cert.pem())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let key = key.map_err(|error| anyhow::anyhow!("the key: {error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let crypto = QuicServerConfig::try_from(tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport(congestion);
    transport
        .max_concurrent_bidi_streams(256_u16.into())
        .receive_window(VarInt::from_u32(2 << 20))
        .send_window(8 << 20);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn client_config(dir: &Path, congestion: Congestion) -> anyhow::Result<quinn::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("bare.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let crypto = QuicClientConfig::try_from(tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = transport(congestion);
    transport
        .max_concurrent_bidi_streams(0_u8.into())
        .receive_window(VarInt::from_u32(8 << 20))
        .send_window(2 << 20)
        .keep_alive_interval(Some(Duration::from_secs(15)));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The numbers of larder's own transport, but for the congestion controller.
fn transport(congestion: Congestion) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(Duration::from_millis(5)));
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(60_000))))
        .initial_rtt(Duration::from_millis(50))
        .stream_receive_window(VarInt::from_u32(1 << 20))
        .max_concurrent_uni_streams(0_u8.into())
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(controller(congestion));
    config
}

fn controller(congestion: Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::NewReno => Arc::new(NewRenoConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
    }
}
