//! This process as one of several nodes: the log on JetStream, leases of shards, commands for other nodes.
//!
//! Invariants: a stream is decided here only while this node's lease of its shard holds *and* the engine has taken the
//! shard, in the same epoch; a shard is given back only after nothing of it is in flight any more.

mod keep;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actors_core::{group::Group, region::Region, tenant::Tenant};
use actors_shell::{
    Placement, Shell,
    remote::{self, Forwarded},
};
use bytes::Bytes;
use chrono::DateTime;
use events_journal::EventLog as _;
use events_journal_nats::{
    ApiError, Credentials, Inbox, Incoming, JetStreamLog, NoReply, OpenError, Options, Ownership, Phase, Progress,
    Requests,
    lease::{self, Changes, Incarnation, Leases, LiveClock, Node, Owner},
};
use events_journal_sled::LocalStore;
use events_model::{RegionId, StreamId, TimestampUs};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::config::{self, Config, KeyError};
use keep::keep;

/// Questions of other nodes that are answered at once.
const QUESTIONS_MAX: usize = 4_096;
/// Asks a node to hand over its shards. No command begins so: those are maps.
const DRAIN_QUESTION: &[u8] = b"\0drain";
/// Longest wait for other nodes to take over what this one hands over.
pub(crate) const HANDOVER_WAIT: Duration = Duration::from_secs(10);
/// How far a node's clock may be from the servers' at its start: deadlines and limits of one node are judged by others.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);
/// How often a node that waits for another one's reply looks whether a third has taken over.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest wait, at the end, for what is done for other nodes.
const TASKS_WAIT: Duration = Duration::from_secs(2);
/// Groups of the stream that the replica of a node that is ready may lack.
const LAG_GROUPS_MAX: u64 = 1_000;
/// Epochs begin with 1.
const NOT_TAKEN: u64 = 0;

/// Why a process cannot be a node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be opened on the servers.
    #[error("open the log on NATS")]
    Log(#[source] OpenError),
    /// No lease can be taken.
    #[error("take part in the region's leases")]
    Lease(#[source] lease::Error),
    /// The password cannot be read.
    #[error("read the password of NATS")]
    Password(#[source] KeyError),
    /// Nothing can be listened to.
    #[error("listen to other nodes")]
    Listen(#[source] ApiError),
    /// This machine's clock and the servers' differ.
    #[error("this machine's clock is {} s {direction} that of the NATS servers ({theirs}); {} s are allowed",
        by.as_secs(), CLOCK_SKEW_MAX.as_secs())]
    ClockSkew {
        /// How much, at least.
        by: Duration,
        /// `ahead of` or `behind`.
        direction: &'static str,
        /// What the servers say.
        theirs: String,
    },
    /// A secret that the first node shared is not one.
    #[error("the {0} that the nodes share is not readable")]
    Secret(&'static str),
}

impl Error {
    /// The number of its page in `docs/errors`, if it has one.
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            Self::Password(_) => Some(KeyError::CODE),
            Self::Log(error) => log_code(error),
            Self::Lease(error) => lease_code(error),
            Self::ClockSkew { .. } => Some("E0021"),
            Self::Listen(_) | Self::Secret(_) => None,
        }
    }
}

const fn log_code(error: &OpenError) -> Option<&'static str> {
    match error {
        OpenError::Unreachable { .. } | OpenError::Api { .. } => Some("E0013"),
        OpenError::Credentials { .. } | OpenError::CredentialsFile { .. } => Some("E0014"),
        OpenError::ServerTooOld { .. } => Some("E0015"),
        OpenError::NoJetStream { .. } => Some("E0016"),
        OpenError::PayloadTooSmall { .. } => Some("E0017"),
        OpenError::ForeignStream { .. } | OpenError::TooFewServers { .. } => Some("E0018"),
        OpenError::Replica { .. } => Some("E0020"),
        OpenError::Option { .. } => Some(config::Error::CODE),
    }
}

const fn lease_code(error: &lease::Error) -> Option<&'static str> {
    match error {
        lease::Error::Setting { .. } => Some(config::Error::CODE),
        lease::Error::ForeignBucket { .. } => Some("E0018"),
        lease::Error::Differs { .. } | lease::Error::NameTaken { .. } | lease::Error::TooManyNodes { .. } => {
            Some("E0019")
        }
        lease::Error::Unavailable { .. } | lease::Error::Api { .. } => Some("E0013"),
        lease::Error::Unreadable { .. } | lease::Error::Closed => None,
    }
}

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
    /// The epoch in which the engine has taken each shard.
    taken: Vec<AtomicU64>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a node that has joined works with.
pub(crate) struct Joined {
    pub(crate) cluster: Arc<Cluster>,
    /// Shards as they are taken.
    pub(crate) shards: mpsc::UnboundedReceiver<u32>,
    changes: Changes,
    told: mpsc::UnboundedSender<u32>,
}

/// A region's log, before its node decides anything.
pub(crate) struct Opened {
    pub(crate) log: JetStreamLog,
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
    pub(crate) async fn open(config: &Config, store: &LocalStore) -> Result<Self, Error> {
        let (replica, checkpoints) = (Arc::new(store.clone()), Arc::new(store.clone()));
        let log = JetStreamLog::open(options(config)?, replica, checkpoints, Handle::current()).await;
        Ok(Self { log: log.map_err(Error::Log)? })
    }

    /// Compares this machine's clock with that of the servers, which all nodes share.
    pub(crate) async fn check_clock(&self, wall: fn() -> TimestampUs) -> Result<(), Error> {
        let options = self.log.options();
        let before = wall();
        let theirs = lease::server_time(&self.log.client(), (&options.region, options.replicas), &options.node).await;
        let theirs = theirs.map_err(Error::Lease)?;
        let after = wall();
        // A time that cannot be read is no reason to stay away.
        let Ok(time) = DateTime::parse_from_rfc3339(&theirs) else { return Ok(()) };
        let at = u64::try_from(time.timestamp_micros()).unwrap_or(0);
        let (ahead, behind) = (before.0.saturating_sub(at), at.saturating_sub(after.0));
        let skew = Duration::from_micros(ahead.max(behind));
        if skew <= CLOCK_SKEW_MAX {
            return Ok(());
        }
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        Err(Error::ClockSkew { by: skew, direction, theirs })
    }

    /// The secret that all nodes of the region have.
    pub(crate) async fn share(&self, name: &'static str, mine: &[u8]) -> Result<Vec<u8>, Error> {
        let options = self.log.options();
        let shared = lease::share(&self.log.client(), (&options.region, options.replicas), name, mine).await;
        shared.map_err(Error::Lease)
    }

    /// Takes this node's lease; shards are taken from now on.
    pub(crate) async fn join(
        self,
        config: &Config,
        incarnation: u128,
        started_at: TimestampUs,
    ) -> Result<Joined, Error> {
        let (cluster, log) = (&config.cluster, self.log);
        let settings = lease::Settings {
            started_at,
            address: config.grpc.listen.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shards: cluster.shards,
            ttl: cluster.lease,
            replicas: cluster.replicas,
            ..lease::Settings::new(config.region.clone(), &cluster.node, Incarnation(incarnation))
        };
        let started = Leases::start(&log.client(), settings, Arc::new(LiveClock)).await;
        let (leases, changes) = started.map_err(Error::Lease)?;
        let taken = (0..cluster.shards).map(|_| AtomicU64::new(NOT_TAKEN)).collect();
        let (requests, node) = (log.requests(), cluster.node.clone());
        let (told, shards) = mpsc::unbounded_channel();
        let cluster = Arc::new(Cluster {
            log,
            leases,
            requests,
            node,
            taken,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        Ok(Joined { cluster, shards, changes, told })
    }
}

impl Joined {
    /// Starts to answer other nodes and to take shards.
    pub(crate) async fn start(self, shells: Shells) -> Result<(Arc<Cluster>, mpsc::UnboundedReceiver<u32>), Error> {
        let Self { cluster, shards, changes, told } = self;
        let inbox = cluster.requests.listen(&cluster.node).await.map_err(Error::Listen)?;
        // Both go on while this node hands its shards over; `close` ends them.
        let stop = cluster.stop.clone();
        let answering = answer_all(Arc::clone(&cluster), inbox, shells);
        cluster.tasks.spawn(async move { stop.run_until_cancelled_owned(answering).await });
        cluster.tasks.spawn(keep(Arc::clone(&cluster), changes, told));
        let (stop, watched) = (cluster.stop.clone(), Arc::clone(&cluster));
        cluster.tasks.spawn(async move { stop.run_until_cancelled_owned(watched.leave_if_stopped()).await });
        Ok((cluster, shards))
    }
}

async fn answer_all(cluster: Arc<Cluster>, mut inbox: Inbox, shells: Shells) {
    let slots = Arc::new(tokio::sync::Semaphore::new(QUESTIONS_MAX));
    while let Some(incoming) = inbox.next().await {
        // Without a slot the question waits here, and at last its caller asks again.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (cluster, shells) = (Arc::clone(&cluster), shells.clone());
        cluster.tasks.clone().spawn(async move {
            answer(&cluster, incoming, &shells).await;
            drop(slot);
        });
    }
}

async fn answer(cluster: &Cluster, incoming: Incoming, shells: &Shells) {
    if incoming.question == DRAIN_QUESTION {
        let left = cluster.drain().await;
        return incoming.reply(Bytes::copy_from_slice(&left.to_le_bytes())).await;
    }
    let kind = remote::stream_of(&incoming.question).map(|stream| stream.kind().to_owned());
    let reply = match kind.as_deref() {
        Some("region") => shells.region.answer(&incoming.question).await,
        Some("group") => shells.groups.answer(&incoming.question).await,
        Some("app") => crate::events::remote::answer(&cluster.log, &incoming.question).await,
        // What is no question for a tenant is answered so.
        Some(_) | None => shells.tenants.answer(&incoming.question).await,
    };
    incoming.reply(reply.into()).await;
}

impl Cluster {
    /// Takes a shard, and takes it again when a late write of its former owner has fenced it off, while the lease holds.
    async fn take(&self, shard: u32, epoch: u64, told: &mpsc::UnboundedSender<u32>) {
        while self.leases.epoch(shard) == Some(epoch) {
            if let Err(error) = self.log.take(shard).await {
                // It was lost meanwhile, or the log has ended.
                info!(shard, epoch, %error, "shard not taken");
                return;
            }
            if self.leases.epoch(shard) != Some(epoch) {
                // Lost while it was taken: the change that says so comes behind this one.
                break;
            }
            self.mark(shard, epoch);
            // Nobody listens any more at the end.
            let _gone = told.send(shard);
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
            let _other = taken.compare_exchange(epoch, NOT_TAKEN, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    fn mark(&self, shard: u32, epoch: u64) {
        if let Some(taken) = self.taken.get(shard as usize) {
            taken.store(epoch, Ordering::Release);
        }
    }

    fn is_taken(&self, shard: u32) -> bool {
        let epoch = self.taken.get(shard as usize).map_or(NOT_TAKEN, |taken| taken.load(Ordering::Acquire));
        epoch != NOT_TAKEN && self.leases.epoch(shard) == Some(epoch)
    }

    /// The log that this node reads and appends to.
    pub(crate) fn log(&self) -> JetStreamLog {
        self.log.clone()
    }

    /// The shard of a stream.
    pub(crate) fn shard_of(&self, stream: &StreamId) -> u32 {
        self.log.shard_of(stream)
    }

    /// This node's name.
    pub(crate) fn node(&self) -> &str {
        &self.node
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
    pub(crate) fn progress(&self) -> Progress {
        self.log.progress()
    }

    /// Why this node should not be sent requests.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if let Some(failure) = self.log.failure() {
            return Some(format!("[E0020] this node does not follow the log any more: {failure}"));
        }
        let Progress { applied, head } = self.progress();
        let behind = head.saturating_sub(applied);
        (behind > LAG_GROUPS_MAX).then(|| format!("this node is {behind} groups behind the log"))
    }

    /// Leaves the shards to other nodes when this one does not follow the log any more.
    async fn leave_if_stopped(&self) {
        let mut health = self.log.watch_health();
        while self.log.failure().is_none() {
            if health.changed().await.is_err() {
                return;
            }
        }
        error!("this node does not follow the log any more and leaves its shards to others");
        self.leases.close(HANDOVER_WAIT).await;
    }

    /// Hands all shards over; returns how many nobody has taken in time.
    pub(crate) async fn drain(&self) -> u32 {
        let left = self.leases.drain(HANDOVER_WAIT).await.unwrap_or(0);
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

    /// Gives everything back and lets go of the log.
    pub(crate) async fn close(&self) {
        if !self.leases.close(HANDOVER_WAIT).await {
            warn!("some shards are taken over only when this node's lease has run out");
        }
        self.stop.cancel();
        self.log.close().await;
        self.tasks.close();
        if tokio::time::timeout(TASKS_WAIT, self.tasks.wait()).await.is_err() {
            warn!("what was done for other nodes did not end in time");
        }
        info!(head = self.log.head_position().0, "left the region");
    }
}

impl Placement for Cluster {
    fn is_here(&self, stream: &StreamId) -> bool {
        self.is_taken(self.shard_of(stream))
    }

    fn forward<'a>(&'a self, stream: &'a StreamId, question: &'a [u8], wait_max: Duration) -> Forwarded<'a> {
        Box::pin(async move {
            let shard = self.shard_of(stream);
            let Some(owner) = self.leases.owner_of(shard).filter(|owner| owner.node != self.node) else {
                return Err(remote::NoReply::Nobody);
            };
            let asking = self.requests.ask(&owner.node, Bytes::copy_from_slice(question), wait_max);
            let moved = async {
                let mut look = tokio::time::interval(LOOK_EVERY);
                let same = |now: Option<Owner>| {
                    now.is_none_or(|now| (now.node, now.epoch) == (owner.node.clone(), owner.epoch))
                };
                while same(self.leases.owner_of(shard)) {
                    look.tick().await;
                }
            };
            let reply = tokio::select! {
                reply = asking => reply,
                // A node that stands still answers nothing; whoever took over can be asked at once.
                () = moved => Err(NoReply::Late),
            };
            reply.map(Vec::from).map_err(|error| match error {
                NoReply::Nobody => remote::NoReply::Nobody,
                NoReply::Late => remote::NoReply::Late,
            })
        })
    }
}
