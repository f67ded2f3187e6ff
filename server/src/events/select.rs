//! Which commits and events a reader wants. Decided on the envelope; no payload is decoded for it.

use events_journal::Filter;
use events_model::{
    CommitView, EpisodeId, EventView, TenantId, TimestampUs,
    application::{self, RESERVED, TYPE},
};

/// Kind of applications' streams.
pub(crate) const APPLICATION: &str = "app";

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    log: Filter,
    types: Vec<String>,
    pub(crate) episode: Option<EpisodeId>,
    from: TimestampUs,
    before: Option<TimestampUs>,
}

impl Selection {
    /// Wants the events of these types (of an application, or full protobuf names of ours); empty = all.
    pub(crate) fn of_types(types: Vec<String>) -> Self {
        let mut kinds: Vec<String> = types.iter().filter(|kind| kind.starts_with(RESERVED)).cloned().collect();
        if kinds.len() < types.len() {
            kinds.push(TYPE.to_owned());
        }
        Self { log: Filter { event_types: kinds, ..Filter::default() }, types, ..Self::default() }
    }

    /// Only commits of this tenant.
    pub(crate) fn of_tenant(mut self, tenant: Option<TenantId>) -> Self {
        self.log.tenant = tenant;
        self
    }

    /// Only streams of applications.
    pub(crate) fn of_applications(mut self) -> Self {
        self.log.stream_kind = Some(APPLICATION.to_owned());
        self
    }

    /// Only one episode.
    pub(crate) fn of_episode(mut self, episode: Option<EpisodeId>) -> Self {
        self.episode = episode;
        self
    }

    /// Only what was recorded from this time on, and before that one if it is given.
    pub(crate) fn of_time(mut self, from: TimestampUs, before: Option<TimestampUs>) -> Self {
        (self.from, self.before) = (from, before);
        self
    }

    /// As much of it as the log itself can tell.
    pub(crate) const fn log(&self) -> &Filter {
        &self.log
    }

    /// Whether a commit that may not have gone through `log` can hold something wanted.
    pub(crate) fn keeps(&self, commit: &CommitView<'_>) -> bool {
        self.episode.is_none_or(|episode| episode == commit.episode())
            && commit.recorded_at() >= self.from
            && self.before.is_none_or(|before| commit.recorded_at() < before)
            && self.log.matches(commit)
    }

    /// Whether an event is of a wanted type.
    pub(crate) fn keeps_event(&self, event: &EventView<'_>) -> bool {
        if self.types.is_empty() {
            return true;
        }
        let kind = match event.payload.kind {
            TYPE => application::EventView::parse(event.payload.bytes).map_or("", |event| event.kind),
            kind => kind,
        };
        self.types.iter().any(|wanted| wanted == kind)
    }
}
