//! Time and randomness, as inputs: the live ones, and the traits that tests replace.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use events_model::{EpisodeId, EventId, RequestId, TimestampUs};

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

/// The machine's clock, made monotonic.
#[derive(Debug, Default)]
pub struct LiveClock {
    last: AtomicU64,
}

impl Clock for LiveClock {
    fn now(&self) -> TimestampUs {
        #[expect(clippy::disallowed_methods, reason = "the one place where the machine's clock is read")]
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
        let next = |last: u64| Some(wall.max(last.saturating_add(1)));
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|last| last);
        TimestampUs(wall.max(last.saturating_add(1)))
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
