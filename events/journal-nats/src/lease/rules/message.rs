//! What goes into the rules and what comes out.

use super::super::{
    record::{Incarnation, Key, NodeRecord, ShardRecord},
    table::Nanos,
};

/// What a node is and how it behaves.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) node: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) started_at_us: u64,
    pub(crate) shards: u32,
    pub(crate) ttl: Nanos,
    pub(crate) poll_every: Nanos,
}

/// Why a write is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Takes or renews this node's lease.
    Lease { sent_at: Nanos },
    /// Ends the lease of a node that was silent for too long.
    Bury { node: String },
    /// Takes a shard.
    Take { shard: u32 },
    /// Gives a shard back.
    Release { shard: u32 },
}

/// A value on its way to the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Node(NodeRecord),
    Shard(ShardRecord),
}

/// A write that succeeds only if the key's last revision is the expected one (0: there is none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) purpose: Purpose,
    pub(crate) key: Key,
    pub(crate) expected: u64,
    pub(crate) value: Value,
}

/// Why a write or read was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Certainly not: the key has another revision.
    Revision,
    /// Perhaps: nobody answered, or not in time.
    Unknown,
}

/// One message of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    pub(crate) value: Option<Value>,
}

/// What happens to a node.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Time has passed.
    Tick,
    /// Another node says that something changed.
    Hint,
    /// The next message behind the asked position; none if it is the end.
    Polled(Result<Option<Found>, Failure>),
    /// What became of a write: its revision.
    Wrote(Write, Result<u64, Failure>),
    /// Nobody decides for a lost shard any more.
    Acknowledged { shard: u32 },
    /// Everything shall be handed over.
    Drain,
    /// Shards shall be taken again.
    Resume,
    /// Everything shall be handed over, and the lease ended.
    Leave,
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Reads the next message behind a position, from the leader.
    Poll { after: u64 },
    /// Writes.
    Write(Write),
    /// Tells the other nodes to look.
    Hint,
    /// A shard is this node's.
    Taken { shard: u32, epoch: u64 },
    /// A shard is not this node's any more; answered by `Acknowledged`.
    Lost { shard: u32, epoch: u64 },
}

/// How it stands with a node's own lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has none yet, or lost it and tries again.
    Waiting,
    /// It has one.
    Held,
    /// A live process has the same name.
    NameTaken { address: String },
    /// There are too many nodes.
    TooManyNodes { nodes: usize },
    /// It left.
    Left,
}
