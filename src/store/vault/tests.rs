//! Goal: what was acknowledged is there after every crash, whatever state the view was left in.
//! Method: a scripted history of publishes on a simulated disk, cut at every operation; real
//! directories with damaged files.

use std::fs::{self, File};
use std::sync::Mutex;

use bytes::Bytes;

use super::view::Logged;
use super::*;
use crate::catalog::{
    CatalogId, Change, Content, Epoch, Pending, Published, Record, SignedHead, Version,
};
use crate::store::blobs::{self, Loaded};
use crate::store::disk::{SledStore, damage};
use crate::store::file::sim::{Op, SimDisk};
use crate::store::memory::{Fault, MemoryStore};
use crate::store::{Batch, MAX_BATCH, Tree, journal};

pub(crate) fn genesis(base: u64) -> Entry {
    Entry::Genesis {
        catalog: CatalogId::from_bytes([7; 16]),
        epoch: Epoch::new(3),
        base: Revision::new(base),
        last: Revision::new(base),
        head: None,
    }
}

fn spec(rev: u64) -> Spec {
    Spec::new(format!("steps: [{rev}]\n").into())
}

pub(crate) fn change(name: &str, spec: &Spec) -> Change {
    Change {
        name: name.parse().expect("a name"),
        content: Content::Present {
            hash: spec.hash(),
            len: spec.len(),
        },
    }
}

/// Revision `rev` sets `a` and `n<rev>` to a body of its own.
fn pending(rev: u64) -> Entry {
    let spec = spec(rev);
    pending_of(
        rev,
        vec![change("a", &spec), change(&format!("n{rev}"), &spec)],
    )
}

pub(crate) fn pending_of(rev: u64, changes: Vec<Change>) -> Entry {
    Entry::Pending(Box::new(Pending {
        rev: Revision::new(rev),
        changes,
        published: Published {
            by: "local".into(),
            at_unix_ms: rev,
            note: "a test".into(),
        },
        keyed: None,
        head: SignedHead::from_slice(&[0; SignedHead::LEN]).expect("the right length"),
    }))
}

pub(crate) fn visible(rev: u64) -> Entry {
    Entry::Visible {
        rev: Revision::new(rev),
    }
}

/// Gives the same view each time, and others after it was said to be damaged.
#[derive(Debug)]
struct Fixed {
    views: Vec<Arc<dyn Store>>,
    /// Fails instead, as long as there is one.
    failure: Arc<Mutex<Option<MetaError>>>,
}

impl Fixed {
    fn new(view: &Arc<MemoryStore>) -> Box<Self> {
        Box::new(Self {
            views: vec![Arc::clone(view) as Arc<dyn Store>],
            failure: Arc::default(),
        })
    }
}

impl ViewSource for Fixed {
    fn open(&mut self, damage: Option<StoreError>) -> Result<Arc<dyn Store>, MetaError> {
        if let Some(error) = self.failure.lock().expect("no panic").take() {
            return Err(error);
        }
        if damage.is_some() {
            self.views.remove(0);
        }
        Ok(Arc::clone(&self.views[0]))
    }

    fn set_aside(&self) -> Option<&Path> {
        None
    }

    fn keeps_damaged(&self) -> bool {
        false
    }
}

fn view_of<D: Disk>(vault: &Vault<D>) -> Arc<dyn Store> {
    vault.view().expect("a view")
}

type SimOpened = (Vault<SimDisk>, Opened, Vec<Entry>);

fn open_with(disk: &SimDisk, view: &Arc<MemoryStore>) -> Result<SimOpened, VaultError> {
    let mut entries = Vec::new();
    let (vault, opened) = Vault::assemble(disk.clone(), None, Fixed::new(view), |entry| {
        entries.push(entry.clone());
    })?;
    Ok((vault, opened, entries))
}

fn open(disk: &SimDisk, view: &Arc<MemoryStore>) -> SimOpened {
    open_with(disk, view).expect("a vault")
}

/// A vault on `disk`, with a new view.
pub(crate) fn sim_vault(disk: &SimDisk) -> Vault<SimDisk> {
    open(disk, &Arc::new(MemoryStore::new())).0
}

/// How far a script came.
#[derive(Default)]
struct Progress {
    started: u64,
    pending: u64,
    visible: u64,
}

fn publish<D: Disk>(vault: &mut Vault<D>, rev: u64, progress: &mut Progress) -> Option<()> {
    progress.started = rev;
    if !vault.reader().has(spec(rev).hash()) {
        vault.append_body(&spec(rev)).ok()?;
    }
    vault.append(&pending(rev)).ok()?;
    vault.sync().ok()?;
    progress.pending = rev;
    vault.append(&visible(rev)).ok()?;
    vault.sync().ok()?;
    progress.visible = rev;
    vault.apply_to_view().ok()
}

/// Four publishes, then a checkpoint that keeps the last two bodies, then two more publishes.
fn run_script(disk: &SimDisk, view: &Arc<MemoryStore>, progress: &mut Progress) -> Option<()> {
    let (mut vault, ..) = open_with(disk, view).ok()?;
    vault.append(&genesis(0)).ok()?;
    vault.sync().ok()?;
    for rev in 1..=4 {
        publish(&mut vault, rev, progress)?;
    }
    checkpoint_at_4(&mut vault).ok()?;
    for rev in 5..=6 {
        publish(&mut vault, rev, progress)?;
    }
    Some(())
}

/// The base at 3 and revision 4 as a change.
fn checkpoint_at_4<D: Disk>(vault: &mut Vault<D>) -> Result<CheckpointReport, CheckpointError> {
    let retained = BTreeSet::from([1, 2, 3, 4].map(|rev| spec(rev).hash()));
    let record = |name: &str, rev| Record {
        name: name.parse().expect("a name"),
        version: Version {
            rev: Revision::new(rev),
            content: change(name, &spec(rev)).content,
        },
    };
    let records = vec![
        record("a", 3),
        record("n1", 1),
        record("n2", 2),
        record("n3", 3),
    ];
    let base = Entry::Base { records };
    vault.checkpoint(&retained, [genesis(3), base, pending(4), visible(4)])
}

fn newest(entries: &[Entry]) -> (u64, u64) {
    let pending = entries.iter().filter_map(|entry| match entry {
        Entry::Pending(pending) => Some(pending.rev.get()),
        _ => None,
    });
    let visible = entries.iter().filter_map(|entry| match entry {
        Entry::Visible { rev } => Some(rev.get()),
        _ => None,
    });
    (pending.max().unwrap_or(0), visible.max().unwrap_or(0))
}

/// Everything up to `visible` is in the view, whole, and nothing later.
fn check_view(store: &dyn Store, visible: u64, what: &str) {
    let read = |name: &str| {
        let name = name.parse().expect("a name");
        let version = view::record(store, &name).expect("an answer");
        version.map(|version| version.rev.get())
    };
    assert_eq!(read("a").unwrap_or(0), visible, "{what}");
    for rev in 1..=7 {
        let expected = (rev <= visible).then_some(rev);
        assert_eq!(read(&format!("n{rev}")), expected, "{what}");
    }
}

#[test]
fn a_cut_at_any_operation_loses_nothing_acknowledged_whatever_the_view_is() {
    let whole = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    run_script(&whole, &view, &mut Progress::default()).expect("nothing fails");
    let old_view = || {
        let view = Arc::new(MemoryStore::new());
        let disk = SimDisk::default();
        disk.power_off_after(20);
        run_script(&disk, &view, &mut Progress::default());
        view
    };
    for cut in 0..=whole.ops() {
        for seed in 0..12 {
            let disk = SimDisk::default();
            disk.power_off_after(cut);
            let equal = Arc::new(MemoryStore::new());
            let mut progress = Progress::default();
            run_script(&disk, &equal, &mut progress);
            let views = match cut > 20 {
                true => vec![equal, old_view(), Arc::new(MemoryStore::new())],
                false => vec![equal, Arc::new(MemoryStore::new())],
            };
            for (which, view) in views.iter().enumerate() {
                let what = format!("cut {cut} seed {seed} view {which}");
                let crashed = disk.crash(seed);
                let (vault, _, entries) = open(&crashed, view);
                let (pending, visible) = newest(&entries);
                assert!(pending >= progress.pending, "{what}");
                assert!(pending <= progress.started, "{what}");
                assert!(visible >= progress.visible && visible <= pending, "{what}");
                check_view(&*view_of(&vault), visible, &what);
                let reader = vault.reader();
                for rev in 1..=pending {
                    let found = reader.body(spec(rev).hash(), None).expect("an answer");
                    assert_eq!(found, Some(spec(rev)), "{what}");
                }
                // What is pending rolls forward, also when the view has passed it by.
                drop(vault);
                let (mut vault, ..) = open(&crashed, view);
                vault.append(&self::visible(pending)).expect("an append");
                vault.sync().expect("a sync");
                vault.apply_to_view().expect("applied");
                check_view(&*view_of(&vault), pending, &what);
            }
        }
    }
}

#[test]
fn the_view_is_behind_the_disk_and_never_before_it() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, opened, _) = open(&disk, &view);
    assert!(opened.new);
    vault.append(&genesis(0)).expect("an append");
    vault.append_body(&spec(1)).expect("an append");
    vault.append(&pending(1)).expect("an append");
    vault.append(&visible(1)).expect("an append");
    vault.apply_to_view().expect("nothing to apply");
    check_view(&*view, 0, "not synced");
    vault.sync().expect("a sync");
    view.inject(Fault::Full);
    assert!(vault.apply_to_view().is_err());
    check_view(&*view, 0, "refused");
    vault.apply_to_view().expect("applied");
    check_view(&*view, 1, "the next try");
    let lines = view::log(&*view, Revision::ZERO, 10).expect("the log");
    let Entry::Pending(first) = pending(1) else {
        panic!("a publish");
    };
    let expected = Logged {
        rev: first.rev,
        published: first.published,
        changed: 2,
    };
    assert_eq!(lines, [expected]);
    assert_eq!(
        crate::store::meta::Meta::of(&*view)
            .catalog()
            .expect("an id"),
        Some(CatalogId::from_bytes([7; 16]))
    );
}

#[test]
fn a_publish_larger_than_a_batch_reaches_the_view_whole() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, ..) = open(&disk, &view);
    let Entry::Pending(mut large) = pending(1) else {
        panic!("a publish");
    };
    let count = MAX_BATCH * 2 + 10;
    large.changes = (0..count)
        .map(|n| change(&format!("x{n}"), &spec(1)))
        .collect();
    vault.append(&genesis(0)).expect("an append");
    vault.append(&Entry::Pending(large)).expect("an append");
    vault.append(&visible(1)).expect("an append");
    vault.sync().expect("a sync");
    vault.apply_to_view().expect("applied");
    let records = view.scan(Tree::Records, &[], count + 1).expect("a scan");
    assert_eq!(records.len(), count);
}

#[test]
fn a_body_that_the_view_damaged_is_healed_from_the_journal() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, ..) = open(&disk, &view);
    vault.append(&genesis(0)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let hash = spec(1).hash();
    let mut batch = Batch::new();
    batch.put(Tree::Blobs, hash.as_bytes(), b"wrong".to_vec());
    view.apply(&batch).expect("applied");

    let reader = vault.reader();
    let body = |len| reader.body(hash, len).expect("an answer");
    assert_eq!(body(Some(spec(1).len())), Some(spec(1)));
    let loaded = blobs::load(&*view, hash, None).expect("an answer");
    assert_eq!(loaded, Loaded::Found(spec(1)), "it is put back");
    assert_eq!(body(Some(1)), None, "of another length");
    assert!(!reader.has(spec(2).hash()));
    assert_eq!(reader.body(spec(2).hash(), None).expect("an answer"), None);
}

#[test]
fn a_body_is_lost_only_when_view_and_journal_both_lost_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut vault, _) = Vault::open(dir.path(), 16 << 20, |_| {}).expect("a vault");
    vault.append(&genesis(0)).expect("an append");
    let position = vault.append_body(&spec(1)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let path = dir.path().join(journal::FILE);
    let mut content = fs::read(&path).expect("the journal");
    content[position.offset as usize + 20] ^= 1;
    fs::write(&path, content).expect("written");
    let reader = vault.reader();
    let found = reader.body(spec(1).hash(), None).expect("the view has it");
    assert_eq!(found, Some(spec(1)));
    blobs::remove(&*view_of(&vault), spec(1).hash()).expect("removed");
    let error = reader.body(spec(1).hash(), None).expect_err("lost");
    assert!(error.to_string().contains(&spec(1).hash().short()));
}

#[test]
fn a_checkpoint_drops_what_is_not_retained_and_shrinks_the_journal() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, ..) = open(&disk, &view);
    vault.append(&genesis(0)).expect("an append");
    for rev in 1..=4 {
        publish(&mut vault, rev, &mut Progress::default()).expect("published");
    }
    let unused = Spec::new(Bytes::from(vec![b'x'; 10_000]));
    vault.append_body(&unused).expect("an append");
    let reader = vault.reader();
    assert!(reader.has(unused.hash()));

    let report = checkpoint_at_4(&mut vault).expect("a checkpoint");
    assert_eq!(report.dropped_bodies, 1);
    assert!(report.bytes_after + 10_000 < report.bytes_before);
    assert_eq!(vault.journal_len(), report.bytes_after);
    assert!(!reader.has(unused.hash()));
    assert_eq!(
        reader.body(spec(2).hash(), None).expect("an answer"),
        Some(spec(2))
    );
    assert!(!blobs::contains(&*view, unused.hash()).expect("an answer"));
    let lines = view::log(&*view, Revision::ZERO, 10).expect("the log");
    assert_eq!(lines.len(), 1, "only the one after the base");
    check_view(&*view, 4, "as before");

    let (vault, opened, entries) = open(&disk.crash(1), &view);
    assert_eq!((opened.new, opened.bodies), (false, 4));
    assert_eq!(newest(&entries), (4, 4));
    check_view(&*view_of(&vault), 4, "after a restart");
}

#[test]
fn a_checkpoint_that_cannot_be_whole_changes_nothing() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, ..) = open(&disk, &view);
    vault.append(&genesis(0)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let len = vault.journal_len();

    let missing = BTreeSet::from([spec(9).hash()]);
    let refused = vault.checkpoint(&missing, [genesis(1)]);
    assert!(matches!(refused, Err(CheckpointError::MissingBody(_))));
    let refused = vault.checkpoint(&BTreeSet::new(), [visible(1)]);
    assert!(matches!(refused, Err(CheckpointError::NoGenesis)));
    disk.space_left(Some(60));
    let refused = vault.checkpoint(&BTreeSet::new(), [genesis(1)]);
    assert!(matches!(
        refused,
        Err(CheckpointError::Append(AppendError::Full(_)))
    ));
    disk.space_left(None);
    assert_eq!(vault.journal_len(), len);
    publish(&mut vault, 2, &mut Progress::default()).expect("it goes on");

    view.inject(Fault::Full);
    let retained = BTreeSet::from([spec(2).hash()]);
    let record = |rev| Entry::Base {
        records: vec![Record {
            name: "a".parse().expect("a name"),
            version: Version {
                rev: Revision::new(rev),
                content: change("a", &spec(rev)).content,
            },
        }],
    };
    let done = vault.checkpoint(&retained, [genesis(2), record(2)]);
    done.expect("the view failing is no error");
    vault.apply_to_view().expect("built anew");
    assert!(!blobs::contains(&*view, spec(1).hash()).expect("an answer"));
    assert!(blobs::contains(&*view, spec(2).hash()).expect("an answer"));
}

fn full() -> MetaError {
    let error = io::ErrorKind::StorageFull.into();
    MetaError::Store(StoreError::Full(error))
}

/// Two publishes, and a body for a third that never came. Says how long the journal was before.
fn interrupted(disk: &SimDisk, view: &Arc<MemoryStore>) -> u64 {
    let (mut vault, ..) = open(disk, view);
    vault.append(&genesis(0)).expect("an append");
    for rev in 1..=2 {
        publish(&mut vault, rev, &mut Progress::default()).expect("published");
    }
    let len = vault.journal_len();
    vault.append_body(&spec(3)).expect("an append");
    len
}

#[test]
fn without_a_view_the_journal_serves_and_a_quiet_moment_brings_the_view_back() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    interrupted(&disk, &view);
    let empty = Arc::new(MemoryStore::new());
    let source = Fixed::new(&empty);
    let failure = Arc::clone(&source.failure);
    let io = || MetaError::Store(StoreError::Io(io::Error::other("a test")));
    *failure.lock().expect("no panic") = Some(io());
    let mut entries = Vec::new();
    let visit = |entry: &Entry| entries.push(entry.clone());
    let (mut vault, opened) = Vault::assemble(disk.clone(), None, source, visit).expect("a vault");
    assert_eq!(newest(&entries), (2, 2));
    let why = opened.view_absent.expect("there is none");
    assert!(why.contains("a test"), "{why}");
    let reader = vault.reader();
    for rev in 1..=3 {
        let body = reader.body(spec(rev).hash(), None);
        assert_eq!(body.expect("an answer"), Some(spec(rev)));
    }
    publish(&mut vault, 3, &mut Progress::default()).expect("published");
    checkpoint_at_4(&mut vault).expect_err("one body is not there");
    publish(&mut vault, 4, &mut Progress::default()).expect("published");
    checkpoint_at_4(&mut vault).expect("a checkpoint");
    publish(&mut vault, 5, &mut Progress::default()).expect("published");
    let body = reader.body(spec(1).hash(), None);
    assert_eq!(body.expect("an answer"), Some(spec(1)));

    *failure.lock().expect("no panic") = Some(io());
    assert!(matches!(vault.mend_view(), Err(ViewError::Open(_))));
    assert!(vault.reader().view_absent().is_some() && vault.view().is_none());
    vault.mend_view().expect("it opens");
    assert_eq!(vault.reader().view_absent(), None);
    check_view(&*empty, 5, "built anew");
    publish(&mut vault, 6, &mut Progress::default()).expect("published");
    check_view(&*empty, 6, "kept");
}

#[test]
fn on_a_full_disk_a_start_drops_what_no_publish_named() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let len = interrupted(&disk, &view);
    let source = Fixed::new(&view);
    *source.failure.lock().expect("no panic") = Some(full());
    let (vault, opened) = Vault::assemble(disk, None, source, |_| {}).expect("a vault");
    assert_eq!(vault.journal_len(), len);
    assert_eq!((opened.view_absent, opened.bodies), (None, 2));
    assert!(!vault.reader().has(spec(3).hash()));
    check_view(&*view_of(&vault), 2, "there was space then");
}

#[test]
fn a_view_that_must_not_be_done_without_refuses() {
    let disk = SimDisk::default();
    let start = |failure: MetaError| {
        let source = Fixed::new(&Arc::new(MemoryStore::new()));
        *source.failure.lock().expect("no panic") = Some(failure);
        let vault = Vault::assemble(disk.clone(), None, source, |_| {}).map(|_| ());
        vault.expect_err("refused")
    };
    // Without a journal, only the view could say that there was one.
    assert!(matches!(start(full()), VaultError::View(_)));
    assert!(disk.content(journal::FILE).is_none(), "none was made");

    interrupted(&disk, &Arc::new(MemoryStore::new()));
    let (found, known) = (2, 1);
    start(MetaError::NewerFormat { found, known });
    start(MetaError::OtherRole {
        found: Role::Worker,
        wanted: Role::Coordinator,
    });
    let dir = tempfile::tempdir().expect("a directory");
    let _held = SledStore::open(dir.path(), 16 << 20).expect("a store");
    let second = SledStore::open(dir.path(), 16 << 20).map(|_| ());
    start(second.expect_err("it is held").into());
}

#[test]
fn a_view_that_fails_later_is_left_and_readers_go_on() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    interrupted(&disk, &view);
    let (mut vault, ..) = open(&disk, &view);
    view.inject(Fault::Full);
    publish(&mut vault, 3, &mut Progress::default());
    let reader = vault.reader();
    let why = reader.view_absent().expect("it failed");
    assert!(why.contains("full"), "{why}");
    let body = reader.body(spec(3).hash(), None);
    assert_eq!(body.expect("an answer"), Some(spec(3)));
    vault.mend_view().expect("there is space again");
    check_view(&*view_of(&vault), 3, "nothing is lacking");
}

#[test]
fn dropped_bodies_are_gone_from_readers_view_and_backups() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let len = interrupted(&disk, &view);
    let (mut vault, ..) = open(&disk, &view);
    let hash = spec(3).hash();
    let reader = vault.reader();
    let before = backup_of(&vault);
    assert_eq!(reader.body(hash, None).expect("an answer"), Some(spec(3)));
    vault.drop_staged().expect("dropped");
    assert_eq!(vault.journal_len(), len);
    assert!(!reader.has(hash) && reader.has(spec(2).hash()));
    assert_eq!(reader.body(hash, None).expect("an answer"), None);
    assert!(!blobs::contains(&*view, hash).expect("an answer"));
    assert_eq!(backup_of(&vault), before, "it held what stays only");
    publish(&mut vault, 3, &mut Progress::default()).expect("published");
    check_view(&*view, 3, "a publish that comes again");
    let (vault, ..) = open(&disk.crash(3), &view);
    check_view(&*view_of(&vault), 3, "after a crash");
}

#[test]
fn a_failed_sync_ends_all_appends() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, ..) = open(&disk, &view);
    vault.append(&genesis(0)).expect("an append");
    disk.fail_next(Op::SyncData);
    assert!(vault.sync().is_err());
    assert!(matches!(
        vault.append(&visible(1)),
        Err(AppendError::Poisoned(_))
    ));
}

#[test]
fn a_second_coordinator_and_a_workers_directory_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Vault::open(dir.path(), 16 << 20, |_| {}).expect("a vault");
    let second = Vault::open(dir.path(), 16 << 20, |_| {}).map(|_| ());
    let error = second.expect_err("it is in use");
    let pid = std::process::id();
    assert!(
        error
            .to_string()
            .contains(&format!("coordinator with pid {pid}"))
    );
    drop(first);
    // After a copy the cache has another name.
    for theirs in ["cache", "mark"] {
        let workers = tempfile::tempdir().expect("a directory");
        fs::create_dir(workers.path().join(theirs)).expect("made");
        let error = Vault::open(workers.path(), 16 << 20, |_| {}).map(|_| ());
        assert!(matches!(
            error,
            Err(VaultError::Lock(LockError::OtherRole { .. }))
        ));
        assert!(!workers.path().join(journal::FILE).exists());
    }
}

/// A closed real vault with `revs` publishes.
fn filled(dir: &Path, revs: u64) {
    let (mut vault, opened) = Vault::open(dir, 16 << 20, |_| {}).expect("a vault");
    assert!(opened.new);
    vault.append(&genesis(0)).expect("an append");
    for rev in 1..=revs {
        publish(&mut vault, rev, &mut Progress::default()).expect("published");
    }
    view_of(&vault).sync().expect("synced");
}

fn reopened(dir: &Path) -> (Vault, Opened, Vec<Entry>) {
    let mut entries = Vec::new();
    let visit = |entry: &Entry| entries.push(entry.clone());
    let (vault, opened) = Vault::open(dir, 16 << 20, visit).expect("a vault");
    (vault, opened, entries)
}

#[test]
fn a_damaged_view_is_set_aside_and_built_from_the_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path(), 3);
    damage(&dir.path().join("view"));
    let (vault, opened, entries) = reopened(dir.path());
    let aside = opened.view_rebuilt.expect("it is set aside");
    assert!(aside.to_string_lossy().contains("view.corrupt-"));
    assert!(aside.join("db").exists());
    assert_eq!(newest(&entries), (3, 3));
    check_view(&*view_of(&vault), 3, "rebuilt");
    drop(vault);
    let (vault, opened, _) = reopened(dir.path());
    assert_eq!(opened.view_rebuilt, None, "the new one is sound");
    check_view(&*view_of(&vault), 3, "kept");
}

/// A view of which every page is damaged.
#[derive(Debug)]
struct Broken;

impl Store for Broken {
    fn get(&self, _: Tree, _: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Err(StoreError::Damaged("a test".into()))
    }

    fn apply(&self, _: &Batch) -> Result<(), StoreError> {
        Ok(())
    }

    fn scan(&self, _: Tree, _: &[u8], _: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        Err(StoreError::Damaged("a test".into()))
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}

#[test]
fn a_view_that_opens_and_shows_its_damage_only_then_is_replaced() {
    let disk = SimDisk::default();
    let (mut vault, ..) = open(&disk, &Arc::new(MemoryStore::new()));
    vault.append(&genesis(0)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let sound = Arc::new(MemoryStore::new());
    let mut source = Fixed::new(&sound);
    source.views.insert(0, Arc::new(Broken));
    let (vault, opened) = Vault::assemble(disk, None, source, |_| {}).expect("a vault");
    check_view(&*view_of(&vault), 1, "the second view");
    assert_eq!(opened.view_absent, None);
}

#[test]
fn a_view_that_stands_within_an_entry_is_built_anew() {
    let disk = SimDisk::default();
    let view = Arc::new(MemoryStore::new());
    let (mut vault, ..) = open(&disk, &view);
    vault.append(&genesis(0)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let mut batch = Batch::new();
    let offset = journal::record::HEADER_LEN as u64 + 3;
    let within = Position {
        generation: 1,
        offset,
    };
    crate::store::meta::put_applied(&mut batch, within);
    batch.put(Tree::Records, "stale", b"nonsense".to_vec());
    view.apply(&batch).expect("applied");
    let (vault, ..) = open(&disk, &view);
    check_view(&*view_of(&vault), 1, "built anew");
    let stale = view.get(Tree::Records, b"stale").expect("an answer");
    assert_eq!(stale, None);
}

#[test]
fn a_view_that_is_gone_or_left_half_opened_is_no_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path(), 3);
    let leftover = dir.path().join("view/snap.00000000000000FF.generating");
    fs::write(leftover, b"").expect("written");
    let (vault, opened, _) = reopened(dir.path());
    assert_eq!(opened.view_rebuilt, None);
    check_view(&*view_of(&vault), 3, "kept");
    drop(vault);
    fs::remove_dir_all(dir.path().join("view")).expect("removed");
    let (vault, ..) = reopened(dir.path());
    check_view(&*view_of(&vault), 3, "built anew");
    let body = vault.reader().body(spec(2).hash(), None);
    assert_eq!(body.expect("an answer"), Some(spec(2)));
}

#[test]
fn a_journal_that_is_gone_is_missed_though_its_view_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path(), 1);
    damage(&dir.path().join("view"));
    fs::remove_file(dir.path().join(journal::FILE)).expect("removed");
    for _ in 0..2 {
        let opened = Vault::open(dir.path(), 16 << 20, |_| {}).map(|_| ());
        let error = opened.expect_err("acknowledged entries are gone");
        assert!(error.to_string().contains("the journal is gone"), "{error}");
        assert!(!dir.path().join(journal::FILE).exists(), "none was made");
    }
}

#[test]
fn a_journal_that_lost_what_the_view_applied_refuses_to_open() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path(), 2);
    let path = dir.path().join(journal::FILE);
    let file = File::options().write(true).open(&path).expect("the file");
    let len = file.metadata().expect("metadata").len();
    // The last record alone: nothing in the file shows that it was there.
    file.set_len(len - (journal::record::FRAME_LEN as u64 + 8))
        .expect("a cut");
    let error = Vault::open(dir.path(), 16 << 20, |_| {}).map(|_| ());
    let error = error.expect_err("acknowledged entries are gone");
    assert!(error.to_string().contains("larder restore"), "{error}");
    let left = fs::metadata(&path).expect("metadata").len();
    assert_eq!(
        left,
        len - (journal::record::FRAME_LEN as u64 + 8),
        "left alone"
    );
}

fn backup_of<D: Disk>(vault: &Vault<D>) -> Vec<u8> {
    let mut out = Vec::new();
    let report = vault.reader().backup().write_to(&mut out);
    assert_eq!(report.expect("a backup").bytes, out.len() as u64);
    out
}

#[test]
fn a_backup_restores_into_a_new_epoch() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path(), 3);
    let (mut vault, ..) = reopened(dir.path());
    let backup = vault.reader().backup();
    checkpoint_and_publish(&mut vault);
    let mut old = Vec::new();
    backup.write_to(&mut old).expect("the generation before");

    let target = dir.path().join("restored/here");
    let report = restore(&target, &mut &old[..]).expect("restored");
    assert_eq!(report.catalog, CatalogId::from_bytes([7; 16]));
    let rev = Revision::new(4);
    assert_eq!((report.epoch, report.rev), (Epoch::new(4), rev));
    assert_eq!((report.names, report.bodies), (5, 4));
    let (restored, opened, entries) = reopened(&target);
    assert!(!opened.new);
    assert_eq!(
        newest(&entries),
        (4, 4),
        "what was durable before the checkpoint"
    );
    let epoch = Epoch::new(4);
    assert_eq!(entries.last(), Some(&Entry::Epoch { epoch }));
    check_view(&*view_of(&restored), 4, "restored");

    let again = dir.path().join("again");
    let report = restore(&again, &mut &backup_of(&restored)[..]).expect("restored");
    assert_eq!(report.epoch, Epoch::new(5), "each restore begins one");
}

fn checkpoint_and_publish(vault: &mut Vault) {
    publish(vault, 4, &mut Progress::default()).expect("published");
    checkpoint_at_4(vault).expect("a checkpoint");
    publish(vault, 5, &mut Progress::default()).expect("published");
}

#[test]
fn a_damaged_or_cut_backup_is_refused_and_leaves_nothing_behind() {
    let disk = SimDisk::default();
    let (mut vault, ..) = open(&disk, &Arc::new(MemoryStore::new()));
    vault.append(&genesis(0)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let backup = backup_of(&vault);
    let dir = tempfile::tempdir().expect("a directory");
    let refused = |bytes: &[u8], what: &str| {
        let target = dir.path().join("target");
        let mut input = bytes;
        let restored = restore(&target, &mut input);
        assert!(restored.is_err(), "{what}");
        assert!(!target.exists(), "{what} left something behind");
    };
    for cut in 0..backup.len() {
        refused(&backup[..cut], &format!("cut at {cut}"));
    }
    for bit in 0..backup.len() * 8 {
        let mut flipped = backup.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped, &format!("bit {bit} flipped"));
    }
    refused(&[&backup[..], b"x"].concat(), "something behind the seal");
    refused(
        b"PK\x03\x04 certainly not one of ours, but long enough to be",
        "no backup",
    );
}

#[test]
fn a_backup_without_a_body_that_is_needed_is_refused() {
    let disk = SimDisk::default();
    let (mut vault, ..) = open(&disk, &Arc::new(MemoryStore::new()));
    vault.append(&genesis(0)).expect("an append");
    vault.append(&pending(1)).expect("an append");
    vault.sync().expect("a sync");
    let dir = tempfile::tempdir().expect("a directory");
    let restored = restore(dir.path(), &mut &backup_of(&vault)[..]);
    assert!(matches!(restored, Err(RestoreError::MissingBody { .. })));
    assert_eq!(fs::read_dir(dir.path()).expect("a listing").count(), 0);
}

#[test]
fn a_restore_never_touches_a_directory_that_holds_something() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("precious"), b"data").expect("written");
    let error = restore(dir.path(), &mut &b""[..]).expect_err("not empty");
    assert!(matches!(error, RestoreError::NotEmpty { .. }));
    assert!(dir.path().join("precious").exists());
}

#[test]
fn a_restore_that_is_cut_short_is_no_store_or_a_whole_one() {
    let source = SimDisk::default();
    let (mut vault, ..) = open(&source, &Arc::new(MemoryStore::new()));
    vault.append(&genesis(0)).expect("an append");
    publish(&mut vault, 1, &mut Progress::default()).expect("published");
    let backup = backup_of(&vault);
    for cut in 0..20 {
        let disk = SimDisk::default();
        disk.power_off_after(cut);
        let restored = backup::restore_to(&disk, &mut &backup[..]);
        for seed in 0..10 {
            let view = Arc::new(MemoryStore::new());
            let (_, opened, entries) = open(&disk.crash(seed), &view);
            let whole = newest(&entries) == (1, 1) && entries.len() == 4;
            assert!(
                whole || (opened.new && restored.is_err()),
                "cut {cut} seed {seed}"
            );
        }
    }
}

#[test]
fn readers_in_other_threads_keep_reading_through_appends_and_checkpoints() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path(), 3);
    let (mut vault, ..) = reopened(dir.path());
    let reader = vault.reader();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..300 {
                        for rev in 1..=3 {
                            let body = reader.body(spec(rev).hash(), None);
                            assert_eq!(body.expect("an answer"), Some(spec(rev)));
                        }
                    }
                })
            })
            .collect();
        checkpoint_and_publish(&mut vault);
        for reader in readers {
            reader.join().expect("a reader");
        }
    });
}
