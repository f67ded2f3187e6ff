//! An episode for people: a timeline, the commands behind it, the end; and the same for programs.

use proto::episode::v1 as pb;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    output::{Column, Output},
    show,
};

/// Prints an episode.
pub(super) fn print(episode: &pb::Episode, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(&episode_json(episode));
    }
    let (first, last) = (episode.entries.first(), episode.entries.last());
    let of = if episode.tenant.is_empty() { String::new() } else { format!("  tenant {}", episode.tenant) };
    output.line(format_args!("episode {}{of}", episode.episode_id))?;
    if let Some(first) = first {
        output.line(format_args!("started {}", show::time(first.recorded_at_us)))?;
    }
    output.line("")?;
    let stamps: Vec<_> =
        episode.entries.iter().map(|entry| format!("+{}", show::millis(entry.since_start_us))).collect();
    let stamp_width = stamps.iter().map(String::len).max().unwrap_or(0);
    let event_width = episode.entries.iter().map(|entry| entry.event.len()).max().unwrap_or(0);
    for (entry, stamp) in episode.entries.iter().zip(&stamps) {
        output.line(format_args!("  {stamp:>stamp_width$}  {:<event_width$}  {}", entry.event, entry.summary))?;
    }
    output.line("")?;
    commands(episode, output)?;
    output.line("")?;
    let took = last.map(|last| format!(" after {}", show::millis(last.since_start_us))).unwrap_or_default();
    output.line(format_args!("end state  {}{took}", episode.end_state))?;
    output.line(format_args!(
        "total      {} prompt + {} completion tokens, {}",
        show::count(episode.prompt_tokens),
        show::count(episode.completion_tokens),
        show::money(episode.cost_nano_usd)
    ))
}

fn commands(episode: &pb::Episode, output: &mut Output) -> Result<(), Failure> {
    let columns = [
        Column::Left("  command"),
        Column::Left("by"),
        Column::Left("stream"),
        Column::Right("version"),
        Column::Right("position"),
        Column::Left("commit"),
    ];
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut position = None;
    for entry in &episode.entries {
        // The events of one commit have one command behind them.
        if position.replace(entry.position) != Some(entry.position) {
            rows.push(vec![
                format!("  {}", entry.command),
                entry.principal.clone(),
                entry.stream.clone(),
                entry.version.to_string(),
                entry.position.to_string(),
                entry.commit_id.clone(),
            ]);
        }
    }
    output.table(&columns, rows)
}

/// The episode with everything that is in it.
pub(super) fn episode_json(episode: &pb::Episode) -> Value {
    json!({
        "episode_id": episode.episode_id,
        "tenant": episode.tenant,
        "entries": episode.entries.iter().map(entry_json).collect::<Vec<_>>(),
        "end_state": episode.end_state,
        "cost_nano_usd": episode.cost_nano_usd,
        "prompt_tokens": episode.prompt_tokens,
        "completion_tokens": episode.completion_tokens,
    })
}

fn entry_json(entry: &pb::Entry) -> Value {
    json!({
        "position": entry.position,
        "stream": entry.stream,
        "version": entry.version,
        "event": entry.event,
        "recorded_at_us": entry.recorded_at_us,
        "since_start_us": entry.since_start_us,
        "summary": entry.summary,
        "reserved_nano_usd": entry.reserved_nano_usd,
        "cost_nano_usd": entry.cost_nano_usd,
        "released_nano_usd": entry.released_nano_usd,
        "payload": embedded(&entry.payload_json),
        "command": entry.command,
        "command_payload": embedded(&entry.command_json),
        "commit_id": entry.commit_id,
        "principal": entry.principal,
    })
}

/// JSON inside of a text as JSON; a text that is none stays one.
pub(super) fn embedded(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}
