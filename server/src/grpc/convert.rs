//! Between the API's messages and the domain's types.

use actors_core::{
    calendar,
    tenant::{Key, State, Status, Window},
};
use events_model::{KeyId, NanoUsd, TenantId, TimestampUs, Version, tenant::Period};
use gateway::openai::{ChatFields, ChatMessage};
use projections::tenants;
use proto::{episode::v1 as episode_pb, gateway::v1 as gateway_pb, tenant::v1 as pb};
use tonic::Status as GrpcStatus;

use super::status;

/// Reads the id of a tenant.
pub(super) fn tenant_id(text: &str) -> Result<TenantId, GrpcStatus> {
    TenantId::new(text).map_err(|error| status::invalid("tenant_id", error.to_string()))
}

/// Reads a period.
pub(super) fn period(value: i32) -> Result<Period, GrpcStatus> {
    match pb::Period::try_from(value) {
        Ok(pb::Period::Day) => Ok(Period::Day),
        Ok(pb::Period::Week) => Ok(Period::Week),
        Ok(pb::Period::Month) => Ok(Period::Month),
        Ok(pb::Period::Year) => Ok(Period::Year),
        Ok(pb::Period::Unspecified) | Err(_) => Err(status::invalid("period", "must be day, week, month or year")),
    }
}

const fn period_to(period: Period) -> pb::Period {
    match period {
        Period::Day => pb::Period::Day,
        Period::Week => pb::Period::Week,
        Period::Month => pb::Period::Month,
        Period::Year => pb::Period::Year,
    }
}

/// A tenant as it stands now.
pub(super) fn tenant(tenant_id: &TenantId, state: &State, version: Version, now: TimestampUs) -> pb::Tenant {
    let status = match state.status {
        Status::Unregistered => pb::TenantStatus::Unspecified,
        Status::Active => pb::TenantStatus::Active,
        Status::Suspended { .. } => pb::TenantStatus::Suspended,
    };
    let plan = state.plan().map(|plan| pb::Plan {
        name: plan.name.clone(),
        requests_per_second_milli: plan.requests_per_second_milli,
        request_burst: plan.request_burst,
        tokens_per_minute: plan.tokens_per_minute,
        concurrency_max: plan.concurrency_max,
        weight: plan.weight,
        request_cost_max_nano_usd: plan.request_cost_max.0,
    });
    pb::Tenant {
        tenant_id: tenant_id.to_string(),
        display_name: state.display_name.clone(),
        status: status.into(),
        plan,
        budgets: state.windows.iter().filter_map(|window| budget(window, now)).collect(),
        api_keys: state.keys.iter().map(|(key_id, key)| api_key(key_id, key)).collect(),
        open_reservations: state.open(),
        version: version.0,
        registered_at_us: state.registered_at.0,
        requests_settled: state.totals.settled,
        prompt_tokens: state.totals.prompt_tokens.0,
        completion_tokens: state.totals.completion_tokens.0,
        cost_nano_usd: state.totals.cost.0,
    }
}

/// A period's budget; none if it has no ceiling and nothing was used in it.
fn budget(window: &Window, now: TimestampUs) -> Option<pb::Budget> {
    // A window that has not been used since its period ended is empty in the present one.
    let is_present = window.holds(now);
    let present = |amount: NanoUsd| if is_present { amount.0 } else { 0 };
    let (settled, reserved) = (present(window.settled), present(window.reserved));
    (window.limit.is_some() || settled != 0 || reserved != 0).then(|| pb::Budget {
        period: period_to(window.period).into(),
        limit_nano_usd: window.limit.map(|limit| limit.0),
        settled_nano_usd: settled,
        reserved_nano_usd: reserved,
        period_start_us: calendar::period_start(window.period, now).0,
        period_end_us: calendar::period_end(window.period, now).0,
    })
}

/// A key, without its secret.
pub(super) fn api_key(key_id: &KeyId, key: &Key) -> pb::ApiKey {
    pb::ApiKey {
        key_id: key_id.to_string(),
        prefix: key.prefix.clone(),
        label: key.label.clone(),
        revoked: key.revoked_at.is_some(),
        issued_at_us: key.issued_at.0,
    }
}

/// A tenant in a list.
pub(super) fn summary(tenant_id: &TenantId, summary: &tenants::Summary) -> pb::TenantSummary {
    let status = match summary.status {
        tenants::Status::Active => pb::TenantStatus::Active,
        tenants::Status::Suspended => pb::TenantStatus::Suspended,
    };
    pb::TenantSummary {
        tenant_id: tenant_id.to_string(),
        display_name: summary.display_name.clone(),
        status: status.into(),
        plan: summary.plan.clone(),
        requests_settled: summary.requests_settled,
        prompt_tokens: summary.prompt_tokens.0,
        completion_tokens: summary.completion_tokens.0,
        cost_nano_usd: summary.cost.0,
        open_reservations: summary.open_reservations(),
        refused: summary.refused,
    }
}

/// A model request as the gateway checks it.
pub(super) fn chat_fields(request: gateway_pb::CompleteRequest, stream: bool) -> ChatFields {
    let gateway_pb::CompleteRequest { model, messages, max_tokens, temperature, top_p, stop, seed, user } = request;
    let message = |message: gateway_pb::Message| {
        let gateway_pb::Message { role, content, name, tool_call_id } = message;
        ChatMessage { role, content, name, tool_call_id }
    };
    ChatFields {
        model,
        messages: messages.into_iter().map(message).collect(),
        max_tokens: max_tokens.map(u64::from),
        temperature,
        top_p,
        stop,
        seed,
        user,
        stream,
    }
}

/// An episode with its timeline.
pub(crate) fn episode(episode: replay::episode::Episode) -> episode_pb::Episode {
    let summary = episode.summary;
    episode_pb::Episode {
        episode_id: summary.episode_id.to_string(),
        tenant: summary.tenant,
        entries: episode.entries.into_iter().map(entry).collect(),
        end_state: summary.end_state.name().to_owned(),
        cost_nano_usd: summary.cost.0,
        prompt_tokens: summary.prompt_tokens.0,
        completion_tokens: summary.completion_tokens.0,
    }
}

fn entry(entry: replay::episode::Entry) -> episode_pb::Entry {
    episode_pb::Entry {
        position: entry.position,
        stream: entry.stream,
        version: entry.version,
        event: entry.event,
        recorded_at_us: entry.recorded_at.0,
        since_start_us: entry.since_start.0,
        summary: entry.summary,
        reserved_nano_usd: entry.reserved.map(|money| money.0),
        cost_nano_usd: entry.cost.map(|money| money.0),
        released_nano_usd: entry.released.map(|money| money.0),
        payload_json: entry.payload_json,
        command: entry.command,
        command_json: entry.command_json,
        commit_id: entry.commit_id,
        principal: entry.principal,
    }
}

/// An episode in a list.
pub(crate) fn episode_summary(summary: replay::episode::Summary) -> episode_pb::EpisodeSummary {
    episode_pb::EpisodeSummary {
        episode_id: summary.episode_id.to_string(),
        tenant: summary.tenant,
        started_at_us: summary.started_at.0,
        duration_us: summary.duration.0,
        end_state: summary.end_state.name().to_owned(),
        model: summary.model,
        prompt_tokens: summary.prompt_tokens.0,
        completion_tokens: summary.completion_tokens.0,
        cost_nano_usd: summary.cost.0,
    }
}
