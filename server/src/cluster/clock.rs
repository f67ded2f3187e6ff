//! This machine's clock against that of the NATS servers, which all nodes share: deadlines and limits of one node are
//! judged by others.

use std::time::Duration;

use chrono::DateTime;
use events_journal_nats::{JetStreamLog, lease};
use events_model::TimestampUs;

use super::Error;

/// How far a node's clock may be from the servers'.
pub(super) const SKEW_MAX: Duration = Duration::from_secs(5);

/// By how much two clocks differ at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skew {
    /// How much.
    pub(crate) by: Duration,
    /// This machine's is the one that is ahead.
    pub(crate) is_ahead: bool,
    /// What the servers say.
    pub(crate) theirs: String,
}

impl Skew {
    /// Microseconds; negative = behind.
    pub(super) fn signed_us(&self) -> i64 {
        let us = i64::try_from(self.by.as_micros()).unwrap_or(i64::MAX);
        if self.is_ahead { us } else { -us }
    }

    /// As an error, if it is more than is allowed.
    pub(super) fn check(self) -> Result<Self, Error> {
        if self.by <= SKEW_MAX {
            return Ok(self);
        }
        let direction = if self.is_ahead { "ahead of" } else { "behind" };
        Err(Error::ClockSkew { by: self.by, direction, theirs: self.theirs })
    }
}

/// Asks the servers what time it is.
///
/// # Errors
/// They do not answer. `None`: they answer something else.
pub(super) async fn compare(log: &JetStreamLog, wall: fn() -> TimestampUs) -> Result<Option<Skew>, lease::Error> {
    let (options, client) = (log.options(), log.client());
    let asking = lease::server_time(&client, &options.region, &options.node);
    between(asking, wall).await
}

/// What lies between the moments before and after the question cannot be told from a difference.
pub(super) async fn between<E>(
    asking: impl Future<Output = Result<String, E>>,
    wall: fn() -> TimestampUs,
) -> Result<Option<Skew>, E> {
    let before = wall();
    let theirs = asking.await?;
    let after = wall();
    // A time that cannot be read is no reason to stay away.
    let Ok(time) = DateTime::parse_from_rfc3339(&theirs) else { return Ok(None) };
    let at = u64::try_from(time.timestamp_micros()).unwrap_or(0);
    let (ahead, behind) = (before.0.saturating_sub(at), at.saturating_sub(after.0));
    Ok(Some(Skew { by: Duration::from_micros(ahead.max(behind)), is_ahead: ahead > 0, theirs }))
}
