//! What the tests of the local store share: small commits, and all answers of a log as one value.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use events_journal::{
    AppendError, Appended, Direction, EventLog, Filter, Recorded,
    contract::{self, fixture::tenant},
};
use events_journal_sled::LocalStore;
use events_model::{CommitId, EpisodeId, Position, StreamId, Version};

/// Appends one commit of one event.
pub(crate) fn append(
    store: &LocalStore,
    stream: &str,
    version: u64,
    id: &str,
    bytes: usize,
) -> Result<Appended, AppendError> {
    let commit = contract::commit(&tenant(stream), Version(version), id, 1, bytes);
    contract::settle(store.append(Version(version - 1), commit))
}

/// Appends commits to three streams in turn, each in a group of its own.
pub(crate) fn fill(store: &LocalStore, commits: u64, bytes: usize) {
    for n in 0..commits {
        append(store, &format!("s{}", n % 3), n / 3 + 1, &format!("c-{n}"), bytes).unwrap();
    }
}

/// All commits.
pub(crate) fn read_all(store: &LocalStore) -> Vec<Recorded> {
    let mut all = Vec::new();
    let mut next = Position(1);
    while next <= store.head_position() {
        let page = store.read_log(next, Direction::Forward, &Filter::default(), 1_000).unwrap();
        all.extend(page.commits);
        next = page.next;
    }
    all
}

/// The segment files of a data directory, in order.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    files.sort();
    files
}

/// Everything that can be asked of a log, answered.
pub(crate) fn answers(store: &LocalStore) -> Vec<(String, Vec<Recorded>)> {
    let all = read_all(store);
    let mut streams = BTreeSet::new();
    let mut episodes = BTreeSet::new();
    let mut answers = vec![("log".to_owned(), all.clone())];
    for recorded in &all {
        let view = recorded.view().unwrap();
        let stream = StreamId::new(view.stream).unwrap();
        let found = store.find_commit(&stream, &CommitId::new(view.commit_id).unwrap()).unwrap();
        assert_eq!(found.as_ref(), Some(recorded));
        streams.insert(stream);
        episodes.insert(EpisodeId::from_bytes(view.episode_id));
    }
    for stream in streams {
        let head = store.head(&stream).unwrap();
        for from in [Version(1), Version(head.0 / 2), head] {
            for direction in [Direction::Forward, Direction::Backward] {
                for limit in [1, 3, 1_000] {
                    let found = store.read_stream(&stream, from, direction, limit).unwrap();
                    answers.push((format!("{stream} {from} {direction:?} {limit} of {head}"), found));
                }
            }
        }
    }
    for episode in episodes {
        answers.push((episode.to_string(), store.read_episode(episode, 1_000).unwrap()));
    }
    answers
}
