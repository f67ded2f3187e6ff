//! The public contract on one server and on a cluster of three, with replicas in memory and on disk.

use std::sync::Arc;

use events_journal::contract;
use events_journal_nats::{JetStreamLog, Options};
use events_journal_sled::LocalStore;
use tests_kit::nats::{NatsCluster, NatsServer};

use crate::kit::World;

#[test]
fn one_server_keeps_the_contract_with_replicas_in_memory() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    contract::run_all(&mut || world.open_memory(&world.fresh()));
}

#[test]
fn one_server_keeps_the_contract_with_local_stores() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let mut dirs = Vec::new();
    contract::run_all(&mut || {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open_copy(dir.path(), events_journal_sled::Options::default()).unwrap());
        dirs.push(dir);
        world.open(&world.fresh(), &store)
    });
}

#[test]
fn three_servers_keep_the_contract() {
    let cluster = NatsCluster::start(3).unwrap();
    let world = World::of_three(&cluster);
    contract::run_all(&mut || world.open_memory(&world.fresh()));
}

#[test]
fn many_shards_keep_the_contract_on_one_server_and_on_three() {
    let server = NatsServer::start().unwrap();
    let cluster = NatsCluster::start(3).unwrap();
    for world in [World::of_one(&server), World::of_three(&cluster)] {
        contract::run_all(&mut || world.open_memory(&Options { shards: 16, ..world.fresh() }));
    }
}

#[test]
fn everything_is_there_when_a_node_is_opened_again() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    contract::run_durable(&mut || {
        let options = world.fresh();
        let handle = world.runtime.handle().clone();
        let dir = tempfile::tempdir().unwrap();
        let mut before: Option<JetStreamLog> = None;
        Box::new(move || {
            // Whoever opened it has dropped it; its tasks are waited for, so that the directory is free.
            if let Some(log) = before.take() {
                handle.block_on(log.close());
            }
            let store = Arc::new(LocalStore::open_copy(dir.path(), events_journal_sled::Options::default()).unwrap());
            let (log, snapshots) = (Arc::clone(&store), store);
            let log = handle.block_on(JetStreamLog::open(options.clone(), log, snapshots, handle.clone())).unwrap();
            before = Some(log.clone());
            Arc::new(log)
        })
    });
}
