//! The gRPC surface: model requests and events for applications, administration and the past for operators, reflection (v1 and
//! v1alpha) and health for tools.
//!
//! Invariants: an application shows its API key, an operator the admin token, compared in constant time; every error
//! carries `google.rpc.ErrorInfo`, and `RetryInfo` where trying again helps, also a panic of a handler. What a request means is decided in
//! `model_path` and the actors.

mod admin;
mod cluster;
mod connections;
pub(crate) mod convert;
mod episodes;
mod events;
mod gateway;
mod panics;
pub(crate) mod starting;
pub mod status;
mod tenants;

use std::{sync::Arc, time::Duration};

use actors_core::{region::Region, tenant::Tenant};
use actors_shell::{Clock, Ids, Shell};
use events_journal::EventLog;
use events_model::{DecisionContext, RegionId};
use proto::{
    cluster::v1::cluster_server::{self, ClusterServer},
    episode::v1::episodes_server::{self, EpisodesServer},
    events::v1::events_server::{self, EventsServer},
    gateway::v1::gateway_server::{self, GatewayServer},
    tenant::v1::tenants_server::{self, TenantsServer},
};
use tokio::{net::TcpListener, time::interval};
use tokio_util::task::TaskTracker;
use tonic::{body::Body, service::interceptor::InterceptedService, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::Builder;
use tower::{
    layer::util::{Identity, Stack},
    util::MapResponseLayer,
};

pub use self::status::DOMAIN;
use self::{
    admin::Admin, cluster::Cluster, episodes::Episodes, events::Events, gateway::Gateway, panics::CatchPanics,
    tenants::Tenants,
};
use crate::{
    auth::Pepper, events::group::Groups, metrics::Metrics, model_path::ModelPath, readiness::Readiness, shutdown::Stop,
};

/// Most requests at once on one connection.
const STREAMS_MAX: u32 = 256;
/// Most bytes of a request's headers.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// How often a silent connection is probed, and how long it may take to answer.
const PROBE: Duration = Duration::from_secs(30);
/// How often the health service looks at the readiness.
const HEALTH_EVERY: Duration = Duration::from_millis(100);

/// What requests are answered with.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) path: ModelPath,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn Ids>,
    pub(crate) log: Arc<dyn EventLog>,
    /// The other nodes, if there are any.
    pub(crate) cluster: Option<Arc<crate::cluster::Cluster>>,
    pub(crate) tenants: Shell<Tenant>,
    /// Consumer groups at work.
    pub(crate) groups: Groups,
    pub(crate) projections: crate::platform::Readers,
    pub(crate) pepper: Pepper,
    pub(crate) admin_token: String,
    /// The region that decides.
    pub(crate) region: RegionId,
    /// Its actor.
    pub(crate) regions: Shell<Region>,
    /// Zone of tenants that are created here.
    pub(crate) zone: String,
    pub(crate) inputs: DecisionContext,
    /// Largest request message, bytes.
    pub(crate) message_bytes_max: usize,
    /// Most connections at once.
    pub(crate) connections_max: usize,
    /// How long a connection may take to begin.
    pub(crate) begin_timeout: Duration,
}

/// Why the server ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors are damaged: a mistake in this build.
    #[error("set up reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("serve gRPC")]
    Transport(#[source] tonic::transport::Error),
}

type Detail = MapResponseLayer<fn(http::Response<Body>) -> http::Response<Body>>;

/// What surrounds every service: limits of a connection, errors with particulars, panics that are answers.
fn builder(metrics: &Metrics) -> Server<Stack<CatchPanics, Stack<Detail, Identity>>> {
    let detail: Detail = MapResponseLayer::new(status::detailed);
    Server::builder()
        .layer(detail)
        .layer(CatchPanics { panics: metrics.panics.clone() })
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(PROBE))
        .http2_keepalive_timeout(Some(PROBE))
}

/// Serves until the drain has begun and every call is answered.
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>, tasks: TaskTracker, stop: Stop) -> Result<(), Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tasks.spawn(report(reporter, app.readiness.clone(), stop.clone()));
    let bytes_max = app.message_bytes_max;
    let mut builder = builder(&app.metrics);
    let incoming = connections::accept(listener, app.connections_max, app.begin_timeout);
    let admin = Admin::new(&app);
    let tenants = TenantsServer::new(Tenants(Arc::clone(&app))).max_decoding_message_size(bytes_max);
    let episodes = EpisodesServer::new(Episodes(Arc::clone(&app))).max_decoding_message_size(bytes_max);
    let events = EventsServer::new(Events::new(Arc::clone(&app))).max_decoding_message_size(bytes_max);
    let cluster = ClusterServer::new(Cluster(Arc::clone(&app))).max_decoding_message_size(bytes_max);
    let gateway = GatewayServer::new(Gateway(app)).max_decoding_message_size(bytes_max);
    let describe = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    builder
        .add_service(describe().build_v1().map_err(Error::Reflection)?)
        .add_service(describe().build_v1alpha().map_err(Error::Reflection)?)
        .add_service(health)
        .add_service(gateway)
        .add_service(events)
        .add_service(InterceptedService::new(tenants, admin.clone()))
        .add_service(InterceptedService::new(cluster, admin.clone()))
        .add_service(InterceptedService::new(episodes, admin))
        .serve_with_incoming_shutdown(incoming, stop.drain.cancelled_owned())
        .await
        .map_err(Error::Transport)
}

/// Keeps the health service in step with the readiness, until the drain begins.
async fn report(reporter: HealthReporter, readiness: Readiness, stop: Stop) {
    let mut timer = interval(HEALTH_EVERY);
    let mut told = None;
    while stop.drain.run_until_cancelled(timer.tick()).await.is_some() {
        let ready = readiness.obstacles().is_empty();
        if told != Some(ready) {
            tell(&reporter, ready).await;
            told = Some(ready);
        }
    }
    tell(&reporter, false).await;
}

async fn tell(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    let services = [
        "",
        gateway_server::SERVICE_NAME,
        events_server::SERVICE_NAME,
        tenants_server::SERVICE_NAME,
        episodes_server::SERVICE_NAME,
        cluster_server::SERVICE_NAME,
    ];
    for service in services {
        reporter.set_service_status(service, status).await;
    }
}
