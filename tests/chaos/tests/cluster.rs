//! Nodes over NATS: killed, stopped, restarted under load; nothing acknowledged is lost, nothing happens twice.
#![expect(clippy::unwrap_used, reason = "tests may panic, and print what they measured")]

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use rustix::process::Signal;
use tests_chaos::{load::Load, money::books_agree_in, nodes::Nodes, replicas::compare, shim};
use tests_kit::nats::NatsServer;

const CLIENTS: usize = 64;
/// Longest wait until a node knows what another one has done.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);

struct Scene {
    _nats: NatsServer,
    _folder: tempfile::TempDir,
    nodes: Nodes,
    keys: Vec<String>,
}

impl Scene {
    async fn new() -> Self {
        let nats = NatsServer::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let nodes = Nodes::start(folder.path(), &[nats.url(), nats.url(), nats.url()], 1).await.unwrap();
        let keys = (0..16).map(|number| nodes.tenant(&format!("tenant-{number}")).unwrap()).collect();
        Self { _nats: nats, _folder: folder, nodes, keys }
    }

    /// Who decides for shards, as this node knows it.
    fn owners(&self, node: usize) -> BTreeSet<String> {
        let shards = self.nodes.operator(node, &["cluster", "shards"]).unwrap();
        let owner = |shard: &serde_json::Value| shard["owner"].as_str().unwrap().to_owned();
        shards["shards"].as_array().unwrap().iter().map(owner).collect()
    }

    fn load(&self) -> Load {
        let targets: Vec<_> = self.nodes.nodes.iter().map(|node| node.http).collect();
        Load::start(CLIENTS, &self.keys, &targets)
    }
}

/// Every acknowledged request was admitted exactly once, the same on all nodes.
fn check(replicas: &[PathBuf], acknowledged: &BTreeSet<String>) -> u64 {
    let found = compare(replicas).unwrap();
    found.holds_once(acknowledged).unwrap();
    found.commits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_stopped_owners_lose_nothing_and_do_nothing_twice() {
    let mut scene = Scene::new().await;
    let load = scene.load();
    load.more(300).await.unwrap();
    scene.nodes.nodes[0].process.kill().unwrap();
    load.mark();
    let silence = load.silence().await.unwrap();
    eprintln!("owner killed: a tenant was {:.2} s without service", silence.as_secs_f64());
    scene.nodes.restart(0).await.unwrap();
    load.more(300).await.unwrap();
    // Longer than its lease: others take over, and what it still writes when it wakes is refused.
    scene.nodes.nodes[1].process.signal(Signal::STOP).unwrap();
    load.mark();
    let silence = load.silence().await.unwrap();
    eprintln!("owner stopped: a tenant was {:.2} s without service", silence.as_secs_f64());
    tokio::time::sleep(Duration::from_secs(4)).await;
    scene.nodes.nodes[1].process.signal(Signal::CONT).unwrap();
    load.mark();
    load.more(500).await.unwrap();
    let silence = load.silence().await.unwrap();
    eprintln!(
        "owner awake again after more than its lease: a tenant was {:.2} s without service",
        silence.as_secs_f64()
    );
    let (acknowledged, lost, retries) = load.end().await;
    scene.nodes.all_settled().await.unwrap();
    let replicas = scene.nodes.end().unwrap();
    let account = books_agree_in(&replicas[0], scene.nodes.upstream.http).await.unwrap();
    eprintln!("admitted {}, recovered {}, expired {}", account.admitted, account.recovered, account.expired);
    let commits = check(&replicas, &acknowledged);
    eprintln!("{} requests acknowledged, {retries} retries, {commits} commits on each node", acknowledged.len());
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_no_request() {
    let mut scene = Scene::new().await;
    let load = scene.load();
    load.more(200).await.unwrap();
    let mut longest = Duration::ZERO;
    for index in 0..3 {
        load.mark();
        scene.nodes.nodes[index].process.terminate().unwrap();
        scene.nodes.restart(index).await.unwrap();
        load.more(200).await.unwrap();
        longest = longest.max(load.silence().await.unwrap());
    }
    eprintln!("rolling restart: a tenant was at most {:.2} s without service", longest.as_secs_f64());
    let (acknowledged, lost, retries) = load.end().await;
    scene.nodes.all_settled().await.unwrap();
    let replicas = scene.nodes.end().unwrap();
    let account = books_agree_in(&replicas[0], scene.nodes.upstream.http).await.unwrap();
    eprintln!("admitted {}, recovered {}, expired {}", account.admitted, account.recovered, account.expired);
    let commits = check(&replicas, &acknowledged);
    eprintln!("{} requests acknowledged, {retries} retries, {commits} commits on each node", acknowledged.len());
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_over_all_its_shards_and_goes_on_answering() {
    let mut scene = Scene::new().await;
    let load = scene.load();
    load.more(100).await.unwrap();
    let drained = scene.nodes.operator(0, &["cluster", "drain", "n3"]).unwrap();
    assert_eq!(drained["left"], 0);
    // Another node reads of it a moment later.
    let both = BTreeSet::from(["n1".to_owned(), "n2".to_owned()]);
    let known = tokio::time::timeout(KNOWN_WITHIN, async {
        while scene.owners(1) != both {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    known.await.unwrap();
    load.more(200).await.unwrap();
    let (acknowledged, lost, _) = load.end().await;
    scene.nodes.all_settled().await.unwrap();
    let replicas = scene.nodes.end().unwrap();
    let account = books_agree_in(&replicas[0], scene.nodes.upstream.http).await.unwrap();
    eprintln!("admitted {}, recovered {}, expired {}", account.admitted, account.recovered, account.expired);
    check(&replicas, &acknowledged);
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_wrong_is_refused_with_the_reason() {
    let nats = NatsServer::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Nodes::start(folder.path(), &[nats.url()], 1).await.unwrap();
    let ahead = shim::clock_ahead(folder.path(), Duration::from_secs(3_600)).unwrap();
    let text = nodes.refused(folder.path(), ahead).unwrap();
    assert!(text.contains("[E0021]") && text.contains("ahead of that of the NATS servers"), "{text}");
    nodes.end().unwrap();
}
