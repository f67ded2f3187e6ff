//! What reaches the gRPC port and is no call that our code would be asked for: a typed error each, and no connection
//! that is held for nothing.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use server::simulate::Options;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{PATIENCE, World};

const COMPLETE: &str = "/freehold.gateway.v1.Gateway/Complete";

/// A gRPC frame that says how long it is.
fn frame(length: usize, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(length.try_into().unwrap());
    frame.put_slice(message);
    frame.freeze()
}

/// Sends bytes as a call of a method; the status of the answer.
async fn call(world: &World, method: &str, body: Bytes) -> Status {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    let request = Request::post(format!("http://{}{method}", world.platform.grpc_address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body))
        .unwrap();
    let response = tokio::time::timeout(PATIENCE, client.request(request)).await.unwrap().unwrap();
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_else(HeaderMap::new);
    Status::from_header_map(&head.headers).or_else(|| Status::from_header_map(&trailers)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_a_typed_error_and_moves_nothing() {
    let world = World::configured(Options::default(), "pro", |config| config.http.body_bytes_max = 64 * 1024).await;
    let head = world.platform.head_position();
    // Field 1 is the model, a text.
    let invalid_text = b"\x0a\x02\xff\xfe";
    let truncated = b"\x0a\x10sim";
    let large = vec![b' '; 65 * 1024];
    for (name, method, body, code, reason) in [
        ("invalid UTF-8", COMPLETE, frame(4, invalid_text), Code::InvalidArgument, "MALFORMED_REQUEST"),
        ("truncated message", COMPLETE, frame(5, truncated), Code::InvalidArgument, "MALFORMED_REQUEST"),
        ("truncated frame", COMPLETE, frame(99, truncated), Code::InvalidArgument, "MALFORMED_REQUEST"),
        ("nothing", COMPLETE, Bytes::new(), Code::InvalidArgument, "MALFORMED_REQUEST"),
        ("too large", COMPLETE, frame(large.len(), &large), Code::InvalidArgument, "MESSAGE_TOO_LARGE"),
        ("no method", "/freehold.gateway.v1.Gateway/Nope", frame(0, b""), Code::Unimplemented, "UNKNOWN_METHOD"),
        ("no service", "/nope.Nope/Nope", frame(0, b""), Code::Unimplemented, "UNKNOWN_METHOD"),
        ("no key", COMPLETE, frame(0, b""), Code::Unauthenticated, "API_KEY_INVALID"),
    ] {
        let status = call(&world, method, body).await;
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("{name}: no ErrorInfo: {status:?}"));
        assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (code, reason, "freehold"), "{name}");
        assert!(!status.message().is_empty(), "{name}");
    }
    assert_eq!(world.platform.head_position(), head, "nothing is recorded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_closed_and_makes_room_for_the_next() {
    let world = World::configured(Options::default(), "pro", |config| {
        config.http.header_timeout = std::time::Duration::from_millis(300);
        // One is the world's own client.
        config.http.connections_max = 3;
    })
    .await;
    let connect = || TcpStream::connect(world.platform.grpc_address());
    let mut silent = Vec::new();
    for _ in 0..6 {
        let mut stream = connect().await.unwrap();
        stream.write_all(b"PRI * HTT").await.unwrap();
        silent.push(stream);
    }
    // Three times as many as there is room for besides: all are closed in their turn.
    for mut stream in silent {
        let mut answer = Vec::new();
        // Closed or reset: both are an end.
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    }
    let status = call(&world, "/nope.Nope/Nope", frame(0, b"")).await;
    assert_eq!(status.code(), Code::Unimplemented, "and the next caller is served");
}
