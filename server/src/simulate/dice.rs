//! Seeded draws: what will happen to one request.
//!
//! Invariants: a draw depends only on the seed and the key of the request (its id and attempt, or its body and how
//! often that body was seen), never on time, order or the process; each purpose has a stream of its own, so turning
//! one fault on does not change any other draw or any text. The generator is written out here (the finaliser of
//! SplitMix64) because its output is part of the contract: the same seed gives the same bytes in every release.
//! It is not for secrets.

use std::time::Duration;

use super::{
    options::{COMPLETION_TOKENS_MAX, Options},
    request::Chat,
};

/// Odd constant of SplitMix64 (the golden ratio in 64 bits): it spreads consecutive numbers.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Bijective 64-bit mixing.
pub(super) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Hash of bytes under a seed; stable for ever, eight bytes a step.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    // The length goes in first, so padding the tail with zeros cannot make two inputs equal.
    let mut state = mix(seed ^ mix(bytes.len() as u64));
    for word in words {
        state = mix(state ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    mix(state ^ u64::from_le_bytes(last))
}

/// What a draw is for. The numbers are part of the contract: new purposes get new ones.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Refusal = 1,
    FirstToken = 2,
    Cut = 3,
    CutAt = 4,
    Stall = 5,
    StallAt = 6,
    Malformed = 7,
    MalformedAt = 8,
    Overrun = 9,
    OverrunLength = 10,
    Length = 11,
}

/// The draws of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice {
    key: u64,
}

impl Dice {
    /// Draws for the given attempt (from 1) of a request that names itself.
    pub(super) fn for_id(seed: u64, id: &str, attempt: u32) -> Self {
        Self { key: mix(hash(mix(seed), id.as_bytes()) ^ u64::from(attempt)) }
    }

    /// Draws for the given occurrence (from 1) of a body whose [`hash`] is known.
    pub(super) fn for_body(seed: u64, body: u64, occurrence: u32) -> Self {
        Self { key: mix(mix(body ^ mix(!seed)) ^ u64::from(occurrence)) }
    }

    /// A number that names this request in ids.
    pub(super) fn name(self) -> u64 {
        mix(self.key)
    }

    fn bits(self, purpose: Purpose, index: u64) -> u64 {
        mix(self.key ^ mix(((purpose as u64) << 32) | index))
    }

    /// Uniform in 0..1.
    fn uniform(self, purpose: Purpose) -> f64 {
        // 53 bits are what a double holds exactly.
        (self.bits(purpose, 0) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn happens(self, purpose: Purpose, rate: f64) -> bool {
        self.uniform(purpose) < rate
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0.
    fn below(self, purpose: Purpose, index: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(purpose, index)) * u128::from(bound)) >> 64) as u64
    }

    fn length(self, purpose: Purpose, choice: u64, options: &Options) -> u32 {
        let (min, max) = (options.completion_tokens_min, options.completion_tokens_max);
        min + self.below(purpose, choice, u64::from(max - min) + 1) as u32
    }
}

/// A refusal that was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Error500,
    Error503,
}

/// The drawn refusal of this request, if any.
pub(super) fn refusal(dice: Dice, options: &Options) -> Option<Refusal> {
    let drawn = dice.uniform(Purpose::Refusal);
    if drawn < options.error_500_rate {
        Some(Refusal::Error500)
    } else if drawn < options.error_500_rate + options.error_503_rate {
        Some(Refusal::Error503)
    } else {
        None
    }
}

/// One choice of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Length {
    /// Tokens that will be generated, at least one.
    pub(super) tokens: u32,
    /// Whether `max_tokens` ended it.
    pub(super) capped: bool,
}

/// Everything that will happen to one accepted request. Positions count tokens over all choices, from 0, and mean
/// "before this token".
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) lengths: Vec<Length>,
    pub(super) first_token: Duration,
    /// Time between tokens; zero is unlimited.
    pub(super) interval: Duration,
    pub(super) stall: Option<(u64, Duration)>,
    pub(super) cut_at: Option<u64>,
    pub(super) malformed_at: Option<u64>,
    pub(super) overrun: bool,
}

impl Plan {
    /// Draws the plan of one request.
    pub(super) fn draw(dice: Dice, options: &Options, chat: &Chat) -> Self {
        // A bound that is above every completion cannot be overrun.
        let bound = chat.completion_tokens_max.filter(|bound| *bound < COMPLETION_TOKENS_MAX);
        let overrun = bound.is_some() && dice.happens(Purpose::Overrun, options.overrun_rate);
        let lengths: Vec<_> = (0..u64::from(chat.choices))
            .map(|choice| {
                let drawn = dice.length(Purpose::Length, choice, options);
                match chat.completion_tokens_max {
                    Some(bound) if overrun => {
                        Length { tokens: bound + dice.length(Purpose::OverrunLength, choice, options), capped: false }
                    }
                    Some(bound) if drawn > bound => Length { tokens: bound, capped: true },
                    Some(_) | None => Length { tokens: drawn, capped: false },
                }
            })
            .collect();
        let total: u64 = lengths.iter().map(|length| u64::from(length.tokens)).sum();
        let at = |happens, rate, place| dice.happens(happens, rate).then(|| dice.below(place, 0, total));
        // A stall before the first token would be latency: it falls on a later token wherever there is one.
        let stall = dice
            .happens(Purpose::Stall, options.stall_rate)
            .then(|| (total - 1).min(1 + dice.below(Purpose::StallAt, 0, total - 1)))
            .filter(|_| options.stall_ms > 0);
        Self {
            first_token: first_token(dice.uniform(Purpose::FirstToken), options),
            interval: match options.tokens_per_second {
                0 => Duration::ZERO,
                pace => Duration::from_secs(1) / pace,
            },
            stall: stall.map(|at| (at, Duration::from_millis(options.stall_ms))),
            cut_at: at(Purpose::Cut, options.cut_rate, Purpose::CutAt),
            malformed_at: at(Purpose::Malformed, options.malformed_rate, Purpose::MalformedAt),
            overrun,
            lengths,
        }
    }
}

/// Time to the first token at `quantile`: straight lines through half the median at 0, the three percentiles, and the
/// 99th percentile at 1. A percentile below a lower one counts as equal to it.
fn first_token(quantile: f64, options: &Options) -> Duration {
    let p50 = options.ttft_p50_ms as f64;
    let p90 = p50.max(options.ttft_p90_ms as f64);
    let p99 = p90.max(options.ttft_p99_ms as f64);
    let line = |(x0, y0): (f64, f64), (x1, y1): (f64, f64)| y0 + (y1 - y0) * (quantile - x0) / (x1 - x0);
    let ms = if quantile < 0.5 {
        line((0.0, p50 / 2.0), (0.5, p50))
    } else if quantile < 0.9 {
        line((0.5, p50), (0.9, p90))
    } else if quantile < 0.99 {
        line((0.9, p90), (0.99, p99))
    } else {
        p99
    };
    Duration::from_micros((ms * 1_000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(bound: Option<u32>, choices: u32) -> Chat {
        Chat { completion_tokens_max: bound, choices, ..Chat::default() }
    }

    #[test]
    fn quantiles_of_the_first_token_lie_on_the_named_percentiles() {
        let options = Options { ttft_p50_ms: 100, ttft_p90_ms: 500, ttft_p99_ms: 2_000, ..Options::default() };
        for (quantile, ms) in [(0.0, 50), (0.5, 100), (0.7, 300), (0.9, 500), (0.99, 2_000), (0.999, 2_000)] {
            let drawn = first_token(quantile, &options).as_millis();
            assert!(drawn.abs_diff(ms) <= 1, "{quantile}: {drawn} ms");
        }
        assert_eq!(first_token(0.95, &Options { ttft_p50_ms: 7, ..Options::default() }), Duration::from_millis(7));
    }

    #[test]
    fn rates_are_kept_over_many_requests() {
        let options = Options {
            error_500_rate: 0.1,
            error_503_rate: 0.2,
            cut_rate: 0.25,
            malformed_rate: 0.05,
            stall_rate: 0.5,
            stall_ms: 1,
            ..Options::default()
        };
        let mut counts = [0_u32; 5];
        for id in 0..20_000 {
            let dice = Dice::for_id(7, &format!("r-{id}"), 1);
            let plan = Plan::draw(dice, &options, &chat(None, 1));
            let refusal = refusal(dice, &options);
            let happened = [
                refusal == Some(Refusal::Error500),
                refusal == Some(Refusal::Error503),
                plan.cut_at.is_some(),
                plan.malformed_at.is_some(),
                plan.stall.is_some(),
            ];
            counts.iter_mut().zip(happened).for_each(|(count, happened)| *count += u32::from(happened));
        }
        for (count, expected) in counts.into_iter().zip([2_000, 4_000, 5_000, 1_000, 10_000]) {
            assert!(count.abs_diff(expected) < 300, "{counts:?}");
        }
    }

    #[test]
    fn one_fault_does_not_move_another_draw() {
        let with = Options { overrun_rate: 1.0, error_500_rate: 0.5, ..Options::default() };
        for attempt in 1..200 {
            let dice = Dice::for_id(3, "same", attempt);
            let plain = Plan::draw(dice, &Options::default(), &chat(None, 2));
            assert_eq!(plain, Plan::draw(dice, &with, &chat(None, 2)));
        }
    }

    #[test]
    fn the_bound_of_the_request_holds_unless_it_is_overrun() {
        let over = Options { overrun_rate: 1.0, ..Options::default() };
        for attempt in 1..500 {
            let dice = Dice::for_body(1, 2, attempt);
            for length in Plan::draw(dice, &Options::default(), &chat(Some(20), 3)).lengths {
                assert!(length.tokens <= 20 && length.tokens >= 16 && (length.tokens == 20 || !length.capped));
            }
            for length in Plan::draw(dice, &over, &chat(Some(20), 3)).lengths {
                assert!(length.tokens > 20 && !length.capped);
            }
            let huge = Plan::draw(dice, &over, &chat(Some(u32::MAX), 1));
            assert!(!huge.overrun && huge.lengths[0].tokens <= 64);
        }
    }

    #[test]
    fn places_of_faults_lie_inside_the_response() {
        let options = Options {
            cut_rate: 1.0,
            stall_rate: 1.0,
            stall_ms: 1,
            malformed_rate: 1.0,
            completion_tokens_min: 1,
            completion_tokens_max: 3,
            ..Options::default()
        };
        for attempt in 1..500 {
            let plan = Plan::draw(Dice::for_id(1, "x", attempt), &options, &chat(None, 2));
            let total: u64 = plan.lengths.iter().map(|length| u64::from(length.tokens)).sum();
            let stall = plan.stall.unwrap().0;
            assert!(plan.cut_at.unwrap() < total && plan.malformed_at.unwrap() < total && stall < total && stall > 0);
        }
    }

    #[test]
    fn hashes_differ_where_bytes_differ_and_never_change() {
        assert_ne!(hash(0, b"a"), hash(0, b"a\0"));
        assert_ne!(hash(0, b"12345678"), hash(0, b"12345679"));
        assert_ne!(hash(0, b"a"), hash(1, b"a"));
        // Frozen: a change here changes every recorded run.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
    }
}
