//! A saga told step by step: commands in, short lines of what happened out.

use actors_core::{
    Context, Decider, fold,
    saga::{Effect, Rejection, Saga, State, outstanding, parse},
};
use events_model::{
    DecisionContext, DurationUs, NanoUsd, StreamId, TimestampUs,
    saga::{Command, Event, SagaPrice, Start},
};
use tests_kit::NOON;

/// A saga and its clock.
pub(crate) struct Story {
    pub(crate) state: State,
    pub(crate) now: TimestampUs,
    pub(crate) events: Vec<Event>,
    pub(crate) effects: Vec<Effect>,
    told: usize,
}

/// A definition around some steps.
pub(crate) fn definition(head: &str, steps: &str) -> String {
    let steps: String = steps.trim_end().lines().map(|line| format!("  {line}\n")).collect();
    format!("definition: story\nversion: 1\n{head}\nsteps:\n{steps}")
}

/// The start of a saga of this definition.
pub(crate) fn start(text: &str, input: &str) -> Start {
    let definition = parse(text).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"));
    Start {
        stream: StreamId::new("saga/acme/one").unwrap(),
        definition: definition.canonical,
        input: input.into(),
        budget: None,
        deadline: None,
        parent: None,
        prices: vec![SagaPrice {
            model: "sim-small".to_owned(),
            tier: String::new(),
            input_per_mtok: NanoUsd(1_000_000),
            output_per_mtok: NanoUsd(1_000_000),
        }],
    }
}

impl Story {
    /// Starts a saga of these steps.
    pub(crate) fn of(head: &str, steps: &str) -> Self {
        Self::begin(start(&definition(head, steps), "{}"))
    }

    pub(crate) fn begin(start: Start) -> Self {
        let (state, events, effects) = (State::default(), Vec::new(), Vec::new());
        let mut story = Self { state, now: NOON, events, effects, told: 0 };
        story.tell(&Command::Start(Box::new(start))).unwrap();
        story
    }

    pub(crate) fn tell(&mut self, command: &Command) -> Result<(), Rejection> {
        let inputs = DecisionContext { seed: 7, ..DecisionContext::default() };
        let context = Context { now: self.now, inputs };
        let events = Saga::decide(&self.state, command, &context)?;
        assert!(!events.is_empty(), "{command:?} caused nothing");
        self.state = fold::<Saga>(std::mem::take(&mut self.state), &events);
        for event in &events {
            self.effects.extend(Saga::react(&self.state, event));
        }
        assert!(self.state.spent.plus(self.state.reserved) <= self.state.budget, "beyond the budget");
        self.events.extend(events);
        Ok(())
    }

    pub(crate) fn succeed(&mut self, path: &str, output: &str) -> &mut Self {
        self.outcome(path, Ok(output), NanoUsd(0))
    }

    pub(crate) fn fail(&mut self, path: &str, kind: &str) -> &mut Self {
        self.outcome(path, Err(kind), NanoUsd(0))
    }

    /// Tells the outcome of the attempt in flight.
    pub(crate) fn outcome(&mut self, path: &str, outcome: Result<&str, &str>, cost: NanoUsd) -> &mut Self {
        let flying = self.state.attempts.get(&path.into());
        let attempt = flying.unwrap_or_else(|| panic!("{path} is not in flight")).attempt;
        let path = path.into();
        let command = match outcome {
            Ok(output) => Command::SucceedStep { path, attempt, output: output.into(), cost },
            Err(kind) => Command::FailStep { path, attempt, kind: kind.to_owned(), message: "said".to_owned(), cost },
        };
        self.tell(&command).unwrap();
        self
    }

    pub(crate) fn signal(&mut self, name: &str, payload: &str) -> &mut Self {
        self.tell(&Command::Signal { name: name.to_owned(), payload: payload.into() }).unwrap();
        self
    }

    /// Lets time pass up to the next thing that is due, which must be within the span.
    pub(crate) fn wake_within(&mut self, span: DurationUs) -> &mut Self {
        let deadline = Saga::next_deadline(&self.state).expect("something is due");
        assert!(deadline <= self.now.after(span), "it is due later");
        self.now = self.now.max(deadline);
        self.tell(&Command::Wake).unwrap();
        self
    }

    pub(crate) fn wake(&mut self) -> &mut Self {
        self.wake_within(DurationUs::from_secs(400 * 24 * 3_600))
    }

    /// Demands what has happened since it was last asked for.
    #[track_caller]
    pub(crate) fn then(&mut self, lines: &[&str]) -> &mut Self {
        let told: Vec<String> = self.events[self.told..].iter().map(short).collect();
        self.told = self.events.len();
        assert_eq!(told, lines, "{told:#?}");
        self
    }

    /// Paths of attempts that a restart runs again.
    pub(crate) fn outstanding(&self) -> Vec<String> {
        let key = |effect: Effect| match effect {
            Effect::Run { idempotency_key, .. } => idempotency_key,
            Effect::CancelChild { stream, .. } => format!("cancel {stream}"),
            Effect::TellParent { parent, .. } => format!("tell {}", parent.stream),
        };
        outstanding(&self.state).into_iter().map(key).collect()
    }
}

/// An event in a few words.
pub(crate) fn short(event: &Event) -> String {
    match event {
        Event::Started { .. } => "started".to_owned(),
        Event::StepStarted { path, attempt, .. } => format!("{path} begins #{attempt}"),
        Event::StepSucceeded { path, output, .. } => format!("{path} = {output}"),
        Event::StepSkipped { path } => format!("{path} skipped"),
        Event::AttemptFailed { path, attempt, kind, .. } => format!("{path} #{attempt} {kind}"),
        Event::StepFailed { path, kind, .. } => format!("{path} failed {kind}"),
        Event::WaitStarted { path, signal, .. } => format!("{path} waits {signal}").trim_end().to_owned(),
        Event::WaitEnded { path, .. } => format!("{path} waited"),
        Event::SignalReceived { name, payload, .. } => format!("signal {name} {payload}"),
        Event::SignalConsumed { path, name, .. } => format!("{path} takes {name}"),
        Event::BranchesStarted { path, branches } => format!("{path} branches {branches:?}"),
        Event::ItemsFound { path, items } => format!("{path} items {items}"),
        Event::ItemStarted { path, index } => format!("{path}[{index}] begins"),
        Event::BranchEnded { path } => format!("{path} ends"),
        Event::Degraded { level, reason, .. } => format!("degraded {level} {}", reason.name()),
        Event::LoopCut { reason, .. } => format!("cut {}", reason.name()),
        Event::UnwindingStarted { cause, .. } => format!("unwinding {cause:?}"),
        Event::CompensationStarted { path, attempt, .. } => format!("undo {path} #{attempt}"),
        Event::StepCompensated { path, .. } => format!("undone {path}"),
        Event::CompensationFailed { path, kind, .. } => format!("undo {path} failed {kind}"),
        Event::CompensationSkipped { path, .. } => format!("undo {path} skipped"),
        Event::OperatorNeeded { path, compensated, remaining, .. } => {
            let list = |paths: &[events_model::saga::StepPath]| {
                paths.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>().join(" ")
            };
            format!("operator {path}, undone: {}, left: {}", list(compensated), list(remaining))
        }
        Event::StepRetried { path, .. } => format!("retried {path}"),
        Event::OutcomeIgnored { path, attempt, .. } => format!("ignored {path} #{attempt}"),
        Event::StepHeld { path, attempt, .. } => format!("{path} held #{attempt}"),
        Event::ChildCancelled { path, .. } => format!("{path} is told to end"),
        Event::Completed { output, .. } => format!("completed {output}"),
        Event::Failed { kind, .. } => format!("failed {kind}"),
        Event::Unwound { kind, .. } => format!("unwound {kind}"),
        Event::Cancelled { reason, .. } => format!("cancelled {reason}"),
        Event::Migrated { .. } => "migrated".to_owned(),
    }
}
