//! The simulated upstream through real HTTP: what it answers, what it bills, and that a seed repeats a run.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod answers;
mod client;
mod faults;
