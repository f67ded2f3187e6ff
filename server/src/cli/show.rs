//! How values are written for people: times, spans, money, sizes, counts; and JSON as an outline.

use chrono::{DateTime, SecondsFormat, Utc};
use events_model::NanoUsd;
use serde_json::Value;

/// UTC, to the microsecond.
pub(crate) fn time(unix_us: u64) -> String {
    let time = i64::try_from(unix_us).ok().and_then(DateTime::<Utc>::from_timestamp_micros);
    time.map_or_else(|| unix_us.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// A span as milliseconds, to the microsecond.
pub(crate) fn millis(span_us: u64) -> String {
    format!("{}.{:03} ms", span_us / 1_000, span_us % 1_000)
}

/// Money, to the nano-dollar.
pub(crate) fn money(nano_usd: i64) -> String {
    NanoUsd(nano_usd).to_string()
}

/// A count with separators: 1,234,567.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count of things: `1 segment`, `2 segments`.
pub(crate) fn things(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Memory in the unit that fits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, scale)| bytes >= *scale) {
        Some((unit, scale)) => format!("{:.1} {unit}", bytes as f64 / *scale as f64),
        None => format!("{bytes} B"),
    }
}

/// JSON as an indented outline, one value a line.
pub(crate) fn outline(value: &Value, indent: usize, lines: &mut Vec<String>) {
    let pad = "  ".repeat(indent);
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (format!("{name}:"), value)).collect(),
        Value::Array(items) => items.iter().map(|item| ("-".to_owned(), item)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            lines.push(format!("{pad}{}", scalar(value)));
            return;
        }
    };
    for (name, value) in entries {
        if is_nested(value) {
            lines.push(format!("{pad}{name}"));
            outline(value, indent + 1, lines);
        } else {
            lines.push(format!("{pad}{name} {}", scalar(value)));
        }
    }
}

fn is_nested(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| !fields.is_empty())
        || value.as_array().is_some_and(|items| items.iter().any(|item| item.is_object() || item.is_array()))
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        Value::Object(_) | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_for_people() {
        assert_eq!(time(1_790_000_000_123_456), "2026-09-21T14:13:20.123456Z");
        assert_eq!(millis(1_234_567), "1234.567 ms");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
        assert_eq!((things(1, "key"), things(0, "key")), ("1 key".to_owned(), "0 keys".to_owned()));
        assert_eq!(size(1 << 20), "1.0 MiB");
        assert_eq!(size(1_023), "1023 B");
    }

    #[test]
    fn an_outline_shows_every_value() {
        let mut lines = Vec::new();
        outline(&json!({"a": 1, "b": {"c": null, "d": []}, "e": [{"f": "x"}, 2]}), 0, &mut lines);
        assert_eq!(lines, ["a: 1", "b:", "  c: -", "  d: none", "e:", "  -", "    f: x", "  - 2"]);
    }
}
