//! Quantities: one type each, integers only. Arithmetic saturates: no total that is computed here can wrap.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// Adds, stopping at the type's bounds.
            #[must_use]
            pub const fn plus(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// Subtracts, stopping at the type's bounds.
            #[must_use]
            pub const fn minus(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
    };
}

quantity!(
    /// Money: billionths of a US dollar. May be negative in differences.
    NanoUsd(i64)
);
quantity!(
    /// Model tokens.
    Tokens(u64)
);
quantity!(
    /// UTC microseconds since 1970.
    TimestampUs(u64)
);
quantity!(
    /// A span of time, microseconds.
    DurationUs(u64)
);
quantity!(
    /// Position of an event in its stream, from 1; 0 = the stream does not exist.
    Version(u64)
);
quantity!(
    /// Place of a commit in one region's log, from 1, strictly increasing; 0 = before the first.
    Position(u64)
);

/// Nano-USD in a dollar.
pub const NANO_USD_PER_USD: i64 = 1_000_000_000;

impl NanoUsd {
    /// Whole dollars.
    pub const fn from_usd(usd: i64) -> Self {
        Self(usd.saturating_mul(NANO_USD_PER_USD))
    }
}

impl fmt::Display for NanoUsd {
    /// Dollars with as many of the nine decimals as matter, at least two: `$0.0000315`, `$12.00`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NANO: u64 = NANO_USD_PER_USD.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let amount = self.0.unsigned_abs();
        let (whole, fraction) = (amount.checked_div(NANO).unwrap_or(0), amount.checked_rem(NANO).unwrap_or(0));
        let digits = format!("{fraction:09}");
        let shown = digits.trim_end_matches('0');
        f.pad(&format!("{sign}${whole}.{shown:0<2}"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TimestampUs {
    /// The time this much later.
    #[must_use]
    pub const fn after(self, span: DurationUs) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The span since an earlier time; zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> DurationUs {
        DurationUs(self.0.saturating_sub(earlier.0))
    }
}

impl DurationUs {
    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Whole milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }
}

impl Version {
    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Position {
    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_prints_to_the_nano_dollar_and_no_further() {
        assert_eq!(NanoUsd(31_500).to_string(), "$0.0000315");
        assert_eq!(NanoUsd::from_usd(12).to_string(), "$12.00");
        assert_eq!(NanoUsd(-1).to_string(), "-$0.000000001");
        assert_eq!(NanoUsd(1_500_000_000).to_string(), "$1.50");
    }
}
