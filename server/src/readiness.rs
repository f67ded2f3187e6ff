//! Whether this process should be sent requests, and why not. One answer for `/readyz`, the gRPC health service and
//! metrics.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    cluster::{Cluster, Following},
    platform::Readers,
    shutdown::Stop,
};
use events_journal::{EventLog, Health, Refusal};
use events_model::Position;

/// Most commits that the read models may be behind the log.
pub const LAG_COMMITS_MAX: u64 = 50_000;

/// The number of the page in `docs/errors` about a log that accepts nothing, if there is one.
pub(crate) const fn refusal_code(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::DiskFull => Some("E0003"),
        Refusal::ReadOnly => Some("E0004"),
        Refusal::DirectoryRemoved => Some("E0005"),
        Refusal::Disk(_) | Refusal::Closed | Refusal::Fenced | Refusal::Unreachable | Refusal::Stopped(_) => None,
    }
}

/// Knows whether everything a request needs is there.
#[derive(Debug, Clone)]
pub struct Readiness {
    log: Arc<dyn EventLog>,
    readers: Readers,
    /// Where the log ended when this began.
    begun: Position,
    projections_failed: Arc<AtomicBool>,
    caught_up: Arc<AtomicBool>,
    settled: Arc<AtomicBool>,
    cluster: Option<Arc<Cluster>>,
    stop: Stop,
}

impl Readiness {
    /// Watches these.
    pub(crate) fn new(log: Arc<dyn EventLog>, readers: Readers, cluster: Option<Arc<Cluster>>, stop: Stop) -> Self {
        let no = || Arc::new(AtomicBool::new(false));
        let begun = log.head_position();
        Self { log, readers, begun, projections_failed: no(), caught_up: no(), settled: no(), cluster, stop }
    }

    /// A read model has ended with an error.
    pub fn projection_failed(&self) {
        self.projections_failed.store(true, Ordering::Release);
    }

    /// Why not; empty = ready.
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.stop.is_draining() {
            obstacles.push("the server is shutting down".to_owned());
        }
        if let Health::Refusing(refusal) = &*self.log.watch_health().borrow() {
            let code = refusal_code(refusal).map(|code| format!("[{code}] ")).unwrap_or_default();
            obstacles.push(format!("{code}the log accepts no commits: {refusal}"));
        }
        if self.projections_failed.load(Ordering::Acquire) {
            obstacles.push("a read model has stopped".to_owned());
        }
        obstacles.extend(self.cluster.iter().flat_map(|cluster| cluster.obstacles()));
        let behind = self.log.head_position().0.saturating_sub(self.readers.tenants.position().0);
        // Until the first catch-up is over nothing may be missing; later, a lag is usual under load.
        let allowed = if self.caught_up.load(Ordering::Acquire) { LAG_COMMITS_MAX } else { 0 };
        if behind > allowed {
            obstacles.push(format!("the read models are {behind} commits behind"));
        } else {
            self.caught_up.store(true, Ordering::Release);
        }
        obstacles.extend(self.not_given_up());
        obstacles
    }

    /// A read model that was folded from the start shows what operators gave up until it has read their decisions and
    /// carried them out once.
    fn not_given_up(&self) -> Option<String> {
        if self.settled.load(Ordering::Acquire) {
            return None;
        }
        // Decisions may lie where it has not come to. The position is looked at first: both change together.
        let has_read_them = self.readers.positions().iter().all(|(_, position)| *position >= self.begun);
        if let Some(name) = self.readers.showing_given_up() {
            return Some(format!("the read model {name} shows events that were given up, it is being folded anew"));
        }
        if has_read_them {
            self.settled.store(true, Ordering::Release);
        }
        None
    }

    /// How far this node's replica is, if it is a node.
    pub fn following(&self) -> Option<Following> {
        self.cluster.as_ref().map(|cluster| cluster.following())
    }

    /// By how many microseconds this node's clock is ahead of the servers', if it is a node.
    pub fn clock_skew_us(&self) -> Option<i64> {
        self.cluster.as_ref().map(|cluster| cluster.clock_skew_us())
    }

    /// Whether the log accepts commits.
    pub fn log_accepts(&self) -> bool {
        *self.log.watch_health().borrow() == Health::Accepting
    }
}
