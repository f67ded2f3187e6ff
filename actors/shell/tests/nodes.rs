//! Two nodes over one log: commands go to the node that decides, whatever gets lost on the way, and states follow what
//! the other node decided.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use actors_core::tenant::{Rejection, Tenant};
use actors_shell::{
    Ask, Clock, LiveIds, Placement, Settings, Shell, Unavailable,
    remote::{Forwarded, NoReply, stream_of},
};
use events_journal::{Direction, EventLog, MemoryLog, SnapshotStore};
use events_model::{
    CommitId, DecisionContext, DurationUs, EpisodeId, Principal, RegionId, StreamId, TimestampUs, Version,
    tenant::Command,
};
use parking_lot::Mutex;
use tests_kit::{
    NOON,
    tenant::{admission, key, plan},
};

#[derive(Debug)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> TimestampUs {
        TimestampUs(self.0.fetch_add(1, Ordering::SeqCst))
    }

    fn observe(&self, seen: TimestampUs) {
        self.0.fetch_max(seen.0 + 1, Ordering::SeqCst);
    }
}

/// What the network does to the next question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Works,
    LosesQuestion,
    LosesReply,
    IsAway,
}

/// One node's view of who decides.
#[derive(Debug)]
struct Side {
    here: AtomicBool,
    /// Counts how often it came here.
    taken: AtomicU64,
    network: Mutex<Network>,
    other: Mutex<Option<Shell<Tenant>>>,
}

impl Placement for Side {
    fn epoch(&self, _stream: &StreamId) -> Option<u64> {
        self.here.load(Ordering::SeqCst).then(|| self.taken.load(Ordering::SeqCst))
    }

    fn forward<'a>(&'a self, stream: &'a StreamId, question: &'a [u8], _wait_max: Duration) -> Forwarded<'a> {
        Box::pin(async move {
            assert_eq!(stream_of(question).as_ref(), Some(stream));
            let other = self.other.lock().clone().unwrap();
            let network = *self.network.lock();
            if network != Network::IsAway {
                *self.network.lock() = Network::Works;
            }
            match network {
                Network::Works => Ok(other.answer(question).await),
                Network::LosesQuestion => Err(NoReply::Late),
                Network::LosesReply => {
                    other.answer(question).await;
                    Err(NoReply::Late)
                }
                Network::IsAway => Err(NoReply::Nobody),
            }
        })
    }
}

struct Node {
    shell: Shell<Tenant>,
    side: Arc<Side>,
}

struct Cluster {
    log: Arc<MemoryLog>,
    clock: Arc<TestClock>,
    nodes: [Node; 2],
    next: AtomicU64,
}

fn stream() -> StreamId {
    StreamId::new("tenant/acme").unwrap()
}

impl Cluster {
    /// Node 0 decides.
    async fn new() -> Self {
        Self::with_grace(Duration::ZERO).await
    }

    /// Node 0 decides, and what falls due waits for so long.
    async fn with_grace(grace: Duration) -> Self {
        let log = Arc::new(MemoryLog::new());
        let clock = Arc::new(TestClock(AtomicU64::new(NOON.0)));
        let nodes = [true, false].map(|here| {
            let side = Arc::new(Side {
                here: AtomicBool::new(here),
                taken: AtomicU64::new(1),
                network: Mutex::new(Network::Works),
                other: Mutex::new(None),
            });
            let mut settings = Settings::new(RegionId::new("local").unwrap());
            settings.overdue_grace = grace;
            settings.placement = Some(Arc::clone(&side) as Arc<dyn Placement>);
            let shell = Shell::start(
                Arc::clone(&log) as Arc<dyn EventLog>,
                Arc::clone(&log) as Arc<dyn SnapshotStore>,
                Arc::clone(&clock) as Arc<dyn Clock>,
                Arc::new(LiveIds::new(7, u64::from(here))),
                settings,
            );
            Node { shell, side }
        });
        *nodes[0].side.other.lock() = Some(nodes[1].shell.clone());
        *nodes[1].side.other.lock() = Some(nodes[0].shell.clone());
        let cluster = Self { log, clock, nodes, next: AtomicU64::new(0) };
        let register =
            Command::RegisterTenant { display_name: "Acme".to_owned(), plan: plan("pro"), zone: "local".to_owned() };
        cluster.ask(0, register).await.unwrap().unwrap();
        let issue = Command::IssueApiKey {
            key_id: key("main"),
            prefix: "fhk_acme_abcd".to_owned(),
            hash: [7; 32],
            label: String::new(),
        };
        cluster.ask(0, issue).await.unwrap().unwrap();
        cluster
    }

    fn command(&self, command: Command) -> Ask<Command> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        Ask {
            command,
            commit_id: CommitId::new(&format!("c-{number}")).unwrap(),
            idempotent: false,
            episode_id: EpisodeId::from_bytes([1; 16]),
            causation_id: None,
            principal: Principal::admin(),
            traceparent: String::new(),
            inputs: DecisionContext::default(),
        }
    }

    async fn ask(
        &self,
        node: usize,
        command: Command,
    ) -> Result<Result<actors_shell::Decided<Tenant>, actors_shell::Rejected<Tenant>>, Unavailable> {
        self.nodes[node].shell.actor(&stream()).ask(self.command(command)).await
    }

    fn move_to(&self, node: usize) {
        self.nodes[1 - node].side.here.store(false, Ordering::SeqCst);
        self.come_to(node);
    }

    fn come_to(&self, node: usize) {
        self.nodes[node].side.taken.fetch_add(1, Ordering::SeqCst);
        self.nodes[node].side.here.store(true, Ordering::SeqCst);
    }

    /// Lets time pass, and a node look what has fallen due; how many commits there are then.
    async fn later(&self, node: usize, seconds: u64) -> usize {
        self.clock.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
        self.nodes[node].shell.wake(&stream());
        // Behind it in the mailbox.
        self.nodes[node].shell.actor(&stream()).read(|_| ()).await.unwrap();
        self.commits()
    }

    fn commits(&self) -> usize {
        self.log.read_stream(&stream(), Version(1), Direction::Forward, 10_000).unwrap().len()
    }
}

fn admit(number: u8) -> Command {
    Command::AdmitRequest(admission(number, 10, 10))
}

#[tokio::test]
async fn a_command_asked_at_another_node_is_answered_as_if_it_were_decided_there() {
    let cluster = Cluster::new().await;
    let here = cluster.ask(0, admit(1)).await.unwrap().unwrap();
    let there = cluster.ask(1, admit(2)).await.unwrap().unwrap();
    assert_eq!(there.events.len(), here.events.len());
    assert_eq!((there.effects.len(), there.duplicate), (here.effects.len(), false));
    assert_eq!(there.position.0, here.position.0 + 1);
    assert_eq!(there.view.limit_requests, here.view.limit_requests);
}

#[tokio::test]
async fn a_rule_broken_at_the_deciding_node_is_a_rejection_at_the_asking_one() {
    let cluster = Cluster::new().await;
    let suspend = Command::Suspend { reason: "unpaid".to_owned() };
    cluster.ask(1, suspend).await.unwrap().unwrap();
    let rejected = cluster.ask(1, admit(1)).await.unwrap().unwrap_err();
    assert_eq!(rejected.rejection, Rejection::Suspended { reason: "unpaid".to_owned() });
}

#[tokio::test]
async fn a_lost_question_or_reply_has_one_effect() {
    let cluster = Cluster::new().await;
    for (number, network) in [(1, Network::LosesQuestion), (2, Network::LosesReply)] {
        let before = cluster.commits();
        *cluster.nodes[1].side.network.lock() = network;
        let decided = cluster.ask(1, admit(number)).await.unwrap().unwrap();
        assert_eq!(cluster.commits(), before + 1, "{network:?}");
        assert_eq!(decided.events.len(), 1, "{network:?}");
        assert_eq!(decided.duplicate, network == Network::LosesReply);
    }
}

#[tokio::test]
async fn a_rejection_is_not_believed_after_an_attempt_whose_outcome_nobody_knows() {
    let cluster = Cluster::new().await;
    cluster.ask(0, Command::Suspend { reason: "unpaid".to_owned() }).await.unwrap().unwrap();
    // Whoever got the first question may have decided it before, and publish that later.
    *cluster.nodes[1].side.network.lock() = Network::LosesQuestion;
    // The waiting is not waited for.
    tokio::time::pause();
    let error = cluster.ask(1, admit(1)).await.unwrap_err();
    assert!(matches!(error, Unavailable::Unreachable), "{error}");
    // The same where the stream came here meanwhile.
    *cluster.nodes[1].side.network.lock() = Network::LosesQuestion;
    let asked = cluster.ask(1, admit(2));
    let taken = async {
        while *cluster.nodes[1].side.network.lock() == Network::LosesQuestion {
            tokio::task::yield_now().await;
        }
        cluster.move_to(1);
    };
    let (answer, ()) = tokio::join!(asked, taken);
    assert!(matches!(answer, Err(Unavailable::Unreachable)), "{answer:?}");
}

#[tokio::test]
async fn a_node_that_takes_over_decides_on_what_the_other_had_decided() {
    let cluster = Cluster::new().await;
    // Both have a state of the tenant in memory.
    cluster.nodes[1].shell.actor(&stream()).read(|_| ()).await.unwrap();
    cluster.ask(0, Command::Suspend { reason: "unpaid".to_owned() }).await.unwrap().unwrap();
    cluster.move_to(1);
    let rejected = cluster.ask(1, admit(1)).await.unwrap().unwrap_err();
    assert_eq!(rejected.rejection, Rejection::Suspended { reason: "unpaid".to_owned() });
    cluster.ask(1, Command::Resume).await.unwrap().unwrap();
    cluster.move_to(0);
    cluster.ask(0, admit(2)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_read_at_a_node_that_does_not_decide_shows_what_its_log_shows() {
    let cluster = Cluster::new().await;
    let reader = cluster.nodes[1].shell.actor(&stream());
    for number in 1..=3 {
        cluster.ask(0, admit(number)).await.unwrap().unwrap();
        let open = reader.read(|state| state.open()).await.unwrap();
        assert_eq!(open, u32::from(number));
    }
}

#[tokio::test]
async fn without_a_deciding_node_a_caller_gets_an_error_it_may_retry() {
    let cluster = Cluster::new().await;
    *cluster.nodes[1].side.network.lock() = Network::IsAway;
    let before = cluster.commits();
    // The waiting is not waited for.
    tokio::time::pause();
    let error = cluster.ask(1, admit(1)).await.unwrap_err();
    assert!(matches!(error, Unavailable::Elsewhere), "{error}");
    assert_eq!(cluster.commits(), before);
}

#[tokio::test]
async fn a_command_that_waits_for_an_owner_is_decided_here_once_this_node_is_it() {
    let cluster = Cluster::new().await;
    cluster.nodes[0].side.here.store(false, Ordering::SeqCst);
    let asked = cluster.ask(1, admit(1));
    let taken = async {
        tokio::task::yield_now().await;
        cluster.nodes[1].side.here.store(true, Ordering::SeqCst);
    };
    let (decided, ()) = tokio::join!(asked, taken);
    decided.unwrap().unwrap();
}

#[tokio::test]
async fn what_fell_due_while_nobody_decided_waits_for_those_who_know_more() {
    let cluster = Cluster::with_grace(Duration::from_secs(10)).await;
    cluster.ask(0, admit(1)).await.unwrap().unwrap();
    let before = cluster.commits();
    cluster.nodes[0].side.here.store(false, Ordering::SeqCst);
    // Far beyond the deadline, and nobody speaks to the actor for a long time.
    assert_eq!(cluster.later(0, 3_600).await, before);
    cluster.clock.0.fetch_add(3_600_000_000, Ordering::SeqCst);
    cluster.come_to(0);
    assert_eq!(cluster.later(0, 0).await, before);
    assert_eq!(cluster.later(0, 9).await, before);
    assert_eq!(cluster.later(0, 2).await, before + 1);
}

#[tokio::test]
async fn what_falls_due_is_done_by_the_deciding_node_alone() {
    let cluster = Cluster::new().await;
    cluster.ask(0, admit(1)).await.unwrap().unwrap();
    // Both know the deadline; only one may act on it.
    cluster.nodes[1].shell.actor(&stream()).read(|_| ()).await.unwrap();
    cluster.move_to(1);
    let before = cluster.commits();
    cluster.clock.0.fetch_add(DurationUs(3_600_000_000).0, Ordering::SeqCst);
    cluster.nodes[0].shell.wake(&stream());
    cluster.nodes[0].shell.actor(&stream()).read(|_| ()).await.unwrap();
    assert_eq!(cluster.commits(), before);
    cluster.nodes[1].shell.wake(&stream());
    let mut head = cluster.log.watch_head();
    let expired = head.wait_for(|_| cluster.commits() > before);
    tokio::time::timeout(Duration::from_secs(10), expired).await.unwrap().unwrap();
}
