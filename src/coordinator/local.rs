use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::Node;
use crate::answer::{
    Answer, Failure, Freshness, GetError, Hop, Mode, Proof, Query, RunToken, Snapshot, Target,
};
use crate::api::{Api, Reply, pin_ms};
use crate::bridge::http;
use crate::catalog::Revision;
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::{
    GetLog, List, Listing, Log, Peering, Pin, Pinned, Pins, Publish, PublishedRev, Resolve,
    ResolveName,
};
use crate::spec::{Spec, SpecHash, Syntax};
use crate::{clock, daemon};

/// A write waits for two fsyncs, behind whatever is queued; a disk that takes longer is stuck.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// Who published through the local socket, where the file mode is the permission.
const LOCAL: &str = "local";

/// Pins that `status` lists; `GET /v1/pins` has them all.
const MAX_PINS_SHOWN: usize = 100;

impl Node {
    /// What this coordinator thinks of itself.
    pub(super) fn status_json(&self) -> serde_json::Value {
        let mut status = json!({
            "role": "coordinator",
            "uri": self.endpoint().identity().uri(),
            "version": daemon::VERSION,
            "listen": self.endpoint().local_addr().to_string(),
            "uptime_s": self.started().elapsed().as_secs(),
            "connections": self.endpoint().connections(),
            "store": self.store_dir(),
        });
        let Some(engine) = self.engine() else {
            status["catalog"] = serde_json::Value::Null;
            return status;
        };
        let view = engine.view();
        let standing = engine.standing();
        status["catalog"] = json!(view.catalog);
        status["epoch"] = json!(view.epoch);
        status["revision"] = json!(view.records.rev());
        status["oldest_revision"] = json!(view.records.oldest());
        status["names"] = json!(view.records.names());
        status["pending"] = json!(standing.pending);
        status["idempotency_keys"] = json!(standing.keys);
        status["journal_bytes"] = json!(engine.journal_len());
        status["view_absent"] = json!(engine.view_absent());
        status["failed"] = json!(standing.lost);
        let (workers, waiting) = engine.leases();
        status["workers"] = json!(workers);
        status["waiting"] = json!(waiting);
        let mut pins = engine.pins().pins;
        status["pinned"] = json!(pins.len());
        pins.truncate(MAX_PINS_SHOWN);
        status["pins"] = json!(pins);
        let lease = engine.lease();
        status["lease_ms"] = json!(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        status
    }

    async fn read(&self, query: Query) -> Result<Answer, Failure> {
        let began = clock::now();
        let engine = self.catalog()?;
        let hop = Hop::Disk;
        let (spec, snapshot, record_rev, mode) = match &query.target {
            Target::Hash(hash) => {
                let Some(spec) = engine.body(*hash, None).await? else {
                    let message = format!("no definition has the hash {}", hash.short());
                    return Err(Failure::new(Code::NotFound.as_str(), message));
                };
                (Some(spec), None, None, Mode::Pinned)
            }
            Target::Name(name) => {
                // What is asked here is always as new as it can be.
                let at = query.freshness.revision();
                let view = engine.view();
                match query.freshness {
                    Freshness::Run(token) => token.check(view.catalog, view.epoch)?,
                    Freshness::AtLeast(token) => {
                        token.check_reached(view.catalog, view.epoch, view.records.rev())?;
                    }
                    _ => {}
                }
                let (name, body) = (name.clone(), true);
                let names = vec![ResolveName {
                    name,
                    if_hash: None,
                    body,
                }];
                let (opening, versions) = view.resolve(&Resolve {
                    at,
                    names,
                    peering: Peering::Alone,
                })?;
                let version = versions.into_iter().flatten().next();
                let spec = match version.and_then(|version| version.content.hash()) {
                    Some(hash) => {
                        let Some(spec) = engine.body(hash, None).await? else {
                            let message = "the coordinator's copy of these bytes is gone";
                            return Err(Failure::new(Code::Damaged.as_str(), message));
                        };
                        Some(spec)
                    }
                    None => None,
                };
                let snapshot = Snapshot {
                    catalog: opening.catalog,
                    epoch: opening.epoch,
                    rev: opening.rev,
                };
                let mode = at.map_or(Mode::Asked, |_| Mode::At);
                let rev = version.map(|version| version.rev);
                (spec, Some(snapshot), rev, mode)
            }
        };
        let took = clock::now().since(began);
        let age_us = match mode {
            Mode::Lease | Mode::Asked | Mode::AtLeast | Mode::Bounded => {
                u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
            }
            Mode::At | Mode::Pinned => 0,
        };
        Ok(Answer {
            spec,
            proof: Proof {
                mode,
                snapshot,
                record_rev: record_rev.filter(|rev| *rev > Revision::ZERO),
                source: hop,
                age_us,
            },
            failed: Vec::new(),
            took,
        })
    }
}

impl Api for Arc<Node> {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        Box::pin(async move {
            let late = || GetError::Deadline {
                target: query.target.clone(),
                last: None,
                hops: Vec::new(),
            };
            let read = timeout(query.deadline, self.read(query.clone())).await;
            read.unwrap_or_else(|_| Err(late().into()))
        })
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        Box::pin(async move { Ok(self.catalog()?.list(list).await?) })
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        Box::pin(async move { Ok(self.catalog()?.log(get).await?) })
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async move { Ok(self.status_json()) })
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        Box::pin(async move {
            let view = self.catalog()?.view();
            Ok(RunToken {
                catalog: view.catalog,
                epoch: view.epoch,
                rev: view.records.rev(),
            })
        })
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        Box::pin(async move {
            let engine = self.catalog()?;
            let view = engine.view();
            token.check(view.catalog, view.epoch)?;
            let pin = Pin {
                epoch: token.epoch,
                rev: token.rev,
                for_ms: pin_ms(keep)?,
            };
            Ok(engine.pin(LOCAL.into(), pin).await?)
        })
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        Box::pin(async move { Ok(self.catalog()?.unpin(LOCAL.into(), id).await?) })
    }

    fn pins(&self) -> Reply<'_, Pins> {
        Box::pin(async move { Ok(self.catalog()?.pins()) })
    }

    fn missing(&self, hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        Box::pin(async move { Ok(self.catalog()?.missing(hashes).await?) })
    }

    fn put_body(&self, spec: Spec, syntax: Syntax) -> Reply<'_, ()> {
        Box::pin(async move {
            let max_len = self.max_spec_len();
            // YAML takes a millisecond where a frame takes microseconds.
            let checked = tokio::task::spawn_blocking(move || {
                syntax.check(spec.bytes(), max_len).map(|()| spec)
            });
            let spec = match checked.await {
                Ok(checked) => checked.map_err(daemon::bad_syntax)?,
                Err(_) => {
                    return Err(Refusal::new(Code::Internal, "the YAML check failed").into());
                }
            };
            in_time(self.catalog()?.stage(spec)).await
        })
    }

    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        Box::pin(async move { in_time(self.catalog()?.publish(LOCAL.into(), publish)).await })
    }
}

/// A write that is not done by then may still be.
async fn in_time<T>(write: impl Future<Output = Result<T, Refusal>>) -> Result<T, Failure> {
    match timeout(WRITE_WITHIN, write).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            let message = format!(
                "the coordinator's disk did not answer within {} s",
                WRITE_WITHIN.as_secs()
            );
            Err(Failure::new("deadline", message).hint("it may still happen"))
        }
    }
}

/// The coordinator on its local socket.
pub(super) struct Local(pub(super) Arc<Node>);

impl http::Node for Local {
    fn api(&self) -> &dyn Api {
        &self.0
    }

    fn writable(&self) -> bool {
        self.0.engine().is_some()
    }

    fn max_spec_len(&self) -> u64 {
        self.0.max_spec_len()
    }

    fn ready(&self) -> Result<(), String> {
        let Some(engine) = self.0.engine() else {
            return Err("this coordinator was started without a store".into());
        };
        match &engine.standing().lost {
            None => Ok(()),
            Some(reason) => Err(format!("the disk failed: {reason}")),
        }
    }

    fn metrics(&self) -> String {
        daemon::metrics()
    }

    fn backup(&self, out: Box<dyn io::Write + Send>) -> Option<io::Result<()>> {
        let engine = self.0.engine()?;
        let mut out = io::BufWriter::new(out);
        Some(engine.backup(&mut out))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant as StdInstant;

    use tokio::runtime::Handle;
    use tokio::time::Instant;

    use super::super::engine::Engine;
    use super::super::engine::tests::{engine, long, publish, ten};
    use super::super::whereabouts::Whereabouts;
    use super::*;
    use crate::api::site::Site;
    use crate::net::{Congestion, DialBack, Endpoint, EndpointOptions, Limits, Port};
    use crate::spec::MAX_SPEC_LEN;
    use crate::trust::{Identity, IdentityOptions, IdentityPaths};

    fn node(site: &Site, engine: Arc<Engine>) -> Arc<Node> {
        let paths = IdentityPaths::in_dir(&site.path("dev/coordinator/c1"));
        let identity = Identity::load(paths, IdentityOptions::default()).expect("an identity");
        let options = EndpointOptions {
            reset_key: [7; 32],
            agent: "test".into(),
            max_spec_len: MAX_SPEC_LEN,
            limits: Limits::default(),
            congestion: Congestion::default(),
        };
        let addr = "127.0.0.1:0".parse().expect("an address");
        let port = Port::bind(addr, identity.uri().cluster()).expect("a port");
        let endpoint =
            Endpoint::start(&Handle::current(), port, identity, options).expect("started");
        Arc::new(Node {
            engine: Some(engine),
            head_key: None,
            dial_back: DialBack::new(&endpoint),
            whereabouts: Whereabouts::default(),
            endpoint,
            store_dir: None,
            max_spec_len: MAX_SPEC_LEN,
            askers: std::sync::Mutex::default(),
            begun: true.into(),
            started: StdInstant::now(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_stuck_ends_a_write_by_its_deadline() {
        let site = Site::new();
        let (engine, _stuck) = engine(&site.path("c"));
        let node = node(&site, engine);
        let began = Instant::now();
        let put = node.put_body(Spec::new("a: body".into()), Syntax::Yaml);
        assert_eq!(put.await.expect_err("it is stuck").code, "deadline");
        assert_eq!(began.elapsed().as_secs(), WRITE_WITHIN.as_secs());
        let published = node.publish(publish(&[("a", ten().hash(), 10)]));
        assert_eq!(published.await.expect_err("it is stuck").code, "deadline");
        assert_eq!(began.elapsed().as_secs(), 2 * WRITE_WITHIN.as_secs());
    }

    #[test]
    fn a_read_ends_by_its_deadline() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let (free, held) = std::sync::mpsc::channel::<()>();
        // The only thread that could read does something else.
        runtime.spawn_blocking(move || held.recv());
        runtime.block_on(async {
            let site = Site::new();
            let (engine, _queue) = engine(&site.path("c"));
            let node = node(&site, engine);
            let mut query = Query::strict(Target::Hash(long().hash()));
            query.deadline = Duration::from_millis(1);
            let late = timeout(Duration::from_secs(5), node.get(query.clone())).await;
            let late = late.expect("long before").expect_err("nobody reads");
            assert_eq!(late.code, "deadline");
            drop(free);
            query.deadline = Duration::from_secs(60);
            assert_eq!(node.get(query).await.expect("here").spec, Some(long()));
        });
    }
}
