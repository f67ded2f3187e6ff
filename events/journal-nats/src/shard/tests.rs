//! A shard without servers: what it tells its writer to do.

use events_journal::{
    MemoryLog, Receipt,
    contract::{self, fixture::tenant},
};

use super::*;
use crate::forming::{Load, Ticket};

/// A shard that was taken, and how many times.
fn owned() -> Shard {
    let shard = Shard::new((0, "subject".to_owned()), false, 1 << 20, Arc::new(MemoryLog::new()));
    assert!(shard.begin_take());
    assert!(matches!(shard.work(), Work::Take(1)));
    shard.taken(1);
    assert_eq!(*shard.watch().borrow(), Phase::Owned);
    shard
}

fn push(shard: &Shard, version: u64) -> Receipt {
    let commit = contract::commit(&tenant("acme"), Version(version), &format!("c-{version}"), 1, 10);
    let (reply, receipt) = Receipt::channel();
    let bytes = commit.encode();
    let ticket = Ticket::new(reply, bytes.len(), &Arc::new(Load::default()));
    shard.push(Waiting { entry: events_journal::Entry::of(&commit), bytes, ticket });
    receipt
}

fn flying(shard: &Shard) -> Forming {
    match shard.work() {
        Work::Publish(group) => group,
        work @ (Work::Take(_) | Work::Wait) => panic!("{work:?}"),
    }
}

fn outcome_of(receipt: Receipt) -> events_journal::Outcome {
    contract::settle(receipt).unwrap_err().outcome()
}

#[test]
fn a_release_that_meets_a_failing_group_leaves_the_shard_idle() {
    use events_journal::Outcome;
    for is_unknown in [true, false] {
        let shard = owned();
        let sent = push(&shard, 1);
        let group = flying(&shard);
        let behind = push(&shard, 2);
        shard.begin_release();
        assert_eq!(*shard.watch().borrow(), Phase::Releasing);
        if is_unknown {
            shard.unknown(group, io::Error::other("lost"), &Refusal::Unreachable);
        } else {
            shard.refused(group, &Refusal::Fenced, Phase::Lost);
        }
        assert_eq!(outcome_of(sent), if is_unknown { Outcome::Unknown } else { Outcome::NotWritten });
        assert_eq!(outcome_of(behind), Outcome::NotWritten);
        assert_eq!(*shard.watch().borrow(), Phase::Idle);
        assert!(matches!(shard.work(), Work::Wait));
        assert!(!shard.begin_take(), "it has a writer");
        assert!(matches!(shard.work(), Work::Take(2)));
    }
}

#[test]
fn every_take_reads_the_end_again_behind_what_was_accepted() {
    for is_releasing in [false, true] {
        let shard = owned();
        let _sent = push(&shard, 1);
        let group = flying(&shard);
        let _behind = push(&shard, 2);
        if is_releasing {
            shard.begin_release();
        }
        shard.begin_take();
        let waits = push(&shard, 9);
        let (_applied, seen) = watch::channel(0);
        shard.sent(group, 1, &seen);
        assert_eq!(flying(&shard).members.len(), 1);
        assert!(matches!(shard.work(), Work::Take(2)));
        // What was read for the take before, or for this one before it was called again, says nothing.
        shard.taken(1);
        shard.begin_take();
        shard.taken(2);
        assert_eq!(*shard.watch().borrow(), Phase::Taking);
        shard.taken(3);
        assert_eq!(*shard.watch().borrow(), Phase::Owned);
        drop(waits);
    }
}

#[test]
fn a_group_that_is_acknowledged_after_the_end_is_answered_all_the_same() {
    let shard = owned();
    let sent = push(&shard, 1);
    let group = flying(&shard);
    shard.end(&Refusal::Closed);
    let (_applied, seen) = watch::channel(0);
    shard.sent(group, 1, &seen);
    assert_eq!(outcome_of(sent), events_journal::Outcome::Unknown);
}
