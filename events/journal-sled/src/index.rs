//! The index as a whole: what readers and the writer ask.
//!
//! Invariants:
//! - it covers exactly the durable commits, and in a copy the group that is being synced; parts hold durable ones alone; `Live` changes under one lock, so a reader sees a commit everywhere or
//!   nowhere;
//! - parts are consecutive, oldest first; everything newer than the last part is in `newest`;
//! - heads of all streams are in memory.
//!
//! No lock is held while sled or a segment is read.

use std::{collections::HashMap, sync::Arc};

use events_journal::Direction;
use parking_lot::RwLock;

use crate::{
    format::LogKey,
    hash::{Keys, Seeded},
    limit::{RUN_LOG_BYTES, RUN_ROOM_MAX},
    memtable::{Added, Memtable},
    run::{Kind, Part, Run, seed},
    run_store::{Manifest, RunStore, StoreFault},
    scan::Place,
    segment::Location,
};

/// What changes with every group.
#[derive(Debug)]
pub(crate) struct Live {
    /// Last version of each stream.
    pub(crate) heads: HashMap<(u64, u64), u64, Seeded>,
    /// First position of each segment, by ordinal.
    pub(crate) segments: Vec<u64>,
    /// Some commits' positions and places, ascending, the first of each segment among them.
    pub(crate) marks: Vec<(u64, Location)>,
    /// Where the log goes on.
    pub(crate) end: Place,
    pub(crate) newest: Memtable,
    pub(crate) parts: Arc<Vec<Part>>,
}

/// A run could not answer; it must be rebuilt from the segments.
#[derive(Debug)]
pub(crate) struct Damaged {
    pub(crate) run: Arc<Run>,
    pub(crate) fault: StoreFault,
}

/// The index of one log.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) key: LogKey,
    pub(crate) store: Arc<RunStore>,
    pub(crate) live: RwLock<Live>,
    run_commits: usize,
}

impl Live {
    /// Adds a commit behind all others.
    pub(crate) fn push(&mut self, position: u64, first_of_segment: bool, added: Added) {
        let far = self.marks.last().is_none_or(|(_, last)| {
            first_of_segment || added.location.0.saturating_sub(last.0) >= crate::limit::MARK_BYTES
        });
        if far {
            self.marks.push((position, added.location));
        }
        self.heads.insert(added.keys.stream, added.last_version);
        self.newest.push(added);
    }

    pub(crate) fn head(&self, stream: (u64, u64)) -> u64 {
        self.heads.get(&stream).copied().unwrap_or(0)
    }

    /// Whether no commit has this key, given that none below the position `since` has; `false` = it is not known.
    pub(crate) fn is_still_absent(&self, key: u64, since: u64) -> bool {
        since >= self.newest.first && self.newest.commits(key).next().is_none()
    }

    /// The nearest known place at or before a position.
    pub(crate) fn mark(&self, position: u64) -> Option<(u64, Location)> {
        let after = self.marks.partition_point(|(at, _)| *at <= position);
        self.marks.get(after.checked_sub(1)?).copied()
    }
}

impl Index {
    pub(crate) fn new(key: LogKey, store: Arc<RunStore>, segments: Vec<u64>, run_commits: usize) -> Self {
        let live = Live {
            heads: HashMap::with_hasher(seed(key.hash)),
            segments,
            marks: Vec::new(),
            end: Place::START,
            newest: Memtable::new(Place::START, 0, 0, seed(key.hash)),
            parts: Arc::default(),
        };
        Self { key, store, live: RwLock::new(live), run_commits }
    }

    /// The part in memory that begins at a place.
    fn newest_from(&self, start: Place) -> Memtable {
        Memtable::new(start, 0, self.run_commits.min(RUN_ROOM_MAX), seed(self.key.hash))
    }

    /// Takes over what was stored, if it is of this log and whole. On `Err` nothing was taken over.
    pub(crate) fn load(&self) -> Result<(), StoreFault> {
        let Some(manifest) = self.store.read_manifest()?.filter(|manifest| manifest.log_id == self.key.id) else {
            return self.store.clear_runs();
        };
        let mut runs = Vec::new();
        let mut marks = Vec::new();
        let mut heads = Vec::new();
        let mut next = Place::START.position;
        for info in manifest.runs {
            if info.first != next {
                return Err(StoreFault::Damaged);
            }
            next = info.end.position;
            let [_, _, _, head_rows, mark_rows] = info.rows;
            heads.push(self.store.read_rows::<3>(Kind::Heads, info.range(), head_rows)?);
            marks.extend(self.store.read_rows::<2>(Kind::Marks, info.range(), mark_rows)?);
            runs.push(Arc::new(Run::load(&self.store, info)?));
        }
        let mut live = self.live.write();
        live.heads.reserve(heads.iter().map(Vec::len).max().unwrap_or(0));
        // Oldest first, so that the newest version of a stream stays.
        for [low, high, version] in heads.into_iter().flatten() {
            live.heads.insert((low, high), version);
        }
        live.marks = marks.into_iter().map(|[position, place]| (position, Location(place))).collect();
        live.end = runs.last().map_or(Place::START, |run| run.info.end);
        live.newest = self.newest_from(live.end);
        live.parts = Arc::new(runs.into_iter().map(Part::Stored).collect());
        Ok(())
    }

    /// Ends a group: from here on readers see it. Returns whether a part became complete.
    pub(crate) fn advance(&self, live: &mut Live, end: Place) -> bool {
        live.end = end;
        self.complete(live)
    }

    /// Makes a part of the newest commits if they are enough for one; all of them are durable.
    pub(crate) fn complete(&self, live: &mut Live) -> bool {
        let bytes = live.end.log_bytes.saturating_sub(live.newest.end.log_bytes);
        let complete = live.newest.len() >= self.run_commits || bytes >= RUN_LOG_BYTES;
        if complete {
            self.freeze(live);
        }
        complete
    }

    /// Makes a part of the newest commits, if there are any.
    pub(crate) fn freeze(&self, live: &mut Live) {
        if live.newest.len() > 0 {
            let next = self.newest_from(live.end);
            let mut part = std::mem::replace(&mut live.newest, next);
            part.end = live.end;
            let parts = live.parts.iter().cloned().chain([Part::Memory(Arc::new(part))]).collect();
            live.parts = Arc::new(parts);
        }
    }

    /// Puts one part in the place of those it covers; `false` = they are not there any more.
    pub(crate) fn replace(&self, new: Part) -> bool {
        let (from, to) = new.range();
        let mut live = self.live.write();
        let inside = |part: &Part| part.range().0 >= from && part.range().1 <= to;
        let mut parts: Vec<Part> = live.parts.iter().filter(|part| !inside(part)).cloned().collect();
        let covered = live.parts.len() - parts.len();
        let at = parts.partition_point(|part| part.range().0 < from);
        parts.insert(at, new);
        if covered > 0 {
            live.parts = Arc::new(parts);
        }
        covered > 0
    }

    /// What the store should say about itself: the stored parts from the oldest on, up to the first that is not.
    pub(crate) fn manifest(&self) -> Manifest {
        let parts = Arc::clone(&self.live.read().parts);
        let runs = parts.iter().map_while(|part| match part {
            Part::Stored(run) => Some(run.info),
            Part::Memory(_) => None,
        });
        Manifest { log_id: self.key.id, runs: runs.collect() }
    }

    /// The position below which no commit has these keys; 0 = there may be one.
    pub(crate) fn absent_below(&self, keys: &Keys) -> u64 {
        let live = self.live.read();
        let next = live.end.position;
        if live.head(keys.stream) == 0 {
            return next;
        }
        drop(live);
        // A part that cannot answer is for the writer to look at.
        if self.commits(keys.commit).is_ok_and(|found| found.is_empty()) { next } else { 0 }
    }

    /// Places of commits that may have this key, newest first.
    pub(crate) fn commits(&self, key: u64) -> Result<Vec<Location>, Damaged> {
        let live = self.live.read();
        let mut found: Vec<Location> = live.newest.commits(key).collect();
        let parts = Arc::clone(&live.parts);
        drop(live);
        for part in parts.iter().rev() {
            match part {
                Part::Memory(part) => found.extend(part.commits(key)),
                Part::Stored(run) => run
                    .commits(&self.key.hash, key, &mut found)
                    .map_err(|fault| Damaged { run: Arc::clone(run), fault })?,
            }
        }
        Ok(found)
    }

    /// Places of a stream's commits that hold a version at or after (before) `from`, in the direction's order.
    pub(crate) fn stream(
        &self,
        key: (u64, u64),
        from: u64,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Location>, Damaged> {
        match direction {
            Direction::Forward => self.stream_from(key, from, limit),
            Direction::Backward => {
                let from = from.min(self.live.read().head(key));
                if from == 0 || limit == 0 {
                    return Ok(Vec::new());
                }
                // The commit that holds `from` itself, then those before it.
                let mut found = self.stream_from(key, from, 1)?;
                self.stream_before(key, from, limit, &mut found)?;
                Ok(found)
            }
        }
    }

    fn stream_from(&self, key: (u64, u64), from: u64, limit: usize) -> Result<Vec<Location>, Damaged> {
        let live = self.live.read();
        if from > live.head(key) {
            return Ok(Vec::new());
        }
        let newest: Vec<Location> = live.newest.stream_from(key, from).take(limit).map(|(_, place)| place).collect();
        if live.newest.stream_before(key, from).next().is_some() {
            return Ok(newest);
        }
        let parts = Arc::clone(&live.parts);
        drop(live);
        let mut found = Vec::new();
        for part in parts.iter() {
            if found.len() >= limit {
                break;
            }
            match part {
                Part::Memory(part) => {
                    let room = limit - found.len();
                    found.extend(part.stream_from(key, from).take(room).map(|(_, place)| place));
                }
                Part::Stored(run) => run
                    .stream_from(&self.key.hash, key, from, &mut |_, place| {
                        found.push(place);
                        found.len() < limit
                    })
                    .map_err(|fault| Damaged { run: Arc::clone(run), fault })?,
            }
        }
        found.extend(newest);
        found.truncate(limit);
        Ok(found)
    }

    fn stream_before(
        &self,
        key: (u64, u64),
        from: u64,
        limit: usize,
        found: &mut Vec<Location>,
    ) -> Result<(), Damaged> {
        let live = self.live.read();
        let room = limit.saturating_sub(found.len());
        found.extend(live.newest.stream_before(key, from).rev().take(room).map(|(_, place)| place));
        let parts = Arc::clone(&live.parts);
        drop(live);
        for part in parts.iter().rev() {
            if found.len() >= limit {
                break;
            }
            match part {
                Part::Memory(part) => {
                    let room = limit - found.len();
                    found.extend(part.stream_before(key, from).rev().take(room).map(|(_, place)| place));
                }
                Part::Stored(run) => run
                    .stream_before(&self.key.hash, key, from, &mut |_, place| {
                        found.push(place);
                        found.len() < limit
                    })
                    .map_err(|fault| Damaged { run: Arc::clone(run), fault })?,
            }
        }
        Ok(())
    }

    /// Places of an episode's commits in log order, at most `limit`.
    pub(crate) fn episode(&self, key: (u64, u64), limit: usize) -> Result<Vec<Location>, Damaged> {
        let live = self.live.read();
        let newest: Vec<Location> = live.newest.episode(key).collect();
        let parts = Arc::clone(&live.parts);
        drop(live);
        let mut found = Vec::new();
        for part in parts.iter() {
            if found.len() >= limit {
                break;
            }
            match part {
                Part::Memory(part) => {
                    let places: Vec<Location> = part.episode(key).collect();
                    found.extend(places.into_iter().rev());
                }
                Part::Stored(run) => run
                    .episode(&self.key.hash, key, &mut |place| {
                        found.push(place);
                        found.len() < limit
                    })
                    .map_err(|fault| Damaged { run: Arc::clone(run), fault })?,
            }
        }
        found.extend(newest.into_iter().rev());
        found.truncate(limit);
        Ok(found)
    }
}
