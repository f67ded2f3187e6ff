//! A disk that takes its time over snapshots keeps no actor waiting, and a polite end waits for it.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{sync::Arc, time::Duration};

use actors_core::region::Region;
use actors_shell::{Ask, LiveClock, LiveIds, Settings, Shell};
use events_journal::{Blob, EventLog, MemoryLog, ReadError, SnapshotStore};
use events_model::{
    CommitId, DecisionContext, EpisodeId, NanoUsd, Principal, RegionId, StreamId, Version,
    region::{Command, PriceBookEntry},
};
use parking_lot::{Mutex, RwLock};

const PATIENCE: Duration = Duration::from_secs(20);

/// Saves nothing while the gate is held.
#[derive(Debug)]
struct Slow {
    gate: RwLock<()>,
    begun: Mutex<u64>,
    log: Arc<MemoryLog>,
}

impl SnapshotStore for Slow {
    fn save_snapshot(&self, stream: &StreamId, version: Version, bytes: &[u8]) -> Result<(), ReadError> {
        *self.begun.lock() += 1;
        let _open = self.gate.read();
        self.log.save_snapshot(stream, version, bytes)
    }

    fn load_snapshot(&self, stream: &StreamId) -> Result<Option<Blob>, ReadError> {
        self.log.load_snapshot(stream)
    }

    fn save_checkpoint(&self, projection: &str, blob: &Blob) -> Result<(), ReadError> {
        self.log.save_checkpoint(projection, blob)
    }

    fn load_checkpoint(&self, projection: &str) -> Result<Option<Blob>, ReadError> {
        self.log.load_checkpoint(projection)
    }
}

fn publish(number: u16) -> Ask<Command> {
    let price = NanoUsd(i64::from(number) + 1);
    let entry = PriceBookEntry {
        model: "m".to_owned(),
        upstream: "u".to_owned(),
        input_per_mtok: price,
        output_per_mtok: price,
    };
    Ask {
        command: Command::PublishPriceBook { entries: vec![entry] },
        commit_id: CommitId::new(&format!("c-{number}")).unwrap(),
        idempotent: false,
        episode_id: EpisodeId::from_bytes([1; 16]),
        causation_id: None,
        principal: Principal::admin(),
        traceparent: String::new(),
        inputs: DecisionContext::default(),
    }
}

#[tokio::test]
async fn actors_answer_while_snapshots_wait_for_the_disk_and_the_end_waits_for_the_last_of_each() {
    let log = Arc::new(MemoryLog::new());
    let slow = Arc::new(Slow { gate: RwLock::new(()), begun: Mutex::new(0), log: Arc::clone(&log) });
    let settings = Settings { snapshot_every: 1, arbiters: 1, ..Settings::new(RegionId::new("local").unwrap()) };
    let shell: Shell<Region> = Shell::start(
        Arc::clone(&log) as Arc<dyn EventLog>,
        Arc::clone(&slow) as Arc<dyn SnapshotStore>,
        Arc::new(LiveClock::default()),
        Arc::new(LiveIds::new(1, 2)),
        settings,
    );
    let streams = ["region/one", "region/other"].map(|name| StreamId::new(name).unwrap());
    // The guard lies in a thread of its own, as a disk would.
    let (open, opened) = std::sync::mpsc::channel::<()>();
    let (shut, is_shut) = std::sync::mpsc::channel();
    let gate = Arc::clone(&slow);
    let disk = std::thread::spawn(move || {
        let _held = gate.gate.write();
        shut.send(()).unwrap();
        opened.recv().unwrap();
    });
    is_shut.recv().unwrap();
    // More snapshots than may wait: those beyond are left out.
    let asks = async {
        for number in 0..200 {
            for stream in &streams {
                shell.actor(stream).ask(publish(number)).await.unwrap().unwrap();
            }
        }
    };
    tokio::time::timeout(PATIENCE, asks).await.unwrap();
    assert!(*slow.begun.lock() <= 1, "one is being written, the others wait");
    open.send(()).unwrap();
    disk.join().unwrap();
    shell.drain().await;
    for stream in &streams {
        assert_eq!(log.load_snapshot(stream).unwrap().unwrap().at, 200);
    }
}
