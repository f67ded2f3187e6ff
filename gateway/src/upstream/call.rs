//! One call: what is sent, and its request head.

use bytes::Bytes;
use events_model::RequestId;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;

use crate::openai::Naming;

/// Our request id, under the name OpenAI has for it.
pub(super) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("freehold/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// A call to an upstream.
#[derive(Debug, Clone)]
pub struct Call {
    /// Ours; the upstream is told, the answer is named after it.
    pub request_id: RequestId,
    /// The model the client asked for; the answer says this name.
    pub model: String,
    /// From `ChatRequest::upstream_body`.
    pub body: Bytes,
    /// Whether the client wants a usage chunk; only for streams.
    pub include_usage: bool,
    /// W3C trace context; one that no header may hold is not sent.
    pub traceparent: Option<String>,
}

impl Call {
    pub(super) fn naming(&self) -> Naming {
        Naming::new(&self.request_id.to_string(), &self.model, self.include_usage)
    }

    /// Its HTTP request.
    pub(super) fn request(self, uri: Uri, key: Option<&HeaderValue>, streaming: bool) -> Request<Full<Bytes>> {
        let mut request = request(Method::POST, uri, key, Full::new(self.body));
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, JSON);
        headers.insert(header::ACCEPT, if streaming { EVENT_STREAM } else { JSON });
        if let Ok(id) = HeaderValue::try_from(self.request_id.to_string()) {
            headers.insert(CLIENT_REQUEST_ID, id);
        }
        if let Some(Ok(trace)) = self.traceparent.map(HeaderValue::try_from) {
            headers.insert(TRACEPARENT, trace);
        }
        request
    }
}

/// A request with the headers all of ours have.
pub(super) fn request(method: Method, uri: Uri, key: Option<&HeaderValue>, body: Full<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::ACCEPT_ENCODING, IDENTITY);
    if let Some(key) = key {
        headers.insert(header::AUTHORIZATION, key.clone());
    }
    request
}
