//! Loop safety: how near a saga is to its limits, and what follows.
//!
//! Between half of a limit and the limit itself the levels of degrading are applied, spread evenly; at the limit it is
//! cut. A reservation that does not fit applies all levels that are left before it cuts.

use events_model::{
    TimestampUs,
    saga::{Json, Limit},
};

use super::{
    definition::Definition,
    state::{Attempt, HISTORY_LEN_MAX, OUTPUTS_BYTES_MAX, State, hash},
};

/// What a limit demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// The next level of degrading.
    Degrade(Limit),
    /// The end.
    Cut(Limit),
}

/// Judges a saga before it begins a step.
pub(super) fn judge(state: &State, definition: &Definition, now: TimestampUs) -> Verdict {
    let uses = uses(state, definition, now);
    if let Some((limit, ..)) = uses.iter().find(|(_, used, most)| used >= most) {
        return Verdict::Cut(*limit);
    }
    let levels = u64::try_from(definition.degrade.len()).unwrap_or(u64::MAX);
    let next = u64::from(state.level).saturating_add(1);
    if next > levels {
        return Verdict::Fine;
    }
    let spend = (Limit::Spend, amount(state.spent.plus(state.reserved).0), amount(state.budget.0));
    let near = |(_, used, most): &&(Limit, u64, u64)| {
        // used / most >= 1/2 + next / (2 * (levels + 1))
        let parts = levels.saturating_add(1);
        let left = u128::from(*used).saturating_mul(2).saturating_mul(parts.into());
        let right = u128::from(*most).saturating_mul(parts.saturating_add(next).into());
        *most > 0 && left >= right
    };
    let found = uses.iter().chain([&spend]).find(near).map(|(limit, ..)| *limit);
    found.map_or(Verdict::Fine, Verdict::Degrade)
}

/// What is used of each limit but money, which is judged when some is reserved.
fn uses(state: &State, definition: &Definition, now: TimestampUs) -> [(Limit, u64, u64); 5] {
    let limits = &definition.limits;
    let lifetime = state.deadline.since(state.started_at).0;
    [
        (Limit::Steps, state.steps.into(), limits.steps.into()),
        (Limit::WallTime, now.since(state.started_at).0, lifetime),
        (Limit::Repeats, repeats(state, definition), limits.same.into()),
        (Limit::NoProgress, state.no_progress.into(), limits.no_progress_steps.into()),
        (Limit::OutputBytes, size(state.outputs_bytes), size(OUTPUTS_BYTES_MAX)),
    ]
}

impl State {
    /// Notes what came of a step, for the search for repeats and progress.
    pub(super) fn remember(&mut self, taken: &Attempt, output: &Json) {
        let step = taken.step.to_le_bytes();
        let request = taken.request.as_str().as_bytes();
        let whole = hash([&step[..], request, output.as_str().as_bytes()]);
        let new = !self.history.contains(&whole);
        self.no_progress = if new { 0 } else { self.no_progress.saturating_add(1) };
        self.history.push_back(whole);
        if self.history.len() > HISTORY_LEN_MAX {
            self.history.pop_front();
        }
    }
}

/// How often the last outcome, with what was asked, is within the window.
fn repeats(state: &State, definition: &Definition) -> u64 {
    let window = usize::try_from(definition.limits.window).unwrap_or(usize::MAX);
    let Some(last) = state.history.back() else { return 0 };
    size(state.history.iter().rev().take(window).filter(|whole| *whole == last).count())
}

fn size(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

fn amount(nano: i64) -> u64 {
    u64::try_from(nano).unwrap_or(0)
}
