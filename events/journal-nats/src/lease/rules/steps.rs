//! The rules step by step, where the order of what happens matters.

use super::{
    super::{
        assign::desired_owner,
        record::{Incarnation, Key, NodeRecord, NodeState, OwnerRecord, ShardRecord},
        table::Nanos,
    },
    Action, Failure, Found, Input, Purpose, Standing, Value, Write,
    simulation::{SHARDS, TTL, World},
};

/// A node that has its lease and the first shard, and is taking the second at the moment that is returned.
fn taking() -> (World, Write, Nanos) {
    let mut world = World::new(0);
    world.faults = false;
    world.join("a");
    let node = &mut world.nodes[0];
    let (start, mut out) = (node.clock(0), Vec::new());
    let mut step = |input| {
        let node = &mut world.nodes[0];
        node.core.handle(start, input, &mut out);
        std::mem::take(&mut out)
    };
    assert_eq!(step(Input::Tick), [Action::Poll { after: 0, questions: 1 }]);
    let lease = writes(step(Input::Polled(Ok(vec![])))).remove(0);
    let mut takes = writes(step(Input::Wrote(lease, Ok(1))));
    let (first, second) = (takes.remove(0), takes.remove(0));
    let took = step(Input::Wrote(first, Ok(2)));
    assert!(took.contains(&Action::Taken { shard: 0, epoch: 1 }));
    (world, second, start)
}

fn writes(actions: Vec<Action>) -> Vec<Write> {
    let write = |action| if let Action::Write(write) = action { Some(write) } else { None };
    actions.into_iter().filter_map(write).collect()
}

/// The node of `taking` when its lease has just run out, with a renewal on its way.
fn suspended() -> (World, Write, Nanos) {
    let (mut world, _, start) = taking();
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    let deadline = start + TTL - TTL / 6;
    node.core.handle(deadline - 1, Input::Tick, &mut out);
    assert_eq!(node.mine.epoch(0, || deadline - 1), Some(1));
    node.core.handle(deadline, Input::Tick, &mut out);
    assert_eq!((node.mine.epoch(0, || deadline), node.mine.kept(0)), (None, Some(1)));
    let renewal = |write: &Write| matches!(write.purpose, Purpose::Lease { .. });
    let renewal = writes(out).into_iter().find(renewal).unwrap();
    (world, renewal, deadline)
}

#[test]
fn nothing_is_decided_after_the_deadline_and_the_shards_are_kept_if_the_renewal_succeeds_after_all() {
    let (mut world, renewal, deadline) = suspended();
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    let gaps = node.mine.gaps();
    node.core.handle(deadline, Input::Wrote(renewal, Ok(9)), &mut out);
    assert_eq!(node.mine.gaps(), gaps + 1);
    assert!(!out.iter().any(|action| matches!(action, Action::Lost { .. } | Action::Taken { .. })), "{out:?}");
    assert_eq!(node.mine.epoch(0, || deadline), Some(1));
}

#[test]
fn the_shards_of_a_lease_that_ran_out_are_lost_when_another_node_has_ended_it() {
    let (mut world, renewal, deadline) = suspended();
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    node.core.handle(deadline, Input::Wrote(renewal, Err(Failure::Revision)), &mut out);
    assert_eq!(node.mine.epoch(0, || deadline), None);
    let value = Value::Node(NodeRecord {
        incarnation: Incarnation(1),
        term: 1,
        state: NodeState::Expired,
        address: String::new(),
        version: String::new(),
        started_at_us: 0,
    });
    let ended = Found { revision: 9, key: Key::Node("a".to_owned()), value: Some(value) };
    node.core.handle(deadline, Input::Polled(Ok(vec![ended])), &mut out);
    assert!(out.contains(&Action::Lost { shard: 0, epoch: 1 }));
    assert_eq!(node.mine.kept(0), None);
}

#[test]
fn a_shard_taken_under_a_lease_that_has_ended_is_nobodys() {
    let (mut world, second, start) = taking();
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    // Another node ends the lease; this one takes the next before it hears of its take.
    let value = Value::Node(NodeRecord {
        incarnation: Incarnation(1),
        term: 1,
        state: NodeState::Expired,
        address: String::new(),
        version: String::new(),
        started_at_us: 0,
    });
    let ended = Found { revision: 4, key: Key::Node("a".to_owned()), value: Some(value) };
    node.core.handle(start, Input::Polled(Ok(vec![ended])), &mut out);
    node.core.handle(start, Input::Polled(Ok(vec![])), &mut out);
    assert!(out.contains(&Action::Lost { shard: 0, epoch: 1 }));
    let of_lease = |write: &Write| matches!(write.purpose, Purpose::Lease { .. });
    let again = writes(std::mem::take(&mut out)).into_iter().find(of_lease).unwrap();
    node.core.handle(start, Input::Wrote(again, Ok(5)), &mut out);
    assert_eq!(*node.core.standing(), Standing::Held);
    node.core.handle(start, Input::Wrote(second, Ok(3)), &mut out);
    assert_eq!(node.mine.epoch(1, || start), None);
}

#[test]
fn a_shard_somebody_else_took_is_lost_at_once() {
    let (mut world, _, start) = taking();
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    let owner = OwnerRecord { node: "b".to_owned(), incarnation: Incarnation(2), term: 1 };
    let value = Value::Shard(ShardRecord { epoch: 2, owner: Some(owner) });
    let found = Found { revision: 9, key: Key::Shard(0), value: Some(value) };
    node.core.handle(start, Input::Polled(Ok(vec![found])), &mut out);
    assert!(out.contains(&Action::Lost { shard: 0, epoch: 1 }));
    assert_eq!(node.mine.epoch(0, || start), None);
}

#[test]
fn a_node_that_was_blind_gives_the_others_time_to_show_themselves() {
    let (mut world, _, start) = taking();
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    let other = NodeRecord {
        incarnation: Incarnation(2),
        term: 1,
        state: NodeState::Live,
        address: String::new(),
        version: String::new(),
        started_at_us: 0,
    };
    let found = Found { revision: 9, key: Key::Node("b".to_owned()), value: Some(Value::Node(other)) };
    node.core.handle(start, Input::Polled(Ok(vec![found])), &mut out);
    node.core.handle(start, Input::Polled(Ok(vec![])), &mut out);
    let renew = |actions: Vec<Action>| {
        writes(actions).into_iter().find(|write| matches!(write.purpose, Purpose::Lease { .. })).unwrap()
    };
    node.core.handle(start + TTL / 2, Input::Tick, &mut out);
    let lost = renew(std::mem::take(&mut out));
    let late = start + 5 * TTL;
    node.core.handle(late, Input::Wrote(lost, Err(Failure::Unknown)), &mut out);
    // The answer to what was asked before the failure, then to what was asked after it.
    node.core.handle(late, Input::Polled(Ok(vec![])), &mut out);
    node.core.handle(late, Input::Polled(Ok(vec![])), &mut out);
    node.core.handle(late + TTL / 36, Input::Tick, &mut out);
    let renewal = renew(std::mem::take(&mut out));
    let back = late + TTL / 18;
    let mut buried = |now, input| {
        node.core.handle(now, input, &mut out);
        writes(std::mem::take(&mut out)).iter().any(|write| matches!(write.purpose, Purpose::Bury { .. }))
    };
    assert!(!buried(back, Input::Wrote(renewal, Ok(10))));
    assert!(!buried(back + TTL / 2, Input::Tick));
}

#[test]
fn before_the_end_is_reached_a_shard_is_taken_only_if_the_very_lease_was_seen_to_end() {
    let mut world = World::new(0);
    world.join("a");
    let (node, mut out) = (&mut world.nodes[0], Vec::new());
    let start = node.clock(0);
    let lease = |incarnation, state| {
        let (address, version) = (String::new(), String::new());
        let incarnation = Incarnation(incarnation);
        Some(Value::Node(NodeRecord { incarnation, term: 1, state, address, version, started_at_us: 0 }))
    };
    let mut see = |revision, key, value| {
        let found = Found { revision, key, value };
        node.core.handle(start, Input::Polled(Ok(vec![found])), &mut out);
        writes(std::mem::take(&mut out))
    };
    let key = |name: &str| Key::Node(name.to_owned());
    see(1, key("b"), lease(1, NodeState::Expired));
    see(2, key("c"), lease(3, NodeState::Live));
    node.core.handle(start, Input::Polled(Ok(vec![])), &mut out);
    let own = writes(std::mem::take(&mut out)).remove(0);
    node.core.handle(start, Input::Wrote(own, Ok(3)), &mut out);
    // One that `c` should have and a new run of `b` took; the lease of that run was renewed since and comes later.
    let shard = (0..SHARDS).find(|shard| desired_owner(*shard, ["a", "c"]) == Some("c")).unwrap();
    let owner = OwnerRecord { node: "b".to_owned(), incarnation: Incarnation(2), term: 1 };
    let taken = Some(Value::Shard(ShardRecord { epoch: 4, owner: Some(owner) }));
    let mut takes = |revision, key, value| {
        let found = Found { revision, key, value };
        node.core.handle(start, Input::Polled(Ok(vec![found])), &mut out);
        writes(std::mem::take(&mut out)).into_iter().any(|write| write.key == Key::Shard(shard))
    };
    assert!(!takes(20, Key::Shard(shard), taken));
    assert!(!takes(21, key("c"), lease(3, NodeState::Expired)));
    assert!(takes(22, key("b"), lease(2, NodeState::Expired)));
}
