//! Stored forms of the tenant actor's commands and events.

use proto::log::v1 as pb;

use super::{
    SCHEMA_VERSION, decode, encode, hot,
    tenant_parts::{
        admit_from, admit_to, hash_from, key_from, outcome_to, period_from, period_to, plan_from, plan_to, price_to,
        reason_from, reason_to, request_from, settle_from, settle_to, usage_to,
    },
    unknown,
};
use crate::{
    envelope::{Payload, PayloadView, Stored},
    tenant::{AdmitRequest, Command, Event, SettleRequest},
    unit::{NanoUsd, TimestampUs},
    wire::DecodeError,
};

macro_rules! kinds {
    ($($name:ident = $text:literal),+ $(,)?) => {
        $(const $name: &str = concat!("freehold.log.v1.", $text);)+
    };
}

kinds!(
    REGISTER_TENANT = "RegisterTenant",
    ISSUE_API_KEY = "IssueApiKey",
    REVOKE_API_KEY = "RevokeApiKey",
    SET_PLAN = "SetPlan",
    SET_BUDGET = "SetBudget",
    SUSPEND_TENANT = "SuspendTenant",
    RESUME_TENANT = "ResumeTenant",
    ADMIT_REQUEST = "AdmitRequest",
    SETTLE_REQUEST = "SettleRequest",
    EXPIRE_RESERVATION = "ExpireReservation",
    RECORD_REFUSALS = "RecordRefusals",
    TENANT_REGISTERED = "TenantRegistered",
    API_KEY_ISSUED = "ApiKeyIssued",
    API_KEY_REVOKED = "ApiKeyRevoked",
    PLAN_SET = "PlanSet",
    BUDGET_SET = "BudgetSet",
    TENANT_SUSPENDED = "TenantSuspended",
    TENANT_RESUMED = "TenantResumed",
    REQUEST_ADMITTED = "RequestAdmitted",
    REQUEST_SETTLED = "RequestSettled",
    RESERVATION_EXPIRED = "ReservationExpired",
    REQUESTS_REFUSED = "RequestsRefused",
);

impl Stored for Command {
    fn to_payload(&self) -> Payload {
        match self {
            Self::RegisterTenant { display_name, plan, zone } => encode(
                REGISTER_TENANT,
                &pb::RegisterTenant { display_name: display_name.clone(), plan: plan_to(plan), zone: zone.clone() },
            ),
            Self::IssueApiKey { key_id, prefix, hash, label } => encode(
                ISSUE_API_KEY,
                &pb::IssueApiKey {
                    key_id: key_id.to_string(),
                    prefix: prefix.clone(),
                    hash: hash.to_vec(),
                    label: label.clone(),
                },
            ),
            Self::RevokeApiKey { key_id, reason } => {
                encode(REVOKE_API_KEY, &pb::RevokeApiKey { key_id: key_id.to_string(), reason: reason.clone() })
            }
            Self::SetPlan { plan } => encode(SET_PLAN, &pb::SetPlan { plan: plan_to(plan) }),
            Self::SetBudget { period, limit } => encode(
                SET_BUDGET,
                &pb::SetBudget { period: period_to(*period), limit_nano_usd: limit.map(|limit| limit.0) },
            ),
            Self::Suspend { reason } => encode(SUSPEND_TENANT, &pb::SuspendTenant { reason: reason.clone() }),
            Self::Resume => encode(RESUME_TENANT, &pb::ResumeTenant {}),
            Self::AdmitRequest(request) => encode(ADMIT_REQUEST, &admit_to(request)),
            Self::SettleRequest(settlement) => encode(SETTLE_REQUEST, &settle_to(settlement)),
            Self::ExpireReservation { request_id } => {
                encode(EXPIRE_RESERVATION, &pb::ExpireReservation { request_id: request_id.as_bytes().to_vec() })
            }
            Self::RecordRefusals { reason, second, count } => encode(
                RECORD_REFUSALS,
                &pb::RecordRefusals { reason: reason_to(*reason), second: *second, count: *count },
            ),
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        let bytes = payload.bytes;
        if payload.schema_version != SCHEMA_VERSION {
            return Err(unknown(payload.kind, payload.schema_version));
        }
        Ok(match payload.kind {
            REGISTER_TENANT => {
                let message: pb::RegisterTenant = decode(REGISTER_TENANT, bytes)?;
                Self::RegisterTenant {
                    display_name: message.display_name,
                    plan: plan_from(message.plan)?,
                    zone: message.zone,
                }
            }
            ISSUE_API_KEY => {
                let message: pb::IssueApiKey = decode(ISSUE_API_KEY, bytes)?;
                Self::IssueApiKey {
                    key_id: key_from(&message.key_id)?,
                    prefix: message.prefix,
                    hash: hash_from(&message.hash)?,
                    label: message.label,
                }
            }
            REVOKE_API_KEY => {
                let message: pb::RevokeApiKey = decode(REVOKE_API_KEY, bytes)?;
                Self::RevokeApiKey { key_id: key_from(&message.key_id)?, reason: message.reason }
            }
            SET_PLAN => {
                let message: pb::SetPlan = decode(SET_PLAN, bytes)?;
                Self::SetPlan { plan: plan_from(message.plan)? }
            }
            SET_BUDGET => {
                let message: pb::SetBudget = decode(SET_BUDGET, bytes)?;
                Self::SetBudget { period: period_from(message.period)?, limit: message.limit_nano_usd.map(NanoUsd) }
            }
            SUSPEND_TENANT => {
                let message: pb::SuspendTenant = decode(SUSPEND_TENANT, bytes)?;
                Self::Suspend { reason: message.reason }
            }
            RESUME_TENANT => Self::Resume,
            ADMIT_REQUEST => Self::AdmitRequest(admit_from(decode(ADMIT_REQUEST, bytes)?)?),
            SETTLE_REQUEST => Self::SettleRequest(settle_from(decode(SETTLE_REQUEST, bytes)?)?),
            EXPIRE_RESERVATION => {
                let message: pb::ExpireReservation = decode(EXPIRE_RESERVATION, bytes)?;
                Self::ExpireReservation { request_id: request_from(&message.request_id)? }
            }
            RECORD_REFUSALS => {
                let message: pb::RecordRefusals = decode(RECORD_REFUSALS, bytes)?;
                Self::RecordRefusals {
                    reason: reason_from(message.reason)?,
                    second: message.second,
                    count: message.count,
                }
            }
            kind => return Err(unknown(kind, payload.schema_version)),
        })
    }
}

impl Stored for Event {
    fn to_payload(&self) -> Payload {
        match self {
            Self::TenantRegistered { display_name, plan, zone, at } => encode(
                TENANT_REGISTERED,
                &pb::TenantRegistered {
                    display_name: display_name.clone(),
                    plan: plan_to(plan),
                    zone: zone.clone(),
                    at_us: at.0,
                },
            ),
            Self::ApiKeyIssued { key_id, prefix, hash, label, at } => encode(
                API_KEY_ISSUED,
                &pb::ApiKeyIssued {
                    key_id: key_id.to_string(),
                    prefix: prefix.clone(),
                    hash: hash.to_vec(),
                    label: label.clone(),
                    at_us: at.0,
                },
            ),
            Self::ApiKeyRevoked { key_id, reason, at } => encode(
                API_KEY_REVOKED,
                &pb::ApiKeyRevoked { key_id: key_id.to_string(), reason: reason.clone(), at_us: at.0 },
            ),
            Self::PlanSet { plan, at } => encode(PLAN_SET, &pb::PlanSet { plan: plan_to(plan), at_us: at.0 }),
            Self::BudgetSet { period, limit, at } => encode(
                BUDGET_SET,
                &pb::BudgetSet { period: period_to(*period), limit_nano_usd: limit.map(|limit| limit.0), at_us: at.0 },
            ),
            Self::TenantSuspended { reason, at } => {
                encode(TENANT_SUSPENDED, &pb::TenantSuspended { reason: reason.clone(), at_us: at.0 })
            }
            Self::TenantResumed { at } => encode(TENANT_RESUMED, &pb::TenantResumed { at_us: at.0 }),
            Self::RequestAdmitted { request, reserved, at } => {
                encode(REQUEST_ADMITTED, &admitted_to(request, *reserved, *at))
            }
            Self::RequestSettled { settlement, cost, released, overrun, at } => {
                encode(REQUEST_SETTLED, &settled_to(settlement, [*cost, *released, *overrun], *at))
            }
            Self::ReservationExpired { request_id, released, at } => encode(
                RESERVATION_EXPIRED,
                &pb::ReservationExpired {
                    request_id: request_id.as_bytes().to_vec(),
                    released_nano_usd: released.0,
                    at_us: at.0,
                },
            ),
            Self::RequestsRefused { reason, second, count } => encode(
                REQUESTS_REFUSED,
                &pb::RequestsRefused { reason: reason_to(*reason), second: *second, count: *count },
            ),
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        if payload.schema_version != SCHEMA_VERSION {
            return Err(unknown(payload.kind, payload.schema_version));
        }
        match payload.kind {
            REQUEST_ADMITTED => hot::admitted(payload.bytes),
            REQUEST_SETTLED => hot::settled(payload.bytes),
            RESERVATION_EXPIRED => {
                let message: pb::ReservationExpired = decode(RESERVATION_EXPIRED, payload.bytes)?;
                Ok(Self::ReservationExpired {
                    request_id: request_from(&message.request_id)?,
                    released: NanoUsd(message.released_nano_usd),
                    at: TimestampUs(message.at_us),
                })
            }
            REQUESTS_REFUSED => {
                let message: pb::RequestsRefused = decode(REQUESTS_REFUSED, payload.bytes)?;
                Ok(Self::RequestsRefused {
                    reason: reason_from(message.reason)?,
                    second: message.second,
                    count: message.count,
                })
            }
            _ => administration_from(payload),
        }
    }
}

fn admitted_to(request: &AdmitRequest, reserved: NanoUsd, at: TimestampUs) -> pb::RequestAdmitted {
    pb::RequestAdmitted {
        request_id: request.request_id.as_bytes().to_vec(),
        key_id: request.key_id.to_string(),
        model: request.model.clone(),
        upstream: request.upstream.clone(),
        upstream_model: request.upstream_model.clone(),
        prompt_tokens_max: request.prompt_tokens_max.0,
        completion_tokens_max: request.completion_tokens_max.0,
        price: price_to(request.price),
        reserved_nano_usd: reserved.0,
        deadline_us: request.deadline.0,
        streaming: request.streaming,
        at_us: at.0,
        served_by: request.served_by.clone(),
    }
}

/// Takes cost, released and overrun, in this order.
fn settled_to(settlement: &SettleRequest, money: [NanoUsd; 3], at: TimestampUs) -> pb::RequestSettled {
    let [cost, released, overrun] = money;
    pb::RequestSettled {
        request_id: settlement.request_id.as_bytes().to_vec(),
        outcome: outcome_to(settlement.outcome),
        usage: usage_to(settlement.usage),
        cost_nano_usd: cost.0,
        released_nano_usd: released.0,
        overrun_nano_usd: overrun.0,
        upstream_status: settlement.upstream_status,
        first_token_us: settlement.first_token.0,
        duration_us: settlement.duration.0,
        detail: settlement.detail.clone(),
        at_us: at.0,
    }
}

fn administration_from(payload: PayloadView<'_>) -> Result<Event, DecodeError> {
    let bytes = payload.bytes;
    Ok(match payload.kind {
        TENANT_REGISTERED => {
            let message: pb::TenantRegistered = decode(TENANT_REGISTERED, bytes)?;
            Event::TenantRegistered {
                display_name: message.display_name,
                plan: plan_from(message.plan)?,
                zone: message.zone,
                at: TimestampUs(message.at_us),
            }
        }
        API_KEY_ISSUED => {
            let message: pb::ApiKeyIssued = decode(API_KEY_ISSUED, bytes)?;
            Event::ApiKeyIssued {
                key_id: key_from(&message.key_id)?,
                prefix: message.prefix,
                hash: hash_from(&message.hash)?,
                label: message.label,
                at: TimestampUs(message.at_us),
            }
        }
        API_KEY_REVOKED => {
            let message: pb::ApiKeyRevoked = decode(API_KEY_REVOKED, bytes)?;
            let at = TimestampUs(message.at_us);
            Event::ApiKeyRevoked { key_id: key_from(&message.key_id)?, reason: message.reason, at }
        }
        PLAN_SET => {
            let message: pb::PlanSet = decode(PLAN_SET, bytes)?;
            Event::PlanSet { plan: plan_from(message.plan)?, at: TimestampUs(message.at_us) }
        }
        BUDGET_SET => {
            let message: pb::BudgetSet = decode(BUDGET_SET, bytes)?;
            Event::BudgetSet {
                period: period_from(message.period)?,
                limit: message.limit_nano_usd.map(NanoUsd),
                at: TimestampUs(message.at_us),
            }
        }
        TENANT_SUSPENDED => {
            let message: pb::TenantSuspended = decode(TENANT_SUSPENDED, bytes)?;
            Event::TenantSuspended { reason: message.reason, at: TimestampUs(message.at_us) }
        }
        TENANT_RESUMED => {
            let message: pb::TenantResumed = decode(TENANT_RESUMED, bytes)?;
            Event::TenantResumed { at: TimestampUs(message.at_us) }
        }
        kind => return Err(unknown(kind, payload.schema_version)),
    })
}
