//! What is answered and billed when nothing goes wrong, and what is refused.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use server::simulate::{Invalid, Options, Simulator, Status};
use tokio::task::JoinSet;

use crate::client::{LOCAL, chat, data, start, words};

#[tokio::test]
async fn a_plain_response_is_counted_as_documented() {
    let (simulator, client) = start(Options::default()).await;
    let answer = client.chat("r-1", &chat("hello world", json!({}))).await.unwrap();
    let body = answer.json();
    // 11 bytes are 3 tokens; 3 for the message and 3 for the request.
    assert_eq!((answer.status, body["usage"]["prompt_tokens"].as_u64()), (StatusCode::OK, Some(9)));
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with(' ') && (16..=64).contains(&words(text)));
    assert_eq!(body["usage"]["completion_tokens"], words(text));
    assert_eq!(body["usage"]["total_tokens"], words(text) + 9);
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert!(answer.headers.contains_key("x-request-id"));

    let usage = client.usage("r-1").await.unwrap();
    assert_eq!((usage.status, usage.billed, usage.attempts), (Status::Completed, true, 1));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (9, words(text)));
    let stats = client.get("/stats").await.json();
    assert_eq!((stats["requests"].as_u64(), stats["completed"].as_u64()), (Some(1), Some(1)));
    assert_eq!((stats["prompt_tokens"].as_u64(), stats["completion_tokens"].as_u64()), (Some(9), Some(words(text))));
    assert_eq!(serde_json::to_value(simulator.shutdown().await).unwrap(), stats);
}

#[tokio::test]
async fn a_stream_sends_one_event_for_each_token_and_the_usage_last() {
    let (_simulator, client) = start(Options::default()).await;
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = client.chat("r-1", &chat("hi", fields)).await.unwrap();
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = data(&answer.body);
    assert_eq!(*events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, others) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
    assert_eq!(others.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let tokens = &others[1..others.len() - 1];
    assert!(tokens.iter().all(|chunk| words(chunk["choices"][0]["delta"]["content"].as_str().unwrap()) == 1));
    assert_eq!(usage["usage"]["completion_tokens"], tokens.len());
    assert_eq!(client.usage("r-1").await.unwrap().completion_tokens, tokens.len() as u64);

    let without = client.chat("r-2", &chat("hi", json!({"stream": true}))).await.unwrap();
    assert!(!without.text().contains("usage") && without.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn plain_and_streamed_texts_of_a_prompt_are_the_same_words() {
    let options = Options { completion_tokens_min: 40, completion_tokens_max: 40, ..Options::default() };
    let (_simulator, client) = start(options).await;
    let plain = client.chat("r-1", &chat("hi", json!({}))).await.unwrap().json();
    let stream = client.chat("r-2", &chat("hi", json!({"stream": true}))).await.unwrap();
    assert_eq!(plain["choices"][0]["message"]["content"], stream.streamed_text(0));
}

#[tokio::test]
async fn max_tokens_ends_every_choice_with_length() {
    let (_simulator, client) = start(Options::default()).await;
    for (name, streamed) in [("max_tokens", false), ("max_completion_tokens", true)] {
        let fields = json!({name: 5, "n": 3, "stream": streamed, "stream_options": {"include_usage": true}});
        let mut body = chat("hi", fields);
        if !streamed {
            body.as_object_mut().unwrap().remove("stream_options");
        }
        let answer = client.chat(name, &body).await.unwrap();
        let texts: Vec<String> = if streamed {
            (0..3).map(|choice| answer.streamed_text(choice)).collect()
        } else {
            (0..3)
                .map(|choice| answer.json()["choices"][choice]["message"]["content"].as_str().unwrap().into())
                .collect()
        };
        assert!(texts.iter().all(|text| words(text) == 5) && texts[0] != texts[1] && texts[1] != texts[2]);
        assert_eq!(answer.text().matches(r#""finish_reason":"length""#).count(), 3);
        assert_eq!(client.usage(name).await.unwrap().completion_tokens, 15);
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_bytes() {
    let options = |seed| Options { seed, error_500_rate: 0.2, malformed_rate: 0.3, ..Options::default() };
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let (_simulator, client) = start(options(seed)).await;
        let mut run = Vec::new();
        for number in 0..40 {
            // Three attempts of each id, and anonymous repetitions of the same bodies.
            let id = (number % 2 == 0).then(|| format!("r-{}", number % 7));
            let body = chat(&format!("prompt {}", number % 3), json!({"stream": number % 4 < 2}));
            let answer = client.post(id.as_deref(), body.to_string()).await.unwrap();
            run.push((answer.status, answer.body));
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    assert!(runs[0].iter().any(|(status, _)| *status == 500) && runs[0].iter().any(|(status, _)| *status == 200));
}

#[tokio::test]
async fn a_retry_is_a_new_draw() {
    let (simulator, client) = start(Options { error_503_rate: 0.5, ..Options::default() }).await;
    // With an id the attempt counts, without one the occurrence of the body.
    for id in [Some("r-1"), None] {
        let mut statuses = Vec::new();
        for _ in 0..40 {
            statuses.push(client.post(id, chat("hi", json!({})).to_string()).await.unwrap().status.as_u16());
        }
        assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    }
    let (stats, usage) = (simulator.stats(), client.usage("r-1").await.unwrap());
    assert_eq!((usage.attempts, stats.completed + stats.error_503), (40, 80));
}

#[tokio::test]
async fn models_health_and_unknown_addresses_are_answered() {
    let options = Options { models: vec!["a".into(), "b-2".into()], ..Options::default() };
    let (_simulator, client) = start(options).await;
    let models = client.get("/v1/models").await.json();
    assert_eq!((&models["object"], &models["data"][1]["id"]), (&json!("list"), &json!("b-2")));
    assert_eq!(client.get("/healthz").await.status, StatusCode::OK);
    for (method, path, status) in [
        (Method::GET, "/v1/usage/unknown", 404),
        (Method::GET, "/nothing", 404),
        (Method::GET, "/v1/chat/completions", 405),
        (Method::DELETE, "/stats", 405),
    ] {
        let answer = client.send(method, path, &[], String::new()).await.unwrap();
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json()["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn a_required_key_is_required_under_v1_only() {
    let (_simulator, client) = start(Options { api_key: Some("sk-1".into()), ..Options::default() }).await;
    let body = chat("hi", json!({})).to_string();
    for (authorization, status) in [("Bearer sk-1", 200), ("Bearer sk-2", 401), ("sk-1", 401)] {
        let headers = [("authorization", authorization)];
        let answer = client.send(Method::POST, "/v1/chat/completions", &headers, body.clone()).await.unwrap();
        assert_eq!(answer.status, status, "{authorization}");
    }
    assert_eq!(client.get("/v1/models").await.json()["error"]["code"], "invalid_api_key");
    assert_eq!(client.get("/stats").await.json()["unauthorized"], 2);
}

#[tokio::test]
async fn bad_input_is_a_clear_error_and_costs_nothing() {
    let (simulator, client) = start(Options::default()).await;
    let refused = [
        ("{".to_owned(), 400, "invalid_json"),
        ("[]".to_owned(), 400, "invalid_type"),
        (chat("x", json!({"model": "gpt-9"})).to_string(), 404, "model_not_found"),
        (chat("x", json!({"max_tokens": -1})).to_string(), 400, "invalid_value"),
        (chat(&"x".repeat(16 * 1_024 * 1_024), json!({})).to_string(), 413, "request_too_large"),
    ];
    let count = refused.len() as u64;
    for (index, (body, status, code)) in refused.into_iter().enumerate() {
        let id = format!("bad-{index}");
        let answer = client.post(Some(&id), body).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["code"].as_str()), (status, Some(code)));
        let usage = client.usage(&id).await.unwrap();
        assert_eq!((usage.status, usage.billed, usage.prompt_tokens), (Status::Refused, false, 0));
    }
    let answer = client.post(Some("with/slash"), chat("x", json!({})).to_string()).await.unwrap();
    assert_eq!(answer.json()["error"]["code"], "invalid_client_request_id");
    let stats = simulator.shutdown().await;
    assert_eq!((stats.bad_request, stats.requests, stats.prompt_tokens), (count + 1, count + 1, 0));
}

#[tokio::test]
async fn a_shutdown_lets_a_response_finish_and_frees_the_address() {
    // 30 tokens at 100 a second take 0.3 s, well inside the grace.
    let options =
        Options { tokens_per_second: 100, completion_tokens_min: 30, completion_tokens_max: 30, ..Options::default() };
    let (simulator, client) = start(options).await;
    let address = simulator.address();
    let mut running = JoinSet::new();
    let reader = client.clone();
    running.spawn(async move { reader.chat("r-1", &chat("hi", json!({"stream": true}))).await.unwrap() });
    client.wait_for("r-1", |usage| usage.completion_tokens > 0).await;
    let stats = simulator.shutdown().await;
    assert_eq!(words(&running.join_next().await.unwrap().unwrap().streamed_text(0)), 30);
    assert_eq!((stats.in_flight, stats.completed, stats.completion_tokens), (0, 1, 30));
    drop(Simulator::start(Options::default(), address).await.unwrap());
}

#[test]
fn flags_serde_and_default_agree() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let parse = |line: &[&str]| <Line as clap::Parser>::try_parse_from(line).map(|line| line.options);
    assert_eq!(parse(&["simulate"]).unwrap(), Options::default());
    assert_eq!(serde_json::from_str::<Options>("{}").unwrap(), Options::default());
    assert!(serde_json::from_str::<Options>(r#"{"sede":1}"#).is_err());
    let options = parse(&["simulate", "--seed", "7", "--models", "a,b", "--cut-rate", "0.5"]).unwrap();
    let expected = Options { seed: 7, models: vec!["a".into(), "b".into()], cut_rate: 0.5, ..Options::default() };
    assert_eq!(options, expected);
}

#[tokio::test]
async fn options_outside_their_limits_do_not_start() {
    let cases = [
        Options { cut_rate: 1.5, ..Options::default() },
        Options { stall_rate: f64::NAN, ..Options::default() },
        Options { error_500_rate: 0.6, error_503_rate: 0.6, ..Options::default() },
        Options { completion_tokens_min: 0, ..Options::default() },
        Options { completion_tokens_min: 65, ..Options::default() },
        Options { rate_limit_for_ms: 1, ..Options::default() },
        Options { models: Vec::new(), ..Options::default() },
        Options { models: vec!["two words".into()], ..Options::default() },
        Options { records_max: 0, ..Options::default() },
    ];
    for options in cases {
        let error = Simulator::start(options, LOCAL).await.unwrap_err();
        assert!(error.get_ref().unwrap().is::<Invalid>(), "{error}");
    }
}
