//! The order in which a platform ends, as signals that every part can wait for.
//!
//! `drain`: not ready any more, nothing new is accepted, what is in flight goes on. `cut`: calls in flight are
//! cancelled and settle for what was used. `abandon`: settlements that are still not durable are left to the next
//! start, which finds them by their reservations. Each signal comes at most once, in this order.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Part of the drain timeout that is kept for settling calls that were cut: one in this many.
const SETTLING_SHARE: u32 = 4;
/// Longest time that is kept for it.
const SETTLING_MAX: Duration = Duration::from_secs(5);

/// The signals; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Nothing new.
    pub drain: CancellationToken,
    /// Calls in flight end now.
    pub cut: CancellationToken,
    /// Nothing is waited for.
    pub abandon: CancellationToken,
}

impl Stop {
    /// Whether nothing new is accepted.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Gives all signals at once.
    pub fn now(&self) {
        self.drain.cancel();
        self.cut.cancel();
        self.abandon.cancel();
    }
}

/// Splits a drain timeout: for calls to finish by themselves, and for settling those that were cut.
pub fn split(drain_timeout: Duration) -> (Duration, Duration) {
    let settling = (drain_timeout / SETTLING_SHARE).min(SETTLING_MAX);
    (drain_timeout.saturating_sub(settling), settling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_settlement_share_the_drain_timeout() {
        assert_eq!(split(Duration::from_secs(30)), (Duration::from_secs(25), Duration::from_secs(5)));
        assert_eq!(split(Duration::from_secs(4)), (Duration::from_secs(3), Duration::from_secs(1)));
    }
}
