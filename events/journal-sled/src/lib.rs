//! The local store: append-only segments hold the commits, sled is the derived index.
//!
//! Invariants:
//! - the segments alone are the truth; one `fdatasync` a group decides durability; a commit is visible to reads and
//!   heads only after it;
//! - everything under `index/` can be deleted at any time: it is rebuilt from the segments, and no failure of it can
//!   lose, block or change a fact;
//! - damage is never served and never skipped: a torn tail (no sign that anybody was told of it) is cut, all else is an error
//!   that names file and byte.
//!
//! Layout of a data directory: `log/<first position>.seg`, `index/` (sled: index runs, snapshots, checkpoints), `lock`.
//!
//! Three threads serve an open store: the writer (groups and barriers), the filler (keeps zeroed room ahead of the
//! writer) and the indexer (stores and merges index runs). It deliberately knows no async runtime, no configuration
//! and no replication.

mod error;
mod format;
mod hash;
mod limit;

mod filler;
mod scan;
mod segment;

mod index;
mod memtable;
mod merge;
mod run;
mod run_store;

mod clock;
mod group;
mod indexer;
mod log;
mod queue;
mod read;
mod recovery;
mod replica;
mod snapshot;
mod store;
mod verify;
mod writer;

pub use error::OpenError;
pub use limit::Options;
pub use store::{Cut, LocalStore, Opening, Stat};
pub use verify::{Verified, verify};
