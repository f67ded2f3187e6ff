//! Every definition's four tests, in a world that is pure data: it succeeds; it unwinds cleanly from a failure at each
//! step, and from an answer of each step that is lost although the work was done; it ends the same when every step runs
//! twice.
//!
//! The world keeps the contract of a good service: one idempotency key is one deed, however often it is asked. What a
//! step answers is written in the definition's own `test` (`outcomes` by id, `signals` by name, `input`), else made up.
//! Deliberately absent: real services, and sagas that a saga starts (their outcome is written too).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use events_model::{
    DecisionContext, NanoUsd, StreamId, TimestampUs,
    saga::{Command, Event, Json, SagaPrice, Start, StepPath},
};
use serde_json::{Value, json};

use super::{
    Effect, Request, Saga, State,
    definition::{Definition, InputKind},
    start::models,
    state::{Current, Phase, compensated_step, split_step},
    tree::{self, Content, Finding, Node, compact},
};
use crate::{Context, Decider, fold};

/// Most decisions of one simulated saga.
pub const DECISIONS_MAX: usize = 50_000;
/// When simulated sagas begin: 2026-11-20T12:00:00Z.
const NOON: TimestampUs = TimestampUs(1_795_176_000_000_000);
/// What a million tokens cost there.
const PRICE: NanoUsd = NanoUsd(1_000_000);
/// The kind of a failure that a test asks for.
const SIMULATED: &str = "simulated";

/// What the world of a definition's tests answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fixture {
    /// What the saga begins with.
    pub input: BTreeMap<String, Value>,
    /// What steps answer, by id.
    pub outcomes: BTreeMap<String, Value>,
    /// What comes with signals, by name.
    pub signals: BTreeMap<String, Value>,
}

/// What a simulated world does otherwise than well.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Every attempt of this step fails.
    pub fails: Option<StepPath>,
    /// Every attempt of this step does its work, but its answer is lost.
    pub silent: Option<StepPath>,
    /// Every effect runs twice, and both outcomes are told.
    pub twice: bool,
    /// Which of several outcomes comes first, and which attempts fail, by chance; `None` = in order, none.
    pub seed: Option<u64>,
    /// With a seed: how many attempts of a thousand fail.
    pub failing_milli: u64,
}

/// What became of a simulated saga.
#[derive(Debug, Clone)]
pub struct Run {
    /// The state at the end.
    pub state: State,
    /// Every command with the events it caused.
    pub log: Vec<(Command, TimestampUs, Vec<Event>)>,
    /// Deeds by idempotency key, with their paths, in order.
    pub deeds: Vec<(String, StepPath)>,
    /// Rules that were broken on the way.
    pub faults: Vec<String>,
}

/// What a definition's tests showed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Deeds of the good run.
    pub deeds: usize,
    /// Steps that failed, one run each, with how it ended.
    pub failures: Vec<(String, String)>,
    /// Steps whose answer was lost, one run each, with how it ended.
    pub lost: Vec<(String, String)>,
    /// Actions that the good run did not come to.
    pub not_reached: Vec<String>,
    /// What is wrong; empty = nothing.
    pub problems: Vec<String>,
}

/// Reads a definition's `test`.
///
/// # Errors
/// It is not made of `input`, `outcomes` and `signals`.
pub fn fixture(text: &str, definition: &Definition) -> Result<Fixture, Finding> {
    let mut fixture = Fixture { input: invented_input(definition), ..Fixture::default() };
    let root = tree::read(text)?;
    let Some(test) = root.get("test") else { return Ok(fixture) };
    for (key, node) in entries(test)? {
        let values = entries(node)?.iter().map(|(name, node)| (name.text.clone(), node.to_json()));
        match key.text.as_str() {
            "input" => fixture.input = values.collect(),
            "outcomes" => {
                if let Some((name, _)) =
                    entries(node)?.iter().find(|(name, _)| !definition.steps.iter().any(|step| step.id == name.text))
                {
                    return Err(Finding { at: name.at, message: format!("there is no step {}", name.text) });
                }
                fixture.outcomes = values.collect();
            }
            "signals" => fixture.signals = values.collect(),
            _ => return Err(Finding { at: key.at, message: "test has input, outcomes and signals".to_owned() }),
        }
    }
    Ok(fixture)
}

fn entries(node: &Node) -> Result<&[(tree::Key, Node)], Finding> {
    match &node.content {
        Content::Map(entries) => Ok(entries),
        Content::Null
        | Content::Bool(_)
        | Content::Int(_)
        | Content::Float(_)
        | Content::Text(_)
        | Content::List(_) => Err(Finding { at: node.at, message: "there must be a map".to_owned() }),
    }
}

fn invented_input(definition: &Definition) -> BTreeMap<String, Value> {
    let mut input = BTreeMap::new();
    for (name, wanted) in definition.input.iter().filter(|(_, wanted)| !wanted.optional) {
        let value = match wanted.kind {
            InputKind::Text | InputKind::Any => json!("text"),
            InputKind::Int | InputKind::Number => json!(1),
            InputKind::Bool => json!(true),
            InputKind::List => json!([]),
            InputKind::Map => json!({}),
        };
        input.insert(name.clone(), value);
    }
    input
}

/// Runs the four tests.
pub fn test(definition: &Definition, fixture: &Fixture) -> Report {
    let good = run(definition, fixture, &Plan::default());
    let mut report = Report { deeds: good.deeds.len(), ..Report::default() };
    let mut problem = |what: String| report.problems.push(what);
    good.faults.iter().for_each(|fault| problem(format!("the good run: {fault}")));
    if !matches!(good.state.phase, Phase::Completed { .. }) {
        problem(format!("it does not succeed: {}", end(&good.state)));
    }
    let paths: BTreeSet<StepPath> =
        good.deeds.iter().map(|(_, path)| path.clone()).filter(|path| compensated_step(path).is_none()).collect();
    for path in &paths {
        let plan = Plan { fails: Some(path.clone()), ..Plan::default() };
        let ended = unwinds(definition, fixture, &plan, &format!("with {path} failing"), &mut report.problems);
        report.failures.push((path.to_string(), ended));
        let plan = Plan { silent: Some(path.clone()), ..Plan::default() };
        let what = format!("with the answer of {path} lost");
        report.lost.push((path.to_string(), unwinds(definition, fixture, &plan, &what, &mut report.problems)));
    }
    let mut problem = |what: String| report.problems.push(what);
    let twice = run(definition, fixture, &Plan { twice: true, ..Plan::default() });
    twice.faults.iter().for_each(|fault| problem(format!("with every step twice: {fault}")));
    if twice.deeds != good.deeds || !same_end(&twice.state, &good.state) {
        problem(format!("with every step twice it ends otherwise: {}", end(&twice.state)));
    }
    let reached: BTreeSet<String> = paths.iter().map(|path| split_step(path).1.to_owned()).collect();
    report.not_reached = definition
        .steps
        .iter()
        .filter(|step| step.kind.is_action() && !reached.contains(&step.id))
        .map(|step| step.id.clone())
        .collect();
    report
}

/// Runs a saga of which one step goes wrong, and tells how it ended.
fn unwinds(definition: &Definition, fixture: &Fixture, plan: &Plan, what: &str, problems: &mut Vec<String>) -> String {
    let failed = run(definition, fixture, plan);
    problems.extend(failed.faults.iter().map(|fault| format!("{what}: {fault}")));
    if !matches!(failed.state.phase, Phase::Failed { .. } | Phase::Unwound { .. } | Phase::Completed { .. }) {
        problems.push(format!("{what} it does not unwind: {}", end(&failed.state)));
    }
    problems.extend(unwound_in_order(&failed).into_iter().map(|fault| format!("{what}: {fault}")));
    end(&failed.state)
}

/// Whether two sagas ended the same, whatever came in between.
pub fn same_end(left: &State, right: &State) -> bool {
    let ends = |state: &State| {
        (state.phase.clone(), state.outputs.clone(), state.spent, state.reserved, state.compensated.clone())
    };
    ends(left) == ends(right)
}

/// How a saga ended, in a line.
pub fn end(state: &State) -> String {
    let name = state.phase.name();
    match &state.phase {
        Phase::Failed { kind, message }
        | Phase::Unwound { kind, message }
        | Phase::Unwinding { kind, message, .. }
        | Phase::NeedsOperator { kind, message, .. } => format!("{name} ({kind}: {message})"),
        Phase::Cancelled { reason } => format!("{name} ({reason})"),
        Phase::New | Phase::Running | Phase::Completed { .. } => name.to_owned(),
    }
}

/// Every step that was done and can be undone is undone exactly once, last first.
pub fn unwound_in_order(run: &Run) -> Vec<String> {
    let mut done: Vec<StepPath> = Vec::new();
    let mut faults = Vec::new();
    let Some(definition) = run.state.definition() else { return faults };
    for event in run.log.iter().flat_map(|(.., events)| events) {
        let has_undo = |path: &StepPath| {
            let id = split_step(path).1;
            definition.steps.iter().any(|step| step.id == id && step.compensate.is_some())
        };
        match event {
            Event::StepSucceeded { path, attempt, .. } if *attempt > 0 && has_undo(path) => done.push(path.clone()),
            Event::StepFailed { path, kind, .. } | Event::AttemptFailed { path, kind, .. }
                if kind == super::TIMEOUT && has_undo(path) =>
            {
                done.retain(|before| before != path);
                done.push(path.clone());
            }
            Event::StepCompensated { path, .. } | Event::CompensationSkipped { path, .. } => {
                if done.pop().as_ref() != Some(path) {
                    faults.push(format!("{path} was undone out of order, or twice"));
                }
            }
            Event::Started { .. }
            | Event::StepStarted { .. }
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
            | Event::CompensationStarted { .. }
            | Event::CompensationFailed { .. }
            | Event::OperatorNeeded { .. }
            | Event::StepRetried { .. }
            | Event::OutcomeIgnored { .. }
            | Event::ChildCancelled { .. }
            | Event::StepHeld { .. }
            | Event::Completed { .. }
            | Event::Failed { .. }
            | Event::Unwound { .. }
            | Event::Cancelled { .. }
            | Event::Migrated { .. } => {}
        }
    }
    let undone = matches!(run.state.phase, Phase::Failed { .. } | Phase::Unwound { .. } | Phase::Cancelled { .. });
    if undone && !done.is_empty() {
        let left: Vec<_> = done.iter().map(StepPath::as_str).collect();
        faults.push(format!("not undone: {}", left.join(", ")));
    }
    faults
}

/// The start of a simulated saga.
pub fn start(definition: &Definition, fixture: &Fixture) -> Option<Command> {
    let price = |model: &str| SagaPrice {
        model: model.to_owned(),
        tier: String::new(),
        input_per_mtok: PRICE,
        output_per_mtok: PRICE,
    };
    Some(Command::Start(Box::new(Start {
        stream: StreamId::new("saga/test/one").ok()?,
        definition: definition.canonical.clone(),
        input: compact(&Value::Object(fixture.input.clone().into_iter().collect())),
        budget: None,
        deadline: None,
        parent: None,
        prices: models(definition).into_iter().map(price).collect(),
    })))
}

/// Runs one saga to its end.
pub fn run(definition: &Definition, fixture: &Fixture, plan: &Plan) -> Run {
    let state = State::default();
    let run = Run { state, log: Vec::new(), deeds: Vec::new(), faults: Vec::new() };
    let (seed, done) = (plan.seed.unwrap_or(0), BTreeMap::new());
    let mut world = World { run, now: NOON, pending: VecDeque::new(), done, fixture, plan, dice: seed, refused: false };
    match start(definition, fixture) {
        Some(start) => world.tell(start),
        None => world.fault("it cannot be started".to_owned()),
    }
    while !world.run.state.phase.is_end() && world.run.log.len() < DECISIONS_MAX {
        if world.refused || !world.go_on() {
            break;
        }
    }
    let state = &world.run.state;
    if state.phase.is_end() && (!state.attempts.is_empty() || state.reserved != NanoUsd(0)) {
        world.fault("something is in flight after the end".to_owned());
    }
    world.run
}

struct World<'w> {
    run: Run,
    now: TimestampUs,
    pending: VecDeque<Effect>,
    /// What was answered under each idempotency key.
    done: BTreeMap<String, Result<Json, String>>,
    fixture: &'w Fixture,
    plan: &'w Plan,
    dice: u64,
    /// A command was refused.
    refused: bool,
}

impl World<'_> {
    fn fault(&mut self, what: String) {
        self.run.faults.push(what);
    }

    /// SplitMix64.
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        super::state::hash([&self.dice.to_le_bytes()[..]]).checked_rem(sides.max(1)).unwrap_or(0)
    }

    fn go_on(&mut self) -> bool {
        if !self.pending.is_empty() {
            let sides = u64::try_from(self.pending.len()).unwrap_or(1);
            let chosen = if self.plan.seed.is_some() { self.roll(sides) } else { 0 };
            if let Some(effect) = usize::try_from(chosen).ok().and_then(|chosen| self.pending.remove(chosen)) {
                self.perform(&effect);
            }
            return true;
        }
        if let Some(name) = self.awaited() {
            let payload = self.fixture.signals.get(&name).cloned().unwrap_or(Value::Null);
            self.tell(Command::Signal { name, payload: compact(&payload) });
            return true;
        }
        let Some(deadline) = Saga::next_deadline(&self.run.state) else { return false };
        self.now = self.now.max(deadline);
        self.tell(Command::Wake);
        true
    }

    /// A signal that a step waits for and the fixture has.
    fn awaited(&self) -> Option<String> {
        self.run.state.frames.values().find_map(|frame| match &frame.current {
            Current::Waiting { signal, .. } if self.fixture.signals.contains_key(signal) => Some(signal.clone()),
            Current::Idle
            | Current::Running
            | Current::Held { .. }
            | Current::Backoff { .. }
            | Current::Waiting { .. }
            | Current::Branches { .. }
            | Current::Items { .. } => None,
        })
    }

    fn tell(&mut self, command: Command) {
        let seed = self.plan.seed.unwrap_or(1);
        let context = Context { now: self.now, inputs: DecisionContext { seed, ..DecisionContext::default() } };
        let before = &self.run.state;
        match Saga::decide(before, &command, &context) {
            Ok(events) => {
                if before.phase.is_end() && events.iter().any(|event| !matches!(event, Event::OutcomeIgnored { .. })) {
                    self.run.faults.push("something happened after the end".to_owned());
                }
                let state = fold::<Saga>(before.clone(), &events);
                if state.spent.plus(state.reserved) > state.budget {
                    self.run.faults.push("it spends more than its budget".to_owned());
                }
                let sum = state.attempts.values().fold(NanoUsd(0), |sum, flying| sum.plus(flying.reserved));
                if sum != state.reserved {
                    self.run.faults.push("what is reserved is not what attempts hold".to_owned());
                }
                for event in &events {
                    self.pending.extend(Saga::react(&state, event));
                }
                self.run.state = state;
                self.run.log.push((command, self.now, events));
            }
            Err(rejection) => {
                self.run.log.push((command, self.now, Vec::new()));
                // A world whose own commands are refused would go on for ever.
                self.run.faults.push(format!("refused: {rejection}"));
                self.refused = true;
            }
        }
    }

    fn perform(&mut self, effect: &Effect) {
        let (idempotency_key, path, attempt, request) = match effect {
            Effect::Run { idempotency_key, path, attempt, request, .. } => (idempotency_key, path, attempt, request),
            Effect::CancelChild { stream, .. } => return self.child_ends(stream),
            Effect::TellParent { .. } => return,
        };
        let (path, attempt) = (path.clone(), *attempt);
        let outcome = self.answer(idempotency_key, &path, request);
        let tell = |outcome: &Result<Json, String>| match outcome {
            Ok(output) => {
                let (path, output) = (path.clone(), output.clone());
                Command::SucceedStep { path, attempt, output, cost: NanoUsd(1_000) }
            }
            Err(kind) => Command::FailStep {
                path: path.clone(),
                attempt,
                kind: kind.clone(),
                message: "the test asked for it".to_owned(),
                cost: NanoUsd(0),
            },
        };
        if self.plan.silent.as_ref() == Some(&path) {
            return;
        }
        self.tell(tell(&outcome));
        if self.plan.twice {
            let again = self.answer(idempotency_key, &path, request);
            self.tell(tell(&again));
        }
    }

    /// A saga that is told to end undoes what it did and says so; one that has answered already says nothing more.
    fn child_ends(&mut self, child: &StreamId) {
        let of_child = |flying: &super::state::Attempt| flying.child.as_ref() == Some(child);
        let found = self.run.state.attempts.iter().find(|(_, flying)| of_child(flying));
        let Some((path, attempt)) = found.map(|(path, flying)| (path.clone(), flying.attempt)) else { return };
        let (kind, message) = ("cancelled".to_owned(), "it was told to end".to_owned());
        self.tell(Command::FailStep { path, attempt, kind, message, cost: NanoUsd(0) });
    }

    /// One key is one deed.
    fn answer(&mut self, key: &str, path: &StepPath, request: &Request) -> Result<Json, String> {
        if let Some(before) = self.done.get(key) {
            return before.clone();
        }
        let unlucky = self.plan.failing_milli > 0 && self.roll(1_000) < self.plan.failing_milli;
        let outcome = if self.plan.fails.as_ref() == Some(path) {
            Err(SIMULATED.to_owned())
        } else if unlucky {
            Err("unlucky".to_owned())
        } else {
            let id = split_step(path).1;
            let written = self.fixture.outcomes.get(id).filter(|_| compensated_step(path).is_none());
            Ok(compact(&written.cloned().unwrap_or_else(|| invented(request))))
        };
        self.run.deeds.push((key.to_owned(), path.clone()));
        self.done.insert(key.to_owned(), outcome.clone());
        outcome
    }
}

/// What a service answers of which nothing is written.
fn invented(request: &Request) -> Value {
    match request {
        Request::Model { .. } => json!({"text": "text", "json": null}),
        Request::Http { ok, .. } => json!({"status": ok.first().map_or(200, |(first, _)| *first), "body": {}}),
        Request::Append { .. } => json!({"version": 1}),
        Request::Notify { .. } => json!({"status": 200}),
        Request::Approve { .. } => json!({"approved": true, "by": "somebody", "comment": ""}),
        Request::Saga { .. } => Value::Null,
    }
}
