//! Response bodies.
//!
//! Invariants: bytes exist only because the connection asked for them (hyper polls a body when its write buffer has
//! room); the attempt inside a body is ended before its last bytes are handed over, or by the drop of the body when
//! the client goes away. A broken-off body first lets hyper send what it already has, then fails, which closes an
//! HTTP/1 connection or resets an HTTP/2 stream. If the client reads too slowly for that, it loses what was still
//! buffered, as with a real broken connection: the bill counts what was handed over.

use std::{
    fmt::{Display, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde::Serialize;

use super::{
    generate::{Generator, Step},
    ledger::{Attempt, Outcome},
};

/// The `created` time of everything, in Unix seconds: fixed, so that the same seed gives the same bytes.
pub(super) const CREATED_UNIX_S: u64 = 1_700_000_000;
/// Frames of one stream are cut from blocks of this size, so that a token costs no allocation of its own.
const BLOCK_BYTES: usize = 4 * 1_024;

/// The simulator broke the connection on purpose.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("connection cut on purpose")]
pub(super) struct ConnectionCut;

/// Any body the simulator sends.
pub(super) enum Body {
    /// Sent whole; with the attempt it completes, if any.
    Whole { data: Option<Bytes>, attempt: Option<Attempt> },
    /// A part of a longer body (`length` bytes), then a broken connection.
    Torn { data: Option<Bytes>, length: u64, flushed: bool },
    /// Server-sent events.
    Stream(Box<EventStream>),
}

impl Body {
    /// A JSON answer outside the bill.
    pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Self> {
        // Our own structures of strings and numbers always serialise.
        let data = serde_json::to_vec(value).unwrap_or_default();
        let mut response = Response::new(Self::Whole { data: Some(data.into()), attempt: None });
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = ConnectionCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ConnectionCut>>> {
        match &mut *self {
            Self::Whole { data, attempt } => {
                if let Some(mut attempt) = attempt.take() {
                    attempt.end(Outcome::Completed);
                }
                Poll::Ready(data.take().map(|data| Ok(Frame::data(data))))
            }
            Self::Torn { data, flushed, .. } => match data.take() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => poll_cut(flushed, context),
            },
            Self::Stream(stream) => stream.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { data, .. } => data.is_none(),
            Self::Torn { .. } => false,
            Self::Stream(stream) => stream.stage == Stage::Ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { data, .. } => SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64)),
            Self::Torn { length, .. } => SizeHint::with_exact(*length),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// Waits one turn, in which hyper flushes what it has, then fails.
fn poll_cut<T>(flushed: &mut bool, context: &mut Context<'_>) -> Poll<Option<Result<T, ConnectionCut>>> {
    if std::mem::replace(flushed, true) {
        return Poll::Ready(Some(Err(ConnectionCut)));
    }
    context.waker().wake_by_ref();
    Poll::Pending
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Role,
    Tokens,
    Cut { flushed: bool },
    Ended,
}

/// A streamed response: one event per token, one frame per event, so that a reader sees what a real upstream sends.
/// The last frame carries the finish reasons, the usage (if it was asked for) and `[DONE]`.
pub(super) struct EventStream {
    generator: Generator,
    stage: Stage,
    /// What every event starts with, up to the number of the choice.
    head: String,
    /// What every event of a choice ends with.
    tail: &'static str,
    include_usage: bool,
    block: BytesMut,
}

/// The part of [`EventStream::head`] in front of the choice.
const CHOICES: &str = r#""choices":[{"index":"#;

impl EventStream {
    /// A stream of a generator; `model` is a JSON string with its quotes.
    pub(super) fn new(generator: Generator, name: u64, model: &str, include_usage: bool) -> Self {
        let head = format!(
            "data: {{\"id\":\"chatcmpl-{name:016x}\",\"object\":\"chat.completion.chunk\",\
             \"created\":{CREATED_UNIX_S},\"model\":{model},{CHOICES}"
        );
        // With include_usage every chunk but the last says that its usage is null, as the API documents.
        let tail = if include_usage { "}],\"usage\":null}\n\n" } else { "}]}\n\n" };
        Self { generator, stage: Stage::Role, head, tail, include_usage, block: BytesMut::with_capacity(BLOCK_BYTES) }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionCut>>> {
        loop {
            match &mut self.stage {
                Stage::Role => {
                    self.stage = Stage::Tokens;
                    for choice in 0..self.generator.lengths.len() {
                        self.event(choice, &[r#""delta":{"role":"assistant","content":""},"finish_reason":null"#]);
                    }
                    return self.frame();
                }
                Stage::Tokens => match ready!(self.generator.poll_step(context)) {
                    Step::Token { choice, word } => {
                        self.event(choice, &[r#""delta":{"content":""#, word, r#""},"finish_reason":null"#]);
                        return self.frame();
                    }
                    Step::Malformed => {
                        self.block.put_slice(self.head.as_bytes());
                        self.block.put_slice(b"0,\"delta\":{\"content\":\n\n");
                        return self.frame();
                    }
                    Step::Cut => {
                        self.generator.attempt.end(Outcome::Cut);
                        self.stage = Stage::Cut { flushed: false };
                    }
                    Step::End => {
                        self.finish();
                        self.generator.attempt.end(Outcome::Completed);
                        self.stage = Stage::Ended;
                        return self.frame();
                    }
                },
                Stage::Cut { flushed } => return poll_cut(flushed, context),
                Stage::Ended => return Poll::Ready(None),
            }
        }
    }

    fn frame(&mut self) -> Poll<Option<Result<Frame<Bytes>, ConnectionCut>>> {
        Poll::Ready(Some(Ok(Frame::data(self.block.split().freeze()))))
    }

    fn event(&mut self, choice: usize, middle: &[&str]) {
        self.block.put_slice(self.head.as_bytes());
        put_display(&mut self.block, choice);
        self.block.put_u8(b',');
        for part in middle {
            self.block.put_slice(part.as_bytes());
        }
        self.block.put_slice(self.tail.as_bytes());
    }

    fn finish(&mut self) {
        for choice in 0..self.generator.lengths.len() {
            let capped = self.generator.lengths.get(choice).is_some_and(|length| length.capped);
            self.event(choice, &[r#""delta":{},"finish_reason":""#, finish_reason(capped), "\""]);
        }
        if self.include_usage {
            let head = self.head.strip_suffix(CHOICES).unwrap_or(&self.head);
            self.block.put_slice(head.as_bytes());
            self.block.put_slice(br#""choices":[],"usage":"#);
            put_usage(&mut self.block, &self.generator.attempt);
            self.block.put_slice(b"}\n\n");
        }
        self.block.put_slice(b"data: [DONE]\n\n");
    }
}

/// The whole body of a plain response; `model` is a JSON string with its quotes, `texts` need no escaping.
pub(super) fn plain(generator: &Generator, name: u64, model: &str, texts: &[String]) -> Bytes {
    let mut body = BytesMut::with_capacity(512 + texts.iter().map(|text| text.len() + 128).sum::<usize>());
    put_display(
        &mut body,
        format_args!(
            "{{\"id\":\"chatcmpl-{name:016x}\",\"object\":\"chat.completion\",\"created\":{CREATED_UNIX_S},\
             \"model\":{model},\"choices\":["
        ),
    );
    for (index, (text, length)) in texts.iter().zip(&generator.lengths).enumerate() {
        if index > 0 {
            body.put_u8(b',');
        }
        let reason = finish_reason(length.capped);
        put_display(
            &mut body,
            format_args!(
                "{{\"index\":{index},\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\",\"refusal\":null}},\
                 \"logprobs\":null,\"finish_reason\":\"{reason}\"}}"
            ),
        );
    }
    body.put_slice(br#"],"usage":"#);
    put_usage(&mut body, &generator.attempt);
    body.put_u8(b'}');
    body.freeze()
}

fn finish_reason(capped: bool) -> &'static str {
    if capped { "length" } else { "stop" }
}

fn put_usage(to: &mut BytesMut, attempt: &Attempt) {
    let (prompt, completion) = (attempt.prompt_tokens(), attempt.generated());
    let total = prompt + completion;
    put_display(
        to,
        format_args!("{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\"total_tokens\":{total}}}"),
    );
}

fn put_display(to: &mut BytesMut, value: impl Display) {
    // Writing to memory cannot fail, and the writer of `BytesMut` says so only by its documentation.
    write!(to, "{value}").unwrap_or_default();
}
