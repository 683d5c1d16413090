//! Clients of a cluster in trouble, and a record of all that they saw.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder::answer::{Answer, Failure, Freshness, Query, RunToken, Snapshot, Target};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::catalog::{Change, Content, Epoch, IdempotencyKey, Revision};
use larder::clock;
use larder::proto::code::Code;
use larder::proto::wire::{Publish, PublishName};
use larder::sim::history::{self, Event, Failed, History, Outcome, Place, Read};
use larder::sim::history::{PublishAnswer, PublishId, ReadId, RunId, WorkerId};
use larder::spec::{Spec, SpecHash, Syntax};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{status, wait};
use crate::site::Daemon;

/// Few, so that a read often falls beside a publish of what it reads.
pub(super) const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Longer than any stop, so that reads survive one.
const DEADLINE: Duration = Duration::from_secs(2);

/// The same where bodies are long: several may be on their way on one slow link.
const LONG_DEADLINE: Duration = Duration::from_secs(10);

/// What a read may lag that says it may lag.
const BOUND: Duration = Duration::from_millis(500);

/// Attempts to publish with one key.
const ATTEMPTS: usize = 5;

/// Before the next try where nobody listens, so that failures do not crowd out all else.
const PAUSE: Duration = Duration::from_millis(20);

/// What clients share.
pub(super) struct Scene {
    events: Mutex<Vec<Event>>,
    ids: AtomicU64,
    is_over: AtomicBool,
    seats: Vec<Seat>,
    publisher: HttpClient,
    /// Bytes of every other body that is published, if they are not to be few.
    bodies: Option<Range<usize>>,
    /// Workers that are stopped now.
    stopped: Mutex<Vec<usize>>,
    /// The newest that anyone was told of.
    known: Mutex<Snapshot>,
    codes: Mutex<BTreeMap<String, u64>>,
}

/// A worker's place, whichever process sits in it.
struct Seat {
    client: HttpClient,
    starts: AtomicU64,
}

impl Scene {
    /// Of clients that find all of these on their sockets.
    pub(super) fn new(coordinator: &Daemon, workers: &[Option<Daemon>]) -> Self {
        let connect = |node: &Daemon| wait(HttpClient::connect(node.socket())).expect("it answers");
        let status = status(coordinator);
        let catalog = status["catalog"].as_str().expect("a catalog");
        let seat = |worker: &Daemon| Seat {
            client: connect(worker),
            starts: AtomicU64::new(0),
        };
        Self {
            events: Mutex::default(),
            ids: AtomicU64::new(1),
            is_over: AtomicBool::new(false),
            seats: workers.iter().flatten().map(seat).collect(),
            publisher: connect(coordinator),
            bodies: None,
            stopped: Mutex::default(),
            known: Mutex::new(Snapshot {
                catalog: catalog.parse().expect("an id"),
                epoch: Epoch::new(status["epoch"].as_u64().expect("a number")),
                rev: Revision::ZERO,
            }),
            codes: Mutex::default(),
        }
    }

    /// The same with long bodies among the short ones, so that they load links.
    pub(super) fn with_bodies(self, len: Range<usize>) -> Self {
        let bodies = Some(len);
        Self { bodies, ..self }
    }

    /// Everything that was seen, and how often something failed with which code.
    pub(super) fn end(self) -> (History, BTreeMap<String, u64>) {
        let known = self.known.into_inner().expect("no panic");
        let mut history = History::new(known.catalog);
        for event in self.events.into_inner().expect("no panic") {
            history.push(event);
        }
        (history, self.codes.into_inner().expect("no panic"))
    }

    /// Lets clients end what they are at, and begin nothing more.
    pub(super) fn close(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Says which workers are stopped now.
    pub(super) fn set_stopped(&self, stopped: &[usize]) {
        *self.stopped.lock().expect("no panic") = stopped.to_vec();
    }

    /// A worker's process has ended, and another will follow.
    pub(super) fn count_end(&self, worker: usize) {
        self.seats[worker].starts.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn push(&self, event: Event) {
        self.events.lock().expect("no panic").push(event);
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether clients may begin something.
    pub(super) fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn learn(&self, snapshot: Snapshot) {
        let mut known = self.known.lock().expect("no panic");
        if Place::from(snapshot) > Place::from(*known) {
            *known = snapshot;
        }
    }

    pub(super) fn known(&self) -> RunToken {
        let Snapshot {
            catalog,
            epoch,
            rev,
        } = *self.known.lock().expect("no panic");
        RunToken {
            catalog,
            epoch,
            rev,
        }
    }

    /// Counts why something had no answer, and waits a little where nobody listens.
    async fn failed(&self, failure: &Failure) {
        {
            let mut codes = self.codes.lock().expect("no panic");
            *codes.entry(failure.code.clone()).or_default() += 1;
        }
        if failure.code == "unreachable" {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A worker for a reader; a stalker prefers those that are stopped, others pass them over.
    fn pick(&self, stalks: bool, rng: &mut StdRng) -> usize {
        let stopped = self.stopped.lock().expect("no panic").clone();
        if stalks && let Some(index) = stopped.choose(rng) {
            return *index;
        }
        let index = rng.random_range(0..self.seats.len());
        match stopped.contains(&index) {
            true => (0..self.seats.len())
                .find(|index| !stopped.contains(index))
                .unwrap_or(index),
            false => index,
        }
    }

    /// One read by name, recorded.
    pub(super) async fn read(
        &self,
        index: usize,
        name: &str,
        freshness: Freshness,
        run: Option<RunId>,
    ) -> Option<Answer> {
        let target = Target::Name(name.parse().expect("a name"));
        self.ask(index, target, freshness, run).await
    }

    /// One read by hash, recorded.
    pub(super) async fn read_hash(&self, index: usize, hash: SpecHash) -> Option<Answer> {
        self.ask(index, Target::Hash(hash), Freshness::Strict, None)
            .await
    }

    async fn ask(
        &self,
        index: usize,
        target: Target,
        freshness: Freshness,
        run: Option<RunId>,
    ) -> Option<Answer> {
        let seat = &self.seats[index];
        let query = Query {
            target,
            freshness,
            deadline: self.bodies.as_ref().map_or(DEADLINE, |_| LONG_DEADLINE),
        };
        let ask = history::Ask::from(&query);
        let target = query.target.clone();
        let incarnation = seat.starts.load(Ordering::SeqCst);
        let invoked = clock::now();
        let answer = seat.client.get(query).await;
        let responded = clock::now();
        let outcome = match &answer {
            Ok(answer) => Outcome::from(answer),
            Err(failure) => Outcome::Failed(kind_of(failure)),
        };
        self.push(Event::Read(Read {
            id: ReadId(self.id()),
            worker: WorkerId(index as u64),
            incarnation,
            run,
            target,
            ask,
            invoked,
            responded,
            outcome,
        }));
        match answer {
            Ok(answer) => {
                if let Some(snapshot) = answer.proof.snapshot {
                    self.learn(snapshot);
                }
                Some(answer)
            }
            Err(failure) => {
                self.failed(&failure).await;
                None
            }
        }
    }

    pub(super) async fn read_on(&self, stalks: bool, mut rng: StdRng) {
        let mut seen = None;
        while self.goes_on() {
            let index = self.pick(stalks, &mut rng);
            let name = NAMES.choose(&mut rng).expect("some");
            let token = self.known();
            let freshness = match rng.random_range(0..40) {
                0 => Freshness::Verified,
                1 => Freshness::Bounded(BOUND),
                2 => Freshness::AtLeast(token),
                3 => {
                    let back = rng.random_range(0..20);
                    let rev = token.rev.get().saturating_sub(back).max(1);
                    Freshness::At(Revision::new(rev))
                }
                4 if !stalks => {
                    self.run(index, &mut rng).await;
                    continue;
                }
                5 if let Some(hash) = seen => {
                    self.read_hash(index, hash).await;
                    continue;
                }
                _ => Freshness::Strict,
            };
            let answer = self.read(index, name, freshness, None).await;
            let spec = answer.and_then(|answer| answer.spec);
            seen = spec.map(|spec| spec.hash()).or(seen);
        }
    }

    /// A run begins at one worker and reads at many.
    async fn run(&self, index: usize, rng: &mut StdRng) {
        let id = RunId(self.id());
        let invoked = clock::now();
        let token = match self.seats[index].client.run_token().await {
            Ok(token) => token,
            Err(failure) => return self.failed(&failure).await,
        };
        let responded = clock::now();
        let snapshot = Snapshot {
            catalog: token.catalog,
            epoch: token.epoch,
            rev: token.rev,
        };
        self.push(Event::RunBegan(history::Run {
            id,
            invoked,
            responded,
            token: snapshot,
        }));
        self.learn(snapshot);
        for name in NAMES {
            let index = self.pick(false, rng);
            self.read(index, name, Freshness::Run(token), Some(id))
                .await;
        }
        let at = clock::now();
        self.push(Event::RunEnded { id, at });
    }

    pub(super) async fn publish_on(&self, mut rng: StdRng) {
        while self.goes_on() {
            let batch = Batch::new(self.id(), self.bodies.clone(), &mut rng);
            for _ in 0..ATTEMPTS {
                match self.publish(&batch).await {
                    Ok(()) => break,
                    Err(failure) => self.failed(&failure).await,
                }
                // Some are never sent again, and nobody learns what became of them.
                if rng.random_ratio(1, 6) {
                    break;
                }
            }
            tokio::time::sleep(PAUSE * rng.random_range(0..3)).await;
        }
    }

    /// One attempt, recorded from when the publish itself is sent.
    async fn publish(&self, batch: &Batch) -> Result<(), Failure> {
        for spec in batch.specs.iter().flatten() {
            let put = self.publisher.put_body(spec.clone(), Syntax::Yaml);
            put.await?;
        }
        let id = PublishId(self.id());
        let changes = batch.publish.changes.iter().map(|change| Change {
            name: change.name.clone(),
            content: match change.hash {
                Some(hash) => Content::Present {
                    hash,
                    len: change.len,
                },
                None => Content::Deleted,
            },
        });
        self.push(Event::PublishInvoked(history::Publish {
            id,
            invoked: clock::now(),
            by: "local".to_owned(),
            key: batch.publish.key,
            changes: changes.collect(),
        }));
        let published = self.publisher.publish(batch.publish.clone()).await;
        let at = clock::now();
        let answer = match &published {
            Ok(published) => PublishAnswer::from(published),
            Err(failure) if failure.code == Code::Expect.as_str() => PublishAnswer::Refused,
            // It may have happened.
            Err(_) => return published.map(drop),
        };
        self.push(Event::PublishAnswered { id, at, answer });
        if let PublishAnswer::Acknowledged { snapshot, .. } = answer {
            self.learn(snapshot);
        }
        Ok(())
    }
}

fn kind_of(failure: &Failure) -> Failed {
    match &*failure.code {
        code if code == Code::Compacted.as_str() => Failed::Compacted,
        code if code == Code::Future.as_str() => Failed::Future,
        _ => Failed::Other,
    }
}

/// What is to be published, under one key.
struct Batch {
    publish: Publish,
    specs: Vec<Option<Spec>>,
}

impl Batch {
    /// Up to three names, some of them deleted; bodies tell who made them, and every other has a
    /// length within `long`.
    fn new(number: u64, long: Option<Range<usize>>, rng: &mut StdRng) -> Self {
        let count = rng.random_range(1..=3);
        let names: Vec<_> = NAMES.sample(rng, count).collect();
        let expects_none = rng.random_ratio(1, 10);
        let mut specs = Vec::new();
        let mut changes = Vec::new();
        for name in names {
            let is_deleted = rng.random_ratio(1, 8);
            let spec = (!is_deleted).then(|| {
                let mut body = format!("{name}: {number}\n");
                if let Some(long) = long.clone().filter(|_| rng.random()) {
                    let len = rng.random_range(long);
                    body += "#";
                    body.extend(iter::repeat_n('.', len.saturating_sub(body.len())));
                }
                Spec::new(body.into())
            });
            changes.push(PublishName {
                name: name.parse().expect("a name"),
                hash: spec.as_ref().map(Spec::hash),
                len: spec.as_ref().map_or(0, Spec::len),
                expect: expects_none.then_some(Revision::ZERO),
            });
            specs.push(spec);
        }
        let key: IdempotencyKey = u128::from(number).to_be_bytes();
        let publish = Publish {
            key: Some(key),
            note: String::new(),
            changes,
        };
        Self { publish, specs }
    }
}
