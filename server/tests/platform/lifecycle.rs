//! Start and end: what is written once, what conflicts, what a shutdown settles.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use events_model::NanoUsd;
use http_body_util::BodyExt as _;
use proto::episode::v1 as pb;
use serde_json::Value;
use server::{
    platform::{Platform, StartError},
    simulate::Options,
};

use crate::world::{PATIENCE, World, chat, config, eventually, read_events, streamed};

fn slow() -> Options {
    Options { tokens_per_second: 50, completion_tokens_min: 900, completion_tokens_max: 900, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_written_once_and_keys_outlive_a_restart() {
    let world = World::new().await;
    let token = world.platform.admin_token().to_owned();
    for name in ["admin-token", "key-pepper"] {
        let path = world.directory.path().join(name);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_to_string(world.directory.path().join("admin-token")).unwrap(), token);
    let first = world.chat(&chat(5)).await;
    let world = world.restart(|_| {}).await;
    assert_eq!(world.platform.admin_token(), token);
    assert_eq!(world.chat(&chat(5)).await.status.as_u16(), 200);
    world.assert_settled(first.request_id(), "completed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_book_is_recorded_when_prices_change_and_only_then() {
    let world = World::new().await;
    let head = world.platform.head_position();
    let world = world.restart(|_| {}).await;
    assert_eq!(world.platform.head_position(), head);
    let reply = world.chat(&chat(5)).await;
    let world = world.restart(|config| config.upstreams[0].models[0].input_usd_per_mtok = NanoUsd(1)).await;
    let dear = world.chat(&chat(5)).await;
    let version = async |id: &str| {
        let episode = world.assert_settled(id, "completed").await;
        let payload: Value = serde_json::from_str(&episode.entries[0].payload_json).unwrap();
        let text = payload.to_string();
        let at = text.find("price_book_version").unwrap();
        text[at..].chars().find(char::is_ascii_digit).unwrap()
    };
    assert_eq!((version(reply.request_id()).await, version(dear.request_id()).await), ('1', '2'));
    let request = pb::GetStateRequest { stream: "region/local".to_owned(), at: None };
    let state = world.episodes().get_state(request).await.unwrap().into_inner();
    assert_eq!(serde_json::from_str::<Value>(&state.state_json).unwrap()["price_book_version"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_use_or_missing_is_an_error_with_a_number() {
    let world = World::new().await;
    let start = async |config| Platform::start(config).await.unwrap_err();
    let error: StartError = start(world.config.clone()).await;
    assert_eq!(error.code(), Some("E0001"), "{error:?}");
    let other = tempfile::tempdir().unwrap();
    let mut config = config(other.path(), world.simulator.address());
    config.http.listen = world.platform.http_address();
    assert_eq!(start(config.clone()).await.code(), Some("E0007"));
    config.http.listen.set_port(0);
    config.upstreams[0].api_key_file = Some(other.path().join("nothing"));
    assert_eq!(start(config.clone()).await.code(), Some("E0008"));
    config.upstreams[0].api_key_file = None;
    fs::write(other.path().join("admin-token"), "?").unwrap();
    assert_eq!(start(config).await.code(), Some("E0009"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_a_stream_finish_and_settles_it() {
    let options = Options { completion_tokens_min: 60, completion_tokens_max: 60, ..slow() };
    let world = World::with(options).await;
    let mut response = world.open(&streamed(900, true)).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_events(response.body_mut(), 3).await;
    let rest = tokio::spawn(response.into_body().collect());
    let world = world.restart(|_| {}).await;
    let rest = tokio::time::timeout(PATIENCE, rest).await.unwrap().unwrap().unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "{rest:?}");
    world.assert_settled(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_cuts_a_stream_that_takes_too_long_and_settles_what_was_used() {
    let world = World::configured(slow(), "pro", |config| {
        config.requests.drain_timeout = Duration::from_secs(2);
    })
    .await;
    let mut response = world.open(&streamed(900, true)).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_events(response.body_mut(), 3).await;
    let rest = tokio::spawn(response.into_body().collect());
    let world = world.restart(|_| {}).await;
    let rest = tokio::time::timeout(PATIENCE, rest).await.unwrap().unwrap().unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("service_unavailable"), "{rest:?}");
    let episode = world.assert_settled(&id, "timed-out").await;
    assert!(episode.completion_tokens < 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_without_work_is_quick() {
    let world = World::new().await;
    // An idle connection of each surface is open.
    assert_eq!(world.chat(&chat(5)).await.status.as_u16(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(3), world.platform.shutdown()).await;
    ended.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_log_refuses_requests_are_503_and_it_goes_on_by_itself() {
    let world = World::new().await;
    let (log, away) = (world.directory.path().join("log"), world.directory.path().join("away"));
    let copy = |from: &Path, to: &Path| {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            // The store prepares its next segment under a name of its own meanwhile.
            if entry.path().extension().is_some_and(|kind| kind == "seg") {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    copy(&log, &away);
    fs::remove_dir_all(&log).unwrap();
    // The first one meets the failure, those behind it are refused at once.
    eventually("the log refuses", || async {
        let reply = world.chat(&chat(5)).await;
        assert_eq!(reply.status.as_u16(), 503, "{reply:?}");
        assert_eq!(reply.header("retry-after"), "1");
        reply.error();
        let ready = world.get("/readyz").await;
        (ready.status.as_u16() == 503).then_some(())
    })
    .await;
    let obstacles = world.get("/readyz").await.json()["obstacles"].to_string();
    assert!(obstacles.contains("the data directory was removed"), "{obstacles}");
    assert_eq!(world.simulator.stats().requests, 0, "nobody is called");
    copy(&away, &log);
    eventually("the log accepts", || async { (world.get("/readyz").await.status.as_u16() == 200).then_some(()) }).await;
    let reply = world.chat(&chat(5)).await;
    assert_eq!(reply.status.as_u16(), 200, "{reply:?}");
    world.assert_settled(reply.request_id(), "completed").await;
}
