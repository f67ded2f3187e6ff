//! The wiring: one process of Freehold, from an open log to answered requests, and its orderly end.
//!
//! The only place that names adapters. Start: log, secrets, clock, listeners' ports, actors, price book, read models,
//! model path, surfaces, recovery. End: not ready, nothing new, calls in flight settle, actors and read models save,
//! the log closes.

mod error;
mod ground;
mod node;
mod prices;
mod readers;
mod upstreams;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actors_core::{group::Group, region::Region, tenant::Tenant};
use actors_shell::{LiveClock, Placement, Shell};
use events_journal::EventLog as _;
use events_journal_sled::LocalStore;
use events_model::{DecisionContext, Position};
use gateway::openai::RequestLimits;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

pub use self::error::StartError;
pub(crate) use self::error::io_code;
pub use self::readers::Readers;
pub(crate) use self::readers::{Decision, Model};
use self::{
    ground::Ground,
    node::{Doors, Ports},
};
use crate::{
    cluster::{self, Cluster},
    config::{Config, Secret},
    events, grpc, http,
    metrics::Metrics,
    model_path::{ModelPath, Parts, Routing, chain},
    readiness::Readiness,
    recovery,
    shutdown::{self, Stop},
};

/// Version of the policies in force; there is one set of them so far.
const POLICY_VERSION: u32 = 1;
/// Longest wait, at the end, for connections that have nothing left to do, for read models to catch up, and for tasks
/// that were told to stop.
const END_WAIT: Duration = Duration::from_secs(2);

/// A running process of Freehold. Dropping it stops everything at once, as a crash would: the lease of a node runs out.
/// `shutdown` is the polite way.
#[derive(Debug)]
pub struct Platform {
    http_address: SocketAddr,
    grpc_address: SocketAddr,
    admin_token: String,
    drain_timeout: Duration,
    store: LocalStore,
    cluster: Option<Arc<Cluster>>,
    tenants: Shell<Tenant>,
    region: Shell<Region>,
    groups: Shell<Group>,
    path: ModelPath,
    readers: Readers,
    stop: Stop,
    /// Surfaces and recovery.
    tasks: TaskTracker,
    /// The read models' runners.
    folds: TaskTracker,
    stop_folds: watch::Sender<bool>,
}

impl Platform {
    /// Starts everything; requests are answered when this returns, once the read models have caught up.
    ///
    /// # Errors
    /// What could not be opened, bound or recorded; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, None, &cluster::as_lines()).await
    }

    /// Like [`start`](Self::start), with an operator's token that is in force instead of the data directory's, which
    /// is written all the same; a node that has to catch up with its region's log shows how far it is.
    ///
    /// # Errors
    /// Like those of `start`; and the token cannot be one.
    pub async fn start_with(
        config: Config,
        admin_token: Option<Secret>,
        show: &cluster::Show<'_>,
    ) -> Result<Self, StartError> {
        let clients = upstreams::clients(&config.upstreams, config.requests.in_flight_max)?;
        let metrics = Metrics::new().map_err(StartError::Metrics)?;
        let opened = {
            let config = config.clone();
            spawn_blocking(move || Ground::open(&config, admin_token))
        };
        let mut ground = opened.await.map_err(StartError::Task)??;
        let ports =
            Ports { http: listen("HTTP", config.http.listen).await?, grpc: listen("gRPC", config.grpc.listen).await? };
        let http_address = address("HTTP", &ports.http, config.http.listen)?;
        let grpc_address = address("gRPC", &ports.grpc, config.grpc.listen)?;
        let (doors, joined) = if config.cluster.is_on() {
            let at = node::advertised(&config, grpc_address);
            let (doors, joined) = node::join(&mut ground, &config, (ports, at), (&metrics, show)).await?;
            (doors, Some(joined))
        } else {
            (Doors::Shut(ports), None)
        };
        let (tenants, region, groups) = ground.shells(&config);
        // Its tasks hold it: without this they would renew its lease although nothing else runs.
        let unless_started = Abandons(ground.cluster.clone());
        let shards = match joined {
            Some(joined) => {
                let started = joined.start(cluster::Shells::new(&tenants, &region, &groups), LiveClock::wall).await;
                Some(started.map_err(StartError::Cluster)?.1)
            }
            None => None,
        };
        let book = prices::publish(&region, &config, &ground).await?;
        let routes = upstreams::routes(&config.upstreams, book.price_book_version);
        let routing = Routing::new(routes, clients, config.requests.reservation_grace);
        let inputs = DecisionContext {
            seed: 0,
            policy_version: POLICY_VERSION,
            price_book_version: book.price_book_version,
            routing_version: routing.version(),
        };
        let stop = Stop::default();
        let path = model_path(&config, &ground, &tenants, (routing, inputs, metrics.clone(), stop.clone()));
        let (stop_folds, stopped) = watch::channel(false);
        let folds = TaskTracker::new();
        let (readers, readiness) = ground.fold(&folds, &stopped, &stop).await?;
        let platform = Self {
            http_address,
            grpc_address,
            admin_token: ground.admin_token.clone(),
            drain_timeout: config.requests.drain_timeout,
            store: ground.store.clone(),
            cluster: ground.cluster.clone(),
            tenants,
            region,
            groups,
            path,
            readers,
            stop,
            tasks: TaskTracker::new(),
            folds,
            stop_folds,
        };
        let since_s = book.published_at.0 / 1_000_000;
        let ports = doors.open().await?;
        platform.serve_http(&config, &ground, ports.http, (metrics.clone(), readiness.clone(), since_s));
        platform.serve_grpc(&config, &ground, ports.grpc, (inputs, readiness, metrics));
        match shards {
            Some(taken) => platform.sweep(taken),
            None => platform.recover(&ground),
        }
        unless_started.started();
        Ok(platform)
    }

    /// Where HTTP listens.
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where gRPC listens.
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// The operator's token.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Position of the log's last commit.
    pub fn head_position(&self) -> Position {
        self.store.head_position()
    }

    /// The read models.
    pub const fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Ends in order: readiness says no, listeners close, requests in flight finish or are cut and settle, all within
    /// the drain timeout; then actors and read models save what they have, and the log closes.
    pub async fn shutdown(self) {
        let (calls, settling) = shutdown::split(self.drain_timeout);
        self.stop.drain.cancel();
        if timeout(calls, self.path.idle()).await.is_err() {
            info!("drain timeout nearly over, requests in flight are cut");
            self.stop.cut.cancel();
            if timeout(settling, self.path.idle()).await.is_err() {
                warn!("requests left unsettled, the next start settles them");
            }
        }
        self.tasks.close();
        // Answers are written; connections that only idle are not waited for long.
        let connections = timeout(END_WAIT, self.tasks.wait()).await;
        self.stop.now();
        if connections.is_err() && timeout(END_WAIT, self.tasks.wait()).await.is_err() {
            warn!("connections did not end in time");
        }
        if let Some(cluster) = &self.cluster {
            cluster.drain().await;
        }
        tokio::join!(self.tenants.drain(), self.region.drain(), self.groups.drain());
        let head = self.store.head_position();
        for fold in
            [self.readers.tenants.wait_for(head, END_WAIT).await, self.readers.billing.wait_for(head, END_WAIT).await]
        {
            if let Err(late) = fold {
                info!(%late, "read model ends before the log's head");
            }
        }
        self.stop_folds.send_replace(true);
        self.folds.close();
        if timeout(END_WAIT, self.folds.wait()).await.is_err() {
            warn!("read models did not end in time");
        }
        if let Some(cluster) = &self.cluster {
            cluster.close().await;
        }
        let store = self.store.clone();
        if let Err(error) = spawn_blocking(move || store.close()).await {
            error!(%error, "closing the log panicked");
        }
    }

    fn serve_http(
        &self,
        config: &Config,
        ground: &Ground,
        listener: TcpListener,
        (metrics, readiness, models_since_s): (Metrics, Readiness, u64),
    ) {
        let app = Arc::new(http::App {
            path: self.path.clone(),
            readiness,
            metrics: metrics.clone(),
            clock: Arc::clone(&ground.clock),
            log: Arc::clone(&ground.log),
            tenants: self.tenants.clone(),
            region: self.region.clone(),
            projections: self.readers.clone(),
            body_bytes_max: config.http.body_bytes_max,
            models_since_s,
        });
        let serving = http::Serving {
            router: http::router(app),
            metrics,
            clock: Arc::clone(&ground.clock),
            ids: Arc::clone(&ground.ids),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
            header_timeout: config.http.header_timeout,
            connections_max: config.http.connections_max,
        };
        self.tasks.spawn(http::serve(listener, serving));
    }

    fn serve_grpc(
        &self,
        config: &Config,
        ground: &Ground,
        listener: TcpListener,
        (inputs, readiness, metrics): (DecisionContext, Readiness, Metrics),
    ) {
        let app = Arc::new(grpc::App {
            path: self.path.clone(),
            readiness,
            metrics,
            clock: Arc::clone(&ground.clock),
            ids: Arc::clone(&ground.ids),
            log: Arc::clone(&ground.log),
            cluster: self.cluster.clone(),
            tenants: self.tenants.clone(),
            groups: events::group::Groups::new(events::group::Parts {
                log: Arc::clone(&ground.log),
                actors: self.groups.clone(),
                clock: Arc::clone(&ground.clock),
                ids: Arc::clone(&ground.ids),
                inputs,
                placement: self.cluster.clone().map(|cluster| cluster as Arc<dyn Placement>),
                tasks: self.tasks.clone(),
                drain: self.stop.drain.clone(),
            }),
            projections: self.readers.clone(),
            pepper: ground.pepper.clone(),
            admin_token: ground.admin_token.clone(),
            region: config.region.clone(),
            regions: self.region.clone(),
            zone: config.zone.clone(),
            inputs,
            message_bytes_max: config.http.body_bytes_max,
            connections_max: config.http.connections_max,
            begin_timeout: config.http.header_timeout,
        });
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let abandon = stop.abandon.clone();
            let serving = grpc::serve(listener, app, tasks, stop);
            if let Some(Err(failure)) = abandon.run_until_cancelled_owned(serving).await {
                error!(error = chain(&failure, 2_048), "gRPC ended");
            }
        });
    }

    /// Settles, with other nodes about, what nobody settles in time.
    fn sweep(&self, taken: mpsc::Receiver<()>) {
        let Some(cluster) = self.cluster.clone() else { return };
        let (path, readers, drain) = (self.path.clone(), self.readers.clone(), self.stop.drain.clone());
        let sweeping = recovery::sweep(path, readers, cluster, taken, (self.tasks.clone(), self.stop.clone()));
        self.tasks.spawn(async move { drain.run_until_cancelled_owned(sweeping).await });
    }

    fn recover(&self, ground: &Ground) {
        let (path, readers) = (self.path.clone(), self.readers.clone());
        let (started_at, drain) = (ground.started_at, self.stop.drain.clone());
        let recovering = recovery::run(path, readers, started_at, self.tasks.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            // What is not recovered now is found again by the next start.
            drain.run_until_cancelled_owned(recovering).await;
        });
    }
}

/// Gives up a node whose start came to nothing.
struct Abandons(Option<Arc<Cluster>>);

impl Abandons {
    /// It came to something.
    fn started(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandons {
    fn drop(&mut self) {
        if let Some(cluster) = &self.0 {
            cluster.abandon();
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.stop.now();
        self.stop_folds.send_replace(true);
        if let Some(cluster) = &self.cluster {
            cluster.abandon();
        }
    }
}

fn model_path(
    config: &Config,
    ground: &Ground,
    tenants: &Shell<Tenant>,
    (routing, inputs, metrics, stop): (Routing, DecisionContext, Metrics, Stop),
) -> ModelPath {
    ModelPath::new(Parts {
        tenants: tenants.clone(),
        log: Arc::clone(&ground.log),
        clock: Arc::clone(&ground.clock),
        ids: Arc::clone(&ground.ids),
        pepper: ground.pepper.clone(),
        routing,
        inputs,
        limits: RequestLimits { body_bytes_max: config.http.body_bytes_max, ..RequestLimits::default() },
        in_flight_max: config.requests.in_flight_max,
        cluster: ground.cluster.clone(),
        metrics,
        stop,
    })
}

async fn listen(surface: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { surface, address, source })
}

fn address(surface: &'static str, listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { surface, address: asked, source })
}
