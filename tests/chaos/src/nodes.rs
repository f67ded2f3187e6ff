//! Several nodes as real processes over real NATS servers.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests_kit::nats::PASSWORD;

use crate::{
    money,
    system::{Process, configuration, freehold},
};

/// A node and where it keeps its replica.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    folder: PathBuf,
    /// Where it finds the servers.
    nats: String,
    grpc: SocketAddr,
    /// Where its HTTP listens, over restarts.
    pub http: SocketAddr,
    /// Its process.
    pub process: Process,
}

/// Variables of a process.
pub type Environment = Vec<(&'static str, OsString)>;

/// A simulated upstream and nodes before it.
#[derive(Debug)]
pub struct Nodes {
    binary: PathBuf,
    configuration: PathBuf,
    /// What the nodes have in their environments, by name.
    environments: BTreeMap<String, Environment>,
    /// The upstream.
    pub upstream: Process,
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Nodes {
    /// Starts one node for each of these lists of servers; the log lies on `replicas` of them.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start(folder: &Path, nats: &[String], replicas: usize) -> Result<Self> {
        Self::start_in(folder, nats, replicas, BTreeMap::new()).await
    }

    /// Like `start`; nodes of these names have this in their environments.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start_in(
        folder: &Path,
        nats: &[String],
        replicas: usize,
        environments: BTreeMap<String, Environment>,
    ) -> Result<Self> {
        let binary = freehold()?;
        let mut simulate = Command::new(&binary);
        let upstream = Process::start(simulate.args(["simulate", "--listen", "127.0.0.1:0"])).await?;
        let path = folder.join("freehold.toml");
        let cluster = format!("\n[cluster]\nreplicas = {replicas}\n");
        // What a dead node leaves open is settled at its deadline.
        let timeouts = configuration(upstream.http).replace("\"30s\"", "\"4s\"").replace("\"20s\"", "\"4s\"");
        fs::write(&path, timeouts.replace("\"5s\"", "\"1s\"") + &cluster).context("write the configuration")?;
        let mut all = Self { binary, configuration: path, environments, upstream, nodes: Vec::new() };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        for (number, nats) in (1..).zip(nats) {
            let name = format!("n{number}");
            let folder = folder.join(&name);
            let process = all.run(&name, (&folder, nats), [any, any]).await?;
            let grpc = process.grpc.context("find the address of gRPC")?;
            all.nodes.push(Node { name, folder, nats: nats.clone(), grpc, http: process.http, process });
        }
        Ok(all)
    }

    async fn run(&self, name: &str, (data, nats): (&Path, &str), [grpc, http]: [SocketAddr; 2]) -> Result<Process> {
        let mut serve = Command::new(&self.binary);
        serve
            .args(["serve", "--nats", nats, "--node", name, "--region", "eu"])
            .args(["--grpc-listen", &grpc.to_string(), "--http-listen", &http.to_string()])
            .args(["--log-filter", "error"])
            .arg("--config")
            .arg(&self.configuration)
            .arg("--data")
            .arg(data)
            .env("FREEHOLD_NATS_PASSWORD", PASSWORD)
            .envs(self.environments.get(name).into_iter().flatten().cloned());
        Process::start(&mut serve).await
    }

    /// Tries to start one more node with this in its environment; returns what it says while it refuses.
    ///
    /// # Errors
    /// It starts.
    pub fn refused(&self, folder: &Path, environment: Vec<(&'static str, OsString)>) -> Result<String> {
        let nats = &self.nodes.first().context("find a node")?.nats;
        let mut serve = Command::new(&self.binary);
        serve
            .args(["serve", "--nats", nats, "--node", "refused", "--region", "eu"])
            .args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log-filter", "error"])
            .arg("--config")
            .arg(&self.configuration)
            .arg("--data")
            .arg(folder.join("refused"))
            .env("FREEHOLD_NATS_PASSWORD", PASSWORD)
            .envs(environment);
        let output = serve.output().context("run the node")?;
        ensure!(!output.status.success(), "the node started");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a node that has ended again, at the same addresses.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get(index).context("find the node")?;
        let process = self.run(&node.name, (&node.folder, &node.nats), [node.grpc, node.http]).await?;
        self.nodes.get_mut(index).context("find the node")?.process = process;
        Ok(())
    }

    /// Runs an operator's command against a node and reads its JSON.
    ///
    /// # Errors
    /// It fails, or prints no JSON.
    pub fn operator(&self, index: usize, arguments: &[&str]) -> Result<Value> {
        let node = self.nodes.get(index).context("find the node")?;
        let output = Command::new(&self.binary)
            .args(arguments)
            .args(["--json", "--server", &format!("http://{}", node.grpc)])
            .arg("--data")
            .arg(&node.folder)
            .output()
            .context("run the command")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} printed no JSON"))
    }

    /// Creates a tenant of the largest plan; returns a key of it.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn tenant(&self, name: &str) -> Result<String> {
        self.operator(0, &["tenant", "create", name, "--plan", "enterprise"])?;
        let key = self.operator(1, &["key", "create", name])?;
        key["secret"].as_str().map(str::to_owned).context("read the key")
    }

    /// Waits until everything that was admitted is settled.
    ///
    /// # Errors
    /// Something stays open.
    pub async fn all_settled(&self) -> Result<()> {
        let node = self.nodes.first().context("find a node")?;
        money::all_settled_in(&node.folder, self.upstream.http).await
    }

    /// Ends all nodes politely; returns their replicas.
    ///
    /// # Errors
    /// One ends with an error.
    pub fn end(&mut self) -> Result<Vec<PathBuf>> {
        for node in &mut self.nodes {
            node.process.terminate()?;
        }
        Ok(self.nodes.iter().map(|node| node.folder.clone()).collect())
    }
}
