//! The only place that reads the time: deadlines, nothing that is stored.

use std::time::Instant;

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "measures how long a group has been resolved; never stored in the log")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
