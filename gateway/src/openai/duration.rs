//! Durations as Go prints them, which is how `x-ratelimit-reset-*` carries them: `20ms`, `1.5s`, `6m0s`.

use events_model::DurationUs;

/// Writes a span as Go's `time.Duration` does.
///
/// Below a millisecond microseconds are used, below a second milliseconds, then `s`, `m` and `h`; the largest
/// unit that is not zero comes first and no trailing zero of a fraction is written.
pub fn go_duration(span: DurationUs) -> String {
    let us = span.0;
    match us {
        0 => "0s".to_owned(),
        1..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{}ms", decimal(us / 1_000, us % 1_000, 3)),
        _ => {
            let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
            let tail = decimal(seconds % 60, fraction, 6);
            match (seconds / 3_600, seconds / 60 % 60) {
                (0, 0) => format!("{tail}s"),
                (0, minutes) => format!("{minutes}m{tail}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{tail}s"),
            }
        }
    }
}

/// Rounds a span up to whole milliseconds, so that a client that waits exactly this long does not come too early.
#[must_use]
pub const fn whole_millis(span: DurationUs) -> DurationUs {
    DurationUs::from_millis(span.0.div_ceil(1_000))
}

/// Whole seconds for `Retry-After`, rounded up: a client that obeys must not come too early.
#[must_use]
pub const fn retry_after_seconds(span: DurationUs) -> u64 {
    span.0.div_ceil(1_000_000)
}

fn decimal(whole: u64, fraction: u64, digits: usize) -> String {
    if fraction == 0 {
        return whole.to_string();
    }
    let padded = format!("{fraction:0digits$}");
    format!("{whole}.{}", padded.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_go_prints_them() {
        for (us, text) in [
            (0, "0s"),
            (1, "1µs"),
            (1_500, "1.5ms"),
            (20_000, "20ms"),
            (999_999, "999.999ms"),
            (1_000_000, "1s"),
            (1_500_000, "1.5s"),
            (60_000_000, "1m0s"),
            (360_000_000, "6m0s"),
            (3_600_000_000, "1h0m0s"),
            (90_061_000_001, "25h1m1.000001s"),
        ] {
            assert_eq!(go_duration(DurationUs(us)), text);
        }
    }

    #[test]
    fn waiting_times_are_rounded_up_never_down() {
        assert_eq!(whole_millis(DurationUs(1)), DurationUs(1_000));
        assert_eq!(retry_after_seconds(DurationUs(1_000_001)), 2);
        assert_eq!(retry_after_seconds(DurationUs(0)), 0);
    }
}
