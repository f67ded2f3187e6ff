//! The acknowledger: one task beside each actor that answers callers, in order, when their commits are durable.
//!
//! It alone waits for the log, so the actor never does. When a commit fails it tells the actor, which drops its
//! state; whatever was decided on top of that state fails in the log as well and is answered as aborted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use actors_core::Decider;
use events_journal::{AppendError, EventLog, Receipt};
use events_model::{CommitId, Stored, StreamId, Version};
use tokio::sync::{mpsc, oneshot};

use crate::{
    ask::{Decided, Rejected, Unavailable},
    saver::{Place, Saver, Snapshot},
};

/// The answer to one ask.
pub(crate) type Answer<D> = Result<Result<Decided<D>, Rejected<D>>, Unavailable>;

/// Something to be done when all before it is durable.
pub(crate) enum Pending<D: Decider> {
    /// Answer a commit's caller; `None` = the actor asked itself.
    Commit {
        receipt: Receipt,
        commit_id: CommitId,
        decided: Box<Decided<D>>,
        reply: Option<oneshot::Sender<Answer<D>>>,
    },
    /// Save a snapshot of a state that is durable by then; without a place the actor ends, and it may wait for one.
    Snapshot { version: Version, bytes: Vec<u8>, place: Option<Place> },
    /// Answer a read, or a refusal that rests on what is not yet durable.
    Barrier(Box<dyn FnOnce(Result<(), Unavailable>) + Send>),
}

/// What the acknowledger works with.
pub(crate) struct Acknowledger<D: Decider> {
    pub(crate) stream: StreamId,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) saver: Saver,
    pub(crate) queue: mpsc::UnboundedReceiver<(u64, Pending<D>)>,
    /// How many commits are in flight, shared with the actor.
    pub(crate) in_flight: Arc<AtomicUsize>,
    /// Generations of the state below this are void, shared with the actor.
    pub(crate) voided: Arc<AtomicU64>,
    /// Tells the actor that a generation of its state is void.
    pub(crate) void: Box<dyn Fn(u64) + Send>,
}

impl<D: Decider> Acknowledger<D> {
    /// Runs until the actor is gone and everything pending is answered.
    pub(crate) async fn run(mut self) {
        let mut failed: Option<(u64, AppendError)> = None;
        while let Some((generation, pending)) = self.queue.recv().await {
            let void = failed.as_ref().filter(|(failed, _)| *failed == generation).map(|(_, error)| error.clone());
            match pending {
                Pending::Commit { receipt, commit_id, decided, reply } => {
                    let result = receipt.await;
                    if !result.as_ref().is_ok_and(|appended| !appended.duplicate) {
                        // Before the commit counts as ended: the actor must not trust its state in between.
                        self.voided.fetch_max(generation + 1, Ordering::AcqRel);
                    }
                    self.in_flight.fetch_sub(1, Ordering::AcqRel);
                    let answer = match result {
                        Ok(appended) if appended.duplicate => {
                            // The state holds events that were not written: it is void.
                            failed = Some((generation, duplicate_error()));
                            (self.void)(generation);
                            first_answer(self.log.as_ref(), &self.stream, &commit_id, *decided)
                        }
                        Ok(appended) => {
                            Ok(Ok(Decided { position: appended.position, version: appended.version, ..*decided }))
                        }
                        Err(error) => {
                            failed = Some((generation, error.clone()));
                            (self.void)(generation);
                            Err(Unavailable::Aborted(error))
                        }
                    };
                    // A caller that has gone away does not need its answer.
                    let _gone = reply.map(|reply| reply.send(answer));
                }
                Pending::Snapshot { version, bytes, place } if void.is_none() => {
                    let snapshot = Snapshot { stream: self.stream.clone(), version, bytes };
                    match place {
                        Some(place) => place.save(snapshot),
                        None => self.saver.hand_over(snapshot).await,
                    }
                }
                Pending::Snapshot { .. } => {}
                Pending::Barrier(then) => then(void.map_or(Ok(()), |error| Err(Unavailable::Aborted(error)))),
            }
        }
    }
}

fn duplicate_error() -> AppendError {
    AppendError::Refused(events_journal::Refusal::Disk("the state was decided on a repeated command".to_owned()))
}

/// The answer that the first command under a key got.
pub(crate) fn first_answer<D: Decider>(
    log: &dyn EventLog,
    stream: &StreamId,
    commit_id: &CommitId,
    decided: Decided<D>,
) -> Answer<D> {
    let found = log.find_commit(stream, commit_id).map_err(Unavailable::Storage)?;
    let Some(recorded) = found else { return Err(Unavailable::Restarted) };
    let commit = recorded.view().map_err(Unavailable::Storage)?;
    let undecodable =
        |source| Unavailable::Storage(events_journal::ReadError::Decode { position: recorded.position, source });
    let events = commit
        .events()
        .map(|event| D::Event::from_payload(event.map_err(undecodable)?.payload).map_err(undecodable))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Ok(Decided {
        events,
        effects: Vec::new(),
        position: recorded.position,
        version: commit.last_version(),
        recorded_at: commit.recorded_at(),
        view: decided.view,
        duplicate: true,
    }))
}
