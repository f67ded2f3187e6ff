//! What the leases say of each shard, brought to the engine in the order in which they say it.
//!
//! Invariants: of one shard, one thing is done at a time, the earlier change first; a taking that is overtaken by the next
//! change is given up; shards do not wait for each other, for one may take as long as a log without a leader. It
//! deliberately does not decide what a shard is taken for.

use std::{collections::HashMap, sync::Arc};

use events_journal_nats::lease::{Change, Changes};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{Cluster, NOT_TAKEN};

/// Changes of one shard that wait: a shard is not taken again before its loss was acknowledged, so there are two at most.
const STEPS_MAX: usize = 2;

/// A change of one shard.
#[derive(Debug)]
enum Step<H> {
    /// It is this node's in this epoch.
    Take(u64),
    /// It was this node's in this epoch; the value is dropped when nothing is decided for it any more.
    Release(u64, H),
}

/// What is done with shards.
trait Shards: Send + Sync + 'static {
    /// Decides for the shard; returns when there is nothing more to do for it. May be dropped at any time.
    fn take(&self, shard: u32, epoch: u64) -> impl Future<Output = ()> + Send;
    /// Decides nothing for the shard any more.
    fn release(&self, shard: u32, epoch: u64) -> impl Future<Output = ()> + Send;
}

/// One task a shard that has changed.
#[derive(Debug)]
struct Keeper<S, H> {
    shards: Arc<S>,
    tasks: TaskTracker,
    queues: HashMap<u32, Sender<Step<H>>>,
}

impl<S: Shards, H: Send + 'static> Keeper<S, H> {
    fn new(shards: Arc<S>, tasks: TaskTracker) -> Self {
        Self { shards, tasks, queues: HashMap::new() }
    }

    /// Behind what came before it for the shard.
    async fn step(&mut self, shard: u32, step: Step<H>) {
        let queue = self.queues.entry(shard).or_insert_with(|| {
            let (queue, steps) = mpsc::channel(STEPS_MAX);
            self.tasks.spawn(follow(Arc::clone(&self.shards), shard, steps));
            queue
        });
        // The task ends after its queue; if it panicked, the lease runs out.
        let _gone = queue.send(step).await;
    }
}

async fn follow<S: Shards, H>(shards: Arc<S>, shard: u32, mut steps: Receiver<Step<H>>) {
    let mut next = steps.recv().await;
    while let Some(step) = next {
        next = match step {
            Step::Take(epoch) => tokio::select! {
                biased;
                step = steps.recv() => step,
                () = shards.take(shard, epoch) => steps.recv().await,
            },
            Step::Release(epoch, handover) => {
                shards.release(shard, epoch).await;
                drop(handover);
                steps.recv().await
            }
        };
    }
}

/// Takes and gives back shards as the leases say.
pub(super) async fn keep(cluster: Arc<Cluster>, mut changes: Changes, told: Sender<()>) {
    let tasks = cluster.tasks.clone();
    let mut keeper = Keeper::new(Arc::new(Kept { cluster, told }), tasks);
    while let Some(change) = changes.next().await {
        match change {
            Change::Taken { shard, epoch } => keeper.step(shard, Step::Take(epoch)).await,
            Change::Lost { shard, epoch, handover } => keeper.step(shard, Step::Release(epoch, handover)).await,
        }
    }
}

/// The shards as `keep` changes them.
struct Kept {
    cluster: Arc<Cluster>,
    told: Sender<()>,
}

impl Shards for Kept {
    async fn take(&self, shard: u32, epoch: u64) {
        self.cluster.stop.run_until_cancelled(self.cluster.take(shard, epoch, &self.told)).await;
    }

    async fn release(&self, shard: u32, epoch: u64) {
        self.cluster.mark(shard, NOT_TAKEN);
        if let Err(error) = self.cluster.log.release(shard).await {
            warn!(shard, epoch, %error, "shard not released");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{Semaphore, watch};

    use super::*;

    /// Notes what is done; nothing ends without leave.
    struct Noted {
        notes: watch::Sender<Vec<String>>,
        leave: Semaphore,
    }

    impl Noted {
        async fn act(&self, what: &str, shard: u32, epoch: u64) {
            self.notes.send_modify(|notes| notes.push(format!("{what} {shard}/{epoch}")));
            self.leave.acquire().await.unwrap().forget();
            self.notes.send_modify(|notes| notes.push(format!("{what} {shard}/{epoch} done")));
        }

        async fn wait(&self, count: usize) -> Vec<String> {
            let mut notes = self.notes.subscribe();
            let enough = notes.wait_for(|notes| notes.len() >= count);
            tokio::time::timeout(Duration::from_secs(30), enough).await.unwrap().unwrap().clone()
        }
    }

    impl Shards for Noted {
        async fn take(&self, shard: u32, epoch: u64) {
            self.act("take", shard, epoch).await;
        }

        async fn release(&self, shard: u32, epoch: u64) {
            self.act("release", shard, epoch).await;
        }
    }

    #[tokio::test]
    async fn a_shard_that_is_lost_and_taken_again_is_released_first_whatever_that_takes() {
        let noted = Arc::new(Noted { notes: watch::Sender::default(), leave: Semaphore::new(0) });
        let tasks = TaskTracker::new();
        let mut keeper = Keeper::new(Arc::clone(&noted), tasks.clone());
        let (handover, mut acknowledged) = mpsc::channel::<()>(1);
        keeper.step(7, Step::Take(1)).await;
        assert_eq!(noted.wait(1).await, ["take 7/1"]);
        // The taking is given up for what comes next, which nothing overtakes; other shards go on meanwhile.
        keeper.step(7, Step::Release(1, handover)).await;
        assert_eq!(noted.wait(2).await[1..], ["release 7/1"]);
        keeper.step(7, Step::Take(2)).await;
        keeper.step(8, Step::Take(3)).await;
        assert_eq!(noted.wait(3).await[2..], ["take 8/3"]);
        assert!(acknowledged.try_recv().is_err_and(|error| error == mpsc::error::TryRecvError::Empty));
        noted.leave.add_permits(3);
        let notes = noted.wait(7).await;
        let place = |note: &str| notes.iter().position(|one| one == note).unwrap();
        assert!(place("release 7/1 done") < place("take 7/2"), "{notes:?}");
        assert_eq!(acknowledged.recv().await, None);
        drop(keeper);
        tasks.close();
        tokio::time::timeout(Duration::from_secs(30), tasks.wait()).await.unwrap();
    }
}
