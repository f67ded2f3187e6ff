//! Calls to a fake upstream over real sockets: answers, streams, failures, limits of time, cancelling, lookups.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests may panic, and spawn the server they talk to"
)]

mod fake;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, Path},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use events_model::{DurationUs, Tokens};
use fake::{
    DONE, End, Json, STOP, USAGE, Watch, call, chunk, events, read, request_id, serve, settings, text, until, upstream,
};
use gateway::{
    openai::{Delivered, Usage},
    upstream::{CallError, Http2, Phase, StreamEvent, Upstream, UpstreamSettings},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BOTH: [Http2; 2] = [Http2::Auto, Http2::PriorKnowledge];
const PATH: &str = "/v1/chat/completions";
/// Over soon, yet long enough for a busy machine to get so far as the test wants it to.
const SHORT: Duration = Duration::from_millis(400);

fn plain() -> Value {
    json!({"id": "u", "object": "chat.completion", "created": 1, "model": "m", "extra": 1.0,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "héllo"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
}

fn usage() -> Usage {
    Usage { prompt: Tokens(3), completion: Tokens(2) }
}

fn good_stream() -> Vec<String> {
    // Cut in the middle of the two bytes of é, to arrive in two pieces, is done by the raw test below.
    vec![chunk("Hel"), format!("{}{}", chunk("lo"), STOP), USAGE.to_owned(), DONE.to_owned()]
}

#[tokio::test]
async fn a_plain_answer_is_renamed_and_its_usage_read() {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let headers_seen = Arc::clone(&seen);
    let handler = move |headers: HeaderMap, body: String| async move {
        assert_eq!(body, "{}");
        *headers_seen.lock().unwrap() = headers;
        Json(plain())
    };
    let address = serve(Router::new().route(PATH, post(handler))).await;
    for http2 in BOTH {
        let answer = upstream(address, http2).complete(call()).await.unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let mut expected = plain();
        expected["id"] = json!(format!("chatcmpl-{}", request_id()));
        expected["model"] = json!("our-model");
        assert_eq!(body, expected);
        assert_eq!(answer.usage, Some(usage()));
        let choices = answer.choices().unwrap();
        assert_eq!((choices.text.as_str(), choices.finish_reason.as_deref()), ("héllo", Some("stop")));
        assert_eq!(choices.delivered, Delivered { pieces: 1, bytes: 6 });
        let headers = seen.lock().unwrap().clone();
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(header("authorization"), "Bearer sk-test");
        assert_eq!(header("x-client-request-id"), request_id().to_string());
        assert!(header("traceparent").starts_with("00-0af7"));
        assert!(header("user-agent").starts_with("freehold/"));
        assert_eq!(header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn a_stream_brings_deltas_the_end_usage_and_done_in_this_order() {
    let router = Router::new().route(PATH, post(|| async { events(good_stream(), End::Clean) }));
    let address = serve(router).await;
    for http2 in BOTH {
        let stream = upstream(address, http2).stream(call()).await.unwrap();
        let (events, error) = read(stream).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(text(&events), "Hello");
        let tokens: u64 =
            events.iter().map(|event| if let StreamEvent::Delta { tokens, .. } = event { tokens.0 } else { 0 }).sum();
        assert_eq!(tokens, 2);
        let [.., StreamEvent::Finished { finish_reason }, StreamEvent::Usage { usage: got, frame }, StreamEvent::Done] =
            events.as_slice()
        else {
            panic!("{events:?}")
        };
        assert_eq!((finish_reason.as_str(), *got), ("stop", usage()));
        assert!(frame.as_ref().unwrap().ends_with(b"}\n\n"));
    }
}

#[tokio::test]
async fn connections_are_used_again_after_every_kind_of_answer() {
    let ports = Arc::new(Mutex::new(BTreeSet::new()));
    let ports_seen = Arc::clone(&ports);
    let handler = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap| async move {
        ports_seen.lock().unwrap().insert(peer.port());
        match headers.get("accept").unwrap().to_str().unwrap() {
            "text/event-stream" => events(good_stream(), End::Clean),
            _ => Json(plain()).into_response(),
        }
    };
    let lookup = || async { StatusCode::NOT_FOUND };
    let address = serve(Router::new().route(PATH, post(handler)).route("/v1/usage/{id}", get(lookup))).await;
    for http2 in BOTH {
        ports.lock().unwrap().clear();
        let upstream = upstream(address, http2);
        for _ in 0..20 {
            upstream.complete(call()).await.unwrap();
            let (_, error) = read(upstream.stream(call()).await.unwrap()).await;
            assert!(error.is_none());
        }
        upstream.lookup_usage(request_id(), fake::PATIENCE).await.unwrap();
        assert_eq!(ports.lock().unwrap().len(), 1, "{http2:?}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_with_what_had_arrived() {
    for http2 in BOTH {
        let (tell, told) = tokio::sync::oneshot::channel();
        let end = Arc::new(Mutex::new(Some(End::Broken(told))));
        let handler = move || async move {
            // The second call ends cleanly, but too early.
            events(vec![chunk("a"), chunk("b")], end.lock().unwrap().take().unwrap_or(End::Clean))
        };
        let address = serve(Router::new().route(PATH, post(handler))).await;
        let upstream = upstream(address, http2);
        let mut broken = upstream.stream(call()).await.unwrap();
        for _ in 0..2 {
            assert!(matches!(broken.next().await, Some(Ok(StreamEvent::Delta { .. }))));
        }
        tell.send(()).unwrap();
        let (_, error) = read(broken).await;
        let (events, early) = read(upstream.stream(call()).await.unwrap()).await;
        assert_eq!(text(&events), "ab");
        for error in [error.unwrap(), early.unwrap()] {
            assert!(matches!(error, CallError::Cut { usage: None, .. }), "{error:?}");
            assert_eq!(error.delivered(), Delivered { pieces: 2, bytes: 2 });
            assert!(error.billable_unknown());
            assert_eq!(error.client_error().status, 502);
        }
    }
}

#[tokio::test]
async fn a_stream_without_done_is_complete_if_it_ended_with_a_reason_and_usage() {
    for (pieces, complete) in [
        (vec![chunk("a"), STOP.to_owned(), USAGE.to_owned()], true),
        (vec![chunk("a"), STOP.to_owned(), USAGE.to_owned(), "data: [DONE]".to_owned()], true),
        (vec![chunk("a"), STOP.to_owned()], false),
        (vec![chunk("a"), USAGE.to_owned()], false),
    ] {
        let router = Router::new().route(PATH, post(move || async move { events(pieces, End::Clean) }));
        let address = serve(router).await;
        let (events, error) = read(upstream(address, Http2::Auto).stream(call()).await.unwrap()).await;
        assert_eq!(events.last() == Some(&StreamEvent::Done), complete);
        assert_eq!(error.is_none(), complete, "{error:?}");
    }
}

#[tokio::test]
async fn a_plain_answer_that_breaks_off_is_cut() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\""] {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4_096];
            assert!(socket.read(&mut request).await.unwrap() > 0);
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let upstream = upstream(address, Http2::Auto);
    for _ in 0..2 {
        let error = upstream.complete(call()).await.unwrap_err();
        assert!(matches!(error, CallError::Cut { .. }), "{error:?}");
        assert!(error.billable_unknown());
    }
    server.await.unwrap();
}

#[tokio::test]
async fn characters_and_lines_cut_anywhere_by_the_network_are_put_together() {
    let body = format!("{}{STOP}{USAGE}{DONE}", chunk("aé😀z").replace('\n', "\r\n"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut request = [0; 4_096];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        socket.write_all(head).await.unwrap();
        for byte in body.into_bytes() {
            socket.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let (events, error) = read(upstream(address, Http2::Auto).stream(call()).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(text(&events), "aé😀z");
    server.await.unwrap();
}

#[tokio::test]
async fn a_call_on_a_connection_that_the_server_has_closed_goes_to_a_new_one() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        for _ in 0..5 {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4_096];
            assert!(socket.read(&mut request).await.unwrap() > 0);
            let body = plain().to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            // Closing the write side first: the client learns of it before its next call or while sending it.
            socket.shutdown().await.unwrap();
            while socket.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {}
        }
    });
    let upstream = upstream(address, Http2::Auto);
    for _ in 0..5 {
        upstream.complete(call()).await.unwrap();
        // Lets the client's connection task see the end of the connection.
        tokio::task::yield_now().await;
    }
    server.await.unwrap();
}

fn with_timeouts(address: SocketAddr, http2: Http2, change: impl FnOnce(&mut UpstreamSettings)) -> Upstream {
    let mut settings = UpstreamSettings { http2, ..settings(address) };
    change(&mut settings);
    Upstream::new(settings).unwrap()
}

fn assert_timeout(error: &CallError, expected: Phase, billable: bool) {
    assert!(matches!(error, CallError::Timeout { phase, .. } if *phase == expected), "{expected:?}: {error:?}");
    assert_eq!(error.billable_unknown(), billable);
}

#[tokio::test]
async fn every_wait_has_its_limit_and_says_what_it_waited_for() {
    let watch = Watch::default();
    let (silent, stalled) = (watch.clone(), watch.clone());
    let silence = move || async move {
        let _guard = silent.guard();
        std::future::pending::<()>().await;
    };
    let stall = move || async move { events(vec![chunk("a")], End::Stall(stalled.guard())) };
    let address = serve(Router::new().route("/silent/chat/completions", post(silence)).route(PATH, post(stall))).await;
    let silent = format!("http://{address}/silent");
    for http2 in BOTH {
        let error = with_timeouts(address, http2, |settings| {
            settings.base_url = silent.clone();
            settings.timeouts.first_byte = SHORT;
        });
        assert_timeout(&error.complete(call()).await.unwrap_err(), Phase::FirstByte, true);

        let idle = with_timeouts(address, http2, |settings| settings.timeouts.idle = SHORT);
        let (_, error) = read(idle.stream(call()).await.unwrap()).await;
        let error = error.unwrap();
        assert_timeout(&error, Phase::Idle, true);
        assert_eq!(error.delivered().tokens_at_least(), Tokens(1));
        assert_eq!(error.client_error().status, 504);

        let total = with_timeouts(address, http2, |settings| settings.timeouts.total = SHORT);
        let error = match total.stream(call()).await {
            Ok(stream) => read(stream).await.1.unwrap(),
            // On a busy machine the time may be over before the head is there.
            Err(error) => error,
        };
        assert_timeout(&error, Phase::Total, true);
    }
    until("the server sees every one of them go", || watch.begun() >= 4 && watch.dropped() == watch.begun()).await;
}

#[tokio::test]
async fn a_call_beyond_the_slots_waits_and_then_gives_up_unsent() {
    let watch = Watch::default();
    let stalled = watch.clone();
    let stall = move || async move { events(vec![chunk("a")], End::Stall(stalled.guard())) };
    let address = serve(Router::new().route(PATH, post(stall))).await;
    let upstream = with_timeouts(address, Http2::Auto, |settings| {
        settings.connections_max = 1;
        settings.timeouts.connect = SHORT;
    });
    let held = upstream.stream(call()).await.unwrap();
    let error = upstream.stream(call()).await.unwrap_err();
    assert_timeout(&error, Phase::Slot, false);
    assert_eq!(error.client_error().status, 503);
    assert_eq!(watch.begun(), 1);
    drop(held);
    drop(upstream.stream(call()).await.unwrap());
}

#[tokio::test]
async fn a_slot_is_free_as_soon_as_the_answer_is_complete_or_failed() {
    for pieces in [good_stream(), vec![chunk("a")]] {
        let router = Router::new().route(PATH, post(move || async move { events(pieces, End::Clean) }));
        let address = serve(router).await;
        let upstream = with_timeouts(address, Http2::Auto, |settings| settings.connections_max = 1);
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut stream = upstream.stream(call()).await.unwrap();
            while let Some(Ok(_)) = stream.next().await {}
            held.push(stream);
        }
    }
}

#[tokio::test]
async fn connecting_fails_or_takes_too_long_without_a_request_being_sent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The kernel accepts, nobody answers the TLS handshake.
    let silent = with_timeouts(address, Http2::Auto, |settings| {
        settings.base_url = format!("https://{address}");
        settings.timeouts.connect = SHORT;
    });
    assert_timeout(&silent.complete(call()).await.unwrap_err(), Phase::Connect, false);
    drop(listener);
    let error = upstream(address, Http2::Auto).complete(call()).await.unwrap_err();
    assert!(matches!(error, CallError::Connect { .. }), "{error:?}");
    assert!(!error.billable_unknown());
    let client = error.client_error();
    assert_eq!(client.status, 503);
    assert!(!client.message.contains("127.0.0.1"));
}

#[tokio::test]
async fn dropping_a_call_at_any_moment_is_seen_by_the_server() {
    let watch = Watch::default();
    let (silent, stalled) = (watch.clone(), watch.clone());
    let silence = move || async move {
        let _guard = silent.guard();
        std::future::pending::<()>().await;
    };
    let stall = move || async move { events(vec![chunk("a")], End::Stall(stalled.guard())) };
    let address = serve(Router::new().route("/silent/chat/completions", post(silence)).route(PATH, post(stall))).await;
    let mut dropped = 0;
    for http2 in BOTH {
        let silent = with_timeouts(address, http2, |s| s.base_url = format!("http://{address}/silent"));
        let waiting = tokio::spawn(async move { silent.complete(call()).await.map(drop) });
        until("the request arrives", || watch.begun() == dropped + 1).await;
        waiting.abort();
        until("the server sees a call go that waits for its head", || watch.dropped() == dropped + 1).await;

        let mut stream = upstream(address, http2).stream(call()).await.unwrap();
        assert!(matches!(stream.next().await, Some(Ok(StreamEvent::Delta { .. }))));
        drop(stream);
        until("the server sees an unread stream go", || watch.dropped() == dropped + 2).await;

        let mut stream = upstream(address, http2).stream(call()).await.unwrap();
        let reading = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
        until("the stream stalls", || watch.begun() == dropped + 3).await;
        reading.abort();
        until("the server sees a stream go that waits for more", || watch.dropped() == dropped + 3).await;
        dropped += 3;
    }
}

#[tokio::test]
async fn refusals_keep_what_matters_and_hide_what_must_not_be_seen() {
    let handler = |headers: HeaderMap| async move {
        let status: u16 = headers.get("traceparent").unwrap().to_str().unwrap().parse().unwrap();
        let error = json!({"error": {"message": "upstream says", "type": "t", "param": "p", "code": "c"}});
        (StatusCode::from_u16(status).unwrap(), [("retry-after", "1.5")], Json(error))
    };
    let address = serve(Router::new().route(PATH, post(handler))).await;
    let upstream = upstream(address, Http2::Auto);
    for (status, client_status) in [(400, 400), (401, 502), (429, 429), (500, 502), (503, 503)] {
        let call = gateway::upstream::Call { traceparent: Some(status.to_string()), ..call() };
        let error = upstream.stream(call).await.unwrap_err();
        assert_eq!(error.upstream_status(), Some(status));
        let client = error.client_error();
        assert_eq!(client.status, client_status);
        assert_eq!(client.message == "upstream says", status == 400);
        let waits = matches!(status, 429 | 503);
        assert_eq!(client.retry_after, waits.then_some(DurationUs::from_millis(1_500)), "{status}");
        assert!(!error.billable_unknown());
        assert!(error.to_string().contains("upstream says"), "the operator sees it: {error}");
    }
}

#[tokio::test]
async fn answers_that_cannot_be_read_are_told_apart() {
    let stream_of = |piece: String| async move {
        let router =
            Router::new().route(PATH, post(move || async move { events(vec![chunk("a"), piece], End::Clean) }));
        let address = serve(router).await;
        let (events, error) = read(upstream(address, Http2::Auto).stream(call()).await.unwrap()).await;
        assert_eq!(text(&events), "a");
        error.unwrap()
    };
    let error = stream_of("data: {\"choices\":[{]\n\n".to_owned()).await;
    assert!(matches!(error, CallError::Malformed { .. }), "{error:?}");
    let error = stream_of("data: {\"error\":{\"message\":\"boom\"}}\n\n".to_owned()).await;
    assert!(matches!(&error, CallError::Reported { excerpt, .. } if excerpt.contains("boom")), "{error:?}");
    let error = stream_of("data: ".to_owned() + &"x".repeat(2 * 1024 * 1024)).await;
    assert!(matches!(error, CallError::TooLarge { .. }), "{error:?}");
    assert_eq!(error.delivered(), Delivered { pieces: 1, bytes: 1 });

    let address = serve(Router::new().route(PATH, post(|| async { Json(plain()) }))).await;
    let error = upstream(address, Http2::Auto).stream(call()).await.unwrap_err();
    assert!(matches!(error, CallError::Malformed { .. }), "an answer that is no stream: {error:?}");
    let small = with_timeouts(address, Http2::Auto, |settings| settings.answer_bytes_max = 10);
    let error = small.complete(call()).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { bytes_max: 10, .. }), "{error:?}");
    for body in ["", "[]", "{}", "{\"choices\":{}}", "<html>", "{\"choices\":[]} x"] {
        let address = serve(Router::new().route(PATH, post(move || async move { body }))).await;
        let error = upstream(address, Http2::Auto).complete(call()).await.unwrap_err();
        assert!(matches!(error, CallError::Malformed { .. }), "{body}: {error:?}");
    }
}

/// Answers each question in turn, and the last one for ever.
async fn lookup_server(answers: Vec<(u16, Value)>) -> (SocketAddr, Watch) {
    let watch = Watch::default();
    let asked = watch.clone();
    let handler = move |Path(id): Path<String>| async move {
        assert_eq!(id, request_id().to_string());
        let index = usize::try_from(asked.begun()).unwrap().min(answers.len() - 1);
        drop(asked.guard());
        let (status, body) = answers[index].clone();
        (StatusCode::from_u16(status).unwrap(), Json(body))
    };
    (serve(Router::new().route("/v1/usage/{id}", get(handler))).await, watch)
}

fn record(status: &str, billed: bool) -> Value {
    json!({"id": "x", "status": status, "prompt_tokens": 3, "completion_tokens": 2, "billed": billed})
}

#[tokio::test]
async fn usage_is_asked_for_until_the_answer_is_final() {
    for (answers, expected, asked) in [
        (
            vec![(200, record("running", true)), (200, record("running", true)), (200, record("cut", true))],
            Some(usage()),
            3,
        ),
        (vec![(200, record("refused", false))], None, 1),
        (vec![(404, json!({}))], None, 4),
        (vec![(404, json!({})), (404, json!({})), (200, record("client_gone", true))], Some(usage()), 3),
        (vec![(500, json!({})), (429, json!({})), (200, record("completed", true))], Some(usage()), 3),
    ] {
        let (address, watch) = lookup_server(answers).await;
        let got = upstream(address, Http2::Auto).lookup_usage(request_id(), fake::PATIENCE).await.unwrap();
        assert_eq!((got, watch.begun()), (expected, asked));
    }
}

#[tokio::test]
async fn usage_that_cannot_be_known_is_an_error_in_time() {
    let (address, _) = lookup_server(vec![(200, record("running", true))]).await;
    let error = upstream(address, Http2::Auto).lookup_usage(request_id(), SHORT).await.unwrap_err();
    assert_timeout(&error, Phase::Lookup, true);
    let silent = serve(Router::new().route("/v1/usage/{id}", get(std::future::pending::<()>))).await;
    let error = upstream(silent, Http2::Auto).lookup_usage(request_id(), SHORT).await.unwrap_err();
    assert_timeout(&error, Phase::Lookup, true);
    for (answer, asked) in [((401, json!({})), 1), ((200, json!({"status": 1})), 1)] {
        let (address, watch) = lookup_server(vec![answer]).await;
        assert!(upstream(address, Http2::Auto).lookup_usage(request_id(), fake::PATIENCE).await.is_err());
        assert_eq!(watch.begun(), asked);
    }
    let none = with_timeouts(address, Http2::Auto, |settings| settings.usage_lookup_path = None);
    let error = none.lookup_usage(request_id(), SHORT).await.unwrap_err();
    assert!(matches!(error, CallError::NoLookup { .. }));
}
