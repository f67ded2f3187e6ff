//! Appends an application's commit in the case it expects.

use events_journal::{AppendError, Appended, EventLog, ReadError};
use events_model::{Commit, Version, application::Expected};

/// How often an append that fits any version is tried again because others were first.
const TRIES_MAX: u32 = 256;

/// Why it was not appended, or not certainly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The stream is not as expected.
    #[error("the stream is at version {actual}")]
    Conflict {
        /// Where it is; 0 = it does not exist.
        actual: Version,
    },
    /// Any other failure.
    #[error("append to the log")]
    Append(#[source] AppendError),
    /// The stream's head cannot be read.
    #[error("read the stream's head")]
    Read(#[source] ReadError),
}

/// Appends. `commit.first_version` is set here.
///
/// # Errors
/// `Conflict` wrote nothing; `Append` says whether it did.
pub(crate) async fn append(log: &dyn EventLog, expected: Expected, mut commit: Commit) -> Result<Appended, Failure> {
    let mut at = match expected {
        Expected::Exact(version) => version,
        Expected::None => Version::ZERO,
        Expected::Any | Expected::Exists => log.head(&commit.stream).map_err(Failure::Read)?,
    };
    for _ in 1..TRIES_MAX {
        if expected == Expected::Exists && at == Version::ZERO {
            return Err(Failure::Conflict { actual: at });
        }
        commit.first_version = at.next();
        match log.append(at, commit.clone()).await {
            Ok(appended) => return Ok(appended),
            Err(AppendError::Conflict { actual, .. }) => match expected {
                Expected::Exact(_) | Expected::None => return Err(Failure::Conflict { actual }),
                Expected::Any | Expected::Exists => at = actual,
            },
            Err(error) => return Err(Failure::Append(error)),
        }
    }
    Err(Failure::Conflict { actual: at })
}
