//! What comes from others, and what of it may be true.

use std::collections::BTreeSet;

use foca::{AccumulatingRuntime, Message, State};

use super::member::{Packet, Update, read_update};
use super::{Gossip, HEADS, MEMBERSHIP, Output};
use crate::codec::{DecodeError, Reader};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::bucket::Bucket;
use crate::proto::limit::{
    MAX_GENERATION, MAX_GENERATION_STEP, MAX_GOSSIP_BURST, MAX_GOSSIP_PACKET, MAX_GOSSIP_PER_SEC,
    MAX_HEARD_GENERATION, MAX_MEMBERS, MEMBERS_PER_PART,
};

impl Gossip {
    pub(super) fn datagram(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), DecodeError> {
        if !self.may_send(from, now) {
            return Ok(());
        }
        if bytes.len() > MAX_GOSSIP_PACKET {
            return Err(DecodeError::Value("a gossip packet that is too long"));
        }
        match bytes.split_first() {
            // Nobody could answer what a leaf says.
            Some((&MEMBERSHIP, _)) if self.is_leaf => Ok(()),
            Some((&MEMBERSHIP, packet)) => self.packet(from, packet, now, out),
            Some((&HEADS, heads)) => self.told_by(from, heads, now, out),
            Some((&other, _)) => Err(DecodeError::Tag(other)),
            None => Err(DecodeError::Short { missing: 1 }),
        }
    }

    fn may_send(&mut self, from: NodeId, now: Time) -> bool {
        self.counters.taken += 1;
        if self.left {
            return false;
        }
        if self.barred.contains(&from) {
            self.counters.barred += 1;
            return false;
        }
        if self.quotas.len() >= MAX_MEMBERS && !self.quotas.contains_key(&from) {
            // Who has been silent for a while has its whole quota anyway.
            self.quotas.retain(|_, quota| !quota.is_full(now));
        }
        if self.quotas.len() >= MAX_MEMBERS && !self.quotas.contains_key(&from) {
            self.counters.throttled += 1;
            return false;
        }
        let full = || Bucket::new(MAX_GOSSIP_PER_SEC, MAX_GOSSIP_BURST, now);
        let quota = self.quotas.entry(from).or_insert_with(full);
        if !quota.takes(1, now) {
            self.counters.throttled += 1;
            return false;
        }
        true
    }

    fn packet(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), DecodeError> {
        let mut packet = Packet::read(bytes)?;
        let source = packet.header.src;
        if source.id != from {
            self.counters.forged += 1;
            return Ok(());
        }
        if source.generation > MAX_GENERATION || !self.has_room(source.id) {
            self.counters.too_new += u64::from(source.generation > MAX_GENERATION);
            return Ok(());
        }
        if self.shown.len() < MAX_MEMBERS || self.shown.contains_key(&from) {
            let shown = self.shown.entry(from).or_default();
            *shown = source.generation.max(*shown);
        }
        match &packet.header.message {
            Message::Ack(number) => self.health.answered(from, *number, now),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => self.health.answered(origin.id, *probe_number, now),
            _ => {}
        }
        let before = packet.updates.len();
        let updates = std::mem::take(&mut packet.updates);
        packet.updates = self.believable(updates);
        let mut runtime = AccumulatingRuntime::new();
        let result = match packet.updates.len() == before {
            true => self.foca.handle_data(&bytes[..packet.len], &mut runtime),
            false => self.foca.handle_data(&packet.to_bytes(), &mut runtime),
        };
        self.finish(result, runtime, now, out);
        for item in &packet.items {
            let taken = self.heads.take(item, &*self.verifier);
            self.taken(taken, from, now, out);
        }
        Ok(())
    }

    pub(super) fn part(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), DecodeError> {
        if !self.may_send(from, now) {
            return Ok(());
        }
        let mut r = Reader::new(bytes);
        let mut items = Vec::new();
        for _ in 0..r.u16()? {
            let len = usize::from(r.u16()?);
            items.push(r.raw(len)?);
        }
        let mut updates = Vec::new();
        while r.remaining() > 0 {
            updates.push(read_update(&mut r)?);
        }
        if updates.len() > MEMBERS_PER_PART {
            return Err(DecodeError::Value("a part with too many members"));
        }
        if self.is_leaf {
            updates.clear();
        }
        // Of the dead only those count whom this node holds for alive: else two nodes would
        // remind each other of them for ever.
        let news = |update: &Update| {
            update.state() != State::Down || self.up.contains_key(&update.id().id)
        };
        updates.retain(news);
        let updates = self.believable(updates);
        let members = self.up.len();
        let mut runtime = AccumulatingRuntime::new();
        let result = self
            .foca
            .apply_many(updates.into_iter(), false, &mut runtime);
        self.finish(result, runtime, now, out);
        if self.up.len() > members {
            self.quiet_lists = 0;
        }
        for item in items {
            let taken = self.heads.take(item, &*self.verifier);
            self.taken(taken, from, now, out);
        }
        Ok(())
    }

    /// Of what someone says about others, that which may be true.
    fn believable(&mut self, mut updates: Vec<Update>) -> Vec<Update> {
        let own = self.own().id;
        updates.retain(|update| {
            let member = update.id();
            let shown = self.shown.get(&member.id).copied().unwrap_or(0);
            let bound = shown.saturating_add(MAX_GENERATION_STEP);
            let bound = match member.id == own {
                // What a life of ours may have been called is for us to know.
                true => self.named.saturating_add(MAX_GENERATION_STEP),
                false => bound,
            };
            if member.generation > bound.clamp(MAX_HEARD_GENERATION, MAX_GENERATION) {
                self.counters.too_new += 1;
                return false;
            }
            if member.id == own {
                self.named = self.named.max(member.generation);
            }
            if self.barred.contains(&member.id) && update.state() != State::Down {
                return false;
            }
            true
        });
        let room = MAX_MEMBERS.saturating_sub(self.foca.iter_membership_state().len());
        if updates.len() > room {
            let known = self.known();
            let mut new = 0;
            updates.retain(|update| {
                let fits = known.contains(&update.id().id) || {
                    new += 1;
                    new <= room
                };
                self.counters.too_many += u64::from(!fits);
                fits
            });
        }
        updates
    }

    fn has_room(&mut self, node: NodeId) -> bool {
        let full = self.foca.iter_membership_state().len() >= MAX_MEMBERS;
        let fits = !full || self.known().contains(&node);
        self.counters.too_many += u64::from(!fits);
        fits
    }

    fn known(&self) -> BTreeSet<NodeId> {
        let state = self.foca.iter_membership_state();
        state.map(|update| update.id().id).collect()
    }

    pub(super) fn bar(&mut self, nodes: BTreeSet<NodeId>, now: Time, out: &mut Vec<Output>) {
        self.barred = nodes;
        self.remembered
            .retain(|member| !self.barred.contains(&member.id));
        let gone = self
            .up
            .values()
            .filter(|member| self.barred.contains(&member.id));
        let gone: Vec<Update> = gone.map(|member| Update::down(*member)).collect();
        let mut runtime = AccumulatingRuntime::new();
        let result = self.foca.apply_many(gone.into_iter(), true, &mut runtime);
        self.finish(result, runtime, now, out);
    }
}
