//! Why a process cannot be a node, with the number of its page in `docs/errors`.

use std::time::Duration;

use events_journal_nats::{ApiError, Difference, OpenError, lease};

use super::clock::SKEW_MAX;
use crate::{
    auth::NoEntropy,
    config::{self, KeyError},
};

/// Why a process cannot be a node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be opened on the servers.
    #[error("open the log on NATS")]
    Log(#[source] OpenError),
    /// No lease can be taken.
    #[error("take part in the region's leases")]
    Lease(#[source] lease::Error),
    /// The password cannot be read.
    #[error("read the password of NATS")]
    Password(#[source] KeyError),
    /// The cluster's secret cannot be read.
    #[error("read the secret of the cluster")]
    ClusterSecret(#[source] KeyError),
    /// What the nodes share is encrypted under another secret, or this node has none.
    #[error("the {0} that the nodes share is encrypted under a secret that this node does not have")]
    OtherSecret(&'static str),
    /// The system gives no randomness.
    #[error("encrypt what the nodes share")]
    NoEntropy(#[source] NoEntropy),
    /// Nothing can be listened to.
    #[error("listen to other nodes")]
    Listen(#[source] ApiError),
    /// This machine's clock and the servers' differ.
    #[error("this machine's clock is {} s {direction} that of the NATS servers ({theirs}); {} s are allowed",
        by.as_secs(), SKEW_MAX.as_secs())]
    ClockSkew {
        /// How much, at least.
        by: Duration,
        /// `ahead of` or `behind`.
        direction: &'static str,
        /// What the servers say.
        theirs: String,
    },
    /// A secret that the first node shared is not one.
    #[error("the {0} that the nodes share is not readable")]
    Secret(&'static str),
}

impl Error {
    /// The number of its page in `docs/errors`, if it has one.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Password(_) | Self::ClusterSecret(_) => Some(KeyError::CODE),
            Self::OtherSecret(_) => Some("E0019"),
            Self::Log(error) => log_code(error),
            Self::Lease(error) => lease_code(error),
            Self::ClockSkew { .. } => Some("E0021"),
            Self::Listen(_) | Self::Secret(_) | Self::NoEntropy(_) => None,
        }
    }
}

/// Fields in which a region's stream or bucket differs when the node's settings are wrong.
const SETTINGS: [&str; 2] = ["freehold_shards", "num_replicas"];

/// Whether a stream is this region's, made with other settings than this node's. One without a number of shards is
/// somebody else's.
pub(crate) fn is_other_settings(differences: &[Difference]) -> bool {
    let is_setting = |one: &Difference| SETTINGS.contains(&one.field) && one.actual.parse::<u32>().is_ok();
    !differences.is_empty() && differences.iter().all(is_setting)
}

fn log_code(error: &OpenError) -> Option<&'static str> {
    match error {
        OpenError::ForeignStream { differences, .. } if is_other_settings(differences) => Some("E0019"),
        OpenError::Unreachable { .. } | OpenError::Api { .. } => Some("E0013"),
        OpenError::Credentials { .. } | OpenError::CredentialsFile { .. } => Some("E0014"),
        OpenError::ServerTooOld { .. } => Some("E0015"),
        OpenError::NoJetStream { .. } => Some("E0016"),
        OpenError::PayloadTooSmall { .. } => Some("E0017"),
        OpenError::ForeignStream { .. } | OpenError::TooFewServers { .. } => Some("E0018"),
        OpenError::Replica { .. } => Some("E0020"),
        OpenError::Option { .. } => Some(config::Error::CODE),
    }
}

fn lease_code(error: &lease::Error) -> Option<&'static str> {
    match error {
        lease::Error::ForeignBucket { differences, .. } if is_other_settings(differences) => Some("E0019"),
        lease::Error::Setting { .. } => Some(config::Error::CODE),
        lease::Error::ForeignBucket { .. } => Some("E0018"),
        lease::Error::Differs { .. } | lease::Error::NameTaken { .. } | lease::Error::TooManyNodes { .. } => {
            Some("E0019")
        }
        lease::Error::Unavailable { .. } | lease::Error::Api { .. } => Some("E0013"),
        lease::Error::Unreadable { .. } | lease::Error::Closed => None,
    }
}
