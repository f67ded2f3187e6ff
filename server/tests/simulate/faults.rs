//! When things go wrong: every fault does what it says and every attempt is billed by the rules.

use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use server::simulate::{Options, SHUTDOWN_GRACE, Stats, Status};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::client::{Client, chat, data, start, streamed_text, words};

/// Reads a body to its end, or to where it breaks; says whether it broke.
async fn read(mut response: Response<Incoming>) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(frame.data_ref().unwrap()),
            Err(_) => return (body, true),
        }
    }
    (body, false)
}

fn ended(stats: &Stats) -> u64 {
    let refused = stats.bad_request + stats.unauthorized + stats.rate_limited + stats.error_500 + stats.error_503;
    stats.completed + stats.cut + stats.client_gone + refused
}

#[tokio::test]
async fn a_cut_stream_is_billed_for_exactly_what_was_sent() {
    let (simulator, client) = start(Options { cut_rate: 1.0, ..Options::default() }).await;
    let mut places = Vec::new();
    for number in 0..50 {
        let id = format!("r-{number}");
        let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
        let (body, broke) = read(client.open_chat(&id, &chat("hi", fields)).await.unwrap()).await;
        let text = std::str::from_utf8(&body).unwrap();
        assert!(broke && !text.contains("prompt_tokens") && !text.contains("[DONE]"));
        let usage = client.usage(&id).await.unwrap();
        assert_eq!((usage.status, usage.billed, usage.prompt_tokens), (Status::Cut, true, 7));
        assert_eq!(usage.completion_tokens, words(&streamed_text(&body, 0)), "{id}");
        places.push(usage.completion_tokens);
    }
    let stats = simulator.shutdown().await;
    assert_eq!((stats.cut, stats.completion_tokens), (50, places.iter().sum()));
    places.sort_unstable();
    assert!(places[0] < 10 && places[49] > 30, "cuts fall anywhere: {places:?}");
}

#[tokio::test]
async fn a_cut_plain_response_breaks_in_its_body() {
    let (simulator, client) = start(Options { cut_rate: 1.0, ..Options::default() }).await;
    let response = client.open_chat("r-1", &chat("hi", json!({}))).await.unwrap();
    let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let (body, broke) = read(response).await;
    assert!(broke && !body.is_empty() && body.len() < length);
    let usage = client.usage("r-1").await.unwrap();
    assert_eq!((usage.status, usage.billed), (Status::Cut, true));
    assert_eq!(simulator.shutdown().await.completion_tokens, usage.completion_tokens);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_pays_for_what_was_generated() {
    let options = Options {
        tokens_per_second: 200,
        completion_tokens_min: 10_000,
        completion_tokens_max: 10_000,
        ..Options::default()
    };
    let (simulator, client) = start(options).await;
    for (id, http2) in [("one", false), ("two", true)] {
        let watcher = &client;
        let client = if http2 { Client::http2(simulator.address()) } else { client.clone() };
        let mut response = client.open_chat(id, &chat("hi", json!({"stream": true}))).await.unwrap();
        let mut body = Vec::new();
        while words(&streamed_text(&body, 0)) < 10 {
            body.extend_from_slice(response.body_mut().frame().await.unwrap().unwrap().data_ref().unwrap());
        }
        assert_eq!(watcher.usage(id).await.unwrap().status, Status::Running);
        assert!(!watcher.usage(id).await.unwrap().billed);
        drop(response);
        let usage = watcher.wait_for(id, |usage| usage.status != Status::Running).await;
        assert_eq!((usage.status, usage.billed, usage.prompt_tokens), (Status::ClientGone, true, 7));
        // At 200 tokens a second, 400 tokens more would be 2 s: a disconnect must be noticed much sooner.
        assert!((10..400).contains(&usage.completion_tokens), "{usage:?}");
        assert_eq!(watcher.usage(id).await.unwrap(), usage, "a settled bill does not move");
    }
    let stats = simulator.shutdown().await;
    assert_eq!((stats.client_gone, stats.in_flight, stats.prompt_tokens, stats.billed), (2, 0, 14, 2));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_pays_for_the_prompt() {
    let (simulator, client) = start(Options { ttft_p50_ms: 3_600_000, ..Options::default() }).await;
    for (id, streamed, http2) in [("a", true, false), ("b", false, false), ("c", true, true), ("d", false, true)] {
        let leaving = if http2 { Client::http2(simulator.address()) } else { client.clone() };
        let mut request = JoinSet::new();
        request.spawn(async move { leaving.chat(id, &chat("hi", json!({"stream": streamed}))).await.map(drop) });
        client.wait_for(id, |usage| usage.prompt_tokens == 7).await;
        request.abort_all();
        let usage = client.wait_for(id, |usage| usage.status != Status::Running).await;
        assert_eq!((usage.status, usage.completion_tokens, usage.billed), (Status::ClientGone, 0, true), "{id}");
    }
    assert_eq!(simulator.stats().client_gone, 4);
}

#[tokio::test]
async fn a_client_that_leaves_a_plain_request_pays_for_what_was_generated() {
    let options = Options {
        tokens_per_second: 500,
        completion_tokens_min: 30_000,
        completion_tokens_max: 30_000,
        ..Options::default()
    };
    let (_simulator, client) = start(options).await;
    let leaving = client.clone();
    let mut request = JoinSet::new();
    request.spawn(async move { leaving.chat("r-1", &chat("hi", json!({}))).await.map(drop) });
    client.wait_for("r-1", |usage| usage.completion_tokens >= 10).await;
    request.abort_all();
    let usage = client.wait_for("r-1", |usage| usage.status != Status::Running).await;
    assert!(usage.status == Status::ClientGone && (10..1_000).contains(&usage.completion_tokens), "{usage:?}");
}

#[tokio::test]
async fn a_reader_that_stops_reading_stops_generation() {
    let options = Options { completion_tokens_min: 32_768, completion_tokens_max: 32_768, ..Options::default() };
    let (_simulator, client) = start(options).await;
    let total = 128 * 32_768;
    let response = client.open_chat("r-1", &chat("hi", json!({"stream": true, "n": 128}))).await.unwrap();
    client.wait_for("r-1", |usage| usage.completion_tokens > 100).await;
    drop(response);
    let usage = client.wait_for("r-1", |usage| usage.status != Status::Running).await;
    // What fits into the buffers of both sockets is some megabytes of about 200 bytes a token.
    assert!(usage.status == Status::ClientGone && usage.completion_tokens < total / 10, "{usage:?}");
}

#[tokio::test]
async fn drawn_errors_cost_nothing() {
    for (options, status) in [
        (Options { error_500_rate: 1.0, ..Options::default() }, 500),
        (Options { error_503_rate: 1.0, ..Options::default() }, 503),
    ] {
        let (simulator, client) = start(options).await;
        let answer = client.chat("r-1", &chat("hi", json!({}))).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["type"].as_str()), (status, Some("server_error")));
        let usage = client.usage("r-1").await.unwrap();
        assert_eq!((usage.status, usage.billed, usage.prompt_tokens), (Status::Refused, false, 0));
        let stats = simulator.shutdown().await;
        assert_eq!((stats.error_500 + stats.error_503, stats.billed, stats.prompt_tokens), (1, 0, 0));
    }
}

#[tokio::test]
async fn a_rate_limit_window_says_when_it_ends() {
    let hour = Options { rate_limit_every_ms: 3_600_000, rate_limit_for_ms: 3_600_000, ..Options::default() };
    let (simulator, client) = start(hour).await;
    let answer = client.chat("r-1", &chat("hi", json!({}))).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_000..=3_600).contains(&seconds));
    assert!(answer.headers["x-ratelimit-reset-requests"].to_str().unwrap().starts_with("59m"));
    assert_eq!(answer.headers["x-ratelimit-remaining-requests"], "0");
    let stats = simulator.shutdown().await;
    assert_eq!((stats.rate_limited, stats.prompt_tokens), (1, 0));
}

#[tokio::test]
async fn rate_limit_windows_come_and_go() {
    let options = Options { rate_limit_every_ms: 200, rate_limit_for_ms: 100, ..Options::default() };
    let (simulator, client) = start(options).await;
    let coming_and_going = async {
        let mut seen = Vec::new();
        // Open, closed, open, closed: two whole periods.
        while seen.len() < 4 {
            let status = client.chat("r-1", &chat("hi", json!({}))).await.unwrap().status.as_u16();
            if seen.last() != Some(&status) {
                seen.push(status);
            }
        }
        seen
    };
    let seen = timeout(Duration::from_secs(20), coming_and_going).await.unwrap();
    assert!(seen == [200, 429, 200, 429] || seen == [429, 200, 429, 200], "{seen:?}");
    let stats = simulator.shutdown().await;
    assert_eq!((stats.completed + stats.rate_limited, ended(&stats)), (stats.requests, stats.requests));
}

#[tokio::test]
async fn a_malformed_stream_has_one_bad_event_and_all_its_tokens() {
    let (simulator, client) = start(Options { malformed_rate: 1.0, ..Options::default() }).await;
    let answer = client.chat("r-1", &chat("hi", json!({"stream": true}))).await.unwrap();
    let bad = data(&answer.body).into_iter().filter(|event| serde_json::from_str::<Value>(event).is_err());
    assert_eq!(bad.filter(|event| *event != "[DONE]").count(), 1);
    assert_eq!(client.usage("r-1").await.unwrap().completion_tokens, words(&answer.streamed_text(0)));
    let plain = client.chat("r-2", &chat("hi", json!({}))).await.unwrap();
    assert!(plain.status == 200 && serde_json::from_slice::<Value>(&plain.body).is_err());
    let stats = simulator.shutdown().await;
    assert_eq!((stats.malformed, stats.completed, stats.billed), (2, 2, 2));
}

#[tokio::test]
async fn an_overrun_goes_on_beyond_the_bound() {
    let (simulator, client) = start(Options { overrun_rate: 1.0, ..Options::default() }).await;
    for streamed in [false, true] {
        let answer = client.chat("r", &chat("hi", json!({"max_tokens": 5, "stream": streamed}))).await.unwrap();
        assert!(answer.text().contains(r#""finish_reason":"stop""#));
    }
    let usage = client.usage("r").await.unwrap();
    assert!(usage.attempts == 2 && usage.completion_tokens >= 2 * (5 + 16), "{usage:?}");
    assert_eq!(simulator.shutdown().await.overrun, 2);
}

#[expect(clippy::disallowed_methods, reason = "the test measures real time")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn a_stall_and_a_pace_take_their_time() {
    let stalled = Options { stall_rate: 1.0, stall_ms: 300, ..Options::default() };
    let paced = Options {
        ttft_p50_ms: 100,
        tokens_per_second: 100,
        completion_tokens_min: 20,
        completion_tokens_max: 20,
        ..Options::default()
    };
    // Half the median is the shortest time to the first token; 19 tokens more take 190 ms.
    for (options, ms_min, stalls) in [(stalled, 300, 2), (paced, 240, 0)] {
        let (simulator, client) = start(options).await;
        for streamed in [false, true] {
            let started = now();
            client.chat("r", &chat("hi", json!({"stream": streamed}))).await.unwrap();
            assert!(started.elapsed() >= Duration::from_millis(ms_min), "{ms_min} ms, streamed {streamed}");
        }
        assert_eq!(simulator.shutdown().await.stalled, stalls);
    }
}

#[tokio::test]
async fn a_shutdown_breaks_off_what_does_not_end() {
    let (simulator, client) = start(Options { ttft_p50_ms: 3_600_000, ..Options::default() }).await;
    let mut requests = JoinSet::new();
    for http2 in [false, true] {
        let waiting = if http2 { Client::http2(simulator.address()) } else { client.clone() };
        let id = if http2 { "two" } else { "one" };
        requests.spawn(async move { waiting.chat(id, &chat("hi", json!({}))).await.map(drop) });
        client.wait_for(id, |usage| usage.prompt_tokens > 0).await;
    }
    let stats = timeout(SHUTDOWN_GRACE * 3, simulator.shutdown()).await.unwrap();
    assert_eq!((stats.client_gone, stats.in_flight), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_add_up_after_every_kind_of_trouble() {
    // Goal: whatever happens to 600 requests at once, /stats is the sum of /v1/usage, every request ended once, and
    // who read a whole response was billed what it said. Method: all faults, and a third of the clients leave early.
    let options = Options {
        seed: 42,
        error_500_rate: 0.1,
        error_503_rate: 0.1,
        cut_rate: 0.15,
        malformed_rate: 0.1,
        stall_rate: 0.1,
        stall_ms: 20,
        overrun_rate: 0.1,
        ttft_p50_ms: 5,
        ttft_p99_ms: 50,
        tokens_per_second: 2_000,
        ..Options::default()
    };
    let (simulator, client) = start(options).await;
    let mut tasks = JoinSet::new();
    for number in 0..600_u64 {
        let client = client.clone();
        tasks.spawn(async move {
            let id = format!("r-{number}");
            let leaves = number % 3 == 0;
            // A response that its client leaves takes a second or more, so that it cannot end before the client left.
            let choices = if leaves { 128 } else { 1 };
            let fields = match number % 2 {
                0 => json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 30, "n": choices}),
                _ => json!({"max_tokens": 30}),
            };
            let response = client.open_chat(&id, &chat("all kinds of trouble", fields)).await.unwrap();
            if leaves {
                return None;
            }
            let (body, broke) = read(response).await;
            let text = String::from_utf8(body).unwrap();
            let stated = text.split(r#""completion_tokens":"#).nth(1)?;
            let stated: u64 = stated.split(',').next()?.parse().ok()?;
            (!broke).then_some((id, stated))
        });
    }
    let stated: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(stated.len() > 100, "{}", stated.len());
    for (id, tokens) in stated {
        let usage = client.usage(&id).await.unwrap();
        assert_eq!((usage.status, usage.completion_tokens), (Status::Completed, tokens), "{id}");
    }
    let (mut prompt, mut completion, mut billed) = (0, 0, 0);
    for number in 0..600 {
        let usage = client.wait_for(&format!("r-{number}"), |usage| usage.status != Status::Running).await;
        prompt += usage.prompt_tokens;
        completion += usage.completion_tokens;
        billed += u64::from(usage.billed);
        assert_eq!(usage.billed, usage.status != Status::Refused, "{usage:?}");
    }
    let stats = simulator.shutdown().await;
    assert_eq!((stats.requests, stats.in_flight, ended(&stats)), (600, 0, 600));
    assert_eq!((stats.prompt_tokens, stats.completion_tokens, stats.billed), (prompt, completion, billed));
    let each = [stats.completed, stats.cut, stats.client_gone, stats.error_500, stats.error_503, stats.stalled];
    assert!(each.iter().all(|count| *count > 10) && stats.malformed > 10 && stats.overrun > 10, "{stats:?}");
}
