//! Admission: may this request go to its upstream, and what must be held for it?

use events_model::{
    NanoUsd, TimestampUs, Tokens,
    tenant::{AdmitRequest, Event, Plan, TEXT_BYTES_MAX},
};

use super::{
    REQUEST_TOKENS_MAX, Rejection, State, Status,
    bucket::{REQUEST_PARTS, TOKEN_PARTS, request_flow, token_flow},
};
use crate::{Context, calendar, price};

/// Decides on an admission. The order of the rules is the order in which a caller can mend what they say.
pub(super) fn admit(state: &State, request: &AdmitRequest, context: &Context) -> Result<Vec<Event>, Rejection> {
    let now = context.now;
    let plan = state.plan().ok_or(Rejection::NotRegistered)?;
    if let Status::Suspended { reason } = &state.status {
        return Err(Rejection::Suspended { reason: reason.clone() });
    }
    if state.keys.get(&request.key_id).is_none_or(|key| key.revoked_at.is_some()) {
        return Err(Rejection::UnknownKey);
    }
    if state.reservations.contains_key(&request.request_id) {
        return Err(Rejection::AlreadyAdmitted);
    }
    if request.served_by.len() > TEXT_BYTES_MAX {
        return Err(Rejection::Invalid("a text is longer than 512 bytes".into()));
    }
    let tokens = request.prompt_tokens_max.plus(request.completion_tokens_max);
    if tokens > REQUEST_TOKENS_MAX {
        return Err(Rejection::Invalid("a request may need at most 100,000,000 tokens".into()));
    }
    if request.deadline <= now {
        return Err(Rejection::Invalid("the deadline of the request has passed".into()));
    }
    let needed = price::cost(&request.price, request.prompt_tokens_max, request.completion_tokens_max);
    if needed > plan.request_cost_max {
        return Err(Rejection::RequestTooDear { needed, limit: plan.request_cost_max });
    }
    check_budgets(state, needed, now)?;
    check_rates(state, plan, tokens, now)?;
    Ok(vec![Event::RequestAdmitted { request: request.clone(), reserved: needed, at: now }])
}

fn check_budgets(state: &State, needed: NanoUsd, now: TimestampUs) -> Result<(), Rejection> {
    for window in &state.windows {
        let Some(limit) = window.limit else { continue };
        let available = limit.minus(window.committed(now));
        if needed > available {
            let (period, available) = (window.period, available.max(NanoUsd::ZERO));
            let resets_at = calendar::period_end(period, now);
            return Err(Rejection::BudgetExhausted { period, needed, available, resets_at });
        }
    }
    Ok(())
}

fn check_rates(state: &State, plan: &Plan, tokens: Tokens, now: TimestampUs) -> Result<(), Rejection> {
    if state.open() >= plan.concurrency_max {
        return Err(Rejection::Concurrency { open: state.open() });
    }
    let wait = state.request_bucket.wait_for(request_flow(plan), REQUEST_PARTS, now).unwrap_or_default();
    if wait.0 > 0 {
        return Err(Rejection::RequestRate { retry_after: wait });
    }
    let wait = state.token_bucket.wait_for(token_flow(plan), tokens.0.saturating_mul(TOKEN_PARTS), now);
    if wait.is_none_or(|wait| wait.0 > 0) {
        return Err(Rejection::TokenRate { retry_after: wait, needed: tokens });
    }
    Ok(())
}
