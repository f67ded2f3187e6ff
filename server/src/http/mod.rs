//! The OpenAI API over HTTP/1.1 and HTTP/2, and what operators' tools ask: health, readiness, metrics.
//!
//! Invariants: every request that could be read is answered with an `x-request-id` of ours, and every error of these
//! with OpenAI's body, also for paths and methods that do not exist and for panics; what is no HTTP, or a head beyond
//! its limits, is refused by the HTTP library without them; a request is read only as far as its limits allow. What a
//! request means and costs is decided in `model_path`.

mod body;
mod chat;
pub mod error;
mod headers;
mod models;
mod operations;
mod serve;
mod starting;

use std::{panic::AssertUnwindSafe, sync::Arc};

use actors_core::{region::Region, tenant::Tenant};
use actors_shell::{Clock, Shell};
use axum::{
    Router,
    body::Body,
    extract::Request,
    response::Response,
    routing::{get, post},
};
use events_journal::EventLog;
use events_model::RequestId;
use futures::FutureExt as _;
use gateway::openai::ApiError;
use http::{Method, Uri};
use tower::ServiceExt as _;
use tracing::{Instrument as _, error, info_span};

pub(crate) use self::{
    serve::{Serving, serve},
    starting::router as starting_router,
};
use crate::{
    metrics::{Metrics, seconds},
    model_path::ModelPath,
    readiness::Readiness,
};

/// What requests are answered with.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) path: ModelPath,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) tenants: Shell<Tenant>,
    pub(crate) region: Shell<Region>,
    pub(crate) projections: crate::platform::Readers,
    /// Largest request body, bytes.
    pub(crate) body_bytes_max: usize,
    /// Since when the models are offered, seconds since 1970.
    pub(crate) models_since_s: u64,
}

type State = axum::extract::State<Arc<App>>;

/// Our id of a request, for its handler.
#[derive(Debug, Clone, Copy)]
struct Id(RequestId);

const CHAT: &str = "/v1/chat/completions";
const MODELS: &str = "/v1/models";
const MODEL: &str = "/v1/models/{*id}";
const HEALTH: &str = "/healthz";
const READY: &str = "/readyz";
const METRICS: &str = "/metrics";

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(CHAT, post(chat::complete))
        .route(MODELS, get(models::list))
        .route(MODEL, get(models::show))
        .route(HEALTH, get(operations::health))
        .route(READY, get(operations::ready))
        .route(METRICS, get(operations::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(app)
}

/// The label of a path in metrics; unknown paths share one, so that nobody can grow the metrics from outside.
fn label(path: &str) -> &'static str {
    match path {
        CHAT => CHAT,
        MODELS => MODELS,
        HEALTH => HEALTH,
        READY => READY,
        METRICS => METRICS,
        _ if path.starts_with("/v1/models/") => MODEL,
        _ => "other",
    }
}

/// Answers a request whatever happens: with an id, counted, and with an error of ours if the handler panics.
pub(crate) async fn answer(serving: Serving, request: Request) -> Response {
    let Serving { router, metrics, clock, ids, .. } = serving;
    let started = clock.now();
    let request_id = ids.request(started);
    let route = label(request.uri().path());
    let span = info_span!("http", %request_id, method = %request.method(), route);
    let mut response = caught(&metrics, router, request_id, request).instrument(span).await;
    headers::put_request_id(response.headers_mut(), request_id);
    metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
    metrics.http_head.with_label_values(&[route]).observe(seconds(clock.now().since(started)));
    response
}

async fn caught(metrics: &Metrics, router: Router, request_id: RequestId, mut request: Request) -> Response {
    request.extensions_mut().insert(Id(request_id));
    let answered = AssertUnwindSafe(router.oneshot(request)).catch_unwind().await;
    match answered {
        Ok(Ok(response)) => response,
        Err(_panic) => {
            // The panic hook has printed what and where.
            metrics.panics.inc();
            error!(%request_id, "request panicked");
            error::response(&ApiError::internal())
        }
    }
}

async fn unknown_path(method: Method, uri: Uri) -> Response {
    error::response(&ApiError::unknown_path(method.as_str(), uri.path()))
}

async fn unknown_method(method: Method, uri: Uri) -> Response {
    error::response(&ApiError::method_not_allowed(method.as_str(), uri.path()))
}

/// A body of bytes with its type.
fn with_type(kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

const JSON: &str = "application/json";

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_ours_in_openais_form() {
        async fn broken() -> Response {
            panic!("on purpose");
        }
        let metrics = Metrics::new().unwrap();
        let router = Router::new().route("/", get(broken));
        let request = Request::new(Body::empty());
        let response = caught(&metrics, router, RequestId::from_bytes([7; 16]), request).await;
        assert_eq!(response.status(), 500);
        assert_eq!(metrics.panics.get(), 1);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["type"], "server_error");
        assert!(!body.to_string().contains("on purpose"));
    }

    #[test]
    fn only_known_paths_are_labels() {
        assert_eq!(label("/v1/models/a/b"), MODEL);
        assert_eq!(label("/v1/models"), MODELS);
        assert_eq!(label("/x"), "other");
    }
}
