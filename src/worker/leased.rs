//! Reads that need no machine: under a lease, what is on disk is answered by the reader's own
//! thread, without a lock that others wait for and without a packet.

use std::time::Duration;

use crate::answer::{Answer, Freshness, Hop, Mode, Proof, Query, Snapshot, Target};
use crate::catalog::{Content, Revision, Version};
use crate::proto::worker::{Local, Look, Sight, SightCell, look};
use crate::proto::{Clock, Time};
use crate::spec::{Spec, SpecHash};

/// The answer to a strict read by name, if it can be given at once. Whatever is in the way,
/// damaged bytes or long ones among it, is the machine's matter.
pub(super) fn answer(
    sights: &impl SightCell,
    clock: &impl Clock,
    load: impl FnOnce(SpecHash, u64) -> Option<Local>,
    query: &Query,
) -> Option<Answer> {
    let (Target::Name(name), Freshness::Strict) = (&query.target, query.freshness) else {
        return None;
    };
    let (sight, now, Look::Serve(version, snapshot)) = look(sights, clock, name) else {
        return None;
    };
    let spec = match version.content {
        Content::Deleted => None,
        Content::Present { hash, len } => match load(hash, len) {
            Some(Local::Found(spec)) if spec.len() == len => Some(spec),
            _ => return None,
        },
    };
    Some(Answer {
        took: clock.now().since(now),
        ..proven(&sight, version, snapshot, spec, now)
    })
}

fn proven(
    sight: &Sight,
    version: Version,
    snapshot: Snapshot,
    spec: Option<Spec>,
    now: Time,
) -> Answer {
    // Under a lease there always was an answer to count from.
    let age = sight.age(now).unwrap_or(Duration::MAX);
    Answer {
        spec,
        proof: Proof {
            mode: Mode::Lease,
            snapshot: Some(snapshot),
            record_rev: (version.rev > Revision::ZERO).then_some(version.rev),
            source: Hop::Disk,
            age_us: u64::try_from(age.as_micros()).unwrap_or(u64::MAX),
        },
        failed: Vec::new(),
        took: Duration::ZERO,
    }
}
