//! Checks of what is asked, field by field.

use events_journal::Direction;
use events_model::{
    Commit, CommitId, EpisodeId, Position, StreamId, TimestampUs, Version,
    application::{self, EVENTS_PER_APPEND_MAX, Expected, Invalid, RESERVED, check_type},
    envelope::COMMIT_BYTES_MAX,
    group::TYPES_LEN_MAX,
};
use proto::events::v1 as pb;
use tonic::Status;

use super::{access::Who, status};
use crate::events::select::{APPLICATION, Selection};

/// An append that can be tried.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) stream: StreamId,
    pub(super) expected: Expected,
    pub(super) commit_id: CommitId,
    pub(super) events: Vec<application::Event>,
    pub(super) episode: Option<EpisodeId>,
    pub(super) causation: Option<CommitId>,
}

fn wrong(field: &str) -> impl FnOnce(events_model::id::Error) -> Status {
    move |error| status::invalid(field, error.to_string())
}

pub(super) fn stream(field: &str, text: &str) -> Result<StreamId, Status> {
    StreamId::new(text).map_err(wrong(field))
}

/// Checks an append.
pub(super) fn append(request: pb::AppendRequest) -> Result<Append, Status> {
    let expectation = request.expected();
    let pb::AppendRequest { stream: name, version, commit_id, events, episode_id, causation_id, .. } = request;
    let stream = self::stream("stream", &name)?;
    if stream.kind() != APPLICATION {
        return Err(status::invalid("stream", "only streams app/<tenant>/<id> can be appended to"));
    }
    let expected = match expectation {
        pb::Expected::Exact => Expected::Exact(Version(version)),
        pb::Expected::None => Expected::None,
        pb::Expected::Any => Expected::Any,
        pb::Expected::Exists => Expected::Exists,
        pb::Expected::Unspecified => {
            return Err(status::invalid("expected", "must be exact, none, any or exists"));
        }
    };
    if version != 0 && expectation != pb::Expected::Exact {
        return Err(status::invalid("version", "must be 0 unless expected is exact"));
    }
    if events.is_empty() || events.len() > EVENTS_PER_APPEND_MAX {
        return Err(status::invalid("events", format!("must be 1 to {EVENTS_PER_APPEND_MAX}")));
    }
    let events = events.into_iter().enumerate().map(|(index, event)| new_event(index, event));
    Ok(Append {
        stream,
        expected,
        commit_id: CommitId::new(&commit_id).map_err(wrong("commit_id"))?,
        events: events.collect::<Result<_, _>>()?,
        episode: episode(&episode_id)?,
        causation: match causation_id.as_str() {
            "" => None,
            text => Some(CommitId::new(text).map_err(wrong("causation_id"))?),
        },
    })
}

fn new_event(index: usize, event: pb::NewEvent) -> Result<application::Event, Status> {
    let pb::NewEvent { r#type, content_type, data } = event;
    let event = application::Event { kind: r#type, content_type, data };
    event.check().map_err(|invalid| {
        let field = match invalid {
            Invalid::Type | Invalid::Reserved => "type",
            Invalid::ContentType => "content_type",
            Invalid::Data { .. } => "data",
        };
        status::invalid(&format!("events[{index}].{field}"), invalid.to_string())
    })?;
    Ok(event)
}

/// Refuses a commit that is too large for the log.
pub(super) fn check_size(commit: &Commit) -> Result<(), Status> {
    let bytes = commit.encode().len();
    if bytes > COMMIT_BYTES_MAX {
        let why = format!("make a commit of {bytes} bytes, more than {COMMIT_BYTES_MAX}");
        return Err(status::invalid("events", why));
    }
    Ok(())
}

fn episode(text: &str) -> Result<Option<EpisodeId>, Status> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(wrong("episode_id")),
    }
}

pub(super) fn direction(value: i32) -> Result<Direction, Status> {
    match pb::Direction::try_from(value) {
        Ok(pb::Direction::Unspecified | pb::Direction::Forward) => Ok(Direction::Forward),
        Ok(pb::Direction::Backward) => Ok(Direction::Backward),
        Err(_) => Err(status::invalid("direction", "must be forward or backward")),
    }
}

/// A count that is left out or within its bounds.
pub(super) fn limit(field: &str, value: u32, default: u32, most: u32) -> Result<usize, Status> {
    if value > most {
        return Err(status::invalid(field, format!("must be at most {most}")));
    }
    let value = if value == 0 { default } else { value };
    Ok(usize::try_from(value).unwrap_or(usize::MAX))
}

/// Where a subscription begins; a place that the log has not come to is a mistake or another log's.
pub(super) fn start(from: u64, head: Position) -> Result<Position, Status> {
    if from > head.next().0 {
        return Err(status::invalid("from_position", format!("must be at most {}, one behind the head", head.next())));
    }
    Ok(Position(from))
}

/// The types a reader or a group wants.
pub(super) fn types(field: &str, types: &[String], allow_ours: bool) -> Result<(), Status> {
    if types.len() > TYPES_LEN_MAX {
        return Err(status::invalid(field, format!("must be at most {TYPES_LEN_MAX}")));
    }
    for (index, kind) in types.iter().enumerate() {
        let is_ours = allow_ours && kind.starts_with(RESERVED);
        if let Err(invalid) = check_type(kind).or_else(|invalid| if is_ours { Ok(()) } else { Err(invalid) }) {
            return Err(status::invalid(&format!("{field}[{index}]"), invalid.to_string()));
        }
    }
    Ok(())
}

/// What a reader wants, within what it may see.
pub(super) fn filter(filter: Option<pb::Filter>, who: &Who) -> Result<Selection, Status> {
    let filter = filter.unwrap_or_default();
    types("filter.types", &filter.types, true)?;
    let tenant = who.tenant_of(&filter.tenant)?;
    let (from, before) = (filter.recorded_from_us, filter.recorded_before_us);
    if before != 0 && before <= from {
        return Err(status::invalid("filter.recorded_before_us", "must be later than recorded_from_us"));
    }
    let selection = Selection::of_types(filter.types)
        .of_tenant(tenant)
        .of_episode(episode(&filter.episode_id)?)
        .of_time(TimestampUs(from), (before != 0).then_some(TimestampUs(before)));
    Ok(match who {
        Who::Admin => selection,
        Who::Application { .. } => selection.of_applications(),
    })
}
