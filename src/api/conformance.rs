//! What every [`Api`] must do.
//!
//! [`check`] runs one story against an empty, writable node and asserts each answer. It also
//! returns all of them as text, so that two ways to the same node can be compared: nothing may be
//! lost in translation.

use std::time::Duration;

use bytes::Bytes;

use super::Api;
use crate::answer::{Answer, Failure, Freshness, Mode, Query, RunToken, Target};
use crate::catalog::{CatalogId, Revision};
use crate::proto::limit::DEFAULT_DEADLINE;
use crate::proto::wire::{GetLog, List, Listing, Log, Publish, PublishName, PublishedRev, Waited};
use crate::spec::{Spec, SpecHash, SpecName, Syntax};

const OLD: &[u8] = b"steps: [old]\n";
const NEW: &[u8] = b"steps: [new]\n";

/// Plays the whole story. Every answer is in the result, in order.
pub(crate) async fn check(api: &dyn Api) -> Vec<String> {
    let mut seen = Vec::new();
    check_bodies(api, &mut seen).await;
    check_publishes(api, &mut seen).await;
    check_keys(api, &mut seen).await;
    check_reads(api, &mut seen).await;
    check_lists(api, &mut seen).await;
    check_log(api, &mut seen).await;
    check_runs(api, &mut seen).await;
    seen
}

async fn check_bodies(api: &dyn Api, seen: &mut Vec<String>) {
    let (old, new) = (body(OLD), body(NEW));
    let both = vec![old.hash(), new.hash()];
    let lacks = note(seen, api.missing(both.clone()).await);
    assert_eq!(lacks.as_ref(), Ok(&both), "nothing is there yet");

    let broken = api.put_body(body(b"steps: [\n"), Syntax::Yaml).await;
    assert_eq!(code(&broken), "invalid", "broken YAML");
    assert_eq!(
        api.put_body(body(b"steps: [\n"), Syntax::AnyText).await,
        Ok(())
    );
    assert_eq!(api.put_body(old.clone(), Syntax::Yaml).await, Ok(()));
    let lacks = note(seen, api.missing(both).await);
    assert_eq!(lacks, Ok(vec![new.hash()]), "one has come");

    let early = note(seen, api.publish(one("etl/a", Some(&new), None)).await);
    assert_eq!(code(&early), "missing-body");
    assert_eq!(api.put_body(new, Syntax::Yaml).await, Ok(()));
}

async fn check_publishes(api: &dyn Api, seen: &mut Vec<String>) {
    let old = body(OLD);
    let first = note(seen, api.publish(one("etl/a", Some(&old), Some(0))).await).expect("new");
    assert_eq!((first.rev, first.changed), (Revision::new(1), 1));
    let again = note(seen, api.publish(one("etl/a", Some(&old), None)).await).expect("equal");
    assert_eq!(
        (again.rev, again.changed),
        (Revision::new(1), 0),
        "no change, no revision"
    );

    let lost = note(seen, api.publish(one("etl/a", None, Some(0))).await);
    assert_eq!(code(&lost), "expect-failed");
    let lost = lost.expect_err("lost");
    assert_eq!(
        (lost.rev, lost.name),
        (Some(Revision::new(1)), Some(name("etl/a")))
    );

    let mut twice = one("etl/b", Some(&old), None);
    twice.changes.push(twice.changes[0].clone());
    assert_eq!(code(&note(seen, api.publish(twice).await)), "invalid");
    let nothing = Publish {
        key: None,
        note: String::new(),
        changes: Vec::new(),
    };
    assert_eq!(code(&note(seen, api.publish(nothing).await)), "invalid");
}

async fn check_keys(api: &dyn Api, seen: &mut Vec<String>) {
    let mut keyed = one("etl/a", Some(&body(NEW)), Some(1));
    keyed.key = Some([7; 16]);
    keyed.note = "second, with a \"quote\", a\nbreak & an ä".into();
    // How long it waited is no part of what it is.
    let plain = |answer: Result<PublishedRev, Failure>| {
        answer.map(|answer| PublishedRev {
            waited: Waited::default(),
            ..answer
        })
    };
    let once = note(seen, plain(api.publish(keyed.clone()).await)).expect("new");
    assert_eq!(once.rev, Revision::new(2));
    let repeated = note(seen, plain(api.publish(keyed.clone()).await)).expect("repeated");
    assert_eq!(repeated, once, "the same key and content is one publish");
    keyed.changes[0].name = name("etl/b");
    assert_eq!(code(&note(seen, api.publish(keyed).await)), "key-reused");
}

async fn check_reads(api: &dyn Api, seen: &mut Vec<String>) {
    let now = note(seen, api.get(strict("etl/a")).await).expect("present");
    assert_eq!(bytes_of(&now), Some(NEW));
    assert_eq!(now.proof.record_rev, Some(Revision::new(2)));
    assert_eq!(
        now.proof.snapshot.map(|snapshot| snapshot.rev),
        Some(Revision::new(2))
    );
    assert_eq!(now.proof.mode, Mode::Asked);

    let configured = api.get_as_configured(name("etl/a"), DEFAULT_DEADLINE);
    let (same, freshness) = note(seen, configured.await).expect("present");
    assert_eq!(
        (bytes_of(&same), freshness),
        (Some(NEW), Freshness::Strict),
        "nothing is configured"
    );

    let before = note(seen, api.get(at("etl/a", 1)).await).expect("retained");
    assert_eq!(
        (bytes_of(&before), before.proof.mode),
        (Some(OLD), Mode::At)
    );
    let future = note(seen, api.get(at("etl/a", 99)).await);
    assert_eq!(code(&future), "future-revision");
    assert_eq!(future.expect_err("future").rev, Some(Revision::new(2)));

    let never = note(seen, api.get(strict("etl/never")).await).expect("an answer");
    assert_eq!((never.spec, never.proof.record_rev), (None, None));
    assert_eq!(
        never.proof.snapshot.map(|snapshot| snapshot.rev),
        Some(Revision::new(2))
    );

    let hash = body(OLD).hash();
    let pinned = note(seen, api.get(Query::strict(Target::Hash(hash))).await).expect("stored");
    assert_eq!(
        (bytes_of(&pinned), pinned.proof.mode),
        (Some(OLD), Mode::Pinned)
    );
    assert_eq!(pinned.proof.snapshot, None);
    let unknown = Target::Hash(SpecHash::of(b"never stored"));
    assert!(note(seen, api.get(Query::strict(unknown)).await).is_err());

    note(seen, api.publish(one("etl/a", None, Some(2))).await).expect("deleted");
    let gone = note(seen, api.get(strict("etl/a")).await).expect("an answer");
    assert_eq!(
        (gone.spec, gone.proof.record_rev),
        (None, Some(Revision::new(3)))
    );
    assert!(note(seen, api.status().await).expect("status").is_object());
}

async fn check_lists(api: &dyn Api, seen: &mut Vec<String>) {
    for path in ["etl/b", "etl/c", "other"] {
        note(seen, api.publish(one(path, Some(&body(OLD)), None)).await).expect("new");
    }
    let etl = List {
        at: None,
        prefix: "etl/".into(),
        after: None,
        deleted: false,
        limit: 10,
    };
    let all = note(seen, api.list(etl.clone()).await).expect("listed");
    assert_eq!((names(&all), all.more), (vec!["etl/b", "etl/c"], false));
    assert_eq!(all.rev, Revision::new(6));

    let mut some = etl.clone();
    (some.deleted, some.limit) = (true, 2);
    let first = note(seen, api.list(some.clone()).await).expect("listed");
    assert_eq!((names(&first), first.more), (vec!["etl/a", "etl/b"], true));
    assert_eq!((first.records[0].1.hash, first.records[0].1.len), (None, 0));
    some.after = Some(name("etl/b"));
    let rest = note(seen, api.list(some).await).expect("listed");
    assert_eq!((names(&rest), rest.more), (vec!["etl/c"], false));

    let mut then = etl;
    then.at = Some(Revision::new(2));
    let then = note(seen, api.list(then).await).expect("retained");
    assert_eq!((names(&then), then.rev), (vec!["etl/a"], Revision::new(2)));
}

async fn check_log(api: &dyn Api, seen: &mut Vec<String>) {
    let of_a = GetLog {
        name: Some(name("etl/a")),
        before: None,
        limit: 2,
    };
    let log = note(seen, api.log(of_a.clone()).await).expect("log");
    assert_eq!((revs(&log), log.more), (vec![3, 2], true));
    assert_eq!(
        log.entries[0].version.map(|version| version.hash),
        Some(None)
    );
    let hash = log.entries[1].version.and_then(|version| version.hash);
    assert_eq!(hash, Some(body(NEW).hash()));
    assert_eq!(
        log.entries[1].note,
        "second, with a \"quote\", a\nbreak & an ä"
    );

    let before = Some(Revision::new(2));
    let older = note(seen, api.log(GetLog { before, ..of_a }).await).expect("log");
    assert_eq!((revs(&older), older.more), (vec![1], false));
    let all = GetLog {
        name: None,
        before: None,
        limit: 100,
    };
    let all = note(seen, api.log(all).await).expect("log");
    assert_eq!(revs(&all), [6, 5, 4, 3, 2, 1]);
    assert!(all.entries.iter().all(|entry| entry.version.is_none()));
}

/// A run takes a token, keeps its revision and reads at it; no other history will do.
async fn check_runs(api: &dyn Api, seen: &mut Vec<String>) {
    let token = note(seen, api.run_token().await).expect("a token");
    assert_eq!(token.rev, Revision::new(6));
    let reading = |freshness| Query {
        freshness,
        ..strict("other")
    };
    let read = api
        .get(reading(Freshness::Run(token)))
        .await
        .expect("there");
    assert_eq!((bytes_of(&read), read.proof.mode), (Some(OLD), Mode::At));
    let read = api.get(reading(Freshness::AtLeast(token))).await;
    assert_eq!(bytes_of(&read.expect("there")), Some(OLD));

    let next = RunToken {
        rev: token.rev.next(),
        ..token
    };
    let early = note(seen, api.get(reading(Freshness::AtLeast(next))).await);
    assert_eq!(code(&early), "future-revision");
    let other = RunToken {
        catalog: CatalogId::from_bytes([0xee; 16]),
        ..token
    };
    let later = RunToken {
        epoch: token.epoch.next(),
        ..token
    };
    for (foreign, expected) in [(other, "wrong-catalog"), (later, "future-revision")] {
        let read = api.get(reading(Freshness::Run(foreign))).await;
        assert_eq!(code(&read), expected);
    }
    check_pins(api, token, other).await;
}

async fn check_pins(api: &dyn Api, token: RunToken, other: RunToken) {
    let hour = Duration::from_secs(3_600);
    assert_eq!(code(&api.pin(token, Duration::ZERO).await), "invalid");
    let long = crate::proto::limit::MAX_PIN + Duration::from_secs(1);
    assert_eq!(code(&api.pin(token, long).await), "invalid");
    assert_eq!(code(&api.pin(other, hour).await), "wrong-catalog");

    let pinned = api.pin(token, hour).await.expect("pinned");
    assert_eq!(pinned.rev, token.rev);
    let pins = api.pins().await.expect("listed").pins;
    assert_eq!(pins, std::slice::from_ref(&pinned));
    assert_eq!(api.unpin(pinned.id).await, Ok(pinned.clone()));
    assert_eq!(code(&api.unpin(pinned.id).await), "not-found");
    assert!(api.pins().await.expect("listed").pins.is_empty());
}

fn note<T: std::fmt::Debug>(seen: &mut Vec<String>, got: T) -> T {
    seen.push(format!("{got:?}"));
    got
}

fn code<T: std::fmt::Debug>(got: &Result<T, Failure>) -> &str {
    &got.as_ref().expect_err("a failure").code
}

fn bytes_of(answer: &Answer) -> Option<&[u8]> {
    answer.spec.as_ref().map(|spec| &spec.bytes()[..])
}

fn names(listing: &Listing) -> Vec<&str> {
    listing
        .records
        .iter()
        .map(|(name, _)| name.as_str())
        .collect()
}

fn revs(log: &Log) -> Vec<u64> {
    log.entries.iter().map(|entry| entry.rev.get()).collect()
}

pub(crate) fn name(text: &str) -> SpecName {
    text.parse().expect("a name")
}

pub(crate) fn body(bytes: &'static [u8]) -> Spec {
    Spec::new(Bytes::from_static(bytes))
}

pub(crate) fn strict(text: &str) -> Query {
    Query::strict(Target::Name(name(text)))
}

fn at(text: &str, rev: u64) -> Query {
    Query {
        freshness: Freshness::At(Revision::new(rev)),
        ..strict(text)
    }
}

/// One change of one name.
pub(crate) fn one(text: &str, spec: Option<&Spec>, expect: Option<u64>) -> Publish {
    Publish {
        key: None,
        note: String::new(),
        changes: vec![PublishName {
            name: name(text),
            hash: spec.map(Spec::hash),
            len: spec.map_or(0, Spec::len),
            expect: expect.map(Revision::new),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::site::Site;

    #[tokio::test]
    async fn the_coordinator_in_its_own_process_keeps_the_contract() {
        let site = Site::new();
        let coordinator = site.coordinator(site.store("c"));
        check(coordinator.api()).await;
    }

    #[tokio::test]
    async fn a_worker_that_passes_on_what_it_cannot_answer_keeps_the_contract() {
        let site = Site::new();
        let coordinator = site.coordinator(site.store("c"));
        let worker = site.publisher(&[coordinator.local_addr()]);
        check(worker.api()).await;
    }

    #[tokio::test]
    async fn a_client_without_a_daemon_keeps_the_contract() {
        let site = Site::new();
        let coordinator = site.coordinator(site.store("c"));
        check(&site.client(coordinator.local_addr())).await;
    }
}
