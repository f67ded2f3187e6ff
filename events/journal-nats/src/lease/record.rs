//! What lies in the bucket: one JSON document a key, so that an operator can read it with `nats kv get`.
//!
//! Keys: `meta` (what all nodes must agree on), `node.<name>`, `shard.<number>`. Unknown fields are ignored, so that
//! nodes of two versions can work side by side.

use serde::{Deserialize, Serialize};

/// The layout of the bucket.
pub(crate) const FORMAT: u32 = 1;
pub(crate) const META_KEY: &str = "meta";
const NODE_PREFIX: &str = "node.";
const SHARD_PREFIX: &str = "shard.";

/// One run of a node's process: random, so that a restart is told from the process before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Incarnation(pub u128);

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> Self {
        incarnation.to_string()
    }
}

impl TryFrom<String> for Incarnation {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// What all nodes of a region must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) format: u32,
    pub(crate) region: String,
    pub(crate) shards: u32,
    pub(crate) ttl_ms: u64,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It takes part.
    Live,
    /// It hands its shards over.
    Draining,
    /// It left and owns nothing.
    Left,
    /// It did not renew its lease, and another node wrote so. What it owned can be taken.
    Expired,
}

impl NodeState {
    /// Whether its lease has ended.
    pub const fn is_gone(self) -> bool {
        match self {
            Self::Live | Self::Draining => false,
            Self::Left | Self::Expired => true,
        }
    }
}

/// A node's lease. It is the same lease while incarnation and term are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) incarnation: Incarnation,
    /// Counts the leases of one incarnation: a lease that ended never comes back.
    pub(crate) term: u64,
    pub(crate) state: NodeState,
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) started_at_us: u64,
}

/// The lease under which a shard was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnerRecord {
    pub(crate) node: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) term: u64,
}

/// Who owns a shard; nobody after it was released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    /// Counts the times that the shard was taken.
    pub(crate) epoch: u64,
    pub(crate) owner: Option<OwnerRecord>,
}

/// What a key is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Meta,
    Node(String),
    Shard(u32),
    /// Written by a newer version, or by hand.
    Other,
}

impl Key {
    pub(crate) fn parse(key: &str) -> Self {
        if key == META_KEY {
            return Self::Meta;
        }
        if let Some(name) = key.strip_prefix(NODE_PREFIX) {
            return Self::Node(name.to_owned());
        }
        key.strip_prefix(SHARD_PREFIX).and_then(|number| number.parse().ok()).map_or(Self::Other, Self::Shard)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Meta => f.write_str(META_KEY),
            Self::Node(name) => write!(f, "{NODE_PREFIX}{name}"),
            Self::Shard(number) => write!(f, "{SHARD_PREFIX}{number}"),
            Self::Other => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_what_other_versions_read() {
        let owner = OwnerRecord { node: "n1".to_owned(), incarnation: Incarnation(0xabc), term: 2 };
        let taken = ShardRecord { epoch: 7, owner: Some(owner) };
        let text = r#"{"epoch":7,"owner":{"node":"n1","incarnation":"00000000000000000000000000000abc","term":2}}"#;
        assert_eq!(serde_json::to_string(&taken).unwrap(), text);
        assert_eq!(serde_json::from_str::<ShardRecord>(text).unwrap(), taken);
        let node = NodeRecord {
            incarnation: Incarnation(1),
            term: 1,
            state: NodeState::Draining,
            address: "10.0.0.1:7600".to_owned(),
            version: "0.3.0".to_owned(),
            started_at_us: 5,
        };
        let text = r#"{"incarnation":"00000000000000000000000000000001","term":1,"state":"draining","address":"10.0.0.1:7600","version":"0.3.0","started_at_us":5}"#;
        assert_eq!(serde_json::to_string(&node).unwrap(), text);
        let newer = text.replace('}', r#","color":"red"}"#);
        assert_eq!(serde_json::from_str::<NodeRecord>(&newer).unwrap(), node);
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for key in [Key::Meta, Key::Node("eu-1".to_owned()), Key::Shard(255)] {
            assert_eq!(Key::parse(&key.to_string()), key);
        }
        assert_eq!(Key::parse("shard.x"), Key::Other);
    }
}
