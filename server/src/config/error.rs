//! What can be wrong with a configuration: the place, the key, what is allowed.

use std::{fmt, io, path::PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file, and the line if it is known.
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: Option<usize>,
    },
    /// An environment variable.
    Variable(String),
    /// Nothing named it; the default is at odds with something else.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(formatter, "{}, line {line}", path.display()),
            Self::File { path, line: None } => write!(formatter, "{}", path.display()),
            Self::Variable(name) => write!(formatter, "environment variable {name}"),
            Self::Default => formatter.write_str("configuration"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key is unknown, or a value is not what the key allows.
    #[error("{place}: {}{reason}", key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
    Invalid {
        /// Where.
        place: Place,
        /// The key with its sections, if it is known.
        key: Option<String>,
        /// What is wrong and what is allowed.
        reason: String,
    },
}

impl Error {
    /// Number of the page in `docs/errors`.
    pub const CODE: &'static str = "E0006";
}
