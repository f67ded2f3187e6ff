//! The wiring: one process of Freehold, from an open log to answered requests, and its orderly end.
//!
//! The only place that names adapters. Start: log, secrets, clock, listeners' ports, actors, price book, read models,
//! model path, surfaces, recovery. End: not ready, nothing new, calls in flight settle, actors and read models save,
//! the log closes.

mod error;
mod upstreams;

use std::{fs, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc, time::Duration};

use actors_core::{
    region::{Region, State as RegionState},
    tenant::Tenant,
};
use actors_shell::{Ask, Clock, Ids, LiveClock, LiveIds, Settings, Shell};
use events_journal::{Direction, EventLog, Filter, SnapshotStore};
use events_journal_sled::{LocalStore, Options};
use events_model::{
    CommitId, DecisionContext, Position, Principal, StreamId, TimestampUs,
    region::{Command, PriceBookEntry},
};
use gateway::openai::RequestLimits;
use projections::{Projection, Reader, Runner, billing::Billing, tenants::Tenants};
use tokio::{net::TcpListener, sync::watch, task::spawn_blocking, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

pub use self::error::StartError;
pub(crate) use self::error::io_code;
use crate::{
    auth::{Pepper, entropy, secret_file},
    config::{Config, Secret},
    grpc, http,
    metrics::Metrics,
    model_path::{ModelPath, Parts, Routing, chain, overdue_grace},
    readiness::Readiness,
    recovery,
    shutdown::{self, Stop},
};

/// Version of the policies in force; there is one set of them so far.
const POLICY_VERSION: u32 = 1;
/// Mode of a data directory that the start creates: secrets and texts of tenants lie in it.
const PRIVATE: u32 = 0o700;
/// Longest wait, at the end, for connections that have nothing left to do, for read models to catch up, and for tasks
/// that were told to stop.
const END_WAIT: Duration = Duration::from_secs(2);

/// The read models.
#[derive(Debug, Clone)]
pub struct Readers {
    /// All tenants at a glance.
    pub tenants: Reader<Tenants>,
    /// What each tenant pays.
    pub billing: Reader<Billing>,
}

impl Readers {
    /// How far each is.
    pub fn positions(&self) -> [(&'static str, Position); 2] {
        [(Tenants::NAME, self.tenants.position()), (Billing::NAME, self.billing.position())]
    }
}

/// What was opened first and outlives everything else.
struct Ground {
    store: LocalStore,
    log: Arc<dyn EventLog>,
    snapshots: Arc<dyn SnapshotStore>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    pepper: Pepper,
    admin_token: String,
    /// Everything admitted before is of an earlier process.
    started_at: TimestampUs,
}

/// A running process of Freehold. Dropping it stops everything at once, as a crash would; `shutdown` is the polite way.
#[derive(Debug)]
pub struct Platform {
    http_address: SocketAddr,
    grpc_address: SocketAddr,
    admin_token: String,
    drain_timeout: Duration,
    store: LocalStore,
    tenants: Shell<Tenant>,
    region: Shell<Region>,
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
        Self::start_with(config, None).await
    }

    /// Like [`start`](Self::start), with an operator's token that is in force instead of the data directory's, which
    /// is written all the same.
    ///
    /// # Errors
    /// Like those of `start`; and the token cannot be one.
    pub async fn start_with(config: Config, admin_token: Option<Secret>) -> Result<Self, StartError> {
        let clients = upstreams::clients(&config.upstreams, config.requests.in_flight_max)?;
        let metrics = Metrics::new().map_err(StartError::Metrics)?;
        let opened = {
            let config = config.clone();
            spawn_blocking(move || Ground::open(&config, admin_token))
        };
        let ground = opened.await.map_err(StartError::Task)??;
        let http_listener = listen("HTTP", config.http.listen).await?;
        let grpc_listener = listen("gRPC", config.grpc.listen).await?;
        let (tenants, region) = ground.shells(&config);
        let book = publish(&region, &config, upstreams::price_book(&config.upstreams), &*ground.ids, &*ground.clock);
        let book = book.await?;
        let routes = upstreams::routes(&config.upstreams, book.price_book_version);
        let routing = Routing::new(routes, clients, config.requests.reservation_grace);
        let inputs = DecisionContext {
            seed: 0,
            policy_version: POLICY_VERSION,
            price_book_version: book.price_book_version,
            routing_version: routing.version(),
        };
        let stop = Stop::default();
        let limits = RequestLimits { body_bytes_max: config.http.body_bytes_max, ..RequestLimits::default() };
        let path = ModelPath::new(Parts {
            tenants: tenants.clone(),
            log: Arc::clone(&ground.log),
            clock: Arc::clone(&ground.clock),
            ids: Arc::clone(&ground.ids),
            pepper: ground.pepper.clone(),
            routing,
            inputs,
            limits,
            in_flight_max: config.requests.in_flight_max,
            metrics: metrics.clone(),
            stop: stop.clone(),
        });
        let (stop_folds, stopped) = watch::channel(false);
        let folds = TaskTracker::new();
        let (readers, readiness) = ground.fold(&folds, &stopped, &stop).await?;
        let platform = Self {
            http_address: address("HTTP", &http_listener, config.http.listen)?,
            grpc_address: address("gRPC", &grpc_listener, config.grpc.listen)?,
            admin_token: ground.admin_token.clone(),
            drain_timeout: config.requests.drain_timeout,
            store: ground.store.clone(),
            tenants,
            region,
            path,
            readers,
            stop,
            tasks: TaskTracker::new(),
            folds,
            stop_folds,
        };
        let since_s = book.published_at.0 / 1_000_000;
        platform.serve_http(&config, &ground, http_listener, (metrics.clone(), readiness.clone(), since_s));
        platform.serve_grpc(&config, &ground, grpc_listener, (inputs, readiness, metrics));
        platform.recover(&ground);
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
        tokio::join!(self.tenants.drain(), self.region.drain());
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
            metrics,
            clock: Arc::clone(&ground.clock),
            log: Arc::clone(&ground.log),
            tenants: self.tenants.clone(),
            region: self.region.clone(),
            projections: self.readers.clone(),
            body_bytes_max: config.http.body_bytes_max,
            models_since_s,
        });
        let serving = http::Serving {
            router: http::router(Arc::clone(&app)),
            app,
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
            tenants: self.tenants.clone(),
            projections: self.readers.clone(),
            pepper: ground.pepper.clone(),
            admin_token: ground.admin_token.clone(),
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

impl Drop for Platform {
    fn drop(&mut self) {
        self.stop.now();
        self.stop_folds.send_replace(true);
    }
}

impl Ground {
    /// Opens the data directory. Blocks.
    fn open(config: &Config, admin_token: Option<Secret>) -> Result<Self, StartError> {
        if admin_token.as_ref().is_some_and(|token| !secret_file::is_admin_token(token.expose())) {
            return Err(StartError::AdminTokenVariable);
        }
        create_private(&config.data);
        let options = Options { segment_bytes: config.log.segment_bytes, ..Options::default() };
        let store = LocalStore::open(&config.data, options).map_err(StartError::Open)?;
        let opening = store.opening();
        info!(commits = opening.commits, replayed = opening.replayed, us = opening.duration_us, "log opened");
        if let Some(cut) = &opening.cut {
            warn!(
                file = cut.file,
                offset = cut.offset,
                bytes = cut.bytes,
                "torn tail cut, there is no sign that anybody was told of it"
            );
        }
        let head = store.head_position();
        let token = secret_file::admin_token(&config.data).map_err(StartError::AdminToken)?;
        let pepper = secret_file::key_pepper(&config.data).map_err(StartError::KeyPepper)?;
        if pepper.is_new && head > Position::ZERO {
            warn!("the pepper of API keys was missing, keys issued before do not work any more");
        }
        let clock = LiveClock::default();
        if head > Position::ZERO {
            let last = store.read_log(head, Direction::Backward, &Filter::default(), 1).map_err(StartError::Read)?;
            for commit in &last.commits {
                let recorded_at = commit.view().map_err(StartError::Read)?.recorded_at();
                check_clock(recorded_at, LiveClock::wall(), config.log.clock_ahead_max)?;
                clock.observe(recorded_at);
            }
        }
        let word = || entropy::<8>().map(u64::from_le_bytes).map_err(StartError::NoEntropy);
        let ids = LiveIds::new(word()?, word()?);
        let started_at = clock.now();
        Ok(Self {
            log: Arc::new(store.clone()),
            snapshots: Arc::new(store.clone()),
            store,
            clock: Arc::new(clock),
            ids: Arc::new(ids),
            pepper: Pepper::new(&pepper.secret),
            admin_token: admin_token.map_or(token.secret, |token| token.expose().to_owned()),
            started_at,
        })
    }

    fn shells(&self, config: &Config) -> (Shell<Tenant>, Shell<Region>) {
        let settings = Settings {
            mailbox_len_max: config.actors.mailbox_len_max,
            idle_after: config.actors.idle_after,
            snapshot_every: config.actors.snapshot_every,
            arbiters: config.actors.arbiters,
            overdue_grace: overdue_grace(config.requests.reservation_grace),
            region: config.region.clone(),
            placement: None,
        };
        // One region has one actor.
        let region = Settings { arbiters: 1, ..settings.clone() };
        (self.shell(settings), self.shell(region))
    }

    fn shell<D: actors_core::Decider>(&self, settings: Settings) -> Shell<D> {
        let (log, snapshots) = (Arc::clone(&self.log), Arc::clone(&self.snapshots));
        Shell::start(log, snapshots, Arc::clone(&self.clock), Arc::clone(&self.ids), settings)
    }

    /// Starts the read models.
    async fn fold(
        &self,
        tasks: &TaskTracker,
        stopped: &watch::Receiver<bool>,
        stop: &Stop,
    ) -> Result<(Readers, Readiness), StartError> {
        let (tenants, tenants_reader) = self.runner::<Tenants>().await?;
        let (billing, billing_reader) = self.runner::<Billing>().await?;
        let readers = Readers { tenants: tenants_reader.clone(), billing: billing_reader };
        let readiness = Readiness::new(Arc::clone(&self.log), tenants_reader, stop.clone());
        start_fold(tasks, tenants, stopped.clone(), readiness.clone());
        start_fold(tasks, billing, stopped.clone(), readiness.clone());
        Ok((readers, readiness))
    }

    async fn runner<P: Projection>(&self) -> Result<(Runner<P>, Reader<P>), StartError> {
        let (log, snapshots) = (Arc::clone(&self.log), Arc::clone(&self.snapshots));
        let opened = spawn_blocking(move || Runner::open(log, snapshots, projections::Options::default()));
        opened.await.map_err(StartError::Task)
    }
}

/// Refuses a clock that is far behind the log: times in it never go back, so they would stand still until it comes by.
fn check_clock(recorded_at: TimestampUs, wall: TimestampUs, allowed: Duration) -> Result<(), StartError> {
    let ahead = Duration::from_micros(recorded_at.since(wall).0);
    if ahead <= allowed {
        return Ok(());
    }
    Err(StartError::ClockBehind { recorded_at, wall, ahead, allowed })
}

/// Creates a directory that only its owner enters; one that exists stays as it is.
fn create_private(directory: &Path) {
    let parents = directory.parent().map_or(Ok(()), fs::create_dir_all);
    // Whatever refuses this refuses the opening of the log, which says so with its number.
    drop(parents.and_then(|()| fs::DirBuilder::new().mode(PRIVATE).create(directory)));
}

/// Keeps a read model up to date; it folds on blocking threads.
fn start_fold<P: Projection>(
    tasks: &TaskTracker,
    runner: Runner<P>,
    stopped: watch::Receiver<bool>,
    readiness: Readiness,
) {
    tasks.spawn(run(runner, stopped, readiness));
}

async fn run<P: Projection>(runner: Runner<P>, stopped: watch::Receiver<bool>, readiness: Readiness) {
    if let Err(failure) = runner.run(stopped, |_| {}).await {
        error!(projection = P::NAME, error = chain(&failure, 2_048), "read model stopped");
        readiness.projection_failed();
    }
}

/// Puts the configured prices in force, if they are not.
async fn publish(
    region: &Shell<Region>,
    config: &Config,
    entries: Vec<PriceBookEntry>,
    ids: &dyn Ids,
    clock: &dyn Clock,
) -> Result<RegionState, StartError> {
    let actor = region.actor(&StreamId::region(&config.region));
    let present = actor.read(RegionState::clone).await.map_err(StartError::PriceBook)?;
    // Without prices there is nothing to sell, and nothing to record.
    if present.entries == entries {
        return Ok(present);
    }
    let episode_id = ids.episode(clock.now());
    // Always a valid id: a UUID behind two short words.
    let Ok(commit_id) = CommitId::new(&format!("price-book/{episode_id}")) else { return Ok(present) };
    let ask = Ask {
        command: Command::PublishPriceBook { entries },
        commit_id,
        idempotent: false,
        episode_id,
        causation_id: None,
        principal: Principal::system("config"),
        traceparent: String::new(),
        inputs: DecisionContext { policy_version: POLICY_VERSION, ..DecisionContext::default() },
    };
    match actor.ask(ask).await.map_err(StartError::PriceBook)? {
        Ok(decided) => info!(version = decided.view, "price book in force"),
        Err(rejected) => return Err(StartError::PriceBookRefused(rejected.rejection)),
    }
    actor.read(RegionState::clone).await.map_err(StartError::PriceBook)
}

async fn listen(surface: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { surface, address, source })
}

fn address(surface: &'static str, listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { surface, address: asked, source })
}
