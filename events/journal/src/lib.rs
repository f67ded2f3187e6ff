//! The ports of the log: what every engine promises, an in-memory engine, and the contract suite that holds each
//! engine to its promises. Nothing above this crate can tell the engines apart.

pub mod contract;
pub mod entry;
pub mod error;
pub mod log;
pub mod memory;
pub mod replica;
pub mod snapshot;

pub use entry::Entry;
pub use error::{AppendError, Outcome, ReadError, Refusal};
pub use log::{Appended, Direction, EventLog, Filter, Health, Page, Receipt, Recorded, Subscription};
pub use memory::MemoryLog;
pub use replica::Replica;
pub use snapshot::{Blob, SnapshotStore};
