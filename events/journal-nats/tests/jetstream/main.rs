//! The engine on real NATS servers: the contract on one server and on three, two owners, servers that are killed,
//! followers that join, lag or do not fit, and everything that is refused when the engine is opened.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and print what they measured")]

mod contract;
mod fencing;
mod follower;
mod kit;
mod outage;
mod refusals;
