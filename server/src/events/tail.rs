//! A subscription: what is there, then what comes, pulled by its reader.
//!
//! Invariants: no gap, no duplicate; at most `PAGE_BYTES` of commits and one page of the log are held; the log is read
//! only when the reader asks for more.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use events_journal::{Direction, EventLog, ReadError};
use events_model::Position;
use futures::FutureExt as _;
use proto::events::v1 as pb;
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{convert, select::Selection};

/// How often a reader is told how far it is while nothing passes its filter.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Bytes of commits that a page is meant to hold; its length follows what the last ones measured.
const PAGE_BYTES: usize = 1024 * 1024;
/// Most commits on a page.
const PAGE_LEN_MAX: usize = 256;
/// Commits on the first page.
const PAGE_LEN_FIRST: usize = 16;

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A commit with its wanted events.
    Commit(Box<pb::Commit>),
    /// All up to here has been told or does not pass.
    CaughtUp(Position),
    /// The log was closed.
    Closed,
}

/// Why a subscription broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The log cannot be read.
    #[error("read the log")]
    Read(#[source] ReadError),
    /// The reading thread panicked.
    #[error("the reading thread ended")]
    Task(#[source] JoinError),
}

/// A place in the log that moves with its reader.
#[derive(Debug)]
pub(crate) struct Tail {
    log: Arc<dyn EventLog>,
    head: watch::Receiver<Position>,
    selection: Arc<Selection>,
    next: Position,
    ready: VecDeque<pb::Commit>,
    page_len: usize,
    told: Position,
    was_caught_up: bool,
    timer: Interval,
}

impl Tail {
    /// Subscribes from a position, inclusive.
    pub(crate) fn new(log: Arc<dyn EventLog>, from: Position, selection: Selection) -> Self {
        let mut timer = interval(PROGRESS_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer.reset();
        let next = from.max(Position(1));
        Self {
            head: log.watch_head(),
            log,
            selection: Arc::new(selection),
            next,
            ready: VecDeque::new(),
            page_len: PAGE_LEN_FIRST,
            told: Position(next.0.saturating_sub(1)),
            was_caught_up: false,
            timer,
        }
    }

    /// What comes next; waits for it.
    ///
    /// # Cancel safety
    /// Not safe while a page is read: what was read may be lost. Give the whole tail up then.
    ///
    /// # Errors
    /// The log cannot be read; nothing is skipped.
    pub(crate) async fn step(&mut self) -> Result<Step, Failure> {
        loop {
            if let Some(commit) = self.ready.pop_front() {
                self.told = Position(commit.position);
                return Ok(Step::Commit(Box::new(commit)));
            }
            let reached = Position(self.next.0.saturating_sub(1));
            if *self.head.borrow_and_update() >= self.next {
                if reached > self.told && self.timer.tick().now_or_never().is_some() {
                    return Ok(self.tell(reached));
                }
                self.read_page().await?;
            } else if !self.was_caught_up {
                self.was_caught_up = true;
                return Ok(self.tell(reached));
            } else {
                tokio::select! {
                    changed = self.head.changed() => {
                        if changed.is_err() {
                            return Ok(Step::Closed);
                        }
                    }
                    _ = self.timer.tick(), if reached > self.told => return Ok(self.tell(reached)),
                }
            }
        }
    }

    const fn tell(&mut self, reached: Position) -> Step {
        self.told = reached;
        Step::CaughtUp(reached)
    }

    async fn read_page(&mut self) -> Result<(), Failure> {
        let (log, selection) = (Arc::clone(&self.log), Arc::clone(&self.selection));
        let (next, limit) = (self.next, self.page_len);
        let read = move || {
            let page = log.read_log(next, Direction::Forward, selection.log(), limit)?;
            let bytes = page.commits.iter().map(|commit| commit.bytes.len()).sum::<usize>();
            let mut wanted = VecDeque::with_capacity(page.commits.len());
            for recorded in &page.commits {
                wanted.extend(convert::whole(recorded, &selection)?);
            }
            Ok((page.next, page.commits.len(), bytes, wanted))
        };
        let (next, len, bytes, wanted) = spawn_blocking(read).await.map_err(Failure::Task)?.map_err(Failure::Read)?;
        let each = bytes.checked_div(len).unwrap_or(0).max(1);
        self.page_len = PAGE_BYTES.checked_div(each).unwrap_or(1).clamp(1, PAGE_LEN_MAX);
        (self.next, self.ready) = (next, wanted);
        Ok(())
    }
}
