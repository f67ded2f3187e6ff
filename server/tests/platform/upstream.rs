//! Upstreams that fail, in every way they can; the client hears it, the books agree.

use std::time::Duration;

use proto::episode::v1::Episode;
use serde_json::{Value, json};
use server::simulate::Options;

use crate::world::{World, chat, events, eventually, read_events, streamed};

const LONG: Options = Options {
    seed: 1,
    models: Vec::new(),
    api_key: None,
    ttft_p50_ms: 0,
    ttft_p90_ms: 0,
    ttft_p99_ms: 0,
    tokens_per_second: 0,
    completion_tokens_min: 200,
    completion_tokens_max: 200,
    error_500_rate: 0.0,
    error_503_rate: 0.0,
    cut_rate: 0.0,
    stall_rate: 0.0,
    stall_ms: 0,
    malformed_rate: 0.0,
    overrun_rate: 0.0,
    rate_limit_every_ms: 0,
    rate_limit_for_ms: 0,
    records_max: 1_000,
};

fn long() -> Options {
    Options { models: Options::default().models, ..LONG }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_refuses_costs_nothing() {
    for (options, status) in [
        (Options { error_500_rate: 1.0, ..long() }, 502),
        (Options { error_503_rate: 1.0, ..long() }, 503),
        (Options { rate_limit_every_ms: 3_600_000, rate_limit_for_ms: 3_600_000, ..long() }, 429),
        (Options { api_key: Some("other".to_owned()), ..long() }, 502),
    ] {
        // The lookup needs the upstream's key as well; a refusal is not looked up.
        let world = World::with(options).await;
        for body in [chat(10), streamed(10, true)] {
            let reply = world.chat(&body).await;
            assert_eq!(reply.status.as_u16(), status);
            reply.error();
            assert_eq!(reply.headers.contains_key("retry-after"), [429, 503].contains(&status));
            let episode = world.episode(reply.request_id()).await;
            assert_eq!(episode.end_state, "upstream-failed");
            assert_eq!((episode.cost_nano_usd, episode.completion_tokens), (0, 0));
        }
        assert_eq!(world.tenant().await.open_reservations, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_ends_with_an_error_and_settles() {
    let world = World::with(Options { cut_rate: 1.0, ..long() }).await;
    let reply = world.chat(&streamed(100, true)).await;
    assert_eq!(reply.status.as_u16(), 200);
    let events = events(&reply.body);
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "bad_gateway");
    world.assert_settled(reply.request_id(), "upstream-cut").await;
    let reply = world.chat(&chat(100)).await;
    assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (502, &json!("bad_gateway")));
    let episode = world.assert_settled(reply.request_id(), "upstream-failed").await;
    assert!(episode.completion_tokens > 0, "the upstream bills what it generated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_stalls_times_out_and_settles() {
    let world = World::with(Options { stall_rate: 1.0, stall_ms: 60_000, ..long() }).await;
    let reply = world.chat(&streamed(100, true)).await;
    let events = events(&reply.body);
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "gateway_timeout");
    world.assert_settled(reply.request_id(), "timed-out").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_cannot_be_read_is_an_error_and_settles() {
    let world = World::with(Options { malformed_rate: 1.0, ..long() }).await;
    let reply = world.chat(&chat(100)).await;
    assert_eq!(reply.status.as_u16(), 502);
    world.assert_settled(reply.request_id(), "upstream-failed").await;
    let reply = world.chat(&streamed(100, true)).await;
    assert!(String::from_utf8_lossy(&reply.body).contains("bad_gateway"));
    world.assert_settled(reply.request_id(), "upstream-cut").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_not_there_is_unavailable_and_costs_nothing() {
    let world = World::configured(Options::default(), "pro", |config| {
        config.upstreams[0].base_url = "http://127.0.0.1:1/v1".to_owned();
        config.upstreams[0].connect_timeout = Duration::from_secs(1);
    })
    .await;
    let reply = world.chat(&chat(10)).await;
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, "1"));
    assert!(!String::from_utf8_lossy(&reply.body).contains("127.0.0.1"), "addresses are not the client's business");
    assert_eq!(world.assert_settled(reply.request_id(), "upstream-failed").await.cost_nano_usd, 0);
}

/// A world whose upstream keeps no record that could be asked.
async fn without_lookup(options: Options) -> World {
    World::configured(options, "pro", |config| config.upstreams[0].usage_lookup_path = None).await
}

/// A prompt of some length, whose tokens the upstream counts in its own way.
const PROMPT: &str = "You are a careful assistant of a bank. Answer in two short paragraphs, name your sources, and \
    never give advice on taxes. The customer asks: what happened to the 1,250.00 EUR that I sent to my landlord on the \
    3rd of November, and when will the money arrive?";

/// Asserts that a request was settled by our own count, near to what its upstream billed and within what was held.
async fn assert_counted(world: &World, request_id: &str, end_state: &str) -> Episode {
    let episode = world.episode(request_id).await;
    assert_eq!(episode.end_state, end_state, "{episode:#?}");
    assert!(episode.entries[1].payload_json.contains("counted"), "{episode:#?}");
    let (billed, _) = world.billed(request_id).await;
    let off = episode.prompt_tokens.abs_diff(billed);
    assert!(billed > 0 && off * 10 <= billed, "{} prompt tokens settled, {billed} billed", episode.prompt_tokens);
    assert!(episode.completion_tokens <= 100, "{episode:#?}");
    assert!(episode.cost_nano_usd <= episode.entries[0].reserved_nano_usd.unwrap());
    assert_eq!(world.tenant().await.open_reservations, 0);
    episode
}

fn with_prompt(mut body: Value) -> Value {
    body["messages"][0]["content"] = json!(PROMPT);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lookup_a_broken_answer_is_counted_near_to_what_was_billed() {
    let world = without_lookup(Options { cut_rate: 1.0, ..long() }).await;
    let reply = world.chat(&with_prompt(streamed(100, true))).await;
    let episode = assert_counted(&world, reply.request_id(), "upstream-cut").await;
    let words = events(&reply.body).len() as u64 - 1;
    assert!(episode.completion_tokens + 2 >= words, "{words} words: {episode:#?}");
    let reply = world.chat(&with_prompt(chat(100))).await;
    let episode = assert_counted(&world, reply.request_id(), "upstream-failed").await;
    assert_eq!(episode.completion_tokens, 0, "nothing was delivered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lookup_a_client_that_goes_away_is_counted_near_to_what_was_billed() {
    let world = without_lookup(Options { tokens_per_second: 100, ..long() }).await;
    let mut response = world.open(&with_prompt(streamed(100, true))).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_events(response.body_mut(), 5).await;
    drop(response);
    eventually("the call is cancelled", || async { (world.simulator.stats().in_flight == 0).then_some(()) }).await;
    let episode = assert_counted(&world, &id, "client-gone").await;
    assert!(episode.completion_tokens >= 3, "{episode:#?}");
}
