//! A node that is gone: what it had admitted is settled by the others, long before its deadlines.

use std::time::Duration;

use server::{
    platform::Platform,
    simulate::{Options, Simulator},
};
use tests_kit::nats::NatsServer;

use crate::{
    cluster::{join, owners},
    world::{self, World, read_events, streamed},
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
