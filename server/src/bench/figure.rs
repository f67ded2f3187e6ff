//! Medians, percentiles and rates.

use std::time::Duration;

use serde::Serialize;

/// One measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Figure {
    /// Things a second.
    pub(super) per_second: f64,
    /// Half took no longer, microseconds.
    pub(super) p50_us: u32,
    /// 99 of 100 took no longer, microseconds.
    pub(super) p99_us: u32,
    /// 999 of 1,000 took no longer, microseconds.
    pub(super) p999_us: u32,
}

impl Figure {
    /// Sums up what each thing took.
    pub(super) fn of(mut latencies_us: Vec<u32>, elapsed: Duration) -> Self {
        latencies_us.sort_unstable();
        Self {
            per_second: rate(latencies_us.len() as u64, elapsed),
            p50_us: percentile(&latencies_us, 0.5),
            p99_us: percentile(&latencies_us, 0.99),
            p999_us: percentile(&latencies_us, 0.999),
        }
    }

    /// The median of each number over rounds.
    pub(super) fn median(rounds: &[Self]) -> Self {
        let micros = |of: fn(&Self) -> u32| median(rounds.iter().map(|figure| f64::from(of(figure))).collect());
        Self {
            per_second: median(rounds.iter().map(|figure| figure.per_second).collect()),
            p50_us: whole(micros(|figure| figure.p50_us)),
            p99_us: whole(micros(|figure| figure.p99_us)),
            p999_us: whole(micros(|figure| figure.p999_us)),
        }
    }
}

/// A number over rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of at least one.
    pub(super) fn of(values: Vec<f64>) -> Self {
        let bound = |better: fn(f64, f64) -> f64| values.iter().copied().reduce(better).unwrap_or(0.0);
        Self { min: bound(f64::min), max: bound(f64::max), median: median(values) }
    }

    /// A ratio for people: 0.93 (0.90-0.97).
    pub(super) fn show(&self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the median of values that are u32")]
const fn whole(value: f64) -> u32 {
    value as u32
}

/// The middle value; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(0.0);
    let lower = if values.len().is_multiple_of(2) { middle.checked_sub(1) } else { Some(middle) };
    f64::midpoint(lower.and_then(|lower| values.get(lower)).copied().unwrap_or(upper), upper)
}

/// The smallest value that a share of all values does not exceed; values in ascending order.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts far below 2^52"
)]
pub(super) fn percentile(sorted: &[u32], share: f64) -> u32 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Things a second.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(super) fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(f64::EPSILON)
}

/// Microseconds, as many as fit.
pub(super) fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}

/// A rate for people: 123,456.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are positive and far below 2^52")]
pub(super) fn show_rate(rate: f64) -> String {
    crate::cli::show::count(rate.round() as u64)
}

/// A latency for people, in milliseconds.
pub(super) fn show_ms(micros: u32) -> String {
    format!("{}.{:03}", micros / 1_000, micros % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_definition() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        let values: Vec<u32> = (1..=1_000).collect();
        assert_eq!([0.5, 0.99, 0.999].map(|share| percentile(&values, share)), [500, 990, 999]);
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
