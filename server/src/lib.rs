//! The one binary: configuration, HTTP, gRPC, command line, wiring.

pub mod auth;
mod bench;
pub mod cli;
pub mod cluster;
pub mod config;
mod events;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod model_path;
pub mod platform;
pub mod readiness;
mod recovery;
pub mod shutdown;
pub mod simulate;
pub mod telemetry;
