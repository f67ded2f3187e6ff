//! Appends with 1, 64 and 512 callers to one NATS server of its own, next to raw async-nats publishing of the same
//! bytes in the same grouping and of one message a commit.
//!
//! `cargo run --release -p events-journal-nats --example append` after `cargo xtask setup`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints what it found")]

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use events_journal::{
    EventLog,
    contract::{self, fixture::tenant},
};
use events_journal_nats::{
    Credentials, JetStreamLog, Options,
    bench::{self, Grouping},
};
use events_journal_sled::LocalStore;
use events_model::{RegionId, Version};
use tests_kit::nats::{NatsServer, PASSWORD, USER};
use tokio::runtime::Builder;

const EVENT_BYTES: usize = 512;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the real clock")]
fn now() -> Instant {
    Instant::now()
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below the length")]
    let index = ((sorted.len() - 1) as f64 * share) as usize;
    sorted[index]
}

/// Each caller appends to a stream of its own and waits for each answer.
fn run(log: &Arc<JetStreamLog>, callers: usize, each: u64) -> (Duration, Vec<Duration>) {
    let start = now();
    let mut latencies: Vec<Duration> = thread::scope(|scope| {
        let callers: Vec<_> = (0..callers)
            .map(|caller| {
                scope.spawn(move || {
                    let stream = tenant(&format!("t-{caller}"));
                    (1..=each)
                        .map(|version| {
                            let id = format!("c-{version}");
                            let commit = contract::commit(&stream, Version(version), &id, 1, EVENT_BYTES);
                            let start = now();
                            log.append(Version(version - 1), commit).wait().unwrap();
                            start.elapsed()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    (elapsed, latencies)
}

fn main() {
    let server = NatsServer::start().unwrap();
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{EVENT_BYTES}-byte events, one a commit; commits/s");
    println!(
        "shards callers   engine      p50      p99  commits/message      raw, same grouping  ratio  raw, one a commit"
    );
    for shards in [1, 16, 256] {
        for (callers, each) in [(1, 1_000), (64, 200), (512, 60)] {
            let region = |kind: &str| RegionId::new(&format!("{kind}-{shards}-{callers}")).unwrap();
            let options = Options {
                servers: vec![server.url()],
                credentials: Credentials::Password { user: USER.to_owned(), password: PASSWORD.to_owned() },
                region: region("engine"),
                shards,
                ..Options::default()
            };
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(LocalStore::open(dir.path(), events_journal_sled::Options::default()).unwrap());
            let (replica, checkpoints) = (Arc::clone(&store), store);
            let opened = JetStreamLog::open(options.clone(), replica, checkpoints, runtime.handle().clone());
            let log = Arc::new(runtime.block_on(opened).unwrap());
            let (elapsed, latencies) = run(&log, callers, each);
            runtime.block_on(log.close());
            let traffic = runtime.block_on(bench::record(&options)).unwrap();
            assert_eq!(traffic.commits, latencies.len() as u64);
            let raw = |kind: &str, grouping| {
                let options = Options { region: region(kind), ..options.clone() };
                runtime.block_on(bench::publish(&options, &traffic, grouping)).unwrap()
            };
            let (same, single) = (raw("same", Grouping::Same), raw("single", Grouping::Single(callers)));
            let rate = |elapsed: Duration| traffic.commits as f64 / elapsed.as_secs_f64();
            println!(
                "{shards:>6} {callers:>7} {:>8.0} {:>8.2?} {:>8.2?} {:>16.1} {:>23.0} {:>6.2} {:>18.0}",
                rate(elapsed),
                percentile(&latencies, 0.5),
                percentile(&latencies, 0.99),
                traffic.commits as f64 / traffic.messages as f64,
                rate(same),
                rate(elapsed) / rate(same),
                rate(single),
            );
        }
    }
}
