//! Nodes of a region on a real NATS server: for what a start is refused, and two nodes that work as one.

use std::{
    collections::BTreeSet,
    error::Error as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use events_journal_sled::{LocalStore, Options as StoreOptions};
use events_model::{StreamId, TenantId, shard::shard_of};
use proto::{
    cluster::v1::{self as pb, cluster_client::ClusterClient},
    tenant::v1 as tenant_pb,
};
use serde_json::{Value, json};
use server::{
    config::Config,
    platform::Platform,
    simulate::{Options, Simulator},
};
use tempfile::TempDir;
use tests_kit::nats::{NatsServer, PASSWORD, USER};
use tonic::{Code, service::interceptor::InterceptedService};

use crate::{
    events_world::reason,
    world::{self, Admin, Reply, World, chat, eventually},
};

/// Longest wait for a start that is refused: it may wait for a lease to run out.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);
/// Few, so that each node has several and all are taken soon.
pub(crate) const SHARDS: u32 = 16;
/// Keys that are used at one node as soon as another has issued them.
const KEYS: u32 = 40;
/// Nothing listens there.
const NOWHERE: &str = "nats://127.0.0.1:1";
/// The stream of the region that everything here belongs to.
const STREAM: &str = "FH_LOG_LOCAL";
pub(crate) const NODES: [&str; 2] = ["one", "two"];

/// Makes a configuration that of a node; its password lies beside its data.
pub(crate) fn join(config: &mut Config, url: String, name: &str) {
    let place = config.data.clone();
    let password = place.join("nats.password");
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    config.data = place.join("data");
    let cluster = &mut config.cluster;
    (cluster.nats, cluster.shards, cluster.password_file) = (url, SHARDS, Some(password));
    name.clone_into(&mut cluster.node);
}

/// A node that is to be refused.
struct Candidate {
    _directory: TempDir,
    config: Config,
}

impl Candidate {
    fn new(url: String, name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = world::config(directory.path(), ([127, 0, 0, 1], 9).into());
        join(&mut config, url, name);
        Self { _directory: directory, config }
    }

    fn password(&self) -> PathBuf {
        self.config.cluster.password_file.clone().unwrap()
    }

    /// Asserts that a start ends with this number and says all of this, and that it lets go of the data directory.
    async fn is_refused(&self, code: &str, says: &[&str]) {
        let started = tokio::time::timeout(REFUSED_WITHIN, Platform::start(self.config.clone())).await.unwrap();
        let error = started.unwrap_err();
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        assert_eq!(error.code(), Some(code), "{text}");
        for says in says {
            assert!(text.contains(says), "{says:?} is not in {text:?}");
        }
        assert!(!text.contains(PASSWORD), "{text}");
        eventually("the data directory is free", || async {
            LocalStore::open(&self.config.data, StoreOptions::default()).map(|store| store.close()).ok()
        })
        .await;
    }
}

/// Waits until nobody is connected, and asserts that the server holds so many streams.
async fn assert_left(server: &NatsServer, streams: u64) {
    eventually("all connections are closed", || async {
        (server.look("/connz")?["num_connections"] == 0).then_some(())
    })
    .await;
    assert_eq!(server.look("/jsz").unwrap()["streams"], streams);
}

/// Asks for something of JetStream, as another program with Freehold's credentials would.
fn ask(server: &NatsServer, api: &str, body: &Value) -> Value {
    let answer = publish(server, &format!("$JS.API.{api}.{STREAM}"), &body.to_string());
    assert_eq!(answer.get("error"), None, "{answer}");
    answer
}

/// Publishes a message, as another program with Freehold's credentials would; returns the answer.
pub(crate) fn publish(server: &NatsServer, subject: &str, body: &str) -> Value {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
    socket.set_read_timeout(Some(world::PATIENCE)).unwrap();
    let connect = json!({ "user": USER, "pass": PASSWORD, "verbose": false });
    let publish = format!("PUB {subject} _INBOX.1 {}\r\n{body}\r\n", body.len());
    socket.write_all(format!("CONNECT {connect}\r\nSUB _INBOX.1 1\r\n{publish}").as_bytes()).unwrap();
    let lines = BufReader::new(socket).lines().map(Result::unwrap);
    let answer = lines.skip_while(|line| !line.starts_with("MSG ")).nth(1).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_a_node_does_not_start() {
    let candidate = Candidate::new(NOWHERE.to_owned(), "one");
    candidate.is_refused("E0013", &["join the cluster", "no NATS server answers at nats://127.0.0.1:1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_wrong_or_missing_credentials_is_refused() {
    let server = NatsServer::start().unwrap();
    let mut candidate = Candidate::new(server.url(), "one");
    fs::write(candidate.password(), "wrong\n").unwrap();
    candidate.is_refused("E0014", &["refuses the credentials", &server.url()]).await;

    fs::remove_file(candidate.password()).unwrap();
    candidate.is_refused("E0008", &["nats.password, which holds the password of NATS"]).await;

    candidate.config.cluster.password_file = None;
    candidate.config.cluster.credentials_file = Some(candidate.config.data.join("no.creds"));
    candidate.is_refused("E0014", &["read the credentials file", "no.creds"]).await;
    assert_left(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_jetstream_is_refused() {
    let text = "server_name: plain\nmax_payload: 8MB\n\
                accounts { F { users: [ { user: freehold, password: $FREEHOLD_NATS_PASSWORD } ] } }";
    let server = NatsServer::start_with(text).unwrap();
    let candidate = Candidate::new(server.url(), "one");
    candidate.is_refused("E0016", &["JetStream is not enabled on NATS server plain"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_messages_are_too_small_is_refused() {
    let text = NatsServer::configuration().unwrap().replace("max_payload: 8MB", "max_payload: 1MB");
    let server = NatsServer::start_with(&text).unwrap();
    let candidate = Candidate::new(server.url(), "one");
    candidate.is_refused("E0017", &["max_payload of NATS server freehold-nats is 1048576 bytes, at least"]).await;
    assert_left(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_somebody_else_is_refused_and_not_changed() {
    let server = NatsServer::start().unwrap();
    let config = json!({
        "name": STREAM, "subjects": ["fh.log.local.>"], "retention": "limits", "storage": "file", "num_replicas": 1,
        "max_msgs": 1_000,
    });
    let made = ask(&server, "STREAM.CREATE", &config);
    let candidate = Candidate::new(server.url(), "one");
    let says = ["stream FH_LOG_LOCAL is not one of Freehold's", "max_msgs is 1000, not -1", "deny_purge is false"];
    candidate.is_refused("E0018", &says).await;
    assert_eq!(ask(&server, "STREAM.INFO", &json!({}))["config"], made["config"]);
    assert_left(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_must_agree_with_its_region_and_have_a_name_of_its_own() {
    let server = NatsServer::start().unwrap();
    let world = World::configured(Options::default(), "pro", |config| join(config, server.url(), "one")).await;

    let mut candidate = Candidate::new(server.url(), "two");
    candidate.config.cluster.shards = 2 * SHARDS;
    candidate.is_refused("E0019", &["stream FH_LOG_LOCAL", "freehold_shards is 16, not 32"]).await;
    candidate.config.cluster.shards = SHARDS;
    candidate.config.cluster.lease = Duration::from_secs(7);
    candidate.is_refused("E0019", &["ttl_ms of this node is 7000, the region has 1500"]).await;
    candidate.config.cluster.lease = world.config.cluster.lease;
    "one".clone_into(&mut candidate.config.cluster.node);
    let address = world.platform.grpc_address();
    candidate.is_refused("E0019", &[&format!("a node named one is alive at {address}")]).await;

    // The node that was there is not disturbed, and the other one is welcome under a name of its own.
    let reply = world.chat(&chat(10)).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    world.assert_settled(reply.request_id(), "completed").await;
    "two".clone_into(&mut candidate.config.cluster.node);
    Platform::start(candidate.config.clone()).await.unwrap().shutdown().await;
    world.platform.shutdown().await;
    assert_left(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_share_is_encrypted_under_the_clusters_secret_and_a_node_without_it_is_refused() {
    let server = NatsServer::start().unwrap();
    let secrets = tempfile::tempdir().unwrap();
    let (right, wrong) = (secrets.path().join("right"), secrets.path().join("wrong"));
    fs::write(&right, "correct horse battery staple\n").unwrap();
    fs::write(&wrong, "another horse battery staple\n").unwrap();
    let world = World::configured(Options::default(), "pro", |config| {
        join(config, server.url(), "one");
        config.cluster.secret_file = Some(right.clone());
    })
    .await;
    let get = json!({ "last_by_subj": "$KV.FH_LEASES_LOCAL.secret.admin-token" }).to_string();
    let stored = publish(&server, "$JS.API.STREAM.MSG.GET.KV_FH_LEASES_LOCAL", &get);
    let stored = stored["message"]["data"].as_str().unwrap();
    assert!(stored.starts_with("+0ZXA"), "{stored} does not begin as what is encrypted");

    let mut candidate = Candidate::new(server.url(), "two");
    for (secret, says) in [(None, "does not have"), (Some(wrong), "does not have")] {
        candidate.config.cluster.secret_file = secret;
        candidate.is_refused("E0019", &["encrypted under a secret that this node", says]).await;
    }
    candidate.config.cluster.secret_file = Some(right);
    let two = Platform::start(candidate.config.clone()).await.unwrap();
    assert_eq!(two.admin_token(), world.platform.admin_token());
    two.shutdown().await;
    world.platform.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_written_without_a_cluster_is_not_mixed_into_a_region() {
    let server = NatsServer::start().unwrap();
    let candidate = Candidate::new(server.url(), "one");
    let mut alone = candidate.config.clone();
    alone.cluster.nats.clear();
    let platform = Platform::start(alone.clone()).await.unwrap();
    let commits = platform.head_position();
    platform.shutdown().await;

    let says = format!("the replica holds {} commits, of which the stream knows nothing", commits.0);
    candidate.is_refused("E0020", &[&says]).await;
    let platform = Platform::start(alone).await.unwrap();
    assert_eq!(platform.head_position(), commits);
    platform.shutdown().await;
}

/// Two nodes of one region, each with an upstream of its own.
pub(crate) async fn two_nodes(server: &NatsServer) -> [World; 2] {
    two_nodes_with(server, |_, _| {}).await
}

/// The second of them configured further, beside the first.
pub(crate) async fn two_nodes_with(server: &NatsServer, further: impl FnOnce(&mut Config, &World)) -> [World; 2] {
    let one = World::configured(Options::default(), "pro", |config| join(config, server.url(), NODES[0])).await;
    let directory = tempfile::tempdir().unwrap();
    let simulator = Simulator::start(Options::default(), ([127, 0, 0, 1], 0).into()).await.unwrap();
    let mut config = world::config(directory.path(), simulator.address());
    join(&mut config, server.url(), NODES[1]);
    further(&mut config, &one);
    let platform = Platform::start(config.clone()).await.unwrap();
    let (channel, client) = (world::channel(&platform), one.client.clone());
    let (key, key_id) = (one.key.clone(), one.key_id.clone());
    let two = World { directory, simulator, config, platform, key, key_id, client, channel };
    [one, two]
}

pub(crate) fn cluster(world: &World) -> ClusterClient<Admin> {
    ClusterClient::new(InterceptedService::new(world.channel.clone(), world.bearer()))
}

/// The owner of each shard, once every shard has one and these nodes have some each.
pub(crate) async fn owners(world: &World, nodes: &[&str]) -> Vec<String> {
    eventually("all shards are owned as they should be", || async {
        let shards = cluster(world).list_shards(pb::ListShardsRequest {}).await.unwrap().into_inner().shards;
        assert_eq!(shards.len(), SHARDS as usize);
        let owners: Vec<_> = shards.into_iter().map(|shard| shard.owner).collect();
        let all: BTreeSet<_> = owners.iter().map(String::as_str).collect();
        (all == nodes.iter().copied().collect()).then_some(owners)
    })
    .await
}

/// A request that a node admits; the key may have been issued at another one just now.
async fn admitted(world: &World) -> Reply {
    let reply = world.chat(&chat(10)).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    reply
}

async fn tenant_at(world: &World, tenant: &str) -> tenant_pb::Tenant {
    let request = tenant_pb::GetTenantRequest { tenant_id: tenant.to_owned() };
    world.tenants().get_tenant(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_administered_and_used_at_whichever_node() {
    let server = NatsServer::start().unwrap();
    let [mut one, mut two] = two_nodes(&server).await;
    assert_eq!(one.platform.admin_token(), two.platform.admin_token());
    let owners = owners(&two, &NODES).await;
    for owner in NODES {
        let is_its = |tenant: &String| {
            let stream = StreamId::tenant(&TenantId::new(tenant).unwrap());
            owners[shard_of(&stream, SHARDS) as usize] == owner
        };
        let tenant_id = (0..).map(|number| format!("tenant-{number}")).find(is_its).unwrap();
        let create = tenant_pb::CreateTenantRequest {
            tenant_id: tenant_id.clone(),
            plan: "pro".to_owned(),
            ..Default::default()
        };
        one.tenants().create_tenant(create).await.unwrap();
        let issue = tenant_pb::IssueApiKeyRequest { tenant_id: tenant_id.clone(), label: "test".to_owned() };
        // A node knows a tenant of another one as soon as its replica has the commit.
        let issued = eventually("the tenant is known", || async {
            let issued = two.tenants().issue_api_key(issue.clone()).await;
            issued.map_err(|status| assert_eq!(reason(&status), "NOT_REGISTERED")).ok()
        })
        .await;
        // Each is known at the other node at once.
        for _ in 0..KEYS {
            one.key = two.tenants().issue_api_key(issue.clone()).await.unwrap().into_inner().secret;
            let models = one.get("/v1/models").await;
            assert_eq!(models.status, 200, "{:?}", models.body);
        }
        let key = issued.into_inner().secret;
        (one.key, two.key) = (key.clone(), key);
        let mut spent = 0;
        for world in [&one, &two] {
            let reply = admitted(world).await;
            let episode = world.episode(reply.request_id()).await;
            assert_eq!(episode.end_state, "completed", "{episode:?}");
            let tokens = (episode.prompt_tokens, episode.completion_tokens);
            assert_eq!(tokens, world.billed(reply.request_id()).await, "{episode:?}");
            spent += episode.cost_nano_usd;
        }
        // A ceiling that is set at one node binds at the other.
        let budget = tenant_pb::SetBudgetRequest {
            tenant_id: tenant_id.clone(),
            period: tenant_pb::Period::Day.into(),
            limit_nano_usd: Some(spent),
        };
        two.tenants().set_budget(budget).await.unwrap();
        let reply = one.chat(&chat(10)).await;
        assert_eq!(reply.error()["code"], "insufficient_quota", "{:?}", reply.body);
        for world in [&one, &two] {
            eventually("both nodes show the same", || async {
                let shown = tenant_at(world, &tenant_id).await;
                let is_same = (shown.requests_settled, shown.cost_nano_usd, shown.open_reservations) == (2, spent, 0);
                (is_same && shown.budgets.iter().any(|budget| budget.limit_nano_usd == Some(spent))).then_some(())
            })
            .await;
        }
    }
    two.platform.shutdown().await;
    one.platform.shutdown().await;
    assert_left(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_and_their_shards_are_listed_and_a_node_that_is_drained_still_serves() {
    let server = NatsServer::start().unwrap();
    let [one, two] = two_nodes(&server).await;
    owners(&one, &NODES).await;
    for (world, name) in [(&one, NODES[0]), (&two, NODES[1])] {
        let nodes = eventually("every shard is counted", || async {
            let nodes = cluster(world).list_nodes(pb::ListNodesRequest {}).await.unwrap().into_inner().nodes;
            (nodes.iter().map(|node| node.shards).sum::<u32>() == SHARDS).then_some(nodes)
        })
        .await;
        assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), NODES);
        for node in &nodes {
            assert_eq!((node.state.as_str(), node.is_this), ("live", node.name == name), "{node:?}");
            assert!(node.shards > 0 && !node.address.is_empty() && !node.version.is_empty(), "{node:?}");
        }
        let listed = cluster(world).list_shards(pb::ListShardsRequest {}).await.unwrap().into_inner();
        assert!(listed.head > 0 && listed.shards.iter().all(|shard| shard.epoch > 0), "{listed:?}");
    }

    let drain = |name: &str| pb::DrainNodeRequest { name: name.to_owned() };
    let status = cluster(&one).drain_node(drain("three")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NO_SUCH_NODE"));
    assert_eq!(cluster(&one).drain_node(drain(NODES[1])).await.unwrap().into_inner().left, 0);
    owners(&two, &[NODES[0]]).await;
    let reply = admitted(&two).await;
    two.assert_settled(reply.request_id(), "completed").await;
    two.platform.shutdown().await;
    one.platform.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_nats_answers_that_there_is_no_cluster() {
    let world = World::new().await;
    let status = cluster(&world).list_nodes(pb::ListNodesRequest {}).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NO_CLUSTER"));
    let status = cluster(&world).list_shards(pb::ListShardsRequest {}).await.unwrap_err();
    assert_eq!(reason(&status), "NO_CLUSTER");
    let request = pb::DrainNodeRequest { name: "one".to_owned() };
    assert_eq!(reason(&cluster(&world).drain_node(request).await.unwrap_err()), "NO_CLUSTER");
}
