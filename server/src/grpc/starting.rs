//! What gRPC answers while a node starts: that it is not there yet. A port that only listens would let callers wait.

use axum::{Router, response::Response};
use tokio::net::TcpListener;
use tonic::{Code, service::Routes};

use super::{Error, builder, connections, status, tell};
use crate::{config::Config, metrics::Metrics, shutdown::Stop};

/// Answers every call until the drain has begun and every call is answered.
pub(crate) async fn serve(listener: TcpListener, config: &Config, metrics: &Metrics, stop: Stop) -> Result<(), Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tell(&reporter, false).await;
    let incoming = connections::accept(listener, config.http.connections_max, config.http.header_timeout);
    builder(metrics)
        .add_routes(Routes::from(Router::new().fallback(starting)).add_service(health))
        .serve_with_incoming_shutdown(incoming, stop.drain.cancelled_owned())
        .await
        .map_err(Error::Transport)
}

async fn starting() -> Response {
    let message = "this node is starting: try again, or try another node";
    status::again(Code::Unavailable, "STARTING", message).into_http()
}
