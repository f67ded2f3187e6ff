//! How the tasks speak: one line for each violation, and the one place that prints.

use std::fmt;

use anyhow::{Result, bail};

/// A broken rule: where, what, why the rule exists, what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// File relative to the root, with `:line` where there is one.
    pub(crate) place: String,
    /// What is wrong.
    pub(crate) what: String,
    /// Why it is not allowed.
    pub(crate) why: &'static str,
    /// What to do instead.
    pub(crate) remedy: &'static str,
}

impl Violation {
    pub(crate) fn new(
        place: impl Into<String>,
        what: impl Into<String>,
        why: &'static str,
        remedy: &'static str,
    ) -> Self {
        Self { place: place.into(), what: what.into(), why, remedy }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}; {}; {}", self.place, self.what, self.why, self.remedy)
    }
}

/// Prints the violations, sorted by place.
///
/// # Errors
/// There is at least one.
pub(crate) fn finish(task: &str, mut violations: Vec<Violation>) -> Result<()> {
    violations.sort();
    for violation in &violations {
        say(violation);
    }
    if violations.is_empty() {
        return Ok(());
    }
    bail!("{task}: {} violations", violations.len());
}

/// Prints one line for people.
#[expect(clippy::print_stdout, reason = "a command line tool speaks on stdout")]
pub(crate) fn say(line: impl fmt::Display) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_one_line_with_place_what_why_and_remedy() {
        let violation = Violation::new("a/b.rs:7", "tab", "tabs render differently", "run `cargo fmt`");
        assert_eq!(violation.to_string(), "a/b.rs:7: tab; tabs render differently; run `cargo fmt`");
    }

    #[test]
    fn any_violation_fails_the_task() {
        assert!(finish("tidy", Vec::new()).is_ok());
        assert!(finish("tidy", vec![Violation::new("a", "b", "c", "d")]).is_err());
    }
}
