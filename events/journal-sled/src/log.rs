//! The port `EventLog` on the local store.

use events_journal::{
    AppendError, Direction, EventLog, Filter, Health, Page, ReadError, Receipt, Recorded, Refusal, log::READ_LIMIT_MAX,
};
use events_model::{
    Commit, CommitId, EpisodeId, Position, StreamId, Version,
    envelope::{COMMIT_BYTES_MAX, EVENTS_PER_COMMIT_MAX},
};
use tokio::sync::watch;

use crate::{
    hash::episode_key,
    limit::{READ_AHEAD_BYTES, READ_SCAN_BYTES_MAX},
    queue::Pending,
    read::{Found, Library},
    store::LocalStore,
};

/// What an event and a commit take beside their payloads, bytes; a guess that is seldom too small.
const EVENT_OVERHEAD_BYTES: usize = 80;
const COMMIT_OVERHEAD_BYTES: usize = 352;

/// The rules that need no log; also encodes.
fn check(expected: Version, commit: &Commit) -> Result<Vec<u8>, String> {
    let events = commit.events.len();
    if events == 0 || events > EVENTS_PER_COMMIT_MAX {
        return Err(format!("it has {events} events, 1 to {EVENTS_PER_COMMIT_MAX} are allowed"));
    }
    let last = expected.0.checked_add(events as u64);
    if last.is_none() || commit.first_version.0 != expected.0.saturating_add(1) {
        return Err(format!("its first version is {}, expected is {expected}", commit.first_version));
    }
    // One allocation: payloads, and what surrounds them.
    let payloads: usize = commit.events.iter().map(|event| event.payload.bytes.len() + EVENT_OVERHEAD_BYTES).sum();
    let mut bytes = Vec::with_capacity(commit.command.bytes.len() + payloads + COMMIT_OVERHEAD_BYTES);
    commit.encode_into(&mut bytes);
    if bytes.len() > COMMIT_BYTES_MAX {
        return Err(format!("it is {} bytes long, {COMMIT_BYTES_MAX} are allowed", bytes.len()));
    }
    Ok(bytes)
}

/// Bytes worth reading at once for this many commits.
fn read_bytes(limit: usize) -> usize {
    limit.saturating_mul(2048).clamp(64 * 1024, READ_AHEAD_BYTES)
}

/// Whether a commit passes; keeps a small copy of one that passed a filter instead of the whole read.
fn pass(filter: &Filter, all: bool, found: Found) -> Result<Option<Recorded>, ReadError> {
    let position = Position(found.position);
    let recorded = Recorded { position, bytes: found.bytes };
    if all {
        return Ok(Some(recorded));
    }
    let passes = filter.matches(&recorded.view()?);
    Ok(passes.then(|| Recorded { position, bytes: bytes::Bytes::copy_from_slice(&recorded.bytes) }))
}

fn read_forward(library: &Library, from: u64, head: u64, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
    let mut page = Page { commits: Vec::new(), next: Position(from) };
    if from > head || limit == 0 {
        return Ok(page);
    }
    let all = *filter == Filter::default();
    let mut looked_at = 0;
    let mut scan = library.scan(from, read_bytes(limit))?;
    while page.commits.len() < limit && looked_at < READ_SCAN_BYTES_MAX {
        let Some(found) = scan.next(head + 1)? else {
            break;
        };
        looked_at += found.bytes.len() as u64;
        page.next = Position(found.position + 1);
        page.commits.extend(pass(filter, all, found)?);
    }
    Ok(page)
}

/// Reads forward from mark to mark, the last piece first.
fn read_backward(library: &Library, from: u64, head: u64, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
    let mut last = from.min(head);
    let mut page = Page { commits: Vec::new(), next: Position(last) };
    let all = *filter == Filter::default();
    let mut looked_at = 0;
    while last > 0 && page.commits.len() < limit && looked_at < READ_SCAN_BYTES_MAX {
        let first = library.index.live.read().mark(last).map_or(1, |(position, _)| position);
        let mut scan = library.scan(first, read_bytes(0))?;
        let mut piece = Vec::new();
        while let Some(found) = scan.next(last + 1)? {
            piece.push(found);
        }
        for found in piece.into_iter().rev() {
            looked_at += found.bytes.len() as u64;
            last = found.position - 1;
            page.next = Position(last);
            page.commits.extend(pass(filter, all, found)?);
            if page.commits.len() == limit {
                break;
            }
        }
    }
    Ok(page)
}

impl EventLog for LocalStore {
    fn append(&self, expected: Version, commit: Commit) -> Receipt {
        let Some(core) = self.handle.core() else {
            return Receipt::ready(Err(AppendError::Refused(Refusal::ReadOnly)));
        };
        let bytes = match check(expected, &commit) {
            Ok(bytes) => bytes,
            Err(reason) => {
                return Receipt::ready(Err(AppendError::Invalid { commit_id: commit.commit_id, reason }));
            }
        };
        let key = &core.library.index.key;
        let (reply, receipt) = Receipt::channel();
        let keys = key.hash.keys(commit.stream.as_str(), commit.commit_id.as_str(), *commit.episode_id.as_bytes());
        let pending = Pending {
            keys,
            // Asked here, so that callers do it side by side while the writer waits for the disk.
            absent_below: core.library.index.absent_below(&keys),
            expected: expected.0,
            last_version: commit.last_version().0,
            body_crc: key.body_crc(&bytes),
            stream: commit.stream,
            commit_id: commit.commit_id,
            commit: bytes,
            reply,
        };
        core.queue.push(&core.library.index, pending);
        receipt
    }

    fn read_stream(
        &self,
        stream: &StreamId,
        from: Version,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Recorded>, ReadError> {
        let library = self.library();
        let key = library.index.key.hash.stream(stream.as_str());
        let limit = limit.min(READ_LIMIT_MAX);
        let places = library.ask(|index| index.stream(key, from.0, direction, limit))?;
        let mut frames = library.frames();
        places.into_iter().map(|place| frames.read(place)).collect()
    }

    fn read_log(&self, from: Position, direction: Direction, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
        let library = self.library();
        let head = library.index.live.read().end.position - 1;
        let limit = limit.min(READ_LIMIT_MAX);
        match direction {
            Direction::Forward => read_forward(library, from.0.max(1), head, filter, limit),
            Direction::Backward => read_backward(library, from.0, head, filter, limit),
        }
    }

    fn read_episode(&self, episode: EpisodeId, limit: usize) -> Result<Vec<Recorded>, ReadError> {
        let library = self.library();
        let key = episode_key(*episode.as_bytes());
        let limit = limit.min(READ_LIMIT_MAX);
        let places = library.ask(|index| index.episode(key, limit))?;
        let mut frames = library.frames();
        places.into_iter().map(|place| frames.read(place)).collect()
    }

    fn find_commit(&self, stream: &StreamId, commit_id: &CommitId) -> Result<Option<Recorded>, ReadError> {
        let library = self.library();
        let hash = &library.index.key.hash;
        let key = hash.commit(hash.stream(stream.as_str()), commit_id.as_str());
        library.find(stream.as_str(), commit_id.as_str(), key)
    }

    fn head(&self, stream: &StreamId) -> Result<Version, ReadError> {
        let index = &self.library().index;
        let head = index.live.read().head(index.key.hash.stream(stream.as_str()));
        Ok(Version(head))
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.handle.head.clone()
    }

    fn watch_health(&self) -> watch::Receiver<Health> {
        self.handle.health.clone()
    }
}
