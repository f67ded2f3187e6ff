//! What each tenant pays: requests, tokens and cost per UTC day and model, integers only.
//!
//! Invariants: a request counts once, when it settles, on the UTC day it was *admitted*. That is the day whose budget
//! held its money, so that no day's bill exceeds that day's budget; the price is that a day is final only when its
//! last reservation has closed. The same log gives the same bytes however it was batched. Expired reservations cost
//! nothing and count nothing.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use chrono::DateTime;
use events_model::{
    CommitView, EventView, NanoUsd, Position, RequestId, Stored, TenantId, TimestampUs, Tokens, tenant::Event,
};
use serde::{Deserialize, Serialize};

use crate::{
    kind::{REQUEST_ADMITTED, REQUEST_SETTLED, RESERVATION_EXPIRED},
    projection::{ApplyError, Projection},
    tenants::tenant_of,
};

/// The projection.
#[derive(Debug)]
pub struct Billing;

const DAY_SECONDS: u64 = 86_400;
const DAY_US: u64 = DAY_SECONDS * 1_000_000;

/// A day in UTC, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UtcDay(pub u64);

impl UtcDay {
    /// The day that holds a moment.
    pub const fn of(at: TimestampUs) -> Self {
        Self(at.0 / DAY_US)
    }
}

impl fmt::Display for UtcDay {
    /// `2026-11-20`; beyond the calendar's end the number of the day.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.checked_mul(DAY_SECONDS).and_then(|seconds| i64::try_from(seconds).ok());
        match seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0)) {
            Some(midnight) => f.pad(&midnight.date_naive().to_string()),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

/// A line of a bill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Requests settled.
    pub requests: u64,
    /// Prompt tokens settled.
    pub prompt_tokens: Tokens,
    /// Completion tokens settled.
    pub completion_tokens: Tokens,
    /// What they cost.
    pub cost: NanoUsd,
}

impl Line {
    /// The sum of two lines.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            prompt_tokens: self.prompt_tokens.plus(other.prompt_tokens),
            completion_tokens: self.completion_tokens.plus(other.completion_tokens),
            cost: self.cost.plus(other.cost),
        }
    }
}

/// What is billed to one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// Lines by day, then by model as the client named it.
    pub days: BTreeMap<UtcDay, BTreeMap<String, Line>>,
    /// Admitted and not settled: the settlement does not repeat day and model.
    open: BTreeMap<RequestId, Open>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    day: UtcDay,
    model: String,
}

impl Bill {
    /// Sums some days by model.
    pub fn by_model(&self, days: RangeInclusive<UtcDay>) -> BTreeMap<&str, Line> {
        let mut sums = BTreeMap::<&str, Line>::new();
        if days.is_empty() {
            return sums;
        }
        for (model, line) in self.days.range(days).flat_map(|(_, lines)| lines) {
            let sum = sums.entry(model).or_default();
            *sum = sum.plus(*line);
        }
        sums
    }

    /// Sums everything.
    pub fn total(&self) -> Line {
        self.days.values().flat_map(BTreeMap::values).fold(Line::default(), |sum, line| sum.plus(*line))
    }

    /// Whether no open reservation can still change a day.
    pub fn is_final(&self, day: UtcDay) -> bool {
        self.open.values().all(|open| open.day != day)
    }
}

/// All bills by tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The bills.
    pub tenants: BTreeMap<TenantId, Bill>,
}

impl Projection for Billing {
    const NAME: &'static str = "billing";
    const VERSION: u32 = 1;
    type State = State;

    fn apply(
        state: &mut State,
        _position: Position,
        commit: &CommitView<'_>,
        event: &EventView<'_>,
    ) -> Result<(), ApplyError> {
        let (REQUEST_ADMITTED | REQUEST_SETTLED | RESERVATION_EXPIRED) = event.payload.kind else { return Ok(()) };
        let tenant = tenant_of(commit)?;
        let event = Event::from_payload(event.payload).map_err(ApplyError::Decode)?;
        if let Event::RequestAdmitted { request, at, .. } = event {
            let request_id = request.request_id;
            let bill = state.tenants.entry(tenant).or_default();
            if bill.open.contains_key(&request_id) {
                return Err(ApplyError::Open { request_id });
            }
            bill.open.insert(request_id, Open { day: UtcDay::of(at), model: request.model });
            return Ok(());
        }
        if let Event::RequestSettled { settlement, cost, .. } = event {
            let (bill, open) = close(state, &tenant, settlement.request_id)?;
            let usage = settlement.usage;
            let (prompt_tokens, completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
            let line = bill.days.entry(open.day).or_default().entry(open.model).or_default();
            *line = line.plus(Line { requests: 1, prompt_tokens, completion_tokens, cost });
        } else if let Event::ReservationExpired { request_id, .. } = event {
            close(state, &tenant, request_id)?;
        }
        Ok(())
    }
}

fn close<'a>(
    state: &'a mut State,
    tenant: &TenantId,
    request_id: RequestId,
) -> Result<(&'a mut Bill, Open), ApplyError> {
    let bill = state.tenants.get_mut(tenant).ok_or(ApplyError::NotOpen { request_id })?;
    let open = bill.open.remove(&request_id).ok_or(ApplyError::NotOpen { request_id })?;
    Ok((bill, open))
}
