//! Nodes that nobody can dial, behind a NAT or a firewall.
//!
//! SWIM would hold them for dead. So they are no members: a leaf keeps connections to some members
//! up, and those pass it the heads that they learn.

use super::timer::Chore;
use super::{Gossip, IS_ANSWER, Member, Output};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{
    ANNOUNCE_FANOUT, FIRST_ANNOUNCE_BACKOFF, LEAF_LINKS, MAX_ANNOUNCE_BACKOFF, MAX_LEAVES,
    SYNC_EVERY, UNREACHED_ENOUGH,
};

/// What a leaf does.
impl Gossip {
    /// Whether nobody can dial this node.
    pub fn is_leaf(&self) -> bool {
        self.is_leaf
    }

    pub(super) fn reachable(&mut self, is: bool, now: Time, out: &mut Vec<Output>) {
        self.unreached = match is {
            true => 0,
            // A packet may have been lost.
            false => self.unreached.saturating_add(1),
        };
        let changes = match self.is_leaf {
            true => is,
            false => self.unreached >= UNREACHED_ENOUGH,
        };
        if self.left || !changes {
            return;
        }
        out.push(Output::Dialled(is));
        match is {
            true => self.become_member(now, out),
            false => self.become_leaf(now, out),
        }
    }

    fn become_leaf(&mut self, now: Time, out: &mut Vec<Output>) {
        out.push(self.remember());
        let mut runtime = foca::AccumulatingRuntime::new();
        let result = self.foca.leave_cluster(&mut runtime);
        self.finish(result, runtime, now, out);
        for (_, member) in std::mem::take(&mut self.up) {
            out.push(Output::Down(member));
        }
        self.is_leaf = true;
        self.joined = false;
        self.health.alone();
        self.announced = 0;
        self.timers.clear(Chore::Sync);
        self.timers.clear(Chore::Renew);
        self.timers.set(Chore::Announce, now);
        self.tick(now, out);
    }

    fn become_member(&mut self, now: Time, out: &mut Vec<Output>) {
        self.is_leaf = false;
        for (node, member) in std::mem::take(&mut self.attached) {
            self.up.remove(&node);
            out.push(Output::Down(member));
        }
        // Foca has not forgotten them, and says nothing of whom it knows already.
        for member in self.foca.iter_members().map(|member| *member.id()) {
            self.up.insert(member.id, member);
            out.push(Output::Up(member));
        }
        self.renew(now, out);
    }

    /// Looks for members to be attached to, and now and then for one that can dial this node.
    pub(super) fn attach(&mut self, now: Time, out: &mut Vec<Output>) {
        self.reach_seeds(out);
        let wanted = LEAF_LINKS.saturating_sub(self.attached.len());
        let free = |member: &&Member| {
            !self.attached.contains_key(&member.id) && !self.barred.contains(&member.id)
        };
        let free: Vec<Member> = self.remembered.iter().filter(free).copied().collect();
        let some = self.some_of(free, wanted.min(ANNOUNCE_FANOUT));
        out.extend(some.into_iter().map(Output::Attach));
        let pause = match wanted {
            0 => SYNC_EVERY,
            _ => {
                let doubled = FIRST_ANNOUNCE_BACKOFF * (1 << self.announced.min(16));
                self.announced = self.announced.saturating_add(1);
                doubled.min(MAX_ANNOUNCE_BACKOFF)
            }
        };
        let pause = self.jittered(pause);
        let pause = self.health.stretched(pause);
        self.timers.set(Chore::Announce, now + pause);
    }

    pub(super) fn attached(&mut self, node: NodeId, there: bool, now: Time, out: &mut Vec<Output>) {
        let known = self.remembered.iter().find(|member| member.id == node);
        match (there, known.copied()) {
            (true, Some(member)) if self.may_attach(node) => {
                self.announced = 0;
                self.attached.insert(node, member);
                self.up.insert(node, member);
                out.push(Output::Up(member));
                self.tell_leaf(node, 0, out);
            }
            (false, _) => {
                if let Some(member) = self.attached.remove(&node) {
                    self.up.remove(&node);
                    out.push(Output::Down(member));
                    let pause = self.jittered(FIRST_ANNOUNCE_BACKOFF);
                    self.timers.set(Chore::Announce, now + pause);
                }
            }
            _ => {}
        }
    }

    fn may_attach(&self, node: NodeId) -> bool {
        self.is_leaf && self.attached.len() < LEAF_LINKS && !self.attached.contains_key(&node)
    }

    pub(super) fn tell_attached(&mut self, out: &mut Vec<Output>) {
        for node in self.attached.keys().copied().collect::<Vec<_>>() {
            self.tell_leaf(node, IS_ANSWER, out);
        }
    }
}

/// What a member does for leaves.
impl Gossip {
    pub(super) fn leaf(&mut self, node: NodeId, there: bool, out: &mut Vec<Output>) {
        let refused = self.left || self.is_leaf || self.barred.contains(&node);
        match there {
            true if refused || self.leaves.len() >= MAX_LEAVES => {}
            true => {
                self.leaves.insert(node);
                self.tell_leaf(node, 0, out);
            }
            false => {
                self.leaves.remove(&node);
            }
        }
    }

    pub(super) fn tell_leaf(&self, to: NodeId, flags: u8, out: &mut Vec<Output>) {
        let bytes = self.heads_for(to, flags);
        out.extend(bytes.map(|bytes| Output::Tell { to, bytes }));
    }
}
