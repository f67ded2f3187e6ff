//! Operators look at the past: what happened in an episode, what an actor's state was, whether the present rules
//! still decide the same, and how fast the whole log folds.
//!
//! Invariants: reads only. Nothing here appends, and nothing here can run an effect: deciders are asked to decide and
//! to evolve, never to `react`, and the code that runs effects is not linked. Snapshots and read models are not used
//! either, so that what is shown comes from the log alone.

pub mod episode;
mod fact;
pub mod scan;
pub mod state_at;
pub mod verify;

pub use state_at::{At, StateAt};

use events_journal::{Direction, EventLog, ReadError, Recorded};
use events_model::{StreamId, Version};

/// Most commits read from the log at a time.
pub const PAGE_LEN_MAX: usize = 512;

/// Walks a stream from its first commit, a page at a time.
pub(crate) fn walk<'a>(
    log: &'a dyn EventLog,
    stream: &'a StreamId,
) -> impl Iterator<Item = Result<Recorded, ReadError>> + 'a {
    let mut next = Some(Version::ZERO.next());
    let mut page = Vec::new().into_iter();
    std::iter::from_fn(move || {
        if let Some(commit) = page.next() {
            return Some(Ok(commit));
        }
        let from = next.take()?;
        match log.read_stream(stream, from, Direction::Forward, PAGE_LEN_MAX) {
            Err(error) => Some(Err(error)),
            Ok(commits) => {
                // An unreadable envelope is handed out all the same: whoever reads it meets the error.
                next = commits.last().and_then(|last| last.view().ok()).map(|last| last.last_version().next());
                page = commits.into_iter();
                page.next().map(Ok)
            }
        }
    })
}
