//! A fake upstream over TCP: routes are the test's own, the rest of it is here.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use events_model::RequestId;
use futures::Stream;
use gateway::upstream::{AnswerStream, Call, CallError, Http2, Secret, StreamEvent, Upstream, UpstreamSettings};

/// Longest wait for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Serves routes on a free port until the test's runtime ends.
pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    address
}

pub(crate) fn settings(address: SocketAddr) -> UpstreamSettings {
    let mut settings = UpstreamSettings::new("fake", format!("http://{address}/v1"));
    settings.api_key = Some(Secret::new("sk-test"));
    settings.usage_lookup_path = Some("/v1/usage/{request_id}".to_owned());
    settings
}

pub(crate) fn upstream(address: SocketAddr, http2: Http2) -> Upstream {
    Upstream::new(UpstreamSettings { http2, ..settings(address) }).unwrap()
}

pub(crate) fn request_id() -> RequestId {
    RequestId::from_bytes([7; 16])
}

pub(crate) fn call() -> Call {
    Call {
        request_id: request_id(),
        model: "our-model".to_owned(),
        body: Bytes::from_static(b"{}"),
        include_usage: true,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

pub(crate) fn chunk(text: &str) -> String {
    format!(
        "data: {{\"id\":\"u\",\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
    )
}

pub(crate) const STOP: &str =
    "data: {\"id\":\"u\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
pub(crate) const USAGE: &str = concat!(
    "data: {\"id\":\"u\",\"choices\":[],",
    "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n"
);
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// An event stream of these pieces, which then ends as asked.
pub(crate) fn events(pieces: Vec<String>, end: End) -> Response {
    let body = Body::from_stream(Pieces { pieces: pieces.into_iter(), end });
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response()
}

/// A JSON answer.
pub(crate) struct Json(pub(crate) serde_json::Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}

/// What comes after the last piece.
pub(crate) enum End {
    Clean,
    /// The connection or stream is broken once the test says so.
    Broken(tokio::sync::oneshot::Receiver<()>),
    /// Nothing more; the guard tells when the server sees the client go.
    Stall(#[expect(dead_code, reason = "it is kept for its drop")] Guard),
}

struct Pieces {
    pieces: std::vec::IntoIter<String>,
    end: End,
}

impl Stream for Pieces {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match (this.pieces.next(), &mut this.end) {
            (Some(piece), _) => Poll::Ready(Some(Ok(piece.into()))),
            (None, End::Clean) => Poll::Ready(None),
            (None, End::Broken(told)) => Pin::new(told).poll(cx).map(|_| Some(Err(std::io::Error::other("cut")))),
            (None, End::Stall(_)) => Poll::Pending,
        }
    }
}

/// Counts how often something began and how often it was dropped.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<(AtomicU64, AtomicU64)>);

pub(crate) struct Guard(Watch);

impl Watch {
    pub(crate) fn guard(&self) -> Guard {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        Guard(self.clone())
    }

    pub(crate) fn begun(&self) -> u64 {
        self.0.0.load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.0.1.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Reads a stream to its end.
pub(crate) async fn read(mut stream: AnswerStream) -> (Vec<StreamEvent>, Option<CallError>) {
    let mut events = Vec::new();
    let read = async {
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => events.push(event),
                Err(error) => {
                    assert!(stream.next().await.is_none(), "nothing comes after an error");
                    return Some(error);
                }
            }
        }
        None
    };
    let error = tokio::time::timeout(PATIENCE, read).await.unwrap();
    (events, error)
}

/// The texts of a stream.
pub(crate) fn text(events: &[StreamEvent]) -> String {
    events.iter().map(|event| if let StreamEvent::Delta { text, .. } = event { text.as_str() } else { "" }).collect()
}
