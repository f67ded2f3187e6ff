//! Bounds of the actor runtime.

use std::{sync::Arc, time::Duration};

use events_model::{DurationUs, RegionId};

use crate::remote::Placement;

/// Most commits of one actor that may be in flight.
pub const PIPELINE_LEN_MAX: usize = 8_192;
/// Most things one tick does for one actor.
pub const DUE_PER_TICK_MAX: usize = 256;
/// Commits read at once while a state is loaded.
pub const LOAD_PAGE_LEN: usize = 1_024;
/// Longest wait for the next deadline until the clock is looked at again, in case it was set.
pub const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);
/// Most snapshots that wait to be written, all actors together.
pub const SNAPSHOT_QUEUE_LEN_MAX: usize = 64;
/// How long after a failure a due deadline is tried again.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Retry time told to a caller whose actor's mailbox is full.
pub const OVERLOAD_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest wait for actors to end when the shell drains.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time in which a command is brought to the node that decides for its stream, retries included.
pub const FORWARD_WAIT_MAX: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts to find that node.
pub const FORWARD_RETRY_FIRST: Duration = Duration::from_millis(20);
/// See `FORWARD_RETRY_FIRST`.
pub const FORWARD_RETRY_MAX: Duration = Duration::from_millis(200);

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most messages that wait for one actor.
    pub mailbox_len_max: usize,
    /// An actor without messages for this long is put away.
    pub idle_after: Duration,
    /// Events between two snapshots of an actor.
    pub snapshot_every: u64,
    /// Threads that run actors; 0 = one a core.
    pub arbiters: usize,
    /// What fell due while nobody could act (the process was down, the log refused) waits for this long after, so
    /// that those who know more than that time is over can say it first.
    pub overdue_grace: Duration,
    /// The region that decides.
    pub region: RegionId,
    /// Where streams are decided; `None` = all of them here.
    pub placement: Option<Arc<dyn Placement>>,
}

impl Settings {
    /// The defaults for a region.
    pub const fn new(region: RegionId) -> Self {
        Self {
            mailbox_len_max: 1_024,
            idle_after: Duration::from_secs(300),
            snapshot_every: 1_000,
            arbiters: 0,
            overdue_grace: Duration::ZERO,
            region,
            placement: None,
        }
    }
}

/// A span in our units.
pub(crate) fn micros(span: Duration) -> DurationUs {
    DurationUs(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}
