//! Rules that no honest run can show to be broken, each asked for directly.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::answer::{Query, Target};
use larder::catalog::{
    Catalog, CatalogId, Epoch, Head, HeadHash, HeadKey, HeadSigner, HeadVerifier, Revision,
    SignedHead,
};
use larder::proto::Time;
use larder::proto::replica::Replica;
use larder::proto::wire::{CatalogDiff, Delta, Grant, Marks, Renew, Resolved, Step};
use larder::proto::worker::{
    CallId, Config, Event, Input, Look, Output, Restored, Sight, SightCell, Worker, look,
};
use larder::spec::Spec;

/// A rule: its name, and what says whether it holds.
pub(crate) type Probe = (&'static str, fn() -> Result<(), String>);

pub(crate) const ALL: &[Probe] = &[
    (
        "a lease is compared with the time after it was loaded",
        clock_after_sight,
    ),
    (
        "a spec of another length is told as such",
        lengths_are_compared,
    ),
    (
        "another catalog's state is not remembered",
        foreign_state_is_forgotten,
    ),
    ("the newest state is remembered", newest_state_is_remembered),
    (
        "a head is of the catalog that it was signed for",
        heads_say_whose_they_are,
    ),
    (
        "a delta of another catalog is refused",
        foreign_delta_is_refused,
    ),
    ("two heads for one revision are a fork", forks_are_noticed),
    (
        "a worker that is carried carries nobody",
        carried_carries_nobody,
    ),
];

const OURS: CatalogId = CatalogId::from_bytes([1; 16]);
const OTHER: CatalogId = CatalogId::from_bytes([2; 16]);
const LEASE: Duration = Duration::from_millis(600);
const START: Time = Time::from_micros(1_000_000);

/// Every signature is good.
struct Anyone;

impl HeadSigner for Anyone {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

impl HeadVerifier for Anyone {
    fn verify(&self, _: &[u8], _: &[u8; 64]) -> bool {
        true
    }
}

/// A reader's view that takes its time: loading moves the clock on.
struct Slow<'a> {
    sight: RefCell<Arc<Sight>>,
    clock: &'a Cell<Time>,
    takes: Duration,
}

impl SightCell for Slow<'_> {
    fn load(&self) -> Arc<Sight> {
        self.clock.set(self.clock.get() + self.takes);
        Arc::clone(&self.sight.borrow())
    }

    fn store(&self, sight: Arc<Sight>) {
        *self.sight.borrow_mut() = sight;
    }
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    holds.then_some(()).ok_or_else(|| otherwise.to_owned())
}

fn head(rev: u64, prev: HeadHash) -> SignedHead {
    Head {
        catalog: OURS,
        epoch: Epoch::new(1),
        rev: Revision::new(rev),
        root: Catalog::empty().root(),
        prev,
    }
    .sign(&Anyone)
}

fn whole(head: &SignedHead) -> CatalogDiff {
    CatalogDiff {
        head: head.into(),
        buckets: Vec::new(),
        records: Vec::new(),
    }
}

fn delta(catalog: CatalogId, rev: u64, steps: Vec<Step>) -> Delta {
    Delta {
        catalog,
        epoch: Epoch::new(1),
        rev: Revision::new(rev),
        steps,
    }
}

/// A worker that has a lease on an empty catalog, and all that it put out meanwhile.
fn leased() -> Result<(Worker, Vec<Output>), String> {
    leased_as(Config::default())
}

/// The same with more of a configuration.
fn leased_as(more: Config) -> Result<(Worker, Vec<Output>), String> {
    let config = Config {
        coordinators: vec!["c".into()],
        lease: true,
        ..more
    };
    let mut worker = Worker::new(&config, Arc::new(Anyone), Restored::default());
    let mut all = worker.handle(Input::Wake, START);
    let (call, renew) = renewal(&all).ok_or("it does not renew")?;
    let granted = Event::Granted(Grant {
        sid: renew.sid,
        nonce: renew.nonce,
        catalog: OURS,
        epoch: Epoch::new(1),
        rev: Revision::ZERO,
        lease_us: LEASE.as_micros() as u64,
        watching: true,
        marks: Marks::default(),
        delta: delta(OURS, 0, Vec::new()),
    });
    all.extend(worker.handle(
        Input::Event {
            call,
            event: granted,
        },
        START,
    ));
    all.extend(worker.handle(Input::Wake, START));
    let asked = all.iter().find_map(|output| match output {
        Output::GetCatalog { call, .. } => Some(*call),
        _ => None,
    });
    let call = asked.ok_or("it does not ask for the catalog")?;
    let event = Event::Catalog(whole(&head(0, HeadHash::NONE)));
    all.extend(worker.handle(Input::Event { call, event }, START));
    Ok((worker, all))
}

fn renewal(outputs: &[Output]) -> Option<(CallId, Renew)> {
    outputs.iter().find_map(|output| match output {
        Output::Renew { call, request, .. } => Some((*call, request.clone())),
        _ => None,
    })
}

fn clock_after_sight() -> Result<(), String> {
    let (worker, _) = leased()?;
    let name = "n".parse().map_err(|error| format!("{error}"))?;
    let clock = Cell::new(START);
    let mut cell = Slow {
        sight: RefCell::new(Arc::new(worker.sight().clone())),
        clock: &clock,
        takes: Duration::ZERO,
    };
    let (_, _, quick) = look(&cell, &|| clock.get(), &name);
    ensure(matches!(quick, Look::Serve(..)), "a lease is of no use")?;
    cell.takes = LEASE;
    let (_, _, slow) = look(&cell, &|| clock.get(), &name);
    ensure(slow == Look::Ask, "a lease that had ended was used")
}

fn lengths_are_compared() -> Result<(), String> {
    let spec = Spec::new(Bytes::from_static(b"steps: []\n"));
    let longer = Spec::verify(spec.hash(), Some(11), spec.bytes().clone());
    ensure(longer.is_err(), "bytes of another length were taken")
}

fn foreign_state_is_forgotten() -> Result<(), String> {
    let (mut worker, _) = leased()?;
    let name = "n".parse().map_err(|error| format!("{error}"))?;
    let later = START + LEASE * 2;
    let reads = vec![(1, Query::strict(Target::Name(name)))];
    let asked = worker.handle(Input::Get { reads }, later);
    let call = asked.iter().find_map(|output| match output {
        Output::Resolve { call, .. } => Some(*call),
        _ => None,
    });
    let call = call.ok_or("it does not ask")?;
    let event = Event::Opening(Resolved {
        catalog: OTHER,
        epoch: Epoch::new(1),
        rev: Revision::new(9),
    });
    let outputs = worker.handle(Input::Event { call, event }, later);
    let remembers = outputs
        .iter()
        .any(|output| matches!(output, Output::Remember(_)));
    ensure(!remembers, "what was refused was kept")
}

fn newest_state_is_remembered() -> Result<(), String> {
    let (_, all) = leased()?;
    let remembers = all
        .iter()
        .any(|output| matches!(output, Output::Remember(mark) if mark.catalog == OURS));
    ensure(remembers, "the newest state was not kept")
}

/// One key may sign for two catalogs.
fn heads_say_whose_they_are() -> Result<(), String> {
    let key = HeadKey::from_bytes([1; 32]);
    let ours = head(1, HeadHash::NONE).claimed();
    let ours = ours.map_err(|error| error.to_string())?;
    let theirs = Head {
        catalog: OTHER,
        ..ours
    };
    let honest = theirs.sign(&key);
    ensure(honest.verify(&key.pinned()).is_ok(), "it is refused")?;
    let signature = &honest.as_bytes()[Head::LEN..];
    let forged = [&ours.to_bytes()[..], signature].concat();
    let forged = SignedHead::from_slice(&forged).map_err(|error| error.to_string())?;
    let believed = forged.verify(&key.pinned());
    ensure(believed.is_err(), "one of another catalog was believed")
}

fn foreign_delta_is_refused() -> Result<(), String> {
    let held = replica()?;
    let applied = held.apply(&delta(OTHER, 1, Vec::new()), &Anyone);
    ensure(applied.is_err(), "it was taken")
}

fn forks_are_noticed() -> Result<(), String> {
    let held = replica()?;
    let other = head(1, HeadHash::from_bytes([9; 32]));
    let step = Step {
        head: (&other).into(),
        changes: Vec::new(),
    };
    let applied = held.apply(&delta(OURS, 1, vec![step]), &Anyone);
    ensure(applied.is_err(), "the other head was passed over")
}

fn replica() -> Result<Replica, String> {
    let head = head(1, HeadHash::NONE);
    Replica::replace(None, whole(&head), &Anyone).map_err(|error| error.to_string())
}

#[test]
fn every_rule_holds() {
    for (name, probe) in ALL {
        if let Err(why) = probe() {
            panic!("{name}: {why}");
        }
    }
}

/// A path has one worker between its ends and no more.
fn carried_carries_nobody() -> Result<(), String> {
    let (mut worker, _) = leased_as(Config {
        peers: vec!["p".into()],
        relay: true,
        ..Config::default()
    })?;
    ensure(
        worker.direct(START) == Some(0),
        "it does not carry although it is answered",
    )?;
    for _ in 0..20 {
        let now = worker.next_wake().ok_or("it waits for nothing")?;
        let out = worker.handle(Input::Wake, now);
        if out
            .iter()
            .any(|output| matches!(output, Output::OpenRelay { .. }))
        {
            return ensure(
                worker.direct(now).is_none(),
                "it carries while it asks to be carried",
            );
        }
    }
    Err("it never asks to be carried".into())
}
