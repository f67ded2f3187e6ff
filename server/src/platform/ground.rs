//! What a process stands on: its data directory, its log, its secrets; and the actors and read models above them.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc, time::Duration};

use actors_core::{group::Group, region::Region, tenant::Tenant};
use actors_shell::{Clock, Ids, LiveClock, LiveIds, Placement, Settings, Shell};
use events_journal::{Direction, EventLog, Filter, SnapshotStore};
use events_journal_sled::{LocalStore, Options};
use events_model::{Position, TimestampUs};
use projections::{Projection, Reader, Runner, billing::Billing, groups::Groups, tenants::Tenants};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::{Readers, StartError};
use crate::{
    auth::{Pepper, SECRET_BYTES, entropy, secret_file},
    cluster::Cluster,
    config::{Config, Secret},
    model_path::{chain, overdue_grace},
    readiness::Readiness,
    shutdown::Stop,
};

/// Mode of a data directory that the start creates: secrets and texts of tenants lie in it.
const PRIVATE: u32 = 0o700;

/// What was opened first and outlives everything else.
pub(super) struct Ground {
    pub(super) store: LocalStore,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) snapshots: Arc<dyn SnapshotStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<dyn Ids>,
    pub(super) pepper: Pepper,
    pub(super) pepper_bytes: [u8; SECRET_BYTES],
    pub(super) admin_token: String,
    /// The operator set it, for this process alone.
    pub(super) is_token_given: bool,
    /// Everything admitted before is of an earlier process.
    pub(super) started_at: TimestampUs,
}

impl Ground {
    /// Opens the data directory. Blocks.
    pub(super) fn open(config: &Config, admin_token: Option<Secret>) -> Result<Self, StartError> {
        if admin_token.as_ref().is_some_and(|token| !secret_file::is_admin_token(token.expose())) {
            return Err(StartError::AdminTokenVariable);
        }
        create_private(&config.data);
        let options = Options { segment_bytes: config.log.segment_bytes, ..Options::default() };
        // A node's store is a copy of what the region's stream holds durably.
        let open = if config.cluster.is_on() { LocalStore::open_copy } else { LocalStore::open };
        let store = open(&config.data, options).map_err(StartError::Open)?;
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
            cluster: None,
            clock: Arc::new(clock),
            ids: Arc::new(ids),
            pepper: Pepper::new(&pepper.secret),
            pepper_bytes: pepper.secret,
            is_token_given: admin_token.is_some(),
            admin_token: admin_token.map_or(token.secret, |token| token.expose().to_owned()),
            started_at,
        })
    }

    pub(super) fn shells(&self, config: &Config) -> (Shell<Tenant>, Shell<Region>, Shell<Group>) {
        let settings = Settings {
            mailbox_len_max: config.actors.mailbox_len_max,
            idle_after: config.actors.idle_after,
            snapshot_every: config.actors.snapshot_every,
            arbiters: config.actors.arbiters,
            overdue_grace: overdue_grace(config.requests.reservation_grace),
            region: config.region.clone(),
            placement: self.cluster.clone().map(|cluster| cluster as Arc<dyn Placement>),
        };
        // One region has one actor.
        let region = Settings { arbiters: 1, ..settings.clone() };
        (self.shell(settings.clone()), self.shell(region), self.shell(settings))
    }

    fn shell<D: actors_core::Decider>(&self, settings: Settings) -> Shell<D> {
        let (log, snapshots) = (Arc::clone(&self.log), Arc::clone(&self.snapshots));
        Shell::start(log, snapshots, Arc::clone(&self.clock), Arc::clone(&self.ids), settings)
    }

    /// Starts the read models.
    pub(super) async fn fold(
        &self,
        tasks: &TaskTracker,
        stopped: &watch::Receiver<bool>,
        stop: &Stop,
    ) -> Result<(Readers, Readiness), StartError> {
        let (tenants, tenants_reader) = self.runner::<Tenants>().await?;
        let (billing, billing_reader) = self.runner::<Billing>().await?;
        let (groups, groups_reader) = self.runner::<Groups>().await?;
        let readers = Readers { tenants: tenants_reader, billing: billing_reader, groups: groups_reader };
        let readiness = Readiness::new(Arc::clone(&self.log), readers.clone(), self.cluster.clone(), stop.clone());
        start_fold(tasks, tenants, stopped.clone(), readiness.clone());
        start_fold(tasks, billing, stopped.clone(), readiness.clone());
        start_fold(tasks, groups, stopped.clone(), readiness.clone());
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
