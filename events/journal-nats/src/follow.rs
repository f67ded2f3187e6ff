//! The follower: brings the stream, in stream order, into this node's replica.
//!
//! Invariants:
//! - nothing is skipped: messages are taken in sequence without a gap, each group must continue the chain of its
//!   subject, each commit must get the position behind the one before, and a commit that the replica holds already
//!   must have the same bytes there; whatever else is found stops the follower for good, with a typed error;
//! - `applied` rises only after the replica has answered for every commit of a message;
//! - a consumer is a disposable cursor: on any doubt it is made again behind the last message that was taken.
//!
//! A consumer may be placed on a server that lags and then reports nothing; so the end of the stream is asked from its
//! leader (and known from acknowledged publishes), and a consumer that does not get there is made again. While none can
//! be made, the leader is asked for one message after the other, and what it says is checked like everything else.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
};
use events_journal::{Health, SnapshotStore};
use futures::{
    future::join_all,
    stream::{self, Stream, StreamExt as _},
};
use tokio::sync::watch;
use tracing::{debug, error, warn};

use crate::{
    api::Stored,
    engine::Core,
    error::FollowError,
    feed::{Stop, Taken},
    limit::{
        CHECKPOINT_MESSAGES, CONSUMER_IDLE_MAX, CONSUMER_WAIT, HEAD_EVERY, LOOK_WAIT, PULL_BYTES, PULL_EXPIRES,
        PULL_HEARTBEAT, PULL_MESSAGES, READ_ON_AFTER, READ_ON_EVERY, READ_ON_MESSAGES, RESOLVE_MAX, STALL,
    },
    publish::Pauses,
    resume::{Checkpoint, read},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Follower {
    core: Arc<Core>,
    checkpoints: Arc<dyn SnapshotStore>,
    connects: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
    saved: u64,
}

impl Follower {
    pub(crate) fn new(core: Arc<Core>, checkpoints: Arc<dyn SnapshotStore>) -> Self {
        let saved = core.feed.lock().received;
        Self { saved, connects: core.connects.clone(), health: core.replica.watch_health(), core, checkpoints }
    }

    fn received(&self) -> u64 {
        self.core.feed.lock().received
    }

    /// Follows until the engine is closed or something does not fit.
    pub(crate) async fn run(mut self) {
        let stop = self.core.stop.clone();
        let failed = stop.run_until_cancelled(self.follow()).await;
        self.save(true);
        if let Some(failed) = failed {
            error!(error = %failed, advice = failed.advice(), "this node does not follow the log any more");
            self.core.fail(failed);
        }
    }

    async fn follow(&mut self) -> FollowError {
        let mut pauses = Pauses::new();
        loop {
            let before = self.received();
            let checked = self.core.feed.lock().check_end(&self.core);
            let stop = match checked {
                Ok(()) => self.consume(&mut pauses).await,
                Err(failed) => Stop::Failed(failed),
            };
            if self.received() > before {
                pauses = Pauses::new();
            }
            let stop = match stop {
                Stop::Again(reason) => {
                    debug!(reason, received = self.received(), "a new consumer is made");
                    self.wait_for_leader(&mut pauses).await.err()
                }
                stop @ (Stop::Replica | Stop::Failed(_)) => Some(stop),
            };
            match stop {
                None | Some(Stop::Again(_)) => {}
                Some(Stop::Failed(failed)) => return failed,
                Some(Stop::Replica) => {
                    self.core.feed.lock().hold();
                    warn!(received = self.received(), "the replica accepts no commits, they are held back");
                    pauses.pause().await;
                    // An error means that the replica is gone, which the next attempt tells.
                    drop(self.health.wait_for(|health| *health == Health::Accepting).await);
                    self.core.feed.lock().go_on(&self.core, self.health.clone());
                }
            }
        }
    }

    /// Without a leader no consumer is made.
    async fn wait_for_leader(&mut self, pauses: &mut Pauses) -> Result<(), Stop> {
        let core = Arc::clone(&self.core);
        let answered = async {
            pauses.pause().await;
            core.leader.wait_for_answer(RESOLVE_MAX).await;
        };
        self.while_settling(answered).await
    }

    /// Waits for something; what was taken before is settled meanwhile, for somebody waits for it.
    async fn while_settling<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Stop> {
        let core = Arc::clone(&self.core);
        let mut future = std::pin::pin!(future);
        loop {
            let is_ahead = !core.feed.lock().is_empty();
            tokio::select! {
                biased;
                () = core.shown(), if is_ahead => self.settle()?,
                () = core.fed.notified() => core.take_early()?,
                done = &mut future => return Ok(done),
            }
        }
    }

    /// Makes a consumer, however long that takes, and reads on without one meanwhile.
    async fn consumer(&mut self, pauses: &mut Pauses) -> Result<pull::Stream, Stop> {
        let (core, after) = (Arc::clone(&self.core), self.received());
        let mut made = std::pin::pin!(consumer(&core, after, pauses));
        let mut read = std::pin::pin!(read_on(&core, after));
        loop {
            let (has_room, is_ahead) = {
                let feed = core.feed.lock();
                (feed.has_room(), !feed.is_empty())
            };
            tokio::select! {
                biased;
                () = core.shown(), if is_ahead => self.settle()?,
                () = core.fed.notified() => core.take_early()?,
                messages = &mut made => return Ok(messages),
                Some(stored) = read.next(), if has_room => self.accept(stored)?,
            }
        }
    }

    async fn consume(&mut self, pauses: &mut Pauses) -> Stop {
        self.connects.borrow_and_update();
        let mut messages = match self.consumer(pauses).await {
            Ok(messages) => messages,
            Err(stop) => return stop,
        };
        let mut tick = tokio::time::interval(STALL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = u64::MAX;
        loop {
            let core = Arc::clone(&self.core);
            let (has_room, is_ahead) = {
                let feed = core.feed.lock();
                (feed.has_room(), !feed.is_empty())
            };
            let done = tokio::select! {
                biased;
                () = core.shown(), if is_ahead => self.settle(),
                // An own message may be on its way now.
                () = core.fed.notified() => core.take_early(),
                message = messages.next(), if has_room => match message {
                    Some(Ok(message)) => self.take(message).await,
                    Some(Err(_)) => Err(Stop::Again("the consumer failed")),
                    None => Err(Stop::Again("the consumer ended")),
                },
                changed = self.connects.changed() => match changed {
                    Ok(()) => Err(Stop::Again("the connection was made again")),
                    Err(_) => Err(Stop::Again("the connection is closed")),
                },
                _ = tick.tick() => {
                    let received = core.feed.lock().received;
                    let is_stalled = has_room && received == before && received < core.head();
                    before = received;
                    if is_stalled { Err(Stop::Again("the consumer does not reach the end")) } else { Ok(()) }
                }
            };
            if let Err(stop) = done {
                return stop;
            }
        }
    }

    /// The first message on its way has all its answers.
    fn settle(&mut self) -> Result<(), Stop> {
        let settled = self.core.feed.lock().settle(&self.core);
        if *self.core.applied.borrow() >= self.saved + CHECKPOINT_MESSAGES {
            self.save(false);
        }
        settled
    }

    async fn take(&mut self, message: jetstream::Message) -> Result<(), Stop> {
        let Ok(info) = message.info() else {
            return Err(Stop::Again("a message without its sequence came"));
        };
        let (sequence, next) = (info.stream_sequence, self.received() + 1);
        if sequence < next {
            return Ok(());
        }
        if sequence > next {
            // Lost on the way, or lost for good: the leader knows.
            let leader = self.core.leader.clone();
            return Err(match self.while_settling(leader.at_patiently(next)).await? {
                Ok(None) => Stop::Failed(FollowError::Gap { sequence: next }),
                Ok(Some(_)) => Stop::Again("a message was lost on its way"),
                Err(_) => Stop::Again("the leader cannot be asked"),
            });
        }
        let subject = message.subject.to_string();
        self.accept(Stored { sequence, subject, payload: message.message.payload })
    }

    /// Takes the next message; one that was an own one and is taken already is passed over.
    fn accept(&self, stored: Stored) -> Result<(), Stop> {
        let group = read(&stored).map_err(Stop::Failed)?;
        let Stored { sequence, subject, payload } = stored;
        let taken = Taken { sequence, subject, group, bytes: payload.len() };
        let mut feed = self.core.feed.lock();
        if feed.received + 1 == sequence {
            feed.accept(&self.core, taken).map_err(Stop::Failed)?;
            feed.take_early(&self.core);
        }
        feed.check()
    }

    fn save(&mut self, is_last: bool) {
        let (applied, tails) = self.core.tails();
        let (position, is_complete) = {
            let feed = self.core.feed.lock();
            (feed.position, feed.is_complete)
        };
        let Some(position) = position.filter(|_| applied > self.saved) else { return };
        self.saved = applied;
        let checkpoint = Checkpoint::new(applied, position, tails, is_complete);
        let (store, stream) = (Arc::clone(&self.checkpoints), self.core.leader.stream.clone());
        let save = move || checkpoint.save(&*store, &stream);
        if is_last {
            save();
        } else {
            // Beside: the disk may be slow, and the engine waits for it when it is closed.
            drop(self.core.tracker.spawn_blocking_on(save, &self.core.runtime));
        }
    }
}

/// Makes a consumer of what lies behind a sequence; tries for as long as it takes.
async fn consumer(core: &Core, after: u64, pauses: &mut Pauses) -> pull::Stream {
    loop {
        match try_consumer(core, after).await {
            Ok(messages) => return messages,
            Err(reason) => debug!(reason, "no consumer could be made"),
        }
        pauses.pause().await;
        core.leader.wait_for_answer(RESOLVE_MAX).await;
    }
}

async fn try_consumer(core: &Core, after: u64) -> Result<pull::Stream, String> {
    let mut context = jetstream::new(core.leader.client.clone());
    context.set_timeout(CONSUMER_WAIT);
    let config = pull::Config {
        description: Some(format!("follower of {}", core.options.node)),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ack_policy: AckPolicy::None,
        inactive_threshold: CONSUMER_IDLE_MAX,
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    };
    let made = context.create_consumer_on_stream(config, &core.leader.stream).await;
    let consumer: Consumer<pull::Config> = made.map_err(|error| error.to_string())?;
    let stream = consumer
        .stream()
        .max_messages_per_batch(PULL_MESSAGES)
        .max_bytes_per_batch(PULL_BYTES)
        .expires(PULL_EXPIRES)
        .heartbeat(PULL_HEARTBEAT);
    stream.messages().await.map_err(|error| error.to_string())
}

/// The messages behind a sequence, in order and without end, from the stream's leader alone: consumers are made by the
/// leader of the whole cluster, which may be away for longer, and an owner waits for its own groups.
///
/// Begins after `READ_ON_AFTER`, for where a consumer can be made, it is there by then.
fn read_on(core: &Core, after: u64) -> impl Stream<Item = Stored> {
    let batches = stream::unfold((after, false), move |(after, mut is_answered)| async move {
        let mut pause = if is_answered { Duration::ZERO } else { READ_ON_AFTER };
        loop {
            tokio::time::sleep(pause).await;
            if !is_answered {
                core.leader.wait_for_answer(RESOLVE_MAX).await;
            }
            // The next one may be there already though nobody has said so.
            let last = core.head().clamp(after + 1, after + READ_ON_MESSAGES);
            let ask = |sequence| tokio::time::timeout(LOOK_WAIT, core.leader.at(sequence));
            let answers = join_all((after + 1..=last).map(ask)).await;
            is_answered = answers.iter().all(|answer| matches!(answer, Ok(Ok(_))));
            let found: Vec<_> = answers.into_iter().map_while(|answer| answer.ok()?.ok()?).collect();
            if let Some(last) = found.last() {
                let state = (last.sequence, is_answered);
                return Some((stream::iter(found), state));
            }
            pause = READ_ON_EVERY;
        }
    });
    batches.flatten()
}

/// Asks the leader again and again where the stream ends.
pub(crate) async fn watch_head(core: Arc<Core>) {
    let ask = async {
        loop {
            if let Ok(info) = core.leader.info().await {
                core.seen_head(info.state.last_sequence);
            }
            tokio::time::sleep(HEAD_EVERY).await;
        }
    };
    core.stop.run_until_cancelled(ask).await.unwrap_or(())
}
