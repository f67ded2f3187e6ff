//! Snapshots and checkpoints over reopening, and those that cannot be of this log.

use events_journal::{Blob, EventLog, SnapshotStore, contract::fixture::tenant};
use events_journal_sled::{LocalStore, Options};
use events_model::Version;

use crate::kit::fill;

fn checkpoint(at: u64) -> Blob {
    Blob { at, bytes: vec![at as u8; 200_000] }
}

#[test]
fn saved_states_outlive_the_process_and_vanish_with_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let (stream, options) = (tenant("s0"), Options::default());
    let store = LocalStore::open(dir.path(), options.clone()).unwrap();
    fill(&store, 9, 10);
    store.save_snapshot(&stream, Version(3), b"three").unwrap();
    store.save_checkpoint("billing", &checkpoint(9)).unwrap();
    drop(store);
    let store = LocalStore::open(dir.path(), options.clone()).unwrap();
    assert_eq!(store.load_snapshot(&stream).unwrap(), Some(Blob { at: 3, bytes: b"three".to_vec() }));
    assert_eq!(store.load_checkpoint("billing").unwrap(), Some(checkpoint(9)));
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = LocalStore::open(dir.path(), options).unwrap();
    assert_eq!(store.load_snapshot(&stream).unwrap(), None);
    assert_eq!(store.load_checkpoint("billing").unwrap(), None);
}

#[test]
fn states_ahead_of_the_log_are_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), Options::default()).unwrap();
    fill(&store, 9, 10);
    store.save_snapshot(&tenant("s0"), Version(4), b"ahead").unwrap();
    store.save_checkpoint("billing", &checkpoint(10)).unwrap();
    assert_eq!(store.load_snapshot(&tenant("s0")).unwrap(), None);
    assert_eq!(store.load_checkpoint("billing").unwrap(), None);
    fill_one_more(&store);
    assert_eq!(store.load_checkpoint("billing").unwrap(), Some(checkpoint(10)));
}

fn fill_one_more(store: &LocalStore) {
    crate::kit::append(store, "other", 1, "one-more", 10).unwrap();
    assert_eq!(store.head_position().0, 10);
}
