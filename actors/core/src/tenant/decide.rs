//! Which events a command causes.

use events_model::{
    NanoUsd, RequestId,
    tenant::{Command, Event, Period, Plan, SettleRequest, TEXT_BYTES_MAX},
};

use super::{KEYS_MAX, Rejection, State, Status, admit::admit};
use crate::{Context, plan, price};

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Vec<Event>, Rejection> {
    let at = context.now;
    if let Command::RegisterTenant { display_name, plan, zone } = command {
        return register(state, display_name, plan, zone, context);
    }
    if state.status == Status::Unregistered {
        return Err(Rejection::NotRegistered);
    }
    let event = match command {
        Command::RegisterTenant { .. } => return Err(Rejection::AlreadyRegistered),
        Command::IssueApiKey { key_id, prefix, hash, label } => {
            if state.keys.contains_key(key_id) {
                return Err(Rejection::KeyExists);
            }
            if state.keys.values().filter(|key| key.revoked_at.is_none()).count() >= KEYS_MAX {
                return Err(Rejection::TooManyKeys);
            }
            plain(prefix)?;
            plain(label)?;
            let (key_id, prefix, label) = (key_id.clone(), prefix.clone(), label.clone());
            Event::ApiKeyIssued { key_id, prefix, hash: *hash, label, at }
        }
        Command::RevokeApiKey { key_id, reason } => {
            plain(reason)?;
            if state.keys.get(key_id).is_none_or(|key| key.revoked_at.is_some()) {
                return Err(Rejection::UnknownKey);
            }
            Event::ApiKeyRevoked { key_id: key_id.clone(), reason: reason.clone(), at }
        }
        Command::SetPlan { plan } => set_plan(state, plan, context)?,
        Command::SetBudget { period, limit } => {
            check_budget(state, *period, *limit, context)?;
            Event::BudgetSet { period: *period, limit: *limit, at }
        }
        Command::Suspend { reason } => {
            plain(reason)?;
            if let Status::Suspended { reason } = &state.status {
                return Err(Rejection::Suspended { reason: reason.clone() });
            }
            Event::TenantSuspended { reason: reason.clone(), at }
        }
        Command::Resume => {
            if state.status == Status::Active {
                return Err(Rejection::NotSuspended);
            }
            Event::TenantResumed { at }
        }
        Command::AdmitRequest(request) => return admit(state, request, context),
        Command::SettleRequest(settlement) => settle(state, settlement, context)?,
        Command::ExpireReservation { request_id } => expire(state, *request_id, context)?,
        Command::RecordRefusals { reason, second, count } => {
            Event::RequestsRefused { reason: *reason, second: *second, count: *count }
        }
    };
    Ok(vec![event])
}

fn short(text: &str) -> Result<(), Rejection> {
    if text.len() > TEXT_BYTES_MAX { Err(Rejection::Invalid("a text is longer than 512 bytes".into())) } else { Ok(()) }
}

/// A text of an operator's: short, and shown on terminals as it is.
fn plain(text: &str) -> Result<(), Rejection> {
    if text.chars().any(char::is_control) {
        return Err(Rejection::Invalid("a text has control characters".into()));
    }
    short(text)
}

fn register(
    state: &State,
    display_name: &str,
    plan: &Plan,
    zone: &str,
    context: &Context,
) -> Result<Vec<Event>, Rejection> {
    if state.status != Status::Unregistered {
        return Err(Rejection::AlreadyRegistered);
    }
    plain(display_name)?;
    plain(zone)?;
    if let Some(fault) = plan::fault(plan) {
        return Err(Rejection::Invalid(fault.into()));
    }
    let (display_name, plan, zone) = (display_name.to_owned(), plan.clone(), zone.to_owned());
    Ok(vec![Event::TenantRegistered { display_name, plan, zone, at: context.now }])
}

fn set_plan(state: &State, plan: &Plan, context: &Context) -> Result<Event, Rejection> {
    if let Some(fault) = plan::fault(plan) {
        return Err(Rejection::Invalid(fault.into()));
    }
    for budget in &plan.budgets {
        check_budget(state, budget.period, Some(budget.limit), context)?;
    }
    Ok(Event::PlanSet { plan: plan.clone(), at: context.now })
}

/// A ceiling below what is committed already would be broken the moment it is set.
fn check_budget(state: &State, period: Period, limit: Option<NanoUsd>, context: &Context) -> Result<(), Rejection> {
    let Some(limit) = limit else { return Ok(()) };
    if limit < NanoUsd::ZERO || limit > plan::LIMIT_MAX {
        return Err(Rejection::Invalid("a budget must be $0 to $1,000,000,000".into()));
    }
    let window = state.windows.iter().find(|window| window.period == period);
    let committed = window.map_or(NanoUsd::ZERO, |window| window.committed(context.now));
    if limit < committed { Err(Rejection::BudgetBelowCommitted { period, committed }) } else { Ok(()) }
}

fn settle(state: &State, settlement: &SettleRequest, context: &Context) -> Result<Event, Rejection> {
    let request_id = settlement.request_id;
    let reservation = state.reservations.get(&request_id).ok_or(Rejection::NotOpen { request_id })?;
    short(&settlement.detail)?;
    let priced = price::usage_cost(&reservation.price, &settlement.usage);
    let cost = priced.min(reservation.reserved);
    Ok(Event::RequestSettled {
        settlement: settlement.clone(),
        cost,
        released: reservation.reserved.minus(cost),
        overrun: priced.minus(cost),
        at: context.now,
    })
}

fn expire(state: &State, request_id: RequestId, context: &Context) -> Result<Event, Rejection> {
    let reservation = state.reservations.get(&request_id).ok_or(Rejection::NotOpen { request_id })?;
    if context.now < reservation.deadline {
        return Err(Rejection::NotDue);
    }
    Ok(Event::ReservationExpired { request_id, released: reservation.reserved, at: context.now })
}
