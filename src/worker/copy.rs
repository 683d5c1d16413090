//! How a worker's copy of the catalog stands on disk, in payloads of
//! [`store::replica`](crate::store):
//!
//! ```text
//! base     1 | signed head            the revision that the records show
//! records  2 | count u32 | records    some of the records at that revision
//! step     3 | signed head | count u32 | changes    the next revision
//! name     4 | text                                 one that this worker has read
//! ```
//!
//! Nothing of it is believed before it has been checked against its heads again.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::catalog::{Change, HeadVerifier, Record, Revision, SignedHead};
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::limit::MAX_USED;
use crate::proto::replica::Replica;
use crate::proto::wire::{Delta, Step, WireChange};
use crate::spec::SpecName;

const BASE: u8 = 1;
const RECORDS: u8 = 2;
const STEP: u8 = 3;
const NAME: u8 = 4;

/// Records in one payload: about 64 KiB.
const RECORDS_PER_PAYLOAD: usize = 1_024;

/// All payloads of `replica`, its history among them.
pub(super) fn whole(replica: &Replica) -> Vec<Vec<u8>> {
    let (head, records) = replica.base();
    let mut w = Writer::new();
    w.u8(BASE).raw(head.as_bytes());
    let mut payloads = vec![w.finish()];
    for chunk in records.chunks(RECORDS_PER_PAYLOAD) {
        let mut w = Writer::new();
        w.u8(RECORDS).u32(count(chunk.len()));
        chunk.iter().for_each(|record| record.encode(&mut w));
        payloads.push(w.finish());
    }
    payloads.extend(steps(replica, replica.records().oldest()));
    payloads
}

/// The payloads of the revisions after `after`.
pub(super) fn steps(replica: &Replica, after: Revision) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    let mut rev = after.next();
    while rev <= replica.rev() {
        let Some((head, changes)) = replica.line(rev) else {
            break;
        };
        let mut w = Writer::new();
        w.u8(STEP).raw(head.as_bytes()).u32(count(changes.len()));
        changes.iter().for_each(|change| change.encode(&mut w));
        payloads.push(w.finish());
        rev = rev.next();
    }
    payloads
}

/// The payload of a name that was read.
pub(super) fn name(name: &SpecName) -> Vec<u8> {
    let mut w = Writer::new();
    w.u8(NAME).text(name.as_str());
    w.finish()
}

/// The names among `payloads`, and the other payloads in their order.
pub(super) fn take_names(payloads: Vec<Bytes>) -> (BTreeSet<SpecName>, Vec<Bytes>) {
    let mut names = BTreeSet::new();
    let mut others = Vec::with_capacity(payloads.len());
    for payload in payloads {
        let mut r = Reader::new(&payload);
        match (r.u8(), r.name(), r.end()) {
            (Ok(NAME), Ok(name), Ok(())) if names.len() < MAX_USED => drop(names.insert(name)),
            (Ok(NAME), ..) => {}
            _ => others.push(payload),
        }
    }
    (names, others)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("lists are bounded by MAX_NAMES")
}

/// The catalog that `payloads` hold, as far as they go; `None` when they hold none that is to be
/// believed.
pub(super) fn restore(payloads: &[Bytes], verifier: &dyn HeadVerifier) -> Option<Replica> {
    let mut base = None;
    let mut records = Vec::new();
    let mut steps = Vec::new();
    for payload in payloads {
        match decode(payload).ok()? {
            Payload::Base(head) => base = Some(head),
            Payload::Records(more) => records.extend(more),
            Payload::Step(step) => steps.push(step),
        }
    }
    let replica = Replica::restore(&base?, records, verifier).ok()?;
    let delta = Delta {
        catalog: replica.head().catalog,
        epoch: replica.epoch(),
        rev: replica.rev(),
        steps,
    };
    // Without what follows it the base is an older state, and whole.
    match replica.apply(&delta, verifier) {
        Ok(Some(next)) => Some(next),
        Ok(None) | Err(_) => Some(replica),
    }
}

enum Payload {
    Base(SignedHead),
    Records(Vec<Record>),
    Step(Step),
}

fn decode(payload: &[u8]) -> Result<Payload, DecodeError> {
    let mut r = Reader::new(payload);
    let decoded = match r.u8()? {
        BASE => Payload::Base(head(&mut r)?),
        RECORDS => {
            let count = r.count(Record::MIN_LEN)?;
            let records = (0..count).map(|_| Record::decode(&mut r));
            Payload::Records(records.collect::<Result<_, _>>()?)
        }
        STEP => {
            let head = head(&mut r)?;
            let count = r.count(Change::MIN_LEN)?;
            let changes = (0..count).map(|_| {
                Change::decode(&mut r)
                    .as_ref()
                    .map(WireChange::from)
                    .map_err(|error| *error)
            });
            Payload::Step(Step {
                head: (&head).into(),
                changes: changes.collect::<Result<_, _>>()?,
            })
        }
        tag => return Err(DecodeError::Tag(tag)),
    };
    r.end()?;
    Ok(decoded)
}

fn head(r: &mut Reader<'_>) -> Result<SignedHead, DecodeError> {
    SignedHead::from_slice(r.raw(SignedHead::LEN)?)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{Catalog, CatalogId, Content, Epoch, Head, HeadHash, HeadKey};
    use crate::proto::replica;
    use crate::spec::SpecHash;

    pub(in crate::worker) fn key() -> HeadKey {
        HeadKey::from_bytes([1; 32])
    }

    fn change(number: u64) -> Change {
        Change {
            name: format!("n{}", number % 7).parse().expect("a name"),
            content: match number % 5 {
                0 => Content::Deleted,
                _ => Content::Present {
                    hash: SpecHash::of(&number.to_be_bytes()),
                    len: 8,
                },
            },
        }
    }

    /// A replica that was taken whole at revision 3 and followed to revision 20.
    pub(in crate::worker) fn sample() -> Replica {
        sample_to(20)
    }

    pub(in crate::worker) fn sample_to(last: u64) -> Replica {
        let mut records = Catalog::empty();
        let mut prev = HeadHash::NONE;
        let mut replica: Option<Replica> = None;
        for number in 1..=last {
            let rev = Revision::new(number);
            records = records.apply(rev, &[change(number)]);
            let head = Head {
                catalog: CatalogId::from_bytes([9; 16]),
                epoch: Epoch::new(1),
                rev,
                root: records.root(),
                prev,
            };
            prev = head.hash();
            let signed = head.sign(&key());
            let keys = key().pinned();
            if number == 3 {
                let diff = replica::diff(&records, &signed, &[]);
                replica = Some(Replica::replace(None, diff, &keys).expect("whole"));
            }
            let delta = Delta {
                catalog: head.catalog,
                epoch: head.epoch,
                rev,
                steps: vec![Step {
                    head: (&signed).into(),
                    changes: vec![WireChange::from(&change(number))],
                }],
            };
            replica =
                replica.map(|held| held.apply(&delta, &keys).expect("good").expect("follows"));
        }
        replica.expect("made at revision 3")
    }

    fn bytes(payloads: Vec<Vec<u8>>) -> Vec<Bytes> {
        payloads.into_iter().map(Bytes::from).collect()
    }

    #[test]
    fn what_is_written_is_read_back_with_its_history() {
        let replica = sample();
        let restored = restore(&bytes(whole(&replica)), &key().pinned()).expect("a replica");
        assert_eq!(restored.records().root(), replica.records().root());
        assert_eq!(restored.signed(), replica.signed());
        for at in 3..=20 {
            for number in 0..7 {
                let name = format!("n{number}").parse().expect("a name");
                let at = Revision::new(at);
                let content =
                    |replica: &Replica| replica.records().get_at(&name, at).expect("retained");
                assert_eq!(content(&restored), content(&replica), "{name} at {at}");
            }
        }
    }

    #[test]
    fn any_loss_at_the_end_leaves_an_older_state_and_never_a_wrong_one() {
        let replica = sample();
        let payloads = bytes(whole(&replica));
        for kept in 0..payloads.len() {
            match restore(&payloads[..kept], &key().pinned()) {
                None => assert!(kept < 2, "the base is there"),
                Some(older) => {
                    assert!(older.rev() < replica.rev());
                    let at = older.rev();
                    for (name, versions) in older.records().iter() {
                        let known = replica.records().get_at(name, at).expect("retained");
                        assert_eq!(versions.last().copied(), known);
                    }
                }
            }
        }
    }

    #[test]
    fn a_copy_that_another_key_signed_is_none() {
        let payloads = bytes(whole(&sample()));
        let other = HeadKey::from_bytes([2; 32]).pinned();
        assert!(restore(&payloads, &other).is_none());
    }

    #[test]
    fn a_changed_record_is_never_believed() {
        let replica = sample();
        let payloads = bytes(whole(&replica));
        for (index, payload) in payloads.iter().enumerate() {
            for at in (0..payload.len()).step_by(7) {
                let mut changed = payloads.clone();
                let mut wrong = payload.to_vec();
                wrong[at] ^= 1;
                changed[index] = wrong.into();
                let Some(restored) = restore(&changed, &key().pinned()) else {
                    continue;
                };
                let rev = restored.rev();
                for (name, versions) in restored.records().iter() {
                    let known = replica.records().get_at(name, rev).expect("retained");
                    assert_eq!(versions.last().copied(), known, "payload {index} at {at}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(payloads: Vec<Vec<u8>>) {
            let _ = restore(&bytes(payloads), &key().pinned());
        }
    }
}
