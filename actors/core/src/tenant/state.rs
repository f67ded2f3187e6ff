//! What the tenant's rules depend on: the fold of its events, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use events_model::{
    KeyId, NanoUsd, RequestId, TimestampUs, Tokens,
    tenant::{Period, Plan, Price, RefusalReason},
};
use serde::{Deserialize, Serialize};

use super::Bucket;

/// Whether the tenant admits requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody registered it.
    #[default]
    Unregistered,
    /// It admits.
    Active,
    /// It does not.
    Suspended {
        /// Why.
        reason: String,
    },
}

/// An API key; not the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// What is shown of it.
    pub prefix: String,
    /// HMAC-SHA256 under the installation's pepper.
    #[serde(with = "events_model::tenant::hex_bytes")]
    pub hash: [u8; 32],
    /// For people.
    pub label: String,
    /// When it was issued.
    pub issued_at: TimestampUs,
    /// When it was revoked, if it was.
    pub revoked_at: Option<TimestampUs>,
}

/// What is settled and reserved in the present period of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Which kind of period.
    pub period: Period,
    /// The ceiling; `None` = no limit.
    pub limit: Option<NanoUsd>,
    /// First moment of the present period.
    pub start: TimestampUs,
    /// First moment after it.
    pub end: TimestampUs,
    /// Costs of requests admitted in this period that have settled.
    pub settled: NanoUsd,
    /// Reservations of requests admitted in this period that are open.
    pub reserved: NanoUsd,
}

impl Window {
    const fn new(period: Period) -> Self {
        let zero = TimestampUs::ZERO;
        Self { period, limit: None, start: zero, end: zero, settled: NanoUsd::ZERO, reserved: NanoUsd::ZERO }
    }

    /// Whether a moment lies in the present period.
    pub fn holds(&self, at: TimestampUs) -> bool {
        self.start <= at && at < self.end
    }

    /// Settled and reserved in the period that holds `now`.
    pub fn committed(&self, now: TimestampUs) -> NanoUsd {
        // A window that has not been used since its period ended is empty in the present one.
        if now >= self.end { NanoUsd::ZERO } else { self.settled.plus(self.reserved) }
    }
}

/// Money and concurrency held for an admitted request until it settles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The worst case.
    pub reserved: NanoUsd,
    /// The price it was admitted at.
    pub price: Price,
    /// Tokens taken from the token bucket.
    pub tokens: Tokens,
    /// Model as the client named it.
    pub model: String,
    /// Upstream it was routed to.
    pub upstream: String,
    /// The process that serves it, `NODE/INCARNATION`; empty = the only one there is.
    pub served_by: String,
    /// When it was admitted.
    pub admitted_at: TimestampUs,
    /// When it expires.
    pub deadline: TimestampUs,
}

/// Sums since the tenant began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests admitted.
    pub admitted: u64,
    /// Requests settled.
    pub settled: u64,
    /// Reservations expired.
    pub expired: u64,
    /// Prompt tokens settled.
    pub prompt_tokens: Tokens,
    /// Completion tokens settled.
    pub completion_tokens: Tokens,
    /// Costs settled.
    pub cost: NanoUsd,
    /// Costs beyond reservations, borne by the operator.
    pub overrun: NanoUsd,
    /// Requests refused, by reason.
    pub refused: BTreeMap<RefusalReason, u64>,
}

/// The tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Whether it admits.
    pub status: Status,
    /// Name for people.
    pub display_name: String,
    /// Where its events may be stored.
    pub zone: String,
    /// When it was registered.
    pub registered_at: TimestampUs,
    /// What it may do; `None` before registration.
    pub plan: Option<Plan>,
    /// Its keys.
    pub keys: BTreeMap<KeyId, Key>,
    /// One window a period, in order of `Period::ALL`.
    pub windows: [Window; 4],
    /// Requests per second.
    pub request_bucket: Bucket,
    /// Tokens per minute.
    pub token_bucket: Bucket,
    /// What is open.
    pub reservations: BTreeMap<RequestId, Reservation>,
    /// The same by deadline.
    pub deadlines: BTreeSet<(TimestampUs, RequestId)>,
    /// Sums.
    pub totals: Totals,
}

impl Default for State {
    fn default() -> Self {
        Self {
            status: Status::Unregistered,
            display_name: String::new(),
            zone: String::new(),
            registered_at: TimestampUs::ZERO,
            plan: None,
            keys: BTreeMap::new(),
            windows: Period::ALL.map(Window::new),
            request_bucket: Bucket::default(),
            token_bucket: Bucket::default(),
            reservations: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            totals: Totals::default(),
        }
    }
}

impl State {
    /// The plan, once registered.
    pub const fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Requests admitted and not settled.
    pub fn open(&self) -> u32 {
        u32::try_from(self.reservations.len()).unwrap_or(u32::MAX)
    }
}
