//! Opening: finds the segments, takes over the stored index, makes durable what it lacks and replays it, cuts a torn
//! tail.
//!
//! Invariants: what the index proves to have been durable must be in the segments; every group that is replayed is
//! checked whole and durable; nothing is changed before everything was found good, and then only bytes of which
//! nothing shows that anybody was told.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use events_journal::ReadError;
use tracing::warn;

use crate::{
    error::{OpenError, corrupt, open_io},
    format::{Frames, GROUP_HEADER_BYTES, HEADER_BYTES, LogKey},
    index::{Index, Live},
    indexer,
    limit::{FILL_STEP_BYTES, RUNS_WAITING_MAX},
    memtable::Added,
    read::parse,
    run::Part,
    run_store::RunStore,
    scan::{Group, Place, Stop, Tail, check_joint, group_at, tail, walk},
    segment::{Files, Location, Window, read_header, read_some, sync_dir},
    store::Cut,
};

/// What replaying found.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) place: Place,
    pub(crate) cut: Option<Cut>,
    /// Commits the stored index did not hold.
    pub(crate) commits: u64,
}

/// Reads all segments' headers; they must be of one log.
pub(crate) fn identify(files: &Files, firsts: &[u64]) -> Result<LogKey, OpenError> {
    let mut id = None;
    for first in firsts {
        let path = files.path(*first);
        let file = File::open(&path).map_err(open_io("open", &path))?;
        let header = read_header(&file, &path, *first)?;
        if *id.get_or_insert(header.log_id) != header.log_id {
            return Err(corrupt(&path, 16, "the segment belongs to another log").into());
        }
    }
    match (id, firsts.first()) {
        (Some(id), Some(1)) => Ok(LogKey::new(id)),
        (_, first) => {
            let first = first.copied().unwrap_or(0);
            Err(corrupt(&files.path(first), 0, format!("the segments before position {first} are missing")).into())
        }
    }
}

/// Takes over the stored index; without one, everything is replayed.
pub(crate) fn load_index(files: &Files, store: &Arc<RunStore>, index: &Index) -> Result<(), OpenError> {
    if let Err(fault) = store.open().and_then(|()| index.load()) {
        warn!(error = %fault, "the index is not readable, rebuilding it from the log");
        if let Err(fault) = store.clear_runs() {
            warn!(error = %fault, "the index cannot be cleared, it stays in memory");
        }
        return Ok(());
    }
    check_covered(files, index).map_err(OpenError::from)
}

/// The index holds only what was durable: its last group and its segments must be there.
fn check_covered(files: &Files, index: &Index) -> Result<(), ReadError> {
    let live = index.live.read();
    let place = live.end;
    if place.position == Place::START.position {
        return Ok(());
    }
    let proven = format!("positions up to {} were acknowledged, as the index proves", place.position - 1);
    for (position, mark) in &live.marks {
        let begins = mark.offset() == (HEADER_BYTES + GROUP_HEADER_BYTES) as u64;
        if begins && live.segments.get(mark.ordinal() as usize) != Some(position) {
            return Err(corrupt(&files.path(*position), 0, format!("the segment is missing, but {proven}")));
        }
    }
    let Some(first) = live.segments.get(place.ordinal as usize) else {
        return Err(corrupt(&files.log_dir, 0, format!("the last segments are missing, but {proven}")));
    };
    let (path, file) = (files.path(*first), files.get(*first)?);
    let good = if place.last_group == 0 {
        read_header(&file, &path, *first)?.chain == place.chain
    } else {
        let mut window = Window::new(&file, &path);
        group_at(&mut window, &index.key, place.last_group)?
            .is_ok_and(|(header, crc, _)| crc == place.chain && place.last_group + header.bytes() == place.offset)
    };
    if good { Ok(()) } else { Err(corrupt(&path, place.last_group, format!("the group is damaged, but {proven}"))) }
}

/// Makes durable what will be replayed, and the names under which it is found.
///
/// A process that was killed between a write and its barrier, or between a rename and the sync of its directory, told
/// nobody; but the page cache survives it, so that this process will show what it left to readers, answer retries with
/// it, and let the index prove it.
pub(crate) fn make_durable(dir: &Path, files: &Files, index: &Index) -> Result<(), OpenError> {
    let (covered, segments) = {
        let live = index.live.read();
        (live.end.ordinal as usize, live.segments.clone())
    };
    // The last two whatever the index says: a clean file costs next to nothing.
    for first in segments.iter().skip(covered.min(segments.len().saturating_sub(2))) {
        let path = files.path(*first);
        File::open(&path).and_then(|file| file.sync_data()).map_err(open_io("sync", &path))?;
    }
    sync_dir(&files.log_dir).map_err(open_io("sync", &files.log_dir))?;
    sync_dir(dir).map_err(open_io("sync", dir))?;
    sync_parent(dir).map_err(open_io("sync the parent of", dir))
}

/// Makes the data directory's own name durable.
fn sync_parent(dir: &Path) -> io::Result<()> {
    let parent = match File::open(dir.join("..")) {
        // Who made a directory in a place that we may not look at made it durable, too.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        parent => parent?,
    };
    // The name of a mount point was there before us, and its parent may be of a kind that cannot be synced.
    if parent.metadata()?.dev() == dir.metadata()?.dev() { parent.sync_all() } else { Ok(()) }
}

/// Replays everything behind what the index covers. `repair` = this process owns the log: it stores parts of the index
/// as they become complete and cuts a torn tail.
pub(crate) fn replay(files: &Files, index: &Index, repair: bool) -> Result<Replayed, OpenError> {
    let (mut place, segments) = {
        let live = index.live.read();
        (live.end, live.segments.clone())
    };
    let from = place.position;
    let mut cut = None;
    loop {
        let Some(first) = segments.get(place.ordinal as usize) else {
            return Err(corrupt(&files.log_dir, 0, "the log has no segments").into());
        };
        let (path, file) = (files.path(*first), files.get(*first)?);
        if place.offset == HEADER_BYTES as u64 {
            check_joint(&path, &read_header(&file, &path, *first)?, &place)?;
        }
        let mut window = Window::new(&file, &path);
        let next = segments.get(place.ordinal as usize + 1).copied();
        let found = read_segment(&mut window, index, &mut place, next, repair)?;
        if let Some((from, to)) = found {
            let lost = Cut { file: path.display().to_string(), offset: from, bytes: to - from };
            if repair {
                let file = OpenOptions::new().write(true).open(&path).map_err(open_io("open", &path))?;
                zero(&file, from, to).map_err(open_io("cut", &path))?;
                let (offset, bytes) = (lost.offset, lost.bytes);
                warn!(file = lost.file, offset, bytes, "torn tail cut, there is no sign that anybody was told of it");
            }
            cut = Some(lost);
        }
        if next.is_none() {
            break;
        }
        place = place.next_segment();
    }
    index.live.write().end = place;
    if repair {
        rewrite_last(files, &segments, &place)?;
    }
    Ok(Replayed { place, cut, commits: place.position - from })
}

/// Writes the last group once more, durably.
///
/// A process whose last barrier failed and that ended before it could clear the group left pages behind that the kernel
/// takes for clean and that are not on the disk: another barrier alone would not bring them there.
fn rewrite_last(files: &Files, segments: &[u64], place: &Place) -> Result<(), OpenError> {
    let Some(first) = segments.get(place.ordinal as usize).filter(|_| place.last_group > 0) else {
        return Ok(());
    };
    let path = files.path(*first);
    let rewrite = || {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let bytes = usize::try_from(place.offset - place.last_group).unwrap_or(usize::MAX);
        file.write_all_at(&read_some(&file, place.last_group, bytes)?, place.last_group)?;
        file.sync_data()
    };
    rewrite().map_err(open_io("rewrite the last group of", &path))
}

/// Replays one segment; returns the bytes behind its last group that are not zero and hold nothing.
fn read_segment(
    window: &mut Window<'_>,
    index: &Index,
    place: &mut Place,
    next: Option<u64>,
    repair: bool,
) -> Result<Option<(u64, u64)>, OpenError> {
    loop {
        let stop = walk(window, &index.key, place, &mut |group| add_group(index, &group, repair))?;
        let path = window.path;
        if let Some(next) = next.filter(|next| *next != place.position) {
            let reason = format!("{}, but the next segment begins at position {next}", stop.reason);
            return Err(corrupt(path, place.offset, reason).into());
        }
        match tail(window, &index.key, place, stop, &mut |_| {})? {
            Tail::Clean => return Ok(None),
            Tail::Garbage(end) => return Ok(Some((tail_start(place, stop), end))),
            Tail::LaterGroup(later) => {
                // A writer that works beside this reader may have completed the group meanwhile.
                window.forget();
                let again = group_at(window, &index.key, place.offset)?;
                if repair || !again.is_ok_and(|(header, ..)| header.first_position == place.position) {
                    let reason = format!("{}, but a good group follows at byte {later}", stop.reason);
                    return Err(corrupt(path, place.offset, reason).into());
                }
            }
        }
    }
}

const fn tail_start(place: &Place, stop: Stop) -> u64 {
    place.offset + if stop.trailer { GROUP_HEADER_BYTES as u64 } else { 0 }
}

/// Overwrites with zeros, durably.
fn zero(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_STEP_BYTES as usize];
    let mut at = from;
    while at < to {
        let step = usize::try_from((to - at).min(FILL_STEP_BYTES)).unwrap_or(0);
        file.write_all_at(zeros.get(..step).unwrap_or_default(), at)?;
        at += step as u64;
    }
    file.sync_data()
}

fn add_group(index: &Index, group: &Group<'_>, repair: bool) -> Result<(), ReadError> {
    let mut live = index.live.write();
    let mut first_of_segment = group.place.last_group == 0;
    for frame in Frames::new(group.payload) {
        let Ok((header, offset, commit)) = frame else {
            continue;
        };
        let location = Location::new(group.place.ordinal, group.place.offset + (GROUP_HEADER_BYTES + offset) as u64);
        let added = next_added(index, &live, header.position, location, commit)?;
        live.push(header.position, first_of_segment, added);
        first_of_segment = false;
    }
    index.advance(&mut live, group.end);
    let waiting = live.parts.iter().filter(|part| matches!(part, Part::Memory(_))).count();
    drop(live);
    if repair
        && waiting > RUNS_WAITING_MAX
        // The newest part may hold the last group, which the index must not prove before it is rewritten.
        && let Err(fault) = indexer::store_all_but(index, 1)
    {
        warn!(error = %fault, "the index cannot be stored, it stays in memory");
    }
    Ok(())
}

/// A commit must be the next one of its stream.
fn next_added(
    index: &Index,
    live: &Live,
    position: u64,
    location: Location,
    commit: &[u8],
) -> Result<Added, ReadError> {
    let view = parse(position, commit)?;
    let keys = index.key.hash.keys(view.stream, view.commit_id, view.episode_id);
    let head = live.head(keys.stream);
    if view.first_version != head + 1 || view.event_count == 0 {
        let file = live.segments.get(location.ordinal() as usize).copied().unwrap_or(0);
        let (stream, first) = (view.stream, view.first_version);
        let reason = format!("stream {stream} goes on with version {first} behind {head}");
        return Err(corrupt(Path::new(&format!("{file:020}.seg")), location.offset(), reason));
    }
    Ok(Added { keys, last_version: view.last_version().0, location })
}
