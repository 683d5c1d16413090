//! What a worker makes of grants and pushes.

use super::*;
use crate::catalog::{Catalog, CatalogId, Head, HeadHash, HeadSigner, SignedHead};
use crate::proto::wire::CatalogDiff;
use crate::proto::worker::{Config, Input, Look, Restored};
use crate::spec::SpecName;

const CATALOG: CatalogId = CatalogId::from_bytes([1; 16]);
const START: Time = Time::from_micros(1_000_000);
const LEASE: Duration = Duration::from_millis(600);

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

fn name() -> SpecName {
    "n".parse().expect("a name")
}

fn head(epoch: u64, rev: u64) -> SignedHead {
    Head {
        catalog: CATALOG,
        epoch: Epoch::new(epoch),
        rev: Revision::new(rev),
        root: Catalog::empty().root(),
        prev: HeadHash::NONE,
    }
    .sign(&Anyone)
}

struct Desk {
    machine: Worker,
    out: Vec<Output>,
}

impl Desk {
    fn new() -> Self {
        let config = Config {
            coordinators: vec!["c".into()],
            lease: true,
            ..Config::default()
        };
        let machine = Worker::new(&config, Arc::new(Anyone), Restored::default());
        let mut desk = Self {
            machine,
            out: Vec::new(),
        };
        desk.input(Input::Wake);
        desk
    }

    fn input(&mut self, input: Input) {
        let outputs = self.machine.handle(input, START);
        self.out.extend(outputs);
    }

    /// Answers the renewal that was sent last.
    fn grant(&mut self, epoch: u64, rev: u64, marks: Marks) {
        let renewals = self.out.iter().rev();
        let found = renewals.filter_map(|output| match output {
            Output::Renew { call, request, .. } => Some((*call, request.clone())),
            _ => None,
        });
        let (call, renew) = found.take(1).next().expect("a renewal");
        let (epoch, rev) = (Epoch::new(epoch), Revision::new(rev));
        let grant = Grant {
            sid: renew.sid,
            nonce: renew.nonce,
            catalog: CATALOG,
            epoch,
            rev,
            lease_us: LEASE.as_micros() as u64,
            watching: true,
            marks,
            delta: Delta {
                catalog: CATALOG,
                epoch,
                rev,
                steps: Vec::new(),
            },
        };
        let event = Event::Granted(grant);
        self.input(Input::Event { call, event });
    }

    /// Sends the whole catalog that was asked for last.
    fn catalog(&mut self, epoch: u64, rev: u64) {
        self.input(Input::Wake);
        let found = self.out.iter().rev().find_map(|output| match output {
            Output::GetCatalog { call, .. } => Some(*call),
            _ => None,
        });
        let event = Event::Catalog(CatalogDiff {
            head: (&head(epoch, rev)).into(),
            buckets: Vec::new(),
            records: Vec::new(),
        });
        let call = found.expect("a question for the catalog");
        self.input(Input::Event { call, event });
    }

    fn look(&self) -> Look {
        self.machine.sight().strict(&name(), START)
    }
}

#[test]
fn what_is_about_to_change_in_a_new_epoch_is_marked_by_the_grant_that_names_it() {
    let mut desk = Desk::new();
    desk.grant(1, 5, Marks::default());
    desk.catalog(1, 5);
    assert!(matches!(desk.look(), Look::Serve(..)));

    desk.input(Input::Resumed);
    let marks = Marks {
        all: Revision::ZERO,
        names: vec![(name(), Revision::new(4))],
    };
    desk.grant(2, 3, marks);
    desk.catalog(2, 3);
    let acked = desk.out.iter().any(|output| {
        matches!(output, Output::PrepAck { ack, .. }
            if (ack.epoch, ack.rev) == (Epoch::new(2), Revision::new(4)))
    });
    assert!(acked, "the coordinator may go on");
    assert_eq!(desk.look(), Look::Soon, "so nothing old may be served");
}
