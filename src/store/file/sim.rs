//! A disk in memory with a live and a durable image, for tests that cut the power.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, DiskFile};

/// Operations that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Write,
    SetLen,
    SyncData,
    Rename,
    SyncDir,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Directories after each change since the last `sync_dir`.
    unsynced_names: Vec<BTreeMap<String, usize>>,
    ops: usize,
    power_off_after: Option<usize>,
    fail_next: Option<Op>,
    lies: bool,
    capacity: Option<u64>,
    written: u64,
}

#[derive(Debug, Default)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug)]
pub(crate) struct SimFile {
    disk: SimDisk,
    node: usize,
}

impl SimDisk {
    /// From the `ops`-th changing operation on, everything fails: the power is off.
    pub(crate) fn power_off_after(&self, ops: usize) {
        self.state().power_off_after = Some(ops);
    }

    /// Changing operations so far.
    pub(crate) fn ops(&self) -> usize {
        self.state().ops
    }

    pub(crate) fn fail_next(&self, op: Op) {
        self.state().fail_next = Some(op);
    }

    /// Whether a sync says that it has happened and writes nothing, now or later.
    #[cfg(feature = "sim")]
    pub(crate) fn lie(&self, lies: bool) {
        self.state().lies = lies;
    }

    /// Nothing that was asked to fail does so any more.
    #[cfg(feature = "sim")]
    pub(crate) fn repair(&self) {
        let mut state = self.state();
        state.fail_next = None;
        state.power_off_after = None;
    }

    /// Files can grow by this many more bytes together; what shrinks gives its space back.
    /// `None` is no limit.
    pub(crate) fn space_left(&self, bytes: Option<u64>) {
        let mut state = self.state();
        let used = state.used();
        state.capacity = bytes.map(|bytes| used + bytes);
    }

    /// Bytes written so far.
    #[cfg(test)]
    pub(crate) fn written(&self) -> u64 {
        self.state().written
    }

    /// Bytes of all files that have a name.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.state().used()
    }

    /// The disk as a new boot might find it: all that was synced, and by chance any of the rest.
    pub(crate) fn crash(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.state();
        let names_kept = rng.random_range(0..=state.unsynced_names.len());
        let names = match names_kept.checked_sub(1) {
            None => &state.durable_names,
            Some(last) => &state.unsynced_names[last],
        };
        let nodes = state
            .nodes
            .iter()
            .map(|node| node.crash(&mut rng))
            .collect();
        Self(Arc::new(Mutex::new(State {
            nodes,
            names: names.clone(),
            durable_names: names.clone(),
            ..State::default()
        })))
    }

    /// The live content of `name`.
    pub(crate) fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        Some(state.nodes[*state.names.get(name)?].live.clone())
    }

    /// A durable file, as if it had always been there.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let mut state = self.state();
        let node = state.nodes.len();
        state.nodes.push(Node {
            live: content.to_vec(),
            durable: content.to_vec(),
            unsynced: Vec::new(),
        });
        state.names.insert(name.to_owned(), node);
        state.durable_names.insert(name.to_owned(), node);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the lock held")
    }

    fn file(&self, node: usize) -> SimFile {
        let disk = self.clone();
        SimFile { disk, node }
    }
}

impl State {
    fn begin(&mut self, op: Op) -> io::Result<()> {
        self.ops += 1;
        if self.is_off() {
            return Err(io::Error::other("the power is off"));
        }
        if self.fail_next == Some(op) {
            self.fail_next = None;
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        let lens = self.names.values().map(|&node| self.nodes[node].live.len());
        lens.sum::<usize>() as u64
    }

    /// How many of `len` bytes at `offset` of a file there is space for.
    fn room(&self, node: usize, offset: u64, len: usize) -> usize {
        let Some(capacity) = self.capacity else {
            return len;
        };
        let old = self.nodes[node].live.len() as u64;
        let end = old + capacity.saturating_sub(self.used());
        len.min(end.saturating_sub(offset) as usize)
    }

    fn is_off(&self) -> bool {
        self.power_off_after.is_some_and(|limit| self.ops > limit)
    }

    fn change_names(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        change(&mut self.names);
        self.unsynced_names.push(self.names.clone());
    }
}

impl Node {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// As Linux does: after a failed sync the pages count as clean. Until the next boot they are
    /// read as they were written, and no sync writes them. A length is kept like names are.
    fn fail_sync(&mut self) {
        self.unsynced
            .retain(|change| matches!(change, Change::SetLen(_)));
    }

    fn crash(&self, rng: &mut StdRng) -> Self {
        let mut durable = self.durable.clone();
        for change in &self.unsynced {
            match change {
                _ if rng.random_ratio(1, 3) => {}
                Change::Write(offset, bytes) if rng.random_ratio(1, 2) => {
                    let torn = bytes[..rng.random_range(0..=bytes.len())].to_vec();
                    Change::Write(*offset, torn).apply(&mut durable);
                }
                change => change.apply(&mut durable),
            }
        }
        Self {
            live: durable.clone(),
            durable,
            unsynced: Vec::new(),
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => content.resize(*len as usize, 0),
            Self::Write(offset, bytes) => {
                let start = *offset as usize;
                let end = start + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
            }
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, name: &str) -> io::Result<Option<SimFile>> {
        let node = self.state().names.get(name).copied();
        Ok(node.map(|node| self.file(node)))
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        state.begin(Op::Write)?;
        let node = state.nodes.len();
        state.nodes.push(Node::default());
        state.change_names(|names| {
            names.insert(name.to_owned(), node);
        });
        Ok(self.file(node))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Op::Rename)?;
        let Some(&node) = state.names.get(from) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.change_names(|names| {
            names.remove(from);
            names.insert(to.to_owned(), node);
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Op::Rename)?;
        state.change_names(|names| {
            names.remove(name);
        });
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Op::SyncDir)?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let begun = state.begin(Op::Write);
        let room = match &begun {
            // A write that fails has often written something.
            Err(_) => bytes.len() / 2,
            Ok(()) => state.room(self.node, offset, bytes.len()),
        };
        let written = bytes[..room].to_vec();
        state.written += room as u64;
        state.nodes[self.node].change(Change::Write(offset, written));
        begun?;
        if room < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        let live = &state.nodes[self.node].live;
        let start = live.len().min(offset as usize);
        let rest = &live[start..];
        if rest.len() < buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&rest[..buf.len()]);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().nodes[self.node].live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin(Op::SetLen)?;
        state.nodes[self.node].change(Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let begun = state.begin(Op::SyncData);
        if state.is_off() {
            return begun;
        }
        let lies = state.lies;
        let node = &mut state.nodes[self.node];
        match begun {
            Ok(()) if !lies => node.sync(),
            Ok(()) | Err(_) => node.fail_sync(),
        }
        begun
    }
}
