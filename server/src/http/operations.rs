//! What operators' tools ask: does it live, may it be sent requests, what has it counted.

use axum::response::Response;
use gateway::openai::ApiError;
use http::StatusCode;
use prometheus::TEXT_FORMAT;
use serde::Serialize;

use super::{App, JSON, State, error, with_type};
use crate::metrics::gauge_value;

#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    obstacles: &'a [String],
}

pub(super) async fn health() -> Response {
    with_type(JSON, r#"{"alive":true}"#)
}

pub(super) async fn ready(state: State) -> Response {
    let obstacles = state.readiness.obstacles();
    let ready = Ready { ready: obstacles.is_empty(), obstacles: &obstacles };
    let mut response = with_type(JSON, serde_json::to_vec(&ready).unwrap_or_default());
    if !ready.ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(super) async fn metrics(state: State) -> Response {
    measure(&state);
    match state.metrics.render() {
        Ok(text) => with_type(TEXT_FORMAT, text),
        Err(failure) => {
            tracing::error!(error = %failure, "metrics not rendered");
            error::response(&ApiError::internal())
        }
    }
}

/// Sets the gauges that are read off, not counted.
fn measure(app: &App) {
    let metrics = &app.metrics;
    metrics.log_head.set(gauge_value(app.log.head_position().0));
    metrics.log_accepting.set(app.readiness.log_accepts().into());
    metrics.ready.set(app.readiness.obstacles().is_empty().into());
    for (name, position) in app.projections.positions() {
        metrics.projection_position.with_label_values(&[name]).set(gauge_value(position.0));
    }
    for (kind, live) in [("tenant", app.tenants.stats().live), ("region", app.region.stats().live)] {
        metrics.actors_live.with_label_values(&[kind]).set(i64::try_from(live).unwrap_or(i64::MAX));
    }
}
