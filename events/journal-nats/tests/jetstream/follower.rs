//! Nodes that join, come back, lag, or do not fit the stream.

use std::{fs, path::Path, sync::Arc};

use async_nats::HeaderMap;
use events_journal::{
    AppendError, EventLog, Health, MemoryLog, Refusal, Replica, SnapshotStore,
    contract::{self, fixture::tenant},
};
use events_journal_nats::{
    FollowError, JetStreamLog, OpenError, Options,
    subject::{shard_subject, stream_name},
};
use events_journal_sled::LocalStore;
use events_model::{Position, Version};
use prost::Message as _;
use proto::log::v1::Group;
use tests_kit::nats::NatsServer;

use crate::kit::{World, all, append};

/// Commits of several tenants, one message each.
fn fill(log: &Arc<JetStreamLog>, messages: u64) {
    for n in 0..messages {
        append(&**log, &format!("t-{}", n % 5), n / 5 + 1, &format!("c-{n}")).unwrap();
    }
}

fn memory() -> Arc<MemoryLog> {
    Arc::new(MemoryLog::new())
}

/// Waits until the follower has stopped, and tells why.
fn stopped(world: &World, log: &JetStreamLog) -> FollowError {
    world.wait(log.watch_health(), |health| matches!(health, Health::Refusing(Refusal::Stopped(_))));
    (*log.failure().unwrap()).clone()
}

#[test]
fn a_node_with_an_empty_directory_rebuilds_the_same_bytes_at_the_same_positions() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = Options { shards: 8, ..world.fresh() };
    let first = world.open_memory(&options);
    let receipts: Vec<_> = (0..4_000_u64)
        .map(|n| {
            let stream = tenant(&format!("t-{}", n % 20));
            let commit = contract::commit(&stream, Version(n / 20 + 1), &format!("c-{n}"), 1, 300);
            first.append(Version(n / 20), commit)
        })
        .collect();
    for receipt in receipts {
        contract::settle(receipt).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::open(dir.path(), events_journal_sled::Options::default()).unwrap());
    let second = world.open(&options, &store);
    world.catch_up(&second, first.progress().head);
    assert_eq!(second.head_position(), Position(4_000));
    assert_eq!(all(&second), all(&first));
    // It decides on top of what it followed.
    assert_eq!(append(&*second, "t-0", 201, "next").unwrap().position, Position(4_001));
    world.catch_up(&first, second.progress().head);
    assert_eq!(all(&second), all(&first));
}

/// Makes a directory what a loss of power would have left of it: everything but the end of the last group.
fn lose_power(from: &Path, to: &Path) {
    for folder in ["log", "index"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for entry in fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    let segments = fs::read_dir(to.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let last = segments.filter(|path| path.extension().is_some_and(|kind| kind == "seg")).max().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end - 20..=end].fill(0);
    fs::write(last, bytes).unwrap();
}

#[test]
fn a_copy_that_loses_its_end_with_the_power_follows_it_again_and_loses_nothing_acknowledged() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = events_journal_sled::Options::default;
    let log = world.open(&options, &Arc::new(LocalStore::open_copy(dir.path(), settings()).unwrap()));
    // Past the follower's checkpoint, so that one is there which may say more than is left.
    fill(&log, 1_100);
    lose_power(dir.path(), left.path());
    let copy = Arc::new(LocalStore::open_copy(left.path(), settings()).unwrap());
    assert_eq!(copy.opening().cut.as_ref().map(|_| copy.head_position()), Some(Position(1_099)));
    let again = world.open(&options, &copy);
    world.catch_up(&again, log.progress().head);
    assert_eq!(all(&again), all(&log));
    assert_eq!(all(&again).len(), 1_100);
}

#[test]
fn a_node_goes_on_at_its_checkpoint_and_without_one_where_its_replica_ends() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let (replica, source) = (memory(), world.open_memory(&options));
    fill(&source, 40);
    let log = world.open(&options, &replica);
    world.catch_up(&log, 40);
    world.close(&log);
    fill_more(&source, 40, 60);
    // With the checkpoint: behind the last message that was applied.
    let log = world.open(&options, &replica);
    assert_eq!(began_at(&log), 40);
    world.catch_up(&log, 60);
    world.close(&log);
    // Without one: at the last message that the replica has begun, found by looking.
    for more in [60, 61, 75] {
        fill_more(&source, world.messages(&options), more);
        let log = world.try_open(&options, Arc::<MemoryLog>::clone(&replica), memory()).unwrap();
        assert!(began_at(&log) < more);
        assert!(began_at(&log) >= 59);
        world.catch_up(&log, more);
        assert_eq!(all(&log), all(&source));
        world.close(&log);
    }
}

/// Where a node that was just opened began; it may have gone on since.
fn began_at(log: &JetStreamLog) -> u64 {
    log.resumed_at()
}

fn fill_more(log: &Arc<JetStreamLog>, from: u64, to: u64) {
    for n in from..to {
        append(&**log, &format!("t-{}", n % 5), n / 5 + 1, &format!("c-{n}")).unwrap();
    }
}

#[test]
fn a_checkpoint_that_is_ahead_of_the_replica_is_not_believed() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let (replica, checkpoints, source) = (memory(), memory(), world.open_memory(&options));
    fill(&source, 30);
    let log =
        world.try_open(&options, Arc::<MemoryLog>::clone(&replica), Arc::<MemoryLog>::clone(&checkpoints)).unwrap();
    world.catch_up(&log, 30);
    world.close(&log);
    // The data directory comes from an older copy.
    let older = memory();
    for one in all(&source).iter().take(11) {
        contract::settle(older.append_recorded(one.bytes.clone())).unwrap();
    }
    let log = world.try_open(&options, older, checkpoints).unwrap();
    assert_eq!(began_at(&log), 10);
    world.catch_up(&log, 30);
    assert_eq!(all(&log), all(&source));
}

#[test]
fn an_append_is_acknowledged_only_when_the_replica_has_it() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let replica = memory();
    let log = world.open(&options, &replica);
    append(&*log, "acme", 1, "first").unwrap();
    replica.hold();
    let mut receipts: Vec<_> = (2..=4)
        .map(|n| log.append(Version(n - 1), contract::commit(&tenant("acme"), Version(n), &format!("c-{n}"), 1, 60)))
        .collect();
    while replica.waiting() < 3 {
        std::thread::yield_now();
    }
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for receipt in &mut receipts {
        assert!(std::pin::Pin::new(receipt).poll(&mut context).is_pending());
    }
    // A repetition and a conflict are judged against what is on its way, and wait with it.
    let again = log.append(Version(1), contract::commit(&tenant("acme"), Version(2), "c-2", 1, 60));
    let stale = log.append(Version(2), contract::commit(&tenant("acme"), Version(3), "stale", 1, 60));
    replica.release();
    for (position, receipt) in (2..).zip(receipts) {
        assert_eq!(contract::settle(receipt).unwrap().position, Position(position));
    }
    let again = contract::settle(again).unwrap();
    assert_eq!((again.position, again.duplicate), (Position(2), true));
    assert!(matches!(contract::settle(stale), Err(AppendError::Conflict { actual: Version(4), .. })));
}

#[test]
fn a_replica_that_fails_for_a_while_misses_nothing() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let (replica, source) = (memory(), world.open_memory(&options));
    let log = world.open(&options, &replica);
    fill(&source, 10);
    world.catch_up(&log, 10);
    // Some fail before and some after writing; then the disk is full for a while.
    replica.fail_next(AppendError::Busy { waiting: 1 });
    replica.fail_next_after_writing();
    replica.fail_next(AppendError::Refused(Refusal::DiskFull));
    fill_more(&source, 10, 20);
    world.catch_up(&log, 20);
    replica.set_health(Health::Refusing(Refusal::DiskFull));
    world.wait(log.watch_health(), |health| *health == Health::Refusing(Refusal::DiskFull));
    assert!(matches!(append(&*log, "x", 1, "x"), Err(AppendError::Refused(Refusal::DiskFull))));
    fill_more(&source, 20, 30);
    replica.set_health(Health::Accepting);
    world.catch_up(&log, 30);
    assert_eq!(all(&log), all(&source));
    world.wait(log.watch_health(), |health| *health == Health::Accepting);
}

/// Publishes to the only shard of a region as somebody who does not play by the rules.
fn intrude(world: &World, options: &Options, payload: Vec<u8>) {
    let context = world.context();
    let subject = shard_subject(&options.region, &options.zone, 0);
    world.runtime.block_on(async {
        context.publish_with_headers(subject, HeaderMap::new(), payload.into()).await.unwrap().await.unwrap()
    });
}

fn group(number: u64, previous: Vec<u8>, commit: &events_model::Commit) -> Vec<u8> {
    Group { format: 1, shard: 0, number, previous, commits: vec![commit.encode()] }.encode_to_vec()
}

#[test]
fn a_broken_chain_stops_the_node_loudly_and_skips_nothing() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let foreign = contract::commit(&tenant("t-0"), Version(2), "foreign", 1, 60);
    let cases: [(&str, Vec<u8>); 4] = [
        ("number is 9, not 6", group(9, vec![7; 32], &foreign)),
        ("number is 1, not 6", group(1, Vec::new(), &foreign)),
        ("hash of group 5", group(6, vec![7; 32], &foreign)),
        ("is no group", b"hello".to_vec()),
    ];
    for (reason, payload) in cases {
        let options = world.fresh();
        let log = world.open_memory(&options);
        fill(&log, 5);
        intrude(&world, &options, payload);
        let error = stopped(&world, &log);
        assert!(error.to_string().contains(reason), "{error} should say {reason:?}");
        assert!(matches!(error, FollowError::Chain { sequence: 6, .. } | FollowError::Unreadable { sequence: 6, .. }));
        assert!(!error.advice().is_empty());
        assert_eq!(log.head_position(), Position(5));
        let refused = append(&*log, "t-0", 2, "after").unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refusal::Stopped(_))), "{refused:?}");
        // Reads go on.
        assert_eq!(all(&log).len(), 5);
        // The chain is checked from the checkpoint on, and from the start: neither gets past it.
        world.close(&log);
        let again = world.open_memory(&options);
        assert!(matches!(stopped(&world, &again), FollowError::Chain { .. } | FollowError::Unreadable { .. }));
        assert_eq!(again.progress().applied, 5);
    }
}

#[test]
fn where_no_consumer_can_be_made_a_node_reads_on_from_the_leader_and_checks_the_same() {
    let (allowed, refused) =
        ("include \"permissions.conf\"", "permissions { publish { deny: [\"$JS.API.CONSUMER.>\"] } }");
    let text = NatsServer::configuration().unwrap();
    assert!(text.contains(allowed));
    let server = NatsServer::start_with(&text.replace(allowed, refused)).unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let log = world.open_memory(&options);
    fill(&log, 40);
    let other = world.open_memory(&options);
    world.catch_up(&other, 40);
    assert_eq!(all(&other), all(&log));
    let foreign = contract::commit(&tenant("t-0"), Version(2), "foreign", 1, 60);
    intrude(&world, &options, group(41, vec![7; 32], &foreign));
    for log in [log, other] {
        let error = stopped(&world, &log);
        assert!(matches!(error, FollowError::Chain { sequence: 41, .. }), "{error}");
        assert_eq!(log.head_position(), Position(40));
    }
}

#[test]
fn a_replica_that_differs_from_the_stream_is_refused() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let source = world.open_memory(&options);
    fill(&source, 20);
    let open = |replica: &Arc<MemoryLog>| world.try_open(&options, Arc::<MemoryLog>::clone(replica), memory());
    // Another log altogether.
    let foreign = memory();
    append(&*foreign, "other", 1, "other").unwrap();
    let error = open(&foreign).unwrap_err();
    assert!(
        matches!(&error, OpenError::Replica { source: FollowError::ForeignReplica { commits: 1 }, .. }),
        "{error:?}"
    );
    // The same commit id with other contents.
    let changed = memory();
    let commit = contract::commit(&tenant("t-0"), Version(1), "c-0", 1, 61);
    contract::settle(changed.append_recorded(commit.encode().into())).unwrap();
    let error = open(&changed).unwrap_err();
    assert!(matches!(&error, OpenError::Replica { source: FollowError::Diverged { .. }, .. }), "{error:?}");
    // More than the stream has.
    let longer = memory();
    for one in all(&source) {
        contract::settle(longer.append_recorded(one.bytes)).unwrap();
    }
    append(&*longer, "other", 1, "other").unwrap();
    let log = open(&longer).unwrap();
    let error = stopped(&world, &log);
    assert!(matches!(error, FollowError::ForeignReplica { commits: 1 }), "{error:?}");
    // A commit of its own in the middle, beside the checkpoint of a node that is right.
    let (forked, checkpoints) = (memory(), memory());
    for (n, one) in all(&source).into_iter().enumerate() {
        if n == 12 {
            append(&*forked, "other", 1, "other").unwrap();
        }
        contract::settle(forked.append_recorded(one.bytes)).unwrap();
    }
    let right = world.try_open(&options, memory(), Arc::<MemoryLog>::clone(&checkpoints)).unwrap();
    world.catch_up(&right, 20);
    world.close(&right);
    let error = world.try_open(&options, forked, checkpoints).unwrap_err();
    assert!(matches!(&error, OpenError::Replica { source: FollowError::Diverged { .. }, .. }), "{error:?}");
}

#[test]
fn a_stream_that_lost_its_beginning_is_a_gap() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let log = world.open_memory(&options);
    fill(&log, 3);
    let context = world.context();
    let stream = world.runtime.block_on(context.get_stream(stream_name(&options.region))).unwrap();
    let mut config = stream.cached_info().config.clone();
    let later = Options { region: world.next_region(), ..options };
    config.name = stream_name(&later.region);
    config.subjects = vec![format!("fh.log.{}.>", later.region)];
    config.first_sequence = Some(100);
    world.runtime.block_on(context.create_stream(config)).unwrap();
    let error = world.refused(&later);
    assert!(matches!(&error, OpenError::Replica { source: FollowError::Gap { sequence: 1 }, .. }), "{error:?}");
}

#[test]
fn the_checkpoint_is_kept_where_it_was_asked_for() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let (replica, checkpoints) = (memory(), memory());
    let log = world.try_open(&options, replica, Arc::<MemoryLog>::clone(&checkpoints)).unwrap();
    fill(&log, 3);
    world.close(&log);
    let name = format!("journal-nats/{}", stream_name(&options.region));
    assert_eq!(checkpoints.load_checkpoint(&name).unwrap().unwrap().at, 3);
}
