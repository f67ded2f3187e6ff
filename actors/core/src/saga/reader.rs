//! Reads fields of a tree: kinds, bounds and units, with a finding at the place of each fault.
//!
//! Reading goes on after a fault, with a value that does no harm, so that an author sees all faults at once.

use std::fmt::Display;

use events_model::{DurationUs, NanoUsd};

use super::tree::{Content, Finding, Key, Node, Place};

/// Most findings that are kept.
pub(super) const FINDINGS_LEN_MAX: usize = 100;

/// Collects findings.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) findings: Vec<Finding>,
}

impl Reader {
    pub(super) fn find(&mut self, at: Place, message: impl Display) {
        if self.findings.len() < FINDINGS_LEN_MAX {
            self.findings.push(Finding { at, message: message.to_string() });
        }
    }

    /// The entries of a map; its keys must be among `known`.
    pub(super) fn map<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> &'n [(Key, Node)] {
        let Content::Map(entries) = &node.content else {
            self.find(node.at, format!("{what} must be a map, but is {}", node.what()));
            return &[];
        };
        for (key, _) in entries {
            if !known.is_empty() && !known.contains(&key.text.as_str()) {
                let known = known.join(", ");
                self.find(key.at, format!("{what} has no key {}; it may have {known}", cut(&key.text)));
            }
        }
        entries
    }

    pub(super) fn list<'n>(&mut self, node: &'n Node, what: &str, most: usize) -> &'n [Node] {
        match &node.content {
            Content::List(nodes) if nodes.len() <= most => nodes,
            Content::List(_) => {
                self.find(node.at, format!("{what} has at most {most} elements"));
                &[]
            }
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::Text(_)
            | Content::Map(_) => {
                self.find(node.at, format!("{what} must be a list, but is {}", node.what()));
                &[]
            }
        }
    }

    pub(super) fn required<'n>(&mut self, node: &'n Node, what: &str, key: &str) -> Option<&'n Node> {
        let found = node.get(key);
        if found.is_none() && matches!(node.content, Content::Map(_)) {
            self.find(node.at, format!("{what} needs {key}"));
        }
        found
    }

    pub(super) fn text(&mut self, node: &Node, what: &str, most: usize) -> String {
        let text = match &node.content {
            Content::Text(text) => text.as_str(),
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => {
                self.find(node.at, format!("{what} must be a text, but is {}", node.what()));
                return String::new();
            }
        };
        if text.is_empty() || text.len() > most {
            self.find(node.at, format!("{what} must be 1 to {most} bytes"));
        }
        text.to_owned()
    }

    /// A name: it is part of paths, so letters, digits, `_` and `-` alone, and a letter first.
    pub(super) fn name(&mut self, node: &Node, what: &str) -> String {
        let text = self.text(node, what, NAME_BYTES_MAX);
        if !text.is_empty() && !is_name(&text) {
            self.find(node.at, format!("{what} must be letters, digits, _ and -, a letter first"));
        }
        text
    }

    pub(super) fn whole(&mut self, node: &Node, what: &str, least: u32, most: u32) -> u32 {
        let found = match &node.content {
            Content::Int(number) => u32::try_from(*number).ok().filter(|number| (least..=most).contains(number)),
            Content::Null
            | Content::Bool(_)
            | Content::Float(_)
            | Content::Text(_)
            | Content::List(_)
            | Content::Map(_) => None,
        };
        found.unwrap_or_else(|| {
            self.find(node.at, format!("{what} must be a whole number, {least} to {most}"));
            least
        })
    }

    pub(super) fn duration(&mut self, node: &Node, what: &str, most: DurationUs) -> DurationUs {
        let text = match &node.content {
            Content::Text(text) => text.as_str(),
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => "",
        };
        let found = duration(text).filter(|span| span.0 > 0 && *span <= most);
        found.unwrap_or_else(|| {
            let days = most.0.checked_div(MICROS_PER_DAY).unwrap_or(0);
            let most = if days > 1 { format!("{days}d") } else { format!("{}s", most.0 / 1_000_000) };
            self.find(node.at, format!("{what} must be a time such as 500ms, 30s, 5m, 2h or 7d, at most {most}"));
            DurationUs::from_secs(1)
        })
    }

    pub(super) fn money(&mut self, node: &Node, what: &str, most: NanoUsd) -> NanoUsd {
        let text = match &node.content {
            Content::Text(text) => text.as_str(),
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => "",
        };
        money(text).filter(|amount| *amount <= most).unwrap_or_else(|| {
            self.find(node.at, format!("{what} must be US dollars such as $1.50, at most {most}"));
            NanoUsd(0)
        })
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&mut self, node: &Node, what: &str, words: &[(&str, T)], default: T) -> T {
        let found = match &node.content {
            Content::Text(text) => words.iter().find(|(word, _)| word == text).map(|(_, value)| *value),
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => None,
        };
        found.unwrap_or_else(|| {
            let words = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
            self.find(node.at, format!("{what} must be {words}"));
            default
        })
    }
}

/// Longest name, bytes.
pub(super) const NAME_BYTES_MAX: usize = 63;
const MICROS_PER_DAY: u64 = 86_400_000_000;

pub(super) fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// `500ms`, `30s`, `5m`, `2h`, `7d`, also one after another: `1h30m`.
pub(super) fn duration(text: &str) -> Option<DurationUs> {
    let mut sum = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|letter: char| letter.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let micros: u64 = match unit {
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => MICROS_PER_DAY,
            _ => return None,
        };
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(micros)?)?;
        rest = behind;
    }
    if text.is_empty() { None } else { Some(DurationUs(sum)) }
}

/// `$1.50`: at most nine decimals.
pub(super) fn money(text: &str) -> Option<NanoUsd> {
    let amount = text.strip_prefix('$')?;
    let (whole, decimals) = amount.split_once('.').unwrap_or((amount, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) || decimals.len() > 9 || amount.ends_with('.') {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let decimals: i64 = format!("{decimals:0<9}").parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(decimals).map(NanoUsd)
}
