//! Real NATS servers for tests, started from the configurations that are shipped in `deploy/nats`, so that those are
//! what is tested: one server, a cluster, a pair of regions.
//!
//! Invariants: every server has ports, a directory and a log of its own on the loopback interface, keeps the first two
//! over a restart, and ends with the value that stands for it, also when that was stopped by a signal. The start
//! returns when the servers answer and JetStream is ready.
//!
//! Deliberately absent: a client. The binary is brought by `cargo xtask setup`. A test process that is killed leaves
//! its servers running, as nobody drops them.

mod cluster;
mod error;
mod monitor;
mod ports;
mod probe;
mod regions;
mod server;

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub use cluster::NatsCluster;
pub use error::Error;
pub use regions::NatsRegions;
pub use server::NatsServer;

/// Freehold's user in the shipped configurations.
pub const USER: &str = "freehold";
/// Its password in tests.
pub const PASSWORD: &str = "freehold-in-tests";

/// Longest wait for a start, a restart, an election.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A start is done again with other ports when a process that knows nothing of our reservations took one.
const STARTS_MAX: usize = 3;
/// How far above the test's binary the target directory is looked for: `target/TRIPLE/PROFILE/deps/TEST`.
const FOLDERS_UP_MAX: usize = 6;

/// Where the shipped configurations are.
#[must_use]
pub fn configurations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nats")
}

/// Finds the server that `cargo xtask setup` links below the target directory this test was built into.
///
/// # Errors
/// `Missing`: it is not there.
pub fn binary() -> Result<PathBuf, Error> {
    let test = std::env::current_exe().map_err(|source| Error::io("find the test's own binary", source))?;
    let place = Path::new("tools").join("nats-server");
    let found = test.ancestors().take(FOLDERS_UP_MAX).map(|folder| folder.join(&place)).find(|path| path.exists());
    found.ok_or(Error::Missing { test })
}

/// Looks again and again until there is something to see.
fn wait<T>(within: Duration, mut look: impl FnMut() -> Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    let started = now();
    loop {
        if let Some(seen) = look()? {
            return Ok(Some(seen));
        }
        if started.elapsed() >= within {
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Starts with fresh ports each time until no other process was in the way.
fn attempt<T>(start: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let mut result = start();
    for _ in 1..STARTS_MAX {
        match &result {
            Err(error) if error.is_port_taken() => result = start(),
            Ok(_) | Err(_) => break,
        }
    }
    result
}

#[expect(clippy::disallowed_methods, reason = "waits of tests for other processes end by the real clock")]
fn now() -> Instant {
    Instant::now()
}
