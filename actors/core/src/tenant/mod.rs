//! The tenant actor's rules: lifecycle, keys, plan, limits, budgets, reservations.
//!
//! Invariants (ids in `crate::invariant`): what is settled and reserved in a period never exceeds its budget; what
//! is reserved is the sum of the open reservations. A request is admitted with its worst case and settles at most
//! that, so no interleaving of admissions and settlements can overshoot.

mod admit;
mod bucket;
mod decide;
mod evolve;
mod state;

use std::borrow::Cow;

use events_model::{
    DurationUs, NanoUsd, RequestId, TimestampUs, Tokens,
    tenant::{Command, Event, Period, RefusalReason},
};

pub use self::{
    bucket::Bucket,
    evolve::apply,
    state::{Key, Reservation, State, Status, Totals, Window},
};
use serde::{Deserialize, Serialize};

use crate::{Context, Decider, Due};

/// Most keys a tenant may have that are not revoked.
pub const KEYS_MAX: usize = 256;
/// Most revoked keys that stay in the state; older ones are in the log alone.
pub const KEYS_REVOKED_MAX: usize = 64;
/// Most tokens of one request, prompt and answer together.
pub const REQUEST_TOKENS_MAX: Tokens = Tokens(100_000_000);

/// The rules.
#[derive(Debug)]
pub struct Tenant;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// Nobody registered it.
    #[error("the tenant is not registered")]
    NotRegistered,
    /// Somebody registered it before.
    #[error("the tenant is registered already")]
    AlreadyRegistered,
    /// It admits nothing.
    #[error("the tenant is suspended: {reason}")]
    Suspended {
        /// Why.
        reason: String,
    },
    /// It is not suspended.
    #[error("the tenant is not suspended")]
    NotSuspended,
    /// There is no such key, or it was revoked.
    #[error("the API key is unknown or revoked")]
    UnknownKey,
    /// The key exists already.
    #[error("the key exists already")]
    KeyExists,
    /// The tenant has `KEYS_MAX` keys.
    #[error("the tenant has {KEYS_MAX} keys, the most it may have")]
    TooManyKeys,
    /// A value is out of its bounds.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    /// A ceiling would lie below what is settled and reserved.
    #[error("{committed} are settled or reserved this {} already; the budget cannot be less", .period.name())]
    BudgetBelowCommitted {
        /// Which period.
        period: Period,
        /// Settled and reserved.
        committed: NanoUsd,
    },
    /// Too many requests per second.
    #[error("more requests per second than the plan allows")]
    RequestRate {
        /// When one more fits.
        retry_after: DurationUs,
    },
    /// Too many tokens per minute.
    #[error("more tokens per minute than the plan allows: the request may need {needed}")]
    TokenRate {
        /// When it fits; `None` = never, it is larger than the bucket.
        retry_after: Option<DurationUs>,
        /// Worst case of the request.
        needed: Tokens,
    },
    /// Too many requests at once.
    #[error("{open} requests are open, the most the plan allows")]
    Concurrency {
        /// How many are open.
        open: u32,
    },
    /// The budget has no room for the worst case.
    #[error("the {} budget has {available} left, the request may need {needed}", .period.name())]
    BudgetExhausted {
        /// Which period.
        period: Period,
        /// Worst case of the request.
        needed: NanoUsd,
        /// What is left.
        available: NanoUsd,
        /// When the period ends.
        resets_at: TimestampUs,
    },
    /// Dearer than one request may be.
    #[error("the request may cost {needed}, a single one may cost {limit}")]
    RequestTooDear {
        /// Worst case of the request.
        needed: NanoUsd,
        /// The plan's bound.
        limit: NanoUsd,
    },
    /// The request was admitted before.
    #[error("the request was admitted before")]
    AlreadyAdmitted,
    /// Nothing is held for the request: it settled or expired before, or was never admitted.
    #[error("request {request_id} has no open reservation")]
    NotOpen {
        /// The request.
        request_id: RequestId,
    },
    /// The reservation still has time.
    #[error("the reservation has not reached its deadline")]
    NotDue,
}

/// A request to the world that follows an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Call the upstream for an admitted request.
    CallModel {
        /// The request.
        request_id: RequestId,
        /// Which upstream.
        upstream: String,
        /// Name of the model there.
        upstream_model: String,
        /// What it may cost at the most.
        reserved: NanoUsd,
        /// Bound on the answer.
        completion_tokens_max: Tokens,
    },
}

/// What a caller sees of its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Size of the request bucket.
    pub limit_requests: u64,
    /// Requests that fit now.
    pub remaining_requests: u64,
    /// When the request bucket is full again.
    pub reset_requests: DurationUs,
    /// Size of the token bucket.
    pub limit_tokens: u64,
    /// Tokens that fit now.
    pub remaining_tokens: u64,
    /// When the token bucket is full again.
    pub reset_tokens: DurationUs,
}

impl Decider for Tenant {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Effect = Effect;
    type View = View;

    const VERSION: u32 = 1;

    fn decide(state: &State, command: &Command, context: &Context) -> Result<Vec<Event>, Rejection> {
        decide::decide(state, command, context)
    }

    fn evolve(mut state: State, event: &Event) -> State {
        evolve::apply(&mut state, event);
        state
    }

    fn react(_state: &State, event: &Event) -> Vec<Effect> {
        if let Event::RequestAdmitted { request, reserved, .. } = event {
            return vec![Effect::CallModel {
                request_id: request.request_id,
                upstream: request.upstream.clone(),
                upstream_model: request.upstream_model.clone(),
                reserved: *reserved,
                completion_tokens_max: request.completion_tokens_max,
            }];
        }
        Vec::new()
    }

    fn view(state: &State, now: TimestampUs) -> View {
        state.plan().map(|plan| bucket::view(state, plan, now)).unwrap_or_default()
    }

    fn next_deadline(state: &State) -> Option<TimestampUs> {
        state.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn due(state: &State, now: TimestampUs, limit: usize) -> Vec<Due<Command>> {
        let due = state.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).take(limit);
        due.filter_map(|(_, request_id)| {
            // Always a valid id: a UUID behind a short ASCII word.
            let commit_id = events_model::CommitId::new(&format!("expire/{request_id}")).ok()?;
            let command = Command::ExpireReservation { request_id: *request_id };
            Some(Due { commit_id, episode_id: (*request_id).into(), command })
        })
        .collect()
    }

    fn refusal(rejection: &Rejection) -> Option<RefusalReason> {
        match rejection {
            Rejection::Suspended { .. } => Some(RefusalReason::Suspended),
            Rejection::UnknownKey => Some(RefusalReason::Key),
            Rejection::RequestRate { .. } => Some(RefusalReason::RequestRate),
            Rejection::TokenRate { .. } => Some(RefusalReason::TokenRate),
            Rejection::Concurrency { .. } => Some(RefusalReason::Concurrency),
            Rejection::BudgetExhausted { .. } => Some(RefusalReason::Budget),
            Rejection::RequestTooDear { .. } => Some(RefusalReason::RequestCost),
            Rejection::NotRegistered
            | Rejection::AlreadyRegistered
            | Rejection::NotSuspended
            | Rejection::KeyExists
            | Rejection::TooManyKeys
            | Rejection::Invalid(_)
            | Rejection::BudgetBelowCommitted { .. }
            | Rejection::AlreadyAdmitted
            | Rejection::NotOpen { .. }
            | Rejection::NotDue => None,
        }
    }

    fn record_refusals(reason: RefusalReason, second: u64, count: u64) -> Option<Command> {
        Some(Command::RecordRefusals { reason, second, count })
    }
}
