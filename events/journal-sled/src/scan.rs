//! Walks the groups of one segment and judges what comes after the last good one.
//!
//! Invariants: a group is visited only if its checksums, its chain, its positions and each of its frames' places are
//! right; group n+1 is written only after group n is durable, so a bad record with a good later one behind it is
//! damage, and one with nothing good behind it is a torn tail: no sign that anybody was told.

use std::path::Path;

use events_journal::ReadError;

use crate::{
    error::corrupt,
    format::{Frames, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader, HEADER_BYTES, LogKey, SegmentHeader},
    segment::Window,
};

/// A place between two groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Ordinal of the segment.
    pub(crate) ordinal: u32,
    /// Where the next group begins.
    pub(crate) offset: u64,
    /// Position of the next commit.
    pub(crate) position: u64,
    /// Header checksum of the group before.
    pub(crate) chain: u32,
    /// Where the group before begins; 0 = there is none in this segment.
    pub(crate) last_group: u64,
    /// Bytes of all groups so far, in all segments.
    pub(crate) log_bytes: u64,
}

impl Place {
    /// Before the first commit of a log.
    pub(crate) const START: Self =
        Self { ordinal: 0, offset: HEADER_BYTES as u64, position: 1, chain: 0, last_group: 0, log_bytes: 0 };

    /// After a group that was written or read here.
    pub(crate) const fn after(&self, header: &GroupHeader, crc: u32) -> Self {
        Self {
            ordinal: self.ordinal,
            offset: self.offset + header.bytes(),
            position: self.position + header.commits as u64,
            chain: crc,
            last_group: self.offset,
            log_bytes: self.log_bytes + header.bytes(),
        }
    }

    /// At the beginning of the next segment.
    pub(crate) const fn next_segment(&self) -> Self {
        Self { ordinal: self.ordinal + 1, offset: HEADER_BYTES as u64, last_group: 0, ..*self }
    }
}

/// Why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop {
    /// The log was closed cleanly here.
    pub(crate) trailer: bool,
    /// Why the next record is no group.
    pub(crate) reason: &'static str,
}

/// What lies behind the last good group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Zeros.
    Clean,
    /// Bytes that are no groups, up to this offset.
    Garbage(u64),
    /// A good group of a later position.
    LaterGroup(u64),
}

/// A group as it is visited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    /// Where it begins and what it holds.
    pub(crate) place: Place,
    pub(crate) payload: &'a [u8],
    /// Where the next one begins.
    pub(crate) end: Place,
}

/// Checks that a segment begins where the one before ended.
pub(crate) fn check_joint(path: &Path, header: &SegmentHeader, place: &Place) -> Result<(), ReadError> {
    if header.first_position != place.position {
        let reason = format!("positions from {} on are missing before this segment", place.position);
        return Err(corrupt(path, 32, reason));
    }
    if header.chain != place.chain {
        return Err(corrupt(path, 40, "the segment does not follow the one before"));
    }
    Ok(())
}

/// Walks from `place` to the last good group, and moves it there.
pub(crate) fn walk(
    window: &mut Window<'_>,
    key: &LogKey,
    place: &mut Place,
    visit: &mut dyn FnMut(Group<'_>) -> Result<(), ReadError>,
) -> Result<Stop, ReadError> {
    let path = window.path;
    loop {
        let (header, crc, payload) = match group_at(window, key, place.offset)? {
            Ok(found) => found,
            Err(reason) => return Ok(Stop { trailer: false, reason }),
        };
        if header.first_position != place.position || header.chain != place.chain {
            return Ok(Stop { trailer: false, reason: "the group does not follow the one before" });
        }
        if header.is_trailer() {
            return Ok(Stop { trailer: true, reason: "the log was closed here" });
        }
        check_frames(path, place, &header, payload)?;
        let end = place.after(&header, crc);
        visit(Group { place: *place, payload, end })?;
        *place = end;
    }
}

/// The group's checksum is right here, so a wrong frame is a fault of whoever wrote it.
fn check_frames(path: &Path, place: &Place, header: &GroupHeader, payload: &[u8]) -> Result<(), ReadError> {
    let mut position = place.position;
    for frame in Frames::new(payload) {
        let at = |offset: usize| place.offset + (GROUP_HEADER_BYTES + offset) as u64;
        let (frame, offset, _) = frame.map_err(|(offset, reason)| corrupt(path, at(offset), reason))?;
        if frame.position != position {
            return Err(corrupt(path, at(offset), "a frame has another position than its place"));
        }
        position += 1;
    }
    if position != place.position + u64::from(header.commits) {
        return Err(corrupt(path, place.offset, "the group holds another number of commits than it says"));
    }
    Ok(())
}

type Found<'a> = Result<(GroupHeader, u32, &'a [u8]), &'static str>;

/// Reads and checks one group (or trailer) by itself.
pub(crate) fn group_at<'w>(window: &'w mut Window<'_>, key: &LogKey, offset: u64) -> Result<Found<'w>, ReadError> {
    let Some(head) = window.get(offset, GROUP_HEADER_BYTES)?.first_chunk::<GROUP_HEADER_BYTES>() else {
        return Ok(Err("the segment ends here"));
    };
    let (header, crc) = match GroupHeader::parse(head, key) {
        Ok(parsed) => parsed,
        Err(reason) => return Ok(Err(reason)),
    };
    let payload = window.get(offset + GROUP_HEADER_BYTES as u64, header.payload_bytes as usize)?;
    if payload.len() < header.payload_bytes as usize {
        return Ok(Err("the group is cut off"));
    }
    if crc32c::crc32c(payload) != header.payload_crc {
        return Ok(Err("the group's checksum is wrong"));
    }
    Ok(Ok((header, crc, payload)))
}

/// Judges what follows the place where a walk stopped.
pub(crate) fn tail(
    window: &mut Window<'_>,
    key: &LogKey,
    place: &Place,
    stop: Stop,
    progress: &mut dyn FnMut(u64),
) -> Result<Tail, ReadError> {
    const STEP: usize = 64 * 1024;
    let from = place.offset + if stop.trailer { GROUP_HEADER_BYTES as u64 } else { 0 };
    let mut garbage_end = None;
    let mut at = from;
    loop {
        let bytes = window.get(at, STEP)?;
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            garbage_end = Some(at + last as u64 + 1);
            // A group that begins in the last bytes of this step is found in the next, which overlaps.
            let candidates: Vec<u64> = bytes
                .windows(GROUP_MAGIC.len())
                .enumerate()
                .filter(|(_, magic)| *magic == GROUP_MAGIC)
                .map(|(index, _)| at + index as u64)
                .collect();
            for offset in candidates {
                let Ok((header, ..)) = group_at(window, key, offset)? else {
                    continue;
                };
                let first = header.first_position;
                // A trailer of this very position may be a stale one; a group of it cannot.
                if first > place.position || (first == place.position && !header.is_trailer()) {
                    return Ok(Tail::LaterGroup(offset));
                }
            }
        }
        progress(at + len as u64);
        if len < STEP {
            break;
        }
        at += (len - (GROUP_MAGIC.len() - 1)) as u64;
    }
    Ok(garbage_end.map_or(Tail::Clean, Tail::Garbage))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, path::PathBuf};

    use super::*;
    use crate::format::FrameHeader;

    const KEY: [u8; 16] = [3; 16];

    /// A group of one commit, and the checksum the next one chains to.
    fn group(position: u64, chain: u32) -> (Vec<u8>, u32) {
        let key = LogKey::new(KEY);
        let mut payload = FrameHeader::encode(6, position, key.body_crc(b"commit")).to_vec();
        payload.extend_from_slice(b"commit");
        let (head, crc) = GroupHeader::over(&payload, position, 1, chain).encode(&key);
        ([&head[..], &payload].concat(), crc)
    }

    /// Walks a segment of these groups; returns how many were good and what is said of the rest.
    fn walk_over(groups: &[Vec<u8>]) -> (u64, &'static str, Tail) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; HEADER_BYTES]).unwrap();
        groups.iter().for_each(|group| file.write_all(group).unwrap());
        file.write_all(&[0; 100]).unwrap();
        let (path, key, mut place) = (PathBuf::from("x.seg"), LogKey::new(KEY), Place::START);
        let mut window = Window::new(&file, &path);
        let stop = walk(&mut window, &key, &mut place, &mut |_| Ok(())).unwrap();
        let tail = tail(&mut window, &key, &place, stop, &mut |_| {}).unwrap();
        (place.position - 1, stop.reason, tail)
    }

    #[test]
    fn a_group_that_does_not_follow_is_no_torn_tail() {
        let (first, crc) = group(1, 0);
        let second_at = (HEADER_BYTES + first.len()) as u64;
        assert_eq!(walk_over(&[first.clone(), group(2, crc).0]), (2, "no group begins here", Tail::Clean));
        let reason = "the group does not follow the one before";
        // The right position behind another group, and another position behind the right group.
        let spliced = walk_over(&[first.clone(), group(2, crc ^ 1).0]);
        assert_eq!(spliced, (1, reason, Tail::LaterGroup(second_at)));
        assert_eq!(walk_over(&[first.clone(), group(3, crc).0]), (1, reason, Tail::LaterGroup(second_at)));
        // A stale group is garbage.
        let end = second_at + first.len() as u64;
        assert_eq!(walk_over(&[first.clone(), first]), (1, reason, Tail::Garbage(end)));
    }

    #[test]
    fn a_segment_that_does_not_follow_is_refused() {
        let place = Place { position: 7, chain: 5, ..Place::START };
        let header = |first_position, chain| SegmentHeader { log_id: KEY, first_position, chain };
        let path = Path::new("x.seg");
        assert!(check_joint(path, &header(7, 5), &place).is_ok());
        assert!(check_joint(path, &header(8, 5), &place).unwrap_err().to_string().contains("are missing before"));
        assert!(check_joint(path, &header(7, 6), &place).unwrap_err().to_string().contains("does not follow"));
    }
}
