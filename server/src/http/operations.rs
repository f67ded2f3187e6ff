//! What operators' tools ask: does it live, may it be sent requests, what has it counted.

use axum::response::Response;
use gateway::openai::ApiError;
use http::StatusCode;
use prometheus::TEXT_FORMAT;
use serde::Serialize;

use super::{App, JSON, State, error, with_type};
use crate::metrics::{Metrics, gauge_value, signed_seconds};

/// Consumer groups that metrics show by name; no group's name is `other`, it has a `/` in it.
const GROUPS_SHOWN_MAX: usize = 50;
const OTHERS: &str = "other";

#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    obstacles: &'a [String],
}

pub(super) async fn health() -> Response {
    with_type(JSON, r#"{"alive":true}"#)
}

pub(super) async fn ready(state: State) -> Response {
    readiness(&state.readiness.obstacles())
}

/// Says why this process should not be sent requests, or that it should.
pub(super) fn readiness(obstacles: &[String]) -> Response {
    let ready = Ready { ready: obstacles.is_empty(), obstacles };
    let mut response = with_type(JSON, serde_json::to_vec(&ready).unwrap_or_default());
    if !ready.ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(super) async fn metrics(state: State) -> Response {
    measure(&state);
    rendered(&state.metrics)
}

pub(super) fn rendered(metrics: &Metrics) -> Response {
    match metrics.render() {
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
    if let Some(following) = app.readiness.following() {
        metrics.set_following(&following);
    }
    if let Some(us) = app.readiness.clock_skew_us() {
        metrics.clock_skew.set(signed_seconds(us));
    }
    metrics.ready.set(app.readiness.obstacles().is_empty().into());
    for (name, position) in app.projections.positions() {
        metrics.projection_position.with_label_values(&[name]).set(gauge_value(position.0));
    }
    measure_groups(app);
    for (kind, live) in [("tenant", app.tenants.stats().live), ("region", app.region.stats().live)] {
        metrics.actors_live.with_label_values(&[kind]).set(i64::try_from(live).unwrap_or(i64::MAX));
    }
}

/// Shows the consumer groups with most parked events, then those with most lag; all others as one.
fn measure_groups(app: &App) {
    let (metrics, head, now) = (&app.metrics, app.log.head_position(), app.clock.now());
    for (name, parked, oldest) in app.projections.parked() {
        let age = oldest.map_or(0, |at| now.since(at).0 / 1_000_000);
        metrics.projection_parked.with_label_values(&[name]).set(gauge_value(parked));
        metrics.projection_oldest_parked.with_label_values(&[name]).set(gauge_value(age));
    }
    let mut groups: Vec<_> = app.projections.groups.read(|state, _| {
        let figures = |(stream, group): (&events_model::StreamId, &projections::groups::Summary)| {
            let age = group.oldest_parked_at().map_or(0, |at| now.since(at).0 / 1_000_000);
            let lag = head.0.saturating_sub(group.checkpoint.0);
            (group.parked(), lag, age, stream.as_str().trim_start_matches("group/").to_owned())
        };
        state.page(None).map(figures).collect()
    });
    groups.sort_unstable_by(|one, other| other.cmp(one));
    // Groups change places: those that are not shown any more must not stay as they were.
    for gauges in [&metrics.group_parked, &metrics.group_oldest_parked, &metrics.group_lag] {
        gauges.reset();
    }
    let others = groups.split_off(groups.len().min(GROUPS_SHOWN_MAX));
    let rest = others
        .into_iter()
        .reduce(|one, other| (one.0.saturating_add(other.0), one.1.max(other.1), one.2.max(other.2), String::new()));
    let rest = rest.map(|(parked, lag, age, _)| (parked, lag, age, OTHERS.to_owned()));
    for (parked, lag, age, name) in groups.into_iter().chain(rest) {
        metrics.group_parked.with_label_values(&[&name]).set(gauge_value(parked));
        metrics.group_oldest_parked.with_label_values(&[&name]).set(gauge_value(age));
        metrics.group_lag.with_label_values(&[&name]).set(gauge_value(lag));
    }
}
