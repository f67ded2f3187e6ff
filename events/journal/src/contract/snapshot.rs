//! What a `SnapshotStore` promises, for stores that are logs at the same time.

use std::sync::Arc;

use events_model::Version;

use super::fixture::{fill, tenant};
use crate::{
    log::EventLog,
    snapshot::{BLOB_BYTES_MAX, Blob, SnapshotStore},
};

/// Runs every property of snapshots and checkpoints, each on a fresh and empty store.
pub fn run_snapshots<S: EventLog + SnapshotStore>(open: &mut dyn FnMut() -> Arc<S>) {
    the_newest_saved_state_is_loaded(&open());
    names_do_not_mix(&open());
    states_of_any_size_come_back_whole(&open());
}

/// Saving again replaces, and what was never saved is not there.
pub fn the_newest_saved_state_is_loaded<S: EventLog + SnapshotStore>(store: &Arc<S>) {
    let acme = tenant("acme");
    let log: Arc<dyn EventLog> = Arc::<S>::clone(store);
    fill(&log, &acme, 20);
    assert_eq!(store.load_snapshot(&acme).unwrap(), None);
    assert_eq!(store.load_checkpoint("billing").unwrap(), None);
    for at in [3, 10, 20] {
        store.save_snapshot(&acme, Version(at), &[at as u8; 9]).unwrap();
        assert_eq!(store.load_snapshot(&acme).unwrap(), Some(Blob { at, bytes: vec![at as u8; 9] }));
        let blob = Blob { at, bytes: format!("billing at {at}").into_bytes() };
        store.save_checkpoint("billing", &blob).unwrap();
        assert_eq!(store.load_checkpoint("billing").unwrap(), Some(blob));
    }
}

/// A snapshot is no checkpoint, whatever it is called, and one name may begin another.
pub fn names_do_not_mix<S: EventLog + SnapshotStore>(store: &Arc<S>) {
    let (short, long) = (tenant("a"), tenant("a1"));
    let log: Arc<dyn EventLog> = Arc::<S>::clone(store);
    fill(&log, &short, 5);
    fill(&log, &long, 5);
    store.save_snapshot(&long, Version(5), b"long").unwrap();
    assert_eq!(store.load_snapshot(&short).unwrap(), None);
    assert_eq!(store.load_checkpoint(long.as_str()).unwrap(), None);
    store.save_checkpoint("tenant/a1", &Blob { at: 1, bytes: b"checkpoint".to_vec() }).unwrap();
    store.save_checkpoint("tenant/a", &Blob { at: 2, bytes: b"other".to_vec() }).unwrap();
    assert_eq!(store.load_snapshot(&long).unwrap(), Some(Blob { at: 5, bytes: b"long".to_vec() }));
    assert_eq!(store.load_snapshot(&short).unwrap(), None);
    assert_eq!(store.load_checkpoint("tenant/a1").unwrap(), Some(Blob { at: 1, bytes: b"checkpoint".to_vec() }));
}

/// Empty, longer than any chunk, then shorter again; one beyond the limit is an error and the older one stays.
pub fn states_of_any_size_come_back_whole<S: EventLog + SnapshotStore>(store: &Arc<S>) {
    let acme = tenant("acme");
    let log: Arc<dyn EventLog> = Arc::<S>::clone(store);
    fill(&log, &acme, 1);
    for size in [0, 1, 65_535, 65_536, 65_537, 700_001, 100_000, 5] {
        let bytes: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        store.save_snapshot(&acme, Version(1), &bytes).unwrap();
        assert!(store.load_snapshot(&acme).unwrap() == Some(Blob { at: 1, bytes: bytes.clone() }), "{size} bytes");
        let blob = Blob { at: 1, bytes };
        store.save_checkpoint("analytics", &blob).unwrap();
        assert!(store.load_checkpoint("analytics").unwrap() == Some(blob), "{size} bytes");
    }
    let beyond = vec![0; BLOB_BYTES_MAX + 1];
    assert!(store.save_snapshot(&acme, Version(1), &beyond).is_err());
    assert_eq!(store.load_snapshot(&acme).unwrap().unwrap().bytes.len(), 5);
}
