//! Commands for streams that another node decides for: what goes to that node and what comes back.
//!
//! Invariants: a command is decided only by the node that `Placement` names at that moment; one that may have been
//! decided already goes there again only under its idempotency key, so it has one effect whatever was lost on the way;
//! the caller is answered when its own node can show the decision, too.
//!
//! The parts are MessagePack with named fields, so that nodes of neighbouring versions understand each other: an
//! unknown field is ignored, a missing one has its default. Commands and events travel in their stored forms.

use std::{fmt::Debug, pin::Pin, time::Duration};

use actors_core::Decider;
use events_journal::{AppendError, Outcome, Refusal};
use events_model::{
    CommitId, DecisionContext, DurationUs, EpisodeId, PayloadView, Position, Principal, Stored, StreamId, TimestampUs,
    Version,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    acknowledge::Answer,
    ask::{Ask, Decided, Rejected, Unavailable},
    errand::{Attempt, Errand, bring, until_here},
    shell::{Handle, Shell},
};

/// What another node says.
pub type Forwarded<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, NoReply>> + Send + 'a>>;

/// Where streams are decided, and the way there. Without one, everything is decided here.
pub trait Placement: Debug + Send + Sync + 'static {
    /// Tells one time in which this process decides for the stream from all others, if it does at this moment: between
    /// two of them others may have decided, or nobody. Asked before every decision, so it must be cheap.
    fn epoch(&self, stream: &StreamId) -> Option<u64>;

    /// Whether this process decides for the stream at this moment.
    fn is_here(&self, stream: &StreamId) -> bool {
        self.epoch(stream).is_some()
    }

    /// Brings a question to the node that decides for the stream, and its reply back.
    fn forward<'a>(&'a self, stream: &'a StreamId, question: &'a [u8], wait_max: Duration) -> Forwarded<'a>;
}

/// Why there is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoReply {
    /// The question certainly did not reach a node that could decide.
    #[error("no node decides for it at the moment")]
    Nobody,
    /// It may have been decided.
    #[error("the deciding node did not answer in time")]
    Late,
}

/// A command on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    stream: StreamId,
    kind: String,
    schema_version: u32,
    #[serde(with = "serde_bytes")]
    command: Vec<u8>,
    commit_id: CommitId,
    episode_id: EpisodeId,
    causation_id: Option<CommitId>,
    principal: Principal,
    traceparent: String,
    seed: u64,
    policy_version: u32,
    price_book_version: u32,
    routing_version: u32,
}

/// The stream that a question is about; decides which shell answers it.
///
/// # Errors
/// `None`: the bytes are not a question.
pub fn stream_of(question: &[u8]) -> Option<StreamId> {
    #[derive(Deserialize)]
    struct Head {
        stream: StreamId,
    }
    rmp_serde::from_slice::<Head>(question).ok().map(|head| head.stream)
}

#[derive(Debug, Serialize, Deserialize)]
struct Fact {
    kind: String,
    schema_version: u32,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
enum Reply<D: Decider> {
    Accepted {
        events: Vec<Fact>,
        effects: Vec<D::Effect>,
        position: u64,
        version: u64,
        recorded_at: TimestampUs,
        view: D::View,
        duplicate: bool,
    },
    Rejected {
        rejection: D::Rejection,
        view: D::View,
    },
    /// Not decided here, and not decided at all.
    Elsewhere,
    /// Not decided; try again after this.
    Busy {
        retry_after: DurationUs,
    },
    /// It may have been decided.
    Unknown,
}

impl<D: Decider> Reply<D> {
    fn of(answer: Answer<D>) -> Self {
        match answer {
            Ok(Ok(decided)) => Self::Accepted {
                events: decided.events.iter().map(fact).collect(),
                effects: decided.effects,
                position: decided.position.0,
                version: decided.version.0,
                recorded_at: decided.recorded_at,
                view: decided.view,
                duplicate: decided.duplicate,
            },
            Ok(Err(rejected)) => Self::Rejected { rejection: rejected.rejection, view: rejected.view },
            Err(Unavailable::Aborted(error)) if error.outcome() == Outcome::Unknown => Self::Unknown,
            Err(Unavailable::Restarted | Unavailable::Unreachable) => Self::Unknown,
            Err(Unavailable::Overloaded { retry_after }) => Self::Busy { retry_after },
            // It was not decided, and may be by whoever is asked next: a node whose log refuses gives its streams away.
            Err(
                Unavailable::Aborted(_)
                | Unavailable::Refusing(_)
                | Unavailable::Storage(_)
                | Unavailable::Elsewhere
                | Unavailable::Closed,
            ) => Self::Elsewhere,
        }
    }
}

fn fact<E: Stored>(event: &E) -> Fact {
    let payload = event.to_payload();
    Fact { kind: payload.kind.to_owned(), schema_version: payload.schema_version, bytes: payload.bytes }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Plain data of our own: there is nothing in it that could not be written.
    rmp_serde::to_vec_named(value).unwrap_or_default()
}

fn question<D: Decider>(stream: &StreamId, ask: &Ask<D::Command>) -> Vec<u8> {
    let command = ask.command.to_payload();
    encode(&Question {
        stream: stream.clone(),
        kind: command.kind.to_owned(),
        schema_version: command.schema_version,
        command: command.bytes,
        commit_id: ask.commit_id.clone(),
        episode_id: ask.episode_id,
        causation_id: ask.causation_id.clone(),
        principal: ask.principal.clone(),
        traceparent: ask.traceparent.clone(),
        seed: ask.inputs.seed,
        policy_version: ask.inputs.policy_version,
        price_book_version: ask.inputs.price_book_version,
        routing_version: ask.inputs.routing_version,
    })
}

impl<D: Decider> Shell<D> {
    /// Answers a question that another node forwarded to this one. Bytes that are no question of this kind of actor
    /// are answered as not decided.
    pub async fn answer(&self, question: &[u8]) -> Vec<u8> {
        let Ok(question) = rmp_serde::from_slice::<Question>(question) else {
            return encode(&Reply::<D>::Elsewhere);
        };
        let payload =
            PayloadView { kind: &question.kind, schema_version: question.schema_version, bytes: &question.command };
        let Ok(command) = D::Command::from_payload(payload) else {
            return encode(&Reply::<D>::Elsewhere);
        };
        let ask = Ask {
            command,
            commit_id: question.commit_id,
            // It may be here for the second time.
            idempotent: true,
            episode_id: question.episode_id,
            causation_id: question.causation_id,
            principal: question.principal,
            traceparent: question.traceparent,
            inputs: DecisionContext {
                seed: question.seed,
                policy_version: question.policy_version,
                price_book_version: question.price_book_version,
                routing_version: question.routing_version,
            },
        };
        encode(&Reply::<D>::of(self.actor(&question.stream).ask_here(ask).await))
    }
}

/// A command that is asked for wherever it is decided.
struct Asking<'a, D: Decider> {
    handle: &'a Handle<D>,
    ask: Ask<D::Command>,
}

impl<D: Decider> Handle<D> {
    /// Brings a command to the node that decides, again and again until it is answered or the time is up.
    pub(crate) async fn ask_elsewhere(&self, placement: &dyn Placement, ask: Ask<D::Command>) -> Answer<D> {
        let question = question::<D>(self.stream(), &ask);
        // Another node may have decided it before it comes here.
        let mut asking = Asking { handle: self, ask: Ask { idempotent: true, ..ask } };
        match bring(placement, self.stream(), &question, &mut asking).await {
            Ok(answer) => answer,
            Err(NoReply::Nobody) => Err(Unavailable::Elsewhere),
            Err(NoReply::Late) => Err(Unavailable::Unreachable),
        }
    }
}

impl<D: Decider> Errand for Asking<'_, D> {
    type Answer = Answer<D>;

    async fn here(&mut self) -> Attempt<Answer<D>> {
        match self.handle.ask_here(self.ask.clone()).await {
            Err(Unavailable::Elsewhere | Unavailable::Aborted(AppendError::Refused(Refusal::Fenced))) => {
                Attempt::Nothing
            }
            Ok(Ok(decided)) => Attempt::Done(Ok(Ok(decided))),
            // A former owner that had decided it, and stood still, may publish that yet.
            Ok(Err(rejected)) => Attempt::Denied(Ok(Err(rejected))),
            Err(unavailable) => Attempt::Refused(Err(unavailable)),
        }
    }

    async fn replied(&mut self, reply: &[u8], deadline: Instant) -> Attempt<Answer<D>> {
        match rmp_serde::from_slice::<Reply<D>>(reply) {
            Ok(Reply::Accepted { events, effects, position, version, recorded_at, view, duplicate }) => {
                let read = |fact: &Fact| {
                    let (kind, bytes) = (fact.kind.as_str(), fact.bytes.as_slice());
                    D::Event::from_payload(PayloadView { kind, schema_version: fact.schema_version, bytes })
                };
                let Ok(events) = events.iter().map(read).collect::<Result<Vec<_>, _>>() else {
                    // A newer node's facts: decided, but not to be understood here.
                    return Attempt::Done(Err(Unavailable::Unreachable));
                };
                let (position, version) = (Position(position), Version(version));
                until_here(self.handle.log(), position, deadline).await;
                Attempt::Done(Ok(Ok(Decided { events, effects, position, version, recorded_at, view, duplicate })))
            }
            Ok(Reply::Rejected { rejection, view }) => Attempt::Denied(Ok(Err(Rejected { rejection, view }))),
            Ok(Reply::Elsewhere) => Attempt::Nothing,
            Ok(Reply::Busy { retry_after }) => Attempt::Refused(Err(Unavailable::Overloaded { retry_after })),
            Ok(Reply::Unknown) | Err(_) => Attempt::Perhaps,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use actors_core::tenant::Tenant;

    use super::*;

    #[test]
    fn only_what_may_have_been_decided_is_answered_as_perhaps() {
        let reply = |unavailable| Reply::<Tenant>::of(Err(unavailable));
        let full = || Refusal::DiskFull;
        for not_decided in [
            Unavailable::Refusing(full()),
            Unavailable::Aborted(AppendError::Refused(full())),
            Unavailable::Storage(events_journal::ReadError::Io {
                what: "a commit".to_owned(),
                source: Arc::new(io::Error::other("the disk failed")),
            }),
            Unavailable::Closed,
        ] {
            assert!(matches!(reply(not_decided.clone()), Reply::Elsewhere), "{not_decided:?}");
        }
        let unknown = AppendError::Unknown(Arc::new(io::Error::other("the line was cut")));
        for perhaps in [Unavailable::Aborted(unknown), Unavailable::Restarted, Unavailable::Unreachable] {
            assert!(matches!(reply(perhaps.clone()), Reply::Unknown), "{perhaps:?}");
        }
    }
}
