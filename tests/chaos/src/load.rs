//! Clients that ask one node after the other until they are answered, and how long they had to wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::clients::{Http, Outcome};

/// Pause of a client that was told to try again.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What clients have seen.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: Mutex<BTreeSet<String>>,
    lost: AtomicUsize,
    retries: AtomicUsize,
    tenants: Mutex<BTreeMap<String, Tenant>>,
    /// Longest time between two answers to one tenant since it was last asked for.
    gap: Mutex<Duration>,
    /// The moment of `Load::mark`.
    from: Mutex<Option<Instant>>,
}

/// One tenant's answers.
#[derive(Debug, Clone, Copy)]
struct Tenant {
    /// When the last one came.
    answered: Instant,
    /// When the youngest request that is answered was sent.
    begun: Instant,
    /// When the first answer came to a request that was sent after `Load::mark`.
    first: Option<Instant>,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

#[expect(clippy::disallowed_methods, reason = "the time without service is measured")]
fn now() -> Instant {
    Instant::now()
}

impl Seen {
    fn answered(&self, key: &str, begun: Instant) {
        let answered = now();
        let from = *self.from.lock();
        let mut tenants = self.tenants.lock();
        let tenant = tenants.entry(key.to_owned()).or_insert(Tenant { answered, begun, first: None });
        let silence = answered.saturating_duration_since(tenant.answered);
        (tenant.answered, tenant.begun) = (answered, tenant.begun.max(begun));
        if from.is_some_and(|from| begun >= from) {
            tenant.first.get_or_insert(answered);
        }
        drop(tenants);
        let mut gap = self.gap.lock();
        *gap = (*gap).max(silence);
    }
}

impl Load {
    /// Starts clients that ask one request after the other, each at one node after the other.
    pub fn start(clients: usize, keys: &[String], targets: &[SocketAddr]) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            let key = keys.get(client % keys.len().max(1)).cloned().unwrap_or_default();
            let targets = targets.to_vec();
            tasks.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Acquire) {
                    number += 1;
                    ask(&seen, &key, &targets, client, number).await;
                }
            });
        }
        Self { seen, stop, tasks }
    }

    /// Requests that were answered so far.
    pub fn answered(&self) -> usize {
        self.seen.acknowledged.lock().len()
    }

    /// Waits until so many more were answered.
    ///
    /// # Errors
    /// They are not within a minute.
    pub async fn more(&self, count: usize) -> Result<()> {
        let wanted = self.answered() + count;
        let wait = async {
            while self.answered() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.context("wait for answers")
    }

    /// Something happens now: silences count from here.
    pub fn mark(&self) {
        // In this order no answer to an older request is taken for one to a younger.
        *self.seen.from.lock() = None;
        self.seen.tenants.lock().values_mut().for_each(|tenant| tenant.first = None);
        *self.seen.gap.lock() = Duration::ZERO;
        *self.seen.from.lock() = Some(now());
    }

    /// Waits until every tenant gets the answer to a request that is sent from now on. Returns the longest time since
    /// `mark` that one was without service: from the mark to the first answer, or between two answers, whichever is
    /// longer. An answer to a request that was sent before the mark, and may have been decided then, is not the first.
    ///
    /// # Errors
    /// One gets none within a minute.
    pub async fn silence(&self) -> Result<Duration> {
        let called = now();
        let wait = async {
            while self.seen.tenants.lock().values().any(|tenant| tenant.begun < called) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.context("wait for every tenant's answer")?;
        let from = *self.seen.from.lock();
        let tenants = self.seen.tenants.lock();
        let without = |tenant: &Tenant| Some(tenant.first?.saturating_duration_since(from?));
        let longest = tenants.values().filter_map(without).max().unwrap_or_default();
        drop(tenants);
        Ok(longest.max(*self.seen.gap.lock()))
    }

    /// Ends; returns the idempotency keys of what was answered, how many were never, and how often it was tried again.
    pub async fn end(mut self) -> (BTreeSet<String>, usize, usize) {
        self.stop.store(true, Ordering::Release);
        while self.tasks.join_next().await.is_some() {}
        let acknowledged = std::mem::take(&mut *self.seen.acknowledged.lock());
        (acknowledged, self.seen.lost.load(Ordering::Acquire), self.seen.retries.load(Ordering::Acquire))
    }
}

/// One request, with the same idempotency key at every try.
async fn ask(seen: &Seen, key: &str, targets: &[SocketAddr], client: usize, number: usize) {
    let (id, begun) = (format!("client-{client}-{number}"), now());
    // A minute of trying.
    for attempt in 0..1_200 {
        let target = targets.get((client + attempt) % targets.len().max(1)).copied();
        let Some(target) = target else { return };
        match Http::new(target).keyed_chat(key, &id).await {
            Outcome::Status(200) => {
                seen.acknowledged.lock().insert(id);
                return seen.answered(key, begun);
            }
            // An earlier try was admitted and its answer got lost.
            Outcome::Status(409) => return seen.answered(key, begun),
            Outcome::Status(_) | Outcome::Broken => {
                seen.retries.fetch_add(1, Ordering::AcqRel);
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
    seen.lost.fetch_add(1, Ordering::AcqRel);
}
