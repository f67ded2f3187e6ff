//! When to wake which actor. The deadlines themselves are facts in the actors' states; this is only the order in
//! which to look, and is rebuilt from them.
//!
//! Whoever watches sleeps until the first deadline, or until an earlier one comes: without a deadline nothing wakes.

use std::{collections::BTreeSet, time::Duration};

use events_model::{StreamId, TimestampUs};
use parking_lot::{Condvar, Mutex};

use crate::{clock::Clock, limits::LOOK_EVERY_MAX};

/// Streams by the time of their next deadline.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    order: Mutex<Order>,
    /// The first deadline has become an earlier one, or it is over.
    sooner: Condvar,
}

#[derive(Debug, Default)]
struct Order {
    by_time: BTreeSet<(TimestampUs, StreamId)>,
    closed: bool,
}

impl Order {
    fn first(&self) -> Option<TimestampUs> {
        self.by_time.first().map(|(time, _)| *time)
    }

    fn take_due(&mut self, now: TimestampUs) -> Vec<StreamId> {
        let mut due = Vec::new();
        while self.first().is_some_and(|time| time <= now) {
            due.extend(self.by_time.pop_first().map(|(_, stream)| stream));
        }
        due
    }
}

impl Deadlines {
    /// Replaces a stream's time; `None` = none.
    pub(crate) fn replace(&self, stream: &StreamId, old: Option<TimestampUs>, new: Option<TimestampUs>) {
        if old == new {
            return;
        }
        let mut order = self.order.lock();
        if let Some(old) = old {
            order.by_time.remove(&(old, stream.clone()));
        }
        if let Some(new) = new {
            let is_sooner = order.first().is_none_or(|first| new < first);
            order.by_time.insert((new, stream.clone()));
            if is_sooner {
                self.sooner.notify_all();
            }
        }
    }

    /// Ends every wait.
    pub(crate) fn close(&self) {
        self.order.lock().closed = true;
        self.sooner.notify_all();
    }

    /// Waits for streams whose time has come and takes them out; `None` = closed. Blocks.
    ///
    /// A wait is never longer than `LOOK_EVERY_MAX`, because a clock may be set, and a test's moves as it likes.
    pub(crate) fn wait_due(&self, clock: &dyn Clock) -> Option<Vec<StreamId>> {
        let mut order = self.order.lock();
        while !order.closed {
            let Some(first) = order.first() else {
                self.sooner.wait(&mut order);
                continue;
            };
            let now = clock.now();
            let due = order.take_due(now);
            if !due.is_empty() {
                return Some(due);
            }
            self.sooner.wait_for(&mut order, Duration::from_micros(first.since(now).0).min(LOOK_EVERY_MAX));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Stands still at what was set last and counts how often it is asked.
    #[derive(Debug, Default)]
    struct Set {
        at: AtomicU64,
        asked: AtomicU64,
    }

    impl Clock for Set {
        fn now(&self) -> TimestampUs {
            self.asked.fetch_add(1, Ordering::SeqCst);
            TimestampUs(self.at.load(Ordering::SeqCst))
        }

        fn observe(&self, _seen: TimestampUs) {}
    }

    fn stream(name: &str) -> StreamId {
        StreamId::new(name).unwrap()
    }

    /// A watch of its own thread: what it takes, and its end.
    fn watch(deadlines: &Arc<Deadlines>, clock: &Arc<Set>) -> mpsc::Receiver<Option<Vec<StreamId>>> {
        let (tell, told) = mpsc::channel();
        let (deadlines, clock) = (Arc::clone(deadlines), Arc::clone(clock));
        thread::spawn(move || {
            while let Some(due) = deadlines.wait_due(&*clock) {
                tell.send(Some(due)).unwrap();
            }
            tell.send(None).unwrap();
        });
        told
    }

    #[test]
    fn an_earlier_deadline_ends_the_wait_for_a_later_one_and_closing_ends_all() {
        let (deadlines, clock) = (Arc::new(Deadlines::default()), Arc::new(Set::default()));
        let told = watch(&deadlines, &clock);
        deadlines.replace(&stream("tenant/late"), None, Some(TimestampUs(u64::MAX)));
        deadlines.replace(&stream("tenant/due"), None, Some(TimestampUs(0)));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(vec![stream("tenant/due")]));
        deadlines.close();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
    }

    #[test]
    fn a_clock_that_is_moved_is_noticed() {
        let (deadlines, clock) = (Arc::new(Deadlines::default()), Arc::new(Set::default()));
        let told = watch(&deadlines, &clock);
        deadlines.replace(&stream("tenant/acme"), None, Some(TimestampUs(3_600_000_000)));
        clock.at.store(3_600_000_000, Ordering::SeqCst);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(vec![stream("tenant/acme")]));
        deadlines.close();
    }

    #[test]
    fn without_a_deadline_nobody_looks_at_the_clock() {
        let (deadlines, clock) = (Arc::new(Deadlines::default()), Arc::new(Set::default()));
        let told = watch(&deadlines, &clock);
        let far = Some(TimestampUs(u64::MAX));
        deadlines.replace(&stream("tenant/acme"), None, far);
        deadlines.replace(&stream("tenant/acme"), far, None);
        deadlines.close();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
        // Once at most, for the deadline that came and went.
        assert!(clock.asked.load(Ordering::SeqCst) <= 1);
    }
}
