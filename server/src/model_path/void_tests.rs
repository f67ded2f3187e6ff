//! Admissions whose outcome nobody knew, on a log that keeps or loses what it does not acknowledge.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use actors_core::{plan::built_in, route::Route, tenant::Tenant};
use actors_shell::{Ask, Clock, Ids, LiveClock, LiveIds, Settings, Shell};
use events_journal::{
    AppendError, Direction, EventLog, Filter, Health, MemoryLog, Page, ReadError, Receipt, Recorded, SnapshotStore,
};
use events_model::{
    Commit, CommitId, DecisionContext, EpisodeId, KeyId, Position, Principal, RegionId, RequestId, StreamId, TenantId,
    TimestampUs, Tokens, Version,
    tenant::{AdmitRequest, Command, Price},
};
use gateway::{
    openai::{ChatRequest, RequestLimits},
    upstream::{Upstream, UpstreamSettings},
};
use tokio::sync::watch;

use super::{Completion, Failed, Failure, ModelPath, Parts, Routing, Submission, Surface, admit, void};
use crate::{
    auth::{ApiKey, Pepper},
    metrics::Metrics,
    shutdown::Stop,
    simulate::{Options, Simulator},
};

/// What becomes of the next append.
const FINE: u8 = 0;
/// It is written, and nobody is told.
const WRITTEN: u8 = 1;
/// It is not written, and nobody is told.
const LOST: u8 = 2;
/// The same with all that come behind it.
const CUT: u8 = 3;
const IN_FLIGHT_MAX: usize = 8;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Doubtful {
    log: MemoryLog,
    next: AtomicU8,
}

impl EventLog for Doubtful {
    fn append(&self, expected: Version, commit: Commit) -> Receipt {
        let unknown = || Receipt::ready(Err(AppendError::Unknown(Arc::new(io::Error::other("the line was cut")))));
        match self.next.swap(FINE, Ordering::SeqCst) {
            WRITTEN => {
                drop(self.log.append(expected, commit));
                unknown()
            }
            LOST => unknown(),
            CUT => {
                self.next.store(CUT, Ordering::SeqCst);
                unknown()
            }
            _ => self.log.append(expected, commit),
        }
    }

    fn read_stream(
        &self,
        stream: &StreamId,
        from: Version,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Recorded>, ReadError> {
        self.log.read_stream(stream, from, direction, limit)
    }

    fn read_log(&self, from: Position, direction: Direction, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
        self.log.read_log(from, direction, filter, limit)
    }

    fn read_episode(&self, episode: EpisodeId, limit: usize) -> Result<Vec<Recorded>, ReadError> {
        self.log.read_episode(episode, limit)
    }

    fn find_commit(&self, stream: &StreamId, commit_id: &CommitId) -> Result<Option<Recorded>, ReadError> {
        self.log.find_commit(stream, commit_id)
    }

    fn head(&self, stream: &StreamId) -> Result<Version, ReadError> {
        self.log.head(stream)
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.log.watch_head()
    }

    fn watch_health(&self) -> watch::Receiver<Health> {
        self.log.watch_health()
    }
}

struct World {
    log: Arc<Doubtful>,
    path: ModelPath,
    key: ApiKey,
    simulator: Simulator,
}

fn ask(command: Command, id: &str) -> Ask<Command> {
    Ask {
        command,
        commit_id: CommitId::new(id).unwrap(),
        idempotent: true,
        episode_id: EpisodeId::from_bytes([1; 16]),
        causation_id: None,
        principal: Principal::admin(),
        traceparent: String::new(),
        inputs: DecisionContext::default(),
    }
}

fn routing(simulator: &Simulator, grace: Duration) -> Routing {
    let mut settings = UpstreamSettings::new("sim", format!("http://{}/v1", simulator.address()));
    // Without a grace, what is held lasts just as long as a call.
    settings.usage_lookup_path = (!grace.is_zero()).then(|| "/v1/usage/{request_id}".to_owned());
    let route = Route {
        model: "sim-small".to_owned(),
        upstream: "sim".to_owned(),
        upstream_model: "sim-small".to_owned(),
        completion_tokens_default: 16,
        completion_tokens_max: 64,
        price: Price::default(),
    };
    Routing::new(vec![route], vec![Upstream::new(settings).unwrap()], grace)
}

/// Registers the tenant with a key.
async fn register(tenants: &Shell<Tenant>, pepper: &Pepper) -> ApiKey {
    let tenant = TenantId::new("acme").unwrap();
    let key = ApiKey::generate(&tenant).unwrap();
    let register = Command::RegisterTenant {
        display_name: "Acme".to_owned(),
        plan: built_in("pro").unwrap(),
        zone: "local".to_owned(),
    };
    let issue = Command::IssueApiKey {
        key_id: KeyId::new("main").unwrap(),
        prefix: key.prefix(),
        hash: key.tag(pepper).to_bytes(),
        label: String::new(),
    };
    for (command, id) in [(register, "register"), (issue, "issue")] {
        tenants.actor(&StreamId::tenant(&tenant)).ask(ask(command, id)).await.unwrap().unwrap();
    }
    key
}

impl World {
    async fn new() -> Self {
        Self::with_grace(Duration::from_secs(60)).await
    }

    async fn with_grace(grace: Duration) -> Self {
        let simulator = Simulator::start(Options::default(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        let log = Arc::new(Doubtful::default());
        let (clock, ids): (Arc<dyn Clock>, Arc<dyn Ids>) =
            (Arc::new(LiveClock::default()), Arc::new(LiveIds::new(7, 7)));
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(MemoryLog::new());
        let events = Arc::clone(&log) as Arc<dyn EventLog>;
        let settings = Settings::new(RegionId::new("local").unwrap());
        let tenants = Shell::start(Arc::clone(&events), snapshots, Arc::clone(&clock), Arc::clone(&ids), settings);
        let pepper = Pepper::new(&[3; 32]);
        let key = register(&tenants, &pepper).await;
        let path = ModelPath::new(Parts {
            tenants,
            log: events,
            clock,
            ids,
            pepper,
            routing: routing(&simulator, grace),
            inputs: DecisionContext::default(),
            limits: RequestLimits::default(),
            in_flight_max: IN_FLIGHT_MAX,
            cluster: None,
            metrics: Metrics::new().unwrap(),
            stop: Stop::default(),
        });
        Self { log, path, key, simulator }
    }

    /// A request under an idempotency key.
    async fn request(&self, key: Option<&str>) -> (RequestId, Result<Completion, Failed>) {
        let body = br#"{"model":"sim-small","messages":[{"role":"user","content":"Hi"}],"max_tokens":8}"#;
        let request_id = self.path.new_request_id();
        let submission = Submission {
            request_id,
            caller: self.path.authenticate(Some(self.key.reveal())).await.unwrap(),
            request: ChatRequest::parse(body, &RequestLimits::default()).unwrap(),
            idempotency_key: key.map(str::to_owned),
            traceparent: None,
            surface: Surface::Http,
        };
        (request_id, self.path.complete(submission).await)
    }

    fn stream(&self) -> StreamId {
        StreamId::tenant(self.key.tenant())
    }

    async fn open(&self) -> u32 {
        let actor = self.path.parts().tenants.actor(&self.stream());
        actor.read(actors_core::tenant::State::open).await.unwrap()
    }

    async fn until_nothing_is_open(&self) {
        let waiting = async {
            while self.open().await > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }

    async fn until_there_is(&self, id: &CommitId) {
        let waiting = async {
            while self.log.find_commit(&self.stream(), id).unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_works_again_after_an_admission_that_nobody_was_told_of() {
    for fate in [WRITTEN, LOST] {
        let world = World::new().await;
        for _ in 0..2 {
            world.log.next.store(fate, Ordering::SeqCst);
            let (_, answer) = world.request(Some("order-7")).await;
            assert!(matches!(*answer.unwrap_err().failure, Failure::Unavailable(_)));
            world.until_nothing_is_open().await;
        }
        let (served, answer) = world.request(Some("order-7")).await;
        answer.unwrap();
        // Now it is used up.
        let (_, answer) = world.request(Some("order-7")).await;
        let failed = answer.unwrap_err();
        assert!(matches!(*failed.failure, Failure::Duplicate { first } if first == served), "{:?}", failed.failure);
        assert_eq!(world.open().await, 0);
        world.simulator.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admission_that_comes_after_it_was_made_void_holds_nothing() {
    let world = World::new().await;
    for key in [None, Some("order-7")] {
        world.log.next.store(LOST, Ordering::SeqCst);
        let (request_id, answer) = world.request(key).await;
        answer.unwrap_err();
        let id = void::admission_id(request_id, key, 1).unwrap();
        world.until_there_is(&id).await;
        // The question of the first try was only late.
        let late = Command::AdmitRequest(AdmitRequest {
            request_id,
            key_id: KeyId::new("main").unwrap(),
            model: "sim-small".to_owned(),
            upstream: "sim".to_owned(),
            upstream_model: "sim-small".to_owned(),
            prompt_tokens_max: Tokens(8),
            completion_tokens_max: Tokens(8),
            price: Price::default(),
            deadline: TimestampUs(u64::MAX),
            streaming: false,
            served_by: String::new(),
        });
        let actor = world.path.parts().tenants.actor(&world.stream());
        let decided = actor.ask(ask(late, id.as_str())).await.unwrap().unwrap();
        assert!(decided.duplicate && decided.events.iter().all(|event| admit::recorded(event).is_none()));
        assert_eq!(world.open().await, 0);
    }
    world.simulator.shutdown().await;
}

#[tokio::test]
async fn what_is_to_be_made_void_takes_the_place_of_its_request() {
    let world = World::new().await;
    world.log.next.store(CUT, Ordering::SeqCst);
    for _ in 0..IN_FLIGHT_MAX {
        let (_, failed) = world.request(None).await;
        let failure = failed.unwrap_err().failure;
        assert!(matches!(*failure, Failure::Unavailable(_)), "{failure}");
    }
    let (_, failed) = world.request(None).await;
    let failure = failed.unwrap_err().failure;
    assert!(matches!(*failure, Failure::TooManyInFlight { limit: IN_FLIGHT_MAX }), "{failure}");
    world.log.next.store(FINE, Ordering::SeqCst);
    let served = async {
        while world.request(None).await.1.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
    assert_eq!(world.open().await, 0);
    world.simulator.shutdown().await;
}

#[tokio::test]
async fn an_upstream_is_not_called_when_its_answer_may_come_after_what_is_held_was_released() {
    let world = World::with_grace(Duration::ZERO).await;
    let (_, failed) = world.request(None).await;
    let failure = failed.unwrap_err().failure;
    assert!(matches!(*failure, Failure::Unavailable(actors_shell::Unavailable::Elsewhere)), "{failure}");
    assert_eq!(world.simulator.stats().requests, 0);
    world.until_nothing_is_open().await;
    world.simulator.shutdown().await;
}
