//! Read models: pure folds over the log, and the runner that keeps each one at the head of the log and saves its
//! checkpoints.
//!
//! Invariants: a read model is a function of the log up to its position, so it can be deleted and rebuilt; state and
//! position change together, so each event counts exactly once. What is not here: SQL, and anything that appends.

pub mod billing;
mod checkpoint;
pub mod groups;
mod kind;
pub mod parked;
pub mod projection;
mod rebuild;
pub mod runner;
pub mod tenants;

pub use parked::{Parked, ParkedEvent};
pub use projection::{ApplyError, Fold, Projection};
pub use rebuild::fold_to;
pub use runner::{Options, Progress, Reader, RunError, Runner, WaitError};
