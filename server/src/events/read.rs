//! Pages of a stream and of the log. They block: run them on a blocking thread.

use events_journal::{Direction, EventLog, ReadError, Recorded};
use events_model::{EpisodeId, Position, StreamId, Version};
use prost::Message as _;
use proto::events::v1 as pb;

use super::{convert, select::Selection};

/// Commits on a page when nothing is asked for, and at the most.
pub(crate) const LIMIT_DEFAULT: u32 = 100;
pub(crate) const LIMIT_MAX: u32 = 1_000;
/// A page ends with the commit that reaches this size, bytes: with the largest commit it stays below the 4 MiB that
/// gRPC clients take.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Commits taken from the log at once.
const CHUNK_LEN: usize = 128;
/// Most chunks one page looks at.
const CHUNKS_MAX: usize = 16;
/// Most commits of an episode that are found by the log's index; a longer one is searched for in the log.
const EPISODE_COMMITS_MAX: usize = 128;

/// A page.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) commits: Vec<pb::Commit>,
    /// The version or position where the next page begins.
    pub(crate) next: u64,
    /// Nothing lies behind this page.
    pub(crate) end: bool,
}

/// A page in the making.
struct Filling {
    page: Page,
    bytes: usize,
    limit: usize,
}

impl Filling {
    const fn new(limit: usize) -> Self {
        Self { page: Page { commits: Vec::new(), next: 0, end: false }, bytes: 0, limit }
    }

    /// Adds a commit; whether there is room for more.
    fn add(&mut self, commit: Option<pb::Commit>) -> bool {
        if let Some(commit) = commit {
            self.bytes = self.bytes.saturating_add(commit.encoded_len());
            self.page.commits.push(commit);
        }
        self.page.commits.len() < self.limit && self.bytes < PAGE_BYTES_MAX
    }

    fn ends(self, next: u64, end: bool) -> Page {
        Page { next, end, ..self.page }
    }
}

/// Reads a page of a stream from a version, inclusive; 0 = from the end the direction begins at.
///
/// # Errors
/// As `EventLog::read_stream`.
pub(crate) fn stream(
    log: &dyn EventLog,
    stream: &StreamId,
    from: Version,
    direction: Direction,
    limit: usize,
    selection: &Selection,
) -> Result<Page, ReadError> {
    let from = match (direction, from) {
        (Direction::Forward, from) => from.max(Version(1)),
        (Direction::Backward, Version::ZERO) => log.head(stream)?,
        (Direction::Backward, from) => from,
    };
    let (mut filling, mut next) = (Filling::new(limit), from);
    for _ in 0..CHUNKS_MAX {
        if next == Version::ZERO {
            return Ok(filling.ends(0, true));
        }
        let found = log.read_stream(stream, next, direction, CHUNK_LEN)?;
        let is_last = found.len() < CHUNK_LEN;
        let mut found = found.iter().peekable();
        while let Some(recorded) = found.next() {
            let view = recorded.view()?;
            let passes = |version: Version| match direction {
                Direction::Forward => version >= from,
                Direction::Backward => version <= from,
            };
            let has_room = filling.add(convert::commit(recorded, selection, passes)?);
            next = match direction {
                Direction::Forward => view.last_version().next(),
                Direction::Backward => Version(view.first_version.saturating_sub(1)),
            };
            if !has_room {
                let end = next == Version::ZERO || (is_last && found.peek().is_none());
                return Ok(filling.ends(next.0, end));
            }
        }
        if is_last {
            return Ok(filling.ends(next.0, true));
        }
    }
    Ok(filling.ends(next.0, false))
}

/// Reads a page of the log from a position, inclusive; 0 = from the end the direction begins at.
///
/// # Errors
/// As `EventLog::read_log`.
pub(crate) fn log(
    log: &dyn EventLog,
    from: Position,
    direction: Direction,
    limit: usize,
    selection: &Selection,
) -> Result<Page, ReadError> {
    let from = match (direction, from) {
        (Direction::Forward, from) => from.max(Position(1)),
        (Direction::Backward, Position::ZERO) => log.head_position(),
        (Direction::Backward, from) => from,
    };
    if let Some(episode) = selection.episode
        && let Some(page) = short_episode(log, episode, from, direction, limit, selection)?
    {
        return Ok(page);
    }
    let (mut filling, mut next) = (Filling::new(limit), from);
    for _ in 0..CHUNKS_MAX {
        if is_end(log, next, direction) {
            return Ok(filling.ends(next.0, true));
        }
        let found = log.read_log(next, direction, selection.log(), CHUNK_LEN)?;
        for recorded in &found.commits {
            if !filling.add(convert::whole(recorded, selection)?) {
                let next = behind(recorded.position, direction);
                return Ok(filling.ends(next.0, is_end(log, next, direction)));
            }
        }
        next = found.next;
    }
    let end = is_end(log, next, direction);
    Ok(filling.ends(next.0, end))
}

const fn behind(position: Position, direction: Direction) -> Position {
    match direction {
        Direction::Forward => position.next(),
        Direction::Backward => Position(position.0.saturating_sub(1)),
    }
}

fn is_end(log: &dyn EventLog, next: Position, direction: Direction) -> bool {
    match direction {
        Direction::Forward => next > log.head_position(),
        Direction::Backward => next == Position::ZERO,
    }
}

/// The page of an episode that is short enough to be found by the index; its end is the log's.
fn short_episode(
    log: &dyn EventLog,
    episode: EpisodeId,
    from: Position,
    direction: Direction,
    limit: usize,
    selection: &Selection,
) -> Result<Option<Page>, ReadError> {
    let end = match direction {
        Direction::Forward => log.head_position().next(),
        Direction::Backward => Position::ZERO,
    };
    let mut found = log.read_episode(episode, EPISODE_COMMITS_MAX)?;
    if found.len() == EPISODE_COMMITS_MAX {
        return Ok(None);
    }
    if direction == Direction::Backward {
        found.reverse();
    }
    let is_ahead = |recorded: &&Recorded| match direction {
        Direction::Forward => recorded.position >= from,
        Direction::Backward => recorded.position <= from,
    };
    let mut filling = Filling::new(limit);
    for recorded in found.iter().filter(is_ahead) {
        if !filling.add(convert::whole(recorded, selection)?) {
            let next = behind(recorded.position, direction);
            return Ok(Some(filling.ends(next.0, is_end(log, next, direction))));
        }
    }
    Ok(Some(filling.ends(end.0, true)))
}
