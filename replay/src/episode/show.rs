//! One episode, event by event.

use events_journal::{EventLog, ReadError, Recorded, log::READ_LIMIT_MAX};
use events_model::{CommitView, EpisodeId, EventView, NanoUsd, Position, tenant::Event};

use super::{Entry, Episode, Summary};
use crate::fact::{Fact, command_json, undecoded_json};

/// Most commits of an episode that are shown.
pub const COMMITS_MAX: usize = READ_LIMIT_MAX - 1;

/// Shows an episode; `None` = the log has no such episode. Blocks as long as a bounded read does.
///
/// # Errors
/// The log cannot be read, or a commit's envelope does not decode. A payload that does not decode is shown as such.
pub fn show(log: &dyn EventLog, episode_id: EpisodeId) -> Result<Option<Episode>, ReadError> {
    // One more than is shown tells whether there is more.
    let mut commits = log.read_episode(episode_id, COMMITS_MAX.saturating_add(1))?;
    let is_truncated = commits.len() > COMMITS_MAX;
    commits.truncate(COMMITS_MAX);
    let Some(first) = commits.first() else { return Ok(None) };
    let mut summary = Summary::begin(&first.view()?);
    let mut entries = Vec::with_capacity(commits.len());
    for commit in &commits {
        add_commit(commit, &mut summary, &mut entries)?;
    }
    Ok(Some(Episode { summary, entries, is_truncated }))
}

fn add_commit(commit: &Recorded, summary: &mut Summary, entries: &mut Vec<Entry>) -> Result<(), ReadError> {
    let view = commit.view()?;
    summary.commit(&view);
    let command = command_json(view.stream, view.command);
    for (version, event) in (view.first_version..).zip(view.events()) {
        let event = event.map_err(|source| ReadError::Decode { position: commit.position, source })?;
        let mut entry = bare_entry(commit.position, &view, version, &event, summary);
        entry.command_json.clone_from(&command);
        match Fact::decode(view.stream, event.payload) {
            Ok(fact) => {
                summary.fact(&fact);
                entry.summary = fact.summary();
                entry.payload_json = fact.json();
                (entry.reserved, entry.cost, entry.released) = money(&fact);
            }
            Err(error) => {
                entry.summary = format!("cannot be read by this program: {error}");
                entry.payload_json = undecoded_json(&error);
            }
        }
        entries.push(entry);
    }
    Ok(())
}

fn bare_entry(
    position: Position,
    commit: &CommitView<'_>,
    version: u64,
    event: &EventView<'_>,
    summary: &Summary,
) -> Entry {
    Entry {
        position: position.0,
        stream: commit.stream.to_owned(),
        version,
        event: event.payload.short_kind().to_owned(),
        recorded_at: commit.recorded_at(),
        since_start: commit.recorded_at().since(summary.started_at),
        summary: String::new(),
        reserved: None,
        cost: None,
        released: None,
        payload_json: String::new(),
        command: commit.command.short_kind().to_owned(),
        command_json: String::new(),
        commit_id: commit.commit_id.to_owned(),
        principal: commit.principal.to_owned(),
    }
}

/// What an event set aside, charged and set free.
fn money(fact: &Fact) -> (Option<NanoUsd>, Option<NanoUsd>, Option<NanoUsd>) {
    let Fact::Tenant(event) = fact else { return (None, None, None) };
    if let Event::RequestAdmitted { reserved, .. } = event {
        (Some(*reserved), None, None)
    } else if let Event::RequestSettled { cost, released, .. } = event {
        (None, Some(*cost), Some(*released))
    } else if let Event::ReservationExpired { released, .. } = event {
        (None, None, Some(*released))
    } else {
        (None, None, None)
    }
}
