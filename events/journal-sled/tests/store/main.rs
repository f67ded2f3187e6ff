//! The local store as its user sees it: one binary, so that what the tests share is compiled once.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod beside;
mod contract;
mod kit;
mod property;
mod recovery;
mod snapshots;
