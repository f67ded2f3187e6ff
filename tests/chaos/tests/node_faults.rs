//! One node of three whose disk fails, or whose clock goes wrong, while it runs: it gives its shards to the others, its
//! callers are answered all the same, and it takes part again when the fault is over.
#![expect(clippy::unwrap_used, reason = "tests may panic, and print what they measured")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tests_chaos::{
    clients::Http,
    load::Load,
    money::books_agree_in,
    nodes::{Environment, Nodes},
    replicas::compare,
    shim::{self, Fault, FaultSwitch, Shim},
};
use tests_kit::nats::NatsServer;

const CLIENTS: usize = 32;
/// The node with the fault.
const FAULTY: usize = 1;
/// Longest wait until a fault, or its end, is noticed; a clock is compared a few times a minute.
const NOTICE: Duration = Duration::from_secs(90);

struct Scene {
    _nats: NatsServer,
    nodes: Nodes,
}

impl Scene {
    async fn new(folder: &Path, environment: Environment) -> Self {
        let nats = NatsServer::start().unwrap();
        let environments = BTreeMap::from([("n2".to_owned(), environment)]);
        let nodes = Nodes::start_in(folder, &[nats.url(), nats.url(), nats.url()], 1, environments).await.unwrap();
        Self { _nats: nats, nodes }
    }

    fn faulty(&self) -> Http {
        Http::new(self.nodes.nodes[FAULTY].http)
    }

    /// Waits until the faulty node is ready or not; returns what it says then.
    async fn until_ready_is(&self, status: u16) -> String {
        let wait = async {
            loop {
                if let Ok((found, text)) = self.faulty().get("/readyz").await
                    && found == status
                {
                    return String::from_utf8_lossy(&text).into_owned();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(NOTICE, wait).await.unwrap()
    }

    /// Waits until the faulty node decides for some shards, or for none.
    async fn until_decides(&self, some: bool) {
        let wait = async {
            loop {
                let shards = self.nodes.operator(0, &["cluster", "shards"]).unwrap();
                let shards = shards["shards"].as_array().unwrap();
                let owned = shards.iter().filter(|shard| shard["owner"] == "n2").count();
                if (owned > 0) == some && shards.iter().all(|shard| shard["owner"] != "") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(NOTICE, wait).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_refuses_gives_its_shards_away_and_takes_part_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("n2");
    fs::create_dir(&data).unwrap();
    let (shim, switch) = (Shim::compile(folder.path()).unwrap(), FaultSwitch::new(folder.path()));
    let mut environment = shim.environment(&data).unwrap();
    environment.push(switch.environment());
    let mut scene = Scene::new(folder.path(), environment).await;
    let keys: Vec<_> = (0..16).map(|number| scene.nodes.tenant(&format!("tenant-{number}")).unwrap()).collect();
    let targets: Vec<_> = scene.nodes.nodes.iter().map(|node| node.http).collect();
    let load = Load::start(CLIENTS, &keys, &targets);
    load.more(200).await.unwrap();
    load.mark();
    switch.begin(Fault::DiskFull).unwrap();
    let told = scene.until_ready_is(503).await;
    assert!(told.contains("[E0003]") && told.contains("other nodes decide meanwhile"), "{told}");
    scene.until_decides(false).await;
    let silence = load.silence().await.unwrap();
    eprintln!("disk full: a tenant was {:.2} s without service", silence.as_secs_f64());
    load.more(200).await.unwrap();
    load.mark();
    switch.end().unwrap();
    scene.until_ready_is(200).await;
    scene.until_decides(true).await;
    load.more(200).await.unwrap();
    let silence = load.silence().await.unwrap();
    eprintln!("disk works: a tenant was {:.2} s without service", silence.as_secs_f64());
    let (acknowledged, lost, retries) = load.end().await;
    assert_eq!(lost, 0);
    scene.nodes.all_settled().await.unwrap();
    let replicas: Vec<PathBuf> = scene.nodes.end().unwrap();
    let account = books_agree_in(&replicas[0], scene.nodes.upstream.http).await.unwrap();
    eprintln!("{} acknowledged, {retries} retries, admitted {}", acknowledged.len(), account.admitted);
    compare(&replicas).unwrap().holds_once(&acknowledged).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_goes_wrong_gives_its_shards_away_until_it_agrees_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seconds");
    let environment = shim::clock_of(folder.path(), &file).unwrap();
    let mut scene = Scene::new(folder.path(), environment).await;
    scene.until_decides(true).await;
    fs::write(&file, "60").unwrap();
    let told = scene.until_ready_is(503).await;
    assert!(told.contains("[E0021]") && told.contains("ahead of that of the NATS servers"), "{told}");
    scene.until_decides(false).await;
    let (_, metrics) = scene.faulty().get("/metrics").await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    let skew = metrics.lines().find_map(|line| line.strip_prefix("freehold_clock_skew_seconds ")).unwrap();
    assert!((50.0..70.0).contains(&skew.parse::<f64>().unwrap()), "{skew}");
    fs::remove_file(&file).unwrap();
    scene.until_ready_is(200).await;
    scene.until_decides(true).await;
    scene.nodes.end().unwrap();
}
