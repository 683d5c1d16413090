//! What the engine Dagu asks its coordinator when it misses a definition: the unary call `GetDAG`
//! of a name, answered with the bytes. Its messages and its path, over tonic and TLS.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use larder::spec::Spec;
use tonic::body::Body;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig,
};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::{Controller, Told, tcp};
use crate::corpus;
use crate::process;

const PATH: &str = "/coordinator.v1.CoordinatorService/GetDAG";

#[derive(Clone, PartialEq, prost::Message)]
struct GetDagRequest {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetDagResponse {
    /// A string there, which is the same on the wire.
    #[prost(bytes = "bytes", tag = "1")]
    spec: Bytes,
    #[prost(string, tag = "2")]
    error: String,
}

/// Every definition by name.
#[derive(Clone)]
struct Definitions(Arc<HashMap<String, Bytes>>);

impl NamedService for Definitions {
    const NAME: &'static str = "coordinator.v1.CoordinatorService";
}

impl Service<http::Request<Body>> for Definitions {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.unary(this, request).await)
        })
    }
}

impl UnaryService<GetDagRequest> for Definitions {
    type Response = GetDagResponse;
    type Future = Ready<Result<Response<GetDagResponse>, Status>>;

    fn call(&mut self, request: Request<GetDagRequest>) -> Self::Future {
        let Self(bodies) = self;
        let found = bodies.get(&request.get_ref().name).cloned();
        ready(Ok(Response::new(match found {
            Some(spec) => GetDagResponse {
                spec,
                error: String::new(),
            },
            None => GetDagResponse {
                spec: Bytes::new(),
                error: "DAG is not found".into(),
            },
        })))
    }
}

pub(super) fn serve(told: &Told) -> anyhow::Result<()> {
    let specs = corpus::specs(told.seed, told.count).into_iter().enumerate();
    let bodies = specs.map(|(number, spec)| (corpus::name(number).to_string(), spec.into_bytes()));
    let definitions = Definitions(Arc::new(bodies.collect()));
    let made = tcp::Certificate::make(&told.dir)?;
    let identity = Identity::from_pem(made.cert, made.key);
    process::serve(|| {
        let listener = tcp::listen(told.controller, (told.listen, 0).into())?;
        let addr = listener.local_addr()?;
        let tls = ServerTlsConfig::new().identity(identity);
        let router = tonic::transport::Server::builder()
            .tls_config(tls)?
            .add_service(definitions);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(router.serve_with_incoming(incoming));
        Ok(addr.to_string())
    })
}

/// One channel, which is one connection.
pub(super) struct Client(Channel);

impl Client {
    pub(super) fn new(
        dir: &Path,
        server: SocketAddr,
        controller: Controller,
    ) -> anyhow::Result<Self> {
        let ca = Certificate::from_pem(tcp::Certificate::read(dir)?);
        let tls = ClientTlsConfig::new()
            .ca_certificate(ca)
            .domain_name(tcp::SERVER_NAME);
        let endpoint = Endpoint::from_shared(format!("https://{server}"))?.tls_config(tls)?;
        let connector = tower::service_fn(move |_| async move {
            tcp::connect(controller, server).await.map(TokioIo::new)
        });
        Ok(Self(endpoint.connect_with_connector_lazy(connector)))
    }

    pub(super) async fn read(&self, number: usize, spec: &Spec) -> anyhow::Result<()> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.context("no channel")?;
        let request = Request::new(GetDagRequest {
            name: corpus::name(number).to_string(),
        });
        let codec = ProstCodec::<GetDagRequest, GetDagResponse>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(PATH), codec);
        let answer = answer.await?.into_inner();
        ensure!(answer.error.is_empty(), "{}", answer.error);
        super::check(&answer.spec, spec)
    }
}
