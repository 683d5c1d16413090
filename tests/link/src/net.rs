//! Nodes in namespaces of their own, and the rules of the links between them.

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};

use crate::forward::{self, State};
use crate::link::{Counters, Link};
use crate::rule::Rule;
use crate::scenario::Scenario;
use crate::sys::{self, Space};

/// Nodes of one net: every pair has two links, and one thread carries for all of them.
pub const NODES_MAX: usize = 64;

/// A node's second address has a number that is higher by this.
const SECOND: u8 = 100;

/// Names that a net has no packet for.
const PREFIX: [u8; 3] = [10, 77, 0];

/// What this machine lacks.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Namespaces and devices are for root.
    #[error("not allowed to make a network namespace; run it as root, such as with `sudo -E`: {0}")]
    Root(#[source] io::Error),
    /// The TUN driver has no device file.
    #[error(
        "no /dev/net/tun; `modprobe tun`, or as root \
         `mkdir -p /dev/net && mknod /dev/net/tun c 10 200` (in a container: --device /dev/net/tun): {0}"
    )]
    Tun(#[source] io::Error),
    /// Something else failed.
    #[error("cannot make a network namespace with a TUN device: {0}")]
    Other(#[source] io::Error),
}

impl Missing {
    fn new(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Root(error),
            _ => Self::Other(error),
        }
    }
}

/// Whether nets can be made here, by making a node.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), Missing> {
    if let Err(error) = sys::open_tun()
        && error.kind() != io::ErrorKind::PermissionDenied
    {
        return Err(Missing::Tun(error));
    }
    let made = Space::new(address(1), Options::default().mtu);
    made.map(drop).map_err(Missing::new)
}

/// How a net begins.
#[derive(Debug, Clone)]
pub struct Options {
    /// MTU of every node's device in bytes, at least 68. A shorter path is for [`Rule::mtu`].
    pub mtu: u16,
    /// Where all randomness comes from.
    pub seed: u64,
    /// The rule of every link.
    pub rule: Rule,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mtu: 1_500,
            seed: 1,
            rule: Rule::default(),
        }
    }
}

/// One node: a network namespace with loopback and one device.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    space: Arc<OwnedFd>,
}

impl Node {
    /// What its scenario calls it, or its number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the others find it, unless it has taken its other address.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where the others find it once it has [taken](Self::take_address) this address.
    pub fn second_address(&self) -> Ipv4Addr {
        let [a, b, c, number] = self.address.octets();
        Ipv4Addr::new(a, b, c, number + SECOND)
    }

    /// Gives the node's device one of its addresses instead of the one that it has, as a machine
    /// gets another from a network that it moves to.
    ///
    /// # Errors
    /// What the system said.
    pub fn take_address(&self, address: Ipv4Addr) -> io::Result<()> {
        self.inside(|| sys::set_address(address))?
    }

    /// A command that will run in this node. It is killed when the thread that started it ends,
    /// so that nothing outlives a crash: start it in a thread that stays.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        sys::command(&self.space, program.as_ref())
    }

    /// Does something in this node, on a thread of its own. Sockets that it opens stay of this
    /// node wherever they are used.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panicked.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let done = thread::scope(|scope| {
            let work = || sys::enter(&self.space).map(|()| work());
            scope.spawn(work).join()
        });
        done.map_err(|_| io::Error::other("what was done in a node panicked"))?
    }
}

/// Nodes, the links between them, and the thread that carries packets. It all ends when dropped.
#[derive(Debug)]
pub struct Net {
    nodes: Vec<Node>,
    base: Rule,
    state: Arc<Mutex<State>>,
    forwarder: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

impl Net {
    /// A net of `nodes`, at most [`NODES_MAX`], numbered from 1.
    ///
    /// # Errors
    /// What this machine lacks.
    ///
    /// # Panics
    /// When there are none or too many.
    pub fn new(nodes: usize, options: Options) -> Result<Self, Missing> {
        let names = (1..=nodes).map(|number| number.to_string());
        Self::of_names(names.collect(), options)
    }

    /// The net of a scenario, as it is before the first step. `seed` replaces the scenario's.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn of(scenario: &Scenario, seed: Option<u64>) -> Result<Self, Missing> {
        let options = Options {
            seed: seed.unwrap_or_else(|| scenario.seed()),
            rule: scenario.base(),
            ..Options::default()
        };
        Self::of_names(scenario.nodes().to_vec(), options)
    }

    fn of_names(names: Vec<String>, options: Options) -> Result<Self, Missing> {
        let count = names.len();
        assert!((1..=NODES_MAX).contains(&count), "{count} nodes");
        let mut nodes = Vec::new();
        let mut tuns = Vec::new();
        for (name, number) in names.into_iter().zip(1..) {
            let address = address(number);
            let space = Space::new(address, options.mtu).map_err(Missing::new)?;
            nodes.push(Node {
                name,
                address,
                space: space.handle,
            });
            tuns.push(space.tun);
        }
        let links = (0..count * count).map(|index| {
            let (from, to) = (index / count + 1, index % count + 1);
            Link::new(options.rule.clone(), options.seed, from, to)
        });
        let state = Arc::new(Mutex::new(State::new(count, links.collect())));
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| Missing::Other(error.into()))?);
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let forwarder = thread::Builder::new()
            .name("link-forward".to_owned())
            .spawn(move || forward::run(&tuns, &shared, &stopped))
            .map_err(Missing::Other)?;
        Ok(Self {
            nodes,
            base: options.rule,
            state,
            forwarder: Some(forwarder),
            stop,
        })
    }

    /// The node with a number from 1.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The node of a name.
    pub fn find(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Changes the rule of one direction. When it returns, the new rule holds.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Rule)) {
        let mut state = self.state();
        let link = state.link(from, to);
        let mut rule = link.rule().clone();
        change(&mut rule);
        link.set_rule(rule);
    }

    /// Cuts one direction. When it returns, nothing arrives any more.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn cut(&self, from: usize, to: usize) {
        self.change(from, to, |rule| rule.cut = true);
    }

    /// Ends the cut of one direction.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn heal(&self, from: usize, to: usize) {
        self.change(from, to, |rule| rule.cut = false);
    }

    /// Gives one direction the rule that it began with.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn reset(&self, from: usize, to: usize) {
        self.change(from, to, |rule| *rule = self.base.clone());
    }

    /// What happened on one direction.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn counters(&self, from: usize, to: usize) -> Counters {
        self.state().link(from, to).counters()
    }

    /// Packets that went to no node, such as broadcasts.
    pub fn strays(&self) -> u64 {
        self.state().strays()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(forwarder) = self.forwarder.take() {
            let _ = forwarder.join();
        }
    }
}

/// The address of the node with a number from 1.
fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = PREFIX;
    Ipv4Addr::new(a, b, c, number)
}

/// Which node a packet is for, by number from 1.
pub(crate) fn receiver(packet: &[u8]) -> Option<usize> {
    let is_v4 = packet.first()? >> 4 == 4;
    let address = packet.get(16..20)?;
    let (prefix, number) = (&address[..3], address[3]);
    let number = number.checked_sub(SECOND).unwrap_or(number);
    (is_v4 && prefix == PREFIX).then_some(usize::from(number))
}
