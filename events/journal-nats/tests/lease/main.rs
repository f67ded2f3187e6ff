//! Leases and shard owners on real NATS servers.
//!
//! Method: every node runs on a thread and a runtime of its own, with its own connection, so that it can be killed (the
//! runtime is dropped) and stopped (its only thread is blocked, as by a signal) while the others go on. A sampler asks
//! all nodes all the time, also the killed ones, whether a shard is theirs, and fails if two say so at one moment.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait by the real clock"
)]

mod cases;
mod node;
mod random;
mod sampler;
