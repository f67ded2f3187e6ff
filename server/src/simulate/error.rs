//! Errors as OpenAI sends them: a status and `{"error":{"message","type","param","code"}}`.
//!
//! Texts are for the caller. What an error means for the bill is decided by the ledger, not here.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::{body::Body, ledger::Refused, request::clipped};

/// Requests per minute that a rate-limited answer names as the limit.
const RATE_LIMIT_REQUESTS: &str = "60";
/// Tokens per minute that a rate-limited answer names as the limit.
const RATE_LIMIT_TOKENS: &str = "60000";

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) kind: &'static str,
    pub(super) param: Option<&'static str>,
    pub(super) code: Option<&'static str>,
    /// How long the caller should wait, for rate limits.
    pub(super) retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None, retry_after: None }
    }

    /// 400 for a request that cannot be understood.
    pub(super) fn bad_request(
        message: impl Into<String>,
        param: Option<&'static str>,
        code: Option<&'static str>,
    ) -> Self {
        Self { param, code, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message) }
    }

    /// 401 for a missing or wrong key.
    pub(super) fn unauthorized() -> Self {
        let message = "Incorrect API key provided.";
        let error = Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message);
        Self { code: Some("invalid_api_key"), ..error }
    }

    /// 404 for a model that is not served.
    pub(super) fn model_not_found(model: &str) -> Self {
        let message = format!("The model {:?} does not exist or you do not have access to it.", clipped(model));
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { param: Some("model"), code: Some("model_not_found"), ..error }
    }

    /// 404 for an address or a record that does not exist.
    pub(super) fn not_found(message: String) -> Self {
        Self { code: Some("not_found"), ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message) }
    }

    /// 405 for a known address with another method.
    pub(super) fn method_not_allowed(message: String) -> Self {
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message);
        Self { code: Some("method_not_allowed"), ..error }
    }

    /// 413 for a body over the limit.
    pub(super) fn too_large(bytes_max: usize) -> Self {
        let message = format!("The request body is larger than {bytes_max} bytes.");
        let error = Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message);
        Self { code: Some("request_too_large"), ..error }
    }

    /// 429 inside a rate limit window that ends after `remaining`.
    pub(super) fn rate_limited(remaining: Duration) -> Self {
        let message = "Rate limit reached: the simulator is inside a rate limit window.";
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(remaining),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", message)
        }
    }

    /// 500 that was drawn.
    pub(super) fn server_error() -> Self {
        let message = "The server had an error while processing your request (simulated).";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// 503 that was drawn.
    pub(super) fn overloaded() -> Self {
        let message = "The engine is currently overloaded, please try again later (simulated).";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// How the ledger counts this refusal.
    pub(super) fn refused(&self) -> Refused {
        match self.status {
            StatusCode::UNAUTHORIZED => Refused::Unauthorized,
            StatusCode::TOO_MANY_REQUESTS => Refused::RateLimited,
            StatusCode::INTERNAL_SERVER_ERROR => Refused::Error500,
            StatusCode::SERVICE_UNAVAILABLE => Refused::Error503,
            _ => Refused::BadRequest,
        }
    }

    /// The answer.
    pub(super) fn into_response(self) -> Response<Body> {
        #[derive(Serialize)]
        struct Detail<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Wire<'a> {
            error: Detail<'a>,
        }
        let error = Detail { message: &self.message, r#type: self.kind, param: self.param, code: self.code };
        let mut response = Body::json(self.status, &Wire { error });
        if let Some(remaining) = self.retry_after {
            for (name, value) in rate_limit_headers(remaining) {
                if let Ok(value) = HeaderValue::try_from(value) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        response
    }
}

/// `Retry-After` in whole seconds (at least 1), the same in milliseconds, and the six `x-ratelimit-*` headers.
fn rate_limit_headers(remaining: Duration) -> [(HeaderName, String); 8] {
    let reset = go_duration(remaining);
    let seconds = remaining.as_millis().div_ceil(1_000).max(1);
    [
        (header::RETRY_AFTER, seconds.to_string()),
        (HeaderName::from_static("retry-after-ms"), remaining.as_millis().max(1).to_string()),
        (HeaderName::from_static("x-ratelimit-limit-requests"), RATE_LIMIT_REQUESTS.to_owned()),
        (HeaderName::from_static("x-ratelimit-limit-tokens"), RATE_LIMIT_TOKENS.to_owned()),
        (HeaderName::from_static("x-ratelimit-remaining-requests"), "0".to_owned()),
        (HeaderName::from_static("x-ratelimit-remaining-tokens"), "0".to_owned()),
        (HeaderName::from_static("x-ratelimit-reset-requests"), reset.clone()),
        (HeaderName::from_static("x-ratelimit-reset-tokens"), reset),
    ]
}

/// A duration as Go prints it, to the millisecond: `0s`, `120ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds, rest) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000);
    let mut text = match (hours, minutes) {
        (0, 0) => String::new(),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    };
    let seconds = format!("{seconds}.{rest:03}");
    // The dot stops the first trim, so "30.000" keeps its whole seconds.
    text.push_str(seconds.trim_end_matches('0').trim_end_matches('.'));
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (ms, text) in [
            (0, "0s"),
            (1, "1ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (10_000, "10s"),
            (30_050, "30.05s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (3_600_000, "1h0m0s"),
            (3_661_001, "1h1m1.001s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
