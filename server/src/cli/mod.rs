//! The command line: what each command reads, prints and answers as its exit code.
//!
//! Exit codes: 0 fine, 1 failed or found a problem, 2 misuse. Results go to standard output, everything else to
//! standard error; `--json` prints JSON instead of text for people. Commands that change something talk to a server;
//! commands that look may read the data directory themselves.

pub(crate) mod arguments;
mod catch_up;
pub(crate) mod client;
pub(crate) mod clock;
mod cluster;
mod dev;
mod dlq;
mod doctor;
mod event_arguments;
mod events;
pub(crate) mod failure;
mod group;
pub(crate) mod output;
mod past;
pub(crate) mod request;
mod run;
mod saga;
mod serve;
pub(crate) mod show;
mod signal;
mod tenant;
mod timeline;

mod log;

pub use run::run;
