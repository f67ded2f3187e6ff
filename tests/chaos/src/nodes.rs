//! Several nodes as real processes over real NATS servers, and clients that try again until they are answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use events_journal::{Direction, EventLog as _, Filter};
use events_journal_sled::LocalStore;
use events_model::Position;
use parking_lot::Mutex;
use serde_json::Value;
use tests_kit::nats::PASSWORD;
use tokio::task::JoinSet;

use crate::{
    clients::{Http, Outcome},
    money,
    system::{Process, configuration, freehold},
};

/// Commits that are compared at a time.
const PAGE: usize = 1_000;
/// Pause of a client that was told to try again.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A node and where it keeps its replica.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    folder: PathBuf,
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
    nats: String,
    /// What the nodes have in their environments, by name.
    environments: BTreeMap<String, Environment>,
    /// The upstream.
    pub upstream: Process,
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Nodes {
    /// Starts `count` nodes over these servers; the log lies on `replicas` of them.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start(folder: &Path, nats: &str, counts: (usize, usize)) -> Result<Self> {
        Self::start_in(folder, nats, counts, BTreeMap::new()).await
    }

    /// Like `start`; nodes of these names have this in their environments.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start_in(
        folder: &Path,
        nats: &str,
        (count, replicas): (usize, usize),
        environments: BTreeMap<String, Environment>,
    ) -> Result<Self> {
        let binary = freehold()?;
        let mut simulate = Command::new(&binary);
        let upstream = Process::start(simulate.args(["simulate", "--listen", "127.0.0.1:0"])).await?;
        let path = folder.join("freehold.toml");
        let cluster = format!("\n[cluster]\nreplicas = {replicas}\nshards = 64\n");
        // What a dead node leaves open is settled at its deadline.
        let timeouts = configuration(upstream.http).replace("\"30s\"", "\"4s\"").replace("\"20s\"", "\"4s\"");
        fs::write(&path, timeouts.replace("\"5s\"", "\"1s\"") + &cluster).context("write the configuration")?;
        let mut all =
            Self { binary, configuration: path, nats: nats.to_owned(), environments, upstream, nodes: Vec::new() };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        for number in 1..=count {
            let name = format!("n{number}");
            let folder = folder.join(&name);
            let process = all.run(&name, &folder, [any, any]).await?;
            let grpc = process.grpc.context("find the address of gRPC")?;
            all.nodes.push(Node { name, folder, grpc, http: process.http, process });
        }
        Ok(all)
    }

    async fn run(&self, name: &str, data: &Path, [grpc, http]: [SocketAddr; 2]) -> Result<Process> {
        let mut serve = Command::new(&self.binary);
        serve
            .args(["serve", "--nats", &self.nats, "--node", name, "--region", "eu"])
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
        let mut serve = Command::new(&self.binary);
        serve
            .args(["serve", "--nats", &self.nats, "--node", "refused", "--region", "eu"])
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
        let process = self.run(&node.name, &node.folder, [node.grpc, node.http]).await?;
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

/// What clients have seen.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: Mutex<BTreeSet<String>>,
    lost: AtomicUsize,
    retries: AtomicUsize,
    /// When each tenant got its last answer.
    last: Mutex<BTreeMap<String, Instant>>,
    /// Longest time that a tenant was without an answer since it was last asked for.
    gap: Mutex<Duration>,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

#[expect(clippy::disallowed_methods, reason = "the time without service is measured")]
fn now() -> Instant {
    Instant::now()
}

impl Seen {
    fn answered(&self, key: &str, id: String) {
        self.acknowledged.lock().insert(id);
        let now = now();
        let last = self.last.lock().insert(key.to_owned(), now);
        if let Some(last) = last {
            let mut gap = self.gap.lock();
            *gap = (*gap).max(now - last);
        }
    }
}

impl Load {
    /// Starts clients that ask one request after the other, each at one node after the other.
    pub fn start(clients: usize, keys: &[String], targets: &[SocketAddr]) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            let key = keys.get(client % keys.len().max(1)).cloned().unwrap_or_default();
            let targets = targets.to_vec();
            tasks.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Acquire) {
                    number += 1;
                    ask(&seen, &key, &targets, client, number).await;
                }
            });
        }
        Self { seen, stop, tasks }
    }

    /// Requests that were answered so far.
    pub fn answered(&self) -> usize {
        self.seen.acknowledged.lock().len()
    }

    /// Waits until so many more were answered.
    ///
    /// # Errors
    /// They are not within a minute.
    pub async fn more(&self, count: usize) -> Result<()> {
        let wanted = self.answered() + count;
        let wait = async {
            while self.answered() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.context("wait for answers")
    }

    /// Waits until every tenant was answered again.
    ///
    /// # Errors
    /// One is not within a minute.
    pub async fn everybody(&self) -> Result<()> {
        let from = now();
        let wait = async {
            while self.seen.last.lock().values().any(|last| *last < from) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.context("wait for every tenant's answer")
    }

    /// The longest time that any tenant was without an answer since the last call.
    pub fn gap(&self) -> Duration {
        std::mem::take(&mut *self.seen.gap.lock())
    }

    /// Ends; returns the idempotency keys of what was answered, how many were never, and how often it was tried again.
    pub async fn end(mut self) -> (BTreeSet<String>, usize, usize) {
        self.stop.store(true, Ordering::Release);
        while self.tasks.join_next().await.is_some() {}
        let acknowledged = std::mem::take(&mut *self.seen.acknowledged.lock());
        (acknowledged, self.seen.lost.load(Ordering::Acquire), self.seen.retries.load(Ordering::Acquire))
    }
}

/// One request, with the same idempotency key at every try.
async fn ask(seen: &Seen, key: &str, targets: &[SocketAddr], client: usize, number: usize) {
    let id = format!("client-{client}-{number}");
    // A minute of trying.
    for attempt in 0..1_200 {
        let target = targets.get((client + attempt) % targets.len().max(1)).copied();
        let Some(target) = target else { return };
        match Http::new(target).keyed_chat(key, &id).await {
            // 409: an earlier try was admitted and its answer got lost.
            Outcome::Status(200 | 409) => return seen.answered(key, id),
            Outcome::Status(_) | Outcome::Broken => {
                seen.retries.fetch_add(1, Ordering::AcqRel);
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
    seen.lost.fetch_add(1, Ordering::AcqRel);
}

/// What all replicas hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Commits in each.
    pub commits: u64,
    /// How often each commit id is there, by stream.
    pub ids: BTreeMap<(String, String), usize>,
}

/// Reads all replicas side by side: the same bytes at the same positions, versions of each stream without a gap.
///
/// # Errors
/// They differ, or one cannot be read.
pub fn compare(replicas: &[PathBuf]) -> Result<Compared> {
    let stores = replicas.iter().map(|path| LocalStore::open_read_only(path)).collect::<Result<Vec<_>, _>>()?;
    let head = stores.iter().map(|store| store.head_position().0).min().unwrap_or(0);
    let mut found = Compared::default();
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut from = Position(1);
    while from.0 <= head {
        let read = |store: &LocalStore| store.read_log(from, Direction::Forward, &Filter::default(), PAGE);
        let pages = stores.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let first = pages.first().context("there are no replicas")?;
        let len = pages.iter().map(|page| page.commits.len()).min().unwrap_or(0);
        for (index, recorded) in first.commits.iter().take(len).enumerate() {
            for page in &pages {
                ensure!(page.commits.get(index) == Some(recorded), "replicas differ at position {}", recorded.position);
            }
            let view = recorded.view()?;
            let version = versions.entry(view.stream.to_owned()).or_default();
            ensure!(view.first_version == *version + 1, "{} goes on with {}", view.stream, view.first_version);
            *version = view.last_version().0;
            *found.ids.entry((view.stream.to_owned(), view.commit_id.to_owned())).or_default() += 1;
            found.commits += 1;
        }
        from = Position(from.0 + len as u64);
        ensure!(len > 0, "a replica ends before position {from}");
    }
    Ok(found)
}
