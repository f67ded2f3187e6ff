//! How a process becomes a node of a region: it opens the region's log, catches up with it, takes over what all nodes
//! share, and takes part in the leases. While it catches up, HTTP says how far it is.

use std::sync::Arc;

use actors_shell::LiveClock;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::task::TaskTracker;

use super::{END_WAIT, Ground, StartError};
use crate::{
    auth::{Pepper, entropy, secret_file},
    cluster::{self, Joined, Opened, Show},
    config::Config,
    http,
    metrics::Metrics,
    shutdown::Stop,
};

/// Makes this process a node, which others reach at this address: the log is the region's, its local store a replica of
/// it. Gives the listener of HTTP back.
pub(super) async fn join(
    ground: &mut Ground,
    config: &Config,
    (listener, address): (TcpListener, String),
    (metrics, show): (&Metrics, &Show<'_>),
) -> Result<(TcpListener, Joined), StartError> {
    let opened = Opened::open(config, &ground.store, LiveClock::wall).await.map_err(StartError::Cluster)?;
    opened.check_clock(LiveClock::wall).await.map_err(StartError::Cluster)?;
    let listener = catch_up(ground, config, &opened, listener, (metrics, show)).await?;
    take_secrets(ground, config, &opened).await?;
    let incarnation = entropy::<16>().map(u128::from_le_bytes).map_err(StartError::NoEntropy)?;
    let joined = opened.join(config, address, incarnation, ground.started_at).await.map_err(StartError::Cluster)?;
    ground.log = Arc::new(joined.cluster.log());
    ground.cluster = Some(Arc::clone(&joined.cluster));
    Ok((listener, joined))
}

/// Waits until the replica is near the end of the log, and answers whoever asks meanwhile.
async fn catch_up(
    ground: &Ground,
    config: &Config,
    opened: &Opened,
    listener: TcpListener,
    (metrics, show): (&Metrics, &Show<'_>),
) -> Result<TcpListener, StartError> {
    let (tasks, stop) = (TaskTracker::new(), Stop::default());
    // Whatever ends this ends what answers.
    let _ends = stop.abandon.clone().drop_guard();
    let drain = stop.drain.clone();
    let serving = http::Serving {
        router: http::starting_router(opened.following(), metrics.clone()),
        metrics: metrics.clone(),
        clock: Arc::clone(&ground.clock),
        ids: Arc::clone(&ground.ids),
        tasks: tasks.clone(),
        stop,
        header_timeout: config.http.header_timeout,
        connections_max: config.http.connections_max,
    };
    let catching_up = async {
        let caught_up = opened.catch_up(show).await;
        drain.cancel();
        caught_up
    };
    let (listener, caught_up) = tokio::join!(http::serve(listener, serving), catching_up);
    caught_up.map_err(StartError::Cluster)?;
    tasks.close();
    // Connections that idle are cut; their clients make new ones.
    drop(timeout(END_WAIT, tasks.wait()).await);
    Ok(listener)
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
