//! Stores the index's complete parts and merges runs, off the hot path.
//!
//! Invariants: nothing here is needed for a correct answer; a failure leaves parts in memory and is tried again; one
//! WARN an outage.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};
use tracing::{info, warn};

use crate::{
    index::{Damaged, Index},
    limit::{INDEX_RETRY_FIRST, INDEX_RETRY_MAX, RUNS_PER_LEVEL},
    merge::merge,
    read::Library,
    run::{Part, Run},
    run_store::StoreFault,
};

#[derive(Debug, Default)]
struct State {
    work: bool,
    stop: bool,
    done: bool,
}

/// What the writer and the indexer share.
#[derive(Debug, Default)]
pub(crate) struct Indexer {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
}

/// Stores every part that is in memory and complete, oldest first.
pub(crate) fn store_parts(index: &Index) -> Result<(), StoreFault> {
    store_all_but(index, 0)
}

/// As `store_parts`, but not the newest ones.
pub(crate) fn store_all_but(index: &Index, newest: usize) -> Result<(), StoreFault> {
    index.store.open()?;
    let parts = Arc::clone(&index.live.read().parts);
    let mut stored = false;
    for part in parts.iter().take(parts.len().saturating_sub(newest)) {
        if let Part::Memory(memory) = part {
            let marks = marks_of(index, part.range());
            let run = Run::store(&index.store, &index.key.hash, memory, &marks)?;
            stored |= index.replace(Part::Stored(Arc::new(run)));
        }
    }
    if stored { index.store.write_manifest(&index.manifest()) } else { Ok(()) }
}

fn marks_of(index: &Index, (from, to): (u64, u64)) -> Vec<(u64, crate::segment::Location)> {
    let live = index.live.read();
    let first = live.marks.partition_point(|(position, _)| *position < from);
    live.marks.iter().skip(first).take_while(|(position, _)| *position < to).copied().collect()
}

/// Neighbouring stored runs of one level, as many as are merged at a time.
fn mergeable(index: &Index) -> Option<Vec<Arc<Run>>> {
    let parts = Arc::clone(&index.live.read().parts);
    parts.windows(RUNS_PER_LEVEL).find_map(|window| {
        let runs: Vec<Arc<Run>> = window
            .iter()
            .filter_map(|part| match part {
                Part::Stored(run) => Some(Arc::clone(run)),
                Part::Memory(_) => None,
            })
            .collect();
        let level = runs.first()?.info.level;
        (runs.len() == RUNS_PER_LEVEL && runs.iter().all(|run| run.info.level == level)).then_some(runs)
    })
}

fn merge_once(library: &Library, runs: &[Arc<Run>]) -> Result<(), StoreFault> {
    let index = &library.index;
    let merged = match merge(&index.store, &index.key.hash, runs) {
        Ok(Some(merged)) => merged,
        Ok(None) => return Ok(()),
        Err(StoreFault::Damaged) => {
            // One of them is; all are rebuilt, stored again and merged later.
            for run in runs {
                let damaged = Damaged { run: Arc::clone(run), fault: StoreFault::Damaged };
                library.heal(&damaged).map_err(|_| StoreFault::Damaged)?;
            }
            return Ok(());
        }
        Err(fault) => return Err(fault),
    };
    index.replace(Part::Stored(Arc::new(merged)));
    index.store.write_manifest(&index.manifest())?;
    for run in runs {
        let blooms = [&run.commit_bloom, &run.stream_bloom, &run.episode_bloom].map(|bloom| bloom.blocks.len());
        index.store.remove_run(&run.info, blooms)?;
    }
    Ok(())
}

impl Indexer {
    /// There is a part to be stored.
    pub(crate) fn wake(&self) {
        self.state.lock().work = true;
        self.wake.notify_one();
    }

    /// Asks for a last round, and waits for it at most this long; `false` = it is not done.
    pub(crate) fn stop(&self, wait_max: Duration) -> bool {
        let mut state = self.state.lock();
        state.stop = true;
        self.wake.notify_one();
        self.done.wait_while_for(&mut state, |state| !state.done, wait_max);
        state.done
    }

    fn stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// The indexer's thread.
    pub(crate) fn run(&self, library: &Library) {
        let mut pause: Option<Duration> = None;
        loop {
            let stop = self.await_work(pause);
            match self.round(library, stop) {
                Ok(()) => {
                    if pause.take().is_some() {
                        info!("the index is stored again");
                    }
                }
                Err(fault) => {
                    if pause.is_none() {
                        warn!(error = %fault, "the index cannot be stored, it stays in memory");
                    }
                    pause = Some(pause.map_or(INDEX_RETRY_FIRST, |pause| (pause * 2).min(INDEX_RETRY_MAX)));
                    // sled remembers a failure for ever; a fresh one may still answer questions.
                    library.index.store.reset();
                    drop(library.index.store.open());
                }
            }
            if stop {
                self.state.lock().done = true;
                self.done.notify_all();
                return;
            }
        }
    }

    fn await_work(&self, pause: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        match pause {
            Some(pause) => {
                self.wake.wait_while_for(&mut state, |state| !state.stop, pause);
            }
            None => self.wake.wait_while(&mut state, |state| !state.stop && !state.work),
        }
        state.work = false;
        state.stop
    }

    fn round(&self, library: &Library, last: bool) -> Result<(), StoreFault> {
        store_parts(&library.index)?;
        while !last && !self.stopping() {
            let Some(runs) = mergeable(&library.index) else {
                break;
            };
            merge_once(library, &runs)?;
            store_parts(&library.index)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {

    use events_journal::{EventLog, contract, contract::fixture::tenant};
    use events_model::{CommitId, Version};

    use super::*;
    use crate::{LocalStore, Options};

    const COMMITS: u64 = 600;

    /// A store whose index is all stored and merged: 600 commits, 2 a run, 8 runs of a level merged into one.
    fn merged() -> (tempfile::TempDir, LocalStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path(), Options { segment_bytes: 16 * 1024, run_commits: 2 }).unwrap();
        let stream = tenant("acme");
        for version in 1..=COMMITS {
            let commit = contract::commit(&stream, Version(version), &format!("c-{version}"), 1, 10);
            contract::settle(store.append(Version(version - 1), commit)).unwrap();
        }
        assert!(store.handle.core().unwrap().indexer.stop(Duration::from_secs(20)));
        let index = &store.library().index;
        index.freeze(&mut index.live.write());
        store_parts(index).unwrap();
        while let Some(runs) = mergeable(index) {
            merge_once(store.library(), &runs).unwrap();
        }
        (dir, store)
    }

    fn check(store: &LocalStore) {
        let stream = tenant("acme");
        for version in 1..=COMMITS {
            let id = CommitId::new(&format!("c-{version}")).unwrap();
            let found = store.find_commit(&stream, &id).unwrap().unwrap();
            assert_eq!(found.view().unwrap().first_version, version);
        }
        assert!(store.find_commit(&stream, &CommitId::new("c-0").unwrap()).unwrap().is_none());
        for (from, direction) in
            [(1, events_journal::Direction::Forward), (COMMITS, events_journal::Direction::Backward)]
        {
            assert_eq!(store.read_stream(&stream, Version(from), direction, 1_000).unwrap().len() as u64, COMMITS);
        }
    }

    #[test]
    fn merged_runs_find_everything_and_leave_nothing_behind() {
        let (_dir, store) = merged();
        let index = &store.library().index;
        let parts = Arc::clone(&index.live.read().parts);
        let levels: Vec<u32> = parts
            .iter()
            .map(|part| match part {
                Part::Stored(run) => run.info.level,
                Part::Memory(_) => u32::MAX,
            })
            .collect();
        assert!(levels.iter().all(|level| *level <= 3) && levels.contains(&2), "{levels:?}");
        assert!(levels.is_sorted_by(|older, newer| older >= newer), "{levels:?}");
        check(&store);
        // What is in sled belongs to a run of the manifest.
        let ranges: Vec<_> = index.manifest().runs.iter().map(crate::run::RunInfo::range).collect();
        let keys = index.store.keys().unwrap();
        let known = |key: &[u8]| {
            key.len() != 25
                || ranges.iter().any(|(from, to)| key[1..9] == from.to_be_bytes() && key[9..17] == to.to_be_bytes())
        };
        assert!(keys.iter().all(|key| known(key)));
    }

    #[test]
    fn a_run_that_lost_a_piece_is_rebuilt_from_the_log() {
        let (_dir, store) = merged();
        let index = &store.library().index;
        for kind in [crate::run::Kind::Commits, crate::run::Kind::Streams] {
            let lost: Vec<_> = index.store.keys().unwrap().into_iter().filter(|key| key[0] == kind as u8).collect();
            assert!(!lost.is_empty());
            for key in &lost {
                index.store.remove(key).unwrap();
            }
            check(&store);
            let in_memory = index.live.read().parts.iter().any(|part| matches!(part, Part::Memory(_)));
            assert!(in_memory, "{kind:?}");
            store_parts(index).unwrap();
            check(&store);
        }
    }
}
