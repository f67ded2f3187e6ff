//! A node that joins a region with an empty directory: it catches up before it takes part, and shows how far it is.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use events_journal::{EventLog as _, contract::fixture::commit};
use events_journal_nats::{Credentials, JetStreamLog, Options};
use events_journal_sled::{LocalStore, Options as StoreOptions};
use events_model::{RegionId, StreamId, Version};
use http::Request;
use http_body_util::Full;
use proto::events::v1::{self as pb, events_client::EventsClient};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use server::{platform::Platform, simulate::Options as Simulated};
use tests_kit::nats::{NatsServer, PASSWORD, USER};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    runtime::Handle,
    time::timeout,
};
use tonic::{Code, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::{
    cluster::join,
    events_world::reason,
    world::{self, World},
};

const STREAMS: u64 = 40;
const COMMITS_PER_STREAM: u64 = 100;
const COMMITS: u64 = STREAMS * COMMITS_PER_STREAM;
const SHARDS: u32 = 64;
/// Longest wait for a process.
const PATIENCE: Duration = Duration::from_secs(90);

/// A writer of the region's log beside its nodes, which asks nobody whether it may.
pub(crate) async fn engine(server: &NatsServer, folder: &Path, shards: u32) -> (LocalStore, JetStreamLog) {
    let store = LocalStore::open(folder, StoreOptions::default()).unwrap();
    let region = RegionId::new("local").unwrap();
    let options = Options {
        servers: vec![server.url()],
        credentials: Credentials::Password { user: USER.to_owned(), password: PASSWORD.to_owned() },
        region: region.clone(),
        zone: region,
        shards,
        ..Options::default()
    };
    let (replica, checkpoints) = (Arc::new(store.clone()), Arc::new(store.clone()));
    let log = JetStreamLog::open(options, replica, checkpoints, Handle::current()).await.unwrap();
    (store, log)
}

/// Fills a region's log as another node would, and leaves; returns the groups it has.
async fn fill(server: &NatsServer, folder: &Path) -> u64 {
    let (store, log) = engine(server, folder, SHARDS).await;
    for version in 0..COMMITS_PER_STREAM {
        let receipts: Vec<_> = (0..STREAMS)
            .map(|number| {
                // Streams of a tenant of its own each lie in many shards, so that there are many groups.
                let stream = StreamId::new(&format!("app/tenant-{number}/orders")).unwrap();
                log.append(Version(version), commit(&stream, Version(version + 1), &format!("c-{version}"), 1, 64))
            })
            .collect();
        for receipt in receipts {
            receipt.await.unwrap();
        }
    }
    let groups = log.progress().head;
    log.close().await;
    store.close();
    groups
}

/// A process of the binary in a directory of its own.
struct Node {
    child: Child,
    ready: Value,
}

impl Node {
    async fn start(server: &NatsServer, data: &Path, errors: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_freehold"))
            .args(["serve", "--json", "--nats", &server.url(), "--node", "joins", "--data"])
            .arg(data)
            .args(["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--log-filter", "info"])
            .arg("--config")
            .arg(errors.with_file_name("freehold.toml"))
            .env("FREEHOLD_NATS_PASSWORD", PASSWORD)
            .stdout(Stdio::piped())
            .stderr(File::create(errors).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        timeout(PATIENCE, output.read_line(&mut line)).await.unwrap().unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{}", fs::read_to_string(errors).unwrap()));
        Self { child, ready }
    }

    /// Asks its HTTP.
    async fn get(&self, path: &str) -> String {
        let uri = format!("http://{}{path}", self.ready["http"].as_str().unwrap());
        let client = world::client();
        let request = Request::get(uri).body(http_body_util::Full::default()).unwrap();
        let body = timeout(PATIENCE, client.request(request)).await.unwrap().unwrap().into_body();
        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    async fn end(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().success());
    }
}

/// What `freehold log stat` prints.
async fn stat(data: &Path, more: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_freehold"));
    let output = command.args(["log", "stat", "--data"]).arg(data).args(more).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_with_nothing_catches_up_first_and_shows_how_far_it_is() {
    let server = NatsServer::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let groups = fill(&server, &folder.path().join("other")).await;
    assert!(groups > 1_000, "{groups} groups are not far behind");
    let (data, errors) = (folder.path().join("data"), folder.path().join("errors"));
    fs::write(folder.path().join("freehold.toml"), format!("[cluster]\nshards = {SHARDS}\nlease = \"1500ms\"\n"))
        .unwrap();

    let node = Node::start(&server, &data, &errors).await;
    let told = fs::read_to_string(&errors).unwrap();
    let behind = format!("catching up with the log applied=0 head={groups} behind={groups}");
    let caught_up = format!("caught up with the log groups={groups} commits={COMMITS}");
    for line in [&behind, &caught_up] {
        assert!(told.contains(line), "{line:?} is not in {told}");
    }
    // Only then is anything decided here.
    assert!(told.find(&caught_up) < told.find("lease taken"), "{told}");

    let metrics = node.get("/metrics").await;
    let gauge = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(gauge("freehold_follower_applied_groups") >= groups, "{metrics}");
    let (applied, head) = (gauge("freehold_follower_applied_groups"), gauge("freehold_follower_head_groups"));
    assert_eq!(gauge("freehold_follower_lag_groups"), head - applied);

    // Beside the process, and when it has ended.
    let shown: Value = serde_json::from_str(&stat(&data, &["--json"]).await).unwrap();
    let follower = &shown["follower"];
    assert_eq!(follower["region"], "local", "{shown}");
    assert!(follower["head"].as_u64().unwrap() >= groups, "{shown}");
    node.end().await;
    let shown: Value = serde_json::from_str(&stat(&data, &["--json"]).await).unwrap();
    let (applied, head) = (shown["follower"]["applied"].as_u64().unwrap(), shown["follower"]["head"].as_u64().unwrap());
    assert_eq!(shown["follower"]["behind"].as_u64().unwrap(), head - applied, "{shown}");
    let table = stat(&data, &[]).await;
    assert!(table.contains("\nfollows   ") && table.contains("groups of region local"), "{table}");
    // A log of one process follows nobody.
    assert!(!stat(&folder.path().join("other"), &[]).await.contains("follows"));
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_caught_up_and_still_starts_answers_on_both_ports() {
    let server = NatsServer::start().unwrap();
    let first = World::configured(Simulated::default(), "pro", |config| {
        join(config, server.url(), "joins");
        // So long a node of this name waits, once the first one is gone without a word.
        config.cluster.lease = Duration::from_secs(10);
    })
    .await;
    let World { directory, mut config, platform, client, .. } = first;
    drop(platform);
    config.data = directory.path().join("anew");
    (config.http.listen, config.grpc.listen) = (free_port(), free_port());
    let (http, grpc) = (config.http.listen, config.grpc.listen);
    let starting = tokio::spawn(Platform::start(config));
    let ready = world::eventually("HTTP says that it starts, caught up", || async {
        let request = |path: &str| Request::get(format!("http://{http}{path}")).body(Full::<Bytes>::default()).unwrap();
        let healthy = timeout(PATIENCE, client.request(request("/healthz"))).await.unwrap().ok()?;
        assert_eq!(healthy.status(), 200);
        let answer = timeout(PATIENCE, client.request(request("/readyz"))).await.unwrap().ok()?;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.ok()?.to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        (!text.contains("behind the log")).then_some(text)
    })
    .await;
    assert!(ready.contains("the node is starting"), "{ready}");
    let channel = Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect_lazy();
    let mut events = EventsClient::new(channel);
    let asked = timeout(PATIENCE, events.list_groups(pb::ListGroupsRequest::default()));
    let status = asked.await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "STARTING"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    assert!(!starting.is_finished());
    let platform = timeout(PATIENCE, starting).await.unwrap().unwrap().unwrap();
    world::eventually("the same port serves", || async {
        let asked = events.clone().list_groups(pb::ListGroupsRequest::default()).await;
        (asked.unwrap_err().code() == Code::Unauthenticated).then_some(())
    })
    .await;
    platform.shutdown().await;
}
