//! The money's checkers: what the log says was used, what the upstream says it billed, and that no budget was ever
//! exceeded, at any commit.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use actors_core::{
    Decider, invariant,
    tenant::{State, Tenant},
};
use anyhow::{Context, Result, ensure};
use events_journal::{Direction, EventLog, Filter};
use events_journal_sled::LocalStore;
use events_model::{NanoUsd, Position, RequestId, Stored, TimestampUs, Tokens, tenant::Event};
use serde_json::Value;

use crate::{
    clients::Http,
    system::{LOOK_AGAIN, System},
};

/// Longest wait for the last reservation to close.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What the log says.
#[derive(Debug, Default)]
pub struct Account {
    /// Requests admitted.
    pub admitted: u64,
    /// Requests settled.
    pub settled: u64,
    /// Of those, settled after a restart.
    pub recovered: u64,
    /// Of those, settled after their reservation's deadline.
    pub overdue: u64,
    /// Reservations that nobody settled.
    pub expired: u64,
    /// Requests refused.
    pub refused: u64,
    /// Tokens settled.
    pub prompt_tokens: Tokens,
    /// Tokens settled.
    pub completion_tokens: Tokens,
    /// Costs settled.
    pub cost: NanoUsd,
    /// Reservations that are open.
    pub open: usize,
    /// Tokens of each request.
    pub by_request: BTreeMap<RequestId, (u64, u64)>,
}

/// Folds the whole log; holds every invariant after every event.
///
/// # Errors
/// The log cannot be read, or an invariant is broken.
pub fn account(data: &Path) -> Result<Account> {
    let log = LocalStore::open_read_only(data).context("open the log")?;
    let mut states: BTreeMap<String, State> = BTreeMap::new();
    let mut account = Account::default();
    let mut from = Position(1);
    let filter = Filter { stream_kind: Some("tenant".to_owned()), ..Filter::default() };
    loop {
        let page = log.read_log(from, Direction::Forward, &filter, 1_000).context("read the log")?;
        for recorded in &page.commits {
            let commit = recorded.view()?;
            let mut state = states.remove(commit.stream).unwrap_or_default();
            for event in commit.events() {
                let event = Event::from_payload(event?.payload)?;
                account.overdue += u64::from(is_overdue(&state, &event, commit.recorded_at()));
                count(&mut account, &event);
                state = Tenant::evolve(state, &event);
            }
            if let Some(broken) = invariant::broken(&state, commit.recorded_at()) {
                anyhow::bail!("{} is broken at position {}", broken.id(), recorded.position);
            }
            states.insert(commit.stream.to_owned(), state);
        }
        if page.next == from || from > log.head_position() {
            break;
        }
        from = page.next;
    }
    account.open = states.values().map(|state| state.reservations.len()).sum();
    account.refused = states.values().flat_map(|state| state.totals.refused.values()).sum();
    Ok(account)
}

/// Whether an event settles a reservation of this state after its deadline.
fn is_overdue(state: &State, event: &Event, at: TimestampUs) -> bool {
    let Event::RequestSettled { settlement, .. } = event else { return false };
    state.reservations.get(&settlement.request_id).is_some_and(|held| held.deadline < at)
}

fn count(account: &mut Account, event: &Event) {
    match event {
        Event::RequestAdmitted { .. } => account.admitted += 1,
        Event::RequestSettled { settlement, cost, .. } => {
            let usage = settlement.usage;
            account.settled += 1;
            account.recovered += u64::from(settlement.outcome == events_model::tenant::Outcome::Recovered);
            account.prompt_tokens = account.prompt_tokens.plus(usage.prompt_tokens);
            account.completion_tokens = account.completion_tokens.plus(usage.completion_tokens);
            account.cost = account.cost.plus(*cost);
            let used = (usage.prompt_tokens.0, usage.completion_tokens.0);
            account.by_request.insert(settlement.request_id, used);
        }
        Event::ReservationExpired { .. } => account.expired += 1,
        Event::TenantRegistered { .. }
        | Event::ApiKeyIssued { .. }
        | Event::ApiKeyRevoked { .. }
        | Event::PlanSet { .. }
        | Event::BudgetSet { .. }
        | Event::TenantSuspended { .. }
        | Event::TenantResumed { .. }
        | Event::RequestsRefused { .. } => {}
    }
}

/// Waits until no reservation is open and the upstream serves nothing.
///
/// # Errors
/// Something stays open.
pub async fn all_settled(system: &System) -> Result<()> {
    all_settled_in(&system.data(), system.upstream.http).await
}

/// The same, for a log and an upstream.
///
/// # Errors
/// Something stays open.
pub async fn all_settled_in(data: &Path, upstream: SocketAddr) -> Result<()> {
    let wait = async {
        loop {
            let open = account(data)?.open;
            let busy = number(&stats_of(upstream).await?, "in_flight")?;
            if open == 0 && busy == 0 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN * 10).await;
        }
    };
    tokio::time::timeout(SETTLE_TIMEOUT, wait).await.context("wait for the last reservation to close")?
}

/// What the upstream counted.
///
/// # Errors
/// It does not answer.
pub async fn stats(system: &System) -> Result<Value> {
    stats_of(system.upstream.http).await
}

async fn stats_of(upstream: SocketAddr) -> Result<Value> {
    let (_, body) = Http::new(upstream).get("/stats").await?;
    serde_json::from_slice(&body).context("read the upstream's counts")
}

/// A whole number of a JSON object.
///
/// # Errors
/// It is not there.
pub fn number(object: &Value, name: &str) -> Result<u64> {
    object.get(name).and_then(Value::as_u64).with_context(|| format!("find {name} in {object}"))
}

/// Holds the log against the upstream: the same tokens, in sum and, where they differ, by request.
///
/// # Errors
/// They differ, or something is open.
pub async fn books_agree(system: &System) -> Result<Account> {
    books_agree_in(&system.data(), system.upstream.http).await
}

/// The same, for a log and an upstream.
///
/// # Errors
/// They differ, or something is open.
pub async fn books_agree_in(data: &Path, upstream: SocketAddr) -> Result<Account> {
    let account = account(data)?;
    let stats = stats_of(upstream).await?;
    let billed = (number(&stats, "prompt_tokens")?, number(&stats, "completion_tokens")?);
    let settled = (account.prompt_tokens.0, account.completion_tokens.0);
    if billed != settled {
        let mut differing = Vec::new();
        for (request, ours) in &account.by_request {
            let (status, body) = Http::new(upstream).get(&format!("/v1/usage/{request}")).await?;
            let theirs: Value = serde_json::from_slice(&body).unwrap_or_default();
            let theirs =
                (theirs["prompt_tokens"].as_u64().unwrap_or(0), theirs["completion_tokens"].as_u64().unwrap_or(0));
            if *ours != theirs && (status == 200 || *ours != (0, 0)) {
                differing.push(format!(
                    "{request}: settled {ours:?}, billed {theirs:?}: {}",
                    String::from_utf8_lossy(&body)
                ));
            }
        }
        differing.truncate(10);
        anyhow::bail!("settled {settled:?} tokens, billed {billed:?}; {}", differing.join("; "));
    }
    ensure!(account.open == 0, "{} reservations are open", account.open);
    ensure!(account.admitted == account.settled + account.expired, "{account:?}");
    Ok(account)
}
