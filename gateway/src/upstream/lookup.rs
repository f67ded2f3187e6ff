//! Asking an upstream what a call was billed, after an answer that did not say.
//!
//! The answer is `{"status","prompt_tokens","completion_tokens","billed"}`; while `status` is `running` the question is
//! repeated. A request the upstream does not know was not billed; but a request may still lie unread in a socket when
//! we ask, so it must be unknown `MISSING_TIMES` times, with growing pauses between.

use std::time::Duration;

use bytes::Bytes;
use events_model::{RequestId, Tokens};
use http::{Method, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;

use super::{
    call::request,
    client::{Inner, Upstream},
    error::{CallError, Phase},
    settings::TIMEOUT_MAX,
    wait::Deadline,
};
use crate::openai::{Delivered, Usage};

/// The pause after the first question; it doubles up to `PAUSE_MAX`.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause between two questions.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often a request must be unknown to count as not billed.
const MISSING_TIMES: u32 = 4;
/// Largest answer, bytes.
const LOOKUP_BYTES_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
struct Record {
    status: String,
    prompt_tokens: u64,
    completion_tokens: u64,
    billed: bool,
}

enum Found {
    Running,
    Missing,
    Final(Option<Usage>),
}

impl Upstream {
    /// Asks until the upstream gives a final answer, for at most so long; none means that nothing was billed.
    ///
    /// # Errors
    /// - `NoLookup`: this upstream cannot be asked.
    /// - `Timeout` with phase `Lookup`: still running, or not known for sure.
    /// - else: the last question failed; 5xx, 429 and broken connections are tried again before.
    ///
    /// After any of them it stays unknown what was billed, whatever `billable_unknown` says of the question itself.
    pub async fn lookup_usage(&self, request_id: RequestId, wait_max: Duration) -> Result<Option<Usage>, CallError> {
        let inner = self.inner();
        let upstream = || inner.settings.name.clone();
        let uri = inner.addresses.lookup(&request_id.to_string());
        let uri = uri.ok_or_else(|| CallError::NoLookup { upstream: upstream() })?;
        let deadline = Deadline::after(wait_max.min(TIMEOUT_MAX));
        let mut pause = PAUSE_MIN;
        let mut missing = 0;
        loop {
            let result = inner.ask(&uri, deadline).await;
            let error = match result {
                Ok(Found::Final(usage)) => return Ok(usage),
                Ok(Found::Missing) if missing + 1 >= MISSING_TIMES => return Ok(None),
                Ok(Found::Missing) => {
                    missing += 1;
                    inner.timeout(Phase::Lookup, Delivered::default())
                }
                Ok(Found::Running) => inner.timeout(Phase::Lookup, Delivered::default()),
                // Whatever the question was waiting for: the time for the lookup is over.
                Err(CallError::Timeout { .. }) if deadline.left().is_zero() => {
                    inner.timeout(Phase::Lookup, Delivered::default())
                }
                Err(error) if is_temporary(&error) => error,
                Err(error) => return Err(error),
            };
            if deadline.left() <= pause {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }
}

impl Inner {
    async fn ask(&self, uri: &Uri, deadline: Deadline) -> Result<Found, CallError> {
        let request = request(Method::GET, uri.clone(), self.key.as_ref(), Full::new(Bytes::new()));
        let opened = self.send(request, deadline).await?;
        match opened.response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                // Reading the body to its end keeps the connection; what it says does not matter.
                self.read_body(opened, LOOKUP_BYTES_MAX).await?;
                return Ok(Found::Missing);
            }
            _ => return Err(self.status_error(opened).await),
        }
        let body = self.read_body(opened, LOOKUP_BYTES_MAX).await?;
        let record: Record = serde_json::from_slice(&body)
            .map_err(|error| self.malformed(format!("usage: {error}"), Delivered::default()))?;
        if record.status == "running" {
            return Ok(Found::Running);
        }
        let (prompt, completion) = (Tokens(record.prompt_tokens), Tokens(record.completion_tokens));
        Ok(Found::Final(record.billed.then_some(Usage { prompt, completion })))
    }
}

/// Whether the same question may get an answer later.
const fn is_temporary(error: &CallError) -> bool {
    match error {
        CallError::Connect { .. } | CallError::Timeout { .. } | CallError::Cut { .. } => true,
        CallError::Status { status, .. } => *status == 429 || *status >= 500,
        CallError::Reported { .. }
        | CallError::Malformed { .. }
        | CallError::TooLarge { .. }
        | CallError::NoLookup { .. } => false,
    }
}
