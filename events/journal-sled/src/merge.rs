//! Merges neighbouring runs of one level into one of the next, a chunk at a time.
//!
//! Invariant: memory is bounded by the new run's filters and one chunk of each old run, however large they are.

use std::sync::Arc;

use crate::{
    hash::HashKey,
    run::{Kind, Run, RunInfo, pair_spread},
    run_store::{RunStore, StoreFault},
};

/// Reads one array of one run in order.
struct Rows<'a, const N: usize> {
    run: &'a Run,
    kind: Kind,
    left: u64,
    chunk: usize,
    rows: std::vec::IntoIter<[u64; N]>,
}

impl<'a, const N: usize> Rows<'a, N> {
    fn new(run: &'a Run, kind: Kind, array: usize) -> Self {
        let left = run.info.rows.get(array).copied().unwrap_or(0);
        Self { run, kind, left, chunk: 0, rows: Vec::new().into_iter() }
    }

    fn next(&mut self) -> Result<Option<[u64; N]>, StoreFault> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.rows.len() == 0 {
            self.rows = self.run.store.read_chunk(self.kind, self.run.info.range(), self.chunk)?.into_iter();
            self.chunk += 1;
        }
        self.left -= 1;
        self.rows.next().map(Some).ok_or(StoreFault::Damaged)
    }
}

/// The rows of several runs in one order.
struct Merged<'a, const N: usize> {
    sources: Vec<(Option<[u64; N]>, Rows<'a, N>)>,
}

impl<'a, const N: usize> Merged<'a, N> {
    fn new(runs: &'a [Arc<Run>], kind: Kind, array: usize) -> Result<Self, StoreFault> {
        let mut sources = Vec::new();
        for run in runs {
            let mut rows = Rows::new(run, kind, array);
            sources.push((rows.next()?, rows));
        }
        Ok(Self { sources })
    }

    fn take(&mut self) -> Result<Option<[u64; N]>, StoreFault> {
        let least = self.sources.iter_mut().filter(|(row, _)| row.is_some()).min_by_key(|(row, _)| *row);
        let Some((row, rows)) = least else {
            return Ok(None);
        };
        let next = rows.next()?;
        Ok(std::mem::replace(row, next))
    }
}

impl<const N: usize> Iterator for Merged<'_, N> {
    type Item = Result<[u64; N], StoreFault>;
    fn next(&mut self) -> Option<Self::Item> {
        self.take().transpose()
    }
}

/// Rows (stream, version), of which only a stream's last one stays.
struct NewestHeads<'a> {
    rows: std::iter::Peekable<Merged<'a, 3>>,
}

impl Iterator for NewestHeads<'_> {
    type Item = Result<[u64; 3], StoreFault>;
    fn next(&mut self) -> Option<Self::Item> {
        let mut newest = self.rows.next()?;
        while let (Ok(row), Some(Ok(next))) = (&newest, self.rows.peek()) {
            if row[..2] != next[..2] {
                break;
            }
            newest = self.rows.next()?;
        }
        Some(newest)
    }
}

/// Writes the run that replaces `runs`, which are neighbours, oldest first.
pub(crate) fn merge(store: &Arc<RunStore>, hash: &HashKey, runs: &[Arc<Run>]) -> Result<Option<Run>, StoreFault> {
    let (Some(oldest), Some(newest)) = (runs.first(), runs.last()) else {
        return Ok(None);
    };
    let mut rows = [0_u64; 5];
    for run in runs {
        rows.iter_mut().zip(run.info.rows).for_each(|(sum, rows)| *sum += rows);
    }
    let level = oldest.info.level + 1;
    let mut info = RunInfo { level, first: oldest.info.first, end: newest.info.end, rows };
    let range = info.range();
    // Heads first: their number is known only when they are merged, and the filter of streams is made for it.
    let mut heads = 0_u64;
    let counted = NewestHeads { rows: Merged::new(runs, Kind::Heads, 3)?.peekable() }.inspect(|_| heads += 1);
    store.try_write_rows(Kind::Heads, range, counted)?;
    info.rows[3] = heads;
    let mut run = Run::empty(info, store);
    for row in (NewestHeads { rows: Merged::new(runs, Kind::Heads, 3)?.peekable() }) {
        let row = row?;
        run.stream_bloom.add(pair_spread(hash, (row[0], row[1])));
    }
    let bloom = &mut run.commit_bloom;
    let commits = Merged::<2>::new(runs, Kind::Commits, 0)?.inspect(|row| {
        if let Ok(row) = row {
            bloom.add(hash.spread(row[0]));
        }
    });
    run.commit_fences = store.try_write_rows(Kind::Commits, range, commits)?;
    run.stream_fences = store.try_write_rows(Kind::Streams, range, Merged::<4>::new(runs, Kind::Streams, 1)?)?;
    let bloom = &mut run.episode_bloom;
    let episodes = Merged::<3>::new(runs, Kind::Episodes, 2)?.inspect(|row| {
        if let Ok(row) = row {
            bloom.add(pair_spread(hash, (row[0], row[1])));
        }
    });
    run.episode_fences = store.try_write_rows(Kind::Episodes, range, episodes)?;
    store.try_write_rows(Kind::Marks, range, Merged::<2>::new(runs, Kind::Marks, 4)?)?;
    run.write_finders()?;
    Ok(Some(run))
}
