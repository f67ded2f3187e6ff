//! What appending promises.

use std::sync::Arc;

use events_model::{
    Commit, CommitId, Position, StreamId, Version,
    envelope::{COMMIT_BYTES_MAX, EVENTS_PER_COMMIT_MAX},
    id::COMMIT_ID_BYTES_MAX,
};

use super::fixture::{append, bytes, call, commit, encoded, fill, positions, read_all, saga, settle, tenant};
use crate::{
    error::{AppendError, Outcome},
    log::{Appended, Direction, EventLog, Filter, Health, Receipt},
};

type Log = Arc<dyn EventLog>;

/// Asserts that an append failed with a conflict between these versions, and so says that nothing was written.
fn assert_conflict(answer: Result<Appended, AppendError>, on: &StreamId, believed: u64, is: u64) {
    let error = answer.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(
        matches!(&error, AppendError::Conflict { stream, expected, actual }
            if stream == on && *expected == Version(believed) && *actual == Version(is)),
        "expected a conflict between {believed} and {is}, got {error:?}"
    );
}

fn assert_invalid(answer: Result<Appended, AppendError>, id: &CommitId) {
    let error = answer.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(matches!(&error, AppendError::Invalid { commit_id, .. } if commit_id == id), "{error:?}");
}

/// Asserts that the log holds exactly these commits, in this order.
fn assert_holds(log: &Log, commits: &[Commit]) {
    let stored = read_all(log, Direction::Forward, &Filter::default(), 100);
    assert_eq!(bytes(&stored), encoded(commits));
    assert_eq!(positions(&stored), (1..=commits.len() as u64).collect::<Vec<_>>());
    assert_eq!(log.head_position(), Position(commits.len() as u64));
}

/// A commit whose encoded form has exactly this many bytes.
fn commit_of(stream: &StreamId, version: Version, id: &str, encoded_bytes: usize) -> Commit {
    let mut payload_bytes = encoded_bytes;
    loop {
        let commit = commit(stream, version, id, 1, payload_bytes);
        match commit.encode().len().checked_sub(encoded_bytes) {
            Some(0) => return commit,
            Some(beyond) => payload_bytes -= beyond,
            None => payload_bytes += 1,
        }
    }
}

/// A log that was just made is empty, says so on every read, and accepts appends.
pub fn a_new_log_is_empty_and_accepts(log: &Log) {
    let acme = tenant("acme");
    assert_eq!(log.head_position(), Position(0));
    assert_eq!(log.head(&acme).unwrap(), Version(0));
    assert!(log.read_stream(&acme, Version(0), Direction::Forward, 10).unwrap().is_empty());
    assert!(log.read_stream(&acme, Version(u64::MAX), Direction::Backward, 10).unwrap().is_empty());
    assert!(log.find_commit(&acme, &CommitId::new("a").unwrap()).unwrap().is_none());
    assert_eq!(*log.watch_health().borrow(), Health::Accepting);
}

/// Positions count commits from 1; the version that is answered is that of the commit's last event.
pub fn the_first_commit_has_position_one_and_later_ones_follow(log: &Log) {
    let (acme, bell) = (tenant("acme"), tenant("bell"));
    let mut expected = Vec::new();
    for (position, (stream, version, events)) in
        [(&acme, 1, 3), (&bell, 1, 1), (&acme, 4, 1), (&acme, 5, 2)].into_iter().enumerate()
    {
        let commit = commit(stream, Version(version), &format!("c-{version}"), events, 50);
        let last = commit.last_version();
        let answer = append(log, commit.clone()).unwrap();
        let position = Position(position as u64).next();
        assert_eq!(answer, Appended { position, version: last, duplicate: false });
        assert_eq!(log.head(stream).unwrap(), last);
        expected.push(commit);
    }
    assert_holds(log, &expected);
}

/// Once a receipt says yes, every read and both watches know.
pub fn an_acknowledged_append_is_seen_by_every_read_at_once(log: &Log) {
    let acme = tenant("acme");
    for version in 1..=50 {
        let commit = commit(&acme, Version(version), &format!("c-{version}"), 1, 100);
        let position = append(log, commit.clone()).unwrap().position;
        let expected = [commit.encode()];
        assert_eq!(log.head(&acme).unwrap(), Version(version));
        assert_eq!(log.head_position(), position);
        assert_eq!(*log.watch_head().borrow(), position);
        let read = log.read_stream(&acme, Version(version), Direction::Forward, 10).unwrap();
        assert_eq!(bytes(&read), expected);
        assert_eq!(positions(&read), [position.0]);
        let page = log.read_log(position, Direction::Forward, &Filter::default(), 10).unwrap();
        assert_eq!(bytes(&page.commits), expected);
        assert_eq!(page.next, position.next());
        assert_eq!(bytes(&log.read_episode(commit.episode_id, 10).unwrap()), expected);
        let found = log.find_commit(&acme, &commit.commit_id).unwrap().unwrap();
        assert_eq!((found.position, found.bytes.as_ref()), (position, expected[0].as_slice()));
        assert_eq!(found.view().unwrap().last_version(), Version(version));
    }
}

/// Too low, too high, and on a stream that does not exist.
pub fn a_wrong_expected_version_is_a_conflict_and_writes_nothing(log: &Log) {
    let (acme, bell) = (tenant("acme"), tenant("bell"));
    let mut expected = vec![commit(&acme, Version(1), "c-1", 3, 50)];
    append(log, expected[0].clone()).unwrap();
    // 1 and 2 lie inside the stored commit: an expected version must be the stream's last.
    for believed in [0, 1, 2, 4, 1_000_000] {
        let wrong = commit(&acme, Version(believed + 1), &format!("wrong-{believed}"), 1, 50);
        assert_conflict(append(log, wrong), &acme, believed, 3);
        assert!(log.find_commit(&acme, &CommitId::new(&format!("wrong-{believed}")).unwrap()).unwrap().is_none());
    }
    assert_conflict(append(log, commit(&bell, Version(2), "c-2", 1, 50)), &bell, 1, 0);
    assert_eq!(log.head(&bell).unwrap(), Version(0));
    assert_holds(log, &expected);
    // The id of a refused append is free: the same command may be decided again.
    expected.push(commit(&acme, Version(4), "wrong-0", 1, 50));
    append(log, expected[1].clone()).unwrap();
    assert_holds(log, &expected);
}

/// A retry is answered whatever the retrier believes the version to be, even with other contents.
pub fn the_same_commit_id_answers_the_first_place_whatever_is_expected(log: &Log) {
    let acme = tenant("acme");
    let commits = [
        commit(&acme, Version(1), "c-1", 2, 50),
        commit(&acme, Version(3), "c-2", 3, 50),
        commit(&acme, Version(6), "c-3", 1, 50),
    ];
    for commit in &commits {
        append(log, commit.clone()).unwrap();
    }
    // Stale (as sent first), stale otherwise, the stream's present version, and one it has not reached.
    for version in [3, 1, 2, 7, 100] {
        let answer = append(log, commit(&acme, Version(version), "c-2", 1, 70)).unwrap();
        assert_eq!(answer, Appended { position: Position(2), version: Version(5), duplicate: true }, "at {version}");
    }
    assert_eq!(log.head(&acme).unwrap(), Version(6));
    assert_holds(log, &commits);
}

/// Commit ids are unique in a stream, not in the log.
pub fn the_same_commit_id_in_another_stream_is_another_commit(log: &Log) {
    let commits = ["acme", "bell", "cobb"].map(|name| commit(&tenant(name), Version(1), "same", 1, 50));
    for (position, commit) in (1..).zip(&commits) {
        let answer = append(log, commit.clone()).unwrap();
        assert_eq!(answer, Appended { position: Position(position), version: Version(1), duplicate: false });
    }
    assert_holds(log, &commits);
}

/// A commit carries its own versions; they must be those it is appended at.
pub fn a_first_version_that_does_not_follow_is_invalid(log: &Log) {
    let acme = tenant("acme");
    let first = commit(&acme, Version(1), "c-1", 2, 50);
    append(log, first.clone()).unwrap();
    for (expected, version) in [(2, 2), (2, 4), (2, 0), (0, 3), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
        let commit = commit(&acme, Version(0), "c-2", 1, 50);
        let commit = Commit { first_version: Version(version), ..commit };
        let id = commit.commit_id.clone();
        assert_invalid(settle(log.append(Version(expected), commit)), &id);
    }
    assert_holds(log, &[first]);
}

/// A decision without consequences is not a fact.
pub fn a_commit_without_events_is_invalid(log: &Log) {
    let empty = commit(&tenant("acme"), Version(1), "c-1", 0, 0);
    let id = empty.commit_id.clone();
    assert_invalid(append(log, empty), &id);
    assert_holds(log, &[]);
}

/// The limits are inclusive, and what is beyond them does not disturb what comes after.
pub fn the_largest_commits_are_accepted_and_one_beyond_is_invalid(log: &Log) {
    let acme = tenant("acme");
    let largest = commit_of(&acme, Version(1), "largest", COMMIT_BYTES_MAX);
    assert_eq!(largest.encode().len(), COMMIT_BYTES_MAX);
    let beyond = commit_of(&acme, Version(2), "too-large", COMMIT_BYTES_MAX + 1);
    let most = commit(&acme, Version(2), "most", EVENTS_PER_COMMIT_MAX, 100);
    let next = Version(2 + EVENTS_PER_COMMIT_MAX as u64);
    let too_many = commit(&acme, next, "too-many", EVENTS_PER_COMMIT_MAX + 1, 100);
    let small = commit(&acme, next, "small", 1, 0);

    assert_eq!(append(log, largest.clone()).unwrap().version, Version(1));
    let id = beyond.commit_id.clone();
    assert_invalid(append(log, beyond), &id);
    assert_eq!(append(log, most.clone()).unwrap().version, Version(1 + EVENTS_PER_COMMIT_MAX as u64));
    let id = too_many.commit_id.clone();
    assert_invalid(append(log, too_many), &id);
    append(log, small.clone()).unwrap();
    assert_holds(log, &[largest, most, small]);
}

/// Nothing is cut off an identifier.
pub fn the_longest_identifiers_are_kept(log: &Log) {
    let name = "n".repeat(63);
    let stream = StreamId::new(&format!("saga/{name}/{name}")).unwrap();
    // Two ids that differ in their last character alone.
    let ids = ["x", "y"].map(|end| format!("{}{end}", "i".repeat(COMMIT_ID_BYTES_MAX - 1)));
    let commits = [commit(&stream, Version(1), &ids[0], 1, 50), commit(&stream, Version(2), &ids[1], 1, 50)];
    for commit in &commits {
        assert!(!append(log, commit.clone()).unwrap().duplicate);
    }
    for commit in &commits {
        let found = log.find_commit(&stream, &commit.commit_id).unwrap().unwrap();
        assert_eq!(found.view().unwrap().commit_id, commit.commit_id.as_str());
        assert_eq!(found.view().unwrap().stream, stream.as_str());
    }
    assert_holds(log, &commits);
}

/// An actor appends on top of what is not durable yet; the receipts come true in the order of the calls.
pub fn appends_of_a_tenant_that_do_not_wait_are_ordered_by_their_calls(log: &Log) {
    let streams = ["one", "two", "three"].map(saga);
    let commits: Vec<_> = (0..1_000_u64)
        .map(|n| {
            let stream = &streams[usize::try_from(n % 3).unwrap()];
            commit(stream, Version(1 + n / 3 * 2), &format!("c-{n}"), 2, 60)
        })
        .collect();
    let receipts: Vec<_> = commits.iter().map(|commit| call(log, commit.clone())).collect();
    for ((position, commit), receipt) in (1..).zip(&commits).zip(receipts) {
        let expected = Appended { position: Position(position), version: commit.last_version(), duplicate: false };
        assert_eq!(settle(receipt).unwrap(), expected);
    }
    assert_holds(log, &commits);
}

/// A failure takes down all that was decided on top of it, and nothing else.
pub fn what_was_built_on_a_failed_append_conflicts(log: &Log) {
    let (acme, bell) = (saga("one"), saga("two"));
    let good = [
        commit(&acme, Version(1), "a-1", 1, 50),
        commit(&bell, Version(1), "b-1", 1, 50),
        commit(&bell, Version(2), "b-2", 1, 50),
        commit(&acme, Version(2), "a-2", 1, 50),
    ];
    // The first wrong one skips a version; the others would each be right if the one before them were.
    let wrong = [3_u64, 4, 5].map(|version| commit(&acme, Version(version), &format!("w-{version}"), 1, 50));
    let empty = Commit { events: Vec::new(), ..commit(&bell, Version(3), "w-6", 1, 50) };
    let on_empty = commit(&bell, Version(4), "w-7", 1, 50);

    let receipts: Vec<Receipt> =
        [&good[0], &wrong[0], &good[1], &wrong[1], &empty, &on_empty, &wrong[2], &good[2], &good[3]]
            .map(|commit| call(log, commit.clone()))
            .into();
    let answers: Vec<_> = receipts.into_iter().map(settle).collect();
    let outcome: Vec<_> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(outcome, [true, false, true, false, false, false, false, true, true]);
    for (index, believed) in [(1, 2), (3, 3), (6, 4)] {
        assert_conflict(answers[index].clone(), &acme, believed, 1);
    }
    assert_invalid(answers[4].clone(), &empty.commit_id);
    assert_conflict(answers[5].clone(), &bell, 3, 1);
    assert_holds(log, &good);
}

/// A retry may overtake its own first answer.
pub fn a_duplicate_in_a_pipeline_answers_the_first_place(log: &Log) {
    let acme = tenant("acme");
    fill(log, &acme, 1);
    let commit = commit(&acme, Version(2), "twice", 1, 50);
    let receipts = [call(log, commit.clone()), call(log, commit.clone()), call(log, commit)];
    let answers = receipts.map(|receipt| settle(receipt).unwrap());
    let first = Appended { position: Position(2), version: Version(2), duplicate: false };
    let again = Appended { duplicate: true, ..first };
    assert_eq!(answers, [first, again, again]);
    assert_eq!(log.head_position(), Position(2));
}

/// Who stops waiting has appended all the same.
pub fn dropping_a_receipt_does_not_undo_the_append(log: &Log) {
    let acme = tenant("acme");
    let commits = [commit(&acme, Version(1), "c-1", 1, 50), commit(&acme, Version(2), "c-2", 1, 50)];
    drop(call(log, commits[0].clone()));
    assert_eq!(append(log, commits[1].clone()).unwrap().position, Position(2));
    assert_holds(log, &commits);
}
