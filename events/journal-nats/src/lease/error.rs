//! What can go wrong with leases.

use std::time::Duration;

use crate::error::{ApiError, Difference};

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of its range.
    #[error("{setting} is {value}, {allowed} is allowed")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The region was set up with another value, and all its nodes must have the same.
    #[error("{setting} of this node is {asked}, the region has {stored}")]
    Differs {
        /// Which setting.
        setting: &'static str,
        /// What this node has.
        asked: String,
        /// What the region has.
        stored: String,
    },
    /// A bucket of that name has another configuration.
    #[error("bucket {bucket} is not one of Freehold's: {}", list(differences))]
    ForeignBucket {
        /// The bucket.
        bucket: String,
        /// Each field that differs.
        differences: Vec<Difference>,
    },
    /// What lies under a key cannot be read.
    #[error("key {key} of bucket {bucket}: {reason}")]
    Unreadable {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// Another live process has this node's name.
    #[error("a node named {node} is alive at {address}")]
    NameTaken {
        /// The name.
        node: String,
        /// What the other one says of where it is.
        address: String,
    },
    /// The region has as many nodes as it can have.
    #[error("the region has {nodes} nodes already")]
    TooManyNodes {
        /// How many.
        nodes: usize,
    },
    /// The servers did not answer for too long.
    #[error("no lease after {} s", waited.as_secs())]
    Unavailable {
        /// How long it was tried.
        waited: Duration,
    },
    /// The servers do not answer as they should.
    #[error("ask the NATS servers for bucket {bucket}")]
    Api {
        /// The bucket.
        bucket: String,
        /// Why.
        #[source]
        source: ApiError,
    },
    /// The leases were closed.
    #[error("the leases are closed")]
    Closed,
}

impl Error {
    /// What an operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "correct the setting",
            Self::Differs { .. } => "give every node of the region the same value",
            Self::ForeignBucket { .. } => {
                "choose another region name, or correct the bucket's stream with the nats tool if it is Freehold's"
            }
            Self::Unreadable { .. } => "a newer version wrote it, or another program: look at it with `nats kv get`",
            Self::NameTaken { .. } => "give this node another name, or stop the other process",
            Self::TooManyNodes { .. } => "stop a node before another is started",
            Self::Unavailable { .. } | Self::Api { .. } => {
                "look at the servers' logs: the bucket may have no leader or the user no permission"
            }
            Self::Closed => "start the node again",
        }
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
