//! From stored commits to the API's messages.

use events_journal::{Direction, EventLog, Filter, ReadError, Recorded};
use events_model::{
    EventId, EventView, Position, Version,
    application::{self, TYPE},
    group::Place,
};
use proto::events::v1 as pb;

use super::select::Selection;

/// Content type of Freehold's own events.
const PROTOBUF: &str = "application/x-protobuf";

/// The wanted events of a commit whose version passes; `None` = there is none.
pub(crate) fn commit(
    recorded: &Recorded,
    selection: &Selection,
    version_passes: impl Fn(Version) -> bool,
) -> Result<Option<pb::Commit>, ReadError> {
    let view = recorded.view()?;
    if !selection.keeps(&view) {
        return Ok(None);
    }
    let undecodable = |source| ReadError::Decode { position: recorded.position, source };
    let mut events = Vec::new();
    for ((index, version), found) in (0..).zip(view.first_version..).zip(view.events()) {
        let found = found.map_err(undecodable)?;
        if version_passes(Version(version)) && selection.keeps_event(&found) {
            events.push(event(&found, version, index).map_err(undecodable)?);
        }
    }
    if events.is_empty() {
        return Ok(None);
    }
    Ok(Some(pb::Commit {
        position: recorded.position.0,
        stream: view.stream.to_owned(),
        commit_id: view.commit_id.to_owned(),
        tenant: view.tenant.to_owned(),
        episode_id: view.episode().to_string(),
        causation_id: view.causation_id.to_owned(),
        principal: view.principal.to_owned(),
        recorded_at_us: view.recorded_at,
        traceparent: view.traceparent.to_owned(),
        events,
    }))
}

/// All wanted events of a commit.
pub(crate) fn whole(recorded: &Recorded, selection: &Selection) -> Result<Option<pb::Commit>, ReadError> {
    commit(recorded, selection, |_| true)
}

/// One event of the log in its commit; `None` = the log has none there.
pub(crate) fn event_at(log: &dyn EventLog, place: Place) -> Result<Option<pb::Commit>, ReadError> {
    events_at(log, place.position, &[place.index])
}

/// Some events of one commit, by their numbers in it; `None` = the log has none there.
pub(crate) fn events_at(log: &dyn EventLog, at: Position, indexes: &[u32]) -> Result<Option<pb::Commit>, ReadError> {
    let page = log.read_log(at, Direction::Forward, &Filter::default(), 1)?;
    let Some(recorded) = page.commits.first().filter(|found| found.position == at) else { return Ok(None) };
    let first = recorded.view()?.first_version;
    let is_wanted = |found: Version| indexes.iter().any(|index| first.saturating_add((*index).into()) == found.0);
    commit(recorded, &Selection::default(), is_wanted)
}

fn event(event: &EventView<'_>, version: u64, index: u32) -> Result<pb::Event, events_model::DecodeError> {
    let payload = event.payload;
    let event_id = EventId::from_bytes(event.event_id).to_string();
    if payload.kind != TYPE {
        return Ok(pb::Event {
            event_id,
            version,
            index,
            r#type: payload.kind.to_owned(),
            content_type: PROTOBUF.to_owned(),
            schema_version: payload.schema_version,
            data: payload.bytes.to_vec(),
        });
    }
    let own = application::EventView::parse(payload.bytes)?;
    Ok(pb::Event {
        event_id,
        version,
        index,
        r#type: own.kind.to_owned(),
        content_type: own.content_type.to_owned(),
        schema_version: 0,
        data: own.data.to_vec(),
    })
}
