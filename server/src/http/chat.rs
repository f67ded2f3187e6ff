//! `POST /v1/chat/completions`, plain and streamed.

use std::convert::Infallible;

use axum::{Extension, body::Body, extract::Request, response::Response};
use bytes::{Bytes, BytesMut};
use gateway::openai::ChatRequest;
use http::{HeaderMap, HeaderValue, header};
use tokio::sync::mpsc;
use tracing::debug;

use super::{App, Id, JSON, State, body, error, headers, with_type};
use crate::model_path::{Failed, Item, STREAM_ITEMS_MAX, Streaming, Submission, Surface};

const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";
const DONE: &[u8] = b"data: [DONE]\n\n";

pub(super) async fn complete(state: State, Extension(id): Extension<Id>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answered = Box::pin(run(&state, id, &parts.headers, body)).await;
    let mut response = answered.unwrap_or_else(|failed| error::failed_response(&failed));
    if let Ok(Some(client_id)) = headers::client_id(&parts.headers) {
        headers::put_client_id(response.headers_mut(), client_id);
    }
    response
}

async fn run(app: &App, id: Id, headers: &HeaderMap, body: Body) -> Result<Response, Failed> {
    let caller = app.path.authenticate(headers::bearer(headers)).await?;
    headers::expect_json(headers)?;
    let client_id = headers::client_id(headers)?;
    let idempotency_key = headers::idempotency_key(headers)?;
    let body = body::read(headers, body, app.body_bytes_max).await?;
    let request = ChatRequest::parse(&body, app.path.limits())?;
    debug!(tenant = %caller.tenant, model = request.model, stream = request.stream, client_id, "model request");
    let streams = request.stream;
    let submission = Submission {
        request_id: id.0,
        caller,
        request,
        idempotency_key,
        traceparent: headers::traceparent(headers),
        surface: Surface::Http,
    };
    if streams {
        return Ok(stream_response(app.path.stream(submission).await?));
    }
    let completion = app.path.complete(submission).await?;
    let mut response = with_type(JSON, completion.answer.body);
    headers::put_limits(response.headers_mut(), &completion.view);
    Ok(response)
}

fn stream_response(streaming: Streaming) -> Response {
    let Streaming { items, view } = streaming;
    let mut response = with_type(EVENT_STREAM, Body::from_stream(frames(items)));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers::put_limits(headers, &view);
    response
}

/// Server-sent events as they come; those that wait together are written together.
fn frames(items: mpsc::Receiver<Item>) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    let waiting = Vec::with_capacity(STREAM_ITEMS_MAX);
    futures::stream::unfold((items, waiting, false), |(mut items, mut waiting, mut is_over)| async move {
        if is_over {
            return None;
        }
        if items.recv_many(&mut waiting, STREAM_ITEMS_MAX).await == 0 {
            waiting.push(Item::broken_off());
        }
        is_over = waiting.last().is_some_and(Item::is_last);
        let bytes = written(&mut waiting);
        Some((Ok(bytes), (items, waiting, is_over)))
    })
}

fn written(items: &mut Vec<Item>) -> Bytes {
    if let [Item::Chunk { .. }] = items.as_slice()
        && let Some(Item::Chunk { frame, .. }) = items.pop()
    {
        return frame;
    }
    let mut out = BytesMut::new();
    for item in items.drain(..) {
        match item {
            Item::Chunk { frame, .. } => out.extend_from_slice(&frame),
            Item::End(ended) => {
                out.extend_from_slice(&ended.usage_frame.unwrap_or_default());
                out.extend_from_slice(DONE);
            }
            Item::Failed(failure) => {
                error::log(&failure);
                out.extend_from_slice(&error::api_error(&failure).sse_frame());
            }
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use events_model::{
        NanoUsd, Tokens,
        tenant::{Usage, UsageSource},
    };
    use futures::StreamExt as _;

    use super::*;
    use crate::model_path::Ended;

    async fn frames_of(items: Vec<Item>) -> String {
        let (sink, receiver) = mpsc::channel(STREAM_ITEMS_MAX);
        for item in items {
            sink.send(item).await.unwrap();
        }
        drop(sink);
        let frames: Vec<Bytes> = frames(receiver).map(Result::unwrap).collect().await;
        String::from_utf8(frames.concat()).unwrap()
    }

    fn chunk() -> Item {
        Item::Chunk { frame: Bytes::from_static(b"data: {}\n\n"), text: String::new() }
    }

    #[tokio::test]
    async fn a_stream_whose_task_ended_early_ends_with_an_error_and_is_not_done() {
        let text = frames_of(vec![chunk()]).await;
        assert!(text.starts_with("data: {}\n\ndata: {\"error\":") && text.contains("server_error"), "{text}");
        assert!(!text.contains("[DONE]"), "{text}");
    }

    #[tokio::test]
    async fn a_stream_that_ended_says_nothing_after_its_end() {
        let source = UsageSource::Reported;
        let usage = Usage { prompt_tokens: Tokens(1), completion_tokens: Tokens(1), source };
        let cost = NanoUsd(1);
        let end = Item::End(Ended { finish_reason: None, usage, cost, usage_frame: None });
        assert_eq!(frames_of(vec![chunk(), end]).await, "data: {}\n\ndata: [DONE]\n\n");
    }
}
