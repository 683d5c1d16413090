//! What workers ask each other about the membership, both sides of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rand::seq::IteratorRandom;

use super::Members;
use crate::identity::{NodeId, NodeUri, Role};
use crate::net::{Gone, Link, LinkError, Patience, Peer, Reply, Wanted};
use crate::proto::code::{Code, Refusal};
use crate::proto::gossip::{Input, Member};
use crate::proto::limit::{MAX_MEMBERS, MAX_NODES_PER_MEET, MEMBERS_PER_PART};
use crate::proto::wire::{self, GetMembers, Meet, Met, Neighbour, Request, Response};

/// Parts of a list: more than so many members no node keeps.
const MAX_PARTS: usize = MAX_MEMBERS / MEMBERS_PER_PART + 2;

impl Members {
    /// Says to a seed that this node is there, has it try to dial back, and asks who else is.
    pub(super) async fn reach(self: Arc<Self>, seed: &str) {
        let Some(link) = self.seed(seed) else { return };
        let own = self.own();
        let names_others = self.is_coordinators(seed);
        let meet = Meet {
            addr: own.map(|(own, _)| own.addr),
            dial_back: true,
            // Whoever is pointed at this worker would get nothing.
            leaf: names_others && !self.gives,
        };
        let (met, node, addr) = match meet_at(&link, meet).await {
            Ok(met) => met,
            Err(error) => return tracing::debug!(seed, %error, "not met"),
        };
        let mut others = Vec::new();
        for Neighbour { uri, addr } in met.nodes.into_iter().take(MAX_NODES_PER_MEET) {
            others.push((uri.id(), addr));
            self.book().learn(uri);
        }
        if let Some(addr) = addr {
            // Else it would close before anything is sent over it.
            let member = Member::new(node, addr, 0);
            self.book().stranger(member, || link.clone());
        }
        if let Some(reached) = met.reached {
            self.drive(Input::Reachable(reached));
        }
        self.drive(Input::Reached {
            seed,
            node,
            addr,
            others: &others,
        });
    }

    /// Where this node's packets come from, as this seed sees it.
    pub(super) async fn seen_by(&self, seed: &str) -> Option<SocketAddr> {
        let link = self.seed(seed)?;
        let meet = Meet {
            addr: None,
            dial_back: false,
            leaf: true,
        };
        let (met, ..) = meet_at(&link, meet).await.ok()?;
        Some(met.seen)
    }

    fn is_coordinators(&self, seed: &str) -> bool {
        let engine = self.engine.upgrade();
        engine.is_some_and(|engine| engine.coordinator_link_to(seed).is_some())
    }

    /// The link to a coordinator is there anyway.
    fn seed(&self, addr: &str) -> Option<Link> {
        let engine = self.engine.upgrade()?;
        let known = engine.coordinator_link_to(addr);
        Some(known.unwrap_or_else(|| Link::new(engine.endpoint(), addr, Wanted::Peer)))
    }

    /// Keeps a connection with a member up, since nobody can dial this node.
    pub(super) async fn attach(self: Arc<Self>, to: Member) {
        let node = to.id;
        let Some(link) = self.link(to) else { return };
        self.book().attach(node, link.clone());
        let meet = Meet {
            addr: None,
            dial_back: false,
            leaf: true,
        };
        let there = meet_at(&link, meet).await.is_ok();
        if !there {
            self.book().detach(node);
        }
        self.drive(Input::Attached { node, there });
    }

    /// Compares lists with a member.
    pub(super) async fn sync(self: Arc<Self>, with: Member) {
        let Some(link) = self.link(with) else { return };
        if let Err(error) = self.read_list(&link, with.id).await {
            tracing::debug!(node = %with.id, %error, "no list of members");
        }
    }

    async fn read_list(self: &Arc<Self>, link: &Link, from: NodeId) -> Result<(), LinkError> {
        let request = Request::GetMembers(GetMembers {});
        let mut answer = link.call(&request, Bytes::new(), Patience::peer()).await?;
        for _ in 0..MAX_PARTS {
            let Response::Members(members) = answer.next().await? else {
                return Err(LinkError::unexpected());
            };
            let bytes = &members.part;
            self.drive(Input::Part { from, bytes });
            self.learn(members.uris);
            if !members.more {
                break;
            }
        }
        Ok(())
    }

    fn learn(&self, uris: Vec<NodeUri>) {
        let members: BTreeSet<NodeId> = self.all().iter().map(|member| member.id).collect();
        let mut book = self.book();
        book.keep_names(|node| members.contains(&node));
        uris.into_iter()
            .take(MEMBERS_PER_PART)
            .for_each(|uri| book.learn(uri));
    }

    /// Answers a [`Meet`].
    pub(in crate::worker) async fn met(self: &Arc<Self>, peer: &Peer, meet: &Meet) -> Met {
        let node = peer.uri.id();
        let addr = meet.addr.unwrap_or(peer.addr);
        let reached = match meet.dial_back {
            true => self.dial_back.reaches(node, addr).await,
            false => None,
        };
        if meet.leaf && self.book().is_leafs(node, peer.channel) {
            self.drive(Input::Leaf { node, there: true });
        }
        Met {
            seen: peer.addr,
            reached,
            nodes: self.some(node),
        }
    }

    /// Some workers whose names are known, this one among them.
    fn some(&self, but: NodeId) -> Vec<Neighbour> {
        let own = self.own().filter(|(_, is_leaf)| !is_leaf);
        let all = self.all().into_iter().chain(own.map(|(own, _)| own));
        let book = self.book();
        let named = all.filter(|member| member.id != but).filter_map(|member| {
            let uri = match member.id == self.own {
                true => self.identity.uri(),
                false => book.uri(member.id)?,
            };
            Some(Neighbour {
                uri: uri.clone(),
                addr: member.addr,
            })
        });
        named.sample(&mut rand::rng(), MAX_NODES_PER_MEET)
    }

    /// Answers a [`GetMembers`].
    pub(in crate::worker) async fn give_list(&self, reply: &mut Reply) -> Result<(), Gone> {
        let parts = self.parts();
        let mut uris: Vec<NodeUri> = {
            let (all, book) = (self.all(), self.book());
            let uris = all.iter().filter_map(|member| book.uri(member.id));
            uris.cloned().collect()
        };
        let Some(last) = parts.len().checked_sub(1) else {
            let message = "this worker does not know yet where it is reached";
            return reply.refuse(&Refusal::new(Code::Busy, message)).await;
        };
        for (place, part) in parts.into_iter().enumerate() {
            let rest = uris.split_off(uris.len().min(MEMBERS_PER_PART));
            let members = wire::Members {
                part,
                uris: std::mem::replace(&mut uris, rest),
                more: place < last,
            };
            reply.send(&Response::Members(members)).await?;
        }
        Ok(())
    }
}

/// What a node says, who it is, and where it is reached if it is a worker.
async fn meet_at(link: &Link, meet: Meet) -> Result<(Met, NodeId, Option<SocketAddr>), LinkError> {
    let request = Request::Meet(meet);
    let patience = Patience::coordinator();
    let mut answer = link.call(&request, Bytes::new(), patience).await?;
    let Response::Met(met) = answer.next().await? else {
        return Err(LinkError::unexpected());
    };
    let uri = answer.peer();
    let addr = (uri.role() == Role::Worker).then_some(answer.addr());
    Ok((met, uri.id(), addr))
}
