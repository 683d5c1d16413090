//! The contract of [`Store`], checked against every implementation.

use super::*;
use crate::store::disk::SledStore;
use crate::store::memory::MemoryStore;

/// Runs each test over both stores.
macro_rules! contract {
    ($($name:ident)*) => {
        mod on_disk {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let dir = tempfile::tempdir().expect("a directory");
                    let store = SledStore::open(dir.path(), 16 << 20).expect("a store");
                    super::$name(&store);
                }
            )*
        }
        mod in_memory {
            use super::*;
            $(
                #[test]
                fn $name() {
                    super::$name(&MemoryStore::new());
                }
            )*
        }
    };
}

contract! {
    what_was_put_is_there_until_it_is_removed
    trees_do_not_see_each_other
    the_last_operation_on_a_key_wins
    a_scan_is_ordered_bounded_and_starts_where_it_is_told
    a_batch_that_is_too_long_changes_nothing
    a_batch_of_the_greatest_length_over_all_trees_is_applied
    empty_batches_keys_and_values_are_fine
    large_values_come_back_whole
    readers_in_other_threads_never_see_half_a_batch
    size_grows_with_content
}

fn put(store: &dyn Store, tree: Tree, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(tree, key, value.to_vec());
    store.apply(&batch).expect("applied");
}

fn get(store: &dyn Store, tree: Tree, key: &[u8]) -> Option<Vec<u8>> {
    let value = store.get(tree, key).expect("an answer");
    value.map(|value| value.to_vec())
}

fn what_was_put_is_there_until_it_is_removed(store: &dyn Store) {
    assert_eq!(get(store, Tree::Blobs, b"a"), None);
    put(store, Tree::Blobs, b"a", b"1");
    assert_eq!(get(store, Tree::Blobs, b"a"), Some(b"1".to_vec()));
    put(store, Tree::Blobs, b"a", b"2");
    assert_eq!(get(store, Tree::Blobs, b"a"), Some(b"2".to_vec()));
    let mut batch = Batch::new();
    batch.remove(Tree::Blobs, b"a").remove(Tree::Blobs, b"none");
    store.apply(&batch).expect("applied");
    assert_eq!(get(store, Tree::Blobs, b"a"), None);
    store.flush().expect("flushed");
    store.sync().expect("synced");
}

fn trees_do_not_see_each_other(store: &dyn Store) {
    for tree in Tree::ALL {
        put(store, tree, b"k", &[tree.tag()]);
    }
    for tree in Tree::ALL {
        assert_eq!(get(store, tree, b"k"), Some(vec![tree.tag()]));
        assert_eq!(store.scan(tree, &[], 10).expect("a scan").len(), 1);
    }
}

fn the_last_operation_on_a_key_wins(store: &dyn Store) {
    let mut batch = Batch::new();
    batch
        .put(Tree::Meta, b"a", b"1".to_vec())
        .remove(Tree::Meta, b"a")
        .put(Tree::Meta, b"b", b"1".to_vec())
        .put(Tree::Meta, b"b", b"2".to_vec());
    store.apply(&batch).expect("applied");
    assert_eq!(get(store, Tree::Meta, b"a"), None);
    assert_eq!(get(store, Tree::Meta, b"b"), Some(b"2".to_vec()));
}

fn a_scan_is_ordered_bounded_and_starts_where_it_is_told(store: &dyn Store) {
    for number in [300_u64, 2, 1, 256, 20] {
        put(store, Tree::Log, &number.to_be_bytes(), b"x");
    }
    let keys = |from: u64, limit| -> Vec<u64> {
        let pairs = store.scan(Tree::Log, &from.to_be_bytes(), limit);
        let number = |key: &[u8]| u64::from_be_bytes(key.try_into().expect("eight bytes"));
        let pairs = pairs.expect("a scan");
        pairs.iter().map(|(key, _)| number(key)).collect()
    };
    assert_eq!(keys(0, 10), [1, 2, 20, 256, 300]);
    assert_eq!(keys(2, 3), [2, 20, 256], "the start is included");
    assert_eq!(keys(3, 1), [20]);
    assert!(keys(301, 10).is_empty());
    assert!(keys(0, 0).is_empty());
}

fn a_batch_that_is_too_long_changes_nothing(store: &dyn Store) {
    let mut batch = Batch::new();
    for number in 0..=MAX_BATCH {
        batch.put(Tree::Held, number.to_be_bytes(), b"x".to_vec());
    }
    let refused = store.apply(&batch);
    assert!(matches!(refused, Err(StoreError::TooMany(len)) if len == MAX_BATCH + 1));
    assert!(store.scan(Tree::Held, &[], 10).expect("a scan").is_empty());
}

fn a_batch_of_the_greatest_length_over_all_trees_is_applied(store: &dyn Store) {
    let mut batch = Batch::new();
    for number in 0..MAX_BATCH {
        let tree = Tree::ALL[number % Tree::ALL.len()];
        batch.put(tree, number.to_be_bytes(), b"x".to_vec());
    }
    store.apply(&batch).expect("applied");
    let count = |tree| store.scan(tree, &[], MAX_BATCH).expect("a scan").len();
    assert_eq!(Tree::ALL.into_iter().map(count).sum::<usize>(), MAX_BATCH);
}

fn empty_batches_keys_and_values_are_fine(store: &dyn Store) {
    store.apply(&Batch::new()).expect("applied");
    put(store, Tree::Meta, b"", b"");
    assert_eq!(get(store, Tree::Meta, b""), Some(vec![]));
}

fn large_values_come_back_whole(store: &dyn Store) {
    let large: Vec<u8> = (0..5_u32 << 20).map(|number| (number >> 7) as u8).collect();
    put(store, Tree::Blobs, b"large", &large);
    assert_eq!(get(store, Tree::Blobs, b"large"), Some(large));
}

fn readers_in_other_threads_never_see_half_a_batch(store: &dyn Store) {
    let write = |number: u32| {
        let mut batch = Batch::new();
        for key in [b"a", b"b"] {
            batch.put(Tree::Meta, key, number.to_be_bytes().to_vec());
        }
        store.apply(&batch).expect("applied");
    };
    write(0);
    std::thread::scope(|scope| {
        scope.spawn(|| (1..200).for_each(write));
        for _ in 0..200 {
            let pairs = store.scan(Tree::Meta, b"a", 2).expect("a scan");
            assert_eq!(pairs.len(), 2);
            // A scan may see a later batch in its second pair, never an earlier one.
            assert!(pairs[0].1 <= pairs[1].1);
        }
    });
    assert_eq!(get(store, Tree::Meta, b"a"), get(store, Tree::Meta, b"b"));
}

fn size_grows_with_content(store: &dyn Store) {
    let before = store.size_on_disk().expect("a size");
    for number in 0..4_u8 {
        put(store, Tree::Blobs, &[number], &vec![number; 1 << 20]);
    }
    store.flush().expect("flushed");
    assert!(store.size_on_disk().expect("a size") >= before + (2 << 20));
}
