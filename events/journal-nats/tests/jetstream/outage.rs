//! Servers and connections that fail while groups are on their way: what was acknowledged is there once, what was not
//! is found out, and nothing is guessed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use events_journal::{
    AppendError, EventLog, Health, Outcome, Refusal,
    contract::{self, fixture::tenant},
};
use events_journal_nats::{JetStreamLog, Options, Ownership, Phase, subject::stream_name};
use events_model::{Position, Version};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tests_kit::nats::{NatsCluster, NatsServer};

use crate::{
    kit::{WAIT_MAX, World, all, append, assert_exactly_once, persist},
    proxy::Proxy,
};

const SEED: u64 = 20_261_120;
const WRITERS: usize = 8;

#[expect(clippy::disallowed_methods, reason = "waits of tests for other processes end by the real clock")]
fn now() -> Instant {
    Instant::now()
}

/// What an engine says about itself, for a test that fails.
fn state_of(log: &JetStreamLog) -> String {
    let phases: Vec<_> = (0..log.options().shards).map(|shard| *log.watch_shard(shard).unwrap().borrow()).collect();
    format!("{:?} {:?} {:?} {phases:?}", log.progress(), log.failure(), log.watch_health().borrow())
}

/// Waits until that many appends were acknowledged.
fn reach(done: &AtomicUsize, count: usize) {
    let start = now();
    while done.load(Ordering::Acquire) < count {
        assert!(start.elapsed() < WAIT_MAX, "{} of {count} appends within {WAIT_MAX:?}", done.load(Ordering::Acquire));
        thread::yield_now();
    }
}

/// Eight writers, and something that goes wrong again and again after a while of appends.
fn under_load(log: &Arc<JetStreamLog>, faults: usize, mut fault: impl FnMut()) {
    println!("seed {SEED}");
    let mut dice = StdRng::seed_from_u64(SEED);
    let (done, going_on) = (AtomicUsize::new(0), AtomicBool::new(true));
    let answers = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (log, done, going_on) = (Arc::clone(log), &done, &going_on);
                scope.spawn(move || persist(&*log, &format!("t-{writer}"), going_on, done))
            })
            .collect();
        for number in 0..faults {
            reach(&done, done.load(Ordering::Acquire) + dice.random_range(50..300));
            let start = now();
            fault();
            reach(&done, done.load(Ordering::Acquire) + 50);
            println!("fault {number}: {:?} from its beginning to the next appends", start.elapsed());
        }
        going_on.store(false, Ordering::Release);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{} commits, each exactly once", answers.len());
    assert_exactly_once(log, &answers);
}

#[test]
fn a_server_that_is_killed_and_started_again_under_load_loses_and_repeats_nothing() {
    let mut server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = Options { shards: 4, ..world.fresh() };
    let log = world.open_memory(&options);
    under_load(&log, 4, || server.restart().unwrap());
    assert_eq!(*log.watch_health().borrow(), Health::Accepting);
    // A node that joins now sees the same.
    let other = world.open_memory(&options);
    world.catch_up(&other, log.progress().head);
    assert_eq!(all(&other), all(&log));
}

#[test]
fn a_stream_leader_that_is_killed_under_load_loses_and_repeats_nothing() {
    let mut cluster = NatsCluster::start(3).unwrap();
    let world = World::of_three(&cluster);
    let options = Options { shards: 4, ..world.fresh() };
    let log = world.open_memory(&options);
    let stream = stream_name(&options.region);
    under_load(&log, 3, || {
        let leader = cluster.wait_stream_leader(&stream).unwrap();
        let before = log.head_position();
        cluster.nodes[leader].kill().unwrap();
        let start = now();
        let elected = cluster.wait_stream_leader(&stream).unwrap();
        assert_ne!(leader, elected);
        let election = start.elapsed();
        // Those that were acknowledged before the kill, or by it, may still have been on their way.
        while log.head_position().0 <= before.0 + WRITERS as u64 {
            assert!(start.elapsed() < WAIT_MAX, "{}", state_of(&log));
            thread::yield_now();
        }
        println!("the servers elected a leader in {election:?}, appends went on after {:?}", start.elapsed());
        cluster.nodes[leader].restart().unwrap();
        cluster.nodes[leader].wait_healthy(WAIT_MAX).unwrap();
    });
    let other = world.open_memory(&options);
    world.catch_up(&other, log.progress().head);
    assert_eq!(all(&other), all(&log));
}

/// An engine behind a proxy, with one commit in its stream.
fn behind_a_proxy(server: &NatsServer) -> (World, Proxy, Options, Arc<JetStreamLog>) {
    let proxy = Proxy::before(server.port());
    let world = World::of_one(server);
    let options = Options { servers: vec![proxy.url()], ..world.fresh() };
    let log = world.open_memory(&options);
    append(&*log, "acme", 1, "first").unwrap();
    (world, proxy, options, log)
}

#[test]
fn a_group_whose_acknowledgement_is_lost_is_found_and_not_published_again() {
    let server = NatsServer::start().unwrap();
    let (world, proxy, options, log) = behind_a_proxy(&server);
    proxy.swallow_to_client();
    let receipt = log.append(Version(1), contract::commit(&tenant("acme"), Version(2), "lost", 1, 60));
    let start = now();
    while world.messages(&options) < 2 {
        assert!(start.elapsed() < WAIT_MAX);
    }
    proxy.cut();
    let appended = contract::settle(receipt).unwrap();
    assert_eq!((appended.position, appended.duplicate), (Position(2), false));
    assert_eq!(append(&*log, "acme", 3, "next").unwrap().position, Position(3));
    assert_eq!(world.messages(&options), 3);
}

#[test]
fn a_group_that_never_arrived_is_published_again() {
    let server = NatsServer::start().unwrap();
    let (world, proxy, options, log) = behind_a_proxy(&server);
    proxy.swallow_to_server();
    let receipts: Vec<_> = (2..=5)
        .map(|n| log.append(Version(n - 1), contract::commit(&tenant("acme"), Version(n), &format!("c-{n}"), 1, 60)))
        .collect();
    assert_eq!(world.messages(&options), 1);
    proxy.cut();
    for (position, receipt) in (2..).zip(receipts) {
        assert_eq!(contract::settle(receipt).unwrap().position, Position(position));
    }
    assert_eq!(all(&log).len(), 5);
}

#[test]
fn an_outage_longer_than_the_limit_is_unknown_for_what_was_sent_and_not_written_for_the_rest() {
    let mut server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let log = world.open_memory(&Options { resolve_max: Duration::from_secs(2), ..world.fresh() });
    append(&*log, "acme", 1, "first").unwrap();
    server.kill().unwrap();
    let call = |version: u64| {
        log.append(
            Version(version - 1),
            contract::commit(&tenant("acme"), Version(version), &format!("c-{version}"), 1, 60),
        )
    };
    let sent = call(2);
    let built_on_it = call(3);
    let error = contract::settle(sent).unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    let error = contract::settle(built_on_it).unwrap_err();
    // If the second call came before the first group was taken, both were sent together.
    assert!(matches!(error, AppendError::Refused(Refusal::Unreachable) | AppendError::Unknown(_)), "{error:?}");
    assert_eq!(*log.watch_health().borrow(), Health::Refusing(Refusal::Unreachable));
    server.restart().unwrap();
    // Decided again, with the same id: what was unknown is known now.
    let again = append(&*log, "acme", 2, "c-2").unwrap();
    assert_eq!(again.position, Position(2));
    world.wait(log.watch_health(), |health| *health == Health::Accepting);
    let next = log.head(&tenant("acme")).unwrap().0 + 1;
    assert!(!append(&*log, "acme", next, "c-9").unwrap().duplicate);
    assert_eq!(all(&log).iter().filter(|one| one.view().unwrap().commit_id == "c-2").count(), 1);
}

#[test]
fn a_shard_that_is_given_back_in_an_outage_is_idle_and_troubles_nobody() {
    let mut server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options =
        Options { resolve_max: Duration::from_secs(2), ownership: Ownership::Taken, shards: 2, ..world.fresh() };
    let log = world.open_memory(&options);
    let shard = log.shard_of(&tenant("acme"));
    world.take(&log, shard);
    append(&*log, "acme", 1, "first").unwrap();
    server.kill().unwrap();
    let sent = log.append(Version(1), contract::commit(&tenant("acme"), Version(2), "c-2", 1, 60));
    world.runtime.block_on(log.release(shard)).unwrap();
    assert_eq!(contract::settle(sent).unwrap_err().outcome(), Outcome::Unknown);
    assert_eq!(*log.watch_shard(shard).unwrap().borrow(), Phase::Idle);
    world.wait(log.watch_health(), |health| *health == Health::Accepting);
    server.restart().unwrap();
    // Another node decides, and this one sees it when it takes the shard again.
    let other = world.open_memory(&Options { node: "other".to_owned(), ..options });
    world.take(&other, shard);
    append(&*other, "acme", 2, "c-2-of-another").unwrap();
    world.take(&log, shard);
    assert_eq!(log.head(&tenant("acme")).unwrap(), Version(2));
    assert_eq!(append(&*log, "acme", 3, "c-3").unwrap().position, Position(3));
}
