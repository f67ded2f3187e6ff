//! What can go wrong with a call: what the client hears, and whether the upstream may have billed something.

use std::{error::Error as _, io};

use events_model::DurationUs;
use serde::Deserialize;

use crate::openai::{ApiError, Delivered, error::LimitKind, response::Usage};

/// Longest piece of an upstream's error that is kept for the operator, characters.
pub const EXCERPT_CHARS_MAX: usize = 512;
/// Longest message of an upstream that is passed on to a client, characters.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// When to come back if the upstream does not say.
const RETRY_AFTER: DurationUs = DurationUs::from_secs(1);

/// What a call was waiting for when its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One of `connections_max` slots.
    Slot,
    /// A connection, including TLS.
    Connect,
    /// The head of the answer.
    FirstByte,
    /// The next piece of the answer.
    Idle,
    /// The end of the call.
    Total,
    /// A final answer about usage.
    Lookup,
}

/// An upstream's error in OpenAI's form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct UpstreamMessage {
    /// `error.message`.
    #[serde(default)]
    pub message: String,
    /// `error.param`.
    #[serde(default)]
    pub param: Option<String>,
    /// `error.code`.
    #[serde(default)]
    pub code: Option<String>,
}

/// Says why a call gave no complete answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection; the request was not sent.
    #[error("connect to upstream {upstream}")]
    Connect {
        /// Its name.
        upstream: String,
        /// Why.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// It took too long.
    #[error("upstream {upstream} took too long ({phase:?})")]
    Timeout {
        /// Its name.
        upstream: String,
        /// What was being waited for.
        phase: Phase,
        /// What had arrived.
        delivered: Delivered,
    },
    /// It refused or failed.
    #[error("upstream {upstream} answered {status}: {excerpt}")]
    Status {
        /// Its name.
        upstream: String,
        /// HTTP status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<DurationUs>,
        /// The beginning of its answer, for the operator.
        excerpt: String,
        /// Its answer, if in OpenAI's form.
        message: Option<Box<UpstreamMessage>>,
    },
    /// The answer broke off, or did not begin.
    #[error("the answer of upstream {upstream} broke off")]
    Cut {
        /// Its name.
        upstream: String,
        /// What had arrived.
        delivered: Delivered,
        /// Usage that had arrived all the same.
        usage: Option<Usage>,
        /// Why, if the connection says.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It reported an error in the middle of its answer.
    #[error("upstream {upstream} reported an error in its answer: {excerpt}")]
    Reported {
        /// Its name.
        upstream: String,
        /// The beginning of the error, for the operator.
        excerpt: String,
        /// What had arrived.
        delivered: Delivered,
    },
    /// The answer cannot be read.
    #[error("the answer of upstream {upstream} cannot be read: {why}")]
    Malformed {
        /// Its name.
        upstream: String,
        /// Why, for the operator.
        why: String,
        /// What had arrived.
        delivered: Delivered,
    },
    /// The answer, or an event of it, is over the limit.
    #[error("the answer of upstream {upstream} is larger than {bytes_max} bytes")]
    TooLarge {
        /// Its name.
        upstream: String,
        /// The limit.
        bytes_max: usize,
        /// What had arrived.
        delivered: Delivered,
    },
    /// The upstream has no `usage_lookup_path`, so it cannot be asked what it billed.
    #[error("upstream {upstream} cannot be asked about usage")]
    NoLookup {
        /// Its name.
        upstream: String,
    },
}

impl CallError {
    /// What the client hears.
    pub fn client_error(&self) -> ApiError {
        match self {
            Self::Connect { .. } | Self::Timeout { phase: Phase::Slot | Phase::Connect, .. } => {
                ApiError::unavailable(Some(RETRY_AFTER), "The model is not reachable at the moment.")
            }
            Self::Timeout { phase: Phase::FirstByte | Phase::Idle | Phase::Total | Phase::Lookup, .. } => {
                ApiError::gateway_timeout("The model took too long to answer.")
            }
            Self::Status { status, retry_after, message, .. } => {
                status_error(*status, *retry_after, message.as_deref())
            }
            Self::Cut { .. } => ApiError::bad_gateway("The model's answer broke off."),
            Self::Reported { .. } => ApiError::bad_gateway("The model reported an error in its answer."),
            Self::Malformed { .. } => ApiError::bad_gateway("The model's answer cannot be read."),
            Self::TooLarge { .. } => ApiError::bad_gateway("The model's answer is too large."),
            Self::NoLookup { .. } => ApiError::internal(),
        }
    }

    /// Whether the upstream may have billed something that we do not know: then ask with `lookup_usage`.
    ///
    /// A refusal is not billed; but a 408, 502, 504 or 520 and above may come from a proxy in front of a model that
    /// did its work.
    pub const fn billable_unknown(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { phase: Phase::Slot | Phase::Connect, .. } => false,
            Self::Timeout { phase: Phase::FirstByte | Phase::Idle | Phase::Total | Phase::Lookup, .. } => true,
            Self::Status { status, .. } => matches!(*status, 408 | 502 | 504 | 520..),
            Self::Cut { .. } | Self::Reported { .. } | Self::Malformed { .. } | Self::TooLarge { .. } => true,
            Self::NoLookup { .. } => true,
        }
    }

    /// The text that had arrived.
    pub const fn delivered(&self) -> Delivered {
        match self {
            Self::Timeout { delivered, .. }
            | Self::Cut { delivered, .. }
            | Self::Reported { delivered, .. }
            | Self::Malformed { delivered, .. }
            | Self::TooLarge { delivered, .. } => *delivered,
            Self::Connect { .. } | Self::Status { .. } | Self::NoLookup { .. } => Delivered { pieces: 0, bytes: 0 },
        }
    }

    /// The status the upstream answered with, if it answered.
    pub const fn upstream_status(&self) -> Option<u16> {
        if let Self::Status { status, .. } = self { Some(*status) } else { None }
    }

    pub(super) fn of_send(upstream: &str, source: hyper_util::client::legacy::Error) -> Self {
        let upstream = upstream.to_owned();
        if !source.is_connect() {
            let source = Some(source.into());
            return Self::Cut { upstream, delivered: Delivered::default(), usage: None, source };
        }
        if is_timeout(&source) {
            return Self::Timeout { upstream, phase: Phase::Connect, delivered: Delivered::default() };
        }
        Self::Connect { upstream, source }
    }
}

/// Whether some cause of an error is a timeout of ours.
fn is_timeout(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn status_error(status: u16, retry_after: Option<DurationUs>, message: Option<&UpstreamMessage>) -> ApiError {
    let code = message.and_then(|message| message.code.as_deref());
    match status {
        400 | 422 => match message {
            Some(message) => {
                let text: String = message.message.chars().take(MESSAGE_CHARS_MAX).collect();
                let text = if text.is_empty() { "The model refused the request.".to_owned() } else { text };
                ApiError::bad_request(message.code.as_deref(), message.param.clone(), text)
            }
            None => ApiError::bad_request(None, None, "The model refused the request."),
        },
        413 => ApiError { status: 413, ..ApiError::bad_request(code, None, "The request is too large for the model.") },
        // Our account there has no money: that is not the client's limit, and waiting a second does not help.
        429 if code == Some("insufficient_quota") => {
            ApiError::unavailable(retry_after, "The model is not available at the moment.")
        }
        429 => {
            let wait = retry_after.unwrap_or(RETRY_AFTER);
            ApiError::rate_limited(LimitKind::Requests, wait, "The model has reached its rate limit; try again later.")
        }
        503 | 529 => {
            let wait = retry_after.unwrap_or(RETRY_AFTER);
            ApiError::unavailable(Some(wait), "The model is overloaded; try again later.")
        }
        408 | 504 | 522 | 524 => ApiError::gateway_timeout("The model took too long to answer."),
        // Includes 401 and 403: the upstream refuses our key, which is no business of the client's.
        _ => ApiError::bad_gateway("The model failed to answer."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, message: Option<UpstreamMessage>) -> CallError {
        let message = message.map(Box::new);
        let excerpt = "http://10.0.0.1 sk-secret".to_owned();
        CallError::Status { upstream: "internal-name".to_owned(), status, retry_after: None, excerpt, message }
    }

    #[test]
    fn every_status_becomes_the_fitting_one_and_none_leaks() {
        let message = |code: &str| {
            let code = Some(code.to_owned());
            Some(UpstreamMessage { message: "Incorrect key sk-secret".to_owned(), param: None, code })
        };
        for (upstream, code, expected) in [
            (302, "", 502),
            (401, "invalid_api_key", 502),
            (403, "", 502),
            (404, "model_not_found", 502),
            (408, "", 504),
            (413, "", 413),
            (429, "rate_limit_exceeded", 429),
            (429, "insufficient_quota", 503),
            (500, "", 502),
            (502, "", 502),
            (503, "", 503),
            (504, "", 504),
        ] {
            let error = status(upstream, message(code)).client_error();
            assert_eq!(error.status, expected, "{upstream} {code}");
            let text = format!("{error:?}");
            for secret in ["sk-secret", "10.0.0.1", "internal-name"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }

    #[test]
    fn a_bad_request_passes_the_upstreams_words_through() {
        let (param, code) = (Some("messages".to_owned()), Some("context_length_exceeded".to_owned()));
        let message = UpstreamMessage { message: "too long".to_owned(), param: param.clone(), code: code.clone() };
        let error = status(400, Some(message)).client_error();
        assert_eq!((error.status, error.message.as_str(), error.param, error.code), (400, "too long", param, code));
        assert_eq!(status(400, None).client_error().status, 400);
    }

    #[test]
    fn only_what_may_have_reached_a_model_needs_a_lookup() {
        for (code, unknown) in [(400, false), (429, false), (500, false), (503, false), (502, true), (524, true)] {
            assert_eq!(status(code, None).billable_unknown(), unknown, "{code}");
        }
        let timeout = |phase| CallError::Timeout { upstream: "u".to_owned(), phase, delivered: Delivered::default() };
        assert!(!timeout(Phase::Connect).billable_unknown());
        assert!(timeout(Phase::Idle).billable_unknown());
    }
}
