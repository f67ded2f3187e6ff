//! The bytes of a segment. Frozen: logs outlive programs; `tests/golden.rs` holds them.
//!
//! All numbers are little-endian. A segment is a header, then groups, then zeros:
//!
//! ```text
//! header  64 bytes: magic 8 | version 4 | 0 4 | log id 16 | first position 8 | chain 4 | 0 16 | crc 4
//! group   32 bytes: magic 4 | payload bytes 4 | first position 8 | commits 4 | chain 4 | payload crc 4 | header crc 4
//! frame   16 bytes: commit bytes 4 | crc 4 | position 8, then the commit
//! ```
//!
//! Invariants:
//! - checksums are CRC-32C and begin with the log's random id, so that no payload can imitate a record and no record
//!   of another log is taken for one of this;
//! - `chain` is the header checksum of the group before (of the segment before, for a segment's first group), so the
//!   order of groups is proven, not assumed;
//! - a group without commits is the trailer of a clean shutdown; the next group overwrites it and does not chain to it.

use events_model::envelope::COMMIT_BYTES_MAX;

use crate::{hash::HashKey, limit::GROUP_BYTES_MAX};

pub(crate) const FORMAT_VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const GROUP_HEADER_BYTES: usize = 32;
pub(crate) const FRAME_HEADER_BYTES: usize = 16;

const SEGMENT_MAGIC: [u8; 8] = *b"FREEHOLD";
/// Never a frame's length: those are at most `COMMIT_BYTES_MAX`.
pub(crate) const GROUP_MAGIC: [u8; 4] = [0xF7, 0x10, 0x6E, 0xE5];
const _: () = assert!(u32::from_le_bytes(GROUP_MAGIC) as usize > COMMIT_BYTES_MAX);

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn put<const N: usize>(bytes: &mut [u8; N], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// A log's identity and what is derived from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogKey {
    pub(crate) id: [u8; 16],
    pub(crate) hash: HashKey,
    seed: u32,
}

impl LogKey {
    pub(crate) fn new(id: [u8; 16]) -> Self {
        Self { id, hash: HashKey::new(id), seed: crc32c::crc32c(&id) }
    }

    /// The first part of a frame's checksum: over the commit alone, before its position is known.
    pub(crate) fn body_crc(&self, commit: &[u8]) -> u32 {
        crc32c::crc32c_append(self.seed, commit)
    }
}

/// The beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) log_id: [u8; 16],
    pub(crate) first_position: u64,
    pub(crate) chain: u32,
}

/// Why 64 bytes are no header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Damaged(&'static str),
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &SEGMENT_MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.log_id);
        put(&mut bytes, 32, &self.first_position.to_le_bytes());
        put(&mut bytes, 40, &self.chain.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        put(&mut bytes, HEADER_BYTES - 4, &crc.to_le_bytes());
        bytes
    }

    /// Magic, size, version and checksum keep their places in every version, so that a newer one is told from damage.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderFault> {
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Damaged("the segment's magic is wrong"));
        }
        if crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) != u32_at(bytes, HEADER_BYTES - 4) {
            return Err(HeaderFault::Damaged("the segment header's checksum is wrong"));
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&bytes[16..32]);
        Ok(Self { log_id, first_position: u64_at(bytes, 32), chain: u32_at(bytes, 40) })
    }
}

/// The beginning of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) payload_bytes: u32,
    pub(crate) first_position: u64,
    pub(crate) commits: u32,
    pub(crate) chain: u32,
    pub(crate) payload_crc: u32,
}

impl GroupHeader {
    /// The header of a group over these frames.
    pub(crate) fn over(payload: &[u8], first_position: u64, commits: u32, chain: u32) -> Self {
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Self { payload_bytes, first_position, commits, chain, payload_crc: crc32c::crc32c(payload) }
    }

    /// The bytes, and the checksum the next group chains to.
    pub(crate) fn encode(&self, key: &LogKey) -> ([u8; GROUP_HEADER_BYTES], u32) {
        let mut bytes = [0; GROUP_HEADER_BYTES];
        put(&mut bytes, 0, &GROUP_MAGIC);
        put(&mut bytes, 4, &self.payload_bytes.to_le_bytes());
        put(&mut bytes, 8, &self.first_position.to_le_bytes());
        put(&mut bytes, 16, &self.commits.to_le_bytes());
        put(&mut bytes, 20, &self.chain.to_le_bytes());
        put(&mut bytes, 24, &self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(key.seed, &bytes[..28]);
        put(&mut bytes, 28, &crc.to_le_bytes());
        (bytes, crc)
    }

    pub(crate) fn parse(bytes: &[u8; GROUP_HEADER_BYTES], key: &LogKey) -> Result<(Self, u32), &'static str> {
        if bytes[..4] != GROUP_MAGIC {
            return Err("no group begins here");
        }
        let crc = u32_at(bytes, 28);
        if crc32c::crc32c_append(key.seed, &bytes[..28]) != crc {
            return Err("the group header's checksum is wrong");
        }
        let header = Self {
            payload_bytes: u32_at(bytes, 4),
            first_position: u64_at(bytes, 8),
            commits: u32_at(bytes, 16),
            chain: u32_at(bytes, 20),
            payload_crc: u32_at(bytes, 24),
        };
        if header.payload_bytes as usize > GROUP_BYTES_MAX {
            return Err("the group is longer than allowed");
        }
        Ok((header, crc))
    }

    /// Bytes of header and payload.
    pub(crate) const fn bytes(&self) -> u64 {
        GROUP_HEADER_BYTES as u64 + self.payload_bytes as u64
    }

    /// Whether it is the trailer of a clean shutdown.
    pub(crate) const fn is_trailer(&self) -> bool {
        self.commits == 0
    }
}

/// The beginning of a commit in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) commit_bytes: u32,
    crc: u32,
    pub(crate) position: u64,
}

impl FrameHeader {
    /// `body_crc` is `LogKey::body_crc` of the commit.
    pub(crate) fn encode(commit_bytes: u32, position: u64, body_crc: u32) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, &commit_bytes.to_le_bytes());
        put(&mut bytes, 4, &frame_crc(commit_bytes, position, body_crc).to_le_bytes());
        put(&mut bytes, 8, &position.to_le_bytes());
        bytes
    }

    /// Reads a frame's header; nothing is proven before `check`.
    pub(crate) fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, &'static str> {
        let header = Self { commit_bytes: u32_at(bytes, 0), crc: u32_at(bytes, 4), position: u64_at(bytes, 8) };
        if header.commit_bytes == 0 || header.commit_bytes as usize > COMMIT_BYTES_MAX {
            return Err("the frame's length is impossible");
        }
        Ok(header)
    }

    /// Whether the commit is the one that was written, at the position it was written for.
    pub(crate) fn check(&self, key: &LogKey, commit: &[u8]) -> bool {
        frame_crc(self.commit_bytes, self.position, key.body_crc(commit)) == self.crc
    }

    /// Bytes of header and commit.
    pub(crate) const fn bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.commit_bytes as usize
    }
}

fn frame_crc(commit_bytes: u32, position: u64, body_crc: u32) -> u32 {
    let mut place = [0; 12];
    put(&mut place, 0, &commit_bytes.to_le_bytes());
    put(&mut place, 4, &position.to_le_bytes());
    crc32c::crc32c_append(body_crc, &place)
}

/// The frames of a group's payload, in order: header, offset in the payload, commit.
pub(crate) struct Frames<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Frames<'a> {
    pub(crate) const fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(FrameHeader, usize, &'a [u8]), (usize, &'static str)>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.payload.get(self.at..).filter(|rest| !rest.is_empty())?;
        let at = self.at;
        self.at = self.payload.len();
        let Some((head, body)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Some(Err((at, "a frame is cut off")));
        };
        let header = match FrameHeader::parse(head) {
            Ok(header) => header,
            Err(reason) => return Some(Err((at, reason))),
        };
        let Some(commit) = body.get(..header.commit_bytes as usize) else {
            return Some(Err((at, "a frame is longer than its group")));
        };
        self.at = at + header.bytes();
        Some(Ok((header, at, commit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG_ID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn golden_payload(key: &LogKey) -> Vec<u8> {
        let mut payload = Vec::new();
        for (position, commit) in [(7, &b"first"[..]), (8, b"the second")] {
            let len = u32::try_from(commit.len()).unwrap();
            payload.extend(FrameHeader::encode(len, position, key.body_crc(commit)));
            payload.extend(commit);
        }
        payload
    }

    #[test]
    fn the_bytes_of_a_segment_are_frozen() {
        let key = LogKey::new(LOG_ID);
        let header = SegmentHeader { log_id: LOG_ID, first_position: 7, chain: 0x0102_0304 };
        let payload = golden_payload(&key);
        let (group, _) = GroupHeader::over(&payload, 7, 2, 0x0102_0304).encode(&key);
        let (trailer, _) = GroupHeader::over(&[], 9, 0, 0x0A0B_0C0D).encode(&key);
        assert_eq!(
            [hex(&header.encode()), hex(&group), hex(&payload), hex(&trailer)],
            [
                "46524545484f4c440100000000000000000102030405060708090a0b0c0d0e0f\
                 07000000000000000403020100000000000000000000000000000000be6aab88",
                "f7106ee52f000000070000000000000002000000040302017c3f2bf47ac78926",
                "050000005471ee10070000000000000066697273740a0000009344f8370800000000000000746865207365636f6e64",
                "f7106ee5000000000900000000000000000000000d0c0b0a000000000d7cb4d2",
            ]
        );
    }

    #[test]
    fn what_was_encoded_is_parsed_and_every_flip_is_seen() {
        let key = LogKey::new(LOG_ID);
        let header = SegmentHeader { log_id: LOG_ID, first_position: 7, chain: 3 };
        assert_eq!(SegmentHeader::parse(&header.encode()), Ok(header));
        let payload = golden_payload(&key);
        let group = GroupHeader::over(&payload, 7, 2, 3);
        let (bytes, crc) = group.encode(&key);
        assert_eq!(GroupHeader::parse(&bytes, &key), Ok((group, crc)));
        for bit in 0..GROUP_HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(GroupHeader::parse(&flipped, &key).is_err(), "bit {bit}");
        }
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = header.encode();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::parse(&flipped).is_err(), "bit {bit}");
        }
        let frames: Vec<_> = Frames::new(&payload).map(Result::unwrap).collect();
        assert_eq!(frames.iter().map(|(frame, ..)| frame.position).collect::<Vec<_>>(), [7, 8]);
        assert!(frames.iter().all(|(frame, _, commit)| frame.check(&key, commit)));
        assert!(!frames[0].0.check(&LogKey::new([9; 16]), frames[0].2), "a record of another log");
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut bytes = SegmentHeader { log_id: LOG_ID, first_position: 1, chain: 0 }.encode();
        bytes[8] = 2;
        assert_eq!(SegmentHeader::parse(&bytes), Err(HeaderFault::Damaged("the segment header's checksum is wrong")));
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::parse(&bytes), Err(HeaderFault::Version(2)));
    }
}
