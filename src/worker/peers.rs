//! Links to peers: those of the configuration, and members, which are dialled when they are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock;
use crate::identity::NodeId;
use crate::net::{Endpoint, Link, Wanted};
use crate::proto::Time;
use crate::proto::limit::{MAX_MEMBERS, MAX_PASSING_PEERS};
use crate::proto::worker::Neighbour;

/// Links to members that are kept however long ago they were used. Beyond it those that were not
/// used for [`UNUSED`] are dropped.
const MAX_IDLE_LINKS: usize = 64;

/// See [`MAX_IDLE_LINKS`].
const UNUSED: Duration = Duration::from_secs(60);

/// Every peer that may be asked, and the links to some of them.
#[derive(Debug)]
pub(super) struct PeerLinks {
    endpoint: Endpoint,
    /// In the order of the configuration, each under the id of its address.
    fixed: Vec<(NodeId, Link)>,
    members: BTreeMap<NodeId, Member>,
}

#[derive(Debug)]
struct Member {
    addr: String,
    /// It is none: the coordinator named it, and it is known as long as there is a link to it.
    passing: bool,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    link: Link,
    used: Time,
}

impl PeerLinks {
    /// Links to `fixed` addresses. Nothing is sent yet.
    pub(super) fn new(endpoint: &Endpoint, fixed: &[String]) -> Self {
        let link = |addr: &String| {
            let link = Link::new(endpoint, addr, Wanted::Peer);
            (NodeId::of_addr(addr), link)
        };
        Self {
            endpoint: endpoint.clone(),
            fixed: fixed.iter().map(link).collect(),
            members: BTreeMap::new(),
        }
    }

    /// These are the members from now on, at most [`MAX_MEMBERS`]. Links to others end with the
    /// last call over them.
    pub(super) fn set(&mut self, members: &[Neighbour]) {
        let members = &members[..members.len().min(MAX_MEMBERS)];
        let ids: BTreeSet<_> = members.iter().map(|member| member.id).collect();
        self.members
            .retain(|id, member| member.passing || ids.contains(id));
        for Neighbour { id, addr } in members {
            self.at(*id, addr).passing = false;
        }
    }

    /// What is known of a node; nothing more than its address, if it is new or has moved.
    fn at(&mut self, id: NodeId, addr: &str) -> &mut Member {
        let member = self.members.entry(id).or_insert_with(|| Member {
            addr: addr.to_owned(),
            passing: true,
            open: None,
        });
        if member.addr != addr {
            addr.clone_into(&mut member.addr);
            member.open = None;
        }
        member
    }

    /// The link to a worker that is no member, at the address that the coordinator named.
    pub(super) fn passing(&mut self, id: NodeId, addr: &str) -> Option<Link> {
        self.passing_at(id, addr, clock::now())
    }

    fn passing_at(&mut self, id: NodeId, addr: &str, now: Time) -> Option<Link> {
        if self.members.get(&id).is_none_or(|member| member.passing) {
            self.at(id, addr);
        }
        let link = self.link_at(id, now);
        self.drop_oldest_passing();
        link
    }

    /// The link to a fixed peer or a member; `None` if it is neither.
    pub(super) fn link(&mut self, id: NodeId) -> Option<Link> {
        self.link_at(id, clock::now())
    }

    fn link_at(&mut self, id: NodeId, now: Time) -> Option<Link> {
        if let Some((_, link)) = self.fixed.iter().find(|(fixed, _)| *fixed == id) {
            return Some(link.clone());
        }
        let member = self.members.get_mut(&id)?;
        if let Some(open) = &mut member.open {
            open.used = now;
            return Some(open.link.clone());
        }
        let link = Link::new(&self.endpoint, &member.addr, Wanted::Node(id));
        member.open = Some(Open {
            link: link.clone(),
            used: now,
        });
        self.drop_unused(now);
        Some(link)
    }

    /// The one in passing that was used least lately makes room for another.
    fn drop_oldest_passing(&mut self) {
        let passing = self.members.iter().filter(|(_, member)| member.passing);
        if passing.clone().count() > MAX_PASSING_PEERS {
            let used = |member: &Member| member.open.as_ref().map(|open| open.used);
            let oldest = passing.min_by_key(|(_, member)| used(member));
            if let Some(id) = oldest.map(|(&id, _)| id) {
                self.members.remove(&id);
            }
        }
    }

    fn drop_unused(&mut self, now: Time) {
        let open = self.members.values().filter(|member| member.open.is_some());
        if open.count() > MAX_IDLE_LINKS {
            for member in self.members.values_mut() {
                member.open.take_if(|open| now.since(open.used) >= UNUSED);
            }
            self.members
                .retain(|_, member| member.open.is_some() || !member.passing);
        }
    }

    /// Every link that there is, those to fixed peers first.
    pub(super) fn all(&self) -> Vec<Link> {
        let fixed = self.fixed.iter().map(|(_, link)| link.clone());
        let open = self.members.values().filter_map(|member| {
            let open = member.open.as_ref()?;
            Some(open.link.clone())
        });
        fixed.chain(open).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{EndpointOptions, Limits, Port, Runtime};
    use crate::spec::MAX_SPEC_LEN;
    use crate::trust::{Identity, IdentityOptions, IdentityPaths, issue};

    fn members(count: usize) -> Vec<Neighbour> {
        let member = |n: usize| Neighbour {
            id: NodeId::of_addr(&format!("node {n}")),
            addr: format!("127.0.0.1:{}", 7_000 + n),
        };
        (0..count).map(member).collect()
    }

    #[test]
    fn members_are_linked_when_they_are_needed_and_dropped_when_many_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        issue::throwaway(dir.path()).expect("throwaway");
        let runtime = Runtime::start().expect("a thread");
        let paths = IdentityPaths::in_dir(&dir.path().join("dev/worker/w1"));
        let identity = Identity::load(paths, IdentityOptions::default()).expect("an identity");
        let options = EndpointOptions {
            reset_key: [7; 32],
            agent: "test".into(),
            max_spec_len: MAX_SPEC_LEN,
            limits: Limits::default(),
            congestion: crate::net::Congestion::default(),
        };
        let addr = "127.0.0.1:0".parse().expect("an address");
        let port = Port::bind(addr, identity.uri().cluster()).expect("a port");
        let endpoint = Endpoint::start(runtime.handle(), port, identity, options).expect("started");

        let fixed = "127.0.0.1:1".to_owned();
        let mut links = PeerLinks::new(&endpoint, std::slice::from_ref(&fixed));
        let all = members(MAX_IDLE_LINKS + 2);
        links.set(&all);
        assert_eq!(links.all().len(), 1, "no member was needed yet");
        let start = Time::from_micros(1);
        for member in &all[..=MAX_IDLE_LINKS] {
            assert!(links.link_at(member.id, start).is_some());
        }
        assert_eq!(
            links.all().len(),
            MAX_IDLE_LINKS + 2,
            "all were used just now"
        );
        let last = &all[MAX_IDLE_LINKS + 1];
        assert!(links.link_at(all[0].id, start + UNUSED).is_some());
        assert!(links.link_at(last.id, start + UNUSED).is_some());
        assert_eq!(links.all().len(), 3, "the fixed one and those two");

        links.set(&all[..1]);
        assert!(links.link(last.id).is_none());
        assert!(links.link(NodeId::of_addr(&fixed)).is_some());
        let moved = Neighbour {
            addr: "127.0.0.1:2".into(),
            ..all[0].clone()
        };
        links.set(std::slice::from_ref(&moved));
        let link = links.link(moved.id).expect("a member");
        assert_eq!(link.addr(), moved.addr);

        let strangers = members(MAX_PASSING_PEERS + 2);
        for (n, stranger) in strangers.iter().enumerate().skip(1) {
            let at = start + Duration::from_micros(n as u64);
            assert!(links.passing_at(stranger.id, "127.0.0.1:3", at).is_some());
        }
        assert!(links.link(strangers[1].id).is_none(), "the oldest");
        assert!(links.link(strangers[2].id).is_some());
        let same = links.passing_at(moved.id, "127.0.0.1:3", start);
        let same = same.expect("a member");
        assert_eq!(same.addr(), moved.addr, "which membership knows better");
        links.set(&[]);
        assert_eq!(links.all().len(), 1 + MAX_PASSING_PEERS);
    }
}
