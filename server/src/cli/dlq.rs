//! `freehold dlq ...`: dead letters of consumer groups and of read models.

use projections::parked::WHOLE_COMMIT;
use proto::events::v1 as pb;
use serde_json::{Value, json};
use tonic_types::StatusExt as _;

use super::{
    arguments::Common,
    client::Client,
    event_arguments::{Dlq, Parking, Which},
    events::{commit_json, print},
    failure::{Failure, Problem},
    group::time,
    output::{Column, Output, note},
    show,
};

/// Events of one batch.
const BATCH_LEN: usize = 1_000;

/// Runs a command about dead letters.
pub(super) async fn dlq(common: &Common, command: &Dlq, output: &mut Output) -> Result<(), Failure> {
    let client = Client::connect(common).await?;
    match command {
        Dlq::List { of, limit, page_token } => {
            let ([tenant, group, projection], page_token) = (named(of), page_token.clone());
            let request = pb::ListParkedRequest { tenant, group, projection, page_size: *limit, page_token };
            list(&client.events().list_parked(request).await?.into_inner(), output)
        }
        Dlq::Show { of, number } => {
            let [tenant, group, projection] = named(of);
            let request = pb::GetParkedRequest { tenant, group, number: *number, projection };
            shown(&client.events().get_parked(request).await?.into_inner(), output)
        }
        Dlq::Redrive { which } => redrive(&client, which, output).await,
        Dlq::Drop { which, reason } => give_up(&client, which, reason, output).await,
    }
}

/// Tenant and group, or the read model.
fn named(of: &Parking) -> [String; 3] {
    match of {
        Parking::Group(group) => [group.tenant.to_string(), group.name.clone(), String::new()],
        Parking::Model(model) => [String::new(), String::new(), model.name().to_owned()],
    }
}

fn list(page: &pb::ListParkedResponse, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(&json!({
            "parked": page.parked.iter().map(parked_json).collect::<Vec<_>>(),
            "count": page.count,
            "next_page_token": page.next_page_token,
        }));
    }
    let columns = [
        Column::Right("number"),
        Column::Left("parked"),
        Column::Left("event"),
        Column::Left("type"),
        Column::Right("attempts"),
        Column::Left("consumer"),
        Column::Left("error"),
    ];
    let rows = page.parked.iter().map(|parked| {
        vec![
            parked.number.to_string(),
            time(parked.parked_at_us),
            place(parked),
            parked.r#type.clone(),
            show::count(parked.attempts.into()),
            parked.consumer_version.clone(),
            parked.error.clone(),
        ]
    });
    output.table(&columns, rows)?;
    if page.parked.is_empty() && page.count > 0 {
        note(format_args!("{} in all; the list is being made anew: list again", show::count(page.count)));
    }
    if !page.next_page_token.is_empty() {
        note(format_args!("{} in all; go on with --page-token {}", show::count(page.count), page.next_page_token));
    }
    Ok(())
}

fn shown(found: &pb::GetParkedResponse, output: &mut Output) -> Result<(), Failure> {
    let parked = found.parked.clone().unwrap_or_default();
    if output.json() {
        let commit = found.commit.as_ref().map(commit_json);
        return output.document(&json!({ "parked": parked_json(&parked), "commit": commit }));
    }
    for (name, value) in [
        ("number", parked.number.to_string()),
        ("parked", time(parked.parked_at_us)),
        ("stream", parked.stream.clone()),
        ("type", parked.r#type.clone()),
        ("attempts", show::count(parked.attempts.into())),
        ("consumer", parked.consumer_version.clone()),
        ("error", parked.error.clone()),
    ] {
        output.line(format_args!("{name:<12}{value}"))?;
    }
    match &found.commit {
        Some(commit) => print(commit, output),
        None => Ok(()),
    }
}

fn place(parked: &pb::Parked) -> String {
    match parked.index {
        WHOLE_COMMIT => format!("{}, the whole commit", parked.position),
        index => format!("{} #{index} of {}", parked.position, parked.stream),
    }
}

fn parked_json(parked: &pb::Parked) -> Value {
    json!({
        "number": parked.number,
        "position": parked.position,
        "index": parked.index,
        "stream": parked.stream,
        "type": parked.r#type,
        "error": parked.error,
        "attempts": parked.attempts,
        "consumer_version": parked.consumer_version,
        "parked_at_us": parked.parked_at_us,
    })
}

/// The batches of what was named; one empty batch after the other for all.
fn batches(which: &Which) -> impl Iterator<Item = Vec<u64>> {
    let named = which.numbers.chunks(BATCH_LEN).map(<[u64]>::to_vec);
    let all = std::iter::repeat_with(Vec::new).take_while(|_| which.all);
    named.chain(all)
}

fn reason_of(status: &tonic::Status) -> String {
    status.get_error_details().error_info().map_or_else(String::new, |info| info.reason.clone())
}

async fn redrive(client: &Client, which: &Which, output: &mut Output) -> Result<(), Failure> {
    let (mut events, mut redriven, mut left) = (client.events(), 0_u64, None);
    let mut is_busy = false;
    for numbers in batches(which) {
        let [tenant, group, projection] = named(&which.of);
        match events.replay_parked(pb::ReplayParkedRequest { tenant, group, numbers, limit: 0, projection }).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                redriven = redriven.saturating_add(answer.redriven.into());
                left = Some(answer.parked);
                // A read model has tried all of them at once.
                if answer.parked == 0 || (which.all && matches!(which.of, Parking::Model(_))) {
                    break;
                }
            }
            // Between two batches a group may have become empty or full.
            Err(status) if (redriven > 0 || which.all) && reason_of(&status) == "NOT_PARKED" => break,
            Err(status) if redriven > 0 && reason_of(&status) == "REDRIVE_BUSY" => {
                is_busy = true;
                break;
            }
            Err(status) => return Err(status.into()),
        }
    }
    if is_busy {
        note("the group delivers these first; run it again when its consumers have taken some");
    }
    moved(("redriven", redriven), left, output)
}

async fn give_up(client: &Client, which: &Which, reason: &str, output: &mut Output) -> Result<(), Failure> {
    if reason.trim().is_empty() {
        return Err(Problem::new("--reason must say why").misuse().into());
    }
    let (mut events, mut dropped, mut left) = (client.events(), 0_u64, None);
    for numbers in batches(which) {
        let [tenant, group, projection] = named(&which.of);
        let reason = reason.to_owned();
        match events.drop_parked(pb::DropParkedRequest { tenant, group, numbers, limit: 0, reason, projection }).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                dropped = dropped.saturating_add(answer.dropped.into());
                left = Some(answer.parked);
                if answer.parked == 0 {
                    break;
                }
            }
            Err(status) if (dropped > 0 || which.all) && reason_of(&status) == "NOT_PARKED" => break,
            Err(status) => return Err(status.into()),
        }
    }
    moved(("dropped", dropped), left, output)
}

/// Says what a batch came to; `None` is left when all was wanted and nothing was there.
fn moved((what, count): (&str, u64), left: Option<u64>, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(&json!({ what: count, "parked": left.unwrap_or_default() }));
    }
    let Some(left) = left else { return output.line("nothing is parked") };
    output.line(format_args!("{what} {}, {} still parked", show::things(count, "event"), show::count(left)))
}
