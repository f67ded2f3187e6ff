//! Two nodes that both believe to own a shard: one of them is refused, whichever comes second, also with the very
//! first append; and shards that are given back and taken.

use std::sync::Arc;

use events_journal::{
    AppendError, EventLog, Outcome, Refusal,
    contract::{self, fixture::tenant},
};
use events_journal_nats::{JetStreamLog, Options, Ownership, Phase, TakeError};
use events_model::{Position, Version};
use tests_kit::nats::{NatsCluster, NatsServer};

use crate::kit::{World, all, append};

fn owners(world: &World) -> (Options, [Arc<JetStreamLog>; 2]) {
    let options = Options { ownership: Ownership::Taken, ..world.fresh() };
    let logs = ["a", "b"].map(|node| world.open_memory(&Options { node: node.to_owned(), ..options.clone() }));
    (options, logs)
}

fn assert_fenced(answer: Result<events_journal::Appended, AppendError>) {
    let error = answer.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(matches!(error, AppendError::Refused(Refusal::Fenced)), "{error:?}");
}

/// `b` believes to own the shard that `a` publishes to, when it holds `before` groups.
fn the_second_owner_is_refused(world: &World, before: u64) {
    let (options, [a, b]) = owners(world);
    world.take(&a, 0);
    for version in 1..=before {
        append(&*a, "acme", version, &format!("before-{version}")).unwrap();
    }
    world.take(&b, 0);
    assert_eq!(append(&*a, "acme", before + 1, "a").unwrap().position, Position(before + 1));
    // One group of what does not conflict with what b knows, and what is built on it.
    let late: Vec<_> = (0..50)
        .map(|n| {
            let commit = contract::commit(&tenant("acme"), Version(before + 1 + n), &format!("b-{n}"), 1, 60);
            b.append(Version(before + n), commit)
        })
        .collect();
    for receipt in late {
        let error = contract::settle(receipt).unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotWritten, "{error:?}");
    }
    world.wait(b.watch_shard(0).unwrap(), |phase| *phase == Phase::Lost);
    assert_fenced(append(&*b, "acme", before + 2, "b-again"));
    // Taken again, b knows where the shard ends, and a is the one that is refused.
    world.take(&b, 0);
    assert_eq!(append(&*b, "acme", before + 2, "b").unwrap().position, Position(before + 2));
    // A conflict, if a has followed b's append already.
    let late = append(&*a, "acme", before + 2, "a-late").unwrap_err();
    assert!(matches!(late, AppendError::Refused(Refusal::Fenced) | AppendError::Conflict { .. }), "{late:?}");
    world.catch_up(&a, before + 2);
    assert_eq!(all(&a), all(&b));
    assert_eq!(all(&a).len() as u64, before + 2);
    assert_eq!(world.messages(&options), before + 2);
}

#[test]
fn the_second_of_two_owners_is_refused_also_with_the_first_append() {
    let server = NatsServer::start().unwrap();
    let cluster = NatsCluster::start(3).unwrap();
    for world in [World::of_one(&server), World::of_three(&cluster)] {
        the_second_owner_is_refused(&world, 0);
        the_second_owner_is_refused(&world, 3);
    }
}

#[test]
fn of_two_owners_that_race_each_group_has_one() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let (_, logs) = owners(&world);
    let won: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = logs
            .iter()
            .zip(["a", "b"])
            .map(|(log, name)| {
                let world = &world;
                scope.spawn(move || {
                    let mut won = 0;
                    for n in 0..40 {
                        world.take(log, 0);
                        let version = log.head(&tenant("acme")).unwrap().0 + 1;
                        won += usize::from(append(&**log, "acme", version, &format!("{name}-{n}")).is_ok());
                    }
                    won
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    let [a, b] = logs;
    world.catch_up(&a, b.progress().head.max(a.progress().head));
    world.catch_up(&b, a.progress().head);
    assert_eq!(all(&a), all(&b));
    // Whoever was told yes is there, and nobody else: contract::commit gives each id one commit.
    assert_eq!(all(&a).len(), won);
    println!("{won} of 80 appends won");
}

#[test]
fn a_shard_is_used_only_between_taking_and_giving_back() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let (_, [a, b]) = owners(&world);
    assert_fenced(append(&*a, "acme", 1, "early"));
    world.take(&a, 0);
    world.take(&a, 0);
    let receipts: Vec<_> = (1..=100)
        .map(|n| a.append(Version(n - 1), contract::commit(&tenant("acme"), Version(n), &format!("c-{n}"), 1, 60)))
        .collect();
    world.runtime.block_on(a.release(0)).unwrap();
    for receipt in receipts {
        contract::settle(receipt).unwrap();
    }
    assert_fenced(append(&*a, "acme", 101, "late"));
    assert_eq!(*a.watch_shard(0).unwrap().borrow(), Phase::Idle);
    // The next owner decides on everything that was accepted.
    world.take(&b, 0);
    assert_eq!(b.head(&tenant("acme")).unwrap(), Version(100));
    assert_eq!(append(&*b, "acme", 101, "next").unwrap().position, Position(101));
    assert!(matches!(world.runtime.block_on(a.take(1)), Err(TakeError::NoSuchShard { shard: 1, shards: 1 })));
}
