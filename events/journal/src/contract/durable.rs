//! What an engine that outlives its process promises about being opened again.

use std::{collections::BTreeSet, sync::Arc};

use events_model::{CommitId, EpisodeId, Position, StreamId, Version};

use super::fixture::{append, call, commit, fill, read_all, settle, tenant};
use crate::{
    error::AppendError,
    log::{Appended, Direction, EventLog, Filter},
    memory::MemoryLog,
};

type Log = Arc<dyn EventLog>;

/// Opens the log at one place, again and again; it is called when the value it returned before was dropped.
pub type Reopen = Box<dyn FnMut() -> Arc<dyn EventLog>>;

/// Runs every property of reopening; `fresh` names a new and empty place each time it is called.
pub fn run_durable(fresh: &mut dyn FnMut() -> Reopen) {
    const PROPERTIES: &[fn(Reopen)] = &[
        everything_acknowledged_is_there_after_reopening,
        an_empty_log_is_empty_after_reopening,
        appends_go_on_where_they_ended,
        the_same_commit_id_answers_the_first_place_after_reopening,
    ];
    for property in PROPERTIES {
        property(fresh());
    }
}

/// Asserts that two logs hold the same commits at the same positions and find them in the same ways.
pub fn same_answers(log: &Log, reference: &Log) {
    assert_eq!(log.head_position(), reference.head_position());
    let all = read_all(reference, Direction::Forward, &Filter::default(), 1_000);
    assert_eq!(read_all(log, Direction::Forward, &Filter::default(), 1_000), all);
    let mut streams = BTreeSet::new();
    let mut episodes = BTreeSet::new();
    for recorded in &all {
        let view = recorded.view().unwrap();
        let (stream, id) = (StreamId::new(view.stream).unwrap(), CommitId::new(view.commit_id).unwrap());
        assert_eq!(log.find_commit(&stream, &id).unwrap().as_ref(), Some(recorded));
        streams.insert(stream);
        episodes.insert(EpisodeId::from_bytes(view.episode_id));
    }
    for stream in &streams {
        let head = reference.head(stream).unwrap();
        assert_eq!(log.head(stream).unwrap(), head, "{stream}");
        for (from, direction) in [
            (Version(1), Direction::Forward),
            (Version(head.0 / 2), Direction::Forward),
            (Version(head.0 / 2), Direction::Backward),
            (head, Direction::Backward),
        ] {
            let read = |log: &Log| log.read_stream(stream, from, direction, 1_000).unwrap();
            assert_eq!(read(log), read(reference), "{stream} from {from} {direction:?}");
        }
    }
    for episode in episodes {
        assert_eq!(log.read_episode(episode, 1_000).unwrap(), reference.read_episode(episode, 1_000).unwrap());
    }
}

/// Sizes, streams and episodes of all kinds, opened again several times with more appended in between.
pub fn everything_acknowledged_is_there_after_reopening(mut reopen: Reopen) {
    let reference: Log = Arc::new(MemoryLog::new());
    let streams = ["tenant/acme", "saga/acme/one", "region/local"].map(|text| StreamId::new(text).unwrap());
    for life in 0..4_usize {
        let log = reopen();
        same_answers(&log, &reference);
        let mut receipts = Vec::new();
        for n in 0..60_usize {
            let stream = &streams[n % 3];
            let version = reference.head(stream).unwrap().next();
            let mut commit = commit(stream, version, &format!("c-{life}-{n}"), 1 + n % 4, n * n * 10);
            commit.episode_id = EpisodeId::from_bytes([u8::try_from(n % 7).unwrap(); 16]);
            settle(call(&reference, commit.clone())).unwrap();
            receipts.push(call(&log, commit));
        }
        for receipt in receipts {
            settle(receipt).unwrap();
        }
        same_answers(&log, &reference);
    }
    same_answers(&reopen(), &reference);
}

/// Opening writes no facts.
pub fn an_empty_log_is_empty_after_reopening(mut reopen: Reopen) {
    for _ in 0..3 {
        let log = reopen();
        assert_eq!(log.head_position(), Position(0));
        assert!(read_all(&log, Direction::Forward, &Filter::default(), 10).is_empty());
    }
    fill(&reopen(), &tenant("acme"), 1);
    assert_eq!(reopen().head_position(), Position(1));
}

/// Versions and positions continue; what was a conflict before is one still.
pub fn appends_go_on_where_they_ended(mut reopen: Reopen) {
    let (acme, bell) = (tenant("acme"), tenant("bell"));
    let mut version = Version(1);
    for position in 1..=5 {
        let log = reopen();
        let stale = append(&log, commit(&acme, version.next(), &format!("stale-{position}"), 1, 50));
        assert!(matches!(stale, Err(AppendError::Conflict { actual, .. }) if actual.next() == version), "{stale:?}");
        let answer = append(&log, commit(&acme, version, &format!("c-{position}"), 3, 50)).unwrap();
        let expected = Appended { position: Position(position), version: Version(position * 3), duplicate: false };
        assert_eq!(answer, expected);
        version = answer.version.next();
    }
    let log = reopen();
    assert_eq!(append(&log, commit(&bell, Version(1), "c-1", 1, 50)).unwrap().position, Position(6));
}

/// A client that retries after a restart is answered as before it.
pub fn the_same_commit_id_answers_the_first_place_after_reopening(mut reopen: Reopen) {
    let acme = tenant("acme");
    let commits = fill(&reopen(), &acme, 40);
    for life in 0..2_u64 {
        let log = reopen();
        for (position, first) in (1..).zip(&commits) {
            let expected = Appended { position: Position(position), version: first.last_version(), duplicate: true };
            assert_eq!(append(&log, first.clone()).unwrap(), expected);
            // Decided again on the newest state, as an actor does that has forgotten the command.
            let again = commit(&acme, Version(41 + life), first.commit_id.as_str(), 1, 60);
            assert_eq!(append(&log, again).unwrap(), expected);
        }
        assert_eq!(log.head_position(), Position(40 + life));
        append(&log, commit(&acme, Version(41 + life), &format!("life-{life}"), 1, 50)).unwrap();
    }
}
