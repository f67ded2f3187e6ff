//! Streamed requests: chunks, usage, cuts, clients that go away.

use events_model::EpisodeId;
use serde_json::{Value, json};
use server::simulate::Options;

use crate::world::{World, chat, events, eventually, read_events, streamed};

fn parsed(event: &str) -> Value {
    serde_json::from_str(event).unwrap()
}

fn text(events: &[String]) -> String {
    let chunks = events.iter().filter(|event| *event != "[DONE]").map(|event| parsed(event));
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_a_plain_answer_says_and_ends_with_usage_if_asked() {
    let world = World::new().await;
    let reply = world.chat(&streamed(20, true)).await;
    assert!(reply.header("content-type").starts_with("text/event-stream"), "{reply:?}");
    assert!(reply.headers.contains_key("x-ratelimit-remaining-tokens"));
    let events = events(&reply.body);
    let (done, rest) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let (usage, chunks) = rest.split_last().unwrap();
    let usage = parsed(usage);
    assert_eq!(usage["choices"], json!([]));
    let id = format!("chatcmpl-{}", reply.request_id());
    assert!(chunks.iter().all(|chunk| parsed(chunk)["id"] == id.as_str() && parsed(chunk)["usage"].is_null()));
    assert!(text(chunks).len() > 5);
    let episode = world.assert_settled(reply.request_id(), "completed").await;
    assert_eq!(usage["usage"]["completion_tokens"], episode.completion_tokens);
    assert_eq!(usage["usage"]["prompt_tokens"], episode.prompt_tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_that_was_not_asked_for_is_not_sent() {
    let world = World::new().await;
    let reply = world.chat(&streamed(20, false)).await;
    let events = events(&reply.body);
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(!String::from_utf8_lossy(&reply.body).contains("usage"));
    world.assert_settled(reply.request_id(), "completed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_reaches_its_reservation_is_cut_cleanly() {
    let options =
        Options { overrun_rate: 1.0, completion_tokens_min: 200, completion_tokens_max: 200, ..Options::default() };
    let world = World::with(options).await;
    let reply = world.chat(&streamed(8, true)).await;
    let events = events(&reply.body);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let usage = parsed(&events[events.len() - 2]);
    let end = parsed(&events[events.len() - 3]);
    assert_eq!(end["choices"][0]["finish_reason"], "length");
    assert_eq!(text(&events).split_whitespace().count(), 8);
    let episode = world.assert_settled(reply.request_id(), "reservation-reached").await;
    assert!(episode.completion_tokens > 8, "the upstream billed what it generated");
    assert_eq!(usage["usage"]["completion_tokens"], episode.completion_tokens);
    // The tenant pays no more than was held; the rest is the operator's.
    let reserved = episode.entries[0].reserved_nano_usd.unwrap();
    assert!(episode.cost_nano_usd <= reserved, "{episode:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_in_a_stream_pays_what_was_used() {
    let options = Options {
        tokens_per_second: 100,
        completion_tokens_min: 900,
        completion_tokens_max: 900,
        ..Options::default()
    };
    let world = World::with(options).await;
    let mut response = world.open(&streamed(900, true)).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_events(response.body_mut(), 5).await;
    drop(response);
    let episode = world.assert_settled(&id, "client-gone").await;
    assert!((3..900).contains(&episode.completion_tokens), "{episode:#?}");
    assert_eq!(world.simulator.stats().client_gone, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_before_its_plain_answer_cancels_the_call() {
    let wait = 10_000;
    let options = Options { ttft_p50_ms: wait, ttft_p90_ms: wait, ttft_p99_ms: wait, ..Options::default() };
    let world = World::with(options).await;
    let request = world.post(chat(10).to_string());
    let call = tokio::spawn(world.client.request(request));
    eventually("the upstream is called", || async { (world.simulator.stats().in_flight == 1).then_some(()) }).await;
    call.abort();
    eventually("the call is cancelled", || async { (world.simulator.stats().in_flight == 0).then_some(()) }).await;
    let id = newest_episode(&world).await;
    world.assert_settled(&id.to_string(), "client-gone").await;
}

async fn newest_episode(world: &World) -> EpisodeId {
    let request = proto::episode::v1::ListEpisodesRequest {
        tenant_id: crate::world::TENANT.to_owned(),
        page_size: 1,
        page_token: String::new(),
    };
    let page = world.episodes().list_episodes(request).await.unwrap().into_inner();
    page.episodes[0].episode_id.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_choices_stream_within_one_reservation() {
    let world = World::new().await;
    let mut body = streamed(10, true);
    body["n"] = json!(3);
    let reply = world.chat(&body).await;
    let events = events(&reply.body);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let episode = world.assert_settled(reply.request_id(), "completed").await;
    assert_eq!(episode.completion_tokens, 30);
}
