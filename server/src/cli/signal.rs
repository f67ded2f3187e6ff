//! Ctrl-C and SIGTERM: the first asks a server to drain, the second ends the process at once.

use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    failure::{Failure, Problem},
    output::note,
};

/// Exit code of a process that was told twice.
const EXIT_INTERRUPTED: i32 = 130;

/// Both signals.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals from here on.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn install() -> Result<Self, Failure> {
        let take = |kind| signal(kind).map_err(|error| Problem::new("take signals").because(&error));
        Ok(Self { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
    }

    /// Waits for one of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for `drain` to finish, unless told a second time.
    pub(super) async fn or_at_once<T>(&mut self, drain: impl Future<Output = T>) -> T {
        let mut drain = pin!(drain);
        tokio::select! {
            done = &mut drain => done,
            () = self.next() => end_at_once(),
        }
    }
}

#[expect(clippy::exit, reason = "whoever asks twice does not want to wait for anything")]
fn end_at_once() -> ! {
    note("ended at once; what was in flight settles at the next start");
    std::process::exit(EXIT_INTERRUPTED)
}
