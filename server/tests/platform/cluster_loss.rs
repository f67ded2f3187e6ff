//! Nodes that are gone, and shards that are: what a dead node had admitted is settled by the others, one that does not
//! follow the log any more decides nothing, and one that another writer shut out takes its shard again.

use std::time::Duration;

use events_journal::{EventLog as _, contract::fixture::commit};
use events_model::{StreamId, Version};
use proto::{cluster::v1 as pb, tenant::v1 as tenant_pb};
use server::{
    platform::Platform,
    simulate::{Options, Simulator},
};
use tests_kit::nats::NatsServer;

use crate::{
    catch_up::engine,
    cluster::{SHARDS, cluster, join, owners, publish},
    world::{self, World, chat, eventually, read_events, streamed},
};

/// Far longer than any test runs.
const DEADLINE: Duration = Duration::from_secs(3_600);
/// Longest wait until other nodes have noticed and settled: seconds, on an idle machine.
const SOON: Duration = Duration::from_secs(120);

/// One more node before the same upstream.
async fn another(server: &NatsServer, first: &World, name: &str) -> World {
    let directory = tempfile::tempdir().unwrap();
    let mut config = world::config(directory.path(), first.simulator.address());
    config.upstreams[0].total_timeout = DEADLINE;
    join(&mut config, server.url(), name);
    let platform = Platform::start(config.clone()).await.unwrap();
    let (channel, client) = (world::channel(&platform), first.client.clone());
    let (key, key_id) = (first.key.clone(), first.key_id.clone());
    let simulator = Simulator::start(Options::default(), ([127, 0, 0, 1], 0).into()).await.unwrap();
    World { directory, simulator, config, platform, key, key_id, client, channel }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_node_that_died_are_settled_long_before_their_deadlines() {
    let server = NatsServer::start().unwrap();
    let slow = Options {
        tokens_per_second: 100,
        completion_tokens_min: 900,
        completion_tokens_max: 900,
        ..Options::default()
    };
    let one = World::configured(slow, "pro", |config| {
        config.upstreams[0].total_timeout = DEADLINE;
        join(config, server.url(), "one");
    })
    .await;
    let mut two = another(&server, &one, "two").await;
    let three = another(&server, &one, "three").await;
    owners(&two, &["one", "three", "two"]).await;
    let (mut ids, mut bodies) = (Vec::new(), Vec::new());
    for world in [&one, &one, &two] {
        let mut response = world.open(&streamed(900, true)).await;
        ids.push(response.headers()["x-request-id"].to_str().unwrap().to_owned());
        read_events(response.body_mut(), 2).await;
        bodies.push(response.into_body());
    }

    // As a crash would: nothing is settled, no lease given back.
    let World { directory, simulator, platform, .. } = one;
    drop((platform, bodies.drain(..2)));
    two.simulator = simulator;
    for id in &ids[..2] {
        let settled = tokio::time::timeout(SOON, async {
            loop {
                let open = two.tenant().await.open_reservations;
                if open <= 1 {
                    break two.episode(id).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let episode = settled.await.unwrap();
        assert_eq!(episode.end_state, "recovered", "{episode:#?}");
        let tokens = (episode.prompt_tokens, episode.completion_tokens);
        assert!(tokens.1 > 0);
        assert_eq!(tokens, two.billed(id).await, "{episode:#?}");
        assert_eq!(episode.entries[1].principal, "system/recovery");
    }
    // What a live node serves is left alone.
    assert_eq!(two.tenant().await.open_reservations, 1);
    drop(bodies);
    two.assert_settled(&ids[2], "client-gone").await;
    two.platform.shutdown().await;
    three.platform.shutdown().await;
    drop(directory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_follow_any_more_leaves_its_shards_and_says_so() {
    let server = NatsServer::start().unwrap();
    let world = World::configured(Options::default(), "pro", |config| join(config, server.url(), "one")).await;
    owners(&world, &["one"]).await;
    let answer = publish(&server, "fh.log.local.local.0", "no group");
    assert!(answer["seq"].as_u64().is_some(), "{answer}");
    eventually("it has left all its shards", || async {
        let shards = cluster(&world).list_shards(pb::ListShardsRequest {}).await.unwrap().into_inner().shards;
        shards.iter().all(|shard| shard.owner.is_empty()).then_some(())
    })
    .await;
    let ready = world.get("/readyz").await;
    assert_eq!(ready.status, 503);
    let text = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(
        text.contains("[E0020] this node does not follow the log any more") && text.contains("is no group"),
        "{text}"
    );
    eventually("its lease has ended", || async {
        let nodes = cluster(&world).list_nodes(pb::ListNodesRequest {}).await.unwrap().into_inner().nodes;
        (nodes[0].state == "left").then_some(())
    })
    .await;
    assert_eq!(world.chat(&chat(10)).await.status, 503);
    world.platform.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_another_writer_fenced_off_is_taken_again_in_the_same_lease() {
    let server = NatsServer::start().unwrap();
    let world = World::configured(Options::default(), "pro", |config| join(config, server.url(), "one")).await;
    owners(&world, &["one"]).await;
    assert_eq!(world.chat(&chat(10)).await.status, 200);
    let epochs = async || {
        let shards = cluster(&world).list_shards(pb::ListShardsRequest {}).await.unwrap().into_inner().shards;
        shards.into_iter().map(|shard| shard.epoch).collect::<Vec<_>>()
    };
    let before = epochs().await;
    // In the shard of the tenant.
    let folder = tempfile::tempdir().unwrap();
    let (store, log) = engine(&server, folder.path(), SHARDS).await;
    let stream = StreamId::new("app/acme/orders").unwrap();
    log.append(Version(0), commit(&stream, Version(1), "from-elsewhere", 1, 16)).await.unwrap();
    let reply = eventually("the tenant is served again", || async {
        let reply = world.chat(&chat(10)).await;
        assert!([200, 503].contains(&reply.status.as_u16()), "{:?}", reply.body);
        (reply.status == 200).then_some(reply)
    })
    .await;
    world.assert_settled(reply.request_id(), "completed").await;
    assert_eq!(epochs().await, before);
    log.close().await;
    store.close();
    world.platform.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_says_that_it_should_not_be_sent_requests_until_its_lease_holds_again() {
    let server = NatsServer::start().unwrap();
    let world = World::configured(Options::default(), "pro", |config| join(config, server.url(), "one")).await;
    assert_eq!(world.get("/readyz").await.status, 200);
    server.stop_signal().unwrap();
    eventually("it is not ready", || async {
        let ready = world.get("/readyz").await;
        let text = String::from_utf8_lossy(&ready.body).into_owned();
        (ready.status == 503 && text.contains("this node's lease has not held for")).then_some(())
    })
    .await;
    assert_eq!(world.chat(&chat(10)).await.status, 503);
    server.continue_signal().unwrap();
    eventually("it is ready again", || async { (world.get("/readyz").await.status == 200).then_some(()) }).await;
    let reply = eventually("it serves again", || async {
        let reply = world.chat(&chat(10)).await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    world.assert_settled(reply.request_id(), "completed").await;
    // What it knows for sure it says all the same.
    let request = tenant_pb::RevokeApiKeyRequest {
        tenant_id: world::TENANT.to_owned(),
        key_id: world.key_id.clone(),
        ..Default::default()
    };
    assert!(world.tenants().revoke_api_key(request).await.unwrap().into_inner().revoked);
    server.stop_signal().unwrap();
    assert_eq!(world.chat(&chat(10)).await.status, 401);
    server.continue_signal().unwrap();
    world.platform.shutdown().await;
}
