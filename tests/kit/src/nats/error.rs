//! What goes wrong with servers of tests.

use std::{io, path::PathBuf, process::ExitStatus};

use thiserror::Error;

/// What the server prints when another process has its port.
const PORT_TAKEN: &str = "address already in use";

/// Why a server does not do what a test wants.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no binary.
    #[error("no tools/nats-server in the target directory of {}: run `cargo xtask setup`", test.display())]
    Missing {
        /// The binary that looked.
        test: PathBuf,
    },
    /// The operating system refused.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The server ended instead of starting.
    #[error("nats-server {name} ended with {status}; the end of its log:\n{log}")]
    Ended {
        /// Which.
        name: String,
        /// How.
        status: ExitStatus,
        /// Its last lines.
        log: String,
    },
    /// It runs and is not what was waited for.
    #[error("nats-server {name} was not {awaited} within {seconds} s; the end of its log:\n{log}")]
    TooLate {
        /// Which.
        name: String,
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        seconds: u64,
        /// Its last lines.
        log: String,
    },
    /// Nothing runs that could be signalled.
    #[error("nats-server {name} is not running")]
    NotRunning {
        /// Which.
        name: String,
    },
    /// All ports of the range are in use.
    #[error("no free port from {first} to {last}")]
    NoPort {
        /// Of the range.
        first: u16,
        /// Of the range.
        last: u16,
    },
    /// The shipped configuration names three servers as seeds.
    #[error("a cluster of {nodes} servers; from 3 to 5 are possible")]
    Size {
        /// Asked for.
        nodes: usize,
    },
}

impl Error {
    pub(super) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    pub(super) fn is_port_taken(&self) -> bool {
        matches!(self, Self::Ended { log, .. } if log.contains(PORT_TAKEN))
    }
}
