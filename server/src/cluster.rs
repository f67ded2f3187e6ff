//! This process as one of several nodes: the log on JetStream, leases of shards, commands for other nodes.
//!
//! Invariants: a stream is decided here only while this node's lease of its shard holds *and* the engine has taken the
//! shard, in the same epoch; a shard is given back only after nothing of it is in flight any more.

mod away;
mod clock;
mod error;
mod following;
mod keep;
mod looks;
mod probe;
mod questions;
mod runs;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use actors_core::{group::Group, region::Region, tenant::Tenant};
use actors_shell::Shell;
use bytes::Bytes;
use events_journal::EventLog as _;
use events_journal_nats::{
    Credentials, JetStreamLog, NoReply, Options, Ownership, Phase, Requests,
    lease::{self, Changes, Incarnation, Leases, LiveClock, Node, Owner},
};
use events_journal_sled::LocalStore;
use events_model::{RegionId, StreamId, TimestampUs};
use futures::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::{away::Away, keep::keep, looks::Looks, questions::answer_all};
pub use self::{
    error::Error,
    following::{CatchUp, Following, Show},
};
pub(crate) use self::{
    error::is_other_settings,
    following::{FILE as FOLLOWER_FILE, as_lines},
    probe::{Answer, Check, look},
    runs::Runs,
};
use crate::{auth::wrapped, config::Config};

/// Asks a node to hand over its shards. No command begins so: those are maps.
const DRAIN_QUESTION: &[u8] = b"\0drain";
/// Longest wait for other nodes to take over what this one hands over.
pub(crate) const HANDOVER_WAIT: Duration = Duration::from_secs(10);
/// Longest wait, at the end, for what is done for other nodes.
const TASKS_WAIT: Duration = Duration::from_secs(2);
/// Groups of the stream that the replica of a node that is ready may lack.
const LAG_GROUPS_MAX: u64 = 1_000;
/// Longest wait until this node shows what others have shown.
const REACH_WAIT: Duration = Duration::from_secs(1);
/// How long this node's lease may not hold before it says that it should not be sent requests: an election among the
/// servers alone must not send them away.
const LAPSE_MAX: Duration = Duration::from_secs(3);
/// Epochs begin with 1.
const NOT_TAKEN: u64 = 0;

/// The actors of this process.
#[derive(Debug, Clone)]
pub(crate) struct Shells {
    tenants: Shell<Tenant>,
    region: Shell<Region>,
    groups: Shell<Group>,
}

impl Shells {
    pub(crate) fn new(tenants: &Shell<Tenant>, region: &Shell<Region>, groups: &Shell<Group>) -> Self {
        Self { tenants: tenants.clone(), region: region.clone(), groups: groups.clone() }
    }
}

/// One node of a region.
#[derive(Debug)]
pub(crate) struct Cluster {
    log: JetStreamLog,
    leases: Leases,
    requests: Requests,
    node: String,
    incarnation: Incarnation,
    following: following::Watch,
    away: Away,
    /// Questions where the log ends.
    looks: Looks,
    /// By how much this machine's clock is ahead of the servers', microseconds; negative = behind.
    skew_us: AtomicI64,
    /// What the engine has taken.
    taken: Vec<Taken>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Whether the engine has taken a shard.
#[derive(Debug, Default)]
struct Taken {
    /// In which epoch of its lease; `NOT_TAKEN` = it has not.
    epoch: AtomicU64,
    /// Counts how often: one lease may outlast a shard that is fenced and taken again.
    times: AtomicU64,
}

/// What a node that has joined works with.
pub(crate) struct Joined {
    pub(crate) cluster: Arc<Cluster>,
    /// Tells that shards were taken, until the leases are closed.
    pub(crate) shards: mpsc::Receiver<()>,
    changes: Changes,
    told: mpsc::Sender<()>,
}

/// A region's log, before its node decides anything.
pub(crate) struct Opened {
    log: JetStreamLog,
    following: following::Watch,
}

fn options(config: &Config) -> Result<Options, Error> {
    let cluster = &config.cluster;
    let credentials = match (&cluster.credentials_file, cluster.read_password().map_err(Error::Password)?) {
        (Some(path), _) => Credentials::File(path.clone()),
        (None, Some(password)) => {
            Credentials::Password { user: cluster.user.clone(), password: password.expose().to_owned() }
        }
        (None, None) => Credentials::None,
    };
    let region = |name: &str| RegionId::new(name).unwrap_or_else(|_| config.region.clone());
    Ok(Options {
        servers: cluster.nats.split(',').map(|server| server.trim().to_owned()).collect(),
        credentials,
        root_certificates: cluster.ca_file.clone(),
        node: cluster.node.clone(),
        region: config.region.clone(),
        zone: region(&config.zone),
        replicas: cluster.replicas,
        shards: cluster.shards,
        ownership: Ownership::Taken,
        ..Options::default()
    })
}

impl Opened {
    /// Opens the log on the servers and follows it into the local store.
    pub(crate) async fn open(config: &Config, store: &LocalStore, wall: fn() -> TimestampUs) -> Result<Self, Error> {
        let (replica, checkpoints) = (Arc::new(store.clone()), Arc::new(store.clone()));
        let log = JetStreamLog::open(options(config)?, replica, checkpoints, Handle::current()).await;
        let log = log.map_err(Error::Log)?;
        let following = following::Watch::start(log.clone(), &config.data, wall);
        Ok(Self { log, following })
    }

    /// Refuses a machine whose clock differs from that of the servers.
    pub(crate) async fn check_clock(&self, wall: fn() -> TimestampUs) -> Result<(), Error> {
        let options = self.log.options();
        let made = lease::ensure(&self.log.client(), (&options.region, options.replicas)).await;
        made.map_err(Error::Lease)?;
        let skew = clock::compare(&self.log, wall).await.map_err(Error::Lease)?;
        skew.map_or(Ok(()), |skew| skew.check().map(|_| ()))
    }

    /// How far the replica is, now and later.
    pub(crate) fn following(&self) -> watch::Receiver<Following> {
        self.following.subscribe()
    }

    /// Waits until the replica is near the end of the log, so that no shard waits for it.
    pub(crate) async fn catch_up(&self, show: &Show<'_>) -> Result<(), Error> {
        following::catch_up(&self.log, &self.following, show).await
    }

    /// The secret that all nodes of the region have: this node's if it is the first. The servers hold it encrypted if
    /// the first node has a secret of the cluster.
    pub(crate) async fn share(&self, config: &Config, name: &'static str, mine: &[u8]) -> Result<Vec<u8>, Error> {
        let options = self.log.options();
        let secret = config.cluster.read_secret().map_err(Error::ClusterSecret)?;
        let what = format!("{}/{name}", options.region);
        let mine = match &secret {
            Some(secret) => wrapped::wrap(secret.expose(), &what, mine).map_err(Error::NoEntropy)?,
            None => mine.to_vec(),
        };
        let shared = lease::share(&self.log.client(), (&options.region, options.replicas), name, &mine).await;
        let shared = shared.map_err(Error::Lease)?;
        if wrapped::is_wrapped(&shared) {
            let opened = secret.and_then(|secret| wrapped::open(secret.expose(), &what, &shared));
            return opened.ok_or(Error::OtherSecret(name));
        }
        if secret.is_some() {
            warn!(name, "what the nodes share lies at the servers as it is: the first node had no secret");
        }
        Ok(shared)
    }

    /// Takes this node's lease; shards are taken from now on.
    pub(crate) async fn join(
        self,
        config: &Config,
        address: String,
        incarnation: u128,
        started_at: TimestampUs,
    ) -> Result<Joined, Error> {
        let (cluster, Self { log, following }) = (&config.cluster, self);
        let settings = lease::Settings {
            started_at,
            address,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shards: cluster.shards,
            ttl: cluster.lease,
            replicas: cluster.replicas,
            ..lease::Settings::new(config.region.clone(), &cluster.node, Incarnation(incarnation))
        };
        let started = Leases::start(&log.client(), settings, Arc::new(LiveClock)).await;
        let (leases, changes) = started.map_err(Error::Lease)?;
        let taken = (0..cluster.shards).map(|_| Taken::default()).collect();
        let (requests, node) = (log.requests(), cluster.node.clone());
        let (told, shards) = mpsc::channel(1);
        let looks = Looks::new({
            let log = log.clone();
            move || {
                let log = log.clone();
                async move { log.reach_head().await.is_ok() }.boxed()
            }
        });
        let cluster = Arc::new(Cluster {
            log,
            leases,
            requests,
            node,
            incarnation: Incarnation(incarnation),
            following,
            away: Away::default(),
            looks,
            skew_us: AtomicI64::new(0),
            taken,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        Ok(Joined { cluster, shards, changes, told })
    }
}

impl Joined {
    /// Starts to answer other nodes and to take shards.
    pub(crate) async fn start(
        self,
        shells: Shells,
        wall: fn() -> TimestampUs,
    ) -> Result<(Arc<Cluster>, mpsc::Receiver<()>), Error> {
        let Self { cluster, shards, changes, told } = self;
        let inbox = cluster.requests.listen(&cluster.node).await.map_err(Error::Listen)?;
        // Both go on while this node hands its shards over; `close` ends them.
        let stop = cluster.stop.clone();
        let answering = answer_all(Arc::clone(&cluster), inbox, shells);
        cluster.tasks.spawn(async move { stop.run_until_cancelled_owned(answering).await });
        cluster.tasks.spawn(keep(Arc::clone(&cluster), changes, told));
        let (stop, watched) = (cluster.stop.clone(), Arc::clone(&cluster));
        cluster.tasks.spawn(async move { stop.run_until_cancelled_owned(watched.watch_log()).await });
        let (stop, watched) = (cluster.stop.clone(), Arc::clone(&cluster));
        cluster.tasks.spawn(async move { stop.run_until_cancelled_owned(watched.watch_clock(wall)).await });
        Ok((cluster, shards))
    }
}

impl Cluster {
    /// Takes a shard, and takes it again when a late write of its former owner has fenced it off, while the lease has
    /// not ended.
    async fn take(&self, shard: u32, epoch: u64, told: &mpsc::Sender<()>) {
        while self.leases.kept(shard) == Some(epoch) {
            if let Err(error) = self.log.take(shard).await {
                // It was lost meanwhile, or the log has ended.
                info!(shard, epoch, %error, "shard not taken");
                return;
            }
            if self.leases.kept(shard) != Some(epoch) {
                // Lost while it was taken: the change that says so comes behind this one.
                break;
            }
            self.mark(shard, epoch);
            // One that waits tells of this, too; nobody listens any more at the end.
            let _told = told.try_send(());
            let Ok(mut phase) = self.log.watch_shard(shard) else { return };
            let left = phase.wait_for(|phase| matches!(phase, Phase::Lost | Phase::Releasing | Phase::Idle)).await;
            if !left.is_ok_and(|phase| *phase == Phase::Lost) {
                return;
            }
            warn!(shard, epoch, "a late write of the former owner fenced this node off, the shard is taken again");
            self.unmark(shard, epoch);
        }
        // An engine that has taken it holds a shard without a lease.
        if let Err(error) = self.log.release(shard).await {
            info!(shard, epoch, %error, "shard not released");
        }
    }

    /// Decides nothing for the shard, unless it was taken anew since.
    fn unmark(&self, shard: u32, epoch: u64) {
        if let Some(taken) = self.taken.get(shard as usize) {
            // Another epoch is not this task's.
            let _other = taken.epoch.compare_exchange(epoch, NOT_TAKEN, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    fn mark(&self, shard: u32, epoch: u64) {
        if let Some(taken) = self.taken.get(shard as usize) {
            taken.times.fetch_add(1, Ordering::AcqRel);
            taken.epoch.store(epoch, Ordering::Release);
        }
    }

    /// Which taking of a shard is in force, if this node decides for it at this moment.
    fn taking(&self, shard: u32) -> Option<u64> {
        let taken = self.taken.get(shard as usize)?;
        let epoch = taken.epoch.load(Ordering::Acquire);
        let holds = epoch != NOT_TAKEN && self.leases.epoch(shard) == Some(epoch);
        // Each of both only grows: no two takings have the same sum. The lease may have run out and been renewed after all.
        holds.then(|| taken.times.load(Ordering::Acquire).wrapping_add(self.leases.gaps()))
    }

    /// The log that this node reads and appends to.
    pub(crate) fn log(&self) -> JetStreamLog {
        self.log.clone()
    }

    /// The shard of a stream.
    pub(crate) fn shard_of(&self, stream: &StreamId) -> u32 {
        self.log.shard_of(stream)
    }

    /// The node that decides for a stream, as far as this one knows; `None` = nobody does.
    pub(crate) fn owner_of(&self, stream: &StreamId) -> Option<Owner> {
        self.leases.owner_of(self.shard_of(stream))
    }

    /// This node's name.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// This run of this node, as admissions record it.
    pub(crate) fn served_by(&self) -> String {
        format!("{}/{}", self.node, self.incarnation)
    }

    /// The runs of all nodes, as they are known here at this moment.
    pub(crate) fn runs(&self) -> Runs {
        Runs::of(self.nodes())
    }

    /// Whether this node's lease holds at this moment. If not, others may settle what it serves.
    pub(crate) fn has_lease(&self) -> bool {
        self.leases.is_held()
    }

    /// Waits until this node shows everything that any node had shown before; `false` = it could not be found out in
    /// time. All who ask do it together, so that whoever asks for what is nowhere makes no load.
    pub(crate) async fn reach_head(&self) -> bool {
        tokio::time::timeout(REACH_WAIT, self.looks.look()).await.unwrap_or(false)
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.leases.nodes()
    }

    /// The owner of each shard, by number.
    pub(crate) fn owners(&self) -> Vec<Option<Owner>> {
        (0..self.leases.shards()).map(|shard| self.leases.owner_of(shard)).collect()
    }

    /// How far the replica is.
    pub(crate) fn following(&self) -> Following {
        self.following.now()
    }

    /// Why this node should not be sent requests.
    pub(crate) fn obstacles(&self) -> Vec<String> {
        if let Some(failure) = self.log.failure() {
            return vec![format!("[E0020] this node does not follow the log any more: {failure}")];
        }
        let lapsed = self.leases.lapsed();
        let without_lease = (lapsed > LAPSE_MAX).then(|| {
            format!("this node's lease has not held for {} s: the NATS servers do not answer it", lapsed.as_secs())
        });
        self.away.reasons().into_iter().chain(self.following().obstacle()).chain(without_lease).collect()
    }

    /// Hands all shards over; returns how many nobody has taken in time.
    pub(crate) async fn drain(&self) -> u32 {
        // Closed: nothing is here any more.
        let Ok(turn) = self.leases.turn().await else { return 0 };
        let draining = self.away.stay(|| turn.drain());
        let left = self.leases.handed_over(draining, HANDOVER_WAIT).await;
        info!(left, "shards handed over");
        left
    }

    /// Has a node hand over its shards; returns how many nobody has taken in time.
    ///
    /// # Errors
    /// See `NoReply`.
    pub(crate) async fn drain_node(&self, node: &str) -> Result<u32, NoReply> {
        if node == self.node {
            return Ok(self.drain().await);
        }
        let wait = HANDOVER_WAIT.saturating_add(Duration::from_secs(2));
        let reply = self.requests.ask(node, Bytes::from_static(DRAIN_QUESTION), wait).await?;
        let left = reply.first_chunk().copied().map(u32::from_le_bytes);
        left.ok_or(NoReply::Late)
    }

    /// Stops to renew the lease and to answer others, and gives nothing back.
    pub(crate) fn abandon(&self) {
        self.stop.cancel();
        self.leases.abandon();
    }

    /// Gives everything back and lets go of the log.
    pub(crate) async fn close(&self) {
        if !self.leases.close(HANDOVER_WAIT).await {
            warn!("some shards are taken over only when this node's lease has run out");
        }
        self.stop.cancel();
        self.log.close().await;
        self.following.finish().await;
        self.tasks.close();
        if tokio::time::timeout(TASKS_WAIT, self.tasks.wait()).await.is_err() {
            warn!("what was done for other nodes did not end in time");
        }
        info!(head = self.log.head_position().0, "left the region");
    }
}
