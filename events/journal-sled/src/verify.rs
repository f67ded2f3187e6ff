//! Checks every byte of a log, using nothing but the segments; also beside a process that writes to it.

use std::{collections::HashMap, fs::File, path::Path};

use events_journal::ReadError;

use crate::{
    error::{corrupt, read_io},
    format::{Frames, GROUP_HEADER_BYTES, LogKey},
    hash::Seeded,
    read::parse,
    recovery,
    run::seed,
    scan::{Group, Place, Tail, check_joint, group_at, tail, walk},
    segment::{self, Files, LOG_DIR, Window, read_header},
};

/// What a check found; all of it is good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Commits.
    pub commits: u64,
    /// Events.
    pub events: u64,
    /// Streams.
    pub streams: u64,
    /// Groups.
    pub groups: u64,
    /// Segment files.
    pub segments: usize,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// The log was closed cleanly and nothing was written since.
    pub closed: bool,
    /// Bytes behind the last group that hold no commit and are not zero: a write that is going on or was cut off.
    pub tail_bytes: u64,
}

struct Check {
    key: LogKey,
    heads: HashMap<(u64, u64), u64, Seeded>,
    verified: Verified,
}

/// Checks the chain of groups, all checksums, positions, that versions are contiguous in each stream, and that unused
/// room is zero.
///
/// `progress` is told how many bytes are done, of how many.
///
/// # Errors
/// `Corrupt`: the first damage, with its place; `Decode`: a commit is no commit; `Io`.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified, ReadError> {
    let files = Files::new(dir.join(LOG_DIR));
    let firsts = segment::list(&files.log_dir)?;
    let key = recovery::identify(&files, &firsts)?;
    let mut all_bytes = 0;
    for first in &firsts {
        let path = files.path(*first);
        all_bytes += std::fs::metadata(&path).map_err(read_io(path.display().to_string()))?.len();
    }
    let mut check = Check { key, heads: HashMap::with_hasher(seed(key.hash)), verified: Verified::default() };
    let mut place = Place::START;
    for (index, first) in firsts.iter().enumerate() {
        let path = files.path(*first);
        let file = File::open(&path).map_err(read_io(path.display().to_string()))?;
        let before = check.verified.bytes;
        let mut report = |done: u64| progress((before + done).min(all_bytes), all_bytes);
        check_joint(&path, &read_header(&file, &path, *first)?, &place)?;
        check.segment(&file, &path, &mut place, firsts.get(index + 1).copied(), &mut report)?;
        check.verified.bytes += file.metadata().map_err(read_io(path.display().to_string()))?.len();
        place = place.next_segment();
    }
    check.verified.segments = firsts.len();
    check.verified.commits = place.position - 1;
    check.verified.streams = check.heads.len() as u64;
    Ok(check.verified)
}

impl Check {
    fn segment(
        &mut self,
        file: &File,
        path: &Path,
        place: &mut Place,
        next: Option<u64>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), ReadError> {
        let mut window = Window::new(file, path);
        let key = self.key;
        loop {
            let stop = walk(&mut window, &key, place, &mut |group| {
                report(group.end.offset);
                self.group(path, &group)
            })?;
            if let Some(next) = next.filter(|next| *next != place.position) {
                let reason = format!("{}, but the next segment begins at position {next}", stop.reason);
                return Err(corrupt(path, place.offset, reason));
            }
            let from = place.offset + if stop.trailer { GROUP_HEADER_BYTES as u64 } else { 0 };
            match tail(&mut window, &key, place, stop, report)? {
                Tail::Clean if next.is_none() => {
                    self.verified.closed = stop.trailer;
                    return Ok(());
                }
                Tail::Clean => return Ok(()),
                Tail::Garbage(end) if next.is_none() => {
                    self.verified.tail_bytes = end - from;
                    return Ok(());
                }
                Tail::Garbage(_) => return Err(corrupt(path, from, "bytes that should be zero are not")),
                Tail::LaterGroup(later) => {
                    // A writer that works beside this reader may have completed the group meanwhile.
                    window.forget();
                    let again = group_at(&mut window, &key, place.offset)?;
                    if !again.is_ok_and(|(header, ..)| header.first_position == place.position) {
                        let reason = format!("{}, but a good group follows at byte {later}", stop.reason);
                        return Err(corrupt(path, place.offset, reason));
                    }
                }
            }
        }
    }

    fn group(&mut self, path: &Path, group: &Group<'_>) -> Result<(), ReadError> {
        self.verified.groups += 1;
        for frame in Frames::new(group.payload) {
            let at = |offset: usize| group.place.offset + (GROUP_HEADER_BYTES + offset) as u64;
            let (header, offset, commit) = frame.map_err(|(offset, reason)| corrupt(path, at(offset), reason))?;
            if !header.check(&self.key, commit) {
                return Err(corrupt(path, at(offset), "the commit's checksum is wrong"));
            }
            let view = parse(header.position, commit)?;
            let head = self.heads.entry(self.key.hash.stream(view.stream)).or_default();
            if view.first_version != *head + 1 || view.event_count == 0 {
                let (stream, first) = (view.stream, view.first_version);
                let reason = format!("stream {stream} goes on with version {first} behind {head}");
                return Err(corrupt(path, at(offset), reason));
            }
            *head = view.last_version().0;
            self.verified.events += view.event_count;
        }
        Ok(())
    }
}
