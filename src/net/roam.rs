//! What a node does when its machine's addresses change, as between a cable and a radio network:
//! its connections go on from the new address.
//!
//! QUIC knows a connection by its number, and who accepted it follows whoever dialled to another
//! address. So a connection that this node has dialled goes on once a packet leaves from the new
//! address, which a rebind makes happen at once. One that others have dialled cannot: they take
//! packets from the address alone that they dialled. It is closed, and they dial again.
//!
//! A socket on the wildcard address sends from wherever the kernel's routes say. One on an address
//! of its own is dead when that is gone, and is replaced by one on the address that the kernel
//! would send from, until its own is back. Nothing announces a change: the kernel is asked now and
//! then, which sends no packet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::endpoint::{Endpoint, Shared};
use super::socket::Port;

/// How often the kernel is asked, in a few system calls: well below any useful lease, so that a
/// session goes on.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Before the socket is replaced, time for connections that are closed to say so in vain: what the
/// kernel refuses makes quinn send in a slower way for as long as that socket lives.
const CLOSE_LINGER: Duration = Duration::from_millis(5);

/// What the kernel says of this machine's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Whether the address that this node was told to have is there. The wildcard always is.
    has_own: bool,
    /// Where a packet to the peer that matters would come from, if it could be sent.
    source: Option<IpAddr>,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Stay,
    /// Peers are shown the address that this socket has now.
    Show,
    /// A socket on this address takes the place of the present one.
    Replace(IpAddr),
}

/// What was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Roam {
    /// What this node was told to have.
    own: IpAddr,
    /// What its socket is bound to.
    bound: IpAddr,
    /// Where its packets came from when they last could be sent.
    source: Option<IpAddr>,
    /// They cannot be sent.
    is_cut: bool,
}

impl Roam {
    fn new(own: IpAddr) -> Self {
        Self {
            own,
            bound: own,
            source: (!own.is_unspecified()).then_some(own),
            is_cut: false,
        }
    }

    /// The address to be at; `None` while there is none.
    fn wanted(&self, seen: Seen) -> Option<IpAddr> {
        let is_usable = |source: &IpAddr| source.is_ipv4() == self.own.is_ipv4();
        match self.own.is_unspecified() {
            false if seen.has_own => Some(self.own),
            false => seen.source.filter(is_usable),
            true => seen.source,
        }
    }

    fn step(&mut self, seen: Seen) -> Step {
        let Some(wanted) = self.wanted(seen) else {
            self.is_cut = true;
            return Step::Stay;
        };
        let was_cut = std::mem::take(&mut self.is_cut);
        // The first source of a wildcard is no change.
        let has_changed = self.source.is_some_and(|source| source != wanted);
        let step = match self.own.is_unspecified() {
            false if self.bound != wanted => return Step::Replace(wanted),
            _ if has_changed || was_cut => Step::Show,
            _ => Step::Stay,
        };
        self.source = Some(wanted);
        step
    }

    /// The socket was replaced.
    fn replaced(&mut self, bound: IpAddr) {
        self.bound = bound;
        self.source = Some(bound);
    }
}

impl Endpoint {
    /// Follows this machine's addresses until the drain. `toward` names a peer that has to be
    /// reached, once one is known. On a loopback address nothing ever changes.
    pub fn roam(&self, toward: impl Fn() -> Option<SocketAddr> + Send + 'static) {
        let own = self.local_addr().ip();
        if !own.to_canonical().is_loopback() {
            let shared = Arc::downgrade(&self.0);
            self.0.handle.spawn(roam(shared, own, toward));
        }
    }

    /// Tells where this node's packets come from after each change of that; `None` before the
    /// first.
    pub fn moves(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.0.moved.subscribe()
    }
}

async fn roam(shared: Weak<Shared>, own: IpAddr, toward: impl Fn() -> Option<SocketAddr>) {
    let mut roam = Roam::new(own);
    let mut peer = None;
    let mut is_stuck = false;
    loop {
        sleep(LOOK_EVERY).await;
        let Some(shared) = shared.upgrade().filter(|shared| !shared.is_draining()) else {
            return;
        };
        peer = toward().or(peer);
        let Some(peer) = peer else { continue };
        let before = roam.source;
        let step = roam.step(Seen {
            has_own: own.is_unspecified() || is_here(own),
            source: source_toward(peer),
        });
        let done = match step {
            Step::Stay => continue,
            Step::Show => shared.show().await,
            Step::Replace(to) => shared.replace(to).await.inspect(|()| roam.replaced(to)),
        };
        match done {
            Ok(()) => shared.tell(before, roam.source),
            Err(ref error) if !is_stuck => {
                let hint = "it is tried again; if this goes on, restart this node, or let it listen on \
                            a wildcard address";
                tracing::warn!(
                    %error,
                    ?step,
                    hint,
                    "this machine's address has changed, and no socket follows"
                );
            }
            Err(_) => {}
        }
        is_stuck = done.is_err();
        // Tried again at the next look.
        roam.is_cut |= is_stuck;
    }
}

impl Shared {
    /// Has every connection send something, so that peers see where it comes from.
    async fn show(&self) -> io::Result<()> {
        let socket = self.clone_socket()?;
        self.close_unreachable().await;
        // A clone is the same socket to the kernel, and forgets what the kernel has refused.
        self.quinn.rebind(socket)
    }

    /// Goes on with a socket on another address, on the same port if that is free there.
    async fn replace(&self, to: IpAddr) -> io::Result<()> {
        let cluster = self.identity.uri().cluster();
        let port = self.addr().port();
        let bound = Port::bind(SocketAddr::new(to, port), cluster)
            .or_else(|_| Port::bind(SocketAddr::new(to, 0), cluster));
        let Port { socket, addr } = bound.map_err(io::Error::other)?;
        let kept = socket.try_clone()?;
        self.close_unreachable().await;
        self.quinn.rebind(socket)?;
        self.set_socket(kept, addr);
        Ok(())
    }

    /// Closes the connections that others have dialled to an address which is gone.
    async fn close_unreachable(&self) {
        if self.live.close_at(|ip| !is_here(ip)) > 0 {
            sleep(CLOSE_LINGER).await;
        }
    }

    fn tell(&self, from: Option<IpAddr>, to: Option<IpAddr>) {
        let Some(to) = to else { return };
        let from = from.unwrap_or(to);
        if from == to {
            tracing::info!(addr = %to, "this machine has its address again");
        } else {
            tracing::info!(%from, %to, "this machine's address has changed; connections go on from the new one");
        }
        metrics::counter!("larder_address_changes_total").increment(1);
        let addr = SocketAddr::new(to, self.addr().port());
        self.moved.send_replace(Some(addr));
    }
}

/// Whether this machine has an address now.
fn is_here(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind(SocketAddr::new(ip, 0));
    !bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// Where a packet to `peer` would come from. None is sent.
fn source_toward(peer: SocketAddr) -> Option<IpAddr> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(peer).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
}

#[cfg(test)]
impl Endpoint {
    /// Goes on from `to`, as if the address before were gone.
    pub(super) async fn move_for_test(&self, to: IpAddr) {
        let endpoint = self.clone();
        let replaced = async move { endpoint.0.replace(to).await };
        let replaced = self.0.handle.spawn(replaced).await;
        replaced.expect("no panic").expect("a socket");
    }

    /// Where the connections that are open lead.
    pub(super) fn remotes_for_test(&self) -> Vec<SocketAddr> {
        self.0.live.remotes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    /// Hands over what is seen and returns what follows; every replacement succeeds.
    fn steps(own: IpAddr, seen: &[(bool, Option<IpAddr>)]) -> Vec<Step> {
        let mut roam = Roam::new(own);
        let step = |&(has_own, source)| {
            let step = roam.step(Seen { has_own, source });
            if let Step::Replace(to) = step {
                roam.replaced(to);
            }
            step
        };
        seen.iter().map(step).collect()
    }

    #[test]
    fn a_wildcard_socket_is_shown_when_its_source_changes_or_is_back() {
        use Step::{Show, Stay};
        let seen = [
            None,
            Some(A),
            Some(A),
            Some(B),
            Some(B),
            None,
            None,
            Some(B),
        ];
        let steps = steps(ANY, &seen.map(|source| (true, source)));
        // At the first nothing was there to send from.
        assert_eq!(steps, [Stay, Show, Stay, Show, Stay, Stay, Stay, Show]);
    }

    #[test]
    fn a_socket_on_an_address_is_replaced_when_that_is_gone_and_goes_back_to_it() {
        use Step::{Replace, Stay};
        let seen = [
            (true, Some(A)),
            // Routes alone are no reason.
            (true, Some(B)),
            (false, None),
            (false, Some(B)),
            (false, Some(B)),
            (true, Some(B)),
            (true, Some(B)),
        ];
        let steps = steps(A, &seen);
        let back = [Replace(A), Stay];
        assert_eq!(steps[..5], [Stay, Stay, Stay, Replace(B), Stay]);
        assert_eq!(steps[5..], back);
    }

    #[test]
    fn an_address_that_was_away_for_a_moment_is_shown_again() {
        let seen = [(true, Some(A)), (false, None), (true, Some(A))];
        assert_eq!(steps(A, &seen)[2], Step::Show);
    }

    #[test]
    fn an_address_of_the_other_family_is_of_no_use() {
        let other = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(steps(A, &[(false, Some(other))]), [Step::Stay]);
    }

    #[test]
    fn the_kernel_tells_what_is_here() {
        let here = Ipv4Addr::LOCALHOST.into();
        assert!(is_here(here) && !is_here(A));
        assert_eq!(source_toward(SocketAddr::new(here, 9)), Some(here));
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
        assert_eq!(source_toward(SocketAddr::new(mapped, 9)), Some(here));
    }
}
