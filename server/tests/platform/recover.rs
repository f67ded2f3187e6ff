//! What a crash leaves behind is settled by the next start.

use std::time::Duration;

use server::{config::Config, platform::Platform, simulate::Options};

use crate::world::{World, channel, eventually, read_events, streamed};

/// Stops the platform at once, as a crash would, and starts it again; the simulator and its books stay.
async fn crash(world: World, change: impl FnOnce(&mut Config)) -> World {
    let World { directory, simulator, mut config, platform, key, key_id, client, channel: old } = world;
    drop((platform, old));
    change(&mut config);
    // The lock is free when the last task has noticed.
    let platform = eventually("the log is free", || async { Platform::start(config.clone()).await.ok() }).await;
    let channel = channel(&platform);
    World { directory, simulator, config, platform, key, key_id, client, channel }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_server_died_settles_for_what_its_upstream_billed() {
    let options = Options {
        tokens_per_second: 100,
        completion_tokens_min: 900,
        completion_tokens_max: 900,
        ..Options::default()
    };
    let world = World::with(options).await;
    let mut response = world.open(&streamed(900, true)).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_events(response.body_mut(), 3).await;
    let world = crash(world, |_| {}).await;
    let episode = world.assert_settled(&id, "recovered").await;
    assert!(episode.completion_tokens > 0);
    assert_eq!(episode.entries[1].principal, "system/recovery");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_can_be_asked_about_expires_by_its_deadline() {
    let options = Options {
        tokens_per_second: 100,
        completion_tokens_min: 900,
        completion_tokens_max: 900,
        ..Options::default()
    };
    let world = World::configured(options, "pro", |config| {
        // The deadline is the call's time and the grace.
        config.upstreams[0].usage_lookup_path = None;
        config.upstreams[0].total_timeout = Duration::from_millis(2_500);
        config.requests.reservation_grace = Duration::from_millis(500);
    })
    .await;
    let mut response = world.open(&streamed(900, true)).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_events(response.body_mut(), 3).await;
    let world = crash(world, |_| {}).await;
    assert_eq!(world.tenant().await.open_reservations, 1);
    let episode = world.episode(&id).await;
    assert_eq!((episode.end_state.as_str(), episode.cost_nano_usd), ("expired", 0));
    assert_eq!(world.tenant().await.open_reservations, 0);
}
