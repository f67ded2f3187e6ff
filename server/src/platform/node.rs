//! How a process becomes a node of a region: it opens the region's log, catches up with it, takes over what all nodes
//! share, and takes part in the leases. Until all of that is done, HTTP says how far it is and gRPC that it starts.

use std::{io, net::SocketAddr, sync::Arc};

use actors_shell::LiveClock;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{END_WAIT, Ground, StartError};
use crate::{
    auth::{Pepper, entropy, secret_file},
    cluster::{self, Following, Joined, Opened, Show},
    config::Config,
    grpc, http,
    metrics::Metrics,
    model_path::chain,
    shutdown::Stop,
};

/// The listeners of both surfaces.
pub(super) struct Ports {
    pub(super) http: TcpListener,
    pub(super) grpc: TcpListener,
}

/// The listeners of a process that starts.
pub(super) enum Doors {
    /// Connections wait.
    Shut(Ports),
    /// They are answered.
    Attended(Attended),
}

impl Doors {
    /// Gives the listeners back, for those who answer from now on.
    pub(super) async fn open(self) -> Result<Ports, StartError> {
        match self {
            Self::Shut(ports) => Ok(ports),
            Self::Attended(attended) => attended.end().await,
        }
    }
}

/// Answers whoever asks a node that starts. Dropping it ends that.
pub(super) struct Attended {
    http: JoinHandle<TcpListener>,
    /// Another handle of the listener that answers.
    grpc: TcpListener,
    tasks: TaskTracker,
    stop: Stop,
    _ends: Ends,
}

/// Ends everything at once when it is dropped.
struct Ends(Stop);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.now();
    }
}

impl Attended {
    fn begin(
        ground: &Ground,
        config: &Config,
        following: watch::Receiver<Following>,
        ports: Ports,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let (tasks, stop) = (TaskTracker::new(), Stop::default());
        let serving = http::Serving {
            router: http::starting_router(following, metrics.clone()),
            metrics: metrics.clone(),
            clock: Arc::clone(&ground.clock),
            ids: Arc::clone(&ground.ids),
            tasks: tasks.clone(),
            stop: stop.clone(),
            header_timeout: config.http.header_timeout,
            connections_max: config.http.connections_max,
        };
        let address = config.grpc.listen;
        let (grpc, answering) =
            twins(ports.grpc).map_err(|source| StartError::Listen { surface: "gRPC", address, source })?;
        let (config, metrics, ends) = (config.clone(), metrics.clone(), stop.clone());
        tasks.spawn(async move {
            let abandon = ends.abandon.clone();
            let serving = grpc::starting::serve(answering, &config, &metrics, ends);
            if let Some(Err(error)) = abandon.run_until_cancelled_owned(serving).await {
                warn!(error = chain(&error, 2_048), "gRPC does not answer while this node starts");
            }
        });
        let http = tasks.spawn(http::serve(ports.http, serving));
        Ok(Self { http, grpc, tasks, _ends: Ends(stop.clone()), stop })
    }

    async fn end(self) -> Result<Ports, StartError> {
        self.stop.drain.cancel();
        let http = self.http.await.map_err(StartError::Task)?;
        self.tasks.close();
        // Connections that idle are cut; their clients make new ones.
        drop(timeout(END_WAIT, self.tasks.wait()).await);
        Ok(Ports { http, grpc: self.grpc })
    }
}

/// Two handles of one listener.
fn twins(listener: TcpListener) -> io::Result<(TcpListener, TcpListener)> {
    let listener = listener.into_std()?;
    let twin = listener.try_clone()?;
    Ok((TcpListener::from_std(listener)?, TcpListener::from_std(twin)?))
}

/// Where other nodes reach this one: they are told where it listens, not what was asked for.
pub(super) fn advertised(config: &Config, listens: SocketAddr) -> String {
    match config.grpc.advertise.as_str() {
        "" => listens.to_string(),
        advertise => advertise.to_owned(),
    }
}

/// Makes this process a node, which others reach at this address: the log is the region's, its local store a replica of
/// it. From the moment that the log is open, whoever asks is answered.
pub(super) async fn join(
    ground: &mut Ground,
    config: &Config,
    (ports, address): (Ports, String),
    (metrics, show): (&Metrics, &Show<'_>),
) -> Result<(Doors, Joined), StartError> {
    let opened = Opened::open(config, &ground.store, LiveClock::wall).await.map_err(StartError::Cluster)?;
    let attended = Attended::begin(ground, config, opened.following(), ports, metrics)?;
    opened.check_clock(LiveClock::wall).await.map_err(StartError::Cluster)?;
    // So that no shard waits for the replica.
    opened.catch_up(show).await.map_err(StartError::Cluster)?;
    take_secrets(ground, config, &opened).await?;
    let incarnation = entropy::<16>().map(u128::from_le_bytes).map_err(StartError::NoEntropy)?;
    let joined = opened.join(config, address, incarnation, ground.started_at).await.map_err(StartError::Cluster)?;
    ground.log = Arc::new(joined.cluster.log());
    ground.cluster = Some(Arc::clone(&joined.cluster));
    Ok((Doors::Attended(attended), joined))
}

/// What one node issues, all must accept.
async fn take_secrets(ground: &mut Ground, config: &Config, opened: &Opened) -> Result<(), StartError> {
    let pepper = opened.share(config, "key-pepper", &ground.pepper_bytes).await.map_err(StartError::Cluster)?;
    let pepper = pepper.try_into().map_err(|_| StartError::Cluster(cluster::Error::Secret("pepper")))?;
    // Keys are lost with the pepper, so every node keeps it.
    secret_file::save_key_pepper(&config.data, &pepper).map_err(StartError::KeyPepper)?;
    ground.pepper = Pepper::new(&pepper);
    if !ground.is_token_given {
        let token =
            opened.share(config, "admin-token", ground.admin_token.as_bytes()).await.map_err(StartError::Cluster)?;
        let token = String::from_utf8(token).ok().filter(|token| secret_file::is_admin_token(token));
        ground.admin_token = token.ok_or(StartError::Cluster(cluster::Error::Secret("admin token")))?;
        // So that commands beside this node find it.
        secret_file::save(&config.data.join(secret_file::ADMIN_TOKEN_FILE), &ground.admin_token)
            .map_err(StartError::AdminToken)?;
    }
    Ok(())
}
