//! Plain requests and the rest of the HTTP surface.

use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::world::{INPUT, OUTPUT, World, chat};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_request_is_answered_and_settles_for_what_the_upstream_billed() {
    let world = World::new().await;
    let reply = world.chat(&chat(20)).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let body = reply.json();
    assert_eq!(body["model"], "sim-small");
    assert_eq!(body["id"], format!("chatcmpl-{}", reply.request_id()));
    let usage = &body["usage"];
    assert!(body["choices"][0]["message"]["content"].as_str().unwrap().len() > 5);
    let episode = world.assert_settled(reply.request_id(), "completed").await;
    assert_eq!(usage["prompt_tokens"], episode.prompt_tokens);
    assert_eq!(usage["completion_tokens"], episode.completion_tokens);
    let line = |tokens: u64, price: i64| (i64::try_from(tokens).unwrap() * price + 999_999) / 1_000_000;
    let cost = line(episode.prompt_tokens, INPUT) + line(episode.completion_tokens, OUTPUT);
    assert_eq!(episode.cost_nano_usd, cost);
    let names: Vec<_> = episode.entries.iter().map(|entry| entry.event.as_str()).collect();
    assert_eq!(names, ["RequestAdmitted", "RequestSettled"]);
    let principals: Vec<_> = episode.entries.iter().map(|entry| entry.principal.as_str()).collect();
    assert_eq!(principals, [format!("key/{}", world.key_id).as_str(), "system/gateway"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_carry_the_limits_and_an_id_that_is_ours() {
    let world = World::new().await;
    let mut request = world.post(chat(5).to_string());
    let headers = request.headers_mut();
    headers.insert("x-request-id", "theirs".parse().unwrap());
    headers.insert("x-client-request-id", "job-7".parse().unwrap());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert("traceparent", trace.parse().unwrap());
    let reply = world.send(request).await;
    assert_eq!(reply.request_id().len(), 36);
    assert_eq!(reply.header("x-client-request-id"), "job-7");
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("x-ratelimit-limit-requests"), "200");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "199");
    assert_eq!(reply.header("x-ratelimit-limit-tokens"), "2000000");
    assert!(reply.header("x-ratelimit-remaining-tokens").parse::<u64>().unwrap() < 2_000_000);
    for name in ["x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"] {
        assert!(reply.header(name).ends_with('s'), "{name}");
    }
    world.assert_settled(reply.request_id(), "completed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_for_those_who_have_a_key() {
    let world = World::new().await;
    let list = world.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, [json!("sim-large"), json!("sim-small")]);
    let model = world.get("/v1/models/sim-small").await.json();
    assert_eq!((&model["object"], &model["id"]), (&json!("model"), &json!("sim-small")));
    let unknown = world.get("/v1/models/nobody%0d%0ax:%20y").await;
    assert_eq!((unknown.status.as_u16(), &unknown.error()["code"]), (404, &json!("model_not_found")));
    assert!(!unknown.error()["message"].as_str().unwrap().contains(['\r', '\n']));
    let no_text = world.get("/v1/models/%ff").await;
    assert_eq!((no_text.status.as_u16(), &no_text.error()["code"]), (400, &json!("invalid_utf8")));
    let stranger = world.send(Request::get(world.url("/v1/models")).body(Full::default()).unwrap()).await;
    assert_eq!((stranger.status.as_u16(), &stranger.error()["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(stranger.header("www-authenticate"), "Bearer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_have_errors_in_openais_form() {
    let world = World::new().await;
    let reply = world.get("/v1/nothing").await;
    assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (404, &json!("unknown_url")));
    assert_eq!(reply.request_id().len(), 36);
    let reply = world.get("/v1/chat/completions").await;
    assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (405, &json!("method_not_supported")));
    assert_eq!(reply.header("allow"), "POST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_tools_see_health_readiness_and_metrics() {
    let world = World::new().await;
    assert_eq!(world.get("/healthz").await.status, StatusCode::OK);
    let ready = world.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["ready"]), (200, &json!(true)));
    let reply = world.chat(&chat(5)).await;
    let episode = world.assert_settled(reply.request_id(), "completed").await;
    let metrics = world.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for line in [
        r#"freehold_model_requests_total{outcome="completed",surface="http"} 1"#.to_owned(),
        format!(r#"freehold_model_tokens_total{{kind="completion"}} {}"#, episode.completion_tokens),
        format!("freehold_model_cost_nano_usd_total {}", episode.cost_nano_usd),
        r#"freehold_http_requests_total{route="/v1/chat/completions",status="200"} 1"#.to_owned(),
        "freehold_model_requests_in_flight 0".to_owned(),
        "freehold_log_accepting 1".to_owned(),
        "freehold_ready 1".to_owned(),
        r#"freehold_actors_live{kind="tenant"} 1"#.to_owned(),
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("acme"), "no tenant is a label");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_spoken_too() {
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let mut world = World::new().await;
    world.client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let reply = world.chat(&chat(5)).await;
    assert_eq!(reply.status, StatusCode::OK);
    world.assert_settled(reply.request_id(), "completed").await;
}
