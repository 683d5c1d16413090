//! Who is told of which heads, and what is done with those that others tell.

use foca::AccumulatingRuntime;

use super::heads::{Item, Taken};
use super::member::{read_items, write_item};
use super::{Gossip, HEADS, IS_ANSWER, Member, Output};
use crate::codec::{DecodeError, Reader, Writer};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::MAX_GOSSIP_PACKET;

impl Gossip {
    /// A datagram with the heads that this node has. An empty one asks for those of the other.
    pub(super) fn told(&self, to: Member, flags: u8) -> Option<Output> {
        let bytes = self.heads_for(to.id, flags)?;
        Some(Output::Send { to, bytes })
    }

    pub(super) fn heads_for(&self, to: NodeId, flags: u8) -> Option<Vec<u8>> {
        if self.left || self.barred.contains(&to) {
            return None;
        }
        let mut w = Writer::new();
        w.u8(HEADS).u8(flags);
        let mut left = MAX_GOSSIP_PACKET - 2;
        for item in self.heads.items() {
            let item = item.to_bytes();
            if item.len() + 2 > left {
                break;
            }
            left -= item.len() + 2;
            write_item(&item, &mut w);
        }
        Some(w.finish())
    }

    pub(super) fn told_by(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), DecodeError> {
        let mut r = Reader::new(bytes);
        let flags = r.u8()?;
        let items = read_items(&mut r)?;
        for item in &items {
            let taken = self.heads.take(item, &*self.verifier);
            self.taken(taken, from, now, out);
        }
        if flags & IS_ANSWER == 0 && self.heads.know_more_than(&items) {
            if let Some(to) = self.up.get(&from).copied() {
                out.extend(self.told(to, IS_ANSWER));
            } else if self.leaves.contains(&from) {
                self.tell_leaf(from, IS_ANSWER, out);
            }
        }
        Ok(())
    }

    pub(super) fn taken(&mut self, taken: Taken, from: NodeId, now: Time, out: &mut Vec<Output>) {
        match taken {
            Taken::Nothing => {}
            Taken::Refused => self.counters.unsigned += 1,
            Taken::New(head) => {
                let signed = *head.signed();
                out.push(Output::Head { head, from });
                self.spread(&Item::Head(signed), from, now, out);
            }
            Taken::Equivocation(pair) => {
                out.push(Output::Equivocation(pair.clone()));
                self.spread(&Item::Equivocation(pair), from, now, out);
            }
        }
    }

    /// At once, and with the next packets: waiting for those would take seconds. `from` knows it.
    pub(super) fn spread(&mut self, item: &Item, from: NodeId, now: Time, out: &mut Vec<Output>) {
        if self.left {
            return;
        }
        for leaf in self.leaves.clone() {
            self.tell_leaf(leaf, IS_ANSWER, out);
        }
        if self.is_leaf {
            return self.tell_attached(out);
        }
        let item = item.to_bytes();
        let mut w = Writer::new();
        w.u8(HEADS).u8(IS_ANSWER);
        write_item(&item, &mut w);
        let bytes = w.finish();
        for to in self.head_hearers(from) {
            let bytes = bytes.clone();
            out.push(Output::Send { to, bytes });
        }
        let added = self.foca.add_broadcast(&item).map(|_| ());
        self.finish(added, AccumulatingRuntime::new(), now, out);
    }
}
