//! The load generator: connections that each send one chat request after the other and check every answer.
//!
//! HTTP/1.1 with keep-alive, one request at a time a connection (a closed loop), as most client libraries do. A wrong
//! answer ends the run: what is measured is correct work only.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, task::JoinSet};

use super::figure::{Figure, micros};
use crate::cli::{
    clock::Stopwatch,
    failure::{Failure, Problem},
};

/// Where chat requests go.
const PATH: &str = "/v1/chat/completions";
/// What ends a stream.
const DONE: &[u8] = b"data: [DONE]";

/// What to send.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    pub(super) connections: usize,
    pub(super) length: Duration,
    /// Server-sent events instead of a plain answer.
    pub(super) streaming: bool,
    pub(super) model: &'static str,
    /// One a connection, in turn; empty = none is sent.
    pub(super) keys: Vec<String>,
}

/// What came back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    pub(super) figure: Figure,
    pub(super) requests: u64,
    pub(super) usage: Usage,
}

/// Tokens that answers reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Usage {
    /// Adds.
    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
        }
    }

    /// Subtracts.
    pub(super) const fn minus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_sub(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_sub(other.completion_tokens),
        }
    }
}

/// Sends requests until the time is over and every answer is there.
///
/// # Errors
/// A connection fails, or an answer is not what it should be.
pub(super) async fn run(load: Load) -> Result<Answered, Failure> {
    let load = Arc::new(load);
    let mut tasks = JoinSet::new();
    let started = Stopwatch::start();
    for number in 0..load.connections {
        tasks.spawn(connection(Arc::clone(&load), number, started));
    }
    let (mut latencies, mut usage) = (Vec::new(), Usage::default());
    while let Some(ended) = tasks.join_next().await {
        let (theirs, used) = ended.map_err(|error| Problem::new("a connection ended").because(&error))??;
        latencies.extend(theirs);
        usage = usage.plus(used);
    }
    let requests = latencies.len() as u64;
    Ok(Answered { figure: Figure::of(latencies, started.elapsed()), requests, usage })
}

async fn connection(load: Arc<Load>, number: usize, started: Stopwatch) -> Result<(Vec<u32>, Usage), Failure> {
    let failed =
        |error: &dyn std::error::Error| Problem::new(format!("connection {number} to {}", load.address)).because(error);
    let stream = TcpStream::connect(load.address).await.map_err(|error| failed(&error))?;
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // Ends with this function: the set aborts what it holds.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let key = number.checked_rem(load.keys.len()).and_then(|index| load.keys.get(index));
    let bearer = key.map(|key| format!("Bearer {key}"));
    let body = body(&load, number);
    let (mut latencies, mut usage) = (Vec::new(), Usage::default());
    while started.elapsed() < load.length {
        let asked = Stopwatch::start();
        let answer = send(&mut sender, &load, bearer.as_deref(), body.clone()).await?;
        latencies.push(micros(asked.elapsed()));
        let used = if load.streaming { check_stream(&answer) } else { check_plain(&answer) };
        let wrong = || Problem::new(format!("an answer is wrong: {}", String::from_utf8_lossy(&answer)));
        usage = usage.plus(used.ok_or_else(wrong)?);
    }
    Ok((latencies, usage))
}

fn body(load: &Load, number: usize) -> Bytes {
    let mut body = serde_json::json!({
        "model": load.model,
        "messages": [
            { "role": "system", "content": "You answer briefly." },
            { "role": "user", "content": format!("Writer {number:03} asks: what does a durable log cost?") },
        ],
        "max_tokens": 64,
    });
    if load.streaming
        && let Some(fields) = body.as_object_mut()
    {
        fields.insert("stream".to_owned(), true.into());
        fields.insert("stream_options".to_owned(), serde_json::json!({ "include_usage": true }));
    }
    body.to_string().into()
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    load: &Load,
    bearer: Option<&str>,
    body: Bytes,
) -> Result<Bytes, Failure> {
    let failed = |error: &dyn std::error::Error| Problem::new(format!("a request to {}", load.address)).because(error);
    let mut request =
        Request::post(PATH).header(header::HOST, "bench").header(header::CONTENT_TYPE, "application/json");
    if let Some(bearer) = bearer {
        request = request.header(header::AUTHORIZATION, bearer);
    }
    let request = request.body(Full::new(body)).map_err(|error| failed(&error))?;
    sender.ready().await.map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
    if status == StatusCode::OK {
        return Ok(body);
    }
    Err(Problem::new(format!("a request was answered with {status}: {}", String::from_utf8_lossy(&body))).into())
}

#[derive(Deserialize)]
struct Choice {
    finish_reason: Option<Box<str>>,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

/// The usage of a plain answer that is complete.
fn check_plain(answer: &[u8]) -> Option<Usage> {
    let completion: Completion = serde_json::from_slice(answer).ok()?;
    completion.choices.first()?.finish_reason.as_ref()?;
    completion.usage.filter(|usage| usage.prompt_tokens > 0 && usage.completion_tokens > 0)
}

/// The usage of a stream that came to its end: the last event is `[DONE]`, the one before it holds the usage.
fn check_stream(answer: &[u8]) -> Option<Usage> {
    let answer = answer.trim_ascii_end().strip_suffix(DONE)?.trim_ascii_end();
    let start = answer.windows(2).rposition(|pair| pair == b"\n\n").map_or(0, |at| at + 2);
    let last = answer.get(start..)?.strip_prefix(b"data: ")?;
    let completion: Completion = serde_json::from_slice(last).ok()?;
    completion.usage.filter(|usage| usage.prompt_tokens > 0 && usage.completion_tokens > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage { prompt_tokens: 3, completion_tokens: 4 };

    #[test]
    fn only_whole_answers_pass() {
        let plain = br#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
        assert_eq!(check_plain(plain), Some(USAGE));
        assert_eq!(check_plain(&plain[..60]), None);
        let unfinished = br#"{"choices":[{"finish_reason":null}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
        assert_eq!(check_plain(unfinished), None);
        let head = "data: {\"choices\":[{\"finish_reason\":null}]}\n\n";
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n";
        assert_eq!(check_stream(format!("{head}{usage}data: [DONE]\n\n").as_bytes()), Some(USAGE));
        assert_eq!(check_stream(format!("{head}{usage}").as_bytes()), None);
        assert_eq!(check_stream(format!("{head}data: [DONE]\n\n").as_bytes()), None);
    }
}
