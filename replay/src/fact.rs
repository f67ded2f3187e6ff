//! Commands and events of any kind of actor, for showing: one line for people and JSON for programs.
//!
//! What does not decode with this program is shown as such; it never hides the rest of an episode. Texts that came
//! from outside lose their control characters, so that a terminal can print a summary as it is.

use events_model::{
    DecodeError, NanoUsd, PayloadView, Stored, region,
    tenant::{self, AdmitRequest, Plan, SettleRequest, UsageSource},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// An event of some actor.
#[derive(Debug)]
pub(crate) enum Fact {
    Tenant(tenant::Event),
    Region(region::Event),
}

fn unknown(payload: PayloadView<'_>) -> DecodeError {
    DecodeError::UnknownType { kind: payload.kind.to_owned(), schema_version: payload.schema_version }
}

fn kind_of(stream: &str) -> &str {
    stream.split('/').next().unwrap_or_default()
}

impl Fact {
    pub(crate) fn decode(stream: &str, payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match kind_of(stream) {
            "tenant" => tenant::Event::from_payload(payload).map(Self::Tenant),
            "region" => region::Event::from_payload(payload).map(Self::Region),
            _ => Err(unknown(payload)),
        }
    }

    pub(crate) fn json(&self) -> String {
        match self {
            Self::Tenant(event) => fields_json(event),
            Self::Region(event) => fields_json(event),
        }
    }

    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Tenant(event) => tenant_summary(event),
            Self::Region(region::Event::PriceBookPublished { version, entries, .. }) => {
                format!("price book {version} is in force: {}", counted(entries.len() as u64, "price"))
            }
            Self::Region(region::Event::DroppedFromReadModel { read_model, places, reason, .. }) => {
                format!(
                    "{} of read model {read_model} given up: {reason}",
                    counted(places.len() as u64, "parked event")
                )
            }
            Self::Region(region::Event::ReadModelRedriven { read_model, .. }) => {
                format!("read model {read_model} is folded anew")
            }
        }
    }
}

/// The fields of a command as JSON.
pub(crate) fn command_json(stream: &str, payload: PayloadView<'_>) -> String {
    let json = match kind_of(stream) {
        "tenant" => tenant::Command::from_payload(payload).map(|command| fields_json(&command)),
        "region" => region::Command::from_payload(payload).map(|command| fields_json(&command)),
        _ => Err(unknown(payload)),
    };
    json.unwrap_or_else(|error| undecoded_json(&error))
}

/// What stands where a payload does not decode.
pub(crate) fn undecoded_json(error: &DecodeError) -> String {
    json!({ "undecoded": error.to_string() }).to_string()
}

/// The value without its variant's name, which is shown beside it.
fn fields_json(value: &impl Serialize) -> String {
    let fields = match serde_json::to_value(value) {
        Ok(Value::Object(variant)) => variant.into_iter().next().map(|(_, fields)| fields),
        Ok(_) => None,
        Err(error) => Some(json!({ "undecoded": error.to_string() })),
    };
    fields.unwrap_or_else(|| Value::Object(Map::new())).to_string()
}

fn tenant_summary(event: &tenant::Event) -> String {
    use tenant::Event as E;
    match event {
        E::TenantRegistered { display_name, plan, zone, .. } => {
            format!("registered {}, zone {}, plan {}", quoted(display_name), clean(zone), plan_summary(plan))
        }
        E::ApiKeyIssued { key_id, prefix, label, .. } => {
            let label = if label.is_empty() { String::new() } else { format!(" for {}", quoted(label)) };
            format!("issued key {key_id} ({}...){label}", clean(prefix))
        }
        E::ApiKeyRevoked { key_id, reason, .. } => format!("revoked key {key_id}{}", because(reason)),
        E::PlanSet { plan, .. } => format!("plan is now {}", plan_summary(plan)),
        E::BudgetSet { period, limit: Some(limit), .. } => format!("budget is now {limit} a {}", period.name()),
        E::BudgetSet { period, limit: None, .. } => format!("no budget a {} any more", period.name()),
        E::TenantSuspended { reason, .. } => format!("suspended{}", because(reason)),
        E::TenantResumed { .. } => "admits requests again".to_owned(),
        E::RequestAdmitted { request, reserved, .. } => admitted_summary(request, *reserved),
        E::RequestSettled { settlement, cost, released, overrun, .. } => {
            settled_summary(settlement, *cost, *released, *overrun)
        }
        E::ReservationExpired { released, .. } => {
            format!("expired: nobody settled it in time; releases {released}")
        }
        E::RequestsRefused { reason, count, .. } => {
            format!("refused {} in one second: {}", counted(*count, "request"), reason.name())
        }
    }
}

fn plan_summary(plan: &Plan) -> String {
    let (whole, milli) = (plan.requests_per_second_milli / 1_000, plan.requests_per_second_milli % 1_000);
    let fraction = if milli == 0 { String::new() } else { format!(".{milli:03}").trim_end_matches('0').to_owned() };
    format!(
        "{}: {whole}{fraction} requests/s (burst {}), {} tokens/min, {} at once, at most {} a request",
        clean(&plan.name),
        plan.request_burst,
        plan.tokens_per_minute,
        plan.concurrency_max,
        plan.request_cost_max,
    )
}

fn admitted_summary(request: &AdmitRequest, reserved: NanoUsd) -> String {
    let streaming = if request.streaming { ", streaming" } else { "" };
    format!(
        "admitted {} via {}: at most {} prompt + {} completion tokens, holds {reserved}{streaming}",
        clean(&request.model),
        clean(&request.upstream),
        request.prompt_tokens_max,
        request.completion_tokens_max,
    )
}

fn settled_summary(settlement: &SettleRequest, cost: NanoUsd, released: NanoUsd, overrun: NanoUsd) -> String {
    let usage = &settlement.usage;
    let source = match usage.source {
        UsageSource::Reported => "reported by the upstream",
        UsageSource::LookedUp => "looked up at the upstream",
        UsageSource::Counted => "counted by us",
        UsageSource::None => "nothing used",
    };
    let mut text = format!(
        "{}: {} prompt + {} completion tokens ({source}), costs {cost}, releases {released}",
        settlement.outcome.name(),
        usage.prompt_tokens,
        usage.completion_tokens,
    );
    if overrun > NanoUsd::ZERO {
        text.push_str(&format!("; {overrun} beyond the reservation is not charged"));
    }
    // A status says something only when it is not the one that everybody expects.
    if !matches!(settlement.upstream_status, 0 | 200) {
        text.push_str(&format!("; upstream status {}", settlement.upstream_status));
    }
    text + &because(&settlement.detail)
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {}", clean(reason)) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", clean(text))
}

fn clean(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
}
