//! Time that only goes on, as an input.

use std::{fmt::Debug, time::Duration};

/// Tells the time since a moment of its own choice. It never goes back, and goes on while the process stands still.
pub trait MonotonicClock: Debug + Send + Sync + 'static {
    /// The time.
    fn now(&self) -> Duration;
}

/// The machine's clock. On Linux it also counts the time in which the machine sleeps: a lease runs out then too.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveClock;

#[cfg(target_os = "linux")]
impl MonotonicClock for LiveClock {
    fn now(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }
}

#[cfg(not(target_os = "linux"))]
impl MonotonicClock for LiveClock {
    fn now(&self) -> Duration {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(crate::clock::now).elapsed()
    }
}
