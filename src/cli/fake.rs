//! A catalog in memory, to run commands against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use larder::answer::{
    Answer, Failure, Freshness, Hop, Mode, Proof, Query, RunToken, Snapshot, Target,
};
use larder::api::{Api, Reply};
use larder::catalog::{CatalogId, Epoch, Revision};
use larder::proto::wire::{
    GetLog, List, Listing, Log, LogEntry, Pinned, Pins, Publish, PublishedRev, WireVersion,
};
use larder::spec::{Spec, SpecHash, SpecName, Syntax};

use super::screen::Screen;

const CATALOG: CatalogId = CatalogId::from_bytes([7; 16]);
const EPOCH: Epoch = Epoch::new(1);

/// The fake coordinator.
#[derive(Default)]
pub(crate) struct Fake(Mutex<State>);

#[derive(Default)]
struct State {
    bodies: BTreeMap<SpecHash, Spec>,
    /// One publish per revision, from 1.
    history: Vec<Publish>,
    /// Bodies sent so far, in order.
    received: Vec<SpecHash>,
    /// How often the bodies get lost right before a publish.
    forgets: u32,
    page: Option<usize>,
    pins: Vec<Pinned>,
    /// What `status` says, instead of the revision.
    status: Option<serde_json::Value>,
    /// How long a publish waits.
    publish_takes: Duration,
    /// What a read gets that says nothing of freshness.
    freshness: Freshness,
}

impl Fake {
    /// A catalog at revision 1 with these definitions.
    pub(crate) fn with(definitions: &[(&str, &str)]) -> Self {
        let fake = Self::default();
        fake.put(definitions);
        fake
    }

    /// One more revision.
    pub(crate) fn put(&self, definitions: &[(&str, &str)]) {
        let mut state = self.0.lock().expect("no test panics inside");
        let mut changes = Vec::new();
        for (name, body) in definitions {
            let spec = Spec::new(Bytes::copy_from_slice(body.as_bytes()));
            changes.push(change(name, Some(&spec)));
            state.bodies.insert(spec.hash(), spec);
        }
        state.history.push(publish(changes));
    }

    /// One more revision, in which a name goes.
    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.0.lock().expect("no test panics inside");
        state.history.push(publish(vec![change(name, None)]));
    }

    /// Loses every body `times` times, each right before a publish.
    pub(crate) fn forget_bodies(&self, times: u32) {
        self.0.lock().expect("no test panics inside").forgets = times;
    }

    /// Answers lists in pages of this length.
    pub(crate) fn page_by(&self, len: usize) {
        self.0.lock().expect("no test panics inside").page = Some(len);
    }

    /// Answers `status` with this.
    pub(crate) fn say(&self, status: serde_json::Value) {
        self.0.lock().expect("no test panics inside").status = Some(status);
    }

    /// Reads that say nothing of freshness get this.
    pub(crate) fn configure(&self, freshness: Freshness) {
        self.0.lock().expect("no test panics inside").freshness = freshness;
    }

    /// Lets every publish wait.
    pub(crate) fn publish_takes(&self, time: Duration) {
        self.0.lock().expect("no test panics inside").publish_takes = time;
    }

    /// Every publish so far.
    pub(crate) fn history(&self) -> Vec<Publish> {
        self.0
            .lock()
            .expect("no test panics inside")
            .history
            .clone()
    }

    /// Hashes of the bodies that were sent.
    pub(crate) fn received(&self) -> Vec<SpecHash> {
        self.0
            .lock()
            .expect("no test panics inside")
            .received
            .clone()
    }

    fn with_state<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, Failure>,
    ) -> Reply<'_, T> {
        let result = act(&mut self.0.lock().expect("no test panics inside"));
        Box::pin(async move { result })
    }
}

fn publish(changes: Vec<larder::proto::wire::PublishName>) -> Publish {
    Publish {
        key: None,
        note: String::new(),
        changes,
    }
}

fn change(name: &str, spec: Option<&Spec>) -> larder::proto::wire::PublishName {
    larder::proto::wire::PublishName {
        name: name.parse().expect("a good name"),
        hash: spec.map(Spec::hash),
        len: spec.map_or(0, Spec::len),
        expect: None,
    }
}

impl State {
    fn rev(&self) -> Revision {
        Revision::new(self.history.len() as u64)
    }

    fn records(&self, at: Revision) -> BTreeMap<SpecName, WireVersion> {
        let mut records = BTreeMap::new();
        for (index, publish) in self.history.iter().enumerate() {
            let rev = Revision::new(index as u64 + 1);
            for change in publish.changes.iter().filter(|_| rev <= at) {
                let version = WireVersion {
                    rev,
                    hash: change.hash,
                    len: change.len,
                };
                records.insert(change.name.clone(), version);
            }
        }
        records
    }

    fn publish(&mut self, publish: Publish) -> Result<PublishedRev, Failure> {
        if self.forgets > 0 {
            self.forgets -= 1;
            self.bodies.clear();
        }
        let records = self.records(self.rev());
        let mut changed = 0;
        for change in &publish.changes {
            let now = records.get(&change.name);
            let rev = now.map_or(Revision::ZERO, |version| version.rev);
            if change.expect.is_some_and(|expect| expect != rev) {
                let message = format!("`{}` is at revision {rev}", change.name);
                return Err(Failure::new("expect-failed", message));
            }
            if change
                .hash
                .is_some_and(|hash| !self.bodies.contains_key(&hash))
            {
                return Err(Failure::new("missing-body", "a body is missing"));
            }
            changed += u32::from(now.and_then(|version| version.hash) != change.hash);
        }
        if changed > 0 {
            self.history.push(publish);
        }
        Ok(PublishedRev {
            catalog: CATALOG,
            epoch: EPOCH,
            rev: self.rev(),
            changed,
            waited: larder::proto::wire::Waited::default(),
        })
    }

    fn get(&self, query: &Query) -> Answer {
        let at = query.freshness.revision().unwrap_or_else(|| self.rev());
        let version = match &query.target {
            Target::Name(name) => self.records(at).get(name).copied(),
            Target::Hash(_) => None,
        };
        let hash = match query.target {
            Target::Name(_) => version.and_then(|version| version.hash),
            Target::Hash(hash) => Some(hash),
        };
        let proof = Proof {
            mode: match query.freshness {
                Freshness::Bounded(_) => Mode::Bounded,
                _ => Mode::Asked,
            },
            snapshot: Some(Snapshot {
                catalog: CATALOG,
                epoch: EPOCH,
                rev: at,
            }),
            record_rev: version.map(|version| version.rev),
            source: Hop::Disk,
            age_us: 5,
        };
        Answer {
            spec: hash.and_then(|hash| self.bodies.get(&hash).cloned()),
            proof,
            failed: Vec::new(),
            took: Duration::from_micros(9),
        }
    }

    fn list(&self, list: &List) -> Listing {
        let rev = list.at.unwrap_or_else(|| self.rev());
        let wanted = |(name, version): &(SpecName, WireVersion)| {
            name.as_str().starts_with(&list.prefix)
                && list.after.as_ref().is_none_or(|after| name > after)
                && (list.deleted || version.hash.is_some())
        };
        let mut records: Vec<_> = self.records(rev).into_iter().filter(wanted).collect();
        let limit = (list.limit as usize).min(self.page.unwrap_or(usize::MAX));
        let more = records.len() > limit;
        records.truncate(limit);
        Listing {
            catalog: CATALOG,
            epoch: EPOCH,
            rev,
            records,
            more,
        }
    }

    fn log(&self, get: &GetLog) -> Log {
        let mut entries = Vec::new();
        for (index, publish) in self.history.iter().enumerate().rev() {
            let rev = Revision::new(index as u64 + 1);
            let change = publish
                .changes
                .iter()
                .find(|c| Some(&c.name) == get.name.as_ref());
            let skipped = get.before.is_some_and(|before| rev >= before);
            if skipped || (get.name.is_some() && change.is_none()) {
                continue;
            }
            entries.push(LogEntry {
                rev,
                by: "spiffe://c/publisher/p1".into(),
                at_unix_ms: 1_795_492_800_000 + index as u64 * 1_000,
                note: publish.note.clone(),
                changed: publish.changes.len() as u32,
                version: change.map(|change| WireVersion {
                    rev,
                    hash: change.hash,
                    len: change.len,
                }),
            });
        }
        let more = entries.len() > get.limit as usize;
        entries.truncate(get.limit as usize);
        Log {
            catalog: CATALOG,
            epoch: EPOCH,
            oldest: Revision::new(1),
            entries,
            more,
        }
    }
}

impl Api for Fake {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        self.with_state(|state| {
            if let Freshness::Run(token) = query.freshness {
                token.check(CATALOG, EPOCH)?;
            }
            Ok(state.get(&query))
        })
    }

    fn get_as_configured(
        &self,
        name: SpecName,
        deadline: Duration,
    ) -> Reply<'_, (Answer, Freshness)> {
        self.with_state(|state| {
            let freshness = state.freshness;
            let query = Query {
                target: Target::Name(name),
                freshness,
                deadline,
            };
            Ok((state.get(&query), freshness))
        })
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        self.with_state(|state| Ok(state.list(&list)))
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        self.with_state(|state| Ok(state.log(&get)))
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        self.with_state(|state| {
            let rev = serde_json::json!({ "rev": state.rev() });
            Ok(state.status.clone().unwrap_or(rev))
        })
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        self.with_state(|state| {
            Ok(RunToken {
                catalog: CATALOG,
                epoch: EPOCH,
                rev: state.rev(),
            })
        })
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        self.with_state(|state| {
            token.check(CATALOG, EPOCH)?;
            let pin = Pinned {
                id: state.pins.len() as u64 + 1,
                rev: token.rev,
                until_unix_ms: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
                by: "local".into(),
            };
            state.pins.push(pin.clone());
            Ok(pin)
        })
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        self.with_state(|state| {
            let found = state.pins.iter().position(|pin| pin.id == id);
            let none = || Failure::new("not-found", format!("there is no pin {id}"));
            Ok(state.pins.remove(found.ok_or_else(none)?))
        })
    }

    fn pins(&self) -> Reply<'_, Pins> {
        self.with_state(|state| {
            let pins = state.pins.clone();
            Ok(Pins { pins })
        })
    }

    fn missing(&self, hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        self.with_state(|state| {
            let hashes: BTreeSet<_> = hashes.into_iter().collect();
            let lacks = |hash: &SpecHash| !state.bodies.contains_key(hash);
            Ok(hashes.into_iter().filter(lacks).collect())
        })
    }

    fn put_body(&self, spec: Spec, _syntax: Syntax) -> Reply<'_, ()> {
        self.with_state(|state| {
            state.received.push(spec.hash());
            state.bodies.insert(spec.hash(), spec);
            Ok(())
        })
    }

    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        let wait = self.0.lock().expect("no test panics inside").publish_takes;
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            self.with_state(|state| state.publish(publish)).await
        })
    }
}

/// Runs a command and returns what it wrote to stdout and to stderr.
pub(crate) fn run_on(
    json: bool,
    command: impl AsyncFnOnce(&mut Screen<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<(String, String)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut screen = Screen::new(&mut out, &mut err, json);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let result = runtime.block_on(command(&mut screen));
    drop(screen);
    result?;
    Ok((String::from_utf8(out)?, String::from_utf8(err)?))
}
