//! Values with units, as text: `5s`, `64MiB`, `0.15`.
//!
//! Money never passes through a floating-point number. One number and one unit: `90s`, not `1m30s`.

use std::{fmt, marker::PhantomData, time::Duration};

use events_model::NanoUsd;
use serde::{Deserializer, de};

/// Units of time and their nanoseconds, smallest first.
const TIMES: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
/// Units of memory and their bytes, smallest first.
const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
/// Decimals of a dollar that are kept.
const USD_DECIMALS: usize = 9;

/// A text is no value of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct Invalid {
    /// The text as given.
    pub text: String,
    /// What was expected.
    pub expected: &'static str,
}

const TIME_EXPECTED: &str = "a duration such as \"250ms\", \"5s\" or \"10m\" (units us, ms, s, m, h, d)";
const SIZE_EXPECTED: &str = "a size such as \"4MiB\" (units B, KiB, MiB, GiB)";
const USD_EXPECTED: &str = "an amount of US dollars in quotes, such as \"0.15\" (digits, at most nine decimals)";

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*scale)
}

fn unscaled(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, scale): &&(&str, u64)| value != 0 && value.is_multiple_of(*scale);
    let (unit, scale) = units.iter().rev().find(fits).or(units.first()).unwrap_or(&("", 1));
    format!("{}{unit}", value / scale)
}

/// Reads a duration.
///
/// # Errors
/// The text is none.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let nanos = scaled(text, &TIMES).ok_or_else(|| Invalid { text: text.to_owned(), expected: TIME_EXPECTED })?;
    Ok(Duration::from_nanos(nanos))
}

/// Writes a duration in the largest unit that holds it exactly, to the microsecond.
pub fn show_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0s".to_owned();
    }
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 1_000);
    unscaled(micros.saturating_mul(1_000), &TIMES)
}

/// Reads a size, in bytes.
///
/// # Errors
/// The text is none.
pub fn parse_bytes(text: &str) -> Result<u64, Invalid> {
    scaled(text, &SIZES).ok_or_else(|| Invalid { text: text.to_owned(), expected: SIZE_EXPECTED })
}

/// Writes a size in the largest unit that holds it exactly.
pub fn show_bytes(bytes: u64) -> String {
    unscaled(bytes, &SIZES)
}

/// Reads an amount of US dollars, exactly.
///
/// # Errors
/// The text is none, has more than nine decimals, or is too large.
pub fn parse_usd(text: &str) -> Result<NanoUsd, Invalid> {
    let invalid = || Invalid { text: text.to_owned(), expected: USD_EXPECTED };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > USD_DECIMALS {
        return Err(invalid());
    }
    format!("{whole}{fraction:0<USD_DECIMALS$}").parse().map(NanoUsd).map_err(|_| invalid())
}

/// Writes an amount of US dollars without a sign of currency, exactly.
pub fn show_usd(amount: NanoUsd) -> String {
    amount.to_string().replacen('$', "", 1)
}

/// Visits texts with one of the readers above.
struct Text<T, F> {
    parse: F,
    expected: &'static str,
    value: PhantomData<T>,
}

impl<T, F: Fn(&str) -> Result<T, Invalid>> de::Visitor<'_> for Text<T, F> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

fn read<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Text { parse, expected, value: PhantomData })
}

pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::show_duration(*value))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::read(deserializer, super::TIME_EXPECTED, super::parse_duration)
    }
}

pub(super) mod bytes {
    use serde::{Deserializer, Serializer};

    pub(in crate::config) fn serialize<T: Copy + TryInto<u64>, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::show_bytes((*value).try_into().unwrap_or(u64::MAX)))
    }

    pub(in crate::config) fn deserialize<'de, T: TryFrom<u64>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        super::read(deserializer, super::SIZE_EXPECTED, |text| {
            let invalid = |_| super::Invalid { text: text.to_owned(), expected: super::SIZE_EXPECTED };
            T::try_from(super::parse_bytes(text)?).map_err(invalid)
        })
    }
}

pub(super) mod usd {
    use events_model::NanoUsd;
    use serde::{Deserializer, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(value: &NanoUsd, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::show_usd(*value))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NanoUsd, D::Error> {
        super::read(deserializer, super::USD_EXPECTED, super::parse_usd)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_and_sizes_need_one_number_and_one_unit() {
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(600)), "10m");
        assert_eq!(show_duration(Duration::ZERO), "0s");
        assert_eq!(parse_bytes("64MiB").unwrap(), 64 << 20);
        for text in ["", "5", "s", "5 s", "-5s", "1.5s", "5S", "1m30s", "99999999999d"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        for text in ["", "64", "64MB", "64mib", "99999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn money_is_exact_to_nine_decimals_and_refused_beyond() {
        assert_eq!(parse_usd("0.15").unwrap(), NanoUsd(150_000_000));
        assert_eq!(parse_usd("12").unwrap(), NanoUsd::from_usd(12));
        assert_eq!(parse_usd("0.000000001").unwrap(), NanoUsd(1));
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "$1", "0.0000000001", "1,5", "99999999999"] {
            assert!(parse_usd(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_the_same(nano in 0..=i64::MAX, micros in 0..=u64::MAX / 1_000, bytes in any::<u64>()) {
            prop_assert_eq!(parse_usd(&show_usd(NanoUsd(nano))).unwrap(), NanoUsd(nano));
            let duration = Duration::from_micros(micros);
            prop_assert_eq!(parse_duration(&show_duration(duration)).unwrap(), duration);
            prop_assert_eq!(parse_bytes(&show_bytes(bytes)).unwrap(), bytes);
        }
    }
}
