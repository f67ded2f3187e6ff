//! What the server counts, for Prometheus. Names and labels are constants of this file; dashboards rest on them.
//!
//! One registry a platform, so that several can live in one process. Labels have few values each: never a
//! key or a request, and a tenant only in the names of the few consumer groups that need a look most.

use events_model::{DurationUs, tenant::Usage};
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};

use crate::cluster::Following;

/// HTTP requests by route and status.
pub const HTTP_REQUESTS_TOTAL: &str = "freehold_http_requests_total";
/// From the head of an HTTP request to the head of its answer, by route.
pub const HTTP_HEAD_SECONDS: &str = "freehold_http_head_seconds";
/// Open HTTP connections.
pub const HTTP_CONNECTIONS: &str = "freehold_http_connections";
/// Model requests that ended, by surface and outcome.
pub const MODEL_REQUESTS_TOTAL: &str = "freehold_model_requests_total";
/// Model requests that were not admitted, by reason.
pub const MODEL_REFUSALS_TOTAL: &str = "freehold_model_refusals_total";
/// Model requests admitted and not settled by this process.
pub const MODEL_IN_FLIGHT: &str = "freehold_model_requests_in_flight";
/// Tokens settled, by kind (`prompt`, `completion`).
pub const MODEL_TOKENS_TOTAL: &str = "freehold_model_tokens_total";
/// Money settled, nano-USD.
pub const MODEL_COST_TOTAL: &str = "freehold_model_cost_nano_usd_total";
/// From the request to its durable admission.
pub const MODEL_ADMISSION_SECONDS: &str = "freehold_model_admission_seconds";
/// From the call of the upstream to the first token.
pub const MODEL_FIRST_TOKEN_SECONDS: &str = "freehold_model_first_token_seconds";
/// From the call of the upstream to its end.
pub const MODEL_DURATION_SECONDS: &str = "freehold_model_duration_seconds";
/// Settlements that had to be tried again.
pub const SETTLEMENT_RETRIES_TOTAL: &str = "freehold_settlement_retries_total";
/// Settlements given up; the reservation's deadline covers them.
pub const SETTLEMENTS_LOST_TOTAL: &str = "freehold_settlements_lost_total";
/// Questions to an upstream for what it billed, by answer (`billed`, `nothing`, `failed`).
pub const USAGE_LOOKUPS_TOTAL: &str = "freehold_usage_lookups_total";
/// Requests of an earlier process that were settled, by result (`billed`, `nothing`, `expired`).
pub const RECOVERED_TOTAL: &str = "freehold_recovered_requests_total";
/// Panics that were caught in a request.
pub const PANICS_TOTAL: &str = "freehold_panics_total";
/// Position of the last commit of the log.
pub const LOG_HEAD_POSITION: &str = "freehold_log_head_position";
/// Groups of the region's log that this node's replica holds.
pub const FOLLOWER_APPLIED: &str = "freehold_follower_applied_groups";
/// Groups that the region's log has.
pub const FOLLOWER_HEAD: &str = "freehold_follower_head_groups";
/// Groups that this node's replica lacks.
pub const FOLLOWER_LAG: &str = "freehold_follower_lag_groups";
/// Seconds by which this node's clock is ahead of that of the NATS servers; negative = behind.
pub const CLOCK_SKEW_SECONDS: &str = "freehold_clock_skew_seconds";
/// 1 = the log accepts commits.
pub const LOG_ACCEPTING: &str = "freehold_log_accepting";
/// Position that a projection contains, by projection.
pub const PROJECTION_POSITION: &str = "freehold_projection_position";
/// Parked events by consumer group: those of the groups with most of them, and `other`.
pub const GROUP_PARKED: &str = "freehold_group_parked_events";
/// Age of a consumer group's oldest parked event, seconds, by the same groups.
pub const GROUP_OLDEST_PARKED_SECONDS: &str = "freehold_group_oldest_parked_seconds";
/// Commits of the log behind a consumer group's checkpoint, by the same groups.
pub const GROUP_LAG: &str = "freehold_group_lag_commits";
/// Events that a projection could not apply, by projection.
pub const PROJECTION_PARKED: &str = "freehold_projection_parked_events";
/// Age of the oldest event that a projection lacks, seconds, by projection.
pub const PROJECTION_OLDEST_PARKED_SECONDS: &str = "freehold_projection_oldest_parked_seconds";
/// Actors in memory, by kind.
pub const ACTORS_LIVE: &str = "freehold_actors_live";
/// 1 = `/readyz` says yes.
pub const READY: &str = "freehold_ready";

/// Bounds of the buckets for times, seconds.
const TIME_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// All of them.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the constant of its name above")]
pub struct Metrics {
    registry: Registry,
    pub http_requests: IntCounterVec,
    pub http_head: HistogramVec,
    pub http_connections: IntGauge,
    pub model_requests: IntCounterVec,
    pub model_refusals: IntCounterVec,
    pub model_in_flight: IntGauge,
    pub model_tokens: IntCounterVec,
    pub model_cost: IntCounter,
    pub admission: Histogram,
    pub first_token: Histogram,
    pub duration: Histogram,
    pub settlement_retries: IntCounter,
    pub settlements_lost: IntCounter,
    pub usage_lookups: IntCounterVec,
    pub recovered: IntCounterVec,
    pub panics: IntCounter,
    pub log_head: IntGauge,
    pub follower_applied: IntGauge,
    pub follower_head: IntGauge,
    pub follower_lag: IntGauge,
    pub clock_skew: Gauge,
    pub log_accepting: IntGauge,
    pub projection_position: IntGaugeVec,
    pub group_parked: IntGaugeVec,
    pub group_oldest_parked: IntGaugeVec,
    pub group_lag: IntGaugeVec,
    pub projection_parked: IntGaugeVec,
    pub projection_oldest_parked: IntGaugeVec,
    pub actors_live: IntGaugeVec,
    pub ready: IntGauge,
}

impl Metrics {
    /// Registers all of them, at zero.
    ///
    /// # Errors
    /// A name is used twice, which is a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let times = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(TIME_BUCKETS.to_vec());
        let histogram = |name: &str, help: &str| register(&registry, Histogram::with_opts(times(name, help))?);
        Ok(Self {
            http_requests: counters(HTTP_REQUESTS_TOTAL, "HTTP requests.", &["route", "status"])?,
            http_head: register(
                &registry,
                HistogramVec::new(times(HTTP_HEAD_SECONDS, "Time to the head of the answer."), &["route"])?,
            )?,
            http_connections: gauge(HTTP_CONNECTIONS, "Open HTTP connections.")?,
            model_requests: counters(MODEL_REQUESTS_TOTAL, "Model requests that ended.", &["surface", "outcome"])?,
            model_refusals: counters(MODEL_REFUSALS_TOTAL, "Model requests not admitted.", &["reason"])?,
            model_in_flight: gauge(MODEL_IN_FLIGHT, "Model requests admitted and not settled.")?,
            model_tokens: counters(MODEL_TOKENS_TOTAL, "Tokens settled.", &["kind"])?,
            model_cost: counter(MODEL_COST_TOTAL, "Money settled, nano-USD.")?,
            admission: histogram(MODEL_ADMISSION_SECONDS, "Time to the durable admission.")?,
            first_token: histogram(MODEL_FIRST_TOKEN_SECONDS, "Time to the first token.")?,
            duration: histogram(MODEL_DURATION_SECONDS, "Time to the end of the answer.")?,
            settlement_retries: counter(SETTLEMENT_RETRIES_TOTAL, "Settlements tried again.")?,
            settlements_lost: counter(SETTLEMENTS_LOST_TOTAL, "Settlements left to the deadline.")?,
            usage_lookups: counters(USAGE_LOOKUPS_TOTAL, "Questions for what was billed.", &["answer"])?,
            recovered: counters(RECOVERED_TOTAL, "Requests of an earlier process settled.", &["result"])?,
            panics: counter(PANICS_TOTAL, "Panics caught in a request.")?,
            log_head: gauge(LOG_HEAD_POSITION, "Position of the log's last commit.")?,
            follower_applied: gauge(FOLLOWER_APPLIED, "Groups of the region's log in the replica.")?,
            follower_head: gauge(FOLLOWER_HEAD, "Groups of the region's log.")?,
            follower_lag: gauge(FOLLOWER_LAG, "Groups that the replica lacks.")?,
            clock_skew: register(&registry, Gauge::new(CLOCK_SKEW_SECONDS, "Clock ahead of the NATS servers'.")?)?,
            log_accepting: gauge(LOG_ACCEPTING, "1 = the log accepts commits.")?,
            projection_position: gauges(PROJECTION_POSITION, "Position a projection contains.", &["projection"])?,
            group_parked: gauges(GROUP_PARKED, "Parked events of a consumer group.", &["group"])?,
            group_oldest_parked: gauges(GROUP_OLDEST_PARKED_SECONDS, "Age of the oldest parked event.", &["group"])?,
            group_lag: gauges(GROUP_LAG, "Commits behind a consumer group's checkpoint.", &["group"])?,
            projection_parked: gauges(PROJECTION_PARKED, "Events a projection could not apply.", &["projection"])?,
            projection_oldest_parked: gauges(
                PROJECTION_OLDEST_PARKED_SECONDS,
                "Age of the oldest event a projection lacks.",
                &["projection"],
            )?,
            actors_live: gauges(ACTORS_LIVE, "Actors in memory.", &["kind"])?,
            ready: gauge(READY, "1 = ready.")?,
            registry,
        })
    }

    /// Counts what a request used.
    pub fn add_usage(&self, usage: &Usage) {
        self.model_tokens.with_label_values(&["prompt"]).inc_by(usage.prompt_tokens.0);
        self.model_tokens.with_label_values(&["completion"]).inc_by(usage.completion_tokens.0);
    }

    /// Shows how far the replica is.
    pub fn set_following(&self, following: &Following) {
        self.follower_applied.set(gauge_value(following.applied));
        self.follower_head.set(gauge_value(following.head));
        self.follower_lag.set(gauge_value(following.behind()));
    }

    /// Writes all of them in Prometheus' text form.
    ///
    /// # Errors
    /// A metric has no name, which is a mistake in this file.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// A span in seconds, as Prometheus counts time.
#[expect(clippy::cast_precision_loss, reason = "a span of more than 2^52 microseconds is 142 years")]
pub fn seconds(span: DurationUs) -> f64 {
    span.0 as f64 / 1_000_000.0
}

/// A signed number of microseconds in seconds.
#[expect(clippy::cast_precision_loss, reason = "a span of more than 2^52 microseconds is 142 years")]
pub fn signed_seconds(us: i64) -> f64 {
    us as f64 / 1_000_000.0
}

/// A position or count as a gauge's value.
pub fn gauge_value(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_once_and_prints_its_help() {
        let metrics = Metrics::new().unwrap();
        metrics.http_requests.with_label_values(&["/healthz", "200"]).inc();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"freehold_http_requests_total{route="/healthz",status="200"} 1"#), "{text}");
        assert!(text.contains("# TYPE freehold_model_first_token_seconds histogram"), "{text}");
    }
}
