//! Clients of the OpenAI API that behave as real ones do: some stream, some go away in the middle.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use crate::dice::Dice;

/// Longest wait for a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// Longest wait for the answer to a short request.
const KEYED_TIMEOUT: Duration = Duration::from_secs(15);

/// What came of one try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer of this status.
    Status(u16),
    /// None.
    Broken,
}

/// What one client does.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// The key it shows.
    pub key: String,
    /// Whether it asks for a stream.
    pub streaming: bool,
    /// How much it asks for.
    pub max_tokens: u64,
    /// Length of its prompt, words.
    pub prompt_words: u64,
    /// After how many pieces of the answer it goes away, if it does.
    pub leaves_after: Option<u64>,
}

impl Behaviour {
    /// Draws one: half stream, one in eight goes away.
    pub fn draw(dice: &mut Dice, keys: &[String]) -> Self {
        let index = dice.within(0..=u64::try_from(keys.len().saturating_sub(1)).unwrap_or(0));
        Self {
            key: keys.get(usize::try_from(index).unwrap_or(0)).cloned().unwrap_or_default(),
            streaming: dice.one_in(2),
            max_tokens: dice.within(1..=96),
            prompt_words: dice.within(1..=60),
            leaves_after: dice.one_in(8).then(|| dice.within(0..=12)),
        }
    }
}

/// What became of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// An answer of this status, read to its end.
    Answered(u16),
    /// It went away, as it was told to.
    Left,
    /// The connection broke.
    Broken,
}

/// Requests over connections of their own.
#[derive(Debug, Clone, Copy)]
pub struct Http {
    to: SocketAddr,
}

impl Http {
    /// Requests to an address.
    pub const fn new(to: SocketAddr) -> Self {
        Self { to }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let stream = TcpStream::connect(self.to).await.context("connect")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("shake hands")?;
        #[expect(clippy::disallowed_methods, reason = "the connection ends with its request")]
        tokio::spawn(connection);
        sender.send_request(request).await.context("send the request")
    }

    /// Gets a path: status and body.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(&self, path: &str) -> Result<(u16, Bytes)> {
        let request = Request::get(path).header("host", self.to.to_string()).body(Full::default())?;
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await.context("read the body")?.to_bytes()))
    }

    /// One short request under an idempotency key; the answer is read to its end.
    pub async fn keyed_chat(&self, key: &str, idempotency_key: &str) -> Outcome {
        let ask = async {
            let body = json!({
                "model": "sim-small",
                "messages": [{"role": "user", "content": idempotency_key}],
                "max_tokens": 8,
            });
            let request = Request::post("/v1/chat/completions")
                .header("host", self.to.to_string())
                .header("content-type", "application/json")
                .header("authorization", format!("Bearer {key}"))
                .header("idempotency-key", idempotency_key)
                .body(Full::from(body.to_string()))?;
            let response = self.send(request).await?;
            let status = response.status().as_u16();
            response.into_body().collect().await.context("read the body")?;
            anyhow::Ok(status)
        };
        match tokio::time::timeout(KEYED_TIMEOUT, ask).await {
            Ok(Ok(status)) => Outcome::Status(status),
            Ok(Err(_)) | Err(_) => Outcome::Broken,
        }
    }

    /// Behaves as told.
    pub async fn chat(&self, behaviour: &Behaviour) -> Fate {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.try_chat(behaviour)).await {
            Ok(Ok(fate)) => fate,
            Ok(Err(_)) | Err(_) => Fate::Broken,
        }
    }

    async fn try_chat(&self, behaviour: &Behaviour) -> Result<Fate> {
        let prompt = "word ".repeat(usize::try_from(behaviour.prompt_words).unwrap_or(1));
        let mut body = json!({
            "model": "sim-small",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": behaviour.max_tokens,
        });
        if behaviour.streaming {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        let request = Request::post("/v1/chat/completions")
            .header("host", self.to.to_string())
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", behaviour.key))
            .body(Full::from(body.to_string()))?;
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut pieces = 0;
        loop {
            if behaviour.leaves_after.is_some_and(|after| pieces >= after) {
                return Ok(Fate::Left);
            }
            match body.frame().await {
                Some(frame) => drop(frame.context("read the answer")?),
                None => return Ok(Fate::Answered(status)),
            }
            pieces += 1;
        }
    }
}
