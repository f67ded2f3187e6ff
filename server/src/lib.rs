//! The one binary: configuration, HTTP, gRPC, command line, wiring.

pub mod simulate;
