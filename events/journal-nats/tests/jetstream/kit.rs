//! What the tests share: servers, a runtime, engines on streams of their own, waiting for conditions.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use events_journal::{
    AppendError, Appended, Direction, EventLog, Filter, MemoryLog, Recorded, Replica, SnapshotStore,
    contract::{self, fixture::tenant},
};
use events_journal_nats::{Credentials, JetStreamLog, OpenError, Options, subject::stream_name};
use events_model::{RegionId, Version};
use tests_kit::nats::{NatsCluster, NatsServer, PASSWORD, USER};
use tokio::runtime::{Builder, Runtime};

/// Longest wait for something that must come true.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// A runtime and the addresses of servers.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    servers: Vec<String>,
    replicas: usize,
    regions: AtomicUsize,
}

pub(crate) fn credentials() -> Credentials {
    Credentials::Password { user: USER.to_owned(), password: PASSWORD.to_owned() }
}

impl World {
    pub(crate) fn new(servers: Vec<String>, replicas: usize) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, servers, replicas, regions: AtomicUsize::new(0) }
    }

    pub(crate) fn of_one(server: &NatsServer) -> Self {
        Self::new(vec![server.url()], 1)
    }

    pub(crate) fn of_three(cluster: &NatsCluster) -> Self {
        Self::new(cluster.urls(), 3)
    }

    /// A region that no other call gets.
    pub(crate) fn next_region(&self) -> RegionId {
        RegionId::new(&format!("r-{}", self.regions.fetch_add(1, Ordering::Relaxed))).unwrap()
    }

    /// Options with a region that no other call gets, and one shard.
    pub(crate) fn fresh(&self) -> Options {
        Options {
            servers: self.servers.clone(),
            credentials: credentials(),
            region: self.next_region(),
            replicas: self.replicas,
            shards: 1,
            ..Options::default()
        }
    }

    pub(crate) fn try_open(
        &self,
        options: &Options,
        replica: Arc<dyn Replica>,
        checkpoints: Arc<dyn SnapshotStore>,
    ) -> Result<Arc<JetStreamLog>, OpenError> {
        let handle = self.runtime.handle().clone();
        self.runtime.block_on(JetStreamLog::open(options.clone(), replica, checkpoints, handle)).map(Arc::new)
    }

    /// An engine whose replica keeps the checkpoints too.
    pub(crate) fn open<R: Replica + SnapshotStore>(&self, options: &Options, replica: &Arc<R>) -> Arc<JetStreamLog> {
        self.try_open(options, Arc::<R>::clone(replica), Arc::<R>::clone(replica)).unwrap()
    }

    /// Why it does not open.
    pub(crate) fn refused(&self, options: &Options) -> OpenError {
        let memory = Arc::new(MemoryLog::new());
        self.try_open(options, Arc::<MemoryLog>::clone(&memory), memory).unwrap_err()
    }

    /// An engine with an empty replica in memory.
    pub(crate) fn open_memory(&self, options: &Options) -> Arc<JetStreamLog> {
        self.open(options, &Arc::new(MemoryLog::new()))
    }

    /// A client beside the engines, as an operator or an intruder has one.
    pub(crate) fn client(&self) -> async_nats::Client {
        let options = async_nats::ConnectOptions::new().user_and_password(USER.to_owned(), PASSWORD.to_owned());
        self.runtime.block_on(options.connect(&self.servers)).unwrap()
    }

    /// The same for JetStream.
    pub(crate) fn context(&self) -> jetstream::Context {
        let client = self.client();
        let _entered = self.runtime.enter();
        jetstream::new(client)
    }

    /// Waits until a condition on a watched value holds.
    pub(crate) fn wait<T: Send + Sync + 'static>(
        &self,
        mut watched: tokio::sync::watch::Receiver<T>,
        holds: impl FnMut(&T) -> bool,
    ) {
        let waited = async { tokio::time::timeout(WAIT_MAX, watched.wait_for(holds)).await.map(|held| held.is_ok()) };
        assert_eq!(self.runtime.block_on(waited), Ok(true), "the condition did not come true within {WAIT_MAX:?}");
    }

    /// Ends an engine and waits for its tasks.
    pub(crate) fn close(&self, log: &JetStreamLog) {
        self.runtime.block_on(log.close());
    }

    pub(crate) fn take(&self, log: &JetStreamLog, shard: u32) {
        self.runtime.block_on(log.take(shard)).unwrap();
    }

    /// How many messages the stream of a region holds, asked beside the engines.
    pub(crate) fn messages(&self, options: &Options) -> u64 {
        let context = self.context();
        let stream = self.runtime.block_on(context.get_stream(stream_name(&options.region))).unwrap();
        stream.cached_info().state.messages
    }

    /// Waits until the replica of a log has everything that the stream has.
    pub(crate) fn catch_up(&self, log: &JetStreamLog, sequence: u64) {
        self.wait(log.watch_applied(), |applied| *applied >= sequence);
    }
}

/// Appends one small commit to the stream of a tenant.
pub(crate) fn append<L: EventLog>(log: &L, name: &str, version: u64, id: &str) -> Result<Appended, AppendError> {
    let commit = contract::commit(&tenant(name), Version(version), id, 1, 60);
    contract::settle(log.append(Version(version - 1), commit))
}

/// Everything that a log holds.
pub(crate) fn all<L: EventLog>(log: &Arc<L>) -> Vec<Recorded> {
    let log: Arc<dyn EventLog> = Arc::<L>::clone(log);
    contract::fixture::read_all(&log, Direction::Forward, &Filter::default(), 1_000)
}

/// A stream as a thread of a client sees it: commit after commit, decided again on every failure until it is there,
/// for as long as it is told to go on. Returns the answers, by commit id.
pub(crate) fn persist<L: EventLog>(
    log: &L,
    name: &str,
    going_on: &AtomicBool,
    done: &AtomicUsize,
) -> Vec<(String, Appended)> {
    let stream = tenant(name);
    let mut answers = Vec::new();
    for n in 0.. {
        if !going_on.load(Ordering::Acquire) {
            break;
        }
        let id = format!("{name}-{n}");
        loop {
            let version = log.head(&stream).unwrap().0 + 1;
            match append(log, name, version, &id) {
                Ok(appended) => {
                    answers.push((id, appended));
                    done.fetch_add(1, Ordering::AcqRel);
                    break;
                }
                Err(error) => {
                    assert!(!matches!(error, AppendError::Invalid { .. }), "{error}");
                    std::thread::yield_now();
                }
            }
        }
    }
    answers
}

/// Every acknowledged commit is in the log once, where its answer says, and each stream is whole and in order.
pub(crate) fn assert_exactly_once<L: EventLog>(log: &Arc<L>, answers: &[(String, Appended)]) {
    let stored = all(log);
    let ids: Vec<_> = stored.iter().map(|one| one.view().unwrap().commit_id.to_owned()).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "a commit is there twice");
    assert_eq!(ids.len(), answers.len());
    for (id, appended) in answers {
        let index = usize::try_from(appended.position.0).unwrap() - 1;
        assert_eq!(&ids[index], id);
        assert_eq!(stored[index].view().unwrap().last_version(), appended.version);
    }
    let mut heads = HashMap::new();
    for one in &stored {
        let view = one.view().unwrap();
        let head = heads.entry(view.stream.to_owned()).or_insert(0);
        assert_eq!(view.first_version, *head + 1);
        *head = view.last_version().0;
    }
}
