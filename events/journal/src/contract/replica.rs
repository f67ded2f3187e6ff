//! What a `Replica` promises beside the contract of `EventLog`.

use std::sync::Arc;

use bytes::Bytes;
use events_model::{Position, Version};

use super::fixture::{append, commit, encoded, read_all, settle, tenant};
use crate::{
    error::{AppendError, Outcome},
    log::{Appended, Direction, EventLog, Filter},
    replica::Replica,
};

/// Runs every property of replicas, each on a fresh and empty log of its own.
pub fn run_replica<R: Replica>(open: &mut dyn FnMut() -> Arc<R>) {
    recorded_bytes_are_stored_as_they_are(&open());
    a_recorded_commit_that_is_there_answers_its_first_place(&open());
    a_recorded_commit_that_does_not_follow_conflicts(&open());
    bytes_that_are_no_commit_are_invalid(&open());
}

/// Whatever order and sizes come: same bytes, positions in the order of the calls, found in every way.
pub fn recorded_bytes_are_stored_as_they_are<R: Replica>(replica: &Arc<R>) {
    let source: Arc<dyn EventLog> = Arc::new(crate::memory::MemoryLog::new());
    let streams = ["acme", "bell", "cobb"].map(tenant);
    for n in 0..300_u64 {
        let index = usize::try_from(n % 3).unwrap();
        let version = Version(n / 3 * 2 + 1);
        append(&source, commit(&streams[index], version, &format!("c-{n}"), 2, index * 700)).unwrap();
    }
    let all = read_all(&source, Direction::Forward, &Filter::default(), 100);
    let receipts: Vec<_> = all.iter().map(|recorded| replica.append_recorded(recorded.bytes.clone())).collect();
    for (receipt, recorded) in receipts.into_iter().zip(&all) {
        let answer = settle(receipt).unwrap();
        assert_eq!((answer.position, answer.duplicate), (recorded.position, false));
    }
    let log: Arc<dyn EventLog> = Arc::<R>::clone(replica);
    super::same_answers(&log, &source);
}

/// Feeding a replica again from an earlier place does no harm.
pub fn a_recorded_commit_that_is_there_answers_its_first_place<R: Replica>(replica: &Arc<R>) {
    let acme = tenant("acme");
    let commits: Vec<_> = (0..5).map(|n| commit(&acme, Version(n * 3 + 1), &format!("c-{n}"), 3, 90)).collect();
    for is_again in [false, true, true] {
        let receipts: Vec<_> = commits.iter().map(|commit| replica.append_recorded(commit.encode().into())).collect();
        for ((position, receipt), commit) in (1..).zip(receipts).zip(&commits) {
            let version = commit.last_version();
            let expected = Appended { position: Position(position), version, duplicate: is_again };
            assert_eq!(settle(receipt).unwrap(), expected);
        }
    }
    let log: Arc<dyn EventLog> = Arc::<R>::clone(replica);
    let stored: Vec<_> =
        read_all(&log, Direction::Forward, &Filter::default(), 10).iter().map(|one| one.bytes.to_vec()).collect();
    assert_eq!(stored, encoded(&commits));
}

/// A hole in a stream is never papered over.
pub fn a_recorded_commit_that_does_not_follow_conflicts<R: Replica>(replica: &Arc<R>) {
    let acme = tenant("acme");
    settle(replica.append_recorded(commit(&acme, Version(1), "c-1", 2, 50).encode().into())).unwrap();
    for version in [1, 2, 4, 90] {
        let stray = commit(&acme, Version(version), &format!("stray-{version}"), 1, 50);
        let error = settle(replica.append_recorded(stray.encode().into())).unwrap_err();
        assert!(matches!(error, AppendError::Conflict { actual: Version(2), .. }), "{error:?}");
    }
    assert_eq!(replica.head_position(), Position(1));
}

/// Nothing that cannot be read back gets in, and what comes after it is not disturbed.
pub fn bytes_that_are_no_commit_are_invalid<R: Replica>(replica: &Arc<R>) {
    let good = commit(&tenant("acme"), Version(1), "c-1", 1, 50).encode();
    let empty = commit(&tenant("acme"), Version(1), "c-2", 0, 0).encode();
    let at_zero = commit(&tenant("acme"), Version(0), "c-3", 1, 0).encode();
    for bytes in [Vec::new(), good[..good.len() / 2].to_vec(), vec![0xff; 40], empty, at_zero] {
        let error = settle(replica.append_recorded(Bytes::from(bytes))).unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert!(matches!(error, AppendError::Invalid { .. }), "{error:?}");
    }
    assert_eq!(settle(replica.append_recorded(good.into())).unwrap().position, Position(1));
}
