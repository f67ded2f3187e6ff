//! sled: where runs, snapshots and checkpoints are kept. Everything in it is derived and may vanish.
//!
//! Invariants: every value carries a checksum over its key and its bytes, because sled's own promises do not survive a
//! power loss; no failure and no panic of sled passes this module: it becomes a `StoreFault`, and callers go on from
//! memory or from the segments.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::RwLock;

use crate::{
    limit::{CHUNK_ENTRIES, SLED_CACHE_BYTES},
    run::{Kind, RunInfo},
    scan::Place,
};

/// Version of everything in the index; another one is thrown away and rebuilt.
const INDEX_VERSION: u32 = 2;
const RUN_TREE: &str = "runs";
const BLOB_TREE: &str = "blobs";
const MANIFEST_KEY: &[u8] = b"manifest";
/// sled keeps a page of more than a quarter of a segment in a file of its own; its pages hold up to 17 of our values.
const SLED_SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Longest wait for other users of the index when it is closed.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why the index cannot answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreFault {
    /// It is not open.
    #[error("the index is not open")]
    Closed,
    /// A value is missing or is not what was written.
    #[error("the index is damaged")]
    Damaged,
    /// sled says no.
    #[error("use the index")]
    Sled(#[source] sled::Error),
    /// sled panicked, as it does on some failures of the disk.
    #[error("the index panicked")]
    Panicked,
}

impl StoreFault {
    pub(crate) fn into_io(self) -> io::Error {
        if let Self::Sled(sled::Error::Io(error)) = self { error } else { io::Error::other(self) }
    }
}

#[derive(Debug)]
pub(crate) struct Trees {
    db: sled::Db,
    runs: sled::Tree,
    pub(crate) blobs: sled::Tree,
}

/// What the index says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) log_id: [u8; 16],
    /// Oldest first, without gaps.
    pub(crate) runs: Vec<RunInfo>,
}

/// The sled database of one data directory.
#[derive(Debug)]
pub(crate) struct RunStore {
    dir: PathBuf,
    trees: RwLock<Option<Trees>>,
}

/// Runs something that must not take the process with it.
fn guarded<R>(call: impl FnOnce() -> sled::Result<R>) -> Result<R, StoreFault> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| StoreFault::Panicked)?.map_err(StoreFault::Sled)
}

/// sled syncs its file when it is let go, and panics if that fails.
fn let_go(trees: Option<Trees>) {
    drop(guarded(|| {
        drop(trees);
        Ok(())
    }));
}

impl Drop for RunStore {
    /// Also for a store that was not closed, because the log could not be opened.
    fn drop(&mut self) {
        let_go(self.trees.get_mut().take());
    }
}

/// A value with its checksum behind it.
pub(crate) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&crc.to_le_bytes());
    value
}

/// The value without its checksum, if that is right.
pub(crate) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StoreFault> {
    let (value, crc) = value.split_last_chunk::<4>().ok_or(StoreFault::Damaged)?;
    if crc32c::crc32c_append(crc32c::crc32c(key), value) == u32::from_le_bytes(*crc) {
        Ok(value)
    } else {
        Err(StoreFault::Damaged)
    }
}

fn chunk_key(kind: Kind, range: (u64, u64), index: usize) -> [u8; 25] {
    let mut key = [0; 25];
    key[0] = kind as u8;
    key[1..9].copy_from_slice(&range.0.to_be_bytes());
    key[9..17].copy_from_slice(&range.1.to_be_bytes());
    key[17..].copy_from_slice(&(index as u64).to_be_bytes());
    key
}

/// Appends a row as what it adds to the row before: rows are sorted and alike, so most words take one to five bytes.
fn encode_row<const N: usize>(row: &[u64; N], previous: &[u64; N], bytes: &mut Vec<u8>) {
    for (word, before) in row.iter().zip(previous) {
        let difference = word.wrapping_sub(*before) as i64;
        // Small differences of either sign become small numbers, then seven bits a byte, the last one without the mark.
        let mut rest = ((difference << 1) ^ (difference >> 63)) as u64;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
}

/// The next row, and what is behind it; `None` = the bytes are not rows.
fn decode_row<const N: usize>(previous: &[u64; N], bytes: &mut &[u8]) -> Option<[u64; N]> {
    let mut row = *previous;
    for word in &mut row {
        let (mut number, mut shift) = (0_u64, 0);
        loop {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            number |= u64::from(byte & 0x7F).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        *word = word.wrapping_add((number >> 1) ^ (number & 1).wrapping_neg());
    }
    Some(row)
}

impl RunStore {
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self { dir, trees: RwLock::new(None) }
    }

    /// Opens what is there, or an empty one; a database that sled cannot read is removed, it can be rebuilt.
    pub(crate) fn open(&self) -> Result<(), StoreFault> {
        let mut trees = self.trees.write();
        if trees.is_some() {
            return Ok(());
        }
        // sled would create the whole path: a data directory that was removed stays removed.
        if !self.dir.parent().is_some_and(Path::is_dir) {
            return Err(StoreFault::Sled(sled::Error::Io(io::ErrorKind::NotFound.into())));
        }
        let opened = self.open_trees().or_else(|fault| {
            if matches!(fault, StoreFault::Sled(sled::Error::Io(_))) {
                return Err(fault);
            }
            fs::remove_dir_all(&self.dir).map_err(|error| StoreFault::Sled(sled::Error::Io(error)))?;
            self.open_trees()
        });
        *trees = Some(opened?);
        Ok(())
    }

    fn open_trees(&self) -> Result<Trees, StoreFault> {
        guarded(|| {
            let db = sled::Config::new()
                .path(&self.dir)
                .cache_capacity(SLED_CACHE_BYTES)
                .segment_size(SLED_SEGMENT_BYTES)
                .mode(sled::Mode::HighThroughput)
                .flush_every_ms(None)
                .open()?;
            let (runs, blobs) = (db.open_tree(RUN_TREE)?, db.open_tree(BLOB_TREE)?);
            Ok(Trees { db, runs, blobs })
        })
    }

    /// Writes out what sled holds back and lets go of its files.
    pub(crate) fn close(&self) {
        if let Some(trees) = self.take() {
            // What does not reach the disk is rebuilt at the next start.
            drop(guarded(|| trees.db.flush()));
            let_go(Some(trees));
        }
    }

    /// Lets go of a database that failed, so that the next attempt opens it anew.
    pub(crate) fn reset(&self) {
        let_go(self.take());
    }

    /// What is taken is let go of without the lock, because that takes as long as the disk does.
    fn take(&self) -> Option<Trees> {
        self.trees.try_write_for(CLOSE_WAIT_MAX)?.take()
    }

    pub(crate) fn with<R>(&self, call: impl FnOnce(&Trees) -> sled::Result<R>) -> Result<R, StoreFault> {
        let trees = self.trees.read();
        let trees = trees.as_ref().ok_or(StoreFault::Closed)?;
        guarded(|| call(trees))
    }

    /// Writes an array in order; returns the first row of each chunk.
    pub(crate) fn write_rows<const N: usize>(
        &self,
        kind: Kind,
        range: (u64, u64),
        rows: impl Iterator<Item = [u64; N]>,
    ) -> Result<Vec<[u64; N]>, StoreFault> {
        self.try_write_rows(kind, range, rows.map(Ok))
    }

    /// As `write_rows`, from a source that can fail.
    pub(crate) fn try_write_rows<const N: usize>(
        &self,
        kind: Kind,
        range: (u64, u64),
        rows: impl Iterator<Item = Result<[u64; N], StoreFault>>,
    ) -> Result<Vec<[u64; N]>, StoreFault> {
        let mut fences = Vec::new();
        let mut bytes = Vec::new();
        let mut held = 0;
        let mut previous = [0; N];
        for row in rows {
            let row = row?;
            if held == 0 {
                fences.push(row);
            }
            encode_row(&row, &previous, &mut bytes);
            previous = row;
            held += 1;
            if held == CHUNK_ENTRIES {
                self.write_chunk(kind, range, fences.len() - 1, std::mem::take(&mut bytes))?;
                held = 0;
                previous = [0; N];
            }
        }
        if held > 0 {
            self.write_chunk(kind, range, fences.len() - 1, bytes)?;
        }
        Ok(fences)
    }

    fn write_chunk(&self, kind: Kind, range: (u64, u64), index: usize, bytes: Vec<u8>) -> Result<(), StoreFault> {
        let key = chunk_key(kind, range, index);
        let value = seal(&key, bytes);
        let written = self.with(|trees| trees.runs.insert(key, value)).map(drop);
        // Merging is long and nobody waits for it, while the writer and its callers run for microseconds at a time.
        std::thread::yield_now();
        written
    }

    pub(crate) fn read_chunk<const N: usize>(
        &self,
        kind: Kind,
        range: (u64, u64),
        index: usize,
    ) -> Result<Vec<[u64; N]>, StoreFault> {
        let key = chunk_key(kind, range, index);
        let value = self.with(|trees| trees.runs.get(key))?.ok_or(StoreFault::Damaged)?;
        let mut bytes = unseal(&key, &value)?;
        let mut rows = Vec::with_capacity(CHUNK_ENTRIES);
        let mut previous = [0; N];
        while !bytes.is_empty() {
            previous = decode_row(&previous, &mut bytes).ok_or(StoreFault::Damaged)?;
            rows.push(previous);
        }
        Ok(rows)
    }

    /// Reads a whole array.
    pub(crate) fn read_rows<const N: usize>(
        &self,
        kind: Kind,
        range: (u64, u64),
        count: u64,
    ) -> Result<Vec<[u64; N]>, StoreFault> {
        let count = usize::try_from(count).map_err(|_| StoreFault::Damaged)?;
        let mut rows = Vec::with_capacity(count);
        for index in 0..count.div_ceil(CHUNK_ENTRIES) {
            rows.extend(self.read_chunk::<N>(kind, range, index)?);
        }
        if rows.len() == count { Ok(rows) } else { Err(StoreFault::Damaged) }
    }

    /// Removes a run's pieces; nobody refers to them any more.
    pub(crate) fn remove_run(&self, info: &RunInfo, bloom_blocks: [usize; 3]) -> Result<(), StoreFault> {
        let chunks = |rows: u64| usize::try_from(rows.div_ceil(CHUNK_ENTRIES as u64)).unwrap_or(0);
        let [commits, streams, episodes, heads, marks] = info.rows.map(chunks);
        let fences = |chunks: usize| chunks.div_ceil(CHUNK_ENTRIES);
        let blooms = bloom_blocks.map(|blocks| blocks.div_ceil(CHUNK_ENTRIES));
        let pieces = [
            (Kind::Commits, commits),
            (Kind::Streams, streams),
            (Kind::Episodes, episodes),
            (Kind::Heads, heads),
            (Kind::Marks, marks),
            (Kind::CommitFences, fences(commits)),
            (Kind::StreamFences, fences(streams)),
            (Kind::EpisodeFences, fences(episodes)),
            (Kind::CommitBloom, blooms[0]),
            (Kind::StreamBloom, blooms[1]),
            (Kind::EpisodeBloom, blooms[2]),
        ];
        for (kind, count) in pieces {
            for index in 0..count {
                self.with(|trees| trees.runs.remove(chunk_key(kind, info.range(), index)))?;
            }
        }
        Ok(())
    }

    pub(crate) fn write_manifest(&self, manifest: &Manifest) -> Result<(), StoreFault> {
        let value = seal(MANIFEST_KEY, manifest.encode());
        self.with(|trees| trees.runs.insert(MANIFEST_KEY, value)).map(drop)
    }

    /// The manifest, if there is a good one of this format.
    pub(crate) fn read_manifest(&self) -> Result<Option<Manifest>, StoreFault> {
        let value = self.with(|trees| trees.runs.get(MANIFEST_KEY))?;
        Ok(value.and_then(|value| Manifest::decode(unseal(MANIFEST_KEY, &value).ok()?)))
    }

    /// Throws all runs away.
    pub(crate) fn clear_runs(&self) -> Result<(), StoreFault> {
        self.with(|trees| trees.runs.clear())
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> Result<Vec<sled::IVec>, StoreFault> {
        self.with(|trees| trees.runs.iter().keys().collect())
    }

    #[cfg(test)]
    pub(crate) fn remove(&self, key: &[u8]) -> Result<(), StoreFault> {
        self.with(|trees| trees.runs.remove(key)).map(drop)
    }

    pub(crate) fn size_on_disk(&self) -> u64 {
        self.with(|trees| trees.db.size_on_disk()).unwrap_or(0)
    }
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut words = Vec::new();
        for run in &self.runs {
            let end = &run.end;
            words.extend([u64::from(run.level), run.first, u64::from(end.ordinal), end.offset, end.position]);
            words.extend([u64::from(end.chain), end.last_group, end.log_bytes]);
            words.extend(run.rows);
        }
        let mut bytes = INDEX_VERSION.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.log_id);
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, bytes) = bytes.split_first_chunk::<4>()?;
        let (log_id, bytes) = bytes.split_first_chunk::<16>()?;
        if u32::from_le_bytes(*version) != INDEX_VERSION {
            return None;
        }
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
        let run = |row: &[u64]| {
            let [level, first, ordinal, offset, position, chain, last_group, log_bytes, rows @ ..] = row else {
                return None;
            };
            let (ordinal, chain) = (u32::try_from(*ordinal).ok()?, u32::try_from(*chain).ok()?);
            let end = Place {
                ordinal,
                offset: *offset,
                position: *position,
                chain,
                last_group: *last_group,
                log_bytes: *log_bytes,
            };
            Some(RunInfo { level: u32::try_from(*level).ok()?, first: *first, end, rows: rows.try_into().ok()? })
        };
        Some(Self { log_id: *log_id, runs: words.chunks(13).map(run).collect::<Option<_>>()? })
    }
}
