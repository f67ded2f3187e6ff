//! Undoing: the steps that were done, last first, one at a time, each until it is undone or an operator is needed.
//!
//! It begins when nothing is in flight any more: what an attempt did can only be undone once it is known. A step whose
//! last word was a timeout is undone as well, for it may have been done.

use events_model::{
    NanoUsd, TimestampUs,
    saga::{Cause, Event, StepPath},
};

use super::{
    definition::{Kind, WAIT_MAX},
    draft::{Draft, TIMEOUT_DEFAULT},
    render::{Site, cut},
    state::{Attempt, Phase, compensation_path},
};

/// Most steps that are named to an operator, of those that are undone (the last) and those that are left (the next);
/// with more, the message says how many there are.
pub const PATHS_SHOWN_MAX: usize = 100;

impl Draft {
    pub(super) fn advance_unwinding(&mut self) {
        if !self.state.attempts.is_empty() {
            return;
        }
        let Some(next) = self.state.done.last().cloned() else { return self.end_unwinding() };
        if next.not_before > self.now {
            return;
        }
        let Some(definition) = self.state.definition().cloned() else { return };
        let Some(undo) = definition.step(next.step).and_then(|step| step.compensate.as_ref()) else {
            return self.push(Event::CompensationSkipped {
                path: next.path,
                reason: "the definition does not undo it any more".to_owned(),
                at: self.now,
            });
        };
        let attempt = next.attempts.saturating_add(1);
        let site = Site::new(&self.state, &next.rounds, self.now, &self.work);
        match site.request(&undo.kind, &compensation_path(&next.path), attempt) {
            Ok((request, _)) => {
                // A saga ends by its own limits.
                let longest = if matches!(undo.kind, Kind::Saga { .. }) { WAIT_MAX } else { TIMEOUT_DEFAULT };
                let deadline = self.now.after(undo.timeout.unwrap_or(longest));
                self.push(Event::CompensationStarted { path: next.path, attempt, request, deadline, at: self.now });
            }
            Err((kind, message)) => self.need_operator(&next.path, next.attempts, kind, message),
        }
    }

    fn end_unwinding(&mut self) {
        let Phase::Unwinding { cause, kind, message, .. } = self.state.phase.clone() else { return };
        let at = self.now;
        self.push(match cause {
            Cause::Cancelled => Event::Cancelled { reason: message, at },
            Cause::StepFailed | Cause::Limit | Cause::Operator
                if self.state.compensated.is_empty() && self.state.left_done.is_empty() =>
            {
                Event::Failed { kind, message, at }
            }
            Cause::StepFailed | Cause::Limit | Cause::Operator => Event::Unwound { kind, message, at },
        });
    }

    /// An attempt to undo a step failed.
    pub(super) fn undo_failed(&mut self, path: &StepPath, flying: &Attempt, kind: String, message: &str) {
        let definition = self.state.definition().cloned();
        let undo =
            definition.as_ref().and_then(|read| read.step(flying.step)).and_then(|step| step.compensate.as_ref());
        let done = self.state.done.iter().find(|done| done.path == *path);
        let forgiven = done.map_or(0, |done| done.forgiven);
        let tried = flying.attempt.saturating_sub(forgiven);
        let whole = compensation_path(path);
        match undo.and_then(|undo| self.retry_at(&undo.retry, &whole, tried, &kind)) {
            Some(retry_at) => self.push(Event::AttemptFailed {
                path: whole,
                attempt: flying.attempt,
                kind,
                message: cut(message),
                cost: NanoUsd(0),
                retry_at,
                at: self.now,
            }),
            None => self.need_operator(path, flying.attempt, kind, cut(message)),
        }
    }

    fn need_operator(&mut self, path: &StepPath, attempt: u32, kind: String, message: String) {
        let (failed, at) = (path.clone(), self.now);
        let (what, said) = (kind.clone(), message.clone());
        self.push(Event::CompensationFailed { path: failed, attempt, kind: what, message: said, at });
        let (undone, left) = (self.state.compensated.len(), self.state.done.len());
        let message = if undone.max(left) > PATHS_SHOWN_MAX {
            cut(&format!("{undone} steps are undone, {left} are left; {message}"))
        } else {
            message
        };
        let newest = undone.saturating_sub(PATHS_SHOWN_MAX);
        let compensated = self.state.compensated.iter().skip(newest).cloned().collect();
        let remaining = self.state.done.iter().rev().take(PATHS_SHOWN_MAX).map(|done| done.path.clone()).collect();
        self.push(Event::OperatorNeeded { path: path.clone(), kind, message, compensated, remaining, at });
    }
}

/// When undoing goes on by itself, if it waits for nothing else.
pub(super) fn resumes_at(state: &super::state::State) -> Option<TimestampUs> {
    if !state.attempts.is_empty() {
        return None;
    }
    Some(state.done.last().map_or(state.changed_at, |done| done.not_before.max(state.changed_at)))
}
