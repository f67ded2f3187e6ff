//! Every bound of the store, with its unit, and the few that can be chosen.

use std::time::Duration;

use events_model::envelope::COMMIT_BYTES_MAX;

use crate::format::{FRAME_HEADER_BYTES, GROUP_HEADER_BYTES, HEADER_BYTES};

/// Largest payload of one group, bytes.
pub(crate) const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of encoded commits that may wait for the writer.
pub(crate) const APPEND_QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Smallest and largest segment that can be chosen, bytes.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 4 * 1024;
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Room that a new log's first segment has before it is handed out, bytes. More is added in the background.
pub(crate) const FIRST_FILL_BYTES: u64 = 256 * 1024;
/// Zeros written between two barriers while a segment is prepared, bytes: the writer's own barrier may have to wait
/// for this much.
pub(crate) const FILL_STEP_BYTES: u64 = 256 * 1024;
/// Bytes of log between two entries of the position index.
pub(crate) const MARK_BYTES: u64 = 32 * 1024;
/// Bytes one sequential read takes from a segment.
pub(crate) const READ_AHEAD_BYTES: usize = 512 * 1024;
/// Bytes one random read takes from a segment before it knows how long the commit is.
pub(crate) const READ_FRAME_BYTES: usize = 4 * 1024;
/// Most bytes one call of `read_log` looks at, so that a filter that nothing passes does not scan the whole log.
pub(crate) const READ_SCAN_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Segment files kept open for reading.
pub(crate) const OPEN_FILES_MAX: usize = 64;
/// Log bytes after which the newest part of the index is turned into a run.
pub(crate) const RUN_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// Commits that the newest part of the index has room for before its tables grow.
pub(crate) const RUN_ROOM_MAX: usize = 131_072;
/// Runs of one level that are merged into one of the next.
pub(crate) const RUNS_PER_LEVEL: usize = 8;
/// Runs that may wait in memory while a log is opened; more are stored before the scan goes on.
pub(crate) const RUNS_WAITING_MAX: usize = 4;
/// Entries of an index array stored under one key.
pub(crate) const CHUNK_ENTRIES: usize = 1_024;
/// Bytes of a snapshot stored under one key.
pub(crate) const BLOB_CHUNK_BYTES: usize = 64 * 1024;
/// Memory sled may use for its page cache, bytes.
pub(crate) const SLED_CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Longest wait for more appends before a group is written.
pub(crate) const LINGER_MAX: Duration = Duration::from_micros(50);
/// Largest batch that is waited for: while a larger one is on its way to the disk, those that were answered meanwhile
/// form the next, which keeps both the disk and the processors busy.
pub(crate) const LINGER_LEN_MAX: usize = 64;
/// How often the writer looks whether more came while it judged what waited, before it writes the group.
pub(crate) const JUDGE_PASSES_MAX: u32 = 4;
/// Most answers the writer gives itself; waking more callers than this would delay the next group.
pub(crate) const ANSWER_INLINE_LEN_MAX: usize = 32;
/// Groups whose callers may still have to be woken; more make the writer wait.
pub(crate) const ANSWER_GROUPS_MAX: usize = 8;
/// First and longest pause between two attempts to go on after a failure of the disk.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(100);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(1);
/// First and longest pause between two attempts to store the index after a failure.
pub(crate) const INDEX_RETRY_FIRST: Duration = Duration::from_secs(1);
pub(crate) const INDEX_RETRY_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(COMMIT_BYTES_MAX + FRAME_HEADER_BYTES <= GROUP_BYTES_MAX);
const _: () = assert!(HEADER_BYTES + GROUP_HEADER_BYTES < SEGMENT_BYTES_MIN as usize);
// An offset in a segment fits 32 bits, even in a segment that grew by one group beyond its size.
const _: () = assert!(SEGMENT_BYTES_MAX + (GROUP_BYTES_MAX as u64) < u32::MAX as u64);

/// What can be chosen when a store is opened; none of it changes what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Size of a segment file, bytes; brought into 4 KiB..=1 GiB. A group that is larger gets a segment of its own.
    pub segment_bytes: u64,
    /// Commits after which the newest part of the index is turned into a run (64 MiB of log do so too).
    pub run_commits: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, run_commits: 131_072 }
    }
}

impl Options {
    pub(crate) fn bounded(self) -> Self {
        Self {
            segment_bytes: self.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            run_commits: self.run_commits.clamp(1, 1 << 22),
        }
    }
}
