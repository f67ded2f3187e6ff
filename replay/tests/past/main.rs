//! Goal: the past is shown as it was, from the log alone. Method: a small tenant actor decides commands and appends
//! the commits with their context to the memory log; replay looks at them.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod desk;
mod episode;
mod list;
mod scan;
mod state_at;
mod verify;
