//! Pure: what may happen. Deciders turn a command into events, fold events into state and name the effects that
//! follow; nothing here knows a clock, randomness, I/O, async or logging, so that replay gives the same for ever.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::float_cmp
    )
)]

pub mod calendar;
pub mod group;
pub mod invariant;
pub mod plan;
pub mod price;
pub mod region;
pub mod route;
pub mod saga;
pub mod tenant;

use std::fmt::{Debug, Display};

use events_model::{CommitId, DecisionContext, EpisodeId, Stored, TimestampUs};
use serde::{Serialize, de::DeserializeOwned};

/// What a decision may depend on besides state and command; recorded with the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Time of the decision.
    pub now: TimestampUs,
    /// Seed and the versions of policy, price book and routing table in force.
    pub inputs: DecisionContext,
}

/// A command an actor gives itself because time has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due<C> {
    /// Idempotency key.
    pub commit_id: CommitId,
    /// The episode it belongs to.
    pub episode_id: EpisodeId,
    /// What is to be done.
    pub command: C,
}

/// The rules of one kind of actor.
///
/// Laws, held by tests: `decide` and `evolve` are functions of their arguments alone; `evolve` is total, a logged
/// event cannot be refused; state is what folding the stream's events gives, nothing else.
pub trait Decider: Debug + Send + Sync + 'static {
    /// What the rules depend on.
    type State: Clone + Default + Debug + PartialEq + Send + Serialize + DeserializeOwned + 'static;
    /// A wish.
    type Command: Stored + Clone + Debug + Send + 'static;
    /// A fact.
    type Event: Stored + Clone + Debug + PartialEq + Send + Serialize + 'static;
    /// A broken rule: expected, not an error.
    type Rejection: Clone + Debug + Display + PartialEq + Send + Serialize + DeserializeOwned + 'static;
    /// A request to the world, as data.
    type Effect: Clone + Debug + PartialEq + Send + Serialize + DeserializeOwned + 'static;
    /// What a caller sees of the state besides the events.
    type View: Clone + Debug + Send + Serialize + DeserializeOwned + 'static;

    /// Version of the rules; raised whenever the same input can give other events.
    const VERSION: u32;

    /// Turns a command into the events it causes, at least one.
    ///
    /// # Errors
    /// The rule that the command breaks.
    fn decide(
        state: &Self::State,
        command: &Self::Command,
        context: &Context,
    ) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// Folds one event into the state.
    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;

    /// Lists the effects of an event that has just happened, given the state after it.
    fn react(state: &Self::State, event: &Self::Event) -> Vec<Self::Effect>;

    /// Shows the state to a caller.
    fn view(state: &Self::State, now: TimestampUs) -> Self::View;

    /// When something falls due, if anything does.
    fn next_deadline(_state: &Self::State) -> Option<TimestampUs> {
        None
    }

    /// What has fallen due, at most `limit`.
    fn due(_state: &Self::State, _now: TimestampUs, _limit: usize) -> Vec<Due<Self::Command>> {
        Vec::new()
    }

    /// The tag under which a rejection is counted and summed up once a second; `None` = not counted.
    fn refusal(_rejection: &Self::Rejection) -> Option<events_model::tenant::RefusalReason> {
        None
    }

    /// The command that records such a sum; `None` = this kind of actor records none.
    fn record_refusals(
        _reason: events_model::tenant::RefusalReason,
        _second: u64,
        _count: u64,
    ) -> Option<Self::Command> {
        None
    }
}

/// Folds events over a state.
pub fn fold<'a, D: Decider>(state: D::State, events: impl IntoIterator<Item = &'a D::Event>) -> D::State {
    events.into_iter().fold(state, D::evolve)
}
