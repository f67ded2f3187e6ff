//! The JetStream engine: one stream a region orders and replicates groups of commits, every node keeps a replica.
//!
//! Invariants:
//! - JetStream decides the order and what is durable; a node's replica is a copy of it, byte for byte, position for
//!   position, and everything is read from there;
//! - the owner of a shard publishes one group at a time and expects the sequence of the one before: of two owners, one
//!   is refused;
//! - an append is acknowledged when the stream has its group durably and this node's replica shows it;
//! - no failure is guessed about: what became of a group is read back from the leader.
//!
//! It deliberately knows nothing of leases (who may take which shard), of configuration files and of how a replica
//! stores commits: the replica is a port object.

mod api;
mod clock;
mod connect;
mod engine;
mod error;
mod feed;
mod follow;
mod forming;
mod group;
mod probe;
mod publish;
mod requests;
mod resume;
mod shard;
mod stream;

pub mod bench;
pub mod lease;
pub mod limit;
pub mod subject;

pub use connect::{Credentials, Options, Ownership};
pub use engine::{JetStreamLog, Progress};
pub use error::{ApiError, Difference, FollowError, OpenError, TakeError};
pub use probe::{Found, Probe, Publish};
pub use requests::{Inbox, Incoming, NoReply, Requests};
pub use shard::Phase;
