//! Dead letters of read models through the shipped program: what a newer version wrote is parked and shown, tried again
//! after the repair, or given up, while the other tenants go on.

use std::{path::Path, sync::Arc};

use actors_shell::LiveClock;
use events_journal::EventLog as _;
use events_journal_sled::{LocalStore, Options as StoreOptions};
use events_model::{
    Commit, CommitId, CommitView, DecisionContext, EpisodeId, EventId, EventRecord, EventView, Payload, Position,
    Principal, RegionId, Stored as _, StreamId, Version, tenant::Command,
};
use projections::{
    ApplyError, Options, Projection, Runner,
    billing::{Billing, State},
};
use tokio::sync::watch;
use tonic::Code;

use crate::{
    events_cli::{freehold, json, table},
    events_world::{admin, assert_field, own, reason},
    world::{PATIENCE, TENANT, World, chat, eventually},
};

/// Works with the log of a server that is down.
fn beside<R: Send>(data: &Path, work: impl FnOnce(LocalStore) -> R + Send) -> R {
    std::thread::scope(|scope| {
        let work = || {
            let store = LocalStore::open(data, StoreOptions::default()).unwrap();
            let result = work(store.clone());
            store.close();
            result
        };
        scope.spawn(work).join().unwrap()
    })
}

/// Records what no version up to this one can read, on the stream of a tenant.
fn record_from_a_newer_version(store: &LocalStore, tenant: &str) -> Position {
    let stream = StreamId::new(&format!("tenant/{tenant}")).unwrap();
    let payload = Payload { kind: "freehold.log.v1.RequestSettled", schema_version: 9, bytes: vec![1, 2, 3] };
    let commit = Commit {
        commit_id: CommitId::new("newer").unwrap(),
        tenant: stream.tenant_id(),
        stream,
        first_version: Version(1),
        command: Command::Resume.to_payload(),
        events: vec![EventRecord { event_id: EventId::from_bytes([1; 16]), payload }],
        episode_id: EpisodeId::from_bytes([1; 16]),
        causation_id: None,
        region: RegionId::new("local").unwrap(),
        epoch: 1,
        principal: Principal::system("test"),
        recorded_at: LiveClock::wall(),
        traceparent: String::new(),
        decider_version: 1,
        key_id: String::new(),
        context: DecisionContext::default(),
    };
    store.append(Version::ZERO, commit).wait().unwrap().position
}

async fn metric(world: &World, name: &str, projection: &str) -> u64 {
    let text = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    let begin = format!("{name}{{projection=\"{projection}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&begin)).unwrap().parse().unwrap()
}

/// Sends a request and gives what it was billed for, once it is on the bill.
async fn billed(world: &World, requests: u64) -> u64 {
    let reply = world.chat(&chat(10)).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    world.assert_settled(reply.request_id(), "completed").await;
    let tenant = events_model::TenantId::new(TENANT).unwrap();
    eventually("the bill has it", || async {
        let bill = world.platform.readers().billing.read(|state, _| state.tenants.get(&tenant).cloned())?;
        (bill.total().requests == requests).then_some(bill.total().requests)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_version_wrote_is_shown_tried_again_and_given_up_from_the_command_line() {
    let world = World::new().await;
    assert_eq!(billed(&world, 1).await, 1);
    let mut at = Position::ZERO;
    let world = world.restart(|config| at = beside(&config.data, |s| record_from_a_newer_version(&s, "poison"))).await;
    // The other tenant goes on.
    assert_eq!(billed(&world, 2).await, 2);
    let number = at.to_string();
    for model in ["billing", "tenants"] {
        let list = json(&world, &["dlq", "list", model]).await;
        assert_eq!((&list["count"], &list["parked"][0]["number"]), (&1.into(), &at.0.into()), "{list}");
        let parked = &list["parked"][0];
        assert_eq!((&parked["stream"], &parked["consumer_version"]), (&"tenant/poison".into(), &"1".into()), "{list}");
        assert!(parked["error"].as_str().unwrap().starts_with("the event does not decode: "), "{list}");
        assert!(parked["attempts"].as_u64() >= Some(1) && parked["parked_at_us"].as_u64() > Some(0), "{list}");
        assert_eq!(metric(&world, "freehold_projection_parked_events", model).await, 1);
    }
    let shown = table(&world, &["dlq", "show", "billing", &number]).await;
    assert!(shown.contains("tenant/poison") && shown.contains("freehold.log.v1.RequestSettled"), "{shown}");
    // Nothing has changed, so it stays; a number that is not parked is not found.
    let redriven = table(&world, &["dlq", "redrive", "billing", "--all"]).await;
    assert_eq!(redriven, "redriven 0 events, 1 still parked\n");
    let list = json(&world, &["dlq", "list", "billing"]).await;
    assert!(list["parked"][0]["attempts"].as_u64() >= Some(2), "{list}");
    assert_eq!(freehold(&world, &["dlq", "redrive", "billing", "1"]).await.status.code(), Some(1));
    let one_of_two = freehold(&world, &["dlq", "drop", "billing", &number, "1", "--reason", "x"]).await;
    assert_eq!(one_of_two.status.code(), Some(1));
    let told = String::from_utf8_lossy(&one_of_two.stderr).into_owned();
    assert!(told.contains("no event is parked under the number 1"), "{told}");
    assert_eq!(freehold(&world, &["dlq", "drop", "billing", &number]).await.status.code(), Some(2));
    let unknown = freehold(&world, &["dlq", "list", "bills"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("tenants, billing, groups"), "{unknown:?}");
    eventually("it grows old", || async {
        (metric(&world, "freehold_projection_oldest_parked_seconds", "billing").await > 0).then_some(())
    })
    .await;
    // Given up at one model, with the reason on the log; the other one keeps it, also over a start.
    let dropped = json(&world, &["dlq", "drop", "billing", &number, "--reason", "a test wrote it"]).await;
    assert_eq!((&dropped["dropped"], &dropped["parked"]), (&1.into(), &0.into()));
    let log = json(&world, &["events", "read", "--type", "freehold.log.v1.DroppedFromReadModel"]).await;
    assert_eq!((&log["stream"], &log["principal"]), (&"region/local".into(), &"admin".into()), "{log}");
    let reason: String = b"a test wrote it".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(log["events"][0]["data_hex"].as_str().unwrap().contains(&reason), "{log}");
    let world = world.restart(|_| {}).await;
    assert_eq!(json(&world, &["dlq", "list", "billing"]).await["count"], 0);
    assert_eq!(json(&world, &["dlq", "list", "tenants"]).await["count"], 1);
    assert_eq!(metric(&world, "freehold_projection_oldest_parked_seconds", "billing").await, 0);
    assert_eq!(billed(&world, 3).await, 3);
}

/// Billing as an older version would do it, that does not know settlements of today.
#[derive(Debug)]
struct OldBilling;

impl Projection for OldBilling {
    const NAME: &'static str = Billing::NAME;
    const VERSION: u32 = Billing::VERSION;
    type State = State;

    fn apply(s: &mut State, at: Position, commit: &CommitView<'_>, event: &EventView<'_>) -> Result<(), ApplyError> {
        if event.payload.short_kind() == "RequestSettled" {
            return Err(ApplyError::Stream { stream: "from a newer version".to_owned() });
        }
        Billing::apply(s, at, commit, event)
    }
}

/// Leaves the checkpoint that the older version would have left; returns how many events it could not apply.
fn fold_as_before(store: &LocalStore) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (log, checkpoints) = (Arc::new(store.clone()), Arc::new(store.clone()));
        let (runner, reader) = Runner::<OldBilling>::open(log, checkpoints, Options::default());
        let (stop, stopped) = watch::channel(false);
        let drive = async {
            // From the start: the checkpoint of the present version is no older one's.
            reader.wait_for(store.head_position(), PATIENCE).await.unwrap();
            reader.wait_rebuilt(PATIENCE).await.unwrap();
            stop.send_replace(true);
            reader.parked().count
        };
        let (result, parked) = tokio::join!(runner.run(stopped, |_| {}), drive);
        result.unwrap();
        parked
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_version_parked_is_on_the_bill_soon_after_the_newer_one_has_started() {
    let world = World::new().await;
    assert_eq!(billed(&world, 1).await, 1);
    let mut parked = 0;
    let world = world
        .restart(|config| {
            parked = beside(&config.data, |store| {
                // Its checkpoint is at the head already; one that cannot be read makes it fold all.
                let nothing = events_journal::Blob { at: 1, bytes: Vec::new() };
                events_journal::SnapshotStore::save_checkpoint(&store, Billing::NAME, &nothing).unwrap();
                fold_as_before(&store)
            });
        })
        .await;
    assert_eq!(parked, 1);
    let readers = world.platform.readers();
    readers.billing.wait_rebuilt(PATIENCE).await.unwrap();
    assert_eq!(readers.billing.parked().count, 0);
    assert_eq!(billed(&world, 2).await, 2);
    // And it is the bill of the whole log, as it is folded now.
    let live = readers.billing.read(|state, _| state.clone());
    let mut folded = None;
    world
        .restart(|found| {
            folded = Some(beside(&found.data, |store| projections::fold_to::<Billing>(&store, Position(u64::MAX))))
        })
        .await;
    assert_eq!(folded.unwrap().unwrap().state, live);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_about_read_models_is_checked_and_they_are_the_operators_alone() {
    use proto::events::v1 as pb;
    let world = World::new().await;
    let billing = || "billing".to_owned();
    let list = pb::ListParkedRequest { projection: billing(), ..Default::default() };
    let get = pb::GetParkedRequest { projection: billing(), number: 7, ..Default::default() };
    let replay = pb::ReplayParkedRequest { projection: billing(), ..Default::default() };
    let drop = pb::DropParkedRequest { projection: billing(), reason: "x".to_owned(), ..Default::default() };
    let (mut operator, mut tenant) = (admin(&world), own(&world));
    for status in [
        tenant.list_parked(list.clone()).await.unwrap_err(),
        tenant.get_parked(get.clone()).await.unwrap_err(),
        tenant.replay_parked(replay.clone()).await.unwrap_err(),
        tenant.drop_parked(drop.clone()).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_YOURS"));
    }
    for status in [
        operator.get_parked(get.clone()).await.unwrap_err(),
        operator.replay_parked(replay.clone()).await.unwrap_err(),
        operator.drop_parked(drop.clone()).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NOT_PARKED"));
    }
    for token in ["x", "1", "1.", "1.x", "-1.0"] {
        let list = pb::ListParkedRequest { page_token: token.to_owned(), ..list.clone() };
        assert_field(operator.list_parked(list).await, "page_token");
    }
    // All of nothing is done, and needs no mending.
    for command in [&["redrive"][..], &["drop", "--reason", "x"]] {
        let (verb, more) = command.split_first().unwrap();
        let told = table(&world, &[&["dlq", verb, "billing", "--all"], more].concat()).await;
        assert_eq!(told, "nothing is parked\n");
    }
    let both = pb::GetParkedRequest { group: "g".to_owned(), ..get };
    assert_field(operator.get_parked(both).await, "projection");
    let unknown = pb::ReplayParkedRequest { projection: "bills".to_owned(), ..replay };
    assert_field(operator.replay_parked(unknown).await, "projection");
    assert_field(operator.drop_parked(pb::DropParkedRequest { reason: " ".to_owned(), ..drop }).await, "reason");
}
