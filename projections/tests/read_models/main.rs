//! Goal: read models are exact, however the log was batched, whenever the runner stopped, whatever lies in it.
//! Method: commits with known events on the memory log, folded in different ways, compared with plain sums.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod billing;
mod book;
mod groups;
mod parked;
mod runner;
mod tenants;
