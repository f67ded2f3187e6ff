//! The listener and its connections: bounded in number, in the time they may be silent, and in what they may send.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actors_shell::{Clock, Ids};
use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::answer;
use crate::{metrics::Metrics, shutdown::Stop};

/// Most headers of a request, and most bytes of all of them.
const HEADERS_MAX: usize = 100;
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// Largest buffer of an HTTP/1 connection, which a request's head must fit in; bodies pass through it in pieces.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Most requests at once on one HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 256;
/// How often a silent HTTP/2 connection is probed, and how long it may take to answer.
const HTTP2_PROBE: Duration = Duration::from_secs(30);
/// Pause after an accept that failed for want of a resource, for example file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What the listener needs.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) router: Router,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn Ids>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: Stop,
    /// Longest wait for the head of a request, and so also for the next request on a connection.
    pub(crate) header_timeout: Duration,
    pub(crate) connections_max: usize,
}

/// Accepts connections until the drain begins, and gives the listener back. A connection beyond the limit waits in the
/// system's queue.
pub(crate) async fn serve(listener: TcpListener, serving: Serving) -> TcpListener {
    let slots = Arc::new(Semaphore::new(serving.connections_max));
    let drain = serving.stop.drain.clone();
    while let Some(Ok(slot)) = drain.run_until_cancelled(Arc::clone(&slots).acquire_owned()).await {
        match drain.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => {
                let connection = connection(stream, serving.clone(), slot);
                let abandon = serving.stop.abandon.clone();
                serving.tasks.spawn(async move {
                    abandon.run_until_cancelled(connection).await;
                });
            }
            Some(Err(error)) => {
                warn!(%error, "connection not accepted, will retry");
                drain.run_until_cancelled(sleep(ACCEPT_RETRY)).await;
            }
        }
    }
    listener
}

async fn connection(stream: TcpStream, serving: Serving, _slot: OwnedSemaphorePermit) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "connection without TCP_NODELAY");
    }
    serving.metrics.http_connections.inc();
    run(stream, &serving).await;
    serving.metrics.http_connections.dec();
}

async fn run(stream: TcpStream, serving: &Serving) {
    let begun = Arc::new(AtomicBool::new(false));
    let (answering, begins) = (serving.clone(), Arc::clone(&begun));
    let handler = service_fn(move |request: Request<Incoming>| {
        begins.store(true, Ordering::Relaxed);
        let answering = answer(answering.clone(), request.map(Body::new));
        async move { Ok::<_, std::convert::Infallible>(answering.await) }
    });
    let builder = builder(serving.header_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), handler));
    // Neither the choice of the protocol nor HTTP/2's beginning has a limit of its own.
    let mut silent = pin!(sleep(serving.header_timeout));
    let mut waits = true;
    let mut drains = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = silent.as_mut(), if waits => {
                waits = false;
                if !begun.load(Ordering::Relaxed) {
                    return;
                }
            }
            () = serving.stop.drain.cancelled(), if !drains => {
                drains = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    // Clients that go away in the middle of something are daily business.
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PROBE)
        .keep_alive_timeout(HTTP2_PROBE);
    builder
}
