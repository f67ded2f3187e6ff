//! The one place that measures time: waiting with two limits, that of a phase and that of the whole call.

use std::time::Duration;

use tokio::time::Instant;

use super::error::Phase;

/// When a call must be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
}

impl Deadline {
    /// This long from now; spans are at most a day, so the sum cannot overflow.
    #[expect(clippy::disallowed_methods, reason = "timeouts of sockets are no decision and are never recorded")]
    pub(super) fn after(span: Duration) -> Self {
        Self { at: Instant::now() + span }
    }

    #[expect(clippy::disallowed_methods, reason = "timeouts of sockets are no decision and are never recorded")]
    pub(super) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Waits for a future, for at most the limit of its phase and until the deadline.
    pub(super) async fn wait<T>(
        self,
        phase: Phase,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, Phase> {
        let left = self.left();
        let (limit, phase) = if left < limit { (left, Phase::Total) } else { (limit, phase) };
        tokio::time::timeout(limit, future).await.map_err(|_| phase)
    }
}
