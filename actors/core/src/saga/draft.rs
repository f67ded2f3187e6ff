//! A decision in the making: a state with the events so far folded into it, and what follows from it.
//!
//! Whatever can happen without the world happens at once and in the order of the paths, up to `EVENTS_MAX` events or
//! `BYTES_MAX` bytes; what is left over is due at once (`next_deadline`).

use std::cell::Cell;

use events_model::{
    DurationUs, NanoUsd, TimestampUs,
    envelope::Stored,
    saga::{Cause, Command, Event, Json, Limit, StepPath},
};
use serde_json::Value;

use super::{
    definition::{Kind, OnTimeout, Retry, Step, StepIndex, Until},
    evolve::{TIMEOUT, UNUSABLE, path_at},
    expression::WORK_MAX,
    limits::{Verdict, judge},
    ready::Ready,
    render::{Fault, Site, cut},
    state::{Attempt, Current, OUTPUT_BYTES_MAX, OUTPUTS_BYTES_MAX, Phase, State, hash, step_path},
    tree::compact,
};

/// Most events of one decision, about.
pub const EVENTS_MAX: usize = 256;
/// Bytes of a decision, its command counted, from which on nothing more is added to it: a commit holds 1 MiB, and what
/// may follow the last look at this bound is one event of `REQUEST_BYTES_MAX` or a few lists of `PATHS_SHOWN_MAX` paths.
pub const BYTES_MAX: usize = 768 * 1024;
/// Largest command, bytes: what a definition, an input and prices need; twice this is within a decision, for the event
/// may say it again.
pub const COMMAND_BYTES_MAX: usize = 384 * 1024;
/// What an event takes in a commit besides its own bytes, at most.
const EVENT_OVERHEAD_BYTES: usize = 96;
/// Longest attempt of a step that does not say.
pub const TIMEOUT_DEFAULT: DurationUs = DurationUs::from_secs(60);

/// The decision so far.
pub(super) struct Draft {
    pub(super) state: State,
    pub(super) events: Vec<Event>,
    pub(super) now: TimestampUs,
    bytes: usize,
    /// The work of its expressions, units.
    pub(super) work: Cell<u64>,
}

impl Draft {
    pub(super) fn new(state: &State, command: &Command, now: TimestampUs) -> Self {
        Self { state: state.clone(), events: Vec::new(), now, bytes: size(command), work: Cell::new(0) }
    }

    /// Whether the command is larger than any.
    pub(super) fn is_too_large(&self) -> bool {
        self.bytes > COMMAND_BYTES_MAX
    }

    /// Whether another event may be added that is not the last word on the command itself.
    fn has_room(&self) -> bool {
        self.events.len() < EVENTS_MAX && self.bytes < BYTES_MAX && self.work.get() < WORK_MAX
    }

    pub(super) fn push(&mut self, event: Event) {
        self.bytes = self.bytes.saturating_add(size(&event));
        self.state = std::mem::take(&mut self.state).evolve(&event);
        self.events.push(event);
    }

    /// Does all that follows without the world.
    pub(super) fn advance(&mut self) {
        while self.has_room() {
            let before = self.events.len();
            if let Some((path, _)) = self.state.dropped_child() {
                self.cancel_child(&path.clone(), "nobody waits for it any more");
                continue;
            }
            match self.state.phase {
                Phase::Running => self.advance_running(),
                Phase::Unwinding { .. } => self.advance_unwinding(),
                Phase::New
                | Phase::NeedsOperator { .. }
                | Phase::Completed { .. }
                | Phase::Failed { .. }
                | Phase::Unwound { .. }
                | Phase::Cancelled { .. } => {}
            }
            if self.events.len() == before {
                return;
            }
        }
    }

    fn advance_running(&mut self) {
        let Some((key, ready)) = self.state.ready() else { return };
        match ready {
            Ready::Begin(step) => self.begin(&key, step),
            Ready::FrameEnd if key.as_str().is_empty() => self.complete(),
            Ready::FrameEnd => self.push(Event::BranchEnded { path: key }),
            Ready::Join(path, output) => self.succeed_inside(&path, output),
            Ready::Item(path, index) => self.push(Event::ItemStarted { path, index }),
        }
    }

    /// The end of a step that needs nothing from outside.
    fn succeed_inside(&mut self, path: &StepPath, output: Json) {
        if output.as_str().len() > OUTPUT_BYTES_MAX {
            return self.fail_step(path, 0, too_large(), NanoUsd(0));
        }
        if !is_readable(&output) {
            return self.fail_step(path, 0, too_deep(), NanoUsd(0));
        }
        if !self.state.has_room_for(&output) {
            return self.cut(Limit::OutputBytes);
        }
        let (path, at) = (path.clone(), self.now);
        self.push(Event::StepSucceeded { path, attempt: 0, output, cost: NanoUsd(0), at });
    }

    fn complete(&mut self) {
        let site = Site::new(&self.state, &[], self.now, &self.work);
        let output = self.state.definition().and_then(|read| read.output.as_ref());
        let output = output.map_or(Ok(Value::Null), |output| site.render(output)).map(|output| compact(&output));
        // What is rendered is bounded before its quotes are escaped.
        let bounded = |output: &Json| output.as_str().len() <= OUTPUT_BYTES_MAX;
        match output.and_then(|output| bounded(&output).then_some(output).ok_or_else(too_large)) {
            Ok(output) => self.push(Event::Completed { output, at: self.now }),
            Err((kind, message)) => self.unwind(Cause::StepFailed, StepPath::default(), kind, message),
        }
    }

    fn begin(&mut self, key: &StepPath, index: StepIndex) {
        let Some(definition) = self.state.definition().cloned() else { return };
        let (Some(step), Some(frame)) = (definition.step(index), self.state.frames.get(key)) else { return };
        match judge(&self.state, &definition, self.now) {
            Verdict::Fine => {}
            Verdict::Degrade(reason) => return self.degrade(reason),
            Verdict::Cut(reason) => return self.cut(reason),
        }
        let (path, rounds) = (step_path(key, &step.id), frame.rounds.clone());
        let site = Site::new(&self.state, &rounds, self.now, &self.work);
        let begun = match step.condition.as_ref().map_or(Ok(true), |condition| site.holds(condition)) {
            Ok(false) => Ok(Event::StepSkipped { path: path.clone() }),
            Ok(true) if step.kind.is_action() => return self.attempt(&path, index, 1),
            Ok(true) => self.inside(&site, step, &path),
            Err(fault) => Err(fault),
        };
        match begun {
            Ok(Event::StepSucceeded { path, output, .. }) => self.succeed_inside(&path, output),
            Ok(event) => self.push(event),
            Err(fault) => self.fail_step(&path, 0, fault, NanoUsd(0)),
        }
    }

    /// What a step that is no action does.
    fn inside(&self, site: &Site<'_>, step: &Step, path: &StepPath) -> Result<Event, Fault> {
        let (path, at) = (path.clone(), self.now);
        match &step.kind {
            Kind::Wait(Until::For(span)) => {
                Ok(Event::WaitStarted { path, signal: String::new(), until: at.after(*span), at })
            }
            Kind::Wait(Until::At(node)) => {
                Ok(Event::WaitStarted { path, signal: String::new(), until: site.until(node)?, at })
            }
            Kind::Signal { name, timeout, .. } => {
                if self.state.signals.iter().any(|(found, _)| found == name) {
                    return Ok(Event::SignalConsumed { path, name: name.clone(), at });
                }
                Ok(Event::WaitStarted { path, signal: name.clone(), until: at.after(*timeout), at })
            }
            Kind::Parallel { branches, .. } => {
                let count = u32::try_from(branches.len()).unwrap_or(u32::MAX);
                Ok(Event::BranchesStarted { path, branches: (0..count).collect() })
            }
            Kind::Choice { cases } => {
                for (branch, (condition, _)) in (0_u32..).zip(cases) {
                    if condition.as_ref().map_or(Ok(true), |condition| site.holds(condition))? {
                        return Ok(Event::BranchesStarted { path, branches: vec![branch] });
                    }
                }
                Ok(Event::BranchesStarted { path, branches: Vec::new() })
            }
            Kind::Each { items, at_most, .. } => {
                let items = site.items(items)?;
                let most = usize::try_from(*at_most).unwrap_or(usize::MAX);
                if items.len() > most {
                    let said = format!("there are {} items, at most {most} are allowed", items.len());
                    return Err(("too_many_items".to_owned(), said));
                }
                let items = compact(&Value::Array(items));
                if items.as_str().len() > OUTPUT_BYTES_MAX {
                    return Err(too_large());
                }
                if !is_readable(&items) {
                    return Err(too_deep());
                }
                Ok(Event::ItemsFound { path, items })
            }
            Kind::Set { values } => {
                let output = compact(&site.render(values)?);
                Ok(Event::StepSucceeded { path, attempt: 0, output, cost: NanoUsd(0), at })
            }
            Kind::Fail { kind, message } => Err((cut(&site.text(kind)?), cut(&site.text(message)?))),
            Kind::Model { .. }
            | Kind::Http { .. }
            | Kind::Append { .. }
            | Kind::Notify { .. }
            | Kind::Approve { .. }
            | Kind::Saga { .. } => Err(("internal".to_owned(), "an action is no inner step".to_owned())),
        }
    }

    /// Begins an attempt of an action, with its money.
    pub(super) fn attempt(&mut self, path: &StepPath, index: StepIndex, attempt: u32) {
        let Some(definition) = self.state.definition().cloned() else { return };
        let Some(step) = definition.step(index) else { return };
        let rounds = self.state.frames.get(&super::state::split_step(path).0).map(|frame| frame.rounds.clone());
        let rounds = rounds.unwrap_or_default();
        let site = Site::new(&self.state, &rounds, self.now, &self.work);
        let (request, reserved) = match site.request(&step.kind, path, attempt) {
            Ok(found) => found,
            Err(fault) => return self.fail_step(path, 0, fault, NanoUsd(0)),
        };
        let unspent = self.state.budget.minus(self.state.spent);
        let held_back = reserved > self.state.left() && reserved <= unspent && self.state.forward().next().is_some();
        if held_back || !self.state.has_room_beside(&request) {
            let (path, at) = (path.clone(), self.now);
            return self.push(Event::StepHeld { path, attempt, at });
        }
        if reserved > self.state.left() {
            let levels = definition.degrade.len();
            if usize::try_from(self.state.level).is_ok_and(|level| level < levels) {
                self.degrade(Limit::Spend);
                return self.attempt(path, index, attempt);
            }
            return self.cut(Limit::Spend);
        }
        let deadline = self.now.after(timeout(step, &step.kind, &self.state, self.now));
        let (path, request, at) = (path.clone(), request, self.now);
        self.push(Event::StepStarted { path, attempt, request, reserved, deadline, at });
    }

    /// An attempt failed: another follows, or the step has failed.
    pub(super) fn attempt_failed(&mut self, path: &StepPath, kind: String, message: &str, cost: NanoUsd) {
        let Some(flying) = self.state.attempts.get(path).cloned() else { return };
        let definition = self.state.definition().cloned();
        let retry = definition.as_ref().and_then(|read| read.step(flying.step)).map(|step| &step.retry);
        let fault = (kind, cut(message));
        match retry.filter(|_| !flying.abandoned).and_then(|retry| self.retry_at(retry, path, flying.attempt, &fault.0))
        {
            Some(retry_at) => {
                let (path, attempt, at) = (path.clone(), flying.attempt, self.now);
                let (kind, message) = fault;
                self.push(Event::AttemptFailed { path, attempt, kind, message, cost, retry_at, at });
            }
            None if flying.abandoned => {
                let (path, attempt, at) = (path.clone(), flying.attempt, self.now);
                let (kind, message) = fault;
                self.push(Event::StepFailed { path, attempt, kind, message, cost, at });
            }
            None => self.fail_step(path, flying.attempt, fault, cost),
        }
    }

    /// When the next attempt begins, if there is one: exponential, spread evenly from nothing to the whole (full jitter).
    pub(super) fn retry_at(&self, retry: &Retry, path: &StepPath, attempt: u32, kind: &str) -> Option<TimestampUs> {
        if attempt >= retry.attempts || retry.not.iter().any(|not| not == kind) {
            return None;
        }
        let mut most = retry.first.0;
        for _ in 1..attempt {
            most = most.saturating_mul(retry.factor.into()).min(retry.max.0);
        }
        let seed = hash([&self.state.seed.to_le_bytes()[..], path.as_str().as_bytes(), &attempt.to_le_bytes()[..]]);
        let wait = seed.checked_rem(most.min(retry.max.0).saturating_add(1)).unwrap_or(0);
        Some(self.now.after(DurationUs(wait)))
    }

    /// A step did its work, but what came of it cannot be kept: like after a timeout, it has to be undone.
    pub(super) fn unusable(&mut self, path: &StepPath, message: String, cost: NanoUsd) {
        if self.lost(path, &message, cost) {
            return;
        }
        let attempt = self.state.attempts.get(path).map_or(0, |flying| flying.attempt);
        self.fail_step(path, attempt, (UNUSABLE.to_owned(), message), cost);
    }

    /// The same, because all outcomes together are too large: that is a limit of the saga, not the step's fault.
    pub(super) fn overfull(&mut self, path: &StepPath, cost: NanoUsd) {
        let message = format!("all outcomes together have at most {OUTPUTS_BYTES_MAX} bytes");
        if !self.lost(path, &message, cost) {
            self.step_failed(path, message, cost);
            self.cut(Limit::OutputBytes);
        }
    }

    /// Whether nobody waits for an attempt: then its failure does not decide about the saga.
    fn lost(&mut self, path: &StepPath, message: &str, cost: NanoUsd) -> bool {
        let lost = self.state.attempts.get(path).is_some_and(|flying| flying.abandoned);
        if lost {
            self.step_failed(path, message.to_owned(), cost);
        }
        lost
    }

    fn step_failed(&mut self, path: &StepPath, message: String, cost: NanoUsd) {
        let attempt = self.state.attempts.get(path).map_or(0, |flying| flying.attempt);
        let (path, kind, at) = (path.clone(), UNUSABLE.to_owned(), self.now);
        self.push(Event::StepFailed { path, attempt, kind, message, cost, at });
    }

    pub(super) fn fail_step(&mut self, path: &StepPath, attempt: u32, (kind, message): Fault, cost: NanoUsd) {
        let (at, failed) = (self.now, path.clone());
        self.push(Event::StepFailed { path: failed, attempt, kind: kind.clone(), message: message.clone(), cost, at });
        self.unwind(Cause::StepFailed, path.clone(), kind, message);
    }

    pub(super) fn unwind(&mut self, cause: Cause, path: StepPath, kind: String, message: String) {
        if matches!(self.state.phase, Phase::Running) {
            self.push(Event::UnwindingStarted { cause, path, kind, message, at: self.now });
        }
    }

    fn degrade(&mut self, reason: Limit) {
        let level = self.state.level.saturating_add(1);
        self.push(Event::Degraded { level, reason, at: self.now });
    }

    pub(super) fn cut(&mut self, reason: Limit) {
        self.push(Event::LoopCut { reason, at: self.now });
        let message = format!("the limit {} is reached", reason.name());
        self.unwind(Cause::Limit, StepPath::default(), "limit".to_owned(), message);
    }

    /// Does all that is due.
    pub(super) fn wake(&mut self) {
        let now = self.now;
        let over = matches!(self.state.phase, Phase::Running) && self.state.deadline <= now;
        // All steps have ended and only what nobody waits for is in flight: that does not cut it.
        let only_losers = over && self.state.is_at_end();
        if over && !only_losers {
            self.cut(Limit::WallTime);
        }
        let late = |flying: &Attempt| only_losers || (!flying.is_ending && flying.deadline <= now);
        let late = self.state.attempts.iter().filter(|(_, flying)| late(flying)).map(|(path, _)| path.clone());
        for path in late.collect::<Vec<_>>() {
            if !self.has_room() {
                return;
            }
            self.time_out(&path);
        }
        let waiting: Vec<StepPath> = self.state.frames.keys().cloned().collect();
        for key in waiting {
            if !self.has_room() {
                return;
            }
            self.wait_over(&key);
        }
    }

    fn time_out(&mut self, path: &StepPath) {
        let Some(flying) = self.state.attempts.get(path).cloned() else { return };
        // A saga that was started is told to end, and then waited for: who began another one beside it would do
        // everything twice. Only at the very end nobody waits any more.
        if flying.child.is_some() && !self.state.is_at_end() {
            return self.cancel_child(path, "the step that waits for it has no more time");
        }
        if let Some(undone) = super::state::compensated_step(path) {
            return self.undo_failed(&undone, &flying, TIMEOUT.to_owned(), "there was no answer in time");
        }
        let definition = self.state.definition().cloned();
        let step = definition.as_ref().and_then(|read| read.step(flying.step));
        if let Some(Kind::Approve { on_timeout: OnTimeout::Continue, .. }) = step.map(|step| &step.kind) {
            let (path, attempt, at) = (path.clone(), flying.attempt, self.now);
            let output = "null".into();
            return self.push(Event::StepSucceeded { path, attempt, output, cost: NanoUsd(0), at });
        }
        // Nobody knows what it cost: at worst all that was reserved.
        self.attempt_failed(path, TIMEOUT.to_owned(), "there was no answer in time", flying.reserved);
    }

    fn cancel_child(&mut self, path: &StepPath, reason: &str) {
        let Some(child) = self.state.attempts.get(path).and_then(|flying| flying.child.clone()) else { return };
        let (path, reason, at) = (path.clone(), reason.to_owned(), self.now);
        self.push(Event::ChildCancelled { path, child, reason, at });
    }

    fn wait_over(&mut self, key: &StepPath) {
        let Some(frame) = self.state.frames.get(key) else { return };
        let Some(index) = self.state.at(frame) else { return };
        let Some(path) = path_at(&self.state, key, frame) else { return };
        match frame.current.clone() {
            Current::Backoff { attempt, until } if until <= self.now => {
                let Some(definition) = self.state.definition().cloned() else { return };
                match judge(&self.state, &definition, self.now) {
                    Verdict::Cut(reason) => self.cut(reason),
                    Verdict::Degrade(reason) => {
                        self.degrade(reason);
                        self.attempt(&path, index, attempt.saturating_add(1));
                    }
                    Verdict::Fine => self.attempt(&path, index, attempt.saturating_add(1)),
                }
            }
            Current::Waiting { signal, until } if until <= self.now => {
                let kind = self.state.definition().and_then(|read| read.step(index)).map(|step| step.kind.clone());
                if let Some(Kind::Signal { on_timeout: OnTimeout::Fail, .. }) = kind {
                    let message = format!("the signal {signal} did not come in time");
                    return self.fail_step(&path, 0, (TIMEOUT.to_owned(), message), NanoUsd(0));
                }
                self.push(Event::WaitEnded { path, at: self.now });
            }
            Current::Idle
            | Current::Running
            | Current::Held { .. }
            | Current::Backoff { .. }
            | Current::Waiting { .. }
            | Current::Branches { .. }
            | Current::Items { .. } => {}
        }
    }

    /// Steps that wait for a signal take it.
    pub(super) fn deliver(&mut self, name: &str) {
        let waits = |current: &Current| matches!(current, Current::Waiting { signal, .. } if signal == name);
        let found = self.state.frames.iter().find(|(_, frame)| waits(&frame.current));
        if let Some(path) = found.and_then(|(key, frame)| path_at(&self.state, key, frame)) {
            self.push(Event::SignalConsumed { path, name: name.to_owned(), at: self.now });
        }
    }
}

/// What a command or an event takes in a commit.
fn size(stored: &impl Stored) -> usize {
    stored.to_payload().bytes.len().saturating_add(EVENT_OVERHEAD_BYTES)
}

/// Whether a value can be read again: one that nests too deeply cannot.
fn is_readable(json: &Json) -> bool {
    serde_json::from_str::<Value>(json.as_str()).is_ok()
}

fn too_deep() -> Fault {
    ("output_too_deep".to_owned(), "an outcome nests too deeply to be read again".to_owned())
}

fn too_large() -> Fault {
    ("output_too_large".to_owned(), format!("an outcome has at most {OUTPUT_BYTES_MAX} bytes"))
}

/// How long an attempt may take.
fn timeout(step: &Step, kind: &Kind, state: &State, now: TimestampUs) -> DurationUs {
    match kind {
        Kind::Approve { timeout, .. } => *timeout,
        // A saga ends by its own limits; the wait for it, with the waiting one.
        Kind::Saga { .. } => step.timeout.unwrap_or_else(|| state.deadline.since(now)),
        Kind::Model { .. }
        | Kind::Http { .. }
        | Kind::Append { .. }
        | Kind::Notify { .. }
        | Kind::Wait(_)
        | Kind::Signal { .. }
        | Kind::Parallel { .. }
        | Kind::Choice { .. }
        | Kind::Each { .. }
        | Kind::Set { .. }
        | Kind::Fail { .. } => step.timeout.unwrap_or(TIMEOUT_DEFAULT),
    }
}
