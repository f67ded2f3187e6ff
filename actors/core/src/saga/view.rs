//! What callers see of a saga.

use events_model::{
    NanoUsd, TimestampUs,
    saga::{Json, StepPath},
};
use serde::{Deserialize, Serialize};

use super::{
    evolve::path_at,
    state::{Current, Phase, State},
};

/// Most present steps in a view.
pub const STEPS_SHOWN_MAX: usize = 100;

/// A saga as its owner sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// `running`, `unwinding`, `needs_operator`, `completed`, `failed`, `compensated` or `cancelled`.
    pub state: String,
    /// The definition's name.
    pub definition: String,
    /// Its version.
    pub definition_version: u32,
    /// When it began.
    pub started_at: TimestampUs,
    /// When something last happened.
    pub changed_at: TimestampUs,
    /// When it is cut.
    pub deadline: TimestampUs,
    /// What it may spend.
    pub budget: NanoUsd,
    /// What it has spent.
    pub cost: NanoUsd,
    /// What attempts in flight may spend.
    pub reserved: NanoUsd,
    /// Steps begun.
    pub steps: u32,
    /// Levels of degrading that hold.
    pub level: u32,
    /// What it does at present, at most `STEPS_SHOWN_MAX`.
    pub current: Vec<CurrentStep>,
    /// Steps that are undone.
    pub compensated: Vec<StepPath>,
    /// Steps that could be, or are still to be, undone; in the order in which they would.
    pub compensable: Vec<StepPath>,
    /// What came of it.
    pub output: Option<Json>,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// A step at present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentStep {
    /// Its path.
    pub path: StepPath,
    /// `running`, `retrying`, `waiting`, `waiting for others` or `waiting for <signal>`.
    pub doing: String,
    /// Which attempt.
    pub attempt: u32,
    /// Until when at the latest.
    pub until: TimestampUs,
}

/// Why a saga failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step, if it was one.
    pub path: StepPath,
    /// A word for it.
    pub kind: String,
    /// What was said.
    pub message: String,
}

/// Shows a state.
pub(super) fn view(state: &State) -> View {
    let definition = state.definition();
    let mut view = View {
        state: state.phase.name().to_owned(),
        definition: definition.map(|read| read.name.clone()).unwrap_or_default(),
        definition_version: definition.map(|read| read.version).unwrap_or_default(),
        started_at: state.started_at,
        changed_at: state.changed_at,
        deadline: state.deadline,
        budget: state.budget,
        cost: state.spent,
        reserved: state.reserved,
        steps: state.steps,
        level: state.level,
        current: current(state),
        compensated: state.compensated.clone(),
        compensable: state.done.iter().rev().map(|done| done.path.clone()).collect(),
        output: None,
        error: None,
    };
    let failure = |path: &StepPath, kind: &str, message: &str| {
        Some(Failure { path: path.clone(), kind: kind.to_owned(), message: message.to_owned() })
    };
    match &state.phase {
        Phase::New | Phase::Running => {}
        Phase::Unwinding { path, kind, message, .. } | Phase::NeedsOperator { path, kind, message, .. } => {
            view.error = failure(path, kind, message);
        }
        Phase::Completed { output } => view.output = Some(output.clone()),
        Phase::Failed { kind, message } | Phase::Unwound { kind, message } => {
            view.error = failure(&StepPath::default(), kind, message);
        }
        Phase::Cancelled { reason } => view.error = failure(&StepPath::default(), "cancelled", reason),
    }
    view
}

fn current(state: &State) -> Vec<CurrentStep> {
    let running = state.attempts.iter().map(|(path, flying)| CurrentStep {
        path: path.clone(),
        doing: "running".to_owned(),
        attempt: flying.attempt,
        until: flying.deadline,
    });
    let waiting = state.frames.iter().filter_map(|(key, frame)| {
        let path = path_at(state, key, frame)?;
        let (doing, attempt, until) = match &frame.current {
            Current::Backoff { attempt, until } => ("retrying".to_owned(), *attempt, *until),
            Current::Waiting { signal, until } if signal.is_empty() => ("waiting".to_owned(), 0, *until),
            Current::Waiting { signal, until } => (format!("waiting for {signal}"), 0, *until),
            Current::Held { attempt } => ("waiting for others".to_owned(), *attempt, state.deadline),
            Current::Idle | Current::Running | Current::Branches { .. } | Current::Items { .. } => return None,
        };
        Some(CurrentStep { path, doing, attempt, until })
    });
    running.chain(waiting).take(STEPS_SHOWN_MAX).collect()
}
