//! What holds when many append, read and follow at once.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use events_model::{Position, TenantId, Version};

use super::fixture::{append, commit, fill, positions, read_all, settle, tenant};
use crate::{
    error::AppendError,
    log::{Appended, Direction, EventLog, Filter, Subscription},
};

type Log = Arc<dyn EventLog>;

const APPENDERS: usize = 64;
const STREAMS: usize = 8;
const COMMITS_PER_APPENDER: usize = 10;

/// 64 threads append to 8 streams and decide again at each conflict: every commit is there once, where its
/// receipt says, and the versions of every stream have no gap.
pub fn many_threads_keep_every_stream_contiguous(log: &Log) {
    let work = |appender: usize| {
        let stream = tenant(&format!("t-{}", appender % STREAMS));
        let mut answers = Vec::new();
        for n in 0..COMMITS_PER_APPENDER {
            let id = format!("a-{appender}-{n}");
            answers.push((id.clone(), append_at_head(log, &stream, &id)));
        }
        answers
    };
    let mut answers = thread::scope(|scope| {
        let appenders: Vec<_> = (0..APPENDERS).map(|appender| scope.spawn(move || work(appender))).collect();
        appenders.into_iter().flat_map(|appender| appender.join().unwrap()).collect::<Vec<_>>()
    });
    answers.sort_by_key(|(_, answer)| answer.position);

    let stored = read_all(log, Direction::Forward, &Filter::default(), 100);
    let stored_ids: Vec<_> = stored.iter().map(|commit| commit.view().unwrap().commit_id).collect();
    let acknowledged: Vec<_> = answers.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(stored_ids, acknowledged);
    assert_eq!(positions(&stored), (1..=(APPENDERS * COMMITS_PER_APPENDER) as u64).collect::<Vec<_>>());
    for number in 0..STREAMS {
        let stream = tenant(&format!("t-{number}"));
        let commits = log.read_stream(&stream, Version(1), Direction::Forward, 1_000).unwrap();
        let mut next = Version(1);
        for commit in &commits {
            let view = commit.view().unwrap();
            assert_eq!((view.stream, view.first_version), (stream.as_str(), next.0));
            next = view.last_version().next();
        }
        assert_eq!(log.head(&stream).unwrap().next(), next);
        assert_eq!(commits.len(), APPENDERS / STREAMS * COMMITS_PER_APPENDER);
    }
}

fn append_at_head(log: &Log, stream: &events_model::StreamId, id: &str) -> Appended {
    loop {
        let version = log.head(stream).unwrap().next();
        match append(log, commit(stream, version, id, 2, 80)) {
            Ok(answer) => {
                assert!(!answer.duplicate);
                return answer;
            }
            // Somebody was first; each such conflict is somebody's success, so that this ends.
            Err(AppendError::Conflict { .. }) => (),
            Err(
                error @ (AppendError::Invalid { .. }
                | AppendError::Busy { .. }
                | AppendError::Refused(_)
                | AppendError::Unknown(_)),
            ) => assert_eq!(error.to_string(), "only conflicts"),
        }
    }
}

/// The same command sent by many at once happens once.
pub fn racing_retries_are_written_once(log: &Log) {
    let acme = tenant("acme");
    let answers = thread::scope(|scope| {
        let retry = || append(log, commit(&acme, Version(1), "once", 1, 50)).unwrap();
        let racers: Vec<_> = (0..16).map(|_| scope.spawn(retry)).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(answers.iter().all(|answer| (answer.position, answer.version) == (Position(1), Version(1))));
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert_eq!(log.head_position(), Position(1));
}

/// A position that `watch_head` shows can be read, and no later look shows less.
pub fn the_watched_head_only_rises_and_is_always_readable(log: &Log) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut before = Position(0);
            loop {
                let is_last = done.load(Ordering::Acquire);
                let head = log.head_position();
                assert!(head >= before, "the head fell from {before} to {head}");
                if head > Position(0) {
                    let page = log.read_log(head, Direction::Backward, &Filter::default(), 1).unwrap();
                    assert_eq!(positions(&page.commits), [head.0]);
                }
                before = head;
                if is_last {
                    return before;
                }
            }
        });
        let appenders: Vec<_> =
            ["acme", "bell", "cobb", "dunn"].map(|name| scope.spawn(move || fill(log, &tenant(name), 200))).into();
        for appender in appenders {
            appender.join().unwrap();
        }
        done.store(true, Ordering::Release);
        assert_eq!(watcher.join().unwrap(), Position(800));
    });
}

/// Reads the next `count` positions of a subscription.
fn follow(subscription: &mut Subscription, limit: usize, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let page = settle(subscription.next_page(limit)).unwrap().unwrap();
        assert!((1..=limit).contains(&page.commits.len()));
        seen.extend(positions(&page.commits));
    }
    seen
}

/// Followers start before, in the middle of and after the appends, with pages of different sizes.
pub fn a_subscription_goes_from_catching_up_to_live_without_gap_or_duplicate(log: &Log) {
    const COUNT: u64 = 900;
    fill(log, &tenant("acme"), COUNT / 3);
    thread::scope(|scope| {
        let followers: Vec<_> = [(1, 1), (1, 7), (COUNT / 6, 100), (COUNT / 3, 3), (COUNT / 2, 10_000)]
            .map(|(from, limit)| {
                let mut subscription = Subscription::new(Arc::clone(log), Position(from), Filter::default());
                let count = usize::try_from(COUNT + 1 - from).unwrap();
                (from, scope.spawn(move || follow(&mut subscription, limit, count)))
            })
            .into();
        let appenders: Vec<_> =
            ["bell", "cobb"].map(|name| scope.spawn(move || fill(log, &tenant(name), COUNT / 3))).into();
        for appender in appenders {
            appender.join().unwrap();
        }
        for (from, follower) in followers {
            assert_eq!(follower.join().unwrap(), (from..=COUNT).collect::<Vec<_>>());
        }
    });
}

/// Commits that do not match are passed over without an empty page and without waiting for ever.
pub fn a_filtered_subscription_skips_what_does_not_match(log: &Log) {
    let filter = Filter { tenant: Some(TenantId::new("bell").unwrap()), ..Filter::default() };
    let mut subscription = Subscription::new(Arc::clone(log), Position(0), filter.clone());
    thread::scope(|scope| {
        let follower = scope.spawn(move || follow(&mut subscription, 5, 300));
        let appenders: Vec<_> =
            ["acme", "bell", "cobb"].map(|name| scope.spawn(move || fill(log, &tenant(name), 300))).into();
        for appender in appenders {
            appender.join().unwrap();
        }
        let seen = follower.join().unwrap();
        assert_eq!(seen, positions(&read_all(log, Direction::Forward, &filter, 100)));
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 300);
    });
}

/// Whoever subscribes beyond the head gets exactly what he asked for, later.
pub fn a_subscription_waits_for_a_position_that_does_not_exist(log: &Log) {
    let mut subscription = Subscription::new(Arc::clone(log), Position(40), Filter::default());
    thread::scope(|scope| {
        let follower = scope.spawn(move || follow(&mut subscription, 10, 11));
        fill(log, &tenant("acme"), 50);
        assert_eq!(follower.join().unwrap(), (40..=50).collect::<Vec<_>>());
    });
}
