//! Where a node goes on following: found out from the replica itself.
//!
//! "The first commit of message s is in the replica" is true up to some message and false behind it, so that a binary
//! search over the stream finds the last message that the replica has begun; it is applied again. A checkpoint makes
//! that one look, and lets the chain and the positions be checked across restarts; it is believed only if the replica and
//! the stream both agree with it, and may be lost. Without one, a commit of its own in the middle of a replica is not
//! seen here: only the nodes' hashes, compared, show it.

use std::collections::HashMap;

use events_journal::{Blob, Entry, Replica, SnapshotStore};
use events_model::Position;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    api::{Leader, Stored},
    error::FollowError,
    group::{self, Decoded, Link},
};

const FORMAT: u32 = 1;

/// The follower's own memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    format: u32,
    /// The last message that the replica showed, and the position of its last commit.
    pub(crate) sequence: u64,
    pub(crate) position: u64,
    /// The end of each chain: subject, stream sequence, link.
    pub(crate) tails: Vec<(String, u64, Link)>,
    /// Whether `tails` knows every subject up to `sequence`.
    pub(crate) is_complete: bool,
}

fn name(stream: &str) -> String {
    format!("journal-nats/{stream}")
}

impl Checkpoint {
    pub(crate) const fn new(sequence: u64, position: u64, tails: Vec<(String, u64, Link)>, is_complete: bool) -> Self {
        Self { format: FORMAT, sequence, position, tails, is_complete }
    }

    pub(crate) fn save(&self, store: &dyn SnapshotStore, stream: &str) {
        let saved = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let blob = Blob { at: self.sequence, bytes };
                store.save_checkpoint(&name(stream), &blob).map_err(|error| error.to_string())
            });
        if let Err(error) = saved {
            warn!(error, "the follower's checkpoint was not saved, the next start takes longer");
        }
    }

    fn load(store: &dyn SnapshotStore, stream: &str) -> Option<Self> {
        let blob = store.load_checkpoint(&name(stream)).ok()??;
        let (checkpoint, _): (Self, _) =
            bincode::serde::decode_from_slice(&blob.bytes, bincode::config::standard()).ok()?;
        (checkpoint.format == FORMAT).then_some(checkpoint)
    }
}

/// Where to go on.
#[derive(Debug, Default)]
pub(crate) struct Resume {
    /// The last message that need not be read again.
    pub(crate) sequence: u64,
    /// Position of its last commit, if known.
    pub(crate) position: Option<u64>,
    pub(crate) tails: HashMap<String, (u64, Link)>,
    /// Whether a subject that is not in `tails` has no message up to `sequence`.
    pub(crate) is_complete: bool,
}

#[derive(Debug)]
pub(crate) struct Search<'a> {
    pub(crate) leader: &'a Leader,
    pub(crate) replica: &'a dyn Replica,
    /// First and last sequence of the stream.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Search<'_> {
    /// Finds where to go on.
    pub(crate) async fn run(&self, store: &dyn SnapshotStore) -> Result<Resume, FollowError> {
        let commits = self.replica.head_position();
        if commits == Position(0) {
            return match self.first {
                0 | 1 => Ok(Resume { position: Some(0), is_complete: true, ..Resume::default() }),
                _ => Err(FollowError::Gap { sequence: 1 }),
            };
        }
        if let Some(checkpoint) = Checkpoint::load(store, &self.leader.stream) {
            if self.agrees(&checkpoint).await? {
                let tails = checkpoint.tails.into_iter();
                return Ok(Resume {
                    sequence: checkpoint.sequence,
                    position: Some(checkpoint.position),
                    tails: tails.map(|(subject, sequence, link)| (subject, (sequence, link))).collect(),
                    is_complete: checkpoint.is_complete,
                });
            }
            warn!("the follower's checkpoint does not fit, its position is searched for");
        }
        // The replica holds the message `low` (0 = none that is known) and does not hold `high`.
        let (mut low, mut high) = (self.first.saturating_sub(1), self.last.saturating_add(1));
        let mut found = false;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.holds(&self.message(middle).await?)? {
                (low, found) = (middle, true);
            } else {
                high = middle;
            }
        }
        if found {
            Ok(Resume { sequence: low - 1, ..Resume::default() })
        } else {
            Err(FollowError::ForeignReplica { commits: commits.0 })
        }
    }

    async fn message(&self, sequence: u64) -> Result<Stored, FollowError> {
        let stored = self.leader.at_patiently(sequence).await.map_err(FollowError::Api)?;
        stored.ok_or(FollowError::Gap { sequence })
    }

    /// Whether the replica holds the first commit of a message.
    fn holds(&self, stored: &Stored) -> Result<bool, FollowError> {
        let group = read(stored)?;
        let Some(bytes) = group.commits.first() else { return Ok(false) };
        let entry = entry(stored, bytes)?;
        let held = self.replica.find_commit(&entry.stream, &entry.commit_id).map_err(FollowError::Replica)?;
        match held {
            Some(held) if held.bytes != *bytes => Err(diverged(stored, &entry, "holds other bytes for")),
            held => Ok(held.is_some()),
        }
    }

    async fn agrees(&self, checkpoint: &Checkpoint) -> Result<bool, FollowError> {
        let Checkpoint { sequence, position, tails, .. } = checkpoint;
        if *sequence > self.last || Position(*position) > self.replica.head_position() {
            return Ok(false);
        }
        if *sequence == 0 {
            return Ok(*position == 0);
        }
        let stored = self.message(*sequence).await?;
        let group = read(&stored)?;
        let fits =
            tails.iter().any(|(subject, at, link)| (subject, at, link) == (&stored.subject, sequence, &group.link));
        let Some(bytes) = group.commits.last().filter(|_| fits) else { return Ok(false) };
        let entry = entry(&stored, bytes)?;
        let held = self.replica.find_commit(&entry.stream, &entry.commit_id).map_err(FollowError::Replica)?;
        match held {
            Some(held) if held.bytes != *bytes => Err(diverged(&stored, &entry, "holds other bytes for")),
            Some(held) if held.position != Position(*position) => Err(diverged(&stored, &entry, "holds elsewhere the")),
            held => Ok(held.is_some()),
        }
    }
}

/// Decodes a message of the stream.
pub(crate) fn read(stored: &Stored) -> Result<Decoded, FollowError> {
    group::decode(&stored.payload).map_err(|reason| unreadable(stored, reason))
}

fn unreadable(stored: &Stored, reason: String) -> FollowError {
    FollowError::Unreadable { sequence: stored.sequence, subject: stored.subject.clone(), reason }
}

fn entry(stored: &Stored, bytes: &[u8]) -> Result<Entry, FollowError> {
    Entry::read(bytes).map_err(|reason| unreadable(stored, reason))
}

fn diverged(stored: &Stored, entry: &Entry, how: &str) -> FollowError {
    FollowError::Diverged {
        sequence: stored.sequence,
        subject: stored.subject.clone(),
        reason: format!("it {how} commit {} of stream {}", entry.commit_id, entry.stream),
    }
}
