//! `freehold events ...`.

use std::{fs::File, io::Read as _, path::Path};

use events_model::application::DATA_BYTES_MAX;
use futures::StreamExt as _;
use proto::events::v1::{self as pb, subscribe_response::Message};
use serde_json::{Value, json};

use super::{
    arguments::Common,
    client::Client,
    event_arguments::Events,
    failure::{Failure, Problem},
    output::{Output, note},
    show,
};
use crate::auth::entropy;

/// Commits asked for at once.
const PAGE_LEN: u32 = 500;
/// Longest payload that is shown in a line, characters.
const SHOWN_CHARS: usize = 120;
/// Largest file that is taken, bytes.
const FILE_BYTES_MAX: u64 = DATA_BYTES_MAX as u64;

/// Runs a command about events.
pub(super) async fn events(common: &Common, command: &Events, output: &mut Output) -> Result<(), Failure> {
    let client = Client::connect(common).await?;
    match command {
        Events::Append { stream, kind, content_type, payload, file, expect, commit_id } => {
            let data = match (payload, file) {
                (Some(text), _) => text.clone().into_bytes(),
                (None, Some(path)) => read_file(path)?,
                (None, None) => Vec::new(),
            };
            let event = pb::NewEvent { r#type: kind.clone(), content_type: content_type.clone(), data };
            let request = pb::AppendRequest {
                stream: stream.to_string(),
                expected: expect.0.into(),
                version: expect.1,
                commit_id: commit_id.as_ref().map_or_else(new_id, |id| Ok(id.to_string()))?,
                events: vec![event],
                ..pb::AppendRequest::default()
            };
            append(&client, request, output).await
        }
        Events::Read { stream, from, backward, limit, filter } => {
            let direction = if *backward { pb::Direction::Backward } else { pb::Direction::Forward };
            let read = Read { from: *from, direction: direction.into(), filter: Some(filter.message()) };
            match stream {
                Some(stream) => read.stream(&client, stream.to_string(), *limit, output).await,
                None => read.log(&client, *limit, output).await,
            }
        }
        Events::Subscribe { from, live, until_caught_up, filter } => {
            let request = pb::SubscribeRequest { from_position: *from, live: *live, filter: Some(filter.message()) };
            subscribe(&client, request, *until_caught_up, output).await
        }
    }
}

fn new_id() -> Result<String, Failure> {
    let random = entropy::<16>().map_err(|error| Problem::new("draw a commit id").because(&error))?;
    Ok(random.iter().fold("cli/".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| Problem::new(format!("read {}", path.display())).because(&error).misuse();
    let mut bytes = Vec::new();
    // One more than may be: what is too large is said to be, not cut.
    File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > DATA_BYTES_MAX {
        let problem = Problem::new(format!("{} is more than {DATA_BYTES_MAX} bytes", path.display()));
        return Err(problem.hint("keep large things elsewhere and append where they are").misuse().into());
    }
    Ok(bytes)
}

async fn append(client: &Client, request: pb::AppendRequest, output: &mut Output) -> Result<(), Failure> {
    let (stream, commit_id) = (request.stream.clone(), request.commit_id.clone());
    let appended = client.events().append(request).await?.into_inner();
    if output.json() {
        return output.document(&json!({
            "stream": stream,
            "commit_id": commit_id,
            "position": appended.position,
            "first_version": appended.first_version,
            "last_version": appended.last_version,
            "duplicate": appended.duplicate,
        }));
    }
    let was = if appended.duplicate { "had been appended" } else { "appended" };
    let (position, version) = (appended.position, appended.last_version);
    output.line(format_args!("{stream} is at version {version}; {was} at position {position} as {commit_id}"))
}

struct Read {
    from: u64,
    direction: i32,
    filter: Option<pb::Filter>,
}

impl Read {
    async fn stream(self, client: &Client, stream: String, most: u64, output: &mut Output) -> Result<(), Failure> {
        let (mut events, mut from, mut left) = (client.events(), self.from, most);
        while left > 0 {
            let limit = u32::try_from(left).unwrap_or(PAGE_LEN).min(PAGE_LEN);
            let (direction, filter) = (self.direction, self.filter.clone());
            let request =
                pb::ReadStreamRequest { stream: stream.clone(), from_version: from, direction, limit, filter };
            let page = events.read_stream(request).await?.into_inner();
            left = print_page(&page.commits, left, output)?;
            if page.end {
                break;
            }
            from = page.next_version;
        }
        Ok(())
    }

    async fn log(self, client: &Client, most: u64, output: &mut Output) -> Result<(), Failure> {
        let (mut events, mut from, mut left) = (client.events(), self.from, most);
        while left > 0 {
            let limit = u32::try_from(left).unwrap_or(PAGE_LEN).min(PAGE_LEN);
            let (direction, filter) = (self.direction, self.filter.clone());
            let request = pb::ReadLogRequest { from_position: from, direction, limit, filter };
            let page = events.read_log(request).await?.into_inner();
            left = print_page(&page.commits, left, output)?;
            if page.end {
                break;
            }
            from = page.next_position;
        }
        Ok(())
    }
}

fn print_page(commits: &[pb::Commit], left: u64, output: &mut Output) -> Result<u64, Failure> {
    for commit in commits {
        print(commit, output)?;
    }
    Ok(left.saturating_sub(u64::try_from(commits.len()).unwrap_or(u64::MAX)))
}

async fn subscribe(
    client: &Client,
    request: pb::SubscribeRequest,
    until_caught_up: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut stream = client.events().subscribe(request).await?.into_inner();
    let mut last = 0;
    while let Some(answer) = stream.next().await {
        let message = match answer {
            Ok(answer) => answer.message,
            Err(status) => {
                note(format_args!("broken off behind position {last}"));
                return Err(status.into());
            }
        };
        match message {
            Some(Message::Commit(commit)) => {
                print(&commit, output)?;
                last = commit.position;
            }
            Some(Message::CaughtUp(caught_up)) => {
                last = caught_up.position;
                output.flush()?;
                if until_caught_up {
                    return Ok(());
                }
            }
            None => {}
        }
        // While there is no more at once, a reader wants to see what there is.
        output.flush()?;
    }
    Ok(())
}

/// Prints a commit on one line.
pub(super) fn print(commit: &pb::Commit, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.json_line(&commit_json(commit));
    }
    for event in &commit.events {
        output.line(format_args!(
            "{:>8}  {}  {}@{}  {}  {}",
            commit.position,
            show::time(commit.recorded_at_us),
            commit.stream,
            event.version,
            event.r#type,
            payload(event)
        ))?;
    }
    Ok(())
}

/// The payload in few characters.
fn payload(event: &pb::Event) -> String {
    match std::str::from_utf8(&event.data) {
        Ok(text) if text.chars().count() <= SHOWN_CHARS => text.to_owned(),
        Ok(text) => text.chars().take(SHOWN_CHARS).chain("...".chars()).collect(),
        Err(_) => format!("{} of {}", show::things(event.data.len() as u64, "byte"), event.content_type),
    }
}

/// A commit for programs.
pub(super) fn commit_json(commit: &pb::Commit) -> Value {
    let event = |event: &pb::Event| {
        let (text, hex) = match std::str::from_utf8(&event.data) {
            Ok(text) => (Some(text), None),
            Err(_) => (None, Some(event.data.iter().map(|byte| format!("{byte:02x}")).collect::<String>())),
        };
        json!({
            "event_id": event.event_id,
            "version": event.version,
            "index": event.index,
            "type": event.r#type,
            "content_type": event.content_type,
            "schema_version": event.schema_version,
            "data": text,
            "data_hex": hex,
        })
    };
    json!({
        "position": commit.position,
        "stream": commit.stream,
        "commit_id": commit.commit_id,
        "tenant": commit.tenant,
        "episode_id": commit.episode_id,
        "causation_id": commit.causation_id,
        "principal": commit.principal,
        "recorded_at_us": commit.recorded_at_us,
        "traceparent": commit.traceparent,
        "events": commit.events.iter().map(event).collect::<Vec<_>>(),
    })
}
