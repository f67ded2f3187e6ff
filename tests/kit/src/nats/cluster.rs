//! A cluster of servers, each started with `cluster/node.conf`.

use super::{Error, NatsServer, READY_WITHIN, attempt, configurations, ports, wait};

/// The configuration names as many servers as seeds; fewer servers have no majority after a loss.
const NODES_MIN: usize = 3;
/// More than a stream can have replicas.
const NODES_MAX: usize = 5;
/// Between the servers, in tests.
const ROUTE_PASSWORD: &str = "route-in-tests";

/// Servers that replicate streams among each other.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers, by index; they are killed, stopped and restarted one by one.
    pub nodes: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts `nodes` servers, 3 to 5, and waits until JetStream is ready on all.
    ///
    /// # Errors
    /// There is no binary, the size is impossible, or a server does not start.
    pub fn start(nodes: usize) -> Result<Self, Error> {
        Self::start_with(nodes, &[])
    }

    /// The same with servers that do not tell their clients of each other, for clients that must not find a way around
    /// a proxy.
    ///
    /// # Errors
    /// See `start`.
    pub fn start_unadvertised(nodes: usize) -> Result<Self, Error> {
        Self::start_with(nodes, &["--no_advertise"])
    }

    fn start_with(nodes: usize, arguments: &[&str]) -> Result<Self, Error> {
        if !(NODES_MIN..=NODES_MAX).contains(&nodes) {
            return Err(Error::Size { nodes });
        }
        attempt(|| {
            let mut cluster = Self { nodes: launch(nodes, arguments)? };
            for node in &mut cluster.nodes {
                node.wait_healthy(READY_WITHIN)?;
            }
            cluster.wait_complete()?;
            Ok(cluster)
        })
    }

    /// Where clients connect, all servers in order.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(NatsServer::url).collect()
    }

    /// The index of the server that leads a stream by its own account; nothing while an election goes on.
    #[must_use]
    pub fn stream_leader(&self, stream: &str) -> Option<usize> {
        self.nodes.iter().position(|node| {
            let Some(report) = node.look("/jsz?accounts=true&streams=true") else { return false };
            let accounts = report["account_details"].as_array().into_iter().flatten();
            let mut streams = accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
            streams.any(|one| one["name"] == stream && one["cluster"]["leader"] == node.name())
        })
    }

    /// Waits for [`Self::stream_leader`].
    ///
    /// # Errors
    /// Nobody leads the stream in time.
    pub fn wait_stream_leader(&self, stream: &str) -> Result<usize, Error> {
        let leader = wait(READY_WITHIN, || Ok(self.stream_leader(stream)))?;
        leader.ok_or_else(|| Error::TooLate {
            name: "cluster".to_owned(),
            awaited: "led by one of its servers",
            seconds: READY_WITHIN.as_secs(),
            log: self.ends_of_logs(),
        })
    }

    fn ends_of_logs(&self) -> String {
        self.nodes.iter().map(|node| format!("{}:\n{}\n", node.name(), node.end_of_log())).collect()
    }

    /// Each server is connected to all others, and one leads: a stream that is created now finds its replicas.
    fn wait_complete(&mut self) -> Result<(), Error> {
        let size = self.nodes.len();
        for node in &mut self.nodes {
            node.wait_for("part of the complete cluster", READY_WITHIN, |node| {
                let Some(report) = node.look("/jsz") else { return false };
                let meta = &report["meta_cluster"];
                meta["leader"].as_str().is_some_and(|leader| !leader.is_empty()) && meta["cluster_size"] == size
            })?;
        }
        let leads = |node: &NatsServer| {
            let report = node.look("/jsz")?;
            let meta = &report["meta_cluster"];
            let current =
                |peers: &Vec<_>| peers.iter().filter(|peer: &&serde_json::Value| peer["current"] == true).count();
            (meta["leader"] == node.name() && meta["replicas"].as_array().map(current) == Some(size - 1)).then_some(())
        };
        let complete = wait(READY_WITHIN, || Ok(self.nodes.iter().find_map(leads)))?;
        complete.ok_or_else(|| Error::TooLate {
            name: "cluster".to_owned(),
            awaited: "known to its leader as current",
            seconds: READY_WITHIN.as_secs(),
            log: self.ends_of_logs(),
        })
    }
}

fn launch(nodes: usize, arguments: &[&str]) -> Result<Vec<NatsServer>, Error> {
    let routes = (0..nodes).map(|_| ports::reserve()).collect::<Result<Vec<_>, _>>()?;
    let seeds: Vec<_> =
        routes.iter().take(NODES_MIN).map(|port| format!("nats://route:{ROUTE_PASSWORD}@{}", port.address())).collect();
    let start = |(index, route): (usize, ports::Port)| {
        let name = format!("n{}", index + 1);
        let mut environment = vec![
            ("FREEHOLD_NATS_NAME", name.clone()),
            ("FREEHOLD_NATS_ROUTE_LISTEN", route.address()),
            ("FREEHOLD_NATS_ROUTE_PASSWORD", ROUTE_PASSWORD.to_owned()),
        ];
        let keys = ["FREEHOLD_NATS_ROUTE_1", "FREEHOLD_NATS_ROUTE_2", "FREEHOLD_NATS_ROUTE_3"];
        environment.extend(keys.into_iter().zip(seeds.iter().cloned()));
        let configuration = configurations().join("cluster/node.conf");
        let more = (arguments.iter().map(|one| (*one).to_owned()).collect(), environment);
        NatsServer::launch(&name, configuration, ports::reserve()?, ports::reserve()?, vec![route], more)
    };
    routes.into_iter().enumerate().map(start).collect()
}
