//! What a group's task waits for, where there may be nothing to wait for.

use std::{future::pending, pin::Pin, time::Duration};

use events_model::{TimestampUs, Version};
use tokio::time::{Sleep, sleep};

use super::{Failure, record::Record};

/// What became of a record: at which version of the group's stream it ends, and how many facts it has.
pub(super) type Recorded = (Record, Result<(Version, u64), Failure>);
/// A record on its way.
pub(super) type Recording = Pin<Box<dyn Future<Output = Recorded> + Send>>;

/// Waits for a record that is on its way; for ever, if there is none.
pub(super) async fn recorded(recording: &mut Option<Recording>) -> Recorded {
    let Some(running) = recording else { return pending().await };
    let done = running.await;
    *recording = None;
    done
}

/// Waits for the end of a pause; for ever, if there is none.
pub(super) async fn over(pause: &mut Option<Pin<Box<Sleep>>>) {
    let Some(running) = pause else { return pending().await };
    running.await;
    *pause = None;
}

/// Waits until a time; for ever, if there is none.
pub(super) async fn until(at: Option<TimestampUs>, now: TimestampUs) {
    match at {
        Some(at) => sleep(Duration::from_micros(at.since(now).0)).await,
        None => pending().await,
    }
}
