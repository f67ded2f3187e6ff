//! What goes to an actor and what comes back.

use actors_core::Decider;
use events_journal::{AppendError, ReadError, Refusal};
use events_model::{CommitId, DecisionContext, DurationUs, EpisodeId, Position, Principal, TimestampUs, Version};

/// A command with all that is recorded beside it.
#[derive(Debug, Clone)]
pub struct Ask<C> {
    /// The wish.
    pub command: C,
    /// Idempotency key, unique in the stream.
    pub commit_id: CommitId,
    /// Whether the key may have been used before (it came from outside): then the log is searched first, and a
    /// repeated command answers with the events of the first.
    pub idempotent: bool,
    /// The episode it belongs to.
    pub episode_id: EpisodeId,
    /// The commit that caused it, if one did.
    pub causation_id: Option<CommitId>,
    /// Who asks.
    pub principal: Principal,
    /// W3C trace context; empty = none.
    pub traceparent: String,
    /// Seed and versions in force.
    pub inputs: DecisionContext,
}

/// An accepted command, durable.
#[derive(Debug, Clone)]
pub struct Decided<D: Decider> {
    /// The facts.
    pub events: Vec<D::Event>,
    /// What is to be done in the world now; empty for a duplicate, whose effects were run by the first.
    pub effects: Vec<D::Effect>,
    /// Where they lie.
    pub position: Position,
    /// Version of the last of them.
    pub version: Version,
    /// When they were recorded.
    pub recorded_at: TimestampUs,
    /// The state as it was right after them.
    pub view: D::View,
    /// The command had been accepted before under the same key.
    pub duplicate: bool,
}

/// A refused command.
#[derive(Debug, Clone)]
pub struct Rejected<D: Decider> {
    /// The rule it breaks.
    pub rejection: D::Rejection,
    /// The state it was refused in.
    pub view: D::View,
}

/// No answer: the command may be sent again (with the same key).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    /// The actor's mailbox is full.
    #[error("too many requests wait for this tenant")]
    Overloaded {
        /// When to try again.
        retry_after: DurationUs,
    },
    /// The commit could not be appended; `AppendError::outcome` says whether it may have been.
    #[error("the decision could not be recorded")]
    Aborted(#[source] AppendError),
    /// The log accepts nothing at the moment.
    #[error("the log accepts no commits")]
    Refusing(#[source] Refusal),
    /// The actor's state could not be loaded.
    #[error("load the state")]
    Storage(#[source] ReadError),
    /// The actor failed while it handled the command and was restarted from the log.
    #[error("the actor was restarted")]
    Restarted,
    /// The shell is shutting down.
    #[error("shutting down")]
    Closed,
    /// Another node decides for the stream, or none at the moment; certainly not decided.
    #[error("another node decides for this tenant")]
    Elsewhere,
    /// The node that decides was asked and did not answer; it may have been decided.
    #[error("the node that decides for this tenant did not answer")]
    Unreachable,
}
