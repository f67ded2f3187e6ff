//! The test hooks of the memory log: held answers, planned failures, refusals, closing.

use std::{io, sync::Arc};

use events_journal::{
    AppendError, Direction, EventLog, Filter, Health, MemoryLog, Outcome, Refusal, Subscription,
    contract::{
        commit,
        fixture::{call, tenant},
        settle,
    },
    log::APPEND_QUEUE_LEN_MAX,
    memory::SCAN_LEN_MAX,
};
use events_model::{Position, TenantId, Version};

fn pair() -> (Arc<MemoryLog>, Arc<dyn EventLog>) {
    let log = Arc::new(MemoryLog::new());
    (Arc::clone(&log), log)
}

fn append(log: &Arc<dyn EventLog>, version: u64, id: &str) -> events_journal::Receipt {
    call(log, commit(&tenant("acme"), Version(version), id, 1, 50))
}

fn unknown() -> AppendError {
    AppendError::Unknown(Arc::new(io::Error::other("the cable")))
}

#[test]
fn held_appends_are_neither_answered_nor_readable_until_released() {
    let (memory, log) = pair();
    memory.hold();
    let mut receipts = vec![append(&log, 1, "a"), append(&log, 2, "b"), append(&log, 9, "c"), append(&log, 1, "a")];
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for receipt in &mut receipts {
        assert!(std::pin::Pin::new(receipt).poll(&mut context).is_pending());
    }
    assert_eq!((memory.waiting(), log.head_position()), (4, Position(0)));
    memory.release();
    let answers: Vec<_> = receipts.into_iter().map(settle).collect();
    assert_eq!(answers[1].as_ref().unwrap().position, Position(2));
    assert!(matches!(answers[2], Err(AppendError::Conflict { actual: Version(2), .. })));
    assert!(answers[3].as_ref().unwrap().duplicate);
    assert_eq!(memory.waiting(), 0);
    assert_eq!(settle(append(&log, 3, "d")).unwrap().position, Position(3));
}

#[test]
fn a_planned_refusal_takes_down_what_was_built_on_it() {
    let (memory, log) = pair();
    memory.hold();
    memory.fail_next(AppendError::Refused(Refusal::DiskFull));
    let receipts = [append(&log, 1, "a"), append(&log, 2, "b"), append(&log, 1, "c")];
    memory.release();
    let [refused, built_on_it, other] = receipts.map(settle);
    assert!(matches!(refused, Err(AppendError::Refused(Refusal::DiskFull))));
    assert!(matches!(built_on_it, Err(AppendError::Conflict { actual: Version(0), .. })));
    assert_eq!(other.unwrap().position, Position(1));
}

#[test]
fn after_an_unknown_outcome_all_that_waits_is_certainly_not_written() {
    for written in [false, true] {
        let (memory, log) = pair();
        memory.hold();
        if written {
            memory.fail_next_after_writing();
        } else {
            memory.fail_next(unknown());
        }
        let receipts = [append(&log, 1, "a"), append(&log, 2, "b")];
        memory.release();
        let [first, second] = receipts.map(|receipt| settle(receipt).unwrap_err().outcome());
        assert_eq!((first, second), (Outcome::Unknown, Outcome::NotWritten));
        // Re-reading tells, and the log accepts again.
        assert_eq!(log.head(&tenant("acme")).unwrap(), Version(u64::from(written)));
        assert_eq!(settle(append(&log, 1, "a")).unwrap().duplicate, written);
    }
}

#[test]
fn failures_are_used_up_one_by_one_in_order() {
    let (memory, log) = pair();
    memory.fail_next(AppendError::Busy { waiting: 1 });
    memory.fail_next(unknown());
    assert!(matches!(settle(append(&log, 1, "a")), Err(AppendError::Busy { waiting: 1 })));
    assert!(matches!(settle(append(&log, 1, "a")), Err(AppendError::Unknown(_))));
    assert!(!settle(append(&log, 1, "a")).unwrap().duplicate);
}

#[test]
fn a_refusing_log_answers_at_once_and_says_so() {
    let (memory, log) = pair();
    let health = log.watch_health();
    memory.set_health(Health::Refusing(Refusal::ReadOnly));
    assert_eq!(*health.borrow(), Health::Refusing(Refusal::ReadOnly));
    assert!(matches!(settle(append(&log, 1, "a")), Err(AppendError::Refused(Refusal::ReadOnly))));
    memory.set_health(Health::Accepting);
    assert_eq!(settle(append(&log, 1, "a")).unwrap().position, Position(1));
}

#[test]
fn closing_answers_what_waits_and_ends_subscriptions_after_the_last_commit() {
    let (memory, log) = pair();
    settle(append(&log, 1, "a")).unwrap();
    let mut subscription = Subscription::new(Arc::clone(&log), Position(1), Filter::default());
    memory.hold();
    let waiting = append(&log, 2, "b");
    memory.close();
    memory.set_health(Health::Accepting);
    for receipt in [waiting, append(&log, 2, "c")] {
        assert!(matches!(settle(receipt), Err(AppendError::Refused(Refusal::Closed))));
    }
    assert_eq!(settle(subscription.next_page(10)).unwrap().unwrap().commits.len(), 1);
    assert_eq!(settle(subscription.next_page(10)).unwrap(), None);
    assert_eq!(log.head_position(), Position(1));
}

#[test]
fn no_more_than_the_queue_holds_may_wait() {
    let (memory, log) = pair();
    memory.hold();
    let receipts: Vec<_> = (1..=APPEND_QUEUE_LEN_MAX as u64).map(|n| append(&log, n, &format!("c-{n}"))).collect();
    assert!(matches!(
        settle(append(&log, 1, "too-many")),
        Err(AppendError::Busy { waiting }) if waiting == APPEND_QUEUE_LEN_MAX
    ));
    memory.release();
    assert!(receipts.into_iter().map(settle).all(|answer| answer.is_ok()));
}

#[test]
fn a_filter_that_matches_nothing_looks_at_a_bounded_number_of_commits() {
    let (_, log) = pair();
    for version in 1..=SCAN_LEN_MAX as u64 + 5 {
        drop(append(&log, version, &format!("c-{version}")));
    }
    let filter = Filter { tenant: Some(TenantId::new("bell").unwrap()), ..Filter::default() };
    let page = log.read_log(Position(1), Direction::Forward, &filter, 10).unwrap();
    assert_eq!((page.commits.len(), page.next), (0, Position(SCAN_LEN_MAX as u64 + 1)));
    let page = log.read_log(page.next, Direction::Forward, &filter, 10).unwrap();
    assert_eq!((page.commits.len(), page.next), (0, Position(SCAN_LEN_MAX as u64 + 6)));
}
