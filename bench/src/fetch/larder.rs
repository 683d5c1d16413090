use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, ensure};
use larder::answer::{Freshness, Hop, Mode, Query, Target};
use larder::api::Api;
use larder::config::{CoordinatorConfig, StoreChoice, WorkerConfig};
use larder::net::Congestion;
use larder::proto::wire::{Publish, PublishName};
use larder::spec::{Spec, Syntax};
use larder::{Coordinator, Worker};

use super::{Contender, Served};
use crate::corpus;
use crate::process;
use crate::site;

/// Names in one publish.
const NAMES_PER_PUBLISH: usize = 1_024;

/// A coordinator that has everything published, until nobody asks any more.
pub(crate) fn serve(served: &Served) -> anyhow::Result<()> {
    let _pinned = served.pin()?;
    let config = CoordinatorConfig {
        listen: (served.listen, 0).into(),
        ..site::coordinator(&served.dir)?
    };
    let coordinator = Coordinator::start_with(&config, served.congestion())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let specs = corpus::specs(served.seed, served.count);
    runtime.block_on(publish(coordinator.api(), specs))?;
    process::answer(&coordinator.local_addr().to_string())?;
    runtime.block_on(coordinator.stop());
    Ok(())
}

/// Publishes each definition under its name.
pub(crate) async fn publish(api: &dyn Api, specs: Vec<Spec>) -> anyhow::Result<()> {
    let mut changes = Vec::with_capacity(specs.len());
    for (number, spec) in specs.into_iter().enumerate() {
        changes.push(PublishName {
            name: corpus::name(number),
            hash: Some(spec.hash()),
            len: spec.len(),
            expect: None,
        });
        let put = api.put_body(spec, Syntax::AnyText).await;
        put.map_err(|failure| anyhow::anyhow!("a body was not taken: {failure:?}"))?;
    }
    for changes in changes.chunks(NAMES_PER_PUBLISH) {
        let published = api.publish(Publish {
            key: None,
            note: String::new(),
            changes: changes.to_vec(),
        });
        let published = published.await;
        published.map_err(|failure| anyhow::anyhow!("not published: {failure:?}"))?;
    }
    Ok(())
}

/// A worker that keeps what it reads in memory.
#[derive(Clone)]
pub(crate) struct Client {
    worker: Worker,
    hop: Hop,
}

impl Client {
    pub(super) fn start(dir: &Path, addr: &str) -> anyhow::Result<Self> {
        let addr = addr.parse().context("the coordinator's address")?;
        let listen = Ipv4Addr::LOCALHOST.into();
        Self::start_at(dir, addr, listen, Congestion::default())
    }

    /// The same on an address of this node.
    pub(crate) fn start_at(
        dir: &Path,
        addr: SocketAddr,
        listen: IpAddr,
        congestion: Congestion,
    ) -> anyhow::Result<Self> {
        let addr = addr.to_string();
        let coordinators = vec![addr.parse().context("the coordinator's address")?];
        let config = WorkerConfig {
            // Every read goes to the coordinator, and nothing else does.
            lease: false,
            listen: (listen, 0).into(),
            ..site::worker(dir, 0, coordinators, StoreChoice::None)?
        };
        Ok(Self {
            worker: Worker::start_with(&config, congestion)?,
            hop: Hop::Coordinator(addr),
        })
    }

    pub(crate) async fn stop(self) {
        self.worker.stop().await;
    }
}

impl Contender for Client {
    /// The bytes are hashed before the worker answers, so a right hash says that they are right.
    async fn read(&self, first: usize, specs: &[Spec]) -> anyhow::Result<()> {
        let names = (first..).map(corpus::name).take(specs.len());
        let queries = names.map(|name| Query {
            freshness: Freshness::Verified,
            ..Query::strict(Target::Name(name))
        });
        let answers = self.worker.query_all(queries.collect()).await;
        ensure!(answers.len() == specs.len(), "{} answers", answers.len());
        for (answer, wanted) in answers.into_iter().zip(specs) {
            let answer = answer?;
            let proof = &answer.proof;
            ensure!(proof.mode == Mode::Asked, "{proof:?}");
            ensure!(proof.source == self.hop, "{proof:?}");
            let spec = answer.spec.context("the name is published")?;
            ensure!(spec.hash() == wanted.hash(), "other bytes");
            ensure!(spec.bytes().len() == corpus::BODY_LEN, "a wrong length");
        }
        Ok(())
    }
}
