//! The memory log against the contract that it is the reference of.

use std::sync::Arc;

use events_journal::{
    EventLog, MemoryLog,
    contract::{self, Reopen},
};

#[test]
fn the_memory_log_keeps_the_contract() {
    contract::run_all(&mut || Arc::new(MemoryLog::new()));
}

#[test]
fn the_memory_log_keeps_the_contract_of_snapshots() {
    contract::run_snapshots(&mut || Arc::new(MemoryLog::new()));
}

/// Memory does not outlive its process; this shows that the suite itself holds together.
#[test]
fn the_memory_log_keeps_the_contract_of_reopening_within_its_life() {
    contract::run_durable(&mut || -> Reopen {
        let log: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
        Box::new(move || Arc::clone(&log))
    });
}

#[test]
fn the_memory_log_keeps_the_contract_of_replicas() {
    contract::run_replica(&mut || Arc::new(MemoryLog::new()));
}
