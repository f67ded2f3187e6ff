//! Seeded randomness: every choice of a test comes from one number that is printed.

use std::{
    hash::{BuildHasher, Hasher},
    ops::RangeInclusive,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Choices that depend on the seed alone.
#[derive(Debug)]
pub struct Dice {
    seed: u64,
    rng: StdRng,
}

impl Dice {
    /// Dice of this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, rng: StdRng::seed_from_u64(seed) }
    }

    /// Dice of `CHAOS_SEED`, or of a new seed; prints it together with the name of the test.
    #[expect(clippy::print_stderr, reason = "a failure that cannot be replayed is an anecdote")]
    pub fn for_test(name: &str) -> Self {
        let seed = number_from_environment("CHAOS_SEED").unwrap_or_else(new_seed);
        eprintln!("{name}: CHAOS_SEED={seed}");
        Self::new(seed)
    }

    /// The seed.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// A number of this range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.rng.random_range(range)
    }

    /// Small numbers more often than large ones: each power of two of the range is as likely as the next.
    pub fn skewed(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = range.into_inner();
        let bits = u64::from((high / low.max(1)).max(1).ilog2());
        let base = low.max(1) << self.within(0..=bits);
        self.within(base.min(high)..=base.saturating_mul(2).min(high))
    }

    /// True once in `count` throws.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.within(1..=count) == 1
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T; 3]) -> T {
        let [first, second, third] = *choices;
        match self.within(0..=2) {
            0 => first,
            1 => second,
            _ => third,
        }
    }
}

/// How many rounds a test runs: `CHAOS_ROUNDS`, or this many.
pub fn rounds(ordinary: u64) -> u64 {
    number_from_environment("CHAOS_ROUNDS").unwrap_or(ordinary)
}

/// How many requests a wave has: `CHAOS_REQUESTS`, or this many.
pub fn requests(ordinary: u64) -> u64 {
    number_from_environment("CHAOS_REQUESTS").unwrap_or(ordinary)
}

#[expect(clippy::disallowed_methods, reason = "tests have no configuration but these numbers")]
fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn new_seed() -> u64 {
    // The standard library seeds its hashers from the operating system.
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let throws = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| dice.within(0..=1_000_000)).collect::<Vec<_>>()
        };
        assert_eq!(throws(7), throws(7));
        assert_ne!(throws(7), throws(8));
    }

    #[test]
    fn skewed_throws_stay_in_range_and_reach_both_halves() {
        let mut dice = Dice::new(1);
        let throws: Vec<_> = (0..1_000).map(|_| dice.skewed(100..=65_536)).collect();
        assert!(throws.iter().all(|size| (100..=65_536).contains(size)));
        assert!(throws.iter().filter(|size| **size < 2_000).count() > 200);
        assert!(throws.iter().filter(|size| **size > 30_000).count() > 50);
    }
}
