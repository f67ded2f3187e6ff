//! Many faults in any order.

use std::sync::Arc;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tests_kit::nats::NatsServer;

use crate::{
    node::{Node, Skewed, balanced, settings, until},
    sampler::Sampler,
};

/// Nodes come, leave, are killed and stop in any order, with clocks at different speeds; the servers restart.
fn live_through(seed: u64, steps: usize) -> u64 {
    const NAMES: [&str; 4] = ["n1", "n2", "n3", "n4"];
    let mut rng = StdRng::seed_from_u64(seed);
    let mut server = NatsServer::start().unwrap();
    let sampler = Sampler::start();
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..steps {
        let free: Vec<_> = NAMES.iter().filter(|name| nodes.iter().all(|node| node.name != **name)).collect();
        let index = rng.random_range(0..nodes.len().max(1));
        match (rng.random_range(0..8), free.choose(&mut rng)) {
            (0..=2, Some(name)) => {
                let clock = Arc::new(Skewed(rng.random_range(97..=103)));
                let node = Node::start_with(vec![server.url()], settings(name, 64), clock).unwrap();
                sampler.watch(&node);
                nodes.push(node);
            }
            (3, _) if nodes.len() > 1 => nodes.remove(index).kill(),
            (4, _) if nodes.len() > 1 => assert!(nodes.remove(index).close()),
            (5, _) if nodes.len() > 1 => {
                let gate = nodes[index].stop();
                // Sometimes it goes on before anybody noticed, sometimes when all was taken from it.
                if rng.random_bool(0.7) {
                    until("it owns nothing", || nodes[index].mine().is_empty());
                }
                if rng.random_bool(0.7) {
                    let count = |node: &Node| node.mine().len();
                    until("others have all", || nodes.iter().map(count).sum::<usize>() == 64);
                }
                drop(gate);
            }
            (6, _) => {
                server.kill().unwrap();
                server.restart().unwrap();
            }
            _ => {}
        }
        if rng.random_bool(0.6) {
            until("every shard has its owner", || balanced(&nodes));
        }
    }
    until("every shard has its owner", || balanced(&nodes));
    drop(nodes);
    sampler.finish()
}

#[test]
fn no_two_nodes_decide_for_a_shard_whatever_happens() {
    for seed in [1, 2, 3] {
        println!("seed {seed}");
        let rounds = live_through(seed, 14);
        println!("seed {seed}: {rounds} samples of 64 shards");
    }
}
