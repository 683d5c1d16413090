use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::held::{self, Held};
use super::{CACHE, Home, WorkerStore, put_used};
use crate::catalog::Revision;
use crate::identity::Role;
use crate::spec::{Spec, SpecHash, SpecName};
use crate::store::blobs::{self, MAX_QUARANTINE};
use crate::store::disk::{SledStore, io_error};
use crate::store::file::sync_dir;
use crate::store::meta::{Meta, MetaError};
use crate::store::{Batch, Store, StoreError, Tree};

const NEW: &str = "cache.new";

/// sled settles at up to 2.8 times what lives in it and never shrinks; more than this factor, and
/// the slack on top, is worth a copy.
const FACTOR: u64 = 3;

/// Bytes and operations that are copied together: one large body, or many small ones.
const COPY_BYTES: u64 = 1 << 20;
/// See [`COPY_BYTES`].
const COPY_OPS: usize = 256;

/// What a compaction or a rebuild did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes on disk before.
    pub bytes_before: u64,
    /// Bytes on disk now.
    pub bytes_after: u64,
    /// Blobs that could not be read, or were not what they should be; they are fetched again.
    pub lost_blobs: usize,
    /// Lines about names that could not be read; they are asked again.
    pub lost_lines: usize,
}

/// What is to be copied, as it is known in memory: a damaged tree cannot be listed.
struct Plan {
    /// Hash, number of the last use, length.
    blobs: Vec<(SpecHash, u64, u64)>,
    lines: Vec<(SpecName, Revision)>,
}

#[derive(Default)]
struct Lost {
    blobs: BTreeSet<SpecHash>,
    lines: BTreeSet<(SpecName, Revision)>,
}

impl WorkerStore {
    /// Copies what lives into a new store and changes to it, if the disk holds more than three
    /// times as much and the slack; `None` if it does not.
    ///
    /// Reads go on meanwhile; changes wait.
    ///
    /// # Errors
    /// [`StoreError`]; the old store stays in use.
    pub fn compact(&self) -> Result<Option<Compacted>, StoreError> {
        let Some(home) = &self.home else {
            return Ok(None);
        };
        let live = self.live_bytes().saturating_mul(FACTOR);
        let worth_it = live.saturating_add(home.options.slack_bytes);
        if self.size_on_disk()? <= worth_it {
            return Ok(None);
        }
        let _writer = self.writer();
        self.copy_and_swap(home).map(Some)
    }

    /// Replaces the store by a copy of what can be read; the caller holds the writer's lock.
    pub(super) fn copy_and_swap(&self, home: &Home) -> Result<Compacted, StoreError> {
        // Damage may hide even that, and it is only told.
        let bytes_before = self.size_on_disk().unwrap_or(0);
        let copied = copy(&**self.store(), home, &self.plan());
        let lost = copied.inspect_err(|_| {
            // It is cleaned up at the next start at the latest.
            let _ = remove_dir(&home.dir.join(NEW));
        })?;
        self.change_over(home)?;
        self.forget_lost(&lost);
        Ok(Compacted {
            bytes_before,
            bytes_after: self.size_on_disk().unwrap_or(0),
            lost_blobs: lost.blobs.len(),
            lost_lines: lost.lines.len(),
        })
    }

    fn plan(&self) -> Plan {
        self.gather_uses();
        let mut usage = self.usage();
        // The copy has the last uses.
        usage.touched.clear();
        let blobs = usage.blobs.iter();
        let lines = usage.held.iter();
        Plan {
            blobs: blobs.map(|(hash, at, len)| (*hash, at, *len)).collect(),
            lines: lines.map(|(key, ..)| key.clone()).collect(),
        }
    }

    /// Changes to the finished copy. Readers wait for the exchange of a pointer, not for sled.
    fn change_over(&self, home: &Home) -> Result<(), StoreError> {
        let number = home.copies.load(Ordering::Relaxed);
        // sled finds its files by path, and the old one may still be closing when the new one
        // works: so each has a name that no other had before.
        let [old_dir, new_dir] = [number, number + 1].map(|n| home.dir.join(name(n)));
        home.copies.store(number + 1, Ordering::Relaxed);
        let opened = adopt(&home.dir, &new_dir)
            .and_then(|()| SledStore::open(&new_dir, home.options.cache_bytes));
        let new = match opened {
            Ok(new) => new,
            Err(error) => {
                home.copies.store(number, Ordering::Relaxed);
                remove_or_warn(&new_dir);
                return Err(error);
            }
        };
        let old = {
            let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *store, Box::new(new))
        };
        if catch_unwind(AssertUnwindSafe(|| drop(old))).is_err() {
            tracing::warn!("sled panicked while it closed a damaged store");
        }
        remove_or_warn(&old_dir);
        Ok(())
    }

    fn forget_lost(&self, lost: &Lost) {
        if lost.blobs.is_empty() && lost.lines.is_empty() {
            return;
        }
        let mut usage = self.usage();
        for hash in &lost.blobs {
            usage.remove(*hash);
        }
        for key in &lost.lines {
            usage.held.remove(key);
        }
        drop(usage);
        let (blobs, lines) = (lost.blobs.len(), lost.lines.len());
        metrics::counter!("larder_store_lost_total").increment((blobs + lines) as u64);
        tracing::warn!(
            blobs,
            lines,
            "not all of the store could be copied; what is lacking is fetched again"
        );
    }
}

/// What sled's directory is called after so many copies.
pub(super) fn name(copies: u64) -> String {
    match copies {
        0 => CACHE.to_owned(),
        number => format!("{CACHE}.{number}"),
    }
}

/// Finds the last finished copy and removes what else a process left. Whenever that is cut short,
/// the next start does the same.
pub(super) fn finish(dir: &Path) -> Result<u64, StoreError> {
    let tidy = || {
        remove_dir(&dir.join(NEW))?;
        let mut copies = copies(dir)?;
        let last = copies.pop().unwrap_or(0);
        if last > 0 {
            copies.push(0);
        }
        for older in copies {
            remove_dir(&dir.join(name(older)))?;
        }
        Ok(last)
    };
    tidy().map_err(io_error)
}

/// The numbers of finished copies, ascending.
fn copies(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix(CACHE).and_then(|n| n.strip_prefix('.'));
        let number = number.and_then(|number| number.parse::<u32>().ok());
        numbers.extend(number.map(u64::from));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Copies key by key what can be read, and says what could not.
fn copy(from: &dyn Store, home: &Home, plan: &Plan) -> Result<Lost, StoreError> {
    let path = home.dir.join(NEW);
    remove_dir(&path).map_err(io_error)?;
    let to = SledStore::open(&path, home.options.cache_bytes)?;
    let held = copy_meta(Meta::of(from), Meta::of(&to))?;
    let mut filling = Filling {
        to: &to,
        batch: Batch::new(),
        bytes: 0,
    };
    let mut lost = Lost::default();
    // Of what was damaged before, as much as can be listed.
    let quarantined = readable(from.scan(Tree::Quarantine, &[], MAX_QUARANTINE))?;
    for (key, value) in quarantined.unwrap_or_default() {
        filling.batch.put(Tree::Quarantine, key, value);
    }
    filling.empty()?;
    for &(hash, at, len) in &plan.blobs {
        match read_blob(from, hash)? {
            Ok(spec) => {
                blobs::put(&mut filling.batch, &spec);
                put_used(&mut filling.batch, hash, at, len);
                filling.grew(spec.len())?;
            }
            Err(reason) => {
                filling.empty()?;
                blobs::quarantine(&to, hash, &reason)?;
                lost.blobs.insert(hash);
            }
        }
    }
    for key in &plan.lines {
        match held.then(|| read_line(from, key)).transpose()?.flatten() {
            Some(line) => {
                line.put(&mut filling.batch);
                filling.grew(0)?;
            }
            None => {
                lost.lines.insert(key.clone());
            }
        }
    }
    filling.empty()?;
    to.sync()?;
    Ok(lost)
}

/// Copies the single values; says whether the lines about names are known to be of this epoch.
fn copy_meta(from: Meta<'_>, to: Meta<'_>) -> Result<bool, StoreError> {
    to.prepare(Role::Worker).map_err(store_error)?;
    if let Some(key) = readable_value(from.known_reset_key())? {
        to.reset_key(key).map_err(store_error)?;
    }
    if let Some(members) = readable_value(from.members())? {
        to.set_members(&members)?;
    }
    let held_of = readable_value(from.held_of())?;
    if let Some(life) = held_of {
        to.set_held_of(life)?;
    }
    Ok(held_of.is_some())
}

fn read_blob(from: &dyn Store, hash: SpecHash) -> Result<Result<Spec, String>, StoreError> {
    Ok(match from.get(Tree::Blobs, hash.as_bytes()) {
        Ok(Some(bytes)) => Spec::verify(hash, None, bytes).map_err(|error| error.to_string()),
        Ok(None) => Err("its bytes are gone".into()),
        Err(error @ StoreError::Damaged(_)) => Err(error.to_string()),
        Err(error) => return Err(error),
    })
}

fn read_line(
    from: &dyn Store,
    (name, rev): &(SpecName, Revision),
) -> Result<Option<Held>, StoreError> {
    let key = held::encode_key(name, *rev);
    let value = readable(from.get(Tree::Held, &key))?.flatten();
    Ok(value.and_then(|value| Held::decode(&key.into(), &value).ok()))
}

/// What was read, or nothing where the store is damaged.
fn readable<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same of a single value.
fn readable_value<T>(read: Result<Option<T>, MetaError>) -> Result<Option<T>, StoreError> {
    match read {
        Err(error) if error.is_damage() => Ok(None),
        read => read.map_err(store_error),
    }
}

/// Of a value that is no damage, nor of another format or role.
fn store_error(error: MetaError) -> StoreError {
    match error {
        MetaError::Store(error) => error,
        other => StoreError::Damaged(other.to_string()),
    }
}

/// A new store while it is filled.
struct Filling<'a> {
    to: &'a SledStore,
    batch: Batch,
    bytes: u64,
}

impl Filling<'_> {
    fn grew(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.bytes += bytes;
        if self.bytes >= COPY_BYTES || self.batch.ops.len() >= COPY_OPS {
            self.empty()?;
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        self.to.apply(&std::mem::take(&mut self.batch))
    }
}

/// Gives a copy that is synced and closed the name that says so.
fn adopt(dir: &Path, name: &Path) -> Result<(), StoreError> {
    let rename = || {
        // A leftover that could not be removed is older.
        remove_dir(name)?;
        fs::rename(dir.join(NEW), name)?;
        sync_dir(dir)
    };
    rename().map_err(io_error)
}

fn remove_or_warn(path: &Path) {
    if let Err(error) = remove_dir(path) {
        tracing::warn!(path = %path.display(), %error, "an old store stays until the next start");
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
