//! The only place that reads the time: durations and waits, nothing that is stored.

use std::time::Instant;

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "measures how long opening and waiting take; never stored in the log")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
