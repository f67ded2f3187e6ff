//! The port `EventLog` and what goes through it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use events_model::{Commit, CommitId, CommitView, EpisodeId, Position, StreamId, TenantId, Version};
use tokio::sync::{oneshot, watch};

use crate::error::{AppendError, ReadError, Refusal};

/// Most commits one read returns.
pub const READ_LIMIT_MAX: usize = 10_000;
/// Most commits that may wait for the writer.
pub const APPEND_QUEUE_LEN_MAX: usize = 65_536;

/// Which way to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the head.
    Forward,
    /// Towards the start.
    Backward,
}

/// Which commits a reader of the log wants; the default wants all. Applied without decoding payloads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only commits of this tenant.
    pub tenant: Option<TenantId>,
    /// Only commits of streams of this kind: `tenant`, `saga`, `region`.
    pub stream_kind: Option<String>,
    /// Only commits with at least one event of one of these types (full protobuf names); empty = all.
    pub event_types: Vec<String>,
}

impl Filter {
    /// Whether a commit passes.
    pub fn matches(&self, commit: &CommitView<'_>) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == commit.tenant)
            && self.stream_kind.as_ref().is_none_or(|kind| commit.stream.split('/').next() == Some(kind.as_str()))
            && (self.event_types.is_empty()
                || commit
                    .events()
                    .flatten()
                    .any(|event| self.event_types.iter().any(|wanted| wanted == event.payload.kind)))
    }
}

/// A durable append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Where the commit lies.
    pub position: Position,
    /// Version of its last event.
    pub version: Version,
    /// The same commit id had been appended before; this is the first one's place, nothing was written.
    pub duplicate: bool,
}

/// A stored commit: its place and its bytes, checked against their checksum, not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Place in the log.
    pub position: Position,
    /// `freehold.log.v1.Commit`.
    pub bytes: Bytes,
}

impl Recorded {
    /// Reads the envelope.
    ///
    /// # Errors
    /// `Decode`: the bytes are intact but not a commit.
    pub fn view(&self) -> Result<CommitView<'_>, ReadError> {
        CommitView::parse(&self.bytes).map_err(|source| ReadError::Decode { position: self.position, source })
    }
}

/// Some commits of the log and where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Those that passed the filter, in the direction of the read.
    pub commits: Vec<Recorded>,
    /// Where the next read in the same direction begins; positions up to here have been looked at.
    /// Backward: `Position(0)` = the start was reached.
    pub next: Position,
}

/// The pending answer to an append; resolves when the commit is durable or has failed.
///
/// # Cancel safety
/// Dropping it does not undo the append; re-read to learn whether it happened.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Appended, AppendError>>);

impl Receipt {
    /// A receipt and the end that answers it.
    pub fn channel() -> (oneshot::Sender<Result<Appended, AppendError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// A receipt that is answered already.
    pub fn ready(answer: Result<Appended, AppendError>) -> Self {
        let (sender, receipt) = Self::channel();
        // The receiver is alive: it is the value that is returned.
        drop(sender.send(answer));
        receipt
    }

    /// Waits on a thread that may block (never inside a runtime).
    ///
    /// # Errors
    /// As `append`.
    pub fn wait(self) -> Result<Appended, AppendError> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(writer_gone()))
    }
}

fn writer_gone() -> AppendError {
    AppendError::Unknown(Arc::new(std::io::Error::other("the writer ended without an answer")))
}

impl Future for Receipt {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(writer_gone())))
    }
}

/// Whether the log accepts appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Accepting,
    /// It does not at the moment.
    Refusing(Refusal),
}

/// One region's log: a total order of commits, each in one stream.
///
/// Contract (`contract::run_all` holds every engine to it):
/// - an acknowledged append is durable and all or nothing; order in a stream = version order;
/// - `append` takes its place in the order when it is *called*, not when its receipt is awaited, so that an
///   actor may append again on top of what is not durable yet; if an append fails, every later one that was
///   built on it fails with `Conflict`. Streams in different shards of an engine that has shards take their places
///   independently of each other;
/// - a wrong expected version is `Conflict` and writes nothing; the same commit id in the same stream answers
///   the first one's place and writes nothing, whatever version is expected;
/// - every failure says `NotWritten` or `Unknown`; after an `Unknown` the engine re-reads its end before it
///   accepts more, and appends that came in between are `NotWritten`;
/// - reads see every acknowledged append at once; a torn tail is never served; damage is a loud error.
///
/// Reads are local and short (microseconds a commit): they block, and may be called from async code with small
/// limits; long scans belong on a blocking thread.
pub trait EventLog: Send + Sync + std::fmt::Debug + 'static {
    /// Appends one commit after `expected` (0 = the stream must not exist).
    ///
    /// Shape: 1..=`EVENTS_PER_COMMIT_MAX` events, at most `COMMIT_BYTES_MAX` bytes encoded,
    /// `commit.first_version == expected + 1`.
    fn append(&self, expected: Version, commit: Commit) -> Receipt;

    /// Reads commits of one stream that hold a version `>= from` (forward) or `<= from` (backward), at most
    /// `limit` (bounded by `READ_LIMIT_MAX`), in the direction's order.
    ///
    /// # Errors
    /// `Corrupt`, `Io`: nothing is skipped.
    fn read_stream(
        &self,
        stream: &StreamId,
        from: Version,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Recorded>, ReadError>;

    /// Reads commits from position `from`, inclusive, looking at no more than `limit` commits that pass
    /// and a bounded number that do not.
    ///
    /// # Errors
    /// `Corrupt`, `Decode`, `Io`: nothing is skipped.
    fn read_log(&self, from: Position, direction: Direction, filter: &Filter, limit: usize) -> Result<Page, ReadError>;

    /// Reads the commits of one episode in log order, at most `limit`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    fn read_episode(&self, episode: EpisodeId, limit: usize) -> Result<Vec<Recorded>, ReadError>;

    /// Finds a commit of a stream by its idempotency key.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    fn find_commit(&self, stream: &StreamId, commit_id: &CommitId) -> Result<Option<Recorded>, ReadError>;

    /// The version of a stream's last acknowledged event; 0 = there is no such stream.
    ///
    /// # Errors
    /// `Io`.
    fn head(&self, stream: &StreamId) -> Result<Version, ReadError>;

    /// Position of the last acknowledged commit, now and as it changes.
    fn watch_head(&self) -> watch::Receiver<Position>;

    /// Whether appends are accepted, now and as it changes.
    fn watch_health(&self) -> watch::Receiver<Health>;

    /// Position of the last acknowledged commit.
    fn head_position(&self) -> Position {
        *self.watch_head().borrow()
    }
}

/// A catch-up subscription: first what is there, then what comes, no gap, no duplicate. The reader pulls, so a
/// slow one costs no memory.
#[derive(Debug)]
pub struct Subscription {
    log: Arc<dyn EventLog>,
    head: watch::Receiver<Position>,
    next: Position,
    filter: Filter,
}

impl Subscription {
    /// Subscribes from a position, inclusive.
    pub fn new(log: Arc<dyn EventLog>, from: Position, filter: Filter) -> Self {
        let head = log.watch_head();
        Self { log, head, next: from.max(Position(1)), filter }
    }

    /// The next commits, at least one; waits for them. `None` = the log was closed.
    ///
    /// # Cancel safety
    /// Safe: nothing is consumed before it is returned.
    ///
    /// # Errors
    /// As `EventLog::read_log`.
    pub async fn next_page(&mut self, limit: usize) -> Result<Option<Page>, ReadError> {
        loop {
            if *self.head.borrow_and_update() >= self.next {
                let page = self.log.read_log(self.next, Direction::Forward, &self.filter, limit)?;
                self.next = page.next;
                if !page.commits.is_empty() {
                    return Ok(Some(page));
                }
            } else if self.head.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
