//! What an earlier process left behind: requests that were admitted and not settled.
//!
//! Every reservation that was open when this process started is an orphan: whoever served it is gone. Its upstream is
//! asked what it billed and the request settles for that; where there is nobody to ask, the reservation's deadline
//! releases it. Nothing is called again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use actors_shell::{Placement as _, Unavailable};
use events_model::{
    RequestId, StreamId, TimestampUs,
    tenant::{Outcome, TEXT_BYTES_MAX},
};
use gateway::upstream::Upstream;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::{
    cluster::{Cluster, Runs},
    model_path::{Closing, ModelPath, Recording, USAGE_LOOKUP_MAX, chain, look_up, settle},
    platform::Readers,
    shutdown::Stop,
};

/// One upstream is asked about so many requests at once.
const LOOKUPS_MAX: usize = 64;
/// An upstream that knows nothing of a request is asked again after this: when the old process was killed, its request
/// may still have been on its way.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// First and longest pause between two attempts to reach an upstream or to load a tenant.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often a node looks for what is open beyond its deadline; well within the grace in which that is kept.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// How long a node must be seen to be gone before what it served is settled by others; longer than it takes to read a
/// node's newest word.
const GONE_FOR: Duration = Duration::from_secs(2);

/// Places for questions to each upstream: one that does not answer keeps no other's orphans waiting.
#[derive(Debug, Default)]
struct Slots(BTreeMap<String, Arc<Semaphore>>);

impl Slots {
    fn of(&mut self, upstream: &str) -> Arc<Semaphore> {
        let slots = self.0.entry(upstream.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(LOOKUPS_MAX)));
        Arc::clone(slots)
    }
}

/// A request that nobody serves any more.
#[derive(Debug, Clone)]
struct Orphan {
    stream: StreamId,
    request_id: RequestId,
    upstream: String,
    /// Its upstream's word that nothing is billed is final from here; before, whoever was taken for dead may only stand
    /// still or be cut off, and call the upstream yet.
    nothing_from: TimestampUs,
    deadline: TimestampUs,
}

/// Finds the orphans and settles them, each in a task of its own.
pub(crate) async fn run(path: ModelPath, readers: Readers, started_at: TimestampUs, tasks: TaskTracker, stop: Stop) {
    let head = path.parts().log.head_position();
    // A day is for ever here: the drain ends the wait.
    if let Err(late) = readers.tenants.wait_for(head, Duration::from_secs(86_400)).await {
        warn!(%late, "orphans cannot be found, their deadlines release them only when their tenants are used");
        return;
    }
    let mut streams: Vec<_> = readers.tenants.read(|state, _| state.open_streams().map(|(stream, _)| stream).collect());
    let mut slots = Slots::default();
    let mut pause = RETRY_FIRST;
    while !streams.is_empty() {
        let mut failed = Vec::new();
        for stream in streams {
            // From here its deadlines are watched.
            path.parts().tenants.wake(&stream);
            let orphans = match orphans(&path, &stream, started_at).await {
                Ok(orphans) => orphans,
                Err(error) => {
                    warn!(%stream, error = chain(&error, TEXT_BYTES_MAX), "tenant cannot be loaded, will retry");
                    failed.push(stream);
                    continue;
                }
            };
            info!(%stream, count = orphans.len(), "requests of an earlier process are open");
            for orphan in orphans {
                let slots = slots.of(&orphan.upstream);
                let recovering = recover(path.clone(), orphan, slots);
                let drain = stop.drain.clone();
                tasks.spawn(async move { drain.run_until_cancelled_owned(recovering).await });
            }
        }
        streams = failed;
        if !streams.is_empty() {
            sleep(pause).await;
            pause = pause.saturating_mul(2).min(RETRY_MAX);
        }
    }
}

/// Where other nodes serve requests, too: settles what was served by a node that is gone, and what is still open at its
/// deadline, by when whoever served it has given up, for all tenants that are decided here. Ends with `taken`, which
/// tells of tenants that came here.
pub(crate) async fn sweep(
    path: ModelPath,
    readers: Readers,
    cluster: Arc<Cluster>,
    mut taken: mpsc::Receiver<()>,
    (tasks, stop): (TaskTracker, Stop),
) {
    let in_work = Arc::new(Mutex::new(HashSet::new()));
    let mut slots = Slots::default();
    // Requests whose nodes are gone, and since when they are seen to be.
    let mut gone = HashMap::new();
    loop {
        if matches!(timeout(SWEEP_EVERY, taken.recv()).await, Ok(None)) {
            // The leases were closed: nothing is decided here any more.
            return;
        }
        let here = |stream: &StreamId| cluster.is_here(stream);
        let streams: Vec<_> =
            readers.tenants.read(|state, _| state.open_streams().map(|(stream, _)| stream).filter(here).collect());
        let (runs, mut still_gone) = (cluster.runs(), HashMap::new());
        for stream in streams {
            // Reading the state makes its actor watch the deadlines.
            let left = match left_over(&path, &stream, (&runs, &gone, &mut still_gone)).await {
                Ok(left) => left,
                Err(error) => {
                    warn!(%stream, error = chain(&error, TEXT_BYTES_MAX), "tenant cannot be loaded, will retry");
                    continue;
                }
            };
            for orphan in left {
                let request_id = orphan.request_id;
                if !in_work.lock().insert(request_id) {
                    continue;
                }
                let slots = slots.of(&orphan.upstream);
                let recovering = recover(path.clone(), orphan, slots);
                let (drain, in_work) = (stop.drain.clone(), Arc::clone(&in_work));
                tasks.spawn(async move {
                    drain.run_until_cancelled_owned(recovering).await;
                    in_work.lock().remove(&request_id);
                });
            }
        }
        gone = still_gone;
    }
}

/// The open reservations of a tenant whose deadline has passed, or that were served by a run of a node that is gone:
/// seen to be for a while, because what is read of other nodes may be older than the admission.
async fn left_over(
    path: &ModelPath,
    stream: &StreamId,
    (runs, gone, still_gone): (&Runs, &HashMap<RequestId, TimestampUs>, &mut HashMap<RequestId, TimestampUs>),
) -> Result<Vec<Orphan>, Unavailable> {
    let of = stream.clone();
    let find = move |state: &actors_core::tenant::State| -> Vec<(Orphan, String)> {
        let orphans = state.reservations.iter().map(|(request_id, held)| {
            let (request_id, upstream, deadline) = (*request_id, held.upstream.clone(), held.deadline);
            let orphan = Orphan { stream: of.clone(), request_id, upstream, nothing_from: deadline, deadline };
            (orphan, held.served_by.clone())
        });
        orphans.collect()
    };
    let open = path.parts().tenants.actor(stream).read(find).await?;
    let (now, grace) = (path.parts().clock.now(), path.routing().overdue_grace());
    let is_left = |(orphan, served_by): &(Orphan, String)| {
        let is_gone = runs.is_gone(served_by) && {
            let since = *gone.get(&orphan.request_id).unwrap_or(&now);
            still_gone.insert(orphan.request_id, since);
            u128::from(now.since(since).0) >= GONE_FOR.as_micros()
        };
        is_gone || orphan.deadline <= now
    };
    let left = open.into_iter().filter(is_left).collect::<Vec<_>>();
    // They are kept a while beyond their deadlines for this.
    Ok(left.into_iter().map(|(orphan, _)| Orphan { deadline: orphan.deadline.after(grace), ..orphan }).collect())
}

/// The open reservations of a tenant that were made before this process started.
async fn orphans(path: &ModelPath, stream: &StreamId, started_at: TimestampUs) -> Result<Vec<Orphan>, Unavailable> {
    let of = stream.clone();
    let ask_until = started_at.after(path.routing().overdue_grace());
    let find = move |state: &actors_core::tenant::State| {
        let open = state.reservations.iter().filter(|(_, held)| held.admitted_at < started_at);
        let orphans = open.map(|(request_id, held)| Orphan {
            stream: of.clone(),
            request_id: *request_id,
            upstream: held.upstream.clone(),
            // Only one process at a time has this directory: the earlier one is dead.
            nothing_from: TimestampUs::ZERO,
            // Overdue ones are kept a while after a start for this.
            deadline: held.deadline.max(ask_until),
        });
        orphans.collect()
    };
    path.parts().tenants.actor(stream).read(find).await
}

/// Asks until the upstream answers or the reservation has ended, and settles for what it says.
async fn recover(path: ModelPath, orphan: Orphan, slots: Arc<Semaphore>) {
    let Orphan { stream, request_id, upstream, nothing_from, deadline } = orphan;
    let parts = path.parts();
    let askable = |upstream: &&Upstream| upstream.settings().usage_lookup_path.is_some();
    let Some(upstream) = path.routing().upstream(&upstream).filter(askable) else { return };
    let mut pause = RETRY_FIRST;
    let mut was_unknown = false;
    let usage = loop {
        // For the question alone: pauses and the settlement take nobody's place.
        let asked = {
            let Ok(_slot) = slots.acquire().await else { return };
            look_up(parts, upstream, request_id, USAGE_LOOKUP_MAX).await
        };
        match asked {
            Ok(usage) if usage.prompt_tokens.0 == 0 && usage.completion_tokens.0 == 0 && !was_unknown => {
                was_unknown = true;
                sleep(ASK_AGAIN).await;
            }
            Ok(usage) => break usage,
            Err(error) if parts.clock.now() >= deadline => {
                let error = chain(&error, TEXT_BYTES_MAX);
                warn!(%stream, %request_id, error, "usage of an orphan unknown at its deadline");
                parts.metrics.recovered.with_label_values(&["expired"]).inc();
                return;
            }
            Err(error) => {
                let error = chain(&error, TEXT_BYTES_MAX);
                info!(%stream, %request_id, error, "upstream does not say what an orphan used, will ask again");
                sleep(pause).await;
                pause = pause.saturating_mul(2).min(RETRY_MAX);
            }
        }
    };
    let is_nothing = usage.prompt_tokens.0 == 0 && usage.completion_tokens.0 == 0;
    if is_nothing && parts.clock.now() < nothing_from {
        // The next sweep finds it again.
        return;
    }
    let label = if is_nothing { "nothing" } else { "billed" };
    let detail = "settled after a restart".to_owned();
    let closing = Closing { detail, ..Closing::new(Outcome::Recovered, usage) };
    let recording = Recording {
        handle: parts.tenants.actor(&stream),
        cause: None,
        traceparent: String::new(),
        inputs: parts.inputs,
        deadline,
        component: "recovery",
    };
    if settle(parts, &recording, closing.settlement(request_id)).await.is_ok() {
        parts.metrics.recovered.with_label_values(&[label]).inc();
    }
}
