//! Appends on any node: one whose stream another node decides for is brought there.
//!
//! Invariants: an append that may have been written goes there again only under its commit id, so it is written once;
//! its caller is answered when its own node can show it. The parts are MessagePack with named fields, so that nodes of
//! neighbouring versions understand each other.

use std::{io, sync::Arc};

use actors_shell::{
    Placement,
    errand::{Attempt, Errand, bring, until_here},
    remote::NoReply,
};
use events_journal::{AppendError, Appended, EventLog, Outcome, Refusal};
use events_model::{
    Commit, CommitId, CommitView, DecodeError, EventId, EventRecord, Position, Principal, RegionId, Stored as _,
    StreamId, Version,
    application::{Command, Event, Expected},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::append::{Failure, append};

/// An append on its way; `stream` is what a node looks at first.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    stream: StreamId,
    #[serde(with = "serde_bytes")]
    commit: Vec<u8>,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Appended {
        position: u64,
        version: u64,
        duplicate: bool,
    },
    Conflict {
        actual: u64,
    },
    Invalid {
        reason: String,
    },
    /// Certainly not written; it may be tried again.
    Again,
    /// Perhaps written.
    Unknown,
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Plain data of our own: there is nothing in it that could not be written.
    rmp_serde::to_vec_named(value).unwrap_or_default()
}

/// Appends here or where the stream is decided.
///
/// # Errors
/// As `append`; `Unknown` or a refusal, if no node answered in time.
pub(crate) async fn append_anywhere(
    placement: Option<&dyn Placement>,
    log: &dyn EventLog,
    expected: Expected,
    commit: Commit,
) -> Result<Appended, Failure> {
    let Some(placement) = placement else { return append(log, expected, commit).await };
    let question = encode(&Question { stream: commit.stream.clone(), commit: commit.encode() });
    let stream = commit.stream.clone();
    let mut appending = Appending { log, expected, commit };
    match bring(placement, &stream, &question, &mut appending).await {
        Ok(result) => result,
        Err(NoReply::Late) => Err(Failure::Append(AppendError::Unknown(Arc::new(io::ErrorKind::TimedOut.into())))),
        Err(NoReply::Nobody) => Err(Failure::Append(AppendError::Refused(Refusal::Fenced))),
    }
}

/// An append that is made wherever its stream is decided.
struct Appending<'a> {
    log: &'a dyn EventLog,
    expected: Expected,
    commit: Commit,
}

impl Errand for Appending<'_> {
    type Answer = Result<Appended, Failure>;

    async fn here(&mut self) -> Attempt<Self::Answer> {
        match append(self.log, self.expected, self.commit.clone()).await {
            // It went to another node in this moment.
            Err(Failure::Append(AppendError::Refused(Refusal::Fenced))) => Attempt::Nothing,
            Err(Failure::Append(error)) if error.outcome() == Outcome::NotWritten => {
                Attempt::Refused(Err(Failure::Append(error)))
            }
            // What a former owner had taken in may be written yet.
            Err(Failure::Conflict { actual }) => Attempt::Denied(Err(Failure::Conflict { actual })),
            result => Attempt::Done(result),
        }
    }

    async fn replied(&mut self, reply: &[u8], deadline: Instant) -> Attempt<Self::Answer> {
        match rmp_serde::from_slice(reply).unwrap_or(Reply::Unknown) {
            Reply::Appended { position, version, duplicate } => {
                let position = Position(position);
                until_here(self.log, position, deadline).await;
                Attempt::Done(Ok(Appended { position, version: Version(version), duplicate }))
            }
            Reply::Conflict { actual } => Attempt::Denied(Err(Failure::Conflict { actual: Version(actual) })),
            Reply::Invalid { reason } => {
                let commit_id = self.commit.commit_id.clone();
                Attempt::Done(Err(Failure::Append(AppendError::Invalid { commit_id, reason })))
            }
            Reply::Again => Attempt::Nothing,
            Reply::Unknown => Attempt::Perhaps,
        }
    }
}

/// Answers an append that another node forwarded to this one. Bytes that are none are answered as not written.
pub(crate) async fn answer(log: &dyn EventLog, question: &[u8]) -> Vec<u8> {
    let Ok(question) = rmp_serde::from_slice::<Question>(question) else { return encode(&Reply::Again) };
    let (expected, commit) = match commit_of(&question) {
        Ok(commit) => commit,
        Err(error) => return encode(&Reply::Invalid { reason: error.to_string() }),
    };
    encode(&match append(log, expected, commit).await {
        Ok(Appended { position, version, duplicate }) => {
            Reply::Appended { position: position.0, version: version.0, duplicate }
        }
        Err(Failure::Conflict { actual }) => Reply::Conflict { actual: actual.0 },
        Err(Failure::Append(AppendError::Invalid { reason, .. })) => Reply::Invalid { reason },
        Err(Failure::Append(error)) if error.outcome() == Outcome::Unknown => Reply::Unknown,
        Err(Failure::Append(_) | Failure::Read(_)) => Reply::Again,
    })
}

/// The commit as its node built it.
fn commit_of(question: &Question) -> Result<(Expected, Commit), DecodeError> {
    let view = CommitView::parse(&question.commit)?;
    let value = |what: &'static str| move |_: events_model::id::Error| DecodeError::Value { what };
    let Command::Append { expected } = Command::from_payload(view.command)?;
    let event = |found: Result<events_model::EventView<'_>, DecodeError>| {
        let found = found?;
        let payload = Event::from_payload(found.payload)?.to_payload();
        Ok::<_, DecodeError>(EventRecord { event_id: EventId::from_bytes(found.event_id), payload })
    };
    let commit = Commit {
        commit_id: CommitId::new(view.commit_id).map_err(value("a commit id"))?,
        stream: question.stream.clone(),
        first_version: Version(view.first_version),
        command: Command::Append { expected }.to_payload(),
        events: view.events().map(event).collect::<Result<_, _>>()?,
        episode_id: view.episode(),
        causation_id: match view.causation_id {
            "" => None,
            text => Some(CommitId::new(text).map_err(value("a causation id"))?),
        },
        tenant: question.stream.tenant_id(),
        region: RegionId::new(view.region).map_err(value("a region"))?,
        epoch: view.epoch,
        principal: Principal::new(view.principal).map_err(value("a principal"))?,
        recorded_at: view.recorded_at(),
        traceparent: view.traceparent.to_owned(),
        decider_version: view.decider_version,
        key_id: view.key_id.to_owned(),
        context: view.context,
    };
    Ok((expected, commit))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use actors_shell::remote::Forwarded;
    use events_journal::MemoryLog;
    use events_model::{DecisionContext, EpisodeId, TimestampUs};

    use super::*;

    /// Another node with the same log, which loses its first replies.
    #[derive(Debug)]
    struct Other {
        log: Arc<MemoryLog>,
        lost: AtomicU32,
    }

    impl Placement for Other {
        fn epoch(&self, _stream: &StreamId) -> Option<u64> {
            None
        }

        fn forward<'a>(&'a self, stream: &'a StreamId, question: &'a [u8], _wait_max: Duration) -> Forwarded<'a> {
            Box::pin(async move {
                assert_eq!(actors_shell::remote::stream_of(question).as_ref(), Some(stream));
                let reply = answer(&*self.log, question).await;
                let is_lost = |left: u32| left.checked_sub(1);
                match self.lost.fetch_update(Ordering::AcqRel, Ordering::Acquire, is_lost) {
                    Ok(_) => Err(NoReply::Late),
                    Err(_) => Ok(reply),
                }
            })
        }
    }

    fn commit(id: &str, expected: Expected) -> Commit {
        let event = Event { kind: "a".to_owned(), content_type: "text/plain".to_owned(), data: vec![7; 9] };
        Commit {
            commit_id: CommitId::new(id).unwrap(),
            stream: StreamId::new("app/acme/a").unwrap(),
            first_version: Version(1),
            command: Command::Append { expected }.to_payload(),
            events: vec![EventRecord { event_id: EventId::from_bytes([1; 16]), payload: event.to_payload() }],
            episode_id: EpisodeId::from_bytes([2; 16]),
            causation_id: Some(CommitId::new("cause").unwrap()),
            tenant: StreamId::new("app/acme/a").unwrap().tenant_id(),
            region: RegionId::new("local").unwrap(),
            epoch: 1,
            principal: Principal::admin(),
            recorded_at: TimestampUs(17),
            traceparent: "00-1".to_owned(),
            decider_version: 1,
            key_id: String::new(),
            context: DecisionContext { seed: 3, ..DecisionContext::default() },
        }
    }

    #[tokio::test]
    async fn an_append_elsewhere_is_written_once_as_it_was_although_its_first_answers_are_lost() {
        let log = Arc::new(MemoryLog::default());
        let other = Other { log: Arc::clone(&log), lost: AtomicU32::new(2) };
        let first = commit("c1", Expected::None);
        let appended = append_anywhere(Some(&other), &*log, Expected::None, first.clone()).await.unwrap();
        assert_eq!((appended.version, appended.duplicate), (Version(1), true));
        let found = log.find_commit(&first.stream, &first.commit_id).unwrap().unwrap();
        assert_eq!(found.bytes, first.encode());
        let again = append_anywhere(Some(&other), &*log, Expected::Exact(Version(7)), {
            commit("c2", Expected::Exact(Version(7)))
        });
        assert!(matches!(again.await, Err(Failure::Conflict { actual: Version(1) })));
        let second = append_anywhere(Some(&other), &*log, Expected::Any, commit("c3", Expected::Any)).await.unwrap();
        assert_eq!((second.version, second.duplicate), (Version(2), false));
    }

    #[tokio::test]
    async fn what_is_no_append_is_answered_as_not_written() {
        let log = MemoryLog::default();
        let reply = answer(&log, b"nonsense").await;
        assert!(matches!(rmp_serde::from_slice(&reply), Ok(Reply::Again)));
        let question = Question { stream: StreamId::new("app/acme/a").unwrap(), commit: vec![1, 2, 3] };
        let reply = answer(&log, &encode(&question)).await;
        assert!(matches!(rmp_serde::from_slice(&reply), Ok(Reply::Invalid { .. })));
        assert_eq!(log.head_position(), Position::ZERO);
    }
}
