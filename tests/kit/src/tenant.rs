//! Tenants to test with.

use actors_core::plan;
use events_model::{
    DurationUs, KeyId, NanoUsd, RequestId, TimestampUs, Tokens,
    tenant::{AdmitRequest, Event, Outcome, Period, Plan, Price, SettleRequest, Usage, UsageSource},
};

use crate::NOON;

/// One nano-dollar a prompt token, two a completion token.
pub const PRICE: Price =
    Price { price_book_version: 1, input_per_mtok: NanoUsd(1_000_000), output_per_mtok: NanoUsd(2_000_000) };

/// A key id.
///
/// # Panics
/// The text is no name.
#[expect(clippy::expect_used, reason = "a test helper fails its test")]
pub fn key(name: &str) -> KeyId {
    KeyId::new(name).expect("a name")
}

/// The request of this number.
pub fn request(number: u8) -> RequestId {
    RequestId::from_bytes([number; 16])
}

/// A built-in plan without budgets.
///
/// # Panics
/// There is no such plan.
#[expect(clippy::expect_used, reason = "a test helper fails its test")]
pub fn plan(name: &str) -> Plan {
    Plan { budgets: Vec::new(), ..plan::built_in(name).expect("a built-in plan") }
}

/// A tenant on a plan, registered at noon, with the key `main`.
pub fn registered(plan: Plan) -> Vec<Event> {
    vec![
        Event::TenantRegistered { display_name: "Acme".to_owned(), plan, zone: "local".to_owned(), at: NOON },
        Event::ApiKeyIssued {
            key_id: key("main"),
            prefix: "fhk_acme_abcd".to_owned(),
            hash: [7; 32],
            label: "main".to_owned(),
            at: NOON,
        },
    ]
}

/// A budget.
pub fn budget_set(period: Period, limit: i64) -> Event {
    Event::BudgetSet { period, limit: Some(NanoUsd(limit)), at: NOON }
}

/// A request that reserves `prompt + 2 * completion` nano-dollars for a minute.
pub fn admission(number: u8, prompt: u64, completion: u64) -> AdmitRequest {
    AdmitRequest {
        request_id: request(number),
        key_id: key("main"),
        model: "sim-small".to_owned(),
        upstream: "sim".to_owned(),
        upstream_model: "sim-small".to_owned(),
        prompt_tokens_max: Tokens(prompt),
        completion_tokens_max: Tokens(completion),
        price: PRICE,
        deadline: NOON.after(DurationUs::from_secs(60)),
        streaming: false,
        served_by: String::new(),
    }
}

/// The event of such a request.
pub fn admitted(number: u8, prompt: u64, completion: u64, at: TimestampUs) -> Event {
    let reserved = i64::try_from(prompt + 2 * completion).unwrap_or(i64::MAX);
    Event::RequestAdmitted { request: admission(number, prompt, completion), reserved: NanoUsd(reserved), at }
}

/// A settlement with this usage.
pub fn settlement(number: u8, prompt: u64, completion: u64) -> SettleRequest {
    SettleRequest {
        request_id: request(number),
        outcome: Outcome::Completed,
        usage: Usage {
            prompt_tokens: Tokens(prompt),
            completion_tokens: Tokens(completion),
            source: UsageSource::Reported,
        },
        upstream_status: 200,
        first_token: DurationUs::from_millis(1),
        duration: DurationUs::from_millis(2),
        detail: String::new(),
    }
}
