//! What an engine has to know of a commit before it stores it, and the rules that need no log.

use events_model::{
    Commit, CommitId, CommitView, EpisodeId, StreamId, Version,
    envelope::{COMMIT_BYTES_MAX, EVENTS_PER_COMMIT_MAX},
};

/// The part of a commit by which it is judged and found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its stream.
    pub stream: StreamId,
    /// Its idempotency key.
    pub commit_id: CommitId,
    /// Its episode.
    pub episode_id: EpisodeId,
    /// Version of its first event.
    pub first: Version,
    /// How many events it holds.
    pub events: u64,
}

impl Entry {
    /// Of a commit that was built here.
    pub fn of(commit: &Commit) -> Self {
        Self {
            stream: commit.stream.clone(),
            commit_id: commit.commit_id.clone(),
            episode_id: commit.episode_id,
            first: commit.first_version,
            events: commit.events.len() as u64,
        }
    }

    /// Of a commit that was encoded elsewhere.
    ///
    /// # Errors
    /// Says what in the bytes is no commit or breaks a rule.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let view = CommitView::parse(bytes).map_err(|error| error.to_string())?;
        let entry = Self {
            stream: StreamId::new(view.stream).map_err(|error| error.to_string())?,
            commit_id: CommitId::new(view.commit_id).map_err(|error| error.to_string())?,
            episode_id: view.episode(),
            first: Version(view.first_version),
            events: view.event_count,
        };
        match entry.broken_rule(entry.expected(), bytes.len()) {
            Some(reason) => Err(reason),
            None => Ok(entry),
        }
    }

    /// The version of the stream that the commit was decided on.
    pub const fn expected(&self) -> Version {
        Version(self.first.0.saturating_sub(1))
    }

    /// Version of its last event.
    pub const fn last(&self) -> Version {
        Version(self.first.0.saturating_add(self.events).saturating_sub(1))
    }

    /// Which rule of the log a commit of so many encoded bytes breaks, if one.
    pub fn broken_rule(&self, expected: Version, bytes: usize) -> Option<String> {
        let (events, first) = (self.events, self.first);
        if !(1..=EVENTS_PER_COMMIT_MAX as u64).contains(&events) {
            Some(format!("it has {events} events, not 1 to {EVENTS_PER_COMMIT_MAX}"))
        } else if bytes > COMMIT_BYTES_MAX {
            Some(format!("it has {bytes} bytes, more than {COMMIT_BYTES_MAX}"))
        } else if expected.0.checked_add(1) != Some(first.0) {
            Some(format!("its first version is {first}, which does not follow {expected}"))
        } else if first.0.checked_add(events).is_none() {
            Some(format!("there is no version after {first} for all of its {events} events"))
        } else {
            None
        }
    }
}
