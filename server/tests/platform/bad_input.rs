//! Bad input of every kind: a clear typed error each, and nothing recorded.

use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::world::{PATIENCE, World, chat};

const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

fn with(member: &str) -> Vec<u8> {
    format!(r#"{{"model":"sim-small",{MESSAGES},{member}}}"#).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_bad_body_is_a_typed_error_and_moves_nothing() {
    let world = World::new().await;
    let head = world.platform.head_position();
    let deep = format!(r#""metadata":{}1{}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
    for (name, body, status, code) in [
        ("empty", Vec::new(), 400, "invalid_json"),
        ("truncated", br#"{"model":"sim-small","messages":[{"#.to_vec(), 400, "invalid_json"),
        ("not an object", b"[]".to_vec(), 400, "invalid_type"),
        ("no model", format!("{{{MESSAGES}}}").into_bytes(), 400, "missing_required_parameter"),
        ("no messages", br#"{"model":"sim-small"}"#.to_vec(), 400, "missing_required_parameter"),
        ("messages of a wrong type", br#"{"model":"sim-small","messages":"hi"}"#.to_vec(), 400, "invalid_type"),
        ("an unknown field", with(r#""max_token":5"#), 400, "unknown_parameter"),
        ("negative max_tokens", with(r#""max_tokens":-1"#), 400, "integer_below_min_value"),
        ("huge max_tokens", with(r#""max_tokens":99999999999999999999"#), 400, "integer_above_max_value"),
        ("max_tokens above the model's", with(r#""max_tokens":1001"#), 400, "integer_above_max_value"),
        ("a temperature that is no number", with(r#""temperature":NaN"#), 400, "invalid_json"),
        ("a temperature beyond numbers", with(r#""temperature":1e400"#), 400, "invalid_json"),
        ("a high temperature", with(r#""temperature":2.5"#), 400, "decimal_above_max_value"),
        ("a duplicate key", with(r#""n":1,"n":2"#), 400, "duplicate_key"),
        ("deep nesting", with(&deep), 400, "too_deep"),
        ("invalid UTF-8", b"{\"model\":\"\xff\xfe\"}".to_vec(), 400, "invalid_utf8"),
        ("an unknown model", format!(r#"{{"model":"gpt-0",{MESSAGES}}}"#).into_bytes(), 404, "model_not_found"),
        (
            "a model with a line break",
            format!(r#"{{"model":"a\r\nb: c",{MESSAGES}}}"#).into_bytes(),
            400,
            "invalid_value",
        ),
        ("10 MiB", vec![b' '; 10 * 1024 * 1024], 413, "request_too_large"),
    ] {
        let reply = world.send(world.post(body)).await;
        assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (status, &json!(code)), "{name}: {reply:?}");
        assert_eq!(reply.request_id().len(), 36, "{name}");
    }
    assert_eq!(world.platform.head_position(), head, "nothing is recorded");
    assert_eq!(world.simulator.stats().requests, 0, "nobody is called");
    assert_eq!(world.chat(&chat(5)).await.status, StatusCode::OK, "and the next request is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_headers_are_typed_errors_and_are_not_repeated() {
    let world = World::new().await;
    let head = world.platform.head_position();
    for (name, value, status, code) in [
        ("content-type", "text/plain", 415, "unsupported_media_type"),
        ("content-encoding", "gzip", 415, "unsupported_media_type"),
        ("x-client-request-id", "<script>", 400, "invalid_header"),
        ("x-client-request-id", "a b", 400, "invalid_header"),
        ("idempotency-key", "a b", 400, "invalid_idempotency_key"),
        ("idempotency-key", "", 400, "invalid_idempotency_key"),
        ("idempotency-key", &"k".repeat(256), 400, "invalid_idempotency_key"),
        ("authorization", "Basic abc", 401, "invalid_api_key"),
        ("authorization", "Bearer", 401, "invalid_api_key"),
    ] {
        let mut request = world.post(chat(5).to_string());
        request.headers_mut().insert(name, value.parse().unwrap());
        let reply = world.send(request).await;
        assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (status, &json!(code)), "{name}: {value}");
        assert!(!format!("{reply:?}").contains("script"));
    }
    let mut request = world.post(chat(5).to_string());
    request.headers_mut().remove("content-type");
    assert_eq!(world.send(request).await.status.as_u16(), 415);
    assert_eq!(world.platform.head_position(), head, "nothing is recorded");
}

/// Writes raw bytes and reads until the server closes.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.platform.http_address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_http_is_refused_and_a_silent_connection_is_closed() {
    let world = World::configured(server::simulate::Options::default(), "pro", |config| {
        config.http.header_timeout = std::time::Duration::from_millis(300);
    })
    .await;
    let head = world.platform.head_position();
    let injected = "GET /healthz HTTP/1.1\r\nhost: a\r\nx-client-request-id: a\rb\r\n\r\n";
    assert!(raw(&world, injected.as_bytes()).await.starts_with("HTTP/1.1 400"));
    assert!(raw(&world, b"\x16\x03\x01garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    // Nothing, half a head, and half of HTTP/2's beginning: each ends by itself.
    for beginning in ["", "GET /healthz HTT", "PRI * HTTP/2.0\r\n\r\n"] {
        assert!(!raw(&world, beginning.as_bytes()).await.contains("200"), "{beginning:?}");
    }
    assert_eq!(world.platform.head_position(), head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_records_nothing() {
    let world = World::new().await;
    let head = world.platform.head_position();
    let mut stream = TcpStream::connect(world.platform.http_address()).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 500\r\n\r\n{{\"model\":",
        world.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // The server may answer or just close; both are an end.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    assert_eq!(world.platform.head_position(), head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_before_sending_too_much_is_told_at_once() {
    let world = World::new().await;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nexpect: 100-continue\r\n\
         content-type: application/json\r\ncontent-length: 99000000\r\n\r\n",
        world.key
    );
    let answer = raw(&world, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_headers_are_refused() {
    let world = World::new().await;
    let mut request = Request::get(world.url("/healthz"));
    for index in 0..150 {
        request = request.header(format!("x-{index}"), "a");
    }
    let reply = world.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(reply.status.as_u16(), 431);
    let large = Request::get(world.url("/healthz")).header("x-large", "a".repeat(80 * 1024)).body(Full::default());
    assert_eq!(world.send(large.unwrap()).await.status.as_u16(), 431);
}
