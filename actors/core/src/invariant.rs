//! What always holds of a tenant, by id; tests, chaos and metrics use the same ids.

use events_model::{NanoUsd, TimestampUs};

use crate::tenant::State;

/// A rule that always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// T-1: settled plus reserved never exceeds the budget of any period.
    BudgetHolds,
    /// T-2: what a window has reserved is the sum of the open reservations admitted in it.
    ReservedIsOpen,
    /// T-3: every open reservation has its deadline, and no deadline is without a reservation.
    DeadlinesMatch,
}

impl Invariant {
    /// Its id.
    pub const fn id(self) -> &'static str {
        match self {
            Self::BudgetHolds => "T-1",
            Self::ReservedIsOpen => "T-2",
            Self::DeadlinesMatch => "T-3",
        }
    }
}

/// The first invariant that a tenant's state breaks at a time, if it breaks one.
pub fn broken(state: &State, now: TimestampUs) -> Option<Invariant> {
    let over = |limit: Option<NanoUsd>, committed| limit.is_some_and(|limit| committed > limit);
    if state.windows.iter().any(|window| over(window.limit, window.committed(now))) {
        return Some(Invariant::BudgetHolds);
    }
    for window in &state.windows {
        let open = state
            .reservations
            .values()
            .filter(|held| window.holds(held.admitted_at))
            .fold(NanoUsd::ZERO, |sum, held| sum.plus(held.reserved));
        if open != window.reserved {
            return Some(Invariant::ReservedIsOpen);
        }
    }
    let deadlines = state.reservations.iter().map(|(id, held)| (held.deadline, *id));
    if deadlines.clone().count() != state.deadlines.len()
        || deadlines.into_iter().any(|at| !state.deadlines.contains(&at))
    {
        return Some(Invariant::DeadlinesMatch);
    }
    None
}
