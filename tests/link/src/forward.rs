//! The thread that carries packets: it reads every device, asks the link, waits, and writes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::link::Link;
use crate::net::receiver;
use crate::now;

/// Longest IP packet.
const PACKET_MAX: usize = 65_535;

/// Packets that are read from one device before others have their turn.
const BATCH: usize = 64;

/// A packet under way. The heap gives the earliest, and of equals the first that was sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    due: Duration,
    number: u64,
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

/// What the carrier shares with those who change rules.
#[derive(Debug)]
pub(crate) struct State {
    nodes: usize,
    /// By sender, then by receiver. Each bounds what is under way on it.
    links: Vec<Link>,
    parcels: BinaryHeap<Reverse<Parcel>>,
    numbers: u64,
    strays: u64,
}

impl State {
    pub(crate) const fn new(nodes: usize, links: Vec<Link>) -> Self {
        Self {
            nodes,
            links,
            parcels: BinaryHeap::new(),
            numbers: 0,
            strays: 0,
        }
    }

    /// One direction, by node numbers from 1.
    pub(crate) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let is_known = |node| (1..=self.nodes).contains(&node);
        assert!(is_known(from) && is_known(to), "no link {from} -> {to}");
        &mut self.links[(from - 1) * self.nodes + to - 1]
    }

    pub(crate) const fn strays(&self) -> u64 {
        self.strays
    }

    fn take(&mut self, from: usize, bytes: &[u8], now: Duration) {
        let to = receiver(bytes).filter(|to| (1..=self.nodes).contains(to));
        let Some(to) = to else {
            self.strays += 1;
            return;
        };
        let Ok(passage) = self.link(from, to).admit(bytes.len(), now) else {
            return;
        };
        for due in [Some(passage.due), passage.copy].into_iter().flatten() {
            self.numbers += 1;
            self.parcels.push(Reverse(Parcel {
                due,
                number: self.numbers,
                from,
                to,
                bytes: bytes.to_vec(),
            }));
        }
    }

    /// Writes what is due. A cut that is set holds for all that comes after it, since both happen
    /// under the lock.
    fn deliver(&mut self, tuns: &[File], now: Duration) {
        while let Some(Reverse(parcel)) = self.parcels.peek()
            && parcel.due <= now
            && let Some(Reverse(parcel)) = self.parcels.pop()
        {
            let Parcel {
                from, to, bytes, ..
            } = parcel;
            let link = self.link(from, to);
            if !link.arrive(bytes.len()) {
                continue;
            }
            let mut tun = &tuns[to - 1];
            if tun.write(&bytes).is_err() {
                link.refuse(bytes.len());
            }
        }
    }

    fn wait(&self, now: Duration) -> Option<Duration> {
        let Reverse(parcel) = self.parcels.peek()?;
        Some(parcel.due.saturating_sub(now))
    }
}

/// Carries packets until `stop` can be read.
pub(crate) fn run(tuns: &[File], state: &Mutex<State>, stop: &OwnedFd) {
    if let Err(error) = carry(tuns, state, stop) {
        eprintln!("link: no packet is carried any more: {error}");
    }
}

fn carry(tuns: &[File], state: &Mutex<State>, stop: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; PACKET_MAX];
    let mut fds: Vec<_> = tuns
        .iter()
        .map(|tun| PollFd::new(tun, PollFlags::IN))
        .collect();
    fds.push(PollFd::new(stop, PollFlags::IN));
    loop {
        let wait = lock(state).wait(now());
        let wait = wait.map(|wait| Timespec::try_from(wait).map_err(io::Error::other));
        match poll(&mut fds, wait.transpose()?.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut state = lock(state);
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        if fds.last().is_some_and(is_ready) {
            return Ok(());
        }
        for (index, tun) in tuns.iter().enumerate().filter(|(i, _)| is_ready(&fds[*i])) {
            read(tun, index + 1, &mut state, &mut buffer)?;
        }
        state.deliver(tuns, now());
    }
}

fn read(mut tun: &File, from: usize, state: &mut State, buffer: &mut [u8]) -> io::Result<()> {
    for _ in 0..BATCH {
        match tun.read(buffer) {
            Ok(len) => state.take(from, &buffer[..len], now()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
