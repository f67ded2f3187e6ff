//! Which node decides for which shard: leases in a key-value bucket.
//!
//! Every node holds a lease under its name and renews it at a third of its time. Shards are spread over the live nodes
//! by rendezvous hashing; each node takes those that it should have, and gives back those that another one should have
//! when nobody here decides for them any more. Every shard taken has an epoch, higher than all before.
//!
//! Invariants:
//! - at no moment do two nodes say `is_mine` for one shard, as long as the clocks of two nodes run at speeds that differ
//!   by less than a sixth; `rules` says why;
//! - `is_mine` compares the clock at the moment of asking: it needs no task of ours to have run;
//! - nothing is owned by guess: only after the bucket acknowledged a write that replaced exactly what was seen;
//! - a shard is not given back, nor taken again, before the listener acknowledged its loss.
//!
//! It deliberately protects no data: the log's own expected sequence does, also from a node whose clock stood still.

mod assign;
mod bucket;
mod clock;
mod error;
mod limit;
mod record;
mod rules;
mod share;
mod table;
mod task;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::Client;
use events_model::{RegionId, TimestampUs};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::debug;

pub(crate) use self::share::Look;
pub use self::{
    assign::desired_owner,
    clock::{LiveClock, MonotonicClock},
    error::Error,
    limit::{NODE_NAME_BYTES_MAX, NODE_TEXT_BYTES_MAX, NODES_MAX, TTL_DEFAULT, TTL_MAX, TTL_MIN},
    record::{Incarnation, NodeState},
    share::{ensure, server_time, share},
};
use self::{
    bucket::Bucket,
    limit::{COMMANDS_MAX, POLL_MAX, POLL_PART, START_TTLS_MAX, START_WAIT, TICK_PART, WAIT_PART},
    rules::{Core, Profile, Standing},
    table::{Mine, View},
    task::{Command, Task, nanos},
};
use crate::limit::{SHARDS_DEFAULT, SHARDS_MAX};

/// Who a node is and what its region is like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The region, which has one bucket.
    pub region: RegionId,
    /// Name of this node, 1..=`NODE_NAME_BYTES_MAX` of `a-z`, `A-Z`, `0-9`, `-`, `_`; unique in its region.
    pub node: String,
    /// Random, another one at every start of the process.
    pub incarnation: Incarnation,
    /// When the process started.
    pub started_at: TimestampUs,
    /// Where the node can be reached, shown to operators; at most `NODE_TEXT_BYTES_MAX` bytes.
    pub address: String,
    /// Version of the program, shown to operators; at most `NODE_TEXT_BYTES_MAX` bytes.
    pub version: String,
    /// Shards of the region, 1..=`SHARDS_MAX`; the same on all its nodes, for ever.
    pub shards: u32,
    /// How long a lease lasts, `TTL_MIN`..=`TTL_MAX`; the same on all nodes of the region.
    pub ttl: Duration,
    /// Servers that hold the bucket: 1, 3 or 5.
    pub replicas: usize,
}

impl Settings {
    /// Settings with the usual numbers, one replica, and nothing to show.
    pub fn new(region: RegionId, node: &str, incarnation: Incarnation) -> Self {
        Self {
            region,
            node: node.to_owned(),
            incarnation,
            started_at: TimestampUs(0),
            address: String::new(),
            version: String::new(),
            shards: SHARDS_DEFAULT,
            ttl: TTL_DEFAULT,
            replicas: 1,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let setting = |setting, value: String, allowed: String| Err(Error::Setting { setting, value, allowed });
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if !(1..=NODE_NAME_BYTES_MAX).contains(&self.node.len()) || !self.node.bytes().all(is_plain) {
            let allowed = format!("1 to {NODE_NAME_BYTES_MAX} letters, digits, - and _");
            return setting("node", self.node.clone(), allowed);
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return setting("shards", self.shards.to_string(), format!("1 to {SHARDS_MAX}"));
        }
        if !(TTL_MIN..=TTL_MAX).contains(&self.ttl) {
            return setting("ttl", format!("{:?}", self.ttl), format!("{TTL_MIN:?} to {TTL_MAX:?}"));
        }
        if ![1, 3, 5].contains(&self.replicas) {
            return setting("replicas", self.replicas.to_string(), "1, 3 or 5".to_owned());
        }
        for (name, text) in [("address", &self.address), ("version", &self.version)] {
            if text.len() > NODE_TEXT_BYTES_MAX {
                return setting(name, text.clone(), format!("at most {NODE_TEXT_BYTES_MAX} bytes"));
            }
        }
        Ok(())
    }
}

/// A change of what this node decides for.
#[derive(Debug)]
pub enum Change {
    /// The shard is this node's.
    Taken {
        /// The shard.
        shard: u32,
        /// Counts the times that it was taken by any node.
        epoch: u64,
    },
    /// The shard is not this node's any more: `is_mine` says so already. A lease that is only suspended loses nothing.
    Lost {
        /// The shard.
        shard: u32,
        /// As it was taken.
        epoch: u64,
        /// To be dropped, or acknowledged, when nothing is decided any more.
        handover: Handover,
    },
}

/// Holds a lost shard back until nobody decides for it any more. Dropping it acknowledges too.
#[derive(Debug)]
pub struct Handover {
    shard: u32,
    acknowledge: mpsc::Sender<u32>,
}

impl Handover {
    const fn new(shard: u32, acknowledge: mpsc::Sender<u32>) -> Self {
        Self { shard, acknowledge }
    }

    /// Nothing is decided for the shard any more.
    pub fn acknowledge(self) {}
}

impl Drop for Handover {
    fn drop(&mut self) {
        // There is room for all shards.
        if self.acknowledge.try_send(self.shard).is_err() {
            debug!(shard = self.shard, "the leases ended before the loss was acknowledged");
        }
    }
}

/// The changes of one node, in order.
#[derive(Debug)]
pub struct Changes(mpsc::Receiver<Change>);

impl Changes {
    /// The next change; none after the leases were closed.
    pub async fn next(&mut self) -> Option<Change> {
        self.0.recv().await
    }
}

/// Who decides for a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name of the node.
    pub node: String,
    /// Where it can be reached.
    pub address: String,
    /// The epoch in which it was taken.
    pub epoch: u64,
    /// Whether it is this node, at this moment.
    pub here: bool,
}

/// A node as the bucket shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its run.
    pub incarnation: Incarnation,
    /// How it is.
    pub state: NodeState,
    /// Where it can be reached.
    pub address: String,
    /// Version of its program.
    pub version: String,
    /// When its process started.
    pub started_at: TimestampUs,
    /// Shards that it owns.
    pub shards: u32,
    /// Time since its last word was seen here.
    pub last_seen: Duration,
}

#[derive(Debug)]
struct Shared {
    node: String,
    mine: Arc<Mine>,
    view: Arc<RwLock<View>>,
    clock: Arc<dyn MonotonicClock>,
    commands: mpsc::Sender<Command>,
    standing: watch::Receiver<Standing>,
    tracker: TaskTracker,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// This node's part in the leases of its region: a cheap handle. When the last one is dropped without `close`, the
/// lease runs out as if the process had been killed.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Shared>);

impl Leases {
    /// Makes the bucket if needed, takes this node's lease and begins to take shards.
    ///
    /// It waits for the lease of an earlier process of this name to run out, if that process does not renew it.
    ///
    /// # Errors
    /// - `Setting`, `Differs`, `ForeignBucket`, `Unreadable`: nothing was taken; correct what it names.
    /// - `NameTaken`, `TooManyNodes`: nothing was taken.
    /// - `Unavailable`, `Api`: the servers do not answer.
    ///
    /// # Cancel safety
    /// Dropping the future ends the task; a lease that was written runs out.
    pub async fn start(
        client: &Client,
        settings: Settings,
        clock: Arc<dyn MonotonicClock>,
    ) -> Result<(Self, Changes), Error> {
        settings.check()?;
        let bucket = Bucket::new(client, &settings.region, settings.ttl / WAIT_PART);
        bucket.ensure(settings.replicas).await?;
        bucket.agree(&bucket::meta(&settings.region, settings.shards, settings.ttl)).await?;
        let (leases, changes, task) = Self::prepare(&settings, bucket, clock);
        leases.0.tracker.spawn(task.run());
        leases.0.tracker.close();
        leases.wait_for_lease(START_WAIT + settings.ttl * START_TTLS_MAX).await?;
        Ok((leases, changes))
    }

    fn prepare(settings: &Settings, bucket: Bucket, clock: Arc<dyn MonotonicClock>) -> (Self, Changes, Task) {
        let (mine, view) = (Arc::new(Mine::new(settings.shards)), Arc::new(RwLock::new(View::new(settings.shards))));
        let profile = Profile {
            node: settings.node.clone(),
            incarnation: settings.incarnation,
            address: settings.address.clone(),
            version: settings.version.clone(),
            started_at_us: settings.started_at.0,
            shards: settings.shards,
            ttl: nanos(settings.ttl),
            poll_every: nanos((settings.ttl / POLL_PART).min(POLL_MAX)),
        };
        let shards = settings.shards as usize;
        // Taken and Lost of every shard.
        let (changes, changed) = mpsc::channel(2 * shards);
        let (acknowledge, acknowledged) = mpsc::channel(shards);
        let (ask, commands) = mpsc::channel(COMMANDS_MAX);
        let (standing, stands) = watch::channel(Standing::Waiting);
        let stop = CancellationToken::new();
        let task = Task {
            core: Core::new(profile, Arc::clone(&mine), Arc::clone(&view)),
            bucket,
            clock: Arc::clone(&clock),
            tick: settings.ttl / TICK_PART,
            changes,
            acknowledge,
            acknowledged,
            commands,
            standing,
            stop: stop.clone(),
        };
        let shared = Shared {
            node: settings.node.clone(),
            mine,
            view,
            clock,
            commands: ask,
            standing: stands,
            tracker: TaskTracker::new(),
            stop: stop.clone(),
            _guard: stop.drop_guard(),
        };
        (Self(Arc::new(shared)), Changes(changed), task)
    }

    async fn wait_for_lease(&self, wait: Duration) -> Result<(), Error> {
        let mut standing = self.0.standing.clone();
        let settled = standing.wait_for(|standing| *standing != Standing::Waiting);
        let settled = tokio::time::timeout(wait, settled).await;
        let standing = settled.map_err(|_| Error::Unavailable { waited: wait })?.map_err(|_| Error::Closed)?.clone();
        match standing {
            Standing::Held => Ok(()),
            Standing::NameTaken { address } => Err(Error::NameTaken { node: self.0.node.clone(), address }),
            Standing::TooManyNodes { nodes } => Err(Error::TooManyNodes { nodes }),
            Standing::Waiting | Standing::Left => Err(Error::Closed),
        }
    }

    /// Whether this node may decide for a shard at this moment. Two loads and a look at the clock.
    pub fn is_mine(&self, shard: u32) -> bool {
        self.epoch(shard).is_some()
    }

    /// Whether this node's lease holds at this moment.
    pub fn is_held(&self) -> bool {
        self.0.mine.is_held(nanos(self.0.clock.now()))
    }

    /// For how long this node's lease has not held; nothing while it does.
    pub fn lapsed(&self) -> Duration {
        Duration::from_nanos(self.0.mine.lapsed(nanos(self.0.clock.now())))
    }

    /// How often this node's lease began to hold again after it had not: between two gaps nobody else can have decided,
    /// and in each of them nobody may have.
    pub fn gaps(&self) -> u64 {
        self.0.mine.gaps()
    }

    /// The epoch in which a shard is this node's, if it is at this moment.
    pub fn epoch(&self, shard: u32) -> Option<u64> {
        self.0.mine.epoch(shard, || nanos(self.0.clock.now()))
    }

    /// The epoch in which this node has a shard, also while its lease is suspended: it ran out and nobody has ended it
    /// yet. Nothing may be decided on the strength of this; a change tells when the shard is lost.
    pub fn kept(&self, shard: u32) -> Option<u64> {
        self.0.mine.kept(shard)
    }

    /// Who decides for a shard, as far as this node has read; none while nobody does.
    pub fn owner_of(&self, shard: u32) -> Option<Owner> {
        let view = self.0.view.read();
        let entry = view.shard(shard)?;
        let owner = entry.record.owner.as_ref().filter(|owner| !view.is_ended(owner))?;
        let address = view.nodes.get(&owner.node)?.record.address.clone();
        let here = owner.node == self.0.node && self.is_mine(shard);
        Some(Owner { node: owner.node.clone(), address, epoch: entry.record.epoch, here })
    }

    /// All nodes, also those that left in the last minutes, by name.
    pub fn nodes(&self) -> Vec<Node> {
        let now = nanos(self.0.clock.now());
        let view = self.0.view.read();
        let mut owned: HashMap<&str, u32> = HashMap::new();
        for owner in view.shards.iter().flatten().filter_map(|entry| entry.record.owner.as_ref()) {
            if !view.is_ended(owner) {
                *owned.entry(&owner.node).or_default() += 1;
            }
        }
        let node = |(name, entry): (&String, &table::NodeEntry)| Node {
            name: name.clone(),
            incarnation: entry.record.incarnation,
            state: entry.record.state,
            address: entry.record.address.clone(),
            version: entry.record.version.clone(),
            started_at: TimestampUs(entry.record.started_at_us),
            shards: owned.get(name.as_str()).copied().unwrap_or(0),
            last_seen: Duration::from_nanos(now.saturating_sub(entry.seen_at)),
        };
        view.nodes.iter().map(node).collect()
    }

    /// Shards of the region.
    pub fn shards(&self) -> u32 {
        u32::try_from(self.0.view.read().shards.len()).unwrap_or(u32::MAX)
    }

    /// A place among the commands, so that what is decided with it in hand is sent without any more waiting.
    ///
    /// # Errors
    /// `Closed`: the leases were closed.
    ///
    /// # Cancel safety
    /// Nothing is sent until the place is used.
    pub async fn turn(&self) -> Result<Turn<'_>, Error> {
        self.0.commands.reserve().await.map(Turn).map_err(|_| Error::Closed)
    }

    /// Hands everything over and takes nothing more, until `Turn::resume`. Waits as `handed_over` does.
    ///
    /// # Errors
    /// `Closed`: the leases were closed.
    ///
    /// # Cancel safety
    /// Dropping the future does not end the draining.
    pub async fn drain(&self, wait: Duration) -> Result<u32, Error> {
        let draining = self.turn().await?.drain();
        Ok(self.handed_over(draining, wait).await)
    }

    /// Waits until nothing is left here and, if there is another live node, until others have taken it all; at most
    /// `wait`. Returns the shards that nobody has taken by then.
    ///
    /// # Cancel safety
    /// Dropping the future does not end the draining.
    pub async fn handed_over(&self, draining: Draining, wait: Duration) -> u32 {
        let handed_over = async {
            // An error is the end of the task, which the count below shows.
            drop(draining.0.await);
            let mut look = tokio::time::interval(DRAIN_LOOK_EVERY);
            while self.unowned() > 0 && self.0.view.read().live().next().is_some() {
                look.tick().await;
            }
        };
        // What is left is counted either way.
        drop(tokio::time::timeout(wait, handed_over).await);
        self.unowned()
    }

    /// Shards that no other live node owns.
    fn unowned(&self) -> u32 {
        let view = self.0.view.read();
        let owned = |shard: &u32| {
            let owner = view.owner(*shard).filter(|owner| !view.is_ended(owner));
            owner.is_none_or(|owner| owner.node == self.0.node)
        };
        let shards = u32::try_from(view.shards.len()).unwrap_or(u32::MAX);
        u32::try_from((0..shards).filter(owned).count()).unwrap_or(u32::MAX)
    }

    /// Stops at once and gives nothing back, as if the process were killed: the lease runs out.
    pub fn abandon(&self) {
        self.0.stop.cancel();
    }

    /// Gives everything back, ends the lease and stops, within `wait`; whether all was given back. If not, what is
    /// left can be taken when the lease has run out.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the handing over.
    pub async fn close(&self, wait: Duration) -> bool {
        let (asker, answered) = oneshot::channel();
        let closed = async {
            match self.0.commands.send(Command::Close(asker)).await {
                Ok(()) => answered.await.is_ok(),
                Err(_) => true,
            }
        };
        let given_back = tokio::time::timeout(wait, closed).await.unwrap_or(false);
        self.0.stop.cancel();
        self.0.tracker.wait().await;
        given_back
    }
}

/// A place for one command: what is sent first is done first.
#[derive(Debug)]
pub struct Turn<'a>(mpsc::Permit<'a, Command>);

/// Shards that are being handed over.
#[derive(Debug)]
pub struct Draining(oneshot::Receiver<()>);

impl Turn<'_> {
    /// Hands everything over and takes nothing more, until `resume`.
    pub fn drain(self) -> Draining {
        let (asker, answered) = oneshot::channel();
        self.0.send(Command::Drain(asker));
        Draining(answered)
    }

    /// Takes shards again after a `drain`.
    pub fn resume(self) {
        self.0.send(Command::Resume);
    }
}

/// How often a draining node looks whether others have taken its shards.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(20);
