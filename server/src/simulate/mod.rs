//! A simulated upstream: an OpenAI-compatible service that is seeded, counts what it bills, and fails on request.
//!
//! `freehold simulate` serves it, `freehold dev` runs it in the same process, and tests compare its books with ours.
//! Any number can run in one process; they share nothing. Plain HTTP, versions 1.1 and 2 (prior knowledge).
//!
//! # Addresses
//! - `POST /v1/chat/completions`: plain and server-sent events (`stream`, `stream_options.include_usage`,
//!   `max_tokens`, `max_completion_tokens`, `n`); other parameters are accepted and ignored.
//! - `GET /v1/models`, `GET /healthz`.
//! - `GET /stats`: [`Stats`]. `GET /v1/usage/{id}`: [`Usage`] of the requests whose `x-client-request-id` header was
//!   `id`; 404 for an id that is not known. With an API key, everything under `/v1` requires it.
//!
//! # Tokens
//! A completion token is one word with its leading space. Prompt tokens are 3 for the request, and for each message
//! 3 + ceil(UTF-8 bytes of its text content / 4).
//!
//! # Billing
//! - Refused or failed before generation (400, 401, 404, 413, 429, 500, 503): nothing.
//! - Completed, also with malformed JSON or beyond `max_tokens`: prompt + completion.
//! - Cut by the simulator, or given up by the client: prompt + the tokens generated until then. A token of a stream
//!   is generated when the connection asks for it (so a slow reader holds generation back, apart from what fits into
//!   buffers); a plain response is generated before its first byte is sent.
//! - Several requests with one client request id are attempts: each is billed, usage adds them up.
//!
//! # What is drawn
//! Everything that happens to a request follows from the seed and its client request id and attempt number, or,
//! without an id, the bytes of its body and how often they were seen. So a run can be repeated, except for the
//! rate limit windows, which follow the clock: in every period the last `rate_limit_for_ms` are closed. A retry is
//! a new draw. The same seed and prompt give the same words.
//!
//! It deliberately does not check every parameter of the real API, keep anything on disk, or speak TLS.

mod body;
mod dice;
mod error;
mod generate;
mod ledger;
mod options;
mod request;
mod service;
mod text;

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{rt::Executor, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{debug, warn};

use self::service::Service;
pub use self::{
    ledger::{Stats, Status, Usage},
    options::{
        COMPLETION_TOKENS_MAX, Invalid, MODELS_MAX, Options, PAUSE_MS_MAX, RECORDS_DEFAULT, RECORDS_MAX,
        TOKENS_PER_SECOND_MAX,
    },
};

/// How long a shutdown waits for responses in progress before it breaks them off.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Bytes that an HTTP/1 connection buffers: what a reader that stopped reading can be ahead of the bill.
const CONNECTION_BUFFER_BYTES: usize = 64 * 1_024;
/// Pause after an accept that failed for want of a resource, for example file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A running simulated upstream. Dropping it breaks off everything at once; [`Simulator::shutdown`] is the polite way.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    service: Arc<Service>,
    tasks: TaskTracker,
    /// Asks the listener and the connections to finish; a child of `kill`.
    stop: CancellationToken,
    /// Ends them.
    kill: DropGuard,
}

impl Simulator {
    /// Starts serving at `listen`; port 0 chooses a free port.
    ///
    /// # Errors
    /// - `InvalidInput`: the options are outside their limits (the source is [`Invalid`]).
    /// - What binding the address answered.
    pub async fn start(options: Options, listen: SocketAddr) -> io::Result<Self> {
        options.validate()?;
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let service = Arc::new(Service::new(options));
        let tasks = TaskTracker::new();
        let kill = CancellationToken::new();
        let stop = kill.child_token();
        tasks.spawn(accept(listener, Arc::clone(&service), tasks.clone(), stop.clone(), kill.clone()));
        Ok(Self { address, service, tasks, stop, kill: kill.drop_guard() })
    }

    /// The address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has served and billed so far.
    pub fn stats(&self) -> Stats {
        self.service.ledger().stats()
    }

    /// Stops accepting, lets responses in progress finish for up to [`SHUTDOWN_GRACE`], then breaks them off; returns
    /// the final counts, in which nothing is in flight.
    pub async fn shutdown(self) -> Stats {
        self.stop.cancel();
        self.tasks.close();
        if timeout(SHUTDOWN_GRACE, self.tasks.wait()).await.is_err() {
            warn!(in_flight = self.stats().in_flight, "simulator stopped with responses in progress");
        }
        drop(self.kill);
        self.tasks.wait().await;
        self.service.ledger().stats()
    }
}

async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    tasks: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let executor = Tracked { tasks: tasks.clone(), kill: kill.clone() };
                executor.execute(serve(stream, Arc::clone(&service), stop.clone(), executor.clone()));
            }
            Err(error) => {
                warn!(%error, "simulator could not accept a connection, will retry");
                stop.run_until_cancelled(sleep(ACCEPT_RETRY)).await;
            }
        }
    }
}

/// Runs tasks (connections, and the streams of HTTP/2) so that a shutdown can end them and wait for them.
#[derive(Clone, Debug)]
struct Tracked {
    tasks: TaskTracker,
    kill: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, task: F) {
        self.tasks.spawn(self.kill.clone().run_until_cancelled_owned(task));
    }
}

/// Serves one connection until it ends, gracefully once `stop` is cancelled.
async fn serve(stream: TcpStream, service: Arc<Service>, stop: CancellationToken, executor: Tracked) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "simulator connection without TCP_NODELAY");
    }
    let mut builder = auto::Builder::new(executor);
    builder.http1().max_buf_size(CONNECTION_BUFFER_BYTES);
    let handler = service_fn(move |request| Arc::clone(&service).handle(request));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), handler));
    let ended = match stop.run_until_cancelled(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Clients that go away and connections cut on purpose end here: that is the simulator's daily business.
    if let Err(error) = ended {
        debug!(%error, "simulator connection ended");
    }
}
