//! Watches that no shard is two nodes' at one moment.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use events_journal_nats::lease::Leases;

use crate::node::Node;

/// Asks all nodes all the time.
pub(crate) struct Sampler {
    nodes: Arc<Mutex<Vec<(String, Leases)>>>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(crate) fn start() -> Self {
        let (nodes, stop) = (Arc::new(Mutex::new(Vec::<(String, Leases)>::new())), Arc::new(AtomicBool::new(false)));
        let rounds = Arc::new(AtomicU64::new(0));
        let (seen, ended, counted) = (Arc::clone(&nodes), Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                sample(&seen.lock().unwrap());
                counted.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        Self { nodes, stop, rounds, thread: Some(thread) }
    }

    pub(crate) fn watch(&self, node: &Node) {
        self.nodes.lock().unwrap().push((node.name.clone(), node.leases.clone()));
    }

    pub(crate) fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.rounds.load(Ordering::Relaxed)
    }
}

/// One had the shard before and after the other had it: so both had it at one moment.
fn sample(nodes: &[(String, Leases)]) {
    for shard in 0..nodes.first().map_or(0, |(_, leases)| leases.shards()) {
        let epochs: Vec<_> = nodes.iter().map(|(_, leases)| leases.epoch(shard)).collect();
        let owners: Vec<_> = (0..nodes.len()).filter(|index| epochs[*index].is_some()).collect();
        for pair in owners.windows(2) {
            let (first, second) = (&nodes[pair[0]], &nodes[pair[1]]);
            let again = first.1.epoch(shard);
            assert!(again != epochs[pair[0]], "shard {shard} is {}'s and {}'s, epochs {epochs:?}", first.0, second.0);
        }
    }
}
