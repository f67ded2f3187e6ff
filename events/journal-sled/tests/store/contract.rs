//! The local store keeps the contract of the port, with segments and index runs of ordinary and of tiny size.

use std::sync::Arc;

use events_journal::{EventLog, contract};
use events_journal_sled::{LocalStore, Options};
use tempfile::TempDir;

const TINY: Options = Options { segment_bytes: 4_096, run_commits: 3 };

/// Opens stores in directories of their own, which live as long as the list.
fn open(dirs: &mut Vec<TempDir>, options: &Options) -> Arc<LocalStore> {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), options.clone()).unwrap();
    dirs.push(dir);
    Arc::new(store)
}

#[test]
fn the_store_keeps_the_contract() {
    let mut dirs = Vec::new();
    contract::run_all(&mut || open(&mut dirs, &Options::default()));
}

#[test]
fn the_store_keeps_the_contract_with_tiny_segments_and_runs() {
    let mut dirs = Vec::new();
    contract::run_all(&mut || open(&mut dirs, &TINY));
}

#[test]
fn the_store_keeps_everything_over_reopening() {
    for options in [Options::default(), TINY] {
        contract::run_durable(&mut || {
            let dir = tempfile::tempdir().unwrap();
            let options = options.clone();
            Box::new(move || {
                let store: Arc<dyn EventLog> = Arc::new(LocalStore::open(dir.path(), options.clone()).unwrap());
                store
            })
        });
    }
}

#[test]
fn the_store_keeps_snapshots() {
    let mut dirs = Vec::new();
    contract::run_snapshots(&mut || open(&mut dirs, &Options::default()));
}

#[test]
fn the_store_keeps_the_contract_of_replicas() {
    for options in [Options::default(), TINY] {
        let mut dirs = Vec::new();
        contract::run_replica(&mut || open(&mut dirs, &options));
    }
}

/// Opens copies in directories of their own.
fn open_copy(dirs: &mut Vec<TempDir>, options: &Options) -> Arc<LocalStore> {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open_copy(dir.path(), options.clone()).unwrap();
    dirs.push(dir);
    Arc::new(store)
}

#[test]
fn a_copy_keeps_the_contract_and_everything_over_reopening() {
    for options in [Options::default(), TINY] {
        let mut dirs = Vec::new();
        contract::run_all(&mut || open_copy(&mut dirs, &options));
        contract::run_replica(&mut || open_copy(&mut dirs, &options));
        contract::run_durable(&mut || {
            let dir = tempfile::tempdir().unwrap();
            let options = options.clone();
            Box::new(move || {
                let store: Arc<dyn EventLog> = Arc::new(LocalStore::open_copy(dir.path(), options.clone()).unwrap());
                store
            })
        });
    }
}
