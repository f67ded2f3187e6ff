//! A stored part of the index: sorted arrays in sled, with what finds the right piece of them in memory.
//!
//! Invariants: a run covers consecutive commits and is a function of them alone, so two writings of the same run are
//! the same bytes; a piece that is missing or damaged is an error that makes the caller rebuild the run from the
//! segments, never a missing answer.

use std::sync::Arc;

use crate::{
    hash::{HashKey, Seeded},
    memtable::Memtable,
    run_store::{RunStore, StoreFault},
    scan::Place,
    segment::Location,
};

/// An array of a run. The numbers are part of the index format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Commits = 1,
    Streams = 2,
    Episodes = 3,
    Heads = 4,
    Marks = 5,
    CommitFences = 11,
    StreamFences = 12,
    EpisodeFences = 13,
    CommitBloom = 21,
    StreamBloom = 22,
    EpisodeBloom = 23,
}

/// What a run is, as the manifest lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunInfo {
    pub(crate) level: u32,
    /// Position of its first commit.
    pub(crate) first: u64,
    /// Where the log goes on behind it.
    pub(crate) end: Place,
    /// Rows of the five arrays, in the order of `Kind`.
    pub(crate) rows: [u64; 5],
}

impl RunInfo {
    /// Positions from, inclusive, and to, exclusive: the run's name in the store.
    pub(crate) const fn range(&self) -> (u64, u64) {
        (self.first, self.end.position)
    }
}

/// Room of a bloom filter, bits a key.
const BLOOM_BITS: u64 = 16;

/// A bloom filter of 64-byte blocks: one cache line a question, about one false answer in 500.
///
/// A false answer to an append reads a piece of the index; at 10 bits a key (1.5 %) those reads, multiplied by the
/// number of runs, were the dearest part of forming a group.
#[derive(Debug, Clone)]
pub(crate) struct Bloom {
    pub(crate) blocks: Vec<[u64; 8]>,
}

impl Bloom {
    pub(crate) fn new(keys: u64) -> Self {
        let blocks = usize::try_from(keys.saturating_mul(BLOOM_BITS).div_ceil(512)).unwrap_or(usize::MAX).max(1);
        Self { blocks: vec![[0; 8]; blocks] }
    }

    fn block(&self, spread: u64) -> usize {
        (((spread >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    fn bits(spread: u64) -> impl Iterator<Item = (usize, u64)> {
        let bits = spread.wrapping_mul(0x9FB2_1C65_1E98_DF25);
        (0..7).map(move |probe| {
            let bit = (bits >> (1 + probe * 9)) & 511;
            ((bit >> 6) as usize & 7, 1 << (bit & 63))
        })
    }

    pub(crate) fn add(&mut self, spread: u64) {
        let block = self.block(spread);
        if let Some(words) = self.blocks.get_mut(block) {
            Self::bits(spread).for_each(|(word, bit)| words[word] |= bit);
        }
    }

    pub(crate) fn may_hold(&self, spread: u64) -> bool {
        self.blocks
            .get(self.block(spread))
            .is_some_and(|words| Self::bits(spread).all(|(word, bit)| words[word] & bit != 0))
    }
}

/// How keys are spread over the filters.
pub(crate) fn pair_spread(hash: &HashKey, pair: (u64, u64)) -> u64 {
    hash.spread(pair.0 ^ pair.1.rotate_left(31))
}

/// A run that can be asked.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) info: RunInfo,
    pub(crate) store: Arc<RunStore>,
    pub(crate) commit_fences: Vec<[u64; 2]>,
    pub(crate) stream_fences: Vec<[u64; 4]>,
    pub(crate) episode_fences: Vec<[u64; 3]>,
    pub(crate) commit_bloom: Bloom,
    pub(crate) stream_bloom: Bloom,
    pub(crate) episode_bloom: Bloom,
}

impl Run {
    /// Stores a part of the index that is in memory.
    pub(crate) fn store(
        store: &Arc<RunStore>,
        hash: &HashKey,
        part: &Memtable,
        marks: &[(u64, Location)],
    ) -> Result<Self, StoreFault> {
        let streams = part.stream_rows();
        let heads = heads_of(&streams);
        let marks: Vec<[u64; 2]> = marks.iter().map(|(position, place)| [*position, place.0]).collect();
        let commits = part.commit_rows();
        let episodes = part.episode_rows();
        let rows = [commits.len(), streams.len(), episodes.len(), heads.len(), marks.len()].map(|len| len as u64);
        let info = RunInfo { level: part.level, first: part.first, end: part.end, rows };
        let mut run = Self::empty(info, store);
        let range = info.range();
        for row in &commits {
            run.commit_bloom.add(hash.spread(row[0]));
        }
        for row in &heads {
            run.stream_bloom.add(pair_spread(hash, (row[0], row[1])));
        }
        for row in &episodes {
            run.episode_bloom.add(pair_spread(hash, (row[0], row[1])));
        }
        run.commit_fences = store.write_rows(Kind::Commits, range, commits.into_iter())?;
        run.stream_fences = store.write_rows(Kind::Streams, range, streams.into_iter())?;
        run.episode_fences = store.write_rows(Kind::Episodes, range, episodes.into_iter())?;
        store.write_rows(Kind::Heads, range, heads.into_iter())?;
        store.write_rows(Kind::Marks, range, marks.into_iter())?;
        run.write_finders()?;
        Ok(run)
    }

    /// A run whose arrays have yet to be written.
    pub(crate) fn empty(info: RunInfo, store: &Arc<RunStore>) -> Self {
        let [commits, _, episodes, heads, _] = info.rows;
        Self {
            info,
            store: Arc::clone(store),
            commit_fences: Vec::new(),
            stream_fences: Vec::new(),
            episode_fences: Vec::new(),
            commit_bloom: Bloom::new(commits),
            stream_bloom: Bloom::new(heads),
            episode_bloom: Bloom::new(episodes),
        }
    }

    /// Stores fences and filters, so that opening need not read the arrays.
    pub(crate) fn write_finders(&self) -> Result<(), StoreFault> {
        let range = self.info.range();
        self.store.write_rows(Kind::CommitFences, range, self.commit_fences.iter().copied())?;
        self.store.write_rows(Kind::StreamFences, range, self.stream_fences.iter().copied())?;
        self.store.write_rows(Kind::EpisodeFences, range, self.episode_fences.iter().copied())?;
        self.store.write_rows(Kind::CommitBloom, range, self.commit_bloom.blocks.iter().copied())?;
        self.store.write_rows(Kind::StreamBloom, range, self.stream_bloom.blocks.iter().copied())?;
        self.store.write_rows(Kind::EpisodeBloom, range, self.episode_bloom.blocks.iter().copied())?;
        Ok(())
    }

    /// Opens a run that the manifest lists.
    pub(crate) fn load(store: &Arc<RunStore>, info: RunInfo) -> Result<Self, StoreFault> {
        let range = info.range();
        let mut run = Self::empty(info, store);
        let chunks = |rows: u64| rows.div_ceil(crate::limit::CHUNK_ENTRIES as u64);
        let [commits, streams, episodes, _, _] = info.rows;
        run.commit_fences = store.read_rows(Kind::CommitFences, range, chunks(commits))?;
        run.stream_fences = store.read_rows(Kind::StreamFences, range, chunks(streams))?;
        run.episode_fences = store.read_rows(Kind::EpisodeFences, range, chunks(episodes))?;
        let words = |bloom: &Bloom| bloom.blocks.len() as u64;
        run.commit_bloom.blocks = store.read_rows(Kind::CommitBloom, range, words(&run.commit_bloom))?;
        run.stream_bloom.blocks = store.read_rows(Kind::StreamBloom, range, words(&run.stream_bloom))?;
        run.episode_bloom.blocks = store.read_rows(Kind::EpisodeBloom, range, words(&run.episode_bloom))?;
        Ok(run)
    }

    /// Rows of the array from the first that is not below `from`, while `take` says so.
    fn scan<const N: usize>(
        &self,
        kind: Kind,
        fences: &[[u64; N]],
        from: [u64; N],
        take: &mut dyn FnMut([u64; N]) -> bool,
    ) -> Result<(), StoreFault> {
        let first = fences.partition_point(|fence| *fence <= from).saturating_sub(1);
        for index in first..fences.len() {
            for row in self.store.read_chunk::<N>(kind, self.info.range(), index)? {
                if row >= from && !take(row) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Rows of the array below `from`, backwards, while `take` says so.
    fn scan_back<const N: usize>(
        &self,
        kind: Kind,
        fences: &[[u64; N]],
        from: [u64; N],
        take: &mut dyn FnMut([u64; N]) -> bool,
    ) -> Result<(), StoreFault> {
        let end = fences.partition_point(|fence| *fence < from);
        for index in (0..end).rev() {
            for row in self.store.read_chunk::<N>(kind, self.info.range(), index)?.into_iter().rev() {
                if row < from && !take(row) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Places of commits with this key.
    pub(crate) fn commits(&self, hash: &HashKey, key: u64, found: &mut Vec<Location>) -> Result<(), StoreFault> {
        if !self.commit_bloom.may_hold(hash.spread(key)) {
            return Ok(());
        }
        self.scan(Kind::Commits, &self.commit_fences, [key, 0], &mut |row| {
            let same = row[0] == key;
            if same {
                found.push(Location(row[1]));
            }
            same
        })
    }

    /// Commits of a stream from the first that holds version `from` or later: (last version, place).
    pub(crate) fn stream_from(
        &self,
        hash: &HashKey,
        key: (u64, u64),
        from: u64,
        take: &mut dyn FnMut(u64, Location) -> bool,
    ) -> Result<(), StoreFault> {
        if !self.stream_bloom.may_hold(pair_spread(hash, key)) {
            return Ok(());
        }
        self.scan(Kind::Streams, &self.stream_fences, [key.0, key.1, from, 0], &mut |row| {
            (row[0], row[1]) == key && take(row[2], Location(row[3]))
        })
    }

    /// Commits of a stream before the first that holds version `from` or later, newest first.
    pub(crate) fn stream_before(
        &self,
        hash: &HashKey,
        key: (u64, u64),
        from: u64,
        take: &mut dyn FnMut(u64, Location) -> bool,
    ) -> Result<(), StoreFault> {
        if !self.stream_bloom.may_hold(pair_spread(hash, key)) {
            return Ok(());
        }
        self.scan_back(Kind::Streams, &self.stream_fences, [key.0, key.1, from, 0], &mut |row| {
            (row[0], row[1]) == key && take(row[2], Location(row[3]))
        })
    }

    /// Places of an episode's commits, oldest first.
    pub(crate) fn episode(
        &self,
        hash: &HashKey,
        key: (u64, u64),
        take: &mut dyn FnMut(Location) -> bool,
    ) -> Result<(), StoreFault> {
        if !self.episode_bloom.may_hold(pair_spread(hash, key)) {
            return Ok(());
        }
        self.scan(Kind::Episodes, &self.episode_fences, [key.0, key.1, 0], &mut |row| {
            (row[0], row[1]) == key && take(Location(row[2]))
        })
    }
}

/// The last version of each stream in rows that are sorted by stream and version.
fn heads_of(streams: &[[u64; 4]]) -> Vec<[u64; 3]> {
    streams
        .chunk_by(|a, b| a[..2] == b[..2])
        .filter_map(|rows| rows.last().map(|row| [row[0], row[1], row[2]]))
        .collect()
}

/// What a part of the index is made of.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Memory(Arc<Memtable>),
    Stored(Arc<Run>),
}

impl Part {
    pub(crate) fn range(&self) -> (u64, u64) {
        match self {
            Self::Memory(part) => (part.first, part.end.position),
            Self::Stored(run) => run.info.range(),
        }
    }
}

/// The hasher of every map of the index.
pub(crate) const fn seed(hash: HashKey) -> Seeded {
    Seeded::new(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bloom_filter_forgets_nothing_and_seldom_errs() {
        let hash = HashKey::new([1; 16]);
        let mut bloom = Bloom::new(10_000);
        (0..10_000).for_each(|key| bloom.add(hash.spread(key)));
        assert!((0..10_000).all(|key| bloom.may_hold(hash.spread(key))));
        let wrong = (10_000..110_000).filter(|key| bloom.may_hold(hash.spread(*key))).count();
        assert!(wrong < 400, "{wrong} of 100000");
    }
}
