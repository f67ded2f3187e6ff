//! The whole platform through its real interfaces: HTTP and gRPC over TCP, a real log in a directory, a simulated
//! upstream that keeps its own books.
//!
//! Method: each test has a world of its own; waits are for conditions, with a timeout; what was settled is compared
//! with what the upstream billed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests may panic, and end their tasks with their runtime"
)]

mod bad_input;
mod catch_up;
mod clock;
mod cluster;
mod cluster_doctor;
mod cluster_loss;
mod crowd;
mod events;
mod events_cli;
mod events_cluster;
mod events_groups;
mod events_models;
mod events_parked;
mod events_world;
mod grpc;
mod grpc_input;
mod http;
mod lifecycle;
mod limits;
mod recover;
mod stream;
mod upstream;
mod world;
