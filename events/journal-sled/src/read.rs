//! Reads commits from the segments, by place or in order.
//!
//! Invariants: a commit is returned only if its checksum is right and it lies where it must; nothing beyond the durable
//! end is looked at; what the index cannot answer is rebuilt from the segments and asked again.

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use events_journal::{ReadError, Recorded};
use events_model::{CommitView, Position};
use parking_lot::Mutex;
use tracing::warn;

use crate::{
    error::{corrupt, read_io},
    format::{FRAME_HEADER_BYTES, FrameHeader, GROUP_HEADER_BYTES, GROUP_MAGIC},
    index::{Damaged, Index},
    limit::{READ_AHEAD_BYTES, READ_FRAME_BYTES},
    memtable::{Added, Memtable},
    run::{Part, seed},
    scan::Place,
    segment::{Files, Location, read_some},
};

/// All that reading needs.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) files: Files,
    pub(crate) index: Index,
    healing: Mutex<()>,
}

/// One commit of an ordered read.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) position: u64,
    pub(crate) location: Location,
    pub(crate) bytes: Bytes,
}

impl Library {
    pub(crate) const fn new(files: Files, index: Index) -> Self {
        Self { files, index, healing: Mutex::new(()) }
    }

    fn segment(&self, ordinal: u32) -> Result<(u64, Arc<File>), ReadError> {
        let first = self.index.live.read().segments.get(ordinal as usize).copied();
        let first = first.ok_or_else(|| corrupt(&self.files.log_dir, 0, format!("there is no segment {ordinal}")))?;
        Ok((first, self.files.get(first)?))
    }

    /// Asks the index; a run that is damaged is rebuilt from the segments first.
    pub(crate) fn ask<R>(&self, question: impl Fn(&Index) -> Result<R, Damaged>) -> Result<R, ReadError> {
        loop {
            match question(&self.index) {
                Ok(answer) => return Ok(answer),
                Err(damaged) => self.heal(&damaged)?,
            }
        }
    }

    /// Rebuilds a run from the segments, into memory.
    pub(crate) fn heal(&self, damaged: &Damaged) -> Result<(), ReadError> {
        let _one_at_a_time = self.healing.lock();
        let parts = Arc::clone(&self.index.live.read().parts);
        let listed = |part: &Part| matches!(part, Part::Stored(run) if Arc::ptr_eq(run, &damaged.run));
        if !parts.iter().any(listed) {
            // It was merged or rebuilt since the question was asked.
            return Ok(());
        }
        let info = damaged.run.info;
        warn!(
            first = info.first, next = info.end.position, error = %damaged.fault,
            "index run is not readable, rebuilding it from the log"
        );
        let start = Place { position: info.first, ..info.end };
        let mut part = Memtable::new(start, info.level, 0, seed(self.index.key.hash));
        let mut scan = self.scan(info.first, READ_AHEAD_BYTES)?;
        while let Some(found) = scan.next(info.end.position)? {
            part.push(self.added(&found)?);
        }
        part.end = info.end;
        self.index.replace(Part::Memory(Arc::new(part)));
        Ok(())
    }

    /// What the index keeps of a commit.
    pub(crate) fn added(&self, found: &Found) -> Result<Added, ReadError> {
        let view = parse(found.position, &found.bytes)?;
        let keys = self.index.key.hash.keys(view.stream, view.commit_id, view.episode_id);
        Ok(Added { keys, last_version: view.last_version().0, location: found.location })
    }

    /// The last commit with this idempotency key in this stream.
    pub(crate) fn find(&self, stream: &str, commit_id: &str, key: u64) -> Result<Option<Recorded>, ReadError> {
        let mut frames = self.frames();
        for place in self.ask(|index| index.commits(key))? {
            let recorded = frames.read(place)?;
            let view = recorded.view()?;
            if view.stream == stream && view.commit_id == commit_id {
                return Ok(Some(recorded));
            }
        }
        Ok(None)
    }

    /// Reads commits one by one.
    pub(crate) const fn frames(&self) -> FrameReader<'_> {
        FrameReader { library: self, ordinal: u32::MAX, first: 0, file: None, start: 0, buffer: Bytes::new() }
    }

    /// Reads commits in order from a position that exists.
    pub(crate) fn scan(&self, from: u64, read_bytes: usize) -> Result<Scan<'_>, ReadError> {
        let mark = self.index.live.read().mark(from);
        let (position, place) = mark.ok_or_else(|| corrupt(&self.files.log_dir, 0, "the log has no first commit"))?;
        let (first, file) = self.segment(place.ordinal())?;
        Ok(Scan {
            library: self,
            ordinal: place.ordinal(),
            first,
            file,
            offset: place.offset(),
            position,
            from,
            read_bytes,
            start: 0,
            buffer: Bytes::new(),
        })
    }
}

/// Reads a commit's envelope.
pub(crate) fn parse(position: u64, bytes: &[u8]) -> Result<CommitView<'_>, ReadError> {
    CommitView::parse(bytes).map_err(|source| ReadError::Decode { position: Position(position), source })
}

/// Reads single commits by place; neighbours share one read.
#[derive(Debug)]
pub(crate) struct FrameReader<'a> {
    library: &'a Library,
    ordinal: u32,
    first: u64,
    file: Option<Arc<File>>,
    start: u64,
    buffer: Bytes,
}

impl FrameReader<'_> {
    pub(crate) fn read(&mut self, place: Location) -> Result<Recorded, ReadError> {
        if self.ordinal != place.ordinal() || self.file.is_none() {
            let (first, file) = self.library.segment(place.ordinal())?;
            (self.ordinal, self.first, self.file) = (place.ordinal(), first, Some(file));
            self.buffer = Bytes::new();
        }
        let offset = place.offset();
        let near = offset >= self.start && offset - self.start <= (self.buffer.len() + READ_FRAME_BYTES) as u64;
        let step = if near && !self.buffer.is_empty() { 16 * READ_FRAME_BYTES } else { READ_FRAME_BYTES };
        let (library, first) = (self.library, self.first);
        let damaged = |reason| corrupt(&library.files.path(first), offset, reason);
        let head = self.get(offset, FRAME_HEADER_BYTES, step)?;
        let head = head.first_chunk().ok_or_else(|| damaged("the segment ends before the commit"))?;
        let header = FrameHeader::parse(head).map_err(damaged)?;
        let frame = self.get(offset, header.bytes(), step)?;
        if frame.len() < header.bytes() {
            return Err(damaged("the segment ends inside the commit"));
        }
        let commit = frame.slice(FRAME_HEADER_BYTES..);
        if !header.check(&self.library.index.key, &commit) {
            return Err(damaged("the commit's checksum is wrong"));
        }
        // A small commit does not keep a large buffer alive.
        let bytes = if commit.len() * 2 < self.buffer.len() { Bytes::copy_from_slice(&commit) } else { commit };
        Ok(Recorded { position: Position(header.position), bytes })
    }

    fn get(&mut self, offset: u64, bytes: usize, step: usize) -> Result<Bytes, ReadError> {
        if offset < self.start || offset + bytes as u64 > self.start + self.buffer.len() as u64 {
            let Some(file) = &self.file else {
                return Ok(Bytes::new());
            };
            let what = || self.library.files.path(self.first).display().to_string();
            self.buffer = read_some(file, offset, bytes.max(step)).map_err(|error| read_io(what())(error))?.into();
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.buffer.len());
        Ok(self.buffer.slice(from..(from + bytes).min(self.buffer.len())))
    }
}

/// Reads commits in log order; each is a slice of a large read.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    library: &'a Library,
    ordinal: u32,
    first: u64,
    file: Arc<File>,
    offset: u64,
    /// Position of the next commit in the file.
    position: u64,
    /// Position of the first commit that is wanted.
    from: u64,
    read_bytes: usize,
    start: u64,
    buffer: Bytes,
}

impl Scan<'_> {
    fn damaged(&self, reason: &str) -> ReadError {
        corrupt(&self.library.files.path(self.first), self.offset, reason)
    }

    /// The bytes at the present offset: `bytes` of them, or fewer at the end of the file.
    fn get(&mut self, bytes: usize) -> Result<&[u8], ReadError> {
        let from = usize::try_from(self.offset.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        if self.offset >= self.start && from.saturating_add(bytes) <= self.buffer.len() {
            return Ok(self.buffer.get(from..from + bytes).unwrap_or_default());
        }
        let what = || self.library.files.path(self.first).display().to_string();
        let wanted = self.read_bytes.max(bytes);
        self.buffer = read_some(&self.file, self.offset, wanted).map_err(|error| read_io(what())(error))?.into();
        self.start = self.offset;
        Ok(self.buffer.get(..bytes).unwrap_or(&self.buffer))
    }

    /// The next wanted commit before position `end`, which must not lie behind the durable end.
    pub(crate) fn next(&mut self, end: u64) -> Result<Option<Found>, ReadError> {
        while self.position < end {
            let head = self.get(FRAME_HEADER_BYTES)?;
            if head.starts_with(&GROUP_MAGIC) {
                self.offset += GROUP_HEADER_BYTES as u64;
                continue;
            }
            let Some(Ok(header)) = head.first_chunk().map(FrameHeader::parse) else {
                self.next_segment()?;
                continue;
            };
            if header.position != self.position {
                return Err(self.damaged("the commit has another position than its place"));
            }
            let (wanted, offset) = (self.position >= self.from, self.offset);
            if wanted {
                let commit = self.commit(&header)?;
                self.offset += header.bytes() as u64;
                self.position += 1;
                let location = Location::new(self.ordinal, offset);
                return Ok(Some(Found { position: header.position, location, bytes: commit }));
            }
            self.offset += header.bytes() as u64;
            self.position += 1;
        }
        Ok(None)
    }

    fn commit(&mut self, header: &FrameHeader) -> Result<Bytes, ReadError> {
        if self.get(header.bytes())?.len() < header.bytes() {
            return Err(self.damaged("the segment ends inside the commit"));
        }
        let from = usize::try_from(self.offset - self.start).unwrap_or(usize::MAX);
        let commit = self.buffer.slice(from + FRAME_HEADER_BYTES..from + header.bytes());
        if !header.check(&self.library.index.key, &commit) {
            return Err(self.damaged("the commit's checksum is wrong"));
        }
        Ok(commit)
    }

    /// There are no more commits in this segment: the next must begin with the one that comes.
    fn next_segment(&mut self) -> Result<(), ReadError> {
        let next = self.library.index.live.read().segments.get(self.ordinal as usize + 1).copied();
        if next != Some(self.position) {
            return Err(self.damaged("a commit should begin here"));
        }
        self.ordinal += 1;
        (self.first, self.file) = self.library.segment(self.ordinal)?;
        self.offset = crate::format::HEADER_BYTES as u64;
        (self.start, self.buffer) = (0, Bytes::new());
        Ok(())
    }
}
