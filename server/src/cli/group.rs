//! `freehold group ...`.

use proto::events::v1 as pb;
use serde_json::{Value, json};

use super::{
    arguments::Common,
    client::Client,
    event_arguments::Group,
    failure::Failure,
    output::{Column, Output},
    show,
};

/// Groups asked for at once.
const PAGE_SIZE: u32 = 1_000;

/// Runs a command about consumer groups.
pub(super) async fn group(common: &Common, command: &Group, output: &mut Output) -> Result<(), Failure> {
    let client = Client::connect(common).await?;
    let group = match command {
        Group::List { tenant } => {
            let tenant = tenant.as_ref().map_or_else(String::new, ToString::to_string);
            return list(&client, tenant, output).await;
        }
        Group::Show { group } => {
            let request = pb::GetGroupRequest { tenant: group.tenant.to_string(), name: group.name.clone() };
            client.events().get_group(request).await?
        }
        Group::Create {
            group,
            types,
            live,
            after,
            attempts,
            backoff_first_ms,
            backoff_max_ms,
            answer_timeout_ms,
            in_flight,
        } => {
            let request = pb::CreateGroupRequest {
                tenant: group.tenant.to_string(),
                name: group.name.clone(),
                types: types.clone(),
                live: *live,
                after_position: *after,
                attempts_max: *attempts,
                backoff_first_ms: *backoff_first_ms,
                backoff_max_ms: *backoff_max_ms,
                answer_timeout_ms: *answer_timeout_ms,
                in_flight_max: *in_flight,
            };
            client.events().create_group(request).await?
        }
    };
    print(group.get_ref(), output)
}

async fn list(client: &Client, tenant: String, output: &mut Output) -> Result<(), Failure> {
    let (mut events, mut all, mut page_token) = (client.events(), Vec::new(), String::new());
    loop {
        let request = pb::ListGroupsRequest { tenant: tenant.clone(), page_size: PAGE_SIZE, page_token };
        let page = events.list_groups(request).await?.into_inner();
        all.extend(page.groups);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output.json() {
        return output.document(&json!({ "groups": all.iter().map(group_json).collect::<Vec<_>>() }));
    }
    let columns = [
        Column::Left("group"),
        Column::Left("types"),
        Column::Right("checkpoint"),
        Column::Right("lag"),
        Column::Right("parked"),
        Column::Left("oldest parked"),
        Column::Right("redriven"),
    ];
    let rows = all.iter().map(|group| {
        vec![
            format!("{}/{}", group.tenant, group.name),
            types(group),
            show::count(group.checkpoint),
            show::count(group.lag),
            show::count(group.parked),
            time(group.oldest_parked_at_us),
            show::count(group.redriven),
        ]
    });
    output.table(&columns, rows)
}

fn types(group: &pb::Group) -> String {
    if group.types.is_empty() { "all".to_owned() } else { group.types.join(", ") }
}

/// A time that may be none.
pub(super) fn time(at_us: u64) -> String {
    if at_us == 0 { "-".to_owned() } else { show::time(at_us) }
}

fn print(group: &pb::Group, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(&group_json(group));
    }
    let (first, most) = (group.backoff_first_ms, group.backoff_max_ms);
    for (name, value) in [
        ("group", format!("{}/{}", group.tenant, group.name)),
        ("types", types(group)),
        ("created", show::time(group.created_at_us)),
        ("checkpoint", show::count(group.checkpoint)),
        ("lag", show::things(group.lag, "commit")),
        ("attempts", format!("{}, {first} ms apart, doubling up to {most} ms", group.attempts_max)),
        ("answers", format!("within {} ms, {} in flight at most", group.answer_timeout_ms, group.in_flight_max)),
        ("parked", format!("{} of {} ever", show::count(group.parked), show::count(group.parked_total))),
        ("oldest", time(group.oldest_parked_at_us)),
        ("redriven", show::count(group.redriven)),
        ("dropped", show::count(group.dropped_total)),
    ] {
        output.line(format_args!("{name:<12}{value}"))?;
    }
    Ok(())
}

fn group_json(group: &pb::Group) -> Value {
    json!({
        "tenant": group.tenant,
        "name": group.name,
        "types": group.types,
        "attempts_max": group.attempts_max,
        "backoff_first_ms": group.backoff_first_ms,
        "backoff_max_ms": group.backoff_max_ms,
        "answer_timeout_ms": group.answer_timeout_ms,
        "in_flight_max": group.in_flight_max,
        "created_at_us": group.created_at_us,
        "checkpoint": group.checkpoint,
        "lag": group.lag,
        "parked": group.parked,
        "oldest_parked_at_us": group.oldest_parked_at_us,
        "redriven": group.redriven,
        "parked_total": group.parked_total,
        "dropped_total": group.dropped_total,
    })
}
