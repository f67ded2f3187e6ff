//! All tenants at a glance: who they are, what they have used, and what is open.
//!
//! Invariants: a reservation is open from `RequestAdmitted` until `RequestSettled` or `ReservationExpired`, as in the
//! tenant actor; totals are those of the actor. Start-up reads from here which actors must be woken because
//! something of theirs falls due. Keys, budgets and limits are not here: the actor's own state answers those.

use std::collections::BTreeMap;

use events_model::{
    CommitView, EventView, NanoUsd, Position, RequestId, Stored, StreamId, TenantId, TimestampUs, Tokens, tenant::Event,
};
use serde::{Deserialize, Serialize};

use crate::{
    kind::{
        PLAN_SET, REQUEST_ADMITTED, REQUEST_SETTLED, REQUESTS_REFUSED, RESERVATION_EXPIRED, TENANT_REGISTERED,
        TENANT_RESUMED, TENANT_SUSPENDED,
    },
    projection::{ApplyError, Projection},
};

/// The projection.
#[derive(Debug)]
pub struct Tenants;

/// All tenants by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The tenants.
    pub tenants: BTreeMap<TenantId, Summary>,
}

/// Whether a tenant admits requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It does.
    Active,
    /// It does not.
    Suspended,
}

impl Status {
    /// The word operators see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Name for people.
    pub display_name: String,
    /// Whether it admits.
    pub status: Status,
    /// Name of its plan.
    pub plan: String,
    /// When it was registered.
    pub registered_at: TimestampUs,
    /// Requests settled.
    pub requests_settled: u64,
    /// Prompt tokens settled.
    pub prompt_tokens: Tokens,
    /// Completion tokens settled.
    pub completion_tokens: Tokens,
    /// Costs settled.
    pub cost: NanoUsd,
    /// Requests refused.
    pub refused: u64,
    /// Open reservations and their deadlines; at most the plan's concurrency.
    open: BTreeMap<RequestId, TimestampUs>,
}

impl Summary {
    /// Requests admitted and not settled.
    pub fn open_reservations(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// When the first open reservation expires, if one is open.
    pub fn earliest_deadline(&self) -> Option<TimestampUs> {
        self.open.values().min().copied()
    }

    fn close(&mut self, request_id: RequestId) -> Result<(), ApplyError> {
        self.open.remove(&request_id).map(|_| ()).ok_or(ApplyError::NotOpen { request_id })
    }
}

impl State {
    /// At most `limit` tenants in order of id, behind `after`.
    pub fn page(&self, after: Option<&TenantId>, limit: usize) -> impl Iterator<Item = (&TenantId, &Summary)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.tenants.range((after.map_or(Unbounded, Excluded), Unbounded)).take(limit)
    }

    /// The streams with open reservations and when the first of each expires: the actors to wake at start-up.
    pub fn open_streams(&self) -> impl Iterator<Item = (StreamId, TimestampUs)> {
        self.tenants
            .iter()
            .filter_map(|(tenant, summary)| Some((StreamId::tenant(tenant), summary.earliest_deadline()?)))
    }
}

/// The tenant whose stream a commit lies in.
pub(crate) fn tenant_of(commit: &CommitView<'_>) -> Result<TenantId, ApplyError> {
    commit
        .stream
        .strip_prefix("tenant/")
        .and_then(|name| TenantId::new(name).ok())
        .ok_or_else(|| ApplyError::Stream { stream: commit.stream.to_owned() })
}

impl Projection for Tenants {
    const NAME: &'static str = "tenants";
    const VERSION: u32 = 1;
    type State = State;

    fn apply(
        state: &mut State,
        _position: Position,
        commit: &CommitView<'_>,
        event: &EventView<'_>,
    ) -> Result<(), ApplyError> {
        let (TENANT_REGISTERED | PLAN_SET | TENANT_SUSPENDED | TENANT_RESUMED | REQUEST_ADMITTED | REQUEST_SETTLED
        | RESERVATION_EXPIRED | REQUESTS_REFUSED) = event.payload.kind
        else {
            return Ok(());
        };
        let tenant = tenant_of(commit)?;
        let event = Event::from_payload(event.payload).map_err(ApplyError::Decode)?;
        if let Event::TenantRegistered { display_name, plan, at, .. } = event {
            state.tenants.insert(tenant, registered(display_name, plan.name, at));
            return Ok(());
        }
        match state.tenants.get_mut(&tenant) {
            Some(summary) => fold(summary, event),
            None => Err(ApplyError::NotRegistered { tenant }),
        }
    }
}

const fn registered(display_name: String, plan: String, registered_at: TimestampUs) -> Summary {
    Summary {
        display_name,
        status: Status::Active,
        plan,
        registered_at,
        requests_settled: 0,
        prompt_tokens: Tokens::ZERO,
        completion_tokens: Tokens::ZERO,
        cost: NanoUsd::ZERO,
        refused: 0,
        open: BTreeMap::new(),
    }
}

fn fold(summary: &mut Summary, event: Event) -> Result<(), ApplyError> {
    match event {
        Event::PlanSet { plan, .. } => summary.plan = plan.name,
        Event::TenantSuspended { .. } => summary.status = Status::Suspended,
        Event::TenantResumed { .. } => summary.status = Status::Active,
        Event::RequestAdmitted { request, .. } => {
            let request_id = request.request_id;
            if summary.open.contains_key(&request_id) {
                return Err(ApplyError::Open { request_id });
            }
            summary.open.insert(request_id, request.deadline);
        }
        Event::RequestSettled { settlement, cost, .. } => {
            summary.close(settlement.request_id)?;
            let usage = settlement.usage;
            summary.requests_settled = summary.requests_settled.saturating_add(1);
            summary.prompt_tokens = summary.prompt_tokens.plus(usage.prompt_tokens);
            summary.completion_tokens = summary.completion_tokens.plus(usage.completion_tokens);
            summary.cost = summary.cost.plus(cost);
        }
        Event::ReservationExpired { request_id, .. } => summary.close(request_id)?,
        Event::RequestsRefused { count, .. } => summary.refused = summary.refused.saturating_add(count),
        Event::TenantRegistered { .. }
        | Event::ApiKeyIssued { .. }
        | Event::ApiKeyRevoked { .. }
        | Event::BudgetSet { .. } => {}
    }
    Ok(())
}
