use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

use crate::catalog::Revision;
use crate::catalog::record::{Change, Record, Version};
use crate::codec::Writer;
use crate::spec::SpecName;
use crate::spec::hash::hex;

/// Buckets of a catalog: the first 12 bits of BLAKE3(name). One change re-hashes one bucket and
/// the 128 KiB of digests; 100,000 names make buckets of about 25.
const BUCKETS: usize = 4096;

/// Buckets per group. A change copies one group's and one catalog's pointers, 1 KiB in all,
/// where a flat table would copy 32 KiB.
const GROUP: usize = 64;

/// Bytes of a bucket's digest that tell whether two are alike; the root decides in the end.
const SHORT_DIGEST: usize = 8;

const BUCKET_TAG: &[u8] = b"larder bucket 1\0";
const ROOT_TAG: &[u8] = b"larder root 1\0";

/// BLAKE3 over all bucket digests of a catalog, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateRoot([u8; 32]);

impl StateRoot {
    /// Wraps a raw root.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The raw root.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for StateRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..6]))
    }
}

/// All records at one revision, with the older versions that are still retained.
///
/// Immutable: [`apply`](Self::apply) and [`prune`](Self::prune) make new values that share every
/// untouched bucket. Tombstones are records too and stay.
#[derive(Clone)]
pub struct Catalog {
    rev: Revision,
    oldest: Revision,
    names: usize,
    root: StateRoot,
    groups: Box<[Arc<Group>]>,
    /// All names in order, once somebody has asked; shared until a name is added.
    sorted: OnceLock<Arc<[SpecName]>>,
}

type Group = [Arc<Bucket>];

#[derive(Clone)]
struct Bucket {
    digest: [u8; 32],
    /// Versions ascending by revision, never empty; the last one is current.
    names: BTreeMap<SpecName, Arc<[Version]>>,
}

/// Why a catalog cannot say what a name was at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AtError {
    /// The revision is no longer retained.
    #[error("revision {at} is compacted, the oldest retained one is {oldest}")]
    Compacted {
        /// The revision asked for.
        at: Revision,
        /// The oldest that can be read.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {at} does not exist yet, the newest is {newest}")]
    Future {
        /// The revision asked for.
        at: Revision,
        /// The newest that can be read.
        newest: Revision,
    },
}

impl Default for Catalog {
    fn default() -> Self {
        Self::empty()
    }
}

impl Catalog {
    /// The catalog at revision 0.
    pub fn empty() -> Self {
        static EMPTY: LazyLock<Catalog> = LazyLock::new(|| {
            let bucket = Arc::new(Bucket::new(BTreeMap::new()));
            let group: Arc<Group> = vec![bucket; GROUP].into();
            let groups = vec![group; BUCKETS / GROUP].into_boxed_slice();
            Catalog {
                rev: Revision::ZERO,
                oldest: Revision::ZERO,
                names: 0,
                root: root_of(&groups),
                groups,
                sorted: OnceLock::new(),
            }
        });
        EMPTY.clone()
    }

    /// Rebuilds a catalog at `rev` from its records and no history.
    pub fn from_records(rev: Revision, records: impl IntoIterator<Item = Record>) -> Self {
        let versions = records
            .into_iter()
            .map(|Record { name, version }| (name, version));
        let mut next = Self::empty().with_versions(rev, versions);
        next.oldest = rev;
        next
    }

    /// The revision that this catalog shows.
    pub fn rev(&self) -> Revision {
        self.rev
    }

    /// The oldest revision that [`get_at`](Self::get_at) can answer for.
    pub fn oldest(&self) -> Revision {
        self.oldest
    }

    /// Names in it, deleted ones among them.
    pub fn names(&self) -> usize {
        self.names
    }

    /// Commits to every current record: BLAKE3 over the bucket digests.
    pub fn root(&self) -> StateRoot {
        self.root
    }

    /// The catalog at `rev`, in which each changed name has a version of that revision.
    pub fn apply(&self, rev: Revision, changes: &[Change]) -> Self {
        let versions = changes.iter().map(|change| {
            let content = change.content;
            (change.name.clone(), Version { rev, content })
        });
        self.with_versions(rev, versions)
    }

    fn with_versions(
        &self,
        rev: Revision,
        versions: impl Iterator<Item = (SpecName, Version)>,
    ) -> Self {
        let mut by_bucket: BTreeMap<usize, Vec<(SpecName, Version)>> = BTreeMap::new();
        for (name, version) in versions {
            let bucket = bucket_of(&name);
            by_bucket.entry(bucket).or_default().push((name, version));
        }
        let mut next = self.clone();
        next.rev = rev;
        for (index, versions) in by_bucket {
            let mut names = self.bucket(index).names.clone();
            for (name, version) in versions {
                let history = names.entry(name).or_insert_with(|| {
                    next.names += 1;
                    Arc::new([])
                });
                *history = history.iter().copied().chain([version]).collect();
            }
            next.set_bucket(index, Bucket::new(names));
        }
        if next.names != self.names {
            next.sorted = OnceLock::new();
        }
        next.root = root_of(&next.groups);
        next
    }

    /// What `name` is now: its current version, which may be a tombstone.
    pub fn get(&self, name: &SpecName) -> Option<Version> {
        self.versions(name).last().copied()
    }

    /// What `name` was at revision `at`.
    ///
    /// # Errors
    /// [`AtError`] when that revision is compacted or does not exist.
    pub fn get_at(&self, name: &SpecName, at: Revision) -> Result<Option<Version>, AtError> {
        self.check_at(at)?;
        let versions = self.versions(name);
        let after = versions.partition_point(|version| version.rev <= at);
        Ok(after.checked_sub(1).map(|last| versions[last]))
    }

    /// Whether revision `at` can be read.
    ///
    /// # Errors
    /// [`AtError`] when that revision is compacted or does not exist.
    pub fn check_at(&self, at: Revision) -> Result<(), AtError> {
        if at < self.oldest {
            return Err(AtError::Compacted {
                at,
                oldest: self.oldest,
            });
        }
        if at > self.rev {
            return Err(AtError::Future {
                at,
                newest: self.rev,
            });
        }
        Ok(())
    }

    /// The retained versions of `name`, oldest first; empty if it never existed.
    pub fn versions(&self, name: &SpecName) -> &[Version] {
        self.bucket(bucket_of(name))
            .names
            .get(name)
            .map_or(&[], |versions| versions)
    }

    /// Every name with its retained versions, in bucket order.
    pub fn iter(&self) -> impl Iterator<Item = (&SpecName, &[Version])> {
        self.groups
            .iter()
            .flat_map(|group| group.iter())
            .flat_map(|bucket| bucket.names.iter())
            .map(|(name, versions)| (name, &**versions))
    }

    /// Every name, deleted ones among them, in order. Sorts them on the first call, and on the
    /// next one after a name has been added.
    pub fn sorted_names(&self) -> &[SpecName] {
        self.sorted.get_or_init(|| {
            let mut names: Vec<_> = self.iter().map(|(name, _)| name.clone()).collect();
            names.sort_unstable();
            names.into()
        })
    }

    /// Every current record, sorted by name.
    pub fn records(&self) -> Vec<Record> {
        let mut records: Vec<_> = self
            .iter()
            .filter_map(|(name, versions)| {
                let (name, version) = (name.clone(), *versions.last()?);
                Some(Record { name, version })
            })
            .collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Forgets what only revisions before `oldest` could see. The state root does not change.
    pub fn prune(&self, oldest: Revision) -> Self {
        let oldest = oldest.min(self.rev).max(self.oldest);
        let mut next = self.clone();
        next.oldest = oldest;
        for index in 0..BUCKETS {
            let bucket = self.bucket(index);
            let keep_from = |versions: &[Version]| {
                let after = versions.partition_point(|version| version.rev <= oldest);
                after.saturating_sub(1)
            };
            if bucket
                .names
                .values()
                .all(|versions| keep_from(versions) == 0)
            {
                continue;
            }
            let names = bucket
                .names
                .iter()
                .map(|(name, versions)| (name.clone(), versions[keep_from(versions)..].into()))
                .collect();
            let digest = bucket.digest;
            next.set_bucket(index, Bucket { digest, names });
        }
        next
    }

    /// The first 8 bytes of each bucket's digest, in order: what a holder of this catalog tells
    /// the coordinator to get the buckets that differ.
    pub fn digests(&self) -> Vec<u8> {
        (0..BUCKETS)
            .flat_map(|index| self.bucket(index).short_digest())
            .collect()
    }

    /// Buckets whose digests are not those of `have`, which is another catalog's
    /// [`digests`](Self::digests), or anything else for nothing.
    pub fn differing(&self, have: &[u8]) -> Vec<u16> {
        let whole = have.len() == BUCKETS * SHORT_DIGEST;
        let empty = Self::empty();
        (0..BUCKETS)
            .filter(|&index| match whole {
                true => {
                    let at = index * SHORT_DIGEST;
                    have[at..at + SHORT_DIGEST] != self.bucket(index).short_digest()
                }
                false => self.bucket(index).digest != empty.bucket(index).digest,
            })
            .filter_map(|index| u16::try_from(index).ok())
            .collect()
    }

    /// The current records of some buckets.
    pub fn in_buckets(&self, buckets: &[u16]) -> Vec<Record> {
        buckets
            .iter()
            .filter(|&&index| usize::from(index) < BUCKETS)
            .flat_map(|&index| self.bucket(usize::from(index)).names.iter())
            .filter_map(|(name, versions)| {
                let (name, version) = (name.clone(), *versions.last()?);
                Some(Record { name, version })
            })
            .collect()
    }

    /// The catalog at `rev` whose `buckets` hold exactly `records` and whose other buckets are
    /// as here, without history. `None` when a record belongs to another bucket, or comes twice.
    pub fn with_buckets(
        &self,
        rev: Revision,
        buckets: &[u16],
        records: Vec<Record>,
    ) -> Option<Self> {
        let mut named: BTreeMap<usize, BTreeMap<SpecName, Arc<[Version]>>> = buckets
            .iter()
            .map(|&index| (usize::from(index), BTreeMap::new()))
            .collect();
        for Record { name, version } in records {
            let bucket = named.get_mut(&bucket_of(&name))?;
            if version.rev > rev || bucket.insert(name, Arc::new([version])).is_some() {
                return None;
            }
        }
        let mut next = self.clone();
        next.rev = rev;
        // What stays keeps no history: the revisions between are not known.
        for index in (0..BUCKETS).filter(|index| !named.contains_key(index)) {
            let bucket = self.bucket(index);
            if bucket.names.values().all(|versions| versions.len() == 1) {
                continue;
            }
            let last = |versions: &Arc<[Version]>| versions[versions.len() - 1..].into();
            let names = bucket.names.iter();
            let names = names.map(|(name, versions)| (name.clone(), last(versions)));
            let (digest, names) = (bucket.digest, names.collect());
            next.set_bucket(index, Bucket { digest, names });
        }
        for (index, names) in named {
            if index >= BUCKETS {
                return None;
            }
            next.set_bucket(index, Bucket::new(names));
        }
        next.oldest = rev;
        next.names = (0..BUCKETS).map(|i| next.bucket(i).names.len()).sum();
        next.root = root_of(&next.groups);
        Some(next)
    }

    fn bucket(&self, index: usize) -> &Bucket {
        &self.groups[index / GROUP][index % GROUP]
    }

    fn set_bucket(&mut self, index: usize, bucket: Bucket) {
        let group = &mut self.groups[index / GROUP];
        Arc::make_mut(group)[index % GROUP] = Arc::new(bucket);
    }
}

impl Bucket {
    fn short_digest(&self) -> [u8; SHORT_DIGEST] {
        std::array::from_fn(|index| self.digest[index])
    }

    fn new(names: BTreeMap<SpecName, Arc<[Version]>>) -> Self {
        let mut w = Writer::new();
        w.raw(BUCKET_TAG);
        for (name, versions) in &names {
            if let Some(&version) = versions.last() {
                let name = name.clone();
                Record { name, version }.encode(&mut w);
            }
        }
        let digest = *blake3::hash(&w.finish()).as_bytes();
        Self { digest, names }
    }
}

fn root_of(groups: &[Arc<Group>]) -> StateRoot {
    // In one piece: BLAKE3 hashes many blocks side by side, digest by digest it cannot.
    let mut bytes = Vec::with_capacity(ROOT_TAG.len() + BUCKETS * blake3::OUT_LEN);
    bytes.extend_from_slice(ROOT_TAG);
    for group in groups {
        for bucket in group.iter() {
            bytes.extend_from_slice(&bucket.digest);
        }
    }
    StateRoot(*blake3::hash(&bytes).as_bytes())
}

fn bucket_of(name: &SpecName) -> usize {
    let hash = blake3::hash(name.as_str().as_bytes());
    let [first, second, ..] = *hash.as_bytes();
    usize::from(first) << 4 | usize::from(second >> 4)
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("rev", &self.rev)
            .field("oldest", &self.oldest)
            .field("names", &self.names)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Content;
    use crate::spec::SpecHash;

    fn name(text: &str) -> SpecName {
        text.parse().expect("a valid name")
    }

    fn put(text: &str, body: &str) -> Change {
        Change {
            name: name(text),
            content: Content::Present {
                hash: SpecHash::of(body.as_bytes()),
                len: body.len() as u64,
            },
        }
    }

    fn delete(text: &str) -> Change {
        Change {
            name: name(text),
            content: Content::Deleted,
        }
    }

    fn rev(number: u64) -> Revision {
        Revision::new(number)
    }

    #[test]
    fn a_name_is_read_at_every_retained_revision() {
        let one = Catalog::empty().apply(rev(1), &[put("a", "1")]);
        let two = one.apply(rev(2), &[put("a", "2"), put("b", "2")]);
        let three = two.apply(rev(3), &[delete("a")]);

        let read = |at| {
            three
                .get_at(&name("a"), rev(at))
                .map(|v| v.map(|v| v.content))
        };
        assert_eq!(read(0), Ok(None));
        assert_eq!(read(1), Ok(Some(put("a", "1").content)));
        assert_eq!(read(2), Ok(Some(put("a", "2").content)));
        assert_eq!(read(3), Ok(Some(Content::Deleted)));
        assert!(matches!(read(4), Err(AtError::Future { .. })));
        assert_eq!(one.get(&name("b")), None, "an older catalog is untouched");
        assert_eq!(three.names(), 2);
    }

    #[test]
    fn pruning_keeps_what_the_oldest_revision_sees_and_the_root() {
        let mut catalog = Catalog::empty();
        for number in 1..=5 {
            catalog = catalog.apply(rev(number), &[put("a", &number.to_string())]);
        }
        let pruned = catalog.prune(rev(3));
        assert_eq!(pruned.root(), catalog.root());
        assert_eq!(pruned.versions(&name("a")).len(), 3);
        assert_eq!(
            pruned.get_at(&name("a"), rev(3)),
            catalog.get_at(&name("a"), rev(3))
        );
        assert!(matches!(
            pruned.get_at(&name("a"), rev(2)),
            Err(AtError::Compacted { .. })
        ));
        assert_eq!(pruned.prune(rev(1)).oldest(), rev(3), "never comes back");
    }

    #[test]
    fn names_are_sorted_once_for_all_revisions_that_add_none() {
        let one = Catalog::empty().apply(rev(1), &[put("b", "1"), put("a/c", "1")]);
        assert_eq!(one.sorted_names(), [name("a/c"), name("b")]);
        let two = one.apply(rev(2), &[put("b", "2"), delete("a/c")]);
        assert!(std::ptr::eq(one.sorted_names(), two.sorted_names()));
        assert!(std::ptr::eq(
            one.sorted_names(),
            two.prune(rev(2)).sorted_names()
        ));
        let three = two.apply(rev(3), &[put("a", "3")]);
        assert_eq!(three.sorted_names(), [name("a"), name("a/c"), name("b")]);
    }

    #[test]
    fn the_root_of_nothing_is_fixed() {
        // Golden: workers pin what this hashes to, so it must never change.
        let root = hex(Catalog::empty().root().as_bytes());
        assert_eq!(root, include_str!("../../tests/data/root-empty.hex").trim());
        let one = Catalog::empty().apply(rev(1), &[put("a", "1")]);
        let root = hex(one.root().as_bytes());
        assert_eq!(root, include_str!("../../tests/data/root-one.hex").trim());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The root depends on the current records only: not on the way there, not on history.
        #[test]
        fn any_way_to_the_same_records_has_the_same_root(
            steps in proptest::collection::vec(("[a-c]{1,2}", 0_u8..3), 1..40),
        ) {
            let mut catalog = Catalog::empty();
            let mut model = BTreeMap::new();
            for (number, (text, body)) in (1..).zip(&steps) {
                let change = match body {
                    0 => delete(text),
                    body => put(text, &body.to_string()),
                };
                catalog = catalog.apply(rev(number), std::slice::from_ref(&change));
                let version = Version { rev: rev(number), content: change.content };
                model.insert(change.name, version);
            }
            let records = model.into_iter().map(|(name, version)| Record { name, version });
            let rebuilt = Catalog::from_records(catalog.rev(), records);
            prop_assert_eq!(rebuilt.root(), catalog.root());
            prop_assert_eq!(rebuilt.records(), catalog.records());
            prop_assert_eq!(rebuilt.names(), catalog.names());
        }
    }
}
