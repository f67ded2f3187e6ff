//! Runs the pure deciders as actors over the log: pipelined group commit, bounded mailboxes, deadlines as facts,
//! passivation, snapshots, panic isolation. The only crate that knows actix.
//!
//! One actor a stream. An actor decides command after command against its newest state, hands the commits to the
//! log without waiting, and its acknowledger answers each caller when its commit is durable; so a hot actor is
//! limited by CPU, not by the latency of a sync.

mod acknowledge;
pub mod ask;
pub mod clock;
mod deadlines;
pub mod errand;
pub mod limits;
mod loading;
mod messaging;
mod names;
pub mod remote;
mod runner;
mod saver;
pub mod shell;

pub use ask::{Ask, Decided, Rejected, Unavailable};
pub use clock::{Clock, Ids, LiveClock, LiveIds};
pub use limits::Settings;
pub use remote::Placement;
pub use shell::{Handle, Shell, Stats};
