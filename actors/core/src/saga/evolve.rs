//! Folding: what each fact changes. Total: a fact that does not fit the state changes nothing but the version.

use std::{collections::BTreeMap, sync::Arc};

use events_model::{
    NanoUsd, TimestampUs,
    saga::{Cause, Event, Json, StepPath},
};

use super::{
    definition::{Kind, StepIndex},
    parse,
    request::Request,
    state::{
        Attempt, Current, Done, Frame, Phase, Round, Shared, State, branch_path, compensated_step, compensation_path,
        split_branch, split_step, step_path, value,
    },
};

/// What a failure is called whose attempt may have done its work all the same.
pub const TIMEOUT: &str = "timeout";
/// What a failure is called whose attempt did its work, with an outcome that cannot be kept.
pub(super) const UNUSABLE: &str = "outcome_unusable";
/// Why a saga stands still whose definition this server cannot read.
pub const UNREADABLE: &str = "definition";

impl State {
    /// Folds one event.
    #[must_use]
    pub fn evolve(mut self, event: &Event) -> Self {
        self.version = self.version.saturating_add(1);
        self.fold(event);
        self
    }

    fn fold(&mut self, event: &Event) {
        // Without its definition nothing of a saga can be told but its end.
        if self.definition.is_none() && !matches!(event, Event::Started { .. }) {
            return self.fold_unread(event);
        }
        match event {
            Event::Started { stream, definition, input, budget, deadline, seed, parent, prices, at } => {
                self.stream = Some(stream.clone());
                (self.input, self.budget, self.deadline) = (input.clone(), *budget, *deadline);
                (self.seed, self.started_at, self.changed_at) = (*seed, *at, *at);
                (self.parent, self.prices) = (parent.clone(), prices.clone());
                self.phase = Phase::Running;
                match parse::load(definition) {
                    Ok(read) => self.definition = Some(Shared(Arc::new(read))),
                    Err(fault) => return self.unread(&fault.message),
                }
                self.frames.insert(StepPath::default(), frame(0, Vec::new()));
            }
            Event::StepStarted { path, attempt, request, reserved, deadline, at } => {
                self.started(path, *attempt, request, *reserved, *deadline, *at);
            }
            Event::StepHeld { path, attempt, at } => {
                self.changed_at = *at;
                self.set_current(path, Current::Held { attempt: *attempt });
            }
            Event::StepSucceeded { path, attempt, output, cost, at } => {
                self.changed_at = *at;
                self.succeeded(path, *attempt, output, *cost);
            }
            Event::StepSkipped { path } => self.skipped(path),
            Event::AttemptFailed { path, attempt, kind, cost, retry_at, at, .. } => {
                self.changed_at = *at;
                self.attempt_failed(path, *attempt, kind, *cost, *retry_at);
            }
            Event::StepFailed { path, kind, cost, at, .. } => {
                self.changed_at = *at;
                let taken = self.settle(path, *cost);
                self.note_unknown(path, kind, taken);
            }
            Event::WaitStarted { path, signal, until, at } => {
                self.changed_at = *at;
                self.count();
                self.set_current(path, Current::Waiting { signal: signal.clone(), until: *until });
            }
            Event::WaitEnded { path, at } => {
                self.changed_at = *at;
                self.step_ended(path, Some(&"null".into()));
            }
            Event::SignalReceived { name, payload, at } => {
                self.changed_at = *at;
                self.signals.push_back((name.clone(), payload.clone()));
            }
            Event::SignalConsumed { path, name, at } => {
                self.changed_at = *at;
                self.signal_consumed(path, name);
            }
            Event::BranchesStarted { path, branches } => self.branches_started(path, branches),
            Event::ItemsFound { path, items } => {
                self.items_found(path, items);
            }
            Event::ItemStarted { path, index } => self.item_started(path, *index),
            Event::BranchEnded { path } => self.branch_ended(path),
            Event::Degraded { level, at, .. } => (self.level, self.changed_at) = (*level, *at),
            Event::LoopCut { at, .. } => self.changed_at = *at,
            Event::UnwindingStarted { cause, path, kind, message, at } => {
                self.changed_at = *at;
                self.unwinding(*cause, path, kind, message);
            }
            Event::CompensationStarted { .. }
            | Event::ChildCancelled { .. }
            | Event::StepCompensated { .. }
            | Event::CompensationFailed { .. }
            | Event::CompensationSkipped { .. }
            | Event::OperatorNeeded { .. }
            | Event::StepRetried { .. }
            | Event::OutcomeIgnored { .. }
            | Event::Completed { .. }
            | Event::Failed { .. }
            | Event::Unwound { .. }
            | Event::Cancelled { .. }
            | Event::Migrated { .. } => self.fold_end(event),
        }
    }

    /// This server cannot read the definition: it stands still until one that can runs it.
    fn unread(&mut self, message: &str) {
        let (kind, message) = (UNREADABLE.to_owned(), message.to_owned());
        let failure = (StepPath::default(), kind.clone(), message.clone());
        self.definition = None;
        self.phase = Phase::NeedsOperator { cause: Cause::Operator, path: StepPath::default(), kind, message, failure };
    }

    fn fold_unread(&mut self, event: &Event) {
        if matches!(
            event,
            Event::Completed { .. } | Event::Failed { .. } | Event::Unwound { .. } | Event::Cancelled { .. }
        ) {
            self.fold_end(event);
        }
    }

    /// What happens to a saga that is undone, ended or in an operator's hands.
    fn fold_end(&mut self, event: &Event) {
        match event {
            Event::CompensationStarted { path, attempt, request, deadline, at } => {
                self.changed_at = *at;
                self.undoing(path, *attempt, request, *deadline);
            }
            Event::StepCompensated { path, at, .. } | Event::CompensationSkipped { path, at, .. } => {
                self.changed_at = *at;
                self.settle(&compensation_path(path), NanoUsd(0));
                self.done.retain(|done| done.path != *path);
                let ended = if matches!(event, Event::StepCompensated { .. }) {
                    &mut self.compensated
                } else {
                    &mut self.left_done
                };
                ended.push(path.clone());
                self.resume();
            }
            Event::CompensationFailed { path, attempt, at, .. } => {
                self.changed_at = *at;
                self.settle(&compensation_path(path), NanoUsd(0));
                if let Some(done) = self.done.iter_mut().find(|done| done.path == *path) {
                    done.attempts = done.attempts.max(*attempt);
                }
            }
            Event::OperatorNeeded { path, kind, message, at, .. } => {
                self.changed_at = *at;
                self.operator_needed(path, kind, message);
            }
            Event::StepRetried { path, at } => {
                self.changed_at = *at;
                self.retried(path, *at);
            }
            Event::Completed { output, at } => self.end(Phase::Completed { output: output.clone() }, *at),
            Event::Failed { kind, message, at } => {
                self.end(Phase::Failed { kind: kind.clone(), message: message.clone() }, *at);
            }
            Event::Unwound { kind, message, at } => {
                self.end(Phase::Unwound { kind: kind.clone(), message: message.clone() }, *at);
            }
            Event::Cancelled { reason, at } => self.end(Phase::Cancelled { reason: reason.clone() }, *at),
            Event::Migrated { definition, at } => {
                self.changed_at = *at;
                match parse::load(definition) {
                    Ok(read) => self.migrate(read),
                    Err(fault) => self.unread(&fault.message),
                }
            }
            Event::OutcomeIgnored { path, output, at, .. } => {
                self.changed_at = *at;
                if !output.as_str().is_empty() && self.done.iter().any(|done| done.path == *path) {
                    self.keep(path, output);
                }
            }
            Event::ChildCancelled { path, at, .. } => {
                self.changed_at = *at;
                if let Some(flying) = self.attempts.get_mut(path) {
                    flying.is_ending = true;
                }
            }
            Event::Started { .. }
            | Event::StepStarted { .. }
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
            | Event::UnwindingStarted { .. } => {}
        }
    }

    fn skipped(&mut self, path: &StepPath) {
        self.count();
        self.step_ended(path, None);
    }

    fn attempt_failed(&mut self, path: &StepPath, attempt: u32, kind: &str, cost: NanoUsd, retry_at: TimestampUs) {
        let taken = self.settle(path, cost);
        if let Some(undone) = compensated_step(path) {
            if let Some(done) = self.done.iter_mut().find(|done| done.path == undone) {
                done.not_before = retry_at;
            }
            return;
        }
        self.note_unknown(path, kind, taken);
        self.set_current(path, Current::Backoff { attempt, until: retry_at });
    }

    fn signal_consumed(&mut self, path: &StepPath, name: &str) {
        let oldest = self.signals.iter().position(|(found, _)| found == name);
        let payload = oldest.and_then(|oldest| self.signals.remove(oldest)).map(|(_, payload)| payload);
        if !matches!(self.current(path), Some(Current::Waiting { .. })) {
            self.count();
        }
        self.step_ended(path, Some(&payload.unwrap_or_else(|| "null".into())));
    }

    fn items_found(&mut self, path: &StepPath, items: &Json) {
        self.count();
        let items = value(items);
        let items = items.as_array().map_or(&[][..], Vec::as_slice).iter().map(super::tree::compact).collect();
        self.set_current(path, Current::Items { items, begun: 0, ended: BTreeMap::new() });
    }

    fn unwinding(&mut self, cause: Cause, path: &StepPath, kind: &str, message: &str) {
        let (kind, message) = (kind.to_owned(), message.to_owned());
        self.phase = Phase::Unwinding { cause, path: path.clone(), kind, message };
        self.frames.clear();
        self.signals.clear();
        self.abandon(|_| true);
    }

    fn undoing(&mut self, path: &StepPath, attempt: u32, request: &Json, deadline: TimestampUs) {
        let Some(done) = self.done.iter_mut().find(|done| done.path == *path) else { return };
        done.attempts = attempt;
        let attempt = Attempt {
            step: done.step,
            attempt,
            request: request.clone(),
            reserved: NanoUsd(0),
            deadline,
            at: self.changed_at,
            rounds: done.rounds.clone(),
            abandoned: false,
            child: Request::child(request),
            is_ending: false,
        };
        self.attempts.insert(compensation_path(path), attempt);
    }

    fn operator_needed(&mut self, path: &StepPath, kind: &str, message: &str) {
        if let Phase::Unwinding { cause, path: failed, kind: why, message: said } = &self.phase {
            self.phase = Phase::NeedsOperator {
                cause: *cause,
                path: path.clone(),
                kind: kind.to_owned(),
                message: message.to_owned(),
                failure: (failed.clone(), why.clone(), said.clone()),
            };
        }
    }

    fn retried(&mut self, path: &StepPath, at: TimestampUs) {
        if let Some(done) = self.done.iter_mut().find(|done| done.path == *path) {
            (done.forgiven, done.not_before) = (done.attempts, at);
        }
        if let Some(Current::Backoff { attempt, .. }) = self.current(path) {
            let attempt = *attempt;
            self.set_current(path, Current::Backoff { attempt, until: at });
        }
        self.resume();
    }

    fn end(&mut self, phase: Phase, at: TimestampUs) {
        (self.phase, self.changed_at) = (phase, at);
        self.frames.clear();
        self.attempts.clear();
    }

    /// Goes on with undoing after an operator's word.
    fn resume(&mut self) {
        if let Phase::NeedsOperator { cause, failure: (path, kind, message), .. } = &self.phase {
            let (cause, path, kind, message) = (*cause, path.clone(), kind.clone(), message.clone());
            self.phase = Phase::Unwinding { cause, path, kind, message };
        }
    }

    fn count(&mut self) {
        self.steps = self.steps.saturating_add(1);
    }

    fn current(&self, path: &StepPath) -> Option<&Current> {
        self.frames.get(&split_step(path).0).map(|frame| &frame.current)
    }

    fn set_current(&mut self, path: &StepPath, current: Current) {
        if let Some(frame) = self.frames.get_mut(&split_step(path).0) {
            frame.current = current;
        }
    }

    fn started(
        &mut self,
        path: &StepPath,
        attempt: u32,
        request: &Json,
        reserved: NanoUsd,
        deadline: TimestampUs,
        at: TimestampUs,
    ) {
        self.changed_at = at;
        self.count();
        let Some(frame) = self.frames.get(&split_step(path).0) else { return };
        let (Some(step), rounds) = (self.at(frame), frame.rounds.clone()) else { return };
        let (request, child) = (request.clone(), Request::child(request));
        self.reserved = self.reserved.plus(reserved);
        let (abandoned, is_ending) = (false, false);
        let started = Attempt { step, attempt, request, reserved, deadline, at, rounds, abandoned, child, is_ending };
        self.attempts.insert(path.clone(), started);
        self.set_current(path, Current::Running);
    }

    /// Takes an attempt out of flight.
    fn settle(&mut self, path: &StepPath, cost: NanoUsd) -> Option<Attempt> {
        let taken = self.attempts.remove(path)?;
        self.reserved = self.reserved.minus(taken.reserved);
        self.spent = self.spent.plus(cost);
        // Whoever waited for what it held may try again, at once.
        for frame in self.frames.values_mut() {
            if let Current::Held { attempt } = frame.current {
                frame.current = Current::Backoff { attempt: attempt.saturating_sub(1), until: TimestampUs(0) };
            }
        }
        Some(taken)
    }

    fn succeeded(&mut self, path: &StepPath, attempt: u32, output: &Json, cost: NanoUsd) {
        if attempt == 0 {
            if !matches!(self.current(path), Some(Current::Branches { .. } | Current::Items { .. })) {
                self.count();
            }
            self.drop_children(path);
            return self.step_ended(path, Some(output));
        }
        let Some(taken) = self.settle(path, cost) else { return };
        self.remember(&taken, output);
        if self.definition().and_then(|read| read.step(taken.step)).is_some_and(|step| step.compensate.is_some()) {
            self.push_done(path, taken.step, taken.rounds);
        }
        if taken.abandoned {
            // What undoes it may want to know what came of it.
            self.keep(path, output);
        } else {
            self.step_ended(path, Some(output));
        }
    }

    /// Whoever does not know whether something was done has to undo it.
    fn note_unknown(&mut self, path: &StepPath, kind: &str, taken: Option<Attempt>) {
        let Some(taken) = taken else { return };
        let has_undo =
            self.definition().and_then(|read| read.step(taken.step)).is_some_and(|step| step.compensate.is_some());
        if matches!(kind, TIMEOUT | UNUSABLE) && has_undo {
            self.push_done(path, taken.step, taken.rounds);
        }
    }

    fn push_done(&mut self, path: &StepPath, step: StepIndex, rounds: Vec<Round>) {
        self.done.retain(|done| done.path != *path);
        let not_before = TimestampUs(0);
        self.done.push(Done { path: path.clone(), step, rounds, attempts: 0, forgiven: 0, not_before });
    }

    fn keep(&mut self, path: &StepPath, output: &Json) {
        let before = self.outputs.insert(path.clone(), output.clone()).map_or(0, |before| before.as_str().len());
        self.outputs_bytes = self.outputs_bytes.saturating_sub(before).saturating_add(output.as_str().len());
    }

    /// Moves the cursor of a step's frame on.
    fn step_ended(&mut self, path: &StepPath, output: Option<&Json>) {
        if let Some(output) = output {
            self.keep(path, output);
        }
        if let Some(frame) = self.frames.get_mut(&split_step(path).0) {
            frame.next = frame.next.saturating_add(1);
            frame.current = Current::Idle;
            if let Some(output) = output {
                frame.last = output.clone();
            }
        }
    }

    fn branches_started(&mut self, path: &StepPath, branches: &[u32]) {
        self.count();
        let Some(frame) = self.frames.get(&split_step(path).0) else { return };
        let rounds = frame.rounds.clone();
        let blocks = self
            .at(frame)
            .and_then(|step| self.definition().and_then(|read| read.step(step)))
            .map(|step| step.kind.blocks())
            .unwrap_or_default();
        for branch in branches {
            if let Some(block) = usize::try_from(*branch).ok().and_then(|branch| blocks.get(branch)) {
                self.frames.insert(branch_path(path, *branch), self::frame(*block, rounds.clone()));
            }
        }
        let count = u32::try_from(branches.len()).unwrap_or(u32::MAX);
        self.set_current(path, Current::Branches { count, ended: BTreeMap::new() });
    }

    fn item_started(&mut self, path: &StepPath, index: u32) {
        let Some(frame) = self.frames.get(&split_step(path).0) else { return };
        let Some(step) = self.at(frame) else { return };
        let Some(Kind::Each { block, .. }) = self.definition().and_then(|read| read.step(step)).map(|step| &step.kind)
        else {
            return;
        };
        let (block, mut rounds) = (*block, frame.rounds.clone());
        let Current::Items { items, .. } = &frame.current else { return };
        let item = usize::try_from(index).ok().and_then(|index| items.get(index)).cloned().unwrap_or_default();
        rounds.push(Round { step, index, item });
        self.frames.insert(branch_path(path, index), self::frame(block, rounds));
        if let Some(Frame { current: Current::Items { begun, .. }, .. }) = self.frames.get_mut(&split_step(path).0) {
            *begun = begun.saturating_add(1);
        }
    }

    fn branch_ended(&mut self, path: &StepPath) {
        let (Some(frame), Some((step, number))) = (self.frames.remove(path), split_branch(path)) else { return };
        if let Some(around) = self.frames.get_mut(&split_step(&step).0)
            && let Current::Branches { ended, .. } | Current::Items { ended, .. } = &mut around.current
        {
            ended.insert(number, frame.last);
        }
    }

    /// Ends what still runs inside a step: the other branches of a `parallel` that waited for one.
    fn drop_children(&mut self, path: &StepPath) {
        let inside = format!("{path}[");
        self.frames.retain(|frame, _| !frame.as_str().starts_with(&inside));
        self.abandon(|attempt| attempt.as_str().starts_with(&inside));
    }

    /// Attempts that nobody waits for stay in flight, for they may have to be undone; people need not answer any more.
    fn abandon(&mut self, inside: impl Fn(&StepPath) -> bool) {
        let mut dropped = Vec::new();
        for (path, attempt) in &mut self.attempts {
            if inside(path) && compensated_step(path).is_none() {
                attempt.abandoned = true;
                if matches!(Request::read(&attempt.request), Some(Request::Approve { .. })) {
                    dropped.push(path.clone());
                }
            }
        }
        for path in dropped {
            self.settle(&path, NanoUsd(0));
        }
    }
}

fn frame(block: u32, rounds: Vec<Round>) -> Frame {
    Frame { block, next: 0, rounds, current: Current::Idle, last: "null".into() }
}

/// The path of the step a frame is at.
pub(super) fn path_at(state: &State, key: &StepPath, frame: &Frame) -> Option<StepPath> {
    let step = state.at(frame)?;
    state.definition().and_then(|read| read.step(step)).map(|step| step_path(key, &step.id))
}
