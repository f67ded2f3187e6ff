//! Time and randomness, as inputs: the live ones, and the traits that tests replace.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicU64, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use events_model::{EpisodeId, EventId, RequestId, TimestampUs};
use tracing::warn;

/// Tells the time: UTC microseconds that never go back and never repeat (a hybrid logical clock).
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time, later than every time told before.
    fn now(&self) -> TimestampUs;

    /// Makes every later time be later than one that was seen on the log.
    fn observe(&self, seen: TimestampUs);
}

/// Gives random bits.
pub trait Ids: Debug + Send + Sync + 'static {
    /// Random 80 bits.
    fn random(&self) -> [u8; 10];

    /// A new event id at a time.
    fn event(&self, now: TimestampUs) -> EventId {
        EventId::from_parts(now.0 / 1_000, self.random())
    }

    /// A new episode id at a time.
    fn episode(&self, now: TimestampUs) -> EpisodeId {
        EpisodeId::from_parts(now.0 / 1_000, self.random())
    }

    /// A new request id at a time.
    fn request(&self, now: TimestampUs) -> RequestId {
        RequestId::from_parts(now.0 / 1_000, self.random())
    }
}

/// How far the machine's clock may go off the time that passes before it counts as a step, microseconds.
pub const STEP_US_MAX: u64 = 60_000_000;

/// The machine's clock, made monotonic.
///
/// Invariant: it never goes back, so a clock that was far ahead when something was recorded holds it there until the
/// machine's own comes by. It says so once a step; how far the log may be ahead at a start is the server's to decide.
#[derive(Debug)]
pub struct LiveClock {
    last: AtomicU64,
    started: Instant,
    /// The machine's time at `started`, in step with its steps since.
    base: AtomicU64,
}

/// The machine's clock went off the time that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Back { us: u64 },
    Forward { us: u64 },
}

impl LiveClock {
    /// What the machine's clock says, which may go back.
    pub fn wall() -> TimestampUs {
        #[expect(clippy::disallowed_methods, reason = "the one place where the machine's clock is read")]
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimestampUs(u64::try_from(wall.as_micros()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where the time that passes is read")]
    fn at(wall: TimestampUs) -> Self {
        Self { last: AtomicU64::new(0), started: Instant::now(), base: AtomicU64::new(wall.0) }
    }

    /// The step since the last look, told to one caller only.
    fn step(&self, wall: u64, passed: u64) -> Option<Step> {
        let base = self.base.load(Ordering::Relaxed);
        let expected = base.saturating_add(passed);
        if wall.abs_diff(expected) <= STEP_US_MAX {
            return None;
        }
        let rebased = wall.saturating_sub(passed);
        self.base.compare_exchange(base, rebased, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        let us = wall.abs_diff(expected);
        Some(if wall < expected { Step::Back { us } } else { Step::Forward { us } })
    }

    /// The time to tell when the machine says this.
    fn after(&self, wall: u64) -> TimestampUs {
        let next = |last: u64| Some(wall.max(last.saturating_add(1)));
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|last| last);
        TimestampUs(wall.max(last.saturating_add(1)))
    }
}

impl Default for LiveClock {
    fn default() -> Self {
        Self::at(Self::wall())
    }
}

impl Clock for LiveClock {
    fn now(&self) -> TimestampUs {
        let wall = Self::wall().0;
        let passed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        match self.step(wall, passed) {
            None => {}
            Some(Step::Back { us }) => {
                warn!(us, "machine's clock stepped back, time stands still until it has come by");
            }
            Some(Step::Forward { us }) => warn!(us, "machine's clock stepped forward, or the machine slept"),
        }
        self.after(wall)
    }

    fn observe(&self, seen: TimestampUs) {
        self.last.fetch_max(seen.0, Ordering::AcqRel);
    }
}

/// A fast generator seeded once from the machine's entropy; ids need to be unique, not secret.
#[derive(Debug)]
pub struct LiveIds {
    state: AtomicU64,
    stream: u64,
}

impl LiveIds {
    /// Takes two words of entropy.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { state: AtomicU64::new(seed), stream }
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): a bijection of the counter, so that no output repeats within a process.
const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Ids for LiveIds {
    fn random(&self) -> [u8; 10] {
        let counter = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let (low, high) = (mix(counter).to_le_bytes(), mix(counter ^ self.stream).to_le_bytes());
        let mut random = [0; 10];
        random[..8].copy_from_slice(&low);
        random[8..].copy_from_slice(&high[..2]);
        random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000 * STEP_US_MAX;

    #[test]
    fn a_step_is_told_once_and_the_one_after_it_again() {
        let clock = LiveClock::at(TimestampUs(START));
        assert_eq!(clock.step(START + 10, 10), None);
        let back = START - 3 * STEP_US_MAX;
        assert_eq!(clock.step(back + 20, 20), Some(Step::Back { us: 3 * STEP_US_MAX }));
        assert_eq!(clock.step(back + 30, 30), None);
        assert_eq!(clock.step(START + 40, 40), Some(Step::Forward { us: 3 * STEP_US_MAX }));
        assert_eq!(clock.step(START + 50, 50), None);
    }

    #[test]
    fn neither_a_long_silence_nor_a_small_correction_is_a_step() {
        let clock = LiveClock::at(TimestampUs(START));
        let day = 86_400_000_000;
        assert_eq!(clock.step(START + day, day), None);
        assert_eq!(clock.step(START + day - STEP_US_MAX, day), None);
        assert_eq!(clock.step(START + day + STEP_US_MAX, day), None);
    }

    #[test]
    fn time_never_goes_back_nor_repeats_whatever_the_machine_says() {
        let clock = LiveClock::at(TimestampUs(START));
        assert_eq!(clock.after(START), TimestampUs(START));
        assert_eq!(clock.after(START - 5), TimestampUs(START + 1));
        clock.observe(TimestampUs(START + 100));
        assert_eq!(clock.after(START + 7), TimestampUs(START + 101));
        assert_eq!(clock.after(START + 200), TimestampUs(START + 200));
    }
}
