//! `freehold tenant ...` and `freehold key ...`.

use proto::tenant::v1 as pb;
use serde_json::{Value, json};

use super::{
    arguments::{Common, Key, Tenant},
    client::Client,
    failure::Failure,
    output::{Column, Output, note},
    show,
};

/// Tenants a page of the list.
const PAGE_SIZE: u32 = 1_000;

/// Runs a command about tenants.
pub(super) async fn tenant(common: &Common, command: &Tenant, output: &mut Output) -> Result<(), Failure> {
    let client = Client::connect(common).await?;
    let mut tenants = client.tenants();
    let tenant = match command {
        Tenant::List => return list(&client, output).await,
        Tenant::Create { tenant, display_name, plan } => {
            let display_name = display_name.clone().unwrap_or_else(|| tenant.to_string());
            tenants
                .create_tenant(pb::CreateTenantRequest {
                    tenant_id: tenant.to_string(),
                    display_name,
                    plan: plan.clone(),
                })
                .await?
        }
        Tenant::Show { tenant } => tenants.get_tenant(pb::GetTenantRequest { tenant_id: tenant.to_string() }).await?,
        Tenant::SetPlan { tenant, plan } => {
            tenants.set_plan(pb::SetPlanRequest { tenant_id: tenant.to_string(), plan: plan.clone() }).await?
        }
        Tenant::SetBudget { tenant, period, limit, no_limit: _ } => {
            let period = pb::Period::from_str_name(&format!("PERIOD_{}", period.name().to_uppercase()));
            tenants
                .set_budget(pb::SetBudgetRequest {
                    tenant_id: tenant.to_string(),
                    period: period.unwrap_or_default().into(),
                    limit_nano_usd: limit.map(|limit| limit.0),
                })
                .await?
        }
        Tenant::Suspend { tenant, reason } => {
            tenants
                .suspend_tenant(pb::SuspendTenantRequest { tenant_id: tenant.to_string(), reason: reason.clone() })
                .await?
        }
        Tenant::Resume { tenant } => {
            tenants.resume_tenant(pb::ResumeTenantRequest { tenant_id: tenant.to_string() }).await?
        }
    };
    print(&tenant.into_inner(), output)
}

/// Runs a command about API keys.
pub(super) async fn key(common: &Common, command: &Key, output: &mut Output) -> Result<(), Failure> {
    let mut tenants = Client::connect(common).await?.tenants();
    match command {
        Key::Create { tenant, label } => {
            let request = pb::IssueApiKeyRequest { tenant_id: tenant.to_string(), label: label.clone() };
            let issued = tenants.issue_api_key(request).await?.into_inner();
            let key = issued.api_key.unwrap_or_default();
            if output.json() {
                return output.document(&json!({ "api_key": key_json(&key), "secret": issued.secret }));
            }
            output.line(&issued.secret)?;
            note(format_args!("key {} of tenant {tenant}; this is the only time it is shown, keep it now", key.key_id));
            Ok(())
        }
        Key::Revoke { tenant, key_id, reason } => {
            let request = pb::RevokeApiKeyRequest {
                tenant_id: tenant.to_string(),
                key_id: key_id.to_string(),
                reason: reason.clone(),
            };
            let key = tenants.revoke_api_key(request).await?.into_inner();
            if output.json() {
                return output.document(&key_json(&key));
            }
            output.line(format_args!("key {} ({}...) of tenant {tenant} is revoked", key.key_id, key.prefix))
        }
    }
}

async fn list(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut tenants = client.tenants();
    let mut all = Vec::new();
    let mut page_token = String::new();
    let position = loop {
        let page = tenants.list_tenants(pb::ListTenantsRequest { page_size: PAGE_SIZE, page_token }).await?;
        let page = page.into_inner();
        all.extend(page.tenants);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break page.position;
        }
    };
    if output.json() {
        let tenants: Vec<_> = all.iter().map(summary_json).collect();
        return output.document(&json!({ "tenants": tenants, "position": position }));
    }
    let columns = [
        Column::Left("tenant"),
        Column::Left("name"),
        Column::Left("status"),
        Column::Left("plan"),
        Column::Right("requests"),
        Column::Right("prompt tokens"),
        Column::Right("completion tokens"),
        Column::Right("cost"),
        Column::Right("open"),
        Column::Right("refused"),
    ];
    let rows = all.iter().map(|tenant| {
        vec![
            tenant.tenant_id.clone(),
            tenant.display_name.clone(),
            status(tenant.status()).to_owned(),
            tenant.plan.clone(),
            show::count(tenant.requests_settled),
            show::count(tenant.prompt_tokens),
            show::count(tenant.completion_tokens),
            show::money(tenant.cost_nano_usd),
            show::count(tenant.open_reservations.into()),
            show::count(tenant.refused),
        ]
    });
    output.table(&columns, rows)
}

fn print(tenant: &pb::Tenant, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(&tenant_json(tenant));
    }
    let plan = tenant.plan.clone().unwrap_or_default();
    let mut facts = vec![
        ("tenant", tenant.tenant_id.clone()),
        ("name", tenant.display_name.clone()),
        ("status", status(tenant.status()).to_owned()),
        ("registered", show::time(tenant.registered_at_us)),
        ("version", tenant.version.to_string()),
        ("plan", plan.name.clone()),
    ];
    let per_second = plan.requests_per_second_milli;
    let limits = [
        format!("{}.{:03} requests/s", show::count(per_second / 1_000), per_second % 1_000).replace(".000 ", " "),
        format!("bursts of {}", show::count(plan.request_burst.into())),
        format!("{} tokens/min", show::count(plan.tokens_per_minute)),
        format!("{} at once", show::count(plan.concurrency_max.into())),
        format!("{} a request", show::money(plan.request_cost_max_nano_usd)),
    ];
    facts.push(("limits", limits.join(", ")));
    let tokens = (show::count(tenant.prompt_tokens), show::count(tenant.completion_tokens));
    let (settled, cost) = (show::things(tenant.requests_settled, "request"), show::money(tenant.cost_nano_usd));
    facts.push(("used", format!("{settled}, {} prompt + {} completion tokens, {cost}", tokens.0, tokens.1)));
    facts.push(("open", show::things(tenant.open_reservations.into(), "reservation")));
    for (name, value) in facts {
        output.line(format_args!("{name:<12}{value}"))?;
    }
    output.line("")?;
    budgets(tenant, output)?;
    if tenant.api_keys.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let columns = [
        Column::Left("key"),
        Column::Left("shown"),
        Column::Left("label"),
        Column::Left("issued"),
        Column::Left("state"),
    ];
    let rows = tenant.api_keys.iter().map(|key| {
        let state = if key.revoked { "revoked" } else { "active" };
        vec![
            key.key_id.clone(),
            format!("{}...", key.prefix),
            key.label.clone(),
            show::time(key.issued_at_us),
            state.to_owned(),
        ]
    });
    output.table(&columns, rows)
}

fn budgets(tenant: &pb::Tenant, output: &mut Output) -> Result<(), Failure> {
    let columns = [
        Column::Left("budget"),
        Column::Right("limit"),
        Column::Right("settled"),
        Column::Right("reserved"),
        Column::Left("until"),
    ];
    let rows = tenant.budgets.iter().map(|budget| {
        vec![
            period(budget.period()),
            budget.limit_nano_usd.map_or_else(|| "none".to_owned(), show::money),
            show::money(budget.settled_nano_usd),
            show::money(budget.reserved_nano_usd),
            if budget.period_end_us == 0 { String::new() } else { show::time(budget.period_end_us) },
        ]
    });
    output.table(&columns, rows)
}

/// The last word of a value's name in lower case: `TENANT_STATUS_ACTIVE` is `active`.
fn status(status: pb::TenantStatus) -> &'static str {
    match status {
        pb::TenantStatus::Unspecified => "unknown",
        pb::TenantStatus::Active => "active",
        pb::TenantStatus::Suspended => "suspended",
    }
}

fn period(period: pb::Period) -> String {
    period.as_str_name().trim_start_matches("PERIOD_").to_lowercase()
}

fn key_json(key: &pb::ApiKey) -> Value {
    json!({
        "key_id": key.key_id,
        "prefix": key.prefix,
        "label": key.label,
        "revoked": key.revoked,
        "issued_at_us": key.issued_at_us,
    })
}

fn summary_json(tenant: &pb::TenantSummary) -> Value {
    json!({
        "tenant_id": tenant.tenant_id,
        "display_name": tenant.display_name,
        "status": status(tenant.status()),
        "plan": tenant.plan,
        "requests_settled": tenant.requests_settled,
        "prompt_tokens": tenant.prompt_tokens,
        "completion_tokens": tenant.completion_tokens,
        "cost_nano_usd": tenant.cost_nano_usd,
        "open_reservations": tenant.open_reservations,
        "refused": tenant.refused,
    })
}

fn tenant_json(tenant: &pb::Tenant) -> Value {
    let plan = tenant.plan.as_ref().map(|plan| {
        json!({
            "name": plan.name,
            "requests_per_second_milli": plan.requests_per_second_milli,
            "request_burst": plan.request_burst,
            "tokens_per_minute": plan.tokens_per_minute,
            "concurrency_max": plan.concurrency_max,
            "weight": plan.weight,
            "request_cost_max_nano_usd": plan.request_cost_max_nano_usd,
        })
    });
    let budget = |budget: &pb::Budget| {
        json!({
            "period": period(budget.period()),
            "limit_nano_usd": budget.limit_nano_usd,
            "settled_nano_usd": budget.settled_nano_usd,
            "reserved_nano_usd": budget.reserved_nano_usd,
            "period_start_us": budget.period_start_us,
            "period_end_us": budget.period_end_us,
        })
    };
    json!({
        "tenant_id": tenant.tenant_id,
        "display_name": tenant.display_name,
        "status": status(tenant.status()),
        "plan": plan,
        "budgets": tenant.budgets.iter().map(budget).collect::<Vec<_>>(),
        "api_keys": tenant.api_keys.iter().map(key_json).collect::<Vec<_>>(),
        "open_reservations": tenant.open_reservations,
        "version": tenant.version,
        "registered_at_us": tenant.registered_at_us,
        "requests_settled": tenant.requests_settled,
        "prompt_tokens": tenant.prompt_tokens,
        "completion_tokens": tenant.completion_tokens,
        "cost_nano_usd": tenant.cost_nano_usd,
    })
}
