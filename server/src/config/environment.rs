//! The process environment, read once.
//!
//! Only here: everything else takes values. Variables that orchestrators set for a service that happens to be named
//! `freehold` (`FREEHOLD_SERVICE_HOST`, `FREEHOLD_PORT_...`) are not ours and are left alone.

use std::collections::BTreeMap;

use super::Secret;

/// What our variables begin with.
const PREFIX: &str = "FREEHOLD_";
/// Beginnings of variables that Kubernetes sets for a service of this name.
const FOREIGN: [&str; 2] = ["FREEHOLD_SERVICE_", "FREEHOLD_PORT"];
/// The configuration file.
pub(super) const CONFIG: &str = "FREEHOLD_CONFIG";
const ADMIN_TOKEN: &str = "FREEHOLD_ADMIN_TOKEN";
const SERVER: &str = "FREEHOLD_SERVER";
/// The password of NATS, unless the configuration names another variable.
pub(super) const NATS_PASSWORD: &str = "FREEHOLD_NATS_PASSWORD";
/// The secret of a cluster, unless the configuration names another variable.
pub(super) const CLUSTER_SECRET: &str = "FREEHOLD_CLUSTER_SECRET";
/// Ours, but not keys of the file.
const SPECIAL: [&str; 5] = [CONFIG, ADMIN_TOKEN, SERVER, NATS_PASSWORD, CLUSTER_SECRET];

/// The variables that begin with `FREEHOLD_`.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    /// Shows names only: a value may be a secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// Reads the process environment; a value that is not UTF-8 is read with replacement characters.
    pub fn read() -> Self {
        Self::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            Some((name, value.to_string_lossy().into_owned()))
        }))
    }

    /// Takes variables from elsewhere.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |name: &str| name.starts_with(PREFIX) && !FOREIGN.iter().any(|foreign| name.starts_with(foreign));
        Self(pairs.into_iter().filter(|(name, _)| ours(name)).collect())
    }

    /// The admin token, if one is set.
    pub fn admin_token(&self) -> Option<Secret> {
        self.get(ADMIN_TOKEN).map(|token| Secret::new(token.to_owned()))
    }

    /// The address of the server that commands go to, if one is set.
    pub fn server(&self) -> Option<&str> {
        self.get(SERVER)
    }

    /// A variable; an empty one counts as not set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The variables that should be keys of the file: name, name without prefix in lower case, value.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, String, &str)> {
        let keys = self.0.iter().filter(|(name, _)| !SPECIAL.contains(&name.as_str()));
        keys.map(|(name, value)| {
            (name.as_str(), name.strip_prefix(PREFIX).unwrap_or_default().to_lowercase(), value.as_str())
        })
    }
}
