//! When to wake which actor. The deadlines themselves are facts in the actors' states; this is only the order in
//! which to look, and is rebuilt from them.

use std::collections::BTreeSet;

use events_model::{StreamId, TimestampUs};
use parking_lot::Mutex;

/// Streams by the time of their next deadline.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    by_time: Mutex<BTreeSet<(TimestampUs, StreamId)>>,
}

impl Deadlines {
    /// Replaces a stream's time; `None` = none.
    pub(crate) fn replace(&self, stream: &StreamId, old: Option<TimestampUs>, new: Option<TimestampUs>) {
        if old == new {
            return;
        }
        let mut by_time = self.by_time.lock();
        if let Some(old) = old {
            by_time.remove(&(old, stream.clone()));
        }
        if let Some(new) = new {
            by_time.insert((new, stream.clone()));
        }
    }

    /// Takes out the streams whose time has come.
    pub(crate) fn take_due(&self, now: TimestampUs) -> Vec<StreamId> {
        let mut by_time = self.by_time.lock();
        let mut due = Vec::new();
        while by_time.first().is_some_and(|(time, _)| *time <= now) {
            due.extend(by_time.pop_first().map(|(_, stream)| stream));
        }
        due
    }
}
