//! The engine as its user holds it: `JetStreamLog` appends to the stream and reads from the replica.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_nats::Client;
use events_journal::{
    AppendError, Direction, Entry, EventLog, Filter, Health, Page, ReadError, Receipt, Recorded, Refusal, Replica,
    SnapshotStore, log::APPEND_QUEUE_LEN_MAX,
};
use events_model::{Commit, CommitId, EpisodeId, Position, StreamId, Version, shard::shard_of};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::warn;

use crate::{
    api::Leader,
    connect::{self, Options, Ownership},
    error::{ApiError, FollowError, OpenError, TakeError},
    feed::{Feed, Own, Stop},
    follow::{self, Follower},
    forming::{Load, Ticket, Waiting},
    group::Link,
    limit::{APPEND_QUEUE_BYTES_MAX, CLOSE_WAIT_MAX, EARLY_BYTES_MAX, GROUP_BYTES_MAX},
    publish::Writer,
    resume::Search,
    shard::{Phase, Shard},
    stream, subject,
};

/// How far this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Stream sequence up to which the replica shows everything.
    pub applied: u64,
    /// Last known end of the stream, as its leader says.
    pub head: u64,
}

/// What the tasks and the handles share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: Options,
    resumed_at: u64,
    pub(crate) leader: Leader,
    /// Counts how often the connection was made.
    pub(crate) connects: watch::Receiver<u64>,
    pub(crate) replica: Arc<dyn Replica>,
    shards: Vec<Arc<Shard>>,
    load: Arc<Load>,
    pub(crate) applied: watch::Sender<u64>,
    head: AtomicU64,
    /// The last applied group of each subject: stream sequence and link.
    tails: Mutex<HashMap<String, (u64, Link)>>,
    failure: Mutex<Option<Arc<FollowError>>>,
    /// Shards whose last group has an unknown outcome or that cannot be read.
    doubts: Mutex<std::collections::BTreeSet<u32>>,
    health: watch::Sender<Health>,
    pub(crate) feed: Mutex<Feed>,
    /// Own messages that came while somebody had the feed.
    offered: Mutex<Vec<Own>>,
    /// Told after a writer has offered a message to the feed.
    pub(crate) fed: Notify,
    pub(crate) stop: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) runtime: Handle,
}

impl Core {
    pub(crate) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// The stream is known to reach this sequence.
    pub(crate) fn seen_head(&self, sequence: u64) {
        self.head.fetch_max(sequence, Ordering::AcqRel);
    }

    /// The replica shows this message; its first commit has this position.
    pub(crate) fn applied(&self, sequence: u64, subject: String, link: Link, first: Option<Position>) {
        let shard = subject::shard_of_subject(&subject).filter(|shard| subject == self.subject(*shard));
        self.tails.lock().insert(subject, (sequence, link));
        self.seen_head(sequence);
        self.applied.send_replace(sequence);
        if let Some(shard) = shard.and_then(|shard| self.shards.get(shard as usize)) {
            shard.finish(sequence, first);
        }
    }

    /// The stream has acknowledged an own message: it need not be waited for.
    pub(crate) fn offer(&self, own: Own) {
        match self.feed.try_lock() {
            Some(mut feed) => feed.offer(self, own),
            // Whoever has the feed may be reading the disk, and this is a writer on a thread of the runtime.
            None => {
                let mut offered = self.offered.lock();
                let bytes: usize = offered.iter().map(|own| own.group.bytes.len()).sum();
                // Without room for it, the consumer brings it.
                if bytes + own.group.bytes.len() <= EARLY_BYTES_MAX {
                    offered.push(own);
                }
            }
        }
        self.fed.notify_one();
    }

    /// Hands over own messages whose turn has come.
    pub(crate) fn take_early(&self) -> Result<(), Stop> {
        let mut feed = self.feed.lock();
        for own in std::mem::take(&mut *self.offered.lock()) {
            feed.offer(self, own);
        }
        feed.take_early(self);
        feed.check()
    }

    /// Until the replica has answered for the first message on its way; for ever where there is none.
    pub(crate) async fn shown(&self) {
        std::future::poll_fn(|context| self.feed.lock().poll(context)).await;
    }

    fn subject(&self, shard: u32) -> &str {
        self.shards.get(shard as usize).map_or("", |shard| &shard.subject)
    }

    pub(crate) fn tail(&self, subject: &str) -> Option<(u64, Link)> {
        self.tails.lock().get(subject).copied()
    }

    /// The applied sequence and the end of each chain there; asked by the follower alone, which changes them.
    pub(crate) fn tails(&self) -> (u64, Vec<(String, u64, Link)>) {
        let tails = self.tails.lock();
        let list = tails.iter().map(|(subject, (sequence, link))| (subject.clone(), *sequence, *link)).collect();
        (*self.applied.borrow(), list)
    }

    pub(crate) async fn wait_applied(&self, sequence: u64) {
        // The sender lives as long as this.
        drop(self.applied.subscribe().wait_for(|applied| *applied >= sequence).await);
    }

    /// Notes whether a shard cannot say what became of its last group.
    pub(crate) fn doubt(&self, shard: u32, is_in_doubt: bool) {
        let mut doubts = self.doubts.lock();
        let changed = if is_in_doubt { doubts.insert(shard) } else { doubts.remove(&shard) };
        drop(doubts);
        if changed {
            self.refresh_health();
        }
    }

    fn refresh_health(&self) {
        let replica = self.replica.watch_health().borrow().clone();
        let health = if let Some(failure) = &*self.failure.lock() {
            Health::Refusing(Refusal::Stopped(failure.to_string()))
        } else if self.stop.is_cancelled() {
            Health::Refusing(Refusal::Closed)
        } else if replica != Health::Accepting {
            replica
        } else if self.doubts.lock().is_empty() {
            Health::Accepting
        } else {
            Health::Refusing(Refusal::Unreachable)
        };
        self.health.send_if_modified(|shown| std::mem::replace(shown, health.clone()) != health);
    }

    /// The follower stopped for good: nothing that is appended could be seen.
    pub(crate) fn fail(&self, error: FollowError) {
        let refusal = Refusal::Stopped(error.to_string());
        *self.failure.lock() = Some(Arc::new(error));
        self.end(&refusal);
    }

    fn end(&self, refusal: &Refusal) {
        // Before the token, at which others end the shards as closed: the first reason is the one that callers are told.
        for shard in &self.shards {
            shard.end(refusal);
        }
        self.stop.cancel();
        self.refresh_health();
    }

    fn start_writer(self: &Arc<Self>, shard: &Arc<Shard>) {
        let writer = Writer::new(Arc::clone(self), Arc::clone(shard));
        drop(self.tracker.spawn_on(writer.run(), &self.runtime));
    }

    /// Shows the health of the replica as the log's, and ends the shards when nobody holds the log any more.
    async fn watch_replica(self: Arc<Self>) {
        let mut health = self.replica.watch_health();
        let watch = async {
            while health.changed().await.is_ok() {
                self.refresh_health();
            }
            std::future::pending::<()>().await;
        };
        self.stop.run_until_cancelled(watch).await.unwrap_or(());
        self.end(&Refusal::Closed);
    }
}

/// A region's log on JetStream. A cheap handle: clones share the engine, the last one to go ends it.
#[derive(Debug, Clone)]
pub struct JetStreamLog {
    core: Arc<Core>,
    _guard: Arc<DropGuard>,
}

impl JetStreamLog {
    /// Connects, makes or checks the region's stream, finds where the replica ends in it, and follows from there.
    ///
    /// Appends are accepted at once and wait until the replica has caught up with their shard; `progress` tells how far
    /// it is. Must be called inside the runtime of the handle, on which all tasks run.
    ///
    /// # Errors
    /// See `OpenError`; each says what an operator can do. Nothing was changed, except that a stream that did not exist
    /// may have been made.
    pub async fn open(
        options: Options,
        replica: Arc<dyn Replica>,
        checkpoints: Arc<dyn SnapshotStore>,
        runtime: Handle,
    ) -> Result<Self, OpenError> {
        let connection = connect::connect(&options).await?;
        let client = connection.client;
        let max_payload = client.max_payload();
        let leader = Leader::new(client, subject::stream_name(&options.region));
        let state = stream::ensure(&leader, &options).await?.state;
        let (first, last) = (state.first_sequence, state.last_sequence);
        let search = Search { leader: &leader, replica: &*replica, first, last };
        let resume = search
            .run(&*checkpoints)
            .await
            .map_err(|source| OpenError::Replica { stream: leader.stream.clone(), source })?;
        let lazy = options.ownership == Ownership::All;
        let shard = |index| {
            let subject = subject::shard_subject(&options.region, &options.zone, index);
            Arc::new(Shard::new((index, subject), lazy, GROUP_BYTES_MAX.min(max_payload), Arc::clone(&replica)))
        };
        let stop = CancellationToken::new();
        let feed = Feed::new(&resume, last, replica.watch_health());
        let core = Arc::new(Core {
            shards: (0..options.shards).map(shard).collect(),
            options,
            resumed_at: resume.sequence,
            leader,
            connects: connection.connects,
            replica,
            load: Arc::new(Load::default()),
            applied: watch::Sender::new(resume.sequence),
            head: AtomicU64::new(last),
            tails: Mutex::new(resume.tails),
            failure: Mutex::new(None),
            doubts: Mutex::default(),
            health: watch::Sender::new(Health::Accepting),
            feed: Mutex::new(feed),
            offered: Mutex::default(),
            fed: Notify::new(),
            stop: stop.clone(),
            tracker: TaskTracker::new(),
            runtime,
        });
        core.refresh_health();
        let follower = Follower::new(Arc::clone(&core), checkpoints);
        drop(core.tracker.spawn_on(follower.run(), &core.runtime));
        drop(core.tracker.spawn_on(follow::watch_head(Arc::clone(&core)), &core.runtime));
        drop(core.tracker.spawn_on(Arc::clone(&core).watch_replica(), &core.runtime));
        Ok(Self { core, _guard: Arc::new(stop.drop_guard()) })
    }

    /// The connection to the servers.
    pub fn client(&self) -> Client {
        self.core.leader.client.clone()
    }

    /// How this engine was opened.
    pub fn options(&self) -> &Options {
        &self.core.options
    }

    /// How far this node is behind the stream.
    pub fn progress(&self) -> Progress {
        let applied = *self.core.applied.borrow();
        Progress { applied, head: self.core.head().max(applied) }
    }

    /// Waits until the replica has everything that the stream's leader has at this moment.
    ///
    /// # Errors
    /// The leader does not answer, or this node does not follow any more.
    pub async fn reach_head(&self) -> Result<(), ApiError> {
        let head = self.core.leader.info().await?.state.last_sequence;
        self.core.seen_head(head);
        let reached = self.core.stop.run_until_cancelled(self.core.wait_applied(head)).await;
        reached.ok_or_else(|| ApiError::Broken {
            subject: self.core.leader.stream.clone(),
            reason: "this node does not follow the log any more".to_owned(),
        })
    }

    /// The stream sequence behind which this node began to follow when it was opened.
    pub fn resumed_at(&self) -> u64 {
        self.core.resumed_at
    }

    /// Stream sequence up to which the replica shows everything, now and as it rises.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.core.applied.subscribe()
    }

    /// Why this node does not follow any more, if it does not.
    pub fn failure(&self) -> Option<Arc<FollowError>> {
        self.core.failure.lock().clone()
    }

    /// The shard of a stream.
    pub fn shard_of(&self, stream: &StreamId) -> u32 {
        shard_of(stream, self.core.options.shards)
    }

    fn shard(&self, shard: u32) -> Result<&Arc<Shard>, TakeError> {
        let shards = self.core.options.shards;
        self.core.shards.get(shard as usize).ok_or(TakeError::NoSuchShard { shard, shards })
    }

    /// What this node may do with a shard, now and as it changes.
    ///
    /// # Errors
    /// `NoSuchShard`.
    pub fn watch_shard(&self, shard: u32) -> Result<watch::Receiver<Phase>, TakeError> {
        Ok(self.shard(shard)?.watch())
    }

    /// Takes a shard: reads its end from the leader and waits until the replica is there; then appends are accepted.
    /// Appends that are called meanwhile wait. Tries for as long as it takes. What is owned already is taken anew: whoever
    /// calls does not know what happened since.
    ///
    /// # Errors
    /// `NoSuchShard`, `Released`, `Stopped`: it is not owned.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the taking; call `release`.
    pub async fn take(&self, shard: u32) -> Result<(), TakeError> {
        let one = self.shard(shard)?;
        if self.core.stop.is_cancelled() {
            return Err(TakeError::Stopped);
        }
        let mut phase = one.watch();
        if one.begin_take() {
            self.core.start_writer(one);
        }
        let settled = tokio::select! {
            settled = phase.wait_for(|phase| *phase != Phase::Taking) => settled.map(|phase| *phase),
            () = self.core.stop.cancelled() => return Err(TakeError::Stopped),
        };
        match settled {
            Ok(Phase::Owned) => Ok(()),
            Ok(Phase::Idle | Phase::Taking | Phase::Releasing | Phase::Lost) => Err(TakeError::Released { shard }),
            Err(_) => Err(TakeError::Stopped),
        }
    }

    /// Gives a shard back: nothing more is accepted, what was accepted is brought to its end first. While the replica
    /// refuses, that is when the stream has it; who waits for the replica is answered `Unknown` then.
    ///
    /// # Errors
    /// `NoSuchShard`.
    pub async fn release(&self, shard: u32) -> Result<(), TakeError> {
        let one = self.shard(shard)?;
        let mut phase = one.watch();
        one.begin_release();
        let mut health = self.core.replica.watch_health();
        let hurry = async {
            // An error means that the replica is gone, and nothing gets there.
            drop(health.wait_for(|health| *health != Health::Accepting).await);
            one.hurry();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // An error means that the engine is gone, and the shard with it.
            _ended = phase.wait_for(|phase| *phase != Phase::Releasing) => {}
            () = hurry => {}
        }
        Ok(())
    }

    /// Accepts nothing more, brings to its end what was accepted, saves where the follower is, and ends. Reads go on
    /// working. What is not finished in ten seconds is answered `Unknown`.
    pub async fn close(&self) {
        for shard in &self.core.shards {
            shard.close();
        }
        let released = async {
            for shard in &self.core.shards {
                drop(shard.watch().wait_for(|phase| *phase != Phase::Releasing).await);
            }
        };
        if tokio::time::timeout(CLOSE_WAIT_MAX, released).await.is_err() {
            warn!("the log is closed before everything was written");
        }
        self.core.end(&Refusal::Closed);
        self.core.tracker.close();
        if tokio::time::timeout(CLOSE_WAIT_MAX, self.core.tracker.wait()).await.is_err() {
            warn!("the log is closed before its tasks ended");
        }
    }
}

impl EventLog for JetStreamLog {
    fn append(&self, expected: Version, commit: Commit) -> Receipt {
        let core = &self.core;
        let bytes = commit.encode();
        let entry = Entry::of(&commit);
        if let Some(reason) = entry.broken_rule(expected, bytes.len()) {
            return Receipt::ready(Err(AppendError::Invalid { commit_id: commit.commit_id, reason }));
        }
        if let Health::Refusing(refusal) = &*core.replica.watch_health().borrow() {
            return Receipt::ready(Err(AppendError::Refused(refusal.clone())));
        }
        let waiting = core.load.len.load(Ordering::Relaxed);
        if waiting >= APPEND_QUEUE_LEN_MAX || core.load.bytes.load(Ordering::Relaxed) >= APPEND_QUEUE_BYTES_MAX {
            return Receipt::ready(Err(AppendError::Busy { waiting }));
        }
        let Some(shard) = core.shards.get(self.shard_of(&entry.stream) as usize) else {
            return Receipt::ready(Err(AppendError::Refused(Refusal::Closed)));
        };
        let (reply, receipt) = Receipt::channel();
        let ticket = Ticket::new(reply, bytes.len(), &core.load);
        if shard.push(Waiting { entry, bytes, ticket }) {
            core.start_writer(shard);
        }
        receipt
    }

    fn read_stream(
        &self,
        stream: &StreamId,
        from: Version,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Recorded>, ReadError> {
        self.core.replica.read_stream(stream, from, direction, limit)
    }

    fn read_log(&self, from: Position, direction: Direction, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
        self.core.replica.read_log(from, direction, filter, limit)
    }

    fn read_episode(&self, episode: EpisodeId, limit: usize) -> Result<Vec<Recorded>, ReadError> {
        self.core.replica.read_episode(episode, limit)
    }

    fn find_commit(&self, stream: &StreamId, commit_id: &CommitId) -> Result<Option<Recorded>, ReadError> {
        self.core.replica.find_commit(stream, commit_id)
    }

    fn head(&self, stream: &StreamId) -> Result<Version, ReadError> {
        self.core.replica.head(stream)
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.core.replica.watch_head()
    }

    fn watch_health(&self) -> watch::Receiver<Health> {
        self.core.health.subscribe()
    }
}
