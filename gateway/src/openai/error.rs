//! Errors in OpenAI's form: `{"error":{"message","type","param","code"}}` with the status that fits.
//!
//! Texts are for clients: they name what the client sent or should do, never an upstream's address or key.

use bytes::Bytes;
use events_model::DurationUs;
use serde::Serialize;

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

/// An answer that is a refusal or a failure, as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {kind}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.message`.
    pub message: String,
    /// `error.param`: the path of the parameter at fault, such as `messages[0].content`.
    pub param: Option<String>,
    /// `error.code`.
    pub code: Option<String>,
    /// When trying again makes sense; becomes `Retry-After`.
    pub retry_after: Option<DurationUs>,
}

/// Which limit a 429 is about; becomes `error.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests per second.
    Requests,
    /// Tokens per minute.
    Tokens,
    /// Requests at once.
    Concurrency,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, code: Option<&str>, message: impl Into<String>) -> Self {
        let code = code.map(str::to_owned);
        Self { status, kind, message: message.into(), param: None, code, retry_after: None }
    }

    /// 400: the request is at fault.
    pub fn bad_request(code: Option<&str>, param: Option<String>, message: impl Into<String>) -> Self {
        Self { param, ..Self::new(400, INVALID_REQUEST, code, message) }
    }

    /// 401: no key, or one that is not known or was revoked. The key is not repeated.
    pub fn invalid_api_key() -> Self {
        Self::new(401, INVALID_REQUEST, Some("invalid_api_key"), "Incorrect or missing API key.")
    }

    /// 402: the budget does not cover the request's worst case.
    pub fn insufficient_quota(message: impl Into<String>) -> Self {
        Self::new(402, "insufficient_quota", Some("insufficient_quota"), message)
    }

    /// 403: the key is good, the request is not allowed.
    pub fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(403, INVALID_REQUEST, Some(code), message)
    }

    /// 404: no such model for this tenant.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("The model '{model}' does not exist or you do not have access to it.");
        Self { param: Some("model".to_owned()), ..Self::new(404, INVALID_REQUEST, Some("model_not_found"), message) }
    }

    /// 404: no such path.
    pub fn unknown_path(method: &str, path: &str) -> Self {
        Self::new(404, INVALID_REQUEST, Some("unknown_url"), format!("Unknown request URL: {method} {path}."))
    }

    /// 405: the path exists, the method does not.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {method} on {path}.");
        Self::new(405, INVALID_REQUEST, Some("method_not_supported"), message)
    }

    /// 413: the body is larger than the limit.
    pub fn too_large(bytes_max: usize) -> Self {
        let message = format!("The request body is larger than the limit of {bytes_max} bytes.");
        Self::new(413, INVALID_REQUEST, Some("request_too_large"), message)
    }

    /// 415: the body is not declared as JSON.
    pub fn unsupported_media_type() -> Self {
        let message = "The request body must be JSON, with 'content-type: application/json'.";
        Self::new(415, INVALID_REQUEST, Some("unsupported_media_type"), message)
    }

    /// 429: a limit of the tenant's plan.
    pub fn rate_limited(limit: LimitKind, retry_after: DurationUs, message: impl Into<String>) -> Self {
        let kind = match limit {
            LimitKind::Requests => "requests",
            LimitKind::Tokens => "tokens",
            LimitKind::Concurrency => "concurrency",
        };
        Self { retry_after: Some(retry_after), ..Self::new(429, kind, Some("rate_limit_exceeded"), message) }
    }

    /// 499: the client went away; nobody reads this, it is for records.
    pub fn client_closed() -> Self {
        Self::new(499, INVALID_REQUEST, Some("client_closed_request"), "The client closed the connection.")
    }

    /// 500: a fault of ours.
    pub fn internal() -> Self {
        Self::new(500, SERVER_ERROR, Some("internal_error"), "The server had an error while processing your request.")
    }

    /// 502: the upstream's answer cannot be used.
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(502, SERVER_ERROR, Some("bad_gateway"), message)
    }

    /// 503: try again later.
    pub fn unavailable(retry_after: Option<DurationUs>, message: impl Into<String>) -> Self {
        Self { retry_after, ..Self::new(503, SERVER_ERROR, Some("service_unavailable"), message) }
    }

    /// 504: the upstream took too long.
    pub fn gateway_timeout(message: impl Into<String>) -> Self {
        Self::new(504, SERVER_ERROR, Some("gateway_timeout"), message)
    }

    /// The JSON body.
    pub fn body(&self) -> Bytes {
        let error = Inner {
            message: &self.message,
            r#type: self.kind,
            param: self.param.as_deref(),
            code: self.code.as_deref(),
        };
        super::json::bytes_of(&Body { error })
    }

    /// The same body as one server-sent event, for a stream that has already begun.
    pub fn sse_frame(&self) -> Bytes {
        super::sse::frame(&self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_are_null_and_texts_are_escaped() {
        let error = ApiError::bad_request(Some("invalid_type"), Some("messages[0]".to_owned()), "not \"this\"\n");
        assert_eq!(
            error.body(),
            concat!(
                r#"{"error":{"message":"not \"this\"\n","type":"invalid_request_error","#,
                r#""param":"messages[0]","code":"invalid_type"}}"#
            )
        );
        let error = ApiError::bad_request(None, None, "no");
        assert_eq!(
            error.body(),
            r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}"#
        );
        assert!(error.sse_frame().starts_with(b"data: {\"error\""));
        assert!(error.sse_frame().ends_with(b"}}\n\n"));
    }

    #[test]
    fn a_limit_says_which_and_when_to_come_back() {
        let error = ApiError::rate_limited(LimitKind::Tokens, DurationUs::from_millis(20), "slow down");
        assert_eq!((error.status, error.kind), (429, "tokens"));
        assert_eq!(error.code.as_deref(), Some("rate_limit_exceeded"));
        assert_eq!(error.retry_after, Some(DurationUs(20_000)));
    }
}
