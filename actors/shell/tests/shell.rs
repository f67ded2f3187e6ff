//! The shell over the in-memory log: answers wait for durability, failures void what rests on them, time passes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actors_core::tenant::{Rejection, Tenant};
use actors_shell::{Ask, Clock, Decided, Handle, LiveIds, Rejected, Settings, Shell, Unavailable};
use events_journal::{AppendError, Direction, EventLog, Health, MemoryLog, Refusal, SnapshotStore};
use events_model::{
    CommitId, DecisionContext, DurationUs, EpisodeId, Principal, RegionId, StreamId, TimestampUs, Version,
    tenant::{Command, RefusalReason},
};
use tests_kit::{
    NOON,
    tenant::{admission, key, plan, settlement},
};

/// A clock that stands still but for the ticks that keep its times apart, until it is moved.
#[derive(Debug)]
struct TestClock(AtomicU64);

impl TestClock {
    fn pass(&self, span: DurationUs) {
        self.0.fetch_add(span.0, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> TimestampUs {
        TimestampUs(self.0.fetch_add(1, Ordering::SeqCst))
    }

    fn observe(&self, seen: TimestampUs) {
        self.0.fetch_max(seen.0 + 1, Ordering::SeqCst);
    }
}

struct World {
    log: Arc<MemoryLog>,
    clock: Arc<TestClock>,
    shell: Shell<Tenant>,
    next: AtomicU64,
}

impl World {
    fn new(settle: impl FnOnce(&mut Settings)) -> Self {
        Self::over(Arc::new(MemoryLog::new()), settle)
    }

    fn over(log: Arc<MemoryLog>, settle: impl FnOnce(&mut Settings)) -> Self {
        Self::after(log, NOON, settle)
    }

    fn after(log: Arc<MemoryLog>, now: TimestampUs, settle: impl FnOnce(&mut Settings)) -> Self {
        // Commit ids go on where the log's earlier ones ended.
        let first = log.head_position().0;
        let clock = Arc::new(TestClock(AtomicU64::new(now.0)));
        let mut settings = Settings::new(RegionId::new("local").unwrap());
        settle(&mut settings);
        let shell = Shell::start(
            Arc::clone(&log) as Arc<dyn EventLog>,
            Arc::clone(&log) as Arc<dyn SnapshotStore>,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(LiveIds::new(7, 11)),
            settings,
        );
        Self { log, clock, shell, next: AtomicU64::new(first) }
    }

    fn tenant(&self) -> Handle<Tenant> {
        self.shell.actor(&stream())
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

    async fn ask(&self, command: Command) -> Result<Result<Decided<Tenant>, Rejected<Tenant>>, Unavailable> {
        self.tenant().ask(self.command(command)).await
    }

    async fn must(&self, command: Command) -> Decided<Tenant> {
        self.ask(command).await.unwrap().unwrap_or_else(|rejected| panic!("{}", rejected.rejection))
    }

    async fn registered(self) -> Self {
        self.must(Command::RegisterTenant {
            display_name: "Acme".to_owned(),
            plan: plan("pro"),
            zone: "local".to_owned(),
        })
        .await;
        self.must(Command::IssueApiKey {
            key_id: key("main"),
            prefix: "fhk_acme_abcd".to_owned(),
            hash: [7; 32],
            label: String::new(),
        })
        .await;
        self
    }

    fn events(&self) -> Vec<String> {
        let commits = self.log.read_stream(&stream(), Version(1), Direction::Forward, 10_000).unwrap();
        let kinds = |commit: &events_journal::Recorded| {
            let view = commit.view().unwrap();
            view.events().map(|event| event.unwrap().payload.short_kind().to_owned()).collect::<Vec<_>>()
        };
        commits.iter().flat_map(kinds).collect()
    }
}

fn stream() -> StreamId {
    StreamId::new("tenant/acme").unwrap()
}

fn admit(number: u8) -> Command {
    Command::AdmitRequest(admission(number, 10, 10))
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("waited for: {what}"));
}

#[tokio::test]
async fn a_caller_is_answered_when_its_decision_is_durable_and_not_before() {
    let world = World::new(|_| {}).registered().await;
    world.log.hold();
    let answered = AtomicU64::new(0);
    let asked = async {
        let answer = world.ask(admit(1)).await;
        answered.store(1, Ordering::SeqCst);
        answer
    };
    let released = async {
        until("the commit to reach the log", || world.log.waiting() == 1).await;
        assert_eq!(answered.load(Ordering::SeqCst), 0);
        world.log.release();
    };
    let (answer, ()) = tokio::join!(asked, released);
    assert_eq!(answer.unwrap().unwrap().version, Version(3));
}

#[tokio::test]
async fn decisions_do_not_wait_for_one_another_to_become_durable() {
    let world = World::new(|_| {}).registered().await;
    world.log.hold();
    let asks = futures::future::join_all((0..50).map(|number| world.ask(admit(number))));
    let released = async {
        until("all fifty to be in flight", || world.log.waiting() == 50).await;
        world.log.release();
    };
    let (answers, ()) = tokio::join!(asks, released);
    let versions: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap().version.0).collect();
    assert_eq!(versions, (3..53).collect::<Vec<_>>());
}

#[tokio::test]
async fn when_an_append_fails_all_that_rests_on_it_is_aborted_and_the_actor_goes_on_from_the_log() {
    let world = World::new(|_| {}).registered().await;
    world.log.hold();
    world.log.fail_next(AppendError::Refused(Refusal::DiskFull));
    let asks = futures::future::join_all((0..5).map(|number| world.ask(admit(number))));
    let released = async {
        until("all five to be in flight", || world.log.waiting() >= 4).await;
        world.log.release();
    };
    let (answers, ()) = tokio::join!(asks, released);
    assert!(answers.iter().all(|answer| matches!(answer, Err(Unavailable::Aborted(_)))), "{answers:?}");
    assert_eq!(world.events(), ["TenantRegistered", "ApiKeyIssued"]);
    let again = retried(&world, admit(1)).await;
    assert_eq!(again.version, Version(3));
}

#[tokio::test]
async fn a_decision_whose_append_ended_unknown_is_in_the_state_if_it_is_in_the_log() {
    let world = World::new(|_| {}).registered().await;
    world.log.fail_next_after_writing();
    assert!(
        matches!(world.ask(admit(1)).await, Err(Unavailable::Aborted(error)) if error.outcome() == events_journal::Outcome::Unknown)
    );
    let open = loop {
        match world.tenant().read(|state| state.open()).await {
            Ok(open) => break open,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(open, 1);
}

#[tokio::test]
async fn a_full_mailbox_refuses_at_once_and_the_refusals_become_a_fact() {
    let world = World::new(|settings| settings.mailbox_len_max = 4).registered().await;
    // The actor is busy until the gate opens.
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let tenant = world.tenant();
    let busy = tenant.peek(move |_| opened.recv().is_ok());
    let asks = async {
        let asks = futures::future::join_all((0..200).map(|number| world.ask(admit(number))));
        let gate = async { gate.send(()).unwrap() };
        tokio::join!(asks, gate).0
    };
    let (_, answers) = tokio::join!(busy, asks);
    let overloaded = answers.iter().filter(|answer| matches!(answer, Err(Unavailable::Overloaded { .. }))).count();
    assert!(overloaded > 0 && overloaded < 200, "{overloaded}");
    world.clock.pass(DurationUs::from_secs(2));
    until("the sum to be recorded", || {
        world.shell.wake(&stream());
        world.events().contains(&"RequestsRefused".to_owned())
    })
    .await;
    let refused = world.tenant().read(|state| state.totals.refused.clone()).await.unwrap();
    assert_eq!(refused.get(&RefusalReason::Overload), Some(&u64::try_from(overloaded).unwrap()));
}

#[tokio::test]
async fn refusals_of_a_second_are_one_fact_however_many_there_are() {
    let world = World::new(|_| {}).registered().await;
    let mut stranger = admission(1, 1, 1);
    stranger.key_id = key("unknown");
    for _ in 0..100 {
        let rejected = world.ask(Command::AdmitRequest(stranger.clone())).await.unwrap().unwrap_err();
        assert_eq!(rejected.rejection, Rejection::UnknownKey);
    }
    world.clock.pass(DurationUs::from_secs(2));
    until("the sum to be recorded", || world.events().len() == 3).await;
    let refused = world.tenant().read(|state| state.totals.refused.clone()).await.unwrap();
    assert_eq!(refused.get(&RefusalReason::Key), Some(&100));
}

#[tokio::test]
async fn a_reservation_that_nobody_settles_expires_at_its_deadline() {
    let world = World::new(|_| {}).registered().await;
    world.must(admit(1)).await;
    world.clock.pass(DurationUs::from_secs(61));
    until("the expiry", || world.events().contains(&"ReservationExpired".to_owned())).await;
    assert_eq!(world.tenant().read(|state| state.open()).await.unwrap(), 0);
}

#[tokio::test]
async fn deadlines_of_before_a_restart_are_watched_once_the_actor_is_woken() {
    let world = World::new(|_| {}).registered().await;
    world.must(admit(1)).await;
    world.shell.drain().await;
    let world = World::over(Arc::clone(&world.log), |_| {});
    world.clock.pass(DurationUs::from_secs(61));
    world.shell.wake(&stream());
    until("the expiry", || world.events().contains(&"ReservationExpired".to_owned())).await;
}

#[tokio::test]
async fn a_deadline_is_not_forgotten_when_the_state_was_void_and_the_log_refused() {
    let world = World::new(|_| {}).registered().await;
    world.must(admit(1)).await;
    world.log.fail_next(AppendError::Refused(Refusal::DiskFull));
    assert!(matches!(world.ask(admit(2)).await, Err(Unavailable::Aborted(_))));
    world.log.set_health(Health::Refusing(Refusal::DiskFull));
    assert!(matches!(world.ask(admit(3)).await, Err(Unavailable::Refusing(_))));
    world.log.set_health(Health::Accepting);
    world.clock.pass(DurationUs::from_secs(61));
    until("the expiry", || {
        // The actor may set its next look after the answer above: time must go on.
        world.clock.pass(DurationUs::from_millis(1));
        world.events().contains(&"ReservationExpired".to_owned())
    })
    .await;
}

#[tokio::test]
async fn what_fell_due_while_the_process_was_down_can_still_be_settled_for_a_while() {
    let world = World::new(|_| {}).registered().await;
    world.must(admit(1)).await;
    world.must(admit(2)).await;
    world.shell.drain().await;
    let world = World::after(Arc::clone(&world.log), NOON.after(DurationUs::from_secs(3_600)), |settings| {
        settings.overdue_grace = Duration::from_secs(30)
    });
    world.shell.wake(&stream());
    world.must(Command::SettleRequest(settlement(1, 5, 5))).await;
    assert!(!world.events().contains(&"ReservationExpired".to_owned()));
    world.clock.pass(DurationUs::from_secs(31));
    until("the expiry of the other", || world.events().contains(&"ReservationExpired".to_owned())).await;
    let totals = world.tenant().read(|state| state.totals.clone()).await.unwrap();
    assert_eq!((totals.settled, totals.expired), (1, 1));
}

#[tokio::test]
async fn an_actor_restarts_from_its_snapshot_and_the_tail() {
    let world = World::new(|settings| settings.snapshot_every = 10).registered().await;
    for number in 0..20 {
        world.must(admit(number)).await;
        world.must(Command::SettleRequest(settlement(number, 5, 5))).await;
    }
    let before = world.tenant().read(Clone::clone).await.unwrap();
    until("a snapshot", || world.log.load_snapshot(&stream()).unwrap().is_some_and(|blob| blob.at == 40)).await;
    world.must(admit(21)).await;
    let world = World::over(Arc::clone(&world.log), |_| {});
    let after = world.tenant().read(Clone::clone).await.unwrap();
    assert_eq!(after.totals.settled, before.totals.settled);
    assert_eq!(after.open(), 1);
}

#[tokio::test]
async fn a_snapshot_of_another_past_of_the_stream_is_not_believed() {
    let earlier = TimestampUs(NOON.0 - 3_600_000_000);
    let other = World::after(Arc::new(MemoryLog::new()), earlier, |settings| settings.snapshot_every = 1);
    let other = other.registered().await;
    other.must(Command::Suspend { reason: "unpaid".to_owned() }).await;
    let saved = || other.log.load_snapshot(&stream()).unwrap();
    until("a snapshot", || saved().is_some_and(|blob| blob.at == 3)).await;
    let world = World::new(|settings| settings.snapshot_every = 1_000).registered().await;
    let decided = world.must(admit(1)).await;
    assert_eq!(decided.version, Version(3));
    world.log.save_snapshot(&stream(), Version(3), &saved().unwrap().bytes).unwrap();
    let restarted = World::over(Arc::clone(&world.log), |_| {});
    restarted.must(admit(2)).await;
}

#[tokio::test]
async fn a_damaged_snapshot_costs_nothing_but_time() {
    let world = World::new(|settings| settings.snapshot_every = 1).registered().await;
    world.must(admit(1)).await;
    world.shell.drain().await;
    let expected = world.log.load_snapshot(&stream()).unwrap().unwrap();
    for at in 0..expected.bytes.len().min(64) {
        let mut bytes = expected.bytes.clone();
        bytes[at] ^= 0xff;
        bytes.truncate(bytes.len() - at % 3);
        world.log.save_snapshot(&stream(), Version(expected.at), &bytes[..at]).unwrap();
        let world = World::over(Arc::clone(&world.log), |_| {});
        assert_eq!(world.tenant().read(|state| state.open()).await.unwrap(), 1);
        world.shell.drain().await;
    }
}

#[tokio::test]
async fn an_idle_actor_is_put_away_and_comes_back_as_it_was() {
    let world = World::new(|settings| settings.idle_after = Duration::from_millis(20)).registered().await;
    assert_eq!(world.shell.stats().live, 1);
    world.clock.pass(DurationUs::from_secs(1));
    until("the actor to be put away", || world.shell.stats().live == 0).await;
    assert_eq!(world.must(admit(1)).await.version, Version(3));
}

#[tokio::test]
async fn a_repeated_command_answers_with_the_events_of_the_first_and_no_effects() {
    let world = World::new(|_| {}).registered().await;
    let ask = Ask { idempotent: true, ..world.command(admit(1)) };
    let first = world.tenant().ask(ask.clone()).await.unwrap().unwrap();
    let again = world.tenant().ask(Ask { command: admit(2), ..ask }).await.unwrap().unwrap();
    assert!(again.duplicate && !first.duplicate);
    assert_eq!((again.events, again.position), (first.events, first.position));
    assert_eq!((first.effects.len(), again.effects.len()), (1, 0));
    assert_eq!(world.events().len(), 3);
}

#[tokio::test]
async fn nothing_is_decided_while_the_log_refuses() {
    let world = World::new(|_| {}).registered().await;
    world.log.set_health(Health::Refusing(Refusal::DiskFull));
    assert!(matches!(world.ask(admit(1)).await, Err(Unavailable::Refusing(Refusal::DiskFull))));
    world.log.set_health(Health::Accepting);
    assert_eq!(world.must(admit(1)).await.version, Version(3));
}

#[tokio::test]
async fn a_drained_shell_decides_nothing_more() {
    let world = World::new(|_| {}).registered().await;
    world.shell.drain().await;
    assert!(matches!(world.ask(admit(1)).await, Err(Unavailable::Closed)));
    assert!(world.log.load_snapshot(&stream()).unwrap().is_some());
}

#[tokio::test]
async fn tenants_do_not_share_an_actor() {
    let world = World::new(|_| {}).registered().await;
    let other: Vec<_> = world.events();
    let stranger = world.shell.actor(&StreamId::new("tenant/other").unwrap());
    let rejected = stranger.ask(world.command(admit(1))).await.unwrap().unwrap_err();
    assert_eq!(rejected.rejection, Rejection::NotRegistered);
    assert_eq!(world.events(), other);
}

async fn retried(world: &World, command: Command) -> Decided<Tenant> {
    loop {
        match world.ask(command.clone()).await {
            Ok(decided) => return decided.unwrap_or_else(|rejected| panic!("{}", rejected.rejection)),
            Err(Unavailable::Restarted | Unavailable::Aborted(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    }
}
