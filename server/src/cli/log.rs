//! `freehold log ...`: reads a data directory, beside a running server or without one, and changes nothing.

use std::{fs, path::Path};

use events_journal::{Direction, EventLog as _, Filter, Recorded};
use events_journal_sled::{LocalStore, verify as verify_log};
use events_model::{PayloadView, Position, Stored, TenantId, region, tenant};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    arguments::Log,
    failure::{Failure, Problem},
    output::{Output, is_watched, note},
    show,
};
use crate::{
    cluster::{self, Following},
    platform::io_code,
};

/// Commits a read.
const PAGE_LEN: usize = 1_000;
/// Package of stored types.
const PACKAGE: &str = "freehold.log.v1";

/// Runs a command about the log in a data directory.
pub(super) fn run(data: &Path, command: &Log, output: &mut Output) -> Result<(), Failure> {
    require(data)?;
    match command {
        Log::Stat => stat(data, output),
        Log::Cat { from, limit, tenant, types } => {
            let limit = limit.unwrap_or(u64::MAX);
            cat(data, Position((*from).max(1)), limit, &filter(tenant.clone(), types), output)
        }
        Log::Verify => verify(data, output),
    }
}

/// Opens a data directory for reading.
pub(super) fn open(data: &Path) -> Result<LocalStore, Failure> {
    require(data)?;
    Ok(LocalStore::open_read_only(data)?)
}

fn require(data: &Path) -> Result<(), Failure> {
    let directory = data.join("log");
    match fs::metadata(&directory) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => {}
        Err(error) => {
            if let Some(code) = io_code(&error) {
                let problem = Problem::new(format!("look into {}", directory.display()));
                return Err(problem.because(&error).code(code).into());
            }
        }
    }
    let problem = Problem::new(format!("there is no log in {}", data.display()));
    Err(problem.hint("name the data directory with --data; a server creates the log").into())
}

fn filter(tenant: Option<TenantId>, types: &[String]) -> Filter {
    let full = |name: &String| if name.contains('.') { name.clone() } else { format!("{PACKAGE}.{name}") };
    Filter { tenant, stream_kind: None, event_types: types.iter().map(full).collect() }
}

fn stat(data: &Path, output: &mut Output) -> Result<(), Failure> {
    let store = open(data)?;
    let stat = store.stat()?;
    let opening = store.opening();
    let following = Following::load(data).map_err(|error| {
        let what = format!("read {}", data.join(cluster::FOLLOWER_FILE).display());
        Problem::new(what).because(&error).hint("remove it: a node writes it anew")
    })?;
    if output.json() {
        return output.document(&json!({
            "data": data,
            "commits": stat.commits,
            "events": stat.events,
            "streams": stat.streams,
            "segments": stat.segments,
            "log_bytes": stat.log_bytes,
            "index_bytes": stat.index_bytes,
            "first_recorded_at_us": stat.first_recorded_at.map(|time| time.0),
            "last_recorded_at_us": stat.last_recorded_at.map(|time| time.0),
            "opening_us": opening.duration_us,
            "follower": following.map(|following| json!({
                "region": following.region,
                "applied": following.applied,
                "head": following.head,
                "behind": following.behind(),
                "commits_per_s": following.commits_per_s,
                "at_us": following.at_us,
            })),
        }));
    }
    let time = |time: Option<events_model::TimestampUs>| time.map_or_else(|| "-".to_owned(), |time| show::time(time.0));
    for (name, value) in [
        ("data", data.display().to_string()),
        ("commits", show::count(stat.commits)),
        ("events", show::count(stat.events)),
        ("streams", show::count(stat.streams)),
        ("segments", show::count(stat.segments as u64)),
        ("log", format!("{} of records", show::size(stat.log_bytes))),
        ("index", format!("{} of files", show::size(stat.index_bytes))),
        ("first", time(stat.first_recorded_at)),
        ("last", time(stat.last_recorded_at)),
        ("read in", show::millis(opening.duration_us)),
    ] {
        output.line(format_args!("{name:<10}{value}"))?;
    }
    let Some(following) = following else { return Ok(()) };
    let far = match following.behind() {
        0 => "nothing behind".to_owned(),
        behind => format!("{} behind, {} commits/s", show::count(behind), show::count(following.commits_per_s)),
    };
    output.line(format_args!(
        "{:<10}{} of {} groups of region {}, {far}, as of {}",
        "follows",
        show::count(following.applied),
        show::count(following.head),
        following.region,
        show::time(following.at_us)
    ))
}

fn cat(data: &Path, from: Position, limit: u64, filter: &Filter, output: &mut Output) -> Result<(), Failure> {
    let store = open(data)?;
    let head = store.head_position();
    let (mut next, mut left) = (from, limit);
    let mut is_empty = limit > 0;
    while left > 0 && next <= head {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_LEN);
        let page = store.read_log(next, Direction::Forward, filter, most)?;
        for recorded in &page.commits {
            print(recorded, output)?;
        }
        is_empty &= page.commits.is_empty();
        left = left.saturating_sub(page.commits.len() as u64);
        next = page.next;
    }
    if is_empty {
        note("no commit matches");
    }
    Ok(())
}

fn print(recorded: &Recorded, output: &mut Output) -> Result<(), Failure> {
    let commit = recorded.view()?;
    let decode = |source| events_journal::ReadError::Decode { position: recorded.position, source };
    let events = commit.events().collect::<Result<Vec<_>, _>>().map_err(decode)?;
    if !output.json() {
        let names: Vec<_> = events.iter().map(|event| event.payload.short_kind()).collect();
        return output.line(format_args!(
            "{:>8}  {}  {}@{}  {} -> {}  by {}",
            recorded.position,
            show::time(commit.recorded_at),
            commit.stream,
            commit.last_version(),
            commit.command.short_kind(),
            names.join(", "),
            commit.principal
        ));
    }
    let events: Vec<_> = events
        .iter()
        .map(|event| {
            json!({
                "event_id": events_model::EventId::from_bytes(event.event_id).to_string(),
                "type": event.payload.kind,
                "schema_version": event.payload.schema_version,
                "payload": event_json(event.payload),
            })
        })
        .collect();
    output.json_line(&json!({
        "position": recorded.position.0,
        "recorded_at_us": commit.recorded_at,
        "stream": commit.stream,
        "first_version": commit.first_version,
        "commit_id": commit.commit_id,
        "command": {
            "type": commit.command.kind,
            "schema_version": commit.command.schema_version,
            "payload": command_json(commit.command),
        },
        "events": events,
        "episode_id": commit.episode().to_string(),
        "causation_id": commit.causation_id,
        "tenant": commit.tenant,
        "region": commit.region,
        "epoch": commit.epoch,
        "principal": commit.principal,
        "traceparent": commit.traceparent,
        "decider_version": commit.decider_version,
        "context": commit.context,
    }))
}

fn event_json(payload: PayloadView<'_>) -> Value {
    decoded::<tenant::Event>(payload).or_else(|| decoded::<region::Event>(payload)).unwrap_or_else(|| opaque(payload))
}

fn command_json(payload: PayloadView<'_>) -> Value {
    let decoded = decoded::<tenant::Command>(payload).or_else(|| decoded::<region::Command>(payload));
    decoded.unwrap_or_else(|| opaque(payload))
}

fn decoded<T: Stored + Serialize>(payload: PayloadView<'_>) -> Option<Value> {
    serde_json::to_value(T::from_payload(payload).ok()?).ok()
}

/// A payload of a type that this program does not know.
fn opaque(payload: PayloadView<'_>) -> Value {
    json!({ "hex": payload.bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
}

fn verify(data: &Path, output: &mut Output) -> Result<(), Failure> {
    let bar = if is_watched() { ProgressBar::no_length() } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("verify [{wide_bar}] {bytes} of {total_bytes}, {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    let verified = verify_log(data, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    match verified {
        Ok(verified) if output.json() => output.document(&json!({
            "ok": true,
            "commits": verified.commits,
            "events": verified.events,
            "streams": verified.streams,
            "segments": verified.segments,
            "bytes": verified.bytes,
        })),
        Ok(verified) => output.line(format_args!(
            "fine: {} with {} in {}, {}, {} of files, every byte checked",
            show::things(verified.commits, "commit"),
            show::things(verified.events, "event"),
            show::things(verified.streams, "stream"),
            show::things(verified.segments as u64, "segment"),
            show::size(verified.bytes)
        )),
        Err(error) => {
            if output.json()
                && let events_journal::ReadError::Corrupt { file, offset, reason } = &error
            {
                output.document(&json!({ "ok": false, "file": file, "offset": offset, "reason": reason }))?;
            }
            Err(error.into())
        }
    }
}
