//! What other members say of heads. It tells a worker what there is to fetch, and is never a word
//! of the coordinator: it makes no read succeed and raises no floor.

use crate::catalog::{SignedHead, VerifiedHead};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::worker::{Source, Worker};

impl Worker {
    /// A member has told of this head, and so has what it speaks of, or knows who has. A worker
    /// whose coordinator keeps it current has it soon anyway.
    pub(super) fn heard(&mut self, head: &VerifiedHead, from: NodeId, now: Time) {
        let (of, epoch, rev) = (head.head().catalog, head.head().epoch, head.head().rev);
        let foreign = self.mark.is_some_and(|mark| mark.catalog != of);
        if foreign || self.session.left || self.rollback.is_some() {
            return;
        }
        let replica = self.sight.replica.as_ref();
        if replica.is_some_and(|replica| replica.contradicts(head)) {
            return self.quarantine(rev, rev);
        }
        if replica.is_some_and(|replica| (replica.epoch(), replica.rev()) >= (epoch, rev)) {
            return;
        }
        let is_told = self.session.watching && self.session.failures == 0;
        if is_told || self.session.update.is_some() {
            return;
        }
        self.session.round.clear();
        self.session.told_by = Some(Source::Peer(from));
        self.ask_for_update(true, now);
    }

    /// A pinned key has signed both: whoever holds it is not honest.
    pub(super) fn forked(&mut self, one: &SignedHead) {
        let Ok(head) = one.claimed() else { return };
        let is_ours = |mark: &super::Mark| mark.catalog == head.catalog && mark.epoch <= head.epoch;
        if self.mark.as_ref().is_some_and(is_ours) {
            self.quarantine(head.rev, head.rev);
        }
    }
}
