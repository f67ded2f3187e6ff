//! Secrets, and where upstreams' keys are read.

use std::{fmt, fs, io, path::PathBuf};

use super::Upstream;

/// Longest key that is read from a file, bytes.
const KEY_BYTES_MAX: usize = 16 * 1024;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for whoever must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Why an upstream's key is not there. Texts never hold the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The environment variable is not set, or empty.
    #[error("the environment variable {variable} that holds the key of upstream {upstream} is not set")]
    Unset {
        /// The upstream.
        upstream: String,
        /// The variable.
        variable: String,
    },
    /// The file cannot be read.
    #[error("read {}, which holds the key of upstream {upstream}", path.display())]
    File {
        /// The upstream.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read cannot be a key.
    #[error("the key of upstream {upstream} in {place} is empty, too long, or not visible ASCII")]
    Invalid {
        /// The upstream.
        upstream: String,
        /// Variable or file.
        place: String,
    },
}

impl KeyError {
    /// Number of the page in `docs/errors`.
    pub const CODE: &'static str = "E0008";
}

impl Upstream {
    /// Reads the API key from where the configuration says; `None` = the upstream needs none.
    ///
    /// # Errors
    /// It says where, and there is no key there.
    pub fn read_api_key(&self) -> Result<Option<Secret>, KeyError> {
        let upstream = || self.name.clone();
        let (text, place) = if let Some(variable) = &self.api_key_env {
            let text = variable_value(variable).filter(|value| !value.is_empty());
            (
                text.ok_or_else(|| KeyError::Unset { upstream: upstream(), variable: variable.clone() })?,
                variable.clone(),
            )
        } else if let Some(path) = &self.api_key_file {
            let unreadable = |source| KeyError::File { upstream: upstream(), path: path.clone(), source };
            (fs::read_to_string(path).map_err(unreadable)?, path.display().to_string())
        } else {
            return Ok(None);
        };
        let key = text.trim();
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Invalid { upstream: upstream(), place });
        }
        Ok(Some(Secret::new(key.to_owned())))
    }
}

#[expect(clippy::disallowed_methods, reason = "the configuration is the one reader of the environment")]
fn variable_value(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
