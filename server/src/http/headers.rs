//! Headers of answers: ids, limits, when to come back; and the checked reading of headers of requests.

use actors_core::tenant::View;
use events_model::{DurationUs, RequestId};
use gateway::openai::{
    ApiError,
    duration::{go_duration, retry_after_seconds, whole_millis},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// Longest id of a client's own, bytes.
const CLIENT_ID_BYTES_MAX: usize = 128;

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Our id, under which the episode is found.
pub(super) fn put_request_id(headers: &mut HeaderMap, id: RequestId) {
    put(headers, REQUEST_ID, &id.to_string());
}

/// The client's own id, which was checked.
pub(super) fn put_client_id(headers: &mut HeaderMap, id: &str) {
    put(headers, CLIENT_REQUEST_ID, id);
}

/// The caller's limits. Spans are rounded up, so that who waits as long does not come too early.
pub(super) fn put_limits(headers: &mut HeaderMap, view: &View) {
    let span = |span| go_duration(whole_millis(span));
    // A Greek letter fits no header; whole milliseconds never need one.
    for (name, value) in [
        (LIMIT_REQUESTS, view.limit_requests.to_string()),
        (LIMIT_TOKENS, view.limit_tokens.to_string()),
        (REMAINING_REQUESTS, view.remaining_requests.to_string()),
        (REMAINING_TOKENS, view.remaining_tokens.to_string()),
        (RESET_REQUESTS, span(view.reset_requests)),
        (RESET_TOKENS, span(view.reset_tokens)),
    ] {
        put(headers, name, &value);
    }
}

/// When to come back: whole seconds, at least one.
pub(super) fn put_retry_after(headers: &mut HeaderMap, span: DurationUs) {
    headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(span).max(1)));
}

/// Tells OpenAI's clients, which repeat every 409, not to.
pub(super) fn put_no_retry(headers: &mut HeaderMap) {
    headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    crate::auth::bearer(headers.get(header::AUTHORIZATION)?.to_str().ok()?)
}

/// The client's own id of its request, if it has one.
///
/// # Errors
/// It holds something that has no place in an id; it is not repeated.
pub(super) fn client_id(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(CLIENT_REQUEST_ID) else { return Ok(None) };
    let is_safe = |id: &&str| {
        (1..=CLIENT_ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    match value.to_str().ok().filter(is_safe) {
        Some(id) => Ok(Some(id)),
        None => Err(invalid(
            &CLIENT_REQUEST_ID,
            &format!("1 to {CLIENT_ID_BYTES_MAX} letters, digits, '-', '_', '.' and ':'"),
        )),
    }
}

/// The key under which a second admission is refused, if there is one.
///
/// # Errors
/// It is no visible ASCII, or there are two.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(key) => Ok(Some(key.to_owned())),
            Err(_) => Err(invalid(&IDEMPOTENCY_KEY, "visible ASCII characters")),
        },
        (Some(_), Some(_)) => Err(invalid(&IDEMPOTENCY_KEY, "given once")),
    }
}

fn invalid(name: &HeaderName, allowed: &str) -> ApiError {
    ApiError::bad_request(Some("invalid_header"), None, format!("The header '{name}' must be {allowed}."))
}

/// The trace context, if there is a valid one.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    crate::model_path::traceparent::parse(headers.get(TRACEPARENT)?.to_str().ok()?)
}

/// Checks that the body is JSON and not compressed.
///
/// # Errors
/// 415.
pub(super) fn expect_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map_or(Some(""), |value: &HeaderValue| value.to_str().ok());
    let kind = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    let encoding = text(header::CONTENT_ENCODING).unwrap_or("?").trim();
    if !kind.eq_ignore_ascii_case("application/json") || !(encoding.is_empty() || encoding == "identity") {
        return Err(ApiError::unsupported_media_type());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn limits_are_six_headers_with_go_durations() {
        let mut headers = HeaderMap::new();
        let (reset_requests, reset_tokens) = (DurationUs(19_001), DurationUs::from_secs(360));
        let view =
            View { limit_requests: 200, remaining_requests: 199, reset_requests, reset_tokens, ..View::default() };
        put_limits(&mut headers, &view);
        assert_eq!(headers.len(), 6);
        assert_eq!(headers["x-ratelimit-remaining-requests"], "199");
        assert_eq!(headers["x-ratelimit-reset-requests"], "20ms");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "6m0s");
    }

    #[test]
    fn a_retry_is_never_told_to_come_at_once() {
        let mut headers = HeaderMap::new();
        for (span, seconds) in [(0, "1"), (20_000, "1"), (1_000_001, "2")] {
            put_retry_after(&mut headers, DurationUs(span));
            assert_eq!(headers["retry-after"], seconds);
        }
    }

    #[test]
    fn ids_that_are_unsafe_are_refused_and_not_repeated() {
        assert_eq!(client_id(&headers(&[])).unwrap(), None);
        assert_eq!(client_id(&headers(&[("x-client-request-id", b"job:7_a.b-c")])).unwrap(), Some("job:7_a.b-c"));
        for bad in [&b""[..], b"a b", b"a\tb", b"\xff", b"<script>", &[b'a'; 129]] {
            let error = client_id(&headers(&[("x-client-request-id", bad)])).unwrap_err();
            assert_eq!((error.status, error.code.as_deref()), (400, Some("invalid_header")));
            assert!(!error.message.contains("script"));
        }
        let twice = headers(&[("idempotency-key", b"a"), ("idempotency-key", b"b")]);
        assert_eq!(idempotency_key(&twice).unwrap_err().status, 400);
    }

    #[test]
    fn only_plain_json_is_read() {
        assert!(expect_json(&headers(&[("content-type", b"Application/JSON; charset=utf-8")])).is_ok());
        for bad in [
            headers(&[]),
            headers(&[("content-type", b"text/plain")]),
            headers(&[("content-type", b"application/json"), ("content-encoding", b"gzip")]),
        ] {
            assert_eq!(expect_json(&bad).unwrap_err().status, 415);
        }
    }
}
