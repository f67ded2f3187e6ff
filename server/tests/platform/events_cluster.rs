//! Consumer groups of several nodes on a real NATS server: consumed at whichever node, while the deciding node changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use events_model::{StreamId, TenantId, shard::shard_of};
use futures::StreamExt as _;
use proto::{cluster::v1 as cluster_pb, events::v1 as pb};
use serde_json::Value;
use server::simulate::Options;
use tests_kit::nats::{NatsServer, PASSWORD};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    cluster::{NODES, SHARDS, cluster, join, owners, two_nodes, two_nodes_with},
    events_world::{Client, Consumer, admin, assert_field, client, event, group, neighbour, of, reason, text},
    world::{PATIENCE, World, eventually},
};

/// Few deliveries at once, so that a consumer that acknowledges nothing shows the bound.
const IN_FLIGHT: u32 = 3;

/// A tenant that a node decides for.
fn tenant_of(owners: &[String], node: &str) -> String {
    let is_its = |tenant: &String| {
        let stream = StreamId::tenant(&TenantId::new(tenant).unwrap());
        owners[shard_of(&stream, SHARDS) as usize] == node
    };
    (0..).map(|number| format!("tenant-{number}")).find(is_its).unwrap()
}

/// Appends so many events to a few streams of a tenant.
async fn append(events: &mut Client, tenant: &str, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let request = pb::AppendRequest {
            stream: format!("app/{tenant}/s{}", number % 5),
            expected: pb::Expected::Any.into(),
            commit_id: format!("c{number}"),
            events: vec![event("n", &number.to_string())],
            ..pb::AppendRequest::default()
        };
        eventually("the append is taken", || async {
            let appended = events.clone().append(request.clone()).await;
            appended.map_err(|status| assert!(is_passing(&status), "{status:?}")).ok()
        })
        .await;
    }
}

/// Whether trying again helps, and says so. A node hears of a tenant a moment after another one has registered it.
fn is_passing(status: &Status) -> bool {
    let is_unknown = || ["NOT_REGISTERED", "NO_SUCH_GROUP"].contains(&reason(status).as_str());
    (status.code() == Code::Unavailable && status.get_error_details().retry_info().is_some())
        || (status.code() == Code::NotFound && is_unknown())
        || status.code() == Code::Unauthenticated
}

fn start(tenant: &str) -> pb::Start {
    pb::Start {
        tenant: tenant.to_owned(),
        group: "g".to_owned(),
        in_flight_max: IN_FLIGHT,
        consumer_version: "test 2".to_owned(),
    }
}

/// Consumes as soon as a node can.
async fn consume(events: &Client, tenant: &str) -> Consumer {
    eventually("the group can be consumed", || async {
        let started = Consumer::start(&mut events.clone(), start(tenant)).await;
        started.map_err(|status| assert!(is_passing(&status), "{status:?}")).ok()
    })
    .await
}

/// What was delivered, and how often.
#[derive(Debug, Default)]
struct Seen {
    times: BTreeMap<u32, u32>,
    versions: BTreeMap<String, u64>,
    positions: BTreeSet<u64>,
}

impl Seen {
    /// Takes deliveries until this many events were seen or the stream ends, which must be retryable.
    async fn take(&mut self, consumer: &mut Consumer, all: usize) {
        while self.times.len() < all {
            let next = tokio::time::timeout(PATIENCE, consumer.deliveries.next()).await.unwrap();
            // A stream that ends says why.
            match next.unwrap() {
                Ok(delivered) => {
                    let delivery = delivered.delivery.unwrap();
                    self.count(&delivery);
                    // Nobody may be there to take it; then it comes again.
                    let ack = pb::Ack { deliveries: vec![delivery.id.unwrap()] };
                    consumer.asks.send(of(pb::consume_request::Message::Ack(ack))).await.ok();
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
                    return;
                }
            }
        }
    }

    fn count(&mut self, delivery: &pb::Delivery) {
        let commit = delivery.commit.as_ref().unwrap();
        let times = self.times.entry(text(delivery).parse().unwrap()).or_default();
        *times += 1;
        let version = commit.events[0].version;
        self.positions.insert(commit.position);
        let newest = self.versions.entry(commit.stream.clone()).or_default();
        // One that comes for the first time comes behind all earlier ones of its stream.
        assert!(*times > 1 || version == *newest + 1, "{}@{version} after {newest}", commit.stream);
        *newest = version.max(*newest);
    }
}

/// A position from one node is good at another one at once, although its copy may be a moment behind.
async fn assert_positions_hold(here: &mut Client, there: &mut Client, tenant: &str) {
    for number in 0..20 {
        let request = pb::AppendRequest {
            stream: format!("app/{tenant}/other"),
            expected: pb::Expected::Any.into(),
            commit_id: format!("o{number}"),
            events: vec![event("other", "x")],
            ..pb::AppendRequest::default()
        };
        let position = there.append(request).await.unwrap().into_inner().position;
        let from = pb::SubscribeRequest { from_position: position + 1, ..Default::default() };
        here.subscribe(from).await.unwrap();
    }
    let far = pb::SubscribeRequest { from_position: 1_000_000, ..Default::default() };
    assert_field(here.subscribe(far).await, "from_position");
}

/// A consumer goes to the deciding node with its own credential, and is not sent further.
async fn assert_it_is_relayed_once(one: &World, here: &mut Client) {
    let status = Consumer::start(&mut client(one, "fhk_nobody_x"), start("")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let (asks, queue) = tokio::sync::mpsc::channel(1);
    asks.send(of(pb::consume_request::Message::Start(start("")))).await.unwrap();
    let mut relayed = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(queue));
    // What was meant for another run of a node is not for this one.
    relayed.metadata_mut().insert("freehold-relayed", format!("{}/0", NODES[0]).parse().unwrap());
    let status = here.consume(relayed).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "OWNER_UNREACHABLE"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_address_leads_to_another_one_is_told_to_be_unreachable() {
    let server = NatsServer::start().unwrap();
    let address = |of: &World| of.platform.grpc_address().to_string();
    let [one, two] = two_nodes_with(&server, |config, one| config.grpc.advertise = address(one)).await;
    let tenant = tenant_of(&owners(&one, &NODES).await, NODES[1]);
    let key = neighbour(&one, &tenant).await;
    let events = client(&one, &key);
    eventually("the call comes back to the node that relayed it", || async {
        let status = Consumer::start(&mut events.clone(), start("")).await.unwrap_err();
        assert!(is_passing(&status), "{status:?}");
        (reason(&status) == "OWNER_UNREACHABLE").then_some(())
    })
    .await;
    two.platform.shutdown().await;
    one.platform.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_consumed_and_redriven_at_a_node_that_does_not_decide_and_outlives_a_drain() {
    const HALF: u32 = 40;
    let server = NatsServer::start().unwrap();
    let [one, two] = two_nodes(&server).await;
    let tenant = tenant_of(&owners(&one, &NODES).await, NODES[1]);
    let key = neighbour(&one, &tenant).await;
    let mut here = client(&one, &key);
    let types = vec!["n".to_owned()];
    let create = pb::CreateGroupRequest { attempts_max: 1, in_flight_max: 100, types, ..group("g") };
    eventually("the group is created", || async {
        let created = here.clone().create_group(create.clone()).await;
        created.map_err(|status| assert!(is_passing(&status), "{status:?}")).ok()
    })
    .await;
    append(&mut here, &tenant, 0..HALF).await;
    assert_positions_hold(&mut here, &mut client(&two, &key), &tenant).await;
    assert_it_is_relayed_once(&one, &mut here).await;

    // Not more than the consumer wants, and what it does wrong it hears.
    let mut consumer = consume(&here, "").await;
    let mut held = Vec::new();
    for _ in 0..IN_FLIGHT {
        held.push(consumer.next().await);
    }
    assert_eq!(held.iter().map(|held| &held.commit.as_ref().unwrap().stream).collect::<BTreeSet<_>>().len(), 3);
    assert!(consumer.is_quiet(300).await);
    consumer.nack(&held[0], "cannot").await;
    let mut seen = Seen::default();
    held.iter().for_each(|held| seen.count(held));
    consumer.ack_all(held[1..].iter().map(|held| held.id.unwrap()).collect()).await;
    seen.take(&mut consumer, HALF as usize).await;

    // Parked by the deciding node, redriven at this one, delivered over the same stream.
    let list = pb::ListParkedRequest { group: "g".to_owned(), ..Default::default() };
    let parked = eventually("it is parked", || async {
        let page = here.clone().list_parked(list.clone()).await.unwrap().into_inner();
        page.parked.into_iter().next()
    })
    .await;
    assert_eq!((parked.error.as_str(), parked.consumer_version.as_str()), ("cannot", "test 2"));
    let replay = pb::ReplayParkedRequest { group: "g".to_owned(), ..Default::default() };
    assert_eq!(here.replay_parked(replay).await.unwrap().into_inner().redriven, 1);
    let delivery = consumer.next().await;
    assert!(delivery.redriven && text(&delivery) == text(&held[0]), "{delivery:?}");
    consumer.ack(&delivery).await;

    // A wrong message is refused by the deciding node in the same words.
    let mut wrong = consume(&here, "").await;
    wrong.asks.send(of(pb::consume_request::Message::Start(start("")))).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, wrong.deliveries.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    // Acknowledged, recorded, and the node hands its shards over.
    let get = pb::GetGroupRequest { tenant: String::new(), name: "g".to_owned() };
    eventually("everything is settled", || async {
        let group = here.clone().get_group(get.clone()).await.unwrap().into_inner();
        (group.lag < 20 && group.redriven == 0).then_some(())
    })
    .await;
    let drain = cluster_pb::DrainNodeRequest { name: NODES[1].to_owned() };
    assert_eq!(cluster(&one).drain_node(drain).await.unwrap().into_inner().left, 0);
    append(&mut client(&two, &key), &tenant, HALF..2 * HALF).await;
    let all = 2 * HALF as usize;
    while seen.times.len() < all {
        // By the node that is drained, which still serves.
        seen.take(&mut consumer, all).await;
        consumer = consume(&client(&two, &key), "").await;
    }
    assert!(seen.times.values().all(|times| *times == 1), "{:?}", seen.times);
    two.platform.shutdown().await;
    one.platform.shutdown().await;
}

/// A node in a process of its own, so that it can be killed.
struct Node(Child);

impl Node {
    fn run(server: &NatsServer, of: &World, data: &std::path::Path) -> Self {
        let mut config = of.config.clone();
        (config.data, config.cluster.password_file) = (data.join("data"), None);
        NODES[1].clone_into(&mut config.cluster.node);
        "error".clone_into(&mut config.telemetry.filter);
        let file = data.join("freehold.toml");
        std::fs::write(&file, config.to_toml().unwrap()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_freehold"))
            .args(["serve", "--json", "--nats", &server.url(), "--config"])
            .arg(file)
            .env("FREEHOLD_NATS_PASSWORD", PASSWORD)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert!(ready["grpc"].is_string(), "{line}");
        Self(child)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_deciding_node_is_killed_goes_on_at_the_node_that_was_asked() {
    const ALL: u32 = 300;
    const BEFORE: usize = 100;
    /// Those that may be acknowledged and not recorded when the node is killed.
    const NEWEST: usize = 10;
    let server = NatsServer::start().unwrap();
    let one = World::configured(Options::default(), "pro", |config| join(config, server.url(), NODES[0])).await;
    let data = tempfile::tempdir().unwrap();
    let two = Node::run(&server, &one, data.path());
    let tenant = tenant_of(&owners(&one, &NODES).await, NODES[1]);
    neighbour(&one, &tenant).await;
    let mut events = admin(&one);
    let create = pb::CreateGroupRequest { tenant: tenant.clone(), ..group("g") };
    eventually("the group is created", || async {
        let created = events.clone().create_group(create.clone()).await;
        created.map_err(|status| assert!(is_passing(&status), "{status:?}")).ok()
    })
    .await;
    append(&mut events, &tenant, 0..ALL).await;
    let mut consumer = consume(&events, &tenant).await;
    let mut seen = Seen::default();
    seen.take(&mut consumer, BEFORE).await;
    assert_eq!(seen.times.len(), BEFORE);
    let recorded = *seen.positions.iter().nth(BEFORE - NEWEST).unwrap();
    let get = pb::GetGroupRequest { tenant: tenant.clone(), name: "g".to_owned() };
    eventually("most of it is recorded", || async {
        let group = events.clone().get_group(get.clone()).await.unwrap().into_inner();
        (group.checkpoint >= recorded).then_some(())
    })
    .await;
    let killed = std::time::Instant::now();
    drop(two);
    seen.take(&mut consumer, ALL as usize).await;
    println!("the stream had ended {:?} after the kill", killed.elapsed());
    while seen.times.len() < ALL as usize {
        consumer = consume(&events, &tenant).await;
        println!("consumed again {:?} after the kill", killed.elapsed());
        seen.take(&mut consumer, ALL as usize).await;
    }
    let again = seen.times.values().filter(|times| **times > 1).count();
    println!("delivered again after the kill: {again} of {ALL}");
    assert!(again <= NEWEST + IN_FLIGHT as usize, "{again}");
    drop(consumer);
    tokio::time::timeout(Duration::from_secs(60), one.platform.shutdown()).await.unwrap();
}
