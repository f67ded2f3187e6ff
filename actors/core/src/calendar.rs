//! Calendar periods in UTC: in which day, week, month or year does a moment lie.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime};
use events_model::{TimestampUs, tenant::Period};

/// First moment of the period that holds `at`.
pub fn period_start(period: Period, at: TimestampUs) -> TimestampUs {
    date_of(at).and_then(|date| first_day(period, date)).map_or(TimestampUs::ZERO, midnight)
}

/// First moment after the period that holds `at`.
pub fn period_end(period: Period, at: TimestampUs) -> TimestampUs {
    let end = date_of(at).and_then(|date| first_day(period, date)).and_then(|start| match period {
        Period::Day => start.checked_add_days(Days::new(1)),
        Period::Week => start.checked_add_days(Days::new(7)),
        Period::Month => start.checked_add_months(Months::new(1)),
        Period::Year => start.checked_add_months(Months::new(12)),
    });
    // Beyond the calendar's end nothing ends any more.
    end.map_or(TimestampUs(u64::MAX), midnight)
}

fn date_of(at: TimestampUs) -> Option<NaiveDate> {
    DateTime::from_timestamp_micros(i64::try_from(at.0).ok()?).map(|time| time.date_naive())
}

fn first_day(period: Period, date: NaiveDate) -> Option<NaiveDate> {
    match period {
        Period::Day => Some(date),
        Period::Week => date.checked_sub_days(Days::new(date.weekday().num_days_from_monday().into())),
        Period::Month => date.with_day(1),
        Period::Year => NaiveDate::from_ymd_opt(date.year(), 1, 1),
    }
}

fn midnight(date: NaiveDate) -> TimestampUs {
    let micros = date.and_time(NaiveTime::MIN).and_utc().timestamp_micros();
    TimestampUs(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> TimestampUs {
        TimestampUs(DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros().try_into().unwrap())
    }

    #[test]
    fn periods_begin_and_end_at_utc_midnight_and_weeks_on_monday() {
        let moment = at("2028-02-29T23:59:59.999999Z");
        for (period, start, end) in [
            (Period::Day, "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Week, "2028-02-28T00:00:00Z", "2028-03-06T00:00:00Z"),
            (Period::Month, "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Year, "2028-01-01T00:00:00Z", "2029-01-01T00:00:00Z"),
        ] {
            assert_eq!(period_start(period, moment), at(start));
            assert_eq!(period_end(period, moment), at(end));
        }
    }

    #[test]
    fn a_moment_beyond_the_calendar_does_not_panic() {
        for period in Period::ALL {
            assert!(period_start(period, TimestampUs(u64::MAX)) <= period_end(period, TimestampUs(u64::MAX)));
        }
    }
}
