//! The port `Replica`: a log that takes what was ordered elsewhere, byte for byte.

use bytes::Bytes;
use events_model::{CommitId, CommitView};

use crate::{
    error::AppendError,
    log::{EventLog, Receipt},
};

/// A node's copy of a replicated log.
///
/// Contract (`contract::run_replica`), beside that of `EventLog`:
/// - the bytes are stored as they are, so that every node holds the same bytes at the same position;
/// - what is appended without waiting is stored in the order of the calls;
/// - appending again what is there answers the first place and changes nothing.
///
/// It deliberately does not compare the bytes of a repeated commit with those that are there: whoever needs to know
/// reads them.
pub trait Replica: EventLog {
    /// Appends an encoded commit as it is; the expected version is the one before its first event.
    ///
    /// Answers as `EventLog::append`: `Invalid` (with the id `unreadable` if the bytes have none), `Conflict` if
    /// the stream is at another version, the first place if the stream holds the commit id already.
    fn append_recorded(&self, bytes: Bytes) -> Receipt;
}

/// The answer to bytes that `Entry::read` does not take.
pub fn unreadable(bytes: &[u8], reason: String) -> Receipt {
    let named = CommitView::parse(bytes).ok().and_then(|view| CommitId::new(view.commit_id).ok());
    match named.map_or_else(|| CommitId::new("unreadable"), Ok) {
        Ok(commit_id) => Receipt::ready(Err(AppendError::Invalid { commit_id, reason })),
        Err(error) => Receipt::ready(Err(AppendError::Unknown(std::sync::Arc::new(std::io::Error::other(error))))),
    }
}
