//! Whom a node talks to: those it is connected with, once they are enough.
//!
//! Every pair that talks for the first time does a handshake, which is a hundred times the work of a
//! packet: with all members in turn, a cluster that starts at once would do nothing else. News travel
//! as well over a graph in which everyone is connected with a few. Probes alone go to everyone, and
//! slowly where that needs a new connection.

use foca::Message;

use super::member::{read_header, write_header};
use super::{Gossip, MEMBERSHIP, Member, Output};
use crate::codec::{Reader, Writer};
use crate::proto::limit::ENOUGH_NEIGHBOURS;

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

    /// Any member that it costs little to talk to.
    pub(super) fn near_member(&mut self) -> Option<Member> {
        let mut among = self.neighbours();
        if among.is_empty() {
            among = self.up.values().copied().collect();
        }
        let place = self.any_of(among.len())?;
        among.get(place).copied()
    }

    /// What foca wants to tell `to`. News are for anyone, so they go to a neighbour rather than to a
    /// stranger; `free` has the neighbours that this turn has not used yet.
    pub(super) fn routed(
        &mut self,
        to: Member,
        packet: &[u8],
        free: &mut Option<Vec<Member>>,
    ) -> Output {
        let is_near = self.connected.contains(&to.id);
        let mut r = Reader::new(packet);
        let mut w = Writer::new();
        w.u8(MEMBERSHIP);
        let mut to = to;
        match read_header(&mut r) {
            Ok(mut header) if is_news(&header.message) => {
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
                if header.is_ok_and(|header| matches!(header.message, Message::Ping(_))) {
                    self.probed_afresh = !is_near;
                }
                w.raw(packet);
            }
        }
        let bytes = w.finish();
        Output::Send { to, bytes }
    }
}

fn is_news(message: &Message<Member>) -> bool {
    matches!(message, Message::Gossip | Message::Broadcast)
}
