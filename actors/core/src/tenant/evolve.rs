//! How an event changes the state. Total: a logged event is a fact, whatever the present rules say of it.

use events_model::{
    KeyId, NanoUsd, RequestId, TimestampUs, Tokens,
    tenant::{AdmitRequest, Budget, Event, Plan, SettleRequest},
};

use super::{
    KEYS_REVOKED_MAX, Key, Reservation, State, Status,
    bucket::{Bucket, REQUEST_PARTS, TOKEN_PARTS, request_flow, token_flow},
};
use crate::calendar;

/// Folds one event into the state where it lies: a fold over a whole log moves no states.
pub fn apply(state: &mut State, event: &Event) {
    match event {
        Event::TenantRegistered { display_name, plan, zone, at } => {
            state.status = Status::Active;
            state.display_name.clone_from(display_name);
            state.zone.clone_from(zone);
            state.registered_at = *at;
            take_plan(state, plan, *at);
        }
        Event::ApiKeyIssued { key_id, prefix, hash, label, at } => {
            let (prefix, label) = (prefix.clone(), label.clone());
            let key = Key { prefix, hash: *hash, label, issued_at: *at, revoked_at: None };
            state.keys.insert(key_id.clone(), key);
        }
        Event::ApiKeyRevoked { key_id, at, .. } => {
            if let Some(key) = state.keys.get_mut(key_id) {
                key.revoked_at = Some(*at);
            }
            forget_revoked_keys(state);
        }
        Event::PlanSet { plan, at } => take_plan(state, plan, *at),
        Event::BudgetSet { period, limit, .. } => {
            for window in state.windows.iter_mut().filter(|window| window.period == *period) {
                window.limit = *limit;
            }
        }
        Event::TenantSuspended { reason, .. } => state.status = Status::Suspended { reason: reason.clone() },
        Event::TenantResumed { .. } => state.status = Status::Active,
        Event::RequestAdmitted { request, reserved, at } => admitted(state, request, *reserved, *at),
        Event::RequestSettled { settlement, cost, overrun, at, .. } => {
            settled(state, settlement, *cost, *overrun, *at);
        }
        Event::ReservationExpired { request_id, at, .. } => {
            if close(state, *request_id, NanoUsd::ZERO, Tokens::ZERO, *at) {
                state.totals.expired = state.totals.expired.saturating_add(1);
            }
        }
        Event::RequestsRefused { reason, count, .. } => {
            let refused = state.totals.refused.entry(*reason).or_default();
            *refused = refused.saturating_add(*count);
        }
    }
}

/// Keys that were revoked long ago leave the state, so that keys can be changed for ever.
fn forget_revoked_keys(state: &mut State) {
    let revoked = |(id, key): (&KeyId, &Key)| key.revoked_at.map(|at| (at, id.clone()));
    let mut revoked: Vec<_> = state.keys.iter().filter_map(revoked).collect();
    revoked.sort_unstable();
    let too_many = revoked.len().saturating_sub(KEYS_REVOKED_MAX);
    for (_, id) in revoked.iter().take(too_many) {
        state.keys.remove(id);
    }
}

fn take_plan(state: &mut State, plan: &Plan, at: TimestampUs) {
    state.request_bucket = Bucket::full(request_flow(plan), at);
    state.token_bucket = Bucket::full(token_flow(plan), at);
    let old = state.plan.take().map(|plan| plan.budgets).unwrap_or_default();
    for window in &mut state.windows {
        let brought =
            |budgets: &[Budget]| budgets.iter().find(|budget| budget.period == window.period).map(|b| b.limit);
        // A ceiling that the old plan brought goes with it; one that the operator set stays.
        if window.limit.is_some() && window.limit == brought(&old) {
            window.limit = None;
        }
        window.limit = brought(&plan.budgets).or(window.limit);
    }
    state.plan = Some(plan.clone());
}

fn admitted(state: &mut State, request: &AdmitRequest, reserved: NanoUsd, at: TimestampUs) {
    for window in &mut state.windows {
        if at >= window.end {
            window.start = calendar::period_start(window.period, at);
            window.end = calendar::period_end(window.period, at);
            window.settled = NanoUsd::ZERO;
            window.reserved = NanoUsd::ZERO;
        }
        // The same condition as in `close`, so that what enters also leaves.
        if window.holds(at) {
            window.reserved = window.reserved.plus(reserved);
        }
    }
    let tokens = request.prompt_tokens_max.plus(request.completion_tokens_max);
    if let Some(plan) = &state.plan {
        state.request_bucket = state.request_bucket.take(request_flow(plan), REQUEST_PARTS, at);
        let parts = tokens.0.saturating_mul(TOKEN_PARTS);
        state.token_bucket = state.token_bucket.take(token_flow(plan), parts, at);
    }
    let reservation = Reservation {
        reserved,
        price: request.price,
        tokens,
        model: request.model.clone(),
        upstream: request.upstream.clone(),
        served_by: request.served_by.clone(),
        admitted_at: at,
        deadline: request.deadline,
    };
    state.deadlines.insert((request.deadline, request.request_id));
    state.reservations.insert(request.request_id, reservation);
    state.totals.admitted = state.totals.admitted.saturating_add(1);
}

fn settled(state: &mut State, settlement: &SettleRequest, cost: NanoUsd, overrun: NanoUsd, at: TimestampUs) {
    let usage = &settlement.usage;
    let used = usage.prompt_tokens.plus(usage.completion_tokens);
    if close(state, settlement.request_id, cost, used, at) {
        let totals = &mut state.totals;
        totals.settled = totals.settled.saturating_add(1);
        totals.prompt_tokens = totals.prompt_tokens.plus(usage.prompt_tokens);
        totals.completion_tokens = totals.completion_tokens.plus(usage.completion_tokens);
        totals.cost = totals.cost.plus(cost);
        totals.overrun = totals.overrun.plus(overrun);
    }
}

/// Ends a reservation: its money leaves `reserved`, its cost enters `settled` of the period it was admitted in, and
/// the tokens it did not use flow back.
fn close(state: &mut State, request_id: RequestId, cost: NanoUsd, used: Tokens, at: TimestampUs) -> bool {
    let Some(reservation) = state.reservations.remove(&request_id) else { return false };
    state.deadlines.remove(&(reservation.deadline, request_id));
    for window in &mut state.windows {
        // A reservation of an earlier period left the window when the period turned.
        if window.holds(reservation.admitted_at) {
            window.reserved = window.reserved.minus(reservation.reserved);
            window.settled = window.settled.plus(cost);
        }
    }
    if let Some(plan) = &state.plan {
        let unused = reservation.tokens.minus(used).0.saturating_mul(TOKEN_PARTS);
        state.token_bucket = state.token_bucket.put(token_flow(plan), unused, at);
    }
    true
}
