//! A part of the index in memory: the newest commits, or any others while they cannot be stored.
//!
//! Invariants: commits are added in log order and never removed; nothing is allocated per commit beyond the growth of
//! the tables. Keys of streams and episodes are exact; a commit key only finds candidates.

use std::collections::HashMap;

use crate::{
    hash::{Keys, Seeded},
    scan::Place,
    segment::Location,
};

const NONE: u32 = u32::MAX;
/// Rows sorted at a time.
const SORT_PIECE_ROWS: usize = 4_096;

/// A commit as it is indexed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Added {
    pub(crate) keys: Keys,
    /// Version of the last event.
    pub(crate) last_version: u64,
    pub(crate) location: Location,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    added: Added,
    older_commit: u32,
    older_in_episode: u32,
}

/// The index of consecutive commits.
#[derive(Debug)]
pub(crate) struct Memtable {
    /// Position of the first commit.
    pub(crate) first: u64,
    /// Where the log went on when this part was complete.
    pub(crate) end: Place,
    /// Level of the run it replaces or becomes.
    pub(crate) level: u32,
    entries: Vec<Entry>,
    commits: HashMap<u64, u32, Seeded>,
    streams: HashMap<(u64, u64), Vec<u32>, Seeded>,
    episodes: HashMap<(u64, u64), u32, Seeded>,
}

impl Memtable {
    /// An empty one with room for this many commits: growing tables would hold up the writer for milliseconds.
    pub(crate) fn new(start: Place, level: u32, room: usize, seed: Seeded) -> Self {
        Self {
            first: start.position,
            end: start,
            level,
            entries: Vec::with_capacity(room),
            commits: HashMap::with_capacity_and_hasher(room, seed),
            streams: HashMap::with_hasher(seed),
            episodes: HashMap::with_capacity_and_hasher(room, seed),
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn push(&mut self, added: Added) {
        let index = u32::try_from(self.entries.len()).unwrap_or(NONE);
        let older_commit = self.commits.insert(added.keys.commit, index).unwrap_or(NONE);
        let older_in_episode = self.episodes.insert(added.keys.episode, index).unwrap_or(NONE);
        self.streams.entry(added.keys.stream).or_default().push(index);
        self.entries.push(Entry { added, older_commit, older_in_episode });
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    /// Places of commits with this key, newest first.
    pub(crate) fn commits(&self, key: u64) -> impl Iterator<Item = Location> {
        let newest = self.commits.get(&key).and_then(|index| self.entry(*index));
        std::iter::successors(newest, |entry| self.entry(entry.older_commit)).map(|entry| entry.added.location)
    }

    /// Commits of a stream in order of versions: (last version, place), from the first that holds `from` or later.
    pub(crate) fn stream_from(&self, key: (u64, u64), from: u64) -> impl DoubleEndedIterator<Item = (u64, Location)> {
        let (_, later) = self.stream(key, from);
        self.pairs(later)
    }

    /// Those before the first that holds `from` or later.
    pub(crate) fn stream_before(&self, key: (u64, u64), from: u64) -> impl DoubleEndedIterator<Item = (u64, Location)> {
        let (earlier, _) = self.stream(key, from);
        self.pairs(earlier)
    }

    fn stream(&self, key: (u64, u64), from: u64) -> (&[u32], &[u32]) {
        let all = self.streams.get(&key).map_or(&[][..], Vec::as_slice);
        let split = all.partition_point(|index| self.entry(*index).is_some_and(|e| e.added.last_version < from));
        all.split_at(split)
    }

    fn pairs<'a>(&'a self, indexes: &'a [u32]) -> impl DoubleEndedIterator<Item = (u64, Location)> + use<'a> {
        indexes
            .iter()
            .filter_map(|index| self.entry(*index))
            .map(|entry| (entry.added.last_version, entry.added.location))
    }

    /// Places of an episode's commits, newest first.
    pub(crate) fn episode(&self, key: (u64, u64)) -> impl Iterator<Item = Location> {
        let newest = self.episodes.get(&key).and_then(|index| self.entry(*index));
        std::iter::successors(newest, |entry| self.entry(entry.older_in_episode)).map(|entry| entry.added.location)
    }

    fn sorted<const N: usize>(&self, row: impl Fn(&Added) -> [u64; N]) -> Vec<[u64; N]> {
        let mut rows: Vec<[u64; N]> = self.entries.iter().map(|entry| row(&entry.added)).collect();
        // In pieces, because nobody waits for it, while the writer and its callers run for microseconds at a time.
        for piece in rows.chunks_mut(SORT_PIECE_ROWS) {
            piece.sort_unstable();
            std::thread::yield_now();
        }
        // Merges what is sorted already.
        rows.sort();
        rows
    }

    /// Rows (commit key, place), sorted.
    pub(crate) fn commit_rows(&self) -> Vec<[u64; 2]> {
        self.sorted(|added| [added.keys.commit, added.location.0])
    }

    /// Rows (stream, last version, place), sorted.
    pub(crate) fn stream_rows(&self) -> Vec<[u64; 4]> {
        self.sorted(|added| [added.keys.stream.0, added.keys.stream.1, added.last_version, added.location.0])
    }

    /// Rows (episode, place), sorted.
    pub(crate) fn episode_rows(&self) -> Vec<[u64; 3]> {
        self.sorted(|added| [added.keys.episode.0, added.keys.episode.1, added.location.0])
    }
}
