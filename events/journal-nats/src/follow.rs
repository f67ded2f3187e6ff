//! The follower: brings the stream, in stream order, into this node's replica.
//!
//! Invariants:
//! - nothing is skipped: messages are taken in sequence without a gap, each group must continue the chain of its
//!   subject, each commit must get the position behind the one before, and a commit that the replica holds already
//!   must have the same bytes there; whatever else is found stops the follower for good, with a typed error;
//! - `applied` rises only after the replica has made every commit of a message durable;
//! - a consumer is a disposable cursor: on any doubt it is made again behind the last message that was taken.
//!
//! A consumer may be placed on a server that lags and then reports nothing; so the end of the stream is asked from its
//! leader (and known from acknowledged publishes), and a consumer that does not get there is made again. While none can
//! be made, the leader is asked for one message after the other, and what it says is checked like everything else.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
};
use bytes::Bytes;
use events_journal::{AppendError, Appended, Entry, Health, Receipt, Refusal, SnapshotStore};
use events_model::Position;
use futures::{
    future::join_all,
    stream::{self, Stream, StreamExt as _},
};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::{
    api::Stored,
    engine::Core,
    error::FollowError,
    group::{Link, START},
    limit::{
        AHEAD_BYTES_MAX, AHEAD_COMMITS_MAX, CHECKPOINT_MESSAGES, CONSUMER_IDLE_MAX, CONSUMER_WAIT, HEAD_EVERY,
        LOOK_WAIT, PULL_BYTES, PULL_EXPIRES, PULL_HEARTBEAT, PULL_MESSAGES, READ_ON_AFTER, READ_ON_EVERY,
        READ_ON_MESSAGES, RESOLVE_MAX, STALL,
    },
    publish::Pauses,
    resume::{Checkpoint, Resume, read},
    subject::shard_of_subject,
};

/// A message on its way into the replica.
#[derive(Debug)]
struct Ahead {
    sequence: u64,
    subject: String,
    link: Link,
    commits: Vec<Bytes>,
    bytes: usize,
    receipts: Vec<Receipt>,
    answers: Vec<Result<Appended, AppendError>>,
}

impl Ahead {
    /// Hands the commits to the replica, without waiting.
    ///
    /// A replica that has refused some and accepts again would put what comes later before them; so nothing is handed
    /// over once its health has changed. Were it to fail and to recover between this look and the call, positions would
    /// differ, which is seen when they are checked.
    fn submit(&mut self, core: &Core, health: &watch::Receiver<Health>) {
        self.answers.clear();
        let submit = |commit: &Bytes| {
            if health.has_changed().unwrap_or(true) {
                Receipt::ready(Err(AppendError::Refused(Refusal::Disk("the replica failed before".to_owned()))))
            } else {
                core.replica.append_recorded(commit.clone())
            }
        };
        self.receipts = self.commits.iter().map(submit).collect();
    }

    /// Ready when every commit has its answer.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(receipt) = self.receipts.get_mut(self.answers.len()) {
            let answer = ready!(Pin::new(receipt).poll(context));
            self.answers.push(answer);
        }
        Poll::Ready(())
    }
}

/// Until the first message has all its answers; for ever where there is none.
async fn durable(ahead: &mut VecDeque<Ahead>) {
    let poll = |context: &mut Context<'_>| ahead.front_mut().map_or(Poll::Pending, |message| message.poll(context));
    std::future::poll_fn(poll).await;
}

/// Why following pauses or ends.
#[derive(Debug)]
enum Stop {
    /// A new consumer may help.
    Again(&'static str),
    /// The replica accepts nothing at the moment.
    Replica,
    Failed(FollowError),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Follower {
    core: Arc<Core>,
    checkpoints: Arc<dyn SnapshotStore>,
    connects: watch::Receiver<u64>,
    /// Of the replica; seen when the commits that are on their way were handed over.
    health: watch::Receiver<Health>,
    /// The last message that was taken from the stream.
    received: u64,
    /// The end of each chain, as taken.
    chains: HashMap<String, Link>,
    /// Whether a subject that is not in `chains` is new.
    is_complete: bool,
    ahead: VecDeque<Ahead>,
    ahead_commits: usize,
    ahead_bytes: usize,
    /// Position of the last commit that was applied, once known.
    position: Option<u64>,
    /// Where the stream ended when the engine was opened; the replica must end there too when it is reached.
    opened_at: Option<u64>,
    saved: u64,
}

impl Follower {
    pub(crate) fn new(core: Arc<Core>, checkpoints: Arc<dyn SnapshotStore>, (resume, last): (Resume, u64)) -> Self {
        Self {
            received: resume.sequence,
            chains: resume.tails.into_iter().map(|(subject, (_, link))| (subject, link)).collect(),
            is_complete: resume.is_complete,
            ahead: VecDeque::new(),
            ahead_commits: 0,
            ahead_bytes: 0,
            position: resume.position,
            opened_at: Some(last),
            saved: resume.sequence,
            connects: core.connects.clone(),
            health: core.replica.watch_health(),
            core,
            checkpoints,
        }
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
            let before = self.received;
            let stop = match self.check_end() {
                Ok(()) => self.consume(&mut pauses).await,
                Err(failed) => Stop::Failed(failed),
            };
            if self.received > before {
                pauses = Pauses::new();
            }
            let stop = match stop {
                Stop::Again(reason) => {
                    debug!(reason, received = self.received, "a new consumer is made");
                    self.wait_for_leader(&mut pauses).await.err()
                }
                stop @ (Stop::Replica | Stop::Failed(_)) => Some(stop),
            };
            match stop {
                None | Some(Stop::Again(_)) => {}
                Some(Stop::Failed(failed)) => return failed,
                Some(Stop::Replica) => {
                    warn!(received = self.received, "the replica accepts no commits, they are held back");
                    pauses.pause().await;
                    // An error means that the replica is gone, which the next attempt tells.
                    drop(self.health.wait_for(|health| *health == Health::Accepting).await);
                    self.ahead.iter_mut().for_each(|message| message.submit(&self.core, &self.health));
                }
            }
        }
    }

    /// Without a leader no consumer is made. What was taken before is settled meanwhile, for somebody waits for it.
    async fn wait_for_leader(&mut self, pauses: &mut Pauses) -> Result<(), Stop> {
        let leader = self.core.leader.clone();
        let mut answered = std::pin::pin!(async move {
            pauses.pause().await;
            leader.wait_for_answer(RESOLVE_MAX).await;
        });
        loop {
            tokio::select! {
                biased;
                () = durable(&mut self.ahead) => self.settle()?,
                () = &mut answered => return Ok(()),
            }
        }
    }

    /// Makes a consumer, however long that takes, and reads on without one meanwhile.
    async fn consumer(&mut self, pauses: &mut Pauses) -> Result<pull::Stream, Stop> {
        let core = Arc::clone(&self.core);
        let mut made = std::pin::pin!(consumer(&core, self.received, pauses));
        let mut read = std::pin::pin!(read_on(&core, self.received));
        loop {
            let has_room = self.has_room();
            tokio::select! {
                biased;
                () = durable(&mut self.ahead) => self.settle()?,
                messages = &mut made => return Ok(messages),
                Some(stored) = read.next(), if has_room => self.accept(stored).map_err(Stop::Failed)?,
            }
        }
    }

    const fn has_room(&self) -> bool {
        self.ahead_commits < AHEAD_COMMITS_MAX && self.ahead_bytes < AHEAD_BYTES_MAX
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
            let has_room = self.has_room();
            let done = tokio::select! {
                biased;
                () = durable(&mut self.ahead) => self.settle(),
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
                    let is_stalled = has_room && self.received == before && self.received < self.core.head();
                    before = self.received;
                    if is_stalled { Err(Stop::Again("the consumer does not reach the end")) } else { Ok(()) }
                }
            };
            if let Err(stop) = done {
                return stop;
            }
        }
    }

    async fn take(&mut self, message: jetstream::Message) -> Result<(), Stop> {
        let Ok(info) = message.info() else {
            return Err(Stop::Again("a message without its sequence came"));
        };
        let (sequence, next) = (info.stream_sequence, self.received + 1);
        if sequence < next {
            return Ok(());
        }
        if sequence > next {
            // Lost on the way, or lost for good: the leader knows.
            return Err(match self.core.leader.at_patiently(next).await {
                Ok(None) => Stop::Failed(FollowError::Gap { sequence: next }),
                Ok(Some(_)) => Stop::Again("a message was lost on its way"),
                Err(_) => Stop::Again("the leader cannot be asked"),
            });
        }
        let subject = message.subject.to_string();
        let stored = Stored { sequence, subject, payload: message.message.payload };
        self.accept(stored).map_err(Stop::Failed)
    }

    /// Checks a message and hands it to the replica.
    fn accept(&mut self, stored: Stored) -> Result<(), FollowError> {
        let next = self.received + 1;
        if stored.sequence != next {
            return Err(FollowError::Gap { sequence: next });
        }
        let group = read(&stored)?;
        let Stored { sequence, subject, payload } = stored;
        if shard_of_subject(&subject) != Some(group.shard) {
            let reason = format!("it says that it is of shard {}", group.shard);
            return Err(FollowError::Unreadable { sequence, subject, reason });
        }
        let before = self.chains.get(&subject).copied().or_else(|| self.is_complete.then_some(START));
        if let Some(reason) = before.and_then(|before| group.broken_chain(&before)) {
            return Err(FollowError::Chain { subject, sequence, reason });
        }
        self.chains.insert(subject.clone(), group.link);
        self.received = sequence;
        let bytes = payload.len();
        self.ahead_commits += group.commits.len();
        self.ahead_bytes += bytes;
        let (link, commits) = (group.link, group.commits);
        let (receipts, answers) = (Vec::new(), Vec::with_capacity(commits.len()));
        let mut message = Ahead { sequence, subject, link, commits, bytes, receipts, answers };
        message.submit(&self.core, &self.health);
        self.ahead.push_back(message);
        Ok(())
    }

    /// The first message on its way has all its answers.
    fn settle(&mut self) -> Result<(), Stop> {
        let Some(message) = self.ahead.front() else { return Ok(()) };
        let mut position = self.position;
        for (commit, answer) in message.commits.iter().zip(&message.answers) {
            position = Some(self.place(message, commit, answer, position)?);
        }
        self.position = position;
        let Some(message) = self.ahead.pop_front() else { return Ok(()) };
        self.ahead_commits -= message.commits.len();
        self.ahead_bytes -= message.bytes;
        self.core.applied(message.sequence, message.subject, message.link);
        if message.sequence >= self.saved + CHECKPOINT_MESSAGES {
            self.save(false);
        }
        self.check_end().map_err(Stop::Failed)
    }

    /// Where a commit was placed, if that is where it belongs.
    fn place(
        &self,
        message: &Ahead,
        commit: &Bytes,
        answer: &Result<Appended, AppendError>,
        before: Option<u64>,
    ) -> Result<u64, Stop> {
        let (sequence, subject) = (message.sequence, message.subject.clone());
        let appended = match answer {
            Ok(appended) => appended,
            Err(AppendError::Busy { .. } | AppendError::Unknown(_)) => return Err(Stop::Replica),
            Err(AppendError::Refused(refusal)) if *refusal != Refusal::Closed => return Err(Stop::Replica),
            Err(source) => {
                let source = source.clone();
                return Err(Stop::Failed(FollowError::Refused { sequence, subject, source }));
            }
        };
        let position = appended.position.0;
        let expected = before.map_or(position, |before| before + 1);
        if position != expected {
            let reason = format!("a commit lies at position {position}, not at {expected}");
            return Err(Stop::Failed(FollowError::Diverged { sequence, subject, reason }));
        }
        if appended.duplicate && !self.is_same(commit).map_err(Stop::Failed)? {
            let reason = format!("position {position} holds other bytes");
            return Err(Stop::Failed(FollowError::Diverged { sequence, subject, reason }));
        }
        Ok(position)
    }

    fn is_same(&self, commit: &Bytes) -> Result<bool, FollowError> {
        // The replica has read it before.
        let Ok(entry) = Entry::read(commit) else { return Ok(false) };
        let held = self.core.replica.find_commit(&entry.stream, &entry.commit_id).map_err(FollowError::Replica)?;
        Ok(held.is_some_and(|held| held.bytes == *commit))
    }

    /// At the place where the stream ended when it was opened, the replica must hold nothing more.
    fn check_end(&mut self) -> Result<(), FollowError> {
        if !self.ahead.is_empty() || self.opened_at.is_none_or(|last| self.received < last) {
            return Ok(());
        }
        self.opened_at = None;
        info!(sequence = self.received, "the replica has caught up with the stream");
        let end = self.core.replica.head_position();
        match self.position {
            Some(position) if Position(position) < end => {
                Err(FollowError::ForeignReplica { commits: end.0.saturating_sub(position) })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn save(&mut self, is_last: bool) {
        let (applied, tails) = self.core.tails();
        let Some(position) = self.position.filter(|_| applied > self.saved) else { return };
        self.saved = applied;
        let checkpoint = Checkpoint::new(applied, position, tails, self.is_complete);
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
