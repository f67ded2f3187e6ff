//! Disposable derived state: snapshots of actors and checkpoints of projections.
//!
//! A store may lose any of it at any time; it never returns a mixture of two saves. The bytes carry their own
//! versioned header, written by whoever saves.

use events_model::{StreamId, Version};

use crate::error::ReadError;

/// Largest saved state, bytes.
pub const BLOB_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A saved state and the version or position it contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Version of the stream (snapshots) or position in the log (checkpoints).
    pub at: u64,
    /// The state.
    pub bytes: Vec<u8>,
}

/// Keeps the newest saved state for each name.
pub trait SnapshotStore: Send + Sync + std::fmt::Debug + 'static {
    /// Saves an actor's state; at most `BLOB_BYTES_MAX`.
    ///
    /// # Errors
    /// `Io`: it was not saved; the older one, if any, may remain.
    fn save_snapshot(&self, stream: &StreamId, version: Version, bytes: &[u8]) -> Result<(), ReadError>;

    /// Loads an actor's newest saved state.
    ///
    /// # Errors
    /// `Io`; callers fall back to the log.
    fn load_snapshot(&self, stream: &StreamId) -> Result<Option<Blob>, ReadError>;

    /// Saves a projection's state and checkpoint together.
    ///
    /// # Errors
    /// `Io`.
    fn save_checkpoint(&self, projection: &str, blob: &Blob) -> Result<(), ReadError>;

    /// Loads a projection's state and checkpoint.
    ///
    /// # Errors
    /// `Io`; callers rebuild from the log.
    fn load_checkpoint(&self, projection: &str) -> Result<Option<Blob>, ReadError>;
}
