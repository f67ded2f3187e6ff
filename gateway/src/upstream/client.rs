//! The client of one upstream: connections, plain calls, the head of streamed ones.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use events_model::{DurationUs, Tokens};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::{
    call::Call,
    error::{CallError, EXCERPT_CHARS_MAX, Phase, UpstreamMessage},
    settings::{self, Addresses, Http2, SettingsError, UpstreamSettings},
    stream::AnswerStream,
    wait::Deadline,
};
use crate::openai::{ChatRequest, Delivered, MaxTokensParameter, PlainAnswer};

/// How long an unused connection is kept: shorter than the minute or more that servers usually keep one.
const POOL_IDLE: Duration = Duration::from_secs(45);
/// How often an HTTP/2 connection in use is probed, and how long it may take to answer.
const HTTP2_PROBE: Duration = Duration::from_secs(20);
/// Largest body of an error that is read, bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// The longest time to wait that an upstream is believed.
const RETRY_AFTER_MAX_S: f64 = 3_600.0;

type HttpClient = Client<Connector, Full<Bytes>>;

/// An upstream that can be called; clones share its connections.
#[derive(Debug, Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) settings: UpstreamSettings,
    pub(super) addresses: Addresses,
    pub(super) key: Option<HeaderValue>,
    client: HttpClient,
    slots: Arc<Semaphore>,
}

/// The head of a good answer, with what its body needs.
pub(super) struct Opened {
    pub(super) response: Response<Incoming>,
    pub(super) deadline: Deadline,
    /// Given back when the call is over.
    pub(super) slot: OwnedSemaphorePermit,
}

impl Upstream {
    /// Checks the settings and makes a client; nothing is connected.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(settings: UpstreamSettings) -> Result<Self, SettingsError> {
        let addresses = Addresses::new(&settings)?;
        let key = settings::check(&settings)?;
        let connector = Connector { https: https(&settings)?, limit: settings.timeouts.connect };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(settings.connections_max)
            .http2_only(settings.http2 == Http2::PriorKnowledge)
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(HTTP2_PROBE)
            .http2_keep_alive_timeout(HTTP2_PROBE)
            .build(connector);
        let slots = Arc::new(Semaphore::new(settings.connections_max));
        Ok(Self { inner: Arc::new(Inner { settings, addresses, key, client, slots }) })
    }

    /// Its settings.
    pub fn settings(&self) -> &UpstreamSettings {
        &self.inner.settings
    }

    /// Writes a request for this upstream: `ChatRequest::upstream_body` with the name of the token bound it knows.
    pub fn body(&self, request: &ChatRequest, upstream_model: &str, completion_tokens_max: Tokens) -> Bytes {
        let parameter: MaxTokensParameter = self.inner.settings.max_tokens_parameter;
        request.upstream_body(upstream_model, completion_tokens_max, parameter)
    }

    /// Calls and waits for the whole answer.
    ///
    /// # Errors
    /// As `CallError` says; `billable_unknown` tells whether the upstream must be asked what it billed.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call; the upstream may bill what it had generated.
    pub async fn complete(&self, call: Call) -> Result<PlainAnswer, CallError> {
        let naming = call.naming();
        let opened = self.inner.open(call, false).await?;
        let bytes_max = self.inner.settings.answer_bytes_max;
        let body = self.inner.read_body(opened, bytes_max).await?;
        PlainAnswer::parse(&body, &naming).map_err(|error| self.inner.malformed(error.why, Delivered::default()))
    }

    /// Calls and waits for the head of a streamed answer.
    ///
    /// # Errors
    /// As `complete`.
    ///
    /// # Cancel safety
    /// Dropping the future or the stream cancels the call; the upstream may bill what it had generated.
    pub async fn stream(&self, call: Call) -> Result<AnswerStream, CallError> {
        let naming = call.naming();
        let opened = self.inner.open(call, true).await?;
        let kind = opened.response.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| !kind.as_bytes().starts_with(b"text/event-stream")) {
            let why = "it is no event stream".to_owned();
            return Err(self.inner.malformed(why, Delivered::default()));
        }
        Ok(AnswerStream::new(Arc::clone(&self.inner), opened, naming))
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl Inner {
    pub(super) fn timeout(&self, phase: Phase, delivered: Delivered) -> CallError {
        CallError::Timeout { upstream: self.settings.name.clone(), phase, delivered }
    }

    pub(super) fn malformed(&self, why: String, delivered: Delivered) -> CallError {
        CallError::Malformed { upstream: self.settings.name.clone(), why, delivered }
    }

    async fn open(&self, call: Call, streaming: bool) -> Result<Opened, CallError> {
        let deadline = Deadline::after(self.settings.timeouts.total);
        let request = call.request(self.addresses.completions.clone(), self.key.as_ref(), streaming);
        let opened = self.send(request, deadline).await?;
        if opened.response.status() == StatusCode::OK {
            return Ok(opened);
        }
        Err(self.status_error(opened).await)
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Deadline,
    ) -> Result<Opened, CallError> {
        let timeouts = &self.settings.timeouts;
        let nothing = Delivered::default();
        let slot = deadline
            .wait(Phase::Slot, timeouts.connect, Arc::clone(&self.slots).acquire_owned())
            .await
            .map_err(|_| self.timeout(Phase::Slot, nothing))?
            .map_err(|_| self.timeout(Phase::Slot, nothing))?;
        let mut capture = capture_connection(&mut request);
        let mut sending = pin!(self.client.request(request));
        // Connecting does not count as waiting for the first byte, and a request that has no connection was not sent.
        let connected = async {
            tokio::select! {
                result = &mut sending => Some(result),
                _ = capture.wait_for_connection_metadata() => None,
            }
        };
        let early = deadline.wait(Phase::Connect, timeouts.connect, connected).await;
        let result = match early.map_err(|_| self.timeout(Phase::Connect, nothing))? {
            Some(result) => result,
            None => deadline
                .wait(Phase::FirstByte, timeouts.first_byte, sending)
                .await
                .map_err(|phase| self.timeout(phase, nothing))?,
        };
        let response = result.map_err(|source| CallError::of_send(&self.settings.name, source))?;
        Ok(Opened { response, deadline, slot })
    }

    /// Reads a whole body of at most so many bytes.
    pub(super) async fn read_body(&self, opened: Opened, bytes_max: usize) -> Result<Bytes, CallError> {
        let Opened { response, deadline, slot: _slot } = opened;
        let too_large =
            || CallError::TooLarge { upstream: self.settings.name.clone(), bytes_max, delivered: Delivered::default() };
        let mut body = response.into_body();
        let mut first: Option<Bytes> = None;
        let mut whole = BytesMut::new();
        loop {
            let frame = deadline.wait(Phase::Idle, self.settings.timeouts.idle, body.frame()).await;
            let Some(frame) = frame.map_err(|phase| self.timeout(phase, Delivered::default()))? else { break };
            let Ok(data) = frame.map_err(|source| self.cut(Some(source.into())))?.into_data() else { continue };
            if whole.len() + first.as_ref().map_or(0, Bytes::len) + data.len() > bytes_max {
                return Err(too_large());
            }
            // Most answers arrive as one piece, which needs no copy.
            match first.take() {
                None if whole.is_empty() => first = Some(data),
                None => whole.extend_from_slice(&data),
                Some(begin) => {
                    whole.extend_from_slice(&begin);
                    whole.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| whole.freeze()))
    }

    fn cut(&self, source: Option<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
        CallError::Cut { upstream: self.settings.name.clone(), delivered: Delivered::default(), usage: None, source }
    }

    /// Makes an error of an answer with another status than 200.
    pub(super) async fn status_error(&self, opened: Opened) -> CallError {
        #[derive(Deserialize)]
        struct Body {
            error: UpstreamMessage,
        }
        let status = opened.response.status().as_u16();
        let retry_after = retry_after(opened.response.headers());
        // What the status says counts, even if its explanation cannot be read.
        let body = self.read_body(opened, ERROR_BYTES_MAX).await.unwrap_or_default();
        let excerpt = String::from_utf8_lossy(&body).chars().take(EXCERPT_CHARS_MAX).collect();
        let message = serde_json::from_slice(&body).ok().map(|body: Body| Box::new(body.error));
        CallError::Status { upstream: self.settings.name.clone(), status, retry_after, excerpt, message }
    }
}

/// Reads `retry-after-ms` or `retry-after` in seconds; a date is not understood, it would need a wall clock.
fn retry_after(headers: &HeaderMap) -> Option<DurationUs> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1_000.0).or_else(|| number("retry-after"))?;
    if !(0.0..=f64::MAX).contains(&seconds) {
        return None;
    }
    let span = Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX_S));
    Some(DurationUs(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
}

fn https(settings: &UpstreamSettings) -> Result<HttpsConnector<HttpConnector>, SettingsError> {
    let tls_error = |source| SettingsError::Tls { upstream: settings.name.clone(), source };
    let refuse = |why: String| SettingsError::Certificates { upstream: settings.name.clone(), why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = match &settings.ca_file {
        None => HttpsConnectorBuilder::new().with_provider_and_webpki_roots(provider).map_err(tls_error)?,
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
                roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(refuse("it holds no certificate".to_owned()));
            }
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(tls_error)?
                .with_root_certificates(roots)
                .with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        }
    };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let builder = builder.https_or_http();
    Ok(match settings.http2 {
        Http2::Auto => builder.enable_all_versions().wrap_connector(http),
        Http2::PriorKnowledge => builder.enable_http2().wrap_connector(http),
    })
}

/// Connects within a limit that covers name lookup, TCP and TLS.
#[derive(Debug, Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector>,
    limit: Duration,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.https.call(uri));
        Box::pin(
            async move { connecting.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_read_in_both_units_and_bounded() {
        for (name, value, expected) in [
            ("retry-after", "2", Some(2_000_000)),
            ("retry-after", " 0.5 ", Some(500_000)),
            ("retry-after-ms", "20", Some(20_000)),
            ("retry-after", "1e300", Some(3_600_000_000)),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "inf", None),
            ("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT", None),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers), expected.map(DurationUs), "{name}: {value}");
        }
    }

    #[test]
    fn certificates_that_are_none_are_refused() {
        for pem in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let mut settings = UpstreamSettings::new("u", "https://x");
            settings.ca_file = Some(pem.to_vec());
            assert!(matches!(Upstream::new(settings), Err(SettingsError::Certificates { .. })));
        }
    }
}
