//! Whom a node talks to: those it is connected with, once they are enough.
//!
//! Every pair that talks for the first time does a handshake, which is a hundred times the work of a
//! packet: with all members in turn, a cluster that starts at once would do nothing else. News travel
//! as well over a graph in which everyone is connected with a few. Probes alone go to everyone, and
//! slowly where that needs a new connection.
//!
//! A head goes at once to more of them than other news do: what waits for it are reads.

use foca::Message;

use super::member::{read_header, write_header};
use super::{Gossip, MEMBERSHIP, Member, Output};
use crate::codec::{Reader, Writer};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::{ENOUGH_NEIGHBOURS, HEAD_FANOUT};

impl Gossip {
    /// Members with a connection, if they are enough; else none.
    fn neighbours(&self) -> Vec<Member> {
        let connected = self.connected.iter();
        let near: Vec<_> = connected.filter_map(|node| self.up.get(node)).collect();
        match near.len() < ENOUGH_NEIGHBOURS {
            true => Vec::new(),
            false => near.into_iter().copied().collect(),
        }
    }

    /// Members that it costs little to talk to; all of them while these are too few.
    fn near(&self) -> Vec<Member> {
        let neighbours = self.neighbours();
        match neighbours.is_empty() {
            true => self.up.values().copied().collect(),
            false => neighbours,
        }
    }

    /// Any member that it costs little to talk to.
    pub(super) fn near_member(&mut self) -> Option<Member> {
        let among = self.near();
        let place = self.any_of(among.len())?;
        among.get(place).copied()
    }

    /// Up to [`HEAD_FANOUT`] members that are told of a head which `teller` knows already.
    pub(super) fn head_hearers(&mut self, teller: NodeId) -> Vec<Member> {
        let mut among = self.near();
        among.retain(|member| member.id != teller && !self.barred.contains(&member.id));
        self.some_of(among, HEAD_FANOUT)
    }

    /// What foca wants to tell `to`. News are for anyone, so they go to a neighbour rather than to a
    /// stranger; `free` has the neighbours that this turn has not used yet.
    pub(super) fn routed(
        &mut self,
        to: Member,
        packet: &[u8],
        free: &mut Option<Vec<Member>>,
        now: Time,
    ) -> Output {
        let is_near = self.connected.contains(&to.id);
        let mut r = Reader::new(packet);
        let mut w = Writer::new();
        w.u8(MEMBERSHIP);
        let mut to = to;
        match read_header(&mut r) {
            Ok(mut header) if matches!(header.message, Message::Gossip) => {
                let free = free.get_or_insert_with(|| self.neighbours());
                if is_near {
                    free.retain(|member| member.id != to.id);
                } else if let Some(place) = self.any_of(free.len()) {
                    to = free.swap_remove(place);
                }
                header.dst = to;
                write_header(&header, &mut w);
                w.raw(&packet[packet.len() - r.remaining()..]);
            }
            header => {
                if let Ok(Message::Ping(number)) = header.map(|header| header.message) {
                    self.probed_afresh = !is_near;
                    self.health.asked(to.id, number, now);
                }
                w.raw(packet);
            }
        }
        let bytes = w.finish();
        Output::Send { to, bytes }
    }
}
