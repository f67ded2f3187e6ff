//! One fault at a time.

use std::{
    collections::BTreeMap,
    sync::mpsc as blocking,
    time::{Duration, Instant},
};

use events_journal_nats::lease::{Error, NodeState, Settings};
use tests_kit::nats::{NatsCluster, NatsServer};
use tokio::sync::oneshot;

use crate::{
    node::{Node, Order, TTL, WAIT, balanced, connect, settings, start, start_for, until},
    sampler::Sampler,
};

/// So long that nothing in these tests can come from a lease that ran out.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn nodes_share_the_shards_and_show_each_other() {
    let server = NatsServer::start().unwrap();
    let mut nodes = vec![start_for(LONG, &server, "n1", 256)];
    let alone = until("one node has all", || balanced(&nodes));
    nodes.push(start_for(LONG, &server, "n2", 256));
    let second = until("two nodes share", || balanced(&nodes));
    nodes.push(start_for(LONG, &server, "n3", 256));
    let third = until("three nodes share", || balanced(&nodes));
    println!("256 shards: taken by one node in {alone:?}, a second joins in {second:?}, a third in {third:?}");
    for node in &nodes {
        let count = node.mine().len();
        assert!((60..=112).contains(&count), "{} has {count}", node.name);
        let shown: BTreeMap<_, _> = node.leases.nodes().into_iter().map(|node| (node.name.clone(), node)).collect();
        assert_eq!(shown.keys().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
        assert!(shown.values().all(|node| node.state == NodeState::Live && node.last_seen < WAIT));
        assert_eq!(shown[&node.name].shards as usize, count);
        assert_eq!(shown["n2"].address, "n2.example:7600");
    }
    // Each join moves only what the new node gets.
    let moved = nodes.iter().map(Node::taken).sum::<u64>() - 256;
    let gained = nodes[1].taken() + nodes[2].taken();
    assert_eq!(moved, gained, "a node that was there took shards when another joined");
}

#[test]
fn a_killed_nodes_shards_are_taken_when_its_lease_has_run_out_and_not_before() {
    let server = NatsServer::start().unwrap();
    let mut nodes = vec![start(&server, "n1", 256), start(&server, "n2", 256), start(&server, "n3", 256)];
    let sampler = Sampler::start();
    nodes.iter().for_each(|node| sampler.watch(node));
    until("three nodes share", || balanced(&nodes));
    let mut killed = nodes.remove(0);
    killed.kill();
    let at = Instant::now();
    until("the killed node's own deadline", || killed.mine().is_empty());
    let stopped = at.elapsed();
    until("two nodes share", || balanced(&nodes));
    let taken = at.elapsed();
    println!("lease {TTL:?}: a killed node would have stopped after {stopped:?}, all its shards taken after {taken:?}");
    // Twice as long as it takes, because this machine may be busy with other tests.
    assert!(stopped < TTL * 2, "{stopped:?}");
    assert!(taken < TTL * 4, "{taken:?}");
    let rounds = sampler.finish();
    println!("{rounds} samples of 256 shards");
}

#[test]
fn a_drained_node_hands_over_at_once_and_takes_nothing_more() {
    let server = NatsServer::start().unwrap();
    let nodes = vec![start_for(LONG, &server, "n1", 256), start_for(LONG, &server, "n2", 256)];
    let sampler = Sampler::start();
    nodes.iter().for_each(|node| sampler.watch(node));
    until("two nodes share", || balanced(&nodes));
    let (answer, answered) = blocking::channel();
    let at = Instant::now();
    nodes[0].order(Order::Drain(WAIT, answer));
    assert_eq!(answered.recv().unwrap().unwrap(), 0);
    println!("drained of 128 shards in {:?}", at.elapsed());
    assert_eq!(nodes[1].mine().len(), 256);
    assert!(nodes[0].mine().is_empty());
    until("it shows that it drains", || nodes[1].leases.nodes()[0].state == NodeState::Draining);
    // When the other one leaves, nobody takes what it gives back.
    let (mut nodes, mut last) = (nodes, Vec::new());
    last.push(nodes.pop().unwrap());
    assert!(last[0].close());
    until("it is seen to have left", || nodes[0].leases.nodes()[1].state == NodeState::Left);
    assert!(nodes[0].mine().is_empty());
    sampler.finish();
}

#[test]
fn the_last_node_leaves_all_free_for_the_next() {
    let server = NatsServer::start().unwrap();
    let mut first = start_for(LONG, &server, "n1", 64);
    until("it has all", || first.mine().len() == 64);
    assert!(first.close());
    let at = Instant::now();
    let nodes = vec![start_for(LONG, &server, "n1", 64)];
    until("the next has all", || balanced(&nodes));
    println!("restarted after a clean stop in {:?}", at.elapsed());
    assert!((0..64).all(|shard| nodes[0].leases.epoch(shard) == Some(2)));
}

#[test]
fn a_shard_is_not_given_back_before_nobody_decides_for_it() {
    let server = NatsServer::start().unwrap();
    let mut nodes = vec![start_for(TTL * 3, &server, "n1", 256)];
    until("it has all", || balanced(&nodes));
    let (gate, closed) = oneshot::channel();
    nodes[0].order(Order::Hold(closed));
    nodes.push(start_for(TTL * 3, &server, "n2", 256));
    until("as many as may be are being handed over", || nodes[0].held.lock().unwrap().len() == 16);
    let lost: Vec<_> = (0..256).filter(|shard| !nodes[0].leases.is_mine(*shard)).collect();
    assert_eq!(lost.len(), 16);
    let seen = Instant::now();
    until("a lease goes by", || seen.elapsed() > TTL * 3);
    assert!(nodes[1].mine().is_empty());
    assert!(lost.iter().all(|shard| nodes[1].leases.owner_of(*shard).unwrap().node == "n1"));
    drop(gate);
    until("two nodes share", || balanced(&nodes));
}

#[test]
fn a_second_process_of_a_name_is_refused_while_the_first_lives() {
    let server = NatsServer::start().unwrap();
    let mut first = start(&server, "n1", 64);
    until("it has all", || first.mine().len() == 64);
    let refused = Node::start(vec![server.url()], settings("n1", 64)).err().unwrap();
    assert!(matches!(&refused, Error::NameTaken { node, .. } if node == "n1"), "{refused:?}");
    until("the first still has all", || first.mine().len() == 64);
    // One that was killed is followed by the next of its name when its lease has run out.
    first.kill();
    let at = Instant::now();
    let nodes = vec![start(&server, "n1", 64)];
    assert!(first.mine().is_empty());
    until("the next has all", || balanced(&nodes));
    println!("restarted after a kill in {:?}", at.elapsed());
}

#[test]
fn a_node_that_is_set_up_otherwise_is_refused() {
    let server = NatsServer::start().unwrap();
    let node = start(&server, "n1", 64);
    let refuse = |settings| Node::start(vec![server.url()], settings).err().unwrap();
    let Error::Differs { setting, asked, stored } = refuse(settings("n2", 128)) else { panic!("accepted") };
    assert_eq!((setting, asked.as_str(), stored.as_str()), ("shards", "128", "64"));
    let slow = Settings { ttl: TTL * 2, ..settings("n2", 64) };
    assert!(matches!(refuse(slow), Error::Differs { setting: "ttl_ms", .. }));
    for (wrong, named) in [
        (settings("n 2", 64), "node"),
        (settings("", 64), "node"),
        (settings("n2", 0), "shards"),
        (Settings { ttl: Duration::from_millis(1), ..settings("n2", 64) }, "ttl"),
        (Settings { replicas: 2, ..settings("n2", 64) }, "replicas"),
        (Settings { version: "v".repeat(257), ..settings("n2", 64) }, "version"),
    ] {
        assert!(matches!(refuse(wrong), Error::Setting { setting, .. } if setting == named), "{named}");
    }
    drop(node);
}

#[test]
fn a_bucket_of_another_kind_is_refused() {
    let server = NatsServer::start().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let context = async_nats::jetstream::new(connect(vec![server.url()]).await);
        let config = async_nats::jetstream::stream::Config {
            name: "KV_FH_LEASES_EU-WEST".to_owned(),
            subjects: vec!["$KV.FH_LEASES_EU-WEST.>".to_owned()],
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
    });
    let refused = Node::start(vec![server.url()], settings("n1", 64)).err().unwrap();
    let Error::ForeignBucket { differences, .. } = refused else { panic!("{refused:?}") };
    let fields: Vec<_> = differences.iter().map(|difference| difference.field).collect();
    assert_eq!(fields, ["max_msgs_per_subject", "allow_msg_ttl", "deny_delete"]);
}

#[test]
fn leases_run_out_while_the_servers_are_away_and_come_back_with_them() {
    let mut server = NatsServer::start().unwrap();
    let nodes = vec![start(&server, "n1", 256), start(&server, "n2", 256)];
    let sampler = Sampler::start();
    nodes.iter().for_each(|node| sampler.watch(node));
    until("two nodes share", || balanced(&nodes));
    server.kill().unwrap();
    let gone = until("nothing is owned", || nodes.iter().all(|node| node.mine().is_empty()));
    assert!(gone < TTL * 2, "{gone:?}");
    server.restart().unwrap();
    let back = until("two nodes share again", || balanced(&nodes));
    println!("servers away: nothing owned after {gone:?}; all again {back:?} after they are ready");
    let rounds = sampler.finish();
    assert!(rounds > 0);
}

#[test]
fn a_stopped_node_owns_nothing_and_finds_out_when_it_goes_on() {
    let server = NatsServer::start().unwrap();
    let nodes = vec![start(&server, "n1", 256), start(&server, "n2", 256)];
    let sampler = Sampler::start();
    nodes.iter().for_each(|node| sampler.watch(node));
    until("two nodes share", || balanced(&nodes));
    let gate = nodes[0].stop();
    until("the other one has all", || nodes[1].mine().len() == 256);
    assert!(nodes[0].mine().is_empty());
    drop(gate);
    until("two nodes share again", || balanced(&nodes));
    sampler.finish();
}

#[test]
fn three_servers_and_a_killed_leader_of_the_bucket() {
    let mut cluster = NatsCluster::start(3).unwrap();
    let node = |name: &str| {
        let settings = Settings { replicas: 3, ttl: TTL * 4, ..settings(name, 256) };
        Node::start(cluster.urls(), settings).unwrap()
    };
    let mut nodes = vec![node("n1"), node("n2")];
    let sampler = Sampler::start();
    nodes.iter().for_each(|node| sampler.watch(node));
    let shared = until("two nodes share", || balanced(&nodes));
    let leader = cluster.wait_stream_leader("KV_FH_LEASES_EU-WEST").unwrap();
    cluster.nodes[leader].kill().unwrap();
    let at = Instant::now();
    let mut killed = nodes.remove(0);
    killed.kill();
    until("the other one has all", || balanced(&nodes));
    println!("three servers: shared in {shared:?}; leader and a node killed: all taken after {:?}", at.elapsed());
    sampler.finish();
}
