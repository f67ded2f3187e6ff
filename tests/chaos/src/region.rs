//! A region as it is meant to run: three NATS servers, three nodes, and between each node and the servers a network of
//! its own. What can happen to them, and for how long callers feel it.
//!
//! Every fault ends with the region whole again: all processes run, the network is open, and every tenant was answered.

use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tests_kit::{
    nats::{NatsCluster, READY_WITHIN},
    proxy::{Proxy, Traffic},
};

use crate::{dice::Dice, load::Load, nodes::Nodes, system::LOOK_AGAIN};

/// Servers, and nodes.
const SIZE: usize = 3;
/// The region's log, as its stream is called on the servers, and a subject of it that no shard has.
const LOG: (&str, &str) = ("FH_LOG_EU", "fh.log.eu.probe.0");
/// The same of its leases.
const LEASES: (&str, &str) = ("KV_FH_LEASES_EU", "$KV.FH_LEASES_EU.probe");
/// More than two leases.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(4);
/// One way.
const DELAY: Duration = Duration::from_millis(100);
/// How long the network is slow.
const DELAYED_FOR: Duration = Duration::from_secs(4);
/// Answers between two faults.
const BETWEEN: usize = 100;
/// Longest wait for all nodes to have their shards.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server that leads the log's stream is killed.
    LeaderKilled,
    /// The server that leads the stream of the leases is killed.
    LeasesLeaderKilled,
    /// A node is killed.
    NodeKilled,
    /// A node is killed, and when the others have taken over, one of those.
    TwoNodesKilled,
    /// A node stands still for longer than its lease.
    NodeStopped,
    /// A node reaches no server for longer than its lease.
    NodeCut,
    /// A node's way to the servers is slow.
    NodeDelayed,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LeaderKilled,
        Self::LeasesLeaderKilled,
        Self::NodeKilled,
        Self::TwoNodesKilled,
        Self::NodeStopped,
        Self::NodeCut,
        Self::NodeDelayed,
    ];
}

/// How long a tenant was without service at the most.
#[derive(Debug)]
pub struct Felt {
    /// What happened, and to whom.
    pub fault: String,
    /// The longest silence in each part of it.
    pub parts: Vec<(&'static str, Duration)>,
    /// For a killed leader: how long the servers themselves took no writes to the log's stream, and to that of the
    /// leases.
    pub election: Option<(Duration, Duration)>,
}

impl fmt::Display for Felt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: a tenant was without service for", self.fault)?;
        for (number, (part, silence)) in self.parts.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma} {:.2} s {part}", silence.as_secs_f64())?;
        }
        let Some((log, leases)) = self.election else { return Ok(()) };
        let (log, leases) = (log.as_secs_f64(), leases.as_secs_f64());
        let silence = self.parts.first().map_or(0.0, |(_, silence)| silence.as_secs_f64());
        write!(f, "; the servers took writes to the log after {log:.2} s, to the leases after {leases:.2} s: ")?;
        write!(f, "{:+.2} s to that", silence - log.max(leases))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Region {
    servers: NatsCluster,
    /// Of each node, before each server.
    networks: Vec<Vec<Proxy>>,
    /// The nodes and their upstream.
    pub nodes: Nodes,
    _folder: TempDir,
}

#[expect(clippy::disallowed_methods, reason = "the time without service is measured")]
fn now() -> Instant {
    Instant::now()
}

impl Region {
    /// Starts everything.
    ///
    /// # Errors
    /// A process does not start.
    pub async fn start() -> Result<Self> {
        let servers = NatsCluster::start_unadvertised(SIZE)?;
        let before = |server: &tests_kit::nats::NatsServer| Proxy::before(server.port());
        let network = |_| servers.nodes.iter().map(before).collect::<Result<Vec<_>, _>>();
        let networks = (0..SIZE).map(network).collect::<Result<Vec<_>, _>>().context("start the proxies")?;
        let urls = |network: &Vec<Proxy>| network.iter().map(Proxy::url).collect::<Vec<_>>().join(",");
        let urls: Vec<_> = networks.iter().map(urls).collect();
        let folder = tempfile::tempdir().context("make a folder")?;
        let nodes = Nodes::start(folder.path(), &urls, SIZE).await?;
        Ok(Self { servers, networks, nodes, _folder: folder })
    }

    /// Lets it happen under load, and waits until everybody is answered again.
    ///
    /// # Errors
    /// Somebody is not, or something does not start again.
    pub async fn suffer(&mut self, fault: Fault, dice: &mut Dice, load: &Load) -> Result<Felt> {
        let victim = usize::try_from(dice.within(0..=2))?;
        let other = (victim + usize::try_from(dice.within(1..=2))?) % SIZE;
        let felt = match fault {
            Fault::LeaderKilled => self.kill_leader(LOG.0, load).await,
            Fault::LeasesLeaderKilled => self.kill_leader(LEASES.0, load).await,
            Fault::NodeKilled => self.kill(&[victim], load).await,
            Fault::TwoNodesKilled => self.kill(&[victim, other], load).await,
            Fault::NodeStopped => self.stop(victim, load).await,
            Fault::NodeCut => self.disturb(victim, (Traffic::Hold, LONGER_THAN_A_LEASE), load).await,
            Fault::NodeDelayed => self.disturb(victim, (Traffic::Delay(DELAY), DELAYED_FOR), load).await,
        };
        let felt = felt.with_context(|| format!("{fault:?}"))?;
        self.is_whole().await.with_context(|| format!("after {}", felt.fault))?;
        load.more(BETWEEN).await?;
        Ok(felt)
    }

    async fn kill_leader(&mut self, stream: &str, load: &Load) -> Result<Felt> {
        let leader = self.servers.wait_stream_leader(stream)?;
        let led = [LOG.0, LEASES.0].map(|stream| self.servers.stream_leader(stream) == Some(leader));
        let server = self.servers.nodes.get_mut(leader).context("find the leader")?;
        let report = server.look("/jsz").unwrap_or_default();
        // Without it no consumer is made until the servers have elected another one.
        let cluster = if report["meta_cluster"]["leader"] == server.name() { ", and of the cluster" } else { "" };
        server.kill()?;
        let killed = now();
        load.mark();
        let (mut log, mut leases) = (None, None);
        while log.is_none() || leases.is_none() {
            let takes = |subject| self.servers.nodes.iter().any(|server| server.takes_writes(subject));
            for (known, subject) in [(&mut log, LOG.1), (&mut leases, LEASES.1)] {
                if known.is_none() && takes(subject) {
                    *known = Some(killed.elapsed());
                }
            }
            anyhow::ensure!(killed.elapsed() < READY_WITHIN, "the servers elect nobody");
            tokio::time::sleep(LOOK_AGAIN / 2).await;
        }
        let silence = load.silence().await?;
        load.mark();
        let server = self.servers.nodes.get_mut(leader).context("find the leader")?;
        server.restart()?;
        server.wait_healthy(READY_WITHIN)?;
        let back = load.silence().await?;
        let led = match led {
            [true, true] => "the log and the leases",
            [true, false] => "the log",
            [false, _] => "the leases",
        };
        let fault = format!("killed the leader of {led}{cluster}");
        let parts = vec![("while it was away", silence), ("when it came back", back)];
        Ok(Felt { fault, parts, election: log.zip(leases) })
    }

    async fn kill(&mut self, victims: &[usize], load: &Load) -> Result<Felt> {
        let mut parts = Vec::new();
        for (index, part) in victims.iter().zip(["after the first", "after the second"]) {
            self.nodes.nodes.get_mut(*index).context("find the node")?.process.kill()?;
            load.mark();
            parts.push((part, load.silence().await?));
        }
        load.mark();
        for index in victims {
            self.nodes.restart(*index).await?;
        }
        parts.push(("when back", load.silence().await?));
        Ok(Felt { fault: format!("killed {}", self.names(victims)), parts, election: None })
    }

    async fn stop(&self, victim: usize, load: &Load) -> Result<Felt> {
        let node = self.nodes.nodes.get(victim).context("find the node")?;
        node.process.signal(Signal::STOP)?;
        let stopped = now();
        load.mark();
        load.silence().await?;
        tokio::time::sleep(LONGER_THAN_A_LEASE.saturating_sub(stopped.elapsed())).await;
        let silence = load.silence().await?;
        node.process.signal(Signal::CONT)?;
        load.mark();
        let parts = vec![("while it stood still", silence), ("when it woke", load.silence().await?)];
        Ok(Felt { fault: format!("stopped {}", self.names(&[victim])), parts, election: None })
    }

    async fn disturb(&self, victim: usize, (traffic, time): (Traffic, Duration), load: &Load) -> Result<Felt> {
        let network = self.networks.get(victim).context("find the network")?;
        network.iter().for_each(|proxy| proxy.set_both(traffic));
        let begun = now();
        load.mark();
        load.silence().await?;
        tokio::time::sleep(time.saturating_sub(begun.elapsed())).await;
        let silence = load.silence().await?;
        network.iter().for_each(Proxy::heal);
        load.mark();
        let parts = vec![("meanwhile", silence), ("when the network was whole", load.silence().await?)];
        let fault = format!("{traffic:?} between {} and the servers", self.names(&[victim]));
        Ok(Felt { fault, parts, election: None })
    }

    fn names(&self, nodes: &[usize]) -> String {
        let names = nodes.iter().filter_map(|index| self.nodes.nodes.get(*index)).map(|node| node.name.as_str());
        names.collect::<Vec<_>>().join(", then ")
    }

    /// Waits until every shard has an owner and every node has shards.
    async fn is_whole(&self) -> Result<()> {
        let all: BTreeSet<_> = self.nodes.nodes.iter().map(|node| node.name.clone()).collect();
        let wait = async {
            loop {
                let answer = self.nodes.operator(0, &["cluster", "shards"])?;
                let shards = answer["shards"].as_array().context("read the shards")?;
                let owner = |shard: &Value| shard["owner"].as_str().unwrap_or_default().to_owned();
                let owners: BTreeSet<_> = shards.iter().map(owner).collect();
                if owners == all {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK_AGAIN * 10).await;
            }
        };
        tokio::time::timeout(WHOLE_WITHIN, wait).await.context("wait until every node has shards")?
    }

    /// Ends all nodes politely; returns their replicas.
    ///
    /// # Errors
    /// One ends with an error.
    pub fn end(&mut self) -> Result<Vec<PathBuf>> {
        self.nodes.end()
    }
}
