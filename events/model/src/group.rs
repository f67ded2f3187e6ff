//! Commands and events of a persistent consumer group: how far it has come, what it has parked.
//!
//! A group delivers the events of its tenant's applications at least once. What it has settled is recorded in batches,
//! so after a crash a little is delivered again.

use serde::{Deserialize, Serialize};

use crate::unit::{DurationUs, Position, TimestampUs};

/// Most types a group selects.
pub const TYPES_LEN_MAX: usize = 32;
/// Most deliveries of one event until it is parked.
pub const ATTEMPTS_MAX: u32 = 100;
/// Longest wait between two attempts, and for an answer.
pub const WAIT_MAX: DurationUs = DurationUs::from_secs(3_600);
/// Most deliveries without an answer.
pub const IN_FLIGHT_MAX: u32 = 1_000;
/// Most settled events in one record.
pub const SETTLED_LEN_MAX: usize = 4_096;
/// Most parked events in one record.
pub const PARKED_PER_RECORD_MAX: usize = 128;
/// Most parked events in one batch that is redriven or dropped.
pub const BATCH_LEN_MAX: u32 = 1_000;
/// Longest text of a parked event's error and of a drop's reason, bytes.
pub const TEXT_BYTES_MAX: usize = 2_000;

/// One event of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Of its commit.
    pub position: Position,
    /// Its number in the commit, from 0.
    pub index: u32,
}

/// How a group delivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Applications' types that are delivered; empty = all.
    pub types: Vec<String>,
    /// Events of commits behind this position are delivered.
    pub after: Position,
    /// Deliveries of one event until it is parked.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubles with each further one.
    pub backoff_first: DurationUs,
    /// The longest such wait.
    pub backoff_max: DurationUs,
    /// A delivery that is not answered for this long counts as failed.
    pub answer_timeout: DurationUs,
    /// Most deliveries without an answer, all consumers together.
    pub in_flight_max: u32,
}

impl Settings {
    /// How long to wait after the attempt with this number failed, from 1.
    pub fn backoff(&self, attempt: u32) -> DurationUs {
        let doubled = 1_u64.checked_shl(attempt.saturating_sub(1)).unwrap_or(u64::MAX);
        DurationUs(self.backoff_first.0.saturating_mul(doubled)).min(self.backoff_max)
    }
}

/// An event that no consumer could handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedDelivery {
    /// Which event.
    pub place: Place,
    /// Its stream.
    pub stream: String,
    /// Its type, as the application calls it.
    pub kind: String,
    /// What the consumer said.
    pub error: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// What the consumer said about itself.
    pub consumer_version: String,
}

/// A parked event by its number: the version of its `Parked` in the group's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// Its number.
    pub number: u64,
    /// Which event.
    pub place: Place,
}

/// A wish to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Command {
    /// Creates it.
    Create {
        /// How it delivers.
        settings: Settings,
    },
    /// Records what was settled since the last time.
    Record {
        /// Every event of every commit up to here is settled.
        checkpoint: Position,
        /// Events behind the checkpoint, or redriven ones.
        settled: Vec<Place>,
        /// Events given up until an operator looks.
        parked: Vec<ParkedDelivery>,
    },
    /// Has parked events delivered again.
    Redrive {
        /// Which; empty = the oldest.
        numbers: Vec<u64>,
        /// At most so many.
        limit: u32,
    },
    /// Gives parked events up for good.
    Drop {
        /// Which; empty = the oldest.
        numbers: Vec<u64>,
        /// At most so many.
        limit: u32,
        /// Why.
        reason: String,
    },
}

/// A fact about a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Event {
    /// It exists.
    Created {
        /// How it delivers.
        settings: Settings,
        /// When.
        at: TimestampUs,
    },
    /// It has come so far.
    Recorded {
        /// Every event of every commit up to here is settled.
        checkpoint: Position,
        /// Events behind the checkpoint, or redriven ones, settled since the last record.
        settled: Vec<Place>,
    },
    /// An event is parked; it is settled by that.
    Parked {
        /// Which, and why.
        delivery: ParkedDelivery,
        /// When.
        at: TimestampUs,
    },
    /// Parked events are to be delivered again.
    Redriven {
        /// Which.
        parked: Vec<Numbered>,
        /// When.
        at: TimestampUs,
    },
    /// Parked events are given up.
    Dropped {
        /// Which.
        parked: Vec<Numbered>,
        /// Why.
        reason: String,
        /// When.
        at: TimestampUs,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_the_largest_and_never_wraps() {
        let settings = Settings {
            types: Vec::new(),
            after: Position::ZERO,
            attempts_max: 5,
            backoff_first: DurationUs(100),
            backoff_max: DurationUs(1_000),
            answer_timeout: DurationUs(1),
            in_flight_max: 1,
        };
        let waits: Vec<_> = [1, 2, 4, 5, 64, 200].map(|attempt| settings.backoff(attempt).0).into();
        assert_eq!(waits, [100, 200, 800, 1_000, 1_000, 1_000]);
    }
}
