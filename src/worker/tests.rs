//! Goal: a worker believes nobody who holds a coordinator's certificate and no pinned head key,
//! and nothing that goes back. Method: a worker in this process, and a coordinator that says what
//! the test tells it to.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::answer::{Failure, Freshness};
use crate::catalog::{
    CatalogId, Epoch, Head, HeadHash, HeadKey, Revision, SessionClaim, StateRoot,
};
use crate::config::{IdentityPaths, LocalConfig, LogConfig, LogFormat};
use crate::net::{Peer, Reply, Service, SessionKey};
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::{
    GetLog, HeadBytes, List, Listing, Log, LogEntry, Missing, Outcome, ProofBytes, Publish,
    PublishedRev, Request, Resolved, Response,
};
use crate::store::mark::HighWater;
use crate::trust::issue;

/// What a coordinator shows in its welcome.
enum Shows {
    /// A head of catalog 1 and a proof by this key for the session at hand.
    Proof(HeadKey),
    /// The same, with the proof of another session.
    Replay(HeadKey),
    /// No catalog.
    Nothing,
}

/// Answers each resolve with "never existed" at this state.
struct Puppet {
    shows: Shows,
    says: Resolved,
    /// What the worker last said that it does for others.
    peering: Arc<Mutex<Option<Peering>>>,
}

fn catalog(byte: u8) -> CatalogId {
    CatalogId::from_bytes([byte; 16])
}

const EPOCH: Epoch = Epoch::new(2);

fn state(rev: u64) -> Resolved {
    Resolved {
        catalog: catalog(1),
        epoch: EPOCH,
        rev: Revision::new(rev),
    }
}

impl Service for Puppet {
    fn catalog(&self, session: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        let (key, session) = match &self.shows {
            Shows::Proof(key) => (key, *session),
            Shows::Replay(key) => (key, [9; 32]),
            Shows::Nothing => return None,
        };
        let head = Head {
            catalog: catalog(1),
            epoch: EPOCH,
            rev: Revision::new(1),
            root: StateRoot::from_bytes([0; 32]),
            prev: HeadHash::NONE,
        };
        let claim = SessionClaim {
            session,
            catalog: head.catalog,
            epoch: head.epoch,
        };
        let proof = claim.sign(key).into();
        Some((HeadBytes::from(&head.sign(key)), proof))
    }

    async fn serve(&self, _: Peer, request: Request, _: Bytes, reply: &mut Reply) {
        let Resolved {
            catalog,
            epoch,
            rev,
        } = self.says;
        let response = match request {
            Request::Resolve(resolve) => {
                *self.peering.lock().expect("no panic") = Some(resolve.peering);
                return self.resolve(resolve.names.len(), reply).await;
            }
            Request::Meet(_) => {
                let busy = Refusal::new(Code::Busy, "it knows nobody");
                // The worker may have stopped.
                let _ = reply.refuse(&busy).await;
                return;
            }
            Request::List(_) => Response::Listing(Listing {
                catalog,
                epoch,
                rev,
                records: vec![],
                more: false,
            }),
            Request::GetLog(_) => Response::Log(Log {
                catalog,
                epoch,
                oldest: Revision::new(1),
                entries: vec![LogEntry {
                    rev,
                    by: String::new(),
                    at_unix_ms: 0,
                    note: String::new(),
                    changed: 1,
                    version: None,
                }],
                more: false,
            }),
            Request::Have(_) => Response::Missing(Missing { hashes: vec![] }),
            Request::Publish(_) => Response::Published(PublishedRev {
                catalog,
                epoch,
                rev,
                changed: 1,
                waited: crate::proto::wire::Waited::default(),
            }),
            other => panic!("{other:?}"),
        };
        reply.send(&response).await.expect("the worker waits");
    }
}

impl Puppet {
    async fn resolve(&self, names: usize, reply: &mut Reply) {
        // A worker that stops believing goes away in the middle.
        let _ = reply.send(&Response::Resolved(self.says.clone())).await;
        for _ in 0..names {
            let outcome = Outcome {
                version: None,
                body: false,
                ask: Vec::new(),
            };
            let _ = reply.send(&Response::Outcome(outcome)).await;
        }
    }
}

/// A cluster, a worker in it, and a puppet that it takes for its coordinator.
struct Stage {
    dir: TempDir,
    worker: Worker,
    config: WorkerConfig,
    puppet: Endpoint,
    _runtime: Runtime,
}

fn issued(dir: &Path, role: Role) -> IdentityPaths {
    let order = issue::Order {
        role,
        name: "n".to_owned(),
        valid_for: issue::NODE_VALIDITY,
        out: None,
        force: false,
    };
    let issued = issue::issue(dir, &order).expect("issued");
    IdentityPaths {
        cert: issued.dir.join("cert.pem"),
        key: issued.dir.join("key.pem"),
        ca: issued.dir.join("ca.pem"),
        trust: issued.dir.join("trust.yaml"),
        head_key: None,
        allow_group_readable_key: false,
    }
}

impl Stage {
    /// `puppet` gets the head key of the cluster.
    fn new(puppet: impl FnOnce(HeadKey) -> Puppet) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        issue::init(dir.path(), "test").expect("a CA");
        let key = fs::read_to_string(dir.path().join("head.key")).expect("there");
        let puppet = puppet(key.parse().expect("a key"));
        let runtime = Runtime::start().expect("a thread");
        let identity = daemon::load_identity(&issued(dir.path(), Role::Coordinator));
        let options = EndpointOptions {
            reset_key: [7; 32],
            agent: "puppet".to_owned(),
            max_spec_len: 1 << 20,
            limits: Limits::default(),
            congestion: Congestion::default(),
        };
        let any = "127.0.0.1:0".parse().expect("an address");
        let identity = identity.expect("an identity");
        let port = Port::bind(any, identity.uri().cluster()).expect("a port");
        let endpoint = Endpoint::start(runtime.handle(), port, identity, options).expect("bind");
        endpoint.serve(Arc::new(puppet));
        let addr = endpoint.local_addr().to_string();
        let config = WorkerConfig {
            identity: issued(dir.path(), Role::Worker),
            local: LocalConfig {
                socket: dir.path().join("w.sock"),
                socket_group: None,
                http: None,
            },
            log: LogConfig {
                filter: "info".into(),
                format: LogFormat::Human,
            },
            listen: any,
            coordinators: vec![addr.parse().expect("an address")],
            peers: vec![],
            membership: None,
            store: StoreChoice::None,
            store_budget: 1 << 20,
            deadline: Duration::from_secs(10),
            lease: false,
            prefetch: crate::proto::worker::Prefetch::None,
            upload_limit: None,
            relay: true,
            freshness: crate::answer::Freshness::Strict,
        };
        Self {
            worker: Worker::start(&config).expect("a worker"),
            config,
            puppet: endpoint,
            dir,
            _runtime: runtime,
        }
    }

    fn with(shows: impl FnOnce(HeadKey) -> Shows, says: Resolved) -> Self {
        Self::new(|key| Puppet {
            shows: shows(key),
            says,
            peering: Arc::default(),
        })
    }

    async fn read(&self) -> Result<Answer, String> {
        let read = self.worker.get("etl/a", Freshness::Strict).await;
        read.map_err(|error| match error {
            ReadError::Get(error) => {
                let hops: Vec<_> = error.hops().iter().map(ToString::to_string).collect();
                format!("{error}: {}", hops.join("; "))
            }
            ReadError::Name(error) => panic!("{error}"),
        })
    }

    /// Makes the worker pin `key` and nothing else, once it looks at its files.
    fn pin(&self, key: &HeadKey) {
        let path = self.dir.path().join("worker/n/trust.yaml");
        let trust = format!("cluster: test\nhead_keys:\n- {}\n", key.pinned());
        fs::write(path, trust).expect("write");
    }
}

fn stranger() -> HeadKey {
    HeadKey::from_bytes([8; 32])
}

#[tokio::test]
async fn the_holder_of_the_pinned_key_is_believed_also_in_a_later_epoch() {
    let later = Resolved {
        epoch: Epoch::new(3),
        ..state(5)
    };
    for says in [state(5), later] {
        let stage = Stage::with(Shows::Proof, says.clone());
        let answer = stage.read().await.expect("an answer");
        assert_eq!(answer.spec, None);
        assert_eq!(answer.proof.snapshot.expect("asked").epoch, says.epoch);
    }
}

#[tokio::test]
async fn a_coordinators_certificate_without_the_pinned_key_proves_nothing() {
    let other_catalog = Resolved {
        catalog: catalog(2),
        ..state(5)
    };
    let other_epoch = Resolved {
        epoch: Epoch::new(1),
        ..state(5)
    };
    type Choice = fn(HeadKey) -> Shows;
    let cases: [(Choice, Resolved, &str); 5] = [
        (|_| Shows::Proof(stranger()), state(5), "no head key pinned"),
        (Shows::Replay, state(5), "no head key pinned"),
        (|_| Shows::Nothing, state(5), "has proven none"),
        (Shows::Proof, other_catalog, "speaks for"),
        (Shows::Proof, other_epoch, "has proven epoch 2"),
    ];
    for (shows, says, why) in cases {
        let stage = Stage::with(shows, says);
        let error = stage.read().await.expect_err("not believed");
        assert!(error.contains(why), "{why}: {error}");
        assert!(error.contains("no proof that any copy"), "{error}");
    }
}

#[tokio::test]
async fn a_key_that_is_no_longer_pinned_ends_the_live_connection_too() {
    let stage = Stage::with(Shows::Proof, state(5));
    stage.read().await.expect("pinned");
    assert!(stage.puppet.connections() > 0);
    stage.pin(&stranger());
    // Nobody tells the worker to look.
    let refused = async {
        loop {
            if let Err(error) = stage.read().await
                && error.contains("no head key pinned")
            {
                return;
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(10), refused);
    refused.await.expect("the live connection goes on");
}

#[tokio::test]
async fn a_store_is_closed_when_its_worker_has_stopped() {
    let stage = Stage::with(Shows::Proof, state(5));
    let mut config = stage.config.clone();
    config.store = StoreChoice::Directory(stage.dir.path().join("store"));
    for _ in 0..10 {
        let worker = Worker::start(&config).expect("the store is free");
        worker.get("etl/a", Freshness::Strict).await.expect("up");
        worker.stop().await;
    }
}

/// What each forwarded request comes to at a worker that has seen `mark`, when the coordinator
/// says revision 5 of catalog 1 in epoch 2.
async fn forwarded(mark: Resolved) -> [&'static str; 7] {
    let stage = Stage::with(Shows::Proof, state(5));
    let dir = stage.dir.path().join("seen");
    let (store, _) = WorkerStore::open(&dir, cache::Options::default()).expect("a store");
    let high = HighWater {
        catalog: mark.catalog,
        epoch: mark.epoch,
        rev: mark.rev,
        head: HeadHash::NONE,
    };
    store.raise_high_water(high).expect("written");
    drop(store);
    let mut config = stage.config.clone();
    config.store = StoreChoice::Directory(dir);
    config.identity = issued(stage.dir.path(), Role::Publisher);
    let identity = daemon::load_identity(&config.identity).expect("an identity");
    let publisher = Worker::open(&config, identity).expect("opened");
    let api = publisher.api();
    let list = |at| List {
        at,
        prefix: String::new(),
        after: None,
        deleted: false,
        limit: 1,
    };
    let log = |name| GetLog {
        name,
        before: None,
        limit: 1,
    };
    let publish = |key| Publish {
        key,
        note: String::new(),
        changes: vec![],
    };
    let name = "etl/a".parse().expect("a name");
    [
        outcome(api.list(list(None)).await),
        outcome(api.list(list(Some(Revision::new(3)))).await),
        outcome(api.log(log(None)).await),
        outcome(api.log(log(Some(name))).await),
        outcome(api.publish(publish(None)).await),
        outcome(api.publish(publish(Some([1; 16]))).await),
        outcome(api.missing(vec![]).await),
    ]
}

fn outcome<T>(result: Result<T, Failure>) -> &'static str {
    match result.as_ref().map_err(|failure| failure.code.as_str()) {
        Ok(_) => "ok",
        Err("quarantined") => "quarantined",
        Err("wrong-catalog") => "wrong-catalog",
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_passed_on_is_held_against_what_has_been_seen() {
    let (ok, back) = ("ok", "quarantined");
    assert_eq!(forwarded(state(5)).await, [ok; 7]);
    // Older revisions are what some of them ask for.
    let newer = forwarded(state(9)).await;
    assert_eq!(newer, [back, ok, back, ok, back, ok, ok]);
    let later = Resolved {
        epoch: Epoch::new(3),
        ..state(1)
    };
    let later = forwarded(later).await;
    assert_eq!(later, [back, back, back, back, back, back, ok]);
    let other = Resolved {
        catalog: catalog(2),
        ..state(5)
    };
    assert_eq!(forwarded(other).await, ["wrong-catalog"; 7]);
}

#[tokio::test]
async fn a_worker_says_what_it_does_for_others() {
    let membership = || {
        Some(Membership {
            join: Vec::new(),
            advertise: None,
        })
    };
    let said = Arc::new(Mutex::new(None));
    let puppet = Arc::clone(&said);
    let stage = Stage::new(|key| Puppet {
        shows: Shows::Proof(key),
        says: state(5),
        peering: puppet,
    });
    let alone = stage.config.clone();
    let gives = WorkerConfig {
        membership: membership(),
        ..alone.clone()
    };
    let takes = WorkerConfig {
        upload_limit: Some(0),
        ..gives.clone()
    };
    let elsewhere = WorkerConfig {
        membership: membership().map(|membership| Membership {
            advertise: Some(([192, 0, 2, 1], 1).into()),
            ..membership
        }),
        ..gives.clone()
    };
    let publisher = WorkerConfig {
        identity: issued(stage.dir.path(), Role::Publisher),
        ..gives.clone()
    };
    for (config, peering) in [
        (gives, Peering::Gives),
        (takes, Peering::Takes),
        (elsewhere, Peering::Takes),
        (alone, Peering::Takes),
        (publisher, Peering::Alone),
    ] {
        let identity = daemon::load_identity(&config.identity).expect("an identity");
        let worker = Worker::open(&config, identity).expect("a worker");
        worker.get("etl/a", Freshness::Strict).await.expect("read");
        assert_eq!(said.lock().expect("no panic").take(), Some(peering));
        worker.stop().await;
    }
}
