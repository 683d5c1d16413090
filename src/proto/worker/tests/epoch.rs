//! A coordinator that was restored from a backup, as a worker finds out.

use super::*;
use crate::catalog::{Catalog, Change, Head, HeadHash, HeadSigner};
use crate::proto::replica;
use crate::proto::wire::{Marks, Prepare, Step, WireChange};

/// Signs with nothing and believes everything.
struct Unsigned;

impl HeadSigner for Unsigned {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

impl HeadVerifier for Unsigned {
    fn verify(&self, _: &[u8], _: &[u8; 64]) -> bool {
        true
    }
}

fn change(body: &str) -> Change {
    Change {
        name: "a".parse().expect("a name"),
        content: version(0, body).content,
    }
}

fn head(epoch: u64, catalog: &Catalog, prev: HeadHash) -> Head {
    Head {
        catalog: CATALOG,
        epoch: Epoch::new(epoch),
        rev: catalog.rev(),
        root: catalog.root(),
        prev,
    }
}

#[test]
fn a_step_into_a_new_epoch_ends_what_the_old_one_said() {
    let first = Catalog::empty().apply(Revision::new(1), &[change("v1")]);
    let head_1 = head(1, &first, HeadHash::NONE);
    let diff = replica::diff(&first, &head_1.sign(&Unsigned), &[]);
    let replica = Replica::replace(None, diff, &Unsigned).expect("a catalog");
    let (name, rev) = (change("v1").name, Revision::new);
    let mark = Mark {
        catalog: CATALOG,
        epoch: Epoch::new(1),
        rev: rev(1),
    };
    let lost = HeldRecord {
        name: name.clone(),
        version: version(2, "lost"),
        seen: rev(2),
    };
    let restored = Restored {
        mark: Some(mark),
        replica: Some(replica),
        held: [lost].into_iter().collect(),
        ..Restored::default()
    };
    let config = Config {
        coordinators: vec!["c0".into()],
        lease: true,
        ..Config::default()
    };
    let mut desk = desk(1, 0);
    desk.machine = Worker::new(&config, Arc::new(Unsigned), restored);
    desk.input(Input::Wake);
    let watch = desk.sent.iter().find_map(|out| match out {
        Output::Watch { call, .. } => Some(*call),
        _ => None,
    });
    let watch = watch.expect("a watch");
    desk.event(
        watch,
        Event::Prepare(Prepare {
            catalog: CATALOG,
            epoch: Epoch::new(1),
            rev: rev(3),
            marks: Marks {
                all: Revision::ZERO,
                names: vec![(name, rev(3))],
            },
            hints: Vec::new(),
        }),
    );
    let mut delta = Delta {
        catalog: CATALOG,
        epoch: Epoch::new(1),
        rev: rev(3),
        steps: Vec::new(),
    };
    desk.event(watch, Event::Release(delta.clone()));
    desk.advance(Duration::from_millis(50));
    let update = desk.sent.iter().find_map(|out| match out {
        Output::GetDelta { call, .. } => Some(*call),
        _ => None,
    });

    // The backup ended with revision 1, and the new epoch continues from there.
    let second = first.apply(rev(2), &[change("v2")]);
    delta.epoch = Epoch::new(2);
    delta.rev = rev(2);
    delta.steps = vec![Step {
        head: (&head(2, &second, head_1.hash()).sign(&Unsigned)).into(),
        changes: vec![WireChange::from(&change("v2"))],
    }];
    desk.event(update.expect("an update"), Event::Delta(delta));
    let sight = desk.machine.sight();
    assert_eq!(sight.replica().map(|replica| replica.rev()), Some(rev(2)));
    assert!(sight.marks().is_empty(), "marks of an epoch that is over");
    let forgets = |out: &Output| matches!(out, Output::ForgetHeld);
    assert!(desk.sent.iter().any(forgets), "records of that epoch");
}
