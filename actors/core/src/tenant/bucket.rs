//! Token buckets in integers: no drift, no floats, the same on every machine.
//!
//! A level is counted in parts small enough that the refill per microsecond is a whole number: a request is 10^9
//! parts (so `requests_per_second_milli` parts flow in each microsecond), a token 60 * 10^6 parts (so
//! `tokens_per_minute` parts flow in each microsecond).

use events_model::{DurationUs, TimestampUs, tenant::Plan};
use serde::{Deserialize, Serialize};

use super::{State, View};

/// Parts of a request.
pub(super) const REQUEST_PARTS: u64 = 1_000_000_000;
/// Parts of a token.
pub(super) const TOKEN_PARTS: u64 = 60_000_000;

/// A level at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Parts in it.
    pub level: u64,
    /// When that was so.
    pub at: TimestampUs,
}

/// Size and refill of a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) capacity: u64,
    pub(super) per_us: u64,
}

pub(super) fn request_flow(plan: &Plan) -> Flow {
    Flow {
        capacity: u64::from(plan.request_burst).saturating_mul(REQUEST_PARTS),
        per_us: plan.requests_per_second_milli,
    }
}

pub(super) const fn token_flow(plan: &Plan) -> Flow {
    Flow { capacity: plan.tokens_per_minute.saturating_mul(TOKEN_PARTS), per_us: plan.tokens_per_minute }
}

impl Bucket {
    pub(super) const fn full(flow: Flow, at: TimestampUs) -> Self {
        Self { level: flow.capacity, at }
    }

    /// The level at a later time.
    pub(super) fn level_at(self, flow: Flow, now: TimestampUs) -> u64 {
        let inflow = now.since(self.at).0.saturating_mul(flow.per_us);
        self.level.saturating_add(inflow).min(flow.capacity)
    }

    /// Takes parts out; a bucket does not go below empty.
    pub(super) fn take(self, flow: Flow, parts: u64, now: TimestampUs) -> Self {
        let at = self.at.max(now);
        Self { level: self.level_at(flow, at).saturating_sub(parts), at }
    }

    /// Puts parts back.
    pub(super) fn put(self, flow: Flow, parts: u64, now: TimestampUs) -> Self {
        let at = self.at.max(now);
        Self { level: self.level_at(flow, at).saturating_add(parts).min(flow.capacity), at }
    }

    /// How long until `parts` are in it; `None` = never.
    pub(super) fn wait_for(self, flow: Flow, parts: u64, now: TimestampUs) -> Option<DurationUs> {
        if parts > flow.capacity {
            return None;
        }
        let missing = parts.saturating_sub(self.level_at(flow, now));
        Some(DurationUs(missing.div_ceil(flow.per_us.max(1))))
    }
}

pub(super) fn view(state: &State, plan: &Plan, now: TimestampUs) -> View {
    let (requests, tokens) = (request_flow(plan), token_flow(plan));
    let whole = |parts: u64, part: u64| parts.checked_div(part).unwrap_or(0);
    let full = |bucket: Bucket, flow: Flow| bucket.wait_for(flow, flow.capacity, now).unwrap_or_default();
    View {
        limit_requests: u64::from(plan.request_burst),
        remaining_requests: whole(state.request_bucket.level_at(requests, now), REQUEST_PARTS),
        reset_requests: full(state.request_bucket, requests),
        limit_tokens: plan.tokens_per_minute,
        remaining_tokens: whole(state.token_bucket.level_at(tokens, now), TOKEN_PARTS),
        reset_tokens: full(state.token_bucket, tokens),
    }
}
