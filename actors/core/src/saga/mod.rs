//! The rules of a saga: steps in order, in parallel, by choice and for each item, their attempts, waits and signals,
//! what undoes them, and the limits that end it.
//!
//! Invariants: a decision depends on the saga's own stream alone (the definition and the prices are in `Started`);
//! `spent + reserved <= budget`; no step begins after the end or while it is undone; a step that was done, or may have
//! been, is undone at most once, in the reverse order, or an operator is asked. Deliberately absent: running effects,
//! timers and the registry of definitions, which are the shell's.

pub mod check;
mod compensate;
pub mod definition;
mod draft;
mod evolve;
pub mod expression;
mod limits;
mod meter;
mod migrate;
mod parse;
mod reader;
mod ready;
mod render;
pub mod request;
pub mod simulate;
pub mod start;
pub mod state;
mod steps;
pub mod template;
pub mod tree;
pub mod view;

use events_model::{
    EpisodeId, NanoUsd, TimestampUs,
    saga::{Cause, Command, Event, Json, StepPath},
};
use serde::{Deserialize, Serialize};

pub use self::{
    check::cycle,
    compensate::PATHS_SHOWN_MAX,
    draft::{BYTES_MAX, COMMAND_BYTES_MAX, EVENTS_MAX, TIMEOUT_DEFAULT},
    evolve::{TIMEOUT, UNREADABLE},
    parse::{FORM, load, parse},
    render::{EXPRESSION, MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX},
    request::{Effect, Request},
    state::{Phase, State},
    view::View,
};
use self::{
    definition::Kind,
    draft::Draft,
    render::cut,
    state::{OUTPUT_BYTES_MAX, SIGNALS_BYTES_MAX, SIGNALS_LEN_MAX, compensated_step, compensation_path},
};
use crate::{Context, Decider, Due};

/// The rules.
#[derive(Debug)]
pub struct Saga;

/// Longest reason, bytes.
pub const REASON_BYTES_MAX: usize = 2_000;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// It runs, or has run.
    #[error("the saga has been started already")]
    Exists,
    /// There is none.
    #[error("the saga does not exist")]
    NotStarted,
    /// It is over.
    #[error("the saga has ended")]
    Ended,
    /// It is being undone.
    #[error("the saga is not running")]
    NotRunning,
    /// A field is not what it must be.
    #[error("{0}")]
    Invalid(String),
    /// The definition cannot be read.
    #[error("the definition: {0}")]
    Definition(String),
    /// The input does not fit the definition.
    #[error("{0}")]
    Input(String),
    /// A model has no price.
    #[error("the model {0} has no price")]
    NoPrice(String),
    /// There is no such step.
    #[error("there is no step {0}")]
    NoSuchStep(String),
    /// A step is neither stuck nor waiting for its next attempt.
    #[error("the step {0} can be neither retried nor skipped")]
    NotStuck(String),
    /// Nothing is due.
    #[error("nothing is due")]
    NothingDue,
    /// Too many signals wait, or too much has been kept.
    #[error("at most {SIGNALS_LEN_MAX} signals of {SIGNALS_BYTES_MAX} bytes are kept, besides the outcomes of steps")]
    TooManySignals,
    /// A step has no place in the new version.
    #[error("the step {0} has no place in that version")]
    NoPlace(String),
}

impl Decider for Saga {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Effect = Effect;
    type View = View;

    const VERSION: u32 = 1;

    fn decide(state: &State, command: &Command, context: &Context) -> Result<Vec<Event>, Rejection> {
        let mut draft = Draft::new(state, command, context.now);
        if draft.is_too_large() {
            return Err(Rejection::Invalid(format!("a command has at most {COMMAND_BYTES_MAX} bytes")));
        }
        if let Command::Start(start) = command {
            if !matches!(state.phase, Phase::New) {
                return Err(Rejection::Exists);
            }
            draft.push(start::start(start, context)?);
        } else {
            if matches!(state.phase, Phase::New) {
                return Err(Rejection::NotStarted);
            }
            apply(&mut draft, command)?;
        }
        draft.advance();
        Ok(draft.events)
    }

    fn evolve(state: State, event: &Event) -> State {
        state.evolve(event)
    }

    fn react(state: &State, event: &Event) -> Vec<Effect> {
        match event {
            Event::StepStarted { path, attempt, request, deadline, .. } => {
                effect(state, path, *attempt, request, *deadline).into_iter().collect()
            }
            Event::CompensationStarted { path, attempt, request, deadline, .. } => {
                effect(state, &compensation_path(path), *attempt, request, *deadline).into_iter().collect()
            }
            Event::ChildCancelled { child, reason, .. } => {
                vec![Effect::CancelChild { stream: child.clone(), reason: reason.clone() }]
            }
            Event::Completed { .. } | Event::Failed { .. } | Event::Unwound { .. } | Event::Cancelled { .. } => {
                told_parent(state).into_iter().collect()
            }
            Event::Started { .. }
            | Event::StepHeld { .. }
            | Event::StepSucceeded { .. }
            | Event::StepSkipped { .. }
            | Event::AttemptFailed { .. }
            | Event::StepFailed { .. }
            | Event::WaitStarted { .. }
            | Event::WaitEnded { .. }
            | Event::SignalReceived { .. }
            | Event::SignalConsumed { .. }
            | Event::BranchesStarted { .. }
            | Event::ItemsFound { .. }
            | Event::ItemStarted { .. }
            | Event::BranchEnded { .. }
            | Event::Degraded { .. }
            | Event::LoopCut { .. }
            | Event::UnwindingStarted { .. }
            | Event::StepCompensated { .. }
            | Event::CompensationFailed { .. }
            | Event::CompensationSkipped { .. }
            | Event::OperatorNeeded { .. }
            | Event::StepRetried { .. }
            | Event::OutcomeIgnored { .. }
            | Event::Migrated { .. } => Vec::new(),
        }
    }

    fn view(state: &State, _now: TimestampUs) -> View {
        view::view(state)
    }

    fn next_deadline(state: &State) -> Option<TimestampUs> {
        match state.phase {
            Phase::Running => state.next_running(),
            Phase::Unwinding { .. } => {
                let left_over = state.dropped_child().map(|_| state.changed_at);
                state.timeouts().chain(compensate::resumes_at(state)).chain(left_over).min()
            }
            Phase::New
            | Phase::NeedsOperator { .. }
            | Phase::Completed { .. }
            | Phase::Failed { .. }
            | Phase::Unwound { .. }
            | Phase::Cancelled { .. } => None,
        }
    }

    fn due(state: &State, now: TimestampUs, limit: usize) -> Vec<Due<Command>> {
        let due = Self::next_deadline(state).is_some_and(|deadline| deadline <= now);
        // The version is another after each wake, so that each has a commit id of its own.
        let commit_id = events_model::CommitId::new(&format!("wake/{}", state.version)).ok().filter(|_| due);
        let wake = |commit_id| Due { commit_id, episode_id: episode(state), command: Command::Wake };
        commit_id.into_iter().take(limit).map(wake).collect()
    }
}

impl State {
    /// When attempts have failed; a saga that is told to end takes the time that it takes.
    fn timeouts(&self) -> impl Iterator<Item = TimestampUs> {
        self.attempts.values().filter(|flying| !flying.is_ending).map(|flying| flying.deadline)
    }

    fn next_running(&self) -> Option<TimestampUs> {
        use state::Current;
        let waits = self.frames.values().filter_map(|frame| match &frame.current {
            Current::Backoff { until, .. } | Current::Waiting { until, .. } => Some(*until),
            Current::Idle
            | Current::Running
            | Current::Held { .. }
            | Current::Branches { .. }
            | Current::Items { .. } => None,
        });
        // What the bounds of one decision left over is due at once.
        let left_over = self.is_ready().then_some(self.changed_at);
        waits.chain(self.timeouts()).chain([self.deadline]).chain(left_over).min()
    }
}

/// The episode of a saga: made of what it began with.
pub fn episode(state: &State) -> EpisodeId {
    let stream = state.stream.as_ref().map(|stream| stream.as_str()).unwrap_or_default();
    let parts = |salt: u8| state::hash([stream.as_bytes(), &state.seed.to_le_bytes()[..], &[salt][..]]).to_le_bytes();
    let mut random = [0; 10];
    for (to, from) in random.iter_mut().zip(parts(0).into_iter().chain(parts(1))) {
        *to = from;
    }
    EpisodeId::from_parts(state.started_at.0.checked_div(1_000).unwrap_or(0), random)
}

/// All that has been asked of the world and not been answered: what a shell runs again after a restart.
pub fn outstanding(state: &State) -> Vec<Effect> {
    // What an unreadable definition asked for is asked again by a server that can read it.
    let attempts = state
        .attempts
        .iter()
        .filter(|_| state.definition.is_some())
        .filter_map(|(path, flying)| effect(state, path, flying.attempt, &flying.request, flying.deadline));
    let mut effects: Vec<_> = attempts.collect();
    let ending = state.attempts.values().filter(|flying| flying.is_ending).filter_map(|flying| flying.child.clone());
    let reason = "nobody waits for it any more".to_owned();
    effects.extend(ending.map(|stream| Effect::CancelChild { stream, reason: reason.clone() }));
    if state.phase.is_end() {
        effects.extend(told_parent(state));
    }
    effects
}

fn effect(state: &State, path: &StepPath, attempt: u32, request: &Json, deadline: TimestampUs) -> Option<Effect> {
    let stream = state.stream.as_ref()?;
    let idempotency_key = format!("{stream}/{path}/{attempt}");
    let request = Request::read(request)?;
    Some(Effect::Run { idempotency_key, path: path.clone(), attempt, deadline, request })
}

fn told_parent(state: &State) -> Option<Effect> {
    let parent = state.parent.clone()?;
    let outcome = match &state.phase {
        Phase::Completed { output } => Ok(output.clone()),
        Phase::Failed { kind, message } | Phase::Unwound { kind, message } => Err((kind.clone(), message.clone())),
        Phase::Cancelled { reason } => Err(("cancelled".to_owned(), reason.clone())),
        Phase::New | Phase::Running | Phase::Unwinding { .. } | Phase::NeedsOperator { .. } => return None,
    };
    Some(Effect::TellParent { parent, outcome, cost: state.spent })
}

fn apply(draft: &mut Draft, command: &Command) -> Result<(), Rejection> {
    let at = draft.now;
    match command {
        Command::Start(_) => Err(Rejection::Exists),
        Command::Signal { name, payload } => signal(draft, name, payload),
        Command::Cancel { reason } => unwind(draft, Cause::Cancelled, "cancelled", reason),
        Command::Compensate { reason } => unwind(draft, Cause::Operator, "operator", reason),
        Command::SucceedStep { path, attempt, output, cost } => succeed(draft, path, *attempt, output, *cost),
        Command::FailStep { path, attempt, kind, message, cost } => fail(draft, path, *attempt, (kind, message), *cost),
        Command::Wake => {
            if Saga::next_deadline(&draft.state).is_none_or(|deadline| deadline > at) {
                return Err(Rejection::NothingDue);
            }
            draft.wake();
            draft.advance();
            if draft.events.is_empty() { Err(Rejection::NothingDue) } else { Ok(()) }
        }
        Command::RetryStep { path } => {
            let path = compensated_step(path).unwrap_or_else(|| path.clone());
            if !is_stuck(&draft.state, &path) && !draft.state.is_retrying(&path) {
                return Err(Rejection::NotStuck(cut(path.as_str())));
            }
            draft.push(Event::StepRetried { path, at });
            draft.wake();
            Ok(())
        }
        Command::SkipStep { path, reason } => {
            let path = compensated_step(path).unwrap_or_else(|| path.clone());
            check_reason(reason)?;
            if !is_stuck(&draft.state, &path) {
                return Err(Rejection::NotStuck(cut(path.as_str())));
            }
            draft.push(Event::CompensationSkipped { path, reason: reason.clone(), at });
            Ok(())
        }
        Command::Migrate { definition } => migrate(draft, definition),
    }
}

fn check_reason(reason: &str) -> Result<(), Rejection> {
    if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
        return Err(Rejection::Invalid(format!("a reason must be given, of at most {REASON_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn is_stuck(state: &State, path: &StepPath) -> bool {
    state.definition.is_some() && matches!(&state.phase, Phase::NeedsOperator { path: stuck, .. } if stuck == path)
}

impl State {
    fn is_retrying(&self, path: &StepPath) -> bool {
        let frame = self.frames.get(&state::split_step(path).0);
        let at = frame.and_then(|frame| Some((frame, self.definition()?.step(self.at(frame)?)?)));
        at.is_some_and(|(frame, step)| {
            step.id == state::split_step(path).1 && matches!(frame.current, state::Current::Backoff { .. })
        })
    }
}

/// What is kept of a value from outside: its compact form, which may be longer than it came; `None` = it cannot be.
fn kept(json: &Json) -> Option<Json> {
    // What nests too deeply to be read is no value either.
    let compact = serde_json::from_str(json.as_str()).map(|value| tree::compact(&value)).ok()?;
    (compact.as_str().len() <= OUTPUT_BYTES_MAX).then_some(compact)
}

fn signal(draft: &mut Draft, name: &str, payload: &Json) -> Result<(), Rejection> {
    match draft.state.phase {
        Phase::Running => {}
        Phase::New | Phase::Unwinding { .. } | Phase::NeedsOperator { .. } => return Err(Rejection::NotRunning),
        Phase::Completed { .. } | Phase::Failed { .. } | Phase::Unwound { .. } | Phase::Cancelled { .. } => {
            return Err(Rejection::Ended);
        }
    }
    if !reader::is_name(name) || name.len() > reader::NAME_BYTES_MAX {
        return Err(Rejection::Invalid("a signal has a name of letters, digits, _ and -".to_owned()));
    }
    let waited_for = |step: &definition::Step| matches!(&step.kind, Kind::Signal { name: known, .. } if known == name);
    if !draft.state.definition().is_some_and(|read| read.steps.iter().any(waited_for)) {
        return Err(Rejection::Invalid(format!("no step of the definition waits for a signal {name}")));
    }
    let Some(payload) = kept(payload) else {
        return Err(Rejection::Invalid(format!("a payload is JSON of at most {OUTPUT_BYTES_MAX} bytes")));
    };
    let bytes = draft.state.signals_bytes().saturating_add(payload.as_str().len());
    let room = draft.state.has_room_for(&payload);
    if draft.state.signals.len() >= SIGNALS_LEN_MAX || bytes > SIGNALS_BYTES_MAX || !room {
        return Err(Rejection::TooManySignals);
    }
    draft.push(Event::SignalReceived { name: name.to_owned(), payload, at: draft.now });
    draft.deliver(name);
    Ok(())
}

fn unwind(draft: &mut Draft, cause: Cause, kind: &str, reason: &str) -> Result<(), Rejection> {
    check_reason(reason)?;
    match draft.state.phase {
        Phase::Running => {
            draft.unwind(cause, StepPath::default(), kind.to_owned(), reason.to_owned());
            Ok(())
        }
        Phase::New | Phase::Unwinding { .. } | Phase::NeedsOperator { .. } => Err(Rejection::NotRunning),
        Phase::Completed { .. } | Phase::Failed { .. } | Phase::Unwound { .. } | Phase::Cancelled { .. } => {
            Err(Rejection::Ended)
        }
    }
}

/// Whether an outcome is of an attempt in flight; one of a step that does not exist is refused.
fn is_awaited(draft: &Draft, path: &StepPath, attempt: u32) -> Result<bool, Rejection> {
    let step = compensated_step(path).unwrap_or_else(|| path.clone());
    let id = state::split_step(&step).1;
    if !draft.state.definition().is_some_and(|read| read.steps.iter().any(|step| step.id == id)) {
        return Err(Rejection::NoSuchStep(cut(path.as_str())));
    }
    Ok(draft.state.attempts.get(path).is_some_and(|flying| flying.attempt == attempt))
}

fn succeed(draft: &mut Draft, path: &StepPath, attempt: u32, output: &Json, cost: NanoUsd) -> Result<(), Rejection> {
    let at = draft.now;
    if !is_awaited(draft, path, attempt)? {
        // A step that timed out will be undone, and what undoes it may want to know what came of it.
        let state = &draft.state;
        let wanted = state.done.iter().any(|done| done.path == *path) && !state.outputs.contains_key(path);
        let late = kept(output).filter(|output| wanted && state.has_room_for(output)).unwrap_or_default();
        let (path, detail) = (path.clone(), cut(output.as_str()));
        draft.push(Event::OutcomeIgnored { path, attempt, succeeded: true, detail, output: late, at });
        return Ok(());
    }
    if let Some(path) = compensated_step(path) {
        draft.push(Event::StepCompensated { path, attempt, at });
        return Ok(());
    }
    // What costs more than was reserved is not the saga's to pay.
    let reserved = draft.state.attempts.get(path).map_or(NanoUsd(0), |flying| flying.reserved);
    let cost = NanoUsd(cost.0.clamp(0, reserved.0));
    match kept(output) {
        Some(output) if draft.state.has_room_for(&output) => {
            draft.push(Event::StepSucceeded { path: path.clone(), attempt, output, cost, at });
        }
        // It was done, but what came of it cannot be kept: its end is as unknown as a timeout's.
        Some(_) => draft.overfull(path, cost),
        None => draft.unusable(path, format!("an outcome is JSON of at most {OUTPUT_BYTES_MAX} bytes"), cost),
    }
    Ok(())
}

fn fail(
    draft: &mut Draft,
    path: &StepPath,
    attempt: u32,
    (kind, message): (&str, &str),
    cost: NanoUsd,
) -> Result<(), Rejection> {
    let at = draft.now;
    if !is_awaited(draft, path, attempt)? {
        let (path, detail) = (path.clone(), cut(&format!("{kind}: {message}")));
        let output = Json::default();
        draft.push(Event::OutcomeIgnored { path, attempt, succeeded: false, detail, output, at });
        return Ok(());
    }
    let Some(flying) = draft.state.attempts.get(path).cloned() else { return Ok(()) };
    let kind: String = kind.chars().take(reader::NAME_BYTES_MAX).collect();
    match compensated_step(path) {
        Some(path) => draft.undo_failed(&path, &flying, kind, message),
        None => draft.attempt_failed(path, kind, message, NanoUsd(cost.0.clamp(0, flying.reserved.0))),
    }
    Ok(())
}

fn migrate(draft: &mut Draft, definition: &Json) -> Result<(), Rejection> {
    if draft.state.phase.is_end() {
        return Err(Rejection::Ended);
    }
    let new = parse::load(definition).map_err(|fault| Rejection::Definition(fault.message))?;
    let Some(old) = draft.state.definition().cloned() else {
        return Err(Rejection::Definition("this server cannot read the saga's own".to_owned()));
    };
    if old.name != new.name {
        return Err(Rejection::Invalid(format!("the saga runs {}, not {}", old.name, new.name)));
    }
    if let Some(model) =
        start::models(&new).iter().find(|model| !draft.state.prices.iter().any(|price| price.model == **model))
    {
        return Err(Rejection::NoPrice((*model).to_owned()));
    }
    migrate::find(&draft.state, &old, &new).map_err(|path| Rejection::NoPlace(path.to_string()))?;
    draft.push(Event::Migrated { definition: definition.clone(), at: draft.now });
    Ok(())
}
