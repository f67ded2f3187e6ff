//! The log in memory: the reference that every engine is compared with, and the log of tests above this crate.
//!
//! Invariants: one lock, so every answer is about one moment; appends are judged strictly in the order of their
//! calls. Nothing survives the value. Test hooks delay answers (`hold`), provoke failures (`fail_next`,
//! `fail_next_after_writing`) and refusals (`set_health`); they change nothing about the order.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
};

use bytes::Bytes;
use events_model::{Commit, CommitId, EpisodeId, Position, StreamId, Version};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::{
    entry::Entry,
    error::{AppendError, ReadError, Refusal},
    log::{
        APPEND_QUEUE_LEN_MAX, Appended, Direction, EventLog, Filter, Health, Page, READ_LIMIT_MAX, Receipt, Recorded,
    },
    replica::{Replica, unreadable},
    snapshot::{BLOB_BYTES_MAX, Blob, SnapshotStore},
};

/// Most commits one `read_log` looks at, passing or not.
pub const SCAN_LEN_MAX: usize = 16_384;

/// A log and a snapshot store in memory.
#[derive(Debug)]
pub struct MemoryLog {
    state: Mutex<State>,
    head: watch::Receiver<Position>,
    health: watch::Sender<Health>,
    blobs: Mutex<HashMap<BlobName, Blob>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum BlobName {
    Snapshot(StreamId),
    Checkpoint(String),
}

#[derive(Debug)]
struct State {
    commits: Vec<Stored>,
    streams: HashMap<StreamId, Stream>,
    episodes: HashMap<EpisodeId, Vec<usize>>,
    waiting: VecDeque<Waiting>,
    held: bool,
    failures: VecDeque<Failure>,
    /// Gone once the log is closed, which ends subscriptions.
    head: Option<watch::Sender<Position>>,
}

#[derive(Debug)]
struct Stored {
    recorded: Recorded,
    first: Version,
    last: Version,
}

#[derive(Debug, Default)]
struct Stream {
    commits: Vec<usize>,
    ids: HashMap<CommitId, usize>,
}

#[derive(Debug)]
enum Failure {
    BeforeWriting(AppendError),
    AfterWriting,
}

#[derive(Debug)]
struct Waiting {
    expected: Version,
    entry: Entry,
    bytes: Bytes,
    failure: Option<Failure>,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        let (sender, head) = watch::channel(Position(0));
        let state = State {
            commits: Vec::new(),
            streams: HashMap::new(),
            episodes: HashMap::new(),
            waiting: VecDeque::new(),
            held: false,
            failures: VecDeque::new(),
            head: Some(sender),
        };
        Self {
            state: Mutex::new(state),
            head,
            health: watch::Sender::new(Health::Accepting),
            blobs: Mutex::new(HashMap::new()),
        }
    }

    /// Leaves every further append waiting, unread and unanswered, until `release`.
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Judges and answers what waits, in order, and stops holding.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.held = false;
        state.work();
    }

    /// Appends that wait for `release`.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Answers the next append that is called and not yet planned for with this error and writes nothing; may be
    /// repeated. After an `Unknown`, all that waits behind it is refused, as after a disk that failed.
    pub fn fail_next(&self, error: AppendError) {
        self.state.lock().failures.push_back(Failure::BeforeWriting(error));
    }

    /// Writes the next append that is called and not yet planned for, and answers `Unknown` all the same.
    pub fn fail_next_after_writing(&self) {
        self.state.lock().failures.push_back(Failure::AfterWriting);
    }

    /// Refuses appends that are called from now on, or accepts them again. A closed log stays closed.
    pub fn set_health(&self, health: Health) {
        let state = self.state.lock();
        if state.head.is_some() {
            self.health.send_replace(health);
        }
    }

    /// Refuses what waits and all that comes, and ends subscriptions once they have read everything.
    pub fn close(&self) {
        let mut state = self.state.lock();
        self.health.send_replace(Health::Refusing(Refusal::Closed));
        state.refuse_waiting(&Refusal::Closed);
        state.head = None;
    }
}

impl State {
    fn work(&mut self) {
        while let Some(mut next) = self.waiting.pop_front() {
            let answer = match next.failure.take() {
                None => self.write(&next),
                Some(Failure::BeforeWriting(error)) => Err(error),
                Some(Failure::AfterWriting) => self.write(&next).and_then(|_| Err(unknown())),
            };
            let is_unknown = matches!(answer, Err(AppendError::Unknown(_)));
            // Whoever asked may have stopped listening; the append stands all the same.
            drop(next.answer.send(answer));
            if is_unknown {
                self.refuse_waiting(&Refusal::Disk("an earlier write has an unknown outcome".to_owned()));
            }
        }
    }

    fn refuse_waiting(&mut self, refusal: &Refusal) {
        for waiting in self.waiting.drain(..) {
            drop(waiting.answer.send(Err(AppendError::Refused(refusal.clone()))));
        }
    }

    fn write(&mut self, append: &Waiting) -> Result<Appended, AppendError> {
        let Waiting { expected, entry, bytes, .. } = append;
        let actual = self.version(&entry.stream);
        let known = self.streams.get(&entry.stream).and_then(|stream| stream.ids.get(&entry.commit_id));
        if let Some(first) = known.and_then(|index| self.commits.get(*index)) {
            return Ok(Appended { position: first.recorded.position, version: first.last, duplicate: true });
        }
        if actual != *expected {
            return Err(AppendError::Conflict { stream: entry.stream.clone(), expected: *expected, actual });
        }
        let index = self.commits.len();
        let position = Position(index as u64).next();
        let recorded = Recorded { position, bytes: bytes.clone() };
        self.commits.push(Stored { recorded, first: entry.first, last: entry.last() });
        let stream = self.streams.entry(entry.stream.clone()).or_default();
        stream.commits.push(index);
        stream.ids.insert(entry.commit_id.clone(), index);
        self.episodes.entry(entry.episode_id).or_default().push(index);
        if let Some(head) = &self.head {
            head.send_replace(position);
        }
        Ok(Appended { position, version: entry.last(), duplicate: false })
    }

    fn of_stream(&self, stream: &StreamId) -> impl DoubleEndedIterator<Item = &Stored> {
        self.streams
            .get(stream)
            .into_iter()
            .flat_map(|stream| &stream.commits)
            .filter_map(|index| self.commits.get(*index))
    }

    fn version(&self, stream: &StreamId) -> Version {
        self.of_stream(stream).next_back().map_or(Version(0), |stored| stored.last)
    }
}

fn unknown() -> AppendError {
    AppendError::Unknown(Arc::new(io::Error::other("a test asked for it")))
}

impl EventLog for MemoryLog {
    fn append(&self, expected: Version, commit: Commit) -> Receipt {
        let bytes = commit.encode();
        let entry = Entry::of(&commit);
        if let Some(reason) = entry.broken_rule(expected, bytes.len()) {
            return Receipt::ready(Err(AppendError::Invalid { commit_id: commit.commit_id, reason }));
        }
        self.push(expected, entry, bytes.into())
    }

    fn read_stream(
        &self,
        stream: &StreamId,
        from: Version,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Recorded>, ReadError> {
        let state = self.state.lock();
        let limit = limit.min(READ_LIMIT_MAX);
        let commits = state.of_stream(stream);
        Ok(match direction {
            Direction::Forward => {
                commits.filter(|commit| commit.last >= from).take(limit).map(|commit| commit.recorded.clone()).collect()
            }
            Direction::Backward => commits
                .rev()
                .filter(|commit| commit.first <= from)
                .take(limit)
                .map(|commit| commit.recorded.clone())
                .collect(),
        })
    }

    fn read_log(&self, from: Position, direction: Direction, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
        let state = self.state.lock();
        let limit = limit.min(READ_LIMIT_MAX);
        let head = state.commits.len() as u64;
        let mut next = match direction {
            Direction::Forward => from.max(Position(1)),
            Direction::Backward => from.min(Position(head)),
        };
        let mut commits = Vec::new();
        for _ in 0..SCAN_LEN_MAX {
            // Positions count from 1, so that position 0, the end of a backward read, has no index.
            let index = next.0.checked_sub(1).and_then(|index| usize::try_from(index).ok());
            let Some(stored) = index.and_then(|index| state.commits.get(index)) else { break };
            if commits.len() >= limit {
                break;
            }
            if filter.matches(&stored.recorded.view()?) {
                commits.push(stored.recorded.clone());
            }
            next = match direction {
                Direction::Forward => next.next(),
                Direction::Backward => next.minus(Position(1)),
            };
        }
        Ok(Page { commits, next })
    }

    fn read_episode(&self, episode: EpisodeId, limit: usize) -> Result<Vec<Recorded>, ReadError> {
        let state = self.state.lock();
        let indexes = state.episodes.get(&episode).into_iter().flatten().take(limit.min(READ_LIMIT_MAX));
        Ok(indexes.filter_map(|index| state.commits.get(*index)).map(|stored| stored.recorded.clone()).collect())
    }

    fn find_commit(&self, stream: &StreamId, commit_id: &CommitId) -> Result<Option<Recorded>, ReadError> {
        let state = self.state.lock();
        let index = state.streams.get(stream).and_then(|stream| stream.ids.get(commit_id));
        Ok(index.and_then(|index| state.commits.get(*index)).map(|stored| stored.recorded.clone()))
    }

    fn head(&self, stream: &StreamId) -> Result<Version, ReadError> {
        Ok(self.state.lock().version(stream))
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.head.clone()
    }

    fn watch_health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
}

impl Replica for MemoryLog {
    fn append_recorded(&self, bytes: Bytes) -> Receipt {
        match Entry::read(&bytes) {
            Ok(entry) => self.push(entry.expected(), entry, bytes),
            Err(reason) => unreadable(&bytes, reason),
        }
    }
}

impl MemoryLog {
    fn push(&self, expected: Version, entry: Entry, bytes: Bytes) -> Receipt {
        let mut state = self.state.lock();
        if let Health::Refusing(refusal) = &*self.health.borrow() {
            return Receipt::ready(Err(AppendError::Refused(refusal.clone())));
        }
        if state.waiting.len() >= APPEND_QUEUE_LEN_MAX {
            return Receipt::ready(Err(AppendError::Busy { waiting: state.waiting.len() }));
        }
        let (answer, receipt) = Receipt::channel();
        let failure = state.failures.pop_front();
        state.waiting.push_back(Waiting { expected, entry, bytes, failure, answer });
        if !state.held {
            state.work();
        }
        receipt
    }

    fn save(&self, name: BlobName, blob: Blob) -> Result<(), ReadError> {
        if blob.bytes.len() > BLOB_BYTES_MAX {
            let source = io::Error::new(io::ErrorKind::InvalidInput, format!("larger than {BLOB_BYTES_MAX} bytes"));
            return Err(ReadError::Io { what: format!("{name:?}"), source: Arc::new(source) });
        }
        self.blobs.lock().insert(name, blob);
        Ok(())
    }
}

impl SnapshotStore for MemoryLog {
    fn save_snapshot(&self, stream: &StreamId, version: Version, bytes: &[u8]) -> Result<(), ReadError> {
        self.save(BlobName::Snapshot(stream.clone()), Blob { at: version.0, bytes: bytes.to_vec() })
    }

    fn load_snapshot(&self, stream: &StreamId) -> Result<Option<Blob>, ReadError> {
        Ok(self.blobs.lock().get(&BlobName::Snapshot(stream.clone())).cloned())
    }

    fn save_checkpoint(&self, projection: &str, blob: &Blob) -> Result<(), ReadError> {
        self.save(BlobName::Checkpoint(projection.to_owned()), blob.clone())
    }

    fn load_checkpoint(&self, projection: &str) -> Result<Option<Blob>, ReadError> {
        Ok(self.blobs.lock().get(&BlobName::Checkpoint(projection.to_owned())).cloned())
    }
}
