//! A small [`Api`] to try the suite, and what carries it elsewhere, on.

#![allow(clippy::result_large_err, reason = "it mirrors what the trait returns")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use super::{Api, Reply, pin_ms};
use crate::answer::{
    Answer, Failure, Freshness, GetError, Hop, HopFailure, Mode, Proof, Query, RunToken, Snapshot,
    Target,
};
use crate::catalog::{CatalogId, Epoch, IdempotencyKey, Revision};
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::{
    GetLog, List, Listing, Log, LogEntry, Pinned, Pins, Publish, PublishName, PublishedRev, Waited,
    WireVersion,
};
use crate::spec::{Spec, SpecHash, SpecName, Syntax};

/// A whole node in a few maps: always fresh, never durable.
pub(crate) struct Shelf(Mutex<State>);

#[derive(Default)]
struct State {
    bodies: BTreeMap<SpecHash, Bytes>,
    revisions: Vec<Published>,
    keys: BTreeMap<IdempotencyKey, (Publish, PublishedRev)>,
    faults: BTreeMap<SpecName, GetError>,
    pins: Vec<Pinned>,
    pinned: u64,
    leased: bool,
    freshness: Freshness,
}

struct Published {
    note: String,
    changes: BTreeMap<SpecName, WireVersion>,
}

const CATALOG: CatalogId = CatalogId::from_bytes([0xca; 16]);
const EPOCH: Epoch = Epoch::new(4);

impl Shelf {
    /// An empty catalog.
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Every read of `name` fails with `error` from now on.
    pub(crate) fn fail(&self, name: SpecName, error: GetError) {
        self.state().faults.insert(name, error);
    }

    /// Strict reads need not ask from now on.
    pub(crate) fn lease(&self) {
        self.state().leased = true;
    }

    /// Reads that say nothing of freshness get this from now on.
    pub(crate) fn configure(&self, freshness: Freshness) {
        self.state().freshness = freshness;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics in here")
    }

    fn read(&self, query: Query) -> Result<Answer, Failure> {
        let state = self.state();
        let (name, freshness) = match (query.target, query.freshness) {
            (Target::Hash(hash), _) => return state.pinned(hash),
            (Target::Name(name), freshness) => (name, freshness),
        };
        let at = freshness.revision();
        let mode = match freshness {
            Freshness::Strict if state.leased => Mode::Lease,
            Freshness::Strict | Freshness::Verified => Mode::Asked,
            Freshness::At(_) | Freshness::Run(_) => Mode::At,
            Freshness::AtLeast(_) => Mode::AtLeast,
            Freshness::Bounded(_) => Mode::Bounded,
        };
        match freshness {
            Freshness::Run(token) => token.check(CATALOG, EPOCH)?,
            Freshness::AtLeast(token) => token.check_reached(CATALOG, EPOCH, state.newest())?,
            _ => {}
        }
        if let Some(error) = state.faults.get(&name) {
            return Err(error.clone().into());
        }
        let rev = state.readable(at)?;
        let version = state.records(rev).remove(&name);
        let bytes = version.and_then(|version| state.bodies.get(&version.hash?));
        let snapshot = Snapshot {
            catalog: CATALOG,
            epoch: EPOCH,
            rev,
        };
        Ok(Answer {
            spec: bytes.cloned().map(Spec::new),
            proof: Proof {
                mode,
                snapshot: Some(snapshot),
                record_rev: version.map(|version| version.rev),
                source: Hop::Coordinator("[::1]:7457".into()),
                age_us: 17,
            },
            failed: vec![
                hop(Hop::Disk, "not here"),
                hop(Hop::Peer("w2:7457".into()), "said \"nö\":\n\tno"),
                hop(
                    Hop::Relayed {
                        addr: "10.0.0.1:7457".into(),
                        via: "edge-3".into(),
                    },
                    "silent",
                ),
            ],
            took: Duration::from_micros(1_234),
        })
    }

    fn change(&self, publish: Publish) -> Result<PublishedRev, Failure> {
        let mut state = self.state();
        if let Some(key) = publish.key
            && let Some((before, answer)) = state.keys.get(&key)
        {
            let reused = || refuse(Code::KeyReused, "the key came with other content");
            return if *before == publish {
                Ok(answer.clone())
            } else {
                Err(reused())
            };
        }
        let newest = state.newest();
        let records = state.records(newest);
        let mut changes = BTreeMap::new();
        for change in &publish.changes {
            let current = records.get(&change.name);
            state.allow(change, current)?;
            let version = WireVersion {
                rev: newest.next(),
                hash: change.hash,
                len: change.len,
            };
            if changes.insert(change.name.clone(), version).is_some() {
                return Err(refuse(Code::Invalid, "a name twice"));
            }
        }
        if changes.is_empty() {
            return Err(refuse(Code::Invalid, "nothing to do"));
        }
        changes.retain(|name, new| records.get(name).and_then(|old| old.hash) != new.hash);
        let changed = u32::try_from(changes.len()).expect("few");
        if changed > 0 {
            let note = publish.note.clone();
            state.revisions.push(Published { note, changes });
        }
        let answer = PublishedRev {
            catalog: CATALOG,
            epoch: EPOCH,
            rev: state.newest(),
            changed,
            waited: Waited::default(),
        };
        if let Some(key) = publish.key {
            state.keys.insert(key, (publish, answer.clone()));
        }
        Ok(answer)
    }

    fn page(&self, list: List) -> Result<Listing, Failure> {
        let state = self.state();
        let rev = state.readable(list.at)?;
        let mut records = state.records(rev);
        records.retain(|name, version| {
            name.as_str().starts_with(&list.prefix)
                && list.after.as_ref().is_none_or(|after| name > after)
                && (list.deleted || version.hash.is_some())
        });
        let limit = list.limit as usize;
        Ok(Listing {
            catalog: CATALOG,
            epoch: EPOCH,
            rev,
            more: records.len() > limit,
            records: records.into_iter().take(limit).collect(),
        })
    }

    fn history(&self, get: &GetLog) -> Log {
        let state = self.state();
        let numbered = state.revisions.iter().zip(1_u64..);
        let mut entries: Vec<_> = numbered
            .filter(|(_, rev)| get.before.is_none_or(|before| *rev < before.get()))
            .filter_map(|(published, rev)| {
                let version = get.name.as_ref().map(|name| published.changes.get(name));
                let version = match version {
                    None => None,
                    Some(found) => Some(*found?),
                };
                Some(LogEntry {
                    rev: Revision::new(rev),
                    by: "spiffe://test/publisher/p".into(),
                    at_unix_ms: 1_700_000_000_000 + rev,
                    note: published.note.clone(),
                    changed: u32::try_from(published.changes.len()).expect("few"),
                    version,
                })
            })
            .collect();
        entries.reverse();
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

impl State {
    fn newest(&self) -> Revision {
        Revision::new(self.revisions.len() as u64)
    }

    fn readable(&self, at: Option<Revision>) -> Result<Revision, Failure> {
        let newest = self.newest();
        match at {
            Some(at) if at > newest => Err(GetError::Future { at, newest }.into()),
            Some(at) => Ok(at),
            None => Ok(newest),
        }
    }

    fn records(&self, rev: Revision) -> BTreeMap<SpecName, WireVersion> {
        let until = usize::try_from(rev.get()).expect("few");
        let changes = self.revisions.iter().take(until).map(|one| &one.changes);
        changes
            .flatten()
            .map(|(name, version)| (name.clone(), *version))
            .collect()
    }

    fn allow(&self, change: &PublishName, current: Option<&WireVersion>) -> Result<(), Failure> {
        if let Some(hash) = change.hash
            && !self.bodies.contains_key(&hash)
        {
            return Err(refuse(Code::MissingBody, "no such body"));
        }
        let present = current.filter(|version| version.hash.is_some());
        let now = present.map_or(Revision::ZERO, |version| version.rev);
        match change.expect {
            Some(expected) if expected != now => Err(Refusal::new(Code::Expect, "it changed")
                .at(now)
                .about(change.name.clone())
                .into()),
            _ => Ok(()),
        }
    }

    fn pin(&mut self, wanted: RunToken, keep: Duration) -> Result<Pinned, Failure> {
        wanted.check(CATALOG, EPOCH)?;
        let until_unix_ms = pin_ms(keep)?;
        self.readable(Some(wanted.rev))?;
        self.pinned += 1;
        let pin = Pinned {
            id: self.pinned,
            rev: wanted.rev,
            until_unix_ms,
            by: "local".into(),
        };
        self.pins.push(pin.clone());
        Ok(pin)
    }

    fn pinned(&self, hash: SpecHash) -> Result<Answer, Failure> {
        let Some(bytes) = self.bodies.get(&hash) else {
            return Err(GetError::NoBytes {
                hash,
                hops: vec![hop(Hop::Disk, "not here")],
            }
            .into());
        };
        Ok(Answer {
            spec: Some(Spec::new(bytes.clone())),
            proof: Proof {
                mode: Mode::Pinned,
                snapshot: None,
                record_rev: None,
                source: Hop::Disk,
                age_us: 0,
            },
            failed: Vec::new(),
            took: Duration::from_micros(5),
        })
    }
}

fn token(rev: Revision) -> RunToken {
    RunToken {
        catalog: CATALOG,
        epoch: EPOCH,
        rev,
    }
}

fn hop(hop: Hop, reason: &str) -> HopFailure {
    let reason = reason.into();
    HopFailure { hop, reason }
}

fn refuse(code: Code, message: &str) -> Failure {
    Refusal::new(code, message).into()
}

fn soon<'a, T: Send + 'a>(got: Result<T, Failure>) -> Reply<'a, T> {
    Box::pin(async move { got })
}

impl Api for Shelf {
    fn get(&self, query: Query) -> Reply<'_, Answer> {
        soon(self.read(query))
    }

    fn get_as_configured(
        &self,
        name: SpecName,
        deadline: Duration,
    ) -> Reply<'_, (Answer, Freshness)> {
        let freshness = self.state().freshness;
        let query = Query {
            target: Target::Name(name),
            freshness,
            deadline,
        };
        Box::pin(async move { Ok((self.get(query).await?, freshness)) })
    }

    fn list(&self, list: List) -> Reply<'_, Listing> {
        soon(self.page(list))
    }

    fn log(&self, get: GetLog) -> Reply<'_, Log> {
        soon(Ok(self.history(&get)))
    }

    fn status(&self) -> Reply<'_, serde_json::Value> {
        soon(Ok(serde_json::json!({ "role": "shelf", "names": 1 })))
    }

    fn run_token(&self) -> Reply<'_, RunToken> {
        let rev = self.state().newest();
        soon(Ok(token(rev)))
    }

    fn pin(&self, token: RunToken, keep: Duration) -> Reply<'_, Pinned> {
        soon(self.state().pin(token, keep))
    }

    fn unpin(&self, id: u64) -> Reply<'_, Pinned> {
        let pins = &mut self.state().pins;
        let found = pins.iter().position(|pin| pin.id == id);
        soon(match found {
            Some(index) => Ok(pins.remove(index)),
            None => Err(refuse(Code::NotFound, "no such pin")),
        })
    }

    fn pins(&self) -> Reply<'_, Pins> {
        let pins = self.state().pins.clone();
        soon(Ok(Pins { pins }))
    }

    fn missing(&self, mut hashes: Vec<SpecHash>) -> Reply<'_, Vec<SpecHash>> {
        let state = self.state();
        hashes.retain(|hash| !state.bodies.contains_key(hash));
        soon(Ok(hashes))
    }

    fn put_body(&self, spec: Spec, syntax: Syntax) -> Reply<'_, ()> {
        if let Err(error) = syntax.check(spec.bytes(), 1 << 20) {
            return soon(Err(refuse(Code::Invalid, &error.to_string())));
        }
        self.state().bodies.insert(spec.hash(), spec.into_bytes());
        soon(Ok(()))
    }

    fn publish(&self, publish: Publish) -> Reply<'_, PublishedRev> {
        soon(self.change(publish))
    }
}

#[tokio::test]
async fn the_shelf_keeps_the_contract() {
    super::conformance::check(&Shelf::new()).await;
}
