//! A definition is what `GET /name` gives, over TLS: HTTP/2 on one connection, or HTTP/1.1 on as
//! many as there are requests at once, which are kept.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::spec::Spec;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::{Controller, Protocol, Told, tcp};
use crate::corpus;
use crate::process;

type Bodies = Arc<HashMap<String, Bytes>>;

pub(super) fn serve(told: &Told) -> anyhow::Result<()> {
    let specs = corpus::specs(told.seed, told.count).into_iter().enumerate();
    let bodies = specs.map(|(number, spec)| (path(number), spec.into_bytes()));
    let bodies: Bodies = Arc::new(bodies.collect());
    let is_http2 = told.protocol == Protocol::Http2;
    let made = tcp::Certificate::make(&told.dir)?;
    let cert = CertificateDer::from_pem_slice(made.cert.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)?;
    tls.alpn_protocols = vec![alpn(is_http2)];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    process::serve(|| {
        let listener = tcp::listen(told.controller, (told.listen, 0).into())?;
        let addr = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (acceptor, bodies) = (acceptor.clone(), Arc::clone(&bodies));
                tokio::spawn(accept(stream, acceptor, bodies, is_http2));
            }
        });
        Ok(addr.to_string())
    })
}

async fn accept(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    bodies: Bodies,
    is_http2: bool,
) -> anyhow::Result<()> {
    let stream = TokioIo::new(acceptor.accept(stream).await?);
    let service = service_fn(move |request: Request<Incoming>| {
        let found = bodies.get(request.uri().path()).cloned();
        let mut response = Response::new(Full::new(found.clone().unwrap_or_default()));
        if found.is_none() {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        async move { Ok::<_, Infallible>(response) }
    });
    match is_http2 {
        true => {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.serve_connection(stream, service).await?;
        }
        false => {
            let server = hyper::server::conn::http1::Builder::new();
            server.serve_connection(stream, service).await?;
        }
    }
    Ok(())
}

fn alpn(is_http2: bool) -> Vec<u8> {
    if is_http2 {
        b"h2".to_vec()
    } else {
        b"http/1.1".to_vec()
    }
}

fn path(number: usize) -> String {
    format!("/{}", corpus::name(number))
}

type Sender1 = http1::SendRequest<Empty<Bytes>>;
type Sender2 = http2::SendRequest<Empty<Bytes>>;

/// Connections to one server.
pub(super) struct Client {
    server: SocketAddr,
    controller: Controller,
    connector: TlsConnector,
    connections: Connections,
}

enum Connections {
    /// Whoever comes first makes it.
    One(tokio::sync::Mutex<Option<Sender2>>),
    /// Those that nobody uses now.
    Pool(Mutex<Vec<Sender1>>),
}

impl Client {
    pub(super) fn new(
        dir: &Path,
        server: SocketAddr,
        controller: Controller,
        is_http2: bool,
    ) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let cert = tcp::Certificate::read(dir)?;
        roots.add(CertificateDer::from_pem_slice(cert.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn(is_http2)];
        // Neither larder nor gRPC resume a session.
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            server,
            controller,
            connector: TlsConnector::from(Arc::new(tls)),
            connections: match is_http2 {
                true => Connections::One(tokio::sync::Mutex::default()),
                false => Connections::Pool(Mutex::default()),
            },
        })
    }

    pub(super) async fn read(&self, number: usize, spec: &Spec) -> anyhow::Result<()> {
        let request = Request::builder().header("host", tcp::SERVER_NAME);
        match &self.connections {
            Connections::One(one) => {
                let uri = format!("https://{}{}", tcp::SERVER_NAME, path(number));
                let request = Request::builder().uri(uri).body(Empty::new())?;
                let mut sender = self.only(one).await?;
                let answer = sender.send_request(request).await?;
                take(answer, spec).await
            }
            Connections::Pool(pool) => {
                let request = request.uri(path(number)).body(Empty::new())?;
                let idle = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut sender = match idle {
                    Some(sender) => sender,
                    None => self.another().await?,
                };
                let answer = sender.send_request(request).await?;
                take(answer, spec).await?;
                pool.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(sender);
                Ok(())
            }
        }
    }

    /// The one connection, made anew if it is closed.
    async fn only(&self, one: &tokio::sync::Mutex<Option<Sender2>>) -> anyhow::Result<Sender2> {
        let mut one = one.lock().await;
        if let Some(sender) = one.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok(one.insert(sender).clone())
    }

    async fn another(&self) -> anyhow::Result<Sender1> {
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = tcp::connect(self.controller, self.server).await?;
        let name = ServerName::try_from(tcp::SERVER_NAME)?;
        self.connector.connect(name, stream).await.context("TLS")
    }
}

async fn take(answer: Response<Incoming>, spec: &Spec) -> anyhow::Result<()> {
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    super::check(&answer.into_body().collect().await?.to_bytes(), spec)
}
