//! What HTTP answers while a node catches up with its region's log: that it lives, how far it is, and to everything
//! else that it cannot be answered yet.

use std::sync::Arc;

use axum::{Router, extract, response::Response, routing::get};
use events_model::DurationUs;
use gateway::openai::ApiError;
use tokio::sync::watch;

use super::{HEALTH, METRICS, READY, error, operations};
use crate::{cluster::Following, metrics::Metrics};

/// When to come back to a node that starts.
const LATER: DurationUs = DurationUs::from_secs(5);

#[derive(Debug)]
struct Starting {
    following: watch::Receiver<Following>,
    metrics: Metrics,
}

type State = extract::State<Arc<Starting>>;

/// All routes of a node that starts.
pub(crate) fn router(following: watch::Receiver<Following>, metrics: Metrics) -> Router {
    Router::new()
        .route(HEALTH, get(operations::health))
        .route(READY, get(ready))
        .route(METRICS, get(metrics_so_far))
        .fallback(starting)
        .with_state(Arc::new(Starting { following, metrics }))
}

async fn ready(state: State) -> Response {
    let far = state.following.borrow().obstacle();
    let obstacles: Vec<_> = [Some("the node is starting".to_owned()), far].into_iter().flatten().collect();
    operations::readiness(&obstacles)
}

async fn metrics_so_far(state: State) -> Response {
    state.metrics.set_following(&state.following.borrow());
    operations::rendered(&state.metrics)
}

async fn starting() -> Response {
    let message = "This node is starting and catches up with the log; try again, or try another node.";
    error::response(&ApiError::unavailable(Some(LATER), message))
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_node_that_catches_up_lives_is_not_ready_says_how_far_it_is_and_turns_requests_away() {
        let (tell, following) = watch::channel(Following { applied: 10, head: 5_010, ..Following::default() });
        let router = router(following, Metrics::new().unwrap());
        let ask = async |path: &'static str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let (parts, body) = response.into_parts();
            (parts, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
        };
        assert_eq!(ask(HEALTH).await.0.status, 200);
        let (parts, text) = ask(READY).await;
        assert_eq!(parts.status, 503);
        assert!(text.contains("5000 groups behind the log (10 of 5010 groups"), "{text}");
        tell.send_replace(Following { applied: 4_000, head: 5_010, ..Following::default() });
        let (_, text) = ask(METRICS).await;
        assert!(text.contains("\nfreehold_follower_applied_groups 4000\n"), "{text}");
        assert!(text.contains("\nfreehold_follower_lag_groups 1010\n"), "{text}");
        // Near the end is not there: what is missing is told until the node has started.
        tell.send_replace(Following { applied: 5_010, head: 5_010, ..Following::default() });
        assert_eq!(ask(READY).await.0.status, 503);
        let (parts, text) = ask("/v1/chat/completions").await;
        assert_eq!((parts.status.as_u16(), parts.headers.contains_key("retry-after")), (503, true));
        assert!(text.contains("catches up"), "{text}");
    }
}
