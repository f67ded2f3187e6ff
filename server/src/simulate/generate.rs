//! One response being generated, token by token.
//!
//! Invariants: generation moves only when it is polled, so a reader that stops reading stops it (and its bill); every
//! token is entered into the ledger before it is handed on; with no latency, no pace and no stall there is no timer
//! at all. Tokens follow an absolute schedule: a slow poll does not slow the pace down.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use super::{
    dice::{Length, Plan},
    ledger::{Attempt, Fault},
    text::Words,
};

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A token of one choice.
    Token { choice: usize, word: &'static str },
    /// Something that is not JSON, once, in front of the next token.
    Malformed,
    /// The connection breaks here.
    Cut,
    /// All tokens were generated.
    End,
}

/// The generator of one accepted request; it owns the attempt.
pub(super) struct Generator {
    pub(super) attempt: Attempt,
    pub(super) lengths: Vec<Length>,
    choices: Vec<Choice>,
    /// The choice whose turn it is.
    turn: usize,
    total: u64,
    pace: Pace,
    cut_at: Option<u64>,
    malformed_at: Option<u64>,
}

struct Choice {
    words: Words,
    left: u32,
}

impl Generator {
    /// Prepares the response of an attempt that was accepted; the time to the first token starts here.
    pub(super) fn new(attempt: Attempt, plan: Plan, words: impl Fn(u32) -> Words) -> Self {
        if plan.overrun {
            attempt.note(Fault::Overrun);
        }
        let choices: Vec<_> = (0..)
            .zip(&plan.lengths)
            .map(|(index, length)| Choice { words: words(index), left: length.tokens })
            .collect();
        Self {
            attempt,
            choices,
            turn: 0,
            total: plan.lengths.iter().map(|length| u64::from(length.tokens)).sum(),
            pace: Pace::new(plan.first_token, plan.interval, plan.stall),
            cut_at: plan.cut_at,
            malformed_at: plan.malformed_at,
            lengths: plan.lengths,
        }
    }

    /// Ready when the first token is due.
    pub(super) fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.pace.poll(context, 0, &self.attempt)
    }

    /// The next step.
    pub(super) fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        let index = self.attempt.generated();
        if index >= self.total {
            return Poll::Ready(Step::End);
        }
        if self.cut_at == Some(index) {
            return Poll::Ready(Step::Cut);
        }
        ready!(self.pace.poll(context, index, &self.attempt));
        if self.malformed_at.take_if(|at| *at == index).is_some() {
            self.attempt.note(Fault::Malformed);
            return Poll::Ready(Step::Malformed);
        }
        // Choices take turns, as if they were generated side by side.
        loop {
            let turn = self.turn;
            self.turn = (turn + 1) % self.choices.len().max(1);
            let Some(choice) = self.choices.get_mut(turn) else { return Poll::Ready(Step::End) };
            if choice.left > 0 {
                choice.left -= 1;
                let word = choice.words.next_word();
                self.attempt.token();
                return Poll::Ready(Step::Token { choice: turn, word });
            }
        }
    }
}

/// When tokens are due.
struct Pace {
    timer: Option<Pin<Box<Sleep>>>,
    interval: Duration,
    stall: Option<(u64, Duration)>,
    /// Tokens whose time was set: polling again must not move it.
    armed: u64,
}

impl Pace {
    fn new(first_token: Duration, interval: Duration, stall: Option<(u64, Duration)>) -> Self {
        let timed = !first_token.is_zero() || !interval.is_zero();
        Self { timer: timed.then(|| Box::pin(sleep(first_token))), interval, stall, armed: 0 }
    }

    fn poll(&mut self, context: &mut Context<'_>, index: u64, attempt: &Attempt) -> Poll<()> {
        if self.armed <= index {
            self.armed = index + 1;
            self.arm(index, attempt);
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }

    fn arm(&mut self, index: u64, attempt: &Attempt) {
        if let Some(timer) = &mut self.timer
            && index > 0
            && !self.interval.is_zero()
        {
            let due = timer.deadline() + self.interval;
            timer.as_mut().reset(due);
        }
        if let Some((_, length)) = self.stall.take_if(|(at, _)| *at == index) {
            attempt.note(Fault::Stalled);
            let mut stalled = Box::pin(sleep(length));
            if let Some(timer) = &self.timer {
                let due = stalled.deadline().max(timer.deadline() + length);
                stalled.as_mut().reset(due);
            }
            self.timer = Some(stalled);
        }
    }
}
