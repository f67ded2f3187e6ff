//! Tests of sagas: their steps, limits and definitions, laws that hold for all of them, and the examples.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

mod definitions;
mod examples;
mod forms;
mod limits;
mod properties;
mod requests;
mod steps;
mod story;
