//! A coordinator and workers through the crate's API, within this process, over real QUIC.

use std::path::Path;
use std::time::Duration;

use larder::answer::{Freshness, Hop};
use larder::config::{
    CoordinatorConfig, IdentityPaths, LocalConfig, LogConfig, LogFormat, StoreChoice, WorkerConfig,
};
use larder::identity::Role;
use larder::trust::issue::{self, NODE_VALIDITY, Order};
use larder::{Coordinator, Worker};

fn identity(dir: &Path, role: Role, name: &str) -> IdentityPaths {
    let issued = issue::issue(
        dir,
        &Order {
            role,
            name: name.into(),
            valid_for: NODE_VALIDITY,
            out: None,
            force: false,
        },
    )
    .expect("issued");
    IdentityPaths {
        cert: issued.dir.join("cert.pem"),
        key: issued.dir.join("key.pem"),
        ca: issued.dir.join("ca.pem"),
        trust: issued.dir.join("trust.yaml"),
        head_key: None,
        allow_group_readable_key: false,
    }
}

fn local(dir: &Path, name: &str) -> LocalConfig {
    LocalConfig {
        socket: dir.join(name),
        socket_group: None,
        http: None,
    }
}

fn log() -> LogConfig {
    LogConfig {
        filter: "info".into(),
        format: LogFormat::Human,
    }
}

#[tokio::test]
async fn a_worker_in_process_reads_over_quic_and_then_from_its_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    issue::init(dir, "test").expect("a CA");
    let coordinator = Coordinator::start(&CoordinatorConfig {
        identity: identity(dir, Role::Coordinator, "c"),
        local: local(dir, "c.sock"),
        log: log(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        store: StoreChoice::Directory(dir.join("c")),
        max_spec_len: 1 << 20,
        lease: Duration::ZERO,
        new_epoch: false,
    })
    .expect("a coordinator");
    let body = "steps:\n  - run: echo hi\n";
    let spec = larder::spec::Spec::new(body.into());
    let api = coordinator.api();
    let rev = larder::api::publish_one(api, "etl/child", Some(spec.clone()))
        .await
        .expect("published");
    let addr = coordinator.local_addr().to_string();
    let worker = Worker::start(&WorkerConfig {
        identity: identity(dir, Role::Worker, "w"),
        local: local(dir, "w.sock"),
        log: log(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        coordinators: vec![addr.parse().expect("an address")],
        peers: vec![],
        membership: None,
        upload_limit: None,
        store: StoreChoice::Directory(dir.join("w")),
        store_budget: 64 << 20,
        deadline: Duration::from_secs(10),
        lease: false,
        prefetch: larder::proto::worker::Prefetch::None,
        relay: true,
        freshness: Freshness::Strict,
    })
    .expect("a worker");
    for hop in [Hop::Coordinator(addr.clone()), Hop::Disk] {
        let answer = worker.get("etl/child.yaml", Freshness::Strict).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.spec.as_ref(), Some(&spec));
        assert_eq!(answer.proof.source, hop);
        assert_eq!(answer.proof.record_rev, Some(rev.rev));
    }
    let absent = worker
        .get("etl/other", Freshness::Strict)
        .await
        .expect("an answer");
    assert_eq!(absent.spec, None);
    coordinator.stop().await;
    let gone = worker
        .get("etl/child", Freshness::Strict)
        .await
        .expect_err("no proof");
    assert!(gone.to_string().contains("no proof"), "{gone}");
    let held = worker
        .get("etl/child", Freshness::At(rev.rev))
        .await
        .expect("held");
    assert_eq!(held.spec, Some(spec));
    worker.stop().await;
}
