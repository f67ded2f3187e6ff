//! Consumer groups at work: one task for each group that somebody consumes.
//!
//! Invariants: what a group has settled are facts of its actor, recorded in batches; a task holds places and a bounded
//! number of deliveries, no history; it ends with its last consumer. At least once: what was acknowledged and not yet
//! recorded when the process dies (at most `SETTLED_PER_RECORD` events, or those of `RECORD_EVERY`) comes again.

mod record;
mod running;
mod waiting;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actors_core::group::{Group, Rejection};
use actors_shell::{Ask, Clock, Decided, Ids, Placement, Shell, Unavailable};
use events_journal::EventLog;
use events_model::{
    CommitId, DecisionContext, Position, Principal, StreamId,
    group::{Command, Place},
};
use parking_lot::Mutex;
use proto::events::v1 as pb;
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::running::Running;

/// Settled events after which they are recorded.
pub(crate) const SETTLED_PER_RECORD: usize = 512;
/// Longest time until a settled event is recorded.
pub(crate) const RECORD_EVERY: Duration = Duration::from_millis(100);
/// How far a group may look past events it does not want before that is recorded, positions.
pub(crate) const SCANNED_PER_RECORD: u64 = 10_000;
/// Pause after a record that failed.
pub(crate) const RECORD_RETRY: Duration = Duration::from_millis(500);
/// Most consumers of one group.
pub(crate) const CONSUMERS_MAX: usize = 64;
/// Deliveries that wait for one consumer's connection.
pub(crate) const QUEUE_LEN: usize = 16;
/// Messages that wait for one group.
const INBOX_LEN: usize = 1_024;

/// Why a group ends for its consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    /// The server shuts down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// This process does not decide for the group.
    #[error("another node decides for this group")]
    Elsewhere,
    /// There are as many consumers as there may be.
    #[error("a group has at most {CONSUMERS_MAX} consumers")]
    TooManyConsumers,
    /// The log or the group's state cannot be read; the log of this process says why.
    #[error("the group cannot go on")]
    Broken,
}

/// What goes to one consumer.
pub(crate) type Delivered = Result<pb::ConsumeResponse, Ended>;

/// Someone who consumes.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) deliveries: mpsc::Sender<Delivered>,
    /// Most deliveries without an answer.
    pub(crate) in_flight_max: usize,
    pub(crate) version: String,
}

/// What a group's task is told.
#[derive(Debug)]
pub(crate) enum Message {
    Join { id: u64, consumer: Consumer },
    Ack { places: Vec<Place> },
    Nack { place: Place, attempt: u32, reason: String },
    Leave { id: u64 },
}

/// The way to a group that somebody consumes.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    pub(crate) id: u64,
    pub(crate) inbox: mpsc::Sender<Message>,
    /// Told when a consumer's queue has room again.
    pub(crate) room: Arc<Notify>,
}

#[derive(Debug, Clone)]
struct Entry {
    inbox: mpsc::Sender<Message>,
    room: Arc<Notify>,
    checkpoint: Arc<AtomicU64>,
}

/// What groups are made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) actors: Shell<Group>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn Ids>,
    pub(crate) inputs: DecisionContext,
    /// Where groups are decided, and only there consumed; `None` = all of them here.
    pub(crate) placement: Option<Arc<dyn Placement>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) drain: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    active: Mutex<HashMap<StreamId, Entry>>,
    consumers: AtomicU64,
}

/// All groups. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    inner: Arc<Inner>,
}

/// Why a group's command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A rule of the group.
    #[error("the group refuses it")]
    Rejected(#[source] Rejection),
    /// No decision came.
    #[error("no decision came")]
    Unavailable(#[source] Unavailable),
}

impl Groups {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(Inner { parts, active: Mutex::default(), consumers: AtomicU64::new(0) }) }
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Has a group's actor decide.
    pub(crate) async fn ask(
        &self,
        group: &StreamId,
        command: Command,
        principal: Principal,
    ) -> Result<Decided<Group>, Failure> {
        let parts = self.parts();
        let episode_id = parts.ids.episode(parts.clock.now());
        let commit_id = CommitId::new(&format!("group/{episode_id}"));
        // Always a valid id: a UUID behind a short word.
        let commit_id = commit_id.map_err(|_| Failure::Unavailable(Unavailable::Restarted))?;
        let ask = Ask {
            command,
            commit_id,
            idempotent: false,
            episode_id,
            causation_id: None,
            principal,
            traceparent: String::new(),
            inputs: parts.inputs,
        };
        match parts.actors.actor(group).ask(ask).await {
            Ok(Ok(decided)) => Ok(decided),
            Ok(Err(rejected)) => Err(Failure::Rejected(rejected.rejection)),
            Err(unavailable) => Err(Failure::Unavailable(unavailable)),
        }
    }

    /// Whether this process decides for a group.
    pub(crate) fn is_here(&self, group: &StreamId) -> bool {
        self.parts().placement.as_ref().is_none_or(|placement| placement.is_here(group))
    }

    /// Joins a group as a consumer; the group's task starts with its first one.
    pub(crate) fn join(&self, group: &StreamId, consumer: Consumer) -> Result<Joined, Ended> {
        if !self.is_here(group) {
            return Err(Ended::Elsewhere);
        }
        let id = self.inner.consumers.fetch_add(1, Ordering::Relaxed);
        let mut active = self.inner.active.lock();
        // Under the lock: a task that ends looks into its inbox once more before it takes itself out.
        if self.parts().drain.is_cancelled() {
            return Err(Ended::ShuttingDown);
        }
        let entry = active.entry(group.clone()).or_insert_with(|| self.start(group));
        let joined = Joined { id, inbox: entry.inbox.clone(), room: Arc::clone(&entry.room) };
        let join = Message::Join { id, consumer };
        joined.inbox.try_send(join).map_err(|_| Ended::TooManyConsumers)?;
        Ok(joined)
    }

    /// How far a group is that somebody consumes; its recorded checkpoint is a little behind.
    pub(crate) fn checkpoint(&self, group: &StreamId) -> Option<Position> {
        self.inner.active.lock().get(group).map(|entry| Position(entry.checkpoint.load(Ordering::Acquire)))
    }

    fn start(&self, group: &StreamId) -> Entry {
        let (inbox, messages) = mpsc::channel(INBOX_LEN);
        let entry = Entry { inbox, room: Arc::default(), checkpoint: Arc::default() };
        let (groups, group, shared) = (self.clone(), group.clone(), entry.clone());
        self.parts().tasks.spawn(async move {
            let running = Running::new(groups, group, messages, shared.room, shared.checkpoint);
            running.run().await;
        });
        entry
    }

    /// Takes an ended task out, unless somebody has just joined it.
    fn leave(&self, group: &StreamId, inbox: &mut mpsc::Receiver<Message>) -> Option<Message> {
        let mut active = self.inner.active.lock();
        match inbox.try_recv() {
            Ok(message) => Some(message),
            Err(_) => {
                active.remove(group);
                None
            }
        }
    }
}
