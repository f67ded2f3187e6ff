//! Stored forms of the parts that tenant commands and events share.

use proto::log::v1 as pb;

use super::required;
use crate::{
    id::{KeyId, RequestId},
    tenant::{AdmitRequest, Budget, Outcome, Period, Plan, Price, RefusalReason, SettleRequest, Usage, UsageSource},
    unit::{DurationUs, NanoUsd, TimestampUs, Tokens},
    wire::DecodeError,
};

macro_rules! enum_forms {
    ($to:ident, $from:ident, $domain:ident, $stored:ident, $what:literal, [$($variant:ident = $wire:ident),+ $(,)?]) => {
        pub(super) fn $to(value: $domain) -> i32 {
            match value { $($domain::$variant => pb::$stored::$wire as i32,)+ }
        }

        pub(super) fn $from(value: i32) -> Result<$domain, DecodeError> {
            match pb::$stored::try_from(value) {
                $(Ok(pb::$stored::$wire) => Ok($domain::$variant),)+
                Ok(pb::$stored::Unspecified) | Err(_) => Err(DecodeError::Value { what: $what }),
            }
        }
    };
}

enum_forms!(period_to, period_from, Period, Period, "a period", [Day = Day, Week = Week, Month = Month, Year = Year]);
enum_forms!(
    source_to,
    source_from,
    UsageSource,
    UsageSource,
    "a usage source",
    [Reported = Reported, LookedUp = LookedUp, Counted = Counted, None = None]
);
enum_forms!(
    outcome_to,
    outcome_from,
    Outcome,
    Outcome,
    "an outcome",
    [
        Completed = Completed,
        ClientGone = ClientGone,
        UpstreamFailed = UpstreamFailed,
        UpstreamCut = UpstreamCut,
        ReservationReached = ReservationReached,
        TimedOut = TimedOut,
        Recovered = Recovered
    ]
);
enum_forms!(
    reason_to,
    reason_from,
    RefusalReason,
    RefusalReason,
    "a refusal reason",
    [
        RequestRate = RequestRate,
        TokenRate = TokenRate,
        Concurrency = Concurrency,
        Budget = Budget,
        RequestCost = RequestCost,
        Suspended = Suspended,
        Key = Key,
        Overload = Overload
    ]
);

pub(super) fn key_from(text: &str) -> Result<KeyId, DecodeError> {
    KeyId::new(text).map_err(|_| DecodeError::Value { what: "a key id" })
}

pub(super) fn request_from(bytes: &[u8]) -> Result<RequestId, DecodeError> {
    bytes.try_into().map(RequestId::from_bytes).map_err(|_| DecodeError::Value { what: "a request id" })
}

pub(super) fn hash_from(bytes: &[u8]) -> Result<[u8; 32], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Value { what: "a key hash" })
}

pub(super) fn plan_to(plan: &Plan) -> Option<pb::Plan> {
    Some(pb::Plan {
        name: plan.name.clone(),
        requests_per_second_milli: plan.requests_per_second_milli,
        request_burst: plan.request_burst,
        tokens_per_minute: plan.tokens_per_minute,
        concurrency_max: plan.concurrency_max,
        weight: plan.weight,
        request_cost_max_nano_usd: plan.request_cost_max.0,
        budgets: plan
            .budgets
            .iter()
            .map(|budget| pb::Budget { period: period_to(budget.period), limit_nano_usd: budget.limit.0 })
            .collect(),
    })
}

pub(super) fn plan_from(plan: Option<pb::Plan>) -> Result<Plan, DecodeError> {
    let plan = required("a plan", plan)?;
    let budget =
        |budget: pb::Budget| Ok(Budget { period: period_from(budget.period)?, limit: NanoUsd(budget.limit_nano_usd) });
    Ok(Plan {
        name: plan.name,
        requests_per_second_milli: plan.requests_per_second_milli,
        request_burst: plan.request_burst,
        tokens_per_minute: plan.tokens_per_minute,
        concurrency_max: plan.concurrency_max,
        weight: plan.weight,
        request_cost_max: NanoUsd(plan.request_cost_max_nano_usd),
        budgets: plan.budgets.into_iter().map(budget).collect::<Result<_, DecodeError>>()?,
    })
}

pub(super) const fn price_to(price: Price) -> Option<pb::Price> {
    Some(pb::Price {
        price_book_version: price.price_book_version,
        input_nano_usd_per_mtok: price.input_per_mtok.0,
        output_nano_usd_per_mtok: price.output_per_mtok.0,
    })
}

fn price_from(price: Option<pb::Price>) -> Result<Price, DecodeError> {
    let price = required("a price", price)?;
    Ok(Price {
        price_book_version: price.price_book_version,
        input_per_mtok: NanoUsd(price.input_nano_usd_per_mtok),
        output_per_mtok: NanoUsd(price.output_nano_usd_per_mtok),
    })
}

pub(super) fn usage_to(usage: Usage) -> Option<pb::Usage> {
    Some(pb::Usage {
        prompt_tokens: usage.prompt_tokens.0,
        completion_tokens: usage.completion_tokens.0,
        source: source_to(usage.source),
    })
}

fn usage_from(usage: Option<pb::Usage>) -> Result<Usage, DecodeError> {
    let usage = required("a usage", usage)?;
    Ok(Usage {
        prompt_tokens: Tokens(usage.prompt_tokens),
        completion_tokens: Tokens(usage.completion_tokens),
        source: source_from(usage.source)?,
    })
}

pub(super) fn admit_to(request: &AdmitRequest) -> pb::AdmitRequest {
    pb::AdmitRequest {
        request_id: request.request_id.as_bytes().to_vec(),
        key_id: request.key_id.to_string(),
        model: request.model.clone(),
        upstream: request.upstream.clone(),
        upstream_model: request.upstream_model.clone(),
        prompt_tokens_max: request.prompt_tokens_max.0,
        completion_tokens_max: request.completion_tokens_max.0,
        price: price_to(request.price),
        deadline_us: request.deadline.0,
        streaming: request.streaming,
        served_by: request.served_by.clone(),
    }
}

pub(super) fn admit_from(message: pb::AdmitRequest) -> Result<AdmitRequest, DecodeError> {
    Ok(AdmitRequest {
        request_id: request_from(&message.request_id)?,
        key_id: key_from(&message.key_id)?,
        model: message.model,
        upstream: message.upstream,
        upstream_model: message.upstream_model,
        prompt_tokens_max: Tokens(message.prompt_tokens_max),
        completion_tokens_max: Tokens(message.completion_tokens_max),
        price: price_from(message.price)?,
        deadline: TimestampUs(message.deadline_us),
        streaming: message.streaming,
        served_by: message.served_by,
    })
}

pub(super) fn settle_to(settlement: &SettleRequest) -> pb::SettleRequest {
    pb::SettleRequest {
        request_id: settlement.request_id.as_bytes().to_vec(),
        outcome: outcome_to(settlement.outcome),
        usage: usage_to(settlement.usage),
        upstream_status: settlement.upstream_status,
        first_token_us: settlement.first_token.0,
        duration_us: settlement.duration.0,
        detail: settlement.detail.clone(),
    }
}

pub(super) fn settle_from(message: pb::SettleRequest) -> Result<SettleRequest, DecodeError> {
    Ok(SettleRequest {
        request_id: request_from(&message.request_id)?,
        outcome: outcome_from(message.outcome)?,
        usage: usage_from(message.usage)?,
        upstream_status: message.upstream_status,
        first_token: DurationUs(message.first_token_us),
        duration: DurationUs(message.duration_us),
        detail: message.detail,
    })
}
