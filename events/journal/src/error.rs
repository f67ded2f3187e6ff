//! What can go wrong with the log. Every failed append says whether it happened.

use std::{io, sync::Arc};

use events_model::{CommitId, DecodeError, Position, StreamId, Version};

/// Whether a failed write happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Certainly not: the caller may retry as it is.
    NotWritten,
    /// Perhaps: the caller must re-read before it does anything else.
    Unknown,
}

/// Why the log accepts no appends at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No room; it goes on by itself when there is room again.
    #[error("the disk is full")]
    DiskFull,
    /// The file system or the directory cannot be written.
    #[error("the data directory is read-only")]
    ReadOnly,
    /// The data directory or the open segment was deleted or replaced under us.
    #[error("the data directory was removed")]
    DirectoryRemoved,
    /// Any other failure of the disk.
    #[error("the disk failed: {0}")]
    Disk(String),
    /// The log is shutting down.
    #[error("the log is closed")]
    Closed,
    /// Another node decides for this part of the log; ask that one.
    #[error("another node owns this part of the log")]
    Fenced,
    /// The servers of the log do not answer; it goes on by itself when they do.
    #[error("the servers of the log do not answer")]
    Unreachable,
    /// This node's replica stopped, because it does not fit the log.
    #[error("the replica of the log stopped: {0}")]
    Stopped(String),
}

/// Why an append failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// Somebody was first: reload and decide again.
    #[error("stream {stream} is at version {actual}, not at {expected}")]
    Conflict {
        /// The stream.
        stream: StreamId,
        /// What the caller believed.
        expected: Version,
        /// What it is.
        actual: Version,
    },
    /// The commit breaks a rule of the log.
    #[error("commit {commit_id} is not valid: {reason}")]
    Invalid {
        /// The commit.
        commit_id: CommitId,
        /// The rule.
        reason: String,
    },
    /// Too many appends wait; retry later.
    #[error("{waiting} appends wait already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The log accepts nothing at the moment; certainly not written.
    #[error("the log accepts no commits")]
    Refused(#[source] Refusal),
    /// The write began and failed; it may or may not be there.
    #[error("the outcome of the append is unknown")]
    Unknown(#[source] Arc<io::Error>),
}

impl AppendError {
    /// Whether the commit can have been written.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Conflict { .. } | Self::Invalid { .. } | Self::Busy { .. } | Self::Refused(_) => Outcome::NotWritten,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Bytes that were acknowledged are damaged; nothing is skipped.
    #[error("{file} is damaged at byte {offset}: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A stored commit does not decode.
    #[error("commit at position {position} does not decode")]
    Decode {
        /// Its place.
        position: Position,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The disk failed.
    #[error("read {what}")]
    Io {
        /// What was read.
        what: String,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
}
