//! How a command ends badly: exit code, one line, causes, and what to do about it.

use std::fmt;

use events_journal::ReadError;
use events_journal_sled::OpenError;

use crate::{config, platform::io_code};

/// Page of a server that is not reachable.
pub(crate) const UNREACHABLE: &str = "E0010";
/// A command did what it should.
pub(crate) const EXIT_FINE: u8 = 0;
/// A command failed, or found a problem.
pub(crate) const EXIT_PROBLEM: u8 = 1;
/// The command line or the configuration is wrong.
pub(crate) const EXIT_MISUSE: u8 = 2;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is to be told.
    Problem(Box<Problem>),
    /// What was printed has been told already; the exit code says the rest.
    Found,
    /// Nobody reads standard output any more: that is fine.
    ReaderGone,
}

/// What went wrong, for people.
#[derive(Debug)]
pub(crate) struct Problem {
    exit: u8,
    code: Option<&'static str>,
    text: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Problem {
    /// A failure.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { exit: EXIT_PROBLEM, code: None, text: text.into(), causes: Vec::new(), hint: None }
    }

    /// An error and all that caused it.
    pub(crate) fn of(error: &dyn std::error::Error) -> Self {
        let mut problem = Self::new(error.to_string());
        if let Some(source) = error.source() {
            problem = problem.because(source);
        }
        problem
    }

    /// Adds an error as the cause, and its causes.
    pub(crate) fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// It is the caller's mistake.
    pub(crate) const fn misuse(mut self) -> Self {
        self.exit = EXIT_MISUSE;
        self
    }

    /// Its page in `docs/errors`.
    pub(crate) const fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// What to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.map(|code| format!("[{code}] ")).unwrap_or_default();
        write!(formatter, "error: {code}{}", self.text)?;
        for cause in &self.causes {
            write!(formatter, "\n  because: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(formatter, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl Failure {
    /// The exit code.
    pub(crate) const fn exit(&self) -> u8 {
        match self {
            Self::Problem(problem) => problem.exit,
            Self::Found => EXIT_PROBLEM,
            Self::ReaderGone => EXIT_FINE,
        }
    }

    /// Whether no server answered.
    pub(crate) fn is_unreachable(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.code == Some(UNREACHABLE),
            Self::Found | Self::ReaderGone => false,
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Problem::of(&error).misuse().code(config::Error::CODE).into()
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let problem = Problem::of(&error);
        match error {
            OpenError::Locked { .. } => problem.code("E0001").hint("stop that process, or name another --data").into(),
            OpenError::Corrupt { .. } => problem.code("E0002").into(),
            OpenError::UnsupportedVersion { .. } => problem.code("E0011").into(),
            OpenError::Io { source, .. } => match io_code(&source) {
                Some(code) => problem.code(code).into(),
                None => problem.into(),
            },
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let problem = Problem::of(&error);
        match error {
            ReadError::Corrupt { .. } | ReadError::Decode { .. } => problem.code("E0002").into(),
            ReadError::Io { .. } => problem.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    #[test]
    fn a_directory_that_cannot_be_read_has_the_number_that_a_start_gives_it() {
        let source = Arc::new(io::Error::from(io::ErrorKind::PermissionDenied));
        let failure = Failure::from(OpenError::Io { what: "open".to_owned(), source });
        assert!(matches!(&failure, Failure::Problem(problem) if problem.code == Some("E0004")), "{failure:?}");
    }
}
