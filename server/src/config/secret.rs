//! Secrets, and where the keys of upstreams and the password of NATS are read.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{Cluster, Upstream};

/// Shortest secret of a cluster, bytes.
const CLUSTER_SECRET_BYTES_MIN: usize = 16;
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

/// Why an upstream's key or the password of NATS is not there. Texts never hold it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The environment variable is not set, or empty.
    #[error("the environment variable {variable} that holds the {secret} is not set")]
    Unset {
        /// `key of upstream openai`.
        secret: String,
        /// The variable.
        variable: String,
    },
    /// The file cannot be read.
    #[error("read {}, which holds the {secret}", path.display())]
    File {
        /// `password of NATS`.
        secret: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read cannot be one.
    #[error("the {secret} in {place} is empty, too long, or {not_allowed}")]
    Invalid {
        /// `key of upstream openai`.
        secret: String,
        /// Characters that it must not hold.
        not_allowed: &'static str,
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
        let secret = || format!("key of upstream {}", self.name);
        let (text, place) = if let Some(variable) = &self.api_key_env {
            let text = variable_value(variable).filter(|value| !value.is_empty());
            (text.ok_or_else(|| KeyError::Unset { secret: secret(), variable: variable.clone() })?, variable.clone())
        } else if let Some(path) = &self.api_key_file {
            (read_file(path, secret)?, path.display().to_string())
        } else {
            return Ok(None);
        };
        let key = text.trim();
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let not_allowed = "not visible ASCII";
            return Err(KeyError::Invalid { secret: secret(), not_allowed, place });
        }
        Ok(Some(Secret::new(key.to_owned())))
    }
}

impl Cluster {
    /// Reads the password of NATS; `None` = none is set.
    ///
    /// # Errors
    /// `File`: the named file cannot be read. `Invalid`: what is there cannot be a password.
    pub fn read_password(&self) -> Result<Option<Secret>, KeyError> {
        read("password of NATS", (self.password_file.as_deref(), &self.password_env), 1)
    }

    /// Reads the cluster's secret; `None` = none is set.
    ///
    /// # Errors
    /// `File`: the named file cannot be read. `Invalid`: what is there cannot be one.
    pub fn read_secret(&self) -> Result<Option<Secret>, KeyError> {
        read("secret of the cluster", (self.secret_file.as_deref(), &self.secret_env), CLUSTER_SECRET_BYTES_MIN)
    }
}

/// Reads a secret from a file, or else from a variable that may not be set.
fn read(what: &str, (file, variable): (Option<&Path>, &str), bytes_min: usize) -> Result<Option<Secret>, KeyError> {
    let secret = || what.to_owned();
    let (text, place) = if let Some(path) = file {
        let text = read_file(path, secret)?;
        (text.trim_end_matches(['\r', '\n']).to_owned(), path.display().to_string())
    } else if let Some(text) = variable_value(variable).filter(|value| !value.is_empty()) {
        (text, variable.to_owned())
    } else {
        return Ok(None);
    };
    if !(bytes_min..=KEY_BYTES_MAX).contains(&text.len()) || text.chars().any(char::is_control) {
        let not_allowed = if text.len() < bytes_min { "too short" } else { "has control characters" };
        return Err(KeyError::Invalid { secret: secret(), not_allowed, place });
    }
    Ok(Some(Secret::new(text)))
}

fn read_file(path: &Path, secret: impl FnOnce() -> String) -> Result<String, KeyError> {
    fs::read_to_string(path).map_err(|source| KeyError::File { secret: secret(), path: path.to_owned(), source })
}

#[expect(clippy::disallowed_methods, reason = "the configuration is the one reader of the environment")]
fn variable_value(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
