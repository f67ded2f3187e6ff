//! Writes snapshots on a thread of its own, so that no actor waits for a disk.
//!
//! Invariants: what waits is bounded; snapshots are written in the order in which they came, so that an older one never
//! replaces a newer; one that is lost (no room, a disk that fails, a process that ends) costs only the time to fold
//! its events again.

use std::{sync::Arc, thread};

use events_journal::SnapshotStore;
use events_model::{StreamId, Version};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::limits::SNAPSHOT_QUEUE_LEN_MAX;

/// A state to be written.
pub(crate) struct Snapshot {
    pub(crate) stream: StreamId,
    pub(crate) version: Version,
    pub(crate) bytes: Vec<u8>,
}

enum Job {
    Save(Snapshot),
    /// Says when all before it is written.
    Flush(oneshot::Sender<()>),
}

/// A place in the queue, for one snapshot.
pub(crate) struct Place(mpsc::OwnedPermit<Job>);

/// The way to the thread, which ends with the last of these. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Saver {
    queue: mpsc::Sender<Job>,
}

impl std::fmt::Debug for Saver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saver").field("free", &self.queue.capacity()).finish()
    }
}

impl Place {
    /// Has a snapshot written.
    pub(crate) fn save(self, snapshot: Snapshot) {
        self.0.send(Job::Save(snapshot));
    }
}

impl Saver {
    /// Starts the thread.
    pub(crate) fn start(store: Arc<dyn SnapshotStore>) -> Self {
        let (queue, mut jobs) = mpsc::channel(SNAPSHOT_QUEUE_LEN_MAX);
        let save = move || {
            while let Some(job) = jobs.blocking_recv() {
                match job {
                    Job::Save(Snapshot { stream, version, bytes }) => {
                        if let Err(error) = store.save_snapshot(&stream, version, &bytes) {
                            warn!(%stream, %error, "snapshot not saved");
                        }
                    }
                    Job::Flush(done) => {
                        // Whoever waited may have gone.
                        let _gone = done.send(());
                    }
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("snapshots".to_owned()).spawn(save) {
            warn!(%error, "snapshots' thread not started");
        }
        Self { queue }
    }

    /// Takes a place, if there is one: before a state is encoded, so that a busy disk costs the actors nothing.
    pub(crate) fn place(&self) -> Option<Place> {
        self.queue.clone().try_reserve_owned().ok().map(Place)
    }

    /// Has an actor's last snapshot written; waits for room.
    pub(crate) async fn hand_over(&self, snapshot: Snapshot) {
        // Without the thread there is nothing to wait for.
        let _gone = self.queue.send(Job::Save(snapshot)).await;
    }

    /// Waits until all that came before is written.
    pub(crate) async fn flush(&self) {
        let (done, end) = oneshot::channel();
        if self.queue.send(Job::Flush(done)).await.is_ok() {
            // A thread that panicked writes nothing more.
            let _gone = end.await;
        }
    }
}
