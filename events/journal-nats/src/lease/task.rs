//! Runs the rules: gives them time, answers and acknowledgements, and does what they say.

use std::{sync::Arc, time::Duration};

use async_nats::Subscriber;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Change, Handover, MonotonicClock,
    bucket::Bucket,
    rules::{Action, Core, Input, Standing},
    table::Nanos,
};

/// What the handle asks of the task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Hand everything over; answered when nothing is left.
    Drain(oneshot::Sender<()>),
    /// Take shards again.
    Resume,
    /// Hand everything over, end the lease and stop; answered when that is done.
    Close(oneshot::Sender<()>),
}

/// What runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) core: Core,
    pub(crate) bucket: Bucket,
    pub(crate) clock: Arc<dyn MonotonicClock>,
    pub(crate) tick: Duration,
    pub(crate) changes: mpsc::Sender<Change>,
    pub(crate) acknowledge: mpsc::Sender<u32>,
    pub(crate) acknowledged: mpsc::Receiver<u32>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) stop: CancellationToken,
}

/// What goes on between two inputs.
#[derive(Default)]
struct Work {
    operations: FuturesUnordered<BoxFuture<'static, Input>>,
    drains: Vec<oneshot::Sender<()>>,
    closes: Vec<oneshot::Sender<()>>,
    actions: Vec<Action>,
}

pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

async fn next_hint(hints: &mut Option<Subscriber>) -> Input {
    let Some(subscriber) = hints else { return std::future::pending().await };
    if subscriber.next().await.is_none() {
        *hints = None;
    }
    Input::Hint
}

impl Task {
    pub(crate) async fn run(mut self) {
        let mut hints = self.bucket.hints().await;
        let mut tick = tokio::time::interval(self.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = Work::default();
        loop {
            let input = tokio::select! {
                () = self.stop.cancelled() => return,
                Some(input) = work.operations.next() => input,
                Some(shard) = self.acknowledged.recv() => Input::Acknowledged { shard },
                Some(command) = self.commands.recv() => work.command(command),
                input = next_hint(&mut hints) => input,
                _ = tick.tick() => Input::Tick,
            };
            self.core.handle(nanos(self.clock.now()), input, &mut work.actions);
            self.perform(&mut work);
            if self.settle(&mut work) {
                return;
            }
        }
    }

    fn perform(&self, work: &mut Work) {
        for action in std::mem::take(&mut work.actions) {
            let bucket = self.bucket.clone();
            match action {
                Action::Poll { after, questions } => {
                    work.operations.push(async move { Input::Polled(bucket.poll(after, questions).await) }.boxed());
                }
                Action::Write(write) => {
                    work.operations.push(
                        async move {
                            let result = bucket.write(&write).await;
                            Input::Wrote(write, result)
                        }
                        .boxed(),
                    );
                }
                Action::Hint => work.operations.push(
                    async move {
                        bucket.hint().await;
                        Input::Tick
                    }
                    .boxed(),
                ),
                Action::Taken { shard, epoch } => self.tell(Change::Taken { shard, epoch }),
                Action::Lost { shard, epoch } => {
                    let handover = Handover::new(shard, self.acknowledge.clone());
                    self.tell(Change::Lost { shard, epoch, handover });
                }
            }
        }
    }

    /// There is room: a shard is not taken again before its loss was acknowledged. If nobody listens any more, dropping
    /// the change acknowledges it.
    fn tell(&self, change: Change) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.changes.try_send(change) {
            warn!("changes of shards are not read");
        }
    }

    /// Answers commands that are done; whether the task is.
    fn settle(&self, work: &mut Work) -> bool {
        let standing = self.core.standing();
        if *self.standing.borrow() != *standing {
            match standing {
                Standing::Held => info!("lease taken"),
                Standing::Waiting => warn!("no lease, waiting for one"),
                Standing::NameTaken { address } => warn!(address, "another process has this node's name"),
                Standing::TooManyNodes { nodes } => warn!(nodes, "too many nodes"),
                Standing::Left => info!("lease given back"),
            }
            self.standing.send_replace(standing.clone());
        }
        if !work.drains.is_empty() && self.core.unreleased() == 0 {
            work.drains.drain(..).for_each(answer);
        }
        if *standing == Standing::Left && !work.closes.is_empty() {
            work.closes.drain(..).for_each(answer);
            return true;
        }
        false
    }
}

fn answer(asker: oneshot::Sender<()>) {
    if asker.send(()).is_err() {
        debug!("nobody waits for the answer any more");
    }
}

impl Work {
    fn command(&mut self, command: Command) -> Input {
        match command {
            Command::Drain(asker) => {
                self.drains.push(asker);
                Input::Drain
            }
            Command::Resume => Input::Resume,
            Command::Close(asker) => {
                self.closes.push(asker);
                Input::Leave
            }
        }
    }
}
