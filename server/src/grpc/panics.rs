//! A panic in a handler is an answer of ours: `INTERNAL` with `ErrorInfo`, counted and logged once.
//!
//! Not here: panics of a model request's own task, which `model_path` counts and answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use prometheus::IntCounter;
use tonic::{Code, body::Body};
use tower::{Layer, Service};
use tracing::error;

use super::status;

/// Puts `Catches` around all services.
#[derive(Debug, Clone)]
pub(super) struct CatchPanics {
    pub(super) panics: IntCounter,
}

/// A service whose panics are answers.
#[derive(Debug, Clone)]
pub(super) struct Catches<S> {
    inner: S,
    panics: IntCounter,
}

impl<S> Layer<S> for CatchPanics {
    type Service = Catches<S>;

    fn layer(&self, inner: S) -> Catches<S> {
        Catches { inner, panics: self.panics.clone() }
    }
}

impl<S, B> Service<Request<B>> for Catches<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (path, panics) = (request.uri().path().to_owned(), self.panics.clone());
        // What a handler shares with others is the log's and the actors', which guard themselves.
        let answering = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let answered = match answering {
                Ok(answering) => AssertUnwindSafe(answering).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            answered.unwrap_or_else(|_panic| {
                // The panic hook has printed what and where.
                panics.inc();
                error!(path, "gRPC call panicked");
                Ok(status::plain(Code::Internal, "INTERNAL", "the server had an error").into_http())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use proto::episode::v1::{
        self as pb,
        episodes_client::EpisodesClient,
        episodes_server::{Episodes, EpisodesServer},
    };
    use tokio::{net::TcpListener, sync::Notify, time::timeout};
    use tonic::{Request, Response, Status, transport::Endpoint};
    use tonic_types::StatusExt as _;

    use crate::{grpc, metrics::Metrics};

    /// Panics at one method, waits at another.
    struct Broken {
        waits: Arc<Notify>,
        goes_on: Arc<Notify>,
    }

    #[tonic::async_trait]
    impl Episodes for Broken {
        async fn get_episode(&self, _: Request<pb::GetEpisodeRequest>) -> Result<Response<pb::Episode>, Status> {
            panic!("on purpose");
        }

        async fn list_episodes(
            &self,
            _: Request<pb::ListEpisodesRequest>,
        ) -> Result<Response<pb::ListEpisodesResponse>, Status> {
            self.waits.notify_one();
            self.goes_on.notified().await;
            Ok(Response::new(pb::ListEpisodesResponse::default()))
        }

        async fn get_state(&self, _: Request<pb::GetStateRequest>) -> Result<Response<pb::GetStateResponse>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    #[tokio::test]
    async fn a_panic_is_answered_counted_and_noticed_by_nobody_else() {
        let metrics = Metrics::new().unwrap();
        let (waits, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let broken = Broken { waits: Arc::clone(&waits), goes_on: Arc::clone(&goes_on) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = grpc::connections::accept(listener, 1, Duration::from_secs(20));
        let serving = grpc::builder(&metrics).add_service(EpisodesServer::new(broken)).serve_with_incoming(incoming);
        // One connection, which all calls share.
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let calls = async {
            let (mut other, mut client) = (EpisodesClient::new(channel.clone()), EpisodesClient::new(channel));
            let open = async { other.list_episodes(pb::ListEpisodesRequest::default()).await };
            let panics = async {
                waits.notified().await;
                let status = client.get_episode(pb::GetEpisodeRequest::default()).await.unwrap_err();
                goes_on.notify_one();
                status
            };
            tokio::join!(open, panics)
        };
        let (open, status) = tokio::select! {
            ended = serving => panic!("the server ended: {ended:?}"),
            answers = timeout(Duration::from_secs(20), calls) => answers.unwrap(),
        };
        open.unwrap();
        assert_eq!(status.code(), tonic::Code::Internal);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), (grpc::DOMAIN, "INTERNAL"));
        assert!(!status.message().contains("on purpose"));
        assert_eq!(metrics.panics.get(), 1);
    }
}
